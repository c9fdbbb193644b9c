"""Runs test files of this checkout on AArch64.

    python -m tests.arm.run tests/unit/test_rings.py -k word    pytest, there
    python -m tests.arm.run                                     the files of suite.txt
    python -m tests.arm.run -- uftrace-agent --help             any command

The exit status is that of pytest or the command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.arm.builds import build_service
from tests.arm.checkout import FOLDER, packed_checkout
from tests.arm.machine import Job, Machine

SUITE = Path(__file__).parent / "suite.txt"
# Emulated processors are ten to twenty times slower than real ones.
SLOWNESS = 10
RUN_SECONDS = 3 * 3600.0
PYTEST = (
    *("-m", "pytest", "-p", "tests.arm.slow", "-o", f"faulthandler_timeout={100 * SLOWNESS}"),
    # The job server has imported plugins before pytest can rewrite their assertions.
    *("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"),
)


def suite() -> list[str]:
    """What must pass, from suite.txt: test files, and options of pytest."""
    lines = (line.partition("#")[0].strip() for line in SUITE.read_text().splitlines())
    return [line for line in lines if line]


def start(machine: Machine, command: Sequence[str], *, builds: str = "", warm: bool = False) -> Job:
    """Start a command in a fresh copy of the checkout; ``builds`` is where it gets programs."""
    environment = {"UFTRACE_TESTS_SLOWNESS": str(SLOWNESS), "UFTRACE_TESTS_BUILDS": builds}
    return machine.start(
        command, put=packed_checkout(), folder=FOLDER, warm=warm, environment=environment
    )


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    with build_service() as builds, Machine() as machine:
        if arguments[:1] == ["--"]:
            job = start(machine, arguments[1:], builds=builds)
        else:
            job = start(machine, [*PYTEST, *(arguments or suite())], builds=builds, warm=True)
        with job:
            return job.wait(RUN_SECONDS, echo=sys.stdout.buffer) & 0xFF


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
