"""The command line: usage, output, exit codes; against a real server on scripted sessions."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest
import structlog.testing
from click.testing import CliRunner, Result

from tests.support.agent_server import RunningAgent, running_agent
from tests.support.sessions import WORK, ScriptedSessions, session_info
from tests.unit.trace_support import Tape, TreeMaker, make_trace
from uftrace_agent import errors as agent_errors
from uftrace_agent.engine.model import Form, Refusal, SiteKind, Status, Writer
from uftrace_agent.engine.planner import PlanOptions
from uftrace_agent.session import types as agent_types
from uftrace_remote import errors
from uftrace_remote.cli import _refusals
from uftrace_remote.cli.main import cli
from uftrace_remote.enums import RefusalReason
from uftrace_remote.trace.store import TraceReader

_T = TypeVar("_T")

PID = str(os.getpid())
DOCS = Path(__file__).parents[2] / "docs" / "cli.md"

TAPE = Tape(1000)
for _ in range(3):
    TAPE.entry(1, 100).entry(2, 90).exit(2, 90, 1_500_000).exit(1, 100)
RECORDS = len(TAPE.data) // 16

OUTER = replace(WORK, name="outer", linkage_name="")
FIRST = agent_types.EventBatch(
    sequence=1,
    functions=(
        agent_types.TracedFunction(1, OUTER, has_exit=True),
        agent_types.TracedFunction(2, WORK, has_exit=True),
    ),
    anchors=(agent_types.ClockAnchor(0, 0, 0, 1e9),),
    modules=(agent_types.MappedModule("/opt/app", "ab", 0x400000, 0x500000, 0),),
)
SECOND = agent_types.EventBatch(
    sequence=2,
    threads=((4321, "main", TAPE.data),),
    watermark_ticks=1 << 40,
    records_total=RECORDS,
    record_count=RECORDS,
)


@dataclass
class TracedSessions(ScriptedSessions):
    """Patches two functions, and counts like a session that traced them."""

    statuses: tuple[Status, Status] = (Status.ENABLED, Status.ENABLED)
    produced: int = RECORDS
    end: int = 1
    end_detail: str = ""

    async def patch(
        self,
        session_id: str,
        order: agent_types.PatchOrder,
        answer: Callable[[agent_types.PatchOutcome], _T],
    ) -> _T:
        await self._called("patch", session_id, order)
        results = [
            agent_types.PatchResult(
                function,
                number,
                status,
                Form.NEAR,
                Writer.STOP,
                refusal=Refusal.TOO_SHORT if status is Status.REFUSED else None,
            )
            for number, function, status in zip((1, 2), (OUTER, WORK), self.statuses, strict=True)
        ]
        outcome = agent_types.PatchOutcome(results, longest_pause_ns=777_000, longest_pause_tid=5)
        return answer(outcome)

    async def detach(self, session_id: str) -> agent_types.DetachOutcome:
        await super().detach(session_id)
        self.ended.set()
        return agent_types.DetachOutcome(2, 0, 0, 2000, self.produced, 0)

    async def stream(
        self, session_id: str, after_sequence: int, include_buffered: bool
    ) -> AsyncIterator[agent_types.EventBatch]:
        for batch in self.batches:
            yield batch
        await self.ended.wait()
        yield agent_types.EventBatch(
            sequence=99, end=self.end, end_detail=self.end_detail, records_total=RECORDS
        )

    def names(self) -> list[object]:
        return [call[0] for call in self.calls]


@pytest.fixture
def sessions() -> TracedSessions:
    return TracedSessions(batches=[FIRST, SECOND])


@pytest.fixture
async def running(tmp_path, sessions) -> AsyncIterator[RunningAgent]:
    # The agent is in this process: its log would go where the command's output goes.
    with structlog.testing.capture_logs():
        async with running_agent(tmp_path / "state", sessions) as agent:
            yield agent


Run = Callable[..., Awaitable[Result]]


@pytest.fixture
def run(running) -> Run:
    address = running.addresses[0]

    async def invoke(*arguments: str) -> Result:
        options = ("-H", f"{address.host}:{address.port}", "--state-dir", str(running.state.path))
        result = await asyncio.to_thread(CliRunner().invoke, cli, [*options, *arguments])
        # A cancelled call lies in a reference cycle, and holds its connection.
        gc.collect()
        return result

    return invoke


def command(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


# -- usage --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["patch"], "Missing argument 'TARGET'"),
        (["patch", "1"], "Missing argument 'FUNC...'"),
        (["live", "a:b:c:1", "f"], "too many ':'"),
        (["live", "1", "f", "--min-duration", "3 weeks"], "'3 weeks' is no duration"),
        (["live", "1", "f", "--duration", "-1"], "no duration"),
        (["record", "1", "f"], "Missing option '-o'"),
        (["export", ".", "-f", "word", "-o", "x"], "'word' is not one of"),
        (["-H", "::::", "ps"], "too many ':'"),
        (["patch", "0", "f"], "0 is no pid"),
    ],
)
def test_wrong_usage(arguments, message):
    result = command(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "hint: " in result.stderr
    assert "Traceback" not in result.output


def test_help_names_every_exit_code():
    result = command("--help")
    assert result.exit_code == 0
    text = DOCS.read_text()
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.UftraceError):
            assert re.search(rf"\b{kind.exit_code}  ", result.stdout), kind
            assert re.search(rf"^\| {kind.exit_code} \|", text, re.M), kind


def test_every_command_is_documented():
    text = DOCS.read_text()
    for name, each in cli.commands.items():
        assert f"\n### {name}" in text, name
        for parameter in each.params:
            for option in parameter.opts:
                if option.startswith("--"):
                    assert option in text, f"{name} {option}"
        assert command(name, "--help").exit_code == 0


def test_version():
    assert re.match(r"uftrace-remote \d", command("version").stdout)
    assert json.loads(command("version", "--json").stdout)["version"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    result = command("completion", shell)
    assert result.exit_code == 0
    assert "_UFTRACE_REMOTE_COMPLETE" in result.stdout


def test_every_refusal_has_words():
    for reason in RefusalReason:
        if reason is not RefusalReason.NONE:
            assert _refusals.describe(reason)[0] != "no reason was given"


def test_nobody_listens(unused_tcp_port):
    result = command("-H", f"127.0.0.1:{unused_tcp_port}", "--insecure", "ps")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error: no agent listens at 127.0.0.1:{unused_tcp_port}\n")


def test_no_credentials(tmp_path):
    result = command("--state-dir", str(tmp_path), "-H", "web1", "ps")
    assert result.exit_code == 4
    assert "uftrace-remote login web1:50051" in result.stderr


def test_a_bug_says_that_it_is_one(monkeypatch):
    def broken() -> str:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("uftrace_remote.cli.version.client_version", broken)
    result = command("version")
    assert result.exit_code == 70
    assert "ZeroDivisionError: oops" in result.stderr
    assert "please report it" in result.stderr


# -- listing ------------------------------------------------------------------


async def test_ps(run):
    result = await run("ps", "--all")
    assert result.exit_code == 0
    assert re.match(r" *PID +UID +THREADS", result.stdout)
    assert re.search(rf"^ *{PID} ", result.stdout, re.M)
    found = json.loads((await run("ps", "--all", "--json")).stdout)
    assert PID in {str(each["reference"]["pid"]) for each in found}


async def test_functions(run, sessions):
    sessions.plans = [
        agent_types.FunctionPlan(WORK, Form.PUN, Writer.BYTE, kind=SiteKind.SLEDS),
        agent_types.FunctionPlan(OUTER, refusal=Refusal.TOO_SHORT, kind=SiteKind.PLAIN),
    ]
    lines = (await run("functions", PID, "--explain")).stdout.splitlines()
    assert re.fullmatch(r"ADDRESS +SIZE +MODULE +SITE +FORM +WRITER +EXIT +FUNCTION", lines[0])
    assert re.fullmatch(r" *401000 +64 +app +xray +pun +byte +yes +work", lines[1])
    assert "no instruction of it can hold a jump; trace its callers instead" in lines[2]
    found = json.loads((await run("functions", PID, "--json")).stdout)
    assert found[0]["function"]["name"] == "work"
    assert found[1]["refusal"] == "too_short"


async def test_functions_that_match_nothing(run):
    result = await run("functions", PID, "nothing*")
    assert result.exit_code == 5
    assert "no function matches nothing*" in result.stderr


# -- sessions -----------------------------------------------------------------


async def test_patch_status_unpatch_detach(run, sessions):
    result = await run("patch", PID, "outer", "work")
    assert result.exit_code == 0
    assert result.stdout == "patched 2 functions, longest pause 777.000 us (thread 5)\n"
    assert "detach" not in sessions.names()

    result = await run("status", "-v")
    assert "no sessions" not in result.stdout
    assert re.search(r"^1 +|\bwork\b", result.stdout, re.M)
    assert json.loads((await run("status", "--json")).stdout)["sessions"][0]["tracepoints"]

    assert (await run("unpatch", PID, "work")).exit_code == 0
    assert sessions.calls[-1][2] == ("work",)
    result = await run("detach", PID)
    assert result.exit_code == 0
    assert result.stdout.startswith("detached: 2 sites restored")

    result = await run("detach", PID)
    assert result.exit_code == 5
    assert f"process {PID} is not attached to" in result.stderr


async def test_attach(run):
    result = await run("attach", PID)
    assert result.stdout.startswith(f"attached to {PID}")
    assert json.loads((await run("attach", PID, "--json")).stdout)["session"]["session_id"]


async def test_patch_groups_refusals_by_reason(run, sessions):
    sessions.statuses = (Status.ENABLED, Status.REFUSED)
    result = await run("patch", PID, "*", "-v")
    assert result.exit_code == 0
    assert "patched 1 function, 1 refused" in result.stdout
    assert re.search(r"^refused +near +stop +app +work", result.stdout, re.M)
    assert (
        "  1 function not patched: no instruction of it can hold a jump (work); "
        "trace its callers instead\n"
    ) in result.stderr


async def test_where_nothing_is_patched_the_process_is_left(run, sessions):
    sessions.statuses = (Status.REFUSED, Status.REFUSED)
    result = await run("patch", PID, "*")
    assert result.exit_code == 13
    assert "none of 2 functions could be patched" in result.stderr
    assert sessions.names()[-1] == "detach"


async def test_all_or_nothing(run, sessions):
    sessions.statuses = (Status.ENABLED, Status.REFUSED)
    result = await run("patch", PID, "*", "--all-or-nothing")
    assert result.exit_code == 13
    assert sessions.calls[1][2].all_or_nothing
    assert sessions.names()[-1] == "detach"


async def test_a_dry_run_does_not_attach(run, sessions):
    sessions.plans = [
        agent_types.FunctionPlan(WORK, Form.PUN, Writer.BYTE),
        agent_types.FunctionPlan(OUTER, refusal=Refusal.TOO_SHORT),
    ]
    result = await run("patch", PID, "*", "--dry-run")
    assert result.exit_code == 0
    assert result.stdout == "would patch 1 function, 1 refused\n"
    assert sessions.names() == ["list_functions"]
    # It is planned as the patch would be.
    await run("patch", PID, "*", "--dry-run", "--writer", "stop", "--multi")
    assert sessions.calls[-1][3] == PlanOptions(Writer.STOP, allow_multi=True)


async def test_an_error_of_the_agent(run, sessions):
    sessions.failure = agent_errors.NoSuchFunctionError(
        "no function matches wrok", metadata={"suggestions": "work,word"}
    )
    result = await run("patch", PID, "wrok")
    assert result.exit_code == 5
    assert result.stderr == ("error: no function matches wrok\nhint: did you mean work, word?\n")


# -- live ---------------------------------------------------------------------

LIVE = """\
# DURATION     TID     FUNCTION
            [  4321] | outer() {
   1.500 ms [  4321] |   work();
   1.500 ms [  4321] | } /* outer */
            [  4321] | outer() {
   1.500 ms [  4321] |   work();
   1.500 ms [  4321] | } /* outer */
            [  4321] | outer() {
   1.500 ms [  4321] |   work();
   1.500 ms [  4321] | } /* outer */
