"""What generation costs around llama.cpp: speed, time to the first token, parallel streams, adapters and memory.

    python -m bench.generate [--shape NAME ...] [--dtype q8_0] [--threads N] [--rounds N] [--only PART ...]
                             [--requests N] [--tokens IN OUT] [--json FILE]

The models have random weights in the shape of known models: their text is random, their cost is not. llama.cpp driven
directly and the agent over a local broker run alternately, so that other load on the machine affects both; the results
are ratios. Parts: memory, mqtt, server (llama_cpp.server beside the agent), kept (the cost of cells that other
conversations keep), adapters, switch (of an adapter), merged.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psutil

from bench import generate_adapters, generate_server, random_gguf
from bench.generate_direct import Direct, kept
from edge_agent.backends.api import Done, Limits, SessionJob
from edge_agent.backends.gguf import predict, read_header
from edge_agent.backends.llamacpp.backend import DEFAULTS, LlamaBackend
from edge_agent.base.runtimes import OPENMP_ENVIRONMENT
from edge_agent.client.request_client import RequestClient
from edge_agent.demo import stage
from edge_agent.mqtt.options import MqttOptions
from edge_agent.protocol.messages import StreamChunk, Timing, Usage
from edge_agent.sensors.memory import read_pss

DEVICE, MODEL, CONTEXT = "bench", "random", 1024
CLIENTS = (1, 4, 8)
# After this many prompts without a common prefix the agent keeps no cells of earlier conversations
# (docs/decisions/0133), like the direct run.
STRANGERS = 16

Row = tuple[str, object]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(prog="bench.generate", description=__doc__)
    parser.add_argument("--shape", nargs="+", choices=tuple(random_gguf.SHAPES), default=["smollm2-135m"])
    parser.add_argument("--dtype", choices=("f16", "q8_0", "q4_0"), default="q8_0")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=0, help="of each line of `server`; 0: rounds x clients")
    parser.add_argument("--tokens", type=int, nargs=2, default=[256, 64], metavar=("IN", "OUT"))
    parser.add_argument("--only", nargs="*", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    os.environ.update(OPENMP_ENVIRONMENT)  # as workers have it; read when the library is loaded
    found = {shape: _measure(shape, options) for shape in options.shape}
    if options.json:
        conditions = {"threads": options.threads, "dtype": options.dtype, "rounds": options.rounds}
        options.json.write_text(json.dumps({"conditions": conditions, "shapes": found}, indent=2))
    return 0


def _measure(shape: str, options: argparse.Namespace) -> dict[str, object]:
    """Measure the chosen parts for a model of that shape, and print each at once."""
    print(f"random weights in the shape of {shape}, {options.dtype.upper()}; {options.threads} threads", flush=True)
    rows: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = argparse.Namespace(**vars(options) | {"shape": random_gguf.SHAPES[shape]})
        model = random_gguf.write_model(folder / "model.gguf", own.shape, dtype=options.dtype)
        for part in options.only:
            place = folder / part
            place.mkdir()
            found = dict(PARTS[part](place, model, own))
            rows |= found
            for title, value in found.items():
                print(f"{title:<72} {value}", flush=True)
    return rows


def over_mqtt(folder: Path, model: Path, options: argparse.Namespace) -> list[Row]:
    """Speed and time to the first token against llama.cpp driven directly; several parallel streams."""
    with ExitStack() as stack:
        asked, daemon = _agent(stack, folder, model, options, same_threads=True)
        direct = Direct(model, CONTEXT, int(DEFAULTS["batch"]), options.threads)
        stack.callback(direct.close)
        return asyncio.run(_asked(asked, direct, options, daemon))


def _agent(
    stack: ExitStack, folder: Path, model: Path, given: argparse.Namespace, same_threads: bool = False
) -> tuple[MqttOptions, int]:
    """(MQTT options of an agent that serves the model, its process id); both end with the stack.

    `same_threads`: it decodes with as many threads as llama.cpp driven directly, instead of the number that its own
    tuning chooses (docs/decisions/0135).
    """
    broker = stack.enter_context(stage.broker(folder))
    root, package = _package(folder, model, given.dtype)
    config = stage.write_config(folder, broker, root, DEVICE, "llamacpp")
    decode = f"decode_threads = {given.threads}\n" if same_threads else ""
    text = config.read_text().replace("[worker]\n", f"[worker]\nthreads = {given.threads}\nnice = 0\n{decode}")
    config.write_text(text)
    command = [sys.executable, "-m", "edge_agent", "install", "--config", str(config), str(package)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    daemon = stack.enter_context(stage.daemon(config, folder))
    return MqttOptions(host="127.0.0.1", port=broker.port, client_id="bench-client"), daemon.pid


def against_server(folder: Path, model: Path, options: argparse.Namespace) -> list[Row]:
    """Clients that send one request after another: to llama_cpp.server over HTTP, then to the agent over MQTT."""
    tokens_in, tokens_out = options.tokens
    title = f"{tokens_in} tokens in, {tokens_out} out: tokens/s out; a request's time, s"
    rows: list[Row] = []
    turns = {clients: -(-options.requests // clients) or options.rounds for clients in CLIENTS}
    if generate_server.installed():
        with generate_server.server(model, CONTEXT, options.threads, folder / "server.log") as port:
            for clients in CLIENTS:
                asks = partial(_prompt, tokens_in)
                found = generate_server.load(port, clients, turns[clients], asks, tokens_out)
                rows.append((f"llama_cpp.server, {clients} clients, {title}", str(found)))
    else:
        rows.append(("llama_cpp.server", "not measured: pip install 'llama-cpp-python[server]'"))
    with ExitStack() as stack:
        asked, _ = _agent(stack, folder, model, options)
        for clients in CLIENTS:
            found = asyncio.run(_clients(asked, clients, turns[clients], options.tokens))
            rows.append((f"edge-agent, {clients} clients, {title}", str(found)))
    return rows


async def _clients(options: MqttOptions, clients: int, requests: int, tokens: Sequence[int]) -> generate_server.Load:
    taken_s: list[float] = []
    written = 0
    async with RequestClient(options) as client:
        await _stream(client, 0, tokens)
        started_s = time.perf_counter()

        async def one(number: int) -> None:
            nonlocal written
            for turn in range(requests):
                last, _, elapsed_s = await _stream(client, 10_000 * clients + 1000 * number + turn, tokens)
                taken_s.append(elapsed_s)
                written += last.usage.completion_tokens if isinstance(last.usage, Usage) else 0

        await asyncio.gather(*(one(number) for number in range(clients)))
        return generate_server.summary(written, time.perf_counter() - started_s, taken_s)


async def _asked(options: MqttOptions, direct: Direct, given: argparse.Namespace, daemon: int) -> list[Row]:
    tokens_in, tokens_out = given.tokens
    ratios: dict[str, list[float]] = {name: [] for name in ("decode", "prompt", "worker", "first")}
    async with RequestClient(options) as client:
        for turn in range(STRANGERS):
            await _stream(client, 100_000 + turn, (tokens_in, 2))
        workers = [child.pid for child in psutil.Process(daemon).children()]
        cpu_s = {"alone": 0.0, "worker": 0.0, "daemon": 0.0}
        for turn in range(1, given.rounds + 1):
            used_s = time.process_time()
            alone = direct.run([256, *_prompt(tokens_in, turn).encode()], tokens_out)
            cpu_s["alone"] += time.process_time() - used_s
            before = {"worker": _cpu_s(workers), "daemon": _cpu_s([daemon])}
            last, first_s, elapsed_s = await _stream(client, turn, given.tokens)
            cpu_s["worker"] += _cpu_s(workers) - before["worker"]
            cpu_s["daemon"] += _cpu_s([daemon]) - before["daemon"]
            timing, usage = last.timing, last.usage
            if not isinstance(timing, Timing) or not isinstance(usage, Usage):
                raise SystemExit("bench: the last part has no timing")
            tokens_per_s = (usage.completion_tokens - 1) / (elapsed_s - first_s)
            ratios["decode"].append(tokens_per_s / alone.decode_per_s)
            ratios["worker"].append(_number(timing.tokens_per_s) / alone.decode_per_s)
            ratios["prompt"].append(alone.prompt_s * 1000.0 / _number(timing.prompt_ms))
            ratios["first"].append((first_s - alone.prompt_s) * 1000.0)
        streams = [await _at_once(client, count, given.tokens) for count in CLIENTS]
    rows: list[Row] = [
        ("llama.cpp alone, last round: prompt, decode tokens/s", f"{alone.prompt_per_s:.0f}, {alone.decode_per_s:.1f}"),
        ("decode tokens/s at the client, share of llama.cpp alone", _median(ratios["decode"])),
        ("decode tokens/s in the worker, share of llama.cpp alone", _median(ratios["worker"])),
        ("prompt tokens/s in the worker, share of llama.cpp alone", _median(ratios["prompt"])),
        ("CPU time of the worker; of the daemon; share of llama.cpp alone", _shares(cpu_s)),
        ("first token at the client, later than llama.cpp alone, ms", _median(ratios["first"])),
    ]
    title = f"streams at once, {tokens_in} tokens in, {tokens_out} out: tokens/s out; first token p50, max; s"
    return rows + [(f"{count} {title}", text) for count, text in streams]


async def _stream(client: RequestClient, turn: int, tokens: Sequence[int]) -> tuple[StreamChunk, float, float]:
    """(last part of the answer, seconds to the first part, seconds to the last part)."""
    params = {"max_tokens": tokens[1], "seed": 1, "temperature": 0.0}
    started_s, first_s = time.perf_counter(), 0.0
    body = {"prompt": _prompt(tokens[0], turn), "stream": True, "params": params}
    async for part in client.stream(DEVICE, MODEL, body, 300.0):
        if not isinstance(part, StreamChunk):
            raise SystemExit(f"bench: {part.status} {part.reason}")
        first_s = first_s or time.perf_counter() - started_s
    if not isinstance(part, StreamChunk):
        raise SystemExit("bench: the stream did not end")
    return part, first_s, time.perf_counter() - started_s


async def _at_once(client: RequestClient, count: int, tokens: Sequence[int]) -> tuple[int, str]:
    started_s = time.perf_counter()
    found = await asyncio.gather(*(_stream(client, 1000 * count + turn, tokens) for turn in range(count)))
    elapsed_s = time.perf_counter() - started_s
    firsts = sorted(first_s for _, first_s, _ in found)
    text = f"{count * tokens[1] / elapsed_s:.1f}; {statistics.median(firsts):.2f}, {firsts[-1]:.2f}"
    return count, text


def memory(_folder: Path, model: Path, _options: argparse.Namespace) -> list[Row]:
    """Predicted against measured bytes (PSS of a process that has computed a full batch), with four sequences."""
    rows: list[Row] = []
    header = read_header(model)
    for kv_type in ("f16", "q8_0"):
        for context in (512, 2048, 4096):
            predicted = sum(predict(header, context, 4, kv_type, int(DEFAULTS["batch"])))
            held = _held_bytes(model, context, kv_type)
            text = f"{predicted / 1e6:.1f}, {held / 1e6:.1f} MB ({(predicted / held - 1) * 100:+.1f} %)"
            rows.append((f"memory predicted, held: context 4 x {context}, cache {kv_type}", text))
    return rows


_HOLDER = """
import sys
from edge_agent.backends.api import SessionJob, Limits
from edge_agent.backends.llamacpp.backend import LlamaBackend
path, context, kv_type = sys.argv[1:]
options = {"max_tokens": int(context), "kv_type": kv_type}
session = LlamaBackend().load({"model": path}, options)
for name in "abcd":
    session.submit(SessionJob(name, None, [[256] * 300], {"max_tokens": 2, "temperature": 0.0}))
