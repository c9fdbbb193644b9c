"""The code with which the cost of a probe is measured, on x86-64."""

from __future__ import annotations

from typing import Final

from uftrace_agent.engine.bench_code import BenchStub
from uftrace_agent.engine.x86_64 import stub as stubs
from uftrace_agent.engine.x86_64.instruction import NOP5, call, jump

_NOP: Final = NOP5[0]
_RET: Final = b"\xc3"


class X86BenchCode:
    """See `BenchCode`."""

    stub_room = 2 * stubs.STUB_BYTES

    def function(self, at: int, entrance: int | None) -> bytes:
        """See `BenchCode`."""
        return (_NOP if entrance is None else jump(at, entrance)) + _RET

    def stub(self, at: int, function: int, probe: int, word: int, *, paired: bool) -> BenchStub:
        """See `BenchCode`: with a landing, as punned jumps have it."""
        make = stubs.paired_stub if paired else stubs.entry_stub
        stub = make(at, probe, word, None, function + len(_NOP))
        entrance = at + stubs.STUB_BYTES
        return BenchStub(stub + stubs.landing(entrance, at), entrance)

    def loop(self, at: int, function: int) -> bytes:
        """See `BenchCode`."""
        code = b"\x53\x48\x89\xfb"  # push rbx; mov rdi,rbx
        code += call(at + len(code), function)
        return code + b"\x48\xff\xcb\x75\xf6\x5b" + _RET  # dec rbx; jnz call; pop rbx

    def thread_pointer(self) -> bytes:
        """See `BenchCode`."""
        return b"\x64\x48\x8b\x04\x25\x00\x00\x00\x00" + _RET  # mov %fs:0,%rax
