"""What `patch`, `live` and `record` share: hold a process, patch it, leave it as it was."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from uftrace_remote.agent import AgentClient
from uftrace_remote.cli import _output
from uftrace_remote.cli._progress import spinner
from uftrace_remote.cli._refusals import print_refusals
from uftrace_remote.enums import EndReason, PatchStatus
from uftrace_remote.errors import (
    ConflictError,
    NoSuchSessionError,
    PartialFailureError,
    StreamBrokenError,
    TargetGoneError,
    UftraceError,
)
from uftrace_remote.values import (
    DetachResult,
    EventBatch,
    FunctionResult,
    PatchOptions,
    PatchResult,
    Process,
    Session,
)

# The agent says its clock in the first batch of a stream; a batch comes at
# least every second.
_FIRST_BATCH_SECONDS = 3.0

_QUEUED_BATCHES = 64

_CANCEL_SECONDS = 1.0
# Said within three seconds, by consumers that look some times a second.
SILENCE_SECONDS = 2.0

_ACTIVE = (PatchStatus.ENABLED, PatchStatus.ALREADY_ENABLED)


@dataclass(frozen=True, slots=True)
class Hold:
    """A process that is held for one command.

    Attributes:
        created: Whether this command attached, so that it has to detach.
    """

    agent: AgentClient
    process: Process
    session: Session
    created: bool

    @property
    def session_id(self) -> str:
        """The session."""
        return self.session.session_id


async def hold(agent: AgentClient, process: Process) -> Hold:
    """Attaches, or joins the session that is there."""
    with spinner(f"attaching to {process.pid}"):
        attached = await agent.attach(process.reference)
    return Hold(agent, process, attached.session, attached.created)


async def patch_functions(
    held: Hold, patterns: Sequence[str], options: PatchOptions
) -> PatchResult:
    """Enables tracepoints.

    Raises:
        PartialFailureError: Nothing was enabled, or one function was refused
            and all were asked for; refusals are printed before.
    """
    with spinner("patching"):
        result = await held.agent.patch(held.session_id, patterns, options)
    refused = [each for each in result.results if each.status is PatchStatus.REFUSED]
    if refused and options.all_or_nothing:
        print_refusals(result.results)
        raise PartialFailureError(
            f"{_output.plural(len(refused), 'function')} refused; nothing was patched",
            hint="leave out --all-or-nothing, or name functions that can be patched",
        )
    if result.pending_patterns:
        return result
    if not any(each.status in _ACTIVE for each in result.results):
        print_refusals(result.results)
        raise PartialFailureError(
            f"none of {_output.plural(len(result.results), 'function')} could be patched",
            hint="the lines above say why; `functions --explain` says more",
        )
    return result


def active_ids(results: Iterable[FunctionResult]) -> frozenset[int]:
    """The ids of the functions that are traced after a request."""
    return frozenset(each.function_id for each in results if each.status in _ACTIVE)


async def release(held: Hold, patched: PatchResult | None) -> DetachResult | None:
    """Undoes what this command did: detaches if it attached, else unpatches its own.

    Functions that were enabled before by somebody else stay enabled. An agent
    or target that is gone needs nothing: the agent cleans up by itself.
    """
    try:
        if held.created:
            return await held.agent.detach(held.session_id)
        await unpatch_own(held, patched)
    except (NoSuchSessionError, TargetGoneError):
        pass
    return None


async def unpatch_own(held: Hold, patched: PatchResult | None) -> None:
    """Unpatches the functions that a request enabled."""
    if patched is None:
        return
    own = [each for each in patched.results if each.status is PatchStatus.ENABLED]
    if not own:
        return
    if held.created:
        await held.agent.unpatch(held.session_id)
        return
    # Names become patterns: a glob character in them (`operator*`) is escaped.
    names = sorted({glob.escape(each.function.qualified_name) for each in own})
    await held.agent.unpatch(held.session_id, names)


@asynccontextmanager
async def releasing(held: Hold, keep: bool = False) -> AsyncIterator[list[PatchResult]]:
    """Whatever happens inside, the process is left as it was found.

    The caller puts the patch results into the list. With `keep`, an orderly
    end leaves everything as it is; an error does not.
    """
    patched: list[PatchResult] = []
    try:
        yield patched
    except BaseException:
        with contextlib.suppress(UftraceError):
            await asyncio.shield(release(held, patched[0] if patched else None))
        raise
    if not keep:
        await release(held, patched[0] if patched else None)


class BatchPump:
    """Reads a stream ahead of its consumer, so that a slow one is noticed.

    Args:
        batches: The stream; closed with the pump.
        on_silence: Told when nothing has come for too long; None prints a line.

    Attributes:
        waiting: Batches that were read and not consumed.
        latest: When something came last, in seconds of `time.monotonic()`.
    """

    def __init__(
        self,
        batches: AsyncIterator[EventBatch],
        on_silence: Callable[[], None] | None = None,
    ) -> None:
        self._batches = batches
        self._on_silence = on_silence or _note_silence
        self._queue: asyncio.Queue[EventBatch | BaseException | None] = asyncio.Queue(
            _QUEUED_BATCHES
        )
        self._first = asyncio.Event()
        self.latest = time.monotonic()
        self._silent = False
        self._task = asyncio.create_task(self._read())

    @property
    def waiting(self) -> int:
        """Batches that were read and not consumed."""
        return self._queue.qsize()

    @property
    def silent_seconds(self) -> float:
        """How long nothing has come, not even a heartbeat; 0 while something waits."""
        return 0.0 if self._queue.qsize() else time.monotonic() - self.latest

    async def wait_for_first(self) -> None:
        """Waits until the stream runs, for a bounded time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_BATCH_SECONDS):
                await self._first.wait()

    async def next(self, timeout: float) -> EventBatch | None:
        """The next batch; None after the last.

        Raises:
            TimeoutError: None came in time.
            UftraceError: The stream broke.
        """
        if self._queue.empty():
            self._note_silence()
            async with asyncio.timeout(timeout):
                item = await self._queue.get()
        else:
            item = self._queue.get_nowait()
            # Nothing was waited for: let the reader run in between.
            await asyncio.sleep(0)
        if isinstance(item, BaseException):
            raise item
        return item

    # The agent sends a heartbeat every second: without one for longer than
    # that, something is wrong, and the stream is being got back.
    def _note_silence(self) -> None:
        silent = self.silent_seconds > SILENCE_SECONDS
        if silent and not self._silent:
            self._on_silence()
        self._silent = silent

    async def close(self) -> None:
        """Ends the stream."""
        while not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_CANCEL_SECONDS)

    async def _read(self) -> None:
        try:
            async with aclosing(self._batches) as batches:  # type: ignore[type-var]
                async for batch in batches:
                    self._first.set()
                    self.latest = time.monotonic()
                    await self._queue.put(batch)
        except UftraceError as error:
            await self._queue.put(error)
        else:
            await self._queue.put(None)
        finally:
            self._first.set()


