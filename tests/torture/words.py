# SPDX-License-Identifier: Apache-2.0
"""All functions of a program enabled and disabled, again and again, beside its threads.

    python -m tests.torture.words --toggles 100000 --threads 4

For architectures whose sites are words (``tests/torture/run.py`` has the forms of x86-64).
The program calls each function and compares what all of them compute; records are drained
and paired meanwhile. It ends with an error if anything is wrong.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.engine.live import Live, attached
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_text_unchanged
from tests.targets.build import build
from uftrace_agent.engine.model import Writer

_FUNCTIONS = 500
_RING_BYTES = 1 << 16
_RINGS = 16


@dataclass
class Tally:
    """What was done.

    Attributes:
        toggles: Sites enabled or disabled, by (form, writer).
        iterations: Sweeps of the program over all functions meanwhile, each checked.
        seconds: How long it took.
    """

    toggles: Counter[tuple[str, str]] = field(default_factory=Counter)
    iterations: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """All toggles."""
        return sum(self.toggles.values())


def toggle(variant: str, toggles: int, threads: int, functions: int = _FUNCTIONS) -> Tally:
    """Toggle the functions of the program `many`, built in one way.

    Raises:
        AssertionError: The program, its code or its results were not what they should be.
    """
    tally, begin = Tally(), time.monotonic()
    with TargetProcess(build(f"many@{functions}", variant), str(threads), niceness=10) as target:
        before = target.counters()["iterations"]
        with attached(target.pid, _RING_BYTES, _RINGS) as live:
            while tally.total < toggles:
                _round(live, Writer.STOP if len(tally.toggles) % 2 else Writer.AUTO, tally)
                target.wait_iterations(1)
                assert_text_unchanged(target.pid)
        tally.iterations = target.counters()["iterations"] - before
        # It says so itself, and with status 3, if a result was wrong.
        target.quit()
    tally.seconds = time.monotonic() - begin
    return tally


def _round(live: Live, writer: Writer, tally: Tally) -> None:
    report = live.enable(["many_[0-9]*"], writer)
    plans = [live.attachment.engine.tracepoints[o.function.address].plan for o in report.outcomes]
    names = Counter((plan.form.name, plan.writer.name) for plan in plans)
    live.disable(writer)
    tally.toggles += Counter({name: 2 * count for name, count in names.items()})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toggles", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--variants", nargs="+", default=["gcc-O2"])
    options = parser.parse_args(arguments)
    for variant in options.variants:
        done = toggle(variant, options.toggles // len(options.variants), options.threads)
        kinds = ", ".join(f"{n:,} {' by '.join(k)}" for k, n in done.toggles.most_common())
        print(
            f"{variant}: {done.total:,} toggles ({kinds}) beside {options.threads} threads, "
            f"{done.iterations:,} checked sweeps, {done.seconds:.0f} s: 0 wrong results",
            flush=True,
        )


if __name__ == "__main__":
    main()
