"""Measure an encoder's variant with the tasks and the backend that a device runs: outputs, latency, memory.

Only this module and `measure_gguf` import `edge_agent.tasks` and `edge_agent.backends`. Run as a program
(`python -m edge_forge.evaluate.measure_onnx`, a JSON request on standard input) it measures the memory of its process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.backends import registry
from edge_agent.backends.api import AdapterSource, Capabilities, Done, Limits, Session, SessionJob
from edge_agent.base import limits
from edge_agent.base.child_python import child_environment, module_command
from edge_agent.base.errors import BackendError
from edge_agent.base.texts import Text
from edge_agent.tasks import tokens

_ADAPTER = "adapter"
_WARM_UP = 3


@dataclass(frozen=True)
class OnnxSubject:
    """A variant to measure: its graph and tokenizer, perhaps an adapter of base `base_id`, and the shape it runs at."""

    model: Path
    tokenizer: Path
    max_tokens: int = 128
    adapter: Path | None = None
    base_id: str = ""
    max_rows: int = 16
    threads: int = 0
    backend: str = "onnx"
    prompt: str = ""


class ModelOutputs(NamedTuple):
    """features [texts, hidden]; logits [texts, labels], or None where no classifier applies; `of_tokens`: logits [its
    tokens, classes] of each text, of a model of slots."""

    features: NDArray[np.float32]
    logits: NDArray[np.float32] | None
    of_tokens: list[NDArray[np.float32]] | None = None


class Latency(NamedTuple):
    """Median and 95th percentile of one text at a time, and texts per second in full batches; tokenising included."""

    p50_ms: float
    p95_ms: float
    texts_per_s: float
    threads: int


class ProcessMemory(NamedTuple):
    """Bytes of a process that serves the variant: what the session says it holds, and the process's peak."""

    session_bytes: int
    peak_bytes: int


def outputs(subject: OnnxSubject, texts: Sequence[Text]) -> ModelOutputs:
    """The outputs that a device computes for `texts`, in order. Raises BackendError."""
    tokenizer = tokens.open_tokenizer(str(subject.tokenizer), subject.max_tokens, subject.prompt)
    return outputs_of(subject, [encoded.ids for encoded in tokenizer.encode(texts)])


def outputs_of(subject: OnnxSubject, rows: Sequence[Sequence[int]]) -> ModelOutputs:
    """The outputs for rows of token ids, in order. Raises BackendError."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    with _session(subject) as session:
        done = _run(session, subject, [rows[row] for row in order])
    back = np.argsort(np.asarray(order))
    features, logits = np.asarray(done.outputs["features"], np.float32)[back], done.outputs.get("logits")
    if isinstance(logits, list):
        return ModelOutputs(features, None, [np.asarray(logits[place], np.float32) for place in back])
    return ModelOutputs(features, None if logits is None else np.asarray(logits, np.float32)[back])


def token_counts(tokenizer: Path, texts: Sequence[Text], prompt: str = "") -> list[int]:
    """Tokens of each text, special ones included, uncut. Raises BackendError."""
    return [one.tokens for one in tokens.open_tokenizer(str(tokenizer), limits.TASK_TOKENS, prompt).encode(texts)]


def features_of(subject: OnnxSubject, batches: Sequence[Sequence[Sequence[int]]]) -> list[NDArray[np.float32]]:
    """Features [rows, width] of every batch of token ids, each computed as one batch. Raises BackendError."""
    with _session(subject) as session:
        return [np.asarray(_run(session, subject, batch).outputs["features"], np.float32) for batch in batches]


def device_ids(tokenizer: Path, texts: Sequence[Text], max_tokens: int, prompt: str) -> list[list[int]]:
    """Token ids of `texts` as the device makes them, cut at `max_tokens`. Raises BackendError."""
    return [list(one.ids) for one in tokens.open_tokenizer(str(tokenizer), max_tokens, prompt).encode(texts)]


def wording(subject: OnnxSubject, texts: Sequence[Text]) -> list[tokens.Wording]:
    """How the variant's tokenizer splits `texts`: bytes, tokens, unknown tokens of each. Raises BackendError."""
    tokenizer = tokens.open_tokenizer(str(subject.tokenizer), subject.max_tokens, subject.prompt)
    return tokens.wording(texts, tokenizer.encode(texts))


def golden(subject: OnnxSubject, texts: Sequence[Text]) -> ModelOutputs:
    """As `outputs`, but each text alone, as a worker runs golden probes."""
    tokenizer = tokens.open_tokenizer(str(subject.tokenizer), subject.max_tokens, subject.prompt)
    with _session(subject) as session:
        done = [_run(session, subject, [encoded.ids]).outputs for encoded in tokenizer.encode(texts)]
    features = np.concatenate([one["features"] for one in done])
    if isinstance(done[0].get("logits"), list):
        return ModelOutputs(features, None, [one["logits"][0] for one in done])
    return ModelOutputs(features, np.concatenate([one["logits"] for one in done]) if "logits" in done[0] else None)


