"""Synthetic functions to plan for, and what must hold of every plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from uftrace_agent.engine.architecture import ModuleSpan, SiteRequest
from uftrace_agent.engine.layout import CodeLayout, CodeRegion
from uftrace_agent.engine.model import Form, Writer
from uftrace_agent.engine.site import FunctionCode, Gap, Patch, SitePlan
from uftrace_agent.engine.x86_64.forms import X86Architecture
from uftrace_agent.engine.x86_64.instruction import decode
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
    ) -> SitePlan:
        """Plan one function, and check what must hold of any plan.

        Raises:
            RefusedError: It cannot be patched.
        """
        function = FunctionCode(address, size, code, profiled or {}, lambda: gaps, text, next_entry)
        module = ModuleSpan(TEXT, TEXT + TEXT_BYTES)
        request = SiteRequest(function, module, 7, writer, has_exit, None, frugal)
        plan = self.architecture.plan_site(request, self.layout)
        check_plan(plan, function)
        return plan


def check_plan(plan: SitePlan, function: FunctionCode) -> None:
    """The promises of every plan.

    Only bytes of one instruction change; what is there afterwards is one jump
    (or call) to the stub, over a landing or padding; the way back is exact.
    """
    head = plan.head
    offset = head.address - function.address
    assert offset >= 0 and function.code[offset:].startswith(head.expected)
    site = decode(function.code[offset:], head.address)
    assert site is not None
    changed = head.changed()
    assert changed, "a patch changes something"
    assert set(changed) <= set(range(head.address, head.address + site.size))
    assert len(head.expected) == len(head.wanted) <= 16
    assert head.reversed().reversed() == head
    patched_code = apply(head, function.code, function.address)
    assert apply(head.reversed(), patched_code, function.address) == function.code

    patched = decode(patched_code[offset:], head.address)
    assert patched is not None
    assert patched.raw.mnemonic.split()[-1] == ("call" if plan.form is Form.CALL else "jmp")
    reached = patched.branch_target()
    places = {write.address: write.code for write in plan.writes}
    if plan.tail is not None:
        assert plan.form is Form.HOP
        assert reached == plan.tail.address
        hop = decode(plan.tail.wanted, plan.tail.address)
        assert hop is not None
        reached = hop.branch_target()
    elif reached != plan.stub:
        assert plan.form is Form.PUN
        assert reached in places and reached == plan.landing
        landing = decode(places[reached], reached)
        assert landing is not None
        reached = landing.branch_target() or int.from_bytes(places[reached][6:14], "little")
    assert reached == plan.stub
    assert len(places[plan.stub]) == 64
    if plan.writer is Writer.BYTE:
        assert len(changed) == 1


def apply(patch: Patch, code: bytes, address: int) -> bytes:
    """Code that lies at `address`, with the patch in."""
    start = patch.address - address
    assert code[start:].startswith(patch.expected)
    return code[:start] + patch.wanted + code[start + len(patch.wanted) :]
