"""The leak check itself: it names what is left behind, and lets tidy tests pass."""

from __future__ import annotations

import subprocess
import tempfile
import threading

import pytest

from tests.conftest import Possessions
from tests.support.agent_server import calling, running_agent
from tests.support.sessions import ScriptedSessions
from uftrace.agent.v1 import agent_pb2


@pytest.mark.usefixtures("no_leaks")
def test_a_tidy_test_passes(tmp_path):
    with open(tmp_path / "file", "w"), subprocess.Popen(["/bin/true"]):
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()


@pytest.mark.usefixtures("no_leaks")
async def test_a_server_and_its_client_leave_nothing(tmp_path):
    async with running_agent(tmp_path / "state", ScriptedSessions()) as agent:
        async with calling(agent) as caller:
            assert (await caller.GetAgentInfo(agent_pb2.GetAgentInfoRequest())).hostname


def test_what_is_left_behind_is_named():
    before = Possessions.now()
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="forgotten")
    thread.start()
    with tempfile.NamedTemporaryFile() as file, subprocess.Popen(["/bin/sleep", "60"]) as child:
        added = Possessions.now().added_to(before)
        child.kill()
        assert f"open file {file.name}" in added
        assert f"child process {child.pid}" in added
        assert "thread forgotten" in added
    release.set()
    thread.join()
    assert Possessions.now().added_to(before) == []
