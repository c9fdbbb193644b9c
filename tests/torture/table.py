# SPDX-License-Identifier: Apache-2.0
"""The table that the long form prints."""

from __future__ import annotations

from collections.abc import Sequence

from tests.torture.cell import Row

_HEAD = (
    "form",
    "writer",
    "threads",
    "toggles",
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
    seconds = max(tally.seconds, 1e-9)
    return (
        row.case.name,
        row.writer.name.lower(),
        str(row.load.threads),
        f"{tally.toggles:,}",
        f"{tally.toggles / seconds:,.0f}",
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


def forms(rows: Sequence[Row]) -> str:
    """Which forms the engine chose, a line each."""
    lines = []
    for name in dict.fromkeys(row.case.name for row in rows):
        found = next(row.forms for row in rows if row.case.name == name)
        chosen = ", ".join(f"{count} {form}" for form, count in found.most_common())
        lines.append(f"{name}: {chosen or 'not planned'}")
    return "\n".join(lines)
