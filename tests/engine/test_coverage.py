"""The share of functions that can be patched in live processes must not fall."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.coverage import LIBRARIES, Coverage, libraries, measure
from tests.support.programs import postgres

# What is promised, and what a change in luck (ASLR decides what is free) leaves.
PROMISED = 0.98


def assert_covered(coverage: Coverage) -> None:
    assert coverage.functions > 200, coverage  # ld.so has some 300
    assert coverage.share >= PROMISED, coverage


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Coverage]:
    with libraries() as pid:
        names = [f"{name}*" for name in LIBRARIES]
        return measure(pid, names, tmp_path_factory.mktemp("symbols"), examples=3)


@pytest.mark.parametrize("name", LIBRARIES)
def test_functions_of_libraries_can_be_patched(found: list[Coverage], name: str) -> None:
    coverage = next(one for one in found if one.module.startswith(name))
    assert_covered(coverage)


def test_functions_of_a_program_can_be_patched(tmp_path: Path) -> None:
    # A PIE, whose heap lies where many of its jumps would lead.
    with postgres() as program:
        (coverage,) = measure(program.pid, ["postgres"], tmp_path, examples=3)
    assert_covered(coverage)
