from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backends.llamacpp.step_schedule import AdapterRoundRobin, TokenSequence, schedule_chunks


def sequence(name: str, prompt: int, generated: int = 0) -> TokenSequence:
    cached = prompt + generated - 1 if generated else 0
    return TokenSequence(name, None, "", 0, [0] * (prompt + generated), prompt, cached)


def shares(sequences: list[TokenSequence], batch: int, chunk: int) -> dict[str, int]:
    return {one.sequence.job_id: one.stop - one.sequence.cached for one in schedule_chunks(sequences, batch, chunk)}


def test_a_prompt_alone_takes_the_whole_batch() -> None:
    assert shares([sequence("a", 1000)], 256, 64) == {"a": 256}


def test_who_decodes_is_not_kept_waiting_by_a_long_prompt() -> None:
    assert shares([sequence("a", 1000), sequence("b", 5, 3), sequence("c", 9, 1)], 256, 64) == {"b": 1, "c": 1, "a": 64}


def test_a_short_prompt_is_not_kept_waiting_by_a_long_one() -> None:
    assert shares([sequence("long", 1000), sequence("short", 10)], 256, 64) == {"short": 10, "long": 246}


def test_nor_a_long_one_for_ever_by_short_ones() -> None:
    sequences = [sequence("long", 1000), *(sequence(str(number), 200) for number in range(3))]
    assert shares(sequences, 256, 64) == {"0": 192, "long": 64}


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 5)), min_size=1, max_size=8),
    st.integers(8, 64),
    st.integers(1, 64),
)
def test_every_plan_fits_and_gets_on(shapes: list[tuple[int, int]], batch: int, chunk: int) -> None:
    sequences = [sequence(str(number), *shape) for number, shape in enumerate(shapes)]
    chunks = schedule_chunks(sequences, batch, chunk)
    assert 1 <= sum(one.stop - one.sequence.cached for one in chunks) <= batch
    assert len({one.sequence.job_id for one in chunks}) == len(chunks)
    for one in chunks:
        assert one.sequence.cached < one.stop <= len(one.sequence.tokens)
        assert one.last == (one.stop == len(one.sequence.tokens))
    decoding = {one.job_id for one in sequences if one.decoding}
    assert decoding <= {one.sequence.job_id for one in chunks}


def test_one_adapter_keeps_its_turn_while_nobody_else_waits() -> None:
    turns = AdapterRoundRobin(2)
    assert [turns.next(["a"]) for _ in range(5)] == ["a"] * 5
    assert [turns.next(["a", None]) for _ in range(5)] == [None, None, "a", "a", None]


@given(
    st.lists(st.sets(st.sampled_from([None, "a", "b", "c"]), min_size=1), min_size=1, max_size=60), st.integers(1, 4)
)
def test_nobody_waits_longer_than_the_others_turns(waiting: list[set[str | None]], steps: int) -> None:
    turns = AdapterRoundRobin(steps)
    waited: dict[str | None, int] = {}
    for names in waiting:
        chosen = turns.next(sorted(names, key=str))
        assert chosen in names
        waited = {name: waited.get(name, 0) + 1 for name in names if name != chosen}
        assert all(count <= 3 * steps for count in waited.values())
