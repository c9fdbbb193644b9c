"""`patch --dry-run` and the tables of `patch` on several hosts, as a user runs them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.fleet.places import Places, running_places
from tests.support.text_compare import assert_not_traced, assert_text_unchanged

HOSTS = 3
# Its one byte leads below the program, where nothing ever lies. What others need lies above:
# in one of thirty programs the heap has its room there, and the plan is another.
FUNCTION = "burst"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with running_places(tmp_path_factory.mktemp("places"), HOSTS) as started:
        for place in started:
            # Two dozen busy threads would only make each command slow.
            place.target.pause()
        yield started
        started.quit()


def assert_untouched(places: Places) -> None:
    for place in places:
        assert_text_unchanged(place.target.pid)
        assert_not_traced(place.target.pid)
    assert places.run("status", "@agents").out.splitlines()[-1] == f"0 sessions on {HOSTS} hosts"


def test_one_plan_for_all_that_run_the_same(places: Places) -> None:
    done = places.run("patch", "@agents:busy8", FUNCTION, "--dry-run")
    assert done.code == 0, done
    title, pause, columns, row = done.out.splitlines()
    assert f"({HOSTS} processes): " in title
    assert re.search(r"/busy8\S*, build id [0-9a-f]{16}$", title)
    assert pause.strip() == "expected pause: none, no thread is stopped"
    assert columns.split() == ["ADDRESS", "STATUS", "FORM", "WRITER", "MODULE", "FUNCTION"]
    # Programs lie anywhere; in the file the function is at one place.
    assert re.match(rf" *\+[0-9a-f]+ +ready +\w+ +byte +busy8 +{FUNCTION}$", row), row
    # AND each for itself, if that is wanted
    each = places.run("patch", "@agents:busy8", FUNCTION, "--dry-run", "-v").out.splitlines()
    assert len([line for line in each if re.match(r" *[0-9a-f]{8,} +ready ", line)]) == HOSTS
    for place in places:
        assert f"{place.label}:" in "\n".join(each)
    assert_untouched(places)


def test_the_plan_is_that_of_the_options(places: Places) -> None:
    def writers(*options: str) -> tuple[set[str], str]:
        done = places.run("patch", "@agents:busy8", FUNCTION, "--dry-run", *options)
        assert done.code == 0, done
        lines = done.out.splitlines()
        return {line.split()[3] for line in lines if " ready " in line}, done.out

    assert writers()[0] == {"byte"}
    found, out = writers("--writer", "stop")
    assert found == {"stop"}
    assert re.search(
        r"expected pause: all threads \(\d+\) are stopped .* for 1 function$", out, re.M
    )
    assert_untouched(places)


def test_what_is_refused_is_one_plan_too(places: Places) -> None:
    done = places.run("patch", "@agents:busy8", "libc*!memcpy", FUNCTION, "--dry-run")
    assert done.code == 0, done
    assert len([line for line in done.out.splitlines() if " refused " in line]) == 1
    assert f"({HOSTS} processes)" in done.out
    explained = places.run("functions", "@agents:busy8", "libc*!memcpy", FUNCTION, "--explain")
    assert explained.out.count(f"({HOSTS} processes; ") == 1
    assert_untouched(places)


def test_a_patch_is_one_line_whatever_each_thread_had_to_wait(places: Places) -> None:
    done = places.run("patch", "@agents:busy8", "leaf", "--writer", "stop", "--for", "5m")
    assert done.code == 0, done
    columns, row, *_ = done.out.splitlines()
    assert "LONGEST PAUSE" in columns
    assert row.split()[:3] == [str(HOSTS), "1", "0"] and row.endswith("enabled")
    # Limits of all of them, in one line as well
    shown = places.run("budget", "@agents:busy8", "--cpu", "7%")
    assert shown.code == 0 and "7%" in shown.out and len(shown.out.splitlines()) == 1, shown
    assert places.run("detach", "@agents:busy8").code == 0
    assert_untouched(places)
