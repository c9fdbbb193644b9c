"""The audit file: whole lines, private, reopened, and nobody waits for it."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from uftrace_agent.trust.audit import AuditFile


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def audit(path) -> Iterator[AuditFile]:
    file = AuditFile(path)
    yield file
    file.close()


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_one_object_a_line_for_nobody_else(audit, path):
    before = os.umask(0)
    try:
        for number in range(100):
            audit.write({"number": number, "text": "a\nb"})
        audit.close()
    finally:
        os.umask(before)
    assert [line["number"] for line in lines(path)] == list(range(100))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_renamed_file_is_made_anew(audit, path, tmp_path):
    audit.write({"number": 1})
    wait_until(lambda: lines(path))
    path.rename(tmp_path / "audit.1")
    audit.write({"number": 2})
    wait_until(lambda: lines(path))
    assert lines(tmp_path / "audit.1")[0]["number"] == 1
    assert [line["number"] for line in lines(path)] == [2]


def test_what_cannot_be_written_is_counted_and_told_when_it_can_be_again(audit, path):
    path.mkdir()
    for number in range(5):
        audit.write({"number": number})
    wait_until(lambda: audit.lost == 5)
    path.rmdir()
    audit.write({"number": 5})
    wait_until(lambda: lines(path))
    told, line = lines(path)
    assert told["lost"] == 5
    assert line["number"] == 5
    assert audit.lost == 0


def test_a_disk_that_hangs_holds_nobody_up(path):
    # GIVEN a pipe that nobody reads: opening it for writing waits for ever
    os.mkfifo(path, 0o600)
    audit = AuditFile(path)
    done = threading.Event()

    def write() -> None:
        for number in range(10_500):
            audit.write({"number": number})
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert done.wait(30)
    writer.join()
    # One line is in the thread's hands, the queue holds 10,000.
    assert audit.lost >= 400
    # WHEN somebody reads THEN all that was queued comes
    reader = os.open(path, os.O_RDONLY)
    with open(reader) as stream:
        first = json.loads(stream.readline())
        assert first["number"] == 0 or first["lost"]
        drained = threading.Thread(target=stream.read)
        drained.start()
        audit.close()
        drained.join(30)
        assert not drained.is_alive()


def test_no_file_is_no_thread():
    audit = AuditFile(None)
    audit.write({})
    audit.close()
    assert audit.lost == 0
