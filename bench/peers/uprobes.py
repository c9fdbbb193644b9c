"""The kernel's uprobes, at entry and exit, counted by nobody.

`MultiUprobes` is what bpftrace uses today: one link of BPF for all functions.
`PerfUprobes` is what perf uses: an event for each function, and another for its
exit. Both need root.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

_SYS_BPF: Final = 321
_SYS_PERF_EVENT_OPEN: Final = 298
# enum bpf_cmd, bpf_prog_type and bpf_attach_type of <linux/bpf.h>.
_PROG_LOAD: Final = 5
_LINK_CREATE: Final = 28
_TYPE_KPROBE: Final = 2
_UPROBE_MULTI: Final = 48
_RETURN: Final = 1
# mov r0, 0; exit
_PROGRAM: Final = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
# struct perf_event_attr up to `config2`: PERF_ATTR_SIZE_VER1.
_ATTRIBUTES: Final = struct.Struct("<IIQQQQQIIQQ")
_CLOSE_ON_EXEC: Final = 8
_SOURCE: Final = Path("/sys/bus/event_source/devices/uprobe")


class _Function(Protocol):
    @property
    def offset(self) -> int: ...


def _system_call(number: int, *arguments: object) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    result: int = library.syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


class MultiUprobes:
    """See `bench.tracers.Tracer`."""

    def __init__(self, pid: int, program: Path) -> None:
        self._pid = pid
        self._path = ctypes.create_string_buffer(bytes(program))
        self._program = -1
        self._links: list[int] = []

    def attach(self) -> None:
        """Load the program."""
        code = ctypes.create_string_buffer(_PROGRAM)
        licence = ctypes.create_string_buffer(b"GPL")
        self._program = _bpf(
            _PROG_LOAD,
            struct.pack(
                "<IIQQIIQII16sII",
                _TYPE_KPROBE,
                2,
                ctypes.addressof(code),
                ctypes.addressof(licence),
                *(0, 0, 0, 0, 0),
                b"",
                0,
                _UPROBE_MULTI,
            ),
        )

    def enable(self, functions: Sequence[_Function]) -> int:
        """Two links: for entries and for exits."""
        count = len(functions)
        offsets = (ctypes.c_uint64 * count)(*(function.offset for function in functions))
        for flags in (0, _RETURN):
            attributes = struct.pack(
                "<IIIIQQQQIII",
                *(self._program, 0, _UPROBE_MULTI, 0),
                ctypes.addressof(self._path),
                ctypes.addressof(offsets),
                *(0, 0),
                *(count, flags, self._pid),
            )
            self._links.append(_bpf(_LINK_CREATE, attributes))
        return count

    def disable(self) -> None:
        """Close the links."""
        while self._links:
            os.close(self._links.pop())

    def detach(self) -> None:
        """Close the program."""
        os.close(self._program)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return _system_call(_SYS_BPF, command, buffer, len(attributes))


class PerfUprobes:
    """See `bench.tracers.Tracer`."""

    def __init__(self, pid: int, program: Path) -> None:
        self._pid = pid
        self._path = ctypes.create_string_buffer(bytes(program))
        self._events: list[int] = []

    def attach(self) -> None:
        """Room for the descriptors."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def enable(self, functions: Sequence[_Function]) -> int:
        """Two events a function."""
        kind = int((_SOURCE / "type").read_text())
        bit = int((_SOURCE / "format" / "retprobe").read_text().partition(":")[2])
        for function in functions:
            for config in (0, 1 << bit):
                attributes = _ATTRIBUTES.pack(
                    *(kind, _ATTRIBUTES.size, config),
                    *(0, 0, 0, 0, 0, 0),
                    *(ctypes.addressof(self._path), function.offset),
                )
                buffer = ctypes.create_string_buffer(attributes, len(attributes))
                self._events.append(
                    _system_call(_SYS_PERF_EVENT_OPEN, buffer, self._pid, -1, -1, _CLOSE_ON_EXEC)
                )
        return len(functions)

    def disable(self) -> None:
        """Close the events."""
        while self._events:
            os.close(self._events.pop())

    def detach(self) -> None:
        """Nothing is left to do."""
