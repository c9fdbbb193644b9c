"""What seccomp filters say of a system call, without making it (H60).

The programs are classic BPF as `seccomp_check_filter` in kernel/seccomp.c lets them
be; the kernel runs all of a thread's filters, and the most restrictive answer counts.
What is not known of a call beforehand (addresses, descriptors, where the instruction
lies) is any number here: both ways of a comparison with it are followed, so what is found
to be allowed is allowed whatever those will be.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final

Word = int | None
"""32 bits; None where they may be anything."""

_MASK: Final = (1 << 32) - 1
_INSTRUCTION: Final = struct.Struct("<HBBI")
# struct seccomp_data: number, architecture, instruction pointer, six arguments.
_DATA_BYTES: Final = 64
_ARCHITECTURE_WORD: Final = 1
_ARGUMENT_WORD: Final = 4
_ARGUMENTS: Final = 6
_SCRATCH_WORDS: Final = 16
# More ways through a program than any that people write.
_MOST_STATES: Final = 100_000

# linux/bpf_common.h and linux/filter.h
_LD, _LDX, _ST, _STX, _ALU, _JMP, _RET, _MISC = range(8)
_MODE_IMM, _MODE_ABS, _MODE_MEM, _MODE_LEN = 0x00, 0x20, 0x60, 0x80
_ADD, _SUB, _MUL, _DIV, _OR, _AND, _LSH, _RSH, _NEG = range(0x00, 0x90, 0x10)
_XOR: Final = 0xA0
_JA, _JEQ, _JGT, _JGE, _JSET = range(0x00, 0x50, 0x10)
_SOURCE_X: Final = 0x08
_RETURN_A: Final = 0x10
_TXA: Final = 0x80


class Action(IntEnum):
    """What a filter has done with a call (linux/seccomp.h), the most restrictive first."""

    KILL_PROCESS = -(1 << 31)
    KILL_THREAD = 0
    TRAP = 0x00030000
    ERRNO = 0x00050000
    USER_NOTIF = 0x7FC00000
    TRACE = 0x7FF00000
    LOG = 0x7FFC0000
    ALLOW = 0x7FFF0000

    @property
    def lets_through(self) -> bool:
        """Whether the call is made."""
        return self in (Action.LOG, Action.ALLOW)


@dataclass(frozen=True, slots=True)
class FilteredCall:
    """A system call as filters see it.

    Attributes:
        name: For people.
        number: The system call's number.
        arguments: 64 bits each; None, and what is missing of six: any value.
    """

    name: str
    number: int
    arguments: tuple[int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Denial:
    """A call that would not be made, and what would be done instead."""

    call: FilteredCall
    action: Action


class MalformedFilterError(ValueError):
    """No program that the kernel would have taken, or one with too many ways through."""


@dataclass(frozen=True, slots=True)
class _State:
    at: int
    a: Word
    x: Word
    scratch: tuple[Word, ...]


def denials(
    filters: Iterable[bytes], architecture: int, calls: Iterable[FilteredCall]
) -> list[Denial]:
    """The calls that a thread with these filters might not make.

    Args:
        filters: Each an array of struct sock_filter.
        architecture: The AUDIT_ARCH of its calls.
        calls: What it is to make.

    Raises:
        MalformedFilterError: One of the filters makes no sense.
    """
    programs = list(filters)
    found = []
    for call in calls:
        worst = min(
            (_worst_answer(program, architecture, call) for program in programs),
            default=Action.ALLOW,
        )
        if not worst.lets_through:
            found.append(Denial(call, worst))
    return found


# Threads of one process mostly have the same filters.
@lru_cache(maxsize=1024)
def _worst_answer(program: bytes, architecture: int, call: FilteredCall) -> Action:
    return min(_action(answer) for answer in answers(program, architecture, call))


def _action(answer: Word) -> Action:
    if answer is None:
        return Action.KILL_PROCESS
    signed = answer & 0xFFFF0000
    signed -= (signed & 1 << 31) << 1
    try:
        return Action(signed)
    except ValueError:
        return Action.KILL_PROCESS  # as the kernel treats what it does not know


def answers(program: bytes, architecture: int, call: FilteredCall) -> set[Word]:
    """All values that a filter may return for a call; None: it may be any.

    Raises:
        MalformedFilterError: It is no filter that the kernel would have taken.
    """
    if not program or len(program) % _INSTRUCTION.size:
        raise MalformedFilterError(f"{len(program)} bytes are no seccomp filter")
    instructions = list(_INSTRUCTION.iter_unpack(program))
    data = _words(architecture, call)
    found: set[Word] = set()
    seen: set[_State] = set()
    todo = [_State(0, 0, 0, (0,) * _SCRATCH_WORDS)]
    while todo:
        state = todo.pop()
        if state in seen:
            continue
        seen.add(state)
        if len(seen) > _MOST_STATES:
            raise MalformedFilterError("a seccomp filter has too many ways through it")
        if state.at >= len(instructions):
            raise MalformedFilterError("a seccomp filter ends without an answer")
        code, jump_true, jump_false, constant = instructions[state.at]
        if code & 7 == _RET:
            found.add(state.a if code & _RETURN_A else constant)
        elif code & 7 == _JMP:
            for distance in _distances(code, jump_true, jump_false, constant, state):
                todo.append(_State(state.at + 1 + distance, state.a, state.x, state.scratch))
        elif _divides_by_zero(code, constant, state):
            # A classic program that does so returns 0.
            found.add(0)
            if state.x is None:
                todo.append(_step(code, constant, state, data))
        else:
            todo.append(_step(code, constant, state, data))
    return found


def _words(architecture: int, call: FilteredCall) -> Sequence[Word]:
    words: list[Word] = [None] * (_DATA_BYTES // 4)
    words[0] = call.number & _MASK
    words[_ARCHITECTURE_WORD] = architecture
    for index, argument in enumerate(call.arguments[:_ARGUMENTS]):
        if argument is not None:
            words[_ARGUMENT_WORD + 2 * index] = argument & _MASK
            words[_ARGUMENT_WORD + 2 * index + 1] = argument >> 32 & _MASK
    return words


def _divides_by_zero(code: int, constant: int, state: _State) -> bool:
    if code & 7 != _ALU or code & 0xF0 != _DIV:
        return False
    return not (state.x if code & _SOURCE_X else constant)


def _distances(
    code: int, jump_true: int, jump_false: int, constant: int, state: _State
) -> Sequence[int]:
    operation = code & 0xF0
    if operation == _JA:
        return (constant,)
    left, right = state.a, state.x if code & _SOURCE_X else constant
    if operation == _JSET and 0 in (left, right):
        return (jump_false,)
    if left is None or right is None:
        return (jump_true, jump_false)
    if operation == _JEQ:
        holds = left == right
    elif operation == _JGT:
        holds = left > right
    elif operation == _JGE:
        holds = left >= right
    elif operation == _JSET:
        holds = bool(left & right)
    else:
        raise MalformedFilterError(f"instruction {code:#x} is not for seccomp filters")
    return (jump_true if holds else jump_false,)


def _step(code: int, constant: int, state: _State, data: Sequence[Word]) -> _State:
    kind, a, x, scratch = code & 7, state.a, state.x, state.scratch
    if kind == _LD:
        a = _loaded(code, constant, state, data)
    elif kind == _LDX:
        x = _loaded(code, constant, state, data)
    elif kind in (_ST, _STX):
        index = _scratch_index(constant)
        scratch = (*scratch[:index], a if kind == _ST else x, *scratch[index + 1 :])
    elif kind == _ALU:
        a = _computed(code & 0xF0, a, x if code & _SOURCE_X else constant)
    elif code & _TXA:
        a = x
    else:
        x = a
    return _State(state.at + 1, a, x, scratch)


def _loaded(code: int, constant: int, state: _State, data: Sequence[Word]) -> Word:
    mode = code & 0xF8  # with the size: words alone
    if mode == _MODE_ABS:
        if constant % 4 or constant >= _DATA_BYTES:
            raise MalformedFilterError(f"a seccomp filter reads offset {constant}")
        return data[constant // 4]
    if mode == _MODE_MEM:
        return state.scratch[_scratch_index(constant)]
    if mode == _MODE_LEN:
        return _DATA_BYTES
    if mode == _MODE_IMM:
        return constant
    raise MalformedFilterError(f"instruction {code:#x} is not for seccomp filters")


def _scratch_index(constant: int) -> int:
    if constant >= _SCRATCH_WORDS:
        raise MalformedFilterError(f"a seccomp filter has no scratch word {constant}")
    return constant


def _computed(operation: int, left: Word, right: Word) -> Word:
    if operation == _AND and 0 in (left, right):
        return 0
    if operation == _NEG:
        return None if left is None else -left & _MASK
    if left is None or right is None:
        return None
    if operation == _ADD:
        return left + right & _MASK
    if operation == _SUB:
        return left - right & _MASK
    if operation == _MUL:
        return left * right & _MASK
    if operation == _DIV:
        return left // right
    if operation == _OR:
        return left | right
    if operation == _AND:
        return left & right
    if operation == _XOR:
        return left ^ right
    if operation == _LSH:
        return left << (right & 31) & _MASK
    if operation == _RSH:
        return left >> (right & 31)
    raise MalformedFilterError(f"operation {operation:#x} is not for seccomp filters")
