"""What arrives is answered at once, queued, or dropped with an event; and always acknowledged in the end."""

from __future__ import annotations

from dataclasses import replace

from edge_agent.base.limits import MESSAGE_BYTES, QUEUE_BYTES
from edge_agent.core.reply_rate import CLIENT_BURST
from edge_agent.protocol.envelope import Inbound
from tests.support.fakes import Plan, a_model
from tests.support.in_process import NAME, PREFIX, Device
from tests.support.virtual_time import later, settle


def test_an_unknown_model_or_adapter_is_404_and_names_those_there_are() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", model="nobody")
        await device.ask("2", {"text": "x", "adapter": "nobody"})
        assert device.transport.reply("1")["reason"] == "no model 'nobody' on this device; there are: m"
        assert device.transport.reply("2")["reason"] == "model 'm' has no adapter 'nobody'; there are: a, b"
        assert device.transport.statuses() == {"1": [404], "2": [404]}
        assert device.transport.acked == [1, 2]

    Device.run(scenario, a_model(adapters=["b", "a"]))


def test_an_adapters_name_in_the_place_of_the_models_is_told_its_model() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", model="b")
        reason = device.transport.reply("1")["reason"]
        assert reason == "no model 'b' on this device; there are: m; it is an adapter: ask 'm' with adapter 'b'"

    Device.run(scenario, a_model(adapters=["b", "a"]))


def test_a_device_without_models_says_so() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        assert device.transport.reply("1")["reason"] == "no model 'm' on this device; there are none"

    Device.run(scenario)


def test_a_full_queue_is_429_and_a_later_retry_is_asked_anew() -> None:
    async def scenario(device: Device) -> None:
        for index in range(3):
            await device.ask(str(index), client=f"c{index}")
        await settle()
        refused = device.transport.reply("2")
        assert (refused["status"], refused["reason"]) == (429, "queue full: 2 of 2 requests are open")
        assert refused["retry_after_s"] > 0
        device.spawner.last.finish()
        await settle()
        device.transport.published.clear()
        await device.ask("2")
        await settle()
        device.spawner.last.finish()
        assert device.status("2") == 200

    Device.run(scenario, a_model(), plan=Plan(compute_s=None), queue_jobs=2)


def test_who_would_be_overtaken_is_refused_at_the_door_and_the_urgent_are_not() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("first")
        await later(5.0)
        served = device.manager.served_models["m"]
        for _ in range(20):
            device.context.costs.learn(served.cost_key, 1, 1, 1.0, device.context.grant.threads)
        for index in range(4):
            await device.ask(f"urgent{index}", {"text": "x", "priority": 1}, client=f"c{index}")
        body = {"text": "x", "deadline_s": 8.0}
        await device.ask("background", {**body, "priority": 9})
        await device.ask("urgent", {**body, "priority": 0})
        await settle()
        reason = device.transport.reply("background")["reason"]
        assert reason.startswith("cannot meet the deadline: ")
        assert "urgent" not in device.transport.statuses()

    Device.run(scenario, a_model(), plan=Plan(compute_s=1.0), max_rows=1)


def test_a_load_under_way_counts_with_what_is_left_of_it() -> None:
    async def scenario(device: Device) -> None:
        served = device.manager.served_models["m"]
        served.lifecycle.expect_load(6.0)
        device.context.costs.learn(served.cost_key, 1, 1, 0.1, device.context.grant.threads)
        await device.ask("begins")
        await later(2.0)
        assert served.lifecycle.published == "loading"
        await device.ask("short", {"text": "x", "deadline_s": 3.0})
        await device.ask("long", {"text": "x", "deadline_s": 5.0})
        assert device.transport.reply("short")["reason"].startswith("cannot meet the deadline: 4.1 s of queue")
        assert "long" not in device.transport.statuses()
        await later(10.0)
        await device.ask("loaded", {"text": "x", "deadline_s": 0.5})
        await later(1.0)
        assert device.status("loaded") == 200

    Device.run(scenario, a_model(), plan=Plan(load_s=6.0), max_rows=1)


def test_large_bodies_fill_the_queue_before_its_places_are_taken() -> None:
    async def scenario(device: Device) -> None:
        texts = ["x" * 30_000] * 4
        most = QUEUE_BYTES // len(device.message("0", {"texts": texts}).payload)
        for index in range(most + 1):
            await device.ask(str(index), {"texts": texts}, client=f"c{index}")
        refused = device.transport.reply(str(most))
        assert refused["status"] == 429
        assert refused["reason"].startswith("queue full")
        assert len(device.transport.replies()) == 1
        assert sum(len(job.origin.message.payload) for job in device.context.requests.open_jobs()) == 0

    Device.run(scenario, a_model(), plan=Plan(compute_s=None), queue_jobs=256)