for _ in range(20):
    session.step(Limits(8, 1))
print("ready", flush=True)
sys.stdin.readline()
"""


def _held_bytes(model: Path, context: int, kv_type: str) -> float:
    command = [sys.executable, "-c", _HOLDER, str(model), str(context), kv_type]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        if child.stdin is None or child.stdout is None:
            raise SystemExit("bench: no pipes")
        if child.stdout.readline() != b"ready\n":
            raise SystemExit("bench: the model could not be loaded")
        held = read_pss(Path("/"), child.pid, 0.0).value or 0.0
        child.stdin.close()
    return held


def _package(folder: Path, model: Path, dtype: str) -> tuple[Path, Path]:
    """(trust root, signed package) of the model."""
    from edge_forge.package.build import build
    from edge_forge.package.keys import keygen
    from edge_forge.package.sources import ModelSource, ReleaseSource, VariantSource

    keys = keygen(folder / "keys")
    session = LlamaBackend().load({"model": str(model)}, {"max_tokens": CONTEXT})
    session.submit(SessionJob("probe", None, [[256, *b"probe"]], {}))
    (done,) = session.step(Limits(1, 1))
    if not isinstance(done, Done):
        raise SystemExit("bench: the model gives no features")
    features = [[float(value) for value in row] for row in done.outputs["features"]]
    session.close()
    probes = folder / "probes.json"
    expected = {f"llamacpp/{dtype}": {"features": features, "features_tolerance": 0.1}}
    probes.write_text(json.dumps({"schema": 1, "texts": ["probe"], "expected": expected}))
    peak = sum(predict(read_header(model), CONTEXT, 8, "f16", int(DEFAULTS["batch"])))
    variant = VariantSource(model, "llamacpp", dtype, peak, options={"sequences": 8})
    task = {"kind": "generate", "max_tokens": CONTEXT}
    source = ModelSource(MODEL, random_gguf.BASE_ID, task, [variant], probes)
    issued = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 60))
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 86400))
    release = ReleaseSource(product=MODEL, counter=1, issued_at=issued, expires=expires)
    return keys.root_file, build(folder / "model.tar", release, source, [], None, [keys.release_key]).path


def _prompt(tokens: int, turn: int) -> str:
    """A prompt of `tokens` tokens (bytes, plus the one at the start) with a beginning that no earlier prompt has."""
    return f"{str(turn)[::-1]:0<6} ".ljust(tokens - 1, "x")


def _cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds of the processes; ended ones are ignored."""
    used_s = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            used_s += times.user + times.system
    return used_s


def _shares(cpu_s: dict[str, float]) -> str:
    return f"{cpu_s['worker'] / cpu_s['alone']:.3f}; {cpu_s['daemon'] / cpu_s['alone']:.3f}"


def _number(value: object) -> float:
    if not isinstance(value, float):
        raise SystemExit("bench: the worker did not say how long it took")
    return value


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


PARTS: dict[str, Callable[[Path, Path, argparse.Namespace], list[Row]]] = {
    # Memory first: later this process maps the model too, and PSS would divide its pages between both.
    "memory": memory,
    "mqtt": over_mqtt,
    "server": against_server,
    "kept": kept,
    "adapters": generate_adapters.by_turns,
    "switch": generate_adapters.switching,
    "merged": generate_adapters.merged,
}


if __name__ == "__main__":
    sys.exit(main())
