"""One engine on the device: its tensors, the bank of adapters, executions."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

from .device_access import ITEM_BYTES, EngineLog, HostFailure, count, data_type, made, pin, unpin

# TensorRT wants addresses of tensors to be multiples of this (documentation of `set_tensor_address`).
ALIGNMENT = 256


class TensorApi:
    """Tensors by name: TensorRT 8.5 and later, the only way from 10 on."""

    generation = "tensors"

    def __init__(self, trt: Any, engine: Any) -> None:
        self._trt = trt
        self._engine = engine

    def names(self) -> List[str]:
        """Inputs and outputs."""
        return [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]

    def describe(self, name: str) -> Tuple[bool, str, List[int]]:
        """Whether it is an input, its type, its shape with -1 for free axes."""
        engine = self._engine
        is_input = engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
        return is_input, data_type(engine.get_tensor_dtype(name)), list(engine.get_tensor_shape(name))

    def limits(self, name: str) -> List[List[int]]:
        """Smallest, best and largest shape of an input."""
        return [list(shape) for shape in self._engine.get_tensor_profile_shape(name, 0)]

    def set_shape(self, context: Any, name: str, shape: Sequence[int]) -> bool:
        """Fix an input's shape; False when the engine was not built for it."""
        return bool(context.set_input_shape(name, tuple(shape)))

    def shape(self, context: Any, name: str) -> List[int]:
        """A tensor's shape for the inputs' present shapes."""
        return list(context.get_tensor_shape(name))

    def set_address(self, context: Any, name: str, address: int) -> None:
        """Where a tensor lies on the device."""
        if not context.set_tensor_address(name, address):
            raise HostFailure("TensorRT refuses the address of {!r}".format(name))

    def execute(self, context: Any, stream: Any) -> bool:
        """Queue one execution."""
        return bool(context.execute_async_v3(stream.handle))


class BindingApi:
    """Bindings by number: TensorRT before 8.5."""

    generation = "bindings"

    def __init__(self, trt: Any, engine: Any) -> None:
        self._engine = engine
        self._index = {engine.get_binding_name(place): place for place in range(engine.num_bindings)}
        self._addresses = [0] * engine.num_bindings

    def names(self) -> List[str]:
        """See `TensorApi`."""
        return list(self._index)

    def describe(self, name: str) -> Tuple[bool, str, List[int]]:
        """See `TensorApi`."""
        place, engine = self._index[name], self._engine
        shape = list(engine.get_binding_shape(place))
        return bool(engine.binding_is_input(place)), data_type(engine.get_binding_dtype(place)), shape

    def limits(self, name: str) -> List[List[int]]:
        """See `TensorApi`."""
        return [list(shape) for shape in self._engine.get_profile_shape(0, self._index[name])]

    def set_shape(self, context: Any, name: str, shape: Sequence[int]) -> bool:
        """See `TensorApi`."""
        return bool(context.set_binding_shape(self._index[name], tuple(shape)))

    def shape(self, context: Any, name: str) -> List[int]:
        """See `TensorApi`."""
        return list(context.get_binding_shape(self._index[name]))

    def set_address(self, context: Any, name: str, address: int) -> None:
        """See `TensorApi`."""
        self._addresses[self._index[name]] = address

    def execute(self, context: Any, stream: Any) -> bool:
        """See `TensorApi`."""
        return bool(context.execute_async_v2(self._addresses, stream.handle))


def api_of(trt: Any, engine: Any) -> Any:
    """The way in which this TensorRT names inputs and outputs."""
    return TensorApi(trt, engine) if hasattr(engine, "num_io_tensors") else BindingApi(trt, engine)


class HostTensor:
    """An input or output: its memory on the device and its region in the shared memory.

    `limits` are an input's smallest, best and largest shape; an output's largest shape is known when all inputs are.
    """

    def __init__(self, name: str, dtype: str, shape: List[int], limits: List[List[int]]) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.item_bytes = ITEM_BYTES[dtype]
        self.limits = limits
        self.largest: List[int] = limits[2] if limits else []
        self.address = 0
        self.staging = 0
        self.region: Any = None
        self._given = 0
        self._bound: Tuple[int, ...] = ()

    def place(self, address: int) -> int:
        """The tensor lies at `address`."""
        self.address = self._given = address
        return address

    def resize(self, largest: List[int]) -> None:
        """An output can have this shape at most."""
        self.largest = largest

    def stage(self, address: int) -> None:
        """A window that is not aligned is copied to `address`."""
        self.staging = address

    def share(self, shared: Any, offset: int) -> None:
        """The tensor's region begins at `offset` of the shared memory."""
        self.region = shared[offset : offset + self.largest_bytes]

    def is_new_shape(self, shape: Tuple[int, ...]) -> bool:
        """True when TensorRT must be told the shape: it is not the last one."""
        return shape != self._bound

    def bind_shape(self, shape: Tuple[int, ...]) -> None:
        """TensorRT was told the shape."""
        self._bound = shape

    def is_new_address(self, address: int) -> bool:
        """True when TensorRT must be told the address: it is not the last one, which is kept."""
        last, self._given = self._given, address
        return last != address

    @property
    def slot_bytes(self) -> int:
        """Bytes of one position, for an input of the bank."""
        return count(self.shape[1:]) * self.item_bytes

    @property
    def largest_bytes(self) -> int:
        """Bytes at the largest shape."""
        return count(self.largest) * self.item_bytes

    def public(self, role: str) -> Dict[str, Any]:
        """What the client is told."""
        return {"name": self.name, "role": role, "dtype": self.dtype, "shape": self.shape, "largest": self.largest,
                "limits": self.limits}  # fmt: skip


