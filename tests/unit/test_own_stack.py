"""H75: whose memory lies below a stack pointer?"""

from __future__ import annotations

import pytest

from uftrace_agent.process.address_space import (
    Mapping,
    StackBounds,
    main_stack_bottom,
    own_stack,
)

MAIN = Mapping(0x7FFF_0000_0000, 0x7FFF_0002_1000, "rw-p", 0, "00:00", 0, "[stack]")
GUARD = Mapping(0x7F00_0000_0000, 0x7F00_0000_1000, "---p", 0, "00:00", 0, "")
THREAD = Mapping(0x7F00_0000_1000, 0x7F00_0080_1000, "rw-p", 0, "00:00", 0, "")
HEAP = Mapping(0x7E00_0000_0000, 0x7E00_0010_0000, "rw-p", 0, "00:00", 0, "")
ALL = [HEAP, GUARD, THREAD, MAIN]
THREAD_POINTER = THREAD.end - 0x900


def test_the_main_threads_stack_grows_down_to_what_is_below() -> None:
    bounds = own_stack(ALL, MAIN.end - 0x1000, 0)
    assert bounds is not None and bounds.high == MAIN.end
    assert THREAD.end < bounds.low < MAIN.start


def test_a_threads_stack_lies_between_its_guard_and_its_thread_pointer() -> None:
    bounds = own_stack(ALL, THREAD_POINTER - 0x2000, THREAD_POINTER)
    assert bounds == StackBounds(THREAD.start, THREAD_POINTER)


@pytest.mark.parametrize(
    ("sp", "thread_pointer"),
    [
        (HEAP.start + 0x8000, THREAD_POINTER),  # a fiber's stack in the heap
        (HEAP.start + 0x8000, HEAP.start + 0x9000),  # no guard below
        (THREAD_POINTER + 0x100, THREAD_POINTER),  # above the thread's own block
        (THREAD.start + 0x100, 0),  # a thread without TLS
        (GUARD.start + 8, THREAD_POINTER),
        (0x1000, THREAD_POINTER),
    ],
)
def test_h75_any_other_stack_is_somebody_elses(sp: int, thread_pointer: int) -> None:
    assert own_stack(ALL, sp, thread_pointer) is None


def test_the_bottom_of_the_main_stack_is_for_when_it_is_large() -> None:
    assert main_stack_bottom(ALL, 0x4000) == StackBounds(MAIN.start, MAIN.start + 0x4000)
    assert main_stack_bottom(ALL, 0x8000) is None
    assert main_stack_bottom([HEAP], 0x1000) is None
