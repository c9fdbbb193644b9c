"""What the options before the command say, and connecting with them."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import click

from uftrace_remote.agent import AgentClient
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import UftraceError
from uftrace_remote.fleet.inventory import Inventory
from uftrace_remote.fleet.inventory_file import load_inventory
from uftrace_remote.fleet.resolution import ListedHosts
from uftrace_remote.target import Target

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options.

    Attributes:
        endpoint: The agent where a target names none.
        credentials: Where certificate and token are.
        timeout: Seconds for an ordinary request.
        color: Whether to colour; None decides by the terminal.
        inventory: The file of groups; None looks in the usual place.
    """

    endpoint: Endpoint = field(default_factory=Endpoint)
    credentials: CredentialOptions = field(default_factory=CredentialOptions)
    timeout: float = 10.0
    color: bool | None = None
    inventory: Path | None = None

    def connect(self, endpoint: Endpoint | None = None) -> AgentClient:
        """A client of that agent, or of the default one; the inventory may say where it is."""
        try:
            inventory = load_inventory(self.inventory)
        except UftraceError:
            # No group was named: what is wrong with them is no concern of this command.
            inventory = Inventory()
        host = ListedHosts(inventory).find(endpoint or self.endpoint)
        return host.connect(self.credentials, timeout=self.timeout)

    def host(self, text: str | None) -> Endpoint:
        """The agent that an optional HOST argument names."""
        return Endpoint.parse(text) if text else self.endpoint

    def target(self, text: str) -> Target:
        """The process that a TARGET argument names."""
        return Target.parse(text, self.endpoint)


pass_settings = click.make_pass_decorator(Settings)


def run(work: Callable[[], Awaitable[_T]]) -> _T:
    """Runs one command's asynchronous part; Ctrl-C cancels it."""

    async def body() -> _T:
        return await work()

    return asyncio.run(body())


def run_until_interrupted(work: Callable[[asyncio.Event], Awaitable[_T]]) -> _T:
    """Runs work that ends in an orderly way when the event is set.

    The first Ctrl-C or SIGTERM sets the event, a second one cancels the work.
    """

    async def body() -> _T:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work(stop))

        def interrupt() -> None:
            if stop.is_set():
                task.cancel()
            stop.set()

        # Only the main thread of a program can take signals.
        on_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if on_main else ()
        for number in numbers:
            loop.add_signal_handler(number, interrupt)
        try:
            return await task
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    return asyncio.run(body())
