"""Frida's Interceptor, with callbacks in C that do nothing."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

# Functions per request, and seconds after which no further request is made.
_CHUNK: Final = 250
_BUDGET: Final = 20.0

_SCRIPT: Final = """
const module = new CModule(`
#include <gum/guminterceptor.h>
void onEnter(GumInvocationContext *context) {}
void onLeave(GumInvocationContext *context) {}
`);
const callbacks = { onEnter: module.onEnter, onLeave: module.onLeave };
let listeners = [];
rpc.exports = {
    enable(addresses) {
        for (const address of addresses) {
            try {
                listeners.push(Interceptor.attach(ptr(address), callbacks));
            } catch (error) { /* it does not fit there */ }
        }
        Interceptor.flush();
        return listeners.length;
    },
    disable() {
        listeners.forEach(listener => listener.detach());
        Interceptor.flush();
        listeners = [];
    },
};
"""


class _Function(Protocol):
    @property
    def address(self) -> int: ...


class FridaTracer:
    """See `bench.tracers.Tracer`.

    Args:
        pid: The process.

    Raises:
        RuntimeError: Frida is not installed.
    """

    def __init__(self, pid: int) -> None:
        try:
            self._frida: Any = importlib.import_module("frida")
        except ImportError as error:
            raise RuntimeError("not installed: pip install -r bench/requirements.txt") from error
        self._pid = pid
        self._session: Any = None
        self._script: Any = None

    def attach(self) -> None:
        """Inject its agent."""
        try:
            self._session = self._frida.attach(self._pid)
            self._script = self._session.create_script(_SCRIPT)
            self._script.load()
        except self._frida.TransportError as error:
            raise RuntimeError(str(error)) from error

    def enable(self, functions: Sequence[_Function]) -> int:
        """As many as it manages in `_BUDGET`."""
        until = time.monotonic() + _BUDGET
        done = 0
        for first in range(0, len(functions), _CHUNK):
            if time.monotonic() > until:
                break
            chunk = [f"{function.address:#x}" for function in functions[first : first + _CHUNK]]
            done = int(self._ask("enable", chunk))
        return done

    def disable(self) -> None:
        """All of them at once."""
        self._ask("disable")

    def _ask(self, what: str, *arguments: object) -> Any:
        errors = (self._frida.InvalidOperationError, self._frida.TransportError)
        try:
            return getattr(self._script.exports_sync, what)(*arguments)
        except errors as error:
            raise RuntimeError(str(error)) from error

    def detach(self) -> None:
        """Its agent leaves."""
        self._session.detach()
