"""`patch`: enable tracepoints and leave them enabled."""

from __future__ import annotations

import click

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._leases import command_lease
from uftrace_remote.cli._options import (
    duration_type,
    json_option,
    patch_options,
    to_patch_options,
)
from uftrace_remote.cli._patch_fleet import patch_fleet
from uftrace_remote.cli._plan import plan_patch
from uftrace_remote.cli._plan_fleet import print_plan
from uftrace_remote.cli._progress import spinner
from uftrace_remote.cli._refusals import describe, print_refusals
from uftrace_remote.cli._rollout_options import Share, rollout_options, to_policy
from uftrace_remote.cli._settings import Settings, pass_settings, run
from uftrace_remote.cli._tracing import hold, patch_functions, releasing
from uftrace_remote.cli._writers import print_writers
from uftrace_remote.enums import PatchStatus
from uftrace_remote.fleet.coordinated_patch import PatchPlan
from uftrace_remote.values import FunctionResult, Lease, PatchResult


@click.command()
@click.argument("target")
@click.argument("patterns", nargs=-1, required=True, metavar="FUNC...")
@patch_options
@click.option(
    "--for",
    "duration_ns",
    type=duration_type("s"),
    metavar="TIME",
    help="Unpatch by itself after so long (30s, 10m, 2h), whatever becomes of this command.",
)
@click.option(
    "--lease",
    "lease_name",
    metavar="NAME",
    help="A name for --for, by which `keep` and `release` know it.",
)
@rollout_options
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option("-v", "--verbose", is_flag=True, help="List every function.")
@json_option
@pass_settings
def patch(
    settings: Settings,
    target: str,
    patterns: tuple[str, ...],
    writer: str,
    entry_only: bool,
    all_or_nothing: bool,
    multi: bool,
    cpu: float | None,
    rate: float | None,
    pending: bool,
    duration_ns: int | None,
    lease_name: str | None,
    canary: Share | None,
    batch: int | None,
    max_failures: int,
    best_effort: bool,
    watch_ns: int,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Enable tracepoints in a running process, or in many at one moment.

    They stay until `unpatch` or `detach`, or for as long as --for says. A TARGET of several
    hosts (web[01-16]:nginx, @web:nginx) is patched everywhere or nowhere.
    """
    options = to_patch_options(
        writer,
        entry_only,
        all_or_nothing,
        multi,
        cpu,
        rate,
        pending=pending,
        lease=_lease(duration_ns, lease_name),
        dry_run=dry_run,
    )
    policy = to_policy(canary, batch, max_failures, best_effort, watch_ns)
    if _fleet.is_fleet_target(target):
        if pending:
            raise click.UsageError("--pending is for one process: name a single host and process")
        if dry_run:
            print_plan(settings, target, patterns, options, verbose=verbose, as_json=as_json)
        else:
            plan = PatchPlan(patterns, options, policy)
            patch_fleet(settings, target, plan, verbose=verbose, as_json=as_json)
        return
    if canary or batch or max_failures or best_effort:
        raise click.UsageError(
            "--canary, --batch, --max-failures and --best-effort are for several hosts: "
            "web[01-16]:nginx, web1,web2:nginx or @web:nginx"
        )
    where = settings.target(target)

    async def work() -> PatchResult:
        async with settings.connect(where.endpoint) as agent:
            process = await agent.resolve_process(where.process)
            if dry_run:
                with spinner("planning"):
                    return await plan_patch(agent, process, patterns, options)
            held = await hold(agent, process)
            async with releasing(held, keep=True):
                return await patch_functions(held, patterns, options)

    result = run(work)
    if as_json:
        _output.print_json(result)
        return
    if verbose:
        _print_all(result.results, settings.color)
    _print_summary(result, dry_run)
    print_refusals(result.results)
    if result.pending_patterns:
        click.echo(f"pending: {', '.join(result.pending_patterns)} (nothing matches yet)")
    if options.lease is not None and not dry_run:
        click.echo(
            f"lease {options.lease.name}: unpatched by itself in "
            f"{_output.brief_duration(options.lease.duration_ns)}; to keep it: "
            f"uftrace-remote keep {target} {options.lease.name}"
        )


def _lease(duration_ns: int | None, name: str | None) -> Lease | None:
    if duration_ns is None:
        if name:
            raise click.UsageError("say how long the lease lasts: --for 10m")
        return None
    return Lease(name or command_lease("patch").name, duration_ns)


def _print_summary(result: PatchResult, dry_run: bool) -> None:
    before = sum(each.status is PatchStatus.ALREADY_ENABLED for each in result.results)
    refused = sum(each.status is PatchStatus.REFUSED for each in result.results)
    enabled = sum(each.status is PatchStatus.ENABLED for each in result.results)
    parts = [f"{'would patch' if dry_run else 'patched'} {_output.plural(enabled, 'function')}"]
    if before:
        parts.append(f"{before:,} patched before")
    if refused:
        parts.append(f"{refused:,} refused")
    if result.elapsed_ns:
        parts.append(f"in {_output.brief_duration(result.elapsed_ns)}")
    if not dry_run:
        parts.append(_output.pause(result.longest_pause_ns, result.longest_pause_tid))
    click.echo(", ".join(parts))
    print_writers(result)


def _print_all(results: tuple[FunctionResult, ...], color: bool | None) -> None:
    _output.print_table(
        [
            ("STATUS", "left"),
            ("FORM", "left"),
            ("WRITER", "left"),
            ("MODULE", "left"),
            ("FUNCTION", "left"),
        ],
        (
            (
                each.status.name.lower().replace("_", " "),
                each.form.name.lower() if each.form else "-",
                each.writer.name.lower() if each.writer else "-",
                each.function.module,
                each.function.name + _why(each),
            )
            for each in results
        ),
        color=color,
    )


def _why(result: FunctionResult) -> str:
    reason = result.refusal or result.exit_refusal
    words = result.detail or (describe(reason)[0] if reason else "")
    return f"  ({words})" if words else ""
