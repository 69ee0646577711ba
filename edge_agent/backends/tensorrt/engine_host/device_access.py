"""What building and running share: the modules, the device, TensorRT's messages, and how a failure is said."""

import contextlib
import ctypes
import os
import re
import sys
from typing import Any, Dict, Iterator, List, Sequence, Tuple

# TensorRT's names of element types, and numpy's. The others (BF16, FP8, INT4) cannot be an input or output here.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}  # type: Dict[str, str]
# TensorRT reports exhausted memory only in the words of its log.
OUT_OF_MEMORY = re.compile("out ?of ?memory|insufficient memory|cudamalloc", re.IGNORECASE)
ITEM_BYTES = {"float32": 4, "float16": 2, "int8": 1, "int32": 4, "int64": 8, "uint8": 1, "bool": 1}


class HostFailure(Exception):
    """An operation that cannot be done: a sentence, a remedy (or ''), whether the host must end, and whether the engine
    file is to blame, so that another one would do."""

    def __init__(self, what: str, remedy: str = "", fatal: bool = False, engine: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.fatal = fatal
        self.engine = engine


def load_modules() -> Tuple[Any, Any]:
    """The modules (tensorrt, pycuda.driver). Raises HostFailure with what to install into this interpreter."""
    # Kernels are loaded when they are first used: less memory, and TensorRT warns without it. Heeded from CUDA 11.7 on.
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    interpreter = "{} (Python {}.{})".format(sys.executable, *sys.version_info[:2])
    found = []
    for name, remedy in (
        ("numpy", "install numpy for this interpreter"),
        ("tensorrt", "install JetPack's TensorRT (python3-libnvinfer), or name the interpreter that has it"),
        ("pycuda.driver", "install pycuda for this interpreter"),
    ):
        try:
            __import__(name)
        except (ImportError, OSError, AttributeError) as error:
            # AttributeError: a TensorRT of 2021 asks numpy for names that numpy 1.24 removed.
            raise HostFailure("{} cannot import {}: {}".format(interpreter, name, one_line(error)), remedy) from error
        found.append(sys.modules[name])
    if not hasattr(found[2].Device, "retain_primary_context"):
        raise HostFailure("the pycuda of {} is older than 2020.1".format(interpreter), "upgrade pycuda")
    return found[1], found[2]


def one_line(error: object) -> str:
    """The text of an error, shortened to one line of at most 400 characters."""
    return " ".join("{}".format(error).split())[:400]


def data_type(dtype: Any) -> str:
    """numpy's name of a TensorRT element type. Raises HostFailure for one that numpy does not have."""
    name = str(dtype).rsplit(".", 1)[-1]
    if name not in DTYPES:
        raise HostFailure("an input or output has the type {}".format(name), "export the graph with another type")
    return DTYPES[name]


def count(shape: Sequence[int]) -> int:
    """Elements of a shape."""
    product = 1
    for length in shape:
        product *= int(length)
    return product


class EngineLog:
    """TensorRT's messages: the last errors, for the sentence of a failure. `logger` is what TensorRT takes."""

    KEPT = 8

    def __init__(self, trt: Any) -> None:
        kept: List[str] = []
        self.errors = kept
        path = os.environ.get("EDGE_TENSORRT_LOG", "")
        worst = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

        class Logger(trt.ILogger):  # type: ignore[misc]
            """Called from TensorRT's threads."""

            def __init__(self) -> None:
                trt.ILogger.__init__(self)  # pybind11 demands the direct call

            def log(self, severity: Any, message: str) -> None:
                """Keep errors; the rest goes to the file that EDGE_TENSORRT_LOG names, if any."""
                if path:
                    with open(path, "a") as stream:
                        stream.write("{} {}\n".format(severity, message))
                if severity in worst:
                    kept.append(one_line(message))
                    del kept[: -EngineLog.KEPT]

        self.logger = Logger()

    def failure(self, what: str, remedy: str = "", engine: bool = False) -> HostFailure:
        """A HostFailure of `what` with TensorRT's own words; clears them. No engine is to blame where memory lacks."""
        lines = list(dict.fromkeys(self.errors))
        del self.errors[:]
        if any(OUT_OF_MEMORY.search(line) for line in lines):
            remedy, engine = "free memory (other models, the desktop) or use smaller shapes", False
        what = "{}: {}".format(what, "; ".join(lines) or "TensorRT gives no reason")[:1500]
        return HostFailure(what, remedy, engine=engine)


def pin(address: int, size: int) -> bool:
    """Let the device copy from and to this memory without a detour. False where it cannot: slower, still right.

    Not by pycuda: its `register_host_memory` crashes with current versions of numpy (seen with 2026.1 and 1.26). Boards
    below compute capability 7.2 refuse.
    """
    try:
        return (
            int(ctypes.CDLL("libcuda.so.1").cuMemHostRegister_v2(ctypes.c_void_p(address), ctypes.c_size_t(size), 0))
            == 0
        )
    except (OSError, AttributeError):
        return False


def unpin(address: int) -> None:
    """The end of `pin`."""
    ctypes.CDLL("libcuda.so.1").cuMemHostUnregister(ctypes.c_void_p(address))


def made(kind: Any, log: EngineLog) -> Any:
    """A Builder or Runtime. Raises HostFailure with TensorRT's words, where pybind11 only says 'nullptr'."""
    try:
        return kind(log.logger)
    except TypeError as error:
        raise log.failure(
            "TensorRT cannot be started", "check that its installation is whole and that the driver fits its CUDA"
        ) from error


def strongly_typed(trt: Any) -> bool:
    """True where the graph's own types rule (TensorRT 10), False where a flag allows FP16 (8.x)."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


@contextlib.contextmanager
def on_device(cuda: Any, number: int) -> Iterator[Any]:
    """The device's primary context, current in this thread while the block runs."""
    try:
        cuda.init()
        if cuda.Device.count() <= number:
            raise HostFailure("there is no CUDA device {}".format(number), "check that the driver is loaded")
        device = cuda.Device(number)
        context = device.retain_primary_context()
        context.push()
    except (cuda.Error, OSError) as error:
        raise HostFailure(
            "CUDA cannot be started: {}".format(one_line(error)),
            "check that the driver is loaded, that its version fits CUDA's, and that /dev/nvhost* or /dev/nvidia* are "
            "open to this user",
        ) from error
    try:
        yield device
    finally:
        context.pop()


def probe(trt: Any, cuda: Any, device: Any) -> Dict[str, Any]:
    """What can run here."""
    free, total = cuda.mem_get_info()
    capability = tuple(device.compute_capability())
    return {
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
        "tensorrt": trt.__version__,
        "api": "tensors" if hasattr(trt.ICudaEngine, "num_io_tensors") else "bindings",
        "strongly_typed": strongly_typed(trt),
        "builder": hasattr(trt, "Builder"),
        # By the table of TensorRT's support matrix. A builder would tell as well, and costs seconds and a gigabyte.
        "fast_fp16": capability in ((5, 3), (6, 0), (6, 2)) or capability >= (7, 0),
        "fast_int8": capability == (6, 1) or capability >= (7, 0),
        "cuda": int(cuda.get_driver_version()),
        "device": device.name(),
        "compute_capability": "{}.{}".format(*capability),
        "total_bytes": int(total),
        "free_bytes": int(free),
    }
