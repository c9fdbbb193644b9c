# One command on every process of a fleet that is held, each for itself: no moment is agreed on.
from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import click

from uftrace_remote.agent import AgentClient
from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._progress import spinner
from uftrace_remote.cli._settings import Settings, run
from uftrace_remote.errors import NoSuchSessionError, UftraceError
from uftrace_remote.fleet.address import FleetTarget
from uftrace_remote.fleet.fan_out import Outcome, fan_out
from uftrace_remote.fleet.member import Agent, Member
from uftrace_remote.target import ProcessSelector
from uftrace_remote.values import Process

_T = TypeVar("_T")
_Place = TypeVar("_Place", "Place", Member)

# Setting thousands of sites back takes longer than an ordinary answer.
_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """A session of an agent."""

    agent: Agent
    pid: int
    session_id: str

    def __str__(self) -> str:
        return f"{self.agent.endpoint}:{self.pid}"


async def find_sessions(agent: Agent, selector: ProcessSelector) -> list[Place]:
    """The sessions of the processes that are meant.

    A pid is looked up among the sessions first: its process may have ended.

    Raises:
        NoSuchSessionError: Nobody holds any of them.
    """
    sessions = await agent.client.sessions()
    pids = {selector.pid}
    if not any(session.process.pid in pids for session in sessions):
        pids = {each.pid for each in await agent.client.resolve_processes(selector)}
    held = [
        Place(agent, session.process.pid, session.session_id)
        for session in sessions
        if session.process.pid in pids
    ]
    if not held:
        raise NoSuchSessionError(
            f"no process of {selector} is attached to",
            hint="see the sessions with: uftrace-remote status HOST",
        )
    return held


def on_every_session(
    settings: Settings,
    target: str,
    ask: Callable[[AgentClient, str], Awaitable[_T]],
    describe: Callable[[_T], str],
    *,
    what: str,
    as_json: bool,
) -> None:
    """Does something to every session of a TARGET of several hosts, and tells what came of it.

    Args:
        settings: The global options.
        target: What the user wrote.
        ask: Does it, to a session by id.
        describe: An answer in words; equal ones become one line.
        what: What is being done, for the spinner.
        as_json: Print JSON.

    Raises:
        UftraceError: It failed somewhere; all is printed before.
    """
    where = FleetTarget.parse(target)
    _on_every(
        settings,
        where,
        lambda agent: find_sessions(agent, where.process),
        lambda place: ask(place.agent.client, place.session_id),
        describe,
        what=what,
        as_json=as_json,
    )


def on_every_process(
    settings: Settings,
    target: str,
    ask: Callable[[AgentClient, Process], Awaitable[_T]],
    describe: Callable[[_T], str],
    *,
    what: str,
    as_json: bool,
) -> None:
    """The same for every process, held or not."""
    where = FleetTarget.parse(target)

    async def find(agent: Agent) -> list[Member]:
        found = await agent.client.resolve_processes(where.process)
        return [Member(agent, process) for process in found]

    _on_every(
        settings,
        where,
        find,
        lambda member: ask(member.agent.client, member.process),
        describe,
        what=what,
        as_json=as_json,
    )


def _on_every(
    settings: Settings,
    where: FleetTarget,
    find: Callable[[Agent], Awaitable[list[_Place]]],
    ask: Callable[[_Place], Awaitable[_T]],
    describe: Callable[[_T], str],
    *,
    what: str,
    as_json: bool,
) -> None:
    async def work() -> tuple[Sequence[Outcome[_Place, _T]], _fleet.Failures]:
        async with _fleet.open_fleet(settings, where) as fleet:
            found = await fleet.ask(find)
            places = [place for each in found.values for place in each]
            outcomes = await fan_out(places, ask, deadline=_SECONDS, name=lambda place: place.agent)
            return outcomes, found.failures

    with spinner(what):
        outcomes, unreached = run(work)
    failures = [(each.host.agent.endpoint, each.error) for each in outcomes if each.error]
    failures += unreached
    if as_json:
        answers = [_to_json(str(each.host), each.value, each.error) for each in outcomes]
        answers += [_to_json(str(host), None, error) for host, error in unreached]
        _output.print_json(answers)
    else:
        _print(outcomes, describe)
        _fleet.note_failures(failures)
    count = len(outcomes) + len(unreached)
    _fleet.raise_failures([error for _, error in failures], count, "processes")


def _print(outcomes: Sequence[Outcome[_Place, _T]], describe: Callable[[_T], str]) -> None:
    groups: dict[str, list[_Place]] = {}
    for each in outcomes:
        if each.value is not None:
            groups.setdefault(describe(each.value), []).append(each.host)
    for words, places in sorted(groups.items(), key=lambda each: -len(each[1])):
        where = str(places[0])
        if len(places) > 1:
            hosts = _fleet.fold(place.agent.endpoint for place in places)
            where = f"{hosts} ({len(places):,} processes)"
        click.echo(f"{where}: {words}")


def _to_json(where: str, answer: object, error: UftraceError | None) -> dict[str, object]:
    return {"process": where, "answer": answer, "error": _fleet.error_json(error)}
