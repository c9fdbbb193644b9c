"""The thread that takes records out of a session's rings and makes batches."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from uftrace_agent.errors import TargetGoneError
from uftrace_agent.process.thread_numbers import ThreadNumbers
from uftrace_agent.process.threads import thread_name
from uftrace_agent.recording.clock import Anchor, TickClock
from uftrace_agent.recording.rings import Drained, RingReader
from uftrace_agent.session.feed import Feed, Subscription
from uftrace_agent.session.throttling import Throttling
from uftrace_agent.session.types import (
    ClockAnchor,
    EventBatch,
    Loss,
    MappedModule,
    TracedFunction,
)

_POLL_S: Final = 0.005
_BATCH_BYTES: Final = 64 << 10
_BATCH_NS: Final = 100_000_000
_HEARTBEAT_NS: Final = 1_000_000_000
_LOOK_AFTER_NS: Final = 200_000_000
_WATCH_S: Final = 0.05
_LOSS_RING: Final = 1
_LOSS_STREAM: Final = 2
_LOSS_SHARED_RING: Final = 3

NewFunctions = Callable[[int], tuple[int, list[TracedFunction]]]


class _Pending:
    """Records taken out and not sent yet."""

    def __init__(self) -> None:
        self.threads: dict[int, list[bytes]] = {}
        self.count = 0
        self.bytes = 0
        self.since_ns = 0

    def add(self, drained: Drained, now: int) -> None:
        if not drained.count:
            return
        if not self.count:
            self.since_ns = now
        for tid, parts in drained.threads.items():
            self.threads.setdefault(tid, []).extend(parts)
        self.count += drained.count
        self.bytes += drained.count * 16


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a session stands that another agent began: its last sequence number may
    have been this one, and so many records were taken by then."""

    sequence: int = 0
    records_total: int = 0


