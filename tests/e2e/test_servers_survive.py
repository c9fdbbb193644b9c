"""Servers under load go through the lives and deaths of agents without one failed request.

Attach, all functions traced, the agent killed while it traces, and while it patches and
unpatches; the next one goes on, and leaves. Each load compares every reply that it gets.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import AgentProcess, running_agent
from tests.e2e.support import Recorder
from tests.support import programs
from tests.support.programs import Load, Program, self_checking
from tests.support.text_compare import assert_not_traced, assert_text_unchanged, text_differences
from tests.support.waiting import wait_until
from uftrace_agent.engine.manifest import find_manifests
from uftrace_agent.process.address_space import read_mappings
from uftrace_agent.process.memory import ProcessMemory
from uftrace_remote import SyncAgentClient
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.enums import EndReason
from uftrace_remote.errors import BusyTargetError, UftraceError
from uftrace_remote.values import DetachResult, ProcessRef, RecordingOptions

# A client's patience with an agent that is started anew, and has much to adopt.
PATIENCE = 60.0
RECORDS = 1000
DETACH_TRIES = 5
RINGS = RecordingOptions(64 << 10, 64)


@dataclass(frozen=True)
class Case:
    """A program, and which of its functions are traced.

    Attributes:
        within: Which functions of its main file are traced: of 79,000, four rounds take a
            minute, and say nothing that 7,000 do not.
        more: Traced too, in the end.
        least: Functions that can be patched at least.
        unpatch_first: For each death in the middle of a change, which change is begun with:
            the other one follows, until the agent is dead.
    """

    start: Callable[[], AbstractContextManager[Program]]
    within: str = "*"
    more: tuple[str, ...] = ("libc.so.6!*",)
    least: int = 300
    unpatch_first: tuple[bool, ...] = (True,)

    @property
    def name(self) -> str:
        return self.start.__name__


CASES = [
    Case(programs.nginx, more=("*!*",), unpatch_first=(True, False)),
    Case(programs.redis, more=("*!*",)),
    Case(programs.postgres, within="*xec*"),
    Case(programs.memcached, more=("*!*",)),
    Case(programs.python3),
    Case(programs.cpython),
    Case(programs.node, within="node::*"),
    Case(programs.golang),
    Case(programs.java, within="*Thread*"),
    Case(self_checking("fibers", "gcc-O2"), least=5),
    Case(self_checking("rusty", "rust-O3"), least=5),
    Case(self_checking("threads_churn", "gcc-O2"), least=5, unpatch_first=(True, False)),
]


class Traced:
    """The processes of a program, and the sessions that trace them."""

    def __init__(self, pids: tuple[int, ...], pattern: str) -> None:
        self.pids = pids
        self.pattern = pattern
        self.session_ids: dict[int, str] = {}
        self.recorders: dict[int, Recorder] = {}
        self.doing = ""

    def attach(self, client: SyncAgentClient, lasting: SyncAgentClient) -> None:
        for pid in self.pids:
            session = client.attach(ProcessRef(pid), recording=RINGS).session
            self.session_ids[pid] = session.session_id
            self.recorders[pid] = Recorder(lasting, session.session_id, reconnect_seconds=PATIENCE)

    def patch(self, client: SyncAgentClient, *more: str) -> None:
        """Patch all of it."""
        self.doing = "patch"
        for session_id in self.session_ids.values():
            client.patch(session_id, [self.pattern, *more])

    def enabled(self, client: SyncAgentClient) -> dict[int, int]:
        """How many functions are traced, by process."""
        return {
            pid: len(client.tracepoints(session_id)) for pid, session_id in self.session_ids.items()
        }

    def unpatch(self, client: SyncAgentClient) -> None:
        self.doing = "unpatch"
        for session_id in self.session_ids.values():
            client.unpatch(session_id)

    def records(self) -> dict[int, int]:
        return {pid: recorder.recording.records for pid, recorder in self.recorders.items()}

    def assert_recording(self) -> None:
        """Records of the first process go on to arrive: others may have nothing to do."""
        before = self.records()[self.pids[0]]
        wait_until(
            lambda: self.records()[self.pids[0]] >= before + RECORDS,
            timeout=PATIENCE,
            otherwise=lambda: f"records {before}, then {self.records()}",
        )

    def assert_adopted(self, client: SyncAgentClient) -> None:
        found = {s.process.reference.pid: s.session_id for s in client.sessions()}
        assert found == self.session_ids

    def detach(self, client: SyncAgentClient) -> None:
        """Leave every process: its stream, which went on across all deaths, ends."""
        for pid, session_id in self.session_ids.items():
            report = detached(client, session_id)
            seen = self.recorders[pid].finish()
            assert report.conflicting_sites == 0
            assert seen.end is EndReason.DETACHED


def detached(client: SyncAgentClient, session_id: str) -> DetachResult:
    """Detach; a busy process may need a second try, as its user would be told."""
    for _ in range(DETACH_TRIES - 1):
        try:
            return client.detach(session_id)
        except BusyTargetError:
            continue
    return client.detach(session_id)


@contextmanager
def toggling(traced: Traced, client: SyncAgentClient, *, unpatch_first: bool) -> Iterator[None]:
    """Unpatch and patch all the time, until the agent is dead."""
    steps = [traced.patch, traced.unpatch]

    def run() -> None:
        turn = int(unpatch_first)
        try:
            while True:
                steps[turn % 2](client)
                turn += 1
        except UftraceError as error:
            ended.append(error)

    ended: list[UftraceError] = []
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    print("killed while it did", traced.doing, ":", ended)


@contextmanager
def agent_with_client(
    state_dir: Path, address: str
) -> Iterator[tuple[AgentProcess, SyncAgentClient]]:
    with running_agent(state_dir, "--listen", address) as agent, agent.client() as client:
        yield agent, client


def own_descriptors(pid: int) -> Counter[str]:
    """What of a process's descriptors an agent could have left there: requests come and
    go with sockets and with files of the program's own."""
    kinds: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            link = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
        if link.startswith(("/memfd:", "/proc/")):
            kinds[link] += 1
    return kinds


