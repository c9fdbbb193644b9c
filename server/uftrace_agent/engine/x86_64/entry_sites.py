"""Which instruction of a function is changed: its first, wherever that is possible."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from uftrace_agent.engine.site import FunctionCode, ProbeKind
from uftrace_agent.engine.x86_64.instruction import ENDBR64, Instruction, decode
from uftrace_agent.engine.x86_64.jump_targets import JumpTargets, JumpTargetsCache

# How many instructions a site may lie behind the entry.
_SKIPPED_AT_MOST: Final = 3
# gcc -pg puts the call behind at most this much of prologue.
_PROLOGUE: Final = 32
_PUSH_FRAME: Final = b"\x55\x48\x89\xe5"
# call rel32, call *disp32(%rip), addr32 call rel32
_CALLS: Final = (b"\xe8", b"\xff\x15", b"\x67\xe8")


@dataclass(frozen=True, slots=True)
class EntrySite:
    """One instruction that may be replaced.

    Attributes:
        instruction: The instruction.
        bytes: Itself and what follows, as far as a jump from any byte of it reaches.
        skipped: How many instructions of the function run before it; endbr64 does not
            count.
        pushed: Bytes that they left on the stack above the return address.
    """

    instruction: Instruction
    bytes: bytes
    skipped: int = 0
    pushed: int = 0

    @property
    def address(self) -> int:
        """Where it lies."""
        return self.instruction.address

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.instruction.size

    @property
    def probe(self) -> ProbeKind:
        """Which probe finds the return address."""
        # Behind one push it is where `call __fentry__` leaves it.
        return ProbeKind.FENTRY if self.pushed else ProbeKind.ENTRY


def entry_sites(function: FunctionCode, targets: JumpTargetsCache) -> Iterator[EntrySite]:
    """The sites to try, best first.

    The first is the instruction after endbr64, which stays the landing pad it
    is; failing that endbr64 itself, since Linux does not enforce it in user
    space (H11). Then come the instructions behind: it is still one instruction
    that changes, so threads in the middle of things are as safe as ever, and
    that control always passes there is proved by the instructions before it
    and by no jump of the module leading between them.
    """
    skip = len(ENDBR64) if function.code.startswith(ENDBR64) else 0
    first = _site_at(function, skip)
    if first is not None:
        yield first
    if skip:
        landing_pad = _site_at(function, 0)
        if landing_pad is not None:
            yield landing_pad
    if first is not None and function.text is not None:
        yield from _later_sites(function, first, targets.of(function.text))


def _later_sites(
    function: FunctionCode, site: EntrySite, targets: JumpTargets
) -> Iterator[EntrySite]:
    pushed = 0
    for skipped in range(1, _SKIPPED_AT_MOST + 1):
        if site.instruction.pushes_register() and not pushed:
            pushed = 8
        elif not site.instruction.goes_straight_on():
            return
        address = site.address + site.size
        # Who jumps or calls to here may come with another stack, on which the
        # return address is not where the probe replaces it.
        if address in targets or (function.next_entry and address >= function.next_entry):
            return
        later = _site_at(function, address - function.address)
        if later is None:
            return
        site = replace(later, skipped=skipped, pushed=pushed)
        yield site


def _site_at(function: FunctionCode, offset: int) -> EntrySite | None:
    if function.size and offset >= function.size:
        return None
    code = function.code[offset:]
    instruction = decode(code, function.address + offset)
    if instruction is None:
        return None
    return EntrySite(instruction, code[: instruction.size + 4])


def profiling_call(function: FunctionCode) -> tuple[Instruction, ProbeKind] | None:
    """The call that -pg or -mfentry made in a function, and its probe; None where
    there is none."""
    start = len(ENDBR64) if function.code.startswith(ENDBR64) else 0
    body = function.code[start:]
    is_mcount = body.startswith(_PUSH_FRAME)
    if not is_mcount and not body.startswith(_CALLS):
        return None
    at = start
    limit = min(len(function.code), _PROLOGUE, function.size or _PROLOGUE)
    while at < limit:
        instruction = decode(function.code[at:], function.address + at)
        if instruction is None:
            return None
        if instruction.is_call():
            reached = instruction.branch_target() or instruction.indirect_slot()
            name = function.profiled.get(reached or 0)
            if name == "__fentry__" and at == start:
                return instruction, ProbeKind.FENTRY
            if name == "mcount" and is_mcount:
                return instruction, ProbeKind.MCOUNT
            return None
        if instruction.branch_target() is not None:
            return None
        at += instruction.size
    return None
