"""From the first address to the last detach."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import structlog

from uftrace_agent import __version__
from uftrace_agent.config import AgentConfig
from uftrace_agent.rpc.server import AgentServer
from uftrace_agent.rpc.session_layer import SessionLayer
from uftrace_agent.state_directory import StateDirectory

# SIGHUP too: a terminal that closes must not leave processes patched.
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = structlog.stdlib.get_logger(__name__)


async def serve(
    config: AgentConfig,
    state: StateDirectory,
    sessions: SessionLayer,
    announce: Callable[[str], None],
) -> None:
    """Serve until a signal says to end, then detach every session.

    Args:
        config: The agent's settings.
        state: Keys and token.
        sessions: The session layer.
        announce: Told "listening on ADDRESS" for each address, when ready.

    Raises:
        ListenError: Cannot listen on an address.
        StateDirectoryError: A fleet's certificates cannot be used.
        PolicyError: The policy cannot be read.
    """
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end(number: signal.Signals) -> None:
        # A second signal changes nothing: stopping half-way would leave
        # processes patched that nobody looks after.
        _log.info("already ending" if ending.is_set() else "ending", signal=number.name)
        ending.set()

    for number in _ENDING_SIGNALS:
        loop.add_signal_handler(number, end, number)
    try:
        server = AgentServer(config, state, sessions)
        await sessions.adopt()
        addresses = await server.start()
        for address in addresses:
            announce(f"listening on {address}")
        _log.info(
            "agent is ready",
            version=__version__,
            state_dir=str(config.state_dir),
            # Of what the ports show, which may be a fleet's.
            ca_sha256=server.ca_fingerprint,
            other_hosts="uftrace-remote login HOST; uftrace-agent credentials has the tokens",
        )
        if config.insecure:
            _log.warning("no TLS and no token: whoever reaches a port can change every process")
        await ending.wait()
        await server.stop()
        _log.info("agent has ended; every process is as it was")
    finally:
        for number in _ENDING_SIGNALS:
            loop.remove_signal_handler(number)
