"""What TensorRT does with adapters in one batch, on this device: `python -m tests.device.check GRAPHS --out FOLDER`.

GRAPHS is the folder that `prepare.py` made. Needs numpy and onnxruntime here, and tensorrt and pycuda in the
interpreter `--python` (this one by default; only then the cost of the second process is measured too). Every part is
measured by itself: one that fails is a line in the table and the others go on. Exit code 1 when a demand is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.backends.api import Done, Limits, SessionJob
from edge_agent.backends.tensorrt.engine_backend import TensorRtBackend
from edge_agent.backends.tensorrt.engine_host.device_access import load_modules, on_device
from edge_agent.backends.tensorrt.engine_host.loaded_engine import LoadedEngine
from edge_agent.backends.tensorrt.host_client import EngineHost
from edge_agent.base.errors import BackendError, EdgeError
from edge_agent.base.runtimes import ENGINE_FOLDER_VARIABLE, TENSORRT_PYTHON_VARIABLE

ROWS, ADAPTERS = 8, 8


@dataclass
class Check:
    """The arguments, and what was found."""

    graphs: Path
    out: Path
    plans: Path
    python: str
    churn_s: float
    repeats: int
    without_tactics: list[str]
    whole_s: float = math.inf
    found: dict[str, Any] = field(default_factory=dict)
    lines: list[tuple[str, str, str]] = field(default_factory=list)

    def tell(self, what: str, value: str, demand: str = "", held: bool = True) -> None:
        """One line of the table; `held` is False where the demand is missed."""
        self.lines.append((what, value, f"{'ok' if held else 'MISSED'} ({demand})" if demand else ""))
        print(f"  {what}: {value} {self.lines[-1][2]}", flush=True)
        if not held:
            self.found.setdefault("missed", []).append(what)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[dict[str, Any]]:
        """Figures of a part go to the dict; its failure is told and the next part goes on."""
        print(f"{name} ({time.monotonic() - STARTED_S:.0f} s)", flush=True)
        figures: dict[str, Any] = {}
        self.found[name] = figures
        try:
            yield figures
        except Exception as error:  # noqa: BLE001 - told as a missed demand; the other parts go on
            figures["failed"] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
            self.tell(name, figures["failed"][:300], "works", False)
        (self.out / "check.json").write_text(json.dumps(self.found, indent=1))

    @contextlib.contextmanager
    def host(self, plan: str = "", positions: int = ADAPTERS, bank: bool = True) -> Iterator[EngineHost]:
        """A host, with an engine where a plan is named."""
        host = EngineHost(self.python)
        try:
            if plan:
                host.load(str(self.plans / plan), self.bank if bank else (), positions, 16 if bank else 0)
            yield host
        finally:
            host.close()

    @property
    def left_s(self) -> float:
        """Seconds until everything must be over."""
        return self.whole_s - (time.monotonic() - STARTED_S)

    @property
    def bank(self) -> list[str]:
        """The names of the bank's inputs."""
        return [name for name in self.session().names if name not in ("input_ids", "attention_mask")]

    def session(self, file: str = "banked.onnx") -> Reference:
        """ONNX Runtime with that graph."""
        if file not in REFERENCES:
            REFERENCES[file] = Reference(self.graphs / file)
        return REFERENCES[file]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The graphs' vocabulary and longest text."""
        found: dict[str, int] = json.loads((self.graphs / "graphs.json").read_text())
        return found

    def feed(self, seed: int, rows: int = ROWS, share: float = 0.5) -> dict[str, Any]:
        """Random token ids [rows, share of the longest text], the rows of different lengths."""
        random, tokens = np.random.default_rng(seed), int(self.sizes["longest"] * share)
        mask = np.zeros((rows, tokens), np.int64)
        for row in range(rows):
            mask[row, : random.integers(3, tokens + 1)] = 1
        mask[0] = 1
        return {
            "input_ids": random.integers(1, self.sizes["vocabulary"], (rows, tokens)) * mask,
            "attention_mask": mask,
        }


REFERENCES: dict[str, Any] = {}
STARTED_S = time.monotonic()


