"""Measuring the clocks of many agents: all at once first, then better, few at a time.

Half a round trip bounds what is known of a clock, and of 64 questions that are under way
together each waits for the others here: 32 agents that shared two processors with us were
known to 9 ms (median of `bench/fleet_commit.py`) when they were asked all at once alone.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from uftrace_remote.fleet.agents import measure_clocks
from uftrace_remote.fleet.fan_out import fan_out
from uftrace_remote.fleet.member import Agent

_FIRST_SAMPLES: Final = 2
_MORE_SAMPLES: Final = 3
_FEW: Final = 3
# How long the second round takes at most: for all, and for each.
_SECONDS: Final = 0.5
_SECONDS_PER_AGENT: Final = 0.001


async def measure_first(agent: Agent) -> Agent:
    """Ask who an agent is, and how far its clock is from ours, beside many others.

    Raises:
        UftraceError: As from `measure_clocks`.
    """
    clocks = await measure_clocks(agent.client, _FIRST_SAMPLES)
    agent.info, agent.clock = clocks.info, clocks.monotonic
    return agent


async def measure_better(agents: Iterable[Agent]) -> None:
    """Measure again the clocks that have been measured, as many as there is time for. Near
    agents come first: what is far away gains little."""

    async def again(agent: Agent) -> None:
        found = (await measure_clocks(agent.client, _MORE_SAMPLES)).monotonic
        if agent.clock is None or found.bound_ns < agent.clock.bound_ns:
            agent.clock = found

    await few_at_a_time([agent for agent in agents if agent.clock is not None], again)


async def few_at_a_time(
    agents: Iterable[Agent], measure: Callable[[Agent], Awaitable[None]]
) -> None:
    """Have the clocks of agents measured while nobody else is asked; those that there is no
    time for, and those that do not answer, are left out."""
    near_first = sorted(agents, key=lambda each: each.clock.bound_ns if each.clock else 0)
    until = time.monotonic() + _SECONDS + _SECONDS_PER_AGENT * len(near_first)

    async def in_time(agent: Agent) -> None:
        if time.monotonic() < until:
            await measure(agent)

    await fan_out(near_first, in_time, deadline=_SECONDS, most_at_once=_FEW)
