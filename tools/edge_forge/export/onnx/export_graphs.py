"""The export step: one float graph of the base with the adapter bank, or of a merged model, equal to PyTorch's.

`trace_base` makes the float graph of the base and proves it at every length (`parity`), before anything is trained.
`export_base` and `export_merged` leave in `out_dir`: `encoder.onnx` (float, no bank, what the quantize step starts
from), `model.onnx` (what a device loads as its FP32 variant) and `tokenizer.json`. Parity, the distance from PyTorch,
is measured with the device's own backend.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from edge_agent.base.errors import BackendError
from edge_agent.base.texts import Text
from edge_agent.bundle.safetensors import OF_TOKENS
from edge_forge.evaluate import measure_onnx as measure
from edge_forge.evaluate.predict import predict_tokens, predict_with_features
from edge_forge.evaluate.probes import BASE_TEXTS
from edge_forge.export.onnx import parity as check
from edge_forge.export.onnx.graph import metadata, opset, save, set_metadata
from edge_forge.export.onnx.inject import CLASSES, inject_bank
from edge_forge.export.onnx.parity import Parity, demand, largest
from edge_forge.export.onnx.sites import name_sites
from edge_forge.export.onnx.trace import OPSET, PooledEncoder, TokenHead, takes_additive, tidy, trace
from edge_forge.models.encoder import Encoder, open_encoder, target_names
from edge_forge.models.sentence_pooling import prompt_of
from edge_forge.train.frozen_states import encode
from edge_forge.train.lora import save_adapter
from edge_forge.train.trained_encoder import has_token_head, open_trained

ENCODER, MODEL, TOKENIZER = "encoder.onnx", "model.onnx", "tokenizer.json"
# Scripts, composed and decomposed accents, emoji joined by U+200D, control tokens written out, and white space.
PARITY_TEXTS: tuple[Text, ...] = (
    *BASE_TEXTS,
    ("Is the kettle on?", "Somebody left the kettle on, and nobody was in the kitchen."),
    "Включи свет на кухне, пожалуйста.", "打开厨房的灯，然后关掉客厅的灯。", "キッチンの電気をつけて",
    "부엌 불을 켜 주세요", "شغّل ضوء المطبخ", "הדלק את האור", "रसोई की बत्ती जलाओ", "เปิดไฟในครัว",
    "Größe, Ångström, \ufb01le, ½, ①", "Gro\u0308\u00dfe, A\u030angstro\u0308m, e\u0301", "👩‍👩‍👧 👍🏽 🇩🇪 ☕️",
    "[CLS] a [SEP] b [MASK] [PAD] [UNK]", "<s> a </s> b <mask> <pad> <unk>",
    "line one\nline two\r\n\tindented\u00a0\u200b  end ", "a\u0000b\u0007c\ufffd",
)  # fmt: skip
SINGLE_TEXTS = tuple(text for text in PARITY_TEXTS if isinstance(text, str))
"""The same without pairs: for the graph of a task that takes one text, which spares it the search for segments."""
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


def trace_base(
    *, base_dir: Path, out_dir: Path, base_id: str, tolerance: float = 1e-3, max_tokens: int = 128
) -> dict[str, Any]:
    """Write `encoder.onnx`, the base's float graph, and compare it with PyTorch at every length up to `max_tokens`.

    Every row is computed alone, and in batches with padding (see `parity`); ids come from the whole table. Returns
    {"features": largest absolute difference, "lengths", ...}. Raises BackendError when PyTorch cannot export the base,
    or beyond `tolerance`.
    """
    encoder = open_encoder(base_dir)
    _check_tokens(base_dir, max_tokens)
    out_dir.mkdir(parents=True, exist_ok=True)
    save(_traced(encoder, None, base_id, max_tokens), out_dir / ENCODER)
    lengths = check.choose_lengths(max_tokens, check.weights_per_token(encoder), check.edges_of(encoder.model.config))
    rows = check.rows_of(encoder.vocabulary, lengths.chosen, _ends(base_dir))
    off = _off(encoder, measure.OnnxSubject(out_dir / ENCODER, base_dir / TOKENIZER, max_tokens), rows)
    demand(Parity(off), tolerance, f"the base's graph ({lengths.said} tokens)")
    return check.as_dict(lengths, off)


def export_base(
    *,
    base_dir: Path,
    traced: Path,
    out_dir: Path,
    bank: Bank = Bank(),
    tolerance: float = 1e-3,
    texts: Sequence[Text] = PARITY_TEXTS,
    max_tokens: int = 128,
) -> ExportRecord:
    """Give the graph `traced`, which `trace_base` wrote, its bank.

    Features are compared without an adapter and with random ones on every module, one whose head reads features and one
    whose head reads tokens. Raises BackendError as `trace_base`.
    """
    encoder = open_encoder(base_dir)
    modules = target_names(encoder, bank.targets, bank.first_layer)
    out_dir.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(traced, out_dir / ENCODER)
    model = onnx.load(traced)
    base_id = str(metadata(model, "edge.base_id"))
    inject_bank(model, modules, bank.rank, bank.max_labels)
    save(model, out_dir / MODEL)
    shutil.copyfile(base_dir / TOKENIZER, out_dir / TOKENIZER)
    subject = measure.OnnxSubject(
        out_dir / MODEL, out_dir / TOKENIZER, max_tokens, base_id=base_id, prompt=prompt_of(base_dir)
    )
    heads = _random_adapter(encoder, modules, bank), _random_head(encoder.hidden, CLASSES)
    parity = _parity_of_base(base_dir, subject, heads, texts)
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
    texts: Sequence[Text] = PARITY_TEXTS,
    max_tokens: int = 128,
) -> ExportRecord:
    """Export what the train step left in `trained_dir`, adapter folded in, as one graph with its classifier.

    `trained_dir` holds what a method writes (`trained_encoder`). Features and
    logits are compared with PyTorch's *unmerged* computation for the texts, and features with the merged one at some
    lengths. Without a pair among `texts` the graph finds no segments. Raises BackendError as `trace_base`.
    """
    encoder, head = merged_encoder(base_dir, trained_dir, texts)
    model = _traced(encoder, head, base_id, max_tokens)
    out_dir.mkdir(parents=True, exist_ok=True)
    save(model, out_dir / ENCODER)
    save(model, out_dir / MODEL)
    shutil.copyfile(base_dir / TOKENIZER, out_dir / TOKENIZER)
    subject = measure.OnnxSubject(out_dir / MODEL, out_dir / TOKENIZER, max_tokens, prompt=prompt_of(base_dir))
    parity = merged_parity(encoder, subject, (base_dir, trained_dir), texts)
    demand(parity, tolerance, "the merged graph")
    return _record(model, out_dir, max_tokens, (), {"merged": parity._asdict()})


def merged_parity(
    encoder: Encoder,
    subject: measure.OnnxSubject,
    folders: tuple[Path, Path],
    texts: Sequence[Text] = PARITY_TEXTS,
) -> Parity:
    """How far a merged graph is from PyTorch, by the device's backend for it.

    Features and logits of the texts are compared with the *unmerged* computation of `folders` (base, trained), features
    with `encoder`, the merged one, at some lengths. Raises BackendError where the graph gives no logits.
    """
    base_dir, trained_dir = folders
    tokens = subject.max_tokens
    found = measure.outputs(subject, texts)
    wanted: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
    if has_token_head(trained_dir):
        features, of_tokens = predict_tokens(base_dir, trained_dir, texts, max_tokens=tokens)
        wanted = features, np.concatenate(of_tokens)
        logits = None if found.of_tokens is None else np.concatenate(found.of_tokens)
    else:
        wanted, logits = predict_with_features(base_dir, trained_dir, texts, max_tokens=tokens), found.logits
    if logits is None:
        raise BackendError("the merged graph gives no logits", "export")
    few = [length for length in (1, 2, tokens // 2, tokens - 1, tokens) if 0 < length <= tokens]
    off = _off(encoder, subject, check.rows_of(encoder.vocabulary, few, _ends(base_dir)))
    return Parity(max(off, largest(found.features, wanted[0])), largest(logits, wanted[1]))


def _traced(encoder: Encoder, head: torch.nn.Linear | None, base_id: str, max_tokens: int) -> onnx.ModelProto:
    """The float graph with named sites, the base's identity and the rows of its table."""
    if max_tokens > encoder.positions:
        raise BackendError(
            f"{max_tokens} tokens are more than the base has positions for ({encoder.positions})", "export"
        )
    model = trace(pooled(encoder, head, max_tokens, states=head is None), encoder.positions, OPSET)
    tidy(model)
    weights = {name: module.weight.detach().float().numpy() for name, _, module in encoder.linears()}
    name_sites(model, weights, encoder.survey.linears)
    set_metadata(model, "edge.base_id", base_id)
    set_metadata(model, "edge.vocabulary", encoder.vocabulary)
    return model


