"""Who is in memory: loads on demand, evicts the idle, refuses with the arithmetic, never two loads at once."""

from __future__ import annotations

from dataclasses import replace

from edge_agent.agent.host_monitor import Budget
from edge_agent.agent.status_builder import model_entry
from edge_agent.base.causes import Cause, Closure
from edge_agent.base.errors import BackendError, MemoryRefused
from edge_agent.base.limits import ADAPTERS_RESIDENT, GIB, MIB
from edge_agent.bundle.catalog import InstalledModel
from edge_agent.protocol.worker_messages import LoadMemory, LoadProgress
from tests.support.fakes import Plan, a_model, a_variant
from tests.support.in_process import Device
from tests.support.virtual_time import later, settle


def model(name: str, mib: int) -> InstalledModel:
    return a_model(name, a_variant(f"{name}-v1", mib, mib))


def free(device: Device, mib: float) -> None:
    """A board of 1 GiB, which keeps 200 MiB for itself, with so much free while no worker runs."""
    device.sensors.set(ram_total=float(GIB), ram_available=mib * MIB)
    device.watch.tick()


def resident(device: Device) -> set[str]:
    return {served.name for served in device.manager.served_models.values() if served.worker is not None}


def test_a_model_is_loaded_when_it_is_first_asked() -> None:
    async def scenario(device: Device) -> None:
        assert device.spawner.workers == []
        await device.ask("1")
        await later(0.1)
        assert resident(device) == {"m"}
        await device.ask("2")
        await later(0.1)
        assert len(device.spawner.workers) == 1

    Device.run(scenario, a_model())


def test_an_idle_model_leaves_for_another() -> None:
    async def scenario(device: Device) -> None:
        free(device, 700)
        await device.ask("1", model="a")
        await later(0.1)
        await device.ask("2", model="b")
        await later(0.1)
        assert device.status("2") == 200
        assert resident(device) == {"b"}
        assert device.spawner.workers[0].closed
        assert device.events == [("evicted", "model 'a' made room for 'b'")]
        await device.ask("3", model="a")
        await later(0.1)
        assert device.status("3") == 200
        assert resident(device) == {"a"}

    Device.run(scenario, model("a", 400), model("b", 400))


def test_only_room_that_is_there_after_a_departure_is_promised() -> None:
    """Seed 3175: another program took what the leaving model gave back, and it was promised all the same."""

    async def scenario(device: Device) -> None:
        free(device, 700)
        await device.ask("1", model="a")
        await later(0.1)
        device.spawner.plan.close_s = 1.0
        await device.ask("2", model="b", deadline_s=60.0)
        await later(0.5)
        free(device, 500)
        await later(1.0)
        assert device.manager.ledger.account("b") is None
        assert resident(device) == set()
        free(device, 700)
        await later(3.0)
        assert device.status("2") == 200

    Device.run(scenario, model("a", 400), model("b", 400))


def test_a_busy_model_stays_and_who_cannot_wait_is_told_the_arithmetic() -> None:
    async def scenario(device: Device) -> None:
        free(device, 700)
        await device.ask("1", model="a")
        await settle()
        await device.ask("soon", model="b", deadline_s=5.0)
        await device.ask("later", model="b", deadline_s=60.0)
        await later(4.6)
        reply = device.transport.reply("soon")
        assert reply["status"] == 503
        assert reply["retry_after_s"] > 0
        assert reply["reason"].startswith("no memory for model 'b': needs 400.0 MiB, 300.0 MiB are available")
        assert resident(device) == {"a"}
        device.spawner.plan.compute_s = 0.01
        device.spawner.last.finish()
        await later(1.0)
        assert (device.status("1"), device.status("later")) == (200, 200)
        assert resident(device) == {"b"}

    Device.run(scenario, model("a", 400), model("b", 400), plan=Plan(compute_s=None))


