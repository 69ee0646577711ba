"""Acknowledgements: in the order of arrival, each once, and never more than the window outstanding."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.agent.context import UNACKNOWLEDGED, AckWindow
from edge_agent.protocol.envelope import Inbound


def message(token: int | None) -> Inbound:
    return Inbound("t", b"", qos=0 if token is None else 1, ack=token)


class Log:
    """A window and what it acknowledged."""

    def __init__(self, held: int = UNACKNOWLEDGED) -> None:
        self.acked: list[int | None] = []
        self.window = AckWindow(lambda one: self.acked.append(one.ack), held)


def test_an_answered_request_is_acknowledged_and_not_before() -> None:
    log = Log()
    log.window.hold(message(1))
    assert log.acked == []
    log.window.release(message(1))
    assert log.acked == [1]


def test_a_later_answer_waits_for_the_earlier_request() -> None:
    log = Log()
    for token in (1, 2, 3):
        log.window.hold(message(token))
    log.window.release(message(2))
    log.window.release(message(3))
    assert log.acked == []
    log.window.release(message(1))
    assert log.acked == [1, 2, 3]


def test_the_oldest_is_acknowledged_early_when_the_window_is_full() -> None:
    log = Log(held=2)
    for token in (1, 2, 3):
        log.window.hold(message(token))
    assert log.acked == [1]
    log.window.release(message(1))
    assert log.acked == [1], "once is enough"


def test_early_acknowledgement_takes_those_along_that_waited_behind() -> None:
    log = Log(held=2)
    log.window.hold(message(1))
    log.window.hold(message(2))
    log.window.release(message(2))
    log.window.hold(message(3))
    assert log.acked == [1, 2]


def test_qos_0_has_nothing_to_acknowledge() -> None:
    log = Log()
    log.window.hold(message(None))
    log.window.release(message(None))
    assert log.acked == []


def test_releasing_what_was_never_held_does_nothing() -> None:
    log = Log()
    log.window.release(message(7))
    assert log.acked == []


STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=80)


@given(STEPS, st.integers(1, 6))
def test_in_order_once_and_within_the_window(steps: list[tuple[bool, int]], held: int) -> None:
    log, taken, released = Log(held), 0, set()
    for arrives, which in steps:
        if arrives:
            log.window.hold(message(taken))
            taken += 1
        elif taken:
            log.window.release(message(which % taken))
            released.add(which % taken)
        assert log.acked == list(range(len(log.acked))), "out of order, or twice"
        outstanding = range(len(log.acked), taken)
        assert len(outstanding) <= held
        assert not outstanding or outstanding[0] not in released, "the first could have been acknowledged"
    for token in range(taken):
        log.window.release(message(token))
    assert log.acked == list(range(taken)), "something was never acknowledged"
