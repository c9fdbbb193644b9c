"""`top` of one host and of many, through the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fleet.places import Places, running_places
from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with running_places(tmp_path_factory.mktemp("places"), 2, "delayed", [["0"], ["0"]]) as started:
        yield started
        started.quit()


def sums(told: list[dict[str, Any]], process: str) -> int:
    return sum(
        function["processes"].get(process, {"calls": 0})["calls"]
        for interval in told
        for function in interval["functions"]
        if function["name"] == "leaf"
    )


def test_every_call_is_in_one_interval(places: Places) -> None:
    command = places.start("top", "@agents:delayed", "leaf", "--interval", "200ms", "--json")
    command.wait_for("watching 2 processes")
    for count in (100, 200, 300):
        places[0].target.burst(count)
        places[1].target.burst(2 * count)
        seen = len(command.out.splitlines())
        wait_until(lambda seen=seen: len(command.out.splitlines()) > seen + 1)
    command.interrupt()
    done = command.wait()
    assert done.code == 0, done
    told = [json.loads(line) for line in done.out.splitlines()]
    assert sums(told, places[0].label) == 600
    assert sums(told, places[1].label) == 1200
    for place in places:
        assert_text_unchanged(place.target.pid)
        assert_not_traced(place.target.pid)


def test_tables_follow_each_other(places: Places) -> None:
    command = places.start("top", "@agents:delayed", "leaf", "work", "--sort", "calls")
    command.wait_for("watching 2 processes")
    places[0].target.burst(500)
    command.wait_for(" leaf\n")
    command.interrupt()
    done = command.wait()
    assert done.code == 0, done
    titles = next(line for line in done.out.splitlines() if line.startswith("CALLS/S"))
    assert f"CALLS {places[0].label}  CALLS {places[1].label}  FUNCTION" in titles
    assert "2 processes, " in done.out


def test_one_process_and_what_others_trace(places: Places) -> None:
    target = "@a1:delayed"
    nothing = places.run("top", target)
    assert nothing.code == 5 and "name functions" in nothing.err
    with_state = ("--state-dir", str(places[0].agent.state_dir))
    single = f"{places[0].label}:delayed"
    assert places.run(*with_state, "patch", single, "leaf").code == 0
    command = places.start(*with_state, "top", single, "--for", "20s")
    command.wait_for("watching 1 process;")
    places[0].target.burst(50)
    command.wait_for(" leaf\n")
    command.interrupt()
    done = command.wait()
    assert done.code == 0 and "CALLS/S" in done.out and places[1].label not in done.out
    # It was not top's to unpatch.
    assert "leaf" in places.run(*with_state, "status", places[0].label, "-v").out
    assert places.run(*with_state, "detach", single).code == 0


def test_a_host_that_dies_is_named_and_the_others_go_on(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("dying")
    with running_places(folder, 2, "delayed", [["0"], ["0"]]) as places:
        command = places.start("top", "@agents:delayed", "leaf", "--interval", "200ms")
        command.wait_for("watching 2 processes")
        places[1].agent.kill()
        command.wait_for(f" s; {places[1].label} silent")
        places[0].target.burst(50)
        command.wait_for(" leaf\n")
        command.interrupt()
        done = command.wait()
        assert done.code == 14, done
        places.quit()
