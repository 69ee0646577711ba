"""ONNX Runtime on the CPU: encoders with or without an adapter bank, mixed-adapter batches, no copies per run.

A graph comes from `edge-forge export`: inputs input_ids and attention_mask [batch, seq], perhaps the bank's inputs
(metadata `edge.bank`), outputs `features` [batch, hidden] and perhaps `logits`: [batch, labels], without a bank also
[batch, seq, classes]. With a bank `token_logits` [batch, seq, classes] are those of heads that read tokens. ONNX
Runtime's telemetry is switched off before it is imported.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.backends.adapter_bank import HEAD, TOKEN_HEAD, AdapterBank
from edge_agent.backends.api import (
    Backend,
    Capabilities,
    Footprint,
    Session,
    Unavailable,
)
from edge_agent.backends.cpu_words import cpu_words
from edge_agent.backends.encoder_session import (
    INPUTS,
    RANGES,
    EncoderGraph,
    GraphMetadata,
    cores,
    in_order_of_rows,
    load_encoder,
    padded,
    read_graph_metadata,
    resident_bytes,
    runtime_error,
)
from edge_agent.base.errors import BackendError, BackendMissing, brief

# max_rows, max_tokens: the largest batch; memory for it is taken at load, so that the footprint is known.
# threads: 0 means one per core that this process may use. spinning: waiting threads poll, which costs power; off.
# positions: of the adapter bank; 0 means as many as rows. base_id: checked against the graph's own where it has one.
DEFAULTS: dict[str, Any] = {
    "max_rows": 16,
    "max_tokens": 128,
    "threads": 0,
    "spinning": False,
    "positions": 0,
    "base_id": "",
}
# The fused kernel is scalar: 0.57 ms per layer (8 x 32 rows, width 384), where Add and LayerNormalization take 0.16 ms.
SLOW_FUSIONS = ["SkipLayerNormFusion"]
# Either sums products of uint8 and int8 codes in 32 bits. Older x86 kernels add neighbours in 16 bits that saturate.
EXACT_INT8 = frozenset({"avx512_vnni", "avx_vnni"})
HEAD_OF = {"logits": HEAD[1], "token_logits": TOKEN_HEAD[1]}
"""The bank input that says how wide an output is."""
_WIDTH_MAX = 2**20


class OnnxBackend(Backend):
    """ONNX Runtime's CPU provider."""

    def probe(self) -> Capabilities | Unavailable:
        """See `Backend.probe`."""
        try:
            runtime = _runtime()
        except BackendMissing as error:
            return Unavailable(error.what, error.remedy or "")
        return Capabilities(
            runtime="onnxruntime",
            version=runtime.__version__,
            devices=("cpu",),
            dtypes=("fp32", "fp16", "int8"),
            adapters=True,
            mixed_adapters=True,
            streams=False,
        )

    def load(self, files: Mapping[str, str], options: Mapping[str, Any]) -> Session:
        """See `Backend.load`; `files` needs the role 'model'."""
        return load_encoder("onnx", (files, options), DEFAULTS, OnnxGraph)


