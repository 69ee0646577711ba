"""Rows: whether a row's answer depends on that row alone, and what INT8 gains, in one run.

    python -m bench.rows [--base FOLDER] [--adapter FILE] [--texts FILE] [--rounds N] [--threads N] [--json FILE]

The texts (default: the test rows of models/home-intents, the first column of a TSV with a header) are answered alone,
and in batches of 16 of which half is hostile: an adapter whose B is 1,000 times larger, the longest texts, lists of
texts in one request. Counted are labels that differ, and the largest difference of a score. Merged forms have no
adapters; of them the features are compared, relative to their length.

Times are processor time of all threads (`--threads`, one unless named). The formats take turns on each batch, and the
ratio is the median over rounds.
`--adapter` is an adapter of the base as `edge-forge train` leaves it (run/adapter.safetensors);
random weights where none is given.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from bench.adapters import SOURCES, load, write_adapters
from edge_agent.backends.api import AdapterSource, Done, Limits, Session, SessionJob
from edge_agent.tasks import tokens
from edge_forge.evaluate import measure_onnx
from edge_forge.export.onnx import quantize
from edge_forge.export.onnx.export_graphs import Bank, export_base, trace_base
from edge_forge.models import bases
from edge_forge.models.base_check import examine

GOOD, HOSTILE = "good", "hostile"
FACTOR = 1000.0
ROWS, MAX_TOKENS = 16, 128
TEXTS = Path(__file__).resolve().parents[2] / "models" / "home-intents" / "data" / "test.tsv"
Rows = Sequence[Sequence[int]]


class Independence(NamedTuple):
    """Of one format: rows answered, labels that differ in company, largest difference of a score or feature."""

    form: str
    rows: int
    labels_changed: int | None
    largest: float


class Work(NamedTuple):
    """How times are taken: rows of a batch, rounds, threads of every session."""

    size: int
    rounds: int
    threads: int


class Cost(NamedTuple):
    """Of one format: ms a text and FP32's time over it, at batch 8 and 1; ms to load; bytes of file and process."""

    form: str
    batch_ms: float
    batch_ratio: float
    single_ms: float
    single_ratio: float
    load_ms: float
    file_bytes: int
    peak_bytes: int


def graphs(base_dir: Path, base_id: str, folder: Path) -> dict[str, Path]:
    """Every format that packages carry: banked FP32 and INT8, merged FP32, FP16 and INT8."""
    bank = Bank(rank=16)
    trace_base(base_dir=base_dir, out_dir=folder / "traced", base_id=base_id)
    record = export_base(base_dir=base_dir, traced=folder / "traced" / "encoder.onnx", out_dir=folder, bank=bank)
    encoder, tokenizer = folder / "encoder.onnx", folder / "tokenizer.json"
    merged = quantize.make(encoder_path=encoder, out_dir=folder / "merged", tokenizer_path=tokenizer)
    banked = quantize.make(
        encoder_path=encoder, out_dir=folder / "banked", tokenizer_path=tokenizer, formats=[quantize.INT8],
        bank=(bank, record.modules),
    )  # fmt: skip
    found = {"banked fp32": folder / "model.onnx", "banked int8": banked.paths[quantize.INT8], "merged fp32": encoder}
    return found | {f"merged {name}": path for name, path in merged.paths.items()}


def hostile(source: AdapterSource, folder: Path) -> AdapterSource:
    """The adapter with a B that is `FACTOR` times as large, as a diverged training leaves it."""
    tensors = {
        name: (value * np.float32(FACTOR) if name.endswith(".B") else value)
        for name, value in load_file(source.path).items()
    }
    path = folder / "hostile.safetensors"
    save_file(tensors, path, metadata={"format": "edge-adapter/1", "base_id": source.base_id})
    return AdapterSource(HOSTILE, str(path), source.base_id)


def answers(
    session: Session, jobs: Sequence[tuple[str | None, Rows]], threads: int = 1
) -> list[Mapping[str, NDArray[np.float32]]]:
    """The outputs of the jobs, run together as far as they fit one batch."""
    for number, (adapter, rows) in enumerate(jobs):
        session.submit(SessionJob(str(number), adapter, rows, {}))
    found: dict[str, Mapping[str, NDArray[np.float32]]] = {}
    while len(found) < len(jobs):
        for event in session.step(Limits(ROWS, threads)):
            found[event.job_id] = event.outputs if isinstance(event, Done) else {}
    return [found[str(number)] for number in range(len(jobs))]


