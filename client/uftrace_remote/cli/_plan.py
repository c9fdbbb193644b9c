# What patching would do to a process that is left alone.
from __future__ import annotations

from collections.abc import Sequence

from uftrace_remote.agent import AgentClient
from uftrace_remote.enums import PatchForm, PatchStatus, RefusalReason
from uftrace_remote.errors import NoSuchFunctionError
from uftrace_remote.values import FunctionInfo, FunctionResult, PatchOptions, PatchResult, Process


async def plan_patch(
    agent: AgentClient, process: Process, patterns: Sequence[str], options: PatchOptions
) -> PatchResult:
    """A dry run: what the engine would do is part of the function listing, and a process
    that is not attached to is not touched.

    Raises:
        NoSuchFunctionError: No function matches.
    """
    if process.session_id:
        return await agent.patch(process.session_id, patterns, options)
    listing = agent.functions(process.reference, patterns, explain=True, options=options)
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