class LoadedEngine:
    """An engine with its memory. Inputs named in `bank` hold `positions` adapters each, the others one batch."""

    def __init__(self, trt: Any, cuda: Any, plan: str, bank: Sequence[str], positions: int) -> None:
        self._cuda = cuda
        self._log = EngineLog(trt)
        self._free_before = int(cuda.mem_get_info()[0])
        self._owned: List[Any] = []
        with open(plan, "rb") as stream:
            content = stream.read()
        self._runtime = made(trt.Runtime, self._log)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise self._log.failure(
                "TensorRT cannot load the engine {}".format(plan), "build it again on this device with this TensorRT",
                engine=True,
            )  # fmt: skip
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._log.failure("TensorRT cannot make a context for the engine {}".format(plan))
        self._api = api_of(trt, self._engine)
        self._stream = cuda.Stream()
        self.inputs: Dict[str, HostTensor] = {}
        self.outputs: Dict[str, HostTensor] = {}
        self.bank: Dict[str, HostTensor] = {}
        self.positions = positions
        self.pinned = False
        self._shared: Any = None
        self._adapter: Dict[str, int] = {}
        self._stride = self._residents = 0
        self._describe(plan, bank)
        self._allocate()

    def _describe(self, plan: str, bank: Sequence[str]) -> None:
        missing = sorted(set(bank) - set(self._api.names()))
        if missing:
            what = "the engine {} has no input {!r}".format(plan, missing[0])
            raise HostFailure(what, "build it from this graph", engine=True)
        for name in self._api.names():
            is_input, dtype, shape = self._api.describe(name)
            tensor = HostTensor(name, dtype, shape, self._api.limits(name) if is_input else [])
            if not is_input:
                self.outputs[name] = tensor
                continue
            if name in bank:
                if min(shape[1:] or [1]) < 0:
                    raise HostFailure("the bank input {!r} has a free axis beside the rows".format(name))
                self.bank[name] = tensor
            else:
                self.inputs[name] = tensor
            self._shape(tensor, tensor.largest)

    def _allocate(self) -> None:
        for name, tensor in self.outputs.items():
            tensor.resize(self._api.shape(self._context, name))
            if min(tensor.largest or [1]) < 0:
                raise HostFailure("the size of the output {!r} depends on values".format(name))
        for group in (self.inputs, self.outputs, self.bank):
            for name, tensor in group.items():
                size = self.positions * tensor.slot_bytes if group is self.bank else tensor.largest_bytes
                self._api.set_address(self._context, name, tensor.place(self._memory(tensor, size)))
                if group is self.bank:
                    self._cuda.memset_d8(tensor.address, 0, size)

    def _memory(self, tensor: HostTensor, size: int) -> int:
        try:
            memory = self._cuda.mem_alloc(max(size, 1))
        except self._cuda.MemoryError as error:
            raise HostFailure(
                "the device has no {} bytes for {!r}".format(size, tensor.name), "free memory or use smaller shapes"
            ) from error
        self._owned.append(memory)
        return int(memory)

    def tensors(self) -> List[Dict[str, Any]]:
        """Every input and output, for the client."""
        roles = (("input", self.inputs), ("bank", self.bank), ("output", self.outputs))
        return [tensor.public(role) for role, group in roles for tensor in group.values()]

    def bind(self, shared: Any, regions: Dict[str, int], adapter: Dict[str, int], stride: int, residents: int) -> None:
        """Use `shared` (uint8 array) from now on. `regions` are the offsets of inputs and outputs at their largest,
        `adapter` those of the first resident adapter's bank inputs; the next one lies `stride` bytes further."""
        wanted = set(self.inputs) | set(self.outputs)
        if set(regions) != wanted or set(adapter) != set(self.bank):
            raise HostFailure("the shared memory must be laid out for {}".format(", ".join(sorted(wanted))))
        ends = [regions[name] + self._tensor(name).largest_bytes for name in regions]
        ends += [adapter[name] + (residents - 1) * stride + self.bank[name].slot_bytes for name in adapter]
        if min(list(regions.values()) + list(adapter.values()) + [stride, residents]) < 0 or max(ends) > len(shared):
            raise HostFailure("a region is not inside the shared memory")
        self._unbind()
        self._shared, self._adapter, self._stride, self._residents = shared, adapter, stride, residents
        self.pinned = pin(shared.ctypes.data, len(shared))
        for name, offset in regions.items():
            self._tensor(name).share(shared, offset)

    def _tensor(self, name: str) -> HostTensor:
        return self.inputs.get(name) or self.outputs[name]

    def _unbind(self) -> None:
        if self.pinned:
            unpin(self._shared.ctypes.data)
        self._shared, self.pinned = None, False

    def write(self, position: int, resident: Optional[int]) -> None:
        """Copy a resident adapter to a bank position, or (None) fill the position with zeros."""
        if not 0 <= position < self.positions:
            raise HostFailure("the bank has positions 0 to {}, not {}".format(self.positions - 1, position))
        if resident is not None and not (self._shared is not None and 0 <= resident < self._residents):
            raise HostFailure("there is no resident adapter {}".format(resident))
        for name, tensor in self.bank.items():
            size = tensor.slot_bytes
            target = tensor.address + position * size
            if resident is None:
                self._cuda.memset_d8_async(target, 0, size, self._stream)
            else:
                first = self._adapter[name] + resident * self._stride
                self._cuda.memcpy_htod_async(target, self._shared[first : first + size], self._stream)
        self._stream.synchronize()

    def run(self, shapes: Dict[str, Sequence[int]], rows: int, start: int) -> Dict[str, List[int]]:
        """Execute once; returns the outputs' shapes. `shapes` are those of the inputs outside of the bank."""
        if set(shapes) != set(self.inputs):
            raise HostFailure("shapes of {} are needed".format(", ".join(sorted(self.inputs))))
        if self.bank and not (rows >= 1 and 0 <= start <= self.positions - rows):
            raise HostFailure("{} rows from position {} are not in the bank".format(rows, start))
        if any(tensor.region is None for tensor in self.inputs.values()):
            raise HostFailure("no shared memory is bound")
        for name, shape in shapes.items():
            tensor = self.inputs[name]
            self._shape(tensor, shape)
            self._cuda.memcpy_htod_async(
                tensor.address, tensor.region[: count(shape) * tensor.item_bytes], self._stream
            )
        for tensor in self.bank.values():
            self._shape(tensor, [rows] + tensor.shape[1:])
            self._window(tensor, rows, start)
        found = {name: self._api.shape(self._context, name) for name in self.outputs}
        if not self._api.execute(self._context, self._stream):
            raise self._log.failure("TensorRT refuses to run the engine")
        for name, tensor in self.outputs.items():
            size = count(found[name]) * tensor.item_bytes
            self._cuda.memcpy_dtoh_async(tensor.region[:size], tensor.address, self._stream)
        self._stream.synchronize()
        if self._log.errors:
            raise self._log.failure("the engine failed")
        return found

    def _shape(self, tensor: HostTensor, shape: Sequence[int]) -> None:
        wanted = tuple(int(length) for length in shape)
        if not tensor.is_new_shape(wanted):
            return
        low, high = tensor.limits[0], tensor.limits[2]
        fits = len(wanted) == len(high) and all(a <= b <= c for a, b, c in zip(low, wanted, high))  # noqa: B905 - Python 3.6
        if not fits or not self._api.set_shape(self._context, tensor.name, wanted):
            raise HostFailure(
                "{!r} has the shape {}, the engine takes {} to {}".format(tensor.name, list(wanted), low, high)
            )
        tensor.bind_shape(wanted)

    def _window(self, tensor: HostTensor, rows: int, start: int) -> None:
        """Point a bank input at its window: an address, no copy, unless the address would not be aligned."""
        address = tensor.address + start * tensor.slot_bytes
        if address % ALIGNMENT:
            if not tensor.staging:
                tensor.stage(self._memory(tensor, self.positions * tensor.slot_bytes))
            self._cuda.memcpy_dtod_async(tensor.staging, address, rows * tensor.slot_bytes, self._stream)
            address = tensor.staging
        if tensor.is_new_address(address):
            self._api.set_address(self._context, tensor.name, address)

    def footprint(self) -> Dict[str, int]:
        """Bytes on the device: what is missing since before the load, and what of it is the bank, buffers, scratch."""
        buffers = [tensor for group in (self.inputs, self.outputs) for tensor in group.values()]
        scratch = "device_memory_size_v2" if hasattr(self._engine, "device_memory_size_v2") else "device_memory_size"
        return {
            "taken_bytes": self._free_before - int(self._cuda.mem_get_info()[0]),
            "bank_bytes": sum(self.positions * tensor.slot_bytes for tensor in self.bank.values()),
            "buffers_bytes": sum(tensor.largest_bytes for tensor in buffers),
            "scratch_bytes": int(getattr(self._engine, scratch)),
        }

    def close(self) -> None:
        """Give all memory back, on the thread that took it."""
        self._unbind()
        for memory in self._owned:
            memory.free()
        del self._owned[:]
        self._context = self._engine = self._runtime = self._api = self._stream = None
