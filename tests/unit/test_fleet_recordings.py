"""Recordings of many processes: parts, clocks, reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.unit.fleet_support import calls, make_fleet_recording
from uftrace_remote.cli.main import cli
from uftrace_remote.errors import OutputError, UsageError
from uftrace_remote.trace.clock_track import ClockMeasurement, ClockTrack
from uftrace_remote.trace.fleet_store import FleetWriter, member_names
from uftrace_remote.trace.recordings import open_recording


def command(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


@pytest.fixture
def recording(tmp_path: Path) -> str:
    """parse takes 1 us on web1 and web2, 4 us on web3; only db calls lookup."""
    hosts = {
        "web1": calls(3, [2000] * 50),
        "web2": calls(3, [2100] * 60),
        "web3": calls(3, [8000] * 40),
        "db": calls(4, [500] * 10),
    }
    groups = {"web1": ["web", "all"], "web2": ["web"], "web3": ["web"], "db": ["db"]}
    return str(make_fleet_recording(tmp_path / "trace", hosts, groups=groups))


def test_a_track_follows_a_clock_that_drifts() -> None:
    second = 10**9
    track = ClockTrack(
        [ClockMeasurement(20 * second, 3000, 70), ClockMeasurement(10 * second, 1000, 50)]
    )
    host = np.array([10 * second + 1000, 15 * second + 2000, 20 * second + 3000], np.int64)
    assert track.to_ours(host).tolist() == [10 * second, 15 * second, 20 * second]
    # Before and behind it is as it was last known.
    assert track.moment(5 * second) == 5 * second - 1000
    assert track.moment(30 * second) == 30 * second - 3000
    assert track.bound_ns(10 * second, 20 * second) == 70
    assert track.bound_ns(10 * second, 21 * second) == 70 + 500_000
    assert ClockTrack().moment(77) == 77 and not ClockTrack().is_known


def test_a_bad_measurement_says_no_more_than_good_ones_around_it() -> None:
    second = 10**9
    good, bad = ClockMeasurement(0, 1000, 50_000), ClockMeasurement(second, 9000, 20_000_000)
    last = ClockMeasurement(2 * second, 1000, 100_000)
    track = ClockTrack([good, bad, last])
    assert track.measurements == (good, last)
    assert track.moment(second + 1000) == second
    # What the clock may have drifted since, by 500 ppm at most.
    assert track.bound_ns(0, 2 * second) == 50_000 + 500_000
    # Far from the others it is better than nothing.
    alone = ClockMeasurement(100 * second, 9000, 20_000_000)
    assert ClockTrack([good, alone]).measurements == (good, alone)
    assert ClockTrack([good, alone]).bound_ns(0, 100 * second) == 20_000_000


def test_names_have_a_pid_only_where_that_is_needed() -> None:
    named = member_names([("web1", 7), ("web2", 8), ("web2", 9)])
    assert named == ["web1", "web2:8", "web2:9"]


def test_directories_have_safe_names(tmp_path: Path) -> None:
    writer = FleetWriter(tmp_path / "t", {})
    assert writer.place("web1", 7).name == "web1-7"
    assert writer.place("web1", 7).name == "web1-7-2"
    assert writer.place("unix:/run/a b.sock", 7).name == "unix_run_a_b.sock-7"
    assert writer.place("[::1]:50051", 7).name == "_1_50051-7"


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("", ["web1", "web2", "web3", "db"]),
        (":web2", ["web2"]),
        (":web2:50051", ["web2"]),
        (":web2:4321", ["web2"]),
        (":@web", ["web1", "web2", "web3"]),
        (":@all", ["web1", "web2", "web3", "db"]),
        (":build-id=03ab", ["db"]),
    ],
)
def test_parts_of_a_recording(recording: str, part: str, names: list[str]) -> None:
    assert [each.name for each in open_recording(recording + part).members] == names


def test_parts_that_are_not_there(recording: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        open_recording(f"{recording}:web9")
    assert "web1" in refused.value.hint and "@db" in refused.value.hint
    with pytest.raises(OutputError):
        open_recording(str(tmp_path / "nothing"))
    (tmp_path / "trace" / "fleet.json").write_text("{")
    with pytest.raises(OutputError):
        open_recording(recording)


def test_a_report_has_all_together(recording: str) -> None:
    lines = command("report", recording).stdout.splitlines()
    assert lines[0].split()[-3:] == ["HOSTS", "SLOWEST", "FUNCTION"]
    assert len(lines) == 3
    parse = lines[1].split()
    # 50 + 60 + 40 calls; four processes traced it, three called it.
    assert parse[-1] == "parse" and "150" in parse
    assert "3 of 4" in lines[1] and "web3 (2.2x)" in lines[1]


def test_a_report_by_host_puts_like_ones_together(recording: str) -> None:
    lines = command("report", recording, "--by", "host").stdout.splitlines()
    parse = [line for line in lines if line.endswith(" parse")]
    assert [line.split()[-2] for line in parse] == ["web[1-2]", "web3", "db"]
    assert " 110 " in parse[0] and " 40 " in parse[1] and " 0 " in parse[2]
    every = command("report", recording, "--by", "host", "-v").stdout.splitlines()
    assert len([line for line in every if line.endswith(" parse")]) == 4


def test_a_report_for_programs(recording: str) -> None:
    (parse, lookup) = json.loads(command("report", recording, "--json").stdout)
    assert parse["calls"] == 150 and lookup["calls"] == 10
    assert {each["process"]: each["calls"] for each in parse["processes"]} == {
        "web1": 50,
        "web2": 60,
        "web3": 40,
        "db": 0,
    }
    (alone,) = json.loads(command("report", f"{recording}:db", "--json").stdout)[:1]
    assert alone["name"] == "lookup"


def test_a_replay_is_in_the_order_of_the_common_clock(tmp_path: Path) -> None:
    # They take turns; by their own clocks all of b is a second before a.
    hosts = {
        "a": calls(3, [100] * 3, start=1_000 + 2 * 10**9, gap=1900),
        "b": calls(4, [100] * 3, start=2_000, gap=1900),
    }
    offsets = {"a": 10**9, "b": 0}
    directory = make_fleet_recording(tmp_path / "t", hosts, offsets=offsets, bound_ns=500)
    result = command("replay", str(directory))
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["#", "HOST", "DURATION", "TID", "FUNCTION"]
    assert [line.split()[0] for line in lines] == ["a", "b"] * 3
    assert all("0.050 us [    11] | " in line for line in lines)
    # Half a microsecond each, and what clocks may drift after they were measured.
    assert "less than 1.003 us apart" in result.stderr
    # AND for programs
    told = [
        json.loads(line) for line in command("replay", str(directory), "--json").stdout.splitlines()
    ]
    starts = {host: [each["start_ns"] for each in told if each["process"] == host] for host in "ab"}
    assert [b - a for a, b in zip(starts["a"], starts["b"], strict=True)] == [500] * 3
    only = command("replay", str(directory), "--function", "lookup").stdout.splitlines()
    assert len(only) == 4 and command("replay", str(directory), "--function", "x").exit_code == 5


def test_an_export_for_perfetto_has_all_on_one_clock(tmp_path: Path) -> None:
    hosts = {
        "a": calls(3, [100] * 3, start=1_000 + 2 * 10**9, gap=1900),
        "b": calls(4, [100] * 3, start=2_000, gap=1900),
    }
    directory = make_fleet_recording(tmp_path / "t", hosts, offsets={"a": 10**9})
    out = tmp_path / "out.json"
    assert command("export", str(directory), "-f", "chrome", "-o", str(out)).exit_code == 0
    told = json.loads(out.read_text())
    names = {
        each["pid"]: each["args"]["name"]
        for each in told["traceEvents"]
        if each["name"] == "process_name"
    }
    # The same number on both hosts, not in the file.
    assert sorted(names.values()) == ["app (4321) on a", "app (4321) on b"]
    events = [each for each in told["traceEvents"] if each["ph"] == "X"]
    events.sort(key=lambda each: each["ts"])
    assert [names[each["pid"]][-1] for each in events] == ["a", "b"] * 3
    assert told["otherData"]["clock_bound_ns"] > 0


def test_a_flame_graph_adds_hosts_up_or_has_a_root_for_each(recording: str, tmp_path: Path) -> None:
    out = tmp_path / "out.svg"
    arguments = ("export", recording, "-f", "flamegraph", "-o", str(out))
    assert command(*arguments).exit_code == 0
    together = out.read_text()
    assert together.count('data-name="parse"') == 1 and "150 calls" in together
    assert command(*arguments, "--by-host").exit_code == 0
    apart = out.read_text()
    assert apart.count('data-name="parse"') == 3 and 'data-name="web3"' in apart
    assert command("export", recording, "-f", "chrome", "-o", "x", "--by-host").exit_code == 2


def test_an_export_for_uftrace_is_a_directory_for_each(recording: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = command("export", recording, "-f", "uftrace", "-o", str(out))
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == [
        "db-4321",
        "web1-4321",
        "web2-4321",
        "web3-4321",
    ]
    assert all((path / "info").is_file() for path in out.iterdir())
    assert "uftrace replay -d" in result.stderr
    assert command("export", recording, "-f", "uftrace", "-o", str(out)).exit_code == 12