def test_one_client_leaves_bytes_to_others() -> None:
    async def scenario(device: Device) -> None:
        body = {"texts": ["x" * 30_000] * 4}
        for index in range(80):
            await device.ask(str(index), body, client="flood")
        assert "queue full for this client: with this request" in device.transport.replies()[0]["reason"]
        held = len(device.context.requests)
        await device.ask("late", body, client="other")
        assert len(device.context.requests) == held + 1, "taken"

    Device.run(scenario, a_model(), plan=Plan(compute_s=None), queue_jobs=256)


def test_a_cancel_that_does_not_say_whose_request_it_means_does_nothing() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await settle()
        message = device.message("c", {"id": "1"}, topic=f"{PREFIX}/{NAME}/cancel")
        await device.intake.take(replace(message, response_topic=None))
        assert device.transport.replies() == []
        assert device.kinds() == ["request-unanswerable"]

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_the_id_of_an_open_request_is_refused_for_another_and_free_again_after_its_answer() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", {"text": "what was asked first"})
        await settle()
        await device.ask("1", {"text": "something else"})
        refused = device.transport.reply("1")
        assert refused["status"] == 422
        assert "same id is open" in refused["reason"]
        device.transport.published.clear()
        await device.ask("1", {"text": "what was asked first"})
        device.spawner.last.finish()
        await settle()
        assert device.transport.statuses() == {"1": [200]}
        device.transport.published.clear()
        await device.ask("1", {"text": "something else"})
        await settle()
        device.spawner.last.finish()
        await settle()
        assert device.transport.statuses() == {"1": [200]}

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_hot_board_refuses_with_the_temperature() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.set(temperature=85.0)
        device.watch.tick()
        await device.ask("1")
        reply = device.transport.reply("1")
        assert reply["status"] == 503
        assert "85.0 °C" in reply["reason"]
        assert reply["retry_after_s"] > 0

    Device.run(scenario, a_model())


def test_a_deadline_out_of_reach_is_refused_once_times_are_known() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("measured")
        await settle()
        device.spawner.last.finish(compute_ms=5000.0)
        await device.ask("in-time", deadline_s=30.0)
        await device.ask("too-late", deadline_s=2.0)
        reply = device.transport.reply("too-late")
        assert reply["status"] == 503
        assert reply["reason"].startswith("cannot meet the deadline: ")
        await settle()
        device.spawner.last.finish()
        assert device.status("in-time") == 200

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_malformed_messages_are_answered_and_acknowledged() -> None:
    async def scenario(device: Device) -> None:
        await device.intake.take(replace(device.message("json"), payload=b"{"))
        await device.intake.take(replace(device.message("size"), payload=b"x" * (MESSAGE_BYTES + 1)))
        await device.intake.take(replace(device.message("type"), content_type="image/png"))
        await device.ask("field", {"text": "x", "colour": "red"})
        assert device.transport.statuses() == {"json": [400], "size": [413], "type": [415], "field": [422]}
        assert device.transport.acked == [1, 2, 3, 4]
        assert device.spawner.workers == []

    Device.run(scenario, a_model())


def test_a_retained_request_is_dropped_with_an_event() -> None:
    async def scenario(device: Device) -> None:
        await device.intake.take(replace(device.message("1"), retained=True))
        assert device.transport.replies() == []
        assert len(device.events) == 1
        assert device.transport.acked == [1]

    Device.run(scenario, a_model())


def test_an_answer_never_goes_where_it_must_not() -> None:
    async def scenario(device: Device) -> None:
        for topic in ("edge/v1/dev/status", "$SYS/x", "edge/v1/client/+/reply/x", "other"):
            await device.intake.take(replace(device.message("1"), response_topic=topic))
        published = {message.topic for message in device.transport.published}
        assert published == {"edge/v1/dev/event"}
        assert len(device.events) == 4
        assert device.transport.acked == [1, 2, 3, 4]
        assert len(device.context.requests) == 0

    Device.run(scenario, a_model())


def test_what_is_not_for_us_is_acknowledged_and_forgotten() -> None:
    async def scenario(device: Device) -> None:
        await device.intake.take(device.message("1", topic="edge/v1/other/infer/m"))
        assert (device.transport.published, device.transport.acked) == ([], [1])

    Device.run(scenario, a_model())


