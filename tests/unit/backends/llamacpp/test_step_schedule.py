from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backends.llamacpp.step_schedule import Strand, Turns, plan


def strand(name: str, prompt: int, generated: int = 0) -> Strand:
    cached = prompt + generated - 1 if generated else 0
    return Strand(name, None, 0, [0] * (prompt + generated), prompt, cached)


def shares(strands: list[Strand], batch: int, chunk: int) -> dict[str, int]:
    return {one.strand.job_id: one.stop - one.strand.cached for one in plan(strands, batch, chunk)}


def test_a_prompt_alone_takes_the_whole_batch() -> None:
    assert shares([strand("a", 1000)], 256, 64) == {"a": 256}


def test_who_decodes_is_not_kept_waiting_by_a_long_prompt() -> None:
    assert shares([strand("a", 1000), strand("b", 5, 3), strand("c", 9, 1)], 256, 64) == {"b": 1, "c": 1, "a": 64}


def test_a_short_prompt_is_not_kept_waiting_by_a_long_one() -> None:
    assert shares([strand("long", 1000), strand("short", 10)], 256, 64) == {"short": 10, "long": 246}


def test_nor_a_long_one_for_ever_by_short_ones() -> None:
    strands = [strand("long", 1000), *(strand(str(number), 200) for number in range(3))]
    assert shares(strands, 256, 64) == {"0": 192, "long": 64}


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 5)), min_size=1, max_size=8),
    st.integers(8, 64),
    st.integers(1, 64),
)
def test_every_plan_fits_and_gets_on(shapes: list[tuple[int, int]], batch: int, chunk: int) -> None:
    strands = [strand(str(number), *shape) for number, shape in enumerate(shapes)]
    portions = plan(strands, batch, chunk)
    assert 1 <= sum(one.stop - one.strand.cached for one in portions) <= batch
    assert len({one.strand.job_id for one in portions}) == len(portions)
    for one in portions:
        assert one.strand.cached < one.stop <= len(one.strand.tokens)
        assert one.last == (one.stop == len(one.strand.tokens))
    decoding = {one.job_id for one in strands if one.decoding}
    assert decoding <= {one.strand.job_id for one in portions}


def test_one_adapter_keeps_its_turn_while_nobody_else_waits() -> None:
    turns = Turns(2)
    assert [turns.next(["a"]) for _ in range(5)] == ["a"] * 5
    assert [turns.next(["a", None]) for _ in range(5)] == [None, None, "a", "a", None]


@given(
    st.lists(st.sets(st.sampled_from([None, "a", "b", "c"]), min_size=1), min_size=1, max_size=60), st.integers(1, 4)
)
def test_nobody_waits_longer_than_the_others_turns(waiting: list[set[str | None]], steps: int) -> None:
    turns = Turns(steps)
    waited: dict[str | None, int] = {}
    for names in waiting:
        chosen = turns.next(sorted(names, key=str))
        assert chosen in names
        waited = {name: waited.get(name, 0) + 1 for name in names if name != chosen}
        assert all(count <= 3 * steps for count in waited.values())
