"""Near names for a function that is not there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Final

import numpy as np

from uftrace_agent.symbols.demangle import source_names
from uftrace_agent.symbols.function_table import FunctionTable

# difflib looks at this many names of a table at most; the rest fall out by the
# number of short pieces that they share with the name.
_SHORT_LIST: Final = 300
_MOST_PIECES: Final = 16
_LEAST_RATIO: Final = 0.6
_LONGEST_NAME: Final = 512


def suggest(name: str, tables: Iterable[FunctionTable], count: int = 3) -> list[str]:
    """Names of functions that look like `name`, the most similar first.

    Case and leading underscores hardly count; C++ names are compared without
    their parameters.
    """
    wanted = name[:_LONGEST_NAME]
    folded = _folded(wanted)
    if not folded:
        return []
    scores: dict[str, float] = {}
    matcher = difflib.SequenceMatcher(b=folded, autojunk=False)
    for table in tables:
        for candidate in _short_list(folded, table):
            shown = _shown(candidate)
            if shown in scores or shown == name:
                continue
            matcher.set_seq1(_folded(shown))
            if matcher.real_quick_ratio() >= _LEAST_RATIO and matcher.quick_ratio() >= _LEAST_RATIO:
                ratio = matcher.ratio()
                if ratio >= _LEAST_RATIO:
                    scores[shown] = ratio
    return sorted(scores, key=lambda shown: (-scores[shown], len(shown), shown))[:count]


def _folded(name: str) -> str:
    return name.lower().lstrip("_")


# C++ names without return type and parameters, but with template arguments.
def _shown(linkage_name: str) -> str:
    return source_names(linkage_name).name


def _short_list(folded: str, table: FunctionTable) -> list[str]:
    letters = np.frombuffer(table.names.lower() + b"\0\0", np.uint8).astype(np.uint32)
    triples = letters[:-2] | letters[1:-1] << 8 | letters[2:] << 16
    lengths = np.diff(table.name_starts) - 1
    line_of_letter = np.repeat(np.arange(table.name_count), lengths + 1)
    shared = np.zeros(table.name_count, np.int64)
    for piece in _pieces(folded):
        mask = (1 << 8 * len(piece)) - 1
        found = np.flatnonzero((triples & mask) == int.from_bytes(piece, "little"))
        has_piece = np.zeros(table.name_count, np.bool_)
        has_piece[line_of_letter[found]] = True
        shared += has_piece
    score = 1000 * shared - np.minimum(np.abs(lengths - len(folded)), 999)
    count = min(_SHORT_LIST, len(score))
    best = np.argpartition(-score, count - 1)[:count] if count else np.empty(0, np.intp)
    return [table.linkage_name(line) for line in best.tolist() if shared[line]]


# The pieces of all words, of two or three letters; of long names evenly spread ones.
def _pieces(folded: str) -> list[bytes]:
    size = 3 if len(folded) > 5 else 2
    pieces = {
        word[start : start + size]
        for word in re.findall(rb"\w+", folded.encode("utf-8", "backslashreplace"))
        for start in range(max(1, len(word) - size + 1))
    }
    return sorted(pieces)[:: len(pieces) // _MOST_PIECES + 1]
