"""Where an inventory's groups get hosts from when they are used: DNS, files, commands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
from pathlib import Path

from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import UftraceError, UsageError
from uftrace_remote.fleet._dns import DnsLookup, looked_up_name
from uftrace_remote.fleet.address import Host
from uftrace_remote.fleet.fan_out import fan_out
from uftrace_remote.fleet.hosts_file import FoundHost, read_hosts, read_list
from uftrace_remote.fleet.inventory import (
    CommandSource,
    DnsSettings,
    DnsSource,
    FileSource,
    Group,
    Inventory,
)

# 10,000 names of 100 bytes: what is longer is no list of hosts.
_MOST_BYTES = 1 << 20


async def find_hosts(group: Group, inventory: Inventory) -> tuple[FoundHost, ...]:
    """Asks a group's source for its hosts; a group without one has none.

    Raises:
        UftraceError: `ConnectionFailedError` of DNS (`UNKNOWN_HOST`, `DNS_FAILED`), or
            `UsageError` of a file or command that cannot be read or run. The
            message names the inventory's file, group and key.
    """
    source = group.source
    if source is None:
        return ()
    try:
        if isinstance(source, DnsSource):
            return await _look_up(source, inventory.dns)
        if isinstance(source, FileSource):
            return read_hosts(_read(source.path))
        return read_list(await _run(source, inventory.path))
    except UftraceError as error:
        place = f"{inventory.path}: " if inventory.path else ""
        where = f"{place}groups.{group.name}.{source_key(group)}"
        raise type(error)(
            f"{where}: {error.message}", reason=error.reason, hint=error.hint
        ) from None


def listed_hosts(group: Group) -> tuple[FoundHost, ...]:
    """The hosts of a group that are known without asking anybody: its own, and those of its
    file; of one that cannot be read there are none."""
    own = tuple(map(FoundHost, group.hosts))
    if not isinstance(group.source, FileSource):
        return own
    try:
        return (*own, *read_hosts(_read(group.source.path)))
    except UftraceError:
        return own


def source_key(group: Group) -> str:
    """The key of the inventory under which a group's source stands, or nothing."""
    if isinstance(group.source, DnsSource):
        return group.source.kind
    if isinstance(group.source, FileSource):
        return "hosts_file"
    return "command" if group.source is not None else ""


async def _look_up(source: DnsSource, settings: DnsSettings) -> tuple[FoundHost, ...]:
    lookup = DnsLookup(settings)
    name = looked_up_name(source)
    if source.kind != "srv":
        addresses = await lookup.addresses(name)
        return tuple(FoundHost(Host(Endpoint(each), has_port=False)) for each in addresses)
    hosts = []
    for target, port in await lookup.services(name):
        # Checked by parsing: a name server may answer with any bytes.
        endpoint = Endpoint.parse(f"{target}:{port}" if port else target)
        hosts.append(Host(endpoint, has_port=bool(port)))
    if not lookup.is_own:
        return tuple(map(FoundHost, hosts))

    # The system's resolver need not know names of servers of our own.
    async def locate(host: Host) -> FoundHost:
        addresses = await lookup.addresses(f"{host.endpoint.host}.")
        return FoundHost(host, addresses[0])

    outcomes = await fan_out(hosts, locate, deadline=2 * settings.timeout + 1)
    found = []
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
        assert outcome.value is not None
        found.append(outcome.value)
    return tuple(found)


def _read(path: Path) -> str:
    try:
        # A pipe or a device might never end.
        if not path.is_file():
            why = "it is no file" if path.exists() else "there is no such file"
            raise _unreadable(path, why)
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    return _text(content, f"the file {path}")


def _unreadable(path: Path, why: str) -> UsageError:
    return UsageError(
        f"cannot read {path}: {why}",
        reason="HOSTS_FILE_UNREADABLE",
        hint="relative paths begin at the inventory's directory",
    )


async def _run(source: CommandSource, inventory: Path | None) -> str:
    if inventory is not None:
        _refuse_unsafe(inventory)
    shown = " ".join(source.arguments)
    try:
        process = await asyncio.create_subprocess_exec(
            *source.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=inventory.parent if inventory is not None else None,
            # A group of its own: what it starts ends with it.
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise _command_failed(shown, f"cannot be run: {why}") from None
    assert process.stdout is not None and process.stderr is not None
    try:
        async with asyncio.timeout(source.timeout):
            content, complaint = await asyncio.gather(
                _read_output(process.stdout, process), _read_end(process.stderr)
            )
            await process.wait()
    except TimeoutError:
        raise _command_failed(shown, f"was not done after {source.timeout:g} s") from None
    finally:
        await _end(process)
    if len(content) > _MOST_BYTES:
        raise _too_long(f"the output of '{shown}'")
    if process.returncode:
        lines = complaint.decode(errors="replace").strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        raise _command_failed(shown, f"failed with status {process.returncode}{said}")
    return _text(content, f"the output of '{shown}'")


# What writes on without end is killed: then it does end.
async def _read_output(stream: asyncio.StreamReader, process: asyncio.subprocess.Process) -> bytes:
    content = bytearray()
    while piece := await stream.read(1 << 16):
        if len(content) <= _MOST_BYTES:
            content += piece
        else:
            _kill(process)
    return bytes(content)


async def _read_end(stream: asyncio.StreamReader) -> bytes:
    end = b""
    while piece := await stream.read(1 << 16):
        end = (end + piece)[-4096:]
    return end


async def _end(process: asyncio.subprocess.Process) -> None:
    _kill(process)
    # asyncio closes a pipe when it has read its end, which comes now, unless
    # somebody who left the group holds it open.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            for stream in (process.stdout, process.stderr):
                while stream is not None and await stream.read(1 << 16):
                    pass
    await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _command_failed(shown: str, what: str) -> UsageError:
    return UsageError(
        f"the command '{shown}' {what}",
        reason="HOSTS_COMMAND_FAILED",
        hint="it has to print hosts, one a line, and to end with status 0; it runs without a "
        "shell in the inventory's directory",
    )


# It names programs that we run: then it must not be everybody's.
def _refuse_unsafe(inventory: Path) -> None:
    with contextlib.suppress(OSError):
        if inventory.stat().st_mode & stat.S_IWOTH:
            raise UsageError(
                "the command is not run: everybody may write the inventory",
                reason="INVENTORY_UNSAFE",
                hint=f"chmod o-w {inventory}",
            )


def _text(content: bytes, what: str) -> str:
    if len(content) > _MOST_BYTES:
        raise _too_long(what)
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UsageError(
            f"{what} is no UTF-8 text", reason="INVALID_HOSTS", hint="it has to be a list of hosts"
        ) from None


def _too_long(what: str) -> UsageError:
    return UsageError(
        f"{what} is longer than 1 MiB",
        reason="TOO_MANY_HOSTS",
        hint="it has to be a list of hosts",
    )