class Reference:
    """ONNX Runtime on the CPU, one row at a time with its adapter."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.shapes = {given.name: given.shape for given in self.session.get_inputs()}
        self.names = list(self.shapes)
        self.outputs = [output.name for output in self.session.get_outputs()]

    def row(self, feed: dict[str, Any], row: int, adapter: dict[str, Any]) -> dict[str, Any]:
        """Outputs [1, ...] of one row."""
        given = {name: value[row : row + 1].astype(np.int64) for name, value in feed.items()}
        given.update({name: value[None] for name, value in adapter.items()})
        return dict(zip(self.outputs, self.session.run(self.outputs, given), strict=True))

    def rows(self, feed: dict[str, Any], adapters: list[dict[str, Any]]) -> dict[str, Any]:
        """Outputs of all rows, each with its adapter."""
        found = [self.row(feed, row, adapter) for row, adapter in enumerate(adapters)]
        return {name: np.concatenate([one[name] for one in found]) for name in self.outputs}


def adapter_of(check: Check, seed: int, rank: int = 16) -> dict[str, Any]:
    """A random adapter on every site, as strong as a trained one; a smaller rank is padded with zeros."""
    random = np.random.default_rng(seed)
    found = {}
    for name, shape in check.session().shapes.items():
        if name in ("input_ids", "attention_mask"):
            continue
        value = random.standard_normal(shape[1:]).astype(np.float32)
        if ".B" in name:
            value[rank:] = 0.0
            value *= 0.02
        else:
            value *= 0.05 if ".A" in name else 0.1
        found[name] = value
    return found


def place(host: EngineHost, position: int, adapter: dict[str, Any]) -> None:
    """Make an adapter resident and put it into a bank position."""
    host.put(position, adapter)
    host.write(position, position)


def median_ms(run: Callable[[], Any], times: int) -> float:
    """Median wall time of a call."""
    for _ in range(min(times, 20)):
        run()
    samples = []
    for _ in range(times):
        started_s = time.perf_counter()
        run()
        samples.append((time.perf_counter() - started_s) * 1e3)
    return statistics.median(samples)


def apart(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """||found - wanted|| / ||wanted|| over all outputs; not finite for values that are not."""
    a = np.concatenate([np.asarray(found[name], np.float64).ravel() for name in wanted])
    b = np.concatenate([np.asarray(wanted[name], np.float64).ravel() for name in wanted])
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def profile(check: Check, file: str) -> dict[str, Any]:
    """Smallest, best and largest shape of every input of a graph."""
    shapes: dict[str, Any] = {}
    for name, shape in check.session(file).shapes.items():
        if name in ("input_ids", "attention_mask"):
            shapes[name] = [[1, 1], [ROWS, check.sizes["longest"] // 2], [ROWS, check.sizes["longest"]]]
        else:
            shapes[name] = [[1, *shape[1:]], [ROWS, *shape[1:]], [ROWS, *shape[1:]]]
    return shapes


def build(check: Check, plan: str, file: str, precision: str, **more: Any) -> dict[str, Any]:
    """One engine in a host of its own."""
    stages: list[str] = []

    def progress(event: Any) -> None:
        if not stages or stages[-1] != event["stage"]:
            stages.append(event["stage"])

    with check.host() as host, ending(host, check.left_s):
        found = host.build(
            progress, onnx=str(check.graphs / file), plan=str(check.plans / plan), profile=profile(check, file),
            precision=precision, fp32_names=["fp32:"], without_tactics=check.without_tactics, **more,
        )  # fmt: skip
        status = Path(f"/proc/{host.pid}/status").read_text()
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return {**found, "stages": stages, "peak_bytes": 1024 * int(peak[1]) if peak else None}


@contextlib.contextmanager
def ending(host: EngineHost, within_s: float) -> Iterator[None]:
    """A build that goes on for longer is ended: one that hangs must not take the time of the other parts."""
    timer = threading.Timer(max(1.0, within_s), host.kill)
    timer.daemon = True
    if within_s < math.inf:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def build_fp32(check: Check) -> None:
    """The device, and the FP32 engine built without earlier timings."""
    with check.part("probe") as figures, check.host() as host:
        figures.update(host.probe())
        check.tell("device", "{device}, TensorRT {tensorrt}, CUDA {cuda}, Python {python}".format(**figures))
    with check.part("build fp32") as figures:
        Path(cache_of(check)).unlink(missing_ok=True)
        figures.update(build(check, "fp32.plan", "banked.onnx", "fp32", timing_cache=cache_of(check)))
        check.tell("build, FP32", f"{figures['seconds']:.1f} s, {figures['plan_bytes'] / 1e6:.1f} MB")
        check.tell("build, FP32: most memory of its process", f"{(figures['peak_bytes'] or 0) / 1e6:.0f} MB")


def build_again(check: Check) -> None:
    """The same build with the timings of the first."""
    with check.part("build again") as figures:
        figures.update(build(check, "again.plan", "banked.onnx", "fp32", timing_cache=cache_of(check)))
        times = check.found["build fp32"]["seconds"] / figures["seconds"]
        check.tell(
            "second build with the timing cache",
            f"{figures['seconds']:.1f} s, {times:.1f} times faster, cache used: {figures['timing_cache_used']}",
            "at least 5", times >= 5,
        )  # fmt: skip


def beside(check: Check) -> None:
    """What a build costs the engine that answers meanwhile."""
    with check.part("beside a build") as figures, check.host("fp32.plan") as host:
        feed = check.feed(1)
        place(host, 0, adapter_of(check, 1))
        figures["alone_ms"] = median_ms(lambda: host.run(feed, 1), check.repeats)
        request = {
            "onnx": str(check.graphs / "base.onnx"), "plan": str(check.plans / "beside.plan"), "precision": "fp32",
            "profile": profile(check, "base.onnx"), "without_tactics": check.without_tactics, "niceness": 10,
        }  # fmt: skip
        with check.host() as builder:
            building = threading.Thread(target=builder.build, kwargs=request)
            building.start()
            samples = []
            while building.is_alive():
                started_s = time.perf_counter()
                host.run(feed, 1)
                samples.append((time.perf_counter() - started_s) * 1e3)
            building.join()
        figures.update(runs=len(samples), beside_ms=statistics.median(samples), longest_ms=max(samples))
        check.tell("a batch alone, beside a build, the longest beside it",
                   "{alone_ms:.3f}, {beside_ms:.3f}, {longest_ms:.1f} ms".format(**figures))  # fmt: skip


def interpreter(check: Check) -> str:
    """The interpreter with TensorRT, with this process's module path: a worker's host gets none of it."""
    path = check.plans / "python"
    path.write_text(
        f"#!/bin/sh\nexport PYTHONPATH='{os.environ.get('PYTHONPATH', '')}'\nexec '{check.python}' \"$@\"\n"
    )
    path.chmod(0o755)
    return str(path)


def backend(check: Check) -> None:
    """The worker's own way: no engine, a build under a cap, an engine that is unproven and then kept, a second load."""
    with check.part("backend") as figures:
        if check.without_tactics:
            check.tell("backend", "left out: it builds with every library, and some are not to be used here")
            return
        folder = check.plans / "engines"
        shutil.rmtree(folder, ignore_errors=True)
        os.environ[TENSORRT_PYTHON_VARIABLE], os.environ[ENGINE_FOLDER_VARIABLE] = interpreter(check), str(folder)
        options = {"max_rows": ROWS, "max_tokens": check.sizes["longest"], "precision": "fp32"}
        files = {"model": str(check.graphs / "banked.onnx")}
        for name, more in (("no engine", {"build": False}), ("a build over its cap", {"memory_bytes": 16 << 20})):
            try:
                TensorRtBackend().load(files, {**options, **more}).close()
                figures[name] = "NOT REFUSED"
            except BackendError as error:
                figures[name] = str(error)
            check.tell(f"backend: {name}", figures[name][:160], "refused", figures[name] != "NOT REFUSED")
        started_s = time.monotonic()
        first = TensorRtBackend().load(files, options)
        figures["build_s"], unproven = time.monotonic() - started_s, first.unproven
        first.judge(passed=True)
        figures["footprint"] = first.footprint()._asdict()
        first.close()
        started_s = time.monotonic()
        again = TensorRtBackend().load(files, {**options, "build": False})
        figures["load_s"], proven = time.monotonic() - started_s, not again.unproven
        rows = [[int(token) for token in row if token] for row in check.feed(1)["input_ids"]]
        again.submit(SessionJob("one", None, rows, {}))
        (event,) = again.step(Limits(ROWS, 1))
        again.close()
        check.tell("backend: first load with its build, load from the cache",
                   f"{figures['build_s']:.1f}, {figures['load_s']:.1f} s", "unproven, then kept and answering",
                   unproven and proven and isinstance(event, Done))  # fmt: skip
        held = sum(value for name, value in figures["footprint"].items() if name != "device_bytes")
        figures["counted_bytes"] = figures["footprint"]["device_bytes"]
        check.tell("backend: memory of engine, context and bank; of it in the board's own",
                   f"{held / 1e6:.0f}, {figures['counted_bytes'] / 1e6:.0f} MB")  # fmt: skip


