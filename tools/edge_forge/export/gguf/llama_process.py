"""llama.cpp by its low-level API, as a program: `python -m edge_forge.export.gguf.llama_process`, a request on stdin.

It runs in a process of its own, started by `engine`: what llama.cpp answers with an abort ends this process alone. The
request is one JSON object with `op` and what the function of that name takes; the answer is one on standard output,
`{"result": ...}` or `{"error": ...}`. Arrays go to the file that the request names.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BATCH = 512
_LOG: deque[str] = deque(maxlen=40)
_PIECE_BYTES = 256


class LlamaRefusal(Exception):
    """llama.cpp refused a request; the text is what it logged."""


def _library() -> Any:
    os.environ["GGML_NO_BACKTRACE"] = "1"
    import llama_cpp

    return llama_cpp


L = _library()


def _keep_log(_: int, text: bytes, __: Any) -> None:
    _LOG.append(text.decode(errors="replace").strip())


_LOGGER = L.llama_log_callback(_keep_log)


def quantize(source: str, target: str, dtype: str, threads: int) -> dict[str, Any]:
    """Write `target` from the F16 file `source`; says how many tensors fell back to another format."""
    kinds = {
        "q8_0": L.LLAMA_FTYPE_MOSTLY_Q8_0,
        "q4_k_m": L.LLAMA_FTYPE_MOSTLY_Q4_K_M,
        "q4_0": L.LLAMA_FTYPE_MOSTLY_Q4_0,
    }
    options = L.llama_model_quantize_default_params()
    options.ftype, options.nthread = kinds[dtype], threads
    code = L.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options))
    if code != 0:
        raise LlamaRefusal(f"llama.cpp cannot quantise to {dtype}: {_said()}")
    said = [found for line in _LOG if (found := re.search(r"(\d+) of \d+ tensor\(s\) required fallback", line))]
    return {"fallbacks": int(said[-1][1]) if said else 0}


def logits(model: str, rows: Sequence[Sequence[int]], adapter: str | None, threads: int, out: str) -> dict[str, Any]:
    """Logits at every position of every row, [all positions, vocabulary], saved to `out` (.npy)."""
    found = []
    with _context(model, max(map(len, rows)), threads, adapter) as context:
        for row in rows:
            L.llama_memory_clear(L.llama_get_memory(context), True)
            found += list(_decode(context, row, range(len(row))))
    np.save(out, np.concatenate(found))
    return {"positions": sum(map(len, rows))}


def losses(model: str, rows: Sequence[Sequence[int]], learned: Sequence[int], adapter: str | None,
           threads: int) -> list[float]:  # fmt: skip
    """Sum over each row's tokens from place `learned[row]` on of -ln p(token | those before it), in nats."""
    found = []
    with _context(model, max(map(len, rows)), threads, adapter) as context:
        for row, start in zip(rows, learned, strict=True):
            L.llama_memory_clear(L.llama_get_memory(context), True)
            total, place = 0.0, max(start, 1)
            targets = row[place:]
            for part in _decode(context, row[:-1], range(place - 1, len(row) - 1)):
                wanted, targets = targets[: len(part)], targets[len(part) :]
                total += float(_negative_log(part)[np.arange(len(part)), wanted].sum())
            found.append(total)
    return found


def generate(model: str, rows: Sequence[Sequence[int]], most: int, adapter: str | None, threads: int) -> list[str]:
    """Greedy continuations of every row, at most `most` tokens, up to an end-of-generation token, as text."""
    found = []
    with _context(model, max(map(len, rows)) + most, threads, adapter) as context:
        vocab = L.llama_model_get_vocab(L.llama_get_model(context))
        for row in rows:
            L.llama_memory_clear(L.llama_get_memory(context), True)
            made: list[int] = []
            given: Sequence[int] = row
            while len(made) < most:
                last = list(_decode(context, given, [len(given) - 1], len(row) + len(made) - len(given)))[-1]
                token = int(last[-1].argmax())
                if L.llama_vocab_is_eog(vocab, token):
                    break
                made.append(token)
                given = [token]
            found.append(b"".join(_piece(vocab, token) for token in made).decode(errors="replace"))
    return found


