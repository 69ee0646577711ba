"""What goes wrong: one coroutine a kind, each from its own dice, each putting things right again when it ends."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from edge_agent.base.errors import StoreError
from edge_agent.base.limits import GIB, MIB

if TYPE_CHECKING:
    from tests.support.whole.world import World

Fault = Callable[["World", random.Random], Awaitable[None]]


async def sensor_lost(world: World, dice: random.Random) -> None:
    """A sensor gives no value for a while; the one of temperature or memory as well."""
    key = dice.choice(("temperature", "power", "throttle", "ram_available", "pss"))
    world.board.lost[key] = "Resource temporarily unavailable"
    await asyncio.sleep(dice.choice((0.5, 3.0, 20.0)))
    world.board.lost.pop(key, None)


async def sensor_frozen(world: World, dice: random.Random) -> None:
    """The temperature stands still while the board does not, with its old time."""
    world.board.freezes = True
    await asyncio.sleep(dice.uniform(1.0, 20.0))
    world.board.freezes = False


async def fever(world: World, dice: random.Random) -> None:
    """Heat from outside, up to where nothing may be computed."""
    world.board.fever_c = dice.choice((20.0, 40.0, 70.0, 120.0))
    await asyncio.sleep(dice.uniform(1.0, 12.0))
    world.board.fever_c = 0.0


async def memory_pressure(world: World, dice: random.Random) -> None:
    """Another process takes memory; at the end of it the kernel ends the largest worker."""
    taken = dice.randrange(256 * MIB, 4 * GIB)
    world.board.others_bytes += taken
    for _ in range(dice.randrange(1, 10)):
        world.board.kill_for_memory()
        await asyncio.sleep(0.7)
    world.board.others_bytes -= taken


async def worker_killed(world: World, dice: random.Random) -> None:
    """A worker, whatever it is doing, is gone; sometimes several times in a row."""
    for _ in range(dice.choice((1, 1, 2, 5))):
        alive = world.spawner.alive()
        if alive:
            dice.choice(alive).die("killed by SIGKILL")
        await asyncio.sleep(dice.choice((0.0, 0.05, 1.0)))


async def worker_hangs(world: World, dice: random.Random) -> None:
    """A worker says nothing any more; only its end helps."""
    alive = world.spawner.alive()
    if alive:
        dice.choice(alive).hangs = True
    await asyncio.sleep(0)


async def bad_workers(world: World, dice: random.Random) -> None:
    """Loads, attachments, steps and starts that fail or kill, some of the time."""
    moods = world.spawner.moods
    name = dice.choice(("load_fails", "load_dies", "attach_refused", "attach_dies", "job_fails", "spawn_fails"))
    setattr(moods, name, dice.choice((0.2, 1.0)))
    await asyncio.sleep(dice.uniform(1.0, 15.0))
    setattr(moods, name, 0.0)


async def slow_workers(world: World, dice: random.Random) -> None:
    """Steps take ten times as long as learned."""
    moods = world.spawner.moods
    before, moods.row_s = moods.row_s, 0.04
    await asyncio.sleep(dice.uniform(1.0, 10.0))
    moods.row_s = before


async def broker_gone(world: World, dice: random.Random) -> None:
    """The broker stops and comes back, with or without what it knew."""
    world.broker.up = False
    world.broker.break_connection(forget_session=dice.random() < 0.3)
    await asyncio.sleep(dice.choice((0.2, 3.0, 25.0)))
    world.broker.up = True


async def connection_lost(world: World, dice: random.Random) -> None:
    """Only the connection breaks; several times in a row, sometimes."""
    for _ in range(dice.choice((1, 1, 4))):
        world.broker.break_connection()
        await asyncio.sleep(dice.uniform(0.1, 3.0))


async def connection_mute(world: World, dice: random.Random) -> None:
    """A half-open connection: nothing arrives on either side until the keep-alive notices."""
    connection = world.broker.connection
    if connection is not None:
        connection.mute_since_s = world.clock.monotonic_s()
    await asyncio.sleep(0)


async def congestion(world: World, dice: random.Random) -> None:
    """The socket takes nothing for a while."""
    if world.broker.connection is not None:
        world.broker.connection.congest(dice.uniform(0.1, 8.0))
    await asyncio.sleep(0)


async def events_refused(world: World, dice: random.Random) -> None:
    """The broker's access list does not let events through."""
    world.broker.refuses_events = True
    await asyncio.sleep(dice.uniform(1.0, 20.0))
    world.broker.refuses_events = False


