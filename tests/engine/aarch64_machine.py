"""Runs one AArch64 instruction, or what became of it elsewhere, in an emulator.

The emulator's whole state is compared as it lies in memory (`context_save`), so that
nothing that it knows of a processor is left out: registers, flags, vector registers,
FPCR and FPSR, the exclusive monitor, exceptions.
"""

from __future__ import annotations

import ctypes
import mmap
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import unicorn
from unicorn import arm64_const as arm64

BASE: Final = 0x20_0000_0000
MIB: Final = 1 << 20
PAGE: Final = 4096
SLOT: Final = 64
AREA: Final = MIB
MEMORY: Final = 0x30_0000_0000
_MEMORY_SIZE: Final = 0x10000
_STACK_AT: Final = 0xC000
# Where nothing is and nobody goes.
_NOWHERE: Final = 0x7F_0000_0000
# In a saved context: what is before the processor's state, and, in that
# (CPUARMState of target/arm/cpu.h), the program counter and BTYPE.
_HEADER: Final = 40
PC_AT: Final = 320
BTYPE_AT: Final = 552
# The most that a copy executes, with the branch back.
_WORDS: Final = 8
_UNCHANGED: Final = b""


class Block:
    """Memory that the emulator and this process share.

    Args:
        size: In bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = -(-size // PAGE) * PAGE
        self.bytes = mmap.mmap(-1, self.size)
        self.pointer = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))


def traps(size: int, seed: int) -> bytes:
    """Code of `brk` with random numbers: at some noise the emulator aborts."""
    numbers = np.frombuffer(random.Random(seed).randbytes(size // 2), "<u2")
    return (0xD420_0000 | numbers.astype("<u4") << 5).astype("<u4").tobytes()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left.

    Attributes:
        error: Of unicorn; 0 for none.
        pc: Where control went, or the instruction that faulted.
        state: The rest of the processor's state.
        memory: What registers point to; nothing if it has not changed.
    """

    error: int
    pc: int
    state: bytes
    memory: bytes


