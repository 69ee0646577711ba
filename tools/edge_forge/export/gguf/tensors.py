"""The tensors of a safetensors folder, one at a time, as float32: a model need never be in memory whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.base.errors import ConfigError

Floats = NDArray[np.float32]
BASE_ID_KEY = "edge.base_id"
"""The GGUF key that names the base, in a model as in an adapter."""


_ROWS = 4096


class Tensors:
    """Open safetensors files; a context manager."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._stack = ExitStack()
        self._places: dict[str, Any] = {}

    def __enter__(self) -> Tensors:
        from safetensors import SafetensorError, safe_open

        for path in self._paths:
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                self._stack.close()
                raise ConfigError(f"the weights cannot be read: {error}", str(path)) from error
            self._places.update(dict.fromkeys(file.keys(), file))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._places[name].get_slice(name).get_shape())

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same, read a few rows at a time."""
        first, second = (self._places[name].get_slice(name) for name in (one, other))
        rows = self.shape(one)[0]
        if self.shape(one) != self.shape(other):
            return False
        return all(
            bool((first[at : at + _ROWS].float() == second[at : at + _ROWS].float()).all())
            for at in range(0, rows, _ROWS)
        )

    def read(self, name: str) -> Floats:
        """A tensor in float32."""
        found: Floats = self._places[name].get_tensor(name).float().contiguous().numpy()
        return found


def as_float16(value: Floats, name: str) -> NDArray[np.float16]:
    """Rounded to float16. Raises ConfigError for a value beyond its range, which would become infinite."""
    largest = float(np.abs(value).max(initial=0.0))
    if not largest <= 65504.0:
        raise ConfigError(f"tensor {name} reaches {largest:.3g}, beyond what float16 holds", "gguf")
    return value.astype(np.float16)
