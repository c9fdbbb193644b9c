# Lookups of addresses and SRV records. /etc/hosts has no part in it.
from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager

import dns.asyncresolver
import dns.exception
import dns.nameserver
import dns.rdatatype
import dns.resolver
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from dns.rdtypes.IN.SRV import SRV

from uftrace_remote.errors import ConnectionFailedError, UftraceError, UsageError
from uftrace_remote.fleet.inventory import DnsSettings, DnsSource

_CLUSTER = "cluster.local"


class DnsLookup:
    """Looks names up as the inventory says.

    Args:
        settings: Servers and time limit.
    """

    def __init__(self, settings: DnsSettings) -> None:
        self._settings = settings

    async def addresses(self, name: str) -> tuple[str, ...]:
        """The IPv4 addresses of a name, or where it has none, the IPv6 addresses.

        Never both: hosts mostly have one of each, and would be there twice.

        Raises:
            ConnectionFailedError: It has neither, or nobody answered.
        """
        with self._errors(name, "A and AAAA records"):
            resolver = self._resolver()
            answer = await self._ask(resolver, name, "A")
            found = [each.address for each in answer if isinstance(each, A)]
            if not found:
                answer = await self._ask(resolver, name, "AAAA")
                found = [each.address for each in answer if isinstance(each, AAAA)]
        if not found:
            raise self._empty(name, "A or AAAA records")
        # Servers rotate answers; an order of ours is the same each time.
        return tuple(sorted(set(found), key=_by_number))

    async def services(self, name: str) -> tuple[tuple[str, int], ...]:
        """Target and port of a name's SRV records, those of the best priority first.

        Raises:
            ConnectionFailedError: It has none, or nobody answered.
        """
        with self._errors(name, "SRV records"):
            answer = await self._ask(self._resolver(), name, "SRV")
        records = sorted(
            (each.priority, -each.weight, each.target.to_text(omit_final_dot=True), each.port)
            for each in answer
            # RFC 2782: "." says that the service is decidedly not there.
            if isinstance(each, SRV) and each.target.to_text() != "."
        )
        if not records:
            raise self._empty(name, "SRV records")
        return tuple(dict.fromkeys((target, port) for _, _, target, port in records))

    @property
    def is_own(self) -> bool:
        """Whether servers were named, other than the system's."""
        return bool(self._settings.servers)

    def _resolver(self) -> dns.asyncresolver.Resolver:
        resolver = dns.asyncresolver.Resolver(configure=not self.is_own)
        if self.is_own:
            resolver.nameservers = [
                dns.nameserver.Do53Nameserver(*server) for server in self._settings.servers
            ]
        # One that is dead leaves time for the others.
        each = self._settings.timeout / max(1, len(resolver.nameservers))
        resolver.timeout = min(2.0, each)
        return resolver

    async def _ask(
        self, resolver: dns.asyncresolver.Resolver, name: str, kind: str
    ) -> dns.resolver.Answer:
        return await resolver.resolve(
            name,
            kind,
            raise_on_no_answer=False,
            lifetime=self._settings.timeout,
            search=not self.is_own,
        )

    @contextmanager
    def _errors(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except dns.resolver.NXDOMAIN:
            raise ConnectionFailedError(
                f"the name '{name}' does not exist{self._asked()}",
                reason="UNKNOWN_HOST",
                hint=f"try: dig {name} any",
            ) from None
        except dns.resolver.NoResolverConfiguration:
            raise self._failed(name, what, "/etc/resolv.conf names no server") from None
        except dns.exception.Timeout:
            limit = f"no answer in {self._settings.timeout:g} s"
            raise self._failed(name, what, limit) from None
        except dns.resolver.NoNameservers:
            raise self._failed(name, what, "every server answered with a failure") from None
        except (dns.exception.DNSException, OSError, ValueError) as error:
            raise self._failed(name, what, str(error) or type(error).__name__) from None

    def _failed(self, name: str, what: str, why: str) -> UftraceError:
        return ConnectionFailedError(
            f"cannot look up {what} of '{name}'{self._asked()}: {why}",
            reason="DNS_FAILED",
            hint="check the name, and the servers in [dns] of the inventory or /etc/resolv.conf",
        )

    def _empty(self, name: str, what: str) -> UftraceError:
        return ConnectionFailedError(
            f"the name '{name}' has no {what}{self._asked()}",
            reason="UNKNOWN_HOST",
            hint="is it the kind of name that this key of the inventory is for?",
        )

    def _asked(self) -> str:
        servers = [
            f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            for address, port in self._settings.servers
        ]
        return f" (asked {', '.join(servers)})" if servers else ""


def looked_up_name(source: DnsSource) -> str:
    """The name that is looked up, whole.

    Raises:
        UsageError: It names no service.
    """
    if source.kind != "kubernetes":
        return source.name
    labels = source.name.rstrip(".").split(".")
    if len(labels) < 2 or not all(labels):
        raise UsageError(
            f"'{source.name}' is no service",
            reason="INVALID_INVENTORY",
            hint='write "SERVICE.NAMESPACE", such as "uftrace-agent.tracing"',
        )
    # The final dot keeps the search list away: it is whole.
    if len(labels) == 2:
        return f"{'.'.join(labels)}.svc.{_CLUSTER}."
    if len(labels) == 3 and labels[2] == "svc":
        return f"{'.'.join(labels)}.{_CLUSTER}."
    return f"{'.'.join(labels)}."


def _by_number(address: str) -> tuple[int, int]:
    parsed = ipaddress.ip_address(address)
    return parsed.version, int(parsed)
