"""What the device's own backend makes of a GGUF file, and what it predicts to need: run in a child process.

`python -m edge_forge.generate.measure`, a JSON request on standard input. Golden probes come from here: what the host
writes down is what the very code that a device runs has computed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_agent.base.errors import BackendError, EdgeError

_ADAPTER = "adapter"
_BACKEND = "llamacpp"
_TOKENS = 512
_ROWS = 4


def features(model: Path, texts: Sequence[str], base_id: str, adapter: Path | None = None) -> list[list[float]]:
    """Logits of the next token after every text, at the backend's feature ids. Raises BackendError."""
    request = {"model": str(model), "texts": list(texts), "base_id": base_id,
               "adapter": None if adapter is None else str(adapter), "threads": _threads()}  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "edge_forge.generate.measure"],
        input=json.dumps(request), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ended.returncode != 0:
        reason = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "no reason given")
        raise BackendError(f"the process that measures failed: {reason}", str(model))
    found: list[list[float]] = json.loads(ended.stdout)
    return found


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


def _run(request: Mapping[str, Any]) -> list[list[float]]:
    from edge_agent.backends import registry
    from edge_agent.backends.api import AdapterSource, Done, Failed, Job, Limits

    options = {"max_tokens": min(_TOKENS, _longest(request["model"])), "base_id": request["base_id"],
               "threads": request["threads"]}  # fmt: skip
    session = registry.create(_BACKEND).load({"model": request["model"]}, options)
    try:
        if request["adapter"] is not None:
            session.attach(AdapterSource(_ADAPTER, request["adapter"], request["base_id"]))
        words = session.vocabulary()
        if words is None:
            raise BackendError("the backend has no tokenizer for this model", request["model"])
        rows = [words.encode(text, True) for text in request["texts"]]
        session.submit(Job("measure", None if request["adapter"] is None else _ADAPTER, rows, {}))
        while True:
            for event in session.step(Limits(_ROWS, request["threads"])):
                if isinstance(event, Failed):
                    raise BackendError(event.reason, request["model"])
                if isinstance(event, Done):
                    return [[float(value) for value in row] for row in event.outputs["features"]]
    finally:
        session.close()


def _longest(model: str) -> int:
    from edge_agent.backends.gguf import read_header

    return read_header(model).context_length


def main() -> int:
    """Answer one request."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        found = _run(json.loads(sys.stdin.read()))
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    answers.write(json.dumps(found))
    answers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