class OnnxGraph(EncoderGraph):
    """One graph and its adapters."""

    def __init__(self, path: str, options: Mapping[str, Any]) -> None:
        self._runtime = _runtime()
        self.path = path
        self._options = options
        self._threads = options["threads"] or cores()
        before = resident_bytes()
        self._session = self._build(self._threads)
        loaded = resident_bytes()
        found, self._bank = self._describe()
        self.adapters, self.base_id, self.table_rows = self._bank, found.base_id, found.table_rows
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._widths = {output.name: self._width(output) for output in self._session.get_outputs()}
        self._of_tokens = {output.name for output in self._session.get_outputs() if len(output.shape) == 3}
        self._warm_up()
        self._weights_bytes, self._arena_bytes = max(0, loaded - before), max(0, resident_bytes() - loaded)

    def footprint(self) -> Footprint:
        """See `EncoderGraph.footprint`: resident bytes measured around load and warm-up; adapters computed."""
        adapters = self._bank.size_bytes if self._bank is not None else 0
        return Footprint(self._weights_bytes, adapters, 0, self._arena_bytes)

    def close(self) -> None:
        """See `EncoderGraph.close`."""
        self._session = None
        self._bank = self.adapters = None

    def _build(self, threads: int) -> Any:
        runtime = self._runtime
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # The next level uses layouts of one CPU type: not faster here, and a saved graph would be tied to that type.
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        # Memory patterns are kept per input shape without limit: memory would grow with every new length.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self._options["spinning"] else "0")
        options.add_session_config_entry("session.use_env_allocators", "1")
        # Exact kernels for int8 on x86 without VNNI (docs/decisions/0160). They are slower, and a CPU with VNNI would
        # take them too. Without effect elsewhere.
        if not EXACT_INT8 & cpu_words():
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            return runtime.InferenceSession(
                self.path, options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOW_FUSIONS
            )
        except _errors(runtime) as error:
            raise runtime_error("ONNX Runtime", "cannot load the graph", error, self.path) from error

    def _describe(self) -> tuple[GraphMetadata, AdapterBank | None]:
        """What the graph says of itself, and its bank. Raises BackendError for a graph of another kind."""
        inputs = [given.name for given in self._session.get_inputs()]
        if any(name not in inputs for name in INPUTS):
            raise BackendError(f"the graph has no inputs {INPUTS[0]} and {INPUTS[1]}", self.path)
        if all(output.name != "features" for output in self._session.get_outputs()):
            raise BackendError("the graph has no output 'features'", self.path)
        texts = self._session.get_modelmeta().custom_metadata_map
        found = read_graph_metadata(texts, self._options["base_id"], self.path)
        if found.bank is None:
            if len(inputs) > len(INPUTS):
                raise BackendError(f"the graph wants inputs that nobody gives: {inputs[2:]}", self.path)
            return found, None
        if all(output.name != "logits" for output in self._session.get_outputs()):
            raise BackendError("the graph has an adapter bank and no output 'logits'", self.path)
        slots = AdapterBank(found.bank, self._options["positions"] or self._options["max_rows"])
        of_tokens = any(output.name == "token_logits" for output in self._session.get_outputs())
        if set(inputs) != set(INPUTS) | set(slots.zeros(0)) or of_tokens is (found.bank.tokens is None):
            raise BackendError("the graph's inputs and outputs are not those of its bank description", self.path)
        return found, slots

    def _width(self, output: Any) -> int:
        """Values of an output per row; 0 for those of the adapters' heads. Raises BackendError for another form."""
        shape = output.shape
        of_tokens = "logits" if self._bank is None else "token_logits"
        if output.type == "tensor(float)" and len(shape) == 3 and output.name == of_tokens:
            shape = shape[1:]
        if output.type == "tensor(float)" and len(shape) == 2:
            if output.name in HEAD_OF and self._bank is not None:
                return 0
            if isinstance(shape[1], int) and 0 < shape[1] <= _WIDTH_MAX:
                return shape[1]
        raise BackendError(
            f"the graph's output {brief(output.name)} is {output.type} of {str(shape)[:80]}, rows of floats of a known "
            "width are needed",
            self.path,
        )

    def _warm_up(self) -> None:
        """Run the largest batch once, so that the arena has its final size and later runs allocate nothing."""
        numpy = _numpy()
        shape = (self._options["max_rows"], self._options["max_tokens"])
        arrays = {} if self._bank is None else self._bank.zeros(self._bank.spec.rank)
        ids, mask = numpy.zeros(shape, numpy.int64), numpy.ones(shape, numpy.int64)
        self._compute({"input_ids": ids, "attention_mask": mask, **arrays})

    def use_threads(self, threads: int) -> None:
        """See `EncoderGraph.use_threads`. Another number of threads needs another session: a limit by affinity alone is
        1.4 to 2.8 times slower."""
        wanted = min(max(1, threads), RANGES["threads"][1])
        if wanted != self._threads:
            self._session = None
            self._session = self._build(wanted)
            self._threads = wanted

    def compute(self, rows: Sequence[Sequence[int]], adapters: Sequence[str | None]) -> dict[str, Any]:
        """See `EncoderGraph.compute`."""
        arrays: dict[str, Any] = {}
        order: tuple[int, ...] = tuple(range(len(rows)))
        if self._bank is not None:
            arrays, order = self._bank.bind(adapters)
        return in_order_of_rows(self._compute({**padded(rows, order), **arrays}), order)

    def _compute(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """One run with every input and output bound to arrays that this session owns."""
        numpy = _numpy()
        binding = self._session.io_binding()
        for name, value in given.items():
            binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
        outputs = {}
        for name in self._outputs:
            # The labels' axis of a banked graph is free: logits are as wide as the heads that are bound.
            bias = HEAD_OF.get(name, "")
            width = given[bias].shape[1] if bias in given else self._widths[name]
            rows = given[INPUTS[0]].shape if name in self._of_tokens else (len(given[INPUTS[0]]),)
            value = outputs[name] = numpy.empty((*rows, width), numpy.float32)
            binding.bind_output(name, "cpu", 0, numpy.float32, value.shape, value.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except _errors(self._runtime) as error:
            raise runtime_error("ONNX Runtime", "failed", error, self.path) from error
        return outputs


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        raise BackendMissing("numpy is not installed", "onnx", "install edge-agent with its extra onnx") from error
    return numpy


def _runtime() -> Any:
    """The onnxruntime module, imported once with its telemetry off and an arena that never grows beyond need."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # must be set before the import: the first event is sent by it
    _numpy()
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendMissing(
            f"onnxruntime cannot be imported: {error}", "onnx", "install edge-agent with its extra onnx"
        ) from error
    _prepare(onnxruntime)
    return onnxruntime


@functools.cache
def _prepare(runtime: Any) -> None:
    """Once in a process: a second arena could not be registered."""
    if hasattr(runtime, "disable_telemetry_events"):
        runtime.disable_telemetry_events()
    _share_arena(runtime)


def _share_arena(runtime: Any) -> None:
    """One CPU arena per process that is extended by what is asked for (its default doubles)."""
    info = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
    settings = {
        "max_mem": 0,
        "arena_extend_strategy": 1,  # kSameAsRequested
        "initial_chunk_size_bytes": -1,
        "max_dead_bytes_per_chunk": -1,
    }
    runtime.create_and_register_allocator(info, runtime.OrtArenaCfg(settings))


def _errors(runtime: Any) -> tuple[Any, ...]:
    """The exception classes of ONNX Runtime; they share no base class but Exception."""
    state = runtime.capi.onnxruntime_pybind11_state
    names = (
        "Fail", "InvalidArgument", "NoSuchFile", "NoModel", "EngineError", "RuntimeException", "InvalidProtobuf",
        "ModelLoaded", "NotImplemented", "InvalidGraph", "EPFail",
    )  # fmt: skip
    return (*tuple(getattr(state, name) for name in names if hasattr(state, name)), RuntimeError, ValueError)
