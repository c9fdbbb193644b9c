"""Random bytes as code: decoding, moving and planning never fail otherwise than by refusal."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.engine.planning import SITE, TEXT, TEXT_BYTES, Case, Text, mapped
from uftrace_agent.engine.layout import CodeRegion
from uftrace_agent.engine.model import Refusal, RefusedError, Writer
from uftrace_agent.engine.site import Gap, LiveSled
from uftrace_agent.engine.x86_64.forms import X86Architecture
from uftrace_agent.engine.x86_64.instruction import (
    OutOfReachError,
    UnmovableError,
    decode,
)
from uftrace_agent.symbols.xray_sleds import SledKind

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
            size = rng.choice((0, 1, 2, 5, 40))
            is_go = rng.random() < 0.3
            try:
                # `plan` checks the promises of every plan.
                plan = case.plan(
                    module[start:],
                    address=SITE + start,
                    size=size,
                    body=module[start : start + size],
                    behind=module[start + size : start + size + 8],
                    is_go=is_go,
                    is_go_compiled=is_go,
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
                    tails = [site.tail for site in plan.sites()]
                    assert address not in taken or patch in tails, hex(address)
            for site in plan.sites():
                for address in range(site.head.address, site.head.end):
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


# -- functions about which everything is known ------------------------------

# Where the functions lie that compilers call, and what they are.
PROFILERS = {
    SITE + 0x800: "__fentry__",
    SITE + 0x810: "mcount",
    SITE + 0x820: "__cyg_profile_func_enter",
    SITE + 0x830: "__cyg_profile_func_exit",
}
SLEDS = (
    bytes.fromhex("eb09660f1f840000020000"),
    bytes.fromhex("c32e660f1f840000020000"),
    bytes.fromhex("eb0f57560f0b") + b"\x90" * 11,
    bytes.fromhex("eb1457560f0b") + b"\x90" * 16,
)
# Beginnings, ends and tables as compilers make them.
PARTS = tuple(
    bytes.fromhex(code)
    for code in (
        *("f30f1efa", "554889e5", "554889e54883ec20", "0f1f440000", "9090909090", "c3", "c9c3"),
        *("4c8d1500100000", "31c0c3", "ffe0", "3effe0", "488d0500100000", "eb00", "7400", "ff25"),
        *("e800000000", "e900000000", "b8070000000f05c3", "0f0b", "66662e0f1f840000000000"),
    )
)


# A sled, and what makes room for a jump in several instructions only.
BEGINNINGS = (SLEDS[0], SLEDS[0], b"\x55\x53\x50\x51\x52", b"\x48\x89\xf8" * 2)


# Stubs there; and all of the address space taken in which jumps could lead.
REGION = CodeRegion(TEXT - (64 << 20), 0x10000, TEXT - (62 << 20))
TAKEN = (
    (TEXT - (3 << 30), (3 << 30) - (64 << 20)),
    (TEXT - (60 << 20), 60 << 20),
    (TEXT + TEXT_BYTES, 3 << 30),
)


def random_function(rng: random.Random) -> tuple[bytes, tuple[LiveSled, ...]]:
    """Code out of likely parts and noise, with its sleds: right ones and wrong ones."""
    code = b"" if rng.random() < 0.5 else rng.choice(BEGINNINGS)
    places = [0] if code == SLEDS[0] else []
    for _ in range(rng.randrange(1, 9)):
        kind = rng.random()
        if kind < 0.3:
            code += rng.choice(PARTS)
        elif kind < 0.5:
            target = rng.choice((*PROFILERS, SITE + rng.randrange(256)))
            distance = target - (SITE + len(code) + 5)
            code += rng.choice(b"\xe8\xe9").to_bytes(1, "little")
            code += distance.to_bytes(4, "little", signed=True)
        elif kind < 0.7:
            places.append(len(code))
            code += rng.choice(SLEDS)
        else:
            code += random_code(rng)
    if rng.random() < 0.2:
        places.append(rng.randrange(len(code) + 64))
    text = code + bytes(40)
    sleds = (
        LiveSled(SITE + place, rng.choice(list(SledKind)), text[place : place + 40])
        for place in sorted(places)
    )
    return code, tuple(sleds)


@pytest.mark.parametrize("seed", range(3))
def test_any_function_of_any_compiler_is_refused_or_gets_a_sound_plan(seed: int) -> None:
    rng = random.Random(300 + seed)
    architecture = X86Architecture()
    outcomes: Counter[str] = Counter()
    for _ in range(ROUNDS // 4):
        code, sleds = random_function(rng)
        before = random_code(rng)
        size = rng.choice((0, len(code), len(code), rng.randrange(1, 300)))
        gaps = [
            Gap(SITE - 16, b"\x90" * rng.randrange(17), before),
            Gap(SITE + size, rng.choice((b"\x90", b"\xcc", b"\0")) * 16, code[:size]),
        ]
        case = Case(architecture=architecture)
        if rng.random() < 0.5:
            case = Case(TAKEN, REGION, architecture)
        try:
            # `plan` checks the promises of every plan.
            plan = case.plan(
                code + bytes(24),
                size=size,
                writer=rng.choice(list(Writer)),
                frugal=rng.random() < 0.3,
                has_exit=rng.random() < 0.7,
                profiled=dict(rng.sample(sorted(PROFILERS.items()), rng.randrange(5))),
                gaps=gaps[: rng.randrange(3)],
                text=Text(code + bytes(64)),
                next_entry=rng.choice((0, SITE + size, SITE + rng.randrange(300))),
                sleds=sleds if rng.random() < 0.6 else (),
                body=rng.choice((b"", code[:size], code)),
                exit_refusal=rng.choice((None, None, Refusal.IRREGULAR_FRAME)),
                entry_only=rng.random() < 0.2,
                allow_multi=rng.random() < 0.5,
            )
        except RefusedError as error:
            assert error.detail
            outcomes[error.refusal.name] += 1
            continue
        outcomes[plan.form.name] += 1
    assert {"SLED", "CALL", "MULTI", "PUN", "NEAR", "NOP"} <= set(outcomes), outcomes
