"""An engine file from a graph, in the words of the TensorRT that is there."""

import contextlib
import errno
import os
import re
import time
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

from .device_access import EngineLog, HostFailure, made, one_line, strongly_typed

# Sums over many values: computed in FP32 inside an FP16 engine.
FP32_TYPES = ("SOFTMAX", "REDUCE", "NORMALIZATION")
# int8: the graph's own QuantizeLinear and DequantizeLinear say where, all else is FP16.
PRECISIONS = ("fp32", "fp16", "int8")
# TensorRT 8.6 may accept a timing cache and then report only in its log that it could not use it.
CACHE_REFUSED = re.compile("timing cache will not be used")
# The line of a parser before 10 that names the operator: "While parsing node number 3 [Sign -> "x"]:".
PARSED_NODE = re.compile(r"parsing node number \d+ \[")


def build(trt: Any, request: Dict[str, Any], tell: Callable[[Dict[str, Any]], None]) -> Dict[str, Any]:
    """Make an engine file. Fields of `request`:

    onnx, plan           paths; the plan appears under its name only when it is complete
    profile              {input: [smallest, best, largest shape]}
    precision            one of `PRECISIONS`: what TensorRT 8 may use; ignored where the graph's own types rule
    fp32_names           prefixes of layers that stay FP32 beside those of `FP32_TYPES`
    input_types          {input: 'float16'} for inputs that are handed over in another type than the graph's
    tf32                 allow TF32 where an FP32 product is asked for (default false)
    workspace_bytes      memory that one layer may use for its scratch
    timing_cache         path; read when it is there, written afterwards
    without_tactics      names of tactic sources not to use
    niceness             added to this process's priority; the kernel's out-of-memory killer is sent here first
    """
    lower_priority(int(request.get("niceness", 0)))
    log = EngineLog(trt)
    started_s = time.monotonic()
    tell({"event": "progress", "stage": "parse"})
    builder = made(trt.Builder, log)
    network = parsed(trt, builder, log, request["onnx"])
    config = builder.create_builder_config()
    set_types(trt, network, config, request)
    set_memory(trt, config, int(request.get("workspace_bytes", 256 << 20)))
    leave_out(trt, config, request.get("without_tactics", []))
    set_profile(builder, network, config, log, request["profile"])
    cache, cached = timing_cache(config, request.get("timing_cache", ""))
    monitor = set_monitor(trt, config, tell)  # must live as long as the build; the builder does not keep it alive
    tell({"event": "progress", "stage": "build"})
    serialized = builder.build_serialized_network(network, config)
    del monitor
    if serialized is None:
        raise log.failure("TensorRT cannot build an engine of the graph")
    tell({"event": "progress", "stage": "write"})
    plan_bytes = write_plan(request["plan"], serialized)
    cached = cached and not any(CACHE_REFUSED.search(line) for line in log.errors)
    if cache is not None:
        # Without it the next build measures everything again, and that is all.
        with contextlib.suppress(OSError):
            write_whole(request["timing_cache"], config.get_timing_cache().serialize())
    return {
        "plan_bytes": plan_bytes,
        "seconds": time.monotonic() - started_s,
        "timing_cache_used": cached,
        "layers": network.num_layers,
        "said": log.errors,
    }


def parsed(trt: Any, builder: Any, log: EngineLog, path: str) -> Any:
    """The network of a graph. Raises HostFailure with the node that the parser does not take."""
    flags = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED if strongly_typed(trt) else flags.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(path):
        raise parse_failure(parser, log)
    return network


def leave_out(trt: Any, config: Any, names: Sequence[str]) -> None:
    """Do not use some of the libraries that TensorRT takes kernels from; unknown names are no error."""
    sources = config.get_tactic_sources()
    for name in names:
        if hasattr(trt.TacticSource, name):
            sources &= ~(1 << int(getattr(trt.TacticSource, name)))
    if names:
        config.set_tactic_sources(sources)


def set_profile(builder: Any, network: Any, config: Any, log: EngineLog, shapes: Dict[str, Any]) -> None:
    """The shapes that the engine is built for: {input: [smallest, best, largest]}."""
    profile = builder.create_optimization_profile()
    known = [network.get_input(place).name for place in range(network.num_inputs)]
    for name, limits in shapes.items():
        if name not in known:
            raise HostFailure("the graph has no input {!r}".format(name))
        profile.set_shape(name, *[tuple(shape) for shape in limits])
    if config.add_optimization_profile(profile) < 0:
        raise log.failure("TensorRT refuses the shapes that were asked for")


def lower_priority(niceness: int) -> None:
    """Let what serves requests go first, and be the first that ends when memory runs out."""
    if niceness > 0:
        os.nice(niceness)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:
            stream.write("900")


