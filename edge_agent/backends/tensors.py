"""The tensors of an adapter's safetensors file as float32 arrays, with numpy alone.

`bundle.safetensors` checks the header; here only float32 and float16 vectors and matrices are taken.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from edge_agent.base.errors import AdapterRefused, PackageError
from edge_agent.bundle.safetensors import read_safetensors

_NUMPY_TYPES = {"F32": "<f4", "F16": "<f2"}


class TensorFile(NamedTuple):
    """`tensors` by name as float32 arrays, and the string metadata."""

    tensors: Mapping[str, Any]
    metadata: Mapping[str, str]


def read_tensors(path: str, size_max_bytes: int) -> TensorFile:
    """All tensors of a file. Raises AdapterRefused for anything that is not exactly a safetensors file."""
    try:
        size = os.stat(path).st_size  # noqa: PTH116 (pathlib costs memory for two lines)
        if size > size_max_bytes:
            raise AdapterRefused(f"the file has {size} bytes, at most {size_max_bytes} are taken", path)
        with open(path, "rb") as stream:  # noqa: PTH123 (as above)
            data = stream.read(size)
    except OSError as error:
        raise AdapterRefused(f"the file cannot be read: {error.strerror}", path) from error
    return parse_tensors(data, path)


def parse_tensors(data: bytes, where: str) -> TensorFile:
    """The same from bytes; `where` is named in errors."""
    try:
        header = read_safetensors(io.BytesIO(data), len(data), where)
    except PackageError as error:
        raise AdapterRefused(error.what, error.where, error.remedy) from error
    tensors = {}
    for name, (dtype, shape, begin, _) in header.tensors.items():
        if dtype not in _NUMPY_TYPES or len(shape) > 2:
            raise AdapterRefused(f"tensor {name!r} is not a float32 or float16 vector or matrix", where)
        tensors[name] = _array(data, begin, _NUMPY_TYPES[dtype], shape)
    return TensorFile(tensors, header.metadata)


def _array(data: bytes, first: int, dtype: str, shape: tuple[int, ...]) -> Any:
    import numpy

    array = numpy.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=first).reshape(shape)
    return array.astype(numpy.float32, copy=False)
