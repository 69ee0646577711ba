"""A stand-in for TensorRT that runs the graph by ONNX Runtime. EDGE_FAKE_TENSORRT: '8.2', '8.6' (default), '10.3',
'10.16'.

10.16 is the one of JetPack 7, with CUDA 13: what changed since 10.3 and an engine host can meet are further element
types, tactic sources without cuBLAS and cuDNN, and a timing cache of its own.

Only what the engine host may use exists, and only in the generations that have it: a name that a version does not have
raises AttributeError, as there. Wrong use raises or returns what the real one does: shapes outside of the profile are
refused with False and a logged error, an address that is not aligned is refused, an execution without all addresses and
shapes fails. Inputs of int64 become int32 before 10. A "plan" is a header and the graph. EDGE_FAKE_BUILD_S: seconds
that a build takes; EDGE_FAKE_RUN_S: seconds that an execution takes. EDGE_FAKE_BUILD: 'memory': a build that fails;
'grow': one that takes 400 MiB more in steps. EDGE_FAKE_WRONG: added to what is computed.
EDGE_FAKE_COMPUTE, EDGE_FAKE_CUDA: see `pycuda.driver`.

Runs on Python 3.6 with NumPy 1.19 and ONNX Runtime 1.10.
"""

import json
import os
import time

import numpy
import onnxruntime
import pycuda.driver as cuda

__version__ = {
    "8.2": "8.2.1.8", "8.6": "8.6.2.3", "10.3": "10.3.0.30", "10.16": "10.16.2.10"
}[os.environ.get("EDGE_FAKE_TENSORRT", "8.6")]  # fmt: skip
_MAJOR, _MINOR = (int(part) for part in __version__.split(".")[:2])
_NEW = _MAJOR >= 10
_TENSORS = (_MAJOR, _MINOR) >= (8, 5)
_POOLS = (_MAJOR, _MINOR) >= (8, 4)
_MAGIC = b"stand-in plan\n"


class _Name:
    """A member of one of TensorRT's enumerations."""

    def __init__(self, group, name, value):
        self.group, self.name, self.value = group, name, value

    def __int__(self):
        return self.value

    def __str__(self):
        return self.group + "." + self.name


def _enumeration(group, names):
    members = {name: _Name(group, name, value) for value, name in enumerate(names)}
    return type(group, (), dict(members))


_ELEMENTS = ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64"]
DataType = _enumeration("DataType", _ELEMENTS + (["INT4", "FP4", "E8M0"] if (_MAJOR, _MINOR) >= (10, 8) else []))
float32, float16, int32, int64 = DataType.FLOAT, DataType.HALF, DataType.INT32, DataType.INT64
NetworkDefinitionCreationFlag = _enumeration(
    "NetworkDefinitionCreationFlag", ["EXPLICIT_BATCH", "STRONGLY_TYPED"] if _NEW else ["EXPLICIT_BATCH"]
)
BuilderFlag = _enumeration("BuilderFlag", ["FP16", "INT8", "TF32", "OBEY_PRECISION_CONSTRAINTS"])
LayerType = _enumeration("LayerType", ["SOFTMAX", "SHAPE", "REDUCE", "ELEMENTWISE"])
_SOURCES = ["CUBLAS", "CUBLAS_LT", "CUDNN"] + (["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"] if _POOLS else [])
TacticSource = _enumeration("TacticSource", _SOURCES)
_NUMPY = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64"}
_ORT_NUMPY = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}
_FROM_ORT = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64" if _NEW else "INT32",
             "tensor(int32)": "INT32"}  # fmt: skip
if _POOLS:
    MemoryPoolType = _enumeration("MemoryPoolType", ["WORKSPACE"])
