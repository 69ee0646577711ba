"""Measure a GGUF file with the device's own backend, in a child process: golden probes, speed, predicted memory.

`python -m edge_forge.evaluate.measure_gguf` reads a JSON request on standard input. The golden probes of a package are
what this code computes, which is the code that a device runs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.base.child_python import module_command
from edge_agent.base.errors import BackendError, EdgeError
from edge_forge.export.gguf.engine import environment

_ADAPTER = "adapter"
_BACKEND = "llamacpp"
_TOKENS = 512
_SPEED_S = 0.25
_ROWS = 4


@dataclass(frozen=True)
class GgufSubject:
    """A GGUF file as a device serves it: of base `base_id`, perhaps with an adapter; `options` are the backend's."""

    model: Path
    base_id: str = ""
    adapter: Path | None = None
    options: Mapping[str, Any] | None = None


def features(model: Path, texts: Sequence[str], base_id: str, adapter: Path | None = None) -> list[list[float]]:
    """Logits of the next token after every text, at the backend's feature ids. Raises BackendError."""
    options = {"max_tokens": min(_TOKENS, _longest(model))}
    found: list[list[float]] = _call("features", GgufSubject(model, base_id, adapter, options), texts=list(texts))
    return found


def tokenize(model: Path, texts: Sequence[str], begin: bool = False) -> list[list[int]]:
    """Ids of every text by the GGUF's own tokenizer; `begin` adds BOS as the file says. Raises BackendError."""
    found: list[list[int]] = _call("tokenize", GgufSubject(model), texts=list(texts), begin=begin)
    return found


class Asked(NamedTuple):
    """What is timed: a file, the token ids of its prompts, and the longest answer."""

    served: GgufSubject
    prompts: Sequence[Sequence[int]]
    answer_tokens: int


def speeds_in_turns(asked: Sequence[Asked], rounds: int) -> list[list[dict[str, Any]]]:
    """How fast greedy answers come, one prompt at a time, by file and round.

    In each round every file is opened once in a process of its own, there and back from round to round, so that
    whatever else the host does slows all of them alike and no two files are in memory at once. A round of a file:
    first_token_ms: reading the prompt and choosing a token, the median; tokens_per_s: those after it, of the fastest
    answer of a quarter of a second, since other work on the host only slows (None where no answer has a second token);
    prompt_tokens, answer_tokens: medians of how long both were; prompts, threads. Raises BackendError.
    """
    found: list[list[dict[str, Any]]] = [[] for _ in asked]
    for number in range(rounds):
        for place in range(len(asked)) if number % 2 == 0 else reversed(range(len(asked))):
            served, prompts, answer_tokens = asked[place]
            plain = [list(map(int, prompt)) for prompt in prompts]
            found[place].append(_call("speed", served, prompts=plain, answer_tokens=answer_tokens))
    return found


def _call(operation: str, served: GgufSubject, **values: Any) -> Any:
    request = {
        "op": operation, "model": str(served.model), "base_id": served.base_id, "options": dict(served.options or {}),
        "adapter": None if served.adapter is None else str(served.adapter), "threads": _threads(), **values,
    }  # fmt: skip
    ended = subprocess.run(
        module_command("edge_forge.evaluate.measure_gguf"),
        input=json.dumps(request), capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    if ended.returncode != 0:
        reason = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "no reason given")
        raise BackendError(f"the process that measures failed: {reason}", str(served.model))
    return json.loads(ended.stdout)


def predicted(model: Path, contexts: Sequence[int], sequences: int) -> dict[str, int]:
    """Predicted bytes of a worker by `ctx<tokens>.kv_<type>`, for those cache types that the model's heads allow."""
    from edge_agent.backends.gguf import KV_BLOCK, predict, read_header
    from edge_agent.backends.llamacpp.backend import DEFAULTS

    header = read_header(model)
    return {
        f"ctx{context}.kv_{kv_type}": sum(predict(header, context, sequences, kv_type, DEFAULTS["batch"]))
        for context in contexts
        if context <= header.context_length
        for kv_type, block in KV_BLOCK.items()
        if header.head_dim % block == 0
    }


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


