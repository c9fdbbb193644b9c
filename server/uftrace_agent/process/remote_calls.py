"""System calls performed by a thread of the target."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from uftrace_agent.errors import (
    AgentError,
    BusyTargetError,
    EngineFaultError,
    TargetGoneError,
    UnsupportedTargetError,
)
from uftrace_agent.process.address_space import (
    Mapping,
    StackBounds,
    main_stack_bottom,
    own_stack,
    read_mappings,
)
from uftrace_agent.process.gadgets import Gadgets, find_gadgets
from uftrace_agent.process.machine import native_machine
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.pauses import Pauses
from uftrace_agent.process.seccomp_filters import FilterWatch
from uftrace_agent.process.threads import ThreadState, has_ended, remote_call_candidates
from uftrace_agent.runtime.host_library import CCall, CLook, CRemote, error_for, library
from uftrace_agent.runtime.layout import define

_DEADLINE_NS = 2_000_000_000
_ROUNDS = 20
_STRAGGLER_NS = 10_000_000_000
# A signal frame with all vector state (AMX: 8 KiB; SVE: up to 14 KiB in all) and what
# the calls need.
_FRAME_BYTES = 16384


@dataclass(frozen=True, slots=True)
class RemoteCall:
    """A system call: its number and up to six arguments."""

    number: int
    args: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BatchPlace:
    """Where the target's own routine for many calls lies, and its table."""

    routine: int
    table: int


