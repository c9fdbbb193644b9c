"""Every function of every test program patched while it runs: nothing of it may change.

Each program checks its own results on every iteration; a wrong one ends it
with status 3.
"""

from __future__ import annotations

import pytest

from tests.e2e.support import patch, recording
from tests.support.architecture import here, variants_here
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.targets.build import PROGRAMS, build
from uftrace_remote import SyncAgentClient
from uftrace_remote.enums import PatchWriter
from uftrace_remote.values import PatchOptions

# Iterations that a program must do while all its functions are traced.
ITERATIONS = 20

# Every program in the usual build, and every kind of build with the programs
# that have the most shapes of functions.
# Programs that do nothing unless they are told to, or have tests of their own.
NOT_BY_THEMSELVES = (
    *("pyhost", "many", "blocked", "jailed", "oddtext", "hugetext"),
    *("delayed", "pingpong"),
    # Functions of Go are not traced on AArch64.
    *here(x86_64=(), aarch64=("gopher", "goroutines")),
)
PROGRAM_CASES = [
    (name, "gcc-O2" if "gcc-O2" in program.variants else program.variants[0])
    for name, program in PROGRAMS.items()
    if name not in NOT_BY_THEMSELVES and program.variants
]
SIGNED = ("bti", "pac")
EXCEPTION_VARIANTS = variants_here(
    *("gcc-O0", "clang-O2", "static", "static-pie", "stripped", *SIGNED)
)
BUSY_VARIANTS = variants_here(
    *("musl", "pg", "fentry", "fentry-nop", "pfe2", "clang-pfe5", "cet", *SIGNED)
)
VARIANT_CASES = [
    *(("shapes", v) for v in PROGRAMS["shapes"].variants if v not in ("g", "fp", "nofp")),
    *(("exceptions", variant) for variant in EXCEPTION_VARIANTS),
    *(("busy8", variant) for variant in BUSY_VARIANTS),
    ("rusty", "rust-O3"),
]
CASES = sorted({*PROGRAM_CASES, *VARIANT_CASES})


@pytest.mark.parametrize("writer", [PatchWriter.AUTO, PatchWriter.STOP], ids=["auto", "stop"])
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_tracing_all_functions_changes_nothing(
    client: SyncAgentClient, name: str, variant: str, writer: PatchWriter
) -> None:
    # GIVEN a program that runs and checks itself
    with TargetProcess(build(name, variant), *PROGRAMS[name].arguments) as target:
        # WHEN all its functions are patched, run, and unpatched
        with recording(client, target.pid) as (session_id, recorder):
            result = patch(client, session_id, ["*"], PatchOptions(writer=writer))
            target.wait_iterations(ITERATIONS)
            report = client.detach(session_id)
        seen = recorder.finish()
        # THEN it goes on, untouched and untraced
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        target.wait_iterations(1)
        target.quit()
        assert report.conflicting_sites == 0
        assert report.restored_sites == result.enabled_count
        assert seen.records > 0
        # AND every record is accounted for
        delivered = seen.records + seen.lost_in_stream
        assert delivered == report.records_produced - report.records_lost
        if not seen.lost_in_stream:
            assert seen.sequences == list(range(seen.sequences[0], seen.sequences[-1] + 1))


@pytest.mark.parametrize("name", ["busy8", "exceptions", "fibers", "signals", "forker", "longjmp"])
def test_h33_tracing_the_libraries_too_changes_nothing(client: SyncAgentClient, name: str) -> None:
    """H33: libc, the loader and the C++ runtime with all their assembly."""
    with TargetProcess(build(name, "gcc-O2")) as target:
        with recording(client, target.pid) as (session_id, recorder):
            patch(client, session_id, ["*!*"])
            target.wait_iterations(ITERATIONS)
            client.detach(session_id)
        recorder.finish()
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        target.quit()


def test_h69_blocked_threads_see_no_eintr(client: SyncAgentClient) -> None:
    """Threads in epoll_wait, recv with a timeout, sigtimedwait and others: attaching,
    patching with `stop` and detaching interrupt none of these calls. The program
    reports every EINTR that no signal of its own explains."""
    with TargetProcess(build("blocked", "gcc-O2")) as target:
        for _ in range(5):
            with recording(client, target.pid) as (session_id, recorder):
                patch(client, session_id, ["*"], PatchOptions(writer=PatchWriter.STOP))
                client.unpatch(session_id)
                client.detach(session_id)
            recorder.finish()
        target.command("poke")
        assert_not_traced(target.pid)
        target.quit()
