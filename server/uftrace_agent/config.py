"""The agent's settings, as values."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from pathlib import Path

DEFAULT_PORT = 50051


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen: a TCP host and port, or the path of a unix socket.

    Attributes:
        host: Name or address without brackets; empty means all interfaces.
        port: TCP port; 0 lets the kernel choose.
        path: Path of a unix socket, or None for TCP.
    """

    host: str = ""
    port: int = DEFAULT_PORT
    path: Path | None = None

    @property
    def is_unix(self) -> bool:
        """Whether this is a unix socket."""
        return self.path is not None

    @property
    def grpc_target(self) -> str:
        """The address in gRPC's words."""
        if self.path is not None:
            return f"unix:{self.path}"
        # [::] takes IPv4 as well; gRPC falls back to 0.0.0.0 without IPv6.
        host = self.host or "::"
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def with_port(self, port: int) -> ListenAddress:
        """The same with the port that was bound."""
        return self if self.is_unix else ListenAddress(self.host, port)

    def __str__(self) -> str:
        return self.grpc_target


def parse_listen_address(text: str) -> ListenAddress:
    """Parse `HOST[:PORT]`, `[IPV6][:PORT]`, `:PORT` or `unix:PATH`.

    Raises:
        ValueError: It is none of these; the message says what is wrong.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path:
            raise ValueError("unix: needs the path of a socket")
        # gRPC would take a relative path relative to nothing in particular.
        return ListenAddress(path=Path(path).absolute())
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not [ADDRESS]:PORT")
        ipaddress.IPv6Address(host)
        return ListenAddress(host, _port(rest[1:]) if rest else DEFAULT_PORT)
    if text.count(":") > 1:
        raise ValueError(f"an IPv6 address needs brackets: [{text}]")
    host, colon, port = text.partition(":")
    if not host and not port:
        raise ValueError("the address is empty")
    return ListenAddress(host, _port(port) if colon else DEFAULT_PORT)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > 0xFFFF:
        raise ValueError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What the command line settles.

    Attributes:
        listen: Where to listen, at least one address.
        state_dir: Folder of keys, certificates, token and socket.
        insecure: No TLS and no token.
        tls_dir: Folder of a fleet's certificates; None for the agent's own.
        policy: File of rules; None where there are none.
        audit: File of changes; None for the log alone.
    """

    listen: tuple[ListenAddress, ...]
    state_dir: Path
    insecure: bool = False
    tls_dir: Path | None = None
    policy: Path | None = None
    audit: Path | None = None


def parse_share(text: str) -> float:
    """Parse `5%`, `5` (percent too) or `off`: a share of one processor, infinite for off.

    Raises:
        ValueError: It is none of these.
    """
    if text in ("off", "0", "0%"):
        return math.inf
    share = _positive(text.removesuffix("%").strip(), text, "a share of a processor (5%, off)")
    return share / 100


def parse_rate(text: str) -> float:
    """Parse `250000`, `500k`, `1M` or `off`: calls per second, infinite for off.

    Raises:
        ValueError: It is none of these.
    """
    if text in ("off", "0"):
        return math.inf
    number, factor = text, 1.0
    for unit, scale in (("k", 1e3), ("K", 1e3), ("M", 1e6), ("G", 1e9)):
        if text.endswith(unit):
            number, factor = text[:-1], scale
    return factor * _positive(number, text, "a number of calls per second (500k, 1M, off)")


def _positive(number: str, text: str, what: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is not {what}")
    return value
