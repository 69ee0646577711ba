from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backends.llamacpp.sequence_slots import SequenceSlots

PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=8)


def test_a_prompt_that_continues_an_idle_slot_computes_only_what_is_new() -> None:
    slots = SequenceSlots(2)
    first = slots.take(0, [1, 2, 3])
    slots.computed(first.slot, [1, 2, 3, 4], 4)
    slots.leave(first.slot)
    place = slots.take(0, [1, 2, 3, 4, 5])
    assert (place.slot, place.cached, place.source) == (first.slot, 4, first.slot)


def test_the_last_token_is_always_computed() -> None:
    slots = SequenceSlots(1)
    slots.computed(slots.take(0, [1, 2]).slot, [1, 2], 2)
    slots.leave(0)
    assert slots.take(0, [1, 2]).cached == 1


def test_a_busy_slots_prefix_is_shared_with_another() -> None:
    slots = SequenceSlots(2)
    busy = slots.take(0, [1, 2, 3])
    slots.computed(busy.slot, [1, 2, 3], 3)
    place = slots.take(0, [1, 2, 9])
    assert (place.cached, place.source) == (2, busy.slot)
    assert place.slot != busy.slot


def test_conversations_that_only_begin_alike_keep_their_caches() -> None:
    slots = SequenceSlots(2)
    talks = {"a": [0, *range(10, 30)], "b": [0, *range(40, 60)]}
    cached: dict[str, list[int]] = {"a": [], "b": []}
    for _turn in range(3):
        for name, tokens in talks.items():
            place = slots.take(0, tokens)
            cached[name].append(place.cached)
            talks[name] = [*tokens, len(tokens)]
            slots.computed(place.slot, tokens, len(tokens))
            slots.leave(place.slot)
    assert cached == {"a": [0, 21, 22], "b": [1, 21, 22]}


def test_questions_with_a_long_common_beginning_take_one_slot_by_turns() -> None:
    slots = SequenceSlots(2)
    system = list(range(20))
    slots.computed(slots.take(0, [99, 98, 97]).slot, [99, 98, 97], 3)
    slots.leave(0)
    places = []
    for question in range(4):
        prompt = [*system, 100 + question]
        places.append(slots.take(0, prompt))
        slots.computed(places[-1].slot, prompt, len(prompt))
        slots.leave(places[-1].slot)
    assert {place.slot for place in places} == {1}, "the other conversation stays"
    assert [place.cached for place in places] == [0, 20, 20, 20]


def test_what_another_adapter_computed_is_no_prefix() -> None:
    slots = SequenceSlots(2)
    slots.computed(slots.take(1, [1, 2, 3]).slot, [1, 2, 3], 3)
    slots.leave(0)
    assert slots.take(0, [1, 2, 3, 4]).cached == 0
    slots.forget(1)
    assert slots.take(1, [1, 2, 3, 4]).cached == 0


def test_what_another_clients_prompt_left_is_no_prefix() -> None:
    slots = SequenceSlots(2)
    slots.computed(slots.take(0, [1, 2, 3], "a").slot, [1, 2, 3], 3)
    slots.leave(0)
    assert slots.take(0, [1, 2, 3, 4], "b").cached == 0
    assert slots.take(0, [1, 2, 3, 4], "a").cached == 3


def _serve(slots: SequenceSlots, prompt: list[int], cut: list[int]) -> int:
    """One request from beginning to end; how many of its tokens were there already."""
    place = slots.take(0, prompt)
    slots.computed(place.slot, prompt, len(prompt))
    slots.leave(place.slot)
    slots.sweep(lambda slot, _start: cut.append(slot))
    return place.cached


def test_cells_are_kept_no_longer_when_prompts_share_nothing() -> None:
    slots, cut = SequenceSlots(4), list[int]()
    for turn in range(12):
        _serve(slots, [turn] * 9, cut)
    assert not cut, "a few strangers drive no conversation out"
    for turn in range(12, 16):
        _serve(slots, [turn] * 9, cut)
    assert sorted(cut[:4]) == [0, 1, 2, 3], "then nobody's cells are in the way"
    assert _serve(slots, [*[15] * 9, 1], cut) == 0, "the cells are gone"


