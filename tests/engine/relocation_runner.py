"""The programs that run cases: one on the real processor, one in Unicorn."""

from __future__ import annotations

import random
import select
import signal
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from types import TracebackType
from typing import Final

import unicorn

from tests.engine.relocation import CASE

FOLDER: Final = Path(__file__).parent
_RESULT: Final = struct.Struct("<2Q2Q2QQ2I2I2IHHB3x")
_STATE: Final = struct.Struct("<20Q")
# The memory that registers point to (relocation_case.h); the stack's middle.
POINTERS: Final = 0x200000
STACK: Final = 0x3082000
# CF PF AF ZF SF DF OF, and AC, which only popf changes.
_FLAGS: Final = 0x0CD5
MOST_CASES: Final = 1 << 16
# A batch takes a second at most, an isolated case a few.
_LIMIT_SECONDS: Final = 60.0
# Order of encodings.
GPRS: Final = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)


class Verdict(IntEnum):
    """What came of a case (relocation_case.h: verdict)."""

    NOT_RUN = 0
    SAME = 1
    SAME_FAULT = 2
    CALL_FAULT = 3
    UNKNOWN = 4
    ENDLESS = 5
    DIFFERENT = 6


class Part(IntFlag):
    """What may differ besides general registers."""

    PC = 1
    KIND = 2
    FLAGS = 4
    BASES = 8
    VECTORS = 16
    ARENA = 32
    REFERENCES = 64
    FAULT = 128


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one case; pairs are of the original and of the copy."""

    verdict: Verdict
    pc: tuple[int, int]
    fault: tuple[int, int]
    values: tuple[int, int]
    memory_at: int
    kind: tuple[int, int]
    detail: tuple[int, int]
    flags: tuple[int, int]
    gprs: tuple[str, ...]
    parts: Part

    @classmethod
    def unpack(cls, data: bytes) -> Result:
        """From the runner's bytes."""
        fields = _RESULT.unpack(data)
        pairs = [(fields[at], fields[at + 1]) for at in (0, 2, 4, 7, 9, 11)]
        pc, fault, values, kind, detail, flags = pairs
        gprs = tuple(name for bit, name in enumerate(GPRS) if fields[13] >> bit & 1)
        return cls(
            verdict=Verdict(fields[15]),
            pc=pc,
            fault=fault,
            values=values,
            memory_at=fields[6],
            kind=kind,
            detail=detail,
            flags=flags,
            gprs=gprs,
            parts=Part(fields[14]),
        )

    def __str__(self) -> str:
        def pair(values: tuple[int, int]) -> str:
            return f"{values[0]:#x}, moved {values[1]:#x}"

        words = [f"stops at {pair(self.pc)}"] if self.parts & Part.PC else []
        if self.parts & Part.KIND:
            words.append(f"ends by {pair(self.kind)} ({pair(self.detail)})")
        if self.parts & Part.FAULT:
            words.append(f"faults at {pair(self.fault)}")
        if self.parts & Part.FLAGS:
            words.append(f"flags {pair(self.flags)}")
        if self.gprs:
            words.append(f"{self.gprs[0]} {pair(self.values)}")
            words += [f"{name} differs" for name in self.gprs[1:]]
        if self.parts & Part.BASES:
            words.append("fs or gs base differs")
        if self.parts & Part.VECTORS:
            words.append(f"byte {self.memory_at} of the vector state differs")
        if self.parts & (Part.ARENA | Part.REFERENCES):
            words.append(f"memory differs at {self.memory_at:#x}")
        return ", ".join(words) or "faults at another place"


@dataclass(frozen=True, slots=True)
class World:
    """The address space of a runner.

    Attributes:
        text: (address, size), in pages, of what may be executed, by address: the
            program's code and the areas for moved code.
        low: Where the memory around the program begins.
        high: Where it ends.
        states: Packed register states.
    """

    text: Sequence[tuple[int, int]]
    low: int
    high: int
    states: Sequence[bytes]

    def packed(self) -> bytes:
        """As the runners read it."""
        head = struct.pack("<QQII", self.low, self.high, len(self.text), len(self.states))
        ranges = b"".join(struct.pack("<QQ", *one) for one in self.text)
        return head + ranges + b"".join(self.states)


