"""The native helpers of `host/`, through ctypes.

ctypes lets the interpreter go on during a call, and no Python runs while a
target is stopped (H93). The structures mirror host/host.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Sequence
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from uftrace_agent.errors import (
    AgentError,
    BusyTargetError,
    EngineFaultError,
    ForbiddenError,
    TargetGoneError,
    UnsupportedTargetError,
)

_BUILT = Path(__file__).parent / "_built"


class SiteStatus(IntEnum):
    """What a write did to one site (enum uh_site_status)."""

    UNTOUCHED = 0
    WRITTEN = 1
    CONFLICT = 2
    ALREADY = 3
    FAILED = 4


# struct uh_site, as numpy rows: ten thousand of them are made at a time.
SITE_DTYPE = np.dtype(
    [
        ("address", "<u8"),
        ("length", "u1"),
        ("status", "u1"),
        ("may_be_trapped", "u1"),
        ("explains_thunks", "u1"),
        ("pad", "u1", 4),
        ("expected", "u1", 16),
        ("wanted", "u1", 16),
    ]
)
SiteRows = npt.NDArray[np.void]


class CRange(ctypes.Structure):
    """struct uh_range."""

    _fields_ = [("start", ctypes.c_uint64), ("end", ctypes.c_uint64)]


class CMove(ctypes.Structure):
    """struct uh_move."""

    _fields_ = [("origin", ctypes.c_uint64), ("to", ctypes.c_uint64)]


class CThreadPause(ctypes.Structure):
    """struct uh_thread_pause."""

    _fields_ = [("tid", ctypes.c_int32), ("pad", ctypes.c_uint32), ("nanos", ctypes.c_uint64)]


class CPause(ctypes.Structure):
    """struct uh_pause."""

    _fields_ = [
        ("threads", ctypes.c_uint32),
        ("retries", ctypes.c_uint32),
        ("frames", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("capacity", ctypes.c_uint32),
        ("signed_frames", ctypes.c_uint32),
        ("rows", ctypes.POINTER(CThreadPause)),
    ]


class CStop(ctypes.Structure):
    """struct uh_stop."""

    _fields_ = [
        ("pid", ctypes.c_int32),
        ("mem_fd", ctypes.c_int32),
        ("deadline_nanos", ctypes.c_uint64),
        ("attempts", ctypes.c_uint32),
        ("site_count", ctypes.c_uint32),
        ("sites", ctypes.c_void_p),
        ("range_count", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("ranges", ctypes.POINTER(CRange)),
        ("thunks", ctypes.c_uint64),
        ("thunk_span", ctypes.c_uint64),
        ("slots", ctypes.c_void_p),
        ("slot_table", ctypes.c_uint64),
        ("ours", ctypes.POINTER(CRange)),
        ("stacks", ctypes.POINTER(CRange)),
        ("stack_count", ctypes.c_uint32),
        ("watched_count", ctypes.c_uint32),
        ("watched", ctypes.POINTER(CRange)),
        ("moves", ctypes.POINTER(CMove)),
        ("move_count", ctypes.c_uint32),
        ("resumed_count", ctypes.c_uint32),
        ("resumed", ctypes.POINTER(CRange)),
        ("ours_count", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("pause", CPause),
    ]


class CTrap(ctypes.Structure):
    """struct uh_trap."""

    _fields_ = [
        ("pid", ctypes.c_int32),
        ("mem_fd", ctypes.c_int32),
        ("deadline_nanos", ctypes.c_uint64),
        ("site_count", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("sites", ctypes.c_void_p),
        ("handler", CRange),
        ("pause", CPause),
    ]


class CCall(ctypes.Structure):
    """struct uh_call."""

    _fields_ = [
        ("number", ctypes.c_int64),
        ("args", ctypes.c_uint64 * 6),
        ("result", ctypes.c_int64),
    ]


class CRemote(ctypes.Structure):
    """struct uh_remote."""

    _fields_ = [
        ("pid", ctypes.c_int32),
        ("tid", ctypes.c_int32),
        ("mem_fd", ctypes.c_int32),
        ("call_count", ctypes.c_uint32),
        ("calls", ctypes.POINTER(CCall)),
        ("gadget", ctypes.c_uint64),
        ("restorer", ctypes.c_uint64),
        ("pop_rax", ctypes.c_uint64),
        ("stack_low", ctypes.c_uint64),
        ("stack_high", ctypes.c_uint64),
        ("frame_top", ctypes.c_uint64),
        ("routine", ctypes.c_uint64),
        ("table", ctypes.c_uint64),
        ("calls_done", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("deadline_nanos", ctypes.c_uint64),
        ("pause_nanos", ctypes.c_uint64),
    ]


class CLook(ctypes.Structure):
    """struct thread_look."""

    _fields_ = [
        ("pid", ctypes.c_int32),
        ("tid", ctypes.c_int32),
        ("pc", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("thread_pointer", ctypes.c_uint64),
        ("deadline_nanos", ctypes.c_uint64),
    ]


class CFilters(ctypes.Structure):
    """struct uh_filters."""

    _fields_ = [
        ("pid", ctypes.c_int32),
        ("tid", ctypes.c_int32),
        ("deadline_nanos", ctypes.c_uint64),
        ("instructions", ctypes.c_void_p),
        ("sizes", ctypes.POINTER(ctypes.c_uint32)),
        ("instruction_capacity", ctypes.c_uint32),
        ("size_capacity", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("pause_nanos", ctypes.c_uint64),
    ]


class CRun(ctypes.Structure):
    """struct uh_run."""

    _fields_ = [
        ("tid", ctypes.c_int32),
        ("records", ctypes.c_uint32),
        ("offset", ctypes.c_uint64),
    ]


class CDrain(ctypes.Structure):
    """struct uh_drain."""

    _fields_ = [
        ("headers", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("ring_bytes", ctypes.c_uint64),
        ("ring_count", ctypes.c_uint32),
        ("run_capacity", ctypes.c_uint32),
        ("out", ctypes.c_void_p),
        ("out_bytes", ctypes.c_uint64),
        ("runs", ctypes.POINTER(CRun)),
        ("tids", ctypes.POINTER(ctypes.c_int32)),
        ("hole_since", ctypes.POINTER(ctypes.c_uint64)),
        ("next_ring", ctypes.c_uint32),
        ("skip_holes", ctypes.c_uint32),
        ("calls", ctypes.c_void_p),
        ("call_capacity", ctypes.c_uint64),
        ("counted", ctypes.POINTER(ctypes.c_uint64)),
        ("used", ctypes.c_uint64),
        ("run_count", ctypes.c_uint32),
        ("more", ctypes.c_uint32),
        ("last_ticks", ctypes.c_uint64),
    ]


class CAnchor(ctypes.Structure):
    """struct uh_anchor."""

    _fields_ = [
        ("ticks", ctypes.c_uint64),
        ("monotonic", ctypes.c_uint64),
        ("realtime", ctypes.c_uint64),
    ]


class SiteWrite(Protocol):
    """One changed span of code: `expected` becomes `wanted` (equal lengths, at most 16)."""

    @property
    def address(self) -> int: ...

    @property
    def expected(self) -> bytes: ...

    @property
    def wanted(self) -> bytes: ...


@cache
def library() -> ctypes.CDLL:
    """The library for this machine.

    Raises:
        EngineFaultError: It was not built.
    """
    path = _BUILT / f"libuftrace_host-{platform.machine()}.so"
    try:
        loaded = ctypes.CDLL(str(path), use_errno=True)
    except OSError as error:
        raise EngineFaultError(
            f"the host runtime {path.name} cannot be loaded: {error}",
            reason="RUNTIME_NOT_BUILT",
            hint="install the package anew, or run `make setup` in a checkout",
        ) from error
    loaded.uh_write_running.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32]
    loaded.uh_touch.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32]
    loaded.uh_stop_write.argtypes = [ctypes.POINTER(CStop)]
    loaded.uh_trap_write.argtypes = [ctypes.POINTER(CTrap)]
    loaded.uh_trap_settle.argtypes = [ctypes.POINTER(CTrap)]
    loaded.uh_can_visit_processors.argtypes = []
    loaded.uh_remote_calls.argtypes = [ctypes.POINTER(CRemote)]
    loaded.uh_finish_calls.argtypes = [ctypes.POINTER(CRemote)]
    loaded.uh_look.argtypes = [ctypes.POINTER(CLook)]
    loaded.uh_read_filters.argtypes = [ctypes.POINTER(CFilters)]
    loaded.uh_run_filter.argtypes = [ctypes.c_char_p, ctypes.c_uint32, ctypes.c_char_p]
    loaded.uh_run_filter.restype = ctypes.c_uint32
    loaded.uh_drain_rings.argtypes = [ctypes.POINTER(CDrain)]
    loaded.uh_count_rings.argtypes = [ctypes.POINTER(CDrain)]
    loaded.uh_retire_ring.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int32]
    loaded.uh_list_threads.argtypes = [ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint32]
    loaded.uh_anchor.argtypes = [ctypes.POINTER(CAnchor)]
    return loaded


def error_for(code: int, pid: int, what: str) -> AgentError:
    """The error that a helper's negative errno stands for."""
    number = -code
    if number == errno.ESRCH:
        return TargetGoneError(f"process {pid} ended while {what}")
    if number == errno.EPERM:
        return ForbiddenError(
            f"the kernel does not let the agent trace process {pid}",
            reason="PTRACE_DENIED",
            hint="is it under gdb, strace or another tracer? otherwise run the agent as root "
            "or as the owner of the process (kernel.yama.ptrace_scope=0)",
        )
    if number in (errno.ETIMEDOUT, errno.EAGAIN):
        return BusyTargetError(
            f"process {pid} did not reach a safe point in time while {what}; nothing was changed",
            hint="try again; a process in uninterruptible sleep or a frozen cgroup cannot stop",
        )
    if number == errno.ENOEXEC:
        return UnsupportedTargetError(f"process {pid} runs 32-bit code", reason="PROCESS_32BIT")
    return EngineFaultError(f"{os.strerror(number)} while {what} of process {pid}")


def range_array(ranges: Sequence[tuple[int, int]]) -> ctypes.Array[CRange]:
    """(start, end) pairs as struct uh_range[], by rising address; never empty."""
    rows = (CRange * max(len(ranges), 1))()
    for row, (start, end) in zip(rows, sorted(ranges), strict=False):
        row.start, row.end = start, end
    return rows


def move_array(moves: Sequence[tuple[int, int]]) -> ctypes.Array[CMove]:
    """(from, to) pairs as struct uh_move[], by rising first address; never empty."""
    rows = (CMove * max(len(moves), 1))()
    for row, (origin, to) in zip(rows, sorted(moves), strict=False):
        row.origin, row.to = origin, to
    return rows


def site_rows(writes: Sequence[SiteWrite]) -> SiteRows:
    """The writes as struct uh_site[], in the order given."""
    rows: SiteRows = np.zeros(len(writes), SITE_DTYPE)
    rows["address"] = [write.address for write in writes]
    rows["length"] = [len(write.expected) for write in writes]
    for column in ("expected", "wanted"):
        packed = b"".join(getattr(write, column).ljust(16, b"\0") for write in writes)
        rows[column] = np.frombuffer(packed, "u1").reshape(len(writes), 16)
    return rows