def test_cells_are_kept_again_once_prompts_begin_alike() -> None:
    slots, cut = SequenceSlots(2), list[int]()
    for turn in range(20):
        _serve(slots, [turn] * 9, cut)
    talk = [7] * 9
    cached = []
    for turn in range(4):
        talk = [*talk, turn]
        cached.append(_serve(slots, talk, cut))
    assert cached[0] == 0
    assert cached[-1] == len(talk) - 1, "what was only remembered is computed once more and then kept"


def test_cells_of_no_use_are_given_back_at_once() -> None:
    slots, cut = SequenceSlots(2), list[int]()
    failed = slots.take(0, [1, 2, 3])
    slots.clear(failed.slot)
    slots.leave(failed.slot)
    slots.sweep(lambda slot, _start: cut.append(slot))
    detached = slots.take(5, [1, 2, 3])
    slots.computed(detached.slot, [1, 2, 3], 3)
    slots.leave(detached.slot)
    slots.forget(5)
    slots.sweep(lambda slot, _start: cut.append(slot))
    slots.sweep(lambda slot, _start: cut.append(slot))
    assert cut == [failed.slot, detached.slot]


@given(st.lists(st.tuples(st.integers(0, 2), PROMPTS, st.booleans()), max_size=60))
def test_a_prefix_is_always_what_the_source_really_holds(jobs: list[tuple[int, list[int], bool]]) -> None:
    """The cache itself, imitated: per slot the (owner, tokens) that its cells were computed from."""
    slots = SequenceSlots(3)
    cells: dict[int, tuple[int, list[int]]] = {}
    busy: list[int] = []

    def cut(slot: int, start: int) -> None:
        assert (slot in busy, start) == (False, 0)
        del cells[slot]

    for owner, prompt, leaves in jobs:
        if not slots.free:
            slots.leave(busy.pop(0))
            slots.sweep(cut)
        place = slots.take(owner, prompt)
        assert place.slot not in busy
        assert place.cached < len(prompt)
        if place.cached:
            held_owner, held = cells[place.source]
            assert held_owner == owner
            assert held[: place.cached] == prompt[: place.cached]
        cells[place.slot] = (owner, list(prompt))
        slots.computed(place.slot, prompt, len(prompt))
        busy.append(place.slot)
        if leaves:
            slots.leave(busy.pop())
            slots.sweep(cut)


def test_a_parked_answer_goes_on_where_it_stopped_and_what_it_computed_is_swept_by_nobody() -> None:
    slots, cut = SequenceSlots(1, kept=1), list[tuple[int, int]]()
    tokens = [1, 2, 3]
    first = slots.take(0, tokens, "a")
    slots.computed(first.slot, tokens, 2)
    slots.park(first.slot)
    assert slots.free == 1
    other = slots.take(0, [7], "b")
    assert other.slot != first.slot
    slots.sweep(lambda slot, start: cut.append((slot, start)))
    assert not cut
    slots.leave(other.slot)
    again = slots.resume(0, tokens, "a")
    assert (again.slot, again.cached, slots.free) == (first.slot, 2, 0)


def test_room_is_made_from_what_is_not_at_work_and_from_parked_answers_last() -> None:
    slots, cut = SequenceSlots(2, kept=1), list[int]()
    texts = [[number] * 4 for number in range(3)]
    for number, text in enumerate(texts):
        place = slots.take(0, text, str(number))
        slots.computed(place.slot, text, 4)
        if number == 0:
            slots.park(place.slot)
        if number == 1:
            slots.leave(place.slot)
    slots.make_room(4, 16, lambda slot, _start: cut.append(slot))
    assert cut == [], "16 cells hold 12 tokens and 4 more"
    slots.make_room(5, 16, lambda slot, _start: cut.append(slot))
    assert cut == [1], "a prefix goes first"
    slots.make_room(12, 16, lambda slot, _start: cut.append(slot))
    assert cut == [1, 0], "then the parked answer; what is at work stays"
    assert slots.resume(0, texts[0], "0").cached == 0, "it is read again"
