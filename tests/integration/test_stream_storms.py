"""Streams under fire: workers killed, cancels at every moment, clients that vanish, and a thousand of all kinds.

Whatever happens, a stream ends with exactly one final message, and nothing of it stays behind.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import string
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_agent.protocol.messages import Reply, StreamChunk
from tests.support import generators, tiny_gguf
from tests.support.agents import AgentProcess, running
from tests.support.mosquitto import Mosquitto
from tests.support.needs import need
from tests.support.storms import Held, StormClient, held

KILLS = int(os.environ.get("EDGE_STREAM_KILLS", "100"))
CANCELS = 400
VANISHED = 40
MIXED, WARM = 1000, 200
SEQUENCES = 4
# Grammars that never end: the answer is as long as it was asked to be.
LETTERS = "root ::= [a-z ] root"
# Large, so that a few hundred of them which are not freed are megabytes.
WORDS = " | ".join(f'"{first}{second} "' for first in string.ascii_lowercase for second in "aeioulnrst")
LARGE = f"root ::= ({WORDS}) root"
SCHEMA = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
# Samplers and candidates grow with the vocabulary: one set that is not freed is 50 KiB.
SHAPE = tiny_gguf.Shape(vocab=4096)
GROWTH_BYTES = 4 << 20


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    need("llama_cpp", "gguf")
    folder = tmp_path_factory.mktemp("storms")
    with Mosquitto(folder) as broker:
        found = generators.installed(folder, broker, SHAPE, sequences=SEQUENCES)
        found.broker = broker  # type: ignore[attr-defined]
        with running(found):
            yield found


@asynccontextmanager
async def client(agent: AgentProcess, name: str) -> AsyncIterator[StormClient]:
    async with StormClient(agent.broker.options(name), agent.device) as found:  # type: ignore[attr-defined]
        yield found


def stream(tokens: int, prompt: str = "Hi", adapter: str | None = None, grammar: str = LETTERS) -> dict[str, Any]:
    params = {"max_tokens": tokens, "temperature": 1.5, "seed": 7, "grammar": grammar}
    return {"prompt": prompt, "adapter": adapter, "stream": True, "params": params}


def text(dice: random.Random, length: int) -> str:
    """A prompt that no earlier one begins like: nothing of it is cached."""
    return "".join(dice.choices(string.ascii_letters, k=length))


def check_ends(storm: StormClient) -> Counter[str]:
    """Each request has exactly one final message, the last one, behind parts without a gap; how they ended."""
    ends: Counter[str] = Counter()
    for request_id, parts in storm.parts.items():
        assert len(storm.finals(request_id)) == 1, (request_id, storm.finals(request_id))
        assert parts[-1] is storm.finals(request_id)[0], f"{request_id}: a part came after the final message"
        seqs = [part.seq for part in parts if isinstance(part, StreamChunk)]
        assert seqs == list(range(len(seqs))), request_id
        ends[end_of(parts[-1])] += 1
    return ends


def end_of(final: Reply | StreamChunk) -> str:
    return str(final.status) if isinstance(final, Reply) else "200"


async def full_batch(agent: AgentProcess) -> None:
    """Every sequence is free: so many streams at once share one batch. Each is of another client: the last sequence is
    left to a client that holds none while others have asked lately."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(agent, f"full-{number}")) for number in range(SEQUENCES)]
        asked = [(one, one.ask(stream(200))) for one in clients]
        for one, request_id in asked:
            await one.ended([request_id])
        assert max(getattr(one.parts[request_id][-1], "batch", 0) for one, request_id in asked) == SEQUENCES


async def rest(agent: AgentProcess) -> Held:
    """What the daemon holds once its one worker is the only child; the least of a second, since replies come and go."""
    found = []
    for _ in range(10):
        await asyncio.sleep(0.1)
        found.append(held(agent.pid))
    return Held(*(min(values) for values in zip(*found, strict=True)))


