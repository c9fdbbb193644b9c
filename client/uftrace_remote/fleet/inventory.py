"""Named groups of agents. No I/O; `inventory_file` reads them from TOML."""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uftrace_remote.errors import UsageError
from uftrace_remote.fleet.address import ALL, Host


@dataclass(frozen=True, slots=True)
class DnsSource:
    """Hosts of a name: its addresses, its SRV records, or a headless service.

    Attributes:
        kind: "dns", "srv" or "kubernetes".
        name: What is looked up; `SERVICE.NAMESPACE` may stand for a whole name of Kubernetes.
    """

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class FileSource:
    """Hosts of a list, or of the `Host` lines of an ssh configuration."""

    path: Path


@dataclass(frozen=True, slots=True)
class CommandSource:
    """Hosts that a command prints, one a line. No shell is involved."""

    arguments: tuple[str, ...]
    timeout: float = 10.0


Source = DnsSource | FileSource | CommandSource


@dataclass(frozen=True, slots=True)
class Group:
    """Some agents.

    Attributes:
        hosts: Those that are listed.
        children: Names of groups that belong to it.
        source: Where more come from when the group is used.
        port: For hosts that name none; 0 is the usual one.
        state_directory: Where `ca.pem` and `token` of its agents are.
    """

    name: str
    hosts: tuple[Host, ...] = ()
    children: tuple[str, ...] = ()
    source: Source | None = None
    port: int = 0
    state_directory: Path | None = None


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """How names are looked up.

    Attributes:
        servers: (address, port) of each; none is the system's.
        timeout: Seconds for one name.
    """

    servers: tuple[tuple[str, int], ...] = ()
    timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class Inventory:
    """All groups.

    Attributes:
        groups: By name.
        path: The file they come from; None where there is none.
        dns: How names are looked up.
    """

    groups: Mapping[str, Group] = field(default_factory=dict)
    path: Path | None = None
    dns: DnsSettings = DnsSettings()

    def members(self, name: str) -> Iterator[Group]:
        """A group and all groups below it, each once; `all` is every group.

        Raises:
            UsageError: There is no such group; near names are in the hint.
        """
        if name != ALL and name not in self.groups:
            raise self._unknown(name)
        waiting = deque(self.groups if name == ALL else [name])
        seen = set(waiting)
        while waiting:
            group = self.groups[waiting.popleft()]
            yield group
            fresh = [child for child in group.children if child not in seen]
            seen.update(fresh)
            waiting += fresh

    def check(self) -> None:
        """Makes sure that every child is there and that none contains itself.

        Raises:
            UsageError: Naming file, group and key.
        """
        for group in self.groups.values():
            for child in group.children:
                if child not in self.groups:
                    raise wrong(
                        self.path,
                        f"groups.{group.name}.children",
                        f"there is no group '{child}'",
                        near(child, self.groups) or "define it, or take it out of the list",
                    )
        done: set[str] = set()
        for name in self.groups:
            self._check_cycles(name, done)

    # Depth first without recursion: a chain of groups may be longer than Python's stack.
    def _check_cycles(self, first: str, done: set[str]) -> None:
        if first in done:
            return
        # The groups from `first` down to where we are, and the children yet to see of each.
        above = {first: iter(self.groups[first].children)}
        while above:
            name = next(reversed(above))
            child = next(above[name], None)
            if child is None:
                del above[name]
                done.add(name)
            elif child in above:
                path = list(above)
                circle = " -> ".join((*path[path.index(child) :], child))
                raise wrong(
                    self.path,
                    f"groups.{child}.children",
                    f"the group contains itself: {circle}",
                    "take one of them out of the other's children",
                )
            elif child not in done:
                above[child] = iter(self.groups[child].children)

    def _unknown(self, name: str) -> UsageError:
        if self.path is None:
            return UsageError(
                f"there is no group '{name}': there is no inventory",
                reason="UNKNOWN_GROUP",
                hint="write ~/.config/uftrace-remote/inventory.toml (docs/fleet.md), or name "
                "one with --inventory",
            )
        known = ", ".join(f"@{each}" for each in list(self.groups)[:8])
        return UsageError(
            f"there is no group '{name}' in {self.path}",
            reason="UNKNOWN_GROUP",
            hint=near(name, self.groups, "@") or f"it has {known or 'no groups'}",
        )


def wrong(path: Path | None, key: str, what: str, hint: str) -> UsageError:
    """The error about one key of an inventory."""
    place = f"{path}: " if path is not None else ""
    return UsageError(f"{place}{key}: {what}", reason="INVALID_INVENTORY", hint=hint)


def near(name: str, names: Mapping[str, object] | Sequence[str], mark: str = "") -> str:
    """ "did you mean ...?", or nothing."""
    found = difflib.get_close_matches(name, list(names), n=3)
    return f"did you mean {', '.join(mark + each for each in found)}?" if found else ""
