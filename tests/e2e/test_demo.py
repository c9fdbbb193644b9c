"""`make demo` holds what it promises, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "scripts" / "demo.py"
SVG = "{http://www.w3.org/2000/svg}"


@contextmanager
def running_demo(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The demo, with a temporary directory that nobody else uses, and its output."""
    scratch = folder / "tmp"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, str(DEMO), "--output", str(folder / "out")]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, text=True, env=environment
        )
    try:
        yield process, log
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def processes_of(folder: Path) -> list[str]:
    """The command lines of all processes that mention a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(folder) in command:
            found.append(command)
    return found


def assert_nothing_left(folder: Path) -> None:
    scratch = folder / "tmp"
    wait_until(
        lambda: not processes_of(scratch),
        otherwise=lambda: f"still running: {processes_of(scratch)}",
    )
    assert list(scratch.iterdir()) == []


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: the name is in the command lines that are searched for.
    with tempfile.TemporaryDirectory(prefix="demo-test-") as path:
        yield Path(path)


def test_demo_traces_a_running_server_and_leaves_it_as_it_was(folder: Path) -> None:
    # WHEN
    with running_demo(folder) as (process, log):
        status = process.wait(timeout=90)
        text = log.read_text()

    # THEN
    assert status == 0, text
    assert "All checks passed" in text
    assert re.search(r"its code now: [1-9]\d* bytes differ", text), text
    assert "0 bytes differ from before; 0 threads traced" in text
    assert re.search(r"^the server ended with status 0: served \d+ requests$", text, re.M), text
    shown = re.search(r"shown here: (\d+) of ([\d,]+) requests", text)
    assert shown and int(shown[1]) >= 1, text
    assert len(re.findall(r"\] \|", text)) <= 60, "a flood, not a picture"
    assert_nothing_left(folder)

    output = folder / "out"
    counts = json.loads((output / "trace" / "trace.json").read_text())
    assert counts["records"] > 0
    assert counts["produced"] == counts["records"] + counts["lost"]

    flames = ElementTree.parse(output / "flamegraph.svg").getroot()
    assert flames.tag == f"{SVG}svg"
    assert "serve_request" in " ".join(flames.itertext())

    events = json.loads((output / "chrome.json").read_text())["traceEvents"]
    assert {"serve_request", "hash_password"} <= {event["name"] for event in events}

    assert (output / "uftrace" / "info").is_file()
    if shutil.which("uftrace"):
        report = subprocess.run(
            ["uftrace", "report", "--no-pager", "-d", str(output / "uftrace")],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "serve_request" in report


def test_interrupted_demo_ends_what_it_started(folder: Path) -> None:
    # GIVEN
    with running_demo(folder) as (process, log):
        wait_until(
            lambda: "uftrace-remote live" in log.read_text() or process.poll() is not None,
            timeout=60,
            otherwise=log.read_text,
        )

        # WHEN
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)

    # THEN
    assert status == 130, log.read_text()
    assert_nothing_left(folder)
