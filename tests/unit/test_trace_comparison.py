"""Whether one side takes longer: against counting every pair, and on known differences."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.fleet_support import calls, make_fleet_recording
from uftrace_remote.cli.main import cli
from uftrace_remote.trace.comparison import holm, mann_whitney, quantile_interval
from uftrace_remote.trace.histogram import upper_edge

_values = st.lists(st.integers(0, 12), min_size=1, max_size=25)


@settings(deadline=None)
@given(_values, _values)
def test_delta_is_that_of_all_pairs(a: list[int], b: list[int]) -> None:
    p_value, delta = mann_whitney(Counter(a), Counter(b))
    wins = sum((y > x) - (y < x) for x in a for y in b)
    assert delta == pytest.approx(wins / (len(a) * len(b)))
    assert 0 <= p_value <= 1
    # Sides changed, the same.
    other, opposite = mann_whitney(Counter(b), Counter(a))
    assert other == pytest.approx(p_value) and opposite == pytest.approx(-delta)


def test_p_values_are_uniform_where_nothing_differs() -> None:
    chance = random.Random(5)
    below = 0
    for _ in range(1000):
        a = Counter(chance.randint(0, 30) for _ in range(40))
        b = Counter(chance.randint(0, 30) for _ in range(60))
        below += mann_whitney(a, b)[0] < 0.05
    # 50 are expected; 3.5 standard deviations to either side.
    assert 26 <= below <= 74


def test_a_known_p_value() -> None:
    # 1..8 against 5..12: U = 56 of 64, four ties of two; by hand z = 23.5 / 9.505.
    p_value, delta = mann_whitney(Counter(range(1, 9)), Counter(range(5, 13)))
    assert delta == pytest.approx(48 / 64)
    assert p_value == pytest.approx(0.0135, abs=0.0005)
    assert mann_whitney(Counter([3] * 9), Counter([3] * 20)) == (1.0, 0.0)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_the_interval_of_a_quantile_holds_it() -> None:
    counts = {1000 + each: 100 for each in range(100)}
    low, high = quantile_interval(counts, 0.99)
    assert low <= upper_edge(1098) <= high
    assert upper_edge(1096) <= low and high <= upper_edge(1099)


def test_diff_finds_what_is_slower(tmp_path: Path) -> None:
    chance = random.Random(3)

    def spread(middle: int, count: int = 2000) -> list[int]:
        return [max(int(chance.gauss(middle, middle / 10)), 2) for _ in range(count)]

    def host(parse: int, tail: int) -> bytes:
        data = calls(3, spread(parse)) + calls(1, spread(3000), start=10**8)
        slow = [tail if n % 40 == 0 else 4000 for n in range(4000)]
        data += calls(2, slow, start=2 * 10**8)
        return data + calls(4, spread(900, 5), start=3 * 10**8)

    hosts = {"web1": host(2000, 5000), "web2": host(2600, 50_000)}
    hosts["web1"] += calls(5, [700] * 20, start=4 * 10**8)
    directory = make_fleet_recording(tmp_path / "t", hosts)
    result = CliRunner().invoke(cli, ["diff", f"{directory}:web1", f"{directory}:web2", "--json"])
    assert result.exit_code == 0, result.output
    found = {each["name"]: each for each in json.loads(result.stdout)["functions"]}
    assert found["parse"]["verdict"] == "slower" and 1.2 < found["parse"]["ratio"] < 1.4
    assert found["main"]["verdict"] == "same" and not found["main"]["significant"]
    assert found["ns::Worker::run(int)"]["verdict"] == "slower_tail"
    assert found["lookup"]["verdict"] == "too_few"
    assert found["store"]["verdict"] == "only_a" and found["store"]["b"] is None
    shown = CliRunner().invoke(cli, ["diff", f"{directory}:web2", f"{directory}:web1"])
    assert shown.stdout.splitlines()[1].startswith("faster")
    assert "Mann-Whitney" in shown.stderr and "A is " in shown.stderr


def test_diff_of_what_is_no_recording(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["diff", "nginx", str(tmp_path)])
    assert result.exit_code == 2
