"""Which graph is scored in place of a variant on a host that cannot compute as the device will.

A file of its own because it needs the forms of both runtimes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from edge_forge.export.onnx.float16 import emulated
from edge_forge.export.onnx.graph import save
from edge_forge.export.onnx.tensorrt_form import on_cpu

if TYPE_CHECKING:
    from edge_forge.evaluate.measure_onnx import OnnxSubject


@contextmanager
def scored(subject: OnnxSubject, dtype: str, runtime: str = "onnx") -> Iterator[OnnxSubject]:
    """The variant to score in place of `subject`: of float16 its emulation, of a graph for TensorRT its equal for ONNX
    Runtime, else itself."""
    if dtype != "fp16" and runtime != "tensorrt":
        yield subject
        return
    with tempfile.TemporaryDirectory(prefix="edge-forge-") as folder:
        model = onnx.load(subject.model)
        path = Path(folder) / "scored.onnx"
        save(emulated(model) if runtime != "tensorrt" else on_cpu(model), path)
        yield replace(subject, model=path)
