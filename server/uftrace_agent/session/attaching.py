"""Attaching: from a pid to an engine that can patch, or a reason why not."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from uftrace_agent.engine.adoption import as_restored, inherit, next_id
from uftrace_agent.engine.annex import Annex
from uftrace_agent.engine.annex_places import RingOptions
from uftrace_agent.engine.lease_record import LeaseRecord
from uftrace_agent.engine.manifest import FoundManifest, Identity, Manifest, find_manifests
from uftrace_agent.engine.native import native_architecture
from uftrace_agent.engine.needed_calls import filter_watch
from uftrace_agent.engine.patch_engine import PatchEngine
from uftrace_agent.engine.program import Program
from uftrace_agent.errors import (
    AlreadyHeldError,
    ForbiddenError,
    ForeignTracerError,
    InvalidRequestError,
    NoSuchProcessError,
    UnsupportedTargetError,
)
from uftrace_agent.process.address_space import PAGE, read_mappings
from uftrace_agent.process.identity import ProcessId, start_time_ticks
from uftrace_agent.process.listing import attachability
from uftrace_agent.process.machine import AT_HWCAP2, Machine, hardware, native_machine, page_size
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.pauses import Pauses
from uftrace_agent.process.remote_calls import RemoteCaller
from uftrace_agent.process.shadow_stack import has_shadow_stack
from uftrace_agent.process.threads import status_field
from uftrace_agent.process.tid_word import find_tid_offset
from uftrace_agent.session.leftovers import (
    check_not_held,
    remove_handler,
    restore_leftovers,
    restore_sites,
)
from uftrace_agent.session.types import RecordingOptions
from uftrace_agent.symbols.cache import ImageCache

_SMALLEST_RING: Final = 64 << 10
_LARGEST_RING: Final = 1 << 30
_MOST_RINGS: Final = 4096
_LARGEST_RINGS: Final = 16 << 30

_REASONS: Final = {
    "KERNEL_THREAD": "is a kernel thread",
    "ZOMBIE": "has ended and waits for its parent",
    "PROCESS_32BIT": "is a 32-bit program",
    "AGENT_ITSELF": "is this agent",
    "SECCOMP_STRICT": "runs under strict seccomp and could make no system call",
}


@dataclass(slots=True)
class Attachment:
    """What a session holds of its process."""

    memory: ProcessMemory
    program: Program
    annex: Annex
    engine: PatchEngine
    restored_sites: int
    pauses: Pauses
    claim: socket.socket
    manifest: Manifest
    leases: Sequence[tuple[int, LeaseRecord]] = ()

    def park(self) -> None:
        """Hold the process no longer, but keep what is needed to hold it again."""
        self.claim.close()
        if self.is_intact():
            self.manifest.release()

    def resume(self, process: ProcessId) -> None:
        """Hold the process again.

        Raises:
            AlreadyHeldError: Another agent does by now.
            UnsupportedTargetError: It has a seccomp filter by now that forbids tracing.
            BusyTargetError: What another agent left behind could not be restored.
        """
        check_attachable(process.pid)
        claim = claim_process(process)
        try:
            self.annex.caller.filters.check()
            found = find_manifests(self.memory, read_mappings(process.pid))
            others = [other for other in found if other.address != self.manifest.address]
            self.restored_sites = restore_leftovers(self.memory, process, others, self.pauses)
            self.manifest.hold()
        except BaseException:
            claim.close()
            raise
        self.claim = claim

    def is_intact(self) -> bool:
        """Whether the annex is still there: not after an exec."""
        return bool(self.memory.read_some(self.annex.data.control, 1))

    def close(self) -> None:
        """Give back what the agent holds; the process keeps the annex."""
        self.annex.close()
        self.memory.close()
        self.claim.close()


def check_machine(hwcap2: int, page_bytes: int = PAGE, machine: Machine | None = None) -> None:
    """Refuse a machine on which probes would fault (H90).

    Args:
        hwcap2: What the kernel says that programs may use (AT_HWCAP2).
        page_bytes: Of the kernel's pages.
        machine: Which it is; None: this one.

    Raises:
        UnsupportedTargetError: Programs may not read their thread pointer; or pages are
            larger than the annex is made for.
    """
    if page_bytes != PAGE:
        raise UnsupportedTargetError(
            f"this kernel has pages of {page_bytes >> 10} KiB",
            reason="PAGE_SIZE_UNSUPPORTED",
            hint="a kernel with pages of 4 KiB is needed",
        )
    needed = (machine or native_machine()).hwcap2
    if hwcap2 & needed != needed:
        raise UnsupportedTargetError(
            "this kernel does not let programs read their thread pointer (FSGSBASE)",
            reason="KERNEL_TOO_OLD",
            hint="Linux 5.9 or newer is needed, on a processor with FSGSBASE",
        )


def check_attachable(pid: int) -> None:
    """Refuse processes that cannot be attached, each with its reason.

    Raises:
        ForbiddenError: The kernel would not let us.
        ForeignTracerError: A debugger is there.
        UnsupportedTargetError: This kind of process cannot be traced.
        NoSuchProcessError: It is gone.
    """
    check_machine(hardware(AT_HWCAP2), page_size())
    reason = attachability(pid)
    if reason is None:
        return
    if reason == "PERMISSION_DENIED":
        raise ForbiddenError(
            f"process {pid} belongs to somebody else",
            hint="run the agent as root, or as the owner of the process",
        )
    if reason == "TRACED_BY_ANOTHER":
        raise ForeignTracerError(
            f"process {pid} is being traced (pid {status_field(pid, 'TracerPid')})",
            hint="end gdb, strace or the other tracer first",
        )
    raise UnsupportedTargetError(f"process {pid} {_REASONS.get(reason, reason)}", reason=reason)


def ring_options(options: RecordingOptions) -> RingOptions:
    """Checked ring sizes.

    Raises:
        InvalidRequestError: Out of range, or not a power of two.
    """
    size, count = options.ring_bytes, options.ring_count
    if size & (size - 1) or not _SMALLEST_RING <= size <= _LARGEST_RING:
        raise InvalidRequestError(
            f"a ring of {size} bytes is not possible",
            reason="BAD_RING_SIZE",
            hint=f"a power of two from {_SMALLEST_RING} to {_LARGEST_RING}",
        )
    if not 1 <= count <= _MOST_RINGS:
        raise InvalidRequestError(
            f"{count} rings are not possible", reason="BAD_RING_COUNT", hint="1 to 4096"
        )
    if size * count > _LARGEST_RINGS:
        raise InvalidRequestError(
            f"{count} rings of {size} bytes are not possible",
            reason="BAD_RING_SIZE",
            hint=f"{_LARGEST_RINGS} bytes for all of them",
        )
    # One more than asked for: ring 0 is the one that threads without share.
    return RingOptions(size, count + 1)


def attach(process: ProcessId, options: RecordingOptions, images: ImageCache) -> Attachment:
    """Take hold of a process; no byte of its code changes.

    Raises:
        AgentError: See `check_attachable`; also TargetGoneError, BusyTargetError,
            ExhaustedError, AlreadyHeldError.
    """
    check_attachable(process.pid)
    rings = ring_options(options)
    architecture = native_architecture()
    with ExitStack() as held:
        claim = held.enter_context(claim_process(process))
        memory = held.enter_context(ProcessMemory(process.pid))
        if start_time_ticks(process.pid) != process.start_time_ticks:
            raise NoSuchProcessError(
                f"pid {process.pid} belongs to another process by now", reason="PID_REUSED"
            )
        program = Program(memory, images)
        program.refresh()
        # Before any thread is stopped: that alone may be deadly (H60).
        caller = RemoteCaller(memory, filter_watch(memory.pid))
        caller.filters.check()
        pauses = caller.filters.pauses
        leftovers = find_manifests(memory, read_mappings(memory.pid))
        restored = restore_leftovers(memory, process, leftovers, pauses)
        annex = Annex(memory, caller, native_machine().calls, architecture, rings)
        held.callback(annex.close)
        manifest, taken = _old_or_new(annex, process, leftovers, rings)
        pauses.merge(caller.take_pauses())
        engine = PatchEngine(
            memory, program, annex, manifest, architecture, has_shadow_stack(process.pid)
        )
        # A thread that is in a traced function still may record its exit.
        engine.skip_ids(max((next_id(found) for found in leftovers), default=1))
        if taken is not None and manifest.keeps(taken):
            inheritance = inherit(as_restored(taken), program.function_at, "")
            for tracepoint in inheritance.disabled:
                tracepoint.is_idle = True
            engine.adopt(inheritance)
        held.pop_all()
    return Attachment(memory, program, annex, engine, restored, pauses, claim, manifest)


# An annex that an earlier agent left serves again, if it has such rings: or each agent
# that was killed would cost the process another one.
def _old_or_new(
    annex: Annex, process: ProcessId, leftovers: Sequence[FoundManifest], rings: RingOptions
) -> tuple[Manifest, FoundManifest | None]:
    identity = _identity(process)
    for found in leftovers:
        if not _is_of(found, process):
            continue  # a forked child's copy: its rings are its parent's
        manifest = annex.take_over(found, identity, rings)
        if manifest is not None:
            return manifest, found
    manifest = annex.create(identity, find_tid_offset(annex.memory))
    annex.adopt_memory(entry.memory() for found in leftovers for entry in found.entries)
    return manifest, None


def _is_of(found: FoundManifest, process: ProcessId) -> bool:
    identity = found.identity
    return (identity.pid, identity.start_time_ticks, identity.boot_id) == (
        process.pid,
        process.start_time_ticks,
        process.boot_id,
    )


def _identity(process: ProcessId) -> Identity:
    return Identity(
        pid=process.pid,
        start_time_ticks=process.start_time_ticks,
        boot_id=process.boot_id,
        agent_pid=os.getpid(),
        agent_start_time_ticks=start_time_ticks(os.getpid()),
    )


def adopt(process: ProcessId, images: ImageCache) -> Attachment | None:
    """Take over a process that an agent which died has left instrumented.

    What was half done is undone; what is patched stays so.

    Returns:
        None where there is no session to go on with.

    Raises:
        AlreadyHeldError: An agent that is alive holds the process.
        AgentError: As for `attach`; the process is as it was then.
    """
    check_attachable(process.pid)
    with ExitStack() as held:
        claim = held.enter_context(claim_process(process))
        memory = held.enter_context(ProcessMemory(process.pid))
        attachment = _adopt(process, images, memory, claim)
        if attachment is not None:
            held.pop_all()
    return attachment


def _adopt(
    process: ProcessId, images: ImageCache, memory: ProcessMemory, claim: socket.socket
) -> Attachment | None:
    candidates = find_manifests(memory, read_mappings(memory.pid))
    found = next((f for f in candidates if f.session.session_id and _is_of(f, process)), None)
    if found is None:
        return None
    check_not_held(found, process)
    program = Program(memory, images)
    program.refresh()
    architecture = native_architecture()
    caller = RemoteCaller(memory, filter_watch(memory.pid))
    caller.filters.check()
    annex = Annex(memory, caller, native_machine().calls, architecture, RingOptions(0, 0))
    manifest = annex.take_over(found, _identity(process))
    if manifest is None:
        return None
    try:
        pauses = Pauses()
        inheritance = inherit(found, program.function_at, found.session.owner)
        by_row = dict(zip(found.rows, found.entries, strict=True))
        undone = [by_row[row] for row in inheritance.undo]
        if undone:
            restore_sites(memory, found, undone, pauses)
        remove_handler(memory, found, pauses)
        manifest.free(inheritance.undo, undone)
        engine = PatchEngine(
            memory, program, annex, manifest, architecture, has_shadow_stack(process.pid)
        )
        engine.adopt(inheritance)
    except BaseException:
        annex.close()
        Manifest.of_found(memory, found, found.identity)  # as it was: for another try
        raise
    pauses.merge(caller.take_pauses())
    return Attachment(
        memory, program, annex, engine, len(undone), pauses, claim, manifest, found.leases
    )


# An abstract socket's name has one owner, and goes with it: two agents cannot
# attach at once (H85), and one that was killed is no obstacle.
def claim_process(process: ProcessId) -> socket.socket:
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        claim.bind(_claim_name(process))
    except OSError as error:
        claim.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise AlreadyHeldError(
            f"another agent holds process {process.pid}",
            hint="detach there first: one process has one agent",
        ) from error
    return claim


# By the pid that the process itself has, in its own namespace: containers that share a
# network have pids in common, and agents inside and outside see the same process by
# different ones (pid_namespaces(7); proc_pid_status(5), NSpid).
def _claim_name(process: ProcessId) -> str:
    own_pid = (status_field(process.pid, "NSpid") or str(process.pid)).split()[-1]
    try:
        namespace = os.stat(f"/proc/{process.pid}/ns/pid").st_ino
    except FileNotFoundError:
        namespace = 0  # it is gone, or a kernel without namespaces
    start = process.start_time_ticks
    return f"\0uftrace-agent/{process.boot_id}/{namespace}/{own_pid}/{start}"
