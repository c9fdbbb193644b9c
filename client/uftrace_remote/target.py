"""Which process on which agent: `HOST[:PORT]:PID`.

1234                       a pid on the default host
nginx                      a process by name there
exe=/usr/sbin/nginx        a process by the path of its executable there
web1:1234                  a pid on web1, port 50051
web1:50052:nginx           a name on web1, port 50052
[::1]:50051:1234           IPv6 in brackets
unix:/run/agent.sock:1234  an agent behind a unix socket
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import UsageError

_NAME = re.compile(r"[^\s:/=\[\]][^\s:=]*\Z")


@dataclass(frozen=True, slots=True)
class ProcessSelector:
    """What the user said about a process: exactly one of the fields is set.

    Attributes:
        pid: Process id on the agent's host, or 0.
        name: Command name, or base name of the executable or of its first argument.
        executable: Absolute path of the executable.
    """

    pid: int = 0
    name: str = ""
    executable: str = ""

    @classmethod
    def parse(cls, text: str) -> ProcessSelector:
        """Reads a pid, a name or `exe=PATH`.

        Raises:
            UsageError: The text is none of these.
        """
        if text.startswith("exe="):
            path = text.removeprefix("exe=")
            if not path.startswith("/"):
                raise _wrong(text, f"'{path}' is no absolute path")
            return cls(executable=path)
        if re.match(r"-?[0-9]+\Z", text, re.ASCII):
            pid = int(text)
            if not 0 < pid < 1 << 31:
                raise _wrong(text, f"{text} is no pid")
            return cls(pid=pid)
        if not text:
            raise _wrong(text, "the process is missing")
        if not _NAME.match(text):
            raise _wrong(text, f"'{text}' is neither a pid nor a process name")
        return cls(name=text)

    def __str__(self) -> str:
        if self.pid:
            return str(self.pid)
        return self.name or f"exe={self.executable}"


@dataclass(frozen=True, slots=True)
class Target:
    """One process on one agent."""

    endpoint: Endpoint
    process: ProcessSelector

    @classmethod
    def parse(cls, text: str, default_endpoint: Endpoint | None = None) -> Target:
        """Reads `[HOST[:PORT]:]PID`.

        Args:
            text: What the user wrote.
            default_endpoint: The agent where none is named; localhost's if None.

        Raises:
            UsageError: The text cannot be read; the message says what is wrong.
        """
        default = default_endpoint or Endpoint()
        place, process = _split(text)
        try:
            selector = ProcessSelector.parse(process)
            endpoint = Endpoint.parse(place) if place else default
        except UsageError as error:
            raise _wrong(text, error.message.rpartition(": ")[2]) from None
        return cls(endpoint, selector)

    def __str__(self) -> str:
        return f"{self.endpoint}:{self.process}"


# The process is what follows the last colon, except that a path after `exe=`
# may hold colons itself.
def _split(text: str) -> tuple[str, str]:
    start = 0 if text.startswith("exe=") else text.find(":exe=") + 1
    if text.startswith("exe=") or start:
        return text[: max(start - 1, 0)], text[start:]
    if text.startswith("unix:") and text.count(":") == 1:
        raise _wrong(text, "the process is missing")
    if text.startswith("[") and text.endswith("]"):
        raise _wrong(text, "the process is missing")
    place, colon, process = text.rpartition(":")
    if colon and not place:
        raise _wrong(text, "the host is missing")
    return place, process


def _wrong(text: str, what: str) -> UsageError:
    return UsageError(
        f"cannot read the target '{text}': {what}",
        reason="INVALID_TARGET",
        hint="write [HOST[:PORT]:]PID, such as 1234, nginx, web1:1234, web1:50051:nginx, "
        "[::1]:50051:1234, exe=/usr/sbin/nginx or unix:/run/agent.sock:1234",
    )
