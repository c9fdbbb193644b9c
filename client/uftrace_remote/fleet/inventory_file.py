"""The inventory as TOML, and where it lies."""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import UsageError
from uftrace_remote.fleet.address import ALL, Host, parse_hosts
from uftrace_remote.fleet.inventory import (
    CommandSource,
    DnsSettings,
    DnsSource,
    FileSource,
    Group,
    Inventory,
    Source,
    near,
    wrong,
)

_NAME = re.compile(r"[A-Za-z0-9_.-]+\Z")
_SOURCES = ("dns", "srv", "kubernetes", "hosts_file", "command")
_GROUP_KEYS = ("hosts", "children", "port", "state_dir", "timeout", *_SOURCES)
_DNS_KEYS = ("servers", "timeout")
_DNS_PORT = 53


def inventory_path(environment: Mapping[str, str] = os.environ) -> tuple[Path, bool]:
    """Where the inventory lies unless the user names one.

    Returns:
        The path, and whether it was named (`UFTRACE_INVENTORY`), so that it
        has to be there.
    """
    if named := environment.get("UFTRACE_INVENTORY"):
        return Path(named), True
    base = environment.get("XDG_CONFIG_HOME")
    root = Path(base) if base else Path(environment.get("HOME", "/")) / ".config"
    return root / "uftrace-remote" / "inventory.toml", False


def load_inventory(
    path: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Inventory:
    """Reads an inventory; an empty one where nobody named any and the usual place has none.

    Raises:
        UsageError: It cannot be read or makes no sense; the message names
            file, group and key.
    """
    where, named = (path, True) if path else inventory_path(environment)
    try:
        text = where.read_text("utf-8")
    except FileNotFoundError as error:
        if not named:
            return Inventory()
        raise _unreadable(where, error.strerror) from None
    except OSError as error:
        raise _unreadable(where, error.strerror) from None
    except UnicodeDecodeError:
        raise _unreadable(where, "not UTF-8 text") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{where}: not TOML: {error}",
            reason="INVALID_INVENTORY",
            hint="docs/fleet.md shows an inventory",
        ) from None
    return _Reader(where).inventory(document)


