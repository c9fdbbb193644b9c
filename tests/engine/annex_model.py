"""The real runtime blob and its data in a `Machine`, filled as the agent fills them."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import unicorn
from unicorn import x86_const as x86

from tests.engine.machine import GPR_NAMES, PAGE, Machine, Outcome, State, random_state
from uftrace_agent.engine.x86_64 import stub as stubs
from uftrace_agent.runtime.blob import load_blob
from uftrace_agent.runtime.layout import (
    DIRECTORY_BYTES,
    PARAM_BYTES,
    RECORD_BYTES,
    RING_HEADER_BYTES,
    SLOT_BYTES,
    SLOT_TABLE_BYTES,
    THUNK_BYTES,
    THUNK_COUNT,
    THUNK_SPAN,
    define,
)

CODE: Final = 0x5555_5400_0000
STUBS: Final = CODE + 0x4000
THUNKS: Final = CODE + 0x10_0000
CONTROL: Final = CODE + 0x1000_0000  # within reach of the thunks
DIRECTORY: Final = CONTROL + PAGE
SLOTS: Final = DIRECTORY + DIRECTORY_BYTES
TRAPS: Final = SLOTS + SLOT_TABLE_BYTES
TRAP_ROOM: Final = 1024  # entries that fit into the model's table of traps
RINGS: Final = 0x6100_0000_0000
RING_DATA: Final = RINGS + PAGE
RING_COUNT: Final = 3
PROGRAM: Final = 0x5555_5000_0000  # within reach of CODE
RETURN: Final = PROGRAM + 0x8000_1234
TID: Final = 4711
TID_OFFSET: Final = 0x2D0
SYSCALL_GETTID: Final = 186
SYSCALL_GETPID: Final = 39
_TRAP_BYTES: Final = define("TRAPS_ENTRIES") + TRAP_ROOM * define("TRAP_BYTES")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a ring."""

    ticks: int
    kind: int
    function_id: int
    key: int


def thunk_return(index: int) -> int:
    """The return address that a function has whose exit is thunk `index`."""
    return THUNKS + index * THUNK_BYTES + define("THUNK_RETURN")


