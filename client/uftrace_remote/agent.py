"""One agent, as an asyncio library.

    async with AgentClient.connect("web1:50051") as agent:
        process = await agent.resolve_process("nginx")
        attached = await agent.attach(process.reference)
        await agent.patch(attached.session.session_id, ["ngx_http_*"])
        async for batch in agent.stream(attached.session.session_id):
            ...

`uftrace_remote.sync` has the same for programs without asyncio.
"""

from __future__ import annotations

import getpass
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, TypeVar

import grpc

from uftrace.agent.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    coordination_pb2,
    process_pb2,
    session_pb2,
    tracepoint_pb2,
)
from uftrace_remote import _grpc_errors, _wire
from uftrace_remote._channel import open_channel
from uftrace_remote._resolve import choose_process, choose_processes
from uftrace_remote._stream import OnBreak, StreamRequest, read_events
from uftrace_remote.credentials import CredentialOptions, Credentials, find_credentials
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.enums import PatchWriter
from uftrace_remote.errors import AuthenticationError
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

DEFAULT_TIMEOUT_SECONDS = 10.0

# Planning and writing thousands of sites, and reading the symbols of a large
# program for the first time, take longer than asking for a list.
_HEAVY_FACTOR = 6
# Reading some files for each of a thousand agents is not for nothing.
_LOOK_AGAIN_SECONDS = 5.0

_Answer = TypeVar("_Answer")


