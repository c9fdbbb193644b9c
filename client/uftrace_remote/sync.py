"""One agent, for programs without asyncio: `AgentClient`'s surface, plain calls.

    with SyncAgentClient.connect("web1:50051") as agent:
        process = agent.resolve_process("nginx")
        ...

Calls wait on a thread of the client's own, so that they may be made from any.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from uftrace_remote.agent import DEFAULT_TIMEOUT_SECONDS, AgentClient
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.enums import PatchWriter
from uftrace_remote.preparation import CommitResult, Preparation
from uftrace_remote.target import ProcessSelector
from uftrace_remote.values import (
    AgentInfo,
    AttachResult,
    DetachResult,
    EventBatch,
    FunctionInfo,
    Lease,
    LeaseResult,
    Limits,
    LimitsResult,
    PatchOptions,
    PatchResult,
    Process,
    ProcessRef,
    RecordingOptions,
    Session,
    Tracepoint,
    UnpatchResult,
)

_T = TypeVar("_T")


# An event loop on its own thread: gRPC's asyncio objects belong to one loop,
# and the caller's thread may have none or be busy.
class _LoopThread:
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="uftrace-remote", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[_T]) -> Iterator[_T]:
        try:
            while True:
                try:
                    item = self.run(_next(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self.run(_close(items))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(items: AsyncIterator[_T]) -> _T:
    return await anext(items)


async def _close(items: AsyncIterator[_T]) -> None:
    closer = getattr(items, "aclose", None)
    if closer is not None:
        await closer()


class SyncAgentClient:
    """A connection to one agent; methods are those of `AgentClient`.

    Args:
        address: `HOST[:PORT]`, `unix:PATH`, or an endpoint.
        options: Where certificate and token are; the usual places if None.
        timeout: Seconds, as in `AgentClient`.
    """

    def __init__(
        self,
        address: str | Endpoint,
        options: CredentialOptions | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._runner = _LoopThread()

        async def connect() -> AgentClient:
            return AgentClient.connect(address, options, timeout=timeout)

        try:
            self._client = self._runner.run(connect())
        except BaseException:
            self._runner.close()
            raise

    @classmethod
    def connect(
        cls,
        address: str | Endpoint,
        options: CredentialOptions | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> SyncAgentClient:
        """As `AgentClient.connect`."""
        return cls(address, options, timeout=timeout)

    def __enter__(self) -> SyncAgentClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and its thread."""
        self._runner.run(self._client.close())
        self._runner.close()

    @property
    def endpoint(self) -> Endpoint:
        """Where the agent listens."""
        return self._client.endpoint

    def info(self) -> AgentInfo:
        """As `AgentClient.info`."""
        return self._runner.run(self._client.info())

    def processes(
        self, name_contains: str = "", *, include_unattachable: bool = False
    ) -> tuple[Process, ...]:
        """As `AgentClient.processes`."""
        return self._runner.run(
            self._client.processes(name_contains, include_unattachable=include_unattachable)
        )

    def resolve_process(self, selector: str | ProcessSelector) -> Process:
        """As `AgentClient.resolve_process`."""
        return self._runner.run(self._client.resolve_process(selector))

    def functions(
        self,
        process: ProcessRef,
        patterns: Iterable[str] = (),
        *,
        explain: bool = False,
        limit: int = 0,
    ) -> Iterator[FunctionInfo]:
        """As `AgentClient.functions`."""
        return self._runner.iterate(
            self._client.functions(process, patterns, explain=explain, limit=limit)
        )

    def attach(
        self,
        process: ProcessRef,
        owner: str = "",
        recording: RecordingOptions | None = None,
        limits: Limits | None = None,
    ) -> AttachResult:
        """As `AgentClient.attach`."""
        return self._runner.run(self._client.attach(process, owner, recording, limits))

    def detach(self, session_id: str, *, if_unused: bool = False) -> DetachResult:
        """As `AgentClient.detach`."""
        return self._runner.run(self._client.detach(session_id, if_unused=if_unused))

    def patch(
        self, session_id: str, patterns: Iterable[str], options: PatchOptions | None = None
    ) -> PatchResult:
        """As `AgentClient.patch`."""
        return self._runner.run(self._client.patch(session_id, patterns, options))

    def prepare_patch(
        self,
        session_id: str,
        patterns: Iterable[str],
        options: PatchOptions | None = None,
        hold_seconds: float = 0.0,
    ) -> Preparation:
        """As `AgentClient.prepare_patch`."""
        return self._runner.run(
            self._client.prepare_patch(session_id, patterns, options, hold_seconds)
        )

    def commit_patch(
        self, preparation: Preparation, at_monotonic_ns: int, most_late_seconds: float = 0.0
    ) -> float:
        """As `AgentClient.commit_patch`."""
        return self._runner.run(
            self._client.commit_patch(preparation, at_monotonic_ns, most_late_seconds)
        )

    def await_patch(self, preparation: Preparation) -> CommitResult:
        """As `AgentClient.await_patch`."""
        return self._runner.run(self._client.await_patch(preparation))

    def abort_patch(self, preparation: Preparation) -> int:
        """As `AgentClient.abort_patch`."""
        return self._runner.run(self._client.abort_patch(preparation))

    def resolve_processes(self, selector: str | ProcessSelector) -> tuple[Process, ...]:
        """As `AgentClient.resolve_processes`."""
        return self._runner.run(self._client.resolve_processes(selector))

    def unpatch(
        self,
        session_id: str,
        patterns: Iterable[str] = (),
        writer: PatchWriter = PatchWriter.AUTO,
    ) -> UnpatchResult:
        """As `AgentClient.unpatch`."""
        return self._runner.run(self._client.unpatch(session_id, patterns, writer))

    def sessions(self) -> tuple[Session, ...]:
        """As `AgentClient.sessions`."""
        return self._runner.run(self._client.sessions())

    def renew_lease(self, session_id: str, lease: Lease) -> Session:
        """As `AgentClient.renew_lease`."""
        return self._runner.run(self._client.renew_lease(session_id, lease))

    def release_lease(self, session_id: str, name: str, *, keep: bool = False) -> LeaseResult:
        """As `AgentClient.release_lease`."""
        return self._runner.run(self._client.release_lease(session_id, name, keep=keep))

    def set_limits(
        self, session_id: str, limits: Limits, patterns: Iterable[str] = ()
    ) -> LimitsResult:
        """As `AgentClient.set_limits`."""
        return self._runner.run(self._client.set_limits(session_id, limits, patterns))

    def tracepoints(self, session_id: str) -> tuple[Tracepoint, ...]:
        """As `AgentClient.tracepoints`."""
        return self._runner.run(self._client.tracepoints(session_id))

    def stream(
        self,
        session_id: str,
        *,
        after_sequence: int = 0,
        include_buffered: bool = False,
        reconnect_seconds: float = 10.0,
    ) -> Iterator[EventBatch]:
        """As `AgentClient.stream`."""
        return self._runner.iterate(
            self._client.stream(
                session_id,
                after_sequence=after_sequence,
                include_buffered=include_buffered,
                reconnect_seconds=reconnect_seconds,
            )
        )
