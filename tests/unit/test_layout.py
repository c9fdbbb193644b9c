"""Allocation of stubs, landings and claims."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uftrace_agent.engine.layout import CodeLayout
from uftrace_agent.engine.model import Refusal, RefusedError
from uftrace_agent.engine.site import Patch
from uftrace_agent.process.address_space import PAGE, Mapping

TEXT = 0x5555_5000_0000
TEXT_BYTES = 1 << 20
REACH = (1 << 31) - 8192
STUB = 64


def mapping(start: int, size: int, flags: str = "r-xp", name: str = "/x") -> Mapping:
    return Mapping(start, start + size, flags, 0, "fe:00", 1, name)


def layout(*more: Mapping) -> CodeLayout:
    mappings = sorted((mapping(TEXT, TEXT_BYTES), *more), key=lambda one: one.start)
    return CodeLayout(mappings, 5000, STUB, REACH)


# -- regions and stubs ---------------------------------------------------------


def test_a_region_is_in_reach_of_all_of_its_module() -> None:
    region = layout().region_near(TEXT, TEXT + TEXT_BYTES)
    assert max(region.end, TEXT + TEXT_BYTES) - min(region.base, TEXT) < REACH
    assert region.end <= TEXT or region.base >= TEXT + TEXT_BYTES
    assert region.base % PAGE == region.size % PAGE == 0


def test_one_region_serves_modules_that_are_near() -> None:
    space = layout(mapping(TEXT + (64 << 20), PAGE))
    first = space.region_near(TEXT, TEXT + TEXT_BYTES)
    assert space.region_near(TEXT + (64 << 20), TEXT + (65 << 20)) is first


def test_a_far_module_gets_a_region_of_its_own() -> None:
    far = 0x7F00_0000_0000
    space = layout(mapping(far, TEXT_BYTES))
    first = space.region_near(TEXT, TEXT + TEXT_BYTES)
    second = space.region_near(far, far + TEXT_BYTES)
    assert first is not second and len(space.regions) == 2


def test_stubs_lie_behind_the_runtime_and_apart() -> None:
    space = layout()
    region = space.region_near(TEXT, TEXT + TEXT_BYTES)
    stubs = [space.take_stub(region) for _ in range(100)]
    assert len(set(stubs)) == 100
    assert min(stubs) >= region.base + 5000
    assert all(stub % STUB == 0 for stub in stubs)


def test_a_full_region_is_followed_by_another() -> None:
    space = layout()
    region = space.region_near(TEXT, TEXT + TEXT_BYTES)
    last = 0
    while space.region_near(TEXT, TEXT + TEXT_BYTES) is region:
        last = space.take_stub(region)
    assert last + STUB <= region.end
    space.give_back_stub(region, last)
    assert space.region_near(TEXT, TEXT + TEXT_BYTES) is region
    assert space.take_stub(region) == last


def test_without_free_addresses_it_refuses() -> None:
    space = layout(mapping(TEXT - (2 << 31), 2 << 31), mapping(TEXT + TEXT_BYTES, 2 << 31))
    with pytest.raises(RefusedError) as caught:
        space.region_near(TEXT, TEXT + TEXT_BYTES)
    assert caught.value.refusal is Refusal.NO_TRAMPOLINE_SPACE


# -- landings --------------------------------------------------------------------

PLACE = TEXT + (100 << 20)


def test_an_exact_landing_is_there_or_nowhere() -> None:
    space = layout()
    assert space.place_landing(PLACE + 7, 1, 5) == PLACE + 7
    for near in (PLACE + 3, PLACE + 7, PLACE + 11):
        assert space.place_landing(near, 1, 5) is None
    assert space.place_landing(PLACE + 12, 1, 5) == PLACE + 12
    assert space.place_landing(PLACE + 2, 1, 5) == PLACE + 2
    assert space.place_landing(TEXT + 100, 1, 5) is None


def test_a_landing_may_cross_pages() -> None:
    space = layout()
    assert space.place_landing(PLACE - 2, 1, 5) == PLACE - 2
    (pending,) = space.pending()
    assert (pending.start, pending.size) == (PLACE - PAGE, 2 * PAGE)


def test_a_landing_that_crosses_into_something_is_refused() -> None:
    space = layout(mapping(PLACE, PAGE))
    assert space.place_landing(PLACE - 4, 1, 5) is None
    assert space.place_landing(PLACE - 5, 1, 5) == PLACE - 5


def test_landings_fill_the_pages_that_are_there() -> None:
    space = layout()
    found = [space.place_landing(PLACE, 1 << 16, 5) for _ in range(500)]
    places = sorted(place for place in found if place is not None)
    assert len(places) == 500
    assert all(b - a >= 5 for a, b in itertools.pairwise(places))
    assert len(space.pending()) == 1
    assert space.pending()[0].size == PAGE


def test_a_landing_that_was_given_back_is_free() -> None:
    space = layout()
    assert space.place_landing(PLACE - 2, 1, 5) == PLACE - 2
    space.give_back_landing(PLACE - 2, 5)
    assert space.place_landing(PLACE - 1, 1, 5) == PLACE - 1


def test_h81_landings_prefer_to_leave_the_heap_its_room() -> None:
    heap = TEXT + (2 << 20)
    space = layout(mapping(heap, PAGE, "rw-p", "[heap]"))
    # 16 MiB to choose from, of which the first 8 lie in the smallest room.
    low = heap + PAGE + (24 << 20)
    place = space.place_landing(low, 16 << 20, 5)
    assert place is not None and place >= heap + PAGE + (32 << 20)
    # No choice, and in the smallest room: better none.
    assert space.place_landing(heap + PAGE + (31 << 20), 1, 5) is None
    assert space.place_landing(heap + PAGE + (33 << 20), 1, 5) is not None


@given(st.lists(st.tuples(st.integers(0, 40000), st.sampled_from([1, 256, 65536])), max_size=60))
def test_landings_never_overlap(requests: list[tuple[int, int]]) -> None:
    space = layout(mapping(PLACE + 3 * PAGE, PAGE))
    taken: list[tuple[int, int]] = [(PLACE + 3 * PAGE, PLACE + 4 * PAGE)]
    for offset, span in requests:
        low = PLACE + offset
        place = space.place_landing(low, span, 5)
        if place is None:
            assert span < 65536
            continue
        assert low <= place < low + span
        assert all(place + 5 <= start or end <= place for start, end in taken)
        taken.append((place, place + 5))
    maps = [(one.start, one.start + one.size) for one in space.pending()]
    for start, end in taken[1:]:
        assert any(low <= start and end <= high for low, high in maps)


# -- claims ------------------------------------------------------------------------


def test_two_plans_may_rely_on_the_same_bytes() -> None:
    space = layout()
    assert space.claim([1], [2, 3, 4, 5])
    assert space.claim([0], [2, 3, 4, 5])


@pytest.mark.parametrize(
    ("changed", "unchanged"), [([1], []), ([2], []), ([9], [1]), ([9, 2], [7])]
)
def test_what_another_plan_has_is_not_to_be_had(changed: list[int], unchanged: list[int]) -> None:
    space = layout()
    assert space.claim([1], [2, 3, 4, 5])
    assert not space.can_claim(changed, unchanged)
    assert not space.claim(changed, unchanged)
    # A claim that failed reserves nothing.
    assert space.claim([9], [7])


def test_h83_what_is_gone_can_be_claimed_again() -> None:
    space = layout()
    assert space.claim([100], [101, 102])
    space.release([Patch(100, b"abc", b"xbc")])
    assert space.claim([101], [100, 102])


# -- mapping -----------------------------------------------------------------------


def test_h81_pages_that_are_near_share_a_mapping() -> None:
    space = layout()
    for page in (0, 3, 10, 40):
        assert space.place_landing(PLACE + page * PAGE, 1, 5)
    sizes = [(one.start - PLACE, one.size) for one in space.pending()]
    assert sizes == [(0, 11 * PAGE), (40 * PAGE, PAGE)]


def test_a_shared_mapping_does_not_cover_what_is_between() -> None:
    space = layout(mapping(PLACE + PAGE, PAGE))
    for page in (0, 2):
        assert space.place_landing(PLACE + page * PAGE, 1, 5)
    assert [one.size for one in space.pending()] == [PAGE, PAGE]


def test_what_is_mapped_is_pending_no_more() -> None:
    space = layout()
    region = space.region_near(TEXT, TEXT + TEXT_BYTES)
    space.place_landing(PLACE, 1, 5)
    space.place_landing(PLACE + 5 * PAGE, 1, 5)
    for pending in space.pending():
        space.mapped(pending)
    assert space.pending() == []
    assert space.regions == [region]
    # The pages between came with the mapping: they are used without another.
    assert space.place_landing(PLACE + 2 * PAGE, 1, 5) == PLACE + 2 * PAGE
    assert space.pending() == []


def test_a_new_look_keeps_what_is_pending() -> None:
    space = layout()
    place = space.place_landing(PLACE, 1, 5)
    assert place == PLACE
    space.refresh([mapping(TEXT, TEXT_BYTES), mapping(PLACE + PAGE, PAGE)])
    assert space.place_landing(PLACE + 5, 1, 5) == PLACE + 5
    assert space.place_landing(PLACE + PAGE, 1, 5) is None
    assert [one.start for one in space.pending()] == [PLACE]


def test_the_pages_of_an_earlier_agent_are_used() -> None:
    space = layout(mapping(PLACE, PAGE))
    assert space.place_landing(PLACE, 1, 5) is None
    space.adopt_page(PLACE)
    assert space.place_landing(PLACE, 1, 5) == PLACE
    assert space.pending() == []