def assert_one_annex(pid: int) -> None:
    """All the agents used the memory that the first of them mapped."""
    mappings = read_mappings(pid)
    with ProcessMemory(pid) as memory:
        assert len(find_manifests(memory, mappings)) == 1
    assert sum("memfd:uftrace-rings" in mapping.name for mapping in mappings) == 1


def processes(program: Program, load: Load) -> tuple[int, ...]:
    """Those that serve the load first; then the one that they were forked from."""
    return tuple(dict.fromkeys((*load.pids, program.pid)))


# On a machine that is busy with other things it takes several times as long.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_h86_no_request_fails_while_agents_come_and_go(tmp_path: Path, case: Case) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    state, address = tmp_path / "state", f"unix:{tmp_path / 'agent.sock'}"
    with case.start() as program, program.load() as load:
        traced = Traced(processes(program, load), f"{program.module.resolve().name}!{case.within}")
        descriptors = {pid: own_descriptors(pid) for pid in traced.pids}
        with agent_with_client(state, address) as (agent, client):
            lasting = SyncAgentClient.connect(
                address, CredentialOptions(state_directory=state), timeout=PATIENCE
            )
            # GIVEN a server, all of whose functions are traced
            traced.attach(client, lasting)
            started = time.monotonic()
            traced.patch(client)
            lasted = time.monotonic() - started
            enabled = traced.enabled(client)
            assert min(enabled.values()) >= case.least
            traced.assert_recording()
            # WHEN the agent is killed while it does nothing but trace
            agent.kill()
        assert_left_alone(traced)
        assert text_differences(traced.pids[0])
        for unpatch_first in case.unpatch_first:
            with agent_with_client(state, address) as (agent, client):
                # THEN the next one goes on
                traced.assert_adopted(client)
                if unpatch_first:
                    assert traced.enabled(client) == enabled
                    traced.assert_recording()
                # WHEN it is killed while it patches and unpatches
                with toggling(traced, client, unpatch_first=unpatch_first):
                    threading.Event().wait(chance.uniform(0, lasted))
                    agent.kill()
            assert_left_alone(traced)
        with agent_with_client(state, address) as (agent, client):
            # THEN the next one goes on, patches still more, and leaves
            traced.assert_adopted(client)
            traced.patch(client, *case.more)
            for pid, count in traced.enabled(client).items():
                assert count >= enabled[pid]
            traced.assert_recording()
            traced.detach(client)
            lasting.close()
            # and nothing is left but one annex
            for pid in traced.pids:
                assert_left_alone(traced)
                assert_text_unchanged(pid)
                assert_one_annex(pid)
                assert own_descriptors(pid) == descriptors[pid]
        report = load.finish()
        assert report.errors == 0, report.detail
        assert report.requests > 0


def assert_left_alone(traced: Traced) -> None:
    for pid in traced.pids:
        assert_not_traced(pid)
