"""Runs every window of a source and its copy, and counts what came of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import Any, Final

from tests.engine.relocation import (
    Case,
    Mover,
    OutOfReachError,
    UnmovableError,
    text_difference,
)
from tests.engine.relocation_runner import Programs, Result, Runner, Verdict
from tests.engine.relocation_sources import STATES, Source
from uftrace_agent.engine.x86_64.instruction import Instruction


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BATCH: Final = 4096
_KEPT: Final = 50
# Their results depend on when, or on which processor, they run.
VARYING: Final = frozenset({"rdtsc", "rdtscp", "rdrand", "rdseed", "rdpmc", "cpuid", "rdpid"})
# They store the address of the last x87 instruction, which a copy has elsewhere.
STORES_X87_ADDRESS: Final = _names(
    "fnstenv fnsave fxsave fxsave64 xsave xsave64 xsavec xsavec64 xsaveopt xsaveopt64"
)
# Unicorn runs programs as the kernel runs: these would change the emulated
# machine itself, where a processor refuses them to a program.
PRIVILEGED: Final = _names(
    "cli sti hlt in insb insd insw out outsb outsd outsw clts invd wbinvd wbnoinvd invlpg invpcid"
    " invlpga lgdt lidt lldt ltr lmsw rdmsr wrmsr swapgs sysret sysretq sysexit sysexitq xsetbv"
    " monitor mwait monitorx mwaitx vmcall vmlaunch vmresume vmxoff vmxon vmclear vmptrld vmptrst"
    " vmread vmwrite vmfunc vmrun vmload vmsave vmmcall stgi clgi skinit rsm getsec encls enclu"
    " xsaves xsaves64 xrstors xrstors64 stac clac"
)
# Selectors and control registers, which the emulator lets a program load.
_SYSTEM_REGISTER: Final = re.compile(r"\b(?:[cd]r\d+|[defgs]s)\b(?!:)")
_EXECUTED: Final = frozenset({Verdict.SAME, Verdict.SAME_FAULT, Verdict.CALL_FAULT})
_RAN: Final = _EXECUTED | {Verdict.ENDLESS, Verdict.DIFFERENT}
_LOCK: Final = 0xF0
# Behind a segment prefix or none; `pop` has zeros in the bits that tell.
_XOP: Final = re.compile(
    rb"[\x26\x2e\x36\x3e\x64-\x67]*\x8f[\x08-\x1f\x28-\x3f\x48-\x5f\x68-\x7f"
    rb"\x88-\x9f\xa8-\xbf\xc8-\xdf\xe8-\xff]"
)
_QUOTED: Final = re.compile(r"`([^`]*)`")


@dataclass
class Tally:
    """What came of the windows of one source.

    Attributes:
        windows: How many were looked at, with the repeated.
        repeated: Single instructions of which the same bytes were compared
            before, and do not depend on where they are.
        compared: How many were compared, in whichever way.
        emulated: How many ran in the emulator.
        native: How many ran on the processor.
        faults: How many of these ended in the same fault.
        call_faults: How many of these faulted in a call, the copy behind its push.
        endless: How many loop in themselves, on both sides.
        by_text: How many were compared by disassembly only.
        unknown: These by mnemonic: what neither knows, what varies, what sets
            the trap flag, and what stores where an x87 instruction lay.
        refused: How many windows the engine refused, by reason.
        mismatches: The first of them, in words.
        different: How many there are.
        unsettled: How many differed in a batch and did not alone.
    """

    functions: int = 0
    undecodable: int = 0
    windows: int = 0
    repeated: int = 0
    compared: int = 0
    emulated: int = 0
    native: int = 0
    faults: int = 0
    call_faults: int = 0
    endless: int = 0
    by_text: int = 0
    different: int = 0
    unsettled: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    mismatches: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take in another share's."""
        for name in (one.name for one in fields(self)):
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(getattr(other, name))
            else:
                setattr(self, name, mine + getattr(other, name))
        del self.mismatches[_KEPT:]

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tally:
        """From a file."""
        counters = {name: Counter(data[name]) for name in ("unknown", "refused")}
        return cls(**{**data, **counters})


@dataclass
class _Batch:
    cases: list[Case] = field(default_factory=list)
    native: list[int] = field(default_factory=list)
    emulated: list[int] = field(default_factory=list)


