"""llama.cpp for the forge: every call runs in a child process, since llama.cpp aborts its process on bad inputs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.base.child_python import child_environment, module_command
from edge_agent.base.errors import BackendError, BackendMissing
from edge_agent.base.runtimes import OPENMP_ENVIRONMENT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUANTISED = ("q8_0", "q4_k_m", "q4_0")
_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1", **OPENMP_ENVIRONMENT}  # as workers have it
_REMEDY = "install edge-agent with its extra llamacpp (it compiles llama.cpp, some ten minutes on two cores)"


def available() -> bool:
    """True where llama-cpp-python is installed; nothing is imported to find out."""
    return importlib.util.find_spec("llama_cpp") is not None


def require() -> None:
    """Raise BackendMissing where llama.cpp is not installed, before anything long begins."""
    if not available():
        raise BackendMissing("llama-cpp-python is not installed", "gguf", _REMEDY)


def environment() -> dict[str, str]:
    """The environment of a process that runs llama.cpp."""
    return {**child_environment(os.environ), **_ENVIRONMENT}


def quantize(source: Path, target: Path, dtype: str) -> int:
    """Write `target` in a format of `QUANTISED`; returns how many tensors llama.cpp gave another format."""
    found = _call("quantize", source=str(source), target=str(target), dtype=dtype, threads=_threads())
    return int(found["fallbacks"])


def logits(model: Path, rows: Sequence[Sequence[int]], adapter: Path | None = None) -> NDArray[np.float32]:
    """Logits [all positions of all rows, vocabulary], in order."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.npy"
        _call("logits", model=str(model), rows=_plain(rows), adapter=_text(adapter), threads=_threads(), out=str(out))
        found: NDArray[np.float32] = np.load(out)
    return found


def losses(
    model: Path, rows: Sequence[Sequence[int]], learned: Sequence[int], adapter: Path | None = None
) -> list[float]:
    """Summed -ln p in nats of each row's tokens from place `learned` on (the first token is never predicted)."""
    found: list[float] = _call(
        "losses", model=str(model), rows=_plain(rows), learned=list(learned), adapter=_text(adapter),
        threads=_threads(),
    )  # fmt: skip
    return found


def generate(model: Path, rows: Sequence[Sequence[int]], most: int, adapter: Path | None = None) -> list[str]:
    """Greedy continuations, at most `most` tokens each, without the token that ends them."""
    found: list[str] = _call(
        "generate", model=str(model), rows=_plain(rows), most=most, adapter=_text(adapter), threads=_threads()
    )
    return found


def _call(operation: str, **request: Any) -> Any:
    require()
    ended = subprocess.run(
        module_command("edge_forge.export.gguf.llama_process"),
        input=json.dumps({"op": operation, **request}), capture_output=True, text=True, check=False,
        env=environment(),
    )  # fmt: skip
    where = str(request.get("model") or request.get("source"))
    if ended.returncode != 0 or not ended.stdout:
        how = f"signal {-ended.returncode}" if ended.returncode < 0 else f"exit code {ended.returncode}"
        last = next((line.strip() for line in reversed(ended.stderr.splitlines()) if line.strip()), "it said nothing")
        raise BackendError(f"llama.cpp ended with {how} at {operation}: {last}", where)
    answer = json.loads(ended.stdout)
    if "error" in answer:
        raise BackendError(answer["error"], where)
    return answer["result"]


def _plain(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[int(one) for one in row] for row in rows]


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
