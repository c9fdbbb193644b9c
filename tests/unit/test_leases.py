"""Leases: what they hold goes when the last of them has ended."""

from __future__ import annotations

import pytest

from uftrace_agent.engine.lease_record import MOST_LEASES, LeaseRecord, pack_leases, unpack_leases
from uftrace_agent.errors import ExhaustedError, InvalidRequestError, NoSuchLeaseError
from uftrace_agent.session.leases import Leases

SECOND = 10**9


def test_a_lease_ends_when_its_time_is_over() -> None:
    leases = Leases()
    bit = leases.grant("live-1", 30 * SECOND, 100 * SECOND)
    assert leases.next_end_ns() == 130 * SECOND
    assert leases.alive(130 * SECOND - 1) == bit
    assert leases.alive(130 * SECOND) == 0
    leases.forget(130 * SECOND)
    assert leases.next_end_ns() is None
    assert leases.rows() == []


def test_a_lease_goes_on_as_long_as_it_is_renewed() -> None:
    leases = Leases()
    bit = leases.grant("live-1", 30 * SECOND, 0)
    leases.renew("live-1", 30 * SECOND, 29 * SECOND)
    assert leases.alive(58 * SECOND) == bit
    # Shorter than before is what was asked for.
    leases.renew("live-1", 1 * SECOND, 58 * SECOND)
    assert leases.alive(59 * SECOND) == 0


def test_the_same_name_is_the_same_lease() -> None:
    leases = Leases()
    first = leases.grant("mine", 5 * SECOND, 0)
    assert leases.grant("mine", 9 * SECOND, 0) == first
    assert leases.grant("other", 9 * SECOND, 0) != first
    assert leases.next_end_ns() == 9 * SECOND


def test_a_lease_that_has_ended_cannot_be_renewed() -> None:
    leases = Leases()
    leases.grant("mine", 5 * SECOND, 0)
    leases.grant("other", 50 * SECOND, 0)
    leases.forget(5 * SECOND)
    with pytest.raises(NoSuchLeaseError) as caught:
        leases.renew("mine", 5 * SECOND, 5 * SECOND)
    assert "other" in caught.value.hint


def test_a_lease_is_released_by_its_name() -> None:
    leases = Leases()
    mine, other = (leases.grant(name, 5 * SECOND, 0) for name in ("mine", "other"))
    leases.release("mine")
    assert leases.alive(0) == other
    with pytest.raises(NoSuchLeaseError):
        leases.release("mine")
    # Its place is free once nothing is held by it any more.
    assert leases.grant("third", 5 * SECOND, 0) not in (mine, other)
    leases.forget(0)
    assert leases.grant("fourth", 5 * SECOND, 0) == mine


@pytest.mark.parametrize("name", ["", "x" * 49, "a\nb", "ü" * 25])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        Leases().grant(name, SECOND, 0)


@pytest.mark.parametrize("duration_ns", [0, -1, 400 * 24 * 3600 * SECOND])
def test_a_duration_that_is_none(duration_ns: int) -> None:
    with pytest.raises(InvalidRequestError):
        Leases().grant("mine", duration_ns, 0)


def test_there_is_an_end_of_leases() -> None:
    leases = Leases()
    bits = {leases.grant(f"lease-{number}", SECOND, 0) for number in range(MOST_LEASES)}
    assert len(bits) == MOST_LEASES
    assert max(bits) < 1 << 32
    with pytest.raises(ExhaustedError):
        leases.grant("one more", SECOND, 0)
    leases.grant("lease-7", 2 * SECOND, 0)
    leases.forget(SECOND)
    leases.grant("one more", SECOND, SECOND)


def test_the_next_agent_reads_what_the_one_before_wrote() -> None:
    leases = Leases()
    leases.grant("mine", 5 * SECOND, 7)
    gone = leases.grant("gone", 1 * SECOND, 7)
    kept = leases.grant("für immer", 50 * SECOND, 7)
    leases.release("gone")
    leases.forget(7)
    again = Leases(unpack_leases(pack_leases(leases.rows())))
    assert again.rows() == leases.rows()
    assert again.alive(10 * SECOND) == kept
    assert again.grant("new", SECOND, 0) == gone


def test_any_bytes_are_no_error() -> None:
    assert unpack_leases(b"") == []
    assert unpack_leases(b"\xff" * 60) == [(0, LeaseRecord("\ufffd" * 48, (1 << 64) - 1))]
