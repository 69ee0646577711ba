"""The second part of a classifier's plan: graphs for each runtime, their number formats, and the figures of each.

    train ─┬▶ litert-form ─────────────────────────────────────────┐
           └▶ export-merged ─▶ quantize, tensorrt-form ─▶ measure ─┤
    base ───▶ export-base ───▶ quantize, tensorrt-form ─▶ measure ─┴▶ gates

The code that the device runs measures everything (`evaluate.measure_onnx`); of graphs for TensorRT their equals for
ONNX Runtime (`export.onnx.scored`), since this host has no engine. Their latency is not measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.base.texts import Text, characters
from edge_agent.bundle.catalog import LOSS_LOW
from edge_forge.data.classifier_rows import Row, sample
from edge_forge.evaluate import gates
from edge_forge.package import device_engines
from edge_forge.package.classifier_sources import (
    LITERT,
    LOSS_HIGH,
    MERGED_FORM,
    MULTI_ADAPTER,
    TENSORRT,
    GraphVariant,
)
from edge_forge.package.device_engines import DeviceEngine
from edge_forge.plan.cache import StepResult
from edge_forge.plan.classifier_training import ClassifierTraining
from edge_forge.plan.step_runner import runtime_versions

if TYPE_CHECKING:
    from edge_forge.evaluate.measure_onnx import ModelOutputs, OnnxSubject

_LATENCY_TEXTS = 50
# Of the longest texts, and of the others: FP16 must hold what they make of the graph.
_RANGE_TEXTS = 256
_ENCODER = ("encoder.onnx", "tokenizer.json")


class OnnxExports:
    """From a trained classifier to measured graphs."""

    def __init__(self, training: ClassifierTraining) -> None:
        self.training = training
        self.recipe = training.recipe
        self.steps = training.steps
        self._measurements: dict[tuple[str, str], StepResult] = {}

    @property
    def has_multi_adapter(self) -> bool:
        """True when the base's banked form is made: full fine-tuning has none."""
        return self.training.has_adapter_package

    @property
    def bank(self) -> dict[str, Any]:
        """Fields of `export_graphs.Bank`: all modules, so that any adapter of the base fits."""
        export = self.recipe.export
        return {"targets": ("all",), "first_layer": 0, "rank": export.bank_rank, "max_labels": export.bank_labels}

    @cached_property
    def traced(self) -> StepResult:
        """encoder.onnx: the base's float graph, equal to PyTorch's at every length that the recipe asks for.

        It runs before training, so that a base that cannot be shipped is refused at once.
        """
        base, export = self.training.base, self.recipe.export
        inputs = {"base": base.base_id, "tokenizer": self.training.tokenizer_digest}
        tokens = max(self.recipe.task.max_tokens, self.training.bank_tokens if self.has_multi_adapter else 0)
        settings = {"tolerance": export.parity_tolerance, "max_tokens": tokens}

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.export.onnx.export_graphs import trace_base

            return trace_base(
                base_dir=base.directory, out_dir=folder, base_id=base.base_id, tolerance=export.parity_tolerance,
                max_tokens=tokens,
            )  # fmt: skip

        return self.steps.run("trace-base", inputs, settings, work)

    @cached_property
    def base_export(self) -> StepResult:
        """encoder.onnx (float, no bank), model.onnx (FP32 with the bank), tokenizer.json. Of no recipe's own."""
        base, export, traced = self.training.base, self.recipe.export, self.traced
        inputs = {"base": base.base_id, "tokenizer": self.training.tokenizer_digest, **traced.digests("encoder.onnx")}
        settings = {"bank": self.bank, "tolerance": export.parity_tolerance,
                    "max_tokens": self.training.bank_tokens}  # fmt: skip

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.export.onnx.export_graphs import Bank, as_dict, export_base

            return as_dict(
                export_base(
                    base_dir=base.directory, traced=traced.path("encoder.onnx"), out_dir=folder,
                    bank=Bank(**self.bank), tolerance=export.parity_tolerance, max_tokens=self.training.bank_tokens,
                )
            )  # fmt: skip

        return self.steps.run("export-base", inputs, settings, work)

    @cached_property
    def merged_export(self) -> StepResult:
        """encoder.onnx and model.onnx (the same, FP32), tokenizer.json."""
        base, export, task = self.training.base, self.recipe.export, self.recipe.task
        inputs = {"base": base.base_id, "tokenizer": self.training.tokenizer_digest, **self.training.trained_digests}
        pairs = self.recipe.pairs
        settings = {"tolerance": export.parity_tolerance, "max_tokens": task.max_tokens, "pairs": pairs}

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.export.onnx.export_graphs import PARITY_TEXTS, SINGLE_TEXTS, as_dict, export_merged

            return as_dict(
                export_merged(
                    base_dir=base.directory, trained_dir=self.training.trained.path("run"), out_dir=folder,
                    base_id=base.base_id, tolerance=export.parity_tolerance, max_tokens=task.max_tokens,
                    texts=PARITY_TEXTS if pairs else SINGLE_TEXTS,
                )
            )  # fmt: skip

        return self.steps.run("export-merged", inputs, settings, work)

    @cached_property
    def base_formats(self) -> StepResult | None:
        """`int8.onnx` with the bank, or None when the recipe wants FP32 only."""
        if "int8" not in self.recipe.quantize.variants:
            return None
        entry = self.base_export
        settings = {"formats": ["int8"], "bank": self.bank, **self._calibration(entry)}

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.export.onnx.export_graphs import Bank
            from edge_forge.export.onnx.quantize import TokenCut, make

            made = make(
                encoder_path=entry.path("encoder.onnx"), out_dir=folder, tokenizer_path=entry.path("tokenizer.json"),
                formats=["int8"], reading=TokenCut(**self._calibration(entry)),
                bank=(Bank(**self.bank), entry.facts["modules"]),
            )  # fmt: skip
            return {"made": sorted(made.paths)}

        return self.steps.run("quantize", entry.digests(*_ENCODER), settings, work, "quantize base")

    @cached_property
    def merged_formats(self) -> StepResult | None:
        """`fp16.onnx`, `int8.onnx`: those that the recipe wants; None for FP32 only.

        The facts of FP16 say what of it stays FP32, found on the texts that it is scored on.
        """
        entry = self.merged_export
        formats = [name for name in ("int8", "fp16") if name in self.recipe.quantize.variants]
        if not formats:
            return None
        settings = {"formats": formats, **self._calibration(entry)}

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.export.onnx.quantize import TokenCut, make

            made = make(
                encoder_path=entry.path("encoder.onnx"), out_dir=folder, tokenizer_path=entry.path("tokenizer.json"),
                formats=formats, texts=self._range_texts(), reading=TokenCut(**self._calibration(entry)),
            )  # fmt: skip
            half = None if made.half is None else {**made.half._asdict(), "sentence": made.half.sentence}
            return {"made": sorted(made.paths), "float16": half}

        inputs = entry.digests(*_ENCODER)
        if "fp16" in formats:
            inputs |= self.training.data_step.digests("validation.jsonl", "test.jsonl")
            settings["seed"] = self.recipe.data.seed
        return self.steps.run("quantize", inputs, settings, work, "quantize merged")

    @cached_property
    def base_for_tensorrt(self) -> StepResult | None:
        """The base with its bank in the form for TensorRT, a file per format; None where the recipe names none."""
        entry = self.base_export
        title, bank = "TensorRT form of base", (self.bank, entry.facts["modules"])
        return self._for_tensorrt(entry, title, None, bank)

    @cached_property
    def merged_for_tensorrt(self) -> StepResult | None:
        """The merged model in the form for TensorRT, a file per format; None where the recipe names none."""
        entry = self.merged_export
        return self._for_tensorrt(entry, "TensorRT form of merged", self._range_texts)

    def _for_tensorrt(
        self,
        entry: StepResult,
        title: str,
        texts: Callable[[], list[Text]] | None,
        bank: tuple[Mapping[str, Any], Sequence[str]] | None = None,
    ) -> StepResult | None:
        """`texts` of this recipe show what FP16 must hold; None: general ones, for what is of no recipe's own."""
        formats = list(self.recipe.quantize.tensorrt)
        if not formats:
            return None
        settings = {"formats": formats, "bank": None if bank is None else bank[0], **self._calibration(entry)}
        inputs = entry.digests(*_ENCODER)
        if texts is not None:
            settings["seed"] = self.recipe.data.seed
            inputs |= self.training.data_step.digests("validation.jsonl", "test.jsonl")

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.export.onnx.export_graphs import Bank
            from edge_forge.export.onnx.quantize import TokenCut
            from edge_forge.export.onnx.tensorrt_form import make

            made = make(
                encoder_path=entry.path("encoder.onnx"), out_dir=folder, tokenizer_path=entry.path("tokenizer.json"),
                formats=formats, reading=TokenCut(**self._calibration(entry)),
                **({} if texts is None else {"texts": texts()}),
                bank=None if bank is None else (Bank(**bank[0]), bank[1]),
            )  # fmt: skip
            return {"made": sorted(made.paths), "float16": None if made.half is None else made.half.sentence}

        return self.steps.run("tensorrt-form", inputs, settings, work, title)

    @cached_property
    def merged_for_litert(self) -> StepResult | None:
        """The merged model as LiteRT takes it, a file per format; None where the recipe names none."""
        formats, base, task = sorted(self.recipe.quantize.litert), self.training.base, self.recipe.task
        if not formats:
            return None
        inputs = {"base": base.base_id, "tokenizer": self.training.tokenizer_digest, **self.training.trained_digests}
        tolerance = self.recipe.export.parity_tolerance
        pairs = self.recipe.pairs
        settings = {"formats": formats, "tolerance": tolerance, "max_tokens": task.max_tokens, "pairs": pairs}

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.export.litert import make
            from edge_forge.export.onnx.export_graphs import PARITY_TEXTS, SINGLE_TEXTS

            return make(
                folders=(base.directory, self.training.trained.path("run")), out_dir=folder, formats=formats,
                tolerance=tolerance, max_tokens=task.max_tokens, texts=PARITY_TEXTS if pairs else SINGLE_TEXTS,
            )  # fmt: skip

        return self.steps.run("litert-form", inputs, settings, work, "LiteRT form of merged")

    def _calibration(self, entry: StepResult) -> dict[str, Any]:
        """How texts are read that show which channels INT8 sets apart and what FP16 must hold."""
        return {"max_tokens": entry.facts["max_tokens"], "prompt": self.training.prompt}

    def _range_texts(self) -> list[Text]:
        """Validation and test texts that FP16 must hold: the longest ones and a sample of the others."""
        data = self.training.data
        rows = sorted((*data.splits["validation"], *data.splits["test"]), key=lambda row: -characters(row.text))
        # Of slots and answers each row is a class of its own, and one of each would be taken.
        rest = [Row(row.text, "") for row in rows[_RANGE_TEXTS:]] if self.recipe.of_tokens else rows[_RANGE_TEXTS:]
        others = sample(rest, _RANGE_TEXTS, self.recipe.data.seed)
        return [row.text for row in (*rows[:_RANGE_TEXTS], *others)]

    def measured(self, graph: GraphVariant, tokenizer: Path, adapter: Path | None) -> GraphVariant:
        """The graph with its figures: scores on validation and test, latency of one text, memory of a process."""
        task, rows = self.recipe.task, self.training.data
        inputs = {
            "model": graph.digest, "tokenizer": self.training.tokenizer_digest,
            **self.training.data_step.digests("validation.jsonl", "test.jsonl"),
        }  # fmt: skip
        if adapter is not None:
            inputs |= {"adapter": self.training.trained_digests["run/adapter.safetensors"]}
        settings = {"labels": list(self.training.classes), "max_tokens": task.max_tokens,
                    "base_id": self.training.base.base_id, **self.training.tokens.settings,
                    **runtime_versions((graph.runtime,))}  # fmt: skip

        def work(folder: Path) -> Mapping[str, Any]:
            import numpy

            from edge_forge.evaluate import measure_onnx as measure
            from edge_forge.evaluate.classifier_metrics import confidence_shares, fragmentation_shares, unknown_share
            from edge_forge.export.onnx.scored import scored

            subject = measure.OnnxSubject(
                graph.path, tokenizer, task.max_tokens, adapter, self.training.base.base_id if adapter else "",
                prompt=self.training.prompt, backend=graph.measured_by,
            )  # fmt: skip
            facts: dict[str, Any] = {}
            for split in ("validation", "test"):
                gold = rows.splits[split]
                if gold:
                    texts = [row.text for row in gold]
                    with scored(subject, graph.dtype, graph.runtime) as true:
                        windows = self.training.tokens.windows(split).ids if self.recipe.answers else None
                        outputs = measure.outputs(true, texts) if windows is None else measure.outputs_of(true, windows)
                    wording = measure.wording(subject, texts)
                    own, found = self._scored(split, outputs)
                    numpy.save(folder / f"{split}.npy", own)
                    facts[split] = {
                        **found, **({} if self.recipe.of_tokens else {"confidence": confidence_shares(own)}),
                        "fragmentation": fragmentation_shares(wording), "out_of_vocabulary": unknown_share(wording),
                    }  # fmt: skip
            if not graph.runs_here:
                return facts
            texts = [row.text for row in rows.measured[1][:_LATENCY_TEXTS]]
            return {**facts, "latency": measure.latency(subject, texts)._asdict(),
                    "memory": measure.memory(subject)._asdict()}  # fmt: skip

        entry = self.steps.run("measure", inputs, settings, work, f"measure {graph.form} {graph.format}")
        self._measurements[graph.form, graph.format] = entry
        scores = entry.facts[rows.measured[0]]
        told = ("accuracy", "macro_f1", "mcc", "ece", "nll", "confusion", "confidence", "fragmentation",
                "out_of_vocabulary")  # fmt: skip
        figures = {key: scores[key] for key in (*told, "spans", "answers") if key in scores}
        figures |= {"validation_accuracy": entry.facts["validation"]["accuracy"], **_costs(entry.facts)}
        return dataclasses.replace(graph, figures={**(graph.figures or {}), **figures})

    def _scored(self, split: str, outputs: ModelOutputs) -> tuple[Any, Mapping[str, Any]]:
        """The logits that a split is scored by (`TokenRows.scored`; else of its texts), and their scores."""
        from edge_forge.evaluate import classifier_metrics

        data = self.training.data
        if self.recipe.of_tokens:
            assert outputs.of_tokens is not None  # noqa: S101 - a graph with a head for tokens was exported
            return self.training.tokens.scored(split, outputs.of_tokens)
        assert outputs.logits is not None  # noqa: S101 - a graph with a head was exported
        own = outputs.logits[:, : len(data.labels)]
        gold = [row.label for row in data.splits[split]]
        return own, classifier_metrics.evaluate(own, gold, data.labels).as_dict()

    def subject(self, graph: GraphVariant) -> OnnxSubject:
        """A graph as it is measured: a merged one, or the base's with this recipe's adapter attached."""
        from edge_forge.evaluate.measure_onnx import OnnxSubject

        entry, adapter = self.merged_export, None
        if graph.form == MULTI_ADAPTER:
            entry, adapter = self.base_export, self.training.trained.path("run/adapter.safetensors")
        return OnnxSubject(
            graph.path, entry.path("tokenizer.json"), self.recipe.task.max_tokens, adapter,
            self.training.base.base_id if adapter else "", prompt=self.training.prompt, backend=graph.measured_by,
        )  # fmt: skip

    @cached_property
    def multi_adapter_graphs(self) -> tuple[GraphVariant, ...]:
        """The base's graphs, measured with this recipe's adapter attached; empty where there are none."""
        if not self.has_multi_adapter:
            return ()
        adapter = self.training.trained.path("run/adapter.safetensors")
        tokenizer = self.base_export.path("tokenizer.json")
        return tuple(self.measured(graph, tokenizer, adapter) for graph in self.bare_graphs)

    @cached_property
    def bare_graphs(self) -> tuple[GraphVariant, ...]:
        """The base's graphs with their bank, unmeasured."""
        graphs = [_graph(MULTI_ADAPTER, "fp32", self.base_export, "model.onnx", parity=_parity(self.base_export))]
        if self.base_formats is not None:
            graphs.append(_graph(MULTI_ADAPTER, "int8", self.base_formats, "int8.onnx"))
        return (*graphs, *self._tensorrt_graphs(MULTI_ADAPTER, self.base_for_tensorrt))

    @cached_property
    def engines(self) -> tuple[DeviceEngine, ...]:
        """Engines that devices built of graphs that this recipe made before. Raises ConfigError."""
        named = self.recipe.quantize.tensorrt_engines
        return device_engines.read(self.steps.recipe_dir / Path(named).expanduser()) if named else ()

    def _tensorrt_graphs(self, form: str, entry: StepResult | None) -> Iterator[GraphVariant]:
        for name in entry.facts["made"] if entry is not None else ():
            assert entry is not None  # noqa: S101 - names come from it
            graph = dataclasses.replace(_graph(form, name, entry, f"{name}.onnx"), runtime=TENSORRT)
            graph = dataclasses.replace(graph, engines=device_engines.of_graph(self.engines, graph.digest))
            told = {"range": f"{self.recipe.base.name}: {entry.facts['float16']}"} if name == "fp16" else {}
            yield dataclasses.replace(graph, figures=told)

    @cached_property
    def merged_graphs(self) -> tuple[GraphVariant, ...]:
        """All merged graphs, measured."""
        if not self.recipe.export.merged:
            return ()
        graphs = [_graph(MERGED_FORM, "fp32", self.merged_export, "model.onnx", parity=_parity(self.merged_export))]
        entry = self.merged_formats
        for name in entry.facts["made"] if entry is not None else ():
            assert entry is not None  # noqa: S101 - names come from it
            graph = _graph(MERGED_FORM, name, entry, f"{name}.onnx")
            if name == "fp16":
                found = f"{self.recipe.base.name}: {entry.facts['float16']['sentence']}"
                if entry.facts["float16"]["kept"]:
                    self.steps.progress.warn(found)
                graph = dataclasses.replace(graph, figures={"range": found})
            graphs.append(graph)
        graphs.extend(self._tensorrt_graphs(MERGED_FORM, self.merged_for_tensorrt))
        graphs.extend(self._litert_graphs())
        tokenizer = self.merged_export.path("tokenizer.json")
        return tuple(self.measured(graph, tokenizer, None) for graph in graphs)

    def _litert_graphs(self) -> Iterator[GraphVariant]:
        entry = self.merged_for_litert
        for name in entry.facts["made"] if entry is not None else ():
            assert entry is not None  # noqa: S101 - names come from it
            parity = _parity(entry) if name == "fp32" else None
            yield dataclasses.replace(_graph(MERGED_FORM, name, entry, f"{name}.tflite", parity), runtime=LITERT)

    def _beside_fp32(self, graph: GraphVariant) -> GraphVariant:
        """The graph with `paired` among its figures and the bounds of its loss, which travel in its package."""
        paired = self._paired(graph)
        if paired is None:
            return graph
        bounds = {LOSS_LOW: paired["loss_low"], LOSS_HIGH: paired["loss_high"]}
        return dataclasses.replace(graph, figures={**(graph.figures or {}), "paired": dict(paired), **bounds})

    def _paired(self, graph: GraphVariant) -> Mapping[str, Any] | None:
        """`PairedScores` of a measured graph beside the FP32 graph of its form, which has none.

        Accuracy by the measured split; agreement and logit error by validation and test together.
        """
        if graph.format == "fp32":
            return None
        rows = self.training.data
        split, labelled = rows.measured
        others = [name for name in ("validation", "test") if name != split and rows.splits[name]]
        entries = {
            "reference": self._measurements[graph.form, "fp32"],
            "variant": self._measurements[graph.form, graph.format],
        }
        files = [f"{name}.npy" for name in (split, *others)]
        inputs = {
            f"{name}/{file}": digest
            for name, entry in entries.items()
            for file, digest in entry.digests(*files).items()
        } | self.training.data_step.digests(f"{split}.jsonl")

        def work(_: Path) -> Mapping[str, Any]:
            import numpy

            from edge_forge.evaluate.paired import compare_logits

            found = {name: [numpy.load(entry.path(file)) for file in files] for name, entry in entries.items()}
            further = tuple(found[name][1] for name in ("reference", "variant")) if others else None
            if self.recipe.of_tokens:
                own = found["reference"][0], found["variant"][0]
                return self.training.tokens.compared(own, split, further, others).as_dict()
            gold = [rows.labels.index(row.label) for row in labelled]
            return compare_logits(found["reference"][0], found["variant"][0], gold, further).as_dict()

        title = f"compare {graph.form} {graph.format} with fp32"
        return self.steps.run("paired", inputs, {"labels": list(rows.labels)}, work, title).facts

    @cached_property
    def judged(self) -> tuple[tuple[gates.Gate, ...], tuple[GraphVariant, ...]]:
        """The gates' verdicts and the graphs that pass. Raises EdgeError where a broken gate stops the build."""
        section = self.recipe.quantize
        found, passed = self.verdicts((*self.merged_graphs, *self.multi_adapter_graphs))
        stopping = found if section.beyond == "fail" else [gate for gate in found if gate.name.startswith("parity")]
        gates.require(stopping, "gates", "see the report of `edge-forge quantize`, or change [quantize] of the recipe")
        for gate in found:
            if not gate.holds:
                self.steps.progress.warn(gate.sentence)
        return found, passed

    def verdicts(self, graphs: Sequence[GraphVariant]) -> tuple[tuple[gates.Gate, ...], tuple[GraphVariant, ...]]:
        """The gates' verdicts on measured graphs, and the graphs that are shipped, with `paired` in their figures."""
        section = self.recipe.quantize
        limits = gates.LossLimits(section.max_loss_points, section.min_agreement, section.max_logit_error)
        kept = [self._beside_fp32(graph) for graph in graphs]
        figures = [{"form": graph.form, "dtype": graph.format, **(graph.figures or {})} for graph in kept]
        found, beyond = gates.judge(figures, self.recipe.export.parity_tolerance, limits)
        # The base belongs to no recipe: what it loses for this adapter is said, not left out (decision 0023).
        passed = tuple(
            graph for graph in kept if (graph.form, graph.format) not in beyond or graph.form == MULTI_ADAPTER
        )
        return tuple(found), passed