class RemoteCaller:
    """Performs system calls in a process, each batch in one short stop of one thread.

    The thread restores itself if the agent dies meanwhile; it sees no EINTR
    and no lost signal (host/remote.c).

    Args:
        memory: The process's memory.
        filters: Asked before a thread is used whether its seccomp filters let it
            make the calls: the program may have added some since (H60).
    """

    def __init__(self, memory: ProcessMemory, filters: FilterWatch) -> None:
        self._memory = memory
        self.filters = filters
        self._pid = memory.pid
        self._gadgets: Gadgets | None = None
        self.pauses = Pauses()
        self._batch: BatchPlace | None = None
        self._unfinished: CRemote | None = None

    def take_pauses(self) -> Pauses:
        """How long threads were stopped since this was asked last."""
        taken, self.pauses = self.pauses, Pauses()
        return taken

    def use_batches(self, place: BatchPlace | None) -> None:
        """From now on let a thread make all calls of a batch in one go; None: no more.

        Raises:
            BusyTargetError: A thread is still at a batch.
        """
        self._await_batch()
        self._batch = place

    def call(self, calls: Sequence[RemoteCall]) -> list[int]:
        """Perform `calls` in order.

        Returns:
            Their results, negative errno included.

        Raises:
            TargetGoneError: The process ended.
            ForbiddenError: Tracing is not allowed.
            BusyTargetError: No thread could be used in time.
            UnsupportedTargetError: No thread may make the calls (SECCOMP_FILTER).
        """
        if self._gadgets is None:
            self._gadgets = find_gadgets(self._memory, native_machine().code)
        self._await_batch()
        failure: AgentError | None = None
        for _ in range(_ROUNDS):
            mappings = read_mappings(self._pid)
            forbidden: UnsupportedTargetError | None = None
            candidates = remote_call_candidates(self._pid)
            if not candidates:
                failure = error_for(-errno.ETIMEDOUT, self._pid, "preparing a remote call")
            gadget = self._gadgets.unused(candidates)
            if not gadget:
                failure = error_for(-errno.EAGAIN, self._pid, "preparing a remote call")
                continue
            for thread in candidates:
                try:
                    self.filters.check_thread(thread.tid)
                except UnsupportedTargetError as error:
                    forbidden = error
                    continue
                except TargetGoneError:
                    continue  # this thread has ended; of the process, read_mappings tells
                code, results = self._try_thread(thread, mappings, calls, gadget)
                if code == 0:
                    return results
                if code == -errno.EINPROGRESS:
                    self._await_batch()
                    return self._batch_results(len(calls))
                if results:
                    raise EngineFaultError(
                        f"process {self._pid} performed only {len(results)} of {len(calls)} "
                        f"injected calls: {os.strerror(-code)}"
                    )
                failure = error_for(code, self._pid, "preparing a remote call")
                # The kernel says so of a thread that is ending, too (kernel/ptrace.c,
                # ptrace_attach).
                if code == -errno.EPERM and has_ended(self._pid, thread.tid):
                    continue
                if -code not in (errno.EAGAIN, errno.ENOSPC, errno.ESRCH, errno.ETIMEDOUT):
                    self._memory.read(gadget, 1)  # an exec takes the memory away (H63)
                    raise failure
            if forbidden is not None and failure is None:
                raise forbidden
        if isinstance(failure, EngineFaultError) or failure is None:
            raise BusyTargetError(
                f"no thread of process {self._pid} has a stack that can be used now",
                reason="NO_SAFE_THREAD",
                hint="try again; programs whose threads are all on stacks of their own making "
                "(fibers, goroutines) all the time cannot be attached",
            )
        raise failure

    # A thread that got no processor for so long, or was stopped, goes on with its
    # table whenever it can: nobody may change that before.
    def _await_batch(self) -> None:
        if self._batch is None:
            return
        end = time.monotonic_ns() + _STRAGGLER_NS
        while self._calls_left():
            if time.monotonic_ns() > end:
                raise BusyTargetError(
                    f"a thread of process {self._pid} was stopped in the middle of a call",
                    hint="let the process go on (SIGCONT), then try again",
                )
            if self._unfinished is not None:
                library().uh_finish_calls(ctypes.byref(self._unfinished))
            time.sleep(0.001)
        self._unfinished = None

    def _calls_left(self) -> int:
        assert self._batch is not None, "asked only where there are batches"
        return int.from_bytes(self._memory.read(self._batch.table, 8), "little")

    def _batch_results(self, count: int) -> list[int]:
        assert self._batch is not None, "asked only where there are batches"
        size = define("CALL_BYTES")
        first = self._batch.table + define("CALLS_ENTRIES") + size  # behind sigaltstack's
        data = self._memory.read(first, size * count)
        return [
            int.from_bytes(data[at : at + 8], "little", signed=True)
            for at in range(define("CALL_RESULT"), size * count, size)
        ]

    def _try_thread(
        self,
        thread: ThreadState,
        mappings: Sequence[Mapping],
        calls: Sequence[RemoteCall],
        gadget: int,
    ) -> tuple[int, list[int]]:
        assert self._gadgets is not None, "asked only with one of them"
        stack = own_stack(mappings, thread.sp, 0)
        if stack is None:
            look = CLook(pid=self._pid, tid=thread.tid, deadline_nanos=_DEADLINE_NS)
            code = library().uh_look(ctypes.byref(look))
            if code:
                return code, []
            stack = own_stack(mappings, look.sp, look.thread_pointer)
        spare = None
        if stack is None and thread.tid == self._pid:
            stack = spare = self._unused_stack(mappings)
        if stack is None:
            return -errno.ENOSPC, []
        # A stopped process makes calls only while it is traced (H67).
        may_batch = spare is None and thread.state not in "tT"
        array = (CCall * len(calls))()
        for row, call in zip(array, calls, strict=True):
            row.number = call.number
            for index, argument in enumerate(call.args):
                row.args[index] = argument & (1 << 64) - 1
        remote = CRemote(
            pid=self._pid,
            tid=thread.tid,
            mem_fd=self._memory.fd,
            call_count=len(calls),
            calls=array,
            gadget=gadget,
            restorer=self._gadgets.restorer,
            pop_rax=self._gadgets.pop_number,
            stack_low=stack.low,
            stack_high=stack.high,
            frame_top=spare.high if spare else 0,
            routine=self._batch.routine if self._batch and may_batch else 0,
            table=self._batch.table if self._batch else 0,
            deadline_nanos=_DEADLINE_NS,
        )
        code = library().uh_remote_calls(ctypes.byref(remote))
        if code == -errno.EINPROGRESS:
            self._unfinished = remote
        if spare is not None and code != -errno.ESRCH:
            self._memory.write(spare.low, bytes(spare.high - spare.low))
        self.pauses.add(remote.pause_nanos, thread.tid)
        return code, [row.result for row in array[: remote.calls_done]]

    # A main thread that runs on a stack of the program's making (Go) has left
    # its own one: the far end of that, if nothing was ever there.
    def _unused_stack(self, mappings: Sequence[Mapping]) -> StackBounds | None:
        bottom = main_stack_bottom(mappings, _FRAME_BYTES)
        if bottom is None or any(self._memory.read(bottom.low, _FRAME_BYTES)):
            return None
        return bottom
