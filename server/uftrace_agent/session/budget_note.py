"""What of a budget is written into the process, for the agent that comes after a crash."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from uftrace_agent.engine.manifest import NOTE_BYTES
from uftrace_agent.session.budget import NO_CHANGE, LimitChange, LimitKind, Limits
from uftrace_agent.session.types import Throttle

# crc of all behind it, number of functions; share and rate of the session.
_HEADER: Final = struct.Struct("<IIdd")
# Address; own share and rate (NaN: none); limit (0: not throttled), id, rate, share,
# what was allowed, when, whether raised since.
_FUNCTION: Final = struct.Struct("<QddIIdddQI4x")
CAPACITY: Final = (NOTE_BYTES - _HEADER.size) // _FUNCTION.size


@dataclass(frozen=True, slots=True)
class NotedFunction:
    """A function with limits of its own, or that is out."""

    address: int
    own: LimitChange = NO_CHANGE
    throttle: Throttle | None = None


@dataclass(frozen=True, slots=True)
class BudgetNote:
    """The limits of a session, and what is particular to functions."""

    limits: Limits
    functions: tuple[NotedFunction, ...] = ()

    def pack(self) -> bytes:
        """At most NOTE_BYTES; of more functions than fit, the first."""
        rows = [_pack(function) for function in self.functions[:CAPACITY]]
        header = _HEADER.pack(0, len(rows), self.limits.cpu, self.limits.rate)
        body = header[4:] + b"".join(rows)
        return struct.pack("<I", zlib.crc32(body)) + body

    @staticmethod
    def unpack(data: bytes) -> BudgetNote | None:
        """The reverse; None where there is no note, or one that was torn while written, or
        that no agent has written: any program can write into its own memory."""
        if len(data) < _HEADER.size:
            return None
        checksum, count, cpu, rate = _HEADER.unpack_from(data)
        end = _HEADER.size + count * _FUNCTION.size
        if count > CAPACITY or len(data) < end or zlib.crc32(data[4:end]) != checksum:
            return None
        rows = _FUNCTION.iter_unpack(data[_HEADER.size : end])
        try:
            return BudgetNote(
                Limits(_positive(cpu), _positive(rate)), tuple(_unpack(*row) for row in rows)
            )
        except ValueError:
            return None


def _positive(number: float) -> float:
    if not number > 0:
        raise ValueError(f"{number} is no limit")
    return number


def _pack(function: NotedFunction) -> bytes:
    out = function.throttle
    return _FUNCTION.pack(
        function.address,
        math.nan if function.own.cpu is None else function.own.cpu,
        math.nan if function.own.rate is None else function.own.rate,
        out.limit if out else 0,
        out.function_id if out else 0,
        out.calls_per_second if out else 0.0,
        out.cpu if out else 0.0,
        out.allowed if out else 0.0,
        out.unix_ns if out else 0,
        out.raised if out else 0,
    )


def _unpack(
    address: int,
    own_cpu: float,
    own_rate: float,
    limit: int,
    function_id: int,
    calls_per_second: float,
    cpu: float,
    allowed: float,
    unix_ns: int,
    raised: int,
) -> NotedFunction:
    own = LimitChange(
        None if math.isnan(own_cpu) else _positive(own_cpu),
        None if math.isnan(own_rate) else _positive(own_rate),
    )
    if not limit:
        return NotedFunction(address, own)
    if not (math.isfinite(calls_per_second) and math.isfinite(cpu)):
        raise ValueError("what a function did is finite")
    throttle = Throttle(
        function_id,
        calls_per_second,
        cpu,
        LimitKind(limit),
        _positive(allowed),
        unix_ns,
        bool(raised),
    )
    return NotedFunction(address, own, throttle)
