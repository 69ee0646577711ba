"""Schedule, run, collect: every job is answered once or expires in silence, whatever its worker does."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import replace

import pytest

from edge_agent.base.causes import Cause
from edge_agent.base.errors import AdapterRefused, BackendError, WorkerError
from edge_agent.base.limits import ADAPTERS_RESIDENT, WORKER_SILENCE_S
from edge_agent.bundle.catalog import TaskSpec
from edge_agent.core.duty_cycle import FinishedStep
from edge_agent.core.governor import ComputeGrant, GovernorLevel
from edge_agent.core.job import Job
from edge_agent.protocol.worker_messages import JobDone
from tests.support.fakes import Plan, a_model, a_variant, an_adapter
from tests.support.in_process import Device
from tests.support.virtual_time import later, settle


def test_a_request_is_answered_with_timing_and_acknowledged() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", {"text": "turn it on"})
        await later(0.1)
        reply = device.transport.reply("1")
        assert (reply["status"], reply["model"], reply["result"]["label"], reply["batch"]) == (200, "m", "on", 1)
        assert reply["timing"]["total_ms"] >= reply["timing"]["queue_ms"] >= 0
        assert device.transport.acked == [1]
        assert len(device.context.requests) == 0

    Device.run(scenario, a_model())


def test_what_waits_while_the_worker_is_busy_runs_as_one_batch() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("first")
        await settle()
        for index in range(5):
            await device.ask(str(index))
        await settle()
        assert list(device.spawner.last.inside) == ["tester/first"], "an idle worker did not wait for a batch"
        device.spawner.last.finish()
        await settle()
        assert device.spawner.last.largest_batch == 5
        device.spawner.last.finish()
        assert set(device.transport.statuses()) == {"first", "0", "1", "2", "3", "4"}

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_dead_worker_s_jobs_run_again_once_then_are_500() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await settle()
        device.spawner.last.die("killed by SIGKILL")
        await settle()
        assert len(device.spawner.workers) == 2
        assert list(device.spawner.last.inside) == ["tester/1"], "it went back to the queue"
        assert device.transport.replies() == []
        device.spawner.last.die("killed by SIGSEGV")
        await settle()
        reply = device.transport.reply("1")
        assert (reply["status"], reply["reason"]) == (
            500,
            "the worker died twice with this request: killed by SIGSEGV",
        )
        assert device.kinds() == ["worker-died", "worker-died"]
        assert device.transport.acked == [1]

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_second_worker_answers_what_the_first_left() -> None:
    async def scenario(device: Device) -> None:
        for index in range(4):
            await device.ask(str(index))
        await settle()
        device.spawner.last.finish(["tester/0"])
        device.spawner.last.die()
        await settle()
        device.spawner.last.finish()
        assert device.transport.statuses() == {str(index): [200] for index in range(4)}

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_job_that_expires_in_the_queue_is_silent() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("slow")
        await settle()
        await device.ask("late", deadline_s=1.0)
        await later(2.0)
        device.spawner.last.finish()
        await settle()
        assert device.transport.statuses() == {"slow": [200]}
        assert len(device.context.requests) == 0
        assert device.context.stats.expired == 1
        assert device.transport.acked == [1, 2]

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_job_that_expires_inside_the_worker_is_silent() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("late", deadline_s=1.0)
        await settle()
        await later(1.5)
        device.spawner.last.finish()
        assert device.transport.replies() == []
        assert (device.context.stats.expired, len(device.context.requests)) == (1, 0)

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_failure_past_the_deadline_is_silent_too() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("late", deadline_s=1.0)
        await settle()
        await later(1.5)
        device.spawner.last.fail("tester/late")
        assert device.transport.replies() == []

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_failed_job_keeps_the_workers_status_and_harms_no_other() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("bad")
        await device.ask("good")
        await settle()
        device.spawner.last.fail("tester/bad", 422, Cause.INVALID, "the text is empty")
        device.spawner.last.finish()
        assert (device.status("bad"), device.status("good")) == (422, 200)
        assert device.transport.reply("bad")["reason"] == "the text is empty"

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


# Cancel


def test_cancel_in_the_queue() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("running")
        await settle()
        await device.ask("waiting")
        await device.cancel("waiting")
        assert device.status("waiting") == 499
        assert len(device.served().queue) == 0
        device.spawner.last.finish()
        await settle()
        assert device.spawner.last.inside == {}, "it never reached the worker"
        assert device.status("running") == 200

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_cancel_inside_the_worker_frees_it() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await settle()
        await device.cancel("1")
        await settle()
        assert device.status("1") == 499
        await device.ask("2")
        await settle()
        assert list(device.spawner.last.inside) == ["tester/2"]

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_cancel_of_what_is_under_way_is_answered_once_and_its_late_result_dropped() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await settle()
        await device.cancel("1")
        await settle()
        device.spawner.last.finish()
        await settle()
        assert device.transport.statuses() == {"1": [499]}
        await device.ask("2")
        await settle()
        device.spawner.last.finish()
        assert device.status("2") == 200

    Device.run(scenario, a_model(), plan=Plan(compute_s=None, cancels=False))


def test_another_client_s_request_is_not_cancelled() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await settle()
        await device.cancel("1", client="stranger")
        assert device.transport.replies() == []

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_worker_deep_in_a_step_does_not_hold_up_the_intake_of_a_cancel() -> None:
    """The child hears a cancel only between two steps; meanwhile the agent must go on reading messages."""

    async def scenario(device: Device) -> None:
        await device.ask("1")
        await settle()
        device.spawner.plan.call_s = 5.0
        before_s = device.clock.monotonic_s()
        await device.cancel("1")
        assert device.status("1") == 499
        assert device.clock.monotonic_s() - before_s < 0.1

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_job_cancelled_while_its_adapter_is_refused_is_answered_once_and_the_model_served_on() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", {"text": "x", "adapter": "bad"})
        await later(0.5)
        await device.cancel("1")
        await later(1.0)
        device.check()
        assert device.transport.statuses() == {"1": [499]}
        await device.ask("2")
        await later(0.1)
        assert device.status("2") == 200

    plan = Plan(attach_s=1.0, refuses={"bad": AdapterRefused("wrong rank")})
    Device.run(scenario, a_model(adapters=["bad"]), plan=plan)


# Loading


def test_a_load_that_fails_answers_everybody_who_waits() -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.load_faults.append(BackendError("the graph is broken", "onnx"))
        for index in range(3):
            await device.ask(str(index))
        await later(1.0)
        assert device.transport.statuses() == {str(index): [500] for index in range(3)}
        reply = device.transport.reply("0")
        assert "model 'm' cannot be loaded: onnx: the graph is broken" in reply["reason"]
        assert reply["retry_after_s"] > 0
        assert device.kinds() == ["load-failed"]
        await device.ask("later")
        await later(0.1)
        assert device.status("later") == 200, "the next request tries again"

    Device.run(scenario, a_model())


def test_requests_that_come_during_a_load_wait_for_it() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await later(1.0)
        await device.ask("2")
        await later(2.0)
        assert device.transport.statuses() == {"1": [200], "2": [200]}
        assert len(device.spawner.workers) == 1

    Device.run(scenario, a_model(), plan=Plan(load_s=2.0))


def test_repeated_deaths_quarantine_the_model_with_503() -> None:
    async def scenario(device: Device) -> None:
        for index in range(3):
            await device.ask(str(index))
            await later(1.0)
            device.spawner.last.die()
            await settle()
        assert device.served().lifecycle.published == "quarantined"
        assert "quarantined" in device.kinds()
        await device.ask("after")
        await settle()
        reply = device.transport.reply("after")
        assert (reply["status"], "retry_after_s" in reply) == (503, False), "only an operator lifts it"
        assert "until `edge-agent load` lifts it" in reply["reason"]
        assert "quarantined" in reply["reason"]
        assert len(device.spawner.running()) == 0
        statuses = device.transport.statuses()
        assert all(statuses[str(index)] in ([500], [503]) for index in range(3))

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_model_that_dies_while_it_loads_is_quarantined_not_loaded_for_ever() -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.load_faults.extend(["die"] * 50)
        await device.ask("1")
        await later(1.0)
        assert device.status("1") == 503
        assert device.spawner.tries == 3

    Device.run(scenario, a_model())


def test_an_order_to_load_lifts_the_quarantine() -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.load_faults.extend(["die"] * 3)
        await device.ask("1")
        await later(1.0)
        await device.order("load", {"model": "m"})
        await later(1.0)
        assert device.status("order") == 200
        await device.ask("2")
        await later(1.0)
        assert device.status("2") == 200
        kinds = device.kinds()
        assert kinds.index("quarantined") < kinds.index("quarantine-lifted")

    Device.run(scenario, a_model())


def test_old_deaths_do_not_count() -> None:
    async def scenario(device: Device) -> None:
        for index in range(6):
            await device.ask(str(index), deadline_s=60)
            await settle()
            device.spawner.last.die()
            await later(0.5)
            device.spawner.last.finish()
            await later(500.0)
        assert device.served().lifecycle.published != "quarantined"
        assert device.transport.statuses() == {str(index): [200] for index in range(6)}

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


# Adapters


def test_adapters_are_attached_once_and_mixed() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("busy")
        await settle()
        for index in range(6):
            await device.ask(str(index), {"text": "x", "adapter": "ab"[index % 2]})
        device.spawner.last.finish()
        await settle()
        assert len(device.spawner.last.inside) == 6
        assert device.spawner.last.attached == ["a", "b"]

    Device.run(scenario, a_model(adapters=["a", "b"]), plan=Plan(compute_s=None))


def test_a_runtime_that_cannot_mix_gets_one_adapter_a_batch() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("busy")
        await settle()
        for index in range(6):
            await device.ask(str(index), {"text": "x", "adapter": "ab"[index % 2]})
        device.spawner.last.finish()
        await settle()
        assert {job.adapter for job in device.spawner.last.inside.values()} == {"a"}

    Device.run(scenario, a_model(adapters=["a", "b"]), plan=Plan(compute_s=None, mixed=False))


def test_more_adapters_in_a_batch_than_may_be_resident_are_all_answered() -> None:
    names = [f"a{index}" for index in range(ADAPTERS_RESIDENT + 8)]

    async def scenario(device: Device) -> None:
        await device.ask("busy")
        await settle()
        for name in names:
            await device.ask(name, {"text": "x", "adapter": name})
        await later(1.0)
        assert {name: device.status(name) for name in names} == dict.fromkeys(names, 200)
        assert len(device.spawner.last.attached) <= ADAPTERS_RESIDENT

    Device.run(scenario, a_model(adapters=names), max_rows=64)


def test_an_adapter_that_is_refused_is_404_and_the_rest_of_the_batch_runs() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("busy")
        await settle()
        await device.ask("bad", {"text": "x", "adapter": "bad"})
        await device.ask("good", {"text": "x", "adapter": "good"})
        await later(0.1)
        assert (device.status("bad"), device.status("good")) == (404, 200)
        assert device.transport.reply("bad")["reason"] == "adapter 'bad' was refused: wrong rank"

    plan = Plan(refuses={"bad": AdapterRefused("wrong rank")})
    Device.run(scenario, a_model(adapters=["bad", "good"]), plan=plan)


def test_a_replaced_adapter_is_attached_anew() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", {"text": "x", "adapter": "a"})
        await later(0.1)
        device.library.change("m", adapters=(an_adapter("a", "sha256:newer"),))
        device.watch.tick()
        await device.ask("2", {"text": "x", "adapter": "a"})
        await later(0.1)
        operations = [operation for operation, _ in device.spawner.last.heard if operation in {"attach", "detach"}]
        assert operations == ["attach", "detach", "attach"]
        assert device.status("2") == 200

    Device.run(scenario, a_model(adapters=["a"]))


def test_a_worker_that_dies_right_after_attaching_loses_no_request() -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.die_after_attach.add("a")
        await device.ask("1", {"text": "x", "adapter": "a"})
        await device.ask("2", {"text": "x"})
        await settle()
        device.spawner.plan.die_after_attach.clear()
        await later(1.0)
        assert device.transport.statuses() == {"1": [200], "2": [200]}

    Device.run(scenario, a_model(adapters=["a"]), quarantine_deaths=0)


def test_a_worker_that_dies_while_attaching_loses_no_request() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", {"text": "x", "adapter": "a"})
        await device.ask("2", {"text": "x"})
        await later(0.5)
        device.spawner.last.die()
        await later(3.0)
        assert device.transport.statuses() == {"1": [200], "2": [200]}

    Device.run(scenario, a_model(adapters=["a"]), plan=Plan(attach_s=1.0))


# Trouble


def test_a_worker_that_cannot_be_started_is_answered_and_does_not_stop_the_world() -> None:
    async def scenario(device: Device) -> None:
        faults = [WorkerError("cannot start /no/python", "worker.python") for _ in range(200)]
        device.spawner.plan.spawn_faults.extend(faults)
        await device.ask("1", deadline_s=5.0)
        await later(6.0)
        assert device.spawner.tries < 20, "a hot loop"
        assert len(device.context.requests) == 0
        assert device.status("1") in {500, 503}

    Device.run(scenario, a_model())


def test_a_batch_too_large_for_a_frame_is_answered() -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.frame_bytes = 2000
        for index in range(3):
            await device.ask(str(index), {"text": "x" * 1000})
        await later(1.0)
        assert len(device.context.requests) == 0
        assert set(device.transport.statuses()) == {"0", "1", "2"}

    Device.run(scenario, a_model())


def test_large_parameters_of_one_request_do_not_refuse_another_in_its_batch() -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.frame_bytes = 4000
        await device.ask("busy")
        await settle()
        for index in range(3):
            await device.ask(f"large-{index}", {"text": "x", "params": {"stop": "y" * 1500}})
        await device.ask("innocent")
        await later(1.0)
        assert device.status("innocent") == 200

    Device.run(scenario, a_model())


def test_a_silent_worker_is_ended_and_its_jobs_run_again() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", deadline_s=120.0)
        await settle()
        silent = device.spawner.last
        for _ in range(29):
            await later(1.0)
            device.watch.tick()
        assert device.spawner.running() == [silent]
        for _ in range(3):
            await later(1.0)
            device.watch.tick()
        assert silent not in device.spawner.running()
        await settle()
        device.spawner.last.finish()
        assert device.status("1") == 200
        assert device.kinds() == ["worker-hung", "worker-died"]

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_model_removed_while_it_works_answers_what_runs_and_refuses_what_waits() -> None:
    async def scenario(device: Device) -> None:
        served = device.served()
        await device.ask("running")
        await settle()
        await device.ask("waiting")
        device.library.remove("m")
        device.watch.tick()
        await settle()
        device.spawner.last.finish()
        await settle()
        assert device.transport.statuses() == {"running": [200], "waiting": [404]}
        assert device.spawner.last.closed
        assert served.task is not None
        assert served.task.done()
        await device.ask("after")
        assert device.status("after") == 404

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_model_removed_while_it_loads_leaves_no_worker_behind() -> None:
    async def scenario(device: Device) -> None:
        served = device.served()
        await device.ask("1")
        await later(1.0)
        device.library.remove("m")
        device.watch.tick()
        await later(5.0)
        assert set(device.transport.statuses()) == {"1"}
        assert device.spawner.running() == []
        assert served.task is not None
        assert served.task.done()

    Device.run(scenario, a_model(), plan=Plan(load_s=2.0))


def test_a_model_removed_when_its_worker_dies_is_not_loaded_again() -> None:
    async def scenario(device: Device) -> None:
        served = device.served()
        await device.ask("1")
        await settle()
        device.library.remove("m")
        device.watch.tick()
        device.spawner.last.die()
        await later(1.0)
        assert len(device.spawner.workers) == 1
        assert device.status("1") == 404
        assert served.task is not None
        assert served.task.done()

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_another_variant_is_loaded_for_the_next_request() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await later(0.1)
        newer = a_variant("newer")
        device.library.change("m", variant=newer, variants=(newer,))
        device.watch.tick()
        await device.ask("2")
        await later(0.1)
        assert [worker.heard[0] for worker in device.spawner.workers] == [
            ("load", "sha256:m-v1"),
            ("load", "sha256:newer"),
        ]
        assert device.spawner.workers[0].closed
        assert device.status("2") == 200

    Device.run(scenario, a_model())


def test_abandon_answers_everything_open_once_with_503() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("running")
        await settle()
        await device.ask("waiting")
        device.server.abandon("the device is stopping")
        assert device.transport.statuses() == {"running": [503], "waiting": [503]}
        device.spawner.last.finish()
        await settle()
        assert len(device.context.requests) == 0

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_what_can_no_longer_be_computed_in_time_is_told_while_its_client_listens() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("running", deadline_s=60.0)
        await settle()
        await device.ask("hopeless", {"text": "x" * 400}, deadline_s=5.0)
        await device.ask("well", deadline_s=60.0)
        await later(2.0)
        device.context.costs.learn(device.served().cost_key, 2, 800, 4.0, threads=4)
        device.spawner.last.finish()
        await settle()
        reply = device.transport.reply("hopeless")
        assert reply["status"] == 503
        assert reply["reason"] == (
            "cannot meet the deadline any more: 4.0 s of queue and compute are ahead, 3.0 s are left"
        )
        device.spawner.last.finish()
        assert device.status("well") == 200

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_what_comes_too_late_is_learned_from() -> None:
    """Else a board that slows down goes on to promise what it cannot keep."""

    async def scenario(device: Device) -> None:
        await device.ask("quick")
        await settle()
        device.spawner.last.finish(compute_ms=5.0)
        await settle()
        for number in range(4):
            await device.ask(f"late-{number}", deadline_s=1.0)
            await later(2.0)
            device.spawner.last.finish(compute_ms=2000.0)
            await settle()
        assert device.context.stats.expired == 1, "the next ones are refused at the door"
        assert device.status("late-3") == 503

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_batch_is_learned_once_and_as_long_as_its_longest_text() -> None:
    async def scenario(device: Device) -> None:
        learned: list[tuple[object, ...]] = []
        device.context.costs.learn = lambda *sample: learned.append(sample)  # type: ignore[method-assign]
        for round_ in "ab":
            await device.ask(f"first-{round_}", {"text": "x"})
            await settle()
            for number in range(3):
                await device.ask(f"{round_}{number}", {"text": "y" * (10 + number)})
            await settle()
            device.spawner.last.finish(compute_ms=5.0)
            await settle()
            device.spawner.last.finish(compute_ms=7.0)
            await settle()
        assert [sample[1:4] for sample in learned] == 2 * [(1, 1, 0.005), (3, 36, 0.007)]

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_list_of_many_texts_is_learned_by_its_steps() -> None:
    """Else each batch would be expected to take as long as somebody's long list, and others be refused for it."""

    async def scenario(device: Device) -> None:
        learned: list[tuple[object, ...]] = []
        device.context.costs.learn = lambda *sample: learned.append(sample)  # type: ignore[method-assign]
        await device.ask("long", {"texts": ["x"] * 32})
        await settle()
        name = next(iter(device.spawner.last.inside))
        device.spawner.last.inside.pop(name)
        results = [{"label": "on", "score": 0.9}] * 32
        device.spawner.last.tell(JobDone(name, results, tokenize_ms=0.1, compute_ms=80.0, batch=8, steps=4))
        await settle()
        assert [sample[1:4] for sample in learned] == [(8, 8, 0.02)]

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_what_others_ask_is_computed_beside_a_list_of_many_texts() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("long", {"texts": ["x"] * 64}, client="hog")
        await settle()
        await device.ask("more", {"texts": ["x"] * 64}, client="hog")
        await device.ask("own", {"text": "x"}, client="hog")
        for number in range(3):
            await device.ask(f"good-{number}", {"text": "y"}, client="good")
        await settle()
        worker = device.spawner.last
        inside = [name.rpartition("/")[2] for name in worker.inside]
        assert inside == ["long", "good-0", "good-1", "good-2"], "its own client's wait for it"
        await device.ask("good-3", {"text": "y"}, client="good")
        await settle()
        assert len(worker.inside) == 4, "a step's worth at a time"
        worker.finish([name for name in worker.inside if not name.endswith("long")])
        await settle()
        assert [device.status(f"good-{number}") for number in range(3)] == [200, 200, 200]
        assert [name.rpartition("/")[2] for name in worker.inside] == ["long", "good-3"]
        worker.finish()
        await settle()
        worker.finish()
        await settle()
        worker.finish()
        await settle()
        assert [device.status(name) for name in ("long", "more", "own")] == [200, 200, 200]

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_what_waits_when_a_list_of_many_texts_begins_is_computed_beside_it() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("first", {"texts": ["x"] * 64}, client="hog")
        await settle()
        await device.ask("second", {"texts": ["x"] * 64}, client="other")
        await device.ask("own", {"text": "x"}, client="hog")
        await settle()
        worker = device.spawner.last
        assert len(worker.inside) == 1
        worker.finish()
        await settle()
        assert [name.rpartition("/")[2] for name in worker.inside] == ["second", "own"], "nobody asks anything more"

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_the_cost_of_what_is_computed_beside_long_texts_is_that_of_its_own_length() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("long", {"texts": ["x" * 200] * 64}, client="hog")
        await settle()
        await device.ask("good", {"text": "y" * 8}, client="good")
        await settle()
        worker, served = device.spawner.last, device.served()
        learned: list[tuple[int, int]] = []
        learn = device.context.costs.learn

        def noted(model: Hashable, rows: int, size_bytes: int, compute_s: float, threads: int = 0) -> None:
            learned.append((rows, size_bytes))
            learn(model, rows, size_bytes, compute_s, threads)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(device.context.costs), "learn", lambda _self, *args: noted(*args))
            worker.finish([name for name in worker.inside if name.endswith("good")])
            await settle()
        assert learned == [(1, 8)] and len(served.running) == 1, "the long list is computed in other steps"

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_second_long_list_expects_the_end_of_the_first_and_a_short_request_two_steps() -> None:
    async def scenario(device: Device) -> None:
        served, now_s = device.manager.served_models["m"], device.clock.monotonic_s()
        for rows in (1, 8):
            device.context.costs.learn(served.cost_key, rows, rows, 1.0, device.context.grant.threads)
        await device.ask("long", {"texts": ["x"] * 64}, client="hog", deadline_s=60.0)
        await settle()

        def expected_s(client: str, rows: int) -> float | None:
            job = Job((client, "1"), "m", None, ("x",) * rows, {}, 5, now_s + 60.0, now_s)
            return device.intake._predicted_s(job, served, device.clock.monotonic_s())[0]

        assert expected_s("good", 1) == 2.0 and expected_s("hog", 1) == expected_s("good", 64) == 8.0

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_question_about_a_long_context_counts_as_the_rows_that_it_took() -> None:
    async def scenario(device: Device) -> None:
        served = device.manager.served_models["m"]
        await device.ask("1", {"text": "q" * 40, "text_pair": "c" * 8000}, client="hog")
        await settle()
        await device.ask("2", {"text": "q" * 40, "text_pair": "c" * 8000}, client="hog")
        await device.ask("3", {"text": "q", "text_pair": "c"}, client="good")
        await settle()
        (first,) = served.running.values()
        assert first.rows == 6 and served.queue.rows == 7
        charged = served.queue._served[first.key[0]]
        worker = device.spawner.last
        name = next(iter(worker.inside))
        worker.inside.pop(name)
        answer = {"answer": None, "start": None, "end": None, "score": 0.1, "windows": 60, "tokens": 9}
        worker.tell(JobDone(name, [answer], tokenize_ms=0.1, compute_ms=80.0, batch=8, steps=8))
        assert served.queue._served[first.key[0]] == charged + 54
        await settle()
        assert [one.rpartition("/")[2] for one in worker.inside] == ["3", "2"], "who was served less goes first"

    task = TaskSpec("answers", (), 512, pairs=True, window_overlap=128, answer_tokens=30)
    Device.run(scenario, replace(a_model(), task=task), plan=Plan(compute_s=None))