if _TENSORS:
    TensorIOMode = _enumeration("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self):
        self.ready = True


def _need_logger(logger):
    if not isinstance(logger, ILogger) or not getattr(logger, "ready", False):
        raise TypeError("incompatible constructor arguments: a logger whose __init__ was called is needed")


def _begin(logger):
    """What a Builder and a Runtime do first. pybind11 makes a TypeError of the null pointer that is left."""
    cuda.mem_get_info()
    if cuda._MODE == "mismatch":
        logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35. Please check your CUDA installation")
        raise TypeError("pybind11::init(): factory function returned nullptr")


def _session(content):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class _Tensor:
    def __init__(self, name, dtype, shape):
        self.name, self.dtype, self.shape = name, dtype, shape


class _Layer:
    def __init__(self, name, kind, dtype):
        self.name, self.type, self.num_outputs = name, kind, 1
        self._output = _Tensor(name, dtype, ())
        self.precision = None

    def get_output(self, index):
        return self._output

    def set_output_type(self, index, dtype):
        if self._output.dtype not in (float32, float16):
            raise RuntimeError("a precision for an integer layer")
        self._output.dtype = dtype


class _Network:
    def __init__(self, flags):
        self.flags, self.content, self.inputs = flags, None, []
        self.layers = [
            _Layer("attention", LayerType.SOFTMAX, float32), _Layer("length", LayerType.SHAPE, int32),
            _Layer("fp32:square", LayerType.ELEMENTWISE, float32), _Layer("sum", LayerType.REDUCE, int32),
            _Layer("other", LayerType.ELEMENTWISE, float32),
        ]  # fmt: skip
        self.num_layers = len(self.layers)

    num_inputs = property(lambda self: len(self.inputs))

    def get_input(self, index):
        return self.inputs[index]

    def get_layer(self, index):
        return self.layers[index]


class _ParserError:
    def node(self):
        return 0

    def desc(self):
        return "the file is no graph"

    if _NEW:

        def node_operator(self):
            return "Mish"


class OnnxParser:
    num_errors = 0

    def __init__(self, network, logger):
        _need_logger(logger)
        self._network, self._logger = network, logger

    def parse_from_file(self, path):
        if not _NEW and not self._network.flags & 1:
            raise RuntimeError("the parser needs a network with explicit batch")
        try:
            with open(path, "rb") as stream:
                self._network.content = stream.read()
            session = _session(self._network.content)
        except Exception:  # noqa: BLE001 - ONNX Runtime's errors share no base class
            self.num_errors = 1
            self._logger.log(ILogger.ERROR, 'ModelImporter.cpp:773: While parsing node number 0 [Mish -> "y"]:')
            return False
        for given in session.get_inputs():
            shape = tuple(length if isinstance(length, int) else -1 for length in given.shape)
            self._network.inputs.append(_Tensor(given.name, getattr(DataType, _FROM_ORT[given.type]), shape))
        return True

    def get_error(self, index):
        return _ParserError()


class _Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, low, best, high):
        if not all(a <= b <= c for a, b, c in zip(low, best, high)):
            raise ValueError("a profile's shapes must grow")
        self.shapes[name] = [list(low), list(best), list(high)]


class _TimingCache:
    def __init__(self, content):
        self.content = content

    def serialize(self):
        return memoryview(b"timings of " + __version__.encode())


class _Config:
    def __init__(self):
        self.flags, self.profiles, self._cache = {int(BuilderFlag.TF32)}, [], None
        if _NEW:
            self.progress_monitor = None

    def set_flag(self, flag):
        self.flags.add(int(flag))

    def clear_flag(self, flag):
        self.flags.discard(int(flag))

    def get_tactic_sources(self):
        # From 10 on the libraries are not used unless asked for.
        return 0b11000 if _NEW else (1 << len(_SOURCES)) - 1

    def set_tactic_sources(self, mask):
        if mask >> len(_SOURCES):
            raise ValueError("a tactic source that this version does not have")
        return True

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content):
        return _TimingCache(bytes(content))

    def set_timing_cache(self, cache, ignore_mismatch):
        good = cache.content in (b"", b"timings of " + __version__.encode())
        self._cache = cache if good else self._cache
        return good

    def get_timing_cache(self):
        return self._cache

    if _POOLS:

        def set_memory_pool_limit(self, pool, size):
            assert pool is MemoryPoolType.WORKSPACE and size > 0

    if not _NEW:
        max_workspace_size = 0


