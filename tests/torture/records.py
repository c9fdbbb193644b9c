# SPDX-License-Identifier: Apache-2.0
"""Whether what the rings hold can be true: known functions, exits that had entries."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from uftrace_agent.engine.annex import Annex
from uftrace_agent.errors import TargetGoneError
from uftrace_agent.process.threads import thread_ids
from uftrace_agent.recording.rings import RingReader
from uftrace_agent.runtime.layout import (
    ID_MAX,
    ID_SHIFT,
    KIND_ENTRY,
    KIND_EXIT,
    KIND_SHIFT,
    KIND_TAIL_ENTRY,
    define,
)

_KINDS = (KIND_ENTRY, KIND_EXIT, define("KIND_ENTRY_ONLY"), KIND_TAIL_ENTRY)
_KEY_SHIFT = define("KEY_SHIFT")
_BUFFER = 16 << 20
_PAUSE = 0.002
# Of the time, how much the look at records may take.
_SHARE = 0.15
_MOST_COMPLAINTS = 20
_EVERYTHING_SEEN = (1 << 64) - 1

Words = npt.NDArray[np.uint64]


class RecordCheck:
    """Looks at records, one thread's after the other."""

    def __init__(self) -> None:
        # Of functions, by id: records may come; their exits come from return thunks, so
        # that each must have had an entry.
        self._known = np.zeros(1, np.bool_)
        self._paired = np.zeros(1, np.bool_)
        # (keys, ids) of the calls that are known to be open, by thread.
        self._open: dict[int, tuple[Words, Words]] = {}
        # Of threads of which records were passed over: the highest key since. A call
        # that was begun before has a higher one: stacks grow down.
        self._highest: dict[int, int] = {}
        self.looked_at = 0
        self.exits = 0
        self.complaints: list[str] = []

    def allow(self, ids: Iterable[int], *, paired: bool) -> None:
        """Records of these functions may come.

        Args:
            ids: Which.
            paired: Each exit must have had an entry. (The exits of sleds are sites of
                their own.)
        """
        wanted = np.fromiter(ids, np.int64)
        if not len(wanted):
            return
        size = int(wanted.max()) + 1
        self._paired, self._known = _grown(self._paired, size), _grown(self._known, size)
        self._paired[wanted] = paired
        self._known[wanted] = True

    def skip(self, tids: Iterable[int]) -> None:
        """Records of these threads were passed over."""
        for tid in tids:
            self._open.pop(tid, None)
            self._highest[tid] = 0

    def forget(self, gone: Iterable[int]) -> None:
        """These threads have ended, and all their records were here."""
        for tid in gone:
            self._open.pop(tid, None)
            self._highest.pop(tid, None)

    def look(self, tid: int, data: bytes) -> None:
        """Look at a thread's next records."""
        words = np.frombuffer(data, "<u8").reshape(-1, 2)[:, 1]
        kinds = (words >> np.uint64(KIND_SHIFT)) & np.uint64(7)
        ids = (words >> np.uint64(ID_SHIFT)) & np.uint64(ID_MAX)
        self.looked_at += len(words)
        strange = ~np.isin(kinds, _KINDS) | (ids >= len(self._known))
        strange |= ~self._known[np.minimum(ids, len(self._known) - 1)]
        if strange.any():
            first = int(words[np.flatnonzero(strange)[0]])
            self._complain(f"{int(strange.sum())} records of no function, the first {first:#x}")
        paired = self._paired[np.minimum(ids, len(self._paired) - 1)]
        self._pair(tid, kinds[paired], ids[paired], words[paired] >> np.uint64(_KEY_SHIFT))

    # Calls of one frame key follow each other: an exit's entry is the last one before
    # it with the same key, and no other exit lies between.
    def _pair(self, tid: int, kinds: Words, ids: Words, keys: Words) -> None:
        matter = (kinds == KIND_ENTRY) | (kinds == KIND_EXIT)
        kinds, ids, keys = kinds[matter], ids[matter], keys[matter]
        before = self._highest.get(tid, _EVERYTHING_SEEN)
        highest = np.maximum.accumulate(np.append(np.uint64(before), keys))
        if tid in self._highest:
            self._highest[tid] = int(highest[-1])
        open_keys, open_ids = self._open.get(tid, (keys[:0], ids[:0]))
        kinds = np.concatenate([np.full(len(open_keys), KIND_ENTRY, np.uint64), kinds])
        ids = np.concatenate([open_ids, ids])
        keys = np.concatenate([open_keys, keys])
        must_be_known = np.concatenate([open_keys, highest[:-1]]) >= keys
        order = np.argsort(keys, kind="stable")
        kinds, ids, keys = kinds[order], ids[order], keys[order]
        same_frame = np.append(False, keys[1:] == keys[:-1])
        exits = kinds == KIND_EXIT
        entered = np.append(False, kinds[:-1] == KIND_ENTRY) & same_frame
        same_function = np.append(False, ids[1:] == ids[:-1])
        self.exits += int(exits.sum())
        wrong = exits & np.where(entered, ~same_function, must_be_known[order])
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            last = f"after {int(kinds[at - 1])} of {int(ids[at - 1])}" if same_frame[at] else ""
            self._complain(
                f"{int(wrong.sum())} exits without their entry on thread {tid}, "
                f"the first of function {int(ids[at])} key {int(keys[at]):#x} {last}"
            )
        is_last = np.append(keys[1:] != keys[:-1], True)[: len(keys)] & (kinds == KIND_ENTRY)
        self._open[tid] = (keys[is_last], ids[is_last])

    def _complain(self, text: str) -> None:
        if len(self.complaints) < _MOST_COMPLAINTS:
            self.complaints.append(text)


