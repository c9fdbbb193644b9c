"""Synthetic functions to plan for, and what must hold of every plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from uftrace_agent.engine.architecture import ModuleSpan, SiteRequest
from uftrace_agent.engine.layout import CodeLayout, CodeRegion
from uftrace_agent.engine.model import Form, Refusal, Writer
from uftrace_agent.engine.site import FunctionCode, Gap, LiveSled, Patch, SitePlan
from uftrace_agent.engine.x86_64.forms import X86Architecture
from uftrace_agent.engine.x86_64.instruction import Instruction, decode
from uftrace_agent.process import address_space

TEXT = 0x5555_5000_0000
TEXT_BYTES = 32 << 20
SITE = TEXT + 0x1000
ENDBR64 = b"\xf3\x0f\x1e\xfa"
# What follows a function's first instruction; as the end of a jump it leads to
# free memory, 318 MiB up.
FOLLOWING = bytes.fromhex("4889e513 41564155 41545348 83ec1890 90909090".replace(" ", ""))


def mapped(start: int, size: int) -> address_space.Mapping:
    """A file's mapping."""
    return address_space.Mapping(start, start + size, "r-xp", 0, "fe:00", 1, "/x")


class Text:
    """The code of a module."""

    def __init__(self, code: bytes, address: int = SITE) -> None:
        self._code = code
        self._address = address

    def executable(self) -> Iterable[tuple[int, bytes]]:
        """One segment."""
        yield self._address, self._code


@dataclass
class Case:
    """A process in which functions are planned one after the other.

    Attributes:
        blocked: (address, size) of what else is mapped.
        region: Where stubs go; without one the layout chooses.
    """

    blocked: Sequence[tuple[int, int]] = ()
    region: CodeRegion | None = None
    architecture: X86Architecture = field(default_factory=X86Architecture)

    def __post_init__(self) -> None:
        mappings = [mapped(TEXT, TEXT_BYTES), *(mapped(*block) for block in self.blocked)]
        self.layout = CodeLayout(
            sorted(mappings, key=lambda one: one.start),
            8192,
            self.architecture.stub_bytes,
            self.architecture.reach,
        )
        if self.region is not None:
            self.layout.regions.append(self.region)

    def plan(
        self,
        code: bytes,
        *,
        address: int = SITE,
        size: int = 64,
        writer: Writer = Writer.STOP,
        frugal: bool = False,
        has_exit: bool = True,
        profiled: Mapping[int, str] | None = None,
        gaps: Sequence[Gap] = (),
        text: Text | None = None,
        next_entry: int = 0,
        sleds: tuple[LiveSled, ...] = (),
        body: bytes = b"",
        exit_refusal: Refusal | None = None,
        entry_only: bool = False,
        allow_multi: bool = False,
        is_go: bool = False,
        is_go_compiled: bool = False,
        behind: bytes = b"",
    ) -> SitePlan:
        """Plan one function, and check what must hold of any plan.

        Raises:
            RefusedError: It cannot be patched.
        """
        function = FunctionCode(
            address,
            size,
            code,
            profiled or {},
            lambda: gaps,
            text,
            next_entry,
            sleds=sleds,
            body=lambda: body,
            behind=lambda: behind,
            is_go=is_go,
            is_go_compiled=is_go_compiled,
        )
        module = ModuleSpan(TEXT, TEXT + TEXT_BYTES)
        request = SiteRequest(
            function,
            module,
            7,
            writer,
            has_exit and not entry_only,
            exit_refusal,
            frugal,
            entry_only,
            allow_multi,
        )
        plan = self.architecture.plan_site(request, self.layout)
        check_plan(plan, function)
        return plan