def test_requests_beyond_the_window_are_acknowledged_early_in_order() -> None:
    async def scenario(device: Device) -> None:
        for index in range(20):
            await device.ask(str(index))
        await settle()
        assert device.transport.acked == list(range(1, 9)), "12 are held back, the broker can go on"
        while device.spawner.last.inside:
            device.spawner.last.finish()
            await settle()
        assert device.transport.acked == list(range(1, 21))

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_urgent_requests_overtake_in_the_queue() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("busy")
        await settle()
        await device.ask("low", {"text": "x", "priority": 9})
        await device.ask("high", {"text": "x", "priority": 0})
        device.spawner.last.finish()
        await settle()
        assert list(device.spawner.last.inside) == ["tester/high"]

    Device.run(scenario, a_model(), plan=Plan(compute_s=None), max_rows=1)


def test_a_cancel_of_nothing_does_nothing() -> None:
    async def scenario(device: Device) -> None:
        await device.cancel("nobody")
        await later(0.1)
        assert device.transport.replies() == []
        assert device.transport.acked == [1]

    Device.run(scenario, a_model())


def test_a_client_beyond_its_refusals_is_turned_away_unread_acknowledged_and_counted() -> None:
    async def scenario(device: Device) -> None:
        sender = "InferTarget/flood"
        for _ in range(int(CLIENT_BURST)):
            device.context.door_rate.note_futile(sender, device.context.clock.monotonic_s())
        await device.ask("away", model="nobody", client="flood")
        await device.ask("heard", model="nobody", client="good")
        assert device.transport.statuses() == {"heard": [404]}
        assert device.transport.acked == [1, 2], "the broker does not deliver again what was dropped"
        assert device.context.take_dropped() == {"turned-away": 1}
        assert device.context.take_dropped() == {}
        await later(1.0)
        await device.ask("later", model="nobody", client="flood")
        assert device.status("later") == 404

    Device.run(scenario, a_model())


def test_clients_of_mqtt_3_1_1_are_told_apart_by_the_reply_topic_in_the_body() -> None:
    async def scenario(device: Device) -> None:
        def message(request_id: str, client: str, model: str) -> Inbound:
            reply_to = f"{PREFIX}/client/{client}/reply/x"
            body = {"text": 'so "reply_to":"else" is a text', "id": request_id, "reply_to": reply_to}
            sent = device.message(request_id, body, model=model)
            return replace(sent, response_topic=None, correlation=None, expiry_s=None)

        for _ in range(int(CLIENT_BURST)):
            device.context.door_rate.note_futile("InferTarget/flood", device.context.clock.monotonic_s())
        await device.intake.take(message("away", "flood", "nobody"))
        await device.intake.take(message("heard", "good", "nobody"))
        assert device.transport.statuses() == {"heard": [404]}
        assert device.context.take_dropped() == {"turned-away": 1}

    Device.run(scenario, a_model())


def test_what_comes_to_nothing_is_charged_to_its_sender_and_what_is_admitted_is_not() -> None:
    async def scenario(device: Device) -> None:
        charged: list[str] = []
        device.context.door_rate.note_futile = lambda sender, _now_s: charged.append(sender)  # type: ignore[method-assign]
        await device.ask("1", client="a")
        await device.ask("2", client="b", model="nobody")
        await device.ask("1", client="a")
        assert charged == ["InferTarget/b", "InferTarget/a"], "a refusal and a repeat"

    Device.run(scenario, a_model())


def test_a_client_with_fewer_requests_gets_the_place_of_the_one_that_holds_most() -> None:
    async def scenario(device: Device) -> None:
        for index in range(9):
            await device.ask(f"h{index}", client="hog")
            await settle()  # the worker has the first one
        assert device.status("h8") == 429
        for index in range(4):
            await device.ask(f"m{index}", client="modest")
        await settle()
        statuses = device.transport.statuses()
        assert not any(name.startswith("m") for name in statuses), "all of them wait"
        assert [name for name in statuses if name != "h8"] == ["h7", "h6", "h5"], "the newest first"
        assert "gave way to another client's" in device.transport.reply("h7")["reason"]
        assert device.transport.reply("h7")["retry_after_s"] > 0
        assert device.context.stats.refusal_reasons()["client-share"] == 4
        await device.ask("h9", client="hog")
        assert device.status("h9") == 429, "nobody gives way to it"
        device.transport.published.clear()
        device.spawner.last.finish()
        await device.ask("h7", client="hog")
        await settle()
        assert device.transport.statuses().get("h7") != [429], "the same request may be sent again"

    Device.run(scenario, a_model(), plan=Plan(compute_s=None), queue_jobs=10)