def _unreadable(path: Path, why: str | None) -> UsageError:
    return UsageError(
        f"cannot read the inventory {path}: {why}",
        reason="INVENTORY_UNREADABLE",
        hint="name another one with --inventory or UFTRACE_INVENTORY",
    )


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path

    def inventory(self, document: dict[str, Any]) -> Inventory:
        self._known("", document, ("groups", "dns"))
        groups = self._table("groups", document.get("groups", {}))
        found = Inventory(
            {name: self._group(name, value) for name, value in groups.items()},
            self._path,
            self._dns(self._table("dns", document.get("dns", {}))),
        )
        found.check()
        return found

    def _group(self, name: str, value: Any) -> Group:
        where = f"groups.{name}"
        if not _NAME.match(name) or name == ALL:
            what = "is every group anyway" if name == ALL else "is no name for a group"
            raise self._wrong(where, f"'{name}' {what}", "letters, digits, '.', '_' and '-'")
        table = self._table(where, value)
        self._known(where, table, _GROUP_KEYS)
        port = self._number(f"{where}.port", table.get("port", 0))
        # In this order: nan and inf, which TOML has, are no whole numbers.
        if not 0 <= port < 65536 or port != int(port) or ("port" in table and not port):
            raise self._wrong(f"{where}.port", f"{port} is no port", "1 to 65535")
        state = self._text(f"{where}.state_dir", table.get("state_dir", "."))
        return Group(
            name,
            self._hosts(f"{where}.hosts", table.get("hosts", [])),
            tuple(self._texts(f"{where}.children", table.get("children", []))),
            self._source(where, table),
            int(port),
            self._relative(f"{where}.state_dir", state) if "state_dir" in table else None,
        )

    def _hosts(self, where: str, value: Any) -> tuple[Host, ...]:
        hosts: list[Host] = []
        for text in self._texts(where, value):
            try:
                terms = parse_hosts(text)
            except UsageError as error:
                raise self._wrong(where, error.message, error.hint) from None
            for term in terms:
                if not isinstance(term, Host):
                    raise self._wrong(
                        where, f"'{text}' is a group", f'write children = ["{term.name}"]'
                    )
                hosts.append(term)
        return tuple(hosts)

    def _source(self, where: str, table: dict[str, Any]) -> Source | None:
        named = [key for key in _SOURCES if key in table]
        if len(named) > 1:
            raise self._wrong(
                where, f"{' and '.join(named)} at once", "make a group of each, and one of both"
            )
        if "timeout" in table and named != ["command"]:
            raise self._wrong(f"{where}.timeout", "only a command has one", "take it out")
        if not named:
            return None
        key = f"{where}.{named[0]}"
        value = table[named[0]]
        if named[0] == "command":
            arguments = self._texts(key, value)
            if not arguments:
                raise self._wrong(key, "it is empty", 'write ["PROGRAM", "ARGUMENT", ...]')
            return CommandSource(tuple(arguments), self._seconds(where, table, 10.0))
        text = self._text(key, value)
        if not text:
            raise self._wrong(key, "it is empty", "name something")
        if named[0] == "hosts_file":
            return FileSource(self._relative(key, text))
        return DnsSource(named[0], text)

    def _dns(self, table: dict[str, Any]) -> DnsSettings:
        self._known("dns", table, _DNS_KEYS)
        servers = []
        for text in self._texts("dns.servers", table.get("servers", [])):
            try:
                endpoint = parse_hosts(text)[0]
            except UsageError as error:
                raise self._wrong("dns.servers", error.message, error.hint) from None
            if not isinstance(endpoint, Host) or endpoint.endpoint.is_unix:
                raise self._wrong("dns.servers", f"'{text}' is no address", "10.0.0.2:53")
            port = endpoint.endpoint.port if endpoint.has_port else _DNS_PORT
            servers.append((_address(self, text, endpoint.endpoint), port))
        return DnsSettings(tuple(servers), self._seconds("dns", table, 5.0))

    def _seconds(self, where: str, table: dict[str, Any], default: float) -> float:
        seconds = self._number(f"{where}.timeout", table.get("timeout", default))
        if not 0 < seconds <= 3600:
            raise self._wrong(f"{where}.timeout", f"{seconds} is no time", "seconds, at most 3600")
        return seconds

    def _relative(self, where: str, text: str) -> Path:
        try:
            return self._path.parent / Path(text).expanduser()
        except RuntimeError:
            who = text.partition("/")[0]
            raise self._wrong(where, f"nobody's home is {who}", "write the whole path") from None

    def _known(self, where: str, table: dict[str, Any], keys: tuple[str, ...]) -> None:
        for key in table:
            if key not in keys:
                full = f"{where}.{key}" if where else key
                hint = near(key, keys) or f"known are {', '.join(keys)}"
                raise self._wrong(full, "there is no such key", hint)

    def _table(self, where: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(where, "it is no table", f"write [{where}]")
        return value

    def _text(self, where: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self._wrong(where, "it is no text", 'write "..."')
        return value

    def _texts(self, where: str, value: Any) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self._wrong(where, "it is no list of texts", 'write ["...", "..."]')
        return value

    def _number(self, where: str, value: Any) -> float:
        # bool is an int in Python.
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(where, "it is no number", "write a number without quotes")
        return value

    def _wrong(self, key: str, what: str, hint: str) -> UsageError:
        return wrong(self._path, key, what, hint)


# dnspython takes addresses alone: a server's name could only be looked up by itself.
def _address(reader: _Reader, text: str, endpoint: Endpoint) -> str:
    try:
        ipaddress.ip_address(endpoint.host)
    except ValueError:
        raise reader._wrong("dns.servers", f"'{text}' is no address", "write 10.0.0.2:53") from None
    return endpoint.host
