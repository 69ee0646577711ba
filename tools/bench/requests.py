"""What a request costs beside its computation: over a local broker, through the daemon, to a worker and back.

    python -m bench.requests [--build FOLDER] [--rounds N] [--json FILE]

Needs the packages that `make demo` builds. The same text is sent over MQTT (QoS 1) and computed by the device's backend
in this process, alternately, so that other load on the machine affects both. The difference is the cost of the agent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from edge_agent.backends.api import AdapterSource, Limits, Session, SessionJob
from edge_agent.backends.onnx import OnnxBackend
from edge_agent.bundle.catalog import InstalledModel
from edge_agent.client.request_client import RequestClient
from edge_agent.core.latency import QuantileWindow
from edge_agent.demo import stage
from edge_agent.mqtt.options import MqttOptions
from edge_agent.protocol.worker_messages import TaskFields
from edge_agent.sensors.memory import read_pss
from edge_agent.store.model_store import ModelStore
from edge_agent.tasks import registry as tasks

DEVICE, MODEL, ADAPTER = "bench", "minilm", "home-intents"
TEXT = "could you please turn off the lamp in the corner of the living room"
THREADS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(prog="bench.requests", description=__doc__)
    parser.add_argument("--build", type=Path, default=Path("build"))
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    # Without the merged package, which the daemon might prefer to the adapter.
    packages = [
        one for name in (f"{MODEL}-*", f"{ADAPTER}-v*") for one in (options.build / "packages").glob(f"{name}.tar")
    ]
    if len(packages) < 2:
        print(
            f"bench: no packages of {MODEL} and {ADAPTER} in {options.build / 'packages'}; `make demo` builds them",
            file=sys.stderr,
        )
        return 1
    rows = measure(packages, options.build / "keys" / "root.json", options.rounds)
    for name, value in rows.items():
        print(f"{name:<58} {value}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    return 0


def measure(packages: Sequence[Path], root: Path, rounds: int) -> dict[str, Any]:
    """All figures of this module, with `packages` installed in their order; in ms unless the name says otherwise."""
    rows: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(stage.broker(folder))
        config = stage.write_config(folder, broker, root, DEVICE)
        with stage.daemon(config, folder) as bare:
            time.sleep(2.0)
            pss = read_pss(Path("/"), bare.pid, 0.0).value or 0.0
            rows["idle daemon without a model, PSS MB"] = round(pss / 1e6, 1)
            rows["start to READY without a model, s"] = round(bare.ready_s, 2)
            rows["idle daemon, share of one core %"] = round(_cpu_share(bare.pid, 5.0) * 100, 2)
        for package in packages:
            command = [sys.executable, "-m", "edge_agent", "install", "--config", str(config), str(package)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (model,) = (one for one in ModelStore(folder / "state" / "store").active() if one.name == MODEL)
        stack.enter_context(stage.daemon(config, folder))
        rows |= asyncio.run(_requests(broker, model, rounds))
    return rows


async def _requests(broker: stage.Broker, model: InstalledModel, rounds: int) -> dict[str, Any]:
    session, row = _in_process(model)
    options = MqttOptions(host="127.0.0.1", port=broker.port, client_id="bench-client")
    async with RequestClient(options) as client:
        direct, over, inside = QuantileWindow(rounds), QuantileWindow(rounds), QuantileWindow(rounds)
        added: list[float] = []
        for turn in range(rounds + 20):
            direct_ms = _timed_direct(session, row)
            started_s = time.perf_counter()
            reply = await client.infer(DEVICE, MODEL, {"text": TEXT, "adapter": ADAPTER}, 30.0)
            over_ms = (time.perf_counter() - started_s) * 1000.0
            if reply.status != 200 or reply.timing is None:
                raise SystemExit(f"bench: {reply.status} {reply.reason}")
            if turn >= 20:
                direct.add(direct_ms)
                over.add(over_ms)
                inside.add(reply.timing.compute_ms)
                added.append(over_ms - direct_ms)
        table: dict[str, Any] = {
            f"session.run in this process, {len(row)} tokens": _text(direct),
            "the same over MQTT QoS 1, one at a time": _text(over),
            "of which compute in the worker": _text(inside),
            "added by broker, daemon and worker, p50": round(statistics.median(added), 2),
            "added by broker, daemon and worker, p99": round(statistics.quantiles(added, n=100)[98], 2),
        }
        for clients in (1, 8, 32):
            table[f"{clients} requests open at once: answers per second, p50/p99"] = await _saturate(client, clients)
    session.close()
    return table


async def _saturate(client: RequestClient, clients: int, seconds: float = 5.0) -> str:
    latency, until_s = QuantileWindow(100_000), time.perf_counter() + seconds

    async def ask() -> None:
        while time.perf_counter() < until_s:
            started_s = time.perf_counter()
            await client.infer(DEVICE, MODEL, {"text": TEXT, "adapter": ADAPTER}, 30.0)
            latency.add((time.perf_counter() - started_s) * 1000.0)

    await asyncio.gather(*(ask() for _ in range(clients)))
    return f"{latency.count / seconds:.0f}/s, {_text(latency)}"


def _in_process(model: InstalledModel) -> tuple[Session, list[int]]:
    files = model.variant.files
    session = OnnxBackend().load(files, {"max_rows": 16, "max_tokens": 64, **model.variant.options})
    adapter = model.adapter(ADAPTER)
    if adapter is None:
        raise SystemExit(f"bench: adapter {ADAPTER} is not installed; `make demo` builds it")
    session.attach(AdapterSource(adapter.name, adapter.path, adapter.base_id))
    task = TaskFields("embed", (), 64, 0.0, None)
    return session, list(tasks.build(task, files["tokenizer"]).prepare([TEXT], {}).rows[0])


def _timed_direct(session: Session, row: list[int]) -> float:
    started_s = time.perf_counter()
    session.submit(SessionJob("direct", ADAPTER, [row], {}))
    session.step(Limits(16, THREADS))
    return (time.perf_counter() - started_s) * 1000.0


def _cpu_share(pid: int, seconds: float) -> float:
    process = psutil.Process(pid)
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return float(after.user + after.system - before.user - before.system) / seconds


def _text(samples: QuantileWindow) -> str:
    found = samples.summary()
    return f"{found['p50']:.2f} / {found['p99']:.2f} ms" if found["p50"] is not None else "no samples"


if __name__ == "__main__":
    sys.exit(main())
