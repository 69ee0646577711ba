"""The plan of a classifier's recipe: its parts in order, its figures, and what each command prints of it.

data ─┬─▶ train ─▶ evaluate ─┐
base ─┴─▶ export ─▶ quantize ─▶ measure ─▶ gates ─▶ package ─▶ sign ─▶ verify ─▶ report
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from edge_forge.evaluate.classifier_metrics import ECE_BINS
from edge_forge.package.classifier_sources import LITERT, MULTI_ADAPTER, RUNTIME, GraphVariant
from edge_forge.plan.cache import Cache
from edge_forge.plan.classifier_code import CODE
from edge_forge.plan.classifier_packages import ClassifierPackages
from edge_forge.plan.classifier_training import ClassifierTraining
from edge_forge.plan.compression import teacher_recipe
from edge_forge.plan.onnx_exports import OnnxExports, rows_of
from edge_forge.plan.signing import PACKAGE, PackageSigner
from edge_forge.plan.step_runner import StepRunner, runtime_versions
from edge_forge.progress import Progress, size
from edge_forge.recipe.classifier_recipe import ClassifierRecipe

Figures = Mapping[str, Any]
_LATENCY_TEXTS = 50


class ClassifierPlan:
    """One classifier's recipe in one build folder."""

    def __init__(self, recipe: ClassifierRecipe, recipe_dir: Path, cache: Cache, progress: Progress) -> None:
        self.recipe = recipe
        self.steps = StepRunner(recipe_dir, cache, progress, CODE)
        self.signer = PackageSigner(recipe, self.steps)
        self.teacher: ClassifierPlan | None = None
        if recipe.compress.wanted:
            self.teacher = ClassifierPlan(teacher_recipe(recipe), recipe_dir, cache, progress)
        taught_by: ClassifierTraining | None = self.teacher.training if self.teacher is not None else None
        self.training: ClassifierTraining = ClassifierTraining(recipe, self.steps, taught_by)
        self.exports = OnnxExports(self.training)
        self.packages = ClassifierPackages(self.exports, self.signer)

    def prepare(self) -> None:
        """Raise what is wrong with the data or the base before anything long begins."""
        self.training.check_inputs()
        _ = self.exports.engines
        if self.teacher is not None:
            _ = self.teacher.exports.traced
        elif self.training.takes_seconds:
            self._export_beside_training()
        else:
            _ = self.exports.traced

    def _export_beside_training(self) -> None:
        """Trace and export the base while the training's own process works: of a short training, that is the longer
        part. Nothing is timed meanwhile.

        What is wrong with the base is raised, as it is where the trace comes first; the training is done by then.
        """
        with ThreadPoolExecutor(1, "export") as pool:
            exported = pool.submit(self._export_base)
            try:
                _ = self.training.evaluated
            finally:
                exported.result()

    def _export_base(self) -> None:
        """Run the steps of the base's graphs that need no training."""
        _ = self.exports.traced
        if self.exports.has_multi_adapter:
            _ = (self.exports.base_export, self.exports.base_formats)

    def figures(self, ship: bool) -> dict[str, Any]:
        """Run what is left of the plan and gather its figures; see `report.classifier_report` for the keys.

        Without `ship` nothing is packed, and only merged graphs are measured, which every method has.
        """
        recipe, training = self.recipe, self.training
        base = training.base
        split, rows = training.data.measured
        scores = dict(training.evaluated.facts)
        logits = training.evaluated.path(f"{split}.npy")
        right, bins = self._answered(logits, [row.label for row in rows])
        outcome = training.outcome
        said = self.signer.require_learned(outcome) if ship else outcome.failed or outcome.weak
        return {
            "outcome": said,
            **(self._shipped() if ship else self._compared()),
            "recipe": {"name": recipe.name, "description": recipe.description},
            "data": {"statistics": dict(training.data.statistics), "warnings": list(training.data.warnings)},
            "base": {
                "name": recipe.base.name,
                "source": base.source,
                "base_id": base.base_id,
                "size_bytes": base.size_bytes,
            },
            "train": dict(training.trained.facts),
            "split": split,
            "exam": {
                "rows": training.data_step.digests(f"{split}.jsonl")[f"{split}.jsonl"],
                "right": right,
            },
            "scores": scores,
            "calibration": bins,
            "scope": training.scope,
            "steps": self._timings(),
            **self._compressed(ship),
        }

    def _timings(self) -> list[dict[str, Any]]:
        """The steps in order, those of a teacher first and named so."""
        before = [] if self.teacher is None else self.teacher.steps.timings()
        return [*({**one, "name": f"teacher: {one['name']}"} for one in before), *self.steps.timings()]

    def _compressed(self, ship: bool) -> dict[str, Any]:
        """`compression`: the smaller base and what it was cut from, with the teacher's answers (`right`); in a build
        also `before` and `after`, the merged graphs of both with latencies that were measured in turns."""
        teacher, compression = self.teacher, self.training.compression
        if teacher is None or compression is None:
            return {}
        found = compression.figures()
        if ship and self.recipe.export.merged:
            found |= _before_and_after(teacher, self)
        split, rows = teacher.training.data.measured
        logits = teacher.training.evaluated.path(f"{split}.npy")
        right = answers(logits, [row.label for row in rows], teacher.training.data.labels)
        scores = teacher.training.evaluated.facts[split]
        return {"compression": {**found, "right": right, "accuracy": scores["accuracy"]}}

    def _answered(self, logits: Path, gold: list[str]) -> tuple[str, list[list[float]]]:
        """`answers` and `calibration` of the measured rows; of slots by texts, and by words."""
        training, split = self.training, self.training.data.measured[0]
        if self.recipe.answers:
            return training.tokens.answered(logits, split)
        if self.recipe.slots:
            import numpy

            words, names = training.tokens.words(split), training.classes
            right = "".join("01"[one] for one in words.right(numpy.load(logits)))
            return right, calibration(logits, [names[place] for path in words.paths for place in path], names)
        return answers(logits, gold, training.data.labels), calibration(logits, gold, training.data.labels)

    def _shipped(self) -> dict[str, Any]:
        """Variants, verdicts and packages."""
        gates, passed = self.exports.judged
        variants = [*self.exports.multi_adapter_graphs, *self.exports.merged_graphs]
        shipped = {(graph.form, graph.format) for graph in passed}
        lost = [[graph.form, graph.format] for graph in variants if (graph.form, graph.format) not in shipped]
        return {
            "variants": list(rows_of(variants, passed)),
            "gates": [{"name": gate.name, "holds": gate.holds, "sentence": gate.sentence} for gate in gates],
            "left_out": lost,
            "packages": [one.as_dict() for one in self.signer.shipped(self.packages.packed, self._tried_with)],
        }

    @property
    def _tried_with(self) -> tuple[str, ...]:
        """The backends of this host that the packages are for."""
        return (RUNTIME, LITERT) if self.recipe.quantize.litert else (RUNTIME,)

    def _compared(self) -> dict[str, Any]:
        """Variants of the merged model, which every method has, and what would be shipped of them; of LoRA the bytes of
        the adapter, which is all that a further task adds on a device that has the base."""
        graphs = self.exports.merged_graphs
        found: dict[str, Any] = {"variants": list(rows_of(graphs, self.exports.verdicts(graphs)[1]))}
        adapter = self.training.trained.path("run/adapter.safetensors")
        return {**found, "adapter_bytes": adapter.stat().st_size} if adapter.is_file() else found

    def trial(self) -> Mapping[str, Any]:
        """Train and score alone: accuracy on the measured split, macro-F1 on the validation rows."""
        scores, record = self.training.evaluated.facts, self.training.trained.facts
        found = {"score": scores[self.training.data.measured[0]]["accuracy"]}
        found |= {"validation": scores["validation"]["macro_f1"]}
        return found | {key: record[key] for key in ("cpu_s", "wall_s", "peak_bytes")}

    def diagnosis(self) -> Mapping[str, Any]:
        """What training did to the weights, beside its record, what was learned and what is left of the base's
        knowledge."""
        training = self.training
        _ = training.questions
        split = training.data.measured[0]
        return {
            **training.weights_diagnosed.facts, **training.diagnosed.facts,
            "learned": ["accuracy", training.evaluated.facts[split]["accuracy"]],
            "kept": training.kept, "train": dict(training.trained.facts),
        }  # fmt: skip

    def result(self, verb: str) -> Mapping[str, Any]:
        """Run the plan up to the step of a verb, and what the verb prints."""
        results = {
            "train": self._train,
            "evaluate": self._evaluate,
            "export": self._export,
            "quantize": self._quantize,
            "package": self._package,
        }
        return results[verb]()

    def _train(self) -> Mapping[str, Any]:
        trained = self.training.trained
        facts = {key: trained.facts[key] for key in ("method", "wall_s", "peak_bytes")}
        return {"folder": str(trained.path("run")), **facts}

    def _evaluate(self) -> Mapping[str, Any]:
        split, _ = self.training.data.measured
        found = self.training.evaluated.facts[split]
        # Of slots and answers the score that reports begin with, with its interval.
        told = [key for key in ("spans", "answers") if key in found]
        return {"split": split, **{key: found[key] for key in ("rows", "accuracy", "macro_f1", "mcc", "ece", *told)}}

    def _export(self) -> Mapping[str, Any]:
        found = {}
        if self.exports.has_multi_adapter:
            found["banked"] = str(self.exports.base_export.path("model.onnx"))
        if self.recipe.export.merged:
            found["merged"] = str(self.exports.merged_export.path("model.onnx"))
        return found

    def _quantize(self) -> Mapping[str, Any]:
        graphs = (*self.exports.multi_adapter_graphs, *self.exports.merged_graphs)
        return {
            f"{one['form']} {one['dtype']}": (
                f"{one['accuracy']:.4f}, {size(one['size_bytes'])}"
                + (f", {one['latency_ms']:.1f} ms" if "latency_ms" in one else ", latency not measured here")
            )
            for one in rows_of(graphs, ())
        }

    def _package(self) -> Mapping[str, Any]:
        self.signer.require_learned(self.training.outcome)
        return {name: str(entry.path(PACKAGE)) for name, (_, entry) in self.packages.packed.items()}


