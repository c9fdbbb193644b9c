# The session that holds a process, dead or alive.
from __future__ import annotations

from uftrace_remote.agent import AgentClient
from uftrace_remote.errors import NoSuchSessionError
from uftrace_remote.target import ProcessSelector
from uftrace_remote.values import Session


async def find_session(agent: AgentClient, selector: ProcessSelector) -> Session:
    """Finds the session of a process.

    A pid is looked up among the sessions first: its process may have ended.

    Raises:
        NoSuchSessionError: Nobody holds it.
    """
    sessions = await agent.sessions()
    pid = selector.pid
    if not pid or all(session.process.pid != pid for session in sessions):
        pid = (await agent.resolve_process(selector)).pid
    for session in sessions:
        if session.process.pid == pid:
            return session
    raise NoSuchSessionError(
        f"process {pid} is not attached to", hint="see the sessions with: uftrace-remote status"
    )