def _note_silence() -> None:
    _output.note("# nothing from the agent for some seconds; waiting for it")


def end_error(batch: EventBatch) -> UftraceError | None:
    """What the end of a stream means for the exit code; None where it is in order."""
    detail = f": {batch.end_detail}" if batch.end_detail else ""
    if batch.end is EndReason.PROCESS_EXITED:
        if "signal" in batch.end_detail:
            return TargetGoneError(f"the target died{detail}", reason="TARGET_DIED")
        return None
    if batch.end is EndReason.PROCESS_EXECUTED:
        return TargetGoneError(
            f"the target ran another program{detail}",
            reason="TARGET_EXECUTED",
            hint="attach again to trace the new program",
        )
    if batch.end is EndReason.AGENT_SHUTDOWN:
        return StreamBrokenError(
            f"the agent was stopped{detail}",
            reason="AGENT_SHUTDOWN",
            hint="it has restored the target; start it again to go on",
        )
    return ConflictError(
        f"somebody else detached from the process{detail}", reason="DETACHED_BY_ANOTHER"
    )


def describe_end(last: EventBatch) -> str:
    """Why a stream ended, in words."""
    words = {
        EndReason.DETACHED: "somebody detached",
        EndReason.PROCESS_EXITED: "the process ended",
        EndReason.PROCESS_EXECUTED: "the process ran another program",
        EndReason.AGENT_SHUTDOWN: "the agent was stopped",
    }.get(last.end, "the agent closed the stream")
    return f"{words}: {last.end_detail}" if last.end_detail else words
