"""A smaller base beside the whole one: size and time of FP32 and INT8 by the device's backend; training in INT8 beside
the INT8 graph.

    python -m bench.compression [--base FOLDER] [--rounds N]

Every round runs every graph once on each of some texts, one at a time on one thread, in a new random order; the table
has the median of the processor time per text, and of its ratio to the whole base's of the same format in the same
round, with the 10th and 90th percentile. What is cut does not depend on scores here: time depends on how much alone.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bench.adapters import SOURCES
from bench.runtimes import answers
from edge_agent.backends import registry
from edge_agent.backends.api import Session
from edge_agent.base.units import bytes_text
from edge_forge.export.onnx import quantize
from edge_forge.export.onnx.export_graphs import trace_base
from edge_forge.models import bases, smaller
from edge_forge.models.base_check import examine
from edge_forge.models.encoder import Encoder, open_encoder
from edge_forge.train.int8_aware import compute_in_int8

MAX_TOKENS = 32
TOKENS = (6, 8, 10, 12, 14, 16, 24, 32)
"""Lengths of the texts that are timed."""
FORMS = {"fp32": "encoder.onnx", "int8": "int8.onnx"}


def cut(base_dir: Path, share: tuple[bool, bool], folder: Path) -> Path:
    """The folder of the base with half of its layers (`share[0]`), of its heads and neurons (`share[1]`), or itself."""
    if not any(share):
        return base_dir
    encoder = open_encoder(base_dir)
    before = encoder.model.config.to_dict()
    whole = smaller.shape_of(encoder, smaller.Cut(0, 1, 1), "bench")
    wanted = smaller.Cut(
        encoder.layers // 2 if share[0] else 0, *((whole.heads // 2, whole.neurons // 2) if share[1] else (0, 0))
    )
    of = smaller.shape_of(encoder, wanted, "bench")
    smaller.write_proven(smaller.cut_down(encoder, wanted, of, None, "bench"), base_dir, folder, before, "bench")
    return folder


def write(base_dir: Path, folder: Path) -> None:
    """The graphs of `FORMS` in `folder`."""
    base_id = examine(base_dir)["base_id"]
    trace_base(base_dir=base_dir, out_dir=folder, base_id=base_id, max_tokens=MAX_TOKENS)
    quantize.make(
        encoder_path=folder / "encoder.onnx", out_dir=folder, tokenizer_path=base_dir / "tokenizer.json",
        formats=["int8"], reading=quantize.TokenCut(MAX_TOKENS),
    )  # fmt: skip


def times(sessions: Mapping[str, Session], rows: Sequence[Sequence[int]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of processor time per text, by session and round; a round before is not counted."""
    found: dict[str, list[float]] = {name: [] for name in sessions}
    shuffler, order = random.Random(1), list(sessions)
    for turn in range(rounds + 1):
        shuffler.shuffle(order)
        for name in order:
            begun_s = time.process_time()
            for row in rows:
                answers(sessions[name], [row], 1)
            if turn:
                found[name].append((time.process_time() - begun_s) / len(rows) * 1e3)
    return found


def report(folders: Mapping[str, Path], rows: Sequence[Sequence[int]], rounds: int) -> None:
    """Print the table."""
    options = {"max_rows": 8, "max_tokens": MAX_TOKENS, "threads": 1}
    sessions = {
        f"{name} {form}": registry.create("onnx").load({"model": str(folder / file)}, options)
        for name, folder in folders.items() for form, file in FORMS.items()
    }  # fmt: skip
    found = times(sessions, rows, rounds)
    print("| | file | ms per text | times as long |\n|:---|---:|---:|---:|")
    for form, file in FORMS.items():
        for name, folder in folders.items():
            own, whole = found[f"{name} {form}"], found[f"{next(iter(folders))} {form}"]
            low, middle, high = np.percentile([a / b for a, b in zip(own, whole, strict=True)], [10, 50, 90])
            print(
                f"| {name}, {form} | {bytes_text((folder / file).stat().st_size)} | {statistics.median(own):.2f} | "
                f"{middle:.2f} ({low:.2f} to {high:.2f}) |"
            )


def features(encoder: Encoder, rows: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
    """Features [rows, width], each row alone."""
    with torch.inference_mode():
        parts = [encoder.features(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.int64)) for row in rows]
    return np.asarray(torch.cat(parts).numpy())


def trained_beside_graph(base_dir: Path, graph: Path, rows: Sequence[Sequence[int]]) -> None:
    """Print how far the features of training's INT8, and of FP32, are from those of the INT8 graph (relative L2)."""
    session = registry.create("onnx").load({"model": str(graph)}, {"max_rows": 8, "max_tokens": MAX_TOKENS})
    wanted = np.concatenate([answers(session, [row], 1) for row in rows])
    plain, trained = open_encoder(base_dir), open_encoder(base_dir)
    products = compute_in_int8(trained, base_dir, MAX_TOKENS)
    for name, encoder in ((f"training in int8, {products} products", trained), ("fp32", plain)):
        off = float(np.linalg.norm(features(encoder, rows) - wanted) / np.linalg.norm(wanted))
        print(f"{name}: {off:.1e} from the int8 graph")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="a folder with config.json, model.safetensors, tokenizer.json")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    base = bases.resolve([f"dir:{given.base.resolve()}"] if given.base else list(SOURCES), Path.cwd()).directory
    words = random.Random(2)
    rows = [[101, *(words.randrange(1999, 20000) for _ in range(tokens - 2)), 102] for tokens in TOKENS]
    shares = {"whole": (False, False), "half the layers": (True, False), "half the heads and neurons": (False, True)}
    with tempfile.TemporaryDirectory(prefix="bench-compression-") as name:
        folders = {}
        for place, (what, share) in enumerate(shares.items()):
            folders[what] = Path(name) / f"{place}"
            write(cut(base, share, Path(name) / f"base-{place}"), folders[what])
        report(folders, rows, given.rounds)
        trained_beside_graph(base, folders["whole"] / "int8.onnx", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
