"""The ledger alone: one change for each request id."""

from __future__ import annotations

import asyncio

import pytest

from uftrace_agent.errors import BusyTargetError, InvalidRequestError
from uftrace_agent.rpc.idempotency import RequestLedger


class Counter:
    """An operation that counts how often it runs."""

    def __init__(self) -> None:
        self.runs = 0
        self.may_finish = asyncio.Event()
        self.may_finish.set()

    async def __call__(self) -> int:
        self.runs += 1
        await self.may_finish.wait()
        return self.runs


async def test_the_same_request_gets_the_same_answer():
    ledger: RequestLedger[int] = RequestLedger()
    operation = Counter()
    answers = [await ledger.once("id", b"x", operation) for _ in range(3)]
    assert (answers, operation.runs) == ([1, 1, 1], 1)


async def test_another_id_is_another_change():
    ledger: RequestLedger[int] = RequestLedger()
    operation = Counter()
    assert await ledger.once("a", b"x", operation) == 1
    assert await ledger.once("b", b"x", operation) == 2


async def test_duplicates_wait_for_the_first():
    ledger: RequestLedger[int] = RequestLedger()
    operation = Counter()
    operation.may_finish.clear()
    waiting = [asyncio.create_task(ledger.once("id", b"x", operation)) for _ in range(5)]
    await asyncio.sleep(0)
    operation.may_finish.set()
    assert await asyncio.gather(*waiting) == [1] * 5


async def test_an_error_is_an_answer_too():
    ledger: RequestLedger[int] = RequestLedger()
    runs = []

    async def fail() -> int:
        runs.append(1)
        raise BusyTargetError("threads did not stop")

    for _ in range(2):
        with pytest.raises(BusyTargetError):
            await ledger.once("id", b"x", fail)
    assert len(runs) == 1


async def test_an_id_is_for_one_request_only():
    ledger: RequestLedger[int] = RequestLedger()
    await ledger.once("id", b"x", Counter())
    with pytest.raises(InvalidRequestError) as caught:
        await ledger.once("id", b"y", Counter())
    assert caught.value.reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("request_id", ["", "x" * 129])
async def test_an_id_must_be_there_and_short(request_id):
    ledger: RequestLedger[int] = RequestLedger()
    with pytest.raises(InvalidRequestError) as caught:
        await ledger.once(request_id, b"x", Counter())
    assert caught.value.reason == "REQUEST_ID_MISSING"


async def test_a_change_goes_on_when_its_caller_leaves():
    # GIVEN an operation that is under way
    ledger: RequestLedger[int] = RequestLedger()
    operation = Counter()
    operation.may_finish.clear()
    caller = asyncio.create_task(ledger.once("id", b"x", operation))
    await asyncio.sleep(0)
    # WHEN its caller is cancelled, as by a deadline
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    operation.may_finish.set()
    # THEN it is carried out, and a second try gets its answer
    assert await ledger.once("id", b"x", operation) == 1
    assert operation.runs == 1


async def test_drain_waits_for_what_has_begun():
    ledger: RequestLedger[int] = RequestLedger()
    operation = Counter()
    operation.may_finish.clear()
    caller = asyncio.create_task(ledger.once("id", b"x", operation))
    await asyncio.sleep(0)
    draining = asyncio.create_task(ledger.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    operation.may_finish.set()
    await draining
    assert await caller == 1


async def test_the_oldest_finished_request_is_forgotten_first():
    ledger: RequestLedger[int] = RequestLedger(capacity=2)
    operation = Counter()
    for request_id in "abc":
        await ledger.once(request_id, b"x", operation)
    await asyncio.sleep(0)
    assert await ledger.once("c", b"x", operation) == 3
    assert await ledger.once("a", b"x", operation) == 4


async def test_what_is_under_way_is_never_forgotten():
    ledger: RequestLedger[int] = RequestLedger(capacity=1)
    slow = Counter()
    slow.may_finish.clear()
    caller = asyncio.create_task(ledger.once("slow", b"x", slow))
    await asyncio.sleep(0)
    for request_id in "abc":
        await ledger.once(request_id, b"x", Counter())
    slow.may_finish.set()
    assert await ledger.once("slow", b"x", slow) == 1
    assert await caller == 1
    assert slow.runs == 1


async def test_answers_are_forgotten_by_their_weight_too():
    ledger: RequestLedger[bytes] = RequestLedger(weigh=len, most_bytes=100)
    carried_out = []

    async def answer(name: str, size: int) -> bytes:
        async def operation() -> bytes:
            carried_out.append(name)
            return bytes(size)

        return await ledger.once(name, name.encode(), operation)

    # WHEN answers weigh more than is kept
    for name in ("a", "b", "c"):
        await answer(name, 45)
    # THEN the oldest is forgotten
    await answer("b", 45)
    await answer("c", 45)
    assert carried_out == ["a", "b", "c"]
    await answer("a", 45)
    assert carried_out == ["a", "b", "c", "a"]
    # AND one that weighs more than all is kept until the next
    await answer("d", 1000)
    await answer("d", 1000)
    assert carried_out[4:] == ["d"]