class Prover:
    """Compares shares of one source. A context manager.

    Args:
        source: Where windows come from.
        programs: The runners.
        seed: Decides everything that is random.
    """

    def __init__(self, source: Source, programs: Programs, seed: int) -> None:
        self.tally = Tally()
        self._source = source
        self._programs = programs
        self._seed = seed
        self._world = source.world(seed)
        self._stack = ExitStack()
        self._alone: dict[str, Runner] = {}
        self._native = self._stack.enter_context(Runner(programs.native, self._world))
        self._emulated = self._stack.enter_context(Runner(programs.emulated, self._world))
        self._running: _Batch | None = None

    def __enter__(self) -> Prover:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def prove(self, number: int) -> None:
        """Compare one share."""
        share = self._source.share(number, self._seed)
        mover = Mover(self._source.areas(), self._seed * 7919 + number, STATES)
        batch = _Batch()
        for window in share.windows:
            for case in self._cases(mover, window):
                self._put(batch, case)
                if len(batch.cases) == _BATCH:
                    self._start(batch)
                    batch = _Batch()
        self._start(batch)
        self._finish()
        self.tally.functions += share.functions
        self.tally.undecodable += share.undecodable
        self.tally.repeated += share.repeated
        self.tally.windows += share.repeated

    def _cases(self, mover: Mover, window: Sequence[Instruction]) -> Iterator[Case]:
        if not window:
            return
        done = 0
        try:
            for case in mover.cases(window):
                done += 1
                yield case
        except UnmovableError as error:
            self._refuse(_reason(str(error)), len(window) - done)
        except OutOfReachError:
            self._refuse("out of reach", len(window) - done)

    def _refuse(self, reason: str, count: int) -> None:
        self.tally.windows += count
        self.tally.refused[reason] += count

    def _put(self, batch: _Batch, case: Case) -> None:
        index = len(batch.cases)
        batch.cases.append(case)
        names = {one.raw.mnemonic.rpartition(" ")[2] for one in case.instructions}
        if names & VARYING or (names & STORES_X87_ADDRESS and len(case.instructions) > 1):
            return
        batch.native.append(index)
        if not names & PRIVILEGED and not any(_upsets_emulator(o) for o in case.instructions):
            batch.emulated.append(index)

    def _start(self, batch: _Batch) -> None:
        self._finish()
        if not batch.cases:
            return
        for runner, indices in ((self._native, batch.native), (self._emulated, batch.emulated)):
            if indices:
                runner.start([batch.cases[index].packed for index in indices])
        self._running = batch

    def _finish(self) -> None:
        batch, self._running = self._running, None
        if batch is None:
            return
        verdicts = [bytearray(len(batch.cases)), bytearray(len(batch.cases))]
        stopped_at: dict[int, int] = {}
        sides = (
            ("processor", self._native, batch.native),
            ("emulator", self._emulated, batch.emulated),
        )
        for mine, (where, runner, indices) in zip(verdicts, sides, strict=True):
            if not indices:
                continue
            results = runner.finish()
            for position, (index, verdict) in enumerate(
                zip(indices, results.verdicts, strict=True)
            ):
                mine[index] = verdict
                if verdict == Verdict.DIFFERENT:
                    self._report(where, batch.cases[index], results[position])
                elif verdict == Verdict.UNKNOWN and runner is self._native:
                    stopped_at[index] = results[position].pc[0]
        self._count(batch, verdicts[0], verdicts[1], stopped_at)

    def _count(
        self, batch: _Batch, native: bytearray, emulated: bytearray, stopped_at: Mapping[int, int]
    ) -> None:
        tally = self.tally
        tally.windows += len(batch.cases)
        tally.compared += len(batch.cases)
        for pair in zip(native, emulated, strict=True):
            tally.faults += Verdict.SAME_FAULT in pair
            tally.call_faults += Verdict.CALL_FAULT in pair
            tally.endless += Verdict.ENDLESS in pair
        tally.native += sum(verdict in _EXECUTED for verdict in native)
        tally.emulated += sum(verdict in _EXECUTED for verdict in emulated)
        for index, case in enumerate(batch.cases):
            if not {native[index], emulated[index]} & _RAN:
                self._compare_text(case, stopped_at.get(index))

    def _compare_text(self, case: Case, stopped_at: int | None) -> None:
        self.tally.by_text += 1
        self.tally.unknown[_culprit(case, stopped_at)] += 1
        difference = text_difference(case)
        if difference:
            self._mismatch(f"{case}: {difference}")

    # What a window wrote where nobody looks may be there still when its copy
    # runs: a case that differs is run once more, each side in a world of its own.
    def _report(self, where: str, case: Case, result: Result) -> None:
        if where not in self._alone:
            is_native = where == "processor"
            program = self._programs.native if is_native else self._programs.emulated
            self._alone[where] = self._stack.enter_context(Runner(program, self._world))
        again = self._alone[where].run([case.isolated()])[0]
        if again.verdict is Verdict.DIFFERENT:
            self._mismatch(f"{case}: on the {where} {again}")
        else:
            self.tally.unsettled += 1

    def _mismatch(self, text: str) -> None:
        self.tally.different += 1
        if len(self.tally.mismatches) < _KEPT:
            self.tally.mismatches.append(text)


# Which instruction kept a window from being run.
def _culprit(case: Case, stopped_at: int | None) -> str:
    for one in case.instructions:
        name = str(one.raw.mnemonic)
        if stopped_at is None and name in VARYING | STORES_X87_ADDRESS:
            return name
        if one.address == stopped_at:
            return name
    return str(case.instructions[-1].raw.mnemonic)


def _upsets_emulator(instruction: Instruction) -> bool:
    name = instruction.raw.mnemonic
    if _LOCK in instruction.code[:-1] and "[" not in instruction.raw.op_str:
        return True  # no instruction; Unicorn aborts at `lock btc edi, ebp`
    if _XOP.match(instruction.code):
        return True  # of AMD's: Unicorn takes its first bytes for `pop`
    if name in ("lfs", "lgs", "lss"):
        return True
    return name in ("mov", "pop") and bool(_SYSTEM_REGISTER.search(instruction.raw.op_str))


# `call qword ptr [rsp]` reads its ... -> call ... reads its ...
def _reason(message: str) -> str:
    found = _QUOTED.search(message)
    if found is None:
        return message
    name = found[1].partition(" ")[0]
    words = found[1].split()
    if name in ("notrack", "bnd", "lock", "rep", "repne", "data16") and len(words) > 1:
        name = words[1]
    return f"`{name}`" + message[found.end() :]
