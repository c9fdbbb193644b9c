"""Damaged ELF files: read, or refused with one of the agent's errors; never a hang.

The long form is tests/torture/fuzz_elf.py.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from tests.fuzz import elf_campaign, elf_samples
from tests.fuzz.elf_campaign import Campaign
from tests.fuzz.elf_damage import damage
from tests.fuzz.elf_inspection import inspect
from uftrace_agent.symbols.byte_source import MalformedElfError
from uftrace_agent.symbols.demangle import demangle
from uftrace_agent.symbols.module_image import ModuleImage

CASES = 1000
HUGE_CASES = 12
NAMES = 3000


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    elf_samples.build(folder)
    return folder


def assert_sound(campaign: Campaign) -> None:
    told = "\n\n".join(f"seed {seed} ({steps}): {what}" for seed, steps, what in campaign.failures)
    assert not campaign.failures, told


def test_the_samples_are_sound(samples: Path, tmp_path: Path) -> None:
    for path in sorted(samples.glob("*.elf")):
        inspection = inspect(str(path), str(tmp_path))
        assert not inspection.refusal, path
        assert inspection.functions > 5 and inspection.planned > 0, path


def test_damaged_files_are_read_or_refused(samples: Path) -> None:
    # Each in 1 GiB of address space and 10 s of CPU time.
    campaign = elf_campaign.run(samples, 1, CASES, rare=0.0)
    assert_sound(campaign)
    assert campaign.cases == CASES
    assert campaign.read > CASES / 4 and campaign.refusals["MalformedElfError"] > CASES / 20


def test_huge_tables_are_read_or_refused(samples: Path) -> None:
    assert_sound(elf_campaign.run(samples, 1, HUGE_CASES, rare=1.0))


def test_what_a_worker_dies_of_is_told(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a worker that is killed in its second case
    script = tmp_path / "worker"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "seed = int(sys.argv[4])\n"
        "print(f'case {seed}')\n"
        "if seed == 8: sys.stdout.flush(); os.kill(os.getpid(), 9)\n"
        "print(json.dumps({'seed': seed, 'steps': [], 'refusal': '', 'seconds': 0.1}))\n"
        "print(f'case {seed + 1}', flush=True)\n"
        "if seed + 1 == 8: os.kill(os.getpid(), 9)\n"
        "print(json.dumps({'seed': seed + 1, 'steps': [], 'refusal': '', 'seconds': 0.1}))\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    # THEN the case is a failure, and the cases behind it run
    campaign = elf_campaign.run(samples, 7, 4, rare=0.0)
    assert [(seed, what) for seed, _, what in campaign.failures] == [
        (8, "the process ended: signal 9")
    ]
    assert campaign.cases == 4


def test_damage_is_the_same_for_a_seed(samples: Path) -> None:
    data = next(samples.glob("plain.elf")).read_bytes()
    for seed in range(20):
        assert damage(data, seed) == damage(data, seed)
    assert len({damage(data, seed).data for seed in range(50)}) > 40


def test_a_file_that_shrinks_while_it_is_read(samples: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    original = next(samples.glob("library.elf")).read_bytes()
    refused = 0
    for turn in range(40):
        # GIVEN a file that is open
        path = tmp_path / f"library{turn}"
        path.write_bytes(original)
        with ModuleImage.open(str(path)) as image:
            # WHEN it is cut off before anything but its headers was read
            os.truncate(path, rng.randrange(len(original)))
            # THEN what is missing is an error of the agent's
            try:
                assert len(image.functions) >= 0
            except MalformedElfError:
                refused += 1
    assert refused > 20


PIECES = (
    *("N", "S_", "T_", "I", "E", "K", "P", "R", "1a", "3foo", "C", "B_", "B0_", "Nv", "0", "_"),
    *("X", "L", "Z", "St", "Dp", "F", "v", "A1_", "M", "u", "p", "99999", "h0123456789abcdef"),
    # Digits that are none in a mangled name.
    *("\u00b2", "\u0663", "\u3007"),
)


@pytest.mark.parametrize("prefix", ["_Z", "_ZN", "_R", "_RNv", "__ZN", "_ZN4core"])
def test_any_name_is_demangled_or_left(prefix: str) -> None:
    rng = random.Random(prefix)
    for _ in range(NAMES):
        # Few long ones: their parts may refer to each other, again and again.
        count = rng.choice((1, 3, 8, 30)) if rng.random() < 0.98 else 2000
        pieces = rng.sample(PIECES, rng.randrange(1, 6))
        name = prefix + "".join(rng.choice(pieces) for _ in range(count))
        assert demangle(name)
