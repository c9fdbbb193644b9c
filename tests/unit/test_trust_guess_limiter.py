"""Those who try tokens are slowed down; everybody else is not."""

from __future__ import annotations

import pytest

from uftrace_agent.trust.guess_limiter import GuessLimiter, address_of


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.1.2.3:4242", "10.1.2.3"),
        ("ipv6:%5B::1%5D:4242", "::/64"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:1", "2001:db8:1:2::/64"),
        ("ipv6:[::ffff:10.1.2.3]:1", "10.1.2.3"),
        ("ipv6:[fe80::1%25eth0]:1", "fe80::/64"),
        ("unix:", ""),
        ("unix:/run/a.sock", ""),
    ],
)
def test_failures_are_counted_by_host_or_network(peer, address):
    assert address_of(peer) == address


def test_the_delay_doubles_and_has_an_end():
    limiter = GuessLimiter()
    now, waits = 0.0, []
    for _ in range(20):
        waits.append(limiter.failed("a", now))
        now += waits[-1]
    assert waits[:4] == [0.0] * 4
    assert waits[4:9] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert max(waits) == waits[-1] == 300.0
    assert limiter.refused_for("a", now) == 0.0
    assert limiter.refused_for("a", now - 1) == 1.0


def test_one_address_does_not_lock_out_another():
    limiter = GuessLimiter()
    for _ in range(50):
        limiter.failed("a", 1.0)
    assert limiter.refused_for("a", 1.0) > 0
    assert limiter.refused_for("b", 1.0) == 0


def test_a_quiet_quarter_of_an_hour_is_forgiven():
    limiter = GuessLimiter()
    for _ in range(10):
        limiter.failed("a", 0.0)
    assert limiter.failed("a", 2000.0) == 0.0


def test_memory_is_bounded_and_the_local_socket_is_not_counted():
    limiter = GuessLimiter()
    for number in range(10_000):
        limiter.failed(str(number), float(number) / 1e6)
    assert len(limiter) == 4096
    for _ in range(50):
        assert limiter.failed("", 0.0) == 0.0
    assert limiter.refused_for("", 0.0) == 0.0
