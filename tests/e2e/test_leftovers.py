"""Whenever an agent is killed, its target goes on; the next agent sets everything back."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.kill_rounds import build_shim, catches_sigtrap, driving
from tests.support.target_process import TargetProcess
from tests.support.text_compare import (
    assert_not_traced,
    assert_text_unchanged,
    text_differences,
)
from tests.targets.build import build


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("kill"))


@dataclass(frozen=True)
class Case:
    """What is patched, and how often its driver is killed.

    Attributes:
        form: `near` and `hop` allow no other form; `any` does.
        most_steps: Look no further for steps to be killed at.
    """

    program: str
    variant: str
    writer: str
    form: str
    patterns: tuple[str, ...]
    kills: int
    arguments: tuple[str, ...] = ()
    most_steps: int = 6000

    def __str__(self) -> str:
        return f"{self.program}-{self.variant}-{self.writer}-{self.form}"


# One busy thread: with more the driver waits for its turn most of the time.
ONE = ("1",)
CASES = [
    Case("many@300", "gcc-O2", "trap", "any", ("*",), 8),
    Case("kinds", "clang-pfe5", "trap", "near", ("kind_*",), 40, ONE),
    Case("kinds", "cyg", "trap", "any", ("kind_*",), 30, ONE),
    Case("kinds", "xray-bare", "auto", "any", ("kind_*",), 30, ONE),
    Case("kinds", "gcc-O2", "auto", "any", ("kind_*",), 30, ONE),
    Case("kinds", "gcc-O2", "stop", "any", ("kind_*",), 30, ONE),
    Case("kinds", "pad", "stop", "hop", ("kind_*",), 30, ONE),
]


@pytest.mark.parametrize("case", CASES, ids=map(str, CASES))
def test_h54_h72_h86_killed_at_any_step(shim: Path, case: Case) -> None:
    """At each step of patching and unpatching where there are few, at some of them, spread
    over all, where there are many."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    with TargetProcess(build(case.program, case.variant), *case.arguments) as target:
        owns = catches_sigtrap(target.pid)
        driver_arguments = (str(case.writer), case.form, *case.patterns)
        with driving(shim, target.pid, *driver_arguments) as driver:
            assert driver.attach() == 0
            # How many looks it takes until all threads are somewhere else varies.
            steps = case.most_steps
            for _ in range(3):
                steps = min(steps, driver.go(0))
                driver.attach()
            assert steps > 20
            killed = restored = changed = 0
            for turn in range(case.kills):
                # WHEN the agent is killed in the middle
                first, last = steps * turn // case.kills, steps * (turn + 1) // case.kills
                step = chance.randint(first + 1, max(last, first + 1))
                for _ in range(5):
                    if not driver.go(step):
                        killed += 1
                        break
                    # Some rounds are short: a thread was in libc, and no trap was set.
                    driver.attach()
                else:
                    continue
                # THEN the program goes on as it is
                assert_not_traced(target.pid)
                changed += bool(text_differences(target.pid))
                target.wait_iterations(2)
                # WHEN the next one comes
                restored += bool(driver.attach())
                # THEN the code is as in the file, and the program's signals are its own
                assert_text_unchanged(target.pid)
                assert catches_sigtrap(target.pid) == owns
            assert driver.go(0)
            assert killed > case.kills // 2
            assert restored >= changed > 0
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        target.wait_iterations(2)
        target.quit()


@pytest.mark.parametrize("case", [CASES[2], CASES[4], CASES[6]], ids=str)
def test_h86_killed_after_a_random_time(shim: Path, case: Case) -> None:
    """Between two steps too: in the middle of a system call."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    with TargetProcess(build(case.program, case.variant), *case.arguments) as target:
        with driving(shim, target.pid, case.writer, case.form, *case.patterns) as driver:
            driver.attach()
            started = time.monotonic()
            driver.go(0)
            whole = time.monotonic() - started
            killed = 0
            for _ in range(20):
                driver.attach()
                assert_text_unchanged(target.pid)
                killed += driver.go_for(chance.uniform(0, whole), driver.fork())
                target.wait_iterations(2)
            driver.attach()
            assert_text_unchanged(target.pid)
            assert not catches_sigtrap(target.pid)
            assert driver.go(0)
            assert killed > 5
        assert_not_traced(target.pid)
        target.quit()


@pytest.mark.parametrize("case", [CASES[2], CASES[5], CASES[6]], ids=str)
def test_h86_killed_while_it_sets_back_what_another_left(shim: Path, case: Case) -> None:
    with TargetProcess(build(case.program, case.variant), *case.arguments) as target:
        with driving(shim, target.pid, case.writer, case.form, *case.patterns) as driver:
            driver.attach()
            steps = driver.go(0)
            driver.attach()
            for turn in range(12):
                # GIVEN a target that was left in the middle
                driver.go(steps // 3 + turn % 7)
                # WHEN the next agent is killed while it attaches, and the one after it
                for step in (3 * turn + 1, 7 * turn + 2):
                    driver.attach_and_die(step)
                    target.wait_iterations(1)
                # THEN the one that is not restores all
                driver.attach()
                assert_text_unchanged(target.pid)
                assert not catches_sigtrap(target.pid)
            assert driver.go(0)
        assert_not_traced(target.pid)
        target.quit()
