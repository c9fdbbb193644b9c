"""On an AArch64 processor: moved instructions leave what they left where they were.

In the emulator: tests/engine/test_aarch64_relocation.py, of which this is a sample, with
what that emulator does not do: signed pointers, and instruction fetch through real pages.
"""

from __future__ import annotations

import ctypes
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.arm.native_snippets import (
    AREAS,
    BASE,
    HOME_SIZE,
    MEMORY,
    MIB,
    STACK,
    Process,
    State,
    write_home,
)
from uftrace_agent.engine.aarch64.encoding import fits
from uftrace_agent.engine.aarch64.instruction import Instruction
from uftrace_agent.engine.moved import OutOfReachError

SEED = 1
CASES = 600
STATES = 3
BEHIND, TARGET, INDIRECT = 1, 2, 3
MEMORY_SIZE = STACK + 0x4000 - MEMORY
# Each instruction has a place of its own, with room for what it refers to.
SPACING = 0x1000
INDIRECT_AT = BASE + HOME_SIZE - 8
REACH = 128 * MIB - 64

# AT_HWCAP, HWCAP_PACA: whether the processor signs pointers. The guest's does.
SIGNS = bool(ctypes.CDLL(None).getauxval(16) & 1 << 30)
# pacia, paciza, pacib, pacizb of x16 with x17: to sign a pointer for a branch.
SIGNING = {"a": 0xDAC1_0230, "az": 0xDAC1_23F0, "b": 0xDAC1_0630, "bz": 0xDAC1_27F0}
SIGNED_BRANCHES = {
    0xD71F_0A11: "a",  # braa x16, x17
    0xD73F_0A11: "a",  # blraa x16, x17
    0xD71F_0E11: "b",  # brab x16, x17
    0xD73F_0E11: "b",  # blrab x16, x17
    0xD61F_0A1F: "az",  # braaz x16
    0xD63F_0A1F: "az",  # blraaz x16
    0xD61F_0E1F: "bz",  # brabz x16
    0xD63F_0E1F: "bz",  # blrabz x16
}
# What means the same anywhere: its copy has the same bytes.
UNCHANGED = (
    *(0xD503_201F, 0xD503_241F, 0xD503_245F, 0xD503_233F, 0xD503_237F),  # nop, bti, pac?sp
    *(0xA9BF_7BFD, 0xA9BE_4FF4, 0xD101_03FF, 0xF81F_0FFE, 0x6DBF_27E8),  # prologues
    *(0xAA00_03E1, 0x7100_041F, 0xEB01_001F, 0x1A9F_17E0, 0x4E22_1C20, 0xD53B_D048),
)


@dataclass(frozen=True)
class Case:
    """An instruction at home, and what its state must be like.

    Attributes:
        instruction: It.
        pointer: A register that holds a pointer to code, plain or signed; None for none.
        key: How it is signed.
    """

    instruction: Instruction
    pointer: int | None = None
    key: str | None = None


