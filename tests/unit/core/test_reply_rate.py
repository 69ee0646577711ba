"""How many refusals a client is sent: a burst wholly, a flood at a rate, and none at another's cost."""

from __future__ import annotations

from edge_agent.base.limits import KIB
from edge_agent.core.reply_rate import ALL_BURST, CLIENT_BURST, CLIENT_PER_S, CLIENTS_KEPT, DoorRate, ReplyRate


def sent(rate: ReplyRate, client: str, count: int, now_s: float, size: int = 100) -> int:
    return sum(rate.take(client, size, now_s) for _ in range(count))


def test_five_thousand_at_once_are_answered_one_by_one() -> None:
    rate = ReplyRate()
    assert sent(rate, "burst", 5000, 0.0) == 5000
    assert rate.take_withheld() == 0


def test_a_flood_is_answered_at_a_rate_and_the_rest_is_counted() -> None:
    rate = ReplyRate()
    answered = sum(sent(rate, "flood", 290, tenth / 10) for tenth in range(100))
    assert CLIENT_BURST <= answered <= CLIENT_BURST + 10 * CLIENT_PER_S
    assert rate.take_withheld() == 29_000 - answered
    assert rate.take_withheld() == 0
    assert sent(rate, "other", 10, 10.0) == 10


def test_a_large_answer_repeated_costs_what_it_has() -> None:
    rate = ReplyRate()
    times = sent(rate, "again", 5000, 0.0, size=101 * KIB)
    assert times == -(-CLIENT_BURST // 101), "101 tokens each"


def test_many_names_have_a_bound_together_and_are_not_all_remembered() -> None:
    rate = ReplyRate()
    assert sum(rate.take(f"name-{number}", 100, 0.0) for number in range(40_000)) == ALL_BURST
    assert len(rate._clients) == CLIENTS_KEPT


def test_a_clock_that_stands_still_gives_nothing() -> None:
    rate = ReplyRate()
    sent(rate, "a", int(CLIENT_BURST), 5.0)
    assert not rate.take("a", 1, 5.0)
    assert rate.take("a", 1, 5.5)


def test_who_asked_in_vain_too_often_is_turned_away_until_it_may_be_refused_again() -> None:
    door = DoorRate()
    for _ in range(5000):
        assert not door.turns_away("burst", 0.0)
        door.note_futile("burst", 0.0)
    for _ in range(int(CLIENT_BURST)):
        door.note_futile("flood", 0.0)
    assert [door.turns_away(sender, 0.0) for sender in ("flood", "burst", "unknown")] == [True, False, False]
    assert not door.turns_away("flood", 1.5 / CLIENT_PER_S), "what is admitted from here on costs nothing"
    assert not door.turns_away("flood", 1.5 / CLIENT_PER_S)
    door.note_futile("flood", 1.5 / CLIENT_PER_S)
    assert door.turns_away("flood", 1.5 / CLIENT_PER_S)
    assert door.take_turned_away() == 2
    assert door.take_turned_away() == 0


def test_the_door_remembers_a_bounded_number_of_senders() -> None:
    door = DoorRate()
    for number in range(3 * CLIENTS_KEPT):
        door.note_futile(f"name-{number}", 0.0)
    assert len(door._senders) == CLIENTS_KEPT
