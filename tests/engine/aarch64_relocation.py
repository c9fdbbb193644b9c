"""Compares AArch64 instructions with what the engine makes of them for another address."""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import unicorn

from tests.engine.aarch64_machine import BTYPE_AT, Machine, Outcome
from uftrace_agent.engine.aarch64.encoding import branch
from uftrace_agent.engine.aarch64.instruction import Instruction
from uftrace_agent.engine.moved import OutOfReachError, UnmovableError

REACH: Final = 128 << 20
LONGEST: Final = 7 * 4
_KEPT: Final = 20
_BY_CALL: Final = 2
_BY_JUMP: Final = 1
_QUOTED: Final = re.compile(r"`([^` ]*)[^`]*`")
# Of the instruction that control went to.
_FETCH_FAULTS: Final = (unicorn.UC_ERR_FETCH_UNMAPPED, unicorn.UC_ERR_FETCH_PROT)
# mrs of cntpct_el0, cntvct_el0 and their like: the time.
_COUNTERS: Final = (0xFFFF_FF00, 0xD53B_E000)
_UNKNOWN: Final = (unicorn.UC_ERR_EXCEPTION, unicorn.UC_ERR_INSN_INVALID)


class Verdict(enum.Enum):
    """How a copy compares with its original."""

    SAME = enum.auto()
    SAME_FAULT = enum.auto()
    UNKNOWN = enum.auto()
    DIFFERENT = enum.auto()


@dataclass
class Tally:
    """What came of the instructions of one source.

    Attributes:
        instructions: How many were looked at, in copies.
        repeated: Words that name no address and were compared before.
        verdicts: What the comparisons said.
        refused: What the engine does not move, by reason.
        unreachable: How many name something too far from the copy.
        longest: The most bytes that a copy has.
        changed: How many copies have other bytes than the original.
        unknown: What the emulator does not know, or is never the same, by mnemonic.
        mismatches: The first of them, in words.
    """

    instructions: int = 0
    repeated: int = 0
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    unreachable: int = 0
    longest: int = 0
    changed: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    mismatches: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take in another share's."""
        self.instructions += other.instructions
        self.repeated += other.repeated
        self.verdicts += other.verdicts
        self.refused += other.refused
        self.unreachable += other.unreachable
        self.longest = max(self.longest, other.longest)
        self.changed += other.changed
        self.unknown += other.unknown
        self.mismatches = (self.mismatches + other.mismatches)[:_KEPT]

    @property
    def different(self) -> int:
        """How many copies do something else."""
        return self.verdicts[Verdict.DIFFERENT]


def compare(
    machine: Machine, instruction: Instruction, code: bytes, at: int, state: int
) -> Verdict:
    """Run an instruction of the image, and a copy that is put at `at`, from one state.

    Args:
        machine: Where both run.
        instruction: The original; the image has it.
        code: The copy, without a branch back.
        at: A fresh slot.
        state: Where to start from.
    """
    behind = instruction.address + instruction.size
    original = machine.run(state, instruction.address)
    end = at + len(code)
    try:
        placed = code + branch(end, behind)
        until = original.pc
    except OutOfReachError:
        placed = code
        until = end if original.pc == behind else original.pc
    machine.put(at, placed)
    copy = machine.run(state, at, len(placed))
    if code != instruction.code:
        # Where a scratch register is kept.
        copy = machine.below_stack(copy, state, 16)
    return _verdict(instruction, original, copy, code, at, until)


def _verdict(
    instruction: Instruction,
    original: Outcome,
    copy: Outcome,
    code: bytes,
    at: int,
    until: int,
) -> Verdict:
    if copy.error != original.error or copy.memory != original.memory:
        return Verdict.DIFFERENT
    if original.error and original.error not in _FETCH_FAULTS and _is_at(instruction, original):
        if code == instruction.code:
            if copy.pc - at != original.pc - instruction.address or copy.state != original.state:
                return Verdict.DIFFERENT
        elif not at <= copy.pc < at + len(code):
            return Verdict.DIFFERENT
        return Verdict.UNKNOWN if original.error in _UNKNOWN else Verdict.SAME_FAULT
    if copy.pc != until or copy.state != _by_jump(original.state):
        return Verdict.DIFFERENT
    return Verdict.SAME


# At some faults (of `dc zva`) the emulator's program counter is behind the instruction.
def _is_at(instruction: Instruction, outcome: Outcome) -> bool:
    return 0 <= outcome.pc - instruction.address <= instruction.size


# `br` in place of `blr` shows in BTYPE: both kinds of landing pads let it pass, if the
# copy is in a page that is not guarded.
def _by_jump(state: bytes) -> bytes:
    if state[BTYPE_AT] == _BY_CALL:
        return state[:BTYPE_AT] + bytes((_BY_JUMP,)) + state[BTYPE_AT + 1 :]
    return state


class Prover:
    """Moves instructions of a machine's image, compares, and counts.

    Args:
        machine: Whose image has the instructions.
        repeats: How often a word that names no address is compared, each time from
            another state, before its repetitions are only counted.
    """

    def __init__(self, machine: Machine, repeats: int = 2) -> None:
        self.tally = Tally()
        self._machine = machine
        self._repeats = repeats
        self._seen: Counter[int] = Counter()
        self._turn = 0

    def prove(self, instructions: Iterable[Instruction]) -> None:
        """Compare each of them, once."""
        for instruction in instructions:
            self._prove(instruction)

    def _prove(self, instruction: Instruction) -> None:
        tally = self.tally
        tally.instructions += 1
        if self._seen[instruction.word] >= self._repeats:
            tally.repeated += 1
            return
        self._turn += 1
        at = self._machine.slot(self._turn % self._machine.areas)
        try:
            moved = instruction.moved_to(at)
        except UnmovableError as error:
            tally.refused[_QUOTED.sub(r"`\1`", str(error))] += 1
            return
        except OutOfReachError as error:
            tally.unreachable += 1
            if not _is_far(instruction, at):
                self._tell(f"within reach: {error}", instruction, b"", at)
            return
        if moved.code == instruction.code:
            self._seen[instruction.word] += 1
        tally.longest = max(tally.longest, len(moved.code))
        tally.changed += moved.code != instruction.code
        state = self._turn // self._machine.areas % self._machine.states
        if instruction.is_a(_COUNTERS):
            verdict = Verdict.UNKNOWN
        else:
            verdict = compare(self._machine, instruction, moved.code, at, state)
        tally.verdicts[verdict] += 1
        if verdict is Verdict.UNKNOWN:
            tally.unknown[instruction.text.split()[0]] += 1
        if verdict is Verdict.DIFFERENT:
            self._tell("different", instruction, moved.code, at)

    def _tell(self, what: str, instruction: Instruction, code: bytes, at: int) -> None:
        if what != "different":
            self.tally.verdicts[Verdict.DIFFERENT] += 1
        if len(self.tally.mismatches) < _KEPT:
            words = [code[index : index + 4] for index in range(0, len(code), 4)]
            copy = "; ".join(
                Instruction(at + 4 * index, int.from_bytes(word, "little")).text
                for index, word in enumerate(words)
            )
            self.tally.mismatches.append(
                f"{what}: `{instruction.text}` ({instruction.word:#010x}) at "
                f"{instruction.address:#x} as `{copy}` at {at:#x}"
            )


# A branch may lie anywhere in the copy.
def _is_far(instruction: Instruction, at: int) -> bool:
    target = instruction.branch_target()
    return target is not None and abs(target - at) > REACH - LONGEST
