"""GGUF files that are cut short or changed, met by the device's own backend in a real worker child, and by the store.

Whatever the damage: the file is refused with a sentence, or the child's death is reported with its signal, or it loads
and answers; never a wait without end. A changed weight is a weight to llama.cpp: the store's hashes are for that.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from edge_agent.app.packages import models, open_library
from edge_agent.base.causes import WorkerDeath
from edge_agent.base.errors import EdgeError, PackageError, WorkerError
from edge_agent.base.limits import GGUF_COUNT
from edge_agent.bundle.catalog import TaskSpec, Variant
from edge_agent.client.request_client import RequestClient
from edge_agent.config.load import load
from edge_agent.protocol.worker_messages import AnyEvent, StepLimits
from edge_agent.worker.supervisor import SpawnOptions, WorkerProcess, spawn
from tests.support import generators, tiny_gguf
from tests.support.agents import AgentProcess, running
from tests.support.mosquitto import Mosquitto
from tests.support.needs import need

TASK = TaskSpec("generate", max_tokens=64)
LIMITS = StepLimits(4, 1)
PATIENCE_S = 60.0
FLIPS = 40


class Whole(NamedTuple):
    """A sound file, and where its table of tensors and their data begin."""

    data: bytes
    table: int
    weights: int


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    need("llama_cpp", "gguf")
    import gguf

    path = tiny_gguf.write_model(tmp_path_factory.mktemp("whole") / "model.gguf")
    reader = gguf.GGUFReader(path)
    return Whole(path.read_bytes(), min(one.field.offset for one in reader.tensors), int(reader.data_offset))


class Bench:
    """Loads one file after the other in a child, and takes a new one when it has died or is used up."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "model.gguf"
        self._worker: WorkerProcess | None = None
        self.deaths: list[str] = []

    def on_event(self, event: AnyEvent) -> None:
        """See `WorkerListener`."""

    def on_death(self, death: WorkerDeath) -> None:
        """See `WorkerListener`."""
        self.deaths.append(death.reason)

    async def outcome(self, data: bytes) -> tuple[str, str]:
        """('loaded' | 'refused' | 'died', what was said). Raises TimeoutError where nothing comes."""
        self._path.write_bytes(data)
        return await asyncio.wait_for(self._outcome(), PATIENCE_S)

    async def _outcome(self) -> tuple[str, str]:
        if self._worker is None:
            self._worker = await spawn(SpawnOptions(), self)
        deaths = len(self.deaths)
        try:
            await self._worker.load(
                Variant("sha256:0", "llamacpp", "f16", {"model": str(self._path)}, 0, 0, options={}), TASK, LIMITS
            )
            answer = await self._worker.measure(None, ["Once upon a time"])
            found = ("loaded", str(len(answer.features)))
        except WorkerError as error:
            await asyncio.sleep(0)
            found = ("died", str(error)) if len(self.deaths) > deaths else ("refused", str(error))
        except EdgeError as error:
            return ("refused", str(error))
        await self.close()
        return found

    async def close(self) -> None:
        if self._worker is not None:
            await self._worker.close()
            self._worker = None


