"""Code and memory that are unlike those of most programs."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.support import WRITERS, patch, recording
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.support.waiting import wait_until
from tests.targets.build import build
from tests.unit.test_listing import elf32_that_pauses
from uftrace_remote import NoSuchFunctionError, SyncAgentClient, UnsupportedTargetError
from uftrace_remote.enums import PatchStatus, PatchWriter, RefusalReason
from uftrace_remote.errors import ResourceExhaustedError
from uftrace_remote.values import PatchOptions, ProcessRef

_F_GET_SEALS = 1034
_SEAL, _SHRINK, _GROW = 1, 2, 4


@contextmanager
def _unharmed(*arguments: str, variant: str = "gcc-O2") -> Iterator[TargetProcess]:
    """A program that afterwards is untraced, has its code as it was, and works."""
    with TargetProcess(build("oddtext", variant), *arguments) as target:
        yield target
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        target.wait_iterations(10)
        target.quit()


def _maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def _trace(client: SyncAgentClient, target: TargetProcess) -> None:
    with recording(client, target.pid) as (session_id, recorder):
        for writer in WRITERS:
            patch(client, session_id, ["leaf", "chain"], PatchOptions(writer=writer))
            before = recorder.recording.records
            wait_until(lambda before=before: recorder.recording.records > before + 50)
            client.unpatch(session_id)
        client.detach(session_id)
    assert recorder.finish().entries("leaf") > 0


def test_h91_code_that_may_not_be_read(client: SyncAgentClient) -> None:
    with _unharmed("xonly") as target:
        assert " --xp " in _maps(target.pid)
        _trace(client, target)


def test_h78_a_process_that_is_not_dumpable(client: SyncAgentClient) -> None:
    """Its memory is for the eyes of privileged agents alone."""
    with _unharmed("hidden") as target:
        _trace(client, target)


def test_h24_a_program_that_was_replaced_while_it_runs(
    client: SyncAgentClient, tmp_path: Path
) -> None:
    """As by an update: another file has its name now, and other code at these addresses."""
    binary = tmp_path / "oddtext"
    shutil.copy(build("oddtext"), binary)
    with TargetProcess(binary) as target:
        shutil.copy(build("busy8"), tmp_path / "new")
        (tmp_path / "new").rename(binary)
        _trace(client, target)
        assert_text_unchanged(target.pid)
        binary.unlink()
        _trace(client, target)
        assert_text_unchanged(target.pid)
        target.quit()


@pytest.mark.parametrize("state", ["sealed", "locked"])
def test_h28_sealed_and_locked_code(client: SyncAgentClient, state: str) -> None:
    with _unharmed(state) as target:
        _trace(client, target)


def test_h28_a_process_that_locks_its_memory_has_ours_only_where_it_is_used(
    client: SyncAgentClient,
) -> None:
    """mlockall(MCL_FUTURE) would have the kernel fill hundreds of MiB of rings at the attach,
    while a thread of the program waits, and keep them for good."""
    with _unharmed("locked") as target:
        before = _resident_mib(target.pid)
        with recording(client, target.pid) as (session_id, recorder):
            (session,) = [s for s in client.sessions() if s.session_id == session_id]
            assert session.annex_bytes > 32 << 20
            patch(client, session_id, ["leaf", "chain"])
            wait_until(lambda: recorder.recording.records > 50)
            assert _resident_mib(target.pid) - before < 24
            # What the program maps itself is locked, as it wants.
            assert "lo" in _flags_of(target.pid, "[heap]")
            client.detach(session_id)
        recorder.finish()


def _resident_mib(pid: int) -> float:
    return (
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    )


def _flags_of(pid: int, name: str) -> list[str]:
    """What /proc/PID/smaps says of a mapping (VmFlags of proc_pid_smaps(5))."""
    is_it = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            is_it = line.endswith(name)
        elif is_it and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"no {name}")


def test_h25_code_that_was_copied_to_anonymous_memory(client: SyncAgentClient) -> None:
    """As tools do that put code into huge pages: it has no file any more to compare it with."""
    with _unharmed("anonymous") as target, recording(client, target.pid) as (session_id, recorder):
        with pytest.raises(NoSuchFunctionError):
            client.patch(session_id, ["leaf"])
        patch(client, session_id, ["libc*!getpid"])
        client.detach(session_id)
        recorder.finish()


# In a file system that has files in huge pages; it is gone with the program.
_IN_HUGE_PAGES = (
    "unshare",
    "--mount",
    "sh",
    "-c",
    'mount -t tmpfs -o huge=always none "$1" && cp "$0" "$1" && exec "$1/hugetext"',
)


def test_h25_code_in_huge_pages(client: SyncAgentClient, tmp_path: Path) -> None:
    with TargetProcess(build("hugetext"), str(tmp_path), wrapper=_IN_HUGE_PAGES) as target:
        assert _huge_code(target.pid) > 0
        _trace(client, target)
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        target.wait_iterations(10)
        target.quit()


def _huge_code(pid: int) -> int:
    """KiB of code in huge pages."""
    total, is_code = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        fields = line.split()
        if "-" in fields[0]:
            is_code = fields[1] == "r-xp"
        elif is_code and fields[0] == "ShmemPmdMapped:":
            total += int(fields[1])
    return total


def test_h26_shared_code_is_refused(client: SyncAgentClient) -> None:
    with _unharmed("shared") as target:
        before = target.binary.read_bytes()
        for writer in (PatchWriter.AUTO, PatchWriter.STOP):
            with recording(client, target.pid) as (session_id, recorder):
                result = client.patch(session_id, ["leaf"], PatchOptions(writer=writer))
                assert [r.status for r in result.results] == [PatchStatus.REFUSED]
                assert [r.refusal for r in result.results] == [RefusalReason.SHARED_TEXT]
                client.detach(session_id)
            recorder.finish()
        assert target.binary.read_bytes() == before


def test_h89_a_process_that_may_not_read_the_tick_counter(client: SyncAgentClient) -> None:
    with _unharmed("notsc") as target:
        maps = _maps(target.pid)
        with pytest.raises(UnsupportedTargetError) as caught:
            client.attach(ProcessRef(target.pid))
        assert caught.value.reason == "TSC_FORBIDDEN" and caught.value.hint
        # Nothing is left of the attempt, nor in the agent.
        assert _maps(target.pid) == maps


@pytest.mark.parametrize("state", ["100000", "2000000", "maps"])
def test_h80_a_process_that_may_have_no_more_memory(client: SyncAgentClient, state: str) -> None:
    """RLIMIT_AS (room for nothing; for a part of it), vm.max_map_count."""
    with _unharmed(state) as target:
        maps = _maps(target.pid)
        with pytest.raises(ResourceExhaustedError) as caught:
            client.attach(ProcessRef(target.pid))
        assert caught.value.reason == "TARGET_MEMORY_REFUSED" and caught.value.hint
        assert _maps(target.pid) == maps


@pytest.mark.parametrize("limit", ["space 0", "maps"])
def test_h81_memory_that_ends_after_the_attach(client: SyncAgentClient, limit: str) -> None:
    with _unharmed() as target:
        with recording(client, target.pid) as (session_id, recorder):
            patch(client, session_id, ["leaf"])
            target.command(limit)
            # Within reach of another module nothing is mapped yet.
            result = client.patch(session_id, ["*", "libc*!str*"])
            refused = {r.refusal for r in result.results if r.status is PatchStatus.REFUSED}
            assert RefusalReason.NO_TRAMPOLINE_SPACE in refused
            before = recorder.recording.records
            wait_until(lambda: recorder.recording.records > before + 50)
            client.detach(session_id)
        assert recorder.finish().entries("leaf") > 0


def test_h88_nobody_can_cut_the_rings_short(client: SyncAgentClient) -> None:
    with _unharmed() as target:
        with recording(client, target.pid) as (session_id, recorder):
            patch(client, session_id, ["leaf"])
            (line,) = [x for x in _maps(target.pid).splitlines() if "memfd:uftrace-rings" in x]
            file = os.open(f"/proc/{target.pid}/map_files/{line.split()[0]}", os.O_RDWR)
            try:
                assert fcntl.fcntl(file, _F_GET_SEALS) == _SEAL | _SHRINK | _GROW
                for size in (0, os.fstat(file).st_size + 4096):
                    with pytest.raises(PermissionError):
                        os.ftruncate(file, size)
            finally:
                os.close(file)
            client.detach(session_id)
        recorder.finish()


def test_h84_a_static_program_of_musl(client: SyncAgentClient) -> None:
    with _unharmed(variant="musl") as target:
        with recording(client, target.pid) as (session_id, recorder):
            patch(client, session_id, ["*"])
            wait_until(lambda: recorder.recording.records > 100)
            client.detach(session_id)
        recorder.finish()


def test_h36_a_32_bit_program(client: SyncAgentClient, tmp_path: Path) -> None:
    program = tmp_path / "pause32"
    program.write_bytes(elf32_that_pauses())
    program.chmod(0o755)
    with subprocess.Popen([program]) as process:
        wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "pause32\n")
        maps = _maps(process.pid)
        with pytest.raises(UnsupportedTargetError) as caught:
            client.attach(ProcessRef(process.pid))
        assert caught.value.reason == "PROCESS_32BIT"
        assert _maps(process.pid) == maps
        assert process.poll() is None
        process.kill()
