"""Where the bytes of an ELF file come from: an open file, or memory.

A file is read with pread, not through a mapping: a library that somebody
truncates while we read it (`cp new.so old.so`) would kill the whole agent
with SIGBUS. pread only comes back short.
"""

from __future__ import annotations

import os
import stat
import weakref
from typing import Protocol

from uftrace_agent.errors import UnsupportedTargetError


class MalformedElfError(UnsupportedTargetError):
    """The file is not an ELF64 little-endian program or library, or it is damaged."""

    default_reason = "MALFORMED_ELF"


class ByteSource(Protocol):
    """Random access to the bytes of a file."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.

        Raises:
            MalformedElfError: The range is not inside the file.
        """


# A table of a file that is sound is smaller; a file with holes costs its owner nothing.
_LARGEST_READ = 512 << 20


def _check_range(offset: int, length: int, size: int) -> None:
    if length > _LARGEST_READ:
        raise MalformedElfError(f"{length:#x} bytes are more than any table has")
    if offset < 0 or length < 0 or offset + length > size:
        raise MalformedElfError(
            f"bytes {offset:#x}+{length:#x} lie outside the file of {size:#x} bytes"
        )


class MemorySource:
    """Bytes that are in memory already."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; see `ByteSource.read`."""
        _check_range(offset, length, len(self._data))
        return self._data[offset : offset + length]


class FileSource:
    """A regular file, held open by descriptor. Safe to use from several threads.

    Args:
        descriptor: Owned by the source from now on; closed by `close`, or
            when the source is collected.

    Attributes:
        identity: (device, inode, modification time in ns, size) at opening.
    """

    def __init__(self, descriptor: int) -> None:
        self._close = weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise MalformedElfError("not a regular file")
        self.identity = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)

    @classmethod
    def open(cls, path: str) -> FileSource:
        """Open a path.

        Raises:
            OSError: It cannot be opened.
            MalformedElfError: It is a device, a pipe or a directory.
        """
        # O_NONBLOCK: a FIFO planted at the path must not hang the agent.
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY))

    @property
    def size(self) -> int:
        """Length in bytes when it was opened."""
        return self.identity[3]

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; see `ByteSource.read`."""
        _check_range(offset, length, self.size)
        if not self._close.alive:
            raise ValueError("the file is closed")
        data = os.pread(self._descriptor, length, offset)
        if len(data) == length:
            return data
        parts = [data]
        got = len(data)
        while got < length:  # one read moves at most 2 GiB, and fewer on a signal
            data = os.pread(self._descriptor, length - got, offset + got)
            if not data:
                raise MalformedElfError("the file was truncated while it was read")
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        self._close()