class Drainer:
    """Drains while somebody listens; a ring that nobody reads fills up and counts.

    Args:
        pid: The target.
        rings: Its rings.
        clock: Ticks beside clocks.
        feed: Where batches go, on the event loop.
        loop: The event loop.
        new_functions: Given how many functions were announced, all that are
            known now and those not announced yet.
        look_after: Called some times a second on the drain thread.
        resumed: Where to go on.
        throttling: Told to look at what is called, whoever listens.
    """

    def __init__(
        self,
        pid: int,
        rings: RingReader,
        clock: TickClock,
        feed: Feed,
        loop: asyncio.AbstractEventLoop,
        new_functions: NewFunctions,
        look_after: Callable[[], None],
        resumed: Resumed,
        throttling: Throttling,
    ) -> None:
        self._throttling = throttling
        self._pid = pid
        self._rings = rings
        self._clock = clock
        self._feed = feed
        self._loop = loop
        self._new_functions = new_functions
        self._look_after = look_after
        self._pending = _Pending()
        self._announced = 0
        self._sequence = resumed.sequence
        self.records_total = resumed.records_total
        self.final_lost = 0
        # By the process's own numbers of its threads, as in the rings.
        self._names: dict[int, str] = {}
        self._numbers = ThreadNumbers(pid)
        # Of the threads that have rings, those that had ended when last looked at.
        self._ended: set[int] = set()
        self._wakeups: dict[int, asyncio.Event] = {}
        self._baseline: dict[int, dict[tuple[int, int], int]] = {}
        self._listening = threading.Event()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._last_look = 0
        self._thread = threading.Thread(target=self._run, name=f"drain-{pid}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    # -- on the event loop -------------------------------------------------

    def subscribed(
        self,
        subscription: Subscription,
        *,
        fresh: bool,
        known_losses: Sequence[Loss] | None = None,
    ) -> asyncio.Event:
        """Somebody listens; the event is set when there is something to take.

        Args:
            subscription: Theirs.
            fresh: Records from before now are to be passed over, if nobody else
                waits for them.
            known_losses: What the reader of a resumed stream knows already.
        """
        with self._lock:
            if fresh and not self._wakeups:
                self.records_total += self._pending.count + self._rings.discard()
                self._pending = _Pending()
                # The first batch says what is out.
                self._throttling.take_notices()
        wakeup = asyncio.Event()
        if subscription.queue:
            wakeup.set()
        self._wakeups[id(subscription)] = wakeup
        losses = self._losses()[0] if known_losses is None else known_losses
        self._baseline[id(subscription)] = {(loss.stage, loss.tid): loss.records for loss in losses}
        self._listening.set()
        return wakeup

    def unsubscribed(self, subscription: Subscription) -> None:
        """Somebody has gone."""
        self._wakeups.pop(id(subscription), None)
        self._baseline.pop(id(subscription), None)
        if not self._wakeups:
            self._listening.clear()

    def complete(
        self,
        batch: EventBatch,
        subscription: Subscription,
        first: bool,
        modules: Callable[[], Sequence[MappedModule]],
    ) -> EventBatch:
        """A batch with what is particular to one reader: its losses since it
        began, what batches that it lost had to say, and on the first all functions,
        modules and throttled functions."""
        baseline = self._baseline.get(id(subscription), {})
        losses = [
            replace(loss, records=count)
            for loss in batch.losses
            if (count := loss.records - baseline.get((loss.stage, loss.tid), 0)) > 0
        ]
        if subscription.told_lost:
            losses.append(Loss(_LOSS_STREAM, subscription.told_lost))
        throttled = [*subscription.untold, *batch.throttled]
        subscription.untold.clear()
        if not first:
            return replace(batch, losses=losses, throttled=throttled)
        return replace(
            batch,
            losses=losses,
            functions=self._new_functions(0)[1],
            modules=modules(),
            throttled=[out.throttle for out in self._throttling.throttled()],
        )

    # By stage and thread, and the session's total.
    def _losses(self) -> tuple[list[Loss], int]:
        shared, by_thread, total = self._rings.lost_with_total()
        losses = [
            Loss(_LOSS_RING, count, self._numbers.outside(own)) for own, count in by_thread.items()
        ]
        if shared:
            losses.append(Loss(_LOSS_SHARED_RING, shared))
        return losses, total

    def _deliver(self, batch: EventBatch) -> None:
        self._feed.publish(batch)
        for wakeup in self._wakeups.values():
            wakeup.set()

    # -- on the drain thread -----------------------------------------------

    def stop(self, end: int, detail: str) -> None:
        """Take what is left, send it with the reason for the end, and end."""
        self._stopping.set()
        self._listening.set()
        self._thread.join()
        while True:
            drained = self._rings.drain(target_is_gone=True)
            self._pending.add(drained, time.monotonic_ns())
            if not drained.more:
                break
            self._send(drained.watermark_ticks)
        self.final_lost = self._rings.lost_total()
        self._send(drained.watermark_ticks, end, detail)

    def _run(self) -> None:
        last_sent = 0
        while not self._stopping.is_set():
            idle_s = _LOOK_AFTER_NS / 1e9 if self._throttling.is_idle else _WATCH_S
            if not self._listening.wait(idle_s):
                now = time.monotonic_ns()
                if not self._throttling.is_idle:
                    with self._lock:
                        self._rings.count()
                    self._throttling.look(now)
                self._housekeeping(now)
                continue
            with self._lock:
                drained = self._rings.drain()
                now = time.monotonic_ns()
                self._pending.add(drained, now)
                full = self._pending.bytes >= _BATCH_BYTES or drained.more
                old = self._pending.count and now - self._pending.since_ns >= _BATCH_NS
                old = old or self._throttling.has_notices
                if full or old or now - last_sent >= _HEARTBEAT_NS:
                    self._send(drained.watermark_ticks if not drained.more else 0)
                    last_sent = now
            self._throttling.look(now)
            if not drained.more:
                self._retire()
                self._housekeeping(now)
                self._stopping.wait(_POLL_S)

    # Who was found to have ended has written nothing since, and all is drained. A new
    # thread may have its number by now, and its ring.
    def _retire(self) -> None:
        if not self._ended:
            return
        with suppress(TargetGoneError):
            self._rings.retire(self._ended - self._numbers.living())
        self._ended.clear()

    def _housekeeping(self, now: int) -> None:
        if now - self._last_look < _LOOK_AFTER_NS:
            return
        self._last_look = now
        self._look_after()
        try:
            living = self._numbers.living()
        except TargetGoneError:
            return
        self._ended = self._rings.owners() - living if self._listening.is_set() else set()
        self._names = {tid: name for tid, name in self._names.items() if tid in living}

    def _send(self, watermark: int, end: int = 0, detail: str = "") -> None:
        pending, self._pending = self._pending, _Pending()
        self._announced, functions = self._new_functions(self._announced)
        self._sequence += 1
        self.records_total += pending.count
        losses, lost_total = self._losses()
        batch = EventBatch(
            sequence=self._sequence,
            threads=[
                (
                    self._numbers.outside(own),
                    self._name(own),
                    parts[0] if len(parts) == 1 else b"".join(parts),
                )
                for own, parts in pending.threads.items()
            ],
            watermark_ticks=watermark,
            functions=functions,
            anchors=[_clock_anchor(self._clock.anchor())],
            losses=losses,
            records_total=self.records_total,
            lost_total=lost_total,
            end=end,
            end_detail=detail,
            record_count=pending.count,
            throttled=self._throttling.take_notices(),
        )
        self._loop.call_soon_threadsafe(self._deliver, batch)

    def _name(self, own: int) -> str:
        name = self._names.get(own)
        if not name:
            name = self._names[own] = thread_name(self._pid, self._numbers.outside(own))
        return name


def _clock_anchor(anchor: Anchor) -> ClockAnchor:
    return ClockAnchor(
        anchor.ticks, anchor.monotonic_ns, anchor.realtime_ns, anchor.ticks_per_second
    )
