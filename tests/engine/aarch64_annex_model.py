"""The real AArch64 runtime blob and its data in an emulator, filled as the agent fills them."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import Final

import unicorn
from unicorn import arm64_const as arm64

from uftrace_agent.engine.aarch64 import stub as stubs
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

PAGE: Final = 4096
CODE: Final = 0xAAAA_5400_0000
STUBS: Final = CODE + 0x8000
THUNKS: Final = CODE + 0x10_0000
CONTROL: Final = 0xFFFF_1000_0000
DIRECTORY: Final = CONTROL + PAGE
SLOTS: Final = DIRECTORY + DIRECTORY_BYTES
RINGS: Final = 0xFFFF_4000_0000
RING_DATA: Final = RINGS + PAGE
RING_COUNT: Final = 3
PROGRAM: Final = 0xAAAA_5000_0000  # within reach of CODE
RETURN: Final = PROGRAM + 0x9234
STACK_PAGES: Final = 0xFFFF_7000_0000
STACK: Final = STACK_PAGES + 0x8000
TLS_PAGES: Final = 0xFFFF_6000_0000
TID: Final = 4711
# As glibc has it: so far below the thread pointer.
TID_BELOW: Final = 0x670
TID_OFFSET: Final = define("A64_TID_BIAS") - TID_BELOW
NZCV: Final = 0xF000_0000
_GETTID: Final = 178
_TIMEOUT: Final = 5_000_000  # microseconds
_X: Final = (
    *(getattr(arm64, f"UC_ARM64_REG_X{number}") for number in range(29)),
    arm64.UC_ARM64_REG_X29,
    arm64.UC_ARM64_REG_X30,
)
_V: Final = tuple(getattr(arm64, f"UC_ARM64_REG_Q{number}") for number in range(32))


@dataclass(frozen=True, slots=True)
class State:
    """What a program can see of the processor, apart from the program counter."""

    x: tuple[int, ...]
    sp: int
    nzcv: int
    v: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a ring."""

    kind: int
    function_id: int
    key: int


