"""An encoder as LiteRT takes it: one `.tflite` file with a signature per length, in float32 and in INT8.

`make` writes the files of a merged model and measures by the device's backend how far FP32 is from PyTorch.

Shapes are fixed in such a graph (its converter cannot lower a free axis of an attention mask), so there is a signature
for each of `lengths`. Weights are in the file once. INT8 is the dynamic range scheme of LiteRT's own quantiser: weights
with a scale per output channel, activations with a range per row that the kernels measure when they run.

`litert-torch` and what it brings are imported here only, when an encoder is exported.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from edge_agent.base.errors import BackendError, BackendMissing
from edge_agent.base.texts import Text
from edge_forge.evaluate.measure_onnx import OnnxSubject
from edge_forge.export.litert_converter import REMEDY, lengths
from edge_forge.export.onnx.export_graphs import PARITY_TEXTS, merged_encoder, merged_parity, pooled
from edge_forge.export.onnx.parity import demand
from edge_forge.export.onnx.trace import PooledEncoder
from edge_forge.models.sentence_pooling import prompt_of

# What PyTorch's exporter and the converter raise for operators that they do not know; they have no common class.
_CONVERTER_ERRORS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError)
_WORDS_BYTES = 1 << 16


class _Named(torch.nn.Module):
    """Outputs by name, as signatures have them."""

    def __init__(self, module: PooledEncoder) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """int32 [1, tokens] to features, and logits where there is a head."""
        found = self.module(input_ids, attention_mask)
        return (
            {"features": found}
            if isinstance(found, torch.Tensor)
            else dict(zip(("features", "logits"), found, strict=True))
        )


def make(
    *,
    folders: tuple[Path, Path],
    out_dir: Path,
    formats: Sequence[str],
    tolerance: float,
    max_tokens: int,
    texts: Sequence[Text] = PARITY_TEXTS,
) -> dict[str, Any]:
    """Write `<format>.tflite` of what was trained: `folders` are the base's and the training step's result.

    FP32 is converted and compared with PyTorch whatever `formats` hold, since INT8 is made of it; it stays only where
    it is wanted. Returns {"made": formats, "parity": `Parity` as a mapping}. Raises BackendMissing without the
    converter, BackendError where it cannot convert, or beyond `tolerance`. `texts` as in `export_graphs.export_merged`.
    """
    base_dir, trained_dir = folders
    encoder, head = merged_encoder(base_dir, trained_dir, texts)
    exact = out_dir / "fp32.tflite"
    convert(pooled(encoder, head, max_tokens), max_tokens, exact)
    subject = OnnxSubject(exact, base_dir / "tokenizer.json", max_tokens, backend="litert", prompt=prompt_of(base_dir))
    parity = merged_parity(encoder, subject, folders, texts)
    demand(parity, tolerance, "the merged graph for LiteRT")
    if "int8" in formats:
        quantize(exact, out_dir / "int8.tflite")
    if "fp32" not in formats:
        exact.unlink()
    return {"made": sorted(formats), "parity": {"merged": parity._asdict()}}


def convert(module: PooledEncoder, max_tokens: int, path: Path) -> None:
    """Write the float32 graph. Raises BackendMissing without litert-torch, BackendError where it cannot convert."""
    try:
        import litert_torch
    except ImportError as error:
        raise BackendMissing(f"litert-torch cannot be imported: {error}", "LiteRT export", REMEDY) from error
    named, conversion = _Named(module).eval(), litert_torch
    with _quiet() as words:
        try:
            for length in lengths(max_tokens):
                # Two tensors: the exporter joins inputs that are one object.
                ids, mask = (torch.ones(1, length, dtype=torch.int32) for _ in range(2))
                conversion = conversion.signature(
                    f"tokens_{length}", named, sample_kwargs={"input_ids": ids, "attention_mask": mask}
                )
            conversion.convert().export(str(path))
        except _CONVERTER_ERRORS as error:
            last = (str(error) or words()).strip().splitlines()[-1:]
            raise BackendError(f"LiteRT cannot take this encoder: {' '.join(last)[:300]}", "LiteRT export") from error


def quantize(path: Path, out: Path) -> None:
    """Write the INT8 form of a float32 graph. Raises BackendMissing, BackendError."""
    try:
        from ai_edge_quantizer import quantizer, recipe
    except ImportError as error:
        raise BackendMissing(f"ai-edge-quantizer cannot be imported: {error}", "LiteRT export", REMEDY) from error
    with _quiet():
        try:
            making = quantizer.Quantizer(str(path))
            making.load_quantization_recipe(recipe.dynamic_wi8_afp32())
            making.quantize().export_model(str(out), overwrite=True)
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"LiteRT cannot quantise this encoder: {error}", "LiteRT export") from error


@contextlib.contextmanager
def _quiet() -> Iterator[Callable[[], str]]:
    """Keep what the converter says in Python and in C++ away from the terminal; yields what returns its words."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(file.fileno(), _WORDS_BYTES, 0).decode(errors="replace")
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            logging.root.setLevel(level)