def test_what_can_never_fit_is_told_so_without_a_time_to_come_back() -> None:
    async def scenario(device: Device) -> None:
        free(device, 700)
        await device.ask("1")
        await settle()
        reply = device.transport.reply("1")
        assert reply["status"] == 503
        assert "this board can give 824.0 MiB" in reply["reason"]
        assert "retry_after_s" not in reply

    Device.run(scenario, model("m", 2000))


def test_measured_bytes_replace_the_package_s() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.pss[4000] = 123 * MIB
        await device.ask("1")
        await later(0.1)
        assert device.manager.ledger.predict(device.claim()) == 123 * MIB

    Device.run(scenario, a_model())


def test_without_a_measurement_the_runtime_s_own_figure_counts() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await later(0.1)
        assert device.served().footprint_bytes == 10 * MIB

    Device.run(scenario, a_model())


def test_two_models_never_load_at_once() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", model="a")
        await device.ask("2", model="b")
        await later(1.0)
        assert len(device.spawner.workers) == 1
        await later(3.0)
        assert (device.status("1"), device.status("2")) == (200, 200)

    Device.run(scenario, a_model("a"), a_model("b"), plan=Plan(load_s=1.5))


def test_the_least_recently_used_adapter_leaves_when_there_are_too_many() -> None:
    names = [f"a{index}" for index in range(ADAPTERS_RESIDENT + 1)]

    async def scenario(device: Device) -> None:
        for name in [*names[:ADAPTERS_RESIDENT], names[0], names[-1]]:
            await device.ask(f"{name}-{len(device.transport.published)}", {"text": "x", "adapter": name})
            await later(0.1)
        attached = device.spawner.last.attached
        assert len(attached) == ADAPTERS_RESIDENT
        assert names[0] in attached
        assert names[1] not in attached
        assert list(device.served().attached)[-2:] == [names[0], names[-1]]

    Device.run(scenario, a_model(adapters=names))


def test_another_variant_fits_into_what_the_old_one_gives_back() -> None:
    async def scenario(device: Device) -> None:
        free(device, 700)
        await device.ask("1")
        await later(0.1)
        newer = a_variant("newer", 450, 450)
        device.library.change("m", variant=newer, variants=(newer,))
        device.watch.tick()
        await device.ask("2")
        await later(0.1)
        assert device.status("2") == 200

    Device.run(scenario, model("m", 400))


def test_two_loads_within_a_second_do_not_promise_the_same_memory() -> None:
    async def scenario(device: Device) -> None:
        free(device, 700)
        await device.ask("1", model="a")
        await later(0.1)
        await device.ask("2", model="b")
        await later(0.1)
        assert device.status("2") == 200
        assert resident(device) == {"b"}, "both in memory: 100 MiB more than the board can give"

    Device.run(scenario, model("a", 400), model("b", 400))


def test_a_new_variant_is_predicted_by_its_own_size() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await later(0.1)
        newer = a_variant("newer", peak_mib=900)
        device.library.change("m", variant=newer, variants=(newer,))
        device.watch.tick()
        assert device.claim().stated_bytes == 900 * MIB
        assert device.manager.ledger.predict(device.claim()) == 450 * MIB, "the first one held half of what it said"

    Device.run(scenario, a_model())


BIG_AND_TWO_SMALL = (("a", 400), ("b1", 200), ("b2", 200))


async def being_evicted(device: Device) -> None:
    """b1 and b2 are resident and idle; loading `a` must send both away, b1 first, which takes two seconds."""
    free(device, 630)
    for name in ("b1", "b2"):
        await device.ask(name, model=name)
        await later(0.1)
    device.served("b1").lifecycle.expect_load(0.1)
    device.served("b2").lifecycle.expect_load(5.0)
    device.spawner.plan.close_s = 2.0
    await device.ask("a", model="a")
    await later(0.5)
    assert [worker.closed for worker in device.spawner.workers] == [True, False]