def independence(form: str, session: Session, rows: Rows, banked: bool, threads: int = 1) -> Independence:
    """Every row alone and in a batch of 16 with eight hostile rows: two lists of three, two of the greatest length."""
    drawn = random.Random(5)
    bad = HOSTILE if banked else None
    longest = [drawn.randrange(1000, 20000) for _ in range(MAX_TOKENS)]
    alone = [answers(session, [(GOOD if banked else None, [row])], threads)[0] for row in rows]
    changed, largest = 0, 0.0
    for start in range(0, len(rows), ROWS // 2):
        subjects = range(start, min(start + ROWS // 2, len(rows)))
        company: list[tuple[str | None, Rows]] = [(bad, drawn.sample(list(rows), 3)) for _ in range(2)]
        jobs: list[tuple[int | None, tuple[str | None, Rows]]] = [
            (None, job) for job in [*company, *[(bad, [longest])] * 2]
        ]
        jobs += [(row, (GOOD if banked else None, [rows[row]])) for row in subjects]
        drawn.shuffle(jobs)
        for (row, _), found in zip(jobs, answers(session, [job for _, job in jobs], threads), strict=True):
            if row is not None:
                differs, off = _compared(alone[row], found, banked)
                changed, largest = changed + differs, max(largest, off)
    return Independence(form, len(rows), changed if banked else None, largest)


def _compared(alone: Mapping[str, Any], found: Mapping[str, Any], banked: bool) -> tuple[int, float]:
    """Whether the label differs, and the largest difference of a score (of a feature, over the features' length)."""
    if not banked:
        one, other = alone["features"][0], found["features"][0]
        return 0, float(np.abs(one - other).max() / np.linalg.norm(one))
    one, other = _scores(alone["logits"][0]), _scores(found["logits"][0])
    return int(one.argmax() != other.argmax()), float(np.abs(one - other).max())


def _scores(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    shares: NDArray[np.float64] = powers / powers.sum()
    return shares


def costs(paths: Mapping[str, Path], tokenizer: Path, rows: Rows, rounds: int, threads: int) -> list[Cost]:
    """Times of every format on the same batches, the formats in turns; files, loads and memory."""
    sessions: dict[str, Session] = {}
    load_ms: dict[str, float] = {}
    for form, path in paths.items():
        started_s = time.process_time()
        sessions[form] = load(path, threads)
        load_ms[form] = 1e3 * (time.process_time() - started_s)
    batch, single = (_times(sessions, rows, Work(size, rounds, threads)) for size in (8, 1))
    found = []
    for form, path in paths.items():
        ratios = [
            statistics.median(a / b for a, b in zip(times[f"{form.split()[0]} fp32"], times[form], strict=True))
            for times in (batch, single)
        ]
        peak = measure_onnx.memory(measure_onnx.OnnxSubject(path, tokenizer, MAX_TOKENS, threads=threads)).peak_bytes
        found.append(
            Cost(
                form, statistics.median(batch[form]), ratios[0], statistics.median(single[form]), ratios[1],
                load_ms[form], path.stat().st_size, peak,
            )
        )  # fmt: skip
    return found


def _times(sessions: Mapping[str, Session], rows: Rows, work: Work) -> dict[str, list[float]]:
    """Processor time in ms a text, one figure per round."""
    batches = [rows[start : start + work.size] for start in range(0, len(rows), work.size)]
    batches = batches[: max(8, 160 // work.size)]
    texts = sum(len(batch) for batch in batches)
    found: dict[str, list[float]] = {form: [] for form in sessions}
    for _ in range(work.rounds + 1):
        spent = dict.fromkeys(sessions, 0.0)
        for batch in batches:
            for form, session in sessions.items():
                started_s = time.process_time()
                answers(session, [(None, [row]) for row in batch], work.threads)
                spent[form] += time.process_time() - started_s
        for form, taken_s in spent.items():
            found[form].append(1e3 * taken_s / texts)
    return {form: times[1:] for form, times in found.items()}


def measure(base_dir: Path, base_id: str, adapter: Path | None, texts: Sequence[str], work: Work) -> dict[str, Any]:
    """Both tables."""
    with tempfile.TemporaryDirectory(prefix="bench-rows-") as name:
        folder = Path(name)
        paths = graphs(base_dir, base_id, folder)
        tokenizer = tokens.open_tokenizer(str(folder / "tokenizer.json"), MAX_TOKENS)
        rows = [encoded.ids for encoded in tokenizer.encode(texts)]
        if adapter is None:
            source = write_adapters(folder, paths["banked fp32"], 8, 1, base_id)[0]
        else:
            source = AdapterSource(GOOD, str(adapter), base_id)
        sources = [source._replace(name=GOOD), hostile(source, folder)]
        found = []
        for form, path in paths.items():
            session, banked = load(path, work.threads, ROWS), form.startswith("banked")
            for one in sources if banked else ():
                session.attach(one)
            found.append(independence(form, session, rows, banked, work.threads))
            session.close()
        return {
            "independence": found,
            "costs": costs(paths, folder / "tokenizer.json", rows, work.rounds, work.threads),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print both tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="a folder with config.json, model.safetensors, tokenizer.json")
    parser.add_argument("--adapter", type=Path, help="an adapter of the base; default: random weights")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="a TSV with a header, texts in its first column")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of every session (default: 1)")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    base = bases.resolve([f"dir:{given.base.resolve()}"] if given.base else list(SOURCES), Path.cwd())
    base = replace(base, base_id=examine(base.directory)["base_id"])
    texts = [line.split("\t")[0] for line in given.texts.read_text(encoding="utf-8").splitlines()[1:]]
    found = measure(base.directory, base.base_id, given.adapter, texts, Work(8, given.rounds, given.threads))
    print(f"{'format':12} {'rows':>5} {'labels changed':>15} {'largest difference':>19}")
    for one in found["independence"]:
        changed = "–" if one.labels_changed is None else str(one.labels_changed)
        print(f"{one.form:12} {one.rows:5} {changed:>15} {one.largest:19.2g}")
    print(f"\n{'format':12} {'batch of 8':>18} {'one text':>18} {'load':>9} {'file':>9} {'process':>9}")
    for one in found["costs"]:
        batch, single = (f"{ms:.2f} ms, {ratio:.2f}" for ms, ratio in (one[1:3], one[3:5]))
        sizes = " ".join(f"{size / 1e6:6.1f} MB" for size in (one.file_bytes, one.peak_bytes))
        print(f"{one.form:12} {batch:>18} {single:>18} {one.load_ms:6.0f} ms {sizes}")
    if given.json:
        conditions = {
            "rounds": given.rounds,
            "threads": given.threads,
            "rows": ROWS,
            "texts": len(texts),
            "base": base.base_id,
        }
        plain = {name: [row._asdict() for row in rows] for name, rows in found.items()}
        given.json.write_text(json.dumps({"conditions": conditions, **plain}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