class AnnexModel:
    """What the engine leaves in a process, and one thread of it.

    Args:
        ring_bytes: Size of one ring.
        tid_offset: As in the parameter block.
    """

    def __init__(self, ring_bytes: int = 16384, tid_offset: int = TID_OFFSET) -> None:
        self.cpu = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self.cpu.ctl_set_cpu_model(arm64.UC_CPU_ARM64_MAX)
        self.ring_bytes = ring_bytes
        self.blob = load_blob("aarch64")
        self.system_calls: list[int] = []
        self.written: set[int] = set()
        self.executed = 0
        unwind_entry, self.fde_offset = stubs.unwind_entry(THUNKS)
        for start, size in (
            (CODE, 0x10000),
            (THUNKS, THUNK_SPAN),
            (CONTROL, PAGE + DIRECTORY_BYTES + SLOT_TABLE_BYTES),
            (RINGS, PAGE + RING_COUNT * ring_bytes),
            (PROGRAM, 0x10000),
            (STACK_PAGES, 0x10000),
            (TLS_PAGES, 0x4000),
        ):
            self.cpu.mem_map(start, size)
        self.thread_pointer = TLS_PAGES + 0x1700
        code = bytearray(self.blob.code)
        code[:PARAM_BYTES] = self._parameters(tid_offset)
        at = self.blob.symbols["uf_unwind_fde"]
        code[at : at + len(unwind_entry)] = unwind_entry
        self.cpu.mem_write(CODE, bytes(code))
        self.cpu.mem_write(THUNKS, stubs.thunk_array(THUNKS, self.symbol("uf_exit")))
        self.cpu.mem_write(self.thread_pointer - TID_BELOW, struct.pack("<I", TID))
        self.enable(True)
        self.cpu.hook_add(unicorn.UC_HOOK_INTR, self._system_call)
        self.cpu.hook_add(unicorn.UC_HOOK_MEM_WRITE, self._on_write)
        self.cpu.hook_add(unicorn.UC_HOOK_CODE, self._on_instruction)
        self.cpu.reg_write(arm64.UC_ARM64_REG_TPIDR_EL0, self.thread_pointer)

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
        }.items():
            offset = define(f"PARAM_{name}")
            block[offset : offset + 8] = value.to_bytes(8, "little")
        return bytes(block)

    def _system_call(self, cpu: unicorn.Uc, number: int, data: object) -> None:
        self.system_calls.append(cpu.reg_read(arm64.UC_ARM64_REG_X8))
        cpu.reg_write(arm64.UC_ARM64_REG_X0, TID if self.system_calls[-1] == _GETTID else 0)

    def _on_write(
        self, cpu: unicorn.Uc, access: int, address: int, size: int, value: int, data: object
    ) -> None:
        self.written.update(range(address, address + size))

    def _on_instruction(self, cpu: unicorn.Uc, address: int, size: int, data: object) -> None:
        self.executed += 1

    def symbol(self, name: str) -> int:
        """Live address of an entry point of the blob."""
        return CODE + self.blob.symbols[name]

    def enable(self, on: bool) -> None:
        """The control word."""
        self.cpu.mem_write(CONTROL, struct.pack("<I", on))

    def write(self, address: int, data: bytes) -> None:
        """Put bytes there."""
        self.cpu.mem_write(address, data)
        self.cpu.ctl_remove_cache(address, address + len(data))

    def word(self, address: int) -> int:
        """Eight bytes."""
        return int.from_bytes(self.cpu.mem_read(address, 8), "little")

    def write_word(self, address: int, value: int) -> None:
        """Eight bytes."""
        self.cpu.mem_write(address, value.to_bytes(8, "little"))

    def slot_of(self, thunk: int) -> tuple[int, int]:
        """(return address, id word) behind a return address that leads to a thunk."""
        assert THUNKS <= thunk < THUNKS + THUNK_SPAN, hex(thunk)
        assert thunk % THUNK_BYTES == define("A64_THUNK_RETURN"), hex(thunk)
        at = SLOTS + (thunk - THUNKS) // THUNK_BYTES * SLOT_BYTES
        return self.word(at), self.word(at + 8)

    def fill_slots(self) -> None:
        """Leave no room in the table of return addresses."""
        self.cpu.mem_write(SLOTS, struct.pack("<QQQQ", 1, 2, 0, 0) * THUNK_COUNT)

    def ring_word(self, ring: int, name: str) -> int:
        """A word of a ring's header, such as LOST."""
        return self.word(RINGS + ring * RING_HEADER_BYTES + define(f"RING_{name}"))

    def records(self, ring: int) -> list[Record]:
        """The records of the first lap."""
        start = RING_DATA + ring * self.ring_bytes
        found = []
        for at in range(start, start + self.ring_bytes, RECORD_BYTES):
            word = self.word(at + 8)
            if not word & 1:
                break
            kind = word >> define("KIND_SHIFT") & 7
            key = word >> define("KEY_SHIFT")
            found.append(Record(kind, word >> define("ID_SHIFT") & define("ID_MAX"), key))
        return found

    def state(self, seed: int) -> State:
        """Registers of a thread that has just been called from before `RETURN`."""
        rng = random.Random(seed)
        x = [rng.getrandbits(64) for _ in range(31)]
        x[29] = STACK + 0x100
        x[30] = RETURN
        v = tuple(rng.getrandbits(128) for _ in _V)
        return State(tuple(x), STACK, rng.getrandbits(32) & NZCV, v)

    def run(self, start: int, state: State, *exits: int) -> int:
        """Run to one of the exits; where it ended. What is written stays.

        Raises:
            AssertionError: It ended elsewhere.
        """
        cpu = self.cpu
        for number, value in zip(_X, state.x, strict=True):
            cpu.reg_write(number, value)
        for number, value in zip(_V, state.v, strict=True):
            cpu.reg_write(number, value)
        cpu.reg_write(arm64.UC_ARM64_REG_SP, state.sp)
        cpu.reg_write(arm64.UC_ARM64_REG_NZCV, state.nzcv)
        self.written.clear()
        self.executed = 0
        cpu.ctl_exits_enabled(True)
        cpu.ctl_flush_tb()
        cpu.ctl_set_exits(list(exits))
        cpu.emu_start(start, 0, timeout=_TIMEOUT)
        pc: int = cpu.reg_read(arm64.UC_ARM64_REG_PC)
        assert pc in exits, hex(pc)
        return pc

    def now(self) -> State:
        """All registers."""
        cpu = self.cpu
        return State(
            tuple(cpu.reg_read(number) for number in _X),
            cpu.reg_read(arm64.UC_ARM64_REG_SP),
            cpu.reg_read(arm64.UC_ARM64_REG_NZCV) & NZCV,
            tuple(cpu.reg_read(number) for number in _V),
        )


def key_of(sp: int) -> int:
    """The frame key of a stack pointer."""
    return sp >> 3 & (1 << 36) - 1