async def wall_clock_jumps(world: World, dice: random.Random) -> None:
    """NTP sets the clock: by years forward, or back to 1970."""
    world.clock.set_wall(dice.choice((0.0, 86_400.0, 1_700_000_000.0, 4_000_000_000.0)))
    await asyncio.sleep(0)


async def process_stalls(world: World, dice: random.Random) -> None:
    """The daemon gets no processor (a stopped process, a swapping board): every timer comes late at once."""
    world.stalled(dice.choice((0.3, 2.0, 12.0, 40.0)))
    await asyncio.sleep(0)


async def disk_full(world: World, dice: random.Random) -> None:
    """The event spool finds no room."""
    world.disk.full = True
    await asyncio.sleep(dice.uniform(1.0, 20.0))
    world.disk.full = False


async def store_unreadable(world: World, dice: random.Random) -> None:
    """The store cannot be read for a while."""
    world.library.broken = StoreError("Input/output error", "store")
    await asyncio.sleep(dice.uniform(0.5, 5.0))
    world.library.broken = None


async def models_change(world: World, dice: random.Random) -> None:
    """A model gets another variant or other adapters, disappears, comes back."""
    models = {model.name: model for model in world.installed}
    name = dice.choice(sorted(models))
    there = any(model.name == name for model in world.library.active())
    what = dice.choice(("variant", "adapters", "remove", "return"))
    if what == "return" or not there:
        world.library.install(models[name])
    elif what == "remove":
        world.library.remove(name)
    elif what == "adapters":
        world.library.change(name, adapters=models[name].adapters[: dice.randrange(3)])
    else:
        world.library.change(name, variant=world.another_variant(name, dice))
    await asyncio.sleep(dice.uniform(0.0, 5.0))
    world.library.install(models[name])


async def version_on_trial(world: World, dice: random.Random) -> None:
    """A new version gets copies of requests, and is kept or returned; or somebody changes the model before that."""
    name = dice.choice([model.name for model in world.installed])
    there = {model.name: model for model in world.library.active()}
    if name in there and not there[name].trial:
        terms = {"least": 8, "most": dice.choice((8, 30)), "within_s": dice.choice((60.0, 600.0)), "agreement": 0.3}
        ends = {"otherwise": dice.choice(("promote", "return"))}
        terms |= {
            "mode": dice.choice(("shadow", "share")),
            "share": dice.choice((0.2, 1.0)),
            "turns": dice.random() < 0.7,
        }
        world.library.put_on_trial(name, json.dumps({**terms, **ends}), variant=world.another_variant(name, dice))
    await asyncio.sleep(dice.uniform(0.0, 40.0))


async def daemon_restarts(world: World, dice: random.Random) -> None:
    """An upgrade: the daemon is stopped in order, and started again."""
    await world.lives.restart(dice.choice((0.1, 1.0, 6.0)))


async def daemon_killed(world: World, dice: random.Random) -> None:
    """kill -9, at once or a few packets on; the next process starts after a while, and sometimes fares no better."""
    for _ in range(dice.choice((1, 1, 2))):
        await world.lives.kill(dice.choice((0, 1, 2, 3, 8, 30)), dice.choice((0.05, 1.0, 5.0, 20.0)))


async def hostile_client(world: World, dice: random.Random) -> None:
    """Hundreds of messages at once: for a model that nobody has, the same again and again, or cancels of nothing.
    Sometimes the broker is too busy with them to take anything for a moment."""
    kind = dice.choice(("unknown", "unknown", "again", "cancel"))
    for _ in range(dice.choice((1, 3))):
        world.clients.flood(kind, dice.choice((50, 200, 500)), qos=dice.choice((0, 0, 1)))
        if world.broker.connection is not None and dice.random() < 0.7:
            world.broker.connection.congest(dice.uniform(0.1, 3.0))
        await asyncio.sleep(dice.choice((0.0, 0.3, 2.0)))


ALL: tuple[Fault, ...] = (
    sensor_lost, sensor_frozen, fever, memory_pressure, worker_killed, worker_hangs, bad_workers, slow_workers,
    broker_gone, connection_lost, connection_mute, congestion, events_refused, wall_clock_jumps, process_stalls,
    disk_full, store_unreadable, models_change, daemon_restarts, daemon_killed,
    hostile_client, version_on_trial,
)  # fmt: skip
