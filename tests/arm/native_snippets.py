"""Runs pieces of AArch64 code in this process, from any state of its registers.

No compiler is needed: what loads and saves the state is assembled here.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from uftrace_agent.engine.aarch64.encoding import branch, move_constant, pack

MIB: Final = 1 << 20
BASE: Final = 0x10_0000_0000
HOME_SIZE: Final = 4 * MIB
# Where copies lie, from BASE: near by, at both ends of a branch's reach, out of adrp's.
AREAS: Final = (HOME_SIZE, 120 * MIB, -123 * MIB, 9 << 30, -7 << 30)
_AREA_SIZE: Final = 2 * MIB
_DATA: Final = BASE + (1 << 32)
_DATA_SIZE: Final = 0x20000
# In the data: what is loaded, what was saved, the harness's stack pointer, the stack.
_IN: Final = _DATA
_OUT: Final = _DATA + 0x1000
_KEPT_SP: Final = _DATA + 0x2000
MEMORY: Final = _DATA + 0x4000
STACK: Final = _DATA + 0x18000
_MAP_FIXED_NOREPLACE: Final = 0x100000

# A state in memory: x0 to x30, sp, nzcv, fpsr, where control went; at 512 the vectors.
_STATE: Final = struct.Struct("<31QQQQQ")
_X30, _SP, _NZCV, _FPSR, _LANDING = 240, 248, 256, 264, 272
_VECTORS: Final = 512
STATE_BYTES: Final = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *3 * (ctypes.c_int,), ctypes.c_long)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


@dataclass(frozen=True, slots=True)
class State:
    """Registers.

    Attributes:
        general: x0 to x30.
        stack: The stack pointer.
        flags: NZCV, as the register has it.
        vectors: v0 to v31, as they lie in memory.
    """

    general: tuple[int, ...]
    stack: int
    flags: int
    vectors: bytes

    def packed(self) -> bytes:
        """For the harness."""
        head = _STATE.pack(*self.general, self.stack, self.flags, 0, 0)
        return head.ljust(_VECTORS, b"\0") + self.vectors


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a piece of code left.

    Attributes:
        landing: Where control went: the number of a landing.
        general: x0 to x30 and the stack pointer.
        registers: These, the flags, FPSR and the vectors.
        memory: What registers may point to, and the stack from its pointer on.
    """

    landing: int
    general: tuple[int, ...]
    registers: bytes
    memory: bytes


@dataclass
class _Area:
    start: int
    size: int
    used: int = 0
    exits: dict[int, int] = field(default_factory=dict)


class Process:
    """Memory of this process for code and data, at fixed places. A context manager.

    Code is put first, then sealed, then run.
    """

    def __init__(self) -> None:
        self._mapped: list[tuple[int, int]] = []
        self._map(_DATA, _DATA_SIZE)
        self._map(BASE, HOME_SIZE)
        self._areas = [_Area(BASE + distance, _AREA_SIZE) for distance in AREAS]
        # The harness for code at home is in the area behind it.
        self._words: dict[int, int] = {}
        for area in self._areas:
            self._map(area.start, area.size)
            common = self._put(area, _saver())
            for landing in range(1, 4):
                at = area.start + area.used
                area.exits[landing] = self._put(area, _exit(landing, at, common))

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exception: object) -> None:
        for address, size in self._mapped:
            _libc.munmap(address, size)

    def land(self, address: int, landing: int) -> None:
        """Make an address at home a landing: one word."""
        _write(address, branch(address, self._areas[0].exits[landing]))

    def room(self, area: int) -> int:
        """Where the next copy in an area will lie."""
        return self._areas[area].start + self._areas[area].used

    def put(self, area: int, code: bytes, back: int | None) -> int:
        """Put a copy where `room` said, and a branch back behind it, or a landing 1."""
        chosen = self._areas[area]
        end = self.room(area) + len(code)
        return self._put(chosen, code + branch(end, back or chosen.exits[1]))

    def start(self, area: int, code: int) -> int:
        """Put what loads a state and goes to `code`; the address is for `run`."""
        chosen = self._areas[area]
        loader = _loader()
        at = chosen.start + chosen.used
        return self._put(chosen, loader + branch(at + len(loader), code))

    def seal(self) -> None:
        """Make code executable; the kernel then makes it visible to instruction fetch."""
        for start, size in [(BASE, HOME_SIZE), *((one.start, one.size) for one in self._areas)]:
            if _libc.mprotect(start, size, mmap.PROT_READ | mmap.PROT_EXEC):
                raise OSError(ctypes.get_errno(), "mprotect")

    def run(self, start: int, state: State, memory: bytes) -> Outcome:
        """Run from a state, with such memory at `MEMORY` and up to the end of the stack."""
        _write(_IN, state.packed())
        _write(MEMORY, memory)
        ctypes.CFUNCTYPE(None)(start)()
        out = ctypes.string_at(_OUT, STATE_BYTES)
        *general, _, _, landing = _STATE.unpack(out[: _STATE.size])
        stack = general[-1]
        left = bytearray(ctypes.string_at(MEMORY, len(memory)))
        # What is below the stack pointer is nobody's; the harness uses it.
        low = min(stack, state.stack)
        left[low - 0x1000 - MEMORY : stack - MEMORY] = bytes(stack - low + 0x1000)
        registers = out[:_LANDING] + out[_VECTORS:]
        return Outcome(landing, tuple(general), registers, bytes(left))

    def _map(self, address: int, size: int) -> None:
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE
        if _libc.mmap(address, size, protection, flags, -1, 0) != address:
            raise OSError(ctypes.get_errno(), f"mmap of {address:#x}")
        self._mapped.append((address, size))

    def _put(self, area: _Area, code: bytes) -> int:
        at = area.start + area.used
        area.used += len(code)
        assert area.used <= area.size
        _write(at, code)
        return at


