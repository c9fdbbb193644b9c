"""`patch`: enable tracepoints and leave them enabled."""

from __future__ import annotations

import click

from uftrace_remote.agent import AgentClient
from uftrace_remote.cli import _output
from uftrace_remote.cli._leases import command_lease
from uftrace_remote.cli._options import (
    duration_type,
    json_option,
    patch_options,
    to_patch_options,
)
from uftrace_remote.cli._progress import spinner
from uftrace_remote.cli._refusals import describe, print_refusals
from uftrace_remote.cli._settings import Settings, pass_settings, run
from uftrace_remote.cli._tracing import hold, patch_functions, releasing
from uftrace_remote.cli._writers import print_writers
from uftrace_remote.enums import PatchForm, PatchStatus, RefusalReason
from uftrace_remote.errors import NoSuchFunctionError
from uftrace_remote.values import (
    FunctionInfo,
    FunctionResult,
    Lease,
    PatchOptions,
    PatchResult,
    Process,
)


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
    dry_run: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Enable tracepoints in a running process.

    They stay until `unpatch` or `detach`, or for as long as --for says.
    """
    where = settings.target(target)
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

    async def work() -> PatchResult:
        async with settings.connect(where.endpoint) as agent:
            process = await agent.resolve_process(where.process)
            if dry_run:
                return await _plan(agent, process, patterns, options)
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


# A dry run leaves a process that is not attached to alone altogether: what the
# engine would do is part of the function listing.
async def _plan(
    agent: AgentClient, process: Process, patterns: tuple[str, ...], options: PatchOptions
) -> PatchResult:
    with spinner("planning"):
        if process.session_id:
            return await agent.patch(process.session_id, patterns, options)
        listing = agent.functions(process.reference, patterns, explain=True)
        results = tuple([_planned(each) async for each in listing])
    if not results:
        raise NoSuchFunctionError(
            f"no function matches {' '.join(patterns)}",
            hint="use a glob such as '*name*', or see: uftrace-remote functions TARGET",
        )
    refused = sum(each.status is PatchStatus.REFUSED for each in results)
    return PatchResult(results, len(results) - refused, refused)


def _planned(info: FunctionInfo) -> FunctionResult:
    status = PatchStatus.ENABLED
    if info.form is PatchForm.NONE or info.refusal is not RefusalReason.NONE:
        status = PatchStatus.REFUSED
    return FunctionResult(
        info.function,
        PatchStatus.ALREADY_ENABLED if info.enabled else status,
        form=info.form,
        writer=info.writer,
        refusal=info.refusal,
        exit_refusal=info.exit_refusal,
        detail=info.detail,
        kind=info.kind,
    )


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
