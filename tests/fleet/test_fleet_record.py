"""`record` of many hosts, through the command line: real agents, real programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.places import Places, running_places
from tests.support.stalls import within
from tests.support.text_compare import assert_not_traced, assert_text_unchanged, text_differences
from tests.support.waiting import wait_until
from uftrace_remote.trace.recordings import open_recording
from uftrace_remote.trace.statistics import function_statistics
from uftrace_remote.trace.store import TraceReader

BURSTS = (1000, 2000, 3000)
# What may pass before somebody who is gone is told.
SHOWN_SECONDS = 3.0


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """Three hosts; for tests that do not hurt them."""
    with running_places(tmp_path_factory.mktemp("places"), 3) as started:
        for place in started:
            # `burst` calls on: there is nothing else to wait for.
            place.target.pause()
        yield started
        started.quit()


def fleet_file(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "fleet.json").read_text())
    return found


def calls_of(directory: Path, function: str) -> int:
    (found,) = [
        each for each in function_statistics(TraceReader(directory)) if each.name == function
    ]
    return found.calls


def assert_untouched(places: Places) -> None:
    for place in places:
        assert_text_unchanged(place.target.pid)
        assert_not_traced(place.target.pid)


def test_every_call_on_every_host_is_there(places: Places, tmp_path: Path) -> None:
    directory = tmp_path / "trace"
    command = places.start("record", "@agents:busy8", "leaf", "-o", str(directory), "--json")
    command.wait_for("recording 3 processes")
    for place, count in zip(places, BURSTS, strict=True):
        place.target.burst(count)
    command.interrupt()
    done = command.wait()
    assert done.code == 0, done
    # THEN each has its own trace, exact to the last call
    summary = json.loads(done.out)
    assert [each["exact"] for each in summary["processes"]] == [True] * 3
    told = fleet_file(directory)
    assert told["complete"] and len(told["members"]) == 3
    for place, count, member in zip(places, BURSTS, told["members"], strict=True):
        assert member["host"] == place.agent.address
        assert calls_of(directory / member["directory"], "leaf") == count
        assert member["outcome"]["delivered"] == 2 * count
        assert member["outcome"]["produced"] == 2 * count
        # at the beginning and at the end
        assert len(member["clocks"]) >= 2
        assert all(each["bound_ns"] > 0 for each in member["clocks"])
    assert [each["origins"] for each in told["members"]] == [["@a1"], ["@a2"], ["@a3"]]
    assert_untouched(places)
    reads_back(places, directory, tmp_path)


def reads_back(places: Places, directory: Path, folder: Path) -> None:
    """What was recorded, by every command that reads it."""
    total = sum(BURSTS)
    replayed = places.run("replay", str(directory))
    assert replayed.code == 0 and "may be in the wrong order" in replayed.err
    lines = replayed.out.splitlines()[1:]
    assert len(lines) == total
    for place, count in zip(places, BURSTS, strict=True):
        assert sum(line.split()[0] == place.label for line in lines) == count
    told = [
        json.loads(line) for line in places.run("replay", str(directory), "--json").out.splitlines()
    ]
    # The bursts came one after the other: so do they on the common clock.
    bound_ns = open_recording(str(directory)).bound_ns
    assert bound_ns > 0
    ends = {p.label: max(e["end_ns"] for e in told if e["host"] == p.label) for p in places}
    begins = {p.label: min(e["start_ns"] for e in told if e["host"] == p.label) for p in places}
    for before, after in zip(list(places)[:-1], list(places)[1:], strict=True):
        assert ends[before.label] < begins[after.label] + bound_ns
    (leaf,) = json.loads(places.run("report", str(directory), "--json").out)
    assert leaf["calls"] == total
    for name, out in (("chrome", "out.json"), ("flamegraph", "out.svg"), ("uftrace", "out")):
        done = places.run("export", str(directory), "-f", name, "-o", str(folder / out))
        assert done.code == 0 and f"wrote {total:,} calls" in done.out, done


def test_the_table_says_what_was_checked(places: Places, tmp_path: Path) -> None:
    directory = tmp_path / "trace"
    arguments = ("@agents:busy8", "leaf", "-o", str(directory), "--for", "500ms")
    done = places.run("record", *arguments)
    assert done.code == 0, done
    header, row, total = done.out.splitlines()
    assert header.split() == ["PROCESSES", "RECORDS", "LOST", "SIZE", "CHECKED", "ON", "STATE"]
    assert row.split()[0] == "3" and " yes " in row and row.endswith("stopped")
    assert "of 3 processes in " in total
    # WHEN there is something already
    again = places.run("record", *arguments)
    assert again.code == 12 and "not empty" in again.err
    forced = places.run("record", *arguments, "--force")
    assert forced.code == 0, forced
    (directory / "precious").write_text("")
    assert places.run("record", *arguments, "--force").code == 12
    assert_untouched(places)


def test_what_nobody_has_is_refused_and_leaves_no_directory(places: Places, tmp_path: Path) -> None:
    directory = tmp_path / "trace"
    done = places.run("record", "@agents:busy8", "no_such_function", "-o", str(directory))
    assert done.code == 14, done
    assert "did you mean" in done.err and "no byte changed" in done.out
    assert not directory.exists()
    nobody = places.run("record", "@agents:no_such_program", "leaf", "-o", str(directory))
    assert nobody.code == 5, nobody
    assert not directory.exists()
    assert_untouched(places)


def test_a_full_disk_ends_it_and_leaves_what_can_be_read(places: Places, tmp_path: Path) -> None:
    limited = ("sh", "-c", 'ulimit -f 2048; exec "$@"', "sh")
    directory = tmp_path / "trace"
    command = places.start("record", "@agents:busy8", "leaf", "-o", str(directory), wrapper=limited)
    command.wait_for("recording 3 processes")
    while command.process.poll() is None:
        for place in places:
            place.target.burst(10_000)
    done = command.wait()
    assert done.code == 12, done
    told = fleet_file(directory)
    assert len(told["members"]) == 3
    for member in told["members"]:
        trace = TraceReader(directory / member["directory"])
        assert not trace.truncated
        assert function_statistics(trace)
    assert_untouched(places)


def test_an_agent_that_dies_midway_loses_its_own_part_alone(tmp_path: Path) -> None:
    with running_places(tmp_path / "places", 3) as places:
        for place in places:
            place.target.pause()
        dies_midway(places, tmp_path / "trace")
        places.quit()


def dies_midway(places: Places, directory: Path) -> None:
    command = places.start("record", "@agents:busy8", "leaf", "-o", str(directory))
    command.wait_for("recording 3 processes")
    for place, count in zip(places, BURSTS, strict=True):
        place.target.burst(count)
    second = next(path for path in directory.iterdir() if path.name.startswith("127.0.0.22"))
    wait_until(lambda: (second / "events.bin").stat().st_size > 16 * 2 * BURSTS[1])
    # WHEN it dies
    with within(SHOWN_SECONDS):
        places[1].agent.kill()
        # THEN that is said at once, and the others go on
        command.wait_for(f"# {places[1].label}: the connection broke; trying to get it back")
    for place in (places[0], places[2]):
        place.target.burst(500)
    command.interrupt()
    done = command.wait()
    assert done.code == 14, done
    assert "failed: " in done.out
    members = {each["host"]: each for each in fleet_file(directory)["members"]}
    for number, place in enumerate(places):
        member = members[place.label]
        counted = calls_of(directory / member["directory"], "leaf")
        if number == 1:
            assert member["outcome"]["error"] and counted == BURSTS[1]
            assert member["outcome"]["exact"] is None
        else:
            assert member["outcome"]["error"] is None and counted == BURSTS[number] + 500
            assert member["outcome"]["exact"] is True
            assert_text_unchanged(place.target.pid)


def test_a_frozen_agent_is_not_waited_for(tmp_path: Path) -> None:
    with running_places(tmp_path / "places", 2) as places:
        for place in places:
            place.target.pause()
        freezes_midway(places, tmp_path / "trace")
        places.quit()


def freezes_midway(places: Places, directory: Path) -> None:
    command = places.start("record", "@agents:busy8", "leaf", "-o", str(directory))
    command.wait_for("recording 2 processes")
    with places[0].agent.frozen():
        with within(SHOWN_SECONDS):
            command.wait_for(f"# {places[0].label}: nothing from its agent")
        places[1].target.burst(700)
        command.interrupt()
        done = command.wait(60)
    assert done.code == 14, done
    assert "does not answer" in done.out
    members = {each["host"]: each for each in fleet_file(directory)["members"]}
    assert calls_of(directory / members[places[1].label]["directory"], "leaf") == 700
    # What it had patched goes with its lease.
    wait_until(lambda: not text_differences(places[0].target.pid), timeout=60)
