"""The export step: one float graph of the base with the adapter bank, or of a merged model, equal to PyTorch's.

Both leave in `out_dir`: `encoder.onnx` (float, no bank, what the quantize step starts from), `model.onnx` (what a
device loads as its FP32 variant) and `tokenizer.json`. Parity, the distance from PyTorch on sample texts, is measured
with the device's own backend.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from edge_agent.base.errors import BackendError
from edge_forge.evaluate import measure_onnx as measure
from edge_forge.evaluate.predict import load_head, predict_with_features
from edge_forge.evaluate.probes import BASE_TEXTS
from edge_forge.export.onnx.graph import opset, save, set_metadata
from edge_forge.export.onnx.inject import inject_bank
from edge_forge.export.onnx.sites import name_sites
from edge_forge.export.onnx.trace import OPSET, PooledEncoder, tidy, trace
from edge_forge.models.encoder import Encoder, open_encoder, target_names
from edge_forge.train.lora import apply_adapter, load_adapter, save_adapter

ENCODER, MODEL, TOKENIZER = "encoder.onnx", "model.onnx", "tokenizer.json"
_SEED = 2


@dataclass(frozen=True)
class Bank:
    """Limits of an adapter bank: modules by the training step's `targets` from `first_layer` up, rank, labels."""

    targets: Sequence[str] = ("all",)
    first_layer: int = 0
    rank: int = 16
    max_labels: int = 32


@dataclass(frozen=True)
class ExportRecord:
    """What was exported. `modules` are those the bank can adapt (empty for a merged graph)."""

    opset: int
    nodes: int
    size_bytes: int
    max_tokens: int
    modules: tuple[str, ...]
    parity: dict[str, Any]


def export_base(
    *,
    base_dir: Path,
    out_dir: Path,
    base_id: str,
    bank: Bank = Bank(),
    tolerance: float = 1e-3,
    texts: Sequence[str] = BASE_TEXTS,
    max_tokens: int = 128,
) -> ExportRecord:
    """Export the base with its bank. Features are compared without an adapter and with a random one on every module.

    Raises BackendError when PyTorch cannot export it or parity is beyond `tolerance` (absolute).
    """
    encoder = open_encoder(base_dir)
    max_tokens = min(max_tokens, _longest(encoder))
    modules = target_names(encoder, bank.targets, bank.first_layer)
    model = _traced(encoder, None, base_id)
    out_dir.mkdir(parents=True, exist_ok=True)
    save(model, out_dir / ENCODER)
    inject_bank(model, modules, bank.rank, bank.max_labels)
    save(model, out_dir / MODEL)
    shutil.copyfile(base_dir / TOKENIZER, out_dir / TOKENIZER)
    subject = measure.OnnxSubject(out_dir / MODEL, out_dir / TOKENIZER, max_tokens, base_id=base_id)
    parity = _parity_of_base(base_dir, subject, _random_adapter(encoder, modules, bank), texts)
    for name, found in parity.items():
        demand(found, tolerance, f"the base's graph ({name})")
    return _record(model, out_dir, max_tokens, modules, {name: found._asdict() for name, found in parity.items()})


def export_merged(
    *,
    base_dir: Path,
    trained_dir: Path,
    out_dir: Path,
    base_id: str,
    tolerance: float = 1e-3,
    texts: Sequence[str] = BASE_TEXTS,
    max_tokens: int = 128,
) -> ExportRecord:
    """Export what the train step left in `trained_dir`, adapter folded in, as one graph with its classifier.

    `trained_dir` holds adapter.safetensors (LoRA), or model.safetensors and head.safetensors (full). Features and
    logits are compared with PyTorch's *unmerged* computation. Raises BackendError as `export_base`.
    """
    encoder, head = _merged(base_dir, trained_dir)
    max_tokens = min(max_tokens, _longest(encoder))
    model = _traced(encoder, head, base_id)
    out_dir.mkdir(parents=True, exist_ok=True)
    save(model, out_dir / ENCODER)
    save(model, out_dir / MODEL)
    shutil.copyfile(base_dir / TOKENIZER, out_dir / TOKENIZER)
    wanted = predict_with_features(base_dir, trained_dir, texts, max_tokens=max_tokens)
    found = measure.outputs(measure.OnnxSubject(out_dir / MODEL, out_dir / TOKENIZER, max_tokens), texts)
    if found.logits is None:
        raise BackendError("the merged graph gives no logits", "export")
    parity = Parity(largest(found.features, wanted[0]), largest(found.logits, wanted[1]))
    demand(parity, tolerance, "the merged graph")
    return _record(model, out_dir, max_tokens, (), {"merged": parity._asdict()})


def _traced(encoder: Encoder, head: torch.nn.Linear | None, base_id: str) -> onnx.ModelProto:
    """The float graph with named sites and the base's identity."""
    if hasattr(encoder.model, "set_attn_implementation"):
        encoder.model.set_attn_implementation("eager")  # sdpa leaves guards in the graph that nothing fuses
    model = trace(PooledEncoder(encoder.model, head), _longest(encoder), OPSET)
    tidy(model)
    weights = {name: module.weight.detach().float().numpy() for name, _, module in encoder.linears()}
    name_sites(model, weights)
    set_metadata(model, "edge.base_id", base_id)
    return model


