"""A process in a container: namespaces of its own, another root, a seccomp filter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.support import patch, recording
from tests.support import bpf
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.support.waiting import wait_until
from tests.targets.build import build
from uftrace_agent.process.identity import ProcessId, resolve
from uftrace_agent.process.thread_numbers import ThreadNumbers
from uftrace_agent.process.threads import thread_ids
from uftrace_agent.session.attaching import attach, claim_process
from uftrace_agent.session.types import RecordingOptions
from uftrace_agent.symbols.cache import ImageCache
from uftrace_remote import SyncAgentClient
from uftrace_remote.enums import PatchWriter
from uftrace_remote.values import PatchOptions

_UNSHARE = ("unshare", "--pid", "--mount", "--net", "--ipc", "--uts", "--fork", "--kill-child")


class Contained(TargetProcess):
    """A program that is the first of its pid namespace."""

    inner = 0

    def wait_ready(self) -> None:
        assert self.read_line() == "ready 1"
        outer = self._running().pid
        (self.inner,) = map(int, Path(f"/proc/{outer}/task/{outer}/children").read_text().split())

    @property
    def pid(self) -> int:
        return self.inner


def _container(folder: Path, filters: Sequence[bytes], *options: str) -> Contained:
    shutil.copy(build("jailed", "static"), folder / "jailed")
    names = []
    for index, program in enumerate(filters):
        (folder / f"filter{index}").write_bytes(program)
        names.append(f"/filter{index}")
    return Contained(Path("/jailed"), *names, wrapper=(*_UNSHARE, *options, f"--root={folder}"))


@pytest.mark.parametrize("options", [(), ("--user", "--map-root-user")], ids=["root", "rootless"])
def test_h82_h60_a_container(
    client: SyncAgentClient, tmp_path: Path, options: Sequence[str]
) -> None:
    with _container(tmp_path, [bpf.docker_like()], *options) as target:
        with recording(client, target.pid, keep=True) as (session_id, recorder):
            for writer in (PatchWriter.AUTO, PatchWriter.STOP):
                patch(client, session_id, ["leaf", "chain"], PatchOptions(writer=writer))
                before = recorder.recording.records
                wait_until(lambda before=before: recorder.recording.records > before + 1000)
                client.unpatch(session_id)
            patch(client, session_id, ["leaf"])
            target.burst(1000)
            tids = set(thread_ids(target.pid))
            client.detach(session_id)
        seen = recorder.finish()
        assert seen.entries("leaf") > 1000
        # By the agent's numbers, not by the container's.
        assert len(seen.by_thread) >= 3
        assert set(seen.by_thread) <= tids
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        target.wait_iterations(100)
        target.quit()


def test_h82_the_numbers_of_threads_in_a_container(tmp_path: Path) -> None:
    with _container(tmp_path, []) as target:
        numbers = ThreadNumbers(target.pid)
        tids = thread_ids(target.pid)
        own = sorted(numbers.living())
        assert own[0] == 1 and len(own) == len(tids)
        assert [numbers.outside(number) for number in own] == tids
        assert numbers.outside(1 << 20) == 1 << 20
        assert ThreadNumbers(os.getpid()).outside(7) == 7
        # The C library keeps these numbers too: no record has to ask the kernel.
        options = RecordingOptions(1 << 16, 8)
        attachment = attach(resolve(ProcessId(target.pid)), options, ImageCache())
        assert attachment.annex.tid_offset >= 0
        attachment.close()
        target.quit()


_CLAIM = """
import sys
from uftrace_agent.errors import AlreadyHeldError
from uftrace_agent.process.identity import ProcessId, resolve
from uftrace_agent.session.attaching import claim_process
try:
    claim_process(resolve(ProcessId(1)))
except AlreadyHeldError:
    sys.exit(3)
"""


def _claim_from_inside(target: Contained) -> int:
    inside = ("nsenter", "--target", str(target.pid), "--pid", "--mount")
    # Its mounts are those of the host where --root was not given.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = (*inside, sys.executable, "-c", _CLAIM)
    return subprocess.run(command, timeout=60, env=environment).returncode


def test_h85_agents_inside_and_outside_of_a_container() -> None:
    program, wrapper = build("jailed"), ("unshare", "-pf", "--mount-proc", "--kill-child")
    with (
        Contained(program, wrapper=wrapper) as first,
        Contained(program, wrapper=wrapper) as second,
    ):
        # Both are pid 1 where they are, and the host's network is shared.
        with (
            claim_process(resolve(ProcessId(first.pid))),
            claim_process(resolve(ProcessId(second.pid))),
        ):
            assert _claim_from_inside(first) == 3
        assert _claim_from_inside(first) == 0
        with claim_process(resolve(ProcessId(second.pid))):
            assert _claim_from_inside(first) == 0
        first.quit()
        second.quit()
