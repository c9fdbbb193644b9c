"""From rings to batches: who gets which records, and what was lost where.

A pure state machine: no thread, no clock and no file in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from uftrace_agent.session.types import EventBatch, Loss, Throttle

REPLAY_BYTES: Final = 32 << 20
QUEUE_BYTES: Final = 64 << 20


@dataclass(slots=True)
class Subscription:
    """One reader of a session's batches: a bounded queue that drops and counts.

    Attributes:
        queue: Batches to be sent, each with the number of records that were dropped
            before it.
        queued_bytes: Their size.
        lost_records: Records in batches that were dropped because the queue
            was full.
        told_lost: Those of them that came before the batch taken last. What is told
            with a batch is about those before it: a reader that breaks off there has
            counted nothing that comes later, from this agent or the next.
        untold: What they said of tracepoints that were taken out.
        is_closed: Nothing more will come.
    """

    queue: deque[tuple[EventBatch, int]] = field(default_factory=deque)
    queued_bytes: int = 0
    lost_records: int = 0
    told_lost: int = 0
    untold: list[Throttle] = field(default_factory=list)
    is_closed: bool = False
    limit_bytes: int = QUEUE_BYTES

    def offer(self, batch: EventBatch) -> None:
        """Queue a batch, or count what it held."""
        size = batch_bytes(batch)
        if self.queue and self.queued_bytes + size > self.limit_bytes and not batch.end:
            self.lost_records += batch.record_count
            self.untold += batch.throttled
            return
        self.queue.append((batch, self.lost_records))
        self.queued_bytes += size

    def take(self) -> EventBatch | None:
        """The next batch; None where there is none now."""
        if not self.queue:
            return None
        batch, self.told_lost = self.queue.popleft()
        self.queued_bytes -= batch_bytes(batch)
        return batch


def batch_bytes(batch: EventBatch) -> int:
    """What a batch weighs in a queue."""
    return sum(len(records) for _, _, records in batch.threads) + 256


class Feed:
    """The batches of one session, in order, for any number of readers."""

    def __init__(self) -> None:
        self.sequence = 0
        self.subscriptions: list[Subscription] = []
        self._replay: deque[EventBatch] = deque()
        self._replay_bytes = 0

    def publish(self, batch: EventBatch) -> None:
        """Give a batch to all readers and keep it for those who come back."""
        self.sequence = batch.sequence
        for subscription in self.subscriptions:
            subscription.offer(batch)
        self._replay.append(batch)
        self._replay_bytes += batch_bytes(batch)
        while self._replay_bytes > REPLAY_BYTES and len(self._replay) > 1:
            self._replay_bytes -= batch_bytes(self._replay.popleft())

    def losses_at(self, sequence: int) -> Sequence[Loss] | None:
        """The losses that the batch of that sequence told, or the oldest known since;
        None where no batch is kept."""
        kept = [batch for batch in self._replay if batch.sequence >= sequence]
        return kept[0].losses if kept else None

    def subscribe(self, after_sequence: int) -> tuple[Subscription, bool]:
        """A new reader, with the batches behind `after_sequence` (0: from now on).

        Returns:
            The subscription, and whether all batches asked for are still there.
        """
        subscription = Subscription()
        complete = True
        if after_sequence:
            wanted = [batch for batch in self._replay if batch.sequence > after_sequence]
            first = wanted[0].sequence if wanted else self.sequence + 1
            complete = first == after_sequence + 1
            _offer_all(subscription, wanted)
        self.subscriptions.append(subscription)
        return subscription, complete

    def unsubscribe(self, subscription: Subscription) -> None:
        """A reader has gone."""
        if subscription in self.subscriptions:
            self.subscriptions.remove(subscription)


def _offer_all(subscription: Subscription, batches: Iterable[EventBatch]) -> None:
    for batch in batches:
        subscription.offer(batch)
