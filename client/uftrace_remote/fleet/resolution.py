"""From what people write to agents: each once, in order, with where it comes from."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uftrace_remote.agent import DEFAULT_TIMEOUT_SECONDS, AgentClient
from uftrace_remote.credentials import CredentialOptions, Credentials, find_credentials
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import UsageError
from uftrace_remote.fleet.address import FleetTarget, GroupName, Host, parse_hosts
from uftrace_remote.fleet.grouping import host_label
from uftrace_remote.fleet.host_ranges import MOST_HOSTS, too_many
from uftrace_remote.fleet.hosts_file import FoundHost
from uftrace_remote.fleet.inventory import Group, Inventory
from uftrace_remote.fleet.sources import find_hosts, listed_hosts, source_key


@dataclass(frozen=True, slots=True)
class FleetHost:
    """One agent of a fleet.

    Attributes:
        endpoint: What it is called, and the port where it listens; certificate and
            token are found by it.
        origins: What named it, in order: `web1`, `@web`, `@web (srv)`.
        state_directory: Where its group says that certificate and token are.
        address: Where it is, where that is not found under its name.
    """

    endpoint: Endpoint
    origins: tuple[str, ...] = ()
    state_directory: Path | None = None
    address: Endpoint | None = None

    def connect(
        self,
        options: CredentialOptions | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> AgentClient:
        """Prepares a connection; it is made by the first request.

        Args:
            options: Where certificate and token are; a directory that is named here
                counts for more than the group's.
            timeout: As in `AgentClient`.

        Raises:
            AuthenticationError: No certificate and token were found.
        """
        options = options or CredentialOptions()
        if options.state_directory is None and self.state_directory is not None:
            options = replace(options, state_directory=self.state_directory)

        def find() -> Credentials:
            found = find_credentials(self.endpoint, options)
            # A certificate names what the host is called, not where it is found.
            name = found.server_name or (self.endpoint.host if self.address else "")
            return replace(found, server_name=name)

        return AgentClient(
            self.endpoint, find(), timeout=timeout, look_again=find, address=self.address
        )

    def __str__(self) -> str:
        return host_label(self.endpoint)


@dataclass(frozen=True, slots=True)
class FleetHosts:
    """Agents that were named.

    Attributes:
        hosts: Each once, in the order in which they were named.
        repeated: Those of them that were named more than once.
    """

    hosts: tuple[FleetHost, ...]
    repeated: tuple[FleetHost, ...] = ()


class ListedHosts:
    """The hosts that an inventory's groups and hosts files name: one that is named without
    its group is found where the group says, with the group's certificate and token.

    Args:
        inventory: The groups. Sources that somebody has to be asked for are left out.
    """

    def __init__(self, inventory: Inventory) -> None:
        self._hosts: dict[Endpoint, FleetHost] = {}
        for group in inventory.groups.values():
            for found in listed_hosts(group):
                host = _member(found, host_label(found.host.endpoint), group, GroupName(group.name))
                if host.address is not None or host.state_directory is not None:
                    self._hosts.setdefault(_same(host.endpoint), host)

    def find(self, endpoint: Endpoint) -> FleetHost:
        """The agent that somebody means by an endpoint."""
        listed = self._hosts.get(_same(endpoint))
        origins = (host_label(endpoint),)
        if listed is None:
            return FleetHost(endpoint, origins)
        return replace(listed, endpoint=endpoint, origins=origins)


async def resolve_hosts(
    written: str | Sequence[str] | Iterable[Host | GroupName], inventory: Inventory
) -> FleetHosts:
    """Finds the agents that `HOSTS[:PORT]` mean; nothing is sent to them.

    Args:
        written: As people write it, or as `parse_hosts` reads it.
        inventory: Its groups; their sources are asked, each once and all at the same time.

    Raises:
        UsageError: It cannot be read, names an unknown group, means no host
            (`NO_HOSTS`) or more than 10,000; or a file or command failed.
        ConnectionFailedError: A name of a source resolves nowhere.
    """
    terms = _terms(written)
    members = {
        term.name: tuple(inventory.members(term.name))
        for term in terms
        if isinstance(term, GroupName)
    }
    found = await _ask_sources(members.values(), inventory)
    collected, listed = _Collected(), ListedHosts(inventory)
    for term in terms:
        if isinstance(term, Host):
            collected.add(listed.find(term.endpoint))
            continue
        for group in members[term.name]:
            for each, origin in found[group.name]:
                collected.add(_member(each, origin, group, term))
    if not collected.hosts:
        raise _nobody(terms, inventory)
    return FleetHosts(
        tuple(collected.hosts.values()),
        tuple(host for key, host in collected.hosts.items() if key in collected.repeated),
    )


async def resolve_target(
    target: str | FleetTarget, inventory: Inventory, default: Endpoint | None = None
) -> FleetHosts:
    """Finds the agents that `[HOSTS[:PORT]:]PROCESS` means.

    Args:
        target: As people write it, or as `FleetTarget.parse` reads it.
        inventory: As for `resolve_hosts`.
        default: The agent where none is named; localhost's if None.

    Raises:
        UftraceError: As from `resolve_hosts`.
    """
    parsed = FleetTarget.parse(target) if isinstance(target, str) else target
    return await resolve_hosts(parsed.hosts or (Host(default or Endpoint()),), inventory)


def _terms(written: str | Iterable[str | Host | GroupName]) -> tuple[Host | GroupName, ...]:
    terms: list[Host | GroupName] = []
    for each in (written,) if isinstance(written, str) else written:
        terms += parse_hosts(each) if isinstance(each, str) else (each,)
    return tuple(terms)


# By name of group: its hosts, those of the list first, with what is said about their origin.
async def _ask_sources(
    members: Iterable[tuple[Group, ...]], inventory: Inventory
) -> dict[str, list[tuple[FoundHost, str]]]:
    groups = list({group.name: group for each in members for group in each}.values())
    # The first error ends all: nothing is done with half of a fleet.
    try:
        async with asyncio.TaskGroup() as asking:
            tasks = [asking.create_task(find_hosts(group, inventory)) for group in groups]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return {
        group.name: [
            *((FoundHost(host), f"@{group.name}") for host in group.hosts),
            *((host, f"@{group.name} ({source_key(group)})") for host in task.result()),
        ]
        for group, task in zip(groups, tasks, strict=True)
    }


def _member(found: FoundHost, origin: str, group: Group, term: GroupName) -> FleetHost:
    endpoint = found.host.endpoint
    if not found.host.has_port:
        endpoint = Endpoint(endpoint.host, term.port or group.port or endpoint.port)
    address = Endpoint(found.address, endpoint.port) if found.address else None
    return FleetHost(endpoint, (origin,), group.state_directory, address)


class _Collected:
    def __init__(self) -> None:
        self.hosts: dict[Endpoint, FleetHost] = {}
        self.repeated: set[Endpoint] = set()

    def add(self, host: FleetHost) -> None:
        key = _same(host.endpoint)
        known = self.hosts.get(key)
        if known is None:
            if len(self.hosts) == MOST_HOSTS:
                raise too_many(host.origins[0], MOST_HOSTS + 1)
            self.hosts[key] = host
            return
        self.repeated.add(key)
        self.hosts[key] = FleetHost(
            known.endpoint,
            tuple(dict.fromkeys((*known.origins, *host.origins))),
            known.state_directory or host.state_directory,
            known.address or host.address,
        )


# What two spellings of the same endpoint have in common.
def _same(endpoint: Endpoint) -> Endpoint:
    host = endpoint.host.lower().rstrip(".")
    if ":" in host:
        host = str(ipaddress.IPv6Address(host))
    return replace(endpoint, host=host)


def _nobody(terms: Sequence[Host | GroupName], inventory: Inventory) -> UsageError:
    names = ", ".join(f"@{term.name}" for term in terms if isinstance(term, GroupName))
    if inventory.path is None and not inventory.groups:
        return UsageError(
            f"{names or 'nothing'} means no host: there is no inventory",
            reason="NO_HOSTS",
            hint="name hosts, write ~/.config/uftrace-remote/inventory.toml (docs/fleet.md), or "
            "name one with --inventory",
        )
    return UsageError(
        f"{names or 'nothing'} means no host",
        reason="NO_HOSTS",
        hint=f"the groups in {inventory.path or 'the inventory'} are empty, and their sources "
        "named nobody",
    )