async def the_worker(agent: AgentProcess) -> int:
    """The one child, after the one that is asked for the runtimes at the start has gone."""
    while len(agent.workers()) != 1:
        await asyncio.sleep(0.02)
    return agent.workers()[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_killed_in_mid_stream_a_hundred_times(agent: AgentProcess) -> None:
    async def kill_once(storm: StormClient, dice: random.Random) -> None:
        """A kill in mid-stream; the next worker takes over whatever had not begun."""
        streams = [storm.ask(stream(200, adapter=adapter)) for adapter in (None, "one", None)]
        await storm.begun(streams[0])
        await asyncio.sleep(dice.uniform(0.0, 0.02))
        os.kill(await the_worker(agent), signal.SIGKILL)
        await storm.ended(streams)
        after = storm.ask({"prompt": "Hi", "params": {"max_tokens": 2}})
        await storm.ended([after])
        assert end_of(storm.parts[after][-1]) == "200", storm.parts[after]

    async def whole() -> None:
        dice = random.Random(5)
        async with client(agent, "killer") as storm:
            await storm.ended([storm.ask(stream(2))])
            for _ in range(3):
                await kill_once(storm, dice)
            before, started_s = await rest(agent), time.monotonic()
            for _ in range(KILLS):
                await kill_once(storm, dice)
            took_s, after = time.monotonic() - started_s, await rest(agent)
            ends = check_ends(storm)
            print(f"\n{KILLS} kills in {took_s:.0f} s, ends {dict(ends)}\n{before}\n{after}")
            assert set(ends) == {"200", "500"}
            assert ends["500"] >= 0.9 * KILLS, "most kills were in mid-stream"
            died = [parts[-1] for parts in storm.parts.values() if end_of(parts[-1]) == "500"]
            assert all("died" in str(getattr(part, "reason", "")) for part in died)
            assert after.zombies == 0
            assert after[1:] == before[1:], "files, children, zombies, threads and shared memory are as before"
            assert after.pss_bytes - before.pss_bytes < GROWTH_BYTES
            await full_batch(agent)

    asyncio.run(whole())


MOMENTS = ("never", "before", "at once", "mid-prompt", "mid-decode", "twice", "after", "stranger")


async def cancelled_at(moment: str, storm: StormClient, stranger: StormClient, dice: random.Random) -> str:
    """One stream, cancelled (or not) at that moment; its id."""
    tokens = dice.randint(30, 120)
    request_id = f"{moment}-{text(dice, 12)}"
    storm.parts[request_id] = []
    if moment == "before":
        storm.cancel(request_id)
    long = moment == "mid-prompt"
    body = stream(100 if long else tokens, text(dice, 380 if long else 20), dice.choice((None, None, "one", "two")))
    storm.ask_as(request_id, body)
    if moment == "mid-prompt":
        await asyncio.sleep(dice.uniform(0.0, 0.03))
    if moment in {"mid-decode", "twice", "stranger"}:
        await storm.begun(request_id)
        await asyncio.sleep(dice.uniform(0.0, 0.03))
    if moment == "after":
        await storm.ended([request_id])
    if moment == "stranger":
        stranger.cancel(request_id)
    elif moment not in {"never", "before"}:
        storm.cancel(request_id)
    if moment == "twice":
        storm.cancel(request_id)
    await storm.ended([request_id])
    return request_id


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_storm_of_cancels_leaves_every_sequence_free_and_every_figure_right(agent: AgentProcess) -> None:
    async def whole() -> None:
        dice = random.Random(6)
        async with client(agent, "storm-a") as one, client(agent, "storm-b") as other:
            await one.ended([one.ask(stream(2))])
            worker = await the_worker(agent)
            files = held(worker).files, held(agent.pid).files
            since = await settled(one)
            moments = [MOMENTS[number % len(MOMENTS)] for number in range(CANCELS)]
            dice.shuffle(moments)
            gate = asyncio.Semaphore(24)

            async def run(number: int, moment: str) -> None:
                async with gate:
                    storm, stranger = (one, other) if number % 2 else (other, one)
                    await cancelled_at(moment, storm, stranger, dice)

            await asyncio.gather(*(run(number, moment) for number, moment in enumerate(moments)))
            ends = check_ends(one) + check_ends(other)
            ends["200"] -= 1  # the one before the storm
            await one.counted(lambda: sum(one.told(since)[:2]) >= CANCELS)
            await settled(one)
            answered, not_answered, refusals = one.told(since)
            print(f"\n{CANCELS} streams: {dict(ends)}; telemetry {answered}, {not_answered}, {dict(refusals)}")
            assert (answered, not_answered) == (ends["200"], ends["499"])
            assert refusals == {"499": ends["499"]}
            assert sum(ends.values()) == CANCELS
            assert sum(report.duplicates + report.expired for report in one.telemetry[since:]) == 0
            for storm in (one, other):
                for request_id, parts in storm.parts.items():
                    if request_id.startswith(("never", "before", "after", "stranger")):
                        assert getattr(parts[-1], "finish_reason", None) == "length", (request_id, parts[-1])
            assert ends["499"] > CANCELS // 4, "most cancels came in time"
            await full_batch(agent)
            assert agent.workers() == [worker]
            assert (held(worker).files, held(agent.pid).files) == files
            check_ends(one)

    asyncio.run(whole())


async def settled(storm: StormClient) -> int:
    """Wait for a report of an interval in which nothing was asked; how many reports there are by then."""
    start = len(storm.telemetry)

    def quiet() -> bool:
        report = storm.telemetry[-1] if len(storm.telemetry) > start else None
        return report is not None and report.queue_jobs == 0 and storm.told(len(storm.telemetry) - 1)[:2] == (0, 0)

    await storm.counted(quiet)
    return len(storm.telemetry)


def ask_and_vanish(port: int, name: str, topic: str, wait_s: float) -> None:
    """A client that asks for a stream, hears its beginning, and is gone: its connection ends without a word."""
    begun, ready = threading.Event(), threading.Event()
    asker = paho.Client(
        paho.CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv5, reconnect_on_failure=False
    )  # fmt: skip
    asker.on_message = lambda *_: begun.set()
    asker.on_subscribe = lambda *_: ready.set()
    asker.connect("127.0.0.1", port)
    asker.loop_start()
    reply = f"edge/v1/client/{name}/reply"
    asker.subscribe(f"{reply}/#", 1)
    assert ready.wait(20)
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic, properties.CorrelationData, properties.MessageExpiryInterval = reply, b"gone", 60
    asker.publish(topic, msgspec.json.encode(stream(450, name)), 1, properties=properties)
    assert begun.wait(60), "the stream did not begin"
    time.sleep(wait_s)
    link = asker.socket()
    assert isinstance(link, socket.socket)
    link.shutdown(socket.SHUT_RDWR)
    asker.loop_stop()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_clients_that_vanish_in_mid_stream_free_their_sequences(agent: AgentProcess) -> None:
    async def whole() -> None:
        dice = random.Random(8)
        topic = f"edge/v1/{agent.device}/infer/tiny"
        async with client(agent, "stayer") as storm:
            await storm.ended([storm.ask(stream(2))])
            worker = await the_worker(agent)
            since, before = await settled(storm), held(agent.pid)
            stayed = []
            for start in range(0, VANISHED, 8):
                stayed.append(storm.ask(stream(450, f"stay {start}")))
                leaving = [
                    asyncio.to_thread(ask_and_vanish, agent.broker.port, f"gone-{number}", topic, dice.uniform(0, 0.05))  # type: ignore[attr-defined]
                    for number in range(start, start + 8)
                ]
                await asyncio.gather(*leaving)
            await storm.ended(stayed)
            await storm.counted(lambda: sum(storm.told(since)[:2]) >= VANISHED + len(stayed))
            await settled(storm)
            answered, not_answered, refusals = storm.told(since)
            print(f"\n{VANISHED} vanished: {not_answered} stopped, {answered - len(stayed)} had ended")
            assert answered + not_answered == VANISHED + len(stayed)
            assert refusals == {"499": not_answered}
            assert not_answered >= 0.8 * VANISHED, "most streams were stopped before their end"
            assert {end_of(storm.parts[one][-1]) for one in stayed} == {"200"}
            await full_batch(agent)
            check_ends(storm)
            assert agent.workers() == [worker]
            assert held(agent.pid).files == before.files

    asyncio.run(whole())


def plain(storm: StormClient, number: int) -> str:
    sampling = {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repeat_penalty": 1.1, "seed": number}
    return storm.ask({"prompt": f"Request {number}", "params": {"max_tokens": 4, **sampling}})


def adapted(storm: StormClient, number: int) -> str:
    return storm.ask(stream(6, f"Stream {number}", ("one", "two")[number % 2], LARGE))


def chat(storm: StormClient, number: int) -> str:
    params = {"max_tokens": 3, "logprobs": True, "stop": ["zz"], "temperature": 1.0, "seed": number}
    return storm.ask({"messages": [{"role": "user", "content": f"Hello {number}"}], "params": params})


def structured(storm: StormClient, number: int) -> str:
    return storm.ask({"prompt": f"JSON {number}", "params": {"max_tokens": 40, "json_schema": SCHEMA}})


def cancelled(storm: StormClient, number: int) -> str:
    request_id = storm.ask(stream(200, f"{number} no more", None, LARGE))
    asyncio.get_running_loop().call_later(0.005 * (number % 9), storm.cancel, request_id)
    return request_id


def wrong(storm: StormClient, number: int) -> str:
    bad: tuple[dict[str, Any], ...] = (
        {"prompt": "x", "params": {"grammar": "root ::= ((("}},
        {"prompt": "x" * 600, "params": {"grammar": LARGE}},
        {"prompt": "x", "adapter": "nobody"},
        {"prompt": "x", "params": {"temperature": 9}},
        {"prompt": "x", "params": {"json_schema": {"type": "robot"}}},
    )
    return storm.ask({**bad[number % len(bad)], "stream": bool(number % 2)})


KINDS: tuple[Callable[[StormClient, int], str], ...] = (plain, adapted, chat, structured, cancelled, wrong)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_requests_of_all_kinds_leave_nothing_behind(agent: AgentProcess) -> None:
    """After a warm-up a heap breathes by a few MiB; what leaks raises its lows as well."""

    async def burst(storm: StormClient, start: int, count: int) -> None:
        for first in range(start, start + count, 24):
            numbers = range(first, min(first + 24, start + count))
            await storm.ended([KINDS[number % len(KINDS)](storm, number) for number in numbers])

    async def whole() -> None:
        async with client(agent, "mixer") as storm:
            await burst(storm, 0, WARM)
            worker = await the_worker(agent)
            samples: list[tuple[Held, Held]] = []
            step = (MIXED - WARM) // 8
            for start in range(WARM, MIXED, step):
                samples.append((held(worker), held(agent.pid)))
                await burst(storm, start, step)
            samples.append((held(worker), held(agent.pid)))
            ends = check_ends(storm)
            for place, name in enumerate(("worker", "daemon")):
                kib = [sample[place].pss_bytes // 1024 for sample in samples]
                files = [sample[place].files for sample in samples]
                print(f"\n{name}: PSS {kib} KiB, files {files}", end="")
                assert min(kib[-3:]) - min(kib[:3]) < GROWTH_BYTES // 1024, f"the {name}'s memory stays flat: {kib}"
                assert min(files[-3:]) <= min(files[:3]), f"no file of the {name} stays open: {files}"
            print(f"\n{dict(ends)}")
            assert sum(ends.values()) == MIXED
            assert ends["422"] + ends["404"] == sum(KINDS[number % len(KINDS)] is wrong for number in range(MIXED))
            assert ends["499"] > MIXED // 20
            assert agent.workers() == [worker]
            await full_batch(agent)

    asyncio.run(whole())
