"""Refusals in words: why a function is not patched, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from uftrace_remote.cli import _output
from uftrace_remote.enums import PatchStatus, RefusalReason
from uftrace_remote.values import FunctionResult

# Reason: (why, what to do).
_WORDS: dict[RefusalReason, tuple[str, str]] = {
    RefusalReason.TOO_SHORT: (
        "no instruction of it can hold a jump",
        "trace its callers instead",
    ),
    RefusalReason.SHARED_TEXT: (
        "its code is mapped shared: a change would reach the file",
        "nothing can be done while it is mapped that way",
    ),
    RefusalReason.ANONYMOUS_CODE: ("its code is in no file (JIT)", "trace the runtime instead"),
    RefusalReason.NOT_IN_TEXT: (
        "its address is not in executable memory",
        "check that the symbols belong to this binary",
    ),
    RefusalReason.IFUNC_RESOLVER: (
        "it only chooses an implementation",
        "name the implementation, such as *_avx2*",
    ),
    RefusalReason.PLT_STUB: ("it is a PLT stub", "name the function in its own module: lib!name"),
    RefusalReason.FOREIGN_PATCH: (
        "a debugger, uprobe or another tracer has changed it",
        "remove the breakpoint or probe and try again",
    ),
    RefusalReason.UNDECODABLE: (
        "its first bytes are no known instruction",
        "is it data in the text, or a very new instruction?",
    ),
    RefusalReason.UNMOVABLE_INSTRUCTION: (
        "its first instruction cannot run elsewhere",
        "trace its callers instead",
    ),
    RefusalReason.NO_TRAMPOLINE_SPACE: (
        "no free address is in reach of its instruction",
        "try --writer stop",
    ),
    RefusalReason.OVERLAPS_NEIGHBOUR: (
        "it shares bytes with a neighbour that is patched",
        "unpatch the neighbour first",
    ),
    RefusalReason.RESERVED: ("the agent itself needs it", "trace its callers instead"),
    RefusalReason.NOT_FOUND: ("it is not there any more", "list the functions again"),
    RefusalReason.MODULE_REPLACED: (
        "its file was replaced on disk since the program started",
        "restart the program, or put the old file back",
    ),
    RefusalReason.WRITER_UNSUITABLE: (
        "the chosen writer cannot make this change",
        "use --writer auto or --writer stop",
    ),
    RefusalReason.TABLE_FULL: (
        "the session's table of tracepoints is full",
        "unpatch what is no longer needed, or choose fewer functions",
    ),
    RefusalReason.RETURNS_TWICE: ("it may return more than once", "entries are traced"),
    RefusalReason.READS_RETURN_ADDRESS: (
        "it reads its own return address",
        "entries are traced",
    ),
    RefusalReason.MOVING_STACKS: ("its runtime moves or walks stacks", "entries are traced"),
    RefusalReason.SHADOW_STACK: ("the process has shadow stacks", "entries are traced"),
    RefusalReason.UNWINDER_NOT_HOOKABLE: (
        "exceptions may pass and the unwinder cannot be taught",
        "entries are traced",
    ),
    RefusalReason.RESTARTABLE_SEQUENCE: (
        "it lies in a restartable sequence",
        "trace its callers instead",
    ),
    RefusalReason.STOP_TIMED_OUT: (
        "the threads could not be stopped in time; nothing was changed",
        "try again",
    ),
    RefusalReason.PROCESS_GONE: ("the process ended", ""),
    RefusalReason.IRREGULAR_FRAME: (
        "it is jumped to with a frame in place",
        "entries are traced",
    ),
    RefusalReason.OVER_BUDGET: (
        "it cost more than is allowed and was taken out",
        "raise its limit: uftrace-remote budget TARGET FUNC --cpu 50%, then patch it again",
    ),
    RefusalReason.UNKNOWN: ("a reason that this client does not know", "update the client"),
}


def describe(reason: RefusalReason) -> tuple[str, str]:
    """Why, and what to do; both without a full stop."""
    return _WORDS.get(reason, ("no reason was given", ""))


def print_refusals(results: Sequence[FunctionResult], *, names: int = 3) -> None:
    """Refusals and lost exits grouped by reason, on stderr.

    Args:
        results: All results of a request.
        names: How many functions to name for each reason.
    """
    refused = [each for each in results if each.status is PatchStatus.REFUSED]
    for line in _grouped(refused, "not patched", lambda each: each.refusal, names):
        _output.note(line)
    entry_only = [
        each
        for each in results
        if each.status in (PatchStatus.ENABLED, PatchStatus.ALREADY_ENABLED)
        and each.exit_refusal is not RefusalReason.NONE
    ]
    for line in _grouped(entry_only, "entry only", lambda each: each.exit_refusal, names):
        _output.note(line)
    conflicts = [each for each in results if each.status is PatchStatus.CONFLICT]
    if conflicts:
        _output.note(
            f"  {_output.plural(len(conflicts), 'function')} left alone: somebody else changed "
            f"them since ({_some([each.function.name for each in conflicts], names)})"
        )


def _grouped(
    results: Sequence[FunctionResult],
    title: str,
    reason_of: Callable[[FunctionResult], RefusalReason],
    names: int,
) -> list[str]:
    lines = []
    for reason, count in Counter(map(reason_of, results)).most_common():
        why, advice = describe(reason)
        those = [each for each in results if reason_of(each) is reason]
        examples = _some([each.function.name for each in those], names)
        details = {each.detail for each in those}
        if reason is RefusalReason.FOREIGN_PATCH and len(details) == 1 and "" not in details:
            # Whose it looks like; that says what to do, too.
            (why,), advice = details, ""
        lines.append(
            f"  {_output.plural(count, 'function')} {title}: {why} ({examples})"
            + (f"; {advice}" if advice else "")
        )
    return lines


def _some(names: Sequence[str], limit: int) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more:,} more" if more > 0 else "")
