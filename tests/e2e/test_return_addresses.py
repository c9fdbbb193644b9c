"""Return addresses that a program has read, but not used yet, when the session ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import running_agent
from tests.e2e.support import patch
from tests.e2e.test_adoption import restore
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.targets.build import build
from uftrace_remote import SyncAgentClient
from uftrace_remote.enums import RefusalReason
from uftrace_remote.values import ProcessRef


@pytest.fixture
def reader() -> Iterator[TargetProcess]:
    """Checks by itself what addresses it had once it lets them go."""
    with TargetProcess(build("return_reader")) as target:
        yield target


def finish(reader: TargetProcess) -> None:
    """It lets go of what it had; everything is as if nobody had been there."""
    assert_text_unchanged(reader.pid)
    assert_not_traced(reader.pid)
    assert reader.command("release") == "released"
    reader.quit()


def test_h39_addresses_in_registers_are_set_back_with_those_on_stacks(
    client: SyncAgentClient, reader: TargetProcess
) -> None:
    """As in an unwinder that has read a thunk from the stack and is about to look it up:
    without the hook that ends the program. On stacks that a signal interrupted, too."""
    session_id = client.attach(ProcessRef(reader.pid)).session.session_id
    (result,) = patch(client, session_id, ["hold_return"]).results
    assert result.exit_refusal is RefusalReason.NONE
    assert reader.command("hold") == "held"
    assert client.detach(session_id).conflicting_sites == 0
    finish(reader)


def test_h39_addresses_in_registers_are_set_back_by_restore(
    tmp_path: Path, reader: TargetProcess
) -> None:
    with running_agent(tmp_path / "state") as agent, agent.client() as client:
        session_id = client.attach(ProcessRef(reader.pid)).session.session_id
        patch(client, session_id, ["hold_return"])
        assert reader.command("hold") == "held"
        agent.kill()
    done = restore("--pid", str(reader.pid))
    assert (done.code, done.out) == (0, f"process {reader.pid}: 1 sites restored\n")
    finish(reader)
