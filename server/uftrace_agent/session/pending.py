"""Orders that also hold for modules that are loaded later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from uftrace_agent.engine.program import ModuleView, ProgramFunction
from uftrace_agent.session.types import PatchOrder


class PendingOrders:
    """The pending orders of a session, and which modules they have seen."""

    def __init__(self) -> None:
        self._orders: tuple[PatchOrder, ...] = ()
        # The views themselves: a module that is loaded again has another one.
        self._seen: Sequence[ModuleView] = ()

    @property
    def orders(self) -> tuple[PatchOrder, ...]:
        """The orders, oldest first."""
        return self._orders

    def patterns(self) -> list[str]:
        """What is waited for, each once."""
        return list(dict.fromkeys(p for order in self._orders for p in order.patterns))

    def add(self, order: PatchOrder) -> None:
        """Keep an order; one with the same patterns gives way."""
        others = [one for one in self._orders if set(one.patterns) != set(order.patterns)]
        self._orders = (*others, order)

    def drop(self, patterns: Sequence[str]) -> None:
        """Wait no longer for these patterns; no patterns means all."""
        if not patterns:
            self._orders = ()
            return
        gone = set(patterns)
        self._orders = tuple(one for one in self._orders if not gone.issuperset(one.patterns))

    def end_leases(self, alive: Callable[[str], object]) -> None:
        """Drop the orders whose leases have ended."""
        self._orders = tuple(
            order for order in self._orders if order.lease is None or alive(order.lease.name)
        )

    def keep_lease(self, name: str) -> None:
        """The orders of this lease hold until they are dropped."""
        self._orders = tuple(
            replace(order, lease=None) if order.lease and order.lease.name == name else order
            for order in self._orders
        )

    def see(self, modules: Sequence[ModuleView]) -> None:
        """The orders have been carried out in these modules."""
        self._seen = tuple(modules)

    def see_anew(self, modules: Iterable[ModuleView]) -> None:
        """These were loaded anew."""
        gone = set(map(id, modules))
        self._seen = tuple(module for module in self._seen if id(module) not in gone)

    def new_among(self, functions: Sequence[ProgramFunction]) -> list[ProgramFunction]:
        """Those of modules that were not there before."""
        seen = set(map(id, self._seen))
        return [function for function in functions if id(function.module) not in seen]
