"""`diff` of hosts that run, and of recordings of them: one of them is known to be slow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.places import Command, Places, running_places
from tests.support.text_compare import assert_not_traced, assert_text_unchanged

FAST, SLOW = "20000", "60000"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """Three hosts; `work` takes 20 us on two of them and 60 us on the third."""
    folder = tmp_path_factory.mktemp("places")
    with running_places(folder, 3, "delayed", [[FAST], [FAST], [SLOW]]) as started:
        yield started
        started.quit()


def call_until_it_ends(places: Places, command: Command) -> None:
    command.wait_for("recording 3 processes")
    while command.process.poll() is None and "recorded" not in command.out:
        for place in places:
            place.target.burst(200)


def by_name(told: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each for each in told["functions"]}


# Some calls in which the machine was not ours make a mean what they like.
def median_ratio(function: dict[str, Any]) -> float:
    return float(function["b"]["p50_ns"] / function["a"]["p50_ns"])


def test_the_slow_host_of_a_recording_is_found(places: Places, tmp_path: Path) -> None:
    directory = tmp_path / "trace"
    command = places.start("record", "@agents:delayed", "work", "leaf", "-o", str(directory))
    command.wait_for("recording 3 processes")
    for place in places:
        place.target.burst(2000)
    command.interrupt()
    assert command.wait().code == 0
    slow = places[2].label
    # WHEN the fast ones are compared with the slow one
    done = places.run("diff", f"{directory}:{places[0].label}", f"{directory}:{slow}", "--json")
    assert done.code == 0, done
    work = by_name(json.loads(done.out))["work"]
    assert work["verdict"] == "slower" and work["p_value"] < 1e-9
    assert median_ratio(work) > 1.5
    assert work["a"]["calls"] == work["b"]["calls"] == 2000
    # AND with each other, by group
    done = places.run("diff", f"{directory}:@a1", f"{directory}:@a2", "--json")
    alike = by_name(json.loads(done.out))["work"]
    assert abs(alike["delta"]) < abs(work["delta"])
    # THEN the report names it too
    report = places.run("report", str(directory))
    (line,) = [line for line in report.out.splitlines() if line.endswith("work")]
    assert slow in line and "6,000" in line
    lines = places.run("report", str(directory), "--by", "host", "-v").out.splitlines()
    assert len([line for line in lines if line.endswith("work")]) == 3


def test_hosts_that_run_are_compared(places: Places) -> None:
    command = places.start(
        "diff", "@a1,@a2:delayed", "@a3:delayed", "work", "--for", "2s", "--json"
    )
    call_until_it_ends(places, command)
    done = command.wait()
    assert done.code == 0, done
    told = json.loads(done.out)
    assert len(told["a"]) == 2 and told["b"] == [places[2].label]
    work = by_name(told)["work"]
    assert work["verdict"] == "slower" and median_ratio(work) > 1.5
    for place in places:
        assert_text_unchanged(place.target.pid)
        assert_not_traced(place.target.pid)


def test_a_process_is_not_compared_with_itself(places: Places) -> None:
    done = places.run("diff", "@agents:delayed", "@a1:delayed", "work")
    assert done.code == 2 and "different processes" in done.err
