"""A process that serves many agents whose one session never stops calling.

    python -m bench.flood STATE_DIR RATE ADDRESS...

What it sends is made up, but the service, its TLS and its messages are the agent's own.
Each address is an agent of RATE million records a second, of eight threads each.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import numpy as np

from tests.support.sessions import WORK, ScriptedSessions
from uftrace_agent.config import AgentConfig, parse_listen_address
from uftrace_agent.logging_setup import set_up_logging
from uftrace_agent.rpc.lifecycle import serve
from uftrace_agent.session.types import ClockAnchor, EventBatch, TracedFunction
from uftrace_agent.state_directory import StateDirectory

THREADS: Final = 8
# As large as batches of an agent are.
RECORDS: Final = 4096
_EACH: Final = RECORDS // THREADS
_DTYPE: Final = np.dtype([("ticks", "<u8"), ("word", "<u8")])


class Flood(ScriptedSessions):
    """Its sessions are what the stream is asked for."""

    rate = 1.0

    async def stream(
        self, session_id: str, after_sequence: int, include_buffered: bool
    ) -> AsyncIterator[EventBatch]:
        """Batches at the rate, each when its last record was written."""
        packed = np.zeros((THREADS, _EACH), _DTYPE)
        # Entry and exit by turns, of one function and one frame.
        packed["word"] = np.resize(np.array([1 << 1, 2 << 1], np.uint64), _EACH) | np.uint64(
            1 << 4 | 0x1234 << 28
        )
        share = np.arange(_EACH) / _EACH
        begin, sequence = time.monotonic_ns(), 0
        period = RECORDS / (self.rate * 1e6)
        due = time.monotonic() + period
        while True:
            await asyncio.sleep(max(due - time.monotonic(), 0))
            due += period
            now = time.monotonic_ns()
            packed["ticks"] = (begin + share * (now - begin)).astype(np.uint64)
            sequence += 1
            yield EventBatch(
                sequence,
                [(100 + tid, "worker", packed[tid].tobytes()) for tid in range(THREADS)],
                watermark_ticks=now,
                functions=[TracedFunction(1, WORK, True)] if sequence == 1 else (),
                anchors=[ClockAnchor(now, now, time.time_ns(), 1e9)],
                records_total=sequence * RECORDS,
                record_count=RECORDS,
            )
            begin = now


async def run(state_dir: Path, rate: float, listen: list[str]) -> None:
    """Serve until SIGTERM."""
    # Nobody reads stdout any more once all addresses are there.
    set_up_logging("console", "error")
    state = StateDirectory(state_dir)
    config = AgentConfig(tuple(map(parse_listen_address, listen)), state.path)
    flood = Flood()
    flood.rate = rate
    await serve(config, state, flood, lambda line: print(line, flush=True))


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