def random_states(rng: random.Random, count: int, text: Sequence[tuple[int, int]]) -> list[bytes]:
    """Register states: mostly pointers to data, some to code, small and wild numbers.

    The stack pointer is wild in few of them, rcx mostly small: it counts.
    """

    def value() -> int:
        kind = rng.random()
        if kind < 0.72:
            return rng.randrange(POINTERS, 2 * POINTERS, 64 if rng.random() < 0.7 else 1)
        if kind < 0.84:
            return rng.choice((0, 1, 2, 7, 255, (1 << 64) - 1, (1 << 64) - 8, 1 << 31))
        if kind < 0.86:
            return STACK + rng.randrange(-4096, 4096, 8)
        if kind < 0.92:
            start, size = rng.choice(text)
            return start + rng.randrange(size)
        return rng.getrandbits(64)

    states = []
    for _ in range(count):
        gprs = [value() for _ in range(16)]
        gprs[1] = value() if rng.random() < 0.2 else rng.choice((0, 1, 2, 3))
        gprs[4] = value() if rng.random() < 0.04 else STACK + 8 * rng.randrange(-64, 64)
        bases = [rng.randrange(POINTERS, 2 * POINTERS, 64) for _ in range(2)]
        flags = rng.getrandbits(12) & _FLAGS
        if rng.random() < 0.9:
            flags &= ~0x400
        states.append(_STATE.pack(*gprs, flags, *bases, rng.getrandbits(63)))
    return states


@dataclass(frozen=True, slots=True)
class Results:
    """The results of one batch, in order; taken apart only where they are looked at."""

    data: bytes

    @property
    def verdicts(self) -> bytes:
        """`Verdict` of each."""
        return self.data[_RESULT.size - 4 :: _RESULT.size]

    def __getitem__(self, index: int) -> Result:
        at = index * _RESULT.size
        return Result.unpack(self.data[at : at + _RESULT.size])


class RunnerFailedError(Exception):
    """The harness itself came to an end; the message says with which case."""


class Runner:
    """A runner program in one world. A context manager.

    Args:
        program: From `build`.
        world: The address space.
    """

    def __init__(self, program: Path, world: World) -> None:
        self._process = subprocess.Popen(
            [str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._pending = 0
        self._send(world.packed())

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        if exception is not None:
            self._process.kill()
        self._process.wait()

    def start(self, cases: Sequence[bytes]) -> None:
        """Begin with a batch; `finish` must follow."""
        assert not self._pending and 0 < len(cases) <= MOST_CASES
        self._pending = len(cases)
        self._send(struct.pack("<I", len(cases)) + b"".join(cases))

    def finish(self) -> Results:
        """The results of the batch.

        Raises:
            RunnerFailedError: The harness died.
        """
        wanted, self._pending = self._pending, 0
        status, finished = struct.unpack("<iI", self._receive(8))
        data = self._receive(finished * _RESULT.size)
        if status or finished != wanted:
            how = f"status {status:#x}"
            if status & 0x7F:
                how = signal.Signals(status & 0x7F).name
            raise RunnerFailedError(f"the harness died of {how} in case {finished} of {wanted}")
        return Results(data)

    def run(self, cases: Sequence[bytes]) -> Results:
        """Run a batch."""
        self.start(cases)
        return self.finish()

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self._process.stdin.write(view) :]

    def _receive(self, size: int) -> bytes:
        assert self._process.stdout is not None
        parts = []
        while size:
            if not select.select([self._process.stdout], [], [], _LIMIT_SECONDS)[0]:
                raise RunnerFailedError("the harness hangs")
            part = self._process.stdout.read(size)
            if not part:
                raise RunnerFailedError(f"the harness ended with {self._process.wait()}")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Programs:
    """Paths of the built runners."""

    native: Path
    emulated: Path


def build(folder: Path) -> Programs:
    """Compile both runners into a folder."""
    package = Path(unicorn.__file__).parent
    libraries = package / "lib"
    common = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-fno-stack-protector", "-Wl,-z,now"]
    programs = Programs(folder / "relocation_native", folder / "relocation_emulated")
    extra = {
        programs.native: ["-fcf-protection=none"],
        programs.emulated: [
            f"-I{package / 'include'}",
            str(libraries / "libunicorn.so.2"),
            f"-Wl,-rpath,{libraries}",
        ],
    }
    for program, options in extra.items():
        source = FOLDER / f"{program.name}.c"
        subprocess.run([*common, str(source), *options, "-o", str(program)], check=True)
    return programs


assert CASE.size == 328, "struct case_ of relocation_case.h"
