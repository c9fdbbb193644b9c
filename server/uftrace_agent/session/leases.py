"""Leases: tracepoints that are taken out when nobody says in time that they are still wanted.

A lease has a name and an end. A tracepoint may be held by several, and goes when the
last of them has ended; one that was asked for without a lease stays until it is unpatched.
No I/O here: the caller says what time it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from uftrace_agent.engine.lease_record import MOST_LEASES, LeaseRecord
from uftrace_agent.errors import ExhaustedError, InvalidRequestError, NoSuchLeaseError

_LONGEST_NS: Final = 366 * 24 * 3600 * 10**9
_LONGEST_NAME: Final = 48


class Leases:
    """The leases of one session. Times in nanoseconds of CLOCK_BOOTTIME, which no
    clock change moves and which counts while the machine sleeps.

    Args:
        held: Leases that an agent before has granted, by their places.
    """

    def __init__(self, held: Iterable[tuple[int, LeaseRecord]] = ()) -> None:
        self._held: dict[int, LeaseRecord] = dict(held)

    def grant(self, name: str, duration_ns: int, now_ns: int) -> int:
        """A lease, or the one of that name renewed; its bit.

        Raises:
            InvalidRequestError: The name or the duration is none.
            ExhaustedError: There are too many.
        """
        if not name or len(name.encode()) > _LONGEST_NAME or not name.isprintable():
            raise InvalidRequestError(
                f"a lease cannot be called {name!r}",
                reason="BAD_LEASE",
                hint=f"1 to {_LONGEST_NAME} bytes that can be printed",
            )
        if not 0 < duration_ns <= _LONGEST_NS:
            raise InvalidRequestError(
                f"a lease cannot last {duration_ns / 1e9:g} seconds",
                reason="BAD_LEASE",
                hint="more than 0, and at most a year; leave it out to patch for good",
            )
        place = self._place_of(name)
        if place is None:
            free = set(range(MOST_LEASES)).difference(self._held)
            if not free:
                raise ExhaustedError(
                    f"the session has {MOST_LEASES} leases",
                    reason="TOO_MANY_LEASES",
                    hint="release some, or patch under a name that is there",
                )
            place = min(free)
        self._put(place, LeaseRecord(name, now_ns + duration_ns))
        return 1 << place

    # Others may be looking: never the dictionary that is.
    def _put(self, place: int, record: LeaseRecord) -> None:
        self._held = {**self._held, place: record}

    def renew(self, name: str, duration_ns: int, now_ns: int) -> None:
        """Have a lease end that long from now.

        Raises:
            NoSuchLeaseError: It has ended, or never was.
            InvalidRequestError: The duration is none.
        """
        self._known(name)
        self.grant(name, duration_ns, now_ns)

    def _known(self, name: str) -> int:
        place = self._place_of(name)
        if place is None:
            known = ", ".join(sorted(held.name for held in self._held.values() if held.name))
            raise NoSuchLeaseError(
                f"there is no lease {name!r}",
                hint=f"there are: {known}" if known else "it has ended: patch again",
            )
        return place

    def bit_of(self, name: str) -> int:
        """The bit of a lease; 0 where it has ended, or never was."""
        place = self._place_of(name)
        return 0 if place is None else 1 << place

    def known_bit(self, name: str) -> int:
        """The bit of a lease.

        Raises:
            NoSuchLeaseError: It has ended, or never was.
        """
        return 1 << self._known(name)

    def release(self, name: str) -> None:
        """Have a lease end now.

        Raises:
            NoSuchLeaseError: It has ended, or never was.
        """
        self._put(self._known(name), LeaseRecord("", 0))

    def alive(self, now_ns: int) -> int:
        """The bits of the leases that have not ended."""
        return sum(1 << place for place, held in self._held.items() if held.ends_ns > now_ns)

    def forget(self, now_ns: int) -> None:
        """Nothing is held any more by leases that have ended: their places are free."""
        self._held = {p: held for p, held in self._held.items() if held.ends_ns > now_ns}

    def next_end_ns(self) -> int | None:
        """When the next one ends; None where there is none."""
        return min((held.ends_ns for held in self._held.values()), default=None)

    def rows(self) -> list[tuple[int, LeaseRecord]]:
        """All, with their places, for the journal and for showing."""
        return sorted(self._held.items())

    def _place_of(self, name: str) -> int | None:
        for place, held in self._held.items():
            if name and held.name == name:
                return place
        return None
