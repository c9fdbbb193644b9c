"""Where an agent listens: `HOST[:PORT]`, `[IPV6]:PORT` or `unix:PATH`."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from uftrace_remote.errors import UsageError

DEFAULT_PORT = 50051

_HOST = re.compile(r"[A-Za-z0-9_.-]+\Z")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One agent's address.

    Attributes:
        host: Name or address (IPv6 without brackets); empty for a unix socket.
        port: TCP port; 0 for a unix socket.
        path: Path of the unix socket; empty for TCP.
    """

    host: str = "localhost"
    port: int = DEFAULT_PORT
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Reads `HOST[:PORT]`, `[IPV6][:PORT]`, a bare IPv6 address or `unix:PATH`.

        Raises:
            UsageError: The text is none of these.
        """
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path:
                raise _wrong(text, "the path of the socket is missing")
            return cls(host="", port=0, path=path)
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if not bracket:
                raise _wrong(text, "'[' without ']'")
            if not _is_ipv6(host):
                raise _wrong(text, f"'{host}' is no IPv6 address")
            if rest and not rest.startswith(":"):
                raise _wrong(text, f"'{rest}' after ']'")
            return cls(host=host, port=_port(text, rest[1:]) if rest else DEFAULT_PORT)
        if text.count(":") > 1:
            if _is_ipv6(text):
                return cls(host=text)
            raise _wrong(text, "too many ':'")
        host, colon, port = text.partition(":")
        if not _HOST.match(host):
            raise _wrong(text, f"'{host}' is no host name" if host else "the host is missing")
        return cls(host=host, port=_port(text, port) if colon else DEFAULT_PORT)

    @property
    def is_unix(self) -> bool:
        """Whether this is a unix socket."""
        return bool(self.path)

    @property
    def is_local(self) -> bool:
        """Whether this is certainly the host that we run on."""
        return self.is_unix or self.host in {
            "localhost",
            "127.0.0.1",
            "::1",
            "ip6-localhost",
            socket.gethostname(),
        }

    @property
    def grpc_target(self) -> str:
        """The address as gRPC writes it."""
        return f"unix:{self.path}" if self.is_unix else str(self)

    @property
    def directory_name(self) -> str:
        """The name of this agent's directory below `hosts/` of the client's configuration."""
        name = self.path if self.is_unix else f"{self.host}_{self.port}"
        return re.sub(r"[^A-Za-z0-9_.-]", "_", name)

    def __str__(self) -> str:
        if self.is_unix:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# With or without a zone (fe80::1%eth0).
def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise _wrong(text, f"'{port}' is no port (1 to 65535)" if port else "the port is missing")
    return int(port)


def _wrong(text: str, what: str) -> UsageError:
    return UsageError(
        f"cannot read the address '{text}': {what}",
        reason="INVALID_ADDRESS",
        hint="write HOST[:PORT], such as web1, web1:50051, [::1]:50051 or unix:/run/agent.sock",
    )