if _NEW:

    class IProgressMonitor:
        def __init__(self):
            self.ready = True


class _HostMemory(bytes):
    pass


class Builder:
    platform_has_fast_fp16 = True
    platform_has_fast_int8 = False

    def __init__(self, logger):
        _need_logger(logger)
        _begin(logger)
        self._logger = logger

    def create_network(self, flags):
        return _Network(flags)

    def create_builder_config(self):
        return _Config()

    def create_optimization_profile(self):
        return _Profile()

    def build_serialized_network(self, network, config):
        free = [given.name for given in network.inputs if -1 in given.shape]
        known = config.profiles[0].shapes if config.profiles else {}
        if any(name not in known for name in free):
            self._logger.log(ILogger.ERROR, "Network has dynamic inputs, but no optimization profile covers them")
            return None
        if os.environ.get("EDGE_FAKE_BUILD") == "memory":
            self._logger.log(ILogger.ERROR, "Requested amount of GPU memory could not be allocated: out of memory")
            return None
        typed = _NEW and network.flags & 2
        if typed and (int(BuilderFlag.FP16) in config.flags or any(layer.precision for layer in network.layers)):
            raise RuntimeError("a precision in a strongly typed network")
        self._take_time(config)
        header = {
            "version": __version__, "profile": known, "types": {t.name: t.dtype.name for t in network.inputs},
            "fp32": [layer.name for layer in network.layers if layer.precision is float32],
            "flags": sorted(config.flags), "compute": cuda.COMPUTE,
        }  # fmt: skip
        return _HostMemory(_MAGIC + json.dumps(header).encode() + b"\n" + network.content)

    @staticmethod
    def _take_time(config):
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            monitor.phase_start("Building Engine", None, 4)
        held = []
        for step in range(4):
            time.sleep(float(os.environ.get("EDGE_FAKE_BUILD_S", "0")) / 4)
            if os.environ.get("EDGE_FAKE_BUILD") == "grow":
                held.append(b"x" * (100 << 20))
            if monitor is not None:
                monitor.step_complete("Building Engine", step)
        if monitor is not None:
            monitor.phase_finish("Building Engine")


class _Context:
    def __init__(self, engine, logger):
        self._engine, self._logger = engine, logger
        self._shapes, self._addresses = {}, {}

    def _set_shape(self, name, shape):
        low, _, high = self._engine.profile.get(name) or [self._engine.shape_of(name)] * 3
        if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high)):
            self._logger.log(ILogger.ERROR, "the shape of " + name + " is outside of the profile")
            return False
        self._shapes[name] = tuple(shape)
        return True

    def _shape(self, name):
        if name in self._engine.inputs:
            return self._shapes[name]
        rows = max(shape[0] for shape in self._shapes.values()) if self._shapes else -1
        return tuple(rows if place == 0 else length for place, length in enumerate(self._engine.shape_of(name)))

    def _execute(self):
        time.sleep(float(os.environ.get("EDGE_FAKE_RUN_S", "0")))
        if cuda._MODE == "fault":
            raise cuda.LogicError("cuStreamSynchronize failed: an illegal memory access was encountered")
        if set(self._addresses) != set(self._engine.names) or set(self._shapes) != set(self._engine.inputs):
            self._logger.log(ILogger.ERROR, "not all addresses and shapes are known")
            return False
        feeds = {}
        for name in self._engine.inputs:
            dtype = numpy.dtype(_NUMPY[self._engine.dtype_of(name).name])
            shape = self._shapes[name]
            size = int(numpy.prod(shape)) * dtype.itemsize
            value = numpy.frombuffer(cuda.memory(self._addresses[name], size), dtype).reshape(shape)
            feeds[name] = value.astype(self._engine.wanted[name])
        for name, value in zip(self._engine.outputs, self._engine.session.run(list(self._engine.outputs), feeds)):
            wrong = value.dtype.type(os.environ.get("EDGE_FAKE_WRONG", "0"))
            content = numpy.ascontiguousarray(value + wrong).tobytes()
            cuda.memory(self._addresses[name], len(content))[:] = content
        return True

    if _TENSORS:

        def set_input_shape(self, name, shape):
            return self._set_shape(name, shape)

        def get_tensor_shape(self, name):
            return self._shape(name)

        def set_tensor_address(self, name, address):
            if address % 256 or name not in self._engine.names:
                self._logger.log(ILogger.ERROR, "the address of " + name + " is not aligned")
                return False
            self._addresses[name] = address
            return True

        def execute_async_v3(self, handle):
            return self._execute()

    if not _NEW:

        def set_binding_shape(self, index, shape):
            return self._set_shape(self._engine.names[index], shape)

        def get_binding_shape(self, index):
            return self._shape(self._engine.names[index])

        def execute_async_v2(self, bindings, handle):
            if len(bindings) != len(self._engine.names) or any(address % 256 for address in bindings):
                raise RuntimeError("one aligned address per binding is needed")
            self._addresses = dict(zip(self._engine.names, bindings))
            return self._execute()


