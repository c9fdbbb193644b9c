"""Comparing an instruction at its own address with the same one moved (OLX)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.engine.machine import Machine, Outcome, random_state
from uftrace_agent.engine.x86_64.instruction import Instruction, Moved, decode

# Their results depend on when, or on which processor, they run.
_VARYING = frozenset({"rdtsc", "rdtscp", "rdrand", "rdseed", "rdpmc"})
_INVALID = "UC_ERR_INSN_INVALID"
AREA = 1 << 16
# From one end of a jump's reach to the other; what code refers to may lie 16 MiB
# on the far side.
DISTANCES = tuple(int(gib * (1 << 30)) & ~0xFFFFF for gib in (-1.9, -1.2, -0.3, 0.2, 0.9, 1.9))


@dataclass
class Comparer:
    """Runs both and notes what differs.

    Attributes:
        machine: Where they run; the originals are mapped already.
        areas: Addresses of `AREA` bytes each for moved code.
        failures: One line a mismatch.
        executed: How many could be compared by running them.
        compared: How many in all; those that the processor of the test does
            not know are compared by their disassembly.
    """

    machine: Machine
    areas: Sequence[int]
    rng: random.Random
    failures: list[str] = field(default_factory=list)
    executed: int = 0
    compared: int = 0

    def __post_init__(self) -> None:
        self._states = [random_state(self.rng) for _ in range(16)]
        self._cursor = [0] * len(self.areas)

    def compare(self, instruction: Instruction) -> Moved:
        """Move one instruction to the next area, and compare.

        Raises:
            UnmovableError: It says so itself.
            OutOfReachError: Likewise.
        """
        at = self.compared % len(self.areas)
        destination = self.areas[at] + self._cursor[at]
        self._cursor[at] = (self._cursor[at] + 67) % (AREA - 256)
        moved = instruction.moved_to(destination)
        self.compared += 1
        self.machine.write(destination, moved.code)
        difference = self._difference(instruction, moved, destination)
        if difference:
            self.failures.append(
                f"`{instruction.text}` ({instruction.code.hex()}) at {instruction.address:#x} as "
                f"{moved.code.hex()} at {destination:#x}: {difference}"
            )
        return moved

    def _difference(self, instruction: Instruction, moved: Moved, destination: int) -> str:
        end, moved_end = instruction.address + instruction.size, destination + len(moved.code)
        target = instruction.branch_target()
        aims = [] if target is None else [target]
        state = self.rng.choice(self._states)
        original = self.machine.run(instruction.address, state, [end, *aims])
        if _INVALID in original.error or instruction.raw.mnemonic.split()[-1] in _VARYING:
            return _text_difference(instruction, moved, destination)
        self.executed += 1
        copy = self.machine.run(destination, state, [moved_end, *aims])
        return _outcome_difference(original, copy, end, moved_end, moved.falls_through)


def _outcome_difference(
    original: Outcome, copy: Outcome, end: int, moved_end: int, falls_through: bool
) -> str:
    if original.error or copy.error:
        same = original.error == copy.error
        return "" if same else f"stopped by {original.error!r}, moved by {copy.error!r}"
    came_to = end if copy.pc == moved_end and falls_through else copy.pc
    differences = original.state.differences(copy.state)
    if came_to != original.pc:
        differences.append(f"goes to {original.pc:#x}, moved to {copy.pc:#x}")
    if original.memory != copy.memory:
        differences.append(f"writes {original.memory}, moved {copy.memory}")
    return ", ".join(differences)


# One instruction, the same but for the distance, which leads to the same place.
def _text_difference(instruction: Instruction, moved: Moved, destination: int) -> str:
    copy = decode(moved.code, destination)
    if copy is None or copy.size != len(moved.code):
        return "is not one instruction"
    if copy.raw.mnemonic != instruction.raw.mnemonic:
        return f"became {copy.text}"
    if _operands(copy) != _operands(instruction):
        return f"became {copy.text}"
    return ""


def _operands(instruction: Instruction) -> str:
    text: str = instruction.raw.op_str
    before, found, rest = text.partition("[rip ")
    if not found:
        return text
    distance, _, after = rest.partition("]")
    end = instruction.address + instruction.size
    return f"{before}[{end + int(distance.replace(' ', ''), 16):#x}]{after}"
