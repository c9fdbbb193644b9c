"""One site in the journal, as bytes: what is needed to set it back, and to go on with it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from uftrace_agent.engine.model import Form, Refusal, SiteKind, Writer
from uftrace_agent.engine.site import CodeWrite, Patch, ProbeKind, Role, SitePlan
from uftrace_agent.runtime.layout import SITE_BYTES

# phase, form, head length, tail length, function id, head address, tail address,
# head before and after, tail before and after, landing; function, stub, record id,
# its sites, role, kind, writer, probe, exit refusal, label, flags; crc of all before
# but the phase: that is one byte, never torn, and may change by itself.
_ENTRY: Final = struct.Struct("<BBBBIQQ16s16s8s8sQQQIHBBBBBBB")
_ENTRY_CRC: Final = struct.Struct("<I")
PHASE_OFFSET: Final = 0
# Behind the crc, in a word of its own for the same reason: the leases that hold the
# tracepoint, a bit each.
LEASES_OFFSET: Final = 116
_LEASES: Final = struct.Struct("<I")
# Where an entry says its form, which is never 0.
FORM_OFFSET: Final = 1
_HAS_EXIT: Final = 1
_IS_CALL: Final = 2
_ENTRY_ONLY: Final = 4
_LABELS: Final = ("", "custom event", "typed event")


class Phase(IntEnum):
    """What may have happened to a site."""

    FREE = 0
    PATCHING = 1
    PATCHED = 2
    RESTORING = 3
    # The head is as it was; the tail, which nothing leads to, is not yet.
    PARKED = 4
    # No site: code memory that was, or was about to be, mapped.
    MAPPED = 5


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """What of a site's plan is needed to go on with it, and not to set it back.

    Attributes:
        function: Live entry address of the function.
        stub: Address of the stub.
        record_id: The id that its records carry.
        sites: How many sites the function has.
    """

    function: int = 0
    stub: int = 0
    record_id: int = 0
    sites: int = 1
    role: Role = Role.ENTRY
    kind: SiteKind = SiteKind.PLAIN
    writer: Writer = Writer.STOP
    probe: ProbeKind = ProbeKind.ENTRY
    exit_refusal: Refusal | None = None
    label: str = ""
    has_exit: bool = False
    is_call: bool = False
    entry_only: bool = False

    @staticmethod
    def of(plan: SitePlan, sites: int, entry_only: bool) -> SiteFacts:
        """Those of a plan."""
        return SiteFacts(
            plan.function,
            plan.stub,
            plan.record_id,
            sites,
            plan.role,
            plan.kind,
            plan.writer,
            plan.probe,
            plan.exit_refusal,
            plan.label,
            plan.has_exit,
            plan.is_call,
            entry_only,
        )

    def pack(self) -> tuple[int, ...]:
        """The last fields of an entry."""
        flags = _HAS_EXIT * self.has_exit | _IS_CALL * self.is_call | _ENTRY_ONLY * self.entry_only
        return (
            self.function,
            self.stub,
            self.record_id,
            min(self.sites, 0xFFFF),
            self.role,
            self.kind,
            self.writer,
            self.probe,
            self.exit_refusal or 0,
            _LABELS.index(self.label) if self.label in _LABELS else 0,
            flags,
        )

    @staticmethod
    def unpack(fields: Sequence[int]) -> SiteFacts:
        """The reverse.

        Raises:
            ValueError: No agent wrote that.
        """
        function, stub, record_id, sites, role, kind, writer, probe, refusal, label, flags = fields
        if label >= len(_LABELS):
            raise ValueError(label)
        return SiteFacts(
            function,
            stub,
            record_id,
            sites,
            Role(role),
            SiteKind(kind),
            Writer(writer),
            ProbeKind(probe),
            Refusal(refusal) if refusal else None,
            _LABELS[label],
            bool(flags & _HAS_EXIT),
            bool(flags & _IS_CALL),
            bool(flags & _ENTRY_ONLY),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One site of the journal."""

    phase: Phase
    form: Form
    function_id: int
    head: Patch
    tail: Patch | None
    landing: int = 0
    facts: SiteFacts = SiteFacts()
    leases: int = 0

    @staticmethod
    def of(
        plan: SitePlan,
        function_id: int,
        phase: Phase,
        sites: int = 1,
        entry_only: bool = False,
        leases: int = 0,
    ) -> Entry:
        """The entry of a planned site of a function with so many of them."""
        facts = SiteFacts.of(plan, sites, entry_only)
        return Entry(
            phase, plan.form, function_id, plan.head, plan.tail, plan.landing, facts, leases
        )

    @staticmethod
    def of_memory(start: int, size: int) -> Entry:
        """The entry of code memory that is about to be mapped."""
        facts = SiteFacts(function=size)
        return Entry(Phase.MAPPED, Form.PUN, 0, Patch(start, b"", b""), None, 0, facts)

    @property
    def may_be_changed(self) -> bool:
        """Whether it is about a site that may not be as in the file."""
        return self.phase not in (Phase.FREE, Phase.MAPPED)

    def memory(self) -> tuple[int, int]:
        """Begin and size of the code memory that it is about; of a landing, its first byte."""
        if self.phase is Phase.MAPPED:
            return self.head.address, self.facts.function
        return self.landing, 1

    def plan(self) -> SitePlan:
        """The plan, as far as an agent that did not make it needs it: without the code
        that is in the process already, and without what is moved with a site."""
        facts = self.facts
        places = [facts.stub, self.landing] if self.landing else [facts.stub]
        return SitePlan(
            function=facts.function,
            form=self.form,
            writer=facts.writer,
            head=self.head,
            tail=self.tail,
            stub=facts.stub,
            writes=tuple(CodeWrite(place, b"") for place in places),
            probe=facts.probe,
            has_exit=facts.has_exit,
            exit_refusal=facts.exit_refusal,
            kind=facts.kind,
            role=facts.role,
            record_id=facts.record_id,
            label=facts.label,
            is_call=facts.is_call,
        )

    def pack(self) -> bytes:
        """128 bytes."""
        tail = self.tail or Patch(0, b"", b"")
        body = _ENTRY.pack(
            self.phase,
            self.form,
            len(self.head.expected),
            len(tail.expected),
            self.function_id,
            self.head.address,
            tail.address,
            self.head.expected,
            self.head.wanted,
            tail.expected,
            tail.wanted,
            self.landing,
            *self.facts.pack(),
        )
        checked = (body + _ENTRY_CRC.pack(_crc(body))).ljust(LEASES_OFFSET, b"\0")
        return (checked + _LEASES.pack(self.leases)).ljust(SITE_BYTES, b"\0")

    @staticmethod
    def unpack(data: bytes) -> Entry | None:
        """The entry, or None where there is none or it is torn (then its site was
        never touched)."""
        body = data[: _ENTRY.size]
        (crc,) = _ENTRY_CRC.unpack_from(data, _ENTRY.size)
        if crc != _crc(body) or not body[FORM_OFFSET]:
            return None
        fields = _ENTRY.unpack(body)
        phase, form, head_size, tail_size, function_id, at, tail_at = fields[:7]
        old, new, tail_old, tail_new, landing = fields[7:12]
        tail = Patch(tail_at, tail_old[:tail_size], tail_new[:tail_size]) if tail_size else None
        head = Patch(at, old[:head_size], new[:head_size])
        try:
            facts = SiteFacts.unpack(fields[12:])
            return Entry(
                Phase(phase),
                Form(form),
                function_id,
                head,
                tail,
                landing,
                facts,
                *_LEASES.unpack_from(data, LEASES_OFFSET),
            )
        except ValueError:  # no agent wrote that: the process can write here too
            return None


def _crc(body: bytes) -> int:
    return zlib.crc32(memoryview(body)[PHASE_OFFSET + 1 :])