def cases(rng: random.Random) -> Iterator[Case]:
    for number in range(CASES):
        address = BASE + SPACING * (1 + number) + 4 * rng.randrange(SPACING // 8)
        case = random_case(rng, address)
        if case.key is None or SIGNS:
            yield case


def random_case(rng: random.Random, address: int) -> Case:
    register = rng.choice((16, 17, 29, 30, 31, rng.randrange(31)))
    near = rng.choice((-3, -2, 2, 3, 4, rng.randrange(5, 200)))
    form = rng.randrange(8)
    if form == 0:
        word = rng.choice((0x1400_0000, 0x9400_0000)) | near & 0x03FF_FFFF
    elif form == 1:
        word = 0x5400_0000 | (near & 0x7FFFF) << 5 | rng.randrange(16)
    elif form == 2:
        word = rng.choice((0x34, 0x35, 0xB4, 0xB5)) << 24 | (near & 0x7FFFF) << 5 | register
    elif form == 3:
        word = rng.choice((0x36, 0x37, 0xB6, 0xB7)) << 24 | rng.randrange(32) << 19
        word |= (near & 0x3FFF) << 5 | register
    elif form == 4:
        word = rng.choice((0x10, 0x90)) << 24 | rng.getrandbits(2) << 29
        word |= rng.getrandbits(19) << 5 | register
    elif form == 5:
        opcode = rng.choice((0x18, 0x58, 0x98, 0xD8, 0x1C, 0x5C, 0x9C))
        word = opcode << 24 | (near & 0x7FFFF) << 5 | register
    elif form == 6:
        if rng.randrange(2):
            word = rng.choice(tuple(SIGNED_BRANCHES))
            return Case(Instruction(address, word), 16, SIGNED_BRANCHES[word])
        pointer = rng.randrange(30)
        word = rng.choice((0xD61F_0000, 0xD63F_0000, 0xD65F_0000)) | pointer << 5
        return Case(Instruction(address, word), pointer)
    else:
        word = rng.choice(UNCHANGED)
    return Case(Instruction(address, word))


def random_state(rng: random.Random) -> State:
    general = [
        rng.choice((0, 1, rng.getrandbits(32), rng.getrandbits(64), MEMORY + rng.randrange(0x8000)))
        for _ in range(31)
    ]
    stack = STACK + 16 * rng.randrange(64)
    return State(tuple(general), stack, rng.randrange(16) << 28, rng.randbytes(512))


def with_register(state: State, number: int, value: int) -> State:
    general = list(state.general)
    general[number] = value
    return State(tuple(general), state.stack, state.flags, state.vectors)


def put_home(process: Process, case: Case) -> None:
    instruction = case.instruction
    at = instruction.address
    # What literal loads find; then what is run over it.
    noise = random.Random(at)
    write_home({at + 4 * word: noise.getrandbits(32) for word in range(-8, 220)})
    target = instruction.branch_target()
    if target is not None:
        process.land(target, TARGET)
    process.land(at + 4, BEHIND)
    write_home({at: instruction.word})


def copies(process: Process, case: Case) -> Iterator[int]:
    """Where to start for the original and each of its copies."""
    instruction = case.instruction
    yield process.start(0, instruction.address)
    for area, distance in enumerate(AREAS):
        at = process.room(area)
        try:
            moved = instruction.moved_to(at)
        except OutOfReachError:
            assert abs(distance) > REACH - HOME_SIZE
            continue
        back = instruction.address + 4
        near = fits(back - at, 28) and abs(back - at) < REACH
        code = process.put(area, moved.code, back if near else None)
        yield process.start(area, code)


def test_moved_instructions_leave_what_they_left() -> None:
    # GIVEN instructions at home, and their copies in all areas
    rng = random.Random(SEED)
    chosen = list(cases(rng))
    compared: Counter[str] = Counter()
    with Process() as process:
        process.land(INDIRECT_AT, INDIRECT)
        for case in chosen:
            put_home(process, case)
        starts = {case: list(copies(process, case)) for case in chosen}
        signers = {key: signer(process, word) for key, word in SIGNING.items() if SIGNS}
        process.seal()
        # WHEN each runs where it was and where it was moved, from the same states
        for case, (original, *moved) in starts.items():
            for _ in range(STATES):
                state, memory = random_state(rng), rng.randbytes(MEMORY_SIZE)
                if case.pointer is not None:
                    state = with_register(state, case.pointer, INDIRECT_AT)
                if case.key is not None:
                    signed = process.run(signers[case.key], state, memory).general[16]
                    state = with_register(state, 16, signed)
                expected = process.run(original, state, memory)
                assert expected.landing in (BEHIND, TARGET, INDIRECT)
                for start in moved:
                    # THEN it leaves the same, and control goes to the same place
                    left = process.run(start, state, memory)
                    assert left == expected, (case, hex(start), state)
                    compared[case.instruction.text.split()[0]] += 1
    assert compared.total() > 3 * STATES * CASES
    assert len(compared) > 40, compared


def signer(process: Process, word: int) -> int:
    return process.start(0, process.put(0, word.to_bytes(4, "little"), None))


@pytest.mark.parametrize(
    "wrong",
    [
        0x9100_0421,  # add x1, x1, #1
        0xB100_043F,  # cmn x1, #1
        0x6E22_1C20,  # eor v0, v1, v2
        0x9100_43FF,  # add sp, sp, #16
        0xF900_03FF,  # str xzr, [sp]
        0x9A9F_07FE,  # cset x30, ne
    ],
)
def test_what_a_copy_does_besides_is_seen(wrong: int) -> None:
    rng = random.Random(SEED)
    nop = Instruction(BASE + SPACING, 0xD503_201F)
    with Process() as process:
        put_home(process, Case(nop))
        original = process.start(0, nop.address)
        copy = process.put(1, wrong.to_bytes(4, "little"), nop.address + 4)
        start = process.start(1, copy)
        process.seal()
        outcomes = []
        for _ in range(8):
            state, memory = random_state(rng), rng.randbytes(MEMORY_SIZE)
            expected = process.run(original, state, memory)
            outcomes.append(process.run(start, state, memory) == expected)
    assert not all(outcomes)
