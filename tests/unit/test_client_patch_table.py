"""What a patch of many processes is told like: who fared alike is one line."""

from __future__ import annotations

import re
from typing import cast

import pytest

from uftrace_remote.agent import AgentClient
from uftrace_remote.cli._patch_fleet import print_patch
from uftrace_remote.cli._plan_fleet import without_place
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.enums import PatchForm, PatchStatus, RefusalReason
from uftrace_remote.errors import ConnectionFailedError
from uftrace_remote.fleet import Agent, Member, Step
from uftrace_remote.fleet.coordinated_patch import FleetPatch, MemberOutcome
from uftrace_remote.preparation import CommitResult
from uftrace_remote.values import Function, FunctionResult, PatchResult, Process, ProcessRef

NOBODY = cast("AgentClient", None)
WORK = FunctionResult(Function("work", module="app", address=0x401000), PatchStatus.ENABLED, 1)


def member(number: int, pause_ns: int = 0) -> Member:
    agent = Agent(Endpoint(f"web{number}"), NOBODY)
    found = Member(agent, Process(ProcessRef(7), "app", "/bin/app"))
    patch = PatchResult((WORK,), 1, longest_pause_ns=pause_ns)
    found.commit = CommitResult(patch, 1, 2, 3)
    return found


def enabled(number: int, pause_ns: int) -> MemberOutcome:
    return MemberOutcome(member(number, pause_ns), Step.CONFIRMED)


def test_198_that_fared_alike_are_one_line_and_the_odd_ones_two(
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcomes = [enabled(n, (n % 9) * 700_000) for n in range(1, 199)]
    for number in (199, 200):
        # Each error names its host.
        error = ConnectionFailedError(f"the agent at web{number}:50051 did not answer in 20 s")
        outcomes.append(MemberOutcome(member(number), Step.NONE, error))
    print_patch(FleetPatch(tuple(outcomes), True, None), 1, None)
    said = capsys.readouterr().out.splitlines()
    assert [re.sub(" +", " ", line).strip() for line in said] == [
        "PROCESSES ENABLED REFUSED LONGEST PAUSE ON STATE",
        # Pauses are never equal: the longest is told.
        "198 1 - 5.600 ms web[1-198] enabled",
        "2 - - - web[199-200] failed: the agent there did not answer in 20 s",
        "patched 198 processes",
    ]


def test_each_has_its_own_line_if_that_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    print_patch(FleetPatch((enabled(1, 0), enabled(2, 5000)), True, None), 1, None, verbose=True)
    said = [re.sub(" +", " ", line).strip() for line in capsys.readouterr().out.splitlines()]
    assert said[1:3] == ["1 1 - none web1:50051:7 enabled", "1 1 - 5.000 us web2:50051:7 enabled"]


def test_where_a_program_lies_is_no_difference() -> None:
    def refused(address: int) -> FunctionResult:
        return FunctionResult(
            Function("work", module="app", address=address, file_address=0x1000),
            PatchStatus.REFUSED,
            refusal=RefusalReason.NO_TRAMPOLINE_SPACE,
            detail=f"pun: its bytes lead to {address + 6:#x}, which is not free",
        )

    def ready(detail: str) -> FunctionResult:
        return FunctionResult(
            Function("work", module="app"),
            PatchStatus.NOT_ENABLED,
            form=PatchForm.NEAR,
            detail=detail,
        )

    assert without_place(refused(0x7F00A8A1CD80)) == without_place(refused(0x7FE5D77C8D80))
    # What stood in the way of a cheaper form is one host's affair; the form is not.
    assert without_place(ready("pun: not free")) == without_place(ready(""))
