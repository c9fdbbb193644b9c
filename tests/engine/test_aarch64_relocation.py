"""Differential tests of out-of-line execution on AArch64, in an emulator.

The long form is tests/torture/prove_relocation_aarch64.py; on a processor it is
tests/arm/test_relocation_native.py.
"""

from __future__ import annotations

import random
import struct
from pathlib import Path

import capstone
import numpy as np
import pytest
import unicorn
from unicorn import arm64_const as arm64

from tests.engine.aarch64_machine import BASE, MIB, PAGE, Machine, traps
from tests.engine.aarch64_relocation import LONGEST, Prover, Tally, Verdict, compare
from tests.engine.aarch64_sources import BINARIES, Binary, Generated, fetch_binaries, random_word
from uftrace_agent.engine.aarch64 import encoding
from uftrace_agent.engine.aarch64.instruction import (
    Instruction,
    branch_targets,
    decode,
)
from uftrace_agent.engine.moved import OutOfReachError, UnmovableError
from uftrace_agent.symbols.module_image import ModuleImage

SEED = 1
# One of so many instructions of a binary.
SAMPLE = 60
GENERATED = 8000
# The same load in other words: `ldur` and `ldapur`.
SAME_LOADS = {0x5800_0403: 2, 0x9800_0404: 2, 0x1C00_0405: 1, 0x9C00_0406: 1}
HERE = BASE + 0x2000
FAR = HERE + 100 * MIB
# What stands in functions of these binaries and cannot run elsewhere.
UNMOVABLE = {"svc", "brk", "movprfx"}
EXCLUSIVE = {"ldxr", "ldaxr", "stxr", "stlxr", "ldxp", "ldaxp", "stxp", "stlxp"}
COPIES = {"cpyp", "cpym", "cpye", "cpyfp", "cpyfm", "cpyfe", "setp", "setm", "sete"}


@pytest.fixture(scope="module")
def root() -> Path:
    return fetch_binaries()


def assert_same(tally: Tally) -> None:
    assert not tally.different, "\n".join(tally.mismatches)
    assert tally.longest <= LONGEST
    ran = tally.verdicts[Verdict.SAME]
    assert ran > 0.9 * tally.verdicts.total() > 500
    assert tally.changed > 0.5 * tally.verdicts.total()


@pytest.mark.parametrize("name", BINARIES, ids=lambda name: Path(name).name)
def test_instructions_of_real_programs_run_elsewhere(root: Path, name: str) -> None:
    # WHEN the first words of functions, and what is relative, run elsewhere
    binary = Binary(root / name)
    prover = Prover(binary.machine(SEED))
    prover.prove(binary.instructions((SEED, SAMPLE)))
    # THEN they leave what they left where they were
    assert_same(prover.tally)
    refused = {reason.split("`")[1].rstrip("bh") for reason in prover.tally.refused}
    assert refused <= UNMOVABLE | EXCLUSIVE | COPIES, prover.tally.refused


def test_h13_h14_generated_instructions_run_elsewhere() -> None:
    source = Generated()
    machine = source.machine(SEED)
    prover = Prover(machine)
    prover.prove(source.instructions(machine, random.Random(SEED), GENERATED))
    assert_same(prover.tally)
    assert prover.tally.unreachable > GENERATED // 20


