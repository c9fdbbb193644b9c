"""Seccomp filters are understood as the kernel understands them (H60)."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from typing import Final

import pytest

from tests.support import bpf
from tests.support.bpf import Rule, filter_program, statement
from uftrace_agent.engine.needed_calls import needed_calls
from uftrace_agent.process.machine import native_machine
from uftrace_agent.process.seccomp import (
    Action,
    FilteredCall,
    MalformedFilterError,
    answers,
    denials,
)
from uftrace_agent.runtime.host_library import library

_MACHINE: Final = native_machine()
_GETPPID: Final = {"x86_64": 110, "aarch64": 173}[_MACHINE.name]
_ARGUMENTS: Final = (0x1122334455667788, 3, 0, (1 << 64) - 1, 0x80000000, 0x7FFFFFFF00000001)
_CALL: Final = FilteredCall("getppid", _GETPPID, _ARGUMENTS)
_ANY: Final = FilteredCall("getppid", _GETPPID)


def data_of(call: FilteredCall, architecture: int) -> bytes:
    """struct seccomp_data of a call of which all is known but the instruction."""
    words = [argument or 0 for argument in call.arguments]
    return struct.pack("<iIQ6Q", call.number, architecture, 0, *words)


def worst(filters: list[bytes], call: FilteredCall) -> Action:
    denied = denials(filters, bpf.MACHINE, [call])
    return denied[0].action if denied else Action.ALLOW


def test_h60_the_most_restrictive_of_all_filters_counts() -> None:
    by_rank = [bpf.KILL_PROCESS, bpf.KILL_THREAD, bpf.TRAP, bpf.EPERM, bpf.USER_NOTIF, bpf.TRACE]
    actions = [statement(6, action) for action in by_rank]
    names = ["KILL_PROCESS", "KILL_THREAD", "TRAP", "ERRNO", "USER_NOTIF", "TRACE"]
    for index, name in enumerate(names):
        assert worst(actions[index:], _CALL).name == name
        assert worst(actions[index:][::-1], _CALL).name == name
    assert not denials([statement(6, bpf.LOG), statement(6, bpf.ALLOW)], bpf.MACHINE, [_CALL])
    assert worst([statement(6, 0x12345678)], _CALL) is Action.KILL_PROCESS


def test_h60_another_machines_calls_are_not_ours() -> None:
    native_only = filter_program([], bpf.ALLOW)
    assert not denials([native_only], bpf.MACHINE, [_CALL])
    assert denials([native_only], 0x40000003, [_CALL])


def test_h60_arguments_count_in_halves() -> None:
    for index, argument in enumerate(_ARGUMENTS):
        low, high = argument & 0xFFFFFFFF, argument >> 32
        for offset, value in ((16 + 8 * index, low), (20 + 8 * index, high)):
            program = statement(0x20, offset) + statement(0x15, value, 0, 1)
            program += statement(6, bpf.ALLOW) + statement(6, bpf.TRAP)
            assert worst([program], _CALL) is Action.ALLOW
            assert answers(program, bpf.MACHINE, _ANY) == {bpf.ALLOW, bpf.TRAP}


def test_h60_what_is_not_known_is_followed_both_ways() -> None:
    unless_seven = filter_program([Rule("gettid", bpf.ALLOW, 0, value=7)], bpf.EPERM)
    any_gettid = FilteredCall("gettid", bpf.NUMBERS["gettid"], (None,))
    assert worst([unless_seven], any_gettid) is Action.ERRNO
    assert worst([unless_seven], FilteredCall("gettid", any_gettid.number, (7,))) is Action.ALLOW
    # Where the calling instruction lies is never known.
    by_place = statement(0x20, 8) + statement(0x15, 0x1000, 0, 1)
    by_place += statement(6, bpf.KILL_THREAD) + statement(6, bpf.ALLOW)
    assert worst([by_place], _CALL) is Action.KILL_THREAD
    # Masked away it does not matter; as the answer itself it is the worst.
    masked = statement(0x20, 8) + statement(0x54, 0) + statement(0x15, 0, 0, 1)
    masked += statement(6, bpf.ALLOW) + statement(6, bpf.KILL_THREAD)
    assert worst([masked], _CALL) is Action.ALLOW
    assert worst([statement(0x20, 8) + statement(0x16, 0)], _CALL) is Action.KILL_PROCESS


def test_h60_filters_like_those_of_container_and_service_managers() -> None:
    calls = needed_calls(_MACHINE.calls)
    for good in (bpf.docker_like(), bpf.memory_deny_write_execute()):
        assert not denials([good], _MACHINE.calls.audit, calls)
    no_execution = filter_program([Rule("mmap", bpf.EPERM, 2, 4, 4)], bpf.ALLOW)
    (denied,) = denials([bpf.docker_like(), no_execution], _MACHINE.calls.audit, calls)
    assert (denied.call.name, denied.action) == ("mmap(PROT_READ|PROT_EXEC)", Action.ERRNO)
    missing = {d.call.name for d in denials([bpf.allowing("gettid")], _MACHINE.calls.audit, calls)}
    assert missing == {call.name for call in calls} - {"gettid"}


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x06\0\0\0",
        statement(0x20, 0),
        statement(0x20, 64) + statement(6, bpf.ALLOW),
        statement(0x20, 2) + statement(6, bpf.ALLOW),
        statement(0x60, 16) + statement(6, bpf.ALLOW),
        statement(5, 7) + statement(6, bpf.ALLOW),
        statement(0x28, 0) + statement(6, bpf.ALLOW),
        statement(0x94, 3) + statement(6, bpf.ALLOW),
    ],
)
def test_h60_what_is_no_filter_is_told(program: bytes) -> None:
    with pytest.raises(MalformedFilterError):
        answers(program, bpf.MACHINE, _CALL)


def test_h60_a_filter_with_too_many_ways_is_told() -> None:
    # Each step may add a bit of its own to the index of the next: 2^n states.
    program = statement(0x00, 0) + statement(0x07, 0)
    for bit in range(24):
        program += statement(0x20, 8) + statement(0x45, 1 << bit, 0, 3)
        program += statement(0x87, 0) + statement(0x44, 1 << bit) + statement(0x07, 0)
    program += statement(6, bpf.ALLOW)
    with pytest.raises(MalformedFilterError):
        answers(program, bpf.MACHINE, _CALL)


# -- three interpreters, one answer -----------------------------------------------

_CONSTANTS: Final = (0, 1, 2, 7, 31, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xC000003E)


def _random_program(random_: random.Random, length: int) -> bytes:
    """Any of the instructions that the kernel takes, and then ERRNO with 12 bits of A."""
    alu = [base | source for base in (4, 0x14, 0x24, 0x34, 0x44, 0x54, 0x64, 0x74, 0xA4)
           for source in (0, 8)]  # fmt: skip
    jumps = [base | source for base in (0x15, 0x25, 0x35, 0x45) for source in (0, 8)]
    program = statement(0x20, 0) + statement(0x15, _GETPPID, 1, 0) + statement(6, bpf.ALLOW)
    for scratch in range(4):  # the kernel wants them written before they are read
        program += statement(0x02, scratch)
    for left in range(length, 0, -1):
        constant = random_.choice((*_CONSTANTS, random_.getrandbits(32)))
        kind = random_.randrange(10)
        if kind == 0:
            offsets = [0, 4, *range(16, 64, 4)]
            program += statement(0x20, random_.choice(offsets))
        elif kind == 1:
            program += statement(random_.choice((0x00, 0x01, 0x80, 0x81)), constant)
        elif kind == 2:
            program += statement(random_.choice((0x60, 0x61, 0x02, 0x03)), random_.randrange(4))
        elif kind == 3:
            program += statement(random_.choice((0x07, 0x87, 0x84)), 0)
        elif kind <= 6:
            code = random_.choice(alu)
            if code in (0x64, 0x74):
                constant %= 32
            if code == 0x34:
                constant = constant or 3
            program += statement(code, 0 if code & 8 else constant)
        elif kind == 7:
            program += statement(5, random_.randrange(min(left, 5)))
        else:
            ways = [random_.randrange(min(left, 5)) for _ in range(2)]
            program += statement(random_.choice(jumps), constant, *ways)
    return program + statement(0x54, 0xFFF) + statement(0x44, bpf.ERRNO) + statement(0x16, 0)


# One child for each program, which asks the kernel by making the call.
_ASK_THE_KERNEL: Final = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
arguments = [ctypes.c_ulong(int(each)) for each in sys.argv[1:]]
while head := sys.stdin.buffer.read(2):
    program = sys.stdin.buffer.read(struct.unpack("<H", head)[0])
    if not os.fork():
        code = ctypes.create_string_buffer(program, len(program))
        order = ctypes.create_string_buffer(
            struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(code)), 16)
        libc.prctl(38, 1, 0, 0, 0)
        if libc.prctl(22, 2, order):
            print("refused", flush=True)
            os._exit(0)
        libc.syscall(*arguments)
        print(ctypes.get_errno(), flush=True)
        os._exit(0)
    if os.wait()[1]:
        print("killed", flush=True)
"""


def test_h60_filters_mean_what_the_kernel_says() -> None:
    audit = _MACHINE.calls.audit
    chance = random.Random(60)
    programs = [_random_program(chance, chance.randrange(1, 40)) for _ in range(300)]
    asked = subprocess.run(
        [sys.executable, "-c", _ASK_THE_KERNEL, *map(str, (_GETPPID, *_ARGUMENTS))],
        input=b"".join(struct.pack("<H", len(program)) + program for program in programs),
        capture_output=True,
        check=True,
    )
    said = asked.stdout.decode().split()
    assert len(said) == len(programs)
    wrong = []
    for program, kernels in zip(programs, said, strict=True):
        native = library().uh_run_filter(program, len(program) // 8, data_of(_CALL, audit))
        (own,) = answers(program, audit, _CALL)
        # A division by zero ends the program with 0, which kills. No error is larger than 4095.
        assert own == native
        expected = str(own & 0xFFF) if own and own >> 16 == bpf.ERRNO >> 16 else "killed"
        if kernels != expected:
            wrong.append((program.hex(), kernels, expected))
        # Whatever is not known beforehand, the real answer is among those that are found.
        assert {own, None} & answers(program, audit, _ANY)
    assert not wrong
    assert "killed" in said and len(set(said)) > 50
