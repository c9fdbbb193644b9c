"""`functions`: the functions of a process, and how each would be patched."""

from __future__ import annotations

from collections.abc import Sequence

import click

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._functions_fleet import list_fleet_functions
from uftrace_remote.cli._options import json_option
from uftrace_remote.cli._progress import spinner
from uftrace_remote.cli._refusals import describe
from uftrace_remote.cli._settings import Settings, pass_settings, run
from uftrace_remote.enums import PatchForm, RefusalReason, SiteKind
from uftrace_remote.errors import NoSuchFunctionError
from uftrace_remote.values import FunctionInfo

_SITES = {
    SiteKind.PLAIN: "-",
    SiteKind.MCOUNT_CALL: "mcount",
    SiteKind.FENTRY_CALL: "fentry",
    SiteKind.FENTRY_NOP: "fentry nop",
    SiteKind.PROFILE_CALLS: "cyg_profile",
    SiteKind.PATCHABLE_NOPS: "nops",
    SiteKind.SLEDS: "xray",
}


@click.command()
@click.argument("target")
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("--explain", is_flag=True, help="Say how each would be patched, or why not.")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="Stop after so many.")
@json_option
@pass_settings
def functions(
    settings: Settings,
    target: str,
    patterns: tuple[str, ...],
    explain: bool,
    limit: int,
    as_json: bool,
) -> None:
    """List the functions of a process; without PATTERN those of the main executable."""
    if _fleet.is_fleet_target(target):
        list_fleet_functions(
            settings,
            target,
            patterns,
            explain=explain,
            limit=limit,
            as_json=as_json,
            print_functions=lambda found: _print(found, explain, settings.color),
        )
        return
    where = settings.target(target)

    async def work() -> list[FunctionInfo]:
        async with settings.connect(where.endpoint) as agent:
            process = await agent.resolve_process(where.process)
            listing = agent.functions(process.reference, patterns, explain=explain, limit=limit)
            return [each async for each in listing]

    with spinner("reading symbols"):
        found = run(work)
    if not found and patterns:
        raise NoSuchFunctionError(
            f"no function matches {' '.join(patterns)}",
            hint="use a glob such as '*name*', or name the module: libfoo*!name",
        )
    if as_json:
        _output.print_json(found)
        return
    _print(found, explain, settings.color)


def _print(found: Sequence[FunctionInfo], explain: bool, color: bool | None) -> None:
    columns = [("ADDRESS", "right"), ("SIZE", "right"), ("MODULE", "left")]
    if explain:
        columns += [("SITE", "left"), ("FORM", "left"), ("WRITER", "left"), ("EXIT", "left")]
    columns.append(("FUNCTION", "left"))
    _output.print_table(columns, (_row(each, explain) for each in found), color=color)
    total = found[0].match_count if found else 0
    if total > len(found):
        _output.note(f"{len(found):,} of {total:,} functions; --limit shows more")


def _row(info: FunctionInfo, explain: bool) -> tuple[str, ...]:
    function = info.function
    head = (f"{function.address:x}", str(function.size or "?"), function.module)
    name = function.name + (" *" if info.enabled else "")
    if not explain:
        return (*head, name)
    site = _SITES.get(info.kind, "-")
    if info.form is PatchForm.NONE:
        why, advice = describe(info.refusal)
        words = info.detail or "; ".join(filter(None, (why, advice)))
        return (*head, site, "no", "-", "-", f"{name}  ({words})")
    exits = "yes" if info.exit_refusal is RefusalReason.NONE else "no"
    detail = f"  ({info.detail})" if info.detail else ""
    return (*head, site, info.form.name.lower(), info.writer.name.lower(), exits, name + detail)
