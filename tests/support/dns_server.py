"""A DNS server on loopback: real packets, over UDP and TCP, with the records it is given."""

from __future__ import annotations

import contextlib
import socketserver
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

# What a UDP answer may have without EDNS (RFC 1035 section 4.2.1).
_UDP_BYTES = 512

Records = Mapping[str, Mapping[str, Sequence[str]]]


@dataclass
class DnsServer:
    """What it answers.

    Attributes:
        records: Name (without final dot) to type to values, as in a zone file.
        silent: Names that it does not answer about.
        broken: Names for which it answers SERVFAIL.
        asked: (transport, name, type) of each question.
    """

    records: Records
    silent: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()
    port: int = 0
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def answer(self, wire: bytes, transport: str) -> bytes | None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((transport, name, kind))
        if name in self.silent:
            return None
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA | dns.flags.AA
        if name in self.broken:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif name not in self.records:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif values := self.records[name].get(kind):
            answer.answer.append(dns.rrset.from_text(question.name, 5, "IN", kind, *values))
        whole = answer.to_wire()
        if transport == "udp" and len(whole) > _UDP_BYTES:
            short = dns.message.make_response(query)
            short.flags |= dns.flags.TC
            return short.to_wire()
        return whole


@contextlib.contextmanager
def dns_server(
    records: Records, *, silent: Sequence[str] = (), broken: Sequence[str] = ()
) -> Iterator[DnsServer]:
    """Serve these records until the end of the block."""
    server = DnsServer(records, frozenset(silent), frozenset(broken))

    class OnUdp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            wire, socket = self.request
            if (answer := server.answer(wire, "udp")) is not None:
                socket.sendto(answer, self.client_address)

    class OnTcp(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            (length,) = struct.unpack("!H", self.rfile.read(2))
            if (answer := server.answer(self.rfile.read(length), "tcp")) is not None:
                self.wfile.write(struct.pack("!H", len(answer)) + answer)

    with (
        # TCP chooses the port: of its ports many are taken for a while, of UDP's hardly any.
        socketserver.TCPServer(("127.0.0.1", 0), OnTcp) as tcp,
        socketserver.UDPServer(tcp.server_address, OnUdp) as udp,
    ):
        server.port = udp.server_address[1]
        threads = [
            threading.Thread(target=each.serve_forever, args=(0.05,), name="dns")
            for each in (udp, tcp)
        ]
        for thread in threads:
            thread.start()
        try:
            yield server
        finally:
            for each in (udp, tcp):
                each.shutdown()
            for thread in threads:
                thread.join()


@contextlib.contextmanager
def no_dns_server() -> Iterator[str]:
    """An address at which nobody answers, though a socket is there."""
    with socketserver.UDPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as udp:
        yield f"127.0.0.1:{udp.server_address[1]}"