class AnnexModel:
    """What the engine leaves in a process, and one thread of it.

    Args:
        ring_bytes: Size of one ring.
        tid_offset: As in the parameter block.
    """

    def __init__(self, ring_bytes: int = 16384, tid_offset: int = TID_OFFSET) -> None:
        self.machine = Machine()
        self.ring_bytes = ring_bytes
        self.blob = load_blob("x86_64")
        self.unwind_entry, self.fde_offset = stubs.unwind_entry(THUNKS, SLOTS)
        self.tid = TID
        self.system_calls: list[tuple[int, ...]] = []
        for start, size in (
            (CODE, 0x10000),
            (THUNKS, THUNK_SPAN),
            (CONTROL, PAGE + DIRECTORY_BYTES + SLOT_TABLE_BYTES + _TRAP_BYTES),
            (RINGS, PAGE + RING_COUNT * ring_bytes),
            (PROGRAM, 0x10000),
        ):
            self.machine.map(start, size)
        code = bytearray(self.blob.code)
        code[:PARAM_BYTES] = self._parameters(tid_offset)
        at = self.blob.symbols["uf_unwind_fde"]
        code[at : at + len(self.unwind_entry)] = self.unwind_entry
        self.machine.write(CODE, bytes(code))
        self.machine.write(THUNKS, stubs.thunk_array(THUNKS, self.symbol("uf_exit"), SLOTS))
        self.enable(True)
        self.machine.cpu.hook_add(
            unicorn.UC_HOOK_INSN, self._system_call, aux1=x86.UC_X86_INS_SYSCALL
        )

    def _parameters(self, tid_offset: int) -> bytes:
        block = bytearray(PARAM_BYTES)
        for name, value in {
            "CONTROL": CONTROL,
            "DIRECTORY": DIRECTORY,
            "SLOTS": SLOTS,
            "THUNKS": THUNKS,
            "TID_OFFSET": tid_offset & (1 << 64) - 1,
            "RING_HEADERS": RINGS,
            "RING_DATA": RING_DATA,
            "RING_BYTES": self.ring_bytes,
            "RING_COUNT": RING_COUNT,
            "FDE_OFFSET": self.fde_offset,
            "TRAPS": TRAPS,
        }.items():
            offset = define(f"PARAM_{name}")
            block[offset : offset + 8] = value.to_bytes(8, "little")
        return bytes(block)

    # Its number and first arguments are remembered; both ids are the tid.
    def _system_call(self, cpu: unicorn.Uc, data: object) -> None:
        names = ("RAX", "RDI", "RSI", "RDX", "R10")
        call = tuple(cpu.reg_read(getattr(x86, f"UC_X86_REG_{name}")) for name in names)
        self.system_calls.append(call)
        is_question = call[0] in (SYSCALL_GETTID, SYSCALL_GETPID)
        cpu.reg_write(x86.UC_X86_REG_RAX, self.tid if is_question else 0)
        # As the processor does (Intel SDM volume 2, SYSCALL).
        cpu.reg_write(x86.UC_X86_REG_RCX, cpu.reg_read(x86.UC_X86_REG_RIP))
        cpu.reg_write(x86.UC_X86_REG_R11, cpu.reg_read(x86.UC_X86_REG_EFLAGS))

    def symbol(self, name: str) -> int:
        """Live address of an entry point of the blob."""
        return CODE + self.blob.symbols[name]

    # -- the program -------------------------------------------------------

    def state(self, seed: int, flags: int | None = None) -> State:
        """Registers of a thread that has just been called from before `RETURN`."""
        state = random_state(random.Random(seed))
        # The thread pointer points to itself (x86-64 TLS ABI).
        self.write_word(state.fs_base, state.fs_base)
        self.machine.write(state.fs_base + TID_OFFSET, struct.pack("<I", self.tid))
        self.write_word(stack_pointer(state), RETURN)
        return state if flags is None else replace(state, flags=flags)

    def read_word(self, address: int) -> int:
        """Eight bytes."""
        return int.from_bytes(self.machine.read(address, 8), "little")

    def write_word(self, address: int, value: int) -> None:
        """Eight bytes."""
        self.machine.write(address, value.to_bytes(8, "little"))

    # -- the annex ---------------------------------------------------------

    def enable(self, on: bool) -> None:
        """The control word."""
        self.machine.write(CONTROL, struct.pack("<I", on))

    def write_traps(self, entries: Sequence[tuple[int, int, int]]) -> None:
        """The table of traps: (address, target, return address), in the order given."""
        rows = b"".join(struct.pack("<QQQ", *entry) for entry in entries)
        if rows:
            self.machine.write(TRAPS + define("TRAPS_ENTRIES"), rows)
        self.write_word(TRAPS + define("TRAPS_COUNT"), len(entries))

    def write_programs_action(self, handler: int) -> None:
        """What the program itself wants done with SIGTRAP."""
        self.write_word(TRAPS + define("TRAPS_PROGRAMS"), handler)

    def write_slot(self, index: int, address: int, word: int) -> None:
        """One slot of the table of return addresses."""
        self.machine.write(SLOTS + index * SLOT_BYTES, struct.pack("<QQQQ", address, word, 0, 0))

    def slot_of(self, thunk: int) -> tuple[int, int]:
        """(return address, id word) behind a thunk."""
        assert THUNKS <= thunk < THUNKS + THUNK_SPAN, hex(thunk)
        assert thunk % THUNK_BYTES == define("THUNK_RETURN"), hex(thunk)
        at = SLOTS + (thunk - THUNKS) // THUNK_BYTES * SLOT_BYTES
        address, word, *_ = struct.unpack("<QQQQ", self.machine.read(at, SLOT_BYTES))
        return address, word

    def fill_slots(self) -> None:
        """Leave no room in the table of return addresses."""
        self.machine.write(SLOTS, struct.pack("<QQQQ", 1, 2, 0, 0) * THUNK_COUNT)

    def ring_word(self, ring: int, name: str) -> int:
        """A word of a ring's header, such as LOST."""
        return self.read_word(RINGS + ring * RING_HEADER_BYTES + define(f"RING_{name}"))

    def write_ring_word(self, ring: int, name: str, value: int) -> None:
        """Set a word of a ring's header."""
        self.write_word(RINGS + ring * RING_HEADER_BYTES + define(f"RING_{name}"), value)

    def records(self, ring: int) -> list[Record]:
        """The records of the first lap."""
        start = RING_DATA + ring * self.ring_bytes
        found = []
        for at in range(start, start + self.ring_bytes, RECORD_BYTES):
            ticks, word = struct.unpack("<QQ", self.machine.read(at, RECORD_BYTES))
            if not word & 1:
                break
            kind = word >> define("KIND_SHIFT") & 7
            key = word >> define("KEY_SHIFT")
            found.append(Record(ticks, kind, word >> define("ID_SHIFT") & define("ID_MAX"), key))
        return found

    def run(self, start: int, state: State, *exits: int) -> Outcome:
        """Run; what is written stays."""
        return self.machine.run(start, state, exits, keep=True)


def stack_pointer(state: State) -> int:
    """rsp."""
    return state.gprs[GPR_NAMES.index("rsp")]


def with_register(state: State, name: str, value: int) -> State:
    """The state with another value of one register."""
    gprs = list(state.gprs)
    gprs[GPR_NAMES.index(name)] = value
    return replace(state, gprs=tuple(gprs))


def key_of(slot: int) -> int:
    """The frame key of a return slot's address."""
    return slot >> 3 & (1 << 36) - 1