def test_an_adapter_that_cannot_be_detached_fails_its_request_alone() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", {"text": "x", "adapter": "one"})
        await later(0.1)
        device.spawner.plan.refuses["detach"] = BackendError("the runtime does not let go of it")
        device.library.change("m", adapters=(an_adapter("one", "sha256:new"),))
        device.watch.tick()
        await device.ask("2", {"text": "y", "adapter": "one"})
        await later(0.1)
        assert (device.status("1"), device.status("2"), device.server.fault) == (200, 500, None)

    Device.run(scenario, a_model(adapters=("one",)))


HALF = ComputeGrant(GovernorLevel.REDUCED, 8, 4, None, "warm", duty_share=0.5)


async def seconds(device: Device, count: int) -> None:
    """Time passes, with the watch's look at every second of it."""
    for _ in range(count):
        device.watch.tick()
        await later(1.0)


def test_a_removed_model_whose_worker_hangs_is_ended_and_its_requests_with_it() -> None:
    """Seed 317: nobody looked after its served any more, and worker, memory and requests stayed for ever."""

    async def scenario(device: Device) -> None:
        await device.ask("1", deadline_s=20.0)
        await settle()
        device.library.remove("m")
        await seconds(device, int(WORKER_SILENCE_S) + 5)
        assert len(device.context.requests) == 0
        assert device.spawner.running() == []
        assert device.manager.every_served_model() == ()

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_requests_past_their_deadline_do_not_fill_the_queue_while_a_load_hangs() -> None:
    """Seed 352: the served that would have let them go waited for the load."""

    async def scenario(device: Device) -> None:
        for number in range(4):
            await device.ask(f"old{number}", client=f"c{number}", deadline_s=2.0)
        await seconds(device, 5)
        assert len(device.context.requests) == 0
        await device.ask("new", deadline_s=200.0)
        assert device.transport.statuses() == {}, "there is room for it"
        await later(150.0)
        assert device.status("new") == 200

    Device.run(scenario, a_model(), plan=Plan(load_s=100.0), queue_jobs=4)


def test_a_successor_does_not_rest_from_the_silence_of_the_one_before() -> None:
    """Seed 5: half a minute of hanging counted as a step, and at half cycle the next one waited as long again."""

    async def scenario(device: Device) -> None:
        device.context.grant = HALF
        await device.ask("1", deadline_s=60.0)
        await later(31.0)
        device.spawner.last.die()
        device.spawner.plan.compute_s = 0.01
        await later(2.0)
        assert device.status("1") == 200

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_what_rounding_leaves_of_a_rest_is_none() -> None:
    """Seed 18: a rest of a billionth of a second was waited for again and again."""

    async def scenario(device: Device) -> None:
        device.context.grant = HALF
        device.context.duty_cycle.begin("m", 1, 0.0)
        device.context.duty_cycle.end("m", device.clock.monotonic_s() - 1.0)
        device.context.duty_cycle._last = FinishedStep(device.clock.monotonic_s() - 1.0, 1.0 + 1e-9, 1)
        await device.ask("1")
        await asyncio.wait_for(later(1.0), 5.0)
        assert device.status("1") == 200

    Device.run(scenario, a_model())