def check_plan(plan: SitePlan, function: FunctionCode) -> None:
    """The promises of every plan.

    Only bytes of one instruction change (of `multi`: of the instructions that
    are moved); what is there afterwards is one jump (or call) to the stub, over
    a landing or padding; the way back is exact; no two sites share a byte.
    """
    code = max(function.body(), function.code, key=len)
    for site in plan.sites():
        _check_site(site, function, code)
    spans = [a for patch in plan.patches() for a in range(patch.address, patch.end)]
    assert len(spans) == len(set(spans)) or not plan.others
    if plan.writer is Writer.BYTE:
        assert all(len(site.head.changed()) == 1 for site in plan.sites())


def _check_site(plan: SitePlan, function: FunctionCode, code: bytes) -> None:
    head = plan.head
    offset = head.address - function.address
    assert offset >= 0 and code[offset:].startswith(head.expected)
    site = decode(code[offset:], head.address)
    assert site is not None
    changed = head.changed()
    assert changed, "a patch changes something"
    assert len(head.expected) == len(head.wanted) <= 16
    assert head.reversed().reversed() == head
    if plan.form is Form.MULTI:
        _check_moves(plan, code, offset)
    else:
        assert set(changed) <= set(range(head.address, head.address + site.size))
        assert not plan.moves

    patched_code = apply(head, code, function.address)
    assert apply(head.reversed(), patched_code, function.address) == code
    if plan.form is Form.SLED:
        assert plan.tail is not None
        _check_sled(plan, site)
        patched_code = apply(plan.tail, patched_code, function.address)
    patched = decode(patched_code[offset:], head.address)
    assert patched is not None
    assert patched.raw.mnemonic.split()[-1] == ("call" if plan.is_call else "jmp")
    assert plan.is_call <= (plan.form is Form.CALL)
    reached = patched.branch_target()
    places = {write.address: write.code for write in plan.writes}
    if plan.form is Form.HOP:
        assert plan.tail is not None and reached == plan.tail.address
        hop = decode(plan.tail.wanted, plan.tail.address)
        assert hop is not None
        reached = hop.branch_target()
    elif reached != plan.stub:
        assert plan.form is Form.PUN or (plan.form is Form.SLED and site.raw.mnemonic == "jmp")
        assert reached in places and reached == plan.writes[1].address
        assert plan.landing == (reached if plan.form is Form.PUN else 0)
        landing = decode(places[reached], reached)
        assert landing is not None
        reached = landing.branch_target() or int.from_bytes(places[reached][6:14], "little")
    assert reached == plan.stub
    assert len(places[plan.stub]) == 64


# One byte of what is executed changes; all else that does is behind a jump or a
# return, and no instruction of it is ever run.
def _check_sled(plan: SitePlan, site: Instruction) -> None:
    assert plan.tail is not None
    assert len(plan.head.changed()) == 1 and plan.head.changed() == [plan.head.address]
    assert plan.tail.address == plan.head.end
    assert plan.tail.end == plan.head.address + 5
    if site.raw.mnemonic == "jmp":
        target = site.branch_target()
        assert target is not None and plan.tail.end <= target
        assert plan.head.expected[1] == plan.head.wanted[1]
    else:
        assert site.code == b"\xc3"


# Every instruction that loses a byte has a place in the stub, and nothing else has.
def _check_moves(plan: SitePlan, code: bytes, offset: int) -> None:
    assert plan.writer is Writer.STOP
    at = plan.head.address
    (stub,) = (write for write in plan.writes if write.address == plan.stub)
    for origin, place in plan.moves:
        assert origin == at
        instruction = decode(code[at - plan.head.address + offset :], at)
        assert instruction is not None
        expected = instruction.moved_to(place).code
        assert stub.code[place - plan.stub :].startswith(expected)
        assert at < plan.head.end
        at += instruction.size
    assert at >= plan.head.end
    places = [place for _, place in plan.moves]
    assert places == sorted(places) and plan.stub < places[0] and places[-1] < plan.stub + 64


def apply(patch: Patch, code: bytes, address: int) -> bytes:
    """Code that lies at `address`, with the patch in."""
    start = patch.address - address
    assert code[start:].startswith(patch.expected)
    return code[:start] + patch.wanted + code[start + len(patch.wanted) :]
