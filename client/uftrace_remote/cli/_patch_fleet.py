# `patch` on many processes at one moment, or on none.
from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import click

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._plan_fleet import without_place
from uftrace_remote.cli._progress import clear_line, show_line
from uftrace_remote.cli._refusals import print_refusals
from uftrace_remote.cli._settings import Settings, run
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.enums import PatchStatus
from uftrace_remote.errors import SomeHostsFailedError
from uftrace_remote.fleet.address import FleetTarget
from uftrace_remote.fleet.coordinated_patch import FleetPatch, MemberOutcome, PatchPlan
from uftrace_remote.fleet.grouping import host_label
from uftrace_remote.fleet.rollout import Step
from uftrace_remote.values import FunctionResult

_ACTIVE = (PatchStatus.ENABLED, PatchStatus.ALREADY_ENABLED)


def patch_fleet(
    settings: Settings, target: str, plan: PatchPlan, *, verbose: bool, as_json: bool
) -> None:
    """Patch every process of a fleet that TARGET means."""
    where = FleetTarget.parse(target)

    async def work() -> FleetPatch:
        async with _fleet.open_fleet(settings, where) as fleet:
            try:
                show_line("asking who is there")
                found = await fleet.members(where.process)
                return await fleet.patch(found, plan, show_line)
            finally:
                clear_line()

    done = run(work)
    if as_json:
        _output.print_json(_to_json(done))
    else:
        waves = len(plan.policy.waves(len(done.members)))
        print_patch(done, waves, settings.color, verbose=verbose)
        lease = plan.options.lease
        if lease is not None and done.is_enabled:
            click.echo(
                f"lease {lease.name}: unpatched by itself in "
                f"{_output.brief_duration(lease.duration_ns)}; to keep it: "
                f"uftrace-remote keep {target} {lease.name}"
            )
    raise_failures(done)


# -- what became of it ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    where: Endpoint
    name: str
    enabled: str
    refused: str
    state: str
    pause_ns: int = -1


def print_patch(done: FleetPatch, waves: int, color: bool | None, *, verbose: bool = False) -> None:
    """A table of what became of it, and what was refused."""
    rows = [_row(done, each) for each in done.members]
    for where, error in done.unreached:
        state = f"failed: {_fleet.brief(error, where)}"
        rows.append(_Row(where, host_label(where), "-", "-", state))
    groups: dict[Hashable, list[_Row]] = {}
    for row in rows:
        # No two pauses are equal: of those that fared alike the longest one is told.
        key = (row.enabled, row.refused, row.state, row.name if verbose else "")
        groups.setdefault(key, []).append(row)
    _output.print_table(
        [
            ("PROCESSES", "right"),
            ("ENABLED", "right"),
            ("REFUSED", "right"),
            ("PAUSE" if verbose else "LONGEST PAUSE", "right"),
            ("ON", "left"),
            ("STATE", "left"),
        ],
        (
            (
                f"{len(those):,}",
                *(those[0].enabled, those[0].refused),
                _pause(max(each.pause_ns for each in those)),
                those[0].name if len(those) == 1 else _fleet.fold(each.where for each in those),
                those[0].state,
            )
            for those in groups.values()
        ),
        color=color,
    )
    print_refused(done)
    if len(rows) > 1:
        _fleet.note_hints(_failures(done))
    click.echo(_headline(done, waves))
    for each in done.members:
        if each.left_over:
            _output.note(
                f"{each.member} could not be rolled back ({each.left_over}): what is enabled "
                "there ends with its lease, within 30 s"
            )


def _headline(done: FleetPatch, waves: int) -> str:
    if not done.is_enabled:
        was_changed = any(each.step >= Step.ENABLED for each in done.members)
        return f"nothing is patched: {'all was rolled back' if was_changed else 'no byte changed'}"
    count = len(done.enabled)
    text = f"patched {count:,} {'process' if count == 1 else 'processes'}"
    if count > 1 and done.skew_ns and waves == 1:
        bound = max(each.bound_ns for each in done.enabled)
        text += (
            f" within {_output.brief_duration(done.skew_ns)} "
            f"(clocks known to {_output.brief_duration(bound)})"
        )
    return text