def test_a_model_that_is_updated_while_it_is_being_evicted_does_not_stop_all_loading() -> None:
    async def scenario(device: Device) -> None:
        await being_evicted(device)
        newer = a_variant("newer", 100, 100)
        device.library.change("b2", variant=newer, variants=(newer,))
        device.watch.tick()
        await device.ask("b2-again", model="b2")
        await later(20.0)
        assert set(device.transport.statuses()) == {"b1", "b2", "a", "b2-again"}

    Device.run(scenario, *(model(*one) for one in BIG_AND_TWO_SMALL))


def test_a_model_that_is_removed_while_another_is_being_evicted_harms_nobody() -> None:
    async def scenario(device: Device) -> None:
        await being_evicted(device)
        device.library.remove("b2")
        device.watch.tick()
        await later(20.0)
        assert {name: device.status(name) for name in ("b1", "b2", "a")} == {"b1": 200, "b2": 200, "a": 200}

    Device.run(scenario, *(model(*one) for one in BIG_AND_TWO_SMALL))


def test_a_model_that_begins_to_work_while_room_is_made_is_not_evicted() -> None:
    async def scenario(device: Device) -> None:
        await being_evicted(device)
        device.spawner.plan.compute_s = None
        await device.ask("late", model="b2", deadline_s=60.0)
        await later(4.0)
        assert not device.spawner.workers[1].closed
        await later(30.0)
        assert device.status("a") == 503
        device.spawner.workers[1].finish()
        assert device.status("late") == 200

    Device.run(scenario, *(model(*one) for one in BIG_AND_TWO_SMALL))


def test_a_model_in_constant_use_lets_a_waiting_one_in_after_its_turn() -> None:
    async def scenario(device: Device) -> None:
        free(device, 700)
        for index in range(100):
            await device.ask(f"a{index}", model="a", deadline_s=60.0)
        await device.ask("b", model="b", deadline_s=60.0)
        await later(30.0)
        statuses = device.transport.statuses()
        assert statuses.pop("b") == [200]
        assert set(map(tuple, statuses.values())) == {(200,)}
        assert len(statuses) == 100
        assert device.kinds().count("evicted") >= 1

    Device.run(scenario, model("a", 400), model("b", 400), plan=Plan(compute_s=0.2, load_s=0.5), max_rows=1)


def test_models_that_are_only_to_be_resident_evict_nobody() -> None:
    async def scenario(device: Device) -> None:
        free(device, 700)
        for served in device.manager.served_models.values():
            served.lifecycle.keep_resident(True, up_to_date=False)
            served.wake_up()
        await later(5.0)
        assert resident(device) == {"a"}
        assert len(device.spawner.workers) == 1
        assert device.kinds() == ["load-failed", "load-failed"]

    Device.run(scenario, model("a", 400), model("b", 400), model("c", 400))


def test_what_is_mapped_from_files_is_not_there_for_others() -> None:
    async def scenario(device: Device) -> None:
        free(device, 700)
        device.sensors.pss[4000] = device.sensors.mapped[4000] = 400 * MIB
        device.spawner.plan.compute_s = None
        await device.ask("1", model="a")
        await settle()
        device.sensors.held_bytes = lambda: 0  # the kernel calls the weights available
        await device.ask("2", model="b", deadline_s=3.0)
        await later(2.5)
        assert "300.0 MiB are available" in device.transport.reply("2")["reason"]

    Device.run(scenario, model("a", 400), model("b", 400))


def test_what_a_model_does_not_hold_yet_stays_promised() -> None:
    async def scenario(device: Device) -> None:
        free(device, 700)
        device.sensors.pss[4000] = 50 * MIB
        device.spawner.plan.compute_s = None
        await device.ask("1", model="a")
        await settle()
        account = device.manager.ledger.account("a")
        assert account is not None
        assert account.reserved_bytes == 400 * MIB
        assert device.manager.ledger.outstanding_bytes == 350 * MIB

    Device.run(scenario, model("a", 400))


