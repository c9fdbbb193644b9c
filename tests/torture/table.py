# SPDX-License-Identifier: Apache-2.0
"""The table that the long form prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.torture.cell import Row
from tests.torture.toggling import Way
from uftrace_agent.engine.model import Writer

_HEAD = (
    "sites",
    "writer",
    "threads",
    "toggles",
    "requests",
    "of few hot sites",
    "toggles/s",
    "calls checked",
    "signals/s",
    "records",
    "longest stop",
    "wrong results",
    "crashes",
    "other",
    "text",
)


def cells(row: Row) -> tuple[str, ...]:
    """What a row says, column by column."""
    tally = row.tally
    toggles = tally.toggles.total()
    seconds = max(tally.seconds, 1e-9)
    return (
        row.name,
        row.writer.name.lower(),
        str(row.load.threads),
        f"{toggles:,}",
        f"{tally.operations:,}",
        f"{tally.ways[Way.FEW_HOT_ONES]:,}",
        f"{toggles / seconds:,.0f}",
        f"{tally.calls:,}",
        f"{tally.signals / seconds:,.0f}",
        f"{tally.records:,}",
        f"{tally.longest_pause_ns / 1e6:.1f} ms",
        str(row.wrong_results),
        str(row.crashes),
        str(row.others),
        "as in the file" if row.is_good else "-",
    )


def line(row: Row) -> str:
    """A row, as soon as it is known."""
    return markdown_line(cells(row))


def markdown_line(values: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(values)} |"


def head(names: Sequence[str] = _HEAD) -> str:
    """The first two lines."""
    return f"{markdown_line(names)}\n{markdown_line(['---'] * len(names))}"


def totals(rows: Sequence[Row]) -> str:
    """Toggles of each form by each writer, over all rows."""
    done = Counter[tuple[str, Writer]]()
    for row in rows:
        for name, count in row.tally.toggles.items():
            done[name, row.writer] += count
    writers = [writer for writer in Writer if any(row.writer is writer for row in rows)]
    lines = [head(["form", *(writer.name.lower() for writer in writers)])]
    for name in dict.fromkeys(case.name for row in rows for case in row.cases):
        counts = (done[name, writer] for writer in writers)
        lines.append(markdown_line([name, *(f"{count:,}" if count else "-" for count in counts)]))
    return "\n".join(lines)


def forms(rows: Sequence[Row]) -> str:
    """Which forms the engine chose, a line each."""
    found = {name: chosen for row in rows for name, chosen in row.forms.items()}
    lines = []
    for name, chosen in found.items():
        counts = ", ".join(f"{count} {form}" for form, count in chosen.most_common())
        lines.append(f"{name}: {counts or 'not planned'}")
    return "\n".join(lines)
