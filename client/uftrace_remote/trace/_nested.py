"""Pairing of well-nested records without a Python loop over them.

Where every exit belongs to the innermost open entry, entries and exits are
brackets: those of one nesting level, in order of time, alternate. So a stable
sort by level puts each exit right behind its entry. Whether the records are
of that kind is checked by their frame keys; if not, nothing is decided here
and the state machine of `pairing.py` takes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uftrace_remote.enums import RecordKind
from uftrace_remote.trace._open_call import STACK_SPAN, OpenCall
from uftrace_remote.trace.model import CallArray, CallFlag, PairedChunk, empty_calls
from uftrace_remote.trace.records import RecordColumns

_Ints = NDArray[np.int64]
_Mask = NDArray[np.bool_]


# Records with the calls carried over from earlier ones put before them as entries.
@dataclass(frozen=True, slots=True)
class _Input:
    carried: int
    ticks: _Ints
    function: _Ints
    key: _Ints
    entry: _Mask
    exit: _Mask
    only: _Mask
    tail: _Mask

    def __len__(self) -> int:
        return len(self.ticks)


# Which exit belongs to which entry, and which tail entries to which entry.
@dataclass(frozen=True, slots=True)
class _Brackets:
    exit_of: _Ints  # index of the exit of an entry or tail entry, -1 while open
    owner_of: _Ints  # index of the entry of an exit or tail entry
    tails: _Ints  # number of tail entries of an entry
    rank: _Ints  # place of a tail entry among those of its entry


def pair_nested(
    carried: list[OpenCall], records: RecordColumns, first_seq: int
) -> tuple[PairedChunk, list[OpenCall], int] | None:
    """Pairs records which are well nested.

    Args:
        carried: Open calls of the thread's only stack, outermost first.
        records: The next records.
        first_seq: Number of the next begin or end.

    Returns:
        The chunk, the calls that are open now, and the next number; None
        where the records are not well nested.
    """
    if carried and carried[0].depth != 0:
        return None
    data = _join(carried, records)
    brackets = _match(data)
    if brackets is None:
        return None
    depth = _depths(data, brackets)
    begins = np.flatnonzero(data.entry | data.tail | data.only)
    parent = _parents(data, begins, depth)
    if not _keys_fit(data, begins, parent):
        return None
    return _build(carried, data, brackets, depth, begins, parent, first_seq)


def _join(carried: list[OpenCall], records: RecordColumns) -> _Input:
    kinds = [
        RecordKind.TAIL_ENTRY if call.flags & CallFlag.TAIL else RecordKind.ENTRY
        for call in carried
    ]
    kind = np.concatenate([np.array(kinds, np.int8), records.kind])
    return _Input(
        carried=len(carried),
        ticks=np.concatenate([_column([call.start for call in carried]), records.ticks]),
        function=np.concatenate([_column([call.function for call in carried]), records.function]),
        key=np.concatenate([_column([call.key for call in carried]), records.key]),
        entry=kind == RecordKind.ENTRY,
        exit=kind == RecordKind.EXIT,
        only=kind == RecordKind.ENTRY_ONLY,
        tail=kind == RecordKind.TAIL_ENTRY,
    )


def _column(values: list[int]) -> _Ints:
    return np.array(values, np.int64)


# A stable sort of 16-bit numbers is a radix sort in numpy: several times faster.
def _stable_order(levels: _Ints) -> _Ints:
    small = len(levels) == 0 or int(levels.max()) < 1 << 16
    return np.argsort(levels.astype(np.uint16) if small else levels, kind="stable")


def _match(data: _Input) -> _Brackets | None:
    count = len(data)
    if int(data.entry.sum() + data.exit.sum() + data.only.sum() + data.tail.sum()) != count:
        return None  # a kind that we do not know
    level = np.cumsum(data.entry.astype(np.int64) - data.exit)
    if count and int(level.min()) < 0:
        return None  # an exit without an entry
    if bool((level[data.tail] < 1).any()):
        return None  # a tail entry without an entry
    bracket = np.flatnonzero(~data.only)
    own_level = level[bracket] + data.exit[bracket]
    ordered = bracket[_stable_order(own_level)]
    places = np.arange(len(ordered))
    is_entry = data.entry[ordered]
    owner_place = np.maximum.accumulate(np.where(is_entry, places, 0))
    owner = ordered[owner_place] if len(ordered) else ordered
    if not np.array_equal(data.key[owner], data.key[ordered]):
        return None  # an exit of another frame: something was skipped or lost
    owner_of = np.full(count, -1, np.int64)
    owner_of[ordered] = owner
    exit_of = np.full(count, -1, np.int64)
    exits = np.flatnonzero(data.exit)
    exit_of[owner_of[exits]] = exits
    tail_entries = np.flatnonzero(data.tail)
    exit_of[tail_entries] = exit_of[owner_of[tail_entries]]
    rank = np.zeros(count, np.int64)
    # Between an entry and its exit there is nothing of its level but its tails.
    rank[ordered] = places - owner_place - 1
    tails = np.bincount(owner_of[tail_entries], minlength=count).astype(np.int64)
    return _Brackets(exit_of, owner_of, tails, rank)


# The depth of each begin: how many calls, tail calls included, are open around it.
def _depths(data: _Input, brackets: _Brackets) -> _Ints:
    change = data.entry.astype(np.int64) + data.tail
    exits = np.flatnonzero(data.exit)
    change[exits] -= 1 + brackets.tails[brackets.owner_of[exits]]
    depth: _Ints = np.cumsum(change) - (data.entry | data.tail)
    return depth


# For each begin, the index of the innermost call around it, -1 at the top: the
# last one before it which is one level higher.
def _parents(data: _Input, begins: _Ints, depth: _Ints) -> _Ints:
    count = len(data)
    pushers = np.flatnonzero(data.entry | data.tail)
    ordered = pushers[_stable_order(depth[pushers])]
    places = depth[ordered] * count + ordered
    wanted = (depth[begins] - 1) * count + begins
    parent = np.full(len(begins), -1, np.int64)
    nested = depth[begins] > 0
    parent[nested] = ordered[np.searchsorted(places, wanted[nested]) - 1]
    return parent


# Each callee's frame is below its caller's, on the same stack. Then the state
# machine would not skip anything either.
def _keys_fit(data: _Input, begins: _Ints, parent: _Ints) -> bool:
    nested = parent >= 0
    child, caller = begins[nested], parent[nested]
    gap = data.key[caller] - data.key[child]
    least = np.where(data.entry[child], 1, 0)
    most = np.where(data.tail[child], 0, STACK_SPAN)
    return bool(((gap >= least) & (gap <= most)).all())


def _build(
    carried: list[OpenCall],
    data: _Input,
    brackets: _Brackets,
    depth: _Ints,
    begins: _Ints,
    parent: _Ints,
    first_seq: int,
) -> tuple[PairedChunk, list[OpenCall], int]:
    count = len(data)
    exits = np.flatnonzero(data.exit)
    events = np.ones(count, np.int64)
    events[data.only] = 2
    events[exits] += brackets.tails[brackets.owner_of[exits]]
    events[: data.carried] = 0
    numbers = first_seq + np.cumsum(events) - events
    next_seq = first_seq + int(events.sum())

    begin_seq = numbers.copy()
    begin_seq[: data.carried] = [call.begin_seq for call in carried]

    rows = empty_calls(len(begins))
    only, tail = data.only[begins], data.tail[begins]
    leave = brackets.exit_of[begins]
    leave[only] = begins[only]
    ended = leave >= 0
    owner = np.where(tail, brackets.owner_of[begins], begins)
    # Those that share a frame exit together, the innermost first.
    after = np.where(tail, brackets.tails[owner] - 1 - brackets.rank[begins], brackets.tails[owner])
    rows["start"] = data.ticks[begins]
    rows["function"] = data.function[begins]
    rows["depth"] = depth[begins]
    rows["begin_seq"] = begin_seq[begins]
    rows["parent_seq"] = np.where(parent >= 0, begin_seq[parent], -1)
    rows["flags"] = np.where(only, int(CallFlag.ENTRY_ONLY), np.where(tail, int(CallFlag.TAIL), 0))
    rows["end"][ended] = np.maximum(data.ticks[leave[ended]], rows["start"][ended])
    rows["end_seq"] = np.where(ended, numbers[leave] + np.where(only, 1, after), -1)

    _add_children(rows, carried, begins, parent, ended)
    still_open = _still_open(carried, data, begins, parent, rows, ended)
    opened = rows[~ended]
    opened["flags"] |= int(CallFlag.OPEN)
    chunk = PairedChunk(rows[ended], opened[opened["begin_seq"] >= first_seq], first_seq)
    return chunk, still_open, next_seq


# Adds up in each call the ticks of the callees which ended here.
def _add_children(
    rows: CallArray, carried: list[OpenCall], begins: _Ints, parent: _Ints, ended: _Mask
) -> None:
    inner = ended & (parent >= 0)
    duration = (rows["end"] - rows["start"])[inner]
    row_of_parent = np.searchsorted(begins, parent[inner])
    total = np.bincount(row_of_parent, weights=duration, minlength=len(rows))
    rows["children"] = total.astype(np.int64)
    rows["children"][: len(carried)] += _column([call.children for call in carried])


def _still_open(
    carried: list[OpenCall],
    data: _Input,
    begins: _Ints,
    parent: _Ints,
    rows: CallArray,
    ended: _Mask,
) -> list[OpenCall]:
    still_open: list[OpenCall] = []
    for row in np.flatnonzero(~ended).tolist():
        if row < len(carried):
            call = carried[row]
            call.children = int(rows["children"][row])
        else:
            begin = int(begins[row])
            call = OpenCall(
                key=int(data.key[begin]),
                function=int(data.function[begin]),
                start=int(data.ticks[begin]),
                depth=int(rows["depth"][row]),
                flags=int(rows["flags"][row]),
                begin_seq=int(rows["begin_seq"][row]),
                # What is open is nested in what was open before it.
                parent=still_open[-1] if int(parent[row]) >= 0 else None,
                children=int(rows["children"][row]),
            )
        still_open.append(call)
    return still_open
