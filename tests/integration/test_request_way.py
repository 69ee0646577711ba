"""`docs/architecture.md` names every module that one request's way goes through, and no other.

The daemon and its worker run under a profiler while one classify request with an adapter is answered, by ONNX Runtime
and over a real broker. What runs in every one of several requests belongs to the way; what runs in some of them only
(the governor's tick, telemetry) does not.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edge_agent.backends import registry
from edge_agent.backends.api import AdapterSource as Attached
from edge_agent.backends.api import Done, Limits, SessionJob
from edge_agent.mqtt.client import RequestClient
from edge_agent.mqtt.options import MqttOptions
from edge_forge.package.build import build
from edge_forge.package.sources import AdapterPackageSource, ModelSource, VariantSource
from tests.support import small_graph, ways
from tests.support.agents import AgentProcess, running
from tests.support.mosquitto import Mosquitto
from tests.support.packages import keys, release

CALL_TRACE = Path(__file__).resolve().parents[1] / "support" / "call_trace"
WORDS = ("[PAD]", "[UNK]", "turn", "on", "the", "light", "cold")
TEXTS = ("turn on the light", "the cold light")
LABELS = ["light", "heat", "other"]
REQUESTS = 12
"""So many that what a timer runs does not fall into every one, not even on a slow machine."""


def tokenizer(path: Path) -> Path:
    """A tokenizer of seven words."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(path))
    return path


def rows() -> list[list[int]]:
    """The token ids of the probe texts."""
    return [[WORDS.index(word) for word in text.split()] for text in TEXTS]


def probes(folder: Path, graph: Path, adapter: Path | None) -> Path:
    """Golden probes as ONNX Runtime computes them here."""
    session = registry.create("onnx").load(
        {"model": str(graph)},
        {"max_rows": 4, "max_tokens": 16, "base_id": small_graph.BASE_ID, "threads": 1},
    )
    if adapter is not None:
        session.attach(Attached("one", str(adapter), small_graph.BASE_ID))
    session.submit(SessionJob("probe", None if adapter is None else "one", rows(), {}))
    (event,) = session.step(Limits(8, 1))
    assert isinstance(event, Done)
    entry: dict[str, Any] = {"features": [[float(x) for x in row] for row in event.outputs["features"]]}
    entry["features_tolerance"] = 1e-3
    if adapter is not None:
        entry["logits"] = [[float(x) for x in row] for row in event.outputs["logits"]]
        entry.update(logits_tolerance=1e-3, min_effect=1e-3)
    session.close()
    path = folder / f"probes-{'base' if adapter is None else 'one'}.json"
    path.write_text(json.dumps({"schema": 1, "texts": list(TEXTS), "expected": {"onnx/fp32": entry}}))
    return path


def package(folder: Path) -> Path:
    """A signed package: a small ONNX encoder with an adapter bank, and one adapter."""
    graph = small_graph.banked(folder / "small.onnx")
    weights = small_graph.write_adapter(folder / "one.safetensors", small_graph.adapter(1))
    task = {"kind": "classify", "labels": LABELS, "max_tokens": 16}
    model = ModelSource(
        name="small",
        base_id=small_graph.BASE_ID,
        task={"kind": "embed", "max_tokens": 16},
        variants=[VariantSource(graph, "onnx", "fp32", peak_bytes=1 << 20, options={})],
        probes=probes(folder, graph, None),
        tokenizer=tokenizer(folder / "tokenizer.json"),
        licences=("Apache-2.0",),
    )
    adapter = AdapterPackageSource(
        name="one",
        base_id=small_graph.BASE_ID,
        weights=weights,
        rank=small_graph.RANK,
        alpha=8.0,
        targets=list(small_graph.MODULES),
        task=task,
        probes=probes(folder, graph, weights),
    )
    return build(folder / "small.tar", release("small"), model, [adapter], None, [keys().release_key]).path


async def ask(agent: AgentProcess, port: int) -> None:
    """Requests one at a time, each between the two signals; the daemon's other work falls into few of them."""
    async with RequestClient(MqttOptions(host="127.0.0.1", port=port, client_id="me")) as client:
        for number in range(REQUESTS + 1):
            # A child that lists the runtimes ends shortly after the start.
            while len(pids := [agent.pid, *agent.workers()]) > 2:
                await asyncio.sleep(0.05)
            if number:
                signals(pids, signal.SIGUSR1)
                await asyncio.sleep(0.05)
            reply = await client.infer(agent.device, "small", {"text": TEXTS[0], "adapter": "one"})
            assert (reply.status, len(pids)) == (200, 2), (reply, agent.log)
            await asyncio.sleep(0.05)
            if number:
                signals(pids, signal.SIGUSR2)
                await asyncio.sleep(0.23)


def signals(pids: Sequence[int], number: signal.Signals) -> None:
    """Send a signal to each process."""
    for pid in pids:
        os.kill(pid, number)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The modules in which a function ran during every request, in the daemon or its worker."""
    folder = tmp_path_factory.mktemp("way")
    path = os.pathsep.join([str(CALL_TRACE), *filter(None, [os.environ.get("PYTHONPATH")])])
    with Mosquitto(folder) as broker:
        agent = AgentProcess(folder / "device", broker.port, backends=("onnx",))
        agent.install(package(folder))
        with running(agent, PYTHONPATH=path, CALL_TRACE=str(folder / "trace")):
            asyncio.run(ask(agent, broker.port))
            pids = [agent.pid, *agent.workers()]
    found: set[str] = set()
    for pid in pids:
        files = sorted(folder.glob(f"trace.{pid}.*"))
        assert len(files) == REQUESTS
        found |= set.intersection(*({line.split("\t")[0] for line in file.read_text().splitlines()} for file in files))
    return found


def test_the_page_names_the_modules_of_a_request(traced: set[str]) -> None:
    hops = {hop.module for hop in ways.hops()["A request"]}
    asked = ways.asked_modules()
    print(f"{len(traced)} modules run for one request, {len(hops)} of them as hops")
    assert hops & asked == set()
    assert (hops | asked) - traced == set(), "named on the page and not run"
    assert traced - hops - asked == set(), "run and not named on the page"