def pooled(encoder: Encoder, head: torch.nn.Linear | None, max_tokens: int, states: bool = False) -> PooledEncoder:
    """What converters take: the encoder with eager attention, its pooling and head, with the mask that it can take.
    `states` as in `PooledEncoder`."""
    if hasattr(encoder.model, "set_attn_implementation"):
        encoder.model.set_attn_implementation("eager")  # sdpa leaves guards in the graph that nothing fuses
    return PooledEncoder(encoder, head, takes_additive(encoder, max_tokens), states)


def _off(encoder: Encoder, subject: measure.OnnxSubject, rows: Sequence[Sequence[int]]) -> float:
    """Largest absolute difference of features between graph and PyTorch, over rows alone and in padded batches."""
    wanted = check.reference(encoder, rows)
    worst = 0.0
    batches = check.batches_of(rows)
    found = measure.features_of(subject, [[rows[place] for place in batch] for batch in batches])
    for batch, features in zip(batches, found, strict=True):
        worst = max(worst, largest(features, wanted[batch]))
    return worst


def _ends(base_dir: Path) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after every text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base_dir / TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoded = tokenizer.encode("a")
    inner = [place for place, special in enumerate(encoded.special_tokens_mask) if not special]
    if not inner:
        return [], []
    return encoded.ids[: inner[0]], encoded.ids[inner[-1] + 1 :]


