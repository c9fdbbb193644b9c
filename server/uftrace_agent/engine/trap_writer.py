"""The `trap` writer: several bytes of an instruction, in a program that runs on.

    table of sites -> our handler of SIGTRAP -> traps, barriers and bytes (host/trap.c)
    -> no trap on its way any more -> the program's own action again

The table is constant while the handler is there. Every entry leads to the site's
stub, which is right before, while and after the site changes: it runs the displaced
instruction too. So a trap that was met before a site was set back, and is handled
after that, does what the original does (H54).
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from uftrace_agent.engine.annex import Annex
from uftrace_agent.engine.site import Patch
from uftrace_agent.engine.writer import patch_rows, statuses_in_order
from uftrace_agent.errors import BusyTargetError
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.pauses import Pauses
from uftrace_agent.process.remote_calls import RemoteCall, RemoteCaller
from uftrace_agent.process.system_calls import SystemCallNumbers
from uftrace_agent.process.threads import status_field
from uftrace_agent.runtime.host_library import CTrap, SiteStatus, error_for, library
from uftrace_agent.runtime.layout import define

_SIGTRAP: Final = 5
_MASK_BYTES: Final = 8
_ALL_BUT_SIGTRAP: Final = ((1 << 64) - 1) & ~(1 << (_SIGTRAP - 1))
_SA_SIGINFO: Final = 4
_SA_RESTORER: Final = 0x04000000
_SA_ONSTACK: Final = 0x08000000
_SA_RESTART: Final = 0x10000000
_SA_NODEFER: Final = 0x40000000
# Of the program's own flags, what matters to a signal that is passed on.
_KEPT: Final = _SA_RESTART
# What the threads library itself catches: its handlers are in libc.
_LIBRARY_SIGNALS: Final = (32, 33)

# No thread waits for it but the agent's own.
_SETTLE_NS: Final = 10_000_000_000

CAPACITY: Final = define("TRAP_CAPACITY")
_ENTRY: Final = struct.Struct("<QQQ")
_WORD: Final = struct.Struct("<Q")
_RANGE: Final = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Action:
    """struct sigaction as the kernel knows it."""

    handler: int
    flags: int
    restorer: int
    mask: int

    _FORMAT = struct.Struct("<QQQQ")

    def pack(self) -> bytes:
        """32 bytes."""
        return self._FORMAT.pack(self.handler, self.flags, self.restorer, self.mask)

    @staticmethod
    def unpack(data: bytes) -> Action:
        """The reverse."""
        return Action(*Action._FORMAT.unpack(data))


@dataclass(frozen=True, slots=True)
class Handler:
    """Live addresses of the handler of SIGTRAP, of its way back, and of all its code."""

    address: int
    restorer: int
    code: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TrapSite:
    """A site, and what its trap stands for: a jump to `target`, or a call of it that
    returns to `return_to`."""

    patch: Patch
    target: int
    return_to: int = 0


class SignalTable:
    """The table of traps of one annex, and the process's action for SIGTRAP.

    Args:
        at: Live address of the table.
        memory: The process's memory.
        caller: Makes its threads call the kernel.
        calls: Numbers of system calls.
    """

    def __init__(
        self, at: int, memory: ProcessMemory, caller: RemoteCaller, calls: SystemCallNumbers
    ) -> None:
        self._at = at
        self._memory = memory
        self._caller = caller
        self._calls = calls

    def _place(self, name: str) -> int:
        return self._at + define(f"TRAPS_{name}")

    def _set_action(self, new: int, old: int) -> RemoteCall:
        return RemoteCall(self._calls.rt_sigaction, (_SIGTRAP, new, old, _MASK_BYTES))

    def _read_action(self, name: str) -> Action:
        return Action.unpack(self._memory.read(self._place(name), define("SIGACTION_BYTES")))

    @property
    def is_installed(self) -> bool:
        """Whether the handler of SIGTRAP may be ours."""
        return bool(_WORD.unpack(self._memory.read(self._place("INSTALLED"), 8))[0])

    def fill(self, sites: Sequence[TrapSite]) -> None:
        """Write the entries; nothing may be installed."""
        rows = sorted((site.patch.address, site.target, site.return_to) for site in sites)
        self._memory.write(self._place("ENTRIES"), b"".join(_ENTRY.pack(*row) for row in rows))
        self._memory.write(self._place("COUNT"), _WORD.pack(len(rows)))

    def handler_code(self) -> tuple[int, int]:
        """Where the code of the installed handler begins and ends."""
        start, end = _RANGE.unpack(self._memory.read(self._place("HANDLER"), 16))
        return start, end

    def install(self, handler: Handler) -> None:
        """Make `handler` the process's handler of SIGTRAP.

        Raises:
            BusyTargetError: The program changes its action right now, or no thread
                could be used in time.
        """
        before = Action(0, 0, 0, 0)
        if _SIGTRAP in self._caught():
            before = self._read_actions([_SIGTRAP])[_SIGTRAP]
        flags = _SA_SIGINFO | _SA_RESTORER | _SA_NODEFER | (before.flags & _KEPT)
        # No other handler on top of ours: who is in it is seen by its program counter.
        ours = Action(handler.address, flags, handler.restorer, _ALL_BUT_SIGTRAP)
        self._memory.write(self._place("HANDLER"), _RANGE.pack(*handler.code))
        self._memory.write(self._place("OURS"), ours.pack())
        self._memory.write(self._place("PROGRAMS"), before.pack())
        self._memory.write(self._place("INSTALLED"), _WORD.pack(1))
        self._caller.call([self._set_action(self._place("OURS"), self._place("PROGRAMS"))])
        if self._read_action("PROGRAMS").handler != before.handler:
            self.remove()
            raise BusyTargetError("the program changed its handler of SIGTRAP just now")

    def handlers_refusal(self) -> str:
        """Why some handler of the program forbids traps; empty where none does.

        Raises:
            BusyTargetError: No thread could be used in time.
        """
        caught = self._caught()
        for number, action in self._read_actions(caught).items() if caught else ():
            if number == _SIGTRAP:
                # It may run with the signal blocked, and the program may set it anew
                # at any moment.
                return "the program handles SIGTRAP itself"
            if action.mask >> (_SIGTRAP - 1) & 1:
                return f"the handler of signal {number} runs with SIGTRAP blocked"
            if action.flags & _SA_ONSTACK:
                return (
                    f"the handler of signal {number} runs on a stack of its own, "
                    "which may be too small for one more signal"
                )
        return ""

    def _caught(self) -> list[int]:
        mask = int(status_field(self._memory.pid, "SigCgt") or "0", 16)
        return [n for n in range(1, 65) if mask >> (n - 1) & 1 and n not in _LIBRARY_SIGNALS]

    # Through the table's entries, which are not in use: nothing is installed.
    def _read_actions(self, signals: Sequence[int]) -> dict[int, Action]:
        place = self._place("ENTRIES")
        size = define("SIGACTION_BYTES")
        saved = self._memory.read(place, size * len(signals))
        self._caller.call(
            [
                RemoteCall(self._calls.rt_sigaction, (number, 0, place + index * size, _MASK_BYTES))
                for index, number in enumerate(signals)
            ]
        )
        data = self._memory.read(place, size * len(signals))
        self._memory.write(place, saved)
        return {
            number: Action.unpack(data[index * size : (index + 1) * size])
            for index, number in enumerate(signals)
        }

    def remove(self) -> None:
        """Give the process its own action back; no trap may be left, or on its way.

        Raises:
            BusyTargetError: No thread could be used in time: ours stays.
        """
        ours = self._read_action("OURS")
        self._caller.call([self._set_action(self._place("PROGRAMS"), self._place("ANSWER"))])
        found = self._read_action("ANSWER")
        if found.handler != ours.handler:  # the program has set another meanwhile
            self._caller.call([self._set_action(self._place("ANSWER"), 0)])
        self._memory.write(self._place("INSTALLED"), _WORD.pack(0))
        self._memory.write(self._place("COUNT"), _WORD.pack(0))


def settle(memory: ProcessMemory, handler: tuple[int, int], pauses: Pauses) -> None:
    """Wait until no thread has met a trap that it has not handled.

    Args:
        memory: The process's memory.
        handler: Where the handler's code begins and ends.
        pauses: Told of all stops.

    Raises:
        BusyTargetError: Not in time.
        TargetGoneError: The process ended.
    """
    order = CTrap(pid=memory.pid, mem_fd=memory.fd, deadline_nanos=_SETTLE_NS)
    order.handler.start, order.handler.end = handler
    with pauses.collect(order.pause):
        code = library().uh_trap_settle(ctypes.byref(order))
    if code:
        raise error_for(code, memory.pid, "being asked for pending traps")


class TrapWriter:
    """Changes sites of one process by traps."""

    def __init__(self, memory: ProcessMemory, annex: Annex) -> None:
        self._memory = memory
        self._annex = annex
        self._table = SignalTable(annex.data.traps, memory, annex.caller, annex.calls)

    def handlers_refusal(self, pauses: Pauses) -> str:
        """Why some handler of the program forbids traps; empty where none does."""
        try:
            self.finish(pauses)
            return self._table.handlers_refusal()
        except BusyTargetError as error:
            return error.message

    def write(self, sites: Sequence[TrapSite], pauses: Pauses) -> list[SiteStatus]:
        """Change the sites, `CAPACITY` at most.

        Returns:
            What became of each, in the order given.

        Raises:
            BusyTargetError: Nothing was changed.
            TargetGoneError: The process ended.
        """
        self.finish(pauses)
        self._table.fill(sites)
        at = self._annex.runtime_address
        code = (at("uf_trap_begin"), at("uf_trap_end"))
        self._table.install(Handler(at("uf_trapped"), at("uf_restorer"), code))
        statuses = self._write_installed(sites)
        # Where a trap may still be on its way, the next batch or the end of the
        # session asks again.
        with suppress(BusyTargetError):
            self.finish(pauses)
        return statuses

    def _write_installed(self, sites: Sequence[TrapSite]) -> list[SiteStatus]:
        rows, order = patch_rows([site.patch for site in sites])
        library().uh_touch(self._memory.fd, rows.ctypes.data, len(rows))
        trap = CTrap(
            pid=self._memory.pid,
            mem_fd=self._memory.fd,
            site_count=len(rows),
            sites=rows.ctypes.data,
        )
        library().uh_trap_write(ctypes.byref(trap))
        return statuses_in_order(rows["status"].tolist(), order)

    def finish(self, pauses: Pauses) -> None:
        """Give the program its own action for SIGTRAP back, where it is ours.

        Raises:
            BusyTargetError: Some trap may still be on its way: ours stays.
            TargetGoneError: The process ended.
        """
        if self._table.is_installed:
            settle(self._memory, self._table.handler_code(), pauses)
            self._table.remove()
