"""Every family of encoders through `edge-forge build`, a store and a daemon; prints the table of docs/figures.md.

    python -m tests.support.encoder_families [FAMILY ...] [--methods lora full] [--folder DIR]

Of each family a small base is made (`tiny_encoders`: 2 layers, random weights, 64 positions) and built by LoRA, banked
and merged, and by method full, in FP32, INT8 and FP16, with both recipes in one build folder. `edge-agent install` puts
the packages into a store, a daemon serves them, and its answers are compared with PyTorch's. `make families` runs all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import tiny_encoders
from tests.support.agents import AgentProcess, running
from tests.support.desk import cli
from tests.support.mosquitto import Mosquitto
from tests.support.packages import keys

ROOT = Path(__file__).parents[2]
METHODS = ("lora", "full")
ASKED = 4
"""Texts that the daemon is asked per model."""
_TIMEOUT_S = 1200.0
_COLUMNS = (
    "family", "form", "graph against PyTorch", "INT8: agreement, logits off", "FP16: the same", "install",
    "answers as PyTorch",
)  # fmt: skip
_LABELS = ("off", "on")
# Gates are wide: random weights lose more by INT8 than trained ones, and the table says how much.
_RECIPE = """
name = "{family}-{method}"
[base]
name = "{family}"
source = "../base"
[task]
max_tokens = {tokens}
[data]
train = "../train.tsv"
validation = "../test.tsv"
test = "../test.tsv"
[method]
name = "{method}"
[train]
epochs = 3
learning_rate = 2e-3
batch_size = 16
precision = "fp32"
threads = 1
micro_batch_tokens = 512
[export]
bank_labels = 4
bank_tokens = {tokens}
[quantize]
max_loss_points = 100.0
min_agreement = 0.0
max_logit_error = 10.0
[package]
failed_training = "warn"
"""


class Row(NamedTuple):
    """One form of one family: largest difference from PyTorch, INT8 and FP16 beside FP32, packages, answers."""

    family: str
    form: str
    parity: float
    int8: str
    fp16: str
    installed: str
    answers: str


class Failed(Exception):
    """A program's words where it refused."""


def rows_of_data() -> list[tuple[str, str]]:
    """Texts of the words that the tokenizers know, labelled by the state that they ask for."""
    found = []
    for start in ("", "please ", "hello ", "now "):
        for thing in ("lamp", "light", "heating", "kitchen light"):
            for end in ("", " please", " now", " in the kitchen"):
                found += [(f"{start}turn the {thing} {state}{end}", state) for state in _LABELS]
    return found


