"""The few calls of pycuda.driver that the engine host uses, on ordinary memory; wrong use raises as on a device.

Every call needs a context that is current in the calling thread. Addresses are real numbers of a made-up address
space; copies outside of an allocation raise. EDGE_FAKE_CUDA: 'absent' (no driver), 'none' (no device), 'fault' (the
next execution leaves the device in an error state), 'mismatch' (the driver is too old for TensorRT's CUDA), a number
(bytes that the device has). EDGE_FAKE_COMPUTE: the device's compute capability (8.7, an Orin's).
"""

import os
import threading

import numpy

TOTAL_BYTES = 1 << 30
_MODE = os.environ.get("EDGE_FAKE_CUDA", "")
COMPUTE = os.environ.get("EDGE_FAKE_COMPUTE", "8.7")


class Error(Exception):
    pass


class LogicError(Error):
    pass


class MemoryError(Error):
    pass


_local = threading.local()
_blocks = {}
_next = [0x7F0000000000]
_started = []
_pinned = {}


def _current():
    if not getattr(_local, "stack", None):
        raise LogicError("cuCtxGetCurrent failed: invalid device context")


def init():
    if _MODE == "absent":
        raise LogicError("cuInit failed: no CUDA-capable device is detected")
    _started.append(True)


def get_driver_version():
    return {"8.2": 10020, "10.3": 12060, "10.16": 13020}.get(os.environ.get("EDGE_FAKE_TENSORRT", ""), 12020)


device_attribute = type("device_attribute", (), {"INTEGRATED": 18})


class Context:
    def push(self):
        _local.stack = [*getattr(_local, "stack", []), self]

    def pop(self):
        _current()
        _local.stack = _local.stack[:-1]


class Device:
    def __init__(self, number):
        if not _started:
            raise LogicError("cuDeviceGet failed: initialization error")

    @staticmethod
    def count():
        return 0 if _MODE == "none" else 1

    def retain_primary_context(self):
        return Context()

    def name(self):
        return "Stand-in"

    def compute_capability(self):
        return tuple(int(part) for part in COMPUTE.split("."))

    def get_attribute(self, attribute):
        return int(os.environ.get("EDGE_FAKE_INTEGRATED", "1"))


class DeviceAllocation:
    def __init__(self, address):
        self._address = address

    def __int__(self):
        return self._address

    def free(self):
        _current()
        if self._address not in _blocks:
            raise LogicError("cuMemFree failed: invalid argument")
        del _blocks[self._address]


def _limit():
    return int(_MODE) if _MODE.isdigit() else TOTAL_BYTES


def mem_get_info():
    _current()
    return _limit() - sum(map(len, _blocks.values())), _limit()


def mem_alloc(size):
    _current()
    if size > mem_get_info()[0]:
        raise MemoryError("cuMemAlloc failed: out of memory")
    address = _next[0]
    _next[0] += (size // 256 + 2) * 256
    _blocks[address] = bytearray(size)
    return DeviceAllocation(address)


def memory(address, size):
    """The bytes at an address, for the stand-in of TensorRT."""
    _current()
    for start, block in _blocks.items():
        if start <= address and address + size <= start + len(block):
            return memoryview(block)[address - start : address - start + size]
    raise LogicError("an illegal memory access was encountered")


class Stream:
    def __init__(self):
        _current()
        self.handle = 1

    def synchronize(self):
        _current()


def memset_d8(address, value, size):
    memory(address, size)[:] = bytes([value]) * size


def memset_d8_async(address, value, size, stream):
    memset_d8(address, value, size)


def memcpy_htod_async(address, source, stream):
    content = memoryview(numpy.ascontiguousarray(source)).cast("B")
    memory(address, len(content))[:] = content


def memcpy_dtoh_async(target, address, stream):
    view = memoryview(target).cast("B")
    view[:] = memory(address, len(view))


def memcpy_dtod_async(target, source, size, stream):
    memory(target, size)[:] = bytes(memory(source, size))


class RegisteredHostMemory:
    def __init__(self, array):
        self.array = array

    def unregister(self):
        _current()
        del _pinned[self.array.ctypes.data]


class _Registered:
    def __init__(self, array):
        self.base = RegisteredHostMemory(array)


def register_host_memory(array, flags=0):
    _current()
    if array.ctypes.data % 4096:
        raise LogicError("cuMemHostRegister failed: invalid argument")
    _pinned[array.ctypes.data] = array
    return _Registered(array)
