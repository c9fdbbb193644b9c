"""Printing: tables, JSON, errors, and figures that people can read."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

_RICH_ROWS = 1000

_UNITS = (("us", 1_000), ("ms", 1_000_000), (" s", 1_000_000_000), (" m", 60_000_000_000))


def print_error(message: str, hint: str = "") -> None:
    """An error and what to do about it, on stderr."""
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)


def note(message: str) -> None:
    """A remark on stderr."""
    click.echo(message, err=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout. Enum members become their lower-case names."""
    click.echo(json.dumps(to_json(value), indent=2, ensure_ascii=False))


def print_json_lines(values: Iterable[Any]) -> None:
    """One compact JSON object a line."""
    for value in values:
        click.echo(json.dumps(to_json(value), separators=(",", ":"), ensure_ascii=False))


def to_json(value: Any) -> Any:
    """What `json` can write of our values."""
    if isinstance(value, Enum):
        return value.name.lower()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def print_table(
    columns: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[str]],
    *,
    color: bool | None = None,
) -> None:
    """A table on stdout: fitted to a terminal, uncut and unpadded everywhere else.

    Args:
        columns: Title and "left" or "right".
        rows: Cells; markup in them is not interpreted.
        color: As in `Settings`.
    """
    cells = [tuple(row) for row in rows]
    # rich lays out some thousand rows a second; a program has 200,000 functions.
    if sys.stdout.isatty() and len(cells) <= _RICH_ROWS:
        _print_fitted(columns, cells, color)
    else:
        _print_plain(columns, cells)


def _print_fitted(
    columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], color: bool | None
) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for title, justify in columns[:-1]:
        table.add_column(title, justify="right" if justify == "right" else "left", no_wrap=True)
    table.add_column(columns[-1][0], no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(no_color=color is False, highlight=False).print(table)


def _print_plain(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> None:
    titles = tuple(title for title, _ in columns)
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    rights = [justify == "right" for _, justify in columns]
    for row in (titles, *rows):
        line = "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, rights, strict=True)
        )
        sys.stdout.write(line.rstrip() + "\n")


def duration(nanoseconds: int | float) -> str:
    """Like uftrace: ten characters, three places behind the point."""
    unit, size = _UNITS[0]
    for name, scale in _UNITS[1:]:
        if nanoseconds < scale:
            break
        unit, size = name, scale
    return f"{nanoseconds / size:7.3f} {unit}"


def brief_duration(nanoseconds: int | float) -> str:
    """The same without padding."""
    return " ".join(duration(nanoseconds).split())


def pause(nanoseconds: int, tid: int = 0) -> str:
    """How long threads were stopped."""
    if not nanoseconds:
        return "no thread paused"
    which = f" (thread {tid})" if tid else ""
    return f"longest pause {brief_duration(nanoseconds)}{which}"


def size(count: int) -> str:
    """A number of bytes with a binary unit."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def plural(count: int, noun: str) -> str:
    """`1 function`, `2 functions`, `1,000 calls`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