class AgentClient:
    """A connection to one agent. Errors are those of `uftrace_remote.errors`.

    Args:
        endpoint: Where the agent listens; errors call it that.
        credentials: Certificate and token.
        timeout: Seconds after which an ordinary request fails; requests that
            plan or patch functions have six times as long.
        look_again: Says what certificate and token are by now. When they have
            changed, new requests go through a new connection; streams that are
            open go on with the old one.
        address: Where it is found, where that is not by its endpoint's name.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        credentials: Credentials,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        look_again: Callable[[], Credentials] | None = None,
        address: Endpoint | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._address = address or endpoint
        self._timeout = timeout
        self._look_again = look_again
        self._looked = time.monotonic()
        self._channels: list[grpc.aio.Channel] = []
        self._use(credentials)

    def _use(self, credentials: Credentials) -> None:
        self._credentials = credentials
        channel, bearer = open_channel(self._address, credentials)
        self._channels.append(channel)
        self._metadata = (*bearer, ("uftrace-owner", default_owner()))
        # The generated service stub has no types.
        make_stub: Any = agent_pb2_grpc.AgentServiceStub
        self._latest_stub: Any = make_stub(channel)

    @property
    def _stub(self) -> Any:
        now = time.monotonic()
        if self._look_again is not None and now - self._looked >= _LOOK_AGAIN_SECONDS:
            self._looked = now
            try:
                credentials = self._look_again()
            except AuthenticationError:
                # Half-replaced, or gone: what we have may still serve.
                credentials = self._credentials
            if credentials != self._credentials:
                self._use(credentials)
        return self._latest_stub

    @classmethod
    def connect(
        cls,
        address: str | Endpoint,
        options: CredentialOptions | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> AgentClient:
        """Prepares a connection; it is made by the first request.

        Args:
            address: `HOST[:PORT]`, `unix:PATH`, or an endpoint.
            options: Where certificate and token are; the usual places if None.
            timeout: As in the class.

        Raises:
            UsageError: The address cannot be read.
            AuthenticationError: No certificate and token were found.
        """
        endpoint = Endpoint.parse(address) if isinstance(address, str) else address

        def find() -> Credentials:
            return find_credentials(endpoint, options or CredentialOptions())

        return cls(endpoint, find(), timeout=timeout, look_again=find)

    async def __aenter__(self) -> AgentClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection. The agent keeps sessions and tracepoints."""
        for channel in self._channels:
            await channel.close()

    async def info(self) -> AgentInfo:
        """Who the agent is and what it can do."""
        request = agent_pb2.GetAgentInfoRequest()
        call = self._stub.GetAgentInfo(request, timeout=self._timeout, metadata=self._metadata)
        return _wire.info_from_wire(await self._answer(call))

    async def processes(
        self, name_contains: str = "", *, include_unattachable: bool = False
    ) -> tuple[Process, ...]:
        """The processes of the host, by rising pid.

        Args:
            name_contains: Keep those whose command name, executable or command
                line contains this.
            include_unattachable: Also kernel threads and zombies.
        """
        request = process_pb2.ListProcessesRequest(
            name_contains=name_contains, include_unattachable=include_unattachable
        )
        call = self._stub.ListProcesses(request, timeout=self._timeout, metadata=self._metadata)
        answer: process_pb2.ListProcessesResponse = await self._answer(call)
        return tuple(_wire.process_from_wire(process) for process in answer.processes)

    async def resolve_process(self, selector: str | ProcessSelector) -> Process:
        """Finds the one process that a pid, a name, `exe=PATH` or another selector means.

        Raises:
            NoSuchProcessError: There is none.
            UsageError: Several fit; the hint lists them.
        """
        wanted = ProcessSelector.parse(selector) if isinstance(selector, str) else selector
        # Also those that cannot be attached to: then the agent says why not.
        everyone = await self.processes(include_unattachable=True)
        return choose_process(wanted, everyone)

    async def resolve_processes(self, selector: str | ProcessSelector) -> tuple[Process, ...]:
        """Finds every process that a selector means: of those that fit, all that
        can be attached to, or all where that is none.

        Raises:
            NoSuchProcessError: None fits.
        """
        wanted = ProcessSelector.parse(selector) if isinstance(selector, str) else selector
        return choose_processes(wanted, await self.processes(include_unattachable=True))

    async def functions(
        self,
        process: ProcessRef,
        patterns: Iterable[str] = (),
        *,
        explain: bool = False,
        limit: int = 0,
        options: PatchOptions | None = None,
    ) -> AsyncIterator[FunctionInfo]:
        """The functions of a process, attached or not.

        Args:
            process: The process.
            patterns: Names, globs, `module!name`, `re:...`; none means all of
                the main executable.
            explain: Also say how each would be patched, or why not.
            limit: Stop after so many; 0 is no limit.
            options: With `explain`: their writer and forms are those of such a patch.
        """
        options = options or PatchOptions()
        request = tracepoint_pb2.ListFunctionsRequest(
            process=_wire.process_ref_to_wire(process),
            patterns=list(patterns),
            explain=explain,
            limit=limit,
            writer=tracepoint_pb2.PatchWriter.Name(options.writer),
            entry_only=options.entry_only,
            allow_multi=options.allow_multi,
        )
        call = self._stub.ListFunctions(request, timeout=self._heavy, metadata=self._metadata)
        match_count = 0
        try:
            async for answer in call:
                match_count = answer.match_count or match_count
                for function in answer.functions:
                    yield _wire.function_info_from_wire(function, match_count)
        except grpc.aio.AioRpcError as error:
            raise _grpc_errors.from_rpc_error(error, str(self.endpoint)) from error
        finally:
            call.cancel()

    async def attach(
        self,
        process: ProcessRef,
        owner: str = "",
        recording: RecordingOptions | None = None,
        limits: Limits | None = None,
    ) -> AttachResult:
        """Holds a process, or joins the session that holds it already.

        Args:
            process: The process.
            owner: Shown to others; `USER@HOST` if empty.
            recording: Ring sizes; the agent's default if None.
            limits: What tracing may cost; the agent's default if None.
        """
        rings = recording or RecordingOptions()
        request = session_pb2.AttachRequest(
            request_id=_request_id(),
            process=_wire.process_ref_to_wire(process),
            owner=owner or default_owner(),
            recording=session_pb2.RecordingOptions(
                ring_bytes=rings.ring_bytes, ring_count=rings.ring_count
            ),
            limits=_wire.limits_to_wire(limits or Limits()),
        )
        call = self._stub.Attach(request, timeout=self._heavy, metadata=self._metadata)
        return _wire.attach_from_wire(await self._answer(call))

    async def detach(self, session_id: str, *, if_unused: bool = False) -> DetachResult:
        """Unpatches everything and leaves the process as it was.

        Args:
            session_id: The session.
            if_unused: Only where nobody uses it: no tracepoint is enabled, no patch is
                prepared, no stream is open.
        """
        request = session_pb2.DetachRequest(
            request_id=_request_id(), session_id=session_id, if_unused=if_unused
        )
        call = self._stub.Detach(request, timeout=self._heavy, metadata=self._metadata)
        return _wire.detach_from_wire(await self._answer(call))

    async def patch(
        self, session_id: str, patterns: Iterable[str], options: PatchOptions | None = None
    ) -> PatchResult:
        """Enables tracepoints.

        Args:
            session_id: The session.
            patterns: Names, globs, `module!name`, `re:...`.
            options: How; the safest way if None.

        Raises:
            NoSuchFunctionError: A pattern matched nothing.
        """
        request = _patch_request(session_id, patterns, options or PatchOptions())
        call = self._stub.Patch(request, timeout=self._heavy, metadata=self._metadata)
        return _wire.patch_from_wire(await self._answer(call))

    async def prepare_patch(
        self,
        session_id: str,
        patterns: Iterable[str],
        options: PatchOptions | None = None,
        hold_seconds: float = 0.0,
        *,
        last_lease: Lease | None = None,
        keep: bool = False,
    ) -> Preparation:
        """Makes everything ready for a patch, and changes no code.

        Args:
            session_id: The session.
            patterns: As for `patch`.
            options: How; the lease counts from the moment of the commit.
            hold_seconds: It is dropped if it is not committed within this time; 0 is the
                agent's default.
            last_lease: What is to hold it when everybody has changed; a policy that does
                not allow that refuses the preparation.
            keep: Likewise: nothing is, it is to stay.

        Raises:
            ConflictError: Somebody else is about to patch the process.
            NoSuchFunctionError: A pattern matched nothing.
            PermissionDeniedError: A policy does not allow it.
        """
        request = coordination_pb2.PreparePatchRequest(
            request_id=_request_id(),
            patch=_patch_request(session_id, patterns, options or PatchOptions()),
            hold_nanos=int(hold_seconds * 1e9),
            last_lease=_wire.lease_to_wire(last_lease),
            keep=keep,
        )
        call = self._stub.PreparePatch(request, timeout=self._heavy, metadata=self._metadata)
        return _wire.preparation_from_wire(session_id, await self._answer(call))

    async def commit_patch(
        self, preparation: Preparation, at_monotonic_ns: int, most_late_seconds: float = 0.0
    ) -> float:
        """Has a prepared patch made at a moment; in how many seconds that is. Answers at once.

        Args:
            preparation: What.
            at_monotonic_ns: The moment, on the CLOCK_MONOTONIC of the agent's host.
            most_late_seconds: Nothing is changed if it cannot be by so long after the
                moment; 0 is the agent's default.

        Raises:
            NotFoundError: It was dropped.
            UsageError: The moment is over, or too far away.
        """
        request = coordination_pb2.CommitPatchRequest(
            request_id=_request_id(),
            session_id=preparation.session_id,
            preparation_id=preparation.preparation_id,
            at_monotonic_nanos=at_monotonic_ns,
            most_late_nanos=int(most_late_seconds * 1e9),
        )
        call = self._stub.CommitPatch(request, timeout=self._timeout, metadata=self._metadata)
        answer: coordination_pb2.CommitPatchResponse = await self._answer(call)
        return answer.in_nanos / 1e9

    async def await_patch(self, preparation: Preparation) -> CommitResult:
        """What became of a commit, once its moment has passed."""
        request = coordination_pb2.AwaitPatchRequest(
            session_id=preparation.session_id, preparation_id=preparation.preparation_id
        )
        call = self._stub.AwaitPatch(request, timeout=self._heavy, metadata=self._metadata)
        return _wire.commit_from_wire(await self._answer(call))

    async def abort_patch(self, preparation: Preparation) -> int:
        """Gives a patch up at any stage; how many functions it had enabled, which are
        disabled again.

        Raises:
            NotFoundError: It was dropped before: nothing of it is left.
            BusyTargetError: The threads did not stop in time: try again.
        """
        request = coordination_pb2.AbortPatchRequest(
            request_id=_request_id(),
            session_id=preparation.session_id,
            preparation_id=preparation.preparation_id,
        )
        call = self._stub.AbortPatch(request, timeout=self._heavy, metadata=self._metadata)
        answer: coordination_pb2.AbortPatchResponse = await self._answer(call)
        return answer.disabled_count

    async def unpatch(
        self,
        session_id: str,
        patterns: Iterable[str] = (),
        writer: PatchWriter = PatchWriter.AUTO,
    ) -> UnpatchResult:
        """Disables tracepoints; all of the session without patterns."""
        request = tracepoint_pb2.UnpatchRequest(
            request_id=_request_id(),
            session_id=session_id,
            patterns=list(patterns),
            writer=tracepoint_pb2.PatchWriter.Name(writer),
        )
        call = self._stub.Unpatch(request, timeout=self._heavy, metadata=self._metadata)
        return _wire.unpatch_from_wire(await self._answer(call))

    async def set_limits(
        self, session_id: str, limits: Limits, patterns: Iterable[str] = ()
    ) -> LimitsResult:
        """Changes what a session may cost.

        Args:
            session_id: The session.
            limits: What is None stays as it is; 0 is no limit.
            patterns: These functions alone; throttled ones may be patched again
                where that raises the limit that they broke.

        Raises:
            NoSuchFunctionError: A pattern matched nothing.
        """
        request = session_pb2.SetLimitsRequest(
            request_id=_request_id(),
            session_id=session_id,
            limits=_wire.limits_to_wire(limits),
            patterns=list(patterns),
        )
        call = self._stub.SetLimits(request, timeout=self._heavy, metadata=self._metadata)
        return _wire.limits_result_from_wire(await self._answer(call))

    async def renew_lease(self, session_id: str, lease: Lease) -> Session:
        """Has a lease end that long from now.

        Raises:
            NoSuchLeaseError: It has ended, and what it alone held is unpatched.
        """
        request = session_pb2.RenewLeaseRequest(
            request_id=_request_id(), session_id=session_id, lease=_wire.lease_to_wire(lease)
        )
        call = self._stub.RenewLease(request, timeout=self._timeout, metadata=self._metadata)
        answer: session_pb2.RenewLeaseResponse = await self._answer(call)
        return _wire.session_from_wire(answer.session)

    async def release_lease(self, session_id: str, name: str, *, keep: bool = False) -> LeaseResult:
        """Ends a lease: what it alone holds is unpatched, or stays with `keep`.

        Raises:
            NoSuchLeaseError: It has ended before.
        """
        request = session_pb2.ReleaseLeaseRequest(
            request_id=_request_id(), session_id=session_id, name=name, keep=keep
        )
        call = self._stub.ReleaseLease(request, timeout=self._heavy, metadata=self._metadata)
        return _wire.lease_result_from_wire(await self._answer(call))

    async def sessions(self) -> tuple[Session, ...]:
        """The sessions of the agent, oldest first."""
        request = session_pb2.ListSessionsRequest()
        call = self._stub.ListSessions(request, timeout=self._timeout, metadata=self._metadata)
        answer: session_pb2.ListSessionsResponse = await self._answer(call)
        return tuple(_wire.session_from_wire(session) for session in answer.sessions)

    async def tracepoints(self, session_id: str) -> tuple[Tracepoint, ...]:
        """The tracepoints of a session, enabled or throttled, by rising function id."""
        request = tracepoint_pb2.ListTracepointsRequest(session_id=session_id)
        call = self._stub.ListTracepoints(request, timeout=self._timeout, metadata=self._metadata)
        answer: tracepoint_pb2.ListTracepointsResponse = await self._answer(call)
        return tuple(_wire.tracepoint_from_wire(each) for each in answer.tracepoints)

    def stream(
        self,
        session_id: str,
        *,
        after_sequence: int = 0,
        include_buffered: bool = False,
        reconnect_seconds: float = 10.0,
        on_break: OnBreak | None = None,
    ) -> AsyncIterator[EventBatch]:
        """The events of a session, until a batch says why the stream ends.

        A broken connection is made again and the stream goes on after the last
        batch that came.

        Args:
            session_id: The session.
            after_sequence: Go on after this batch of an earlier stream.
            include_buffered: Begin with what the rings hold from before.
            reconnect_seconds: How long to try to get a broken stream back.
            on_break: Told when the connection breaks, and again when a try to get it
                back fails.

        Raises:
            StreamBrokenError: It could not be got back.
        """
        request = StreamRequest(
            session_id, after_sequence, include_buffered, reconnect_seconds, on_break
        )
        return read_events(
            lambda message: self._stub.StreamEvents(message, metadata=self._metadata),
            request,
            str(self.endpoint),
        )

    @property
    def _heavy(self) -> float:
        return self._timeout * _HEAVY_FACTOR

    async def _answer(self, call: Awaitable[_Answer]) -> _Answer:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise _grpc_errors.from_rpc_error(error, str(self.endpoint)) from error


def default_owner() -> str:
    """`USER@HOST` of this client."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A uid without a passwd entry, as containers have.
        user = "unknown"
    owner = f"{user}@{socket.gethostname()}"
    # It travels as gRPC metadata, which is ASCII.
    return owner.encode("ascii", "replace").decode()


def _patch_request(
    session_id: str, patterns: Iterable[str], options: PatchOptions
) -> tracepoint_pb2.PatchRequest:
    return tracepoint_pb2.PatchRequest(
        request_id=_request_id(),
        session_id=session_id,
        patterns=list(patterns),
        writer=tracepoint_pb2.PatchWriter.Name(options.writer),
        entry_only=options.entry_only,
        all_or_nothing=options.all_or_nothing,
        dry_run=options.dry_run,
        stop_deadline_nanos=options.stop_deadline_ns,
        allow_multi=options.allow_multi,
        limits=_wire.limits_to_wire(options.limits),
        lease=_wire.lease_to_wire(options.lease),
        pending=options.pending,
    )


def _request_id() -> str:
    return str(uuid.uuid4())
