"""Leases of commands: whoever vanishes leaves nothing patched."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from uftrace_remote.agent import AgentClient
from uftrace_remote.cli import _output
from uftrace_remote.errors import NoSuchLeaseError, NoSuchSessionError, UftraceError
from uftrace_remote.values import Lease

# How long tracepoints of a command outlive it, at most; renewed three times as often.
_LEASE_NS: Final = 30_000_000_000
_NAME_BYTES: Final = 20


def command_lease(command: str) -> Lease:
    """A lease of one run of a command."""
    return Lease(f"{command}-{_user()}-{secrets.token_hex(3)}", _LEASE_NS)


def _user() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # no such user in this container
        return "unknown"
    return "".join(letter for letter in name if letter.isascii())[:_NAME_BYTES]


@asynccontextmanager
async def renewing(
    agent: AgentClient, session_id: str, lease: Lease | None, where: str = ""
) -> AsyncIterator[None]:
    """Renews a lease while something runs; None: there is none.

    Args:
        agent: Whose.
        session_id: The session.
        lease: The lease.
        where: Which of several hosts it is.
    """
    if lease is None:
        yield
        return
    task = asyncio.create_task(_renew(agent, session_id, lease, where))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _renew(agent: AgentClient, session_id: str, lease: Lease, where: str) -> None:
    while True:
        await asyncio.sleep(lease.duration_ns / 3e9)
        try:
            await agent.renew_lease(session_id, lease)
        except NoSuchLeaseError:
            what = f"{where}: agent or" if where else "this"
            _output.note(
                f"# {what} command stood still for too long: its lease has ended, and its "
                "tracepoints were taken out; start it again"
            )
            return
        except NoSuchSessionError:
            return  # the stream says why
        except UftraceError:
            continue  # the agent is away: the stream waits for it too
