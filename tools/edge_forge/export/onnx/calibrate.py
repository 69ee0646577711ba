"""What the inputs of the linear sites look like on texts of the task: ranges for static INT8."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from edge_agent.base.errors import BackendError

from .graph import FloatArray
from .quantize import Range
from .sites import read_sites

Feed = Mapping[str, npt.NDArray[np.int64]]


# Share of a tensor's channels that stay float. Measured on MiniLM: with 0, 1, 2 and 5 % the features are 12.4, 6.9, 4.3
# and 3.9 % off FP32 (docs/decisions/0033).
OUTLIERS = 0.02


def calibrate(model: onnx.ModelProto, feeds: Sequence[Feed], outliers: float = OUTLIERS) -> dict[str, Range]:
    """The range of every tensor that a site's product reads, over `feeds` (input_ids, attention_mask [batch, seq]).

    The `outliers` share of channels with the largest values is left out of the range. The range of the rest is the
    median over the feeds of each feed's smallest and largest value, and contains 0: one odd text does not widen it.
    Padding is not counted. Raises BackendError without feeds.
    """
    if not feeds:
        raise BackendError("INT8 needs calibration rows", "quantize", "give texts of the task")
    names = product_inputs(model)
    session = _session(model, names)
    lows: dict[str, list[FloatArray]] = {name: [] for name in names}
    highs: dict[str, list[FloatArray]] = {name: [] for name in names}
    for feed in feeds:
        kept = feed["attention_mask"].astype(bool)
        for name, value in zip(names, session.run(names, dict(feed)), strict=True):
            lows[name].append(value[kept].min(axis=0))
            highs[name].append(value[kept].max(axis=0))
    return {name: _range(np.asarray(lows[name]), np.asarray(highs[name]), outliers) for name in names}


def _session(model: onnx.ModelProto, names: Sequence[str]) -> Any:
    """The model with `names` as its outputs."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])


def _range(lows: FloatArray, highs: FloatArray, share: float) -> Range:
    """From the least and greatest value per feed and channel [feeds, channels]."""
    peaks = np.maximum(-lows.min(axis=0), highs.max(axis=0))
    count = math.ceil(share * len(peaks)) if share > 0 else 0
    apart = np.sort(np.argsort(-peaks, kind="stable")[:count])
    rest = np.delete(np.arange(len(peaks)), apart)
    low, high = np.median(lows[:, rest].min(axis=1)), np.median(highs[:, rest].max(axis=1))
    return Range(min(0.0, float(low)), max(0.0, float(high)), tuple(int(channel) for channel in apart))


def product_inputs(model: onnx.ModelProto) -> list[str]:
    """The tensors that the sites' products read."""
    weights = {site.weight for site in read_sites(model)}
    return list(dict.fromkeys(n.input[0] for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in weights))