def build_base(check: Check) -> None:
    """The graph without a bank, to compare with."""
    with check.part("build base") as figures:
        figures.update(build(check, "base.plan", "base.onnx", "fp32", timing_cache=cache_of(check)))
        check.tell("build, no bank", f"{figures['seconds']:.1f} s, {figures['plan_bytes'] / 1e6:.1f} MB")
    with check.part("times base") as figures, check.host("base.plan", bank=False) as host:
        feed = check.feed(1)
        figures["batch_ms"] = inside_ms(check, lambda: host.run(feed))
        check.tell(f"no bank: batch of {ROWS}", f"{figures['batch_ms']:.3f} ms")


def fp32(check: Check) -> None:
    """Parity and times of FP32."""
    parity(check, "fp32")
    times(check, "fp32")


def cache_of(check: Check) -> str:
    """The device's timing cache."""
    return str(check.plans / "timing.cache")


def fp16(check: Check) -> None:
    """FP16 with a bank in float16, LayerNorm and sums in FP32."""
    with check.part("build fp16") as figures:
        types = dict.fromkeys(check.bank, "float16")
        figures.update(
            build(check, "fp16.plan", "banked.onnx", "fp16", timing_cache=cache_of(check), input_types=types)
        )
        check.tell("build, FP16", f"{figures['seconds']:.1f} s, {figures['plan_bytes'] / 1e6:.1f} MB")
    parity(check, "fp16", 2e-2)
    times(check, "fp16")


