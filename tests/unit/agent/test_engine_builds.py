"""Engines built beside the work: who answers meanwhile, the change between two batches, and every way it can fail."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from edge_agent.agent import golden_probes
from edge_agent.agent.context_sizing import LoadPlan
from edge_agent.agent.engine_builds import BUILDER_BYTES, SCRATCH_BYTES, USUAL_BUILD_S, build_claim
from edge_agent.agent.status_builder import model_entry
from edge_agent.base.errors import BackendError
from edge_agent.base.limits import GIB, MIB
from edge_agent.bundle.catalog import InstalledModel
from edge_agent.bundle.probes import Expected, ProbeFile
from edge_agent.core.memory_ledger import MemoryLedger
from edge_agent.core.residency import default_reserve_bytes
from edge_agent.core.variant_fallback import PAUSE_BASE_S, FallbackState
from edge_agent.protocol.messages import EngineBuild
from tests.support.fakes import FakeWorker, Plan, a_model, a_variant
from tests.support.in_process import Device
from tests.support.virtual_time import later

ENGINE = replace(a_variant("engine", 50, 100, "tensorrt"), dtype="fp16", files={"model": __file__})
GRAPH = replace(a_variant("graph", 50, 100, "onnx"), files={"model": __file__})
BUILD_S = 60.0
BUILD_BYTES = BUILDER_BYTES + SCRATCH_BYTES + 2 * ENGINE.size_bytes


def model(*others: Any, **more: Any) -> InstalledModel:
    return replace(a_model("m", ENGINE, **more), variants=(ENGINE, *others))


def plan(**more: Any) -> Plan:
    return Plan(no_engine={ENGINE.digest}, build_s=BUILD_S, **more)


def probes(feature: float = 0.0) -> ProbeFile:
    """FakeWorkers put out 0 for every text."""
    expected = Expected(features=[[feature]], features_tolerance=1e-3)
    return ProbeFile(schema=1, texts=["turn it on"], expected={ENGINE.name: expected, GRAPH.name: expected})


def answering(device: Device) -> FakeWorker:
    worker = device.served().worker
    assert worker is not None and isinstance(worker.process, FakeWorker)
    return worker.process


def building(device: Device) -> EngineBuild:
    found = model_entry(device.served(), device.clock.monotonic_s()).building
    assert found is not None
    return found


async def asked(device: Device, name: str, **more: Any) -> str:
    """The variant that answered, after the answer."""
    await device.ask(name, **more)
    await later(0.3)
    assert device.status(name) == 200, device.dump()
    return str(device.transport.reply(name)["variant"])


async def tick(device: Device, seconds: float) -> None:
    await later(seconds)
    device.watch.tick()


def test_the_fallback_answers_until_the_engine_takes_over() -> None:
    async def scenario(device: Device) -> None:
        assert await asked(device, "1", body={"text": "on", "adapter": "a"}) == "fp32"
        fallback = answering(device)
        assert building(device).answered_by == "onnx/fp32" and building(device).stage == "build"
        assert device.served().build_account in device.manager.ledger.accounts()
        await later(BUILD_S / 2)
        assert await asked(device, "2") == "fp32"
        await later(BUILD_S)
        assert await asked(device, "3") == "fp16"
        assert fallback.closed and device.spawner.running() == [answering(device)]
        assert answering(device).attached == ["a"], "what was attached stays attached"
        assert ("judge", True) in answering(device).heard
        entry = model_entry(device.served(), device.clock.monotonic_s())
        assert entry.building is None and entry.variant == ENGINE.digest
        assert list(device.manager.ledger.accounts()) == ["m"]
        assert device.served().lifecycle.load_s < 1.0, "the build is no part of the next load's time"
        assert device.kinds() == ["engine-build", "engine-build", "variant-changed"]

    Device.run(scenario, model(GRAPH, adapters=("a",)), plan=plan())


def test_requests_without_end_see_one_change_and_no_failure() -> None:
    async def scenario(device: Device) -> None:
        for number in range(400):
            await device.ask(str(number))
            await later(0.25)
        await later(1.0)
        found = [body["variant"] for body in device.transport.replies()]
        assert len(found) == 400 and {body["status"] for body in device.transport.replies()} == {200}
        assert [one for place, one in enumerate(found) if place == 0 or found[place - 1] != one] == ["fp32", "fp16"]

    Device.run(scenario, model(GRAPH), plan=plan(compute_s=0.2))


def test_a_model_that_returns_while_it_waits_for_an_engine_is_answered_by_the_fallback() -> None:
    """Seed 548: it came back with the chosen variant, whose load looked for an engine a second time."""

    async def scenario(device: Device) -> None:
        await device.ask("1", deadline_s=20.0)
        await later(0.1)
        served = device.served()
        device.library.remove("m")
        device.watch.tick()
        assert served.lifecycle.is_removed and served.fallback.state is FallbackState.CHOSEN
        served.fallback.engine_missing(ENGINE, GRAPH, "", device.clock.monotonic_s())
        device.library.install(model(GRAPH))
        device.watch.tick()
        assert device.served() is served and served.model.variant.digest == GRAPH.digest
        answering(device).finish()
        await later(0.1)
        assert device.status("1") == 200 and device.server.fault is None

    Device.run(scenario, model(GRAPH), plan=plan(compute_s=None))


@pytest.mark.parametrize("others", [(), (GRAPH,)])
def test_without_a_fallback_or_memory_for_both_the_engine_is_built_first(others: tuple[Any, ...]) -> None:
    async def scenario(device: Device) -> None:
        device.sensors.set(ram_total=float(GIB), ram_available=400.0 * MIB)
        await device.ask("1", deadline_s=400.0)
        await later(1.0)
        assert building(device).answered_by is None
        why = "no memory for a build beside onnx/fp32: needs" if others else "the package has no variant"
        assert why in str(building(device).reason) and why in device.events[0][1]
        await later(BUILD_S)
        assert device.status("1") == 200 and device.transport.reply("1")["variant"] == "fp16"
        assert device.served().fallback.state is FallbackState.CHOSEN
        assert ("judge", True) in answering(device).heard

    Device.run(scenario, model(*others), plan=plan())


def test_who_cannot_wait_for_a_build_is_told_so_at_once() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("before", deadline_s=20.0)
        await device.ask("patient", deadline_s=500.0)
        await tick(device, 1.0)
        await device.ask("during", deadline_s=20.0)
        await tick(device, 1.0)
        device.server.deadlines.look()
        for name in ("before", "during"):
            reply = device.transport.reply(name)
            assert (reply["status"], reply["cause"], reply["retry_after_s"]) == (503, "deadline", 60.0)
            assert "is compiled for this device first, which is expected to take another" in reply["reason"]
        await later(BUILD_S)
        assert device.status("patient") == 200
        assert await asked(device, "after", deadline_s=20.0) == "fp16"

    Device.run(scenario, model(), plan=plan())


def test_a_build_that_is_late_still_tells_who_cannot_wait() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("first", deadline_s=3000.0)
        await later(USUAL_BUILD_S + 100.0)
        await device.ask("late", deadline_s=20.0)
        device.server.deadlines.look()
        assert device.transport.reply("late")["cause"] == "deadline"
        await device.ask("patient", deadline_s=200.0)
        device.server.deadlines.look()
        await later(150.0)
        assert device.status("patient") == 200

    Device.run(scenario, model(), plan=Plan(no_engine={ENGINE.digest}, build_s=USUAL_BUILD_S + 200.0))


def test_during_a_build_first_other_models_are_loaded() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.set(ram_total=float(GIB), ram_available=600.0 * MIB)
        await device.ask("1", deadline_s=200.0)
        await later(1.0)
        await device.ask("2", model="n")
        await later(1.0)
        assert device.status("2") == 200

    Device.run(scenario, model(), a_model("n"), plan=plan())


def test_an_idle_model_makes_room_for_a_build() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.set(ram_total=2.0 * GIB, ram_available=float(400 * MIB + BUILD_BYTES))
        await asked(device, "1", model="n")
        await asked(device, "2")
        assert building(device).answered_by == "onnx/fp32"
        assert ("evicted", "model 'n' made room for a build of 'm'") in device.events

    Device.run(scenario, model(GRAPH), a_model("n", a_variant("n", 150, 150)), plan=plan())


LARGE = replace(a_variant("large", 50, 1200, "tensorrt"), dtype="fp16", files={"model": __file__})


@pytest.mark.parametrize(("chosen", "most_bytes"), [(ENGINE, BUILD_BYTES), (LARGE, 1200 * MIB)])
def test_a_build_beside_needs_the_larger_of_build_and_engine_and_not_both(chosen: Any, most_bytes: int) -> None:
    """The building process has given its memory back when the engine is loaded."""
    for spare_bytes in (-MIB, MIB):

        async def scenario(device: Device, spare_bytes: int = spare_bytes) -> None:
            reserve_bytes = default_reserve_bytes(4 * GIB)
            free_bytes = reserve_bytes + most_bytes + GRAPH.peak_bytes + spare_bytes
            device.sensors.set(ram_total=4.0 * GIB, ram_available=float(free_bytes))
            await device.ask("1", deadline_s=400.0)
            await later(1.0)
            assert (building(device).answered_by is not None) == (spare_bytes > 0), building(device).reason

        ready = Plan(no_engine={chosen.digest}, build_s=BUILD_S)
        Device.run(scenario, replace(a_model("m", chosen), variants=(chosen, GRAPH)), plan=ready)


def test_what_a_build_held_counts_at_the_next_one_where_it_was_more() -> None:
    ledger = MemoryLedger()
    claim = build_claim(LoadPlan(ENGINE, ENGINE), ledger)
    assert ledger.predict(claim) == BUILD_BYTES
    for held_bytes, wanted_bytes in ((2 * BUILD_BYTES, 2 * BUILD_BYTES), (100 * MIB, BUILD_BYTES)):
        ledger.promise("m/engine", claim)
        ledger.hold("m/engine", held_bytes)
        ledger.release("m/engine")
        assert ledger.predict(build_claim(LoadPlan(ENGINE, ENGINE), ledger)) == wanted_bytes
    assert ledger.ratio("tensorrt") == 1.0


def test_an_engine_that_computes_something_else_never_answers() -> None:
    async def scenario(device: Device) -> None:
        device.library.probe_files[ENGINE.name] = probes(1.0)
        assert await asked(device, "1") == "fp32"
        await later(BUILD_S + 1.0)
        assert await asked(device, "2") == "fp32"
        found = building(device)
        assert found.stage == "put off" and found.answered_by == "onnx/fp32" and found.again_s is not None
        assert "computes something else than the package says: probe 1" in str(found.reason)
        assert ("judge", False) in device.spawner.workers[-1].heard and device.spawner.workers[-1].closed
        assert "tried again in 15 min 00 s or with `edge-agent load m`" in device.events[-1][1]
        assert list(device.manager.ledger.accounts()) == ["m"]

    Device.run(scenario, model(GRAPH), plan=plan())


def test_probes_that_hold_are_run_before_the_change() -> None:
    async def scenario(device: Device) -> None:
        device.library.probe_files[ENGINE.name] = probes()
        await asked(device, "1")
        await later(BUILD_S + 1.0)
        heard = [name for name, _ in answering(device).heard]
        assert heard[:4] == ["load", "measure", "measure", "judge"]

    Device.run(scenario, model(GRAPH), plan=plan())


@pytest.mark.parametrize("right", [True, False])
def test_an_engine_that_nobody_has_probed_does_not_answer_before_it_was(right: bool) -> None:
    """The daemon was killed between a build and its probes."""

    async def scenario(device: Device) -> None:
        device.library.probe_files[ENGINE.name] = probes(0.0 if right else 1.0)
        assert await asked(device, "1") == ("fp16" if right else "fp32")
        first = device.spawner.workers[0]
        assert [name for name, _ in first.heard][:4] == ["load", "measure", "measure", "judge"]
        assert ("judge", right) in first.heard and first.closed is not right

    Device.run(scenario, model(GRAPH), plan=Plan(unproven={ENGINE.digest}))


def test_a_build_that_dies_is_put_off_and_tried_again_later() -> None:
    async def scenario(device: Device) -> None:
        await asked(device, "1")
        tries = device.spawner.tries
        await later(1.0)
        device.spawner.last.die("killed by SIGKILL")
        await later(10.0)
        assert await asked(device, "2") == "fp32" and building(device).stage == "put off"
        assert device.served().lifecycle.deaths_in_a_row == 0, "it is no death of the worker that answers"
        await tick(device, PAUSE_BASE_S / 2)
        assert device.spawner.tries == tries, "not at once"
        await tick(device, PAUSE_BASE_S / 2)
        await later(BUILD_S + 1.0)
        assert device.spawner.tries == tries + 1
        assert await asked(device, "3") == "fp16"
        assert device.served().fallback.failures == 0

    Device.run(scenario, model(GRAPH), plan=plan())


def test_an_order_to_load_ends_the_pause() -> None:
    async def scenario(device: Device) -> None:
        await asked(device, "1")
        device.spawner.last.die("killed by SIGKILL")
        await later(10.0)
        await device.order("load", {"model": "m"})
        await later(BUILD_S + 2.0)
        assert await asked(device, "2") == "fp16"

    Device.run(scenario, model(GRAPH), plan=plan())


def test_an_order_to_load_while_the_failed_builds_worker_still_ends_begins_another_build() -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.load_faults.extend([None, BackendError("no kernel for this GPU")])
        await asked(device, "1")
        device.spawner.plan.close_s = 2.0
        await later(BUILD_S - 0.2)
        assert building(device).stage == "put off"
        device.spawner.plan.close_s = 0.0
        await device.order("load", {"model": "m"})
        await later(BUILD_S + 10.0)
        assert await asked(device, "2") == "fp16", device.dump()

    Device.run(scenario, model(GRAPH), plan=plan())


def test_an_error_of_the_agent_in_a_build_puts_it_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(golden_probes, "verdict", broken)

    async def scenario(device: Device) -> None:
        await asked(device, "1")
        await later(BUILD_S + 1.0)
        assert device.served().fallback.state is FallbackState.PUT_OFF
        assert "an error of the agent: RuntimeError" in str(building(device).reason)
        assert (
            device.served().successor is None and device.served().build_account not in device.manager.ledger.accounts()
        )
        assert await asked(device, "2") == "fp32"

    Device.run(scenario, model(GRAPH), plan=plan())
    assert "a bug" in caplog.text, "its traceback is in the journal"


def test_a_failed_build_whose_worker_cannot_be_ended_has_failed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.load_faults.extend([None, BackendError("no kernel for this GPU")])
        await asked(device, "1")

        async def broken() -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(device.spawner.last, "close", broken)
        await later(BUILD_S + 1.0)
        assert building(device).reason == "no kernel for this GPU"
        assert device.served().fallback.failures == 1

    Device.run(scenario, model(GRAPH), plan=plan())


def test_a_runtime_that_is_gone_leaves_the_fallback_answering() -> None:
    """After an upgrade that left TensorRT out, for example."""

    async def scenario(device: Device) -> None:
        device.spawner.plan.load_faults.append(BackendError("cannot import tensorrt", "python3", "install it"))
        assert await asked(device, "1") == "fp32"
        assert building(device).reason == "python3: cannot import tensorrt (install it)"

    Device.run(scenario, model(GRAPH), plan=Plan())


def test_without_a_fallback_a_failed_build_is_not_repeated_for_every_request() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", deadline_s=200.0)
        await later(1.0)
        device.spawner.last.die("killed by SIGKILL")
        await later(10.0)
        tries = device.spawner.tries
        await device.ask("2")
        await later(1.0)
        reply = device.transport.reply("2")
        assert (
            reply["status"] == 503
            and 0 < reply["retry_after_s"] <= PAUSE_BASE_S
            and "cannot be loaded" in reply["reason"]
        )
        assert device.spawner.tries == tries
        await tick(device, PAUSE_BASE_S)
        await device.ask("3", deadline_s=200.0)
        await later(BUILD_S + 1.0)
        assert device.status("3") == 200

    Device.run(scenario, model(), plan=plan())


def test_a_new_version_ends_the_build_of_the_old_one() -> None:
    async def scenario(device: Device) -> None:
        await asked(device, "1")
        old = device.spawner.last
        newer = replace(ENGINE, digest="sha256:newer")
        device.library.change("m", variant=newer, variants=(newer, GRAPH))
        device.watch.tick()
        await later(1.0)
        assert old.closed and device.served().build_account not in device.manager.ledger.accounts()
        assert await asked(device, "2") == "fp16", "the newer version has its engine"

    Device.run(scenario, model(GRAPH), plan=plan())


def test_a_removed_model_ends_its_build() -> None:
    async def scenario(device: Device) -> None:
        await asked(device, "1")
        device.library.remove("m")
        device.watch.tick()
        await later(1.0)
        assert device.spawner.running() == [] and not device.manager.ledger.accounts()

    Device.run(scenario, model(GRAPH), plan=plan())


def test_the_build_is_the_first_to_go_when_memory_is_short() -> None:
    async def scenario(device: Device) -> None:
        await asked(device, "1")
        fallback = answering(device)
        assert await device.manager.evict_idle("memory is short")
        await later(1.0)
        assert device.spawner.running() == [fallback] and building(device).stage == "put off"
        assert "its build was ended: memory is short" in str(building(device).reason)

    Device.run(scenario, model(GRAPH), plan=plan())


def test_the_death_of_the_fallback_does_not_end_the_build() -> None:
    async def scenario(device: Device) -> None:
        await asked(device, "1")
        answering(device).die("killed by SIGSEGV")
        await later(1.0)
        assert await asked(device, "2") == "fp32"
        await later(BUILD_S)
        assert await asked(device, "3") == "fp16"
        answering(device).die("killed by SIGSEGV")
        assert device.served().worker is None, "the death of the one that took over is heard"
        assert await asked(device, "4") == "fp16"

    Device.run(scenario, model(GRAPH), plan=plan())


def test_what_a_build_holds_is_measured() -> None:
    """Else memory that it has taken already is promised to nobody a second time."""

    async def scenario(device: Device) -> None:
        await asked(device, "1")
        ledger, name = device.manager.ledger, device.served().build_account
        before, builder = ledger.outstanding_bytes, device.spawner.last
        device.sensors.pss[builder.pid] = 300 * MIB
        await tick(device, 11.0)
        assert ledger.accounts()[name].held_bytes == 300 * MIB
        assert ledger.outstanding_bytes == before - 300 * MIB
        assert ledger.ratio("tensorrt") == 1.0, "a build says nothing about what a loaded engine needs"

    Device.run(scenario, model(GRAPH), plan=plan())


def test_two_builds_run_one_after_the_other() -> None:
    async def scenario(device: Device) -> None:
        await asked(device, "1")
        await asked(device, "2", model="n")
        assert len([one for one in device.spawner.running() if one.variant and one.variant.runtime == "tensorrt"]) == 1
        await later(2 * BUILD_S + 2.0)
        assert await asked(device, "3") == "fp16" and await asked(device, "4", model="n") == "fp16"

    second, graph = (replace(one, digest=f"{one.digest}-n") for one in (ENGINE, GRAPH))
    other = replace(a_model("n", second), variants=(second, graph))
    Device.run(scenario, model(GRAPH), other, plan=Plan(no_engine={ENGINE.digest, second.digest}, build_s=BUILD_S))


def test_a_device_that_stops_leaves_no_build_behind() -> None:
    async def scenario(device: Device) -> None:
        await asked(device, "1")
        await device.manager.close()
        await asyncio.sleep(0)
        assert device.spawner.running() == []

    Device.run(scenario, model(GRAPH), plan=plan())
