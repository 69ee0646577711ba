"""Every way in which a request is not answered with 200, and the word under which telemetry counts it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from edge_agent.base.causes import Cause
from edge_agent.base.errors import AdapterRefused, BackendError, MemoryRefused
from edge_agent.base.limits import MIB
from edge_agent.bundle.catalog import TaskSpec
from tests.support.fakes import a_model, a_variant
from tests.support.in_process import Device
from tests.support.virtual_time import later, settle

Scenario = Callable[[Device], Awaitable[None]]
GENERATOR = replace(a_model("g"), task=TaskSpec("generate", max_tokens=512))


def counted(device: Device) -> dict[str, int]:
    """`refusal_reasons` as the next telemetry would carry it."""
    return device.context.stats.refusal_reasons()


async def sent(device: Device, **fields: Any) -> None:
    """A request of which these fields are not as they should be."""
    await device.intake.take(replace(device.message("1"), **fields))


def asks(body: dict[str, Any] | None = None, **more: Any) -> Scenario:
    async def scenario(device: Device) -> None:
        await device.ask("1", body, **more)
        await settle()

    return scenario


def sends(**fields: Any) -> Scenario:
    async def scenario(device: Device) -> None:
        await sent(device, **fields)

    return scenario


def fails_in_worker(status: int, cause: Cause, reason: str = "it broke") -> Scenario:
    async def scenario(device: Device) -> None:
        device.spawner.plan.compute_s = None
        await device.ask("1")
        await settle()
        device.spawner.last.fail("tester/1", status, cause, reason)

    return scenario


def meets_load_fault(error: BackendError) -> Scenario:
    async def scenario(device: Device) -> None:
        device.spawner.plan.load_faults.append(error)
        await device.ask("1")
        await later(0.1)

    return scenario


async def same_id_for_another_question(device: Device) -> None:
    device.spawner.plan.compute_s = None
    await device.ask("1", {"text": "one"})
    await device.ask("1", {"text": "another"})


async def full_queue(device: Device) -> None:
    device.spawner.plan.compute_s = None
    for index in range(3):
        await device.ask(str(index), client=f"c{index}")


async def one_client_floods(device: Device) -> None:
    device.spawner.plan.compute_s = None
    for index in range(9):
        await device.ask(str(index))
    await settle()


async def too_slow_to_answer_in_time(device: Device) -> None:
    device.context.costs.learn(device.served().cost_key, 1, 1, 50.0, device.context.grant.threads)
    await device.ask("1", deadline_s=10.0)


async def overtaken(device: Device) -> None:
    device.spawner.plan.compute_s = None
    await device.ask("inside", deadline_s=60.0)
    await settle()
    await device.ask("hopeless", {"text": "x" * 400}, deadline_s=5.0)
    await later(2.0)
    device.context.costs.learn(device.served().cost_key, 1, 400, 4.0, threads=4)
    device.spawner.last.finish()
    await settle()


async def hot(device: Device) -> None:
    device.sensors.set(temperature=99.0)
    for _ in range(5):
        device.watch.tick()
        await later(1.0)
    await device.ask("1")
    assert device.transport.reply("1")["reason"].startswith("too hot: ")


async def short_of_memory(device: Device) -> None:
    device.sensors.set(ram_available=40.0 * MIB)
    await device.guard.look()
    await device.ask("1")
    assert device.transport.reply("1")["reason"].startswith("no memory: ")


async def model_larger_than_the_board(device: Device) -> None:
    device.library.install(a_model("m", a_variant("huge", size_mib=8000, peak_mib=9000)))
    device.watch.tick()
    await device.ask("1")
    await later(0.1)
    assert device.transport.reply("1")["reason"].startswith("no memory for model 'm': ")


async def no_room_before_the_deadline(device: Device) -> None:
    device.sensors.set(ram_available=700.0 * MIB)
    device.library.install(a_model("m", a_variant("large", size_mib=900, peak_mib=1000)))
    device.watch.tick()
    await device.ask("1", deadline_s=0.9)
    await settle()
    assert device.transport.reply("1")["reason"].startswith("no memory for model 'm': ")


async def quarantined(device: Device) -> None:
    device.spawner.plan.load_faults.extend(["die"] * 3)
    await device.ask("1")
    await later(5.0)


async def dies_twice_with_it(device: Device) -> None:
    device.spawner.plan.compute_s = None
    await device.ask("1")
    for _ in range(2):
        await later(1.0)
        device.spawner.last.die()
    await settle()
    assert device.transport.reply("1")["reason"].startswith("the worker died twice with this request: ")


async def costs_too_much(device: Device) -> None:
    device.spawner.plan.compute_s = None
    await device.ask("1", {"text": "x", "params": {"grammar": "root ::= root"}})
    await settle()
    device.spawner.last.refuse_grammar("tester/1")
    await settle()
    await device.ask("2", {"text": "x", "params": {"grammar": "root ::= root"}})
    assert device.transport.reply("2")["reason"].startswith(
        "a grammar or schema of this client cost model 'm' too much"
    )


async def streaming(device: Device, deadline_s: float = 30.0) -> None:
    device.spawner.plan.compute_s, device.spawner.plan.sequences = None, 4
    body = {"prompt": "hello", "stream": True}
    await device.ask("1", body, model="g", deadline_s=deadline_s)
    await later(0.1)
    device.spawner.last.say("tester/1", "a part")


async def dies_within_a_stream(device: Device) -> None:
    await streaming(device)
    device.spawner.last.die()
    assert device.transport.replies()[-1]["reason"].startswith("its worker died: ")


async def answer_of_a_stream_comes_after_its_deadline(device: Device) -> None:
    await streaming(device, 3.0)
    await later(3.1)
    device.spawner.last.end("tester/1", "late")
    assert device.transport.replies()[-1]["reason"] == "the deadline passed in mid-stream, after 1 parts"


async def adapter_removed_while_it_waits(device: Device) -> None:
    device.spawner.plan.compute_s = None
    await device.ask("inside")
    await settle()
    await device.ask("waiting", {"text": "x", "adapter": "a"})
    device.library.change("m", adapters=())
    device.watch.tick()
    device.spawner.last.finish()
    await settle()
    assert device.transport.reply("waiting")["reason"] == "model 'm' has no adapter 'a'"


async def stream_cannot_be_sent(device: Device) -> None:
    await streaming(device)
    device.transport.full = True
    device.spawner.last.say("tester/1", "another")


async def stream_not_heard(device: Device) -> None:
    await streaming(device)
    device.server.stop_streams("edge/v1/client/quarantine/reply/26°C: nobody listens there", "1")


async def stream_past_its_deadline(device: Device) -> None:
    await streaming(device, 3.0)
    for _ in range(6):
        await later(1.0)
        device.watch.tick()


async def end_of_stream_too_large(device: Device) -> None:
    await streaming(device)
    device.spawner.last.end("tester/1", "x", rest="x" * 300_000)


async def answer_too_large(device: Device) -> None:
    device.spawner.plan.compute_s = None
    await device.ask("1")
    await settle()
    inside = device.spawner.last.inside["tester/1"]
    device.spawner.last.inside["tester/1"] = msgspec.structs.replace(inside, texts=["x" * 300_000])
    device.spawner.last.finish()


async def frame_too_large(device: Device) -> None:
    device.spawner.plan.frame_bytes = 10
    await device.ask("1")
    await settle()


async def adapter_refused(device: Device) -> None:
    device.spawner.plan.refuses["a"] = AdapterRefused("its rank does not fit")
    await device.ask("1", {"text": "x", "adapter": "a"})
    await later(0.1)


async def adapter_not_attached(device: Device) -> None:
    device.spawner.plan.refuses["a"] = BackendError("the runtime broke")
    await device.ask("1", {"text": "x", "adapter": "a"})
    await later(0.1)


async def model_removed(device: Device) -> None:
    device.spawner.plan.compute_s = None
    await device.ask("inside")
    await settle()
    await device.ask("waiting")
    device.library.remove("m")
    device.watch.tick()
    device.spawner.last.finish()
    await settle()


async def cancelled(device: Device) -> None:
    device.spawner.plan.compute_s = None
    await device.ask("1")
    await device.cancel("1")


async def device_stops(device: Device) -> None:
    device.spawner.plan.compute_s = None
    await device.ask("1")
    device.server.abandon("the device is stopping")


async def expires_in_the_queue(device: Device) -> None:
    device.spawner.plan.compute_s = None
    await device.ask("inside")
    await settle()
    await device.ask("waiting", deadline_s=2.0)
    await later(3.0)
    device.watch.tick()
    assert device.context.stats.expired == 1


async def unknown_command(device: Device) -> None:
    await device.order("reboot", {})


async def command_of_unknown_model(device: Device) -> None:
    await device.order("load", {"model": "nobody"})
    await settle()


TABLE: list[tuple[str, Scenario, dict[str, int]]] = [
    ("no such model", asks(model="nobody"), {"unknown-model": 1}),
    ("a model name that no package could have", asks(model="Bad!"), {"unknown-adapter": 1}),
    ("no such adapter", asks({"text": "x", "adapter": "nobody"}), {"unknown-adapter": 1}),
    ("an adapter name that no package could have", asks({"text": "x", "adapter": "?"}), {"unknown-adapter": 1}),
    ("another form", asks({"prompt": "x"}), {"invalid": 1}),
    ("an empty text", asks({"text": ""}), {"invalid": 1}),
    ("an unknown field", asks({"text": "x", "no model": 1}), {"invalid": 1}),
    ("too many texts", asks({"texts": ["x"] * 1000}), {"too-large": 1}),
    ("a text too long", asks({"text": "x" * 100_000}), {"too-large": 1}),
    ("a message too long", sends(payload=b"x" * 1_000_000), {"too-large": 1}),
    ("no JSON", sends(payload=b"{"), {"malformed": 1}),
    ("no UTF-8", sends(payload=b"\xff"), {"malformed": 1}),
    ("another content type", sends(content_type="text/plain"), {"malformed": 1}),
    ("expired on arrival", sends(expiry_s=0.0), {"expired": 1}),
    ("no reply address", sends(response_topic=None), {"malformed": 1}),
    ("a reply topic that is refused", sends(response_topic="$SYS/x"), {"malformed": 1}),
    ("retained", sends(retained=True), {"malformed": 1}),
    ("the same id for another question", same_id_for_another_question, {"invalid": 1}),
    ("a full queue", full_queue, {"queue-full": 1}),
    ("a client's share is full", one_client_floods, {"client-share": 1}),
    ("the deadline cannot be met", too_slow_to_answer_in_time, {"deadline": 1}),
    ("overtaken", overtaken, {"overtaken": 1}),
    ("heat", hot, {"heat": 1}),
    ("memory is short", short_of_memory, {"memory": 1}),
    ("the model never fits", model_larger_than_the_board, {"memory": 1}),
    ("the model does not fit now", no_room_before_the_deadline, {"memory": 1}),
    ("quarantined", quarantined, {"quarantined": 1}),
    ("the model cannot be loaded", meets_load_fault(BackendError("no file")), {"worker-failed": 1}),
    ("the load got too little memory", meets_load_fault(MemoryRefused("bad_alloc")), {"memory": 1}),
    ("an adapter that the runtime refuses", adapter_refused, {"unknown-adapter": 1}),
    ("an adapter that could not be attached", adapter_not_attached, {"worker-failed": 1}),
    ("the worker died twice", dies_twice_with_it, {"worker-died": 1}),
    ("a grammar cost too much", costs_too_much, {"invalid": 1, "unavailable": 1}),
    ("the worker died within a stream", dies_within_a_stream, {"worker-died": 1}),
    ("a part cannot be sent", stream_cannot_be_sent, {"unavailable": 1}),
    ("the deadline passed in mid-stream", stream_past_its_deadline, {"expired": 1}),
    ("the answer of a stream comes late", answer_of_a_stream_comes_after_its_deadline, {"expired": 1}),
    ("the adapter was removed", adapter_removed_while_it_waits, {"unknown-adapter": 1}),
    ("the end of a stream is too large", end_of_stream_too_large, {"too-large": 1}),
    ("the answer is too large", answer_too_large, {"too-large": 1}),
    ("the frame to the worker is too large", frame_too_large, {"too-large": 1}),
    ("the worker refuses the parameters", fails_in_worker(422, Cause.INVALID), {"invalid": 1}),
    ("the worker finds the prompt too long", fails_in_worker(413, Cause.TOO_LARGE), {"too-large": 1}),
    ("the worker has not the adapter", fails_in_worker(404, Cause.UNKNOWN_ADAPTER), {"unknown-adapter": 1}),
    ("the worker meets the deadline", fails_in_worker(408, Cause.EXPIRED), {"expired": 1}),
    ("the worker fails", fails_in_worker(500, Cause.WORKER_FAILED), {"worker-failed": 1}),
    ("the model was removed", model_removed, {"unknown-adapter": 1}),
    ("cancelled", cancelled, {"cancelled": 1}),
    ("the device stops", device_stops, {"unavailable": 1}),
    ("expired in the queue: counted by itself", expires_in_the_queue, {}),
    ("no such command", unknown_command, {"unknown-adapter": 1}),
    ("a command's answer is no request's", command_of_unknown_model, {}),
]


@pytest.mark.parametrize(("scenario", "words"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_every_refusal_is_counted_by_its_cause(scenario: Scenario, words: dict[str, int]) -> None:
    async def whole(device: Device) -> None:
        await scenario(device)
        assert counted(device) == words, [body.get("reason") for body in device.transport.replies()]
        device.transport.published.clear()

    queue_jobs = {full_queue: 2, one_client_floods: 10}.get(scenario, 256)
    Device.run(whole, a_model(adapters=["a"]), GENERATOR, max_rows=1, queue_jobs=queue_jobs)


HIDDEN: list[tuple[str, Scenario, dict[str, int]]] = [
    ("a model called quarantine", asks(model="quarantine"), {"unknown-model": 1}),
    ("an adapter called quarantine", asks({"text": "x", "adapter": "quarantine"}), {"unknown-adapter": 1}),
    ("a content type in degrees", sends(content_type="x°C"), {"malformed": 1}),
    ("a field in degrees", asks({"text": "x", "°C": 1}), {"invalid": 1}),
    ("a reply topic with such words", stream_not_heard, {"cancelled": 1}),
    ("a worker's words", fails_in_worker(422, Cause.INVALID, "no memory for 'quarantine' at 5 °C"), {"invalid": 1}),
    ("a load's words", meets_load_fault(BackendError("the quarantine is at 5 °C")), {"worker-failed": 1}),
]


@pytest.mark.parametrize(("scenario", "words"), [row[1:] for row in HIDDEN], ids=[row[0] for row in HIDDEN])
def test_no_word_of_a_client_or_a_runtime_changes_the_cause(scenario: Scenario, words: dict[str, int]) -> None:
    test_every_refusal_is_counted_by_its_cause(scenario, words)