class _Timed(NamedTuple):
    """A graph that is timed: of which run, and the digest of the merged graph that it is set beside ('': it is one)."""

    run: str
    graph: GraphVariant
    beside: str = ""


def timed_in_turns(plans: Mapping[str, ClassifierPlan], runs: Mapping[str, Figures]) -> Mapping[str, Figures]:
    """The runs with latencies that were measured in turns over all shipped merged graphs of all plans: median, interval
    of the median, and the ratio to the first of them with its interval (`latency_ms`, `latency`).

    `attached`: the same of each base graph with an adapter in its bank, {dtype, latency}, whose ratio is to the merged
    graph of that format, with `attach_ms`, the median time to put the adapter into the bank of a graph in memory; of
    runs with one base graph by the first one's adapter.
    """
    found: dict[str, dict[str, Any]] = {name: dict(figures) for name, figures in runs.items()}
    merged = [
        _Timed(name, graph) for name, plan in plans.items() for graph in plan.exports.merged_graphs
        if graph.runs_here
        and any(one["shipped"] and one["digest"] == graph.digest for one in runs[name]["variants"])
    ]  # fmt: skip
    if not merged:
        return found
    timed: dict[str, _Timed] = {}
    for one in (*merged, *_attached(plans, merged)):
        timed.setdefault(one.graph.digest, one)
    facts = _turns(plans, timed)
    for figures in found.values():
        figures["variants"] = [
            {**one, "latency_ms": facts[one["digest"]]["p50_ms"], "latency": facts[one["digest"]]}
            if one["digest"] in facts else one
            for one in figures["variants"]
        ]  # fmt: skip
    for digest, one in timed.items():
        if one.beside:
            told = {"dtype": one.graph.dtype, "latency": facts[digest]}
            found[one.run]["attached"] = [*found[one.run].get("attached", ()), told]
    return found


