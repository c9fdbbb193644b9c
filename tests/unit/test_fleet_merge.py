"""Many streams become one: nothing is lost, nothing comes twice, nobody is waited for for ever."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from uftrace_remote.fleet.merge import Merger
from uftrace_remote.fleet.merged_events import Certainty, MergedEvents

SECOND = 1_000_000_000
LIMIT = 2 * SECOND


def push(merger: Merger, source: int, *events: tuple[int, int, int], watermark: int = 0) -> None:
    """Events are (time, tid, word)."""
    rows = list(zip(*events, strict=True)) if events else [(), (), ()]
    merger.push(
        source,
        np.array(rows[0], np.int64),
        np.array(rows[1], np.int64),
        np.array(rows[2], np.uint64),
        watermark,
    )


def rows(events: MergedEvents) -> list[tuple[int, int, int, int]]:
    """(time, source, tid, word)"""
    columns = (events.time_ns, events.source, events.tid, events.word)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def two(**options: int) -> Merger:
    merger = Merger(late_after_ns=LIMIT, **options)
    assert [merger.add(0), merger.add(0)] == [0, 1]
    return merger


def test_only_what_lies_before_the_lowest_watermark_is_given():
    merger = two()
    push(merger, 0, (10, 1, 7), (30, 1, 8), watermark=40)
    push(merger, 1, (20, 1, 9), watermark=25)
    events, certainty = merger.release()
    assert rows(events) == [(10, 0, 1, 7), (20, 1, 1, 9)]
    assert certainty == Certainty(25)
    assert merger.release()[0].late_count == 0
    push(merger, 1, watermark=60)
    assert rows(merger.release()[0]) == [(30, 0, 1, 8)]


def test_what_is_at_the_watermark_may_still_get_company():
    merger = two()
    push(merger, 0, (20, 1, 1), watermark=20)
    push(merger, 1, watermark=30)
    assert not len(merger.release()[0])
    push(merger, 0, (20, 2, 2), watermark=30)
    assert rows(merger.release()[0]) == [(20, 0, 1, 1), (20, 0, 2, 2)]


def test_nobody_waits_for_ever_for_a_source_that_has_never_been_heard_of():
    merger = two()
    push(merger, 0, (10, 1, 1), watermark=LIMIT)
    assert not len(merger.release()[0])
    assert not merger.is_late(1)
    push(merger, 0, (SECOND, 1, 2), watermark=LIMIT + 1)
    events, certainty = merger.release()
    assert len(events) == 2
    assert merger.is_late(1) and not merger.is_late(0)
    assert certainty == Certainty(LIMIT + 1, missing=(1,))


def test_a_late_source_is_named_and_what_it_brings_is_marked():
    merger = two()
    push(merger, 0, watermark=SECOND)
    push(merger, 1, watermark=SECOND)
    assert merger.release()[1] == Certainty(SECOND)
    # WHEN the second is silent
    push(merger, 0, (4 * SECOND, 1, 1), watermark=5 * SECOND)
    events, certainty = merger.release()
    assert len(events) == 1
    assert certainty == Certainty(5 * SECOND, missing=(1,))
    # WHEN it comes back with what it had meanwhile
    push(merger, 1, (3 * SECOND, 9, 2), (6 * SECOND, 9, 3), watermark=6 * SECOND)
    push(merger, 0, watermark=7 * SECOND)
    events, certainty = merger.release()
    assert rows(events) == [(3 * SECOND, 1, 9, 2)]
    assert events.late_count == 1
    # THEN nothing is missing any more, and it is waited for again
    assert certainty == Certainty(6 * SECOND)
    assert not merger.is_late(1)
    assert merger.counts(1).late == 1 and merger.counts(1).held == 1
    push(merger, 1, watermark=8 * SECOND)
    assert rows(merger.release()[0]) == [(6 * SECOND, 1, 9, 3)]


def test_a_source_near_the_limit_does_not_come_and_go():
    merger = two()
    late = []
    for number, now in enumerate(range(3 * SECOND, 6 * SECOND, SECOND // 10)):
        push(merger, 0, watermark=now)
        # Its watermark is 1.9 to 2.1 s behind.
        push(merger, 1, watermark=now - LIMIT + (SECOND // 10 if number % 2 else -SECOND // 10))
        merger.release()
        late.append(merger.is_late(1))
    assert late == sorted(late) and late[-1]


def test_where_all_stand_still_nobody_is_late():
    merger = two()
    push(merger, 0, (10, 1, 1), (50, 1, 2), watermark=30)
    push(merger, 1, (20, 1, 3), watermark=25)
    events, certainty = merger.release()
    assert [row[0] for row in rows(events)] == [10, 20]
    assert certainty == Certainty(25)


def test_a_clock_that_is_hardly_known_makes_nobody_late():
    merger = two()
    merger.set_bound(0, 10 * SECOND)
    push(merger, 0, watermark=9 * SECOND)
    push(merger, 1, (10, 1, 1), watermark=SECOND)
    assert len(merger.release()[0]) == 1
    assert not merger.is_late(1)
    merger.set_bound(0, SECOND)
    merger.release()
    assert merger.is_late(1)


def test_the_end_of_a_source():
    merger = two()
    push(merger, 0, (10, 1, 1), (50, 1, 2), watermark=20)
    push(merger, 1, (30, 1, 3), watermark=40)
    merger.end(0, is_complete=True)
    events, certainty = merger.release()
    assert [row[0] for row in rows(events)] == [10, 30]
    assert certainty == Certainty(40)
    # WHEN a stream breaks, all after its watermark is unknown
    merger.end(1, is_complete=False)
    events, certainty = merger.release()
    assert [row[0] for row in rows(events)] == [50]
    assert certainty == Certainty(51, missing=(1,))


def test_the_order_is_as_sure_as_the_two_worst_clocks():
    merger = Merger()
    for clock in ("a", "a", "b", "c"):
        merger.add(0, clock)
    for source, bound in enumerate((100, 150, 30, 20)):
        merger.set_bound(source, bound)
        push(merger, source, (10, 1, 1), watermark=20)
    assert merger.release()[1].uncertainty_ns == 180
    alone = Merger()
    for _ in range(2):
        alone.set_bound(alone.add(0, "a"), 10)
    push(alone, 0, (10, 1, 1), watermark=20)
    push(alone, 1, (11, 1, 1), watermark=20)
    assert alone.release()[1].uncertainty_ns == 0


def test_what_finds_no_room_is_counted_and_the_heaviest_pays():
    merger = two(most_records=10)
    push(merger, 0, *((time, 1, time) for time in range(4)))
    push(merger, 1, *((time, 1, time) for time in range(6)))
    push(merger, 1, *((time, 1, time) for time in range(6, 9)))
    assert merger.held == 10
    assert merger.counts(0).dropped == 0 and merger.counts(1).dropped == 3
    # The oldest stay, of each as many.
    push(merger, 0, *((time, time, time) for time in range(20, 3, -1)))
    assert merger.counts(0).held == merger.counts(1).held == 5
    assert merger.counts(0).dropped == 16 and merger.counts(1).dropped == 4
    for source in (0, 1):
        merger.end(source, is_complete=True)
    assert [row[0] for row in rows(merger.release()[0])] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert merger.counts(0).delivered == 5


def test_much_is_given_in_parts():
    merger = two()
    push(merger, 0, *((time, 1, time) for time in range(0, 200, 2)), watermark=300)
    push(merger, 1, *((time, 1, time) for time in range(1, 200, 2)), watermark=300)
    found, certainties = [], []
    for _ in range(3):
        events, certainty = merger.release(80)
        found.append([row[0] for row in rows(events)])
        certainties.append(certainty.complete_to_ns)
    assert found == [list(range(80)), list(range(80, 160)), list(range(160, 200))]
    assert certainties == [80, 160, 300]
    assert merger.held == 0


def test_times_that_are_far_apart():
    merger = two()
    push(merger, 0, (5, 1, 1), (1 << 62, 1, 2))
    push(merger, 1, (0, 1, 3), (1 << 61, 1, 4))
    for source in (0, 1):
        merger.end(source, is_complete=True)
    assert [row[3] for row in rows(merger.release()[0])] == [3, 1, 4, 2]


def test_columns_of_a_record():
    merger = two()
    word = 2 << 1 | 0xABCDEF << 4 | 0xF_1234_5678 << 28
    push(merger, 0, (5, 77, word), watermark=9)
    push(merger, 1, watermark=9)
    events, _ = merger.release()
    assert events.kind.tolist() == [2] and events.function.tolist() == [0xABCDEF]
    assert events.key.tolist() == [0xF_1234_5678] and events.tid.tolist() == [77]


# -- anything, in any order ----------------------------------------------------


@dataclass
class Sender:
    """A source as an agent is one: its threads are in order, its watermarks are true."""

    number: int
    clocks: dict[int, int] = field(default_factory=dict)
    watermark: int = 0
    sent: int = 0

    def batch(self, pieces: list[tuple[int, list[int]]], ahead: int) -> list[tuple[int, int, int]]:
        events = []
        for tid, steps in pieces:
            time = max(self.clocks.get(tid, 0), self.watermark)
            for step in steps:
                time += step
                events.append((time, tid, self.sent))
                self.sent += 1
            self.clocks[tid] = time
        self.watermark += ahead
        return events


SOURCES = 3
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("push"),
            st.integers(0, SOURCES - 1),
            st.lists(
                st.tuples(st.integers(1, 3), st.lists(st.integers(0, 30), max_size=8)), max_size=3
            ),
            st.integers(0, 60),
        ),
        st.tuples(st.just("release"), st.sampled_from([3, 1000])),
        st.tuples(st.just("end"), st.integers(0, SOURCES - 1), st.booleans()),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.sampled_from([12, 1 << 20]))
def test_nothing_is_lost_and_nothing_comes_twice(steps, room):
    merger = Merger(late_after_ns=100, most_records=room)
    senders = [Sender(merger.add(0)) for _ in range(SOURCES)]
    ended: set[int] = set()
    complete_to = 0
    given_rows: list[tuple[int, int, int, int]] = []

    def release(most: int) -> None:
        nonlocal complete_to
        events, certainty = merger.release(most)
        found = rows(events)
        assert len(found) <= most
        times = [row[0] for row in found]
        assert times == sorted(times)
        # What is late is from before what was said to be complete, and nothing else is.
        assert all(time < complete_to for time in times[: events.late_count])
        assert all(time >= complete_to for time in times[events.late_count :])
        assert certainty.complete_to_ns >= complete_to
        complete_to = certainty.complete_to_ns
        assert all(time <= complete_to for time in times)
        given_rows.extend(found)
        for sender in senders:
            is_missing = sender.number in certainty.missing
            if sender.number not in ended:
                assert is_missing == (sender.watermark < complete_to)
                assert merger.is_late(sender.number) or sender.watermark >= complete_to

    for step in steps:
        if step[0] == "push":
            _, number, pieces, ahead = step
            sender = senders[number]
            if number not in ended:
                events = sender.batch(pieces, ahead)
                push(merger, number, *events, watermark=sender.watermark)
                assert merger.held <= room
        elif step[0] == "release":
            release(step[1])
        else:
            ended.add(step[1])
            merger.end(step[1], is_complete=step[2])
    for sender in senders:
        merger.end(sender.number, is_complete=True)
        ended.add(sender.number)
    while merger.held:
        before = merger.held
        release(7)
        assert merger.held < before

    for sender in senders:
        words = [row[3] for row in given_rows if row[1] == sender.number]
        assert len(words) == len(set(words))
        counts = merger.counts(sender.number)
        assert counts.received == sender.sent and counts.held == 0
        assert counts.delivered == len(words)
        assert counts.received == counts.delivered + counts.dropped
        if room > 1000:
            assert sorted(words) == list(range(sender.sent))
        for tid in range(4):
            own = [row[3] for row in given_rows if row[1] == sender.number and row[2] == tid]
            assert own == sorted(own)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 50), max_size=30), min_size=1, max_size=5))
def test_all_sources_in_time_are_as_one_stable_sort(times):
    merger = Merger()
    expected = []
    for gaps in times:
        number = merger.add(0)
        moments = np.cumsum(np.array(gaps, np.int64)).tolist()
        push(merger, number, *((t, 1, n) for n, t in enumerate(moments)), watermark=10_000)
        expected += [(t, number, 1, n) for n, t in enumerate(moments)]
    events, certainty = merger.release()
    assert rows(events) == sorted(expected, key=lambda row: row[0])
    assert events.late_count == 0 and certainty == Certainty(10_000)