def _check_tokens(base_dir: Path, max_tokens: int) -> None:
    """Refuse a tokenizer that gives other ids in training than on the device."""
    trained, _ = encode(base_dir, PARITY_TEXTS, max_tokens)
    device = measure.device_ids(base_dir / TOKENIZER, PARITY_TEXTS, max_tokens, prompt_of(base_dir))
    for text, ours, theirs in zip(PARITY_TEXTS, trained, device, strict=True):
        if list(ours) != theirs:
            raise BackendError(f"the device's tokens of {text!r} are other ones than those of training", "export")


def merged_encoder(
    base_dir: Path, trained_dir: Path, texts: Sequence[Text] = PARITY_TEXTS
) -> tuple[Encoder, torch.nn.Linear]:
    """The base with what was trained folded in, and its head; it finds segments where `texts` hold a pair.

    Raises ConfigError where nothing was trained.
    """
    segmented = any(isinstance(text, tuple) for text in texts)
    encoder, weight, bias = open_trained(base_dir, trained_dir, merged=True, segmented=segmented)
    head = (TokenHead if has_token_head(trained_dir) else torch.nn.Linear)(weight.shape[0], weight.shape[1])
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
    return tensors | _random_head(encoder.width, bank.max_labels)


def _random_head(width: int, outputs: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(_SEED + 1)
    return {
        "head.weight": torch.randn(width, outputs, generator=generator) * 0.1,
        "head.bias": torch.randn(outputs, generator=generator),
    }


def _parity_of_base(
    base_dir: Path,
    subject: measure.OnnxSubject,
    adapter: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]],
    texts: Sequence[Text],
) -> dict[str, Parity]:
    """`adapter`: its tensors with a head that reads features, and a head that reads tokens in its place."""
    tensors, of_tokens = adapter[0], {**adapter[0], **adapter[1]}
    said = {"base_id": subject.base_id}
    with tempfile.TemporaryDirectory(prefix="edge-forge-") as name:
        path = Path(name) / "adapter.safetensors"
        with_adapter = measure.OnnxSubject(**{**vars(subject), "adapter": path})
        silent = {key: value for key, value in tensors.items() if key.startswith("head.")}
        save_adapter(path, silent, said)
        bare, _ = predict_with_features(base_dir, path.parent, texts, max_tokens=subject.max_tokens)
        found_bare = measure.outputs(subject, texts)
        save_adapter(path, of_tokens, said | {"head": OF_TOKENS})
        features, labelled = predict_tokens(base_dir, path.parent, texts, max_tokens=subject.max_tokens)
        found_tokens = measure.outputs(with_adapter, texts)
        save_adapter(path, tensors, said)
        found = measure.outputs(with_adapter, texts)
    if found.logits is None or found_tokens.of_tokens is None:
        raise BackendError("the banked graph gives no logits", "export")
    logits = features @ tensors["head.weight"].numpy() + tensors["head.bias"].numpy()
    off = largest(np.concatenate(found_tokens.of_tokens), np.concatenate(labelled))
    effect = float(np.abs(found.features - found_bare.features).max())
    return {
        "base": Parity(largest(found_bare.features, bare)),
        "adapter": Parity(largest(found.features, features), largest(found.logits, logits), effect),
        "adapter of tokens": Parity(largest(found_tokens.features, features), off, effect),
    }


def _record(
    model: onnx.ModelProto, out_dir: Path, max_tokens: int, modules: Sequence[str], parity: dict[str, Any]
) -> ExportRecord:
    size_bytes = (out_dir / MODEL).stat().st_size
    return ExportRecord(opset(model), len(model.graph.node), size_bytes, max_tokens, tuple(modules), parity)


def as_dict(record: ExportRecord) -> dict[str, Any]:
    """The record as plain values, for `record.json`."""
    return asdict(record)
