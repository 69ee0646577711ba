"""Turns of clients at a generator's sequences, on a clock of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backends.llamacpp.answer_turns import AHEAD_S, CLIENTS_KEPT, AnswerTurns
from edge_agent.base.limits import ANSWER_TURN_S

STEP_S = 0.1


@dataclass(eq=False)
class Answer:
    """An answer of so many steps; what it lost while it was parked is read again at `read_again_s`."""

    client: str
    left: int
    read_again_s: float = 0.0
    to_read_s: float = 0.0
    read_s: float = 0.0
    decode_s: float = 0.0
    steps: list[int] = field(default_factory=list)

    @property
    def may_park(self) -> bool:
        return self.to_read_s <= 0.0


@dataclass
class Device:
    """Sequences that compute one step at a time, all at once."""

    sequences: int
    turns: AnswerTurns = field(default_factory=AnswerTurns)
    waiting: list[Answer] = field(default_factory=list)
    parked: list[Answer] = field(default_factory=list)
    active: list[Answer] = field(default_factory=list)
    clock: int = 0

    def ask(self, answer: Answer) -> Answer:
        inside = [one.client for one in (*self.waiting, *self.parked, *self.active)]
        self.turns.arrive(answer.client, inside)
        self.waiting.append(answer)
        return answer

    def step(self) -> None:
        while (wanting := self.turns.next([*self.parked, *self.waiting], self.active)) is not None:
            if len(self.active) == self.sequences:
                gives_way = self.turns.gives_way(wanting, self.active)
                if gives_way is None:
                    break
                self.active.remove(gives_way)
                self.parked.append(gives_way)
                gives_way.to_read_s = gives_way.read_again_s
            (self.parked if wanting in self.parked else self.waiting).remove(wanting)
            wanting.read_s = wanting.decode_s = 0.0
            self.active.append(wanting)
        for one in list(self.active):
            self.turns.charge(one.client, STEP_S / len(self.active))
            if one.to_read_s > 0.0:
                one.to_read_s -= STEP_S
                one.read_s += STEP_S
                continue
            one.decode_s += STEP_S
            one.left -= 1
            one.steps.append(self.clock)
            if not one.left:
                self.active.remove(one)
        self.clock += 1


TURN_STEPS = round(ANSWER_TURN_S / STEP_S)


def test_a_short_answer_does_not_wait_for_a_long_one() -> None:
    device = Device(1)
    long = device.ask(Answer("hog", 1000))
    for _ in range(100):
        device.step()
    short = device.ask(Answer("good", 2))
    for _ in range(TURN_STEPS + 2):
        device.step()
    assert not short.left
    while long.left:
        device.step()
    assert device.clock == 1000 + 2


def test_a_client_alone_is_never_interrupted() -> None:
    device = Device(2)
    answers = [device.ask(Answer("hog", 50)) for _ in range(6)]
    while any(one.left for one in answers):
        device.step()
    assert all(one.steps == list(range(one.steps[0], one.steps[0] + 50)) for one in answers)


@given(names=st.integers(1, 40), sequences=st.integers(1, 4), ahead=st.integers(0, 50))
def test_the_wait_for_the_first_step_is_a_turn_for_each_name_and_not_an_answer(
    names: int, sequences: int, ahead: int
) -> None:
    device = Device(sequences)
    for number in range(names):
        device.ask(Answer(f"hog-{number}", 10_000))
    for _ in range(ahead):
        device.step()
    short, asked = device.ask(Answer("good", 1)), device.clock
    while short.left:
        device.step()
    turns = -(-names // sequences)
    assert device.clock - asked <= (turns + 1) * (TURN_STEPS + 1)


@given(names=st.integers(2, 8), sequences=st.integers(1, 3))
def test_who_asks_for_long_answers_gets_the_same_time_as_the_others(names: int, sequences: int) -> None:
    device = Device(sequences)
    answers = [device.ask(Answer(str(number), 10_000)) for number in range(names)]
    for _ in range(names * 100):
        device.step()
    steps = [len(one.steps) for one in answers]
    # One turn is what a client may be ahead; of fewer names than sequences none waits.
    assert max(steps) - min(steps) <= 2 * (TURN_STEPS + 1)


@given(read_again=st.integers(0, 40), names=st.integers(2, 6))
def test_at_most_half_of_the_time_is_lost_where_all_that_is_parked_must_be_read_again(
    read_again: int, names: int
) -> None:
    device = Device(1)
    answers = [device.ask(Answer(str(number), 10_000, read_again * STEP_S)) for number in range(names)]
    for _ in range(2000):
        device.step()
    assert sum(len(one.steps) for one in answers) >= 2000 // 2 - 50


def test_a_client_that_comes_and_goes_gains_nothing() -> None:
    device = Device(1)
    steady = device.ask(Answer("steady", 10_000))
    served = 0
    for _ in range(200):
        one = device.ask(Answer("restless", 5))
        for _ in range(10):
            device.step()
        served += len(one.steps)
        for place in (device.waiting, device.parked, device.active):
            if one in place:
                place.remove(one)
    assert served <= len(steady.steps) + 2 * TURN_STEPS


def test_fresh_names_do_not_keep_out_who_has_had_a_turn() -> None:
    device, number, live = Device(1), 0, list[Answer]()
    victim = device.ask(Answer("victim", 50))
    for _ in range(20):
        device.step()
    while victim.left and device.clock < 2000:
        live = [one for one in live if one.left]
        while len(live) < 2:
            live.append(device.ask(Answer(f"fresh-{number}", TURN_STEPS)))
            number += 1
        device.step()
    assert device.clock < 4 * (50 + 3 * TURN_STEPS)


def test_what_a_client_got_while_it_was_alone_does_not_count_for_long() -> None:
    device = Device(1)
    regular = device.ask(Answer("regular", 6000))
    while regular.left:
        device.step()
    device.ask(Answer("new", 3000))
    for _ in range(50):
        device.step()
    short, asked = device.ask(Answer("regular", 2)), device.clock
    while short.left:
        device.step()
    assert (device.clock - asked) * STEP_S <= 2 * AHEAD_S


def test_of_clients_that_have_gone_only_some_are_remembered() -> None:
    turns = AnswerTurns()
    for number in range(3000):
        turns.arrive(str(number), ["stays"])
        turns.charge(str(number), float(number))
    assert len(turns._served) <= CLIENTS_KEPT + 2
    turns.charge("stays", 10_000.0)
    for number in range(CLIENTS_KEPT + 1):
        turns.arrive(f"later-{number}", ["stays"])
        assert f"later-{number}" in turns._served, "who came last is not dropped"
