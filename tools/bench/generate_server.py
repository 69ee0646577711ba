"""llama-cpp-python's server (`llama_cpp.server`) with the same model, prompts and clients as the agent, over HTTP.

Needs `pip install 'llama-cpp-python[server]'`, which nothing else in the repository needs.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from edge_agent.base.runtimes import OPENMP_ENVIRONMENT

READY_S = 60.0
P99_REQUESTS = 100
"""With fewer requests the 99th percentile would be the slowest request."""


class Load(NamedTuple):
    """Figures over all clients: tokens per second, and seconds per request (p50, p99, slowest)."""

    tokens_per_s: float
    requests: int
    p50_s: float
    p99_s: float | None
    worst_s: float

    def __str__(self) -> str:
        p99 = f"no p99 of {self.requests}" if self.p99_s is None else f"p99 {self.p99_s:.2f}"
        return f"{self.tokens_per_s:.1f}; p50 {self.p50_s:.2f}, {p99}, slowest of {self.requests} {self.worst_s:.2f}"


def summary(tokens: int, elapsed_s: float, taken_s: list[float]) -> Load:
    """The figures of a run in which `tokens` were generated in `elapsed_s` for requests that took `taken_s` each."""
    ordered = sorted(taken_s)
    count = len(ordered)
    p99_s = ordered[math.ceil(0.99 * count) - 1] if count >= P99_REQUESTS else None
    return Load(tokens / elapsed_s, count, ordered[count // 2], p99_s, ordered[-1])


def installed() -> bool:
    """Whether the packages that the server needs are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("llama_cpp", "uvicorn", "fastapi"))


@contextlib.contextmanager
def server(model: Path, context: int, threads: int, log: Path) -> Iterator[int]:
    """A server that is ready on a free port, which is returned. Its OpenMP threads wait as by default."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    counts = ("--n_threads", str(threads), "--n_threads_batch", str(threads))
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--n_ctx", str(context), *counts]
    environment = {name: value for name, value in os.environ.items() if name not in OPENMP_ENVIRONMENT}
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=out, stderr=out, env=environment)
    try:
        until_s = time.monotonic() + READY_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
                break
            if process.poll() is not None or time.monotonic() > until_s:
                raise SystemExit(f"bench: llama_cpp.server does not start: {log.read_text(errors='replace')[-400:]}")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def load(port: int, clients: int, requests: int, prompt: Callable[[int], str], tokens: int) -> Load:
    """`clients` threads, each asking `requests` times for `tokens` tokens, one after the other."""

    def one(client: int) -> list[tuple[float, int]]:
        return [_ask(port, prompt(10_000 * clients + 100 * client + turn), tokens) for turn in range(requests)]

    started_s = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = [entry for entries in pool.map(one, range(clients)) for entry in entries]
    elapsed_s = time.perf_counter() - started_s
    return summary(sum(count for _, count in found), elapsed_s, [taken_s for taken_s, _ in found])


def _ask(port: int, prompt: str, tokens: int) -> tuple[float, int]:
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0.0, "seed": 1}
    started_s = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300.0)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    if "usage" not in answer:
        raise SystemExit(f"bench: llama_cpp.server: {answer}")
    return time.perf_counter() - started_s, int(answer["usage"]["completion_tokens"])
