"""The code with which the cost of a probe is measured, on AArch64."""

from __future__ import annotations

from typing import Final

from uftrace_agent.engine.aarch64 import stub as stubs
from uftrace_agent.engine.aarch64.encoding import NOP, RET, WORD, branch, branch_link, pack
from uftrace_agent.engine.bench_code import BenchStub

# stp x19, x30, [sp, #-16]!; mov x19, x0
_LOOP_HEAD: Final = pack(0xA9BF_7BF3, 0xAA00_03F3)
# subs x19, x19, #1; b.ne, to the call in front; ldp x19, x30, [sp], #16
_LOOP_TAIL: Final = pack(0xF100_0673, 0x54FF_FFC1, 0xA8C1_7BF3)
# mrs x0, tpidr_el0
_THREAD_POINTER: Final = pack(0xD53B_D040)


class AArch64BenchCode:
    """See `BenchCode`."""

    stub_room = stubs.STUB_BYTES

    def function(self, at: int, entrance: int | None) -> bytes:
        """See `BenchCode`."""
        return (NOP if entrance is None else branch(at, entrance)) + RET

    def stub(self, at: int, function: int, probe: int, word: int, *, paired: bool) -> BenchStub:
        """See `BenchCode`."""
        make = stubs.paired_stub if paired else stubs.entry_stub
        return BenchStub(make(at, probe, word, None, function + WORD), at)

    def loop(self, at: int, function: int) -> bytes:
        """See `BenchCode`."""
        call = branch_link(at + len(_LOOP_HEAD), function)
        return _LOOP_HEAD + call + _LOOP_TAIL + RET

    def thread_pointer(self) -> bytes:
        """See `BenchCode`."""
        return _THREAD_POINTER + RET
