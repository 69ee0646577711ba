"""What generation costs around llama.cpp: speed, first token, streams at once, adapters by turns, memory.

    python -m bench.generate [--threads N] [--rounds N] [--only PART ...] [--json FILE]

Random weights in the shape of SmolLM2-135M (Q8_0): what is said is noise, what it costs is not. llama.cpp driven
directly and the agent over a local broker take turns, so that a busy machine slows both alike; what counts are ratios.
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
from pathlib import Path

import psutil

from bench import generate_server, random_gguf
from bench.generate_direct import Direct
from edge_agent.backends.api import AdapterSource, Chunk, Done, Job, Limits, Session
from edge_agent.backends.gguf import predict, read_header
from edge_agent.backends.llamacpp.backend import DEFAULTS, LlamaBackend
from edge_agent.backends.llamacpp.session import LlamaSession
from edge_agent.demo import stage
from edge_agent.mqtt.client import RequestClient
from edge_agent.mqtt.options import MqttOptions
from edge_agent.protocol.messages import StreamChunk, Timing, Usage
from edge_agent.sensors.memory import read_pss

DEVICE, MODEL, CONTEXT = "bench", "smollm2-shape", 1024
PROMPT_TOKENS, ANSWER_TOKENS = 256, 64
ADAPTERS = 8
NOTE = "random weights in the shape of SmolLM2-135M, Q8_0"

Row = tuple[str, object]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(prog="bench.generate", description=__doc__)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as workers have it; read when the library is loaded
    rows: dict[str, object] = {"model": NOTE, "threads": options.threads}
    print(f"{NOTE}; {options.threads} threads", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = random_gguf.write_model(folder / "model.gguf", random_gguf.SMOLLM2_135M, dtype="q8_0")
        for part in options.only:
            place = folder / part
            place.mkdir()
            found = dict(PARTS[part](place, model, options))
            rows |= found
            for title, value in found.items():
                print(f"{title:<72} {value}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    return 0


def over_mqtt(folder: Path, model: Path, options: argparse.Namespace) -> list[Row]:
    """Speed and first token against llama.cpp driven directly; several streams at once."""
    with ExitStack() as stack:
        asked, daemon = _agent(stack, folder, model, options.threads)
        direct = Direct(model, CONTEXT, int(DEFAULTS["batch"]), options.threads)
        stack.callback(direct.close)
        return asyncio.run(_asked(asked, direct, options.rounds, daemon))


def _agent(stack: ExitStack, folder: Path, model: Path, threads: int) -> tuple[MqttOptions, int]:
    """How to reach an agent that serves the model, and its process id; both end with the stack."""
    broker = stack.enter_context(stage.broker(folder))
    root, package = _package(folder, model)
    config = stage.write_config(folder, broker, root, DEVICE, "llamacpp")
    text = config.read_text().replace("[worker]\n", f"[worker]\nthreads = {threads}\nnice = 0\n")
    config.write_text(text)
    command = [sys.executable, "-m", "edge_agent", "install", "--config", str(config), str(package)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    daemon = stack.enter_context(stage.daemon(config, folder))
    return MqttOptions(host="127.0.0.1", port=broker.port, client_id="bench-client"), daemon.pid


def against_server(folder: Path, model: Path, options: argparse.Namespace) -> list[Row]:
    """Clients that ask one request after the other: llama_cpp.server over HTTP, then the agent over MQTT."""
    if not generate_server.installed():
        return [("llama_cpp.server", "not measured: pip install 'llama-cpp-python[server]'")]
    title = f"{PROMPT_TOKENS} tokens in, {ANSWER_TOKENS} out: tokens/s out; a request's p50, slowest; s"
    rows: list[Row] = []
    with generate_server.server(model, CONTEXT, options.threads, folder / "server.log") as port:
        for clients in (1, 4, 8):
            found = generate_server.load(port, clients, options.rounds, _prompt, ANSWER_TOKENS)
            rows.append((f"llama_cpp.server, {clients} clients, {title}", str(found)))
    with ExitStack() as stack:
        asked, _ = _agent(stack, folder, model, options.threads)
        for clients in (1, 4, 8):
            found = asyncio.run(_clients(asked, clients, options.rounds))
            rows.append((f"edge-agent, {clients} clients, {title}", str(found)))
    return rows


async def _clients(options: MqttOptions, clients: int, requests: int) -> generate_server.Load:
    taken_s: list[float] = []
    tokens = 0
    async with RequestClient(options) as client:
        await _stream(client, 0)
        started_s = time.perf_counter()

        async def one(number: int) -> None:
            nonlocal tokens
            for turn in range(requests):
                last, _, elapsed_s = await _stream(client, 10_000 * clients + 100 * number + turn)
                taken_s.append(elapsed_s)
                tokens += last.usage.completion_tokens if isinstance(last.usage, Usage) else 0

        await asyncio.gather(*(one(number) for number in range(clients)))
        return generate_server.summary(tokens, time.perf_counter() - started_s, taken_s)


async def _asked(options: MqttOptions, direct: Direct, rounds: int, daemon: int) -> list[Row]:
    ratios: dict[str, list[float]] = {name: [] for name in ("decode", "prompt", "worker", "first")}
    async with RequestClient(options) as client:
        await _stream(client, 0)
        workers = [child.pid for child in psutil.Process(daemon).children()]
        cpu_s = {"alone": 0.0, "worker": 0.0, "daemon": 0.0}
        for turn in range(1, rounds + 1):
            used_s = time.process_time()
            alone = direct.run([256, *_prompt(turn).encode()], ANSWER_TOKENS)
            cpu_s["alone"] += time.process_time() - used_s
            before = {"worker": _cpu_s(workers), "daemon": _cpu_s([daemon])}
            last, first_s, elapsed_s = await _stream(client, turn)
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
        streams = [await _at_once(client, count) for count in (1, 4, 8)]
    rows: list[Row] = [
        ("llama.cpp alone, last round: prompt, decode tokens/s", f"{alone.prompt_per_s:.0f}, {alone.decode_per_s:.1f}"),
        ("decode tokens/s at the client, share of llama.cpp alone", _median(ratios["decode"])),
        ("decode tokens/s in the worker, share of llama.cpp alone", _median(ratios["worker"])),
        ("prompt tokens/s in the worker, share of llama.cpp alone", _median(ratios["prompt"])),
        ("CPU time of the worker; of the daemon; share of llama.cpp alone", _shares(cpu_s)),
        ("first token at the client, later than llama.cpp alone, ms", _median(ratios["first"])),
    ]
    title = f"streams at once, {PROMPT_TOKENS} tokens in, {ANSWER_TOKENS} out: tokens/s out; first token p50, max; s"
    return rows + [(f"{count} {title}", text) for count, text in streams]


async def _stream(client: RequestClient, turn: int) -> tuple[StreamChunk, float, float]:
    """The last part of one answer, seconds to the first part and to the last."""
    params = {"max_tokens": ANSWER_TOKENS, "seed": 1, "temperature": 0.0}
    started_s, first_s = time.perf_counter(), 0.0
    body = {"prompt": _prompt(turn), "stream": True, "params": params}
    async for part in client.stream(DEVICE, MODEL, body, 300.0):
        if not isinstance(part, StreamChunk):
            raise SystemExit(f"bench: {part.status} {part.reason}")
        first_s = first_s or time.perf_counter() - started_s
    if not isinstance(part, StreamChunk):
        raise SystemExit("bench: the stream did not end")
    return part, first_s, time.perf_counter() - started_s


async def _at_once(client: RequestClient, count: int) -> tuple[int, str]:
    started_s = time.perf_counter()
    found = await asyncio.gather(*(_stream(client, 1000 * count + turn) for turn in range(count)))
    elapsed_s = time.perf_counter() - started_s
    firsts = sorted(first_s for _, first_s, _ in found)
    text = f"{count * ANSWER_TOKENS / elapsed_s:.1f}; {statistics.median(firsts):.2f}, {firsts[-1]:.2f}"
    return count, text


def adapters(folder: Path, model: Path, options: argparse.Namespace) -> list[Row]:
    """Eight adapters whose popularity follows a power law, against one, inside one process."""
    session = LlamaBackend().load({"model": str(model)}, {"max_tokens": 256, "sequences": 8})
    if not isinstance(session, LlamaSession):
        raise SystemExit("bench: this is not the session that counts its switches")
    names = [f"a{number}" for number in range(ADAPTERS)]
    for number, name in enumerate(names):
        path = random_gguf.write_adapter(
            folder / f"{name}.gguf", number, 8, ("attn_q", "attn_v"), random_gguf.SMOLLM2_135M
        )
        session.attach(AdapterSource(name, str(path), ""))
    # Zipf's law: the k-th most popular one is asked 1/k as often as the first.
    popular = [name for rank, name in enumerate(names, 1) for _ in range(round(12 / rank))]
    mixed = sorted(popular, key=lambda name: hash((name, len(popular))))
    switches = session.switches
    many_s, steps, worst_s = _serve(session, list(mixed), options.threads)
    switches = session.switches - switches
    one_s, _, _ = _serve(session, ["a0"] * len(mixed), options.threads)
    base_s, _, _ = _serve(session, [None] * len(mixed), options.threads)
    session.close()
    tokens = len(mixed) * 16
    return [
        (f"{ADAPTERS} adapters by Zipf's law, {len(mixed)} requests, tokens/s", round(tokens / many_s, 1)),
        (
            "the same requests on one adapter; on the base (as a merged model)",
            f"{tokens / one_s:.1f}; {tokens / base_s:.1f}",
        ),
        ("switches of the adapter per second; steps per switch", f"{switches / many_s:.1f}; {steps / switches:.1f}"),
        ("longest time from one token of a request to its next, s", round(worst_s, 2)),
    ]


def _serve(session: Session, wanted: Sequence[str | None], threads: int) -> tuple[float, int, float]:
    """Seconds, steps, and the longest gap between two tokens of one request."""
    started_s, steps, worst_s, done = time.perf_counter(), 0, 0.0, 0
    seen: dict[str, float] = {}
    for number, adapter in enumerate(wanted):
        prompt = [256, *f"request {number} {time.perf_counter()}".encode()]
        session.submit(Job(str(number), adapter, [prompt], {"max_tokens": 16, "seed": number, "temperature": 0.0}))
    while done < len(wanted):
        events = session.step(Limits(8, threads))
        steps += 1
        now_s = time.perf_counter()
        for event in events:
            done += isinstance(event, Done)
            if isinstance(event, Chunk):
                worst_s = max(worst_s, now_s - seen.get(event.job_id, now_s))
                seen[event.job_id] = now_s
    return time.perf_counter() - started_s, steps, worst_s


def memory(_folder: Path, model: Path, _options: argparse.Namespace) -> list[Row]:
    """Predicted against held bytes (PSS of a process that has computed a full batch), four sequences."""
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
from edge_agent.backends.api import Job, Limits
from edge_agent.backends.llamacpp.backend import LlamaBackend
path, context, kv_type = sys.argv[1:]
options = {"max_tokens": int(context), "kv_type": kv_type}
session = LlamaBackend().load({"model": path}, options)
for name in "abcd":
    session.submit(Job(name, None, [[256] * 300], {"max_tokens": 2, "temperature": 0.0}))
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


def _package(folder: Path, model: Path) -> tuple[Path, Path]:
    """(trust root, signed package) of the model."""
    from edge_forge.packaging.build import build
    from edge_forge.packaging.keys import keygen
    from edge_forge.packaging.sources import ModelSource, ReleaseSource, VariantSource

    keys = keygen(folder / "keys")
    session = LlamaBackend().load({"model": str(model)}, {"max_tokens": CONTEXT})
    session.submit(Job("probe", None, [[256, *b"probe"]], {}))
    (done,) = session.step(Limits(1, 1))
    if not isinstance(done, Done):
        raise SystemExit("bench: the model gives no features")
    features = [[float(value) for value in row] for row in done.outputs["features"]]
    session.close()
    probes = folder / "probes.json"
    expected = {"llamacpp/q8_0": {"features": features, "features_tolerance": 0.1}}
    probes.write_text(json.dumps({"schema": 1, "texts": ["probe"], "expected": expected}))
    peak = sum(predict(read_header(model), CONTEXT, 8, "f16", int(DEFAULTS["batch"])))
    variant = VariantSource(model, "llamacpp", "q8_0", peak, options={"sequences": 8})
    task = {"kind": "generate", "max_tokens": CONTEXT}
    source = ModelSource(MODEL, random_gguf.BASE_ID, task, [variant], probes)
    issued = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 60))
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 86400))
    release = ReleaseSource(product=MODEL, counter=1, issued_at=issued, expires=expires)
    return keys.root_file, build(folder / "model.tar", release, source, [], None, [keys.release_key]).path


def _prompt(turn: int) -> str:
    """A prompt of `PROMPT_TOKENS` tokens (bytes, and the one that begins a text) that no earlier one begins like."""
    return f"{turn:06d} ".ljust(PROMPT_TOKENS - 1, "x")


def _cpu_s(pids: Sequence[int]) -> float:
    """Seconds of CPU time that processes have used, ended ones left out."""
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
    # Memory first: later this process maps the model as well, and each would count for half.
    "memory": memory,
    "mqtt": over_mqtt,
    "server": against_server,
    "adapters": adapters,
}


if __name__ == "__main__":
    sys.exit(main())