def _row(done: FleetPatch, each: MemberOutcome) -> _Row:
    where, name = each.member.agent.endpoint, str(each.member)
    preparation, commit = each.member.preparation, each.member.commit
    if each.error is not None:
        return _Row(where, name, "-", "-", f"failed: {_fleet.brief(each.error, where)}")
    refused = f"{preparation.plan.refused_count:,}" if preparation else "-"
    if not done.is_enabled or commit is None:
        state = "rolled back" if each.step >= Step.ENABLED else "not changed"
        return _Row(where, name, "-", refused, state)
    enabled = sum(result.status in _ACTIVE for result in commit.patch.results)
    return _Row(where, name, f"{enabled:,}", refused, "enabled", commit.patch.longest_pause_ns)


def _pause(nanoseconds: int) -> str:
    if nanoseconds < 0:
        return "-"
    return _output.brief_duration(nanoseconds) if nanoseconds else "none"


def print_refused(done: FleetPatch) -> None:
    """Refusals and lost exits, once for all that have the same."""
    kinds: dict[Hashable, tuple[list[Endpoint], list[FunctionResult]]] = {}
    for each in done.members:
        if each.member.preparation is None:
            continue
        results = [
            result
            for result in each.member.preparation.plan.results
            if result.status is PatchStatus.REFUSED or result.exit_refusal
        ]
        if results:
            key = tuple(without_place(result) for result in results)
            kinds.setdefault(key, ([], results))[0].append(each.member.agent.endpoint)
    for hosts, results in kinds.values():
        _output.note(f"{_fleet.fold(hosts)}:")
        print_refusals([_as_enabled(result) for result in results])


# In a plan what can be enabled is not enabled yet; its lost exits are told all the same.
def _as_enabled(result: FunctionResult) -> FunctionResult:
    if result.status is PatchStatus.NOT_ENABLED:
        return replace(result, status=PatchStatus.ENABLED)
    return result


def _failures(done: FleetPatch) -> _fleet.Failures:
    failed = [(m.member.agent.endpoint, m.error) for m in done.failed if m.error is not None]
    return [*failed, *done.unreached]


def raise_failures(done: FleetPatch) -> None:
    """Ends a command with what failed, if something did."""
    errors = [error for _, error in _failures(done)]
    if not errors:
        return
    count = len(done.members) + len(done.unreached)
    if done.is_enabled:
        raise SomeHostsFailedError(
            f"{len(errors):,} of {count:,} failed and are left out",
            hint="each failure is shown with its host",
        )
    if len(errors) == count:
        _fleet.raise_failures(errors, count, "processes")
    raise SomeHostsFailedError(
        f"{len(errors):,} of {count:,} failed, so that nothing is patched anywhere",
        hint="--max-failures N or --best-effort goes on without those that fail",
    )


def _to_json(done: FleetPatch) -> dict[str, object]:
    return {
        "enabled": done.is_enabled,
        "skew_ns": done.skew_ns,
        "lease": done.lease,
        "processes": [
            {
                "host": str(each.member.agent.endpoint),
                "process": each.member.process,
                "step": each.step,
                "session_id": each.member.session_id,
                "error": _fleet.error_json(each.error),
                "written_ns": each.written_ns,
                "bound_ns": each.bound_ns,
                "left_over": each.left_over,
                "plan": each.member.preparation.plan if each.member.preparation else None,
                "patch": each.member.commit.patch if each.member.commit else None,
            }
            for each in done.members
        ],
        "unreached": [
            {"host": str(where), "error": _fleet.error_json(error)}
            for where, error in done.unreached
        ],
    }
