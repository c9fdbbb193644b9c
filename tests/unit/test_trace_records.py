"""The 16-byte record."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.trace_support import Tape
from uftrace_remote.enums import RecordKind
from uftrace_remote.trace.records import decode_records, encode_record


@given(
    ticks=st.integers(0, (1 << 63) - 1),
    kind=st.sampled_from(list(RecordKind)),
    function=st.integers(0, (1 << 24) - 1),
    key=st.integers(0, (1 << 36) - 1),
)
def test_a_record_comes_back(ticks, kind, function, key):
    data = encode_record(ticks, kind, function, key)
    assert len(data) == 16
    assert not data[8] & 1
    found = decode_records(data)
    assert (found.ticks[0], found.kind[0], found.function[0], found.key[0]) == (
        ticks,
        kind,
        function,
        key,
    )


def test_records_that_a_signal_handler_put_out_of_order_are_sorted():
    data = (
        encode_record(30, RecordKind.ENTRY, 2, 50)
        + encode_record(40, RecordKind.EXIT, 2, 50)
        + encode_record(20, RecordKind.ENTRY, 1, 90)
    )
    assert decode_records(data).ticks.tolist() == [20, 30, 40]
    assert decode_records(data).function.tolist() == [1, 2, 2]


def test_records_of_one_tick_keep_their_order():
    tape = Tape().entry(1, 90, 0).entry(2, 80, 0).exit(2, 80, 0).exit(1, 90, 0)
    assert decode_records(tape.data).function.tolist() == [1, 2, 2, 1]


def test_a_torn_record_at_the_end_is_left_out():
    tape = Tape().entry(1, 90)
    assert len(decode_records(tape.data + b"1234567")) == 1
    assert len(decode_records(b"")) == 0