class ICudaEngine:
    device_memory_size = 4096
    if _NEW:
        device_memory_size_v2 = 4096

    def __init__(self, header, content, logger):
        self.session, self._logger = _session(content), logger
        self.profile, self._types = header["profile"], header["types"]
        given, made = self.session.get_inputs(), self.session.get_outputs()
        self.wanted = {i.name: _ORT_NUMPY[i.type] for i in given}
        self.inputs, self.outputs = [i.name for i in given], [o.name for o in made]
        self.names = self.inputs + self.outputs
        self._shapes = {t.name: tuple(n if isinstance(n, int) else -1 for n in t.shape) for t in given + made}

    def shape_of(self, name):
        return self._shapes[name]

    def dtype_of(self, name):
        return getattr(DataType, self._types.get(name, "FLOAT"))

    def create_execution_context(self):
        return _Context(self, self._logger)

    if _TENSORS:
        num_io_tensors = property(lambda self: len(self.names))

        def get_tensor_name(self, index):
            return self.names[index]

        def get_tensor_mode(self, name):
            return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name):
            return self.dtype_of(name)

        def get_tensor_shape(self, name):
            return self._shapes[name]

        def get_tensor_profile_shape(self, name, profile):
            return [tuple(shape) for shape in self.profile[name]]

    if not _NEW:
        num_bindings = property(lambda self: len(self.names))

        def get_binding_name(self, index):
            return self.names[index]

        def binding_is_input(self, index):
            return self.names[index] in self.inputs

        def get_binding_dtype(self, index):
            return self.dtype_of(self.names[index])

        def get_binding_shape(self, index):
            return self._shapes[self.names[index]]

        def get_profile_shape(self, profile, index):
            return [tuple(shape) for shape in self.profile[self.names[index]]]


class Runtime:
    def __init__(self, logger):
        _need_logger(logger)
        _begin(logger)
        self._logger = logger

    def deserialize_cuda_engine(self, content):
        if content.startswith(b"crash"):  # the real one does not survive every damaged plan
            os.abort()
        header, _, graph = bytes(content)[len(_MAGIC) :].partition(b"\n")
        if not content.startswith(_MAGIC):
            self._logger.log(ILogger.ERROR, "Serialization assertion magicTagRead == kMAGIC_TAG failed")
            return None
        found = json.loads(header.decode())
        if found["version"] != __version__:
            self._logger.log(ILogger.ERROR, "The engine plan file is not compatible with this version of TensorRT, "
                             "expecting library version {} got {}".format(__version__, found["version"]))  # fmt: skip
            return None
        if found["compute"] != cuda.COMPUTE:
            said = "The engine plan file is generated on an incompatible device, expecting compute {} got compute {}"
            self._logger.log(ILogger.ERROR, said.format(cuda.COMPUTE, found["compute"]) + ", please rebuild.")
            return None
        return ICudaEngine(found, graph, self._logger)
