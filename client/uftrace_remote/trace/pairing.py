"""Entries and exits of one thread become calls: a state machine without I/O.

The rules:

- An entry opens a call. Before that, open calls whose frame it overwrites
  (their key is not greater than its own) end there as skipped: longjmp, an
  exception or a context switch left them.
- A tail entry takes over the frame of an open call with the same key; both
  exit together.
- An exit ends as skipped what is open below its frame, then ends the calls of
  its frame, innermost first. Without an open call of its frame it is an
  orphan: the function was entered before the trace.
- Keys further apart than 8 MiB belong to different stacks (fibers, signal
  stacks). An event on one stack leaves the open calls of the others alone.

Regular, well-nested input takes the vectorised way of `_nested.py`, which
gives the same results; the state machine here is the definition.
"""

from __future__ import annotations

import numpy as np

from uftrace_remote.enums import RecordKind
from uftrace_remote.trace._nested import pair_nested
from uftrace_remote.trace._open_call import STACK_SPAN, OpenCall
from uftrace_remote.trace.model import CALL_DTYPE, CallArray, CallFlag, PairedChunk, empty_calls
from uftrace_remote.trace.records import RecordColumns

# Below this the set-up of the vectorised way costs more than it saves.
_VECTOR_MINIMUM = 192

_ENTRY = int(RecordKind.ENTRY)
_EXIT = int(RecordKind.EXIT)
_ENTRY_ONLY = int(RecordKind.ENTRY_ONLY)
_TAIL_ENTRY = int(RecordKind.TAIL_ENTRY)

_Row = tuple[int, int, int, int, int, int, int, int, int]


class ThreadPairer:
    """Pairs the records of one thread, as they come.

    Attributes:
        orphan_exits: Exits without an entry so far.
    """

    def __init__(self) -> None:
        # One list of open calls for each stack, the one used last at the end,
        # and whether the latest record was on that one: if its own stack has
        # no open call left, nothing says who called the next.
        self._stacks: list[list[OpenCall]] = []
        self._running = False
        self._sequence = 0
        self.orphan_exits = 0

    def feed(self, records: RecordColumns) -> PairedChunk:
        """Takes the next records of the thread and says which calls began and ended."""
        if len(records) >= _VECTOR_MINIMUM and len(self._stacks) <= 1:
            carried = self._stacks[0] if self._stacks else []
            nested = pair_nested(carried, records, self._sequence)
            if nested is not None:
                chunk, still_open, self._sequence = nested
                self._stacks = [still_open] if still_open else []
                self._running = bool(still_open)
                return chunk
        return self._feed_one_by_one(records)

    def open_calls(self) -> CallArray:
        """The calls that are open now, in order of their begin."""
        calls = sorted((call for stack in self._stacks for call in stack), key=_begin)
        return _array([_row(call, 0, -1, call.flags | CallFlag.OPEN) for call in calls])

    def _feed_one_by_one(self, records: RecordColumns) -> PairedChunk:
        first = self._sequence
        orphans = self.orphan_exits
        finished: list[_Row] = []
        for ticks, kind, function, key in zip(
            records.ticks.tolist(),
            records.kind.tolist(),
            records.function.tolist(),
            records.key.tolist(),
            strict=True,
        ):
            stack = self._select_stack(key)
            if kind == _EXIT:
                self._exit(stack, ticks, key, finished)
            elif kind == _ENTRY:
                # A new frame at the same place overwrites the old one.
                self._drop_below(stack, key + 1, ticks, finished)
                self._push(stack, ticks, function, key, CallFlag.NONE)
            elif kind == _TAIL_ENTRY:
                self._drop_below(stack, key, ticks, finished)
                self._push(stack, ticks, function, key, CallFlag.TAIL)
            elif kind == _ENTRY_ONLY:
                # The key may equal that of an open call: a tail call into a
                # function whose exit is not traced.
                self._drop_below(stack, key, ticks, finished)
                call = self._push(stack, ticks, function, key, CallFlag.ENTRY_ONLY)
                self._pop(self._stacks[-1], ticks, finished, call.flags)
        opened = [
            _row(call, 0, -1, call.flags | CallFlag.OPEN)
            for call in sorted((each for stack in self._stacks for each in stack), key=_begin)
            if call.begin_seq >= first
        ]
        return PairedChunk(_array(finished), _array(opened), first, self.orphan_exits - orphans)

    # Puts the stack that the key lies on last, and returns it; None for a new one.
    def _select_stack(self, key: int) -> list[OpenCall] | None:
        if not self._stacks:
            return None
        active = self._stacks[-1]
        if active[-1].key - STACK_SPAN <= key <= active[0].key + STACK_SPAN:
            self._running = True
            return active
        for position in range(len(self._stacks) - 2, -1, -1):
            stack = self._stacks[position]
            if stack[-1].key - STACK_SPAN <= key <= stack[0].key + STACK_SPAN:
                self._stacks.append(self._stacks.pop(position))
                self._running = True
                return stack
        return None

    def _drop_below(
        self, stack: list[OpenCall] | None, key: int, ticks: int, finished: list[_Row]
    ) -> None:
        while stack and stack[-1].key < key:
            self._pop(stack, ticks, finished, stack[-1].flags | CallFlag.SKIPPED)

    def _exit(
        self, stack: list[OpenCall] | None, ticks: int, key: int, finished: list[_Row]
    ) -> None:
        self._drop_below(stack, key, ticks, finished)
        if not stack or stack[-1].key != key:
            self.orphan_exits += 1
            return
        while stack and stack[-1].key == key:
            self._pop(stack, ticks, finished, stack[-1].flags)

    def _push(
        self, stack: list[OpenCall] | None, ticks: int, function: int, key: int, flags: int
    ) -> OpenCall:
        # The first call on a stack was called by what ran on the stack before:
        # a signal handler's or a fiber's.
        parent = self._stacks[-1][-1] if self._running else None
        call = OpenCall(
            key=key,
            function=function,
            start=ticks,
            depth=parent.depth + 1 if parent else 0,
            flags=flags,
            begin_seq=self._sequence,
            parent=parent,
        )
        self._sequence += 1
        if stack:
            stack.append(call)
        else:
            self._stacks.append([call])
            self._running = True
        return call

    # `stack` is the active one, or empties itself out of the list.
    def _pop(self, stack: list[OpenCall], ticks: int, finished: list[_Row], flags: int) -> None:
        call = stack.pop()
        if not stack:
            self._stacks.pop()
            self._running = False
        end = max(ticks, call.start)
        if call.parent is not None:
            call.parent.children += end - call.start
        finished.append(_row(call, end, self._sequence, flags))
        self._sequence += 1


def _begin(call: OpenCall) -> int:
    return call.begin_seq


def _row(call: OpenCall, end: int, end_seq: int, flags: int) -> _Row:
    return (
        call.start,
        end,
        call.children,
        call.begin_seq,
        end_seq,
        call.parent.begin_seq if call.parent else -1,
        call.function,
        call.depth,
        int(flags),
    )


def _array(rows: list[_Row]) -> CallArray:
    return np.array(rows, CALL_DTYPE) if rows else empty_calls()
