"""LiteRT (TensorFlow Lite): encoders without an adapter bank, one row per run, on the CPU or in part by a delegate.

A graph comes from `edge-forge`: a signature `tokens_<N>` for each length that is possible, with the inputs input_ids
and attention_mask int32 [1, N] and the outputs `features` [1, hidden] and perhaps `logits` [1, labels], float32. A row
runs in the shortest signature that holds it, and alone: shapes are fixed in the graph, and its INT8 kernels measure an
activation's range per row, so a row's answer cannot depend on its company. The signatures share the weights of the
file; the kernels pack them again for each signature that was used.

A delegate is a library by which LiteRT hands operations to an accelerator (external_delegate_interface.h). It takes
those that it knows, the CPU computes the others. One that cannot be loaded, or refuses the graph, is left out and said.

LiteRT checks the structure of the file and the range of token ids; what it refuses is an error here.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.backends.api import (
    Backend,
    Capabilities,
    Footprint,
    Session,
    Unavailable,
)
from edge_agent.backends.encoder_session import (
    INPUTS,
    RANGES,
    EncoderGraph,
    cores,
    load_encoder,
    resident_bytes,
    runtime_error,
)
from edge_agent.base.errors import BackendError, BackendMissing
from edge_agent.base.runtimes import LITERT_DELEGATE_VARIABLE

# max_rows, max_tokens: the largest batch. threads: 0 means one per core that this process may use. base_id: of the
# model, for what is said of it. positions belongs to adapter banks and has no effect.
DEFAULTS: dict[str, Any] = {"max_rows": 16, "max_tokens": 128, "threads": 0, "positions": 0, "base_id": ""}
_SIGNATURE = re.compile(r"tokens_([1-9][0-9]{0,4})")
_OUTPUTS = frozenset({"features", "logits"})
_REMEDY = "install edge-agent with its extra litert"
# Without such a file, without its two functions, and where it makes no delegate.
_DELEGATE_ERRORS = (OSError, AttributeError, ValueError, RuntimeError)
_DELEGATE_FUNCTIONS = ("tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate")


class LiteRtBackend(Backend):
    """LiteRT's interpreter with its XNNPACK kernels."""

    def probe(self) -> Capabilities | Unavailable:
        """See `Backend.probe`."""
        try:
            _interpreter()
        except BackendMissing as error:
            return Unavailable(error.what, error.remedy or "")
        from importlib.metadata import version

        return Capabilities(
            runtime="litert",
            version=version("ai-edge-litert"),
            devices=("cpu",),
            dtypes=("fp32", "int8"),
            adapters=False,
            mixed_adapters=False,
            streams=False,
        )

    def load(self, files: Mapping[str, str], options: Mapping[str, Any]) -> Session:
        """See `Backend.load`; `files` needs the role 'model'."""
        return load_encoder("litert", (files, options), DEFAULTS, LiteRtGraph)