def write(folder: Path, family: str, methods: Sequence[str]) -> None:
    """A base, its data and a recipe for each method."""
    tiny_encoders.write(folder / "base", family)
    data = rows_of_data()
    for name, part in (("train", data[: -len(data) // 4]), ("test", data[-len(data) // 4 :])):
        lines = "".join(f"{text}\t{label}\n" for text, label in part)
        (folder / f"{name}.tsv").write_text(f"text\tlabel\n{lines}")
    for method in methods:
        (folder / method).mkdir()
        values = {"family": family, "method": method, "tokens": tiny_encoders.POSITIONS}
        (folder / method / "recipe.toml").write_text(_RECIPE.format(**values))


def build(folder: Path, method: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Run `edge-forge build`; what it printed, and its figures. Raises Failed with its last line."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    done = subprocess.run(
        [sys.executable, "-m", "edge_forge.cli", "build", str(folder / method), "--build", str(folder / "build"),
         "--json"],
        capture_output=True, text=True, check=False, timeout=_TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["no word"])[-1])
    printed = json.loads(done.stdout)
    return printed, json.loads(Path(printed["report"][0]).with_suffix(".json").read_text())


def served(folder: Path, built: Mapping[str, Mapping[str, Any]], family: str) -> dict[str, tuple[str, str]]:
    """Install all packages in one store and ask the daemon; by form: how many were installed, answers as PyTorch's."""
    found: dict[str, tuple[str, str]] = {}
    with Mosquitto(folder) as broker:
        unmerged = '[models]\nprefer = ["unmerged"]\n'
        agent = AgentProcess(folder / "agent", broker.port, extra=unmerged, backends=("onnx",))
        (root,) = {printed["trust_root"] for printed in built.values()}
        agent.config.write_text(agent.config.read_text().replace(str(keys().root_file), root))
        said: dict[str, list[str]] = {}
        for method, printed in built.items():
            for path in map(Path, printed["packages"]):
                done = cli("install", "--config", agent.config, path, timeout_s=_TIMEOUT_S)
                form = "merged" if "-merged-" in path.name else "banked"
                words = "installs" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
                said.setdefault(f"{method}, {form}", []).append(words)
        with running(agent):
            for form, words in said.items():
                method, kind = form.split(", ")
                target = [family, "--adapter", f"{family}-lora"] if kind == "banked" else [f"{family}-{method}-merged"]
                answers = "–"
                if set(words) == {"installs"}:
                    answers = _asked(agent, target, pytorch_answers(folder, method)[:ASKED])
                found[form] = (words[0] if len(set(words)) == 1 else "; ".join(words), answers)
    return found


def pytorch_answers(folder: Path, method: str) -> list[tuple[str, str]]:
    """The test texts and the label that PyTorch gives each, of the build's own evaluation."""
    (report,) = (folder / "build" / "reports").glob(f"*-{method}.json")
    right = json.loads(report.read_text())["exam"]["right"]
    lines = (folder / "test.tsv").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    other = dict(zip(_LABELS, reversed(_LABELS), strict=True))
    return [(text, gold if mark == "1" else other[gold]) for (text, gold), mark in zip(rows, right, strict=True)]


def _asked(agent: AgentProcess, target: Sequence[str], wanted: Sequence[tuple[str, str]]) -> str:
    alike = 0
    for text, label in wanted:
        done = cli("infer", target[0], text, *target[1:], "--json", "--config", agent.config)
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["no word"])[-1]
        alike += json.loads(done.stdout)["result"]["label"] == label
    return f"{alike} of {len(wanted)}"


def measure(folder: Path, family: str, methods: Sequence[str]) -> Iterator[Row]:
    """The rows of one family; of a build that failed, its words."""
    write(folder, family, methods)
    built, figures, failed = {}, {}, []
    for method in methods:
        try:
            built[method], figures[method] = build(folder, method)
        except Failed as error:
            failed.append(Row(family, method, float("nan"), "–", "–", f"build: {error}", "–"))
    answers = served(folder, built, family) if built else {}
    records = (folder / "build" / "steps" / "trace-base").glob("*/record.json")
    traced = [json.loads(path.read_text())["facts"]["features"] for path in records]
    for form, (installed, answered) in answers.items():
        method, kind = form.split(", ")
        variants = {one["dtype"]: one for one in figures[method]["variants"] if one["form"] == kind}
        parity = max(variants["fp32"]["parity"], *traced)
        yield Row(family, form, parity, _beside(variants, "int8"), _beside(variants, "fp16"), installed, answered)
    yield from failed


def _beside(variants: Mapping[str, Mapping[str, Any]], dtype: str) -> str:
    """Agreement with FP32, and the error of the logits."""
    if dtype not in variants:
        return "–"
    paired = variants[dtype]["paired"]
    return f"{100 * paired['agreement']:.0f} %, {100 * paired['logit_error']:.2g} %"


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, install, ask; print the table as it fills. Returns 1 where something was refused or not answered."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("families", nargs="*", default=tiny_encoders.ENCODERS, metavar="FAMILY")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--folder", type=Path, help="keep what is built there; default: a folder that is removed")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.families) - set(tiny_encoders.ENCODERS))
    if unknown:
        parser.error(f"no family {unknown[0]!r}; there are: {', '.join(tiny_encoders.ENCODERS)}")
    code, begun_s = 0, time.process_time() + _children_s()
    print("| " + " | ".join(_COLUMNS) + " |\n|" + " :--- |" * len(_COLUMNS))
    with tempfile.TemporaryDirectory(prefix="families-") as scratch:
        for family in given.families:
            for row in measure((given.folder or Path(scratch)) / family, family, given.methods):
                cells = [f"{one:.1e}" if isinstance(one, float) else one for one in row]
                print("| " + " | ".join(cells) + " |", flush=True)
                code |= row.installed != "installs" or not row.answers.endswith(f" of {ASKED}")
    print(f"\n{time.process_time() + _children_s() - begun_s:.0f} s of processor time", file=sys.stderr)
    return code


def _children_s() -> float:
    spent = os.times()
    return spent.children_user + spent.children_system


if __name__ == "__main__":
    sys.exit(main())
