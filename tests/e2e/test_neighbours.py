"""Other tracers of the same program: named, and left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import Remote
from tests.e2e.support import WRITERS, patch, recording
from tests.support.architecture import here
from tests.support.target_process import TargetProcess
from tests.support.text_compare import (
    assert_text_as,
    assert_text_unchanged,
    snapshot_text,
    text_differences,
)
from tests.support.tracefs import define_uprobe, tracefs
from tests.support.waiting import SLOWNESS
from tests.targets.build import build
from uftrace_remote import SyncAgentClient
from uftrace_remote.enums import PatchStatus, PatchWriter, RefusalReason
from uftrace_remote.values import Function, FunctionResult, PatchOptions, ProcessRef

# A debugger's breakpoint, and the kernel's (arch/arm64/include/asm/brk-imm.h: UPROBES_BRK_IMM).
BREAK = here(x86_64=b"\xcc", aarch64=b"\x00\x00\x20\xd4")
UPROBE = here(x86_64=b"\xcc", aarch64=b"\xa0\x00\x20\xd4")


def function(client: SyncAgentClient, pid: int, name: str) -> Function:
    (found,) = [f.function for f in client.functions(ProcessRef(pid), [name])]
    return found


def assert_refused(results: tuple[FunctionResult, ...], *words: str) -> None:
    for result in results:
        assert result.status is PatchStatus.REFUSED, result
        assert result.refusal is RefusalReason.FOREIGN_PATCH, result
        assert all(word in result.detail for word in words), result


def read(pid: int, address: int, size: int = 16) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        return os.pread(memory.fileno(), size, address)


# -- uftrace ------------------------------------------------------------------------------


@contextmanager
def recorded_by_uftrace(binary: Path, folder: Path, *options: str) -> Iterator[int]:
    """The pid of a program that `uftrace record` has started."""
    process = subprocess.Popen(
        ["uftrace", "record", "-d", str(folder / "theirs"), "--no-libcall", *options, str(binary)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready "), (line, process.communicate(timeout=20))
        yield int(line.split()[1])
        out, errors = process.communicate("quit\n", timeout=60 * SLOWNESS)
        assert "\nok " in f"\n{out}", (out, errors)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("options", [(), ("--no-event", "--disable")], ids=["on", "off"])
def test_a_process_that_uftrace_records_is_left_alone(
    client: SyncAgentClient, remote: Remote, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """libmcount replaces return addresses as we do, and relies on its own being there."""
    with recorded_by_uftrace(build("kinds", "pg"), tmp_path, *options) as pid:
        before = snapshot_text(pid)
        session_id = client.attach(ProcessRef(pid)).session.session_id
        for writer in WRITERS:
            result = client.patch(session_id, ["kind_*"], PatchOptions(writer=writer))
            if writer is PatchWriter.TRAP:
                # It may be refused for its signal handlers first.
                assert {r.status for r in result.results} == {PatchStatus.REFUSED}
                continue
            assert_refused(result.results, "uftrace", "libmcount")
        assert_text_as(pid, before)
        client.detach(session_id)
        assert_text_as(pid, before)
        shown = remote("functions", f"{{}}:{pid}", "kind_leaf", "--explain")
        assert "uftrace" in shown.out, shown
        refused = remote("patch", f"{{}}:{pid}", "kind_leaf")
        assert "uftrace records this process" in refused.out + refused.err, refused


# -- the kernel's uprobes ------------------------------------------------------------------


@contextmanager
def uprobe(binary: Path, offset: int) -> Iterator[None]:
    """A probe of the kernel's at an offset of a file, in all processes that run it."""
    group = f"uftrace_remote_{os.getpid()}"
    define_uprobe(f"p:{group}/site {binary}:{offset:#x}")
    enable = tracefs() / "events" / group / "site" / "enable"
    try:
        enable.write_text("1")
        yield
    finally:
        enable.write_text("0")
        define_uprobe(f"-:{group}/site")


def own_copy(folder: Path) -> Path:
    """A file of this test's alone: a uprobe is in every process that runs the file."""
    return Path(shutil.copy(build("busy8", "gcc-O2"), folder))


def offset_in_file(client: SyncAgentClient, pid: int, found: Function) -> int:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        bounds, flags, offset, *_ = line.split()
        start, end = (int(word, 16) for word in bounds.split("-"))
        if start <= found.address < end and "x" in flags:
            return found.address - start + int(offset, 16)
    raise AssertionError("its code is not mapped")