def rows_of(graphs: Sequence[GraphVariant], passed: Sequence[GraphVariant]) -> Iterator[dict[str, Any]]:
    """The graphs as the report wants them: plain values; `shipped` where a graph is among the `passed` ones, whose
    figures are taken."""
    judged = {graph.digest: graph for graph in passed}
    for one in graphs:
        graph = judged.get(one.digest, one)
        yield {
            "shipped": one.digest in judged,
            "digest": graph.digest, "form": graph.form, "dtype": graph.format,
            "size_bytes": graph.path.stat().st_size, **(graph.figures or {}),
        }  # fmt: skip


def _costs(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Latency and memory of a measured graph; none where this host does not run it as a device would."""
    if "latency" not in facts:
        return {}
    latency, memory = facts["latency"], facts["memory"]
    return {
        "latency_ms": latency["p50_ms"], "latency": latency, "peak_bytes": memory["peak_bytes"], "memory": memory
    }  # fmt: skip


def _graph(form: str, dtype: str, entry: StepResult, name: str, parity: float | None = None) -> GraphVariant:
    figures = {} if parity is None else {"parity": parity}
    return GraphVariant(form, dtype, entry.path(name), entry.digests(name)[name], figures)


def _parity(entry: StepResult) -> float:
    """The largest difference from PyTorch that the export step measured."""
    parities: Mapping[str, Mapping[str, float | None]] = entry.facts["parity"]
    return max(float(found[key] or 0.0) for found in parities.values() for key in ("features", "logits"))