def parse_failure(parser: Any, log: EngineLog) -> HostFailure:
    """What the parser did not take, with the node."""
    found = []
    for place in range(min(parser.num_errors, 3)):
        error = parser.get_error(place)
        # Which operator it is, older parsers tell in their log alone.
        kind = " ({})".format(error.node_operator()) if hasattr(error, "node_operator") else ""
        found.append("node {}{}: {}".format(error.node(), kind, one_line(error.desc())))
    if not found:
        return log.failure("TensorRT cannot read the graph")
    named = [line for line in log.errors if PARSED_NODE.search(line)]
    what = "TensorRT cannot parse the graph: {}".format("; ".join(found + named[:1]))
    return HostFailure(what[:1500], "export it for this TensorRT, or take this variant out of the package")


def set_types(trt: Any, network: Any, config: Any, request: Dict[str, Any]) -> None:
    """The number formats: by the graph alone (from 10 on), or by flags with FP32 kept where FP16 would overflow."""
    typed = strongly_typed(trt)
    wanted = {trt_type: getattr(trt, trt_type) for trt_type in set(request.get("input_types", {}).values())}
    for place in range(network.num_inputs):
        tensor = network.get_input(place)
        name = request.get("input_types", {}).get(tensor.name)
        if name is not None and not typed:
            tensor.dtype = wanted[name]
    if not request.get("tf32", False) and hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)
    precision = request.get("precision", "fp32")
    if precision not in PRECISIONS:
        raise HostFailure("the precision {!r} is none of {}".format(precision, ", ".join(PRECISIONS)))
    if typed or precision == "fp32":
        return
    config.set_flag(trt.BuilderFlag.FP16)
    if precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    prefixes = tuple(request.get("fp32_names", ()))
    for place in range(network.num_layers):
        layer = network.get_layer(place)
        kind = str(layer.type).rsplit(".", 1)[-1]
        outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
        if not (kind in FP32_TYPES or layer.name.startswith(prefixes)) or kind in ("CONSTANT", "SHAPE"):
            continue
        # Integer layers (shapes, indices) have no precision to choose.
        if all(output.dtype in (trt.float32, trt.float16) for output in outputs):
            layer.precision = trt.float32
            for index in range(layer.num_outputs):
                layer.set_output_type(index, trt.float32)


def set_memory(trt: Any, config: Any, workspace_bytes: int) -> None:
    """Bound the scratch memory of a layer, in the words of this TensorRT."""
    if hasattr(config, "set_memory_pool_limit"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    else:
        config.max_workspace_size = workspace_bytes


def timing_cache(config: Any, path: str) -> Tuple[Any, bool]:
    """Give the builder the measurements of earlier builds; returns the cache (None without a path) and if it served."""
    if not path:
        return None, False
    content = b""
    with contextlib.suppress(OSError), open(path, "rb") as stream:
        content = stream.read()
    cache = config.create_timing_cache(content)
    if cache is not None and config.set_timing_cache(cache, False):
        return cache, bool(content)
    # A cache of another version or device, or a damaged one: begin with an empty one.
    cache = config.create_timing_cache(b"")
    if cache is not None:
        config.set_timing_cache(cache, False)
    return cache, False


def set_monitor(trt: Any, config: Any, tell: Callable[[Dict[str, Any]], None]) -> Any:
    """Report how far a build is, where TensorRT tells (from 10 on); returns what must be kept meanwhile."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Called from the builder's threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: Dict[str, int] = {}

        def phase_start(self, phase: str, parent: Optional[str], steps: int) -> None:
            """A phase of `steps` steps begins."""
            self._steps[phase] = steps

        def phase_finish(self, phase: str) -> None:
            """A phase ends."""
            self._steps.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            """A step ends; True goes on."""
            tell({"event": "progress", "stage": "build", "phase": phase, "done": step + 1,
                  "total": self._steps.get(phase, 0)})  # fmt: skip
            return True

    monitor = Monitor()
    config.progress_monitor = monitor
    return monitor


def write_plan(path: str, content: Any) -> int:
    """Write the engine. Raises HostFailure where the disk has no room for it, or cannot be written."""
    try:
        return write_whole(path, content)
    except OSError as refused:
        with contextlib.suppress(OSError):
            os.unlink(path + ".part")
        megabytes = memoryview(content).nbytes >> 20
        remedy = "free {} MiB there".format(megabytes + 1) if refused.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise HostFailure(
            "the engine cannot be written to {}: {}".format(os.path.dirname(path), refused.strerror), remedy
        ) from refused


def write_whole(path: str, content: Any) -> int:
    """Write a file that is there completely or not at all; returns its bytes."""
    temporary = path + ".part"
    with open(temporary, "wb") as stream:
        size = stream.write(memoryview(content))
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(temporary, path)
    return size