def test_the_configured_budget_bounds_all_models_together() -> None:
    async def scenario(device: Device) -> None:
        device.host._budget = Budget(models_bytes=500 * MIB)
        device.spawner.plan.compute_s = None
        await device.ask("1", model="a")
        await settle()
        await device.ask("2", model="b", deadline_s=2.0)
        await device.ask("3", model="huge")
        await later(1.6)
        assert "400.0 MiB of the budget of 500.0 MiB are taken" in device.transport.reply("2")["reason"]
        never = device.transport.reply("3")
        assert "the configured budget of all models is 500.0 MiB" in never["reason"]
        assert "retry_after_s" not in never

    Device.run(scenario, model("a", 400), model("b", 400), model("huge", 600))


def test_a_model_that_grows_is_measured_again_and_its_figure_kept() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.pss[4000] = 100 * MIB
        await device.ask("1")
        await later(11.0)
        device.sensors.pss[4000] = 130 * MIB
        await device.ask("2")
        await later(0.1)
        device.watch.tick()
        assert device.manager.ledger.predict(device.claim()) == 130 * MIB
        assert device.served().footprint_bytes == 130 * MIB

    Device.run(scenario, a_model())


def test_what_the_gpu_took_during_a_load_is_the_model_s() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.set(nvmap_used=50.0 * MIB)
        device.sensors.pss[4000] = 100 * MIB
        await device.ask("1")
        await later(0.5)
        device.sensors.set(nvmap_used=350.0 * MIB)
        await later(1.0)
        assert device.served().footprint_bytes == 400 * MIB
        assert device.manager.ledger.predict(device.claim()) == 400 * MIB

    Device.run(scenario, a_model(), plan=Plan(load_s=1.0))


def test_where_the_host_runs_short_the_worker_that_holds_most_is_ended() -> None:
    async def scenario(device: Device) -> None:
        for name, held in (("a", 10), ("b", 30), ("c", 20)):
            await device.ask(name, model=name)
            await later(0.1)
            device.served(name).note_footprint(held)
        device.manager.kill_largest("the host is short of memory")
        await settle()
        assert [name for name in "abc" if device.served(name).worker is None] == ["b"]

    Device.run(scenario, *(a_model(name) for name in "abc"))


def test_an_adapter_at_work_is_not_the_one_that_makes_room() -> None:
    names = [f"a{number:02}" for number in range(ADAPTERS_RESIDENT + 1)]

    async def scenario(device: Device) -> None:
        device.spawner.plan.compute_s = 0.01
        for name in names[:-1]:
            await device.ask(name, {"text": "x", "adapter": name})
            await later(0.05)
        served = device.served()
        assert len(served.attached) == ADAPTERS_RESIDENT
        device.spawner.last.plan = replace(device.spawner.last.plan, compute_s=None)
        await device.ask("at-work", {"text": "x", "adapter": names[0]})
        await settle()
        served.worker.attached.move_to_end(names[0], last=False)  # the least recently used, and at work
        await served.ensure_attached(names[-1])
        assert names[0] in served.attached
        assert names[1] not in served.attached
        device.spawner.last.finish()
        await settle()

    Device.run(scenario, a_model(adapters=names))


def test_a_model_is_not_loaded_while_the_host_is_short_of_memory() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", deadline_s=3.0)
        device.manager.close_admission(Closure(Cause.MEMORY, "no memory: 1 MiB is left"))
        await later(1.0)
        assert device.spawner.running() == []
        assert "no memory: 1 MiB is left" in [message for kind, message in device.events if kind == "load-failed"]
        device.manager.open_admission()
        await later(1.0)
        assert device.status("1") == 200

    Device.run(scenario, a_model())