"""


async def test_live_shows_the_tree_and_leaves_nothing(run, sessions, no_leaks):
    result = await run("live", PID, "outer", "work", "--duration", "300ms")
    assert result.exit_code == 0, result.output
    assert result.stdout == LIVE
    assert "tracing 2 functions" in result.stderr
    assert "6 calls shown, 0 records lost" in result.stderr
    assert sessions.names() == ["attach", "patch", "detach"]


async def test_live_keeps_tracepoints_when_asked(run, sessions):
    result = await run("live", PID, "outer", "work", "-d", "200ms", "--keep")
    assert result.exit_code == 0
    assert sessions.names() == ["attach", "patch"]


async def test_live_filters(run):
    result = await run("live", PID, "*", "-d", "200ms", "--max-depth", "1", "--tid", "4321")
    assert result.stdout.count("outer();") == 3
    result = await run("live", PID, "*", "-d", "200ms", "--tid", "1")
    assert result.stdout.count("\n") == 1


async def test_live_says_what_was_lost(run, sessions):
    loss = agent_types.Loss(1, 1234, 4321)
    sessions.batches = [FIRST, replace(SECOND, losses=(loss,))]
    result = await run("live", PID, "*", "-d", "200ms")
    assert "1,234 records lost" in result.stderr


@pytest.mark.parametrize(
    ("end", "detail", "exit_code"),
    [
        (2, "exited with status 3", 0),
        (2, "killed by signal 11", 8),
        (3, "/bin/other", 8),
        (4, "stopped", 11),
        (1, "", 6),
    ],
)
@pytest.mark.parametrize("what", ["live", "record"])
async def test_how_a_stream_ends_decides_the_exit_code(
    run, sessions, tmp_path, what, end, detail, exit_code
):
    sessions.end, sessions.end_detail = end, detail
    sessions.ended.set()
    output = ["-o", str(tmp_path / "trace")] if what == "record" else []
    result = await run(what, PID, "*", *output)
    assert result.exit_code == exit_code, result.output
    assert "stream ended: " in result.stderr
    assert detail in result.stderr
    if what == "live":
        assert result.stdout == LIVE
    else:
        assert TraceReader(tmp_path / "trace").summary.record_count == RECORDS


async def test_live_in_somebody_elses_session_leaves_it(run, sessions):
    async def join(process, owner, options, limits):
        await sessions._called("attach")
        first = sessions.held.setdefault("s1", session_info("s1", process, "bob"))
        return agent_types.AttachOutcome(first, False, 0, 0)

    sessions.attach = join
    sessions.statuses = (Status.ENABLED, Status.ALREADY_ENABLED)
    result = await run("live", PID, "*", "-d", "200ms")
    assert result.exit_code == 0
    assert sessions.names() == ["attach", "patch", "unpatch"]
    # Only what this command enabled.
    assert sessions.calls[-1][2] == ("app!outer",)


# -- record, and what reads it --------------------------------------------------


async def test_record_checks_its_counts(run, sessions, tmp_path, no_leaks):
    directory = tmp_path / "trace"
    result = await run("record", PID, "outer", "work", "-o", str(directory), "-d", "200ms")
    assert result.exit_code == 0, result.output
    assert f"recorded {RECORDS} records in 0." in result.stdout
    assert f"checked: {RECORDS} produced = {RECORDS} delivered + 0 lost" in result.stdout
    assert sessions.names() == ["attach", "patch", "unpatch", "detach"]
    trace = TraceReader(directory)
    assert trace.complete
    assert trace.metadata["exact"] is True
    assert trace.metadata["process"]["reference"]["pid"] == os.getpid()
    assert trace.metadata["patterns"] == ["outer", "work"]
    replayed = command("replay", str(directory))
    assert replayed.stdout == LIVE


async def test_record_says_when_counts_differ(run, sessions, tmp_path):
    sessions.produced = RECORDS + 5
    result = await run("record", PID, "*", "-o", str(tmp_path / "t"), "-d", "100ms", "--json")
    summary = json.loads(result.stdout)
    assert summary["exact"] is False
    assert (summary["produced"], summary["delivered"]) == (RECORDS + 5, RECORDS)


async def test_record_that_fails_leaves_no_directory(run, sessions, tmp_path):
    sessions.statuses = (Status.REFUSED, Status.REFUSED)
    result = await run("record", PID, "*", "-o", str(tmp_path / "t"))
    assert result.exit_code == 13
    assert not (tmp_path / "t").exists()
    assert sessions.names()[-1] == "detach"


async def test_record_does_not_touch_the_process_for_nothing(run, sessions, tmp_path):
    (tmp_path / "precious").write_text("")
    result = await run("record", PID, "*", "-o", str(tmp_path))
    assert result.exit_code == 12
    assert "not empty" in result.stderr
    assert sessions.calls == []


@pytest.fixture
def trace(tmp_path) -> str:
    maker = TreeMaker(1)
    maker.grow(500)
    make_trace(tmp_path / "trace", {11: maker.tape.data, 12: TAPE.data})
    return str(tmp_path / "trace")


def test_replay_filters(trace):
    result = command("replay", trace, "--tid", "12", "--function", "ns::*")
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 4
    assert "ns::Worker::run(int);" in result.stdout
    found = [
        json.loads(line)
        for line in command("replay", trace, "--json", "--tid", "12").stdout.splitlines()
    ]
    assert {each["function"] for each in found} == {"main", "ns::Worker::run(int)"}
    assert len(found) == 6


def test_replay_of_functions_that_are_not_there(trace):
    result = command("replay", trace, "--function", "nothing")
    assert result.exit_code == 5
    assert "it has idle, lookup, main" in result.stderr


def test_report(trace):
    lines = command("report", trace, "--sort", "calls", "--limit", "2").stdout.splitlines()
    assert re.fullmatch(r" *TOTAL +SELF +CALLS +MIN +AVG +MAX +P99 +FUNCTION", lines[0])
    assert len(lines) == 3
    found = json.loads(command("report", trace, "--json", "--sort", "max").stdout)
    assert [each["max_ns"] for each in found] == sorted(
        (each["max_ns"] for each in found), reverse=True
    )


@pytest.mark.parametrize("name", ["uftrace", "chrome", "flamegraph"])
def test_export(trace, tmp_path, name):
    result = command("export", trace, "-f", name, "-o", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote 506 calls to {tmp_path / 'out'}\n"
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["replay", "report"])
def test_what_is_no_trace(tmp_path, name):
    result = command(name, str(tmp_path))
    assert result.exit_code == 12
    assert "no trace directory" in result.stderr


def test_a_trace_that_was_cut_off_says_so(trace):
    events = Path(trace) / "events.bin"
    events.write_bytes(events.read_bytes()[:-10])
    result = command("report", trace)
    assert result.exit_code == 0
    assert "cut off" in result.stderr
