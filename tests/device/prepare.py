"""Make the graphs that `check.py` runs: `python -m tests.device.prepare BASE_FOLDER OUT_FOLDER [--vocabulary N]`.

BASE_FOLDER holds an encoder (config.json, model.safetensors, tokenizer.json). Runs on the host, with the forge's
dependencies; the folder is then carried to the device. `--vocabulary` cuts the table of words, and weights are rounded
to float16 values, so that less must be carried: the arithmetic stays the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from edge_forge.export.onnx.export_graphs import Bank, export_base, trace_base
from edge_forge.export.onnx.graph import metadata, save
from edge_forge.export.onnx.inject import KEY, inject_bank
from edge_forge.export.onnx.quantize import calibrate, quantize_static
from edge_forge.export.onnx.tensorrt_form import for_tensorrt, lower
from edge_forge.models.encoder import open_encoder

RANK, MAX_LABELS = 16, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocabulary", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bank = Bank(rank=RANK, max_labels=MAX_LABELS)
        tokens = min(128, open_encoder(arguments.base).survey.positions)
        base_id = "sha256:" + "00" * 32
        trace_base(base_dir=arguments.base, out_dir=folder / "traced", base_id=base_id, max_tokens=tokens)
        bank_tokens = export_base(
            base_dir=arguments.base,
            traced=folder / "traced" / "encoder.onnx",
            out_dir=folder,
            bank=bank,
            max_tokens=tokens,
        ).max_tokens
        encoder, banked = onnx.load(folder / "encoder.onnx"), onnx.load(folder / "model.onnx")
    modules = list(dict.fromkeys(site["module"] for site in metadata(banked, KEY)["sites"]))
    _shrink(encoder, arguments.vocabulary)
    words = next(tensor.dims[0] for tensor in encoder.graph.initializer if "word_embeddings" in tensor.name)
    save(lower(encoder), arguments.out / "base.onnx")
    random = np.random.default_rng(3)
    lengths = [bank_tokens // 8, bank_tokens // 4, bank_tokens // 2]
    feeds = [_feed(random, words, length) for length in lengths]
    quantised = quantize_static(encoder, calibrate(encoder, feeds))
    for model, file in ((encoder, "banked.onnx"), (quantised, "banked-int8.onnx")):
        inject_bank(model, modules, RANK, MAX_LABELS, of_tokens=False)
        save(for_tensorrt(model, RANK), arguments.out / file)
    (arguments.out / "graphs.json").write_text(json.dumps({"vocabulary": words, "longest": bank_tokens}))
    print(*(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB" for path in sorted(arguments.out.glob("*.onnx"))))


def _shrink(model: onnx.ModelProto, vocabulary: int) -> None:
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.ndim:
            cut = value[:vocabulary] if vocabulary and "word_embeddings" in tensor.name else value
            rounded = cut.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(rounded), tensor.name))


def _feed(random: np.random.Generator, vocabulary: int, length: int) -> dict[str, np.ndarray]:
    ids = random.integers(0, vocabulary, (8, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


if __name__ == "__main__":
    main()