@pytest.mark.parametrize("name", ["leaf", "chain_b"])
def test_h21_a_function_with_a_uprobe_is_left_alone(
    client: SyncAgentClient, remote: Remote, tmp_path: Path, name: str
) -> None:
    binary = own_copy(tmp_path)
    with TargetProcess(binary) as target:
        found = function(client, target.pid, name)
        with uprobe(binary, offset_in_file(client, target.pid, found)):
            # GIVEN a probe of the kernel's on the function
            before = read(target.pid, found.address)
            assert before.startswith(UPROBE)
            # WHEN it is asked about, and asked for
            shown = remote("functions", f"{{}}:{target.pid}", name, "--explain")
            assert "uprobe" in shown.out, shown
            session_id = client.attach(ProcessRef(target.pid)).session.session_id
            for writer in WRITERS:
                result = client.patch(session_id, [name], PatchOptions(writer=writer))
                # THEN it is refused with that reason, before anything is prepared
                assert_refused(result.results, "uprobe")
            dry = client.patch(session_id, [name], PatchOptions(dry_run=True))
            assert_refused(dry.results, "uprobe")
            # AND others are not
            others = patch(client, session_id, ["chain_a", "chain_c"])
            assert others.enabled_count == 2
            # AND the probe stays, and goes on to work
            assert read(target.pid, found.address) == before
            target.wait_iterations(20)
            client.detach(session_id)
            assert read(target.pid, found.address) == before
        # WHEN it is gone
        with recording(client, target.pid) as (session_id, recorder):
            # THEN the function can be traced
            assert patch(client, session_id, [name]).enabled_count == 1
            target.wait_iterations(5)
            target.burst(100)
            client.detach(session_id)
        assert recorder.finish().entries(name) > 0
        assert_text_unchanged(target.pid)
        target.quit()


def test_h22_a_uprobe_that_comes_after_us_is_not_written_over(
    client: SyncAgentClient, tmp_path: Path
) -> None:
    """On a change of one byte it masks our jump, and takes it away with itself: that is
    told as a conflict, and the program goes on."""
    binary = own_copy(tmp_path)
    with TargetProcess(binary) as target:
        found = function(client, target.pid, "chain_a")
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        result = client.patch(session_id, ["chain_a"], PatchOptions(writer=PatchWriter.BYTE))
        if result.enabled_count:  # where its own bytes lead to is free
            offset = offset_in_file(client, target.pid, found)
            with uprobe(binary, offset):
                assert read(target.pid, found.address).startswith(UPROBE)
                target.wait_iterations(20)
                undone = client.unpatch(session_id)
                assert [r.status for r in undone.results] == [PatchStatus.CONFLICT]
                assert read(target.pid, found.address).startswith(UPROBE)
                target.wait_iterations(20)
        client.detach(session_id)
        assert_text_unchanged(target.pid)
        target.quit()


# -- gdb -------------------------------------------------------------------------------------


