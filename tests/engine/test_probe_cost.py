"""The cost of a probe is measured with the code that targets run."""

from __future__ import annotations

import sys

import pytest

from tests.support.waiting import SLOWNESS
from uftrace_agent.engine import probe_cost
from uftrace_agent.engine.probe_cost import ASSUMED, measure_probe_cost


def test_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_cost, "_DEADLINE_S", 10.0 * SLOWNESS)
    cost = measure_probe_cost()
    assert cost.measured, cost.detail
    # Two records take more than one, and no probe is done in a nanosecond.
    assert 1 < cost.entry_ns < cost.call_ns


def test_where_it_cannot_be_measured_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    cost = measure_probe_cost()
    assert not cost.measured
    assert (cost.call_ns, cost.entry_ns) == (ASSUMED.call_ns, ASSUMED.entry_ns)
    assert cost.detail