def on(bench: Bench, body: Callable[[Bench], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        try:
            return await body(bench)
        finally:
            await bench.close()

    return asyncio.run(bounded())


def flipped(data: bytes, at: int, mask: int) -> bytes:
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def set_value(whole: Whole, key: bytes, value: bytes) -> bytes:
    """The file with another scalar under a key: its name, four bytes of type, then the value."""
    at = whole.data.index(key) + len(key) + 4
    return whole.data[:at] + value + whole.data[at + len(value) :]


def test_a_file_cut_short_anywhere_is_refused_with_a_sentence(whole: Whole, tmp_path: Path) -> None:
    table, weights, end = whole.table, whole.weights, len(whole.data)
    said_at = dict.fromkeys((0, 3, 4, 15), "it does not begin with GGUF")
    said_at |= dict.fromkeys((20, 23, 24, 100), "its GGUF header is damaged (version 3, 20 tensors, ")
    in_header = (table // 2, table - 1, table + 5, (table + weights) // 2, weights - 40)
    said_at |= dict.fromkeys(in_header, "it is cut short: its header goes on beyond its ")
    in_data = (weights, weights + 10, (weights + end) // 2, end - 1)
    said_at |= {
        place: f"it is cut short: its tensors end at byte {end} of {place} (copy it again)" for place in in_data
    }

    async def body(bench: Bench) -> None:
        for place, expected in said_at.items():
            kind, said = await bench.outcome(whole.data[:place])
            assert kind == "refused", (place, said)
            assert f"cannot load the model: {expected}" in said, (place, said)
        assert bench.deaths == []
        assert (await bench.outcome(whole.data))[0] == "loaded"

    on(Bench(tmp_path), body)


@pytest.mark.parametrize("part", ["header", "table"])
def test_a_changed_bit_is_refused_with_a_sentence_or_a_death_with_its_signal(
    whole: Whole, tmp_path: Path, part: str
) -> None:
    begin, end = {"header": (0, whole.table), "table": (whole.table, whole.weights)}[part]
    rng = random.Random(part)
    key = b"llama.context_length"
    at_type = whole.data.index(key) + len(key)
    context_length = range(at_type, at_type + 8)  # four bytes of type, four of value

    async def body(bench: Bench) -> None:
        kinds: Counter[str] = Counter()
        for _ in range(FLIPS):
            at, mask = rng.randrange(begin, end), 1 << rng.randrange(8)
            kind, said = await bench.outcome(flipped(whole.data, at, mask))
            kinds[kind] += 1
            if kind == "refused":
                if "tokens is asked for" in said:
                    assert at in context_length, (at, mask, said)
                else:
                    assert "cannot load the model: " in said, (at, mask, said)
                assert not any(word in said for word in ("print_info", "gives no reason", "Error(")), (at, mask, said)
            if kind == "died":
                assert "the worker ended: killed by SIG" in said, (at, mask, said)
        assert kinds["refused"] >= FLIPS // 4, kinds
        assert (await bench.outcome(whole.data))[0] == "loaded", "and a sound file is served after all that"

    on(Bench(tmp_path), body)


def test_what_llama_cpp_itself_finds_wrong_is_said_in_its_words(whole: Whole, tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        kind, said = await bench.outcome(whole.data.replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"))
        assert kind == "refused"
        assert "cannot load the model: " in said
        assert "'blk.0.attn_q.weight' not found" in said

    on(Bench(tmp_path), body)


@pytest.mark.parametrize("blocks", [21, 2**31 - 1, 2**32 - 1])
def test_more_blocks_than_tensors_are_refused_before_anything_is_counted(
    whole: Whole, tmp_path: Path, blocks: int
) -> None:
    async def body(bench: Bench) -> None:
        kind, said = await bench.outcome(set_value(whole, b"llama.block_count", blocks.to_bytes(4, "little")))
        words = f"{blocks} blocks cannot be made of 20 tensors" if blocks < GGUF_COUNT else "1 to 16777216 are possible"
        assert (kind, words in said) == ("refused", True), said

    on(Bench(tmp_path), body)


EPSILON = b"llama.attention.layer_norm_rms_epsilon"


def test_a_crash_of_the_child_is_reported_as_one(whole: Whole, tmp_path: Path) -> None:
    """One bit, the sign of a constant: llama.cpp loads the file, and an assertion in the first step ends it."""

    async def body(bench: Bench) -> None:
        at = whole.data.index(EPSILON) + len(EPSILON) + 4 + 3
        kind, said = await bench.outcome(flipped(whole.data, at, 0x80))
        assert (kind, bench.deaths) == ("died", ["killed by SIGABRT"])
        assert "the worker ended: killed by SIGABRT" in said
        assert (await bench.outcome(whole.data))[0] == "loaded"

    on(Bench(tmp_path), body)


def test_a_changed_weight_is_the_stores_to_find(whole: Whole, tmp_path: Path) -> None:
    """llama.cpp loads it; a package with it is not installed, and what has changed on the disk since is found."""
    at = (whole.weights + len(whole.data)) // 2
    changed = flipped(whole.data, at, 0x01)

    async def body(bench: Bench) -> None:
        assert (await bench.outcome(changed))[0] == "loaded"

    on(Bench(tmp_path), body)
    package = generators.base_package(tmp_path / "package")
    data = package.read_bytes()
    assert data.count(whole.data) == 1
    spoiled = tmp_path / "spoiled.tar"
    spoiled.write_bytes(data.replace(whole.data, changed))
    agent = AgentProcess(tmp_path / "device", 1883, backends=("llamacpp",))
    with pytest.raises(PackageError, match="its SHA-256 is not its name"):
        agent.install(spoiled)
    assert models(agent.config) == []
    agent.install(package)
    library = open_library(load(agent.config))
    assert library.scrub() == ()
    weights = Path(library.active()[0].variant.files["model"])
    weights.write_bytes(changed)
    (damage,) = library.scrub()
    assert (damage.digest, damage.models) == (f"sha256:{weights.name}", ("tiny",))
    agent.install(package)
    assert weights.read_bytes() == whole.data
    assert library.scrub() == ()


def test_the_daemon_lives_on_when_a_damaged_file_ends_its_worker(whole: Whole, tmp_path: Path) -> None:
    asked = {"prompt": "Hi", "params": {"max_tokens": 4}}

    async def body(agent: AgentProcess, broker: Mosquitto) -> None:
        async with RequestClient(broker.options("asker"), devices=[agent.device]) as asker:
            for _ in range(2):
                reply = await asker.infer(agent.device, "tiny", asked, 60)
                assert (reply.status, "killed by SIGABRT" in str(reply.reason)) == (500, True), reply
                assert (await asker.infer(agent.device, "other", asked, 60)).status == 200
            await asyncio.to_thread(agent.install, tmp_path / "tiny-1.tar")
            until_s = time.monotonic() + PATIENCE_S
            while (await asker.infer(agent.device, "tiny", asked, 60)).status != 200:
                assert time.monotonic() < until_s, "a repaired model is served again"
                await asyncio.sleep(0.2)

    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port, backends=("llamacpp",))
        agent.install(generators.base_package(tmp_path))
        agent.install(generators.base_package(tmp_path, "other", shape=tiny_gguf.Shape(layers=1)))
        library = open_library(load(agent.config))
        (path,) = [one.variant.files["model"] for one in library.active() if one.name == "tiny"]
        at = whole.data.index(EPSILON) + len(EPSILON) + 4 + 3
        Path(path).write_bytes(flipped(whole.data, at, 0x80))
        with running(agent):
            pid = agent.pid
            asyncio.run(body(agent, broker))
            assert agent.pid == pid
            assert agent.process is not None
            assert agent.process.poll() is None
            assert "killed by SIGABRT" in agent.log