def _longest(encoder: Encoder) -> int:
    """The largest number of tokens that the base has positions for."""
    return int(getattr(encoder.model.config, "max_position_embeddings", 512))


def _merged(base_dir: Path, trained_dir: Path) -> tuple[Encoder, torch.nn.Linear]:
    if (trained_dir / "adapter.safetensors").is_file():
        encoder = open_encoder(base_dir)
        tensors = load_adapter(trained_dir / "adapter.safetensors")
        apply_adapter(encoder, tensors, True)
    elif (trained_dir / "model.safetensors").is_file():
        encoder, tensors = open_encoder(trained_dir), load_head(trained_dir / "head.safetensors")
    else:
        raise BackendError("there is no trained result to merge", str(trained_dir), "run the train step first")
    weight, bias = tensors["head.weight"], tensors["head.bias"]
    head = torch.nn.Linear(weight.shape[0], weight.shape[1])
    with torch.no_grad():
        head.weight.copy_(weight.t())
        head.bias.copy_(bias)
    return encoder, head


def _random_adapter(encoder: Encoder, modules: Sequence[str], bank: Bank) -> dict[str, torch.Tensor]:
    """An adapter on every banked module, large enough to be seen and small enough to stay in the model's range."""
    generator = torch.Generator().manual_seed(_SEED)
    linears = {name: module for name, _, module in encoder.linears()}
    tensors = {}
    for name in modules:
        d_out, d_in = linears[name].weight.shape
        scale = float(linears[name].weight.detach().std())
        tensors[f"{name}.A"] = torch.randn(d_in, bank.rank, generator=generator)
        tensors[f"{name}.B"] = torch.randn(bank.rank, d_out, generator=generator) * (0.3 * scale / bank.rank**0.5)
    tensors["head.weight"] = torch.randn(encoder.hidden, bank.max_labels, generator=generator) * 0.1
    tensors["head.bias"] = torch.randn(bank.max_labels, generator=generator)
    return tensors


def _parity_of_base(
    base_dir: Path, subject: measure.OnnxSubject, tensors: dict[str, torch.Tensor], texts: Sequence[str]
) -> dict[str, Parity]:
    with tempfile.TemporaryDirectory(prefix="edge-forge-") as name:
        folder = Path(name)
        save_adapter(folder / "adapter.safetensors", tensors, {"base_id": subject.base_id})
        adapted = predict_with_features(base_dir, folder, texts, max_tokens=subject.max_tokens)
        silent = {key: value for key, value in tensors.items() if key.startswith("head.")}
        save_adapter(folder / "adapter.safetensors", silent, {"base_id": subject.base_id})
        bare = predict_with_features(base_dir, folder, texts, max_tokens=subject.max_tokens)
        save_adapter(folder / "adapter.safetensors", tensors, {"base_id": subject.base_id})
        with_adapter = measure.OnnxSubject(**{**vars(subject), "adapter": folder / "adapter.safetensors"})
        found, found_bare = measure.outputs(with_adapter, texts), measure.outputs(subject, texts)
    if found.logits is None:
        raise BackendError("the banked graph gives no logits", "export")
    effect = float(np.abs(found.features - found_bare.features).max())
    return {
        "base": Parity(largest(found_bare.features, bare[0])),
        "adapter": Parity(largest(found.features, adapted[0]), largest(found.logits, adapted[1]), effect),
    }


def _record(
    model: onnx.ModelProto, out_dir: Path, max_tokens: int, modules: Sequence[str], parity: dict[str, Any]
) -> ExportRecord:
    size_bytes = (out_dir / MODEL).stat().st_size
    return ExportRecord(opset(model), len(model.graph.node), size_bytes, max_tokens, tuple(modules), parity)


def as_dict(record: ExportRecord) -> dict[str, Any]:
    """The record as plain values, for `record.json`."""
    return asdict(record)


Array = NDArray[np.float32]


class Parity(NamedTuple):
    """Largest absolute differences over the sample texts; `effect` is how far the adapter moved the features."""

    features: float
    logits: float | None = None
    effect: float | None = None


def largest(found: Array, wanted: Array) -> float:
    """Largest absolute difference; infinite for other shapes or values that are not finite."""
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - wanted).max())


def demand(parity: Parity, tolerance: float, what: str) -> None:
    """Raise BackendError when `parity` is beyond `tolerance`, or when an adapter has no effect to speak of."""
    for name, off in (("features", parity.features), ("logits", parity.logits)):
        if off is not None and not off <= tolerance:
            raise BackendError(
                f"{what}: {name} differ from PyTorch by {off:.3g}, {tolerance:g} is tolerated",
                "export",
                "do not ship this graph; report the base's architecture",
            )
    if parity.effect is not None and not parity.effect > 10.0 * max(parity.features, 1e-6):
        raise BackendError(f"{what}: a test adapter moves the features by only {parity.effect:.3g}", "export")
