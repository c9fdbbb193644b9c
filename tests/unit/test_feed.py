"""Who gets which batches: subscriptions, replay and losses."""

from __future__ import annotations

import pytest

from uftrace_agent.session.feed import REPLAY_BYTES, Feed, Subscription, batch_bytes
from uftrace_agent.session.types import EventBatch, Loss


def batch(sequence: int, records: int = 1, *, end: int = 0) -> EventBatch:
    return EventBatch(
        sequence=sequence,
        threads=((7, "main", bytes(16 * records)),) if records else (),
        record_count=records,
        end=end,
    )


def taken(subscription: Subscription) -> list[int]:
    found = []
    while (one := subscription.take()) is not None:
        found.append(one.sequence)
    return found


def published(count: int, records: int = 1) -> Feed:
    feed = Feed()
    for sequence in range(1, count + 1):
        feed.publish(batch(sequence, records))
    return feed


def test_every_reader_gets_every_batch_in_order() -> None:
    feed = Feed()
    readers = [feed.subscribe(0)[0] for _ in range(3)]
    for sequence in range(1, 6):
        feed.publish(batch(sequence))
    assert [taken(reader) for reader in readers] == [[1, 2, 3, 4, 5]] * 3
    assert feed.sequence == 5


def test_a_new_reader_begins_with_what_comes() -> None:
    feed = published(3)
    reader, complete = feed.subscribe(0)
    feed.publish(batch(4))
    assert (taken(reader), complete) == ([4], True)


def test_a_reader_that_comes_back_misses_nothing() -> None:
    feed = published(5)
    reader, complete = feed.subscribe(2)
    feed.publish(batch(6))
    assert (taken(reader), complete) == ([3, 4, 5, 6], True)


def test_a_reader_that_has_seen_all_waits() -> None:
    feed = published(5)
    reader, complete = feed.subscribe(5)
    assert (taken(reader), complete) == ([], True)


def test_a_reader_that_comes_back_too_late_is_told() -> None:
    # GIVEN more than is kept
    records = REPLAY_BYTES // 16 // 4
    feed = published(8, records)
    # WHEN a reader asks for what is gone
    reader, complete = feed.subscribe(1)
    # THEN it learns that, and gets what there is
    assert not complete
    kept = taken(reader)
    assert kept[-1] == 8 and kept[0] > 2
    assert kept == list(range(kept[0], 9))
    # AND who asks for no more than is kept gets it
    assert feed.subscribe(kept[0] - 1)[1]


def test_a_batch_larger_than_the_replay_is_kept_alone() -> None:
    feed = published(2, REPLAY_BYTES // 16 + 1)
    reader, complete = feed.subscribe(1)
    assert (taken(reader), complete) == ([2], True)


def test_a_slow_reader_loses_batches_and_knows_how_many_records() -> None:
    slow = Subscription(limit_bytes=batch_bytes(batch(1, 10)) * 3)
    for sequence in range(1, 11):
        slow.offer(batch(sequence, 10))
    assert slow.lost_records == 70
    assert taken(slow) == [1, 2, 3]
    assert slow.queued_bytes == 0
    slow.offer(batch(11, 10))
    assert (taken(slow), slow.lost_records) == ([11], 70)


def test_a_slow_reader_does_not_hold_others_up() -> None:
    feed = Feed()
    slow, _ = feed.subscribe(0)
    quick, _ = feed.subscribe(0)
    slow.limit_bytes = 1
    seen = []
    for sequence in range(1, 5):
        feed.publish(batch(sequence))
        seen += taken(quick)
    assert seen == [1, 2, 3, 4]
    assert (taken(slow), slow.lost_records) == ([1], 3)


def test_the_first_batch_is_taken_however_large() -> None:
    reader = Subscription(limit_bytes=1)
    reader.offer(batch(1, 1000))
    assert (taken(reader), reader.lost_records) == ([1], 0)


def test_the_last_batch_is_never_dropped() -> None:
    reader = Subscription(limit_bytes=1)
    reader.offer(batch(1))
    reader.offer(batch(2))
    reader.offer(batch(3, end=4))
    assert (taken(reader), reader.lost_records) == ([1, 3], 1)


def test_empty_batches_weigh_something() -> None:
    assert batch_bytes(batch(1, 0)) > 0


def test_who_has_left_gets_nothing() -> None:
    feed = Feed()
    reader, _ = feed.subscribe(0)
    feed.unsubscribe(reader)
    feed.unsubscribe(reader)
    feed.publish(batch(1))
    assert taken(reader) == [] and feed.subscriptions == []


@pytest.mark.parametrize(("after", "wanted"), [(1, 1), (2, 2), (3, 3), (4, None)])
def test_losses_are_those_that_a_batch_told(after: int, wanted: int | None) -> None:
    feed = Feed()
    for sequence in range(1, 4):
        losses = (Loss(stage=1, tid=0, records=sequence),)
        feed.publish(EventBatch(sequence=sequence, losses=losses))
    found = feed.losses_at(after)
    assert (found and found[0].records) == wanted


def test_a_batch_tells_only_of_what_was_dropped_before_it() -> None:
    # GIVEN a queue that is full after two batches
    reader = Subscription(limit_bytes=2 * batch_bytes(batch(1)))
    for sequence in (1, 2, 3):
        reader.offer(batch(sequence))
    # WHEN those before the dropped one are taken, and then one behind it
    told = []
    for _ in range(2):
        reader.take()
        told.append(reader.told_lost)
    reader.offer(batch(4))
    reader.take()
    # THEN it is told of with the latter
    assert (*told, reader.told_lost, reader.lost_records) == (0, 0, 1, 1)
