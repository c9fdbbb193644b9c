# `patch --dry-run` on many processes.
from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

import click

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._plan import plan_patch
from uftrace_remote.cli._refusals import describe
from uftrace_remote.cli._settings import Settings, run
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.enums import PatchStatus, PatchWriter
from uftrace_remote.errors import UftraceError
from uftrace_remote.fleet.address import FleetTarget
from uftrace_remote.fleet.fan_out import Outcome, fan_out
from uftrace_remote.fleet.member import Member
from uftrace_remote.values import Function, FunctionResult, PatchOptions, PatchResult

_ACTIVE = (PatchStatus.ENABLED, PatchStatus.ALREADY_ENABLED)
# Functions are resolved and planned like for a patch.
_PLAN_SECONDS = 60.0

_Plans = Sequence[Outcome[Member, PatchResult]]


def print_plan(
    settings: Settings,
    target: str,
    patterns: Sequence[str],
    options: PatchOptions,
    *,
    verbose: bool,
    as_json: bool,
) -> None:
    """Say what `patch_fleet` would do, and change nothing."""
    where = FleetTarget.parse(target)

    async def work() -> tuple[_Plans, tuple[tuple[Endpoint, UftraceError], ...]]:
        async with _fleet.open_fleet(settings, where) as fleet:
            found = await fleet.members(where.process)
            plans = await fan_out(
                found.values,
                lambda member: plan_patch(member.agent.client, member.process, patterns, options),
                deadline=_PLAN_SECONDS,
                name=lambda member: member.agent,
            )
            return plans, found.failures

    plans, unreached = run(work)
    failures = [(each.host.agent.endpoint, each.error) for each in plans if each.error]
    failures += unreached
    if as_json:
        _output.print_json(
            {
                "processes": [
                    {
                        "host": str(each.host.agent.endpoint),
                        "process": each.host.process,
                        "plan": each.value,
                        "error": _fleet.error_json(each.error),
                    }
                    for each in plans
                ],
                "unreached": [
                    {"host": str(host), "error": _fleet.error_json(error)}
                    for host, error in unreached
                ],
            }
        )
    else:
        _print_plans(plans, verbose, settings.color)
        _fleet.note_failures(failures)
    _fleet.raise_failures(
        [error for _, error in failures], len(plans) + len(unreached), "processes"
    )


def _print_plans(plans: _Plans, verbose: bool, color: bool | None) -> None:
    groups: dict[Hashable, tuple[list[Member], PatchResult]] = {}
    for each in plans:
        if each.value is not None:
            process = each.host.process
            key: Hashable = (
                process.executable,
                process.build_id,
                tuple(map(without_place, each.value.results)),
                str(each.host) if verbose else "",
            )
            groups.setdefault(key, ([], each.value))[0].append(each.host)
    for number, (members, plan) in enumerate(groups.values()):
        if number:
            click.echo()
        _print_one_plan(members, plan, color)


def _print_one_plan(members: Sequence[Member], plan: PatchResult, color: bool | None) -> None:
    process = members[0].process
    where = (
        str(members[0])
        if len(members) == 1
        else f"{_fleet.fold(each.agent.endpoint for each in members)} ({len(members):,} processes)"
    )
    program = process.executable or process.command_name
    click.echo(f"{where}: {program}, build id {process.build_id[:16] or 'unknown'}")
    click.echo(f"    {_expected_pause(plan.results, members)}")
    _output.print_table(
        [
            ("ADDRESS", "right"),
            ("STATUS", "left"),
            ("FORM", "left"),
            ("WRITER", "left"),
            ("MODULE", "left"),
            ("FUNCTION", "left"),
        ],
        (_plan_row(each, len(members) == 1) for each in plan.results),
        color=color,
    )


def _expected_pause(results: Iterable[FunctionResult], members: Sequence[Member]) -> str:
    stopped = sum(r.status in _ACTIVE and r.writer is PatchWriter.STOP for r in results)
    if not stopped:
        return "expected pause: none, no thread is stopped"
    threads = [each.process.thread_count for each in members]
    count = str(min(threads)) if len(set(threads)) == 1 else f"{min(threads)} to {max(threads)}"
    return (
        f"expected pause: all threads ({count}) are stopped for some milliseconds, for "
        f"{_output.plural(stopped, 'function')}"
    )


def without_place(result: FunctionResult) -> FunctionResult:
    """A result but for what differs from process to process: addresses, and which of them
    stood in the way of a cheaper form."""
    is_refused = result.status is PatchStatus.REFUSED or bool(result.exit_refusal)
    detail = without_addresses(result.detail) if is_refused else ""
    return replace(result, function=replace(result.function, address=0), detail=detail)


def without_addresses(text: str) -> str:
    """A sentence but for the addresses in it."""
    return re.sub(r"0x[0-9a-f]+", "0x...", text)


def _in_file(function: Function) -> str:
    return f"+{function.file_address:x}" if function.file_address else "varies"


# Where the program lies differs from process to process; where its functions lie in its
# file does not.
def _plan_row(result: FunctionResult, with_address: bool) -> tuple[str, ...]:
    reason = result.refusal or result.exit_refusal
    words = result.detail or (describe(reason)[0] if reason else "")
    status = "ready" if result.status in (PatchStatus.ENABLED, PatchStatus.NOT_ENABLED) else ""
    return (
        f"{result.function.address:x}" if with_address else _in_file(result.function),
        status or result.status.name.lower().replace("_", " "),
        result.form.name.lower() if result.form else "-",
        result.writer.name.lower() if result.writer else "-",
        result.function.module,
        result.function.name + (f"  ({words})" if words else ""),
    )
