"""An x86-64 processor (Unicorn) whose state before and after can be compared."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import unicorn
from unicorn import x86_const as x86

PAGE: Final = 4096
# Everything that register operands point to lies below this.
LOW_MEMORY: Final = 64 << 20
STACK: Final = 0x1800000
_TIMEOUT: Final = 5_000_000  # microseconds
GPR_NAMES: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *(f"r{number}" for number in range(8, 16)),
)
GPRS: Final = tuple(getattr(x86, f"UC_X86_REG_{name.upper()}") for name in GPR_NAMES)
XMMS: Final = tuple(getattr(x86, f"UC_X86_REG_XMM{number}") for number in range(16))
YMMS: Final = tuple(getattr(x86, f"UC_X86_REG_YMM{number}") for number in range(16))
# CF PF AF ZF SF DF OF
FLAGS: Final = 0x0CD5
_ALL: Final = (*GPRS, x86.UC_X86_REG_EFLAGS, *XMMS, x86.UC_X86_REG_FS_BASE)


@dataclass(frozen=True, slots=True)
class State:
    """What a program can see of the processor, apart from the program counter."""

    gprs: tuple[int, ...]
    flags: int
    vectors: tuple[int, ...]
    fs_base: int = 0x200000

    def values(self) -> list[int]:
        """As `Machine` keeps them."""
        return [*self.gprs, self.flags | 2, *self.vectors, self.fs_base]

    def differences(self, other: State) -> list[str]:
        """Names of what is not the same."""
        names = [n for n, a, b in zip(GPR_NAMES, self.gprs, other.gprs, strict=True) if a != b]
        if self.flags & FLAGS != other.flags & FLAGS:
            names.append(f"flags {self.flags & FLAGS:#x} {other.flags & FLAGS:#x}")
        pairs = enumerate(zip(self.vectors, other.vectors, strict=True))
        return names + [f"xmm{number}" for number, (a, b) in pairs if a != b]


def random_state(rng: random.Random) -> State:
    """Registers that can be used as addresses and counts; rsp is in the stack."""
    gprs = [rng.randrange(0x100000, 0x200000) for _ in GPRS]
    gprs[GPR_NAMES.index("rcx")] = rng.choice((0, 1, 2, 3))
    gprs[GPR_NAMES.index("rsp")] = STACK
    flags = rng.getrandbits(12) & FLAGS & ~0x400
    return State(tuple(gprs), flags, tuple(rng.getrandbits(128) for _ in XMMS))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did.

    Attributes:
        state: Registers afterwards.
        pc: Program counter afterwards.
        memory: Every byte that was written, as it is afterwards, by address.
        error: What stopped it, if neither an exit nor a jump out of the code.
    """

    state: State
    pc: int
    memory: dict[int, int]
    error: str


class Machine:
    """Runs code and takes back what it wrote, so that the next run finds the same.

    The low memory is full of noise and cannot be executed.
    """

    def __init__(self, seed: int = 1) -> None:
        self.cpu = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.cpu.mem_map(0, LOW_MEMORY, unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE)
        self.cpu.mem_write(0, random.Random(seed).randbytes(LOW_MEMORY))
        self.cpu.ctl_exits_enabled(True)
        self._contexts: dict[State, unicorn.UcContext] = {}
        self._written: list[tuple[int, bytes]] = []
        self.cpu.hook_add(unicorn.UC_HOOK_MEM_WRITE, self._on_write)

    def _on_write(
        self, cpu: unicorn.Uc, access: int, address: int, size: int, value: int, data: object
    ) -> None:
        self._written.append((address, bytes(cpu.mem_read(address, size))))

    def map(self, address: int, size: int) -> None:
        """Executable memory of zeros, from and to page borders around the range."""
        start = address // PAGE * PAGE
        self.cpu.mem_map(start, -(-(address + size - start) // PAGE) * PAGE)

    def has(self, address: int) -> bool:
        """Whether there is memory."""
        return any(start <= address <= last for start, last, _ in self.cpu.mem_regions())

    def write(self, address: int, data: bytes) -> None:
        """Put bytes there; they stay."""
        self.cpu.mem_write(address, data)
        self.cpu.ctl_remove_cache(address, address + len(data))

    def read(self, address: int, size: int) -> bytes:
        """Bytes as they are now."""
        return bytes(self.cpu.mem_read(address, size))

    def _set_state(self, state: State) -> None:
        # Setting registers one by one costs more than running.
        context = self._contexts.get(state)
        if context is None:
            self.cpu.reg_write_batch(list(zip(_ALL, state.values(), strict=True)))
            self._contexts[state] = self.cpu.context_save()
        else:
            self.cpu.context_restore(context)

    def state(self) -> State:
        """All registers."""
        *values, fs_base = self.cpu.reg_read_batch(list(_ALL))
        count = len(GPRS)
        return State(tuple(values[:count]), values[count], tuple(values[count + 1 :]), fs_base)

    def run(self, start: int, state: State, exits: Sequence[int], *, keep: bool = False) -> Outcome:
        """Run until control reaches an exit, or memory that holds no code.

        Args:
            start: Where to begin.
            state: Registers at the beginning.
            exits: Addresses at which it ends.
            keep: What was written stays.
        """
        self._written.clear()
        self._set_state(state)
        # Translated code knows the exits of the time when it was translated.
        self.cpu.ctl_flush_tb()
        self.cpu.ctl_set_exits(list(exits))
        error = ""
        try:
            self.cpu.emu_start(start, 0, timeout=_TIMEOUT)
        except unicorn.UcError as failure:
            if failure.errno not in (unicorn.UC_ERR_FETCH_UNMAPPED, unicorn.UC_ERR_FETCH_PROT):
                error = str(failure)
        addresses = {at + k for at, old in self._written for k in range(len(old))}
        memory = {address: self.read(address, 1)[0] for address in addresses}
        outcome = Outcome(self.state(), self.cpu.reg_read(x86.UC_X86_REG_RIP), memory, error)
        for address, old in reversed(self._written if not keep else ()):
            self.cpu.mem_write(address, old)
        return outcome