def int8(check: Check) -> None:
    """INT8 where the graph's symmetric QuantizeLinear and DequantizeLinear say so, FP16 elsewhere."""
    with check.part("build int8") as figures:
        types = dict.fromkeys(check.bank, "float16")  # as the backend asks for it
        figures.update(
            build(check, "int8.plan", "banked-int8.onnx", "int8", timing_cache=cache_of(check), input_types=types)
        )
        check.tell("build, INT8", f"{figures['seconds']:.1f} s, {figures['plan_bytes'] / 1e6:.1f} MB")
    parity(check, "int8", 0.3)
    times(check, "int8")


def parity(check: Check, name: str, tolerance: float = 1e-4) -> None:
    """Eight rows with eight adapters of three ranks against ONNX Runtime row by row."""
    feed, adapters = check.feed(1), [adapter_of(check, seed, rank=(16, 8, 4)[seed % 3]) for seed in range(ADAPTERS)]
    wanted = check.session().rows(feed, adapters)
    with check.part(f"parity {name}") as figures, check.host(f"{name}.plan") as host:
        for position, adapter in enumerate(adapters):
            place(host, position, adapter)
        outputs, _ = host.run(feed, ROWS)
        found = {key: value.copy() for key, value in outputs.items()}
        figures["relative"] = apart(found, wanted)
        same = np.argmax(found["logits"], 1) == np.argmax(wanted["logits"], 1)
        figures["same_label"] = float(np.mean(same))
        figures["dtypes"] = sorted({tensor.dtype for tensor in host.tensors.values()})
        check.tell(
            f"{name}: difference from ONNX Runtime FP32, same label",
            f"{figures['relative']:.2g}, {int(same.sum())} of {ROWS}",
            f"at most {tolerance:g}", figures["relative"] <= tolerance,
        )  # fmt: skip
        if name == "int8":
            figures["from_its_graph"] = apart(found, check.session("banked-int8.onnx").rows(feed, adapters))
            check.tell("int8: difference from ONNX Runtime with the same graph", f"{figures['from_its_graph']:.2g}")
        if name == "fp32":
            windows(check, host, feed, adapters)