def _before_and_after(teacher: ClassifierPlan, student: ClassifierPlan) -> dict[str, Any]:
    """`before` and `after`: {dtype, size_bytes, accuracy, latency} of the merged graphs that this host runs; a ratio
    of the latter is to the teacher's graph of the same format."""
    plans = {"before": teacher, "after": student}
    graphs = {
        name: {one.format: one for one in plan.exports.merged_graphs if one.runs_here and one.runtime == RUNTIME}
        for name, plan in plans.items()
    }
    timed = {one.digest: _Timed("before", one) for one in graphs["before"].values()}
    for name, one in graphs["after"].items():
        timed[one.digest] = _Timed("after", one, graphs["before"][name].digest)
    facts = _turns(plans, timed)
    return {
        name: [
            {
                "dtype": one.format, "size_bytes": one.path.stat().st_size,
                "accuracy": (one.figures or {})["accuracy"], "latency": facts[one.digest],
            }
            for one in of.values()
        ]
        for name, of in graphs.items()
    }  # fmt: skip


def _attached(plans: Mapping[str, ClassifierPlan], merged: Sequence[_Timed]) -> Iterator[_Timed]:
    """The base's graphs of the formats that are timed merged, where a run's adapter can be attached."""
    for name, plan in plans.items():
        formats = {
            one.graph.dtype: one.graph.digest for one in merged if one.run == name and one.graph.runtime == RUNTIME
        }
        for graph in plan.exports.bare_graphs if formats and plan.exports.has_multi_adapter else ():
            if graph.runtime == RUNTIME and graph.dtype in formats:
                yield _Timed(name, graph, formats[graph.dtype])