class Machine:
    """One emulated processor.

    Args:
        image: What lies at `BASE`.
        areas: Distances from `BASE` at which copies may lie; `AREA` bytes each.
        states: How many random states there are to start from.
        seed: Decides them.
    """

    def __init__(self, image: bytes, areas: Sequence[int], states: int = 16, seed: int = 1) -> None:
        rng = random.Random(seed)
        self._uc = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self._uc.ctl_set_cpu_model(arm64.UC_CPU_ARM64_MAX)
        self.size = -(-len(image) // PAGE) * PAGE
        self._image = self._map(BASE, self.size)
        self._image.bytes[: len(image)] = image
        self._pristine_image = bytes(self._image.bytes)
        self._areas = [(BASE + distance, self._map(BASE + distance, AREA)) for distance in areas]
        self._used = [0] * len(areas)
        writable = unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE
        memory = self._map(MEMORY, _MEMORY_SIZE, writable)
        self._memory = np.frombuffer(memory.bytes, np.uint64)
        self._pristine = np.frombuffer(rng.randbytes(_MEMORY_SIZE), np.uint64)
        self._memory[:] = self._pristine
        self._states = [self._random_state(rng) for _ in range(states)]

    @property
    def states(self) -> int:
        """How many there are to start from."""
        return len(self._states)

    @property
    def areas(self) -> int:
        """How many there are for copies."""
        return len(self._areas)

    def write(self, words: Mapping[int, int]) -> None:
        """Put instructions into the image, by address."""
        for address, word in words.items():
            offset = address - BASE
            self._image.bytes[offset : offset + 4] = word.to_bytes(4, "little")
        self._forget()

    def slot(self, area: int) -> int:
        """An address for the next copy, aligned to a word only."""
        address, block = self._areas[area]
        if self._used[area] + 2 * SLOT > block.size:
            self._used[area] = 0
            self._forget()
        at = self._used[area]
        self._used[area] += SLOT + 4
        return address + at

    def put(self, address: int, code: bytes) -> None:
        """Put a copy where `slot` said; nothing has run there."""
        for start, block in self._areas:
            if start <= address < start + block.size:
                block.bytes[address - start : address - start + len(code)] = code
                return
        raise ValueError(f"{address:#x} is in no area")

    def run(self, state: int, start: int, size: int = 4) -> Outcome:
        """Execute from one of the states until control leaves `size` bytes of code.

        A step at a time: code that was run before stops nowhere else.
        """
        self._uc.context_restore(self._states[state])
        error = 0
        pc = start
        try:
            for _ in range(_WORDS):
                self._uc.emu_start(pc, _NOWHERE, count=1)
                pc = self._uc.reg_read(arm64.UC_ARM64_REG_PC)
                if not start <= pc < start + size:
                    break
        except unicorn.UcError as failure:
            error = failure.errno
        context = self._uc.context_save()
        after = bytearray(ctypes.string_at(context.context, context.size)[_HEADER:])
        pc = int.from_bytes(after[PC_AT : PC_AT + 8], "little")
        after[PC_AT : PC_AT + 8] = bytes(8)
        if any(address <= pc < address + AREA for address, _ in self._areas):
            self._forget()
        memory = _UNCHANGED
        if not np.array_equal(self._memory, self._pristine):
            memory = self._memory.tobytes()
            self._memory[:] = self._pristine
        return Outcome(error, pc, bytes(after), memory)

    def below_stack(self, outcome: Outcome, state: int, size: int) -> Outcome:
        """The same without what it left directly below the stack pointer it began with."""
        if not outcome.memory:
            return outcome
        memory = bytearray(outcome.memory)
        pristine = self._pristine.tobytes()
        end = self._states[state].reg_read(arm64.UC_ARM64_REG_SP) - MEMORY
        memory[end - size : end] = pristine[end - size : end]
        kept = _UNCHANGED if memory == pristine else bytes(memory)
        return Outcome(outcome.error, outcome.pc, outcome.state, kept)

    def restore_image(self) -> None:
        """After a run of code that is wrong: put back what it may have written."""
        self._image.bytes[: self.size] = self._pristine_image
        self._forget()

    # The emulator does not see what is written behind its back, where other code was
    # before or where it looked ahead.
    def _forget(self) -> None:
        self._uc.ctl_flush_tb()

    def _map(self, address: int, size: int, protection: int = unicorn.UC_PROT_ALL) -> Block:
        block = Block(size)
        self._uc.mem_map_ptr(address, block.size, protection, block.pointer)
        return block

    def _random_state(self, rng: random.Random) -> unicorn.unicorn.UcContext:
        for number in range(31):
            self._uc.reg_write(_register(number), _random_value(rng))
        stack = MEMORY + _STACK_AT + 16 * rng.randrange(-64, 64)
        self._uc.reg_write(arm64.UC_ARM64_REG_SP, stack)
        self._uc.reg_write(arm64.UC_ARM64_REG_NZCV, rng.randrange(16) << 28)
        self._uc.reg_write(arm64.UC_ARM64_REG_FPCR, rng.choice((0, rng.randrange(16) << 22)))
        self._uc.reg_write(arm64.UC_ARM64_REG_TPIDR_EL0, MEMORY + 8 * rng.randrange(512))
        for number in range(32):
            vector = rng.getrandbits(rng.choice((32, 64, 128)))
            self._uc.reg_write(arm64.UC_ARM64_REG_V0 + number, vector)
        return self._uc.context_save()


def _register(number: int) -> int:
    special = {29: arm64.UC_ARM64_REG_X29, 30: arm64.UC_ARM64_REG_X30}
    return special.get(number, arm64.UC_ARM64_REG_X0 + number)


def _random_value(rng: random.Random) -> int:
    kind = rng.random()
    if kind < 0.6:
        return MEMORY + rng.randrange(256, _STACK_AT - 4096) // 16 * 16
    if kind < 0.7:
        return MEMORY + rng.randrange(256, _STACK_AT - 4096)
    if kind < 0.85:
        return rng.choice((0, 0, 0, 1, (1 << 64) - 1, rng.getrandbits(32) << 32))
    if kind < 0.92:
        return rng.getrandbits(8)
    return rng.getrandbits(64)
