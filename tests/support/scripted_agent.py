"""A process that serves a scripted session layer, for what signals do to an agent.

Run as `python -m tests.support.scripted_agent STATE_DIR ADDRESS...`. It prints
"shutdown" when the session layer is told to leave every process, and takes as
long for it as its standard input stays open.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.support.sessions import ScriptedSessions
from uftrace_agent.config import AgentConfig, parse_listen_address
from uftrace_agent.rpc.lifecycle import serve
from uftrace_agent.state_directory import StateDirectory


class SlowSessions(ScriptedSessions):
    async def shutdown(self) -> None:
        print("shutdown", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await super().shutdown()
        print("restored", flush=True)


async def run(state_dir: Path, listen: list[str]) -> None:
    state = StateDirectory(state_dir)
    config = AgentConfig(tuple(map(parse_listen_address, listen)), state.path)
    await serve(config, state, SlowSessions(), lambda line: print(line, flush=True))


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), sys.argv[2:]))
