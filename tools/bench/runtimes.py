"""ONNX Runtime and LiteRT beside each other: one encoder without adapters, FP32 and INT8, by the device's backends.

    python -m bench.runtimes [--base FOLDER] [--rounds N] [--threads N]

Every round runs every case once, in a new random order; the table has the median of the processor time per text, and of
its ratio to ONNX Runtime's in the same round. INT8 of LiteRT is another scheme than that of ONNX Runtime, so that the
error against PyTorch stands beside it: the worst of texts of 1 to 128 tokens, relative L2.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bench.adapters import SOURCES
from edge_agent.backends import registry
from edge_agent.backends.api import Done, Limits, Session, SessionJob
from edge_agent.base.units import bytes_text
from edge_forge.export import litert
from edge_forge.export.onnx import quantize
from edge_forge.export.onnx.export_graphs import pooled, trace_base
from edge_forge.export.onnx.trace import PooledEncoder
from edge_forge.models import bases
from edge_forge.models.base_check import examine
from edge_forge.models.encoder import open_encoder

MAX_TOKENS = 128
# Texts in a batch, tokens in each.
SHAPES = ((1, 16), (1, 24), (1, 32), (1, 128), (8, 32))
FORMS = ("fp32", "int8")
RUNTIMES = ("onnx", "litert")


def write(base_dir: Path, base_id: str, folder: Path) -> PooledEncoder:
    """`<runtime>-<form>` files in `folder`; returns what they were made of."""
    trace_base(base_dir=base_dir, out_dir=folder, base_id=base_id)
    quantize.make(
        encoder_path=folder / "encoder.onnx", out_dir=folder / "onnx", tokenizer_path=base_dir / "tokenizer.json",
        formats=["int8"], reading=quantize.TokenCut(MAX_TOKENS),
    )  # fmt: skip
    (folder / "onnx" / "int8.onnx").rename(folder / "onnx-int8")
    (folder / "encoder.onnx").rename(folder / "onnx-fp32")
    module = pooled(open_encoder(base_dir), None, MAX_TOKENS).eval()
    litert.convert(module, MAX_TOKENS, folder / "litert-fp32")
    litert.quantize(folder / "litert-fp32", folder / "litert-int8")
    return module


def answers(session: Session, rows: Sequence[Sequence[int]], threads: int) -> npt.NDArray[np.float32]:
    """Features [rows, width] of one batch."""
    session.submit(SessionJob("job", None, rows, {}))
    (event,) = session.step(Limits(len(rows), threads))
    if not isinstance(event, Done):
        raise TypeError(f"the batch was not answered: {event}")
    return np.asarray(event.outputs["features"])


def times(
    sessions: dict[str, Session], rows: Sequence[Sequence[int]], rounds: int, threads: int
) -> dict[str, list[float]]:
    """Milliseconds of processor time per text, by session and round."""
    found: dict[str, list[float]] = {name: [] for name in sessions}
    shuffler, order = random.Random(1), list(sessions)
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            started_s = time.process_time()
            answers(sessions[name], rows, threads)
            found[name].append((time.process_time() - started_s) / len(rows) * 1e3)
    return found


def report(folder: Path, module: PooledEncoder, rounds: int, threads: int) -> None:
    """Print both tables."""
    options = {"max_rows": 8, "max_tokens": MAX_TOKENS, "threads": threads}
    names = [f"{runtime}-{form}" for form in FORMS for runtime in RUNTIMES]
    sessions = {
        name: registry.create(name.split("-")[0]).load({"model": str(folder / name)}, options) for name in names
    }
    words = random.Random(2)
    print("| ms per text (ratio) | " + " | ".join(names) + " |\n|:---|" + "---:|" * len(names))
    for count, tokens in SHAPES:
        rows = [[words.randrange(1000, 20000) for _ in range(tokens)] for _ in range(count)]
        found = times(sessions, rows, rounds, threads)
        cells = [f"batch of {count}, {tokens} tokens"]
        for name in names:
            other = found[f"onnx-{name.split('-')[1]}"]
            ratio = statistics.median(a / b for a, b in zip(found[name], other, strict=True))
            cells.append(f"{statistics.median(found[name]):.2f} ({ratio:.2f})")
        print(f"| {' | '.join(cells)} |")
    lengths = range(1, MAX_TOKENS + 1, 9)
    rows = [[words.randrange(1000, 20000) for _ in range(length)] for length in lengths]
    with torch.inference_mode():
        wanted = [module(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.int64))[0].numpy() for row in rows]
    print("\n| | file | error |\n|:---|---:|---:|")
    for name in names:
        off = [answers(sessions[name], [row], threads)[0] - true for row, true in zip(rows, wanted, strict=True)]
        error = max(float(np.linalg.norm(one) / np.linalg.norm(true)) for one, true in zip(off, wanted, strict=True))
        print(f"| {name} | {bytes_text((folder / name).stat().st_size)} | {error:.1e} |")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="a folder with config.json, model.safetensors, tokenizer.json")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    base = bases.resolve([f"dir:{given.base.resolve()}"] if given.base else list(SOURCES), Path.cwd())
    with tempfile.TemporaryDirectory(prefix="bench-runtimes-") as name:
        module = write(base.directory, examine(base.directory)["base_id"], Path(name))
        report(Path(name), module, given.rounds, given.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
