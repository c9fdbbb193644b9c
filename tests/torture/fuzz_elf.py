"""The long form of the fuzz tests of ELF files.

    python -m tests.torture.fuzz_elf --seconds 600
    python -m tests.torture.fuzz_elf --seed 4711 --keep /tmp/damaged.elf

The second writes the file of one case and says what was done to it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.fuzz import elf_campaign, elf_samples
from tests.fuzz.elf_worker import damaged_file, samples_in

_MOST: Final = 1 << 40
_SHOWN: Final = 20
_RARE: Final = 0.04


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit status says whether all went well."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.fuzz_elf")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--cases", type=int, default=_MOST)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--rare", type=float, default=_RARE, help="share of huge files")
    parser.add_argument("--keep", type=Path, help="write the first case's file and do no more")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        elf_samples.build(folder)
        if options.keep is not None:
            steps = damaged_file(samples_in(folder), options.seed, options.rare, options.keep)
            print("; ".join(steps))
            return 0
        until = elf_campaign.deadline(options.seconds)
        campaign = elf_campaign.run(folder, options.seed, options.cases, options.rare, until)
    print(report(campaign))
    return 1 if campaign.failures else 0


def report(campaign: elf_campaign.Campaign) -> str:
    """For people."""
    refused = ", ".join(f"{name} {count:,}" for name, count in campaign.refusals.most_common())
    seconds, seed = campaign.slowest
    lines = [
        f"{campaign.cases:,} files: {campaign.read:,} read, refused: {refused or 'none'}",
        f"slowest: seed {seed}, {seconds:.2f} s of CPU",
        f"failures: {len(campaign.failures):,}",
    ]
    for failed, steps, what in campaign.failures[:_SHOWN]:
        lines.append(f"seed {failed} ({steps}):\n{what}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
