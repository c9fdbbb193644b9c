"""Lists of hosts: one a line, or the `Host` lines of an ssh configuration. No I/O.

    # plain                     # ssh_config
    web[01-16]                  Host web1 web2
    db1:50060  # the old one        HostName %h.example.net

Of an ssh configuration, `Host` and `HostName` count; `Port` is sshd's, not the agent's.
`Match` and `Include` are passed over.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import UsageError
from uftrace_remote.fleet.address import GroupName, Host, parse_hosts

_KEYWORD = re.compile(r"\s*([A-Za-z]+)(?:\s*=\s*|\s+)(.*?)\s*\Z")


@dataclass(frozen=True, slots=True)
class FoundHost:
    """A host that a list or a lookup gave.

    Attributes:
        host: What it is called.
        address: Where it is, if that is not to be looked up under its name; else empty.
    """

    host: Host
    address: str = ""


def read_hosts(text: str) -> tuple[FoundHost, ...]:
    """Reads a file of either form; it is ssh's where one line begins with `Host`.

    Raises:
        UsageError: A line cannot be read; the message says which.
    """
    lines = text.splitlines()
    keywords = [_KEYWORD.match(line) for line in lines]
    if any(match and match[1].lower() == "host" for match in keywords):
        return _read_ssh(lines)
    return read_list(text)


def read_list(text: str) -> tuple[FoundHost, ...]:
    """Reads hosts, one `HOST[:PORT]` a line, with ranges, lists and `#` comments.

    Raises:
        UsageError: A line cannot be read; the message says which.
    """
    found: list[FoundHost] = []
    for number, line in enumerate(text.splitlines(), 1):
        if words := line.partition("#")[0].split():
            # What follows is told as the wrong host that it is taken for.
            found += map(FoundHost, _parse(number, " ".join(words)))
    return tuple(found)


class _Block:
    # A `Host` line, and the name that stands below it.
    def __init__(self, place: int, patterns: Sequence[str]) -> None:
        self.place = place
        self.name = ""
        self.wild = [_wildcard(each) for each in patterns if _is_wild(each)]
        self._not = [_wildcard(each[1:]) for each in patterns if each.startswith("!")]

    # As in ssh: a pattern with ! excludes, whatever else fits.
    def excludes(self, alias: str) -> bool:
        return any(each.match(alias) for each in self._not)


def _read_ssh(lines: Sequence[str]) -> tuple[FoundHost, ...]:
    # What stands before the first Host is for all.
    block = _Block(0, ("*",))
    blocks = [block]
    of_host: defaultdict[Host, list[_Block]] = defaultdict(list)
    for number, line in enumerate(lines, 1):
        match = None if line.lstrip().startswith("#") else _KEYWORD.match(line)
        keyword = match[1].lower() if match else ""
        if match and keyword == "host":
            patterns = match[2].replace('"', "").split()
            block = _Block(len(blocks), patterns)
            blocks.append(block)
            for each in patterns:
                if not _is_wild(each) and not each.startswith("!"):
                    for host in _parse(number, each):
                        of_host[host].append(block)
        elif keyword == "match":
            block = _Block(len(blocks), ())
        elif match and keyword == "hostname" and not block.name:
            block.name = match[2].strip('"')
    wild = [each for each in blocks if each.wild and each.name]
    return tuple(FoundHost(host, _name_of(host, own, wild)) for host, own in of_host.items())


# The first that fits counts, as in ssh.
def _name_of(host: Host, own: Sequence[_Block], wild: Sequence[_Block]) -> str:
    alias = host.endpoint.host
    fitting = [each for each in wild if any(pattern.match(alias) for pattern in each.wild)]
    for block in sorted([*own, *fitting], key=lambda each: each.place):
        if block.name and not block.excludes(alias):
            name = block.name.replace("%h", alias)
            if name != alias:
                # Checked here: it is taken as it is later.
                Endpoint.parse(f"[{name}]" if ":" in name else name)
                return name
            return ""
    return ""


def _is_wild(pattern: str) -> bool:
    return not pattern.startswith("!") and ("*" in pattern or "?" in pattern)


# ssh's patterns know * and ? alone.
def _wildcard(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.compile(f"{escaped}\\Z")


def _parse(number: int, text: str) -> list[Host]:
    try:
        terms = parse_hosts(text)
    except UsageError as error:
        raise _wrong(number, error.message, error.hint) from None
    hosts = []
    for term in terms:
        if isinstance(term, GroupName):
            raise _wrong(number, f"'@{term.name}' is a group", "name hosts here")
        hosts.append(term)
    return hosts


def _wrong(number: int, what: str, hint: str) -> UsageError:
    return UsageError(f"line {number}: {what}", reason="INVALID_HOSTS", hint=hint)
