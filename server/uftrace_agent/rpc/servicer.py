"""The RPCs: read the request, call the session layer, write the response.

Errors pass through: `status` gives them their form. Changes go through
`changes`, which does each of them once and writes them down.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator

from uftrace.agent.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    coordination_pb2,
    event_pb2,
    process_pb2,
    session_pb2,
    tracepoint_pb2,
)
from uftrace_agent.errors import InvalidRequestError, NoSuchProcessError
from uftrace_agent.process import listing
from uftrace_agent.process.identity import resolve
from uftrace_agent.process.listing import ProcessDescription
from uftrace_agent.recording.clock import TickClock
from uftrace_agent.rpc import convert
from uftrace_agent.rpc.agent_info import agent_info
from uftrace_agent.rpc.audit_trail import owner_of
from uftrace_agent.rpc.changes import Changes
from uftrace_agent.rpc.handlers import Context
from uftrace_agent.rpc.session_layer import SessionLayer
from uftrace_agent.session.types import ProcessId

# C++ names reach some KiB: this many fit into a client's default 4 MiB.
_FUNCTIONS_PER_MESSAGE = 500


class AgentServicer(agent_pb2_grpc.AgentServiceServicer):
    """`uftrace.agent.v1.AgentService`; agent.proto says what each RPC does.

    Args:
        sessions: The session layer.
        changes: Through which every change goes.
    """

    def __init__(self, sessions: SessionLayer, changes: Changes) -> None:
        self._sessions = sessions
        self._changes = changes
        self._clock = TickClock()
        self._started_unix_ns = time.time_ns()

    async def GetAgentInfo(
        self, request: agent_pb2.GetAgentInfoRequest, context: Context
    ) -> agent_pb2.GetAgentInfoResponse:
        return agent_info(
            self._started_unix_ns,
            len(self._sessions.sessions()),
            self._clock.anchor(),
            await self._sessions.probe_cost(),
            self._sessions.limits,
        )

    async def ListProcesses(
        self, request: process_pb2.ListProcessesRequest, context: Context
    ) -> process_pb2.ListProcessesResponse:
        found = await asyncio.to_thread(
            listing.list_processes, request.name_contains, request.include_unattachable
        )
        return process_pb2.ListProcessesResponse(
            processes=[
                convert.process_info(
                    description, self._sessions.session_of(description.process.pid)
                )
                for description in found
            ]
        )

    async def ListFunctions(
        self, request: tracepoint_pb2.ListFunctionsRequest, context: Context
    ) -> AsyncIterator[tracepoint_pb2.ListFunctionsResponse]:
        process = resolve(convert.process_id(request.process))
        match_count, plans = await self._sessions.list_functions(
            process, tuple(request.patterns), convert.plan_options(request), request.limit
        )
        yield tracepoint_pb2.ListFunctionsResponse(
            match_count=match_count,
            functions=map(convert.function_info, plans[:_FUNCTIONS_PER_MESSAGE]),
        )
        for begin in range(_FUNCTIONS_PER_MESSAGE, len(plans), _FUNCTIONS_PER_MESSAGE):
            chunk = plans[begin : begin + _FUNCTIONS_PER_MESSAGE]
            yield tracepoint_pb2.ListFunctionsResponse(functions=map(convert.function_info, chunk))

    async def Attach(
        self, request: session_pb2.AttachRequest, context: Context
    ) -> session_pb2.AttachResponse:
        named = convert.process_id(request.process)
        options = convert.recording_options(request.recording)
        limits = convert.limit_change(request.limits)
        owner = request.owner or owner_of(context)

        async def attach() -> session_pb2.AttachResponse:
            process = resolve(named)
            outcome = await self._sessions.attach(process, owner, options, limits)
            return convert.attach_response(outcome, _describe(process))

        return await self._changes.make(context, request, f"pid {named.pid}", attach)

    async def Detach(
        self, request: session_pb2.DetachRequest, context: Context
    ) -> session_pb2.DetachResponse:
        session_id = _session_id(request.session_id)

        async def detach() -> session_pb2.DetachResponse:
            if request.if_unused and self._sessions.is_used(session_id):
                return session_pb2.DetachResponse(kept=True)
            return convert.detach_response(await self._sessions.detach(session_id))

        return await self._changes.make(context, request, f"session {session_id}", detach)

    async def Patch(
        self, request: tracepoint_pb2.PatchRequest, context: Context
    ) -> tracepoint_pb2.PatchResponse:
        session_id = _session_id(request.session_id)
        order = convert.patch_order(request, owner_of(context))

        async def patch() -> tracepoint_pb2.PatchResponse:
            return await self._sessions.patch(session_id, order, convert.patch_response)

        return await self._changes.make(context, request, f"session {session_id}", patch)

    async def Unpatch(
        self, request: tracepoint_pb2.UnpatchRequest, context: Context
    ) -> tracepoint_pb2.UnpatchResponse:
        session_id = _session_id(request.session_id)
        patterns, writer = tuple(request.patterns), convert.writer(request.writer)

        async def unpatch() -> tracepoint_pb2.UnpatchResponse:
            return await self._sessions.unpatch(
                session_id, patterns, writer, convert.unpatch_response
            )

        return await self._changes.make(context, request, f"session {session_id}", unpatch)

    async def PreparePatch(
        self, request: coordination_pb2.PreparePatchRequest, context: Context
    ) -> coordination_pb2.PreparePatchResponse:
        session_id = _session_id(request.patch.session_id)
        order = convert.patch_order(request.patch, owner_of(context))

        async def prepare() -> coordination_pb2.PreparePatchResponse:
            coordination = self._sessions.coordination(session_id)
            return await coordination.prepare(order, request.hold_nanos, convert.prepare_response)

        return await self._changes.make(context, request, f"session {session_id}", prepare)

    async def CommitPatch(
        self, request: coordination_pb2.CommitPatchRequest, context: Context
    ) -> coordination_pb2.CommitPatchResponse:
        session_id = _session_id(request.session_id)
        target = f"session {session_id} preparation {request.preparation_id}"

        async def commit() -> coordination_pb2.CommitPatchResponse:
            coordination = self._sessions.coordination(session_id)
            in_ns = coordination.commit(
                request.preparation_id, request.at_monotonic_nanos, request.most_late_nanos
            )
            # It is made when nobody may be there any more to hear of it.
            written = coordination.written(request.preparation_id)
            self._changes.follow(context, request, target, "patch", written)
            return coordination_pb2.CommitPatchResponse(in_nanos=in_ns)

        return await self._changes.make(context, request, target, commit)

    async def AwaitPatch(
        self, request: coordination_pb2.AwaitPatchRequest, context: Context
    ) -> coordination_pb2.AwaitPatchResponse:
        coordination = self._sessions.coordination(_session_id(request.session_id))
        return convert.commit_outcome(await coordination.outcome(request.preparation_id))

    async def AbortPatch(
        self, request: coordination_pb2.AbortPatchRequest, context: Context
    ) -> coordination_pb2.AbortPatchResponse:
        session_id = _session_id(request.session_id)

        async def abort() -> coordination_pb2.AbortPatchResponse:
            count = await self._sessions.coordination(session_id).abort(request.preparation_id)
            return coordination_pb2.AbortPatchResponse(disabled_count=count)

        target = f"session {session_id} preparation {request.preparation_id}"
        return await self._changes.make(context, request, target, abort)

    async def SetLimits(
        self, request: session_pb2.SetLimitsRequest, context: Context
    ) -> session_pb2.SetLimitsResponse:
        session_id = _session_id(request.session_id)
        patterns, change = tuple(request.patterns), convert.limit_change(request.limits)

        async def set_limits() -> session_pb2.SetLimitsResponse:
            outcome = await self._sessions.set_limits(session_id, change, patterns)
            return convert.limits_response(outcome, _describe(outcome.session.process))

        return await self._changes.make(context, request, f"session {session_id}", set_limits)

    async def RenewLease(
        self, request: session_pb2.RenewLeaseRequest, context: Context
    ) -> session_pb2.RenewLeaseResponse:
        session_id, lease = _session_id(request.session_id), convert.lease_order(request.lease)

        async def renew() -> session_pb2.RenewLeaseResponse:
            info = await self._sessions.renew_lease(session_id, lease)
            return session_pb2.RenewLeaseResponse(
                session=convert.session(info, _describe(info.process))
            )

        target = f"session {session_id} lease {lease.name}"
        return await self._changes.make(context, request, target, renew)

    async def ReleaseLease(
        self, request: session_pb2.ReleaseLeaseRequest, context: Context
    ) -> session_pb2.ReleaseLeaseResponse:
        session_id, name, keep = _session_id(request.session_id), request.name, request.keep

        async def release() -> session_pb2.ReleaseLeaseResponse:
            outcome = await self._sessions.release_lease(session_id, name, keep)
            return convert.release_response(outcome, _describe(outcome.session.process))

        target = f"session {session_id} lease {name}"
        return await self._changes.make(context, request, target, release)

    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: Context
    ) -> session_pb2.ListSessionsResponse:
        return session_pb2.ListSessionsResponse(
            sessions=[
                convert.session(info, _describe(info.process)) for info in self._sessions.sessions()
            ]
        )

    async def ListTracepoints(
        self, request: tracepoint_pb2.ListTracepointsRequest, context: Context
    ) -> tracepoint_pb2.ListTracepointsResponse:
        tracepoints = self._sessions.tracepoints(_session_id(request.session_id))
        return tracepoint_pb2.ListTracepointsResponse(
            tracepoints=map(convert.tracepoint, tracepoints)
        )

    async def StreamEvents(
        self, request: event_pb2.StreamEventsRequest, context: Context
    ) -> AsyncIterator[event_pb2.StreamEventsResponse]:
        batches = self._sessions.stream(
            _session_id(request.session_id), request.after_sequence, request.include_buffered
        )
        try:
            async for batch in batches:
                yield convert.events(batch)
        finally:
            # A client that leaves between two batches leaves the generator
            # waiting: the session must not count it as a reader any longer.
            if isinstance(batches, AsyncGenerator):
                await batches.aclose()


def _session_id(text: str) -> str:
    if not text:
        raise InvalidRequestError(
            "the request names no session", hint="attach first; the answer holds the session's id"
        )
    return text


def _describe(process: ProcessId) -> ProcessDescription | None:
    try:
        return listing.describe(resolve(process).pid)
    except NoSuchProcessError:
        return None
