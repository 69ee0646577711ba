"""A generator's requests: several at once, each with one end; whoever waits takes the place of the one that ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edge_agent.agent import served_model
from edge_agent.agent.context_sizing import Sizer
from edge_agent.agent.respond import END_S
from edge_agent.base.errors import WorkerError
from edge_agent.base.limits import ANSWERS_BEYOND, MESSAGE_BYTES
from edge_agent.bundle.catalog import InstalledModel, TaskSpec
from edge_agent.bundle.gguf_memory import GeneratorOverrides
from edge_agent.protocol.envelope import LinkChange, Outbound
from edge_agent.protocol.messages import StreamChunk
from tests.support.fakes import Plan, a_model, a_variant
from tests.support.in_process import PREFIX, Device
from tests.support.virtual_time import later, settle

TOPIC = f"{PREFIX}/client/tester/reply/here"


def generator(*adapters: str) -> InstalledModel:
    return replace(a_model(adapters=adapters), task=TaskSpec("generate", max_tokens=64))


def run(scenario: Any, *, sequences: int = 2, adapters: tuple[str, ...] = (), **options: Any) -> Device:
    plan = Plan(compute_s=None, sequences=sequences, mixed=False)
    return Device.run(scenario, generator(*adapters), plan=plan, **options)


def asked(**more: Any) -> dict[str, Any]:
    return {"prompt": "once", "stream": True, **more}


def said(device: Device, name: str) -> list[dict[str, Any]]:
    return [body for body in device.transport.bodies("reply/here") if body["id"] == name]


def test_a_stream_is_parts_in_order_and_one_end() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", asked())
        await settle()
        worker = device.spawner.last
        worker.say("tester/1", "Once ")
        worker.say("tester/1", "upon")
        worker.end("tester/1", "Once upon a time", rest=" a time")
        await settle()
        parts = said(device, "1")
        assert [(part["seq"], part["text"], part["done"]) for part in parts] == [
            (0, "Once ", False), (1, "upon", False), (2, " a time", True),
        ]  # fmt: skip
        assert parts[-1]["finish_reason"] == "stop"
        assert parts[-1]["timing"]["first_token_ms"] >= parts[-1]["timing"]["prompt_ms"] == 10.0
        assert len(device.context.requests) == 0

    run(scenario)


def test_the_last_part_repeats_every_field_that_it_shares_with_the_reply() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.set(power=10.0, temperature=55.5)
        device.watch.tick()
        await device.ask("1", asked(adapter="a"))
        await settle()
        device.spawner.last.end("tester/1", "upon a time", rest="upon a time")
        (last,) = said(device, "1")
        device.transport.published.clear()
        await device.ask("1", asked(adapter="a"))
        await settle()
        (reply,) = said(device, "1")  # a retry is answered with the reply that was kept
        shared = {name: value for name, value in reply.items() if name in StreamChunk.__struct_fields__}
        assert shared.keys() >= {"model", "adapter", "variant", "timing", "batch", "energy", "temperature_c"}
        assert {name: last[name] for name in shared} == shared
        assert (last["model"], last["adapter"], last["temperature_c"]) == ("m", "a", 55.5)

    run(scenario, adapters=("a",))


def test_without_stream_one_reply_comes() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", {"prompt": "once"})
        await settle()
        assert device.spawner.last.inside["tester/1"].stream is False
        device.spawner.last.end("tester/1", "upon a time")
        assert device.transport.reply("1")["result"]["text"] == "upon a time"

    run(scenario)


def test_who_waits_takes_the_place_of_the_one_that_ended() -> None:
    async def scenario(device: Device) -> None:
        for name in "abc":
            await device.ask(name, asked())
        await settle()
        worker = device.spawner.last
        assert list(worker.inside) == ["tester/a", "tester/b"]
        worker.end("tester/b", "x")
        await settle()
        assert list(worker.inside) == ["tester/a", "tester/c"], "a still runs, and nobody waited for it"
        await device.ask("d", asked())
        await settle()
        worker.end("tester/a", "x")
        await settle()
        assert list(worker.inside) == ["tester/c", "tester/d"]
        for name in ("c", "d"):
            worker.end(f"tester/{name}", "x")
        await settle()
        assert not device.served().lock.locked()

    run(scenario)


def test_sequences_with_different_adapters_run_together() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("a", asked(adapter="one"))
        await device.ask("b", asked(adapter="two"))
        await settle()
        assert len(device.spawner.last.inside) == 2

    run(scenario, adapters=("one", "two"))


def test_a_worker_that_is_ended_while_an_adapter_is_attached_keeps_its_answers_to_its_death() -> None:
    """A call that got no answer kills the worker; its death is told a moment later, and takes back what runs."""

    async def scenario(device: Device) -> None:
        await device.ask("a", asked(), deadline_s=120.0)
        await settle()
        worker = device.spawner.last
        worker.plan = replace(worker.plan, refuses={"one": WorkerError("no answer to 'attach' within 30 s", "worker")})
        await device.ask("b", asked(adapter="one"), deadline_s=120.0)
        await later(0.01)
        assert [what for what, _ in worker.heard].count("attach") == 1, "what dies is not asked again"
        worker.die("killed by SIGKILL")
        await later(5.0)
        assert device.server.fault is None
        assert sorted(device.spawner.last.inside) == ["tester/a", "tester/b"], "both go to the successor"

    run(scenario, adapters=("one",))


def test_messages_cross_to_the_worker_as_they_are() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("a", {"messages": [{"role": "user", "content": "hello"}]})
        await settle()
        job = device.spawner.last.inside["tester/a"]
        assert [dict(message) for message in job.messages] == [{"role": "user", "content": "hello"}]
        assert job.texts == ()
        assert 0 < job.left_s <= 30.0

    run(scenario)


def test_the_form_must_be_the_models() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", {"text": "x"})
        assert "takes prompt or messages, not text" in device.transport.reply("1")["reason"]

    run(scenario)

    async def encoder(device: Device) -> None:
        await device.ask("1", {"prompt": "x"})
        assert "takes text or texts, not prompt" in device.transport.reply("1")["reason"]

    Device.run(encoder, a_model())


def test_a_worker_that_dies_in_mid_stream_ends_the_streams_and_repeats_what_had_not_begun() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("begun", asked())
        await device.ask("not-yet", asked())
        await settle()
        device.spawner.last.say("tester/begun", "Once")
        device.spawner.last.die()
        await later(1.0)
        last = said(device, "begun")[-1]
        assert (last["status"], "its worker died" in last["reason"]) == (500, True)
        assert list(device.spawner.last.inside) == ["tester/not-yet"]
        assert "stream-stopped" in device.kinds()

    run(scenario)


def test_streams_that_have_begun_stop_when_the_broker_goes() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("begun", asked())
        await device.ask("not-yet", asked())
        await settle()
        worker = device.spawner.last
        worker.say("tester/begun", "Once")
        device.agent.link_changed(LinkChange(False, "transient", "gone"))
        await later(0.1)
        assert list(worker.inside) == ["tester/not-yet"], "its sequence is free"
        assert said(device, "begun")[-1]["status"] == 499

    run(scenario)


def test_a_stream_that_nobody_hears_stops_and_no_other() -> None:
    async def scenario(device: Device) -> None:
        for name in "ab":
            await device.ask(name, asked())
        await settle()
        worker = device.spawner.last
        worker.say("tester/a", "x")
        worker.say("tester/b", "x")
        device.agent.undelivered(Outbound(TOPIC, b"{}", request_id="a"), "nobody listens there")
        await later(0.1)
        assert list(worker.inside) == ["tester/b"]
        assert [kind for kind in device.kinds() if kind == "stream-stopped"] == ["stream-stopped"]

    run(scenario)


def test_a_part_that_cannot_be_sent_ends_the_stream() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("a", asked())
        await settle()
        device.transport.full = True
        device.spawner.last.say("tester/a", "x")
        device.transport.full = False
        await later(0.1)
        assert device.spawner.last.inside == {}
        assert "stream-stopped" in device.kinds()

    run(scenario)


def test_a_worker_that_misses_a_deadline_is_made_to_stop() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("begun", asked(), deadline_s=2.0)
        await device.ask("silent", asked(), deadline_s=2.0)
        await settle()
        device.spawner.last.say("tester/begun", "x")
        await later(1.9)
        device.watch.tick()
        assert len(device.spawner.last.inside) == 2
        await later(0.5)
        device.watch.tick()
        await later(0.1)
        assert device.spawner.last.inside == {}
        assert said(device, "begun")[-1]["status"] == 408
        last = [one for one in device.transport.published if b"408" in one.payload][-1]
        assert last.expiry_s == END_S, "it is late, and yet waits to be sent: a stream is told its end"
        assert said(device, "silent") == [], "what has not begun expires in silence"

    run(scenario)


def test_a_new_version_waits_until_the_sequences_have_ended() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("a", asked())
        await settle()
        old = device.spawner.last
        device.library.install(replace(generator(), variant=a_variant("m-v2")))
        device.watch.tick()
        await device.ask("b", asked())
        await settle()
        assert list(old.inside) == ["tester/a"], "no further request joins the old version"
        old.end("tester/a", "x")
        await later(0.5)
        assert device.spawner.last is not old
        assert list(device.spawner.last.inside) == ["tester/b"]

    run(scenario)


def test_where_only_the_worker_can_read_the_file_it_is_told_the_budget() -> None:
    variant = a_variant("large", peak_mib=8 * 1024, runtime="llamacpp")

    async def refused(device: Device) -> None:
        await device.ask("1", {"prompt": "x"})
        await later(0.1)
        reply = device.transport.reply("1")
        assert (reply["status"], "needs 8.0 GiB, this board can give" in reply["reason"]) == (503, True)

    async def shrunk(device: Device) -> None:
        device.sensors.set(ram_available=4.0 * 2**30)
        await device.ask("1", {"prompt": "x"})
        await later(0.1)
        (load,) = [what for operation, what in device.spawner.last.heard if operation == "load"]
        assert load[1].shrink is True
        assert 0 < load[1].memory_bytes < 4 * 2**30
        assert "context-shrunk" in device.kinds()
        await device.manager.unload(device.served())
        await device.ask("2", {"prompt": "x"})
        await later(0.1)
        (again,) = [what for operation, what in device.spawner.last.heard if operation == "load"]
        assert again == load, "what it held when it was shrunk is no reason to load it in full"

    model = replace(generator(), variant=variant, variants=(variant,))
    plan = Plan(compute_s=None, sequences=2)
    Device.run(refused, model, plan=plan)
    Device.run(shrunk, model, plan=plan, ports={"sizer": Sizer(GeneratorOverrides(shrink=True))})


def test_a_retry_of_an_answered_stream_gets_the_whole_text_in_one_reply() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", asked())
        await settle()
        device.spawner.last.say("tester/1", "Once ")
        device.spawner.last.end("tester/1", "Once upon", rest="upon")
        device.transport.published.clear()
        await device.ask("1", asked())
        await settle()
        again = said(device, "1")[-1]
        assert (again["status"], again["result"]["text"]) == (200, "Once upon")

    Device.run(scenario, generator(), plan=Plan(compute_s=None, sequences=2))


@pytest.mark.parametrize("order", ["load", "unload"])
def test_an_order_comes_to_its_turn_beside_a_generator_that_is_always_asked(order: str) -> None:
    async def scenario(device: Device) -> None:
        await device.ask("0", asked(deadline_s=600.0))
        await settle()
        await device.order(order, {"model": "m"}, "order")
        for number in range(1, 20):
            await device.ask(str(number), asked(deadline_s=600.0))
            await later(1.0)
            for worker in device.spawner.running():
                for name in list(worker.inside)[:1]:
                    worker.end(name, "x")
            await settle()
        assert device.status("order") == 200
        assert said(device, "15")[-1]["done"], "requests went on"

    run(scenario)


def test_a_grammar_that_costs_too_much_bars_its_client_and_no_other() -> None:
    async def scenario(device: Device) -> None:
        program = {"prompt": "x", "params": {"grammar": 'root ::= "a"'}}
        await device.ask("1", program, client="one")
        await settle()
        device.spawner.last.refuse_grammar("one/1")
        await settle()
        assert device.transport.statuses()["1"] == [422]
        await device.ask("again", program, client="one")
        reply = device.transport.reply("again")
        assert (reply["status"], reply["retry_after_s"] > 0.0) == (503, True)
        assert "ask without one" in reply["reason"]
        await device.ask("plain", {"prompt": "x"}, client="one")
        await device.ask("schema", {"prompt": "x", "params": {"json_schema": {"type": "object"}}}, client="new")
        await settle()
        assert set(device.spawner.last.inside) == {"one/plain", "new/schema"}

    run(scenario)


def test_a_grammar_that_costs_too_much_ends_what_its_client_brought_beside_it() -> None:
    async def scenario(device: Device) -> None:
        program = {"prompt": "x", "params": {"grammar": 'root ::= "a"'}}
        for number in range(1, 5):
            await device.ask(str(number), program, client="one")
        await device.ask("plain", {"prompt": "x"}, client="one")
        await device.ask("other", program, client="two")
        await settle()
        worker = device.spawner.last
        assert "one/1" in worker.inside and "one/4" not in worker.inside, "inside and in the queue"
        worker.refuse_grammar("one/1")
        await settle()
        statuses = device.transport.statuses()
        assert (statuses["1"], statuses["2"], statuses["3"], statuses["4"]) == ([422], [503], [503], [503])
        assert device.transport.reply("4")["retry_after_s"] > 0.0
        assert set(worker.inside) == {"one/plain", "two/other"}

    run(scenario)


def test_a_client_with_nothing_inside_sends_one_job_in_although_no_sequence_is_free() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("h1", asked(), client="hog")
        await settle()
        for name, client in (("h2", "hog"), ("g1", "good"), ("g2", "good"), ("t1", "third")):
            await device.ask(name, asked(), client=client)
        await settle()
        worker = device.spawner.last
        assert list(worker.inside) == ["hog/h1", "good/g1", "third/t1"], "they take turns there"
        worker.end("good/g1", "x")
        await settle()
        assert list(worker.inside) == ["hog/h1", "third/t1", "good/g2"]
        for name in ("third/t1", "good/g2"):
            worker.end(name, "x")
        await settle()
        assert list(worker.inside) == ["hog/h1"], "its second one has no sequence to go to"
        worker.end("hog/h1", "x")
        await settle()
        assert list(worker.inside) == ["hog/h2"]

    run(scenario, sequences=1)


def test_what_a_token_takes_is_learned_from_answers() -> None:
    """50 ms of work, 10 of them for the prompt, and eleven tokens: 4 ms each behind the first."""

    async def scenario(device: Device) -> None:
        await device.ask("1", asked())
        await settle()
        device.spawner.last.end("tester/1", "x" * 11)
        await settle()
        key, threads = device.served().token_cost_key, device.context.grant.threads
        assert device.context.costs.predict_s(key, 1, 1, threads) == pytest.approx(0.004)

    run(scenario)


def test_beyond_the_sequences_so_many_clients_and_no_more_take_turns() -> None:
    async def scenario(device: Device) -> None:
        for number in range(ANSWERS_BEYOND + 9):
            await device.ask(str(number), asked(deadline_s=600.0), client=f"client-{number}")
        await settle()
        worker = device.spawner.last
        assert len(worker.inside) == 2 + ANSWERS_BEYOND
        worker.end("client-3/3", "x")
        await settle()
        assert len(worker.inside) == 2 + ANSWERS_BEYOND

    run(scenario)


def test_an_adapter_for_which_all_others_are_in_use_waits_and_ends_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_model, "ADAPTERS_RESIDENT", 3)

    async def scenario(device: Device) -> None:
        for number in range(4):
            await device.ask(str(number), asked(adapter=f"a{number}", deadline_s=600.0))
            await settle()
        worker = device.spawner.last
        assert list(worker.inside) == ["tester/0", "tester/1", "tester/2"]
        worker.end("tester/0", "x")
        await settle()
        assert list(worker.inside) == ["tester/1", "tester/2", "tester/3"]
        assert device.server.fault is None

    run(scenario, sequences=8, adapters=("a0", "a1", "a2", "a3"))


def test_a_job_whose_grammar_is_compiled_holds_no_sequence() -> None:
    async def scenario(device: Device) -> None:
        program = {"prompt": "x", "params": {"regex": "a"}}
        await device.ask("1", program, client="one")
        await device.ask("2", program, client="one")
        await settle()
        for name in ("plain", "late"):
            await device.ask(name, asked(), client="two")
        await settle()
        worker = device.spawner.last
        assert set(worker.inside) == {"one/1", "two/plain"}, "one plain job beside it, and one grammar of a client"
        worker.end("two/plain", "x")
        await settle()
        assert set(worker.inside) == {"one/1", "two/late"}
        worker.compiled("one/1")
        worker.end("two/late", "x")
        await settle()
        assert set(worker.inside) == {"one/1"}, "it holds the only sequence now"
        worker.end("one/1", "a")
        await settle()
        assert set(worker.inside) == {"one/2"}

    run(scenario, sequences=1)


@pytest.mark.parametrize("reason", ["killed by SIGSEGV", "killed by SIGKILL"])
def test_a_worker_that_dies_is_not_put_down_to_a_grammar_which_does_not_run_in_it(reason: str) -> None:
    async def scenario(device: Device) -> None:
        program = {"prompt": "x", "params": {"grammar": 'root ::= "a"'}}
        await device.ask("1", program, client="one", deadline_s=600.0)
        await settle()
        device.spawner.last.die(reason)
        await later(5.0)
        assert "one/1" in device.spawner.last.inside, "it is tried again"
        device.spawner.last.compiled("one/1")
        await device.ask("2", program, client="one")
        await settle()
        assert "one/2" in device.spawner.last.inside
        assert len(device.served().lifecycle.deaths_s) == 1, "the model's"

    run(scenario)


def test_a_stream_whose_end_does_not_fit_a_message_is_told_so() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", asked(params={"logprobs": True}))
        await settle()
        worker = device.spawner.last
        worker.say("tester/1", "Once ")
        worker.end("tester/1", "Once upon a time", rest="x" * MESSAGE_BYTES)
        await settle()
        part, end = said(device, "1")
        assert (part["done"], end["status"]) == (False, 413)
        assert end["reason"].endswith("that fit a message; ask for fewer tokens, or without logprobs")
        assert len(device.context.requests) == 0

    run(scenario)


def test_who_waits_with_the_adapter_at_work_goes_before_another_adapters() -> None:
    async def scenario(device: Device) -> None:
        for name, adapter in (("first", "a"), ("second", "a"), ("other", "b"), ("same", "a")):
            await device.ask(name, asked(adapter=adapter))
        await settle()
        device.spawner.last.end("tester/first", "x")
        await settle()
        assert set(device.spawner.last.inside) == {"tester/second", "tester/same"}
        device.spawner.last.end("tester/same", "x")
        await settle()
        assert set(device.spawner.last.inside) == {"tester/second", "tester/other"}

    run(scenario, adapters=("a", "b"))
