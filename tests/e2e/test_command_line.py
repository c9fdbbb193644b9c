"""The commands as a user types them, against a program that knows what it did."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import AgentProcess, Remote
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged, text_differences
from tests.support.waiting import SLOWNESS, wait_until
from tests.targets.build import build


@pytest.fixture
def busy() -> Iterator[TargetProcess]:
    with TargetProcess(build("busy8", "gcc-O2")) as target:
        yield target
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        target.quit()


def test_patch_status_unpatch_detach(remote: Remote, busy: TargetProcess) -> None:
    target = f"{{}}:{busy.pid}"
    patched = remote("patch", target, "chain_*")
    assert patched.code == 0, patched
    assert "3 functions" in patched.out + patched.err
    assert text_differences(busy.pid)
    status = remote("status", "{}", "--json")
    assert f'"pid": {busy.pid}' in status.out
    assert '"tracepoint_count": 3' in status.out
    assert remote("unpatch", target, "chain_b").code == 0
    assert remote("unpatch", target).code == 0
    assert_text_unchanged(busy.pid)
    assert remote("detach", target).code == 0
    assert remote("detach", target).code == 5


def test_ps_and_functions_list_what_there_is(remote: Remote, busy: TargetProcess) -> None:
    processes = remote("ps", "{}", "--json")
    assert json.loads(processes.out)
    assert f'"pid": {busy.pid}' in processes.out
    listed = remote("functions", f"{{}}:{busy.pid}", "chain_*", "--explain", "--json")
    text = listed.out
    assert all(f"chain_{letter}" in text for letter in "abc"), listed
    assert_text_unchanged(busy.pid)


def test_live_shows_the_tree_and_leaves(remote: Remote, busy: TargetProcess) -> None:
    shown = remote("live", f"{{}}:{busy.pid}", "chain_*", "--duration", "1s")
    assert shown.code == 0, shown.err
    assert "DURATION" in shown.out and "FUNCTION" in shown.out
    assert re.search(
        r"\| chain_a\(\) \{\n.*\|   chain_b\(\) \{\n.*us .*\|     chain_c\(\);\n", shown.out
    ), shown.out[:2000]


def test_live_ends_when_its_reader_does(agent: AgentProcess, busy: TargetProcess) -> None:
    """`live | head`, and Ctrl-C: the tracepoints go with the command."""
    command = [sys.executable, "-c", "from uftrace_remote.cli.main import main; main()"]
    command += ["--state-dir", str(agent.state_dir), "live", f"{agent.address}:{busy.pid}", "leaf*"]
    command += ["chain_*"]
    for way in ("pipe", "interrupt"):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        for _ in range(5):
            assert process.stdout.readline()
        if way == "interrupt":
            process.send_signal(signal.SIGINT)
        process.stdout.close()
        process.wait(30)
        wait_until(lambda: not text_differences(busy.pid), timeout=20)


def test_recorded_calls_are_those_of_the_program(
    remote: Remote, agent: AgentProcess, busy: TargetProcess, tmp_path: Path
) -> None:
    """record, report, replay and all exports; Debian's uftrace reads ours."""
    trace = tmp_path / "trace"
    command = [sys.executable, "-c", "from uftrace_remote.cli.main import main; main()"]
    command += ["--state-dir", str(agent.state_dir), "record", f"{agent.address}:{busy.pid}"]
    busy.pause()
    process = subprocess.Popen(
        [*command, "leaf", "-o", str(trace)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_until(lambda: bool(text_differences(busy.pid)), timeout=30)
    busy.burst(5000)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=30 * SLOWNESS)[0].decode()
    busy.resume()
    assert process.returncode == 0, output
    # 5,000 entries and 5,000 exits
    assert "10,000" in output, output

    report = remote("report", str(trace))
    assert report.code == 0 and "5,000" in report.out and "leaf" in report.out, report
    replay = remote("replay", str(trace))
    assert replay.out.count("leaf();") == 5000

    exported = tmp_path / "uftrace"
    assert remote("export", str(trace), "--format", "uftrace", "-o", str(exported)).code == 0
    environment = {**os.environ, "LC_ALL": "C"}
    theirs = subprocess.run(
        ["uftrace", "report", "--no-pager", "-d", str(exported)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert re.search(r"\s5000\s+leaf\b", theirs.stdout), theirs
    replayed = subprocess.run(
        ["uftrace", "replay", "--no-pager", "-d", str(exported)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert replayed.stdout.count("leaf();") == 5000

    flame = tmp_path / "flame.svg"
    assert remote("export", str(trace), "--format", "flamegraph", "-o", str(flame)).code == 0
    assert xml.etree.ElementTree.parse(flame).getroot().tag.endswith("svg")
    chrome = tmp_path / "chrome.json"
    assert remote("export", str(trace), "--format", "chrome", "-o", str(chrome)).code == 0
    events = json.loads(chrome.read_text())
    events = events["traceEvents"] if isinstance(events, dict) else events
    assert sum(event.get("ph") == "X" for event in events) == 5000


def test_json_lists_and_completion(remote: Remote) -> None:
    for shell in ("bash", "zsh", "fish"):
        completion = remote("completion", shell)
        assert completion.code == 0 and "uftrace-remote" in completion.out
    assert json.loads(remote("status", "{}", "--json").out)
