"""Many answers on few lines: equal ones together, hosts as ranges. No I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from uftrace_remote.endpoint import DEFAULT_PORT, Endpoint
from uftrace_remote.fleet.host_ranges import fold, natural_key

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class SameAnswer(Generic[_Value]):
    """Hosts that gave the same answer.

    Attributes:
        hosts: In the order of the numbers in their names.
        value: The answer of the one that came first.
    """

    hosts: tuple[Endpoint, ...]
    value: _Value

    @property
    def where(self) -> str:
        """The hosts as ranges, such as `db1,web[01-16]`."""
        return ",".join(fold_endpoints(self.hosts))


def group_answers(
    answers: Iterable[tuple[Endpoint, _Value]],
    key: Callable[[_Value], Hashable] | None = None,
) -> tuple[SameAnswer[_Value], ...]:
    """Puts equal answers together.

    Args:
        answers: Host and answer.
        key: What makes answers equal; the answers themselves where it is None,
            which have to be hashable then.

    Returns:
        Groups, that of most hosts first, equally large ones by their hosts.
    """
    groups: dict[Any, tuple[list[Endpoint], _Value]] = {}
    for host, value in answers:
        mark = key(value) if key is not None else value
        groups.setdefault(mark, ([], value))[0].append(host)
    same = [
        SameAnswer(tuple(sorted(hosts, key=endpoint_key)), value)
        for hosts, value in groups.values()
    ]
    return tuple(sorted(same, key=lambda each: (-len(each.hosts), endpoint_key(each.hosts[0]))))


def fold_endpoints(endpoints: Iterable[Endpoint]) -> tuple[str, ...]:
    """The fewest patterns found for these endpoints, each once.

    With commas between them they mean the same again (`parse_hosts`), except
    for unix sockets. Ports are left out where all have the usual one.
    """
    ports: dict[int, list[str]] = {}
    others: dict[str, None] = {}
    # Behind `a,b:7` the port is meant for both.
    together = sorted(set(endpoints), key=endpoint_key)
    plain = all(each.port == DEFAULT_PORT for each in together if not each.is_unix)
    for each in together:
        if each.is_unix or _is_ipv6(each.host):
            others[_bare(each) if plain else str(each)] = None
        else:
            ports.setdefault(each.port, []).append(each.host)
    folded = [
        name if plain else f"{name}:{port}" for port, names in ports.items() for name in fold(names)
    ]
    return (*folded, *others)


def endpoint_key(endpoint: Endpoint) -> tuple[object, ...]:
    """Sorts endpoints by the numbers in them, unix sockets last."""
    return (endpoint.is_unix, natural_key(endpoint.host), endpoint.port, endpoint.path)


def host_label(endpoint: Endpoint) -> str:
    """An endpoint as short as it can be written: without the usual port."""
    return _bare(endpoint) if endpoint.port == DEFAULT_PORT else str(endpoint)


def _bare(endpoint: Endpoint) -> str:
    if endpoint.is_unix:
        return str(endpoint)
    return f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
