"""Which process on which agent: `HOST[:PORT]:PID`.

1234                       a pid on the default host
nginx                      a process by name there
exe=/usr/sbin/nginx        a process by the path of its executable there
build-id=5fd3c2a1          a process by its executable's build id, or the start of it
cgroup=/system.slice/db    a process of this cgroup or one below it
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

_BUILD_ID = re.compile(r"[0-9a-f]{8,128}\Z")
# What begins a selector whose value may hold colons.
_KEYED = re.compile(r"(?:^|:)(?=(?:exe|build-id|cgroup)=)")
_NAME = re.compile(r"[^\s:/=\[\]][^\s:=]*\Z")


@dataclass(frozen=True, slots=True)
class ProcessSelector:
    """What the user said about a process: exactly one of the fields is set.

    Attributes:
        pid: Process id on the agent's host, or 0.
        name: Command name, or base name of the executable or of its first argument.
        executable: Absolute path of the executable.
        build_id: The executable's GNU build id in lower-case hex, or its first
            8 digits or more.
        cgroup: Path of a cgroup that it is in, or that its own lies below.
    """

    pid: int = 0
    name: str = ""
    executable: str = ""
    build_id: str = ""
    cgroup: str = ""

    @classmethod
    def parse(cls, text: str) -> ProcessSelector:
        """Reads a pid, a name, `exe=PATH`, `build-id=HEX` or `cgroup=PATH`.

        Raises:
            UsageError: The text is none of these.
        """
        if text.startswith("exe="):
            path = text.removeprefix("exe=")
            if not path.startswith("/"):
                raise _wrong(text, f"'{path}' is no absolute path")
            return cls(executable=path)
        if text.startswith("build-id="):
            digits = text.removeprefix("build-id=").lower()
            if not _BUILD_ID.match(digits):
                raise _wrong(text, f"'{digits}' is not 8 hex digits or more of a build id")
            return cls(build_id=digits)
        if text.startswith("cgroup="):
            path = text.removeprefix("cgroup=")
            if not path.startswith("/"):
                raise _wrong(text, f"'{path}' is no path of a cgroup: it begins with '/'")
            return cls(cgroup=path.rstrip("/") or "/")
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
        if self.build_id:
            return f"build-id={self.build_id}"
        if self.cgroup:
            return f"cgroup={self.cgroup}"
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
        place, process = split_process(text)
        try:
            selector = ProcessSelector.parse(process)
            endpoint = Endpoint.parse(place) if place else default
        except UsageError as error:
            raise _wrong(text, error.message.rpartition(": ")[2]) from None
        return cls(endpoint, selector)

    def __str__(self) -> str:
        return f"{self.endpoint}:{self.process}"


def split_process(text: str) -> tuple[str, str]:
    """Splits `[PLACE:]PROCESS`.

    The process is what follows the last colon, except that a path after
    `exe=` or `cgroup=` may hold colons itself.

    Raises:
        UsageError: One of the two is missing.
    """
    if keyed := _KEYED.search(text):
        return text[: keyed.start()], text[keyed.end() :]
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