class LiteRtGraph(EncoderGraph):
    """One file and its interpreter."""

    def __init__(self, path: str, options: Mapping[str, Any]) -> None:
        self.path, self.base_id = path, options["base_id"]
        self.table_rows, self.adapters = 0, None
        self._max_tokens = options["max_tokens"]
        self._threads = options["threads"] or cores()
        self._library = os.environ.get(LITERT_DELEGATE_VARIABLE, "")
        before = resident_bytes()
        self._runners = self._begin()
        loaded = resident_bytes()
        self._warm_up()
        self._weights_bytes, self._arena_bytes = max(0, loaded - before), max(0, resident_bytes() - loaded)

    def footprint(self) -> Footprint:
        """See `EncoderGraph.footprint`: resident bytes measured around load and warm-up."""
        return Footprint(self._weights_bytes, 0, 0, self._arena_bytes)

    def close(self) -> None:
        """See `EncoderGraph.close`."""
        self._runners = {}

    def use_threads(self, threads: int) -> None:
        """See `EncoderGraph.use_threads`. The number belongs to an interpreter, so another one is made."""
        wanted = min(max(1, threads), RANGES["threads"][1])
        if wanted != self._threads:
            self._runners = {}
            self._runners = self._build(wanted)
            self._threads = wanted

    def compute(self, rows: Sequence[Sequence[int]], adapters: Sequence[str | None]) -> dict[str, Any]:
        """See `EncoderGraph.compute`."""
        import numpy

        found = [self._run(row) for row in rows]
        return {name: numpy.concatenate([one[name] for one in found]) for name in found[0]}

    def _run(self, row: Sequence[int]) -> dict[str, Any]:
        import numpy

        length = next(length for length in self._runners if length >= len(row))
        ids, mask = numpy.zeros((1, length), numpy.int32), numpy.zeros((1, length), numpy.int32)
        ids[0, : len(row)], mask[0, : len(row)] = row, 1
        try:
            outputs: dict[str, Any] = self._runners[length](**dict(zip(INPUTS, (ids, mask), strict=True)))
        except (RuntimeError, ValueError, MemoryError) as error:
            raise runtime_error("LiteRT", "failed", error, self.path) from error
        return outputs

    def _begin(self) -> dict[int, Any]:
        """The runners, with the delegate where one is named, can be loaded, and does not refuse the graph."""
        library = self._library
        if not library:
            return self._build(self._threads)
        try:
            runners = self._build(self._threads)
        except BackendError as error:
            self._library = ""
            self.computed_by = f"CPU; the delegate {library} cannot be used: {error.what}"
            return self._build(self._threads)
        self.computed_by = f"delegate {library} for what it takes of the graph, CPU for the rest"
        return runners

    def _build(self, threads: int) -> dict[int, Any]:
        """What runs a row, by the number of its tokens, shortest first; none that no row of `max_tokens` needs."""
        more = {"experimental_delegates": [_delegate(self._library)]} if self._library else {}
        try:
            interpreter = _interpreter()(model_path=self.path, num_threads=threads, **more)
            signatures = interpreter.get_signature_list()
            lengths = sorted(int(found[1]) for name in signatures if (found := _SIGNATURE.fullmatch(name)))
            longest = next((length for length in lengths if length >= self._max_tokens), 0)
            if not longest:
                raise BackendError(
                    f"the graph takes {lengths[-1] if lengths else 0} tokens, {self._max_tokens} are asked for",
                    self.path,
                )
            runners = {
                length: interpreter.get_signature_runner(f"tokens_{length}") for length in lengths if length <= longest
            }
            for length, runner in runners.items():
                self._check(length, runner)
        except (RuntimeError, ValueError, MemoryError, OSError) as error:
            raise runtime_error("LiteRT", "cannot load the graph", error, self.path) from error
        return runners

    def _check(self, length: int, runner: Any) -> None:
        """Raises BackendError for a signature of another form."""
        import numpy

        given, made = runner.get_input_details(), runner.get_output_details()
        for name in INPUTS:
            if name not in given or given[name]["dtype"] is not numpy.int32 or [*given[name]["shape"]] != [1, length]:
                raise BackendError(f"signature tokens_{length} has no input {name} of int32 [1, {length}]", self.path)
        if set(given) != set(INPUTS):
            raise BackendError(f"signature tokens_{length} wants inputs that nobody gives: {sorted(given)}", self.path)
        if "features" not in made or not set(made) <= _OUTPUTS:
            raise BackendError(f"signature tokens_{length} gives {sorted(made)}, not features and logits", self.path)
        for name, output in made.items():
            shape = [*output["shape"]]
            if output["dtype"] is not numpy.float32 or len(shape) != 2 or shape[0] != 1:
                raise BackendError(f"output {name} of signature tokens_{length} is no row of floats", self.path)

    def _warm_up(self) -> None:
        """Run every length once, so that its buffers and packed weights are there and later runs allocate nothing."""
        for length in self._runners:
            self._run([0] * min(length, self._max_tokens))


def _delegate(library: str) -> Any:
    """A delegate, which lives as long as the interpreter that it was made for. Raises BackendError, BackendMissing."""
    _interpreter()
    from ai_edge_litert.interpreter import load_delegate

    try:
        # LiteRT's own object for a library that is none raises once more when it is freed.
        found = ctypes.CDLL(library)
        for name in _DELEGATE_FUNCTIONS:
            getattr(found, name)
        return load_delegate(library)
    except _DELEGATE_ERRORS as error:
        raise runtime_error("LiteRT", "cannot load it", error, library) from error


def _interpreter() -> Any:
    """LiteRT's class for one loaded file."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise BackendMissing(f"ai-edge-litert cannot be imported: {error}", "litert", _REMEDY) from error
    return Interpreter