def test_a_load_that_fails_for_every_request_is_told_once_in_a_while() -> None:
    async def scenario(device: Device) -> None:
        for number in range(20):
            device.spawner.plan.load_faults.append(BackendError("the file is no model"))
            await device.ask(str(number))
            await later(1.0)
        assert device.status("19") == 500
        assert device.kinds().count("load-failed") == 1

    Device.run(scenario, a_model())


def test_a_load_gets_what_the_host_has_free_and_one_that_gets_too_little_is_refused_for_memory() -> None:
    async def scenario(device: Device) -> None:
        device.sensors.set(ram_available=1000.0 * MIB)
        device.spawner.plan.load_faults.append(MemoryRefused("it got less memory than it asked for"))
        await device.ask("1")
        await later(1.0)
        memory = device.spawner.last.memory
        assert memory == LoadMemory(1000 * MIB, shrink=False)
        reply = device.transport.reply("1")
        assert (device.status("1"), reply["reason"]) == (
            503,
            "model 'm' cannot be loaded: it got less memory than it asked for",
        )

    Device.run(scenario, a_model())


def test_requests_to_a_quarantined_model_are_no_events() -> None:
    async def scenario(device: Device) -> None:
        device.quarantine()
        for number in range(5):
            await device.ask(str(number))
            await later(0.1)
        assert device.status("4") == 503
        assert device.kinds() == []

    Device.run(scenario, a_model())


def test_a_model_that_was_slow_to_load_once_is_loaded_for_those_who_cannot_wait_for_it() -> None:
    """Found by seed 1218: a load of 45 s, during which the process stood still, kept all others out for ever."""

    async def scenario(device: Device) -> None:
        device.context.costs.expect(device.served().cost_key, 16, 0.01)
        device.served().lifecycle.expect_load(45.0)
        await device.ask("1", deadline_s=10.0)
        refused = device.transport.reply("1")
        assert (refused["status"], "cannot meet the deadline: 45.0 s of queue" in refused["reason"]) == (503, True)
        await later(1.0)
        await device.ask("2", deadline_s=10.0)
        await later(0.1)
        assert device.status("2") == 200

    Device.run(scenario, a_model())


def test_requests_that_cannot_wait_load_a_model_that_finds_no_room_once_a_minute() -> None:
    async def scenario(device: Device) -> None:
        device.context.costs.expect(device.served().cost_key, 16, 0.01)
        device.served().lifecycle.expect_load(45.0)
        device.sensors.held_bytes = lambda: 0
        device.sensors.set(ram_total=4e9, ram_available=1.0)
        for number in range(100):
            await device.ask(str(number), deadline_s=10.0)
            await later(1.0)
        assert device.kinds().count("load-failed") <= 2

    Device.run(scenario, a_model())


def test_models_that_wait_for_memory_do_not_wake_each_other_for_ever() -> None:
    """Seed 13: 100 % of a core without a moment passing; virtual time calls that stuck."""

    async def scenario(device: Device) -> None:
        await device.ask("held", model="busy", deadline_s=300.0)
        await settle()
        for name in ("one", "two", "three"):
            await device.ask(name, model=name, deadline_s=20.0)
        await later(30.0)
        assert [device.status(name) for name in ("one", "two", "three")] == [503, 503, 503]
        device.spawner.last.finish()

    sizes = {"busy": 1800, "one": 900, "two": 900, "three": 900}
    models = [a_model(name, a_variant(f"{name}-v1", mib, mib)) for name, mib in sizes.items()]
    Device.run(scenario, *models, plan=Plan(compute_s=None))


def test_a_worker_that_loads_is_not_measured() -> None:
    """Seed 131: half of a model was taken for all of it, and the next load overbooked the memory."""

    async def scenario(device: Device) -> None:
        device.sensors.pss[4000] = 1
        await device.ask("1", deadline_s=120.0)
        await later(30.0)
        device.manager.measure()
        account = device.manager.ledger.account("m")
        assert account is not None
        assert account.held_bytes == 0
        device.sensors.pss.clear()
        await later(60.0)
        assert device.status("1") == 200

    Device.run(scenario, a_model(), plan=Plan(load_s=60.0))


