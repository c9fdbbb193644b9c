"""A client that is killed, or stops, in each phase of a patch of many hosts: no host stays
enabled for longer than its lease."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fleet.hosts import Hosts, running_hosts
from tests.support.text_compare import assert_not_traced, assert_text_unchanged, text_differences
from tests.support.waiting import wait_until
from uftrace_remote.errors import ConflictError
from uftrace_remote.values import PatchOptions, ProcessRef

HOSTS = 3
# In seconds: until it is confirmed, and in the end.
PROBATION, LEASE = 8.0, 8.0
# What the client says, how often it has said it, and how long after that it ends. The first
# commit is of the canary alone; its moment is about a second after the words.
PHASES = (
    ("attaching", 1, 0.0),
    ("preparing", 1, 0.0),
    ("preparing", 2, 0.0),
    ("committing", 1, 0.0),
    ("committing", 1, 0.7),
    ("watching", 1, 0.0),
    ("committing", 2, 0.0),
    ("committing", 2, 0.7),
    ("confirming", 1, 0.0),
)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with running_hosts(tmp_path_factory.mktemp("hosts"), HOSTS) as started:
        yield started
        started.quit()


@contextmanager
def patching(hosts: Hosts) -> Iterator[subprocess.Popen[str]]:
    places = [f"{h.agent.address}={h.agent.state_dir}={h.target.pid}" for h in hosts]
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.fleet.patching_client"),
            *(str(PROBATION), str(LEASE), *places),
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        try:
            yield client
        finally:
            client.kill()


def wait_for(client: subprocess.Popen[str], words: str, times: int) -> None:
    assert client.stdout is not None
    for line in client.stdout:
        times -= line.startswith(words)
        if not times:
            return
    raise AssertionError(f"the client never said: {words}")


def enabled(hosts: Hosts) -> list[bool]:
    return [bool(text_differences(host.target.pid)) for host in hosts]


def held(hosts: Hosts) -> float:
    """How long the leases that hold something still last, at the most."""
    longest = 0
    for host in hosts:
        with host.agent.client() as client:
            for session in client.sessions():
                longest = max([longest, *(lease.remaining_ns for lease in session.leases)])
    return longest / 1e9


def is_free(hosts: Hosts) -> bool:
    """Whether nobody is about to change a program: a moment that was agreed on still comes."""
    for host in hosts:
        with host.agent.client() as client:
            # Ends when an attach that is under way does.
            client.attach(ProcessRef(host.target.pid))
            for session in client.sessions():
                try:
                    client.patch(session.session_id, ["leaf"], PatchOptions(dry_run=True))
                except ConflictError:
                    return False
    return True


def assert_left(hosts: Hosts) -> None:
    """All is as it was, once the leases have ended; and somebody else can begin anew."""
    wait_until(lambda: is_free(hosts), timeout=60)
    assert held(hosts) <= max(PROBATION, LEASE)
    wait_until(lambda: not any(enabled(hosts)), timeout=60, otherwise=lambda: f"{enabled(hosts)}")
    for host in hosts:
        assert_text_unchanged(host.target.pid)
        assert_not_traced(host.target.pid)
        with host.agent.client() as client:
            for session in client.sessions():
                assert not session.leases and not session.tracepoint_count
                client.detach(session.session_id)
    hosts.check()


@pytest.mark.parametrize(("words", "times", "delay"), PHASES)
def test_a_client_that_is_killed(hosts: Hosts, words: str, times: int, delay: float) -> None:
    with patching(hosts) as client:
        wait_for(client, words, times)
        # Not a wait for something: the phase is hit where it is, at any speed.
        time.sleep(delay)
        client.send_signal(signal.SIGKILL)
        client.wait()
    assert_left(hosts)


@pytest.mark.parametrize(("words", "times", "delay"), PHASES[3::2])
def test_a_client_that_stops_and_goes_on_when_its_lease_is_over(
    hosts: Hosts, words: str, times: int, delay: float
) -> None:
    with patching(hosts) as client:
        wait_for(client, words, times)
        time.sleep(delay)
        os.kill(client.pid, signal.SIGSTOP)
        wait_until(lambda: is_free(hosts), timeout=60)
        wait_until(lambda: not any(enabled(hosts)) and not held(hosts), timeout=60)
        # WHEN it wakes up THEN it does not enable what is over
        os.kill(client.pid, signal.SIGCONT)
        assert client.stdout is not None
        assert client.stdout.read().splitlines()[-1] == "nothing is patched"
        assert client.wait(60) == 0
    assert_left(hosts)
