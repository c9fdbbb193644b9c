"""Ranges of host names: `web[01-16,20]` to names, and names back to ranges. No I/O."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import product

from uftrace_remote.errors import UsageError

MOST_HOSTS = 10_000

_ITEM = re.compile(r"([0-9]+)(?:-([0-9]+))?\Z", re.ASCII)
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_NUMBER = re.compile(r"([0-9]+)")
# Longer runs of digits are serial numbers and parts of hashes: nobody counts them.
_MOST_DIGITS = 9


def expand(text: str) -> tuple[str, ...]:
    """The names behind one pattern, in order, each once.

    Args:
        text: A name with any number of `[LIST]`, where LIST is numbers and
            ranges of them with commas. Leading zeros are kept.

    Raises:
        UsageError: The pattern cannot be read, or means more than 10,000 names.
    """
    pieces = _BRACKETS.split(text)
    literals, lists = pieces[0::2], pieces[1::2]
    if any("[" in literal or "]" in literal for literal in literals):
        raise _wrong(text, "a '[' or ']' has no partner")
    ranges = [[_bounds(text, item) for item in each.split(",")] for each in lists]
    count = math.prod(sum(last - first + 1 for first, last, _ in each) for each in ranges)
    if count > MOST_HOSTS:
        raise too_many(text, count)
    choices = [
        [
            str(number).zfill(width)
            for first, last, width in each
            for number in range(first, last + 1)
        ]
        for each in ranges
    ]
    names = []
    for chosen in product(*choices):
        parts = [literals[0]]
        for number, literal in zip(chosen, literals[1:], strict=True):
            parts += (number, literal)
        names.append("".join(parts))
    return tuple(dict.fromkeys(names))


def fold(names: Iterable[str]) -> tuple[str, ...]:
    """The fewest patterns found that `expand` to exactly these names.

    Names hold no brackets; those without a place to fold stay as they are. The order is that of the
    numbers in them (web2 before web10).
    """
    patterns: dict[tuple[str, ...], None] = {
        tuple(_NUMBER.split(name)): None for name in sorted(set(names), key=natural_key)
    }
    depth = max((len(pattern) for pattern in patterns), default=0)
    # The last number first: rack1-web[1-4], rack2-web[1-4] become rack[1-2]-web[1-4].
    for place in range(depth - 2, 0, -2):
        patterns = _fold_place(patterns, place)
    return tuple("".join(pattern) for pattern in patterns)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts names by the numbers in them."""
    return tuple(
        (1, int(part), part) if part.isascii() and part.isdigit() else (0, 0, part)
        for part in _NUMBER.split(name)
    )


def too_many(text: str, count: int) -> UsageError:
    """The error for more hosts than are allowed."""
    return UsageError(
        f"'{text}' means {count:,} hosts",
        reason="TOO_MANY_HOSTS",
        hint=f"at most {MOST_HOSTS:,} are allowed: is a range mistyped?",
    )


def _fold_place(patterns: dict[tuple[str, ...], None], place: int) -> dict[tuple[str, ...], None]:
    groups: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for pattern in patterns:
        foldable = place < len(pattern) and len(pattern[place]) <= _MOST_DIGITS
        key = (*pattern[:place], "", *pattern[place + 1 :]) if foldable else pattern
        groups[key].append(pattern[place] if foldable else "")
    folded: dict[tuple[str, ...], None] = {}
    for key, numbers in groups.items():
        if numbers == [""]:
            folded[key] = None
        elif len(numbers) == 1:
            folded[(*key[:place], numbers[0], *key[place + 1 :])] = None
        else:
            folded[(*key[:place], f"[{_runs(numbers)}]", *key[place + 1 :])] = None
    return folded


# 09 and 10 follow one another as 9 and 10 do; 9 and 09 are two runs.
def _runs(numbers: list[str]) -> str:
    open_runs: dict[str, list[str]] = {}
    runs: list[list[str]] = []
    for number in sorted(numbers, key=lambda each: (int(each), len(each))):
        run = open_runs.pop(number, None)
        if run is None:
            run = [number, number]
            runs.append(run)
        run[1] = number
        open_runs[str(int(number) + 1).zfill(len(run[0]))] = run
    return ",".join(first if first == last else f"{first}-{last}" for first, last in runs)


def _bounds(text: str, item: str) -> tuple[int, int, int]:
    match = _ITEM.match(item)
    if match is None:
        raise _wrong(text, f"'{item}' is no number and no range of numbers")
    first, last = match[1], match[2] or match[1]
    if max(len(first), len(last)) > _MOST_DIGITS:
        raise _wrong(text, f"'{item}' has more than {_MOST_DIGITS} digits")
    if int(first) > int(last):
        raise _wrong(text, f"'{item}' runs backwards")
    if last.startswith("0") and len(last) > max(len(first), 1):
        raise _wrong(text, f"both ends of '{item}' need the same number of digits")
    return int(first), int(last), len(first)


def _wrong(text: str, what: str) -> UsageError:
    return UsageError(
        f"cannot read the hosts '{text}': {what}",
        reason="INVALID_HOSTS",
        hint="write ranges as web[01-16], web[1,3,5-7] or rack[1-2]-web[01-16]",
    )