def windows(check: Check, host: EngineHost, feed: dict[str, Any], adapters: list[dict[str, Any]]) -> None:
    """Windows at every start (some are not aligned), the base, a rewritten slot, one adapter for all by broadcast."""
    with check.part("windows") as figures:
        worst = 0.0
        for start in range(ADAPTERS):
            for rows in (1, 3):
                if start + rows <= ADAPTERS:
                    few = {name: value[:rows, : check.sizes["longest"] // 4 + start] for name, value in feed.items()}
                    few["attention_mask"] = few["attention_mask"].copy()
                    few["attention_mask"][:, 0] = 1
                    found, _ = host.run(few, rows, start)
                    worst = max(worst, apart(found, check.session().rows(few, adapters[start : start + rows])))
        figures["relative"] = worst
        check.tell("windows at every position, other shapes", f"{worst:.2g}", "at most 1e-4", worst <= 1e-4)
        host.write(2, None)
        nothing = {name: np.zeros_like(value) for name, value in adapters[2].items()}
        mixed = [*adapters[:2], nothing, *adapters[3:]]
        base = apart(host.run(feed, ROWS)[0], check.session().rows(feed, mixed))
        host.write(2, 2)
        again = apart(host.run(feed, ROWS)[0], check.session().rows(feed, adapters))
        figures.update(base=base, again=again)
        check.tell(
            "base between adapters; adapter back", f"{base:.2g}; {again:.2g}", "at most 1e-4", max(base, again) <= 1e-4
        )
    with check.part("broadcast") as figures:
        found, _ = host.run(feed, 1, 3)
        figures["relative"] = apart(found, check.session().rows(feed, [adapters[3]] * ROWS))
        check.tell("one adapter for all rows by broadcast", f"{figures['relative']:.2g}", "at most 1e-4",
                   figures["relative"] <= 1e-4)  # fmt: skip


def times(check: Check, name: str) -> None:
    """A mixed batch against one adapter, one run per adapter, and a graph without a bank; swaps; the second process."""
    feed = check.feed(1)
    single = {key: value[:1] for key, value in feed.items()}
    adapters = [adapter_of(check, seed) for seed in range(ADAPTERS)]
    with check.part(f"times {name}") as figures, check.host(f"{name}.plan") as host:
        for position, adapter in enumerate(adapters):
            place(host, position, adapter)
        mixed = figures["mixed_ms"] = inside_ms(check, lambda: host.run(feed, ROWS))
        one = figures["broadcast_ms"] = inside_ms(check, lambda: host.run(feed, 1))
        alone = figures["single_ms"] = inside_ms(check, lambda: host.run(single, 1, 3))
        for position in range(ADAPTERS):
            host.write(position, 0)
        same = figures["same_ms"] = inside_ms(check, lambda: host.run(feed, ROWS))
        check.tell(
            f"{name}: batch of {ROWS} with 8 adapters, 1 in 8 positions, 1 broadcast",
            f"{mixed:.3f}, {same:.3f}, {one:.3f} ms",
        )
        ratio = mixed / min(one, same)
        check.tell(f"{name}: mixed batch against one adapter", f"{ratio:.2f}", "at most 1.15", ratio <= 1.15)
        check.tell(f"{name}: one run per adapter", f"{8 * alone:.3f} ms, {8 * alone / mixed:.1f} times the mixed batch")
        writes(check, host, adapters, name)
        if name == "fp32":
            processes(check, host, feed)


def inside_ms(check: Check, run: Callable[[], tuple[Any, float]]) -> float:
    """Median of the host's own time of a run: copies in, execution, copies out."""
    for _ in range(min(check.repeats, 20)):
        run()
    return statistics.median(run()[1] for _ in range(check.repeats)) * 1e3


def writes(check: Check, host: EngineHost, adapters: list[dict[str, Any]], name: str) -> None:
    """Swapping an adapter: the copy in the host, and all of it as the worker sees it."""
    with check.part(f"swap {name}") as figures:
        figures["pinned"] = host.pinned
        figures["slot_bytes"] = sum(t.region_bytes for t in host.tensors.values() if t.role == "bank")
        figures["put_ms"] = median_ms(lambda: host.put(9, adapters[5]), check.repeats)
        figures["wall_ms"] = median_ms(lambda: host.write(3, 5), check.repeats)
        figures["copy_ms"] = statistics.median(host.write(3, 5) for _ in range(check.repeats)) * 1e3
        check.tell(f"{name}: swap of an adapter: copy, with everything",
                   f"{figures['copy_ms']:.3f}, {figures['wall_ms']:.3f} ms for {figures['slot_bytes'] / 1e6:.1f} MB",
                   "below 1 ms", figures["wall_ms"] < 1.0)  # fmt: skip


def processes(check: Check, host: EngineHost, feed: dict[str, Any]) -> None:
    """The same run through the host, and in this process."""
    with check.part("processes") as figures:
        figures["host_ms"] = median_ms(lambda: host.run(feed, ROWS), check.repeats)
        figures["inside_ms"] = statistics.median(host.run(feed, ROWS)[1] for _ in range(check.repeats)) * 1e3
        figures["nothing_ms"] = median_ms(host.footprint, check.repeats)
        if Path(check.python).resolve() == Path(sys.executable).resolve():
            figures["own_ms"] = in_process(check, feed)
            more = figures["host_ms"] - figures["own_ms"]
            check.tell("a run through the host, in one process, the difference",
                       f"{figures['host_ms']:.3f}, {figures['own_ms']:.3f}, {more:.3f} ms",
                       "at most 0.15", more <= 0.15)  # fmt: skip
        more = figures["host_ms"] - figures["inside_ms"]
        check.tell("a run through the host, of it the engine, the rest",
                   f"{figures['host_ms']:.3f}, {figures['inside_ms']:.3f}, {more:.3f} ms",
                   "at most 0.15", more <= 0.15)  # fmt: skip


def in_process(check: Check, feed: dict[str, Any]) -> float:
    """The median of the same work without a second process: arrays into the shared layout, run, arrays out."""
    trt, cuda = load_modules()
    with on_device(cuda, 0):
        engine = LoadedEngine(trt, cuda, str(check.plans / "fp32.plan"), check.bank, ADAPTERS)
        regions, slot, size = {}, {}, 0
        for tensor in engine.tensors():
            lengths = tensor["shape"][1:] if tensor["role"] == "bank" else tensor["largest"]
            (slot if tensor["role"] == "bank" else regions)[tensor["name"]] = size
            size += -(-int(np.prod(lengths)) * 8 // 4096) * 4096
        import mmap

        shared = np.frombuffer(mmap.mmap(-1, size), np.uint8)
        engine.bind(shared, regions, slot, 0, 1)

        def run() -> None:
            for name, value in feed.items():
                dtype = np.dtype(engine.inputs[name].dtype)
                view = shared[regions[name] : regions[name] + value.size * dtype.itemsize].view(dtype)
                np.copyto(view, value.ravel(), casting="same_kind")
            engine.run({name: list(value.shape) for name, value in feed.items()}, ROWS, 0)

        found = median_ms(run, check.repeats)
        engine.close()
    return found


def free_bytes(check: Check) -> int:
    """Free memory of the device as a fresh host sees it."""
    with check.host() as host:
        return int(host.probe()["free_bytes"])


def kills(check: Check) -> None:
    """A host that is killed while it runs, and one while it builds: an error here, memory back there."""
    with check.part("kill in mid-run") as figures:
        before = free_bytes(check)
        feed, adapter = check.feed(2), adapter_of(check, 1)
        waits = []
        for attempt in range(3):
            host = EngineHost(check.python)
            host.load(str(check.plans / "fp32.plan"), check.bank, ADAPTERS, 1)
            place(host, 0, adapter)
            threading.Timer(0.2 + 0.0007 * attempt, host.kill).start()
            runs = 0
            try:
                while True:
                    host.run(feed, ROWS)
                    runs += 1
            except EdgeError as error:
                figures["sentence"], figures["runs"] = str(error), runs
            started_s = time.monotonic()
            while free_bytes(check) < before - (1 << 20) and time.monotonic() - started_s < 10:
                time.sleep(0.05)
            waits.append(time.monotonic() - started_s)
        lost = figures["lost_bytes"] = before - free_bytes(check)
        figures["waits_s"] = waits
        check.tell("killed in mid-run three times: memory not given back", f"{lost / 1e6:.1f} MB", "below 1",
                   lost < 1e6)  # fmt: skip
        with check.host("fp32.plan") as host:
            place(host, 0, adapter)
            value = apart(host.run({n: v[:1] for n, v in feed.items()}, 1)[0], check.session().rows(feed, [adapter]))
        check.tell("the next host's answer", f"{value:.2g}", "at most 1e-4", value <= 1e-4)
    with check.part("kill in mid-build") as figures:
        host = EngineHost(check.python)
        killer = threading.Timer(1.0, host.kill)

        def progress(event: Any) -> None:
            if event["stage"] == "build" and killer.ident is None:
                killer.start()

        try:
            host.build(progress, onnx=str(check.graphs / "banked.onnx"), plan=str(check.plans / "killed.plan"),
                       profile=profile(check, "banked.onnx"), without_tactics=check.without_tactics)  # fmt: skip
            figures["sentence"] = "the build was over before"
        except EdgeError as error:
            figures["sentence"] = str(error)
        left = (check.plans / "killed.plan").exists()
        check.tell("killed in mid-build", figures["sentence"][:150], "no plan left", not left)


def churn(check: Check) -> None:
    """Adapters come and go under load, every answer is compared; then hosts come and go; memory at the end."""
    with check.part("churn") as figures:
        before, random = free_bytes(check), np.random.default_rng(9)
        feeds = [check.feed(seed, share=share) for seed, share in ((1, 0.5), (2, 0.125), (3, 1.0))]
        adapters = [adapter_of(check, seed, rank=(16, 8, 4)[seed % 3]) for seed in range(12)]
        wanted = [
            [[check.session().row(feed, row, adapter) for adapter in adapters] for row in range(ROWS)] for feed in feeds
        ]
        runs, worst = 0, 0.0
        with check.host("fp32.plan", positions=16) as host:
            holds = [*range(12), 0, 1, 2, 3]
            for resident, tensors in enumerate(adapters):
                host.put(resident, tensors)
            for position, adapter in enumerate(holds):
                host.write(position, adapter)
            for feed in feeds:  # kernels are loaded when they first run
                host.run(feed, ROWS)
            steady = host.footprint()
            until_s = time.monotonic() + min(check.churn_s, check.left_s - CLOSING_S)
            while runs == 0 or time.monotonic() < until_s:  # once at least, however slow the machine is
                for _ in range(random.integers(0, 3)):
                    position, adapter = int(random.integers(16)), int(random.integers(12))
                    host.write(position, adapter)
                    holds[position] = adapter
                which, rows = int(random.integers(3)), int(random.integers(1, ROWS + 1))
                start = int(random.integers(0, 16 - rows + 1))
                found, _ = host.run({n: v[:rows] for n, v in feeds[which].items()}, rows, start)
                target = {
                    n: np.concatenate([wanted[which][r][holds[start + r]][n] for r in range(rows)]) for n in found
                }
                worst, runs = max(worst, apart(found, target)), runs + 1
            after = host.footprint()
        figures.update(runs=runs, worst=worst, steady=dict(steady), after=dict(after))
        for _ in range(5):
            with check.host("fp32.plan"):
                pass
        figures["lost_bytes"] = before - free_bytes(check)
        grown = after["resident_bytes"] - steady["resident_bytes"]
        check.tell("churn: answers, worst difference", f"{runs}, {worst:.2g}", "at most 1e-4", worst <= 1e-4)
        check.tell("churn: device memory not given back, host's growth",
                   f"{figures['lost_bytes'] / 1e6:.1f} MB, {grown / 1e6:.1f} MB",
                   "below 1", figures["lost_bytes"] < 1e6)  # fmt: skip
        check.tell("memory: engine and context, bank of 16, host resident", "{:.0f}, {:.0f}, {:.0f} MB".format(
            steady["taken_bytes"] / 1e6, steady["bank_bytes"] / 1e6, steady["resident_bytes"] / 1e6))  # fmt: skip


def refusals(check: Check) -> None:
    """Wrong input ends in a sentence, and the host goes on."""
    with check.part("refusals") as figures, check.host("fp32.plan") as host:
        content = bytearray((check.plans / "fp32.plan").read_bytes())
        content[len(content) // 2 :] = b""
        (check.plans / "broken.plan").write_bytes(content)
        tries: dict[str, Callable[[], Any]] = {
            "too many rows": lambda: host.run(check.feed(1, rows=ROWS + 1), ROWS + 1),
            "outside of the bank": lambda: host.run(check.feed(1), ROWS, 1),
            "a position that is not there": lambda: host.write(99, None),
        }
        for name, attempt in tries.items():
            try:
                attempt()
                figures[name] = "NOT REFUSED"
            except EdgeError as error:
                figures[name] = str(error)
        other = EngineHost(check.python)
        try:
            other.load(str(check.plans / "broken.plan"), check.bank, 1)
            figures["a broken plan"] = "NOT REFUSED"
        except EdgeError as error:
            figures["a broken plan"] = str(error)
        other.close()
        host.run(check.feed(1), ROWS)
        for name, sentence in list(figures.items()):
            check.tell(name, sentence[:160], "refused", sentence != "NOT REFUSED")


PARTS = (build_fp32, fp32, build_base, refusals, kills, fp16, int8, build_again, beside, backend, churn)
# Builds that a part waits for, and seconds that it takes otherwise where a host needs five seconds to start (as long as
# on a machine with an H200). Churn takes what is left, at least its first run.
BUILDS = {"build_base": 1, "kills": 1, "fp16": 1, "int8": 1, "build_again": 1, "beside": 1, "backend": 1}
PART_S, CLOSING_S = 30.0, 40.0


def fits(part: str, build_s: float, left_s: float) -> bool:
    """Whether a part is over in time where a build takes `build_s`."""
    return BUILDS.get(part, 0) * build_s + PART_S <= left_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("graphs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plans", type=Path, help="folder for engines (default: plans in --out)")
    parser.add_argument(
        "--whole-s", type=float, default=math.inf, help="all is over after this: parts are left out, churn is shorter"
    )
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--churn-s", type=float, default=300.0)
    parser.add_argument(
        "--parts", default="", help="only these, by commas: " + ", ".join(one.__name__ for one in PARTS)
    )
    parser.add_argument("--repeats", type=int, default=200, help="of every measured call")
    parser.add_argument("--without-tactics", default="", help="tactic sources to leave out, by commas")
    arguments = parser.parse_args()
    plans = arguments.plans or arguments.out / "plans"
    for folder in (arguments.out, plans):
        folder.mkdir(parents=True, exist_ok=True)
    without = [name for name in arguments.without_tactics.split(",") if name]
    check = Check(
        arguments.graphs, arguments.out, plans, arguments.python, arguments.churn_s, arguments.repeats, without,
        arguments.whole_s,
    )  # fmt: skip
    known = {part.__name__: part for part in PARTS}
    for part in [known[name] for name in arguments.parts.split(",")] if arguments.parts else PARTS:
        build_s = float(check.found.get("build fp32", {}).get("seconds", 0.0))
        if not fits(part.__name__, build_s, check.left_s):
            check.tell(part.__name__, f"left out, {check.left_s:.0f} s are left", "in time", False)
            continue
        part(check)
    width = max(len(line[0]) for line in check.lines)
    print()
    for what, value, held in check.lines:
        print(f"{what:{width}}  {value}  {held}")
    print(f"{time.monotonic() - STARTED_S:.0f} s; figures in {check.out / 'check.json'}; pid {os.getpid()}")
    return 1 if check.found.get("missed") else 0


if __name__ == "__main__":
    sys.exit(main())
