"""The code that is made for one tracepoint, and the array of return thunks.

A stub calls the probe and then runs the displaced instruction:

    lea -128(%rsp),%rsp      ; over the red zone (H29)
    push %rax
    mov $idword,%eax
    call probe               ; saves and restores everything else
    pop %rax
    lea 128(%rsp),%rsp
    <the displaced instruction, moved>
    jmp back

A paired stub (see ENTRY_PROBE in x86_64.S) goes on in one of two ways:

    call probe
    pop %rax                 ; the return address leads to a thunk:
    lea 136(%rsp),%rsp       ; drop it, and let the thunk call
    jmp *-8(%rsp)
    pop %rax                 ; it is as it was
    lea 128(%rsp),%rsp
    <the displaced instruction, moved>
    jmp back
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from uftrace_agent.engine.x86_64.instruction import (
    Instruction,
    Moved,
    OutOfReachError,
    call,
    far_jump,
    jump,
    relative32,
)
from uftrace_agent.runtime.layout import (
    SLOT_BYTES,
    THUNK_BYTES,
    THUNK_COUNT,
    THUNK_SPAN,
    define,
)

STUB_BYTES: Final = 64
_PROLOGUE: Final = b"\x48\x8d\x64\x24\x80\x50\xb8"
_EPILOGUE: Final = b"\x58\x48\x8d\xa4\x24\x80\x00\x00\x00"
_OLX_OFFSET: Final = len(_PROLOGUE) + 4 + 5 + len(_EPILOGUE)
_TO_THUNK: Final = b"\x58\x48\x8d\xa4\x24\x88\x00\x00\x00\xff\x64\x24\xf8"
assert len(_TO_THUNK) == define("STUB_PLAIN")
assert len(_TO_THUNK + _EPILOGUE) == define("STUB_RESUME")


def entry_stub(at: int, probe: int, word: int, displaced: Instruction | None, resume: int) -> bytes:
    """A stub at `at` for a site whose displaced instruction is `displaced`.

    Args:
        at: Where the stub will lie.
        probe: The entry probe of the same code region.
        word: The id word (`layout.id_word`).
        displaced: None where the site was a nop: nothing is to be run.
        resume: Where the program goes on after the displaced instruction.

    Raises:
        UnmovableError: The displaced instruction cannot run elsewhere.
        OutOfReachError: `resume`, or what it refers to, is too far away.
    """
    moved = displaced.moved_to(at + _OLX_OFFSET) if displaced else Moved(b"", True)
    return _with_tail(_head(at, probe, word) + moved.code, at, resume, moved.falls_through)


def paired_stub(
    at: int, probe: int, word: int, displaced: Instruction | None, resume: int
) -> bytes:
    """As `entry_stub`, for the paired probe.

    Raises:
        UnmovableError, OutOfReachError: As there; the second also where the
            displaced instruction has become too long.
    """
    head = _PROLOGUE + struct.pack("<I", word)
    head += call(at + len(head), probe) + _TO_THUNK + _EPILOGUE
    moved = displaced.moved_to(at + len(head)) if displaced else Moved(b"", True)
    return _with_tail(head + moved.code, at, resume, moved.falls_through)


def call_stub(at: int, probe: int, word: int, callee: Instruction) -> bytes:
    """A stub that a patched `call mcount` or `call __fentry__` calls: afterwards
    it goes to the function that was called before, so that a program built for
    gprof keeps its profile."""
    head = _head(at, probe, word)
    return _checked(head + _onward(at + len(head), callee))


@dataclass(frozen=True, slots=True)
class StackPlace:
    """A word of the stack: so many bytes from rbp, or from rsp at the stub's entry."""

    from_frame: bool
    offset: int


def point_stub(at: int, probe: int, word: int, place: StackPlace, replaced: Instruction) -> bytes:
    """A stub that takes the place of a call (or jump) and goes where that went: a record
    whose frame is named by the address of a stack word.

    Raises:
        OutOfReachError: The probe, or where it goes, is too far away.
    """
    head = _PROLOGUE[:-1]
    if place.from_frame:
        head += b"\x48\x8d\x85" + struct.pack("<i", place.offset)
    else:
        head += b"\x48\x8d\x84\x24" + struct.pack("<i", place.offset + 128 + 8)
    head += b"\x50\xb8" + struct.pack("<I", word)
    head += call(at + len(head), probe) + b"\x48\x8d\x64\x24\x08" + _EPILOGUE
    return _checked(head + _onward(at + len(head), replaced))


def strand_stub(
    at: int, probe: int, word: int, offset: int, displaced: Instruction, resume: int
) -> bytes:
    """A stub for a site of a Go function: a record whose frame is named by the address of
    its return address, `offset` bytes above the stack pointer. Go has no red zone, so
    nothing is left out below the stack pointer: its stacks are small.

    Raises:
        UnmovableError, OutOfReachError: As `entry_stub`.
    """
    head = b"\x50\x48\x8d\x84\x24" + struct.pack("<i", offset + 8)
    head += b"\x50\xb8" + struct.pack("<I", word)
    head += call(at + len(head), probe) + b"\x48\x8d\x64\x24\x08\x58"
    moved = displaced.moved_to(at + len(head))
    return _with_tail(head + moved.code, at, resume, moved.falls_through)


