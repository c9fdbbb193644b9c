"""Differential tests of out-of-line execution: moved instructions do what they did.

The long form is tests/torture/prove_relocation.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.relocation import Case, Mover, text_difference
from tests.engine.relocation_prover import Prover, Tally
from tests.engine.relocation_runner import (
    Part,
    Programs,
    Runner,
    RunnerFailedError,
    Verdict,
    build,
)
from tests.engine.relocation_sources import BASE, STATES, Binary, Generated
from uftrace_agent.engine.x86_64.instruction import (
    OutOfReachError,
    UnmovableError,
    decode,
)

SEED = 1
FUNCTIONS = 700
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
BINARIES = (
    LIBRARIES / "libc.so.6",
    LIBRARIES / "ld-linux-x86-64.so.2",
    LIBRARIES / "libcrypto.so.3",
    LIBRARIES / "libstdc++.so.6",
    LIBRARIES / "libpython3.11.so.1.0",
    Path("/usr/lib/postgresql/15/bin/postgres"),
    Path("/usr/bin/gdb"),
)
# What really cannot run elsewhere, and stands in functions of these.
UNMOVABLE = {"syscall", "ud2", "int3", "int", "hlt", "xbegin", "xabort", "call", "jmp"}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return build(tmp_path_factory.mktemp("runners"))


def assert_same(tally: Tally) -> None:
    assert not tally.different, "\n".join(tally.mismatches[:20])
    assert tally.unsettled < 0.03 * tally.compared
    assert tally.by_text < 0.05 * tally.compared
    assert min(tally.native, tally.emulated) > 0.8 * tally.compared > 3000


@pytest.mark.parametrize("path", BINARIES, ids=lambda path: path.name)
def test_first_instructions_of_real_functions_run_elsewhere(programs: Programs, path: Path) -> None:
    # WHEN the first one, two, three and four instructions of functions are moved,
    # and each instruction of them
    with Prover(Binary(path, FUNCTIONS), programs, SEED) as prover:
        prover.prove(0)
    # THEN they do the same there, in the emulator and on the processor
    assert_same(prover.tally)
    refused = {reason.split("`")[1] for reason in prover.tally.refused}
    assert refused <= UNMOVABLE, prover.tally.refused


@pytest.mark.parametrize("share", [0, 1, 2], ids=["tables", "random", "more"])
def test_h13_h14_generated_encodings_run_elsewhere(programs: Programs, share: int) -> None:
    with Prover(Generated(3, 9000), programs, SEED) as prover:
        prover.prove(share)
    assert_same(prover.tally)


# -- what is wrong is found -------------------------------------------------


def moved(code: str, address: int = BASE + 0x1800) -> Case:
    instruction = decode(bytes.fromhex(code), address)
    assert instruction is not None
    (case,) = Mover(Generated().areas(), 7, STATES).cases([instruction])
    return case


@pytest.fixture(params=["native", "emulated"])
def runner(programs: Programs, request: pytest.FixtureRequest) -> Iterator[Runner]:
    with Runner(getattr(programs, request.param), Generated().world(SEED)) as opened:
        yield opened


@pytest.mark.parametrize(
    "code",
    [
        *("488b0510500000", "48890d10500000", "488d0d10500000", "48833d1050000005"),
        *("c7051050000001000000", "0f2905f94f0000", "ff3510500000", "ff2510500000"),
        *("e8fb0f0000", "ff1510500000", "e9fb0f0000", "ffd3"),
    ],
)
def test_a_wrong_bit_anywhere_is_found(runner: Runner, code: str) -> None:
    # GIVEN a copy that is right
    case = moved(code)
    assert runner.run([case.packed])[0].verdict in (Verdict.SAME, Verdict.SAME_FAULT)
    # WHEN one bit of it is another
    wrong = []
    for bit in range(8 * len(case.moved)):
        copy = bytearray(case.moved)
        copy[bit // 8] ^= 1 << bit % 8
        wrong.append(case.with_copy(bytes(copy)))
    # THEN that is seen, but where the bit means nothing in that state
    verdicts = runner.run(wrong).verdicts
    found = [verdict == Verdict.DIFFERENT for verdict in verdicts]
    assert sum(found) > 0.85 * len(found), (sum(found), len(found))


@pytest.mark.parametrize(
    ("code", "copy", "part"),
    [
        ("90", "48ffc3", Part(0)),
        ("90", "660fefc9", Part.VECTORS),
        ("90", "f9f5f9", Part.FLAGS),
        ("90", "c6442488ff", Part.ARENA),
        ("48890d10500000", "90", Part.REFERENCES),
    ],
)
def test_what_a_copy_changes_besides_is_found(
    runner: Runner, code: str, copy: str, part: Part
) -> None:
    case = moved(code)
    back = case.moved[-5:]
    # A second jump back, from where it stands now.
    distance = int.from_bytes(back[1:], "little", signed=True)
    distance += len(case.moved) - 5 - len(bytes.fromhex(copy))
    changed = bytes.fromhex(copy) + b"\xe9" + distance.to_bytes(4, "little", signed=True)
    result = runner.run([case.with_copy(changed)])[0]
    assert result.verdict is Verdict.DIFFERENT
    assert part in result.parts
    assert str(result)


def test_what_kills_the_harness_is_told(programs: Programs) -> None:
    case = moved("90")
    with (
        Runner(programs.native, Generated().world(SEED)) as runner,
        pytest.raises(RunnerFailedError, match="SIGSYS in case 1 of 3"),
    ):
        # A copy that calls the kernel.
        runner.run([case.packed, case.with_copy(b"\x0f\x05"), case.packed])


@pytest.mark.parametrize(
    ("code", "copy"),
    [
        ("c5f96f0510200000", "c5f96f0511200000"),
        ("c5f96f0510200000", "c5fa6f0510200000"),
        ("7410", "7510"),
        ("90", "6690"),
    ],
)
def test_another_text_is_found(code: str, copy: str) -> None:
    case = moved(code)
    assert not text_difference(case)
    instruction = decode(bytes.fromhex(copy), case.instructions[0].address)
    assert instruction is not None
    back = case.moved[-5:]
    other = Case(
        case.instructions,
        case.destination,
        instruction.moved_to(case.destination).code + back,
        False,
        case.packed,
    )
    assert text_difference(other)


# -- refusals ---------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        *("0f05", "0f34", "cd80", "cc", "f1", "0f0b", "0fb9c0", "0fffc0", "f4"),
        *("c7f810000000", "c6f801", "ff1d00100000", "ff2d00100000", "cb", "ca0800", "cf", "48cf"),
        *("ff1424", "ff542408", "ffd4", "678b0500000000", "67ff2500000000"),
        *("66e800000000", "66e900000000", "667410", "66eb10", "660f8400000000"),
        *("66ff1500100000", "66ff2500100000", "66ffd0"),
        # With a lock prefix they are no instructions.
        *("f0f20f8410000000", "f0f27410", "f0f3e810000000", "f065f2ebf2", "f0f34874f0"),
        # The target is read off the stack, through half of its pointer.
        *("67ff542408", "67ff1424", "67ff54840f"),
    ],
)
def test_h6_what_cannot_run_elsewhere_says_so(code: str) -> None:
    instruction = decode(bytes.fromhex(code), 0x401000)
    assert instruction is not None
    with pytest.raises(UnmovableError, match=instruction.raw.mnemonic.split()[-1]):
        instruction.moved_to(0x501000)


@pytest.mark.parametrize("code", ["8b0500000000", "e900000000", "7400", "ff1500000000", "e3fe"])
@pytest.mark.parametrize("distance", [-(1 << 31) - 4096, (1 << 31) + 4096])
def test_h13_what_refers_too_far_says_so(code: str, distance: int) -> None:
    instruction = decode(bytes.fromhex(code), 1 << 40)
    assert instruction is not None
    with pytest.raises(OutOfReachError):
        instruction.moved_to((1 << 40) + distance)


@pytest.mark.parametrize("code", ["", "06", "c50578", "ffff", "0f", "48"])
def test_h20_what_is_no_instruction_is_none(code: str) -> None:
    assert decode(bytes.fromhex(code), 0x401000) is None