@contextmanager
def _model(path: str) -> Iterator[Any]:
    options = L.llama_model_default_params()
    options.n_gpu_layers = 0
    # Repacked and AMX buffers copy the weights, and AMX ones have crashed on quantised files.
    options.use_extra_bufts = False
    opened = L.llama_model_load_from_file(path.encode(), options)
    if not bool(opened):
        raise LlamaRefusal(f"llama.cpp cannot load {os.path.basename(path)}: {_said()}")  # noqa: PTH119
    try:
        yield opened
    finally:
        L.llama_model_free(opened)


@contextmanager
def _context(path: str, tokens: int, threads: int, adapter: str | None) -> Iterator[Any]:
    with _model(path) as opened:
        options = L.llama_context_default_params()
        options.n_ctx = max(tokens, 256)
        options.n_batch = options.n_ubatch = min(_BATCH, options.n_ctx)
        options.n_threads = options.n_threads_batch = threads
        context = L.llama_init_from_model(opened, options)
        if not bool(context):
            raise LlamaRefusal(f"llama.cpp makes no context of {tokens} tokens: {_said()}")
        try:
            if adapter is not None:
                loaded = L.llama_adapter_lora_init(opened, adapter.encode())
                if not bool(loaded):
                    raise LlamaRefusal(f"llama.cpp refuses the adapter: {_said()}")
                chosen, scales = (L.llama_adapter_lora_p_ctypes * 1)(loaded), (ctypes.c_float * 1)(1.0)
                if L.llama_set_adapters_lora(context, chosen, 1, scales) != 0:
                    raise LlamaRefusal(f"llama.cpp does not set the adapter: {_said()}")
            yield context
        finally:
            L.llama_free(context)


def _decode(context: Any, row: Sequence[int], wanted: Sequence[int] | range, start: int = 0) -> Iterator[NDArray[Any]]:
    """Feed a row whose first token stands at `start`; yields logits [places, vocabulary] of the wanted places."""
    width = L.llama_vocab_n_tokens(L.llama_model_get_vocab(L.llama_get_model(context)))
    size = L.llama_n_batch(context)
    asked = set(wanted)
    batch = L.llama_batch_init(size, 0, 1)
    try:
        for begin in range(0, len(row), size):
            part = row[begin : begin + size]
            batch.n_tokens = len(part)
            for at, token in enumerate(part):
                batch.token[at], batch.pos[at] = token, start + begin + at
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
                batch.logits[at] = (begin + at) in asked
            code = L.llama_decode(context, batch)
            if code != 0:
                raise LlamaRefusal(f"llama_decode returned {code}: {_said()}")
            rows = [L.llama_get_logits_ith(context, at) for at in range(len(part)) if (begin + at) in asked]
            if rows:
                yield np.stack([np.ctypeslib.as_array(found, (width,)) for found in rows]).copy()
    finally:
        L.llama_batch_free(batch)


def _negative_log(logits: NDArray[Any]) -> NDArray[np.float64]:
    found = logits.astype(np.float64)
    found -= found.max(axis=1, keepdims=True)
    total: NDArray[np.float64] = np.log(np.exp(found).sum(axis=1, keepdims=True)) - found
    return total


def _piece(vocab: Any, token: int) -> bytes:
    buffer = ctypes.create_string_buffer(_PIECE_BYTES)
    count = L.llama_token_to_piece(vocab, token, buffer, _PIECE_BYTES, 0, False)
    return buffer.raw[: max(0, count)]


def _said() -> str:
    lines = [line for line in _LOG if "error" in line.lower() or "fail" in line.lower()] or list(_LOG)
    return " / ".join(line for line in lines[-2:] if line) or "it does not say why"


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "quantize": quantize,
    "logits": logits,
    "losses": losses,
    "generate": generate,
}


def main() -> int:
    """Answer one request."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    L.llama_log_set(_LOGGER, ctypes.c_void_p(0))
    L.llama_backend_init()
    request = json.loads(sys.stdin.read())
    try:
        answer = {"result": OPERATIONS[request.pop("op")](**request)}
    except LlamaRefusal as refused:
        answer = {"error": str(refused)}
    answers.write(json.dumps(answer))
    answers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