def _write(address: int, data: bytes) -> None:
    ctypes.memmove(address, data, len(data))


def write_home(words: Mapping[int, int]) -> None:
    """Put instructions or data at home, by address."""
    for address, word in words.items():
        _write(address, pack(word))


def _loader() -> bytes:
    # A function without arguments: keep what the caller's code relies on, load the rest.
    words = [0xA980_0000 | _pair(first, first + 1, 31, -16) for first in range(19, 29, 2)]
    words += [0xA980_0000 | _pair(29, 30, 31, -16)]
    words += [0xAD80_0000 | _pair_q(first, 31, -32) for first in range(8, 16, 2)]
    keep = move_constant(1, _KEPT_SP) + pack(0x9100_03E2, 0xF900_0022)  # mov x2, sp; str x2, [x1]
    load = move_constant(30, _IN)
    vectors = [0xAD40_0000 | _pair_q(first, 30, _VECTORS + 16 * first) for first in range(0, 32, 2)]
    special = [
        0xF940_0000 | _NZCV // 8 << 10 | 30 << 5 | 1,
        0xD51B_4201,  # msr nzcv, x1
        0xF940_0000 | _FPSR // 8 << 10 | 30 << 5 | 1,
        0xD51B_4421,  # msr fpsr, x1
        0xF940_0000 | _SP // 8 << 10 | 30 << 5 | 1,
        0x9100_003F,  # mov sp, x1
    ]
    general = [0xA940_0000 | _pair(first, first + 1, 30, 8 * first) for first in range(0, 30, 2)]
    last = 0xF940_0000 | _X30 // 8 << 10 | 30 << 5 | 30
    return pack(*words) + keep + load + pack(*vectors, *special, *general, last)


# Where a landing leads: x30 becomes its number; x30 is kept below the stack pointer.
def _exit(landing: int, at: int, common: int) -> bytes:
    keep = pack(0xF81F_0FFE) + move_constant(30, landing)  # str x30, [sp, #-16]!
    return keep + branch(at + len(keep), common)


def _saver() -> bytes:
    base = pack(0xF900_07E0) + move_constant(0, _OUT)  # str x0, [sp, #8]
    general = [0xF900_0000 | _LANDING // 8 << 10 | 30]  # str x30
    general += [0xF900_0401]  # str x1, [x0, #8]
    general += [0xA900_0000 | _pair(first, first + 1, 0, 8 * first) for first in range(2, 30, 2)]
    special = [
        *(0xF940_03E1, 0xF900_0001 | _X30 // 8 << 10),  # ldr x1, [sp]; str x1
        *(0xF940_07E1, 0xF900_0001),  # ldr x1, [sp, #8]; str x1, [x0]
        *(0x9100_43E1, 0xF900_0001 | _SP // 8 << 10),  # add x1, sp, #16; str x1
        *(0xD53B_4201, 0xF900_0001 | _NZCV // 8 << 10),  # mrs x1, nzcv; str x1
        *(0xD53B_4421, 0xF900_0001 | _FPSR // 8 << 10),  # mrs x1, fpsr; str x1
    ]
    vectors = [0xAD00_0000 | _pair_q(first, 0, _VECTORS + 16 * first) for first in range(0, 32, 2)]
    back = move_constant(1, _KEPT_SP) + pack(0xF940_0022, 0x9100_005F)  # ldr x2, [x1]; mov sp, x2
    words = [0xACC0_0000 | _pair_q(first, 31, 32) for first in range(14, 6, -2)]
    words += [0xA8C0_0000 | _pair(29, 30, 31, 16)]
    words += [0xA8C0_0000 | _pair(first, first + 1, 31, 16) for first in range(27, 17, -2)]
    return base + pack(*general, *special, *vectors) + back + pack(*words, 0xD65F_03C0)


def _pair(first: int, second: int, base: int, offset: int) -> int:
    return (offset // 8 & 0x7F) << 15 | second << 10 | base << 5 | first


def _pair_q(first: int, base: int, offset: int) -> int:
    return (offset // 16 & 0x7F) << 15 | first + 1 << 10 | base << 5 | first