def test_a_model_that_returns_while_its_worker_finishes_has_one_worker() -> None:
    """The second served of a name promised memory a second time: 'has an account already'."""

    async def scenario(device: Device) -> None:
        await device.ask("1", deadline_s=20.0)
        await settle()
        device.library.remove("m")
        device.watch.tick()
        device.library.install(a_model())
        device.watch.tick()
        await device.ask("2", deadline_s=20.0)
        device.spawner.last.finish()
        await later(1.0)
        device.spawner.last.finish()
        await settle()
        assert (device.status("1"), device.status("2")) == (200, 200)
        assert len(device.spawner.running()) == 1
        assert device.server.fault is None

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_a_worker_that_dies_when_its_load_is_over_is_never_taken_for_ready() -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.load_faults.append("die when loaded")
        await device.ask("1")
        await later(1.0)
        assert device.status("1") == 200
        assert len(device.spawner.workers) == 2
        assert device.kinds() == ["worker-died"]
        assert len(device.served().lifecycle.deaths_s) == 1

    Device.run(scenario, a_model())


def test_a_quarantine_by_a_death_when_the_load_is_over_holds() -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.load_faults.append("die when loaded")
        await device.ask("1")
        await later(1.0)
        assert device.status("1") == 503
        assert device.served().lifecycle.published == "quarantined"
        assert len(device.spawner.workers) == 1

    Device.run(scenario, a_model(), quarantine_deaths=1)


def test_a_model_that_is_removed_while_room_is_made_for_it_is_not_loaded() -> None:
    async def scenario(device: Device) -> None:
        await being_evicted(device)
        device.library.remove("a")
        device.watch.tick()
        await later(10.0)
        assert device.status("a") == 404
        assert len(device.spawner.workers) == 2, "those of b1 and b2"
        assert [served.name for served in device.manager.every_served_model()] == ["b1", "b2"]

    Device.run(scenario, *(model(name, size) for name, size in BIG_AND_TWO_SMALL))


def test_a_load_that_is_ordered_is_given_up_when_the_model_is_removed_while_the_worker_starts() -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.spawn_s = 1.0
        await device.order("load", {"model": "m"})
        await later(0.5)
        device.library.remove("m")
        device.watch.tick()
        await later(2.0)
        assert device.status("order") == 500
        assert device.spawner.running() == []
        assert device.manager.every_served_model() == ()
        assert not device.manager.ledger.accounts()
        assert device.server.fault is None

    Device.run(scenario, a_model())


def test_a_load_that_compiles_tells_how_far_it_is_and_what_it_took() -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.load_s = 90.0
        await device.ask("1", deadline_s=600.0)
        await later(1.0)
        served = device.manager.served_models["m"]
        worker = device.spawner.last
        worker.tell(LoadProgress("start", expected_s=80.0))
        await later(30.0)
        worker.tell(LoadProgress("build: Tactics", 0.4, 80.0))
        entry = model_entry(served, device.clock.monotonic_s())
        assert entry.building is not None and not served.lifecycle.is_loaded
        assert (entry.building.stage, entry.building.share, entry.building.expected_s) == ("build: Tactics", 0.4, 80.0)
        assert 29.0 < entry.building.elapsed_s < 32.0
        await later(90.0)
        assert model_entry(served, device.clock.monotonic_s()).building is None
        told = [message for kind, message in device.events if kind == "engine-build"]
        assert len(told) == 2 and "the last build here took 1 min 20 s" in told[0] and "built and loaded in" in told[1]
        assert device.status("1") == 200

    Device.run(scenario, a_model())


def test_a_load_that_compiles_nothing_tells_nothing() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1")
        await later(0.1)
        assert model_entry(device.manager.served_models["m"], 0.0).building is None
        assert "engine-build" not in device.kinds()

    Device.run(scenario, a_model())