@contextmanager
def _session(request: Mapping[str, Any]) -> Iterator[Any]:
    from edge_agent.backends import registry
    from edge_agent.backends.api import AdapterSource

    options = {**request["options"], "base_id": request["base_id"], "threads": request["threads"]}
    session = registry.create(_BACKEND).load({"model": request["model"]}, options)
    try:
        if request["adapter"] is not None:
            session.attach(AdapterSource(_ADAPTER, request["adapter"], request["base_id"]))
        yield session
    finally:
        session.close()


def _done(session: Any, request: Mapping[str, Any], rows: Sequence[Sequence[int]], params: Mapping[str, Any]) -> Any:
    """The outputs of one job."""
    from edge_agent.backends.api import Done, Failed, Limits, SessionJob

    session.submit(SessionJob("measure", None if request["adapter"] is None else _ADAPTER, rows, params))
    while True:
        for event in session.step(Limits(_ROWS, request["threads"])):
            if isinstance(event, Failed):
                raise BackendError(event.reason, request["model"])
            if isinstance(event, Done):
                return event.outputs


def _tokenize(request: Mapping[str, Any]) -> list[list[int]]:
    from edge_agent.backends.gguf import read_header
    from edge_agent.backends.llamacpp.library import open_library
    from edge_agent.backends.llamacpp.model import LlamaModel, LlamaVocabulary

    opened = LlamaModel(open_library(), request["model"], repack=False, vocabulary_only=True)
    try:
        vocabulary = LlamaVocabulary(opened, read_header(request["model"]), 0)
        return [vocabulary.encode(text, request["begin"]) for text in request["texts"]]
    finally:
        opened.close()


def _features(request: Mapping[str, Any]) -> list[list[float]]:
    with _session(request) as session:
        words = session.vocabulary()
        if words is None:
            raise BackendError("the backend has no tokenizer for this model", request["model"])
        rows = [words.encode(text, True) for text in request["texts"]]
        # Each text alone, as a worker runs golden probes.
        features = [_done(session, request, [row], {})["features"][0] for row in rows]
        return [[float(value) for value in row] for row in features]


def _speed(request: Mapping[str, Any]) -> dict[str, Any]:
    params, prompts = {"max_tokens": request["answer_tokens"], "temperature": 0.0}, request["prompts"]
    with _session(request) as session:
        # Backwards: a warm-up that leaves nothing in the cache that a prompt begins with.
        _done(session, request, [prompts[0][::-1]], params)
        until_s = time.monotonic() + _SPEED_S
        answers = [_done(session, request, [prompt], params) for prompt in prompts]
        rates = [_rate(one) for one in answers]
        # The answers of a small model are over before a busy host has left it alone for one of them.
        while time.monotonic() < until_s:
            rates += [_rate(_done(session, request, [prompt], params)) for prompt in prompts]
    return {
        "first_token_ms": statistics.median(one["prompt_s"] for one in answers) * 1000.0,
        "tokens_per_s": max((rate for rate in rates if rate is not None), default=None),
        "prompt_tokens": statistics.median(map(len, prompts)),
        "answer_tokens": statistics.median(one["completion_tokens"] for one in answers),
        "prompts": len(prompts),
        "threads": request["threads"],
    }


def _rate(answer: Mapping[str, Any]) -> float | None:
    """Tokens a second after the first one; the token that ends an answer is not counted in it, but takes its time."""
    steps = answer["completion_tokens"] - (answer["finish"] != "stop")
    return steps / answer["decode_s"] if steps > 0 and answer["decode_s"] > 0 else None


OPERATIONS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "features": _features,
    "speed": _speed,
    "tokenize": _tokenize,
}


def _longest(model: Path) -> int:
    from edge_agent.backends.gguf import read_header

    return read_header(model).context_length


def main() -> int:
    """Answer one request."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        request = json.loads(sys.stdin.read())
        found = OPERATIONS[request["op"]](request)
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    answers.write(json.dumps(found))
    answers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
