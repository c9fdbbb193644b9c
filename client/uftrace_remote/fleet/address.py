"""What people write for many hosts: `HOSTS[:PORT]` and `HOSTS[:PORT]:PROCESS`. No I/O.

web[01-16]              a range, or several, with lists: rack[1-2]-web[1,3,5-7]
web1,web2:50052         a list; a port at its end is for all that name none
@web, @web:50052        a group of the inventory
@all                    every group
[::1]:50051             IPv6, as everywhere
unix:/run/agent.sock    one socket; several are several arguments
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from uftrace_remote.endpoint import DEFAULT_PORT, Endpoint
from uftrace_remote.errors import UsageError
from uftrace_remote.fleet.host_ranges import MOST_HOSTS, expand, too_many
from uftrace_remote.target import ProcessSelector, split_process

ALL = "all"

_GROUP = re.compile(r"@([A-Za-z0-9_.-]+)(?::([^:]*))?\Z")
# Commas inside of brackets belong to a range.
_COMMA = re.compile(r",(?![^\[\]]*\])")
_PORT_AT_END = re.compile(r"(?<!:):([0-9]+)\Z")


@dataclass(frozen=True, slots=True)
class Host:
    """One agent that was named.

    Attributes:
        endpoint: Where it listens.
        has_port: Whether its port was named with it.
    """

    endpoint: Endpoint
    has_port: bool = True


@dataclass(frozen=True, slots=True)
class GroupName:
    """A group of the inventory that was named.

    Attributes:
        name: Without the `@`.
        port: For those of its hosts that name none; 0 is the group's own.
    """

    name: str
    port: int = 0


@dataclass(frozen=True, slots=True)
class FleetTarget:
    """Processes on many agents.

    Attributes:
        hosts: Which agents; none stands for the default one.
        process: Which processes there: every one that fits and can be attached to.
    """

    hosts: tuple[Host | GroupName, ...]
    process: ProcessSelector

    @classmethod
    def parse(cls, text: str) -> FleetTarget:
        """Reads `[HOSTS[:PORT]:]PROCESS`.

        Raises:
            UsageError: The text cannot be read.
        """
        hosts, process = split_process(text)
        if not hosts and (process.startswith("@") or _COMMA.search(process) or "[" in process):
            raise UsageError(
                f"cannot read the target '{text}': the process is missing",
                reason="INVALID_TARGET",
                hint="write HOSTS[:PORT]:PROCESS, such as web[01-16]:nginx or @web:exe=/bin/db",
            )
        return cls(parse_hosts(hosts) if hosts else (), ProcessSelector.parse(process))


def parse_hosts(text: str) -> tuple[Host | GroupName, ...]:
    """Reads `HOSTS[:PORT]`; a host that is named twice is there twice.

    Raises:
        UsageError: The text cannot be read, or means more than 10,000 hosts.
    """
    if text.startswith("unix:"):
        return (Host(Endpoint.parse(text)),)
    items = _COMMA.split(text)
    if not all(items):
        raise UsageError(
            f"cannot read the hosts '{text}': a host is missing",
            reason="INVALID_HOSTS",
            hint="write hosts with commas between them: web1,web[3-5],@db",
        )
    shared = _port_at_end(items[-1]) if len(items) > 1 else 0
    found: list[Host | GroupName] = []
    for item in items:
        found += _parse_item(item, shared)
        if len(found) > MOST_HOSTS:
            raise too_many(text, len(found))
    return tuple(found)


def is_plural(texts: Sequence[str]) -> bool:
    """Whether these arguments ask for a fleet: several, a list, a range or a group."""
    if len(texts) != 1:
        return bool(texts)
    text = texts[0]
    if text.startswith("unix:"):
        return False
    return text.startswith("@") or "," in text or _is_range(text)


def _parse_item(item: str, shared: int) -> list[Host | GroupName]:
    if item.startswith("@"):
        match = _GROUP.match(item)
        if match is None:
            raise UsageError(
                f"cannot read the group '{item}'",
                reason="INVALID_HOSTS",
                hint="write @GROUP or @GROUP:PORT, such as @web or @all:50052",
            )
        port = Endpoint.parse(f"x:{match[2]}").port if match[2] is not None else shared
        return [GroupName(match[1], port)]
    names = expand(item) if _is_range(item) else (item,)
    hosts: list[Host | GroupName] = []
    for name in names:
        endpoint = Endpoint.parse(name)
        has_port = endpoint.is_unix or _port_at_end(name) != 0
        if not has_port and shared:
            endpoint, has_port = Endpoint(endpoint.host, shared), True
        hosts.append(Host(endpoint, has_port))
    return hosts


def _is_range(item: str) -> bool:
    # [::1] is an address: no name begins with a bracket that holds a colon.
    return "[" in item and not (item.startswith("[") and ":" in item.partition("]")[0])


# Of a name or a bracketed address; a bare IPv6 address has none.
def _port_at_end(item: str) -> int:
    if item.count(":") > 1 and not item.startswith("["):
        return 0
    match = _PORT_AT_END.search(item)
    if match is None or item.endswith("]"):
        return 0
    return int(match[1]) if len(match[1]) < 6 else DEFAULT_PORT