def _turns(plans: Mapping[str, ClassifierPlan], timed: Mapping[str, _Timed]) -> Mapping[str, Any]:
    """`paired.latencies` by digest; a ratio is to the first graph, of one that stands beside another to that one."""
    first = next(iter(plans.values()))
    texts = [row.text for row in first.training.data.measured[1][:_LATENCY_TEXTS]]
    subjects = {digest: plans[one.run].exports.subject(one.graph) for digest, one in timed.items()}

    def work(_: Path) -> Mapping[str, Any]:
        from edge_forge.evaluate.measure_onnx import attach_times, times_in_turns
        from edge_forge.evaluate.paired import latencies

        times = dict(zip(subjects, times_in_turns(list(subjects.values()), texts), strict=True))
        pairs = {digest: (one.beside, digest) for digest, one in timed.items() if one.beside}
        beside = {own: latencies({name: times[name] for name in pair})[own] for own, pair in pairs.items()}
        for own, found in beside.items():
            if subjects[own].adapter is not None:
                found["attach_ms"] = statistics.median(attach_times(subjects[own]))
        return {**latencies(times), **beside}

    inputs = {f"{place}": digest for place, digest in enumerate(subjects)}
    adapters = {one.run for one in timed.values() if one.graph.form == MULTI_ADAPTER}
    inputs |= {
        f"adapter of {name}": plans[name].training.trained_digests["run/adapter.safetensors"] for name in adapters
    }
    settings = {
        "texts": texts, "prompts": [one.prompt for one in subjects.values()],
        "beside": [one.beside for one in timed.values()],
        **runtime_versions(one.graph.runtime for one in timed.values()),
    }  # fmt: skip
    return first.steps.run("latency", inputs, settings, work, "latency of all in turns").facts


def answers(logits_file: Path, gold: list[str], labels: tuple[str, ...]) -> str:
    """A character per row, in order: '1' where it is answered as labelled, else '0'."""
    import numpy

    predicted = numpy.load(logits_file).argmax(axis=1)
    return "".join("01"[labels[int(place)] == label] for place, label in zip(predicted, gold, strict=True))


def calibration(logits_file: Path, gold: list[str], labels: tuple[str, ...]) -> list[list[float]]:
    """Bins [mean confidence, accuracy, rows] of equal width over the top probability, as `metrics` bins the ECE."""
    import numpy

    logits = numpy.load(logits_file).astype(numpy.float64)
    powers = numpy.exp(logits - logits.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    confidence = shares.max(axis=1)
    right = shares.argmax(axis=1) == numpy.asarray([labels.index(label) for label in gold])
    place = numpy.clip(numpy.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    bins = []
    for number in range(ECE_BINS):
        inside = place == number
        rows = int(inside.sum())
        bins.append([float(confidence[inside].mean()), float(right[inside].mean()), rows] if rows else [0.0, 0.0, 0])
    return bins
