"""What waits to be sent: order, bounds, expiry, latest-wins."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.causes import Cause
from edge_agent.base.errors import RequestError
from edge_agent.mqtt.outbox import RETURNS, STATES, Outbox
from edge_agent.protocol import encode
from edge_agent.protocol.envelope import Backlog, Outbound
from edge_agent.protocol.topics import ReplyAddress


def reply(name: str, expiry_s: float | None = None, qos: int = 1, size: int = 1) -> Outbound:
    return Outbound(name, b"x" * size, qos=qos, expiry_s=expiry_s)


def state(name: str, body: bytes = b"x", qos: int = 1) -> Outbound:
    return Outbound(name, body, qos=qos, retain=True, keep="latest")


def drain(box: Outbox, now_s: float = 0.0, qos1: bool = True) -> list[Outbound]:
    taken = []
    while (item := box.take(now_s, qos1)) is not None:
        taken.append(item.fresh(now_s))
    return taken


def test_replies_keep_their_order() -> None:
    box = Outbox()
    assert all(box.put(reply(str(n)), 0.0) for n in range(5))
    assert [one.topic for one in drain(box)] == ["0", "1", "2", "3", "4"]
    assert len(box) == 0


def test_of_a_state_only_the_latest_is_sent() -> None:
    box = Outbox()
    for body in (b"1", b"2", b"3"):
        assert box.put(state("telemetry", body), 0.0)
    assert [one.payload for one in drain(box)] == [b"3"]


def test_what_expired_is_not_sent_and_the_rest_says_what_is_left() -> None:
    box = Outbox()
    box.put(reply("late", expiry_s=5.0), 0.0)
    box.put(reply("soon", expiry_s=9.0), 0.0)
    box.put(reply("ever"), 0.0)
    sent = drain(box, now_s=6.5)
    assert [(one.topic, one.expiry_s) for one in sent] == [("soon", 3.0), ("ever", None)]
    assert box.expired == 1


def test_a_full_window_lets_only_qos_0_pass() -> None:
    box = Outbox()
    box.put(state("status"), 0.0)
    box.put(state("telemetry", qos=0), 0.0)
    box.put(reply("a", qos=0), 0.0)
    box.put(reply("b"), 0.0)
    assert [one.topic for one in drain(box, qos1=False)] == ["telemetry", "a"]
    assert [one.topic for one in drain(box)] == ["status", "b"]


def test_it_is_bounded_by_number_and_by_bytes() -> None:
    box = Outbox(max_messages=3, max_bytes=100)
    assert all(box.put(reply(str(n)), 0.0) for n in range(3))
    assert not box.put(reply("3"), 0.0)
    assert box.put(state("s", b"y" * 97), 0.0)
    assert not box.put(state("t"), 0.0)
    assert box.put(state("s", b"z" * 97), 0.0)
    assert not box.put(state("s", b"z" * 98), 0.0)
    drain(box)
    many = Outbox()
    assert all(many.put(state(str(n)), 0.0) for n in range(STATES))
    assert not many.put(state("one more"), 0.0)


def test_expired_ones_make_room() -> None:
    box = Outbox(max_messages=2)
    box.put(reply("a", expiry_s=1.0), 0.0)
    box.put(reply("b"), 0.0)
    assert not box.put(reply("c"), 2.0)
    box.drop_late(2.0)
    assert box.put(reply("c"), 2.0)
    assert [one.topic for one in drain(box)] == ["b", "c"]


def test_what_was_on_its_way_is_sent_first_again_and_old_states_do_not_win() -> None:
    box = Outbox()
    for message in (state("status", b"old"), reply("a"), reply("b")):
        box.put(message, 0.0)
    on_the_way = [item for _ in range(3) if (item := box.take(0.0, True)) is not None]
    box.put(state("status", b"new"), 0.0)
    box.put(reply("c"), 0.0)
    assert box.put_back(on_the_way) == 0
    assert [(one.topic, one.payload) for one in drain(box)] == [
        ("status", b"new"),
        ("a", b"x"),
        ("b", b"x"),
        ("c", b"x"),
    ]


def test_what_finds_no_room_again_is_counted() -> None:
    box = Outbox(max_messages=1)
    box.put(reply("a"), 0.0)
    on_the_way = [item for _ in range(1) if (item := box.take(0.0, True)) is not None]
    box.put(reply("b"), 0.0)
    assert box.put_back(on_the_way) == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 40), st.integers(0, 5)), max_size=40))
def test_the_byte_count_never_drifts(steps: list[tuple[str, bool, int, int]]) -> None:
    box = Outbox(max_messages=8, max_bytes=100)
    for now_s, (topic, latest, size, expiry_s) in enumerate(steps):
        message = Outbound(topic, b"x" * size, keep="latest" if latest else "queue", expiry_s=float(expiry_s))
        box.put(message, float(now_s))
        if size % 3 == 0:
            box.take(float(now_s), qos1=size % 2 == 0)
        if size % 7 == 0:
            box.drop_late(float(now_s))
    drain(box)
    assert box._bytes == 0
    assert box.put(Outbound("x", b"x" * 100), 0.0)


def test_what_was_on_its_way_at_three_ends_is_given_up_and_goes_alone_until_then() -> None:
    box = Outbox()
    box.put(reply("bad"), 0.0)
    box.put(reply("good"), 0.0)
    for _ in range(RETURNS - 1):
        assert not box.suspicious
        item = box.take(0.0, qos1=True)
        assert item is not None
        assert box.returned([item]) == []
    assert box.suspicious
    item = box.take(0.0, qos1=True)
    assert item is not None
    assert [one.message.topic for one in box.returned([item])] == ["bad"]
    assert [one.topic for one in drain(box)] == ["good"]
    assert box.lost == 0


def test_a_message_is_late_at_its_due_time() -> None:
    box = Outbox()
    box.put(Outbound("t", b"x", qos=1, expiry_s=5.0), 0.0)
    assert box.take(5.0, True) is None and box.expired == 1


def test_an_answer_waits_in_the_outbox_no_longer_than_its_deadline() -> None:
    """Seed 16: whole seconds, rounded up, let it leave almost a second late."""
    box = Outbox()
    to = ReplyAddress("edge/v1/client/c/reply", "1", "c", b"1", "v5")
    box.put(encode.refusal(RequestError(503, Cause.UNAVAILABLE, "no"), to, 0.3), 10.0)
    assert box.take(10.31, qos1=True) is None
    box.put(encode.refusal(RequestError(503, Cause.UNAVAILABLE, "no"), to, 0.3), 10.0)
    sent = box.take(10.29, qos1=True)
    assert sent is not None
    assert sent.fresh(10.29).expiry_s == 1.0, "on the wire there are only whole seconds"


def answer(client: str, body: bytes = b"x", request_id: str | None = None) -> Outbound:
    return Outbound(f"c/{client}", body, client=client, holds_place=True, request_id=request_id)


def refusal(client: str, body: bytes = b"r", request_id: str | None = None, qos: int = 1) -> Outbound:
    return Outbound(f"c/{client}", body, qos=qos, client=client, expendable=True, request_id=request_id)


def test_clients_take_turns_and_refusals_go_last() -> None:
    box = Outbox()
    box.put(refusal("flood"), 0.0)
    for number in range(3):
        box.put(answer("many", b"%d" % number), 0.0)
    box.put(answer("one"), 0.0)
    sent = [(one.client, one.payload) for one in drain(box)]
    assert sent == [("many", b"0"), ("one", b"x"), ("many", b"1"), ("many", b"2"), ("flood", b"r")]


def test_refusals_leave_an_answer_the_room_it_needs_and_are_counted() -> None:
    box = Outbox(max_messages=8, max_bytes=100)
    assert [box.put(refusal("flood"), 0.0) for _ in range(3)] == [True, True, False]
    assert box.displaced == 1
    for number in range(8):
        assert box.put(answer(f"good-{number}"), 0.0)
    assert (len(box), box.displaced) == (8, 3)
    assert not box.put(answer("one more"), 0.0), "answers have no room but the outbox's"
    assert all(one.client != "flood" for one in drain(box))


def test_a_client_gets_no_more_than_its_share_of_the_room_for_refusals() -> None:
    box = Outbox(max_messages=100)
    flood = sum(box.put(refusal("flood"), 0.0) for _ in range(100))
    assert flood == 20, "four times as many as are left free"
    assert box.put(refusal("other"), 0.0)


def test_an_answer_takes_the_place_of_the_refusal_of_an_earlier_delivery() -> None:
    """The first delivery was refused at the door and the refusal waits; the second one was taken, and answered."""
    box = Outbox()
    box.put(refusal("a", request_id="1"), 0.0)
    box.put(refusal("a", request_id="2"), 0.0)
    box.put(answer("a", b"done", request_id="1"), 0.0)
    assert [one.payload for one in drain(box)] == [b"done", b"r"]


def test_what_waits_says_whose_places_it_holds() -> None:
    box = Outbox()
    box.put(answer("a", b"12"), 0.0)
    box.put(answer("b", b"345"), 0.0)
    box.put(reply("c/a", size=10), 0.0)  # a part of a stream: its request is still open
    box.put(refusal("a"), 0.0)
    assert box.backlog("a") == Backlog(places=2, size_bytes=15, own_places=1, own_bytes=2)
    item = box.take(0.0, qos1=True)
    assert item is not None
    assert box.backlog("a").places == 1
    box.put_back([item])
    assert box.backlog("a").places == 2


def test_it_says_when_nothing_should_be_begun_or_taken_in() -> None:
    box = Outbox(max_messages=80)
    assert not box.crowded
    for _ in range(11):
        box.put(refusal("flood"), 0.0)
    assert box.crowded, "the room for refusals is half taken"
    assert not box.nearly_full
    for number in range(30):
        box.put(answer(str(number)), 0.0)
    assert box.nearly_full


def test_a_state_that_ends_connections_is_found_though_each_time_it_is_a_new_one() -> None:
    """Telemetry at QoS 0 is never acknowledged, and is another message each time."""
    box = Outbox()
    for body in (b"1", b"2"):
        box.put(state("telemetry", body, qos=0), 0.0)
        item = box.take(0.0, qos1=True)
        assert item is not None
        assert box.returned([item]) == []
        assert len(box) == 0, "the next one says more"
    box.put(state("telemetry", b"3", qos=0), 0.0)
    assert box.suspicious
    item = box.take(0.0, qos1=True)
    assert item is not None
    assert [one.message.payload for one in box.returned([item])] == [b"3"]
    box.put(state("telemetry", b"4", qos=0), 0.0)
    assert not box.suspicious


def test_a_state_that_the_broker_took_is_suspected_no_more() -> None:
    box = Outbox()
    for _ in range(RETURNS - 1):
        box.put(state("status"), 0.0)
        item = box.take(0.0, qos1=True)
        assert item is not None
        box.returned([item])
    assert box.suspicious
    box.proven("status")
    assert not box.suspicious


def test_hurried_refusals_do_not_wait_for_the_window() -> None:
    box = Outbox()
    box.put(answer("a"), 0.0)
    box.put(refusal("b"), 0.0)
    assert box.take(0.0, qos1=False) is None
    item = box.take(0.0, qos1=False, hurried=True)
    assert item is not None
    assert item.message.client == "b"
    assert box.take(0.0, qos1=False, hurried=True) is None, "an answer waits for the window"
