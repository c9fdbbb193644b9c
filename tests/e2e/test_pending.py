"""H84: patterns that are kept for modules that are loaded later."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Remote
from tests.e2e.support import patch, recording
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_text_unchanged, text_differences
from tests.support.waiting import wait_until
from tests.targets.build import build
from uftrace_remote import Lease, NoSuchFunctionError, SyncAgentClient
from uftrace_remote.values import PatchOptions

PENDING = PatchOptions(pending=True)
PLUGIN = "plugin*!plugin_*"


def enabled(client: SyncAgentClient, session_id: str) -> set[str]:
    return {each.patch.function.name for each in client.tracepoints(session_id)}


def test_h84_a_pending_tracepoint_takes_effect_when_the_module_appears(
    client: SyncAgentClient,
) -> None:
    with TargetProcess(build("dlopen", "gcc-O2")) as target:
        target.command("unload")
        with recording(client, target.pid) as (session_id, recorder):
            # Without --pending that is an error, and nothing is kept.
            with pytest.raises(NoSuchFunctionError):
                client.patch(session_id, [PLUGIN])
            result = client.patch(session_id, ["leaf", PLUGIN], PENDING)
            assert result.pending_patterns == (PLUGIN,)
            assert result.enabled_count == 1
            assert client.sessions()[0].pending_patterns == ("leaf", PLUGIN)
            for _ in range(3):
                target.command("load")
                wait_until(lambda: "plugin_work" in enabled(client, session_id))
                target.wait_iterations(5)
                target.command("unload")
                wait_until(lambda: "plugin_work" not in enabled(client, session_id))
            # What was unpatched by name in what is there stays out.
            target.command("load")
            wait_until(lambda: "plugin_work" in enabled(client, session_id))
            client.unpatch(session_id, ["plugin*!plugin_work"])
            rest = {"leaf", "plugin_leaf", "plugin_start"}
            assert enabled(client, session_id) == rest
            client.patch(session_id, ["host_work"], PENDING)
            assert enabled(client, session_id) == {*rest, "host_work"}
            # Unpatching by the same patterns ends the waiting.
            client.unpatch(session_id, [PLUGIN, "leaf"])
            assert client.sessions()[0].pending_patterns == ("host_work",)
            target.command("unload")
            target.command("load")
            patch(client, session_id, ["plugin*!plugin_leaf"])
            assert "plugin_work" not in enabled(client, session_id)
            client.unpatch(session_id)
            assert client.sessions()[0].pending_patterns == ()
            client.detach(session_id)
        seen = recorder.finish()
        assert {"leaf", "plugin_work", "plugin_leaf"} <= set(seen.names.values())
        assert seen.entries("plugin_work") > 0
        assert_text_unchanged(target.pid)
        target.quit()


def test_h83_a_module_that_is_loaded_anew_is_patched_anew(client: SyncAgentClient) -> None:
    """Between two looks: at the same addresses, all code is as in the file."""
    with TargetProcess(build("dlopen", "gcc-O2")) as target:
        with recording(client, target.pid) as (session_id, recorder):
            client.patch(session_id, [PLUGIN], PENDING)
            for _ in range(5):
                target.command("unload")
                target.command("load")
                wait_until(lambda: text_differences(target.pid))
                wait_until(lambda: "plugin_work" in enabled(client, session_id))
                target.wait_iterations(5)
            client.detach(session_id)
        recorder.finish()
        assert_text_unchanged(target.pid)
        target.quit()


def test_h84_what_is_pending_ends_with_its_lease(client: SyncAgentClient) -> None:
    with TargetProcess(build("dlopen", "gcc-O2")) as target:
        target.command("unload")
        with recording(client, target.pid) as (session_id, recorder):
            options = PatchOptions(pending=True, lease=Lease("mine", 3600 * 10**9))
            client.patch(session_id, [PLUGIN], options)
            target.command("load")
            wait_until(lambda: "plugin_work" in enabled(client, session_id))
            assert client.release_lease(session_id, "mine").tracepoint_count >= 2
            target.command("unload")
            wait_until(lambda: not enabled(client, session_id))
            target.command("load")
            wait_until(lambda: client.sessions()[0].pending_patterns == ())
            assert not enabled(client, session_id)
            client.detach(session_id)
        recorder.finish()
        target.quit()


def test_h84_by_the_command_line(remote: Remote) -> None:
    with TargetProcess(build("dlopen", "gcc-O2")) as target:
        target.command("unload")
        where = f"{{}}:{target.pid}"
        assert remote("patch", where, PLUGIN).code == 5
        done = remote("patch", where, PLUGIN, "--pending")
        assert f"pending: {PLUGIN} (nothing matches yet)" in done.out, done
        status = remote("status", "{}").out
        assert f"pending in modules that are loaded later: {PLUGIN}" in status
        target.command("load")
        wait_until(lambda: "plugin_work" in remote("status", "{}", "-v").out)
        assert remote("detach", where).code == 0
        assert_text_unchanged(target.pid)
        target.quit()