def _grown(flags: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]:
    if size <= len(flags):
        return flags
    grown = np.zeros(size * 2, np.bool_)
    grown[: len(flags)] = flags
    return grown


class Draining:
    """Empties the rings all the time, and looks at a part of what was in them."""

    def __init__(self, pid: int, annex: Annex, check: RecordCheck) -> None:
        options = annex.ring_options
        self._pid = pid
        self._check = check
        self._file = annex.ring_fd
        self._shared = bytes(8)
        self._rings = RingReader(
            annex.ring_fd, options.data_offset, options.ring_bytes, options.ring_count, _BUFFER
        )
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self.records = 0
        self.lost = 0
        self._thread = threading.Thread(target=self._run, name="torture-drain")
        self._thread.start()

    def stop(self) -> None:
        """End; what is left is taken first."""
        self._stopping.set()
        self._thread.join()
        self._take(look=True)
        self._rings.close()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        looking = 0.0
        started = time.monotonic()
        try:
            while not self._stopping.wait(_PAUSE):
                before = time.monotonic()
                look = looking < _SHARE * (before - started)
                self._take(look)
                if look:
                    looking += time.monotonic() - before
        except BaseException as error:
            self._failure = error

    def _take(self, look: bool) -> None:
        # Who has ended has written all its records by now: the drain takes them all.
        gone = self._rings.owners() - self._living()
        drained = self._rings.drain()
        self.records += drained.count
        self.lost = self._rings.lost_total()
        # Threads without a ring of their own use the shared one; their records' order
        # across the two is not known here.
        shared = os.pread(self._file, 8, define("RING_SHARED_HEAD"))
        if shared != self._shared:
            self._shared = shared
            self._check.skip(drained.threads)
        elif look:
            for tid, parts in drained.threads.items():
                self._check.look(tid, b"".join(parts))
        else:
            self._check.skip(drained.threads)
        if not drained.more:
            gone -= self._living()
            self._rings.retire(gone)
            self._check.forget(gone)

    def _living(self) -> frozenset[int]:
        try:
            return frozenset(thread_ids(self._pid))
        except TargetGoneError:
            return frozenset()
