"""`diff`: the same functions on two hosts, groups or builds."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._leases import command_lease
from uftrace_remote.cli._options import duration_type, json_option
from uftrace_remote.cli._patch_fleet import print_patch, raise_failures
from uftrace_remote.cli._progress import clear_line, show_line, spinner
from uftrace_remote.cli._record_fleet import FleetRecording, FleetRequest, record_members
from uftrace_remote.cli._settings import Settings, pass_settings, run_until_interrupted
from uftrace_remote.cli._trace_notes import note_about_fleet
from uftrace_remote.errors import UftraceError
from uftrace_remote.fleet.address import FleetTarget
from uftrace_remote.fleet.coordinated_patch import PatchPlan
from uftrace_remote.fleet.fleet import Answers
from uftrace_remote.fleet.member import Member
from uftrace_remote.trace.comparison import METHOD, Difference, compare
from uftrace_remote.trace.fleet_tallies import FunctionKey, fleet_functions
from uftrace_remote.trace.recordings import MemberTrace, Recording, is_recording, open_recording
from uftrace_remote.trace.tallies import Tally
from uftrace_remote.values import PatchOptions

_SECONDS: Final = 5


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.argument("patterns", nargs=-1, metavar="[FUNC]...")
@click.option(
    "--for",
    "duration_ns",
    type=duration_type("s"),
    default=f"{_SECONDS}s",
    show_default=True,
    metavar="TIME",
    help="With FUNC: record for so long.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Show only so many functions.")
@json_option
@pass_settings
def diff(
    settings: Settings,
    first: str,
    second: str,
    patterns: tuple[str, ...],
    duration_ns: int,
    limit: int | None,
    as_json: bool,
) -> None:
    """Compare how long functions take in A and in B.

    A and B are recordings or parts of them: DIR, DIR:HOST, DIR:@GROUP, DIR:build-id=HEX.
    With FUNC they are targets, which are recorded at the same time for a while.
    """
    if patterns:
        _diff_live(settings, (first, second), patterns, duration_ns, limit, as_json)
        return
    for each in (first, second):
        if not is_recording(each):
            raise click.UsageError(
                f"'{each}' is no recording; to compare processes that run, name functions: "
                "diff TARGET TARGET FUNC..."
            )
    recordings = (open_recording(first), open_recording(second))
    _show(settings, recordings, limit, as_json)


def _diff_live(
    settings: Settings,
    targets: tuple[str, str],
    patterns: tuple[str, ...],
    duration_ns: int,
    limit: int | None,
    as_json: bool,
) -> None:
    with tempfile.TemporaryDirectory(prefix="uftrace-diff-") as folder:
        directory = Path(folder) / "trace"
        plan = PatchPlan(patterns, PatchOptions(lease=command_lease("diff")))
        request = FleetRequest(plan, duration_ns, directory)

        async def work(stop: asyncio.Event) -> tuple[list[set[Key]], FleetRecording]:
            async with (
                _fleet.open_fleet(settings, FleetTarget.parse(targets[0])) as one,
                _fleet.open_fleet(settings, FleetTarget.parse(targets[1])) as other,
            ):
                show_line("asking who is there")
                found = await asyncio.gather(
                    *(
                        fleet.members(FleetTarget.parse(target).process)
                        for fleet, target in zip((one, other), targets, strict=True)
                    )
                )
                clear_line()
                sides = [{_key(member) for member in each.values} for each in found]
                _refuse_overlap(sides)
                both = Answers(
                    tuple(member for each in found for member in each.values),
                    tuple(failure for each in found for failure in each.failures),
                )
                return sides, await record_members(both, request, stop)

        sides, done = run_until_interrupted(work)
        if not done.patch.is_enabled:
            print_patch(done.patch, 1, settings.color)
            raise_failures(done.patch)
            return
        if done.fatal is not None:
            raise done.fatal
        whole = open_recording(str(directory))
        recordings = [
            Recording(target, tuple(m for m in whole.members if (m.host, m.pid) in side), True)
            for target, side in zip(targets, sides, strict=True)
        ]
        _show(settings, recordings, limit, as_json)
        errors: list[UftraceError] = [e.error for e in done.processes if e.error is not None]
        errors += [error for _, error in done.left_out]
        _fleet.raise_failures(errors, len(done.processes) + len(done.left_out), "processes")


Key = tuple[str, int]


def _key(member: Member) -> Key:
    return str(member.agent.endpoint), member.process.reference.pid


def _refuse_overlap(sides: Sequence[set[Key]]) -> None:
    both = sorted(sides[0] & sides[1])
    if both:
        host, pid = both[0]
        raise click.UsageError(
            f"A and B are both {host}:{pid}: they have to be different processes"
        )


def _show(
    settings: Settings, recordings: Sequence[Recording], limit: int | None, as_json: bool
) -> None:
    with spinner("reading the traces"):
        first, second = (_tallies(each.members) for each in recordings)
    found = compare(first, second)[:limit]
    if as_json:
        _output.print_json(
            {
                "a": [each.name for each in recordings[0].members],
                "b": [each.name for each in recordings[1].members],
                "method": METHOD,
                "functions": [_to_json(each) for each in found],
            }
        )
        return
    _output.print_table(
        [
            ("B IS", "left"),
            ("RATIO", "right"),
            ("CALLS A", "right"),
            ("CALLS B", "right"),
            ("AVG A", "right"),
            ("AVG B", "right"),
            ("P50 A", "right"),
            ("P50 B", "right"),
            ("P99 A", "right"),
            ("P99 B", "right"),
            ("FUNCTION", "left"),
        ],
        (_row(each) for each in found),
        color=settings.color,
    )
    for letter, each in zip("AB", recordings, strict=True):
        names = ", ".join(member.name for member in each.members[:8])
        more = f" and {len(each.members) - 8:,} more" if len(each.members) > 8 else ""
        _output.note(f"{letter} is {each.title} ({names}{more})")
    _output.note(f"compared by {METHOD}")
    for each in recordings:
        note_about_fleet(each)


def _tallies(members: Sequence[MemberTrace]) -> dict[FunctionKey, Tally]:
    return {(each.name, each.module): each.total for each in fleet_functions(members)}


def _row(each: Difference) -> tuple[str, ...]:
    sides = (each.a, each.b)
    return (
        each.verdict.value,
        f"{each.ratio:.2f}x" if each.ratio else "-",
        *(f"{tally.calls:,}" if tally else "-" for tally in sides),
        *(_time(tally, tally.avg_ns if tally else 0) for tally in sides),
        *(_time(tally, tally.quantile(0.5) if tally else 0) for tally in sides),
        *(_time(tally, tally.quantile(0.99) if tally else 0) for tally in sides),
        each.name,
    )


def _time(tally: Tally | None, nanoseconds: int) -> str:
    return _output.duration(nanoseconds) if tally and tally.timed_calls else "-"


def _to_json(each: Difference) -> dict[str, Any]:
    return {
        "name": each.name,
        "module": each.module,
        "verdict": each.verdict,
        "significant": each.is_significant,
        "ratio": round(each.ratio, 4) or None,
        "p_value": each.p_value,
        "delta": round(each.delta, 4),
        "a": _side(each.a),
        "b": _side(each.b),
    }


def _side(tally: Tally | None) -> dict[str, int] | None:
    if tally is None:
        return None
    return {
        "calls": tally.calls,
        "total_ns": tally.total_ns,
        "avg_ns": tally.avg_ns,
        "p50_ns": tally.quantile(0.5),
        "p99_ns": tally.quantile(0.99),
        "max_ns": tally.max_ns,
    }
