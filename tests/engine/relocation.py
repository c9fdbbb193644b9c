"""Windows of instructions at their own address and moved (OLX), as cases to compare.

A case is what the runners take (relocation_case.h): the bytes of a window, the
bytes that the engine makes of it for another address, and which memory the
window names relative to itself. What that is, is read from the disassembly's
text and not from the fields that the engine works with, so that both would have
to be wrong in the same way.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from uftrace_agent.engine.x86_64.instruction import (
    LONGEST,
    Instruction,
    Moved,
    OutOfReachError,
    UnmovableError,
    decode,
    jump,
)

# The engine displaces one of the first four instructions of a function, and all
# of them where the whole beginning moves.
LONGEST_WINDOW: Final = 4
CASE: Final = struct.Struct("<QQ4Q4QIH5B5s5s60s167s")
REACH: Final = 1 << 31
# How far below 2 GiB a distance may be refused: moved code is longer, and its
# distance is counted from its end.
_SLACK: Final = 64
_ISOLATED: Final = 1
_MOVED_LENGTH_AT: Final = struct.calcsize("<QQ4Q4QIH1B")
_FLAGS_AT: Final = struct.calcsize("<QQ4Q4QIH3B")
_MOVED_BYTES: Final = 167
_BRANCHES: Final = re.compile(r"(?:.* )?(?:j\w+|call|loop\w*)")
_ADDRESS_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Operand:
    """What one instruction names relative to itself; None for nothing.

    Attributes:
        memory: Address of a memory operand.
        branch: Where it goes.
    """

    memory: int | None
    branch: int | None

    @property
    def is_relative(self) -> bool:
        """Whether there is any."""
        return self.memory is not None or self.branch is not None


@dataclass(frozen=True, slots=True)
class Case:
    """A window and its copy, ready to be run.

    Attributes:
        instructions: The window.
        destination: Where the copy lies.
        moved: The copy, with the jump behind the window at its end.
        is_unchanged: The copy has the window's own bytes.
        packed: The same for the runners.
    """

    instructions: tuple[Instruction, ...]
    destination: int
    moved: bytes
    is_unchanged: bool
    packed: bytes

    def isolated(self) -> bytes:
        """Packed, to be run in two processes in which nothing ran before."""
        packed = bytearray(self.packed)
        packed[_FLAGS_AT] |= _ISOLATED
        return bytes(packed)

    def with_copy(self, moved: bytes) -> bytes:
        """Packed, with another copy: to see that what is wrong is found."""
        packed = bytearray(self.packed)
        packed[_MOVED_LENGTH_AT] = len(moved)
        packed[-_MOVED_BYTES:] = moved.ljust(_MOVED_BYTES, b"\0")
        return bytes(packed)

    def __str__(self) -> str:
        code = b"".join(one.code for one in self.instructions)
        text = "; ".join(one.text for one in self.instructions)
        return (
            f"`{text}` ({code.hex()}) at {self.instructions[0].address:#x} "
            f"as {self.moved.hex()} at {self.destination:#x}"
        )


def operand(instruction: Instruction) -> Operand:
    """What an instruction names relative to itself, by its disassembly."""
    text: str = instruction.raw.op_str
    memory = branch = None
    _, found, rest = text.partition("[rip")
    if found:
        distance = rest.partition("]")[0].replace(" ", "")
        memory = instruction.address + instruction.size + int(distance or "0", 16)
        memory &= _ADDRESS_MASK
    elif text.startswith("0x") and _BRANCHES.fullmatch(instruction.raw.mnemonic):
        branch = int(text, 16)
    return Operand(memory, branch)


def instructions_at(code: bytes, address: int, count: int) -> Iterator[Instruction]:
    """The first instructions of `code`, up to one that control does not go on behind."""
    at = 0
    for _ in range(count):
        instruction = decode(code[at : at + LONGEST], address + at)
        if instruction is None:
            return
        yield instruction
        if instruction.ends_flow() or instruction.is_call():
            return
        at += instruction.size


class Mover:
    """Moves windows and packs what came of them.

    Args:
        areas: Where moved code may lie: (address, bytes), in turn.
        seed: Of the noise around what windows refer to.
        states: How many states the runners have.
    """

    def __init__(self, areas: Sequence[tuple[int, int]], seed: int, states: int) -> None:
        self._areas = areas
        self._cursors = [0] * len(areas)
        self._turn = 0
        self._seed = seed & 0xFFFF_FFFF
        self._states = states

    def cases(self, instructions: Sequence[Instruction]) -> Iterator[Case]:
        """The windows of the first one, two, ... instructions.

        Raises:
            UnmovableError: The engine refuses an instruction; shorter windows
                came before.
            OutOfReachError: Nothing is near enough to any area.
        """
        reach: OutOfReachError | None = None
        done = 0
        for _ in self._areas:
            self._turn = (self._turn + 1) % len(self._areas)
            destination = self._take()
            try:
                for case in self._cases(instructions, destination):
                    done += 1
                    yield case
                return
            except OutOfReachError as error:
                if done:
                    raise
                reach = error
        assert reach is not None, "there are areas"
        raise reach

    def _take(self) -> int:
        start, size = self._areas[self._turn]
        cursor = self._cursors[self._turn]
        # Every alignment to a cache line comes up.
        self._cursors[self._turn] = (cursor + 193) % (size - 256)
        return start + cursor

    def _cases(self, instructions: Sequence[Instruction], destination: int) -> Iterator[Case]:
        start = instructions[0].address
        pieces: list[bytes] = []
        operands: list[Operand] = []
        starts, moved_starts = [0], [0]
        calls = 0
        is_unchanged = True
        for index, instruction in enumerate(instructions):
            named = operand(instruction)
            here = destination + moved_starts[-1]
            moved = _checked_move(instruction, named, here)
            is_unchanged = is_unchanged and moved.code == instruction.code
            pieces.append(moved.code)
            operands.append(named)
            calls |= instruction.is_call() << index
            starts.append(starts[-1] + instruction.size)
            moved_starts.append(moved_starts[-1] + len(moved.code))
            code = b"".join(pieces)
            if moved.falls_through:
                code += jump(destination + len(code), start + starts[-1])
            window = tuple(instructions[: index + 1])
            packed = self._pack(window, destination, code, operands, starts, moved_starts, calls)
            unchanged = is_unchanged and not any(one.is_relative for one in operands)
            yield Case(window, destination, code, unchanged, packed)

    def _pack(
        self,
        window: tuple[Instruction, ...],
        destination: int,
        moved: bytes,
        operands: Sequence[Operand],
        starts: Sequence[int],
        moved_starts: Sequence[int],
        calls: int,
    ) -> bytes:
        self._seed = (self._seed * 1664525 + 1013904223) & 0xFFFF_FFFF
        memory = [one.memory or 0 for one in operands] + [0] * (LONGEST_WINDOW - len(operands))
        branch = [one.branch or 0 for one in operands] + [0] * (LONGEST_WINDOW - len(operands))
        return CASE.pack(
            window[0].address,
            destination,
            *memory,
            *branch,
            self._seed,
            (self._seed >> 8) % self._states,
            starts[-1],
            len(moved),
            len(window),
            0,
            calls,
            bytes(starts),
            bytes(moved_starts),
            b"".join(one.code for one in window),
            moved,
        )


# Nothing is out of reach that a rel32 would reach.
def _checked_move(instruction: Instruction, named: Operand, destination: int) -> Moved:
    try:
        return instruction.moved_to(destination)
    except OutOfReachError:
        target = named.branch if named.memory is None else named.memory
        distance = REACH if target is None else abs(target - destination)
        if distance < REACH - _SLACK:
            raise AssertionError(
                f"`{instruction.text}` is refused as out of reach of {destination:#x}"
            ) from None
        raise


def text_difference(case: Case) -> str:
    """How the copy differs from the window by disassembly; empty if only in distances.

    For instructions that neither the emulator nor the processor knows: one
    instruction has become one, with the same text but for the distance, which
    leads to the same place. Calls and loops become several; what follows them is
    not looked at.
    """
    at = 0
    for instruction in case.instructions:
        name = _name(instruction)
        if name in ("call", "jrcxz", "jecxz") or name.startswith("loop"):
            return ""
        copy = decode(case.moved[at:], case.destination + at)
        if copy is None:
            return f"`{instruction.text}` became no instruction"
        if _name(copy) != name or _shape(copy) != _shape(instruction):
            return f"`{instruction.text}` became `{copy.text}`"
        at += copy.size
    last = decode(case.moved[at:], case.destination + at)
    end = case.instructions[-1].address + case.instructions[-1].size
    if last is None:
        return "" if case.instructions[-1].ends_flow() else "does not go back"
    return "" if last.branch_target() == end else f"goes back by `{last.text}`"


# Without prefixes that mean nothing on a jump.
def _name(instruction: Instruction) -> str:
    words: list[str] = instruction.raw.mnemonic.split()
    return words[-1] if words[-1].startswith(("j", "call")) else " ".join(words)


def _shape(instruction: Instruction) -> tuple[str, Operand]:
    named = operand(instruction)
    text: str = instruction.raw.op_str
    if named.memory is not None:
        before, _, rest = text.partition("[rip")
        text = before + "[rip" + rest.partition("]")[2]
    elif named.branch is not None:
        text = ""
    return text, named


__all__ = [
    "CASE",
    "LONGEST_WINDOW",
    "Case",
    "Mover",
    "OutOfReachError",
    "UnmovableError",
    "instructions_at",
    "operand",
    "text_difference",
]
