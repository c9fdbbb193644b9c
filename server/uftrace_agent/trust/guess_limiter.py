"""Slows down those who try tokens: pure, by the address they come from.

After some failures an address is refused for a second, then two, four, and so
on. Others are not touched, and memory is bounded: of very many addresses the
one that failed longest ago is forgotten first.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

_FREE_FAILURES: Final = 5
_LONGEST_SECONDS: Final = 300.0
_FORGET_SECONDS: Final = 900.0
_MOST_ADDRESSES: Final = 4096
# One household or host has all addresses of such a network (RFC 6177).
_IPV6_NETWORK_BITS: Final = 64


def address_of(peer: str) -> str:
    """What failures of a peer are counted under.

    Args:
        peer: As gRPC names it: `ipv4:10.0.0.1:4242`, `ipv6:[::1]:4242` (brackets
            may be escaped), `unix:...`.

    Returns:
        An IPv4 address, an IPv6 network of 64 bits, or an empty string for
        those who come through a unix socket: it is the agent's own user.
    """
    kind, _, rest = urllib.parse.unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    if kind not in ("ipv4", "ipv6"):
        return ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return rest
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    # A socket for both kinds shows IPv4 clients so.
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _IPV6_NETWORK_BITS), strict=False))


@dataclass(slots=True)
class _Record:
    failures: int
    last: float
    until: float


class GuessLimiter:
    """Counts failures. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def refused_for(self, address: str, now: float) -> float:
        """How long an address is still refused; 0 where it is not."""
        record = self._records.get(address)
        return max(0.0, record.until - now) if record is not None else 0.0

    def failed(self, address: str, now: float) -> float:
        """Count a failure; says for how long the address is refused now."""
        if not address:
            return 0.0
        record = self._records.pop(address, None)
        if record is None or now - record.last > _FORGET_SECONDS:
            record = _Record(0, now, now)
        record.failures += 1
        record.last = now
        over = record.failures - _FREE_FAILURES
        # The exponent is bounded: a patient one must not make a float overflow.
        seconds = min(_LONGEST_SECONDS, 2.0 ** min(over, 30)) if over >= 0 else 0.0
        record.until = now + seconds
        self._records[address] = record
        while len(self._records) > _MOST_ADDRESSES:
            self._records.popitem(last=False)
        return seconds

    def __len__(self) -> int:
        return len(self._records)