def latency(subject: OnnxSubject, texts: Sequence[Text], runs: int = 50) -> Latency:
    """Time `runs` single texts, then full batches, after a warm-up. `texts` are used in turn."""
    tokenizer = tokens.open_tokenizer(str(subject.tokenizer), subject.max_tokens, subject.prompt)
    chosen = [texts[place % len(texts)] for place in range(runs)]
    with _session(subject) as session:
        for text in chosen[:3]:
            _run(session, subject, [tokenizer.encode([text])[0].ids])
        times_s = []
        for text in chosen:
            started_s = time.perf_counter()
            _run(session, subject, [tokenizer.encode([text])[0].ids])
            times_s.append(time.perf_counter() - started_s)
        started_s = time.perf_counter()
        _run(session, subject, [encoded.ids for encoded in tokenizer.encode(chosen)])
        batched_s = time.perf_counter() - started_s
    times_s.sort()
    p95_s = times_s[min(len(times_s) - 1, round(0.95 * len(times_s)))]
    return Latency(statistics.median(times_s) * 1e3, p95_s * 1e3, len(chosen) / batched_s, _threads(subject))


def times_in_turns(subjects: Sequence[OnnxSubject], texts: Sequence[Text], turns: int = 50) -> list[list[float]]:
    """Milliseconds of one text by subject and turn, tokenising included; the same text for all in a turn.

    All are in memory. In each turn every subject runs once, there and back from turn to turn, so that whatever else the
    host does slows all of them alike. Raises BackendError.
    """
    with ExitStack() as stack:
        opened = [
            (
                one,
                tokens.open_tokenizer(str(one.tokenizer), one.max_tokens, one.prompt),
                stack.enter_context(_session(one)),
            )
            for one in subjects
        ]
        found: list[list[float]] = [[] for _ in subjects]
        for turn in range(-_WARM_UP, turns):
            text = texts[turn % len(texts)]
            for place in range(len(opened)) if turn % 2 == 0 else reversed(range(len(opened))):
                subject, tokenizer, session = opened[place]
                started_s = time.perf_counter()
                _run(session, subject, [tokenizer.encode([text])[0].ids])
                if turn >= 0:
                    found[place].append(1000.0 * (time.perf_counter() - started_s))
        return found


def attach_times(subject: OnnxSubject, times: int = 20) -> list[float]:
    """Milliseconds to read the subject's adapter and put it into the bank of its graph, which is in memory, by the
    device's code; it is taken out again before each. Raises BackendError; ValueError for a subject without an adapter.
    """
    if subject.adapter is None:
        raise ValueError("a subject without an adapter has nothing to attach")
    source, found = AdapterSource(_ADAPTER, str(subject.adapter), subject.base_id), []
    with _session(subject) as session:
        for _ in range(times):
            session.detach(_ADAPTER)
            started_s = time.perf_counter()
            session.attach(source)
            found.append(1000.0 * (time.perf_counter() - started_s))
    return found


def memory(subject: OnnxSubject) -> ProcessMemory:
    """Load the variant in a fresh process, run its largest batch, and say what it took. Raises BackendError."""
    request = {name: str(value) if isinstance(value, Path) else value for name, value in vars(subject).items()}
    ended = subprocess.run(
        module_command("edge_forge.evaluate.measure_onnx"),
        input=json.dumps(request), capture_output=True, text=True, check=False, env=child_environment(os.environ),
    )  # fmt: skip
    if ended.returncode != 0:
        reason = ended.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise BackendError(f"the process that measures memory failed: {reason[0]}", str(subject.model))
    answer: Mapping[str, int] = json.loads(ended.stdout)
    return ProcessMemory(answer["session_bytes"], answer["peak_bytes"])


def runtime(name: str = "onnx") -> Capabilities:
    """The capabilities of the runtime on this host. Raises BackendError when it is not installed."""
    found = registry.create(name).probe()
    if not isinstance(found, Capabilities):
        raise BackendError(found.reason, name, found.remedy)
    return found


@contextmanager
def _session(subject: OnnxSubject) -> Iterator[Session]:
    options = {"max_rows": subject.max_rows, "max_tokens": subject.max_tokens, "base_id": subject.base_id,
               "threads": _threads(subject)}  # fmt: skip
    session = registry.create(subject.backend).load({"model": str(subject.model)}, options)
    try:
        if subject.adapter is not None:
            session.attach(AdapterSource(_ADAPTER, str(subject.adapter), subject.base_id))
        yield session
    finally:
        session.close()


def _threads(subject: OnnxSubject) -> int:
    return subject.threads or len(os.sched_getaffinity(0))


def _run(session: Session, subject: OnnxSubject, rows: Sequence[Sequence[int]]) -> Done:
    session.submit(SessionJob("measure", None if subject.adapter is None else _ADAPTER, rows, {}))
    while True:
        for event in session.step(Limits(subject.max_rows, _threads(subject))):
            if isinstance(event, Done):
                return event
            raise BackendError(getattr(event, "reason", "the backend streams"), str(subject.model))


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> int:
    """Read an `OnnxSubject` as JSON, print a `ProcessMemory` as JSON."""
    fields: dict[str, Any] = json.loads(sys.stdin.read())
    for name in ("model", "tokenizer", "adapter"):
        fields[name] = None if fields[name] is None else Path(fields[name])
    subject = OnnxSubject(**fields)
    with _session(subject) as session:
        _run(session, subject, [[1] * subject.max_tokens] * subject.max_rows)
        held = sum(session.footprint())
    print(json.dumps({"session_bytes": held, "peak_bytes": _peak_bytes()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