# -- what is wrong is found -------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        0x1000_0801,  # adr x1
        0xB000_0810,  # adrp x16
        0x5800_0403,  # ldr x3
        0x9800_0404,  # ldrsw x4
        0x1C00_0405,  # ldr s5
        0x9C00_0406,  # ldr q6
        0x1400_0400,  # b
        0x9400_0400,  # bl
        0xD63F_0200,  # blr x16
        0x5400_0408,  # b.hi
        0xB400_0409,  # cbz x9
        0x3628_040A,  # tbz w10, #5
        0x9100_4042,  # add x2, x2, #16
        0xA9BF_7BFD,  # stp x29, x30, [sp, #-16]!
        0xF940_0420,  # ldr x0, [x1, #8]
    ],
    ids=lambda word: Instruction(0, word).text.split()[0],
)
def test_a_wrong_bit_anywhere_is_found(word: int) -> None:
    # GIVEN a copy that is right from all states
    machine = Machine(traps(MIB // 2, SEED), [100 * MIB], states=128, seed=SEED)
    instruction = Instruction(HERE, word)
    at = machine.slot(0)
    copy = instruction.moved_to(at).code
    assert not is_different(machine, instruction, copy, at)
    # WHEN one bit of it is another
    changes = [copy_with(copy, bit) for bit in range(8 * len(copy))]
    known = [one for one in changes if all(map(is_known, words_of(one)))]
    unseen = [one.hex() for one in known if not is_different(machine, instruction, one, at)]
    # THEN that is seen
    assert len(known) > 20
    assert len(unseen) <= SAME_LOADS.get(word, 0), unseen


def is_different(machine: Machine, instruction: Instruction, copy: bytes, at: int) -> bool:
    # Where the last copy was: the emulator forgets it.
    machine.write({instruction.address: instruction.word})
    verdicts = (compare(machine, instruction, copy, at, state) for state in range(machine.states))
    return Verdict.DIFFERENT in verdicts


def copy_with(copy: bytes, bit: int) -> bytes:
    wrong = bytearray(copy)
    wrong[bit // 8] ^= 1 << bit % 8
    return bytes(wrong)


def words_of(code: bytes) -> list[int]:
    return [word for (word,) in struct.iter_unpack("<I", code)]


def is_known(word: int) -> bool:
    return not Instruction(0, word).text.startswith(".inst")


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ((0x9100_0421,), "a register"),
        ((0xB100_043F,), "flags"),
        ((0x4E20_1C41,), "a vector register"),
        ((0xD51B_4420,), "FPCR"),
        ((0xF900_03E1,), "the stack"),
        ((0x9100_43FF,), "the stack pointer"),
        ((0xF900_0001, 0xD503_201F), "memory"),
        ((0xC85F_7C01, 0xD503_201F), "the exclusive monitor"),
        ((0xD420_0000,), "a trap"),
        ((0xD65F_03C0,), "where control goes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_copy_does_besides_is_found(wrong: tuple[int, ...], what: str) -> None:
    machine = Machine(traps(MIB // 2, SEED), [100 * MIB], states=32, seed=SEED)
    nop = Instruction(HERE, 0xD503_201F)
    assert is_different(machine, nop, encoding.pack(*wrong), machine.slot(0))


def test_copies_far_from_what_they_name_are_at_most_seven_words_long() -> None:
    # Four halves, none of which is easy to make.
    address = 0xFEDC_BA98_7654_3210
    for word in (0x1000_0001, 0x9000_0001, 0x5800_0001, 0x9C00_0001, 0xD800_0001, 0xD63F_0020):
        assert len(Instruction(address, word).moved_to(0x1000).code) <= LONGEST


# -- what an instruction is -------------------------------------------------


def test_classes_are_those_of_another_disassembler(root: Path) -> None:
    disassembler = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    words = {word for name in BINARIES[:3] for word in distinct_words(root / name)[:20_000]}
    rng = random.Random(SEED)
    words |= {random_word(rng, HERE) for _ in range(5000)}
    for word in words:
        instruction = decode(encoding.pack(word), HERE)
        for line in disassembler.disasm_lite(encoding.pack(word), HERE, 1):
            mnemonic, operands = line[2:]
            if instruction is None:
                assert mnemonic == "udf", line
            else:
                check_class(instruction, mnemonic, operands)


def distinct_words(path: Path) -> list[int]:
    with ModuleImage.open(str(path)) as module:
        code = b"".join(module.text_bytes(lo, hi - lo) for lo, hi in module.executable_ranges)
    every = np.unique(np.frombuffer(code, "<u4"))
    np.random.default_rng(SEED).shuffle(every)
    return [int(word) for word in every]


def check_class(instruction: Instruction, mnemonic: str, operands: str) -> None:
    text = f"{instruction.word:#010x} {mnemonic} {operands}"
    name, _, condition = mnemonic.partition(".")
    direct = name in ("b", "bl", "bc", "cbz", "cbnz", "tbz", "tbnz")
    target = int(operands.rpartition("#")[2], 16) if direct else None
    assert instruction.branch_target() == target, text
    assert instruction.is_call() == (name[:2] == "bl" and name[:3] in ("bl", "blr")), text
    ends = {"br", "braa", "brab", "braaz", "brabz", "ret", "retaa", "retab", "eret", "drps"}
    always = name in ("b", "bc") and condition in ("", "al", "nv")
    assert instruction.ends_flow() == (name in ends | {"brk", "hlt", "udf"} or always), text
    assert instruction.is_return() == (name in ("ret", "retaa", "retab")), text
    live = {"bl", "nop", "brk", "isb", "svc", "hvc", "smc"}
    assert instruction.may_change_live() == (name in live or mnemonic == "b"), text
    assert instruction.is_nop() == (name == "nop"), text
    assert instruction.is_bti() == (name == "bti"), text
    assert instruction.is_landing_pad() == (
        mnemonic in ("paciasp", "pacibsp") or (name == "bti" and "c" in operands)
    ), text
    assert instruction.signs_return() == {"paciasp": "a", "pacibsp": "b"}.get(name), text
    assert instruction.binds_next() == (name == "movprfx" or name[:3] in ("cpy", "set")), text


def test_branch_targets_are_those_of_each_branch(root: Path) -> None:
    with ModuleImage.open(str(root / BINARIES[0])) as module:
        start, end = module.executable_ranges[0]
        code = module.text_bytes(start, end - start)
    one_by_one = [
        Instruction(start + index, int.from_bytes(code[index : index + 4], "little"))
        for index in range(0, len(code), 4)
    ]
    expected = [target for one in one_by_one if (target := one.branch_target()) is not None]
    assert sorted(branch_targets(code, start)) == sorted(expected)
    assert len(branch_targets(b"", start)) == 0
    assert len(branch_targets(code[:3], start)) == 0


@pytest.mark.parametrize("code", ["", "c0035f", "00000000", "ffff0000", "00000002", "ffffff07"])
def test_h20_what_is_no_instruction_is_none(code: str) -> None:
    assert decode(bytes.fromhex(code), HERE) is None


# -- refusals ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (0xD400_0001, "svc"),
        (0xD400_0002, "hvc"),
        (0xD400_0003, "smc"),
        (0xD420_0000, "brk"),
        (0xD440_0000, "hlt"),
        (0xD4A0_0001, "dcps1"),
        (0x0000_0001, "no instruction"),
        (0xD69F_03E0, "eret"),
        (0xD6BF_03E0, "drps"),
        (0xD69F_0BFF, "kernel"),  # eretaa
        (0xD63F_03C0, "blr x30"),
        (0xD63F_0BDF, "blraaz x30"),
        (0xD73F_0BC1, "blraa x30, x1"),
        (0xD73F_083E, "blraa x1, x30"),
        (0xC800_7C41, "stxr"),
        (0xC85F_7C41, "ldxr"),
        (0xC820_0861, "stxp"),
        (0xC87F_8861, "ldaxp"),
        (0x8900_7C41, "exclusive"),  # sttxr
        (0x1901_0440, "cpyfp"),
        (0x1D81_0440, "cpye"),
        (0x19C2_0420, "setp"),
        (0x0420_BC20, "movprfx"),
        (0x0411_2020, "movprfx"),
        (0xD523_3060, "transaction"),
        (0xD503_24FF, "follow"),  # pacm
        (0xDAC1_A3FE, "own address"),  # paciasppc
        (0xDAC1_A7FE, "own address"),  # pacibsppc
        (0xDAC1_83FE, "own address"),  # pacnbiasppc
        (0xF380_021F, "own address"),  # autiasppc
        (0x5500_021F, "own address"),  # retaasppc
        (0x7400_0041, "new"),  # cbgt
        (0xDC00_0041, "no instruction"),  # a literal load of nothing
        (0xD61F_03C1, "no branch"),
        (0xD580_0000, "no branch"),
    ],
)
def test_h6_what_cannot_run_elsewhere_says_so(word: int, reason: str) -> None:
    with pytest.raises(UnmovableError, match=reason):
        Instruction(HERE, word).moved_to(FAR)


@pytest.mark.parametrize("word", [0x1400_0000, 0x9400_0000, 0x5400_0000, 0xB400_0001, 0x3600_0001])
@pytest.mark.parametrize("distance", [-128 * MIB - 64, 128 * MIB + 64])
def test_h13_what_refers_too_far_says_so(word: int, distance: int) -> None:
    with pytest.raises(OutOfReachError):
        Instruction(HERE, word).moved_to(HERE + distance)


def test_conditions_of_newer_processors_stay_theirs() -> None:
    # bc.eq, which the emulator does not know.
    assert texts(Instruction(HERE, 0x5400_0050).moved_to(FAR).code, FAR) == [
        f"bc.ne #{FAR + 8:#x}",
        f"b #{HERE + 8:#x}",
    ]
    moved = Instruction(HERE, 0x5400_005E).moved_to(FAR)
    assert texts(moved.code, FAR) == [f"bc.al #{FAR + 4:#x}", f"b #{HERE + 8:#x}"]
    assert not moved.falls_through


# -- assembling -------------------------------------------------------------


def texts(code: bytes, at: int) -> list[str]:
    return [Instruction(at + 4 * index, word).text for index, word in enumerate(words_of(code))]


def test_words_are_what_another_disassembler_reads() -> None:
    for name in ("nop", "ret", "paciasp", "autiasp", "pacibsp", "autibsp"):
        assert texts(getattr(encoding, name.upper()), 0) == [name]
    assert texts(encoding.BRK, 0) == ["brk #0"]
    assert texts(encoding.branch(HERE, HERE - 128 * MIB), HERE) == [f"b #{HERE - 128 * MIB:#x}"]
    end = HERE + 128 * MIB - 4
    assert texts(encoding.branch_link(HERE, end), HERE) == [f"bl #{end:#x}"]
    for target in (HERE + 128 * MIB, HERE - 128 * MIB - 4, HERE + 2):
        with pytest.raises(OutOfReachError):
            encoding.branch(HERE, target)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *((0, 1), (0xFFFF, 1), (0x1234_0000_0000, 1), ((1 << 64) - 1, 1), ((1 << 64) - 8, 1)),
        *((0x1_0001, 2), (0x7F12_3456_789A, 3), (0xFFFF_7F12_3456_789A, 3)),
        (0x1234_5678_9ABC_DEF0, 4),
    ],
)
def test_constants_take_the_fewest_words(value: int, words: int) -> None:
    code = encoding.move_constant(7, value)
    assert len(code) == 4 * words
    assert result(code, HERE) == value


@pytest.mark.parametrize(
    ("distance", "words"),
    [
        (0, 1),
        (-MIB, 1),
        (MIB - 1, 1),
        (MIB, 1),
        (MIB + 1, 2),
        (1 << 31, 1),
        (-(1 << 32), 1),
        (1 << 33, 2),
    ],
)
def test_addresses_take_the_fewest_words(distance: int, words: int) -> None:
    code = encoding.address_in(7, HERE, HERE + distance)
    assert len(code) == 4 * words
    assert result(code, HERE) == HERE + distance


def result(code: bytes, at: int) -> int:
    """What is in x7 afterwards."""
    uc = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
    uc.mem_map(at, PAGE)
    uc.mem_write(at, code)
    uc.emu_start(at, at + len(code))
    return uc.reg_read(arm64.UC_ARM64_REG_X7)
