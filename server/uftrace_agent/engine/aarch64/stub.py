"""The code that is made for one tracepoint, and the array of return thunks.

A stub calls the probe and then runs the displaced instruction:

    autiasp                        ; only behind `paciasp`: x30 as it was
    stp x0, x30, [sp, #-80]!       ; there is no red zone (AAPCS64)
    movz w0, #low; movk w0, #high  ; the id word
    bl probe                       ; saves and restores everything else
    ldp x0, x30, [sp], #64         ; x30 leads to a thunk, which calls what follows it
    br x30                         ; here, by the word that is left on the stack
    ldp x0, x30, [sp], #80         ; where the probe says so: it is as it was
    paciasp
    <the displaced instruction, moved>
    b back

Stubs whose probe replaces nothing in x30 do without the thunk's two words. `ret` is not
used to enter a thunk: the processor would take it for the return of a call.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from uftrace_agent.engine.aarch64.encoding import (
    AUTIASP,
    AUTIBSP,
    BRK,
    PACIASP,
    PACIBSP,
    RET,
    WORD,
    branch,
    branch_link,
    pack,
)
from uftrace_agent.engine.aarch64.instruction import Instruction
from uftrace_agent.engine.moved import Moved, OutOfReachError
from uftrace_agent.runtime.layout import THUNK_BYTES, THUNK_COUNT, THUNK_SPAN, define

STUB_BYTES: Final = 64
_FRAME: Final = define("A64_STUB_FRAME")
_SAVE: Final = pack(0xA980_7BE0 | (-_FRAME // 8 & 0x7F) << 15)  # stp x0, x30, [sp, #-FRAME]!
_RESTORE: Final = pack(0xA8C0_7BE0 | (_FRAME // 8) << 15)  # ldp x0, x30, [sp], #FRAME
_RESTORE_FOR_THUNK: Final = pack(0xA8C0_7BE0 | (_FRAME // 8 - 2) << 15)
_BR_LINK: Final = pack(0xD61F_03C0)
# str x0, [sp, #FRAME - 8]: the key of the frame.
_STORE_KEY: Final = pack(0xF900_03E0 | (_FRAME // 8 - 1) << 10)
_MOST_OF_FRAME: Final = 4095
# ldr x30, [sp], #16; blr x30; adr x30, .; b
_THUNK: Final = (0xF841_07FE, 0xD63F_03C0, 0x1000_001E, 0x1400_0000)
assert define("A64_THUNK_RETURN") == 2 * WORD


@dataclass(frozen=True, slots=True)
class Signature:
    """How a function has signed its return address before a site."""

    undo: bytes = b""
    redo: bytes = b""


UNSIGNED: Final = Signature()
SIGNATURES: Final = {"a": Signature(AUTIASP, PACIASP), "b": Signature(AUTIBSP, PACIBSP)}


def entry_stub(
    at: int,
    probe: int,
    word: int,
    displaced: Instruction | None,
    resume: int,
    signature: Signature = UNSIGNED,
) -> bytes:
    """A stub at `at` whose probe leaves the return address alone.

    Args:
        at: Where the stub will lie.
        probe: The entry probe of the same code region.
        word: The id word (`layout.id_word`).
        displaced: None where the site was a nop or a sled: nothing is to be run.
        resume: Where the program goes on after the displaced instruction.
        signature: Of the return address, at the site.

    Raises:
        UnmovableError: The displaced instruction cannot run elsewhere.
        OutOfReachError: `resume`, or what it refers to, is too far away, or the stub
            would be too long.
    """
    head = signature.undo + _SAVE + _set_word(word)
    head += branch_link(at + len(head), probe) + _RESTORE
    return _with_tail(head + signature.redo, at, displaced, resume)


def paired_stub(
    at: int,
    probe: int,
    word: int,
    displaced: Instruction | None,
    resume: int,
    signature: Signature = UNSIGNED,
) -> bytes:
    """As `entry_stub`, for the paired probe.

    Raises:
        UnmovableError, OutOfReachError: As there.
    """
    head = signature.undo + _SAVE + _set_word(word)
    head += branch_link(at + len(head), probe) + _RESTORE_FOR_THUNK + _BR_LINK + _RESTORE
    return _with_tail(head + signature.redo, at, displaced, resume)


def call_stub(at: int, probe: int, word: int, frame: int, callee: int) -> bytes:
    """A stub that a patched `bl _mcount` calls; afterwards it goes where that went, so that
    a program built for gprof keeps its profile.

    Args:
        at: Where the stub will lie.
        probe: The probe for sites behind a prologue.
        word: The id word.
        frame: The function's stack pointer at its entry, counted from x29 (0 to 4,095).
        callee: What was called.

    Raises:
        OutOfReachError: The probe or the callee is too far away.
    """
    if not 0 <= frame <= _MOST_OF_FRAME:
        raise OutOfReachError(f"the frame is {frame} bytes long")
    head = _SAVE + pack(0x9100_03A0 | frame << 10) + _STORE_KEY + _set_word(word)
    head += branch_link(at + len(head), probe) + _RESTORE
    return _checked(head + branch(at + len(head), callee))


def unwinder_stub(
    at: int, find_fde: int, displaced: Instruction, resume: int, signature: Signature
) -> bytes:
    """A stub at the entry of _Unwind_Find_FDE, which returns an answer or goes on.

    Raises:
        UnmovableError, OutOfReachError: As `entry_stub`.
    """
    head = signature.undo + _SAVE
    head += branch_link(at + len(head), find_fde) + _RESTORE + RET + _RESTORE
    return _with_tail(head + signature.redo, at, displaced, resume)


# The bits above 31 of x0 are 0 then, as probes expect.
def _set_word(word: int) -> bytes:
    return pack(0x5280_0000 | (word & 0xFFFF) << 5, 0x72A0_0000 | (word >> 16) << 5)


def _with_tail(head: bytes, at: int, displaced: Instruction | None, resume: int) -> bytes:
    moved = displaced.moved_to(at + len(head)) if displaced else Moved(b"", True)
    code = head + moved.code
    if moved.falls_through:
        code += branch(at + len(code), resume)
    return _checked(code)


def _checked(code: bytes) -> bytes:
    if len(code) > STUB_BYTES:
        raise OutOfReachError(f"the stub would need {len(code)} bytes")
    # Nothing ever runs there.
    return code + BRK * ((STUB_BYTES - len(code)) // WORD)


def thunk_array(at: int, exit_probe: int) -> bytes:
    """All return thunks, 16 bytes each (target/aarch64.S, uf_exit).

    Raises:
        OutOfReachError: The probe is too far away.
    """
    branch(at, exit_probe)
    branch(at + THUNK_SPAN, exit_probe)
    thunks = np.empty((THUNK_COUNT, THUNK_BYTES // WORD), "<u4")
    thunks[:] = _THUNK
    last = at + np.arange(THUNK_COUNT, dtype=np.int64) * THUNK_BYTES + THUNK_BYTES - WORD
    thunks[:, 3] |= (((exit_probe - last) >> 2) & 0x03FF_FFFF).astype("<u4")
    return thunks.tobytes()


def unwind_entry(thunks: int) -> tuple[bytes, int]:
    """CIE and FDE of the whole thunk array, and the FDE's offset.

    It ends the stack there: the return address is undefined (DWARF 5, 6.4.4). libgcc, which
    the hook answers, never sees it; others could not go on, since no DWARF register holds
    the program counter that tells one thunk from another (AADWARF64, table "DWARF
    register names").
    """
    # Version 1, "zR", code alignment 4, data alignment -8, RA column 30, absolute
    # pointers; DW_CFA_def_cfa sp 0; DW_CFA_undefined 30.
    cie = _entry(struct.pack("<I", 0) + b"\x01zR\x00\x04\x78\x1e\x01\x00" + b"\x0c\x1f\x00\x07\x1e")
    fde = _entry(
        struct.pack("<I", len(cie) + 4)
        + struct.pack("<QQ", thunks - THUNK_BYTES, THUNK_SPAN + THUNK_BYTES)
        + b"\x00"
    )
    return cie + fde + b"\0\0\0\0", len(cie)


def _entry(body: bytes) -> bytes:
    padded = body.ljust(-(-(len(body) + 4) // 8) * 8 - 4, b"\0")
    return struct.pack("<I", len(padded)) + padded