# Where a call or jump goes, as a jump from `at`.
def _onward(at: int, transfer: Instruction) -> bytes:
    target = transfer.branch_target()
    if target is not None:
        return jump(at, target)
    slot = transfer.indirect_slot()
    if slot is None:
        raise OutOfReachError("the call has no target that is known beforehand")
    return b"\xff\x25" + relative32(at + 6, slot)


def multi_stub(
    at: int, probe: int, word: int, displaced: Sequence[Instruction], resume: int
) -> tuple[bytes, list[int]]:
    """A stub for a site that displaces several instructions, and where each went.

    Raises:
        UnmovableError, OutOfReachError: As `entry_stub`.
    """
    code = _head(at, probe, word)
    places: list[int] = []
    falls_through = True
    for instruction in displaced:
        places.append(at + len(code))
        moved = instruction.moved_to(at + len(code))
        code += moved.code
        falls_through = moved.falls_through
    return _with_tail(code, at, resume, falls_through), places


def unwinder_stub(at: int, find_fde: int, displaced: Instruction, resume: int) -> bytes:
    """A stub at the entry of _Unwind_Find_FDE: `call find_fde; jz original; ret`."""
    head = call(at, find_fde) + b"\x74\x01\xc3"
    moved = displaced.moved_to(at + len(head))
    return _with_tail(head + moved.code, at, resume, moved.falls_through)


def landing(at: int, stub: int) -> bytes:
    """What lies where a punned jump leads: 5 bytes, or 14 where the stub is far."""
    try:
        return jump(at, stub)
    except OutOfReachError:
        return far_jump(stub)


def _head(at: int, probe: int, word: int) -> bytes:
    head = _PROLOGUE + struct.pack("<I", word)
    return head + call(at + len(head), probe) + _EPILOGUE


def _with_tail(code: bytes, at: int, resume: int, falls_through: bool) -> bytes:
    if falls_through:
        code += jump(at + len(code), resume)
    return _checked(code)


def _checked(code: bytes) -> bytes:
    if len(code) > STUB_BYTES:
        raise OutOfReachError(f"the stub would need {len(code)} bytes")
    # int3: nothing ever runs there.
    return code.ljust(STUB_BYTES, b"\xcc")


def thunk_array(at: int, exit_probe: int, slots: int) -> bytes:
    """All return thunks, 16 bytes each: `call *slots[i].resume; push $i; jmp exit_probe`.

    Raises:
        OutOfReachError: The slots are too far away.
    """
    resumes = slots + define("SLOT_RESUME")
    relative32(at, resumes)
    relative32(at + THUNK_SPAN, resumes + SLOT_BYTES * THUNK_COUNT)
    thunks = np.full((THUNK_COUNT, THUNK_BYTES), 0xCC, "u1")
    index = np.arange(THUNK_COUNT, dtype="<u4")
    number = index.astype(np.int64)
    thunks[:, 0:2] = (0xFF, 0x15)
    calls = resumes + number * SLOT_BYTES - (at + number * THUNK_BYTES + define("THUNK_RETURN"))
    thunks[:, 2:6] = calls.astype("<i4").view("u1").reshape(-1, 4)
    thunks[:, 6] = 0x68
    thunks[:, 7:11] = index.view("u1").reshape(-1, 4)
    thunks[:, 11] = 0xE9
    ends = at + (number + 1) * THUNK_BYTES
    thunks[:, 12:16] = (exit_probe - ends).astype("<i4").view("u1").reshape(-1, 4)
    return thunks.tobytes()


def unwind_entry(thunks: int, slots: int) -> tuple[bytes, int]:
    """CIE and FDE of the whole thunk array, and the FDE's offset.

    The caller's frame is reached by CFA = rsp + 0, and its return address is
    computed from the thunk's own address: slots[(pc - thunks) / 16].address - 1. The
    augmentation `S` and the minus 1 belong together: with one CFA for thunk and
    function, libgcc aborts where the direct caller catches, unless the frame is
    a signal frame; of a signal frame it takes the address as it is, so the
    address must lie inside the call (DWARF 5 section 6.4; research/patching.md
    M10).
    """
    # DW_OP_breg16 0; addr thunks; minus; lit4; shr; lit5; shl; addr slots;
    # plus; deref; lit1; minus.
    expression = (
        b"\x80\x00\x03"
        + struct.pack("<Q", thunks)
        + b"\x1c\x34\x25\x35\x24\x03"
        + struct.pack("<Q", slots)
        + b"\x22\x06\x31\x1c"
    )
    assert (THUNK_BYTES, SLOT_BYTES) == (16, 32), "the expression's shifts rely on it"
    # Version 1, "zRS", code alignment 1, data alignment -8, RA column 16,
    # one byte of augmentation: absolute pointers; DW_CFA_def_cfa rsp 0;
    # DW_CFA_val_expression RA.
    cie_body = (
        struct.pack("<I", 0)
        + b"\x01zRS\x00\x01\x78\x10\x01\x00"
        + b"\x0c\x07\x00"
        + b"\x16\x10"
        + bytes((len(expression),))
        + expression
    )
    cie = _entry(cie_body)
    fde_body = (
        struct.pack("<I", len(cie) + 4)
        + struct.pack("<QQ", thunks - THUNK_BYTES, THUNK_SPAN + THUNK_BYTES)
        + b"\x00"
    )
    return cie + _entry(fde_body) + b"\0\0\0\0", len(cie)


def _entry(body: bytes) -> bytes:
    padded = body.ljust(-(-(len(body) + 4) // 8) * 8 - 4, b"\0")
    return struct.pack("<I", len(padded)) + padded