def gdb(pid: int, *commands: str) -> None:
    """Attach, do that, and leave."""
    arguments = [word for command in commands for word in ("-ex", command)]
    done = subprocess.run(
        ["gdb", "-nx", "-q", "-batch", "-p", str(pid), *arguments, "-ex", "detach"],
        capture_output=True,
        text=True,
        timeout=60 * SLOWNESS,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done


def test_h21_a_breakpoint_that_gdb_left_is_left_alone(
    client: SyncAgentClient, remote: Remote
) -> None:
    """The breakpoints that gdb sets itself are out while it is away; one that its user
    wrote stays."""
    with TargetProcess(build("busy8", "gcc-O2")) as target:
        target.pause()
        found = function(client, target.pid, "leaf")
        original = read(target.pid, found.address)
        kind = here(x86_64="unsigned char", aarch64="unsigned int")
        size = len(BREAK)
        there, back = (int.from_bytes(code[:size], "little") for code in (BREAK, original))
        gdb(target.pid, f"set var *({kind} *){found.address:#x} = {there:#x}")
        assert read(target.pid, found.address).startswith(BREAK)
        shown = remote("functions", f"{{}}:{target.pid}", "leaf", "--explain")
        assert "breakpoint" in shown.out, shown
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        for writer in WRITERS:
            result = client.patch(session_id, ["leaf"], PatchOptions(writer=writer))
            assert_refused(result.results, "breakpoint")
        assert read(target.pid, found.address) == BREAK + original[size:]
        gdb(target.pid, f"set var *({kind} *){found.address:#x} = {back:#x}")
        assert patch(client, session_id, ["leaf"]).enabled_count == 1
        client.detach(session_id)
        assert_text_unchanged(target.pid)
        target.resume()
        target.quit()


def test_gdb_comes_and_goes_while_functions_are_traced(client: SyncAgentClient) -> None:
    """Nothing of ours is attached between operations: a breakpoint of gdb's own, in and
    out, beside patched functions."""
    with TargetProcess(build("busy8", "gcc-O2")) as target:
        with recording(client, target.pid) as (session_id, recorder):
            patch(client, session_id, ["chain_*"])
            before = snapshot_text(target.pid)
            gdb(target.pid, "break fp_sum", "info threads")
            assert_text_as(target.pid, before)
            target.wait_iterations(20)
            undone = client.unpatch(session_id)
            assert undone.disabled_count == 3, undone.results
            client.detach(session_id)
        recorder.finish()
        assert_text_unchanged(target.pid)
        target.quit()


# -- XRay's own runtime ------------------------------------------------------------------------

SLEDS = ["leaf", "exits", "always", "event_custom", "event_typed", "event_both"]
AT_START = {"XRAY_OPTIONS": "patch_premain=true xray_mode=xray-basic xray_logfile_base=/dev/null/"}


def test_xrays_own_runtime_is_left_alone_and_can_be_followed(client: SyncAgentClient) -> None:
    with TargetProcess(build("xray_events", "xray")) as target:
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        # GIVEN sleds that XRay's own runtime has patched
        assert target.command("runtime 1") == "runtime done 1"
        theirs = snapshot_text(target.pid)
        assert text_differences(target.pid)
        # WHEN they are asked for, by whatever writer
        for writer in (PatchWriter.AUTO, PatchWriter.BYTE, PatchWriter.STOP):
            result = client.patch(session_id, SLEDS, PatchOptions(writer=writer))
            # THEN it is said who is there, and nothing is changed
            assert_refused(result.results, "XRay")
        assert_text_as(target.pid, theirs)
        target.wait_iterations(20)
        # WHEN the runtime has left: heads are as they were, operands are not
        assert target.command("runtime 0") == "runtime done 0"
        left = snapshot_text(target.pid)
        assert text_differences(target.pid)
        # THEN they can be traced
        for _ in range(3):
            result = patch(client, session_id, SLEDS)
            assert result.enabled_count == len(SLEDS)
            target.wait_iterations(20)
            # AND what comes back is what was there
            assert client.unpatch(session_id).disabled_count == len(SLEDS)
            assert_text_as(target.pid, left)
        client.detach(session_id)
        assert_text_as(target.pid, left)
        target.quit()


def test_sleds_that_xray_patched_at_the_start_are_left_alone(
    client: SyncAgentClient, remote: Remote
) -> None:
    target_process = TargetProcess(build("kinds", "xray"), environment=AT_START)
    with target_process as target:
        theirs = snapshot_text(target.pid)
        shown = remote("functions", f"{{}}:{target.pid}", "kind_leaf", "--explain")
        assert "XRay" in shown.out, shown
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        assert_refused(client.patch(session_id, ["kind_*"]).results, "XRay")
        client.detach(session_id)
        assert_text_as(target.pid, theirs)
        target.quit()


def test_h22_xrays_runtime_that_comes_after_us_is_not_written_over(
    client: SyncAgentClient,
) -> None:
    """It patches entries and exits over ours: that is told as a conflict, theirs stays.
    (Of events it changes the heads alone, and would run into our operands: there the two
    do not go together.)"""
    with TargetProcess(build("xray_events", "xray")) as target:
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        names = ["leaf", "exits", "always", "logged"]
        patch(client, session_id, names)
        assert target.command("runtime 1") == "runtime done 1"
        theirs = snapshot_text(target.pid)
        result = client.unpatch(session_id)
        assert {r.status for r in result.results} == {PatchStatus.CONFLICT}
        assert_text_as(target.pid, theirs)
        target.wait_iterations(20)
        client.detach(session_id)
        assert_text_as(target.pid, theirs)
        target.quit()
