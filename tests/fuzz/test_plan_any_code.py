"""Random bytes as code: decoding, moving and planning never fail otherwise than by refusal."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.engine.planning import SITE, TEXT, TEXT_BYTES, Case, Text, mapped
from uftrace_agent.engine.model import RefusedError, Writer
from uftrace_agent.engine.site import Gap
from uftrace_agent.engine.x86_64.forms import X86Architecture
from uftrace_agent.engine.x86_64.instruction import (
    OutOfReachError,
    UnmovableError,
    decode,
)

ROUNDS = 6000
# Bytes that make prefixes, jumps, calls, pushes and ModRM bytes with rip more likely.
LIKELY = bytes.fromhex("26 2e 36 3e 40 41 48 4c 64 65 66 67 c4 c5 62 f0 f2 f3 0f e8 e9 eb 74 ff 15")
LIKELY += bytes.fromhex("25 05 0d 50 55 c3 8b 89 83 ec e3 38 3a 1e fa 90")


def random_code(rng: random.Random) -> bytes:
    length = rng.randrange(1, 48)
    share = rng.random()
    return bytes(
        rng.choice(LIKELY) if rng.random() < share else rng.randrange(256) for _ in range(length)
    )


@pytest.mark.parametrize("seed", range(3))
def test_any_bytes_decode_and_move_or_say_why_not(seed: int) -> None:
    rng = random.Random(seed)
    moved = 0
    for _ in range(ROUNDS):
        code = random_code(rng)
        instruction = decode(code, SITE)
        if instruction is None:
            continue
        assert 1 <= instruction.size <= 15
        assert code.startswith(instruction.code)
        assert instruction.text
        try:
            copy = instruction.moved_to(SITE + rng.randrange(-(1 << 32), 1 << 32))
        except (UnmovableError, OutOfReachError) as error:
            assert str(error)
            continue
        moved += 1
        assert 0 < len(copy.code) <= 40
    assert moved > ROUNDS / 10


@pytest.mark.parametrize("seed", range(3))
def test_any_function_is_refused_or_gets_a_sound_plan(seed: int) -> None:
    # Functions beside, over and inside each other, in one address space.
    rng = random.Random(100 + seed)
    architecture = X86Architecture()
    outcomes: Counter[str] = Counter()
    for _ in range(ROUNDS // 20):
        blocked = [
            (TEXT + rng.randrange(-(1 << 31), 1 << 31) // 4096 * 4096, rng.randrange(1, 1 << 29))
            for _ in range(rng.randrange(4))
        ]
        case = Case(blocked, architecture=architecture)
        module = rng.randbytes(64) + random_code(rng) + rng.randbytes(64)
        text = Text(module)
        taken: dict[int, int] = {}
        for _ in range(20):
            start = rng.randrange(len(module))
            gap = Gap(SITE + rng.randrange(len(module)), b"\x90" * rng.randrange(12), b"\xc3")
            try:
                # `plan` checks the promises of every plan.
                plan = case.plan(
                    module[start:],
                    address=SITE + start,
                    size=rng.choice((0, 1, 2, 5, 40)),
                    writer=rng.choice((Writer.AUTO, Writer.BYTE, Writer.STOP)),
                    frugal=rng.random() < 0.5,
                    has_exit=rng.random() < 0.5,
                    gaps=[gap] if rng.random() < 0.2 else (),
                    text=rng.choice((text, None)),
                    profiled={SITE + rng.randrange(256): "__fentry__"},
                )
            except RefusedError as error:
                assert error.detail
                outcomes[error.refusal.name] += 1
                continue
            outcomes[plan.form.name] += 1
            # No plan changes what another relies on.
            for patch in plan.patches():
                for address in patch.changed():
                    assert address not in taken or patch is plan.tail, hex(address)
            for address in range(plan.head.address, plan.head.end):
                taken[address] = plan.function
    assert outcomes["PUN"] and outcomes["NEAR"] and outcomes["OVERLAPS_NEIGHBOUR"], outcomes


@pytest.mark.parametrize("seed", range(3))
def test_any_address_space_is_planned_in_without_an_overlap(seed: int) -> None:
    rng = random.Random(200 + seed)
    for _ in range(40):
        blocked = []
        for _ in range(rng.randrange(60)):
            start = TEXT + rng.randrange(-(3 << 30), 3 << 30) // 4096 * 4096
            blocked.append((start, rng.randrange(1, 1 << 16) * 4096))
        case = Case(blocked)
        for index in range(60):
            code = random_code(rng).ljust(24, b"\x41")
            try:
                case.plan(code, address=SITE + index * 64)
            except RefusedError:
                continue
        own = [mapped(TEXT, TEXT_BYTES), *(mapped(*block) for block in blocked)]
        maps = [(one.start, one.start + one.size) for one in case.layout.pending()]
        for start, end in maps:
            assert start % 4096 == end % 4096 == 0
            assert all(end <= other.start or other.end <= start for other in own)
        for (_, end), (start, _) in zip(sorted(maps), sorted(maps)[1:], strict=False):
            assert end <= start
