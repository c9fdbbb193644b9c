"""Reading and writing another process's memory through one descriptor."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from uftrace_agent.errors import ForbiddenError, TargetGoneError
from uftrace_agent.process.threads import proc_directory


class ProcessMemory:
    """/proc/PID/mem, opened once at attach.

    The descriptor belongs to the address space, not to the pid: after an exec
    it reads nothing and can never hit the new program (H63). Writes ignore page
    protection (FOLL_FORCE) and copy private pages.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self.fd = os.open(f"{proc_directory(pid)}/mem", os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise TargetGoneError(f"process {pid} is gone") from error
        except PermissionError as error:
            raise ForbiddenError(
                f"the memory of process {pid} may not be opened",
                reason="PTRACE_DENIED",
                hint="run the agent as root, or as the owner of the process",
            ) from error

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes.

        Raises:
            TargetGoneError: The address space is gone.
            OSError: Something there is not mapped.
        """
        data = os.pread(self.fd, size, address)
        if len(data) == size:
            return data
        if not data:
            raise TargetGoneError(f"process {self.pid} has ended or executed another program")
        parts = [data]
        done = len(data)
        while done < size:
            more = os.pread(self.fd, size - done, address + done)
            if not more:
                raise OSError(f"only {done} of {size} bytes at {address:#x}")
            parts.append(more)
            done += len(more)
        return b"".join(parts)

    def read_some(self, address: int, size: int) -> bytes:
        """Up to `size` bytes: what is mapped from `address` on, maybe nothing."""
        try:
            return os.pread(self.fd, size, address)
        except OSError:
            return b""

    def write(self, address: int, data: bytes) -> None:
        """Write all of `data`.

        Raises:
            TargetGoneError: The address space is gone.
            OSError: Something there is not mapped or may not be written.
        """
        done = 0
        while done < len(data):
            count = os.pwrite(self.fd, data[done:], address + done)
            if not count:
                raise TargetGoneError(f"process {self.pid} has ended or executed another program")
            done += count

    def close(self) -> None:
        """Give the descriptor back; again is nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
