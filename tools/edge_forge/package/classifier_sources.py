"""Package sources of a classifier: base, adapter and merged model, from the graphs and what was measured of them.

The base's package depends on the base and the bank's settings alone, so that recipes which agree on them share it
(docs/decisions/0023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from edge_agent.bundle.catalog import LOSS_LOW
from edge_agent.bundle.drift_reference import UNKNOWN_SHARE, Kind, to_metrics
from edge_forge.data.answer_rows import NO_ANSWER
from edge_forge.package.release import merged_id
from edge_forge.package.sources import AdapterPackageSource, ModelSource, VariantSource
from edge_forge.recipe.classifier_recipe import ClassifierRecipe

LOSS_HIGH = "accuracy_loss_high"
RUNTIME, TENSORRT, LITERT = "onnx", "tensorrt", "litert"
BANK_WITH_TOKENS = "adapter-bank/2"
"""What a device must know to serve the base: its bank has heads for tokens beside those for texts."""
MULTI_ADAPTER, MERGED_FORM = "banked", "merged"
"""Forms of a graph: the base with inputs for a bank of adapters; base and adapter in one."""
ENGINE_HOST_BYTES = 300 << 20
"""Resident memory of the process that owns an engine, the engine apart (289 MB with TensorRT 8.6, docs/jetson.md)."""


@dataclass(frozen=True, slots=True)
class GraphVariant:
    """One graph file and what was measured of it. `form` is `MULTI_ADAPTER` or `MERGED_FORM`, `runtime` what runs it.

    `figures` holds accuracy and the like where the graph has a task, and peak_bytes, latency_ms.
    """

    form: str
    dtype: str
    path: Path
    digest: str
    figures: Mapping[str, Any] | None = None
    runtime: str = RUNTIME
    engines: Mapping[str, Path] = field(default_factory=dict)
    """Engines that devices built from it, by their place in a package."""

    @property
    def variant(self) -> str:
        """The variant's name in a package: 'onnx/int8'."""
        return f"{self.runtime}/{self.dtype}"

    @property
    def format(self) -> str:
        """The number format for people, with the runtime where that is not ONNX Runtime: 'int8', 'tensorrt fp16'."""
        return self.dtype if self.runtime == RUNTIME else f"{self.runtime} {self.dtype}"

    @property
    def runs_here(self) -> bool:
        """Whether this host runs it as a device does; engines of TensorRT need a GPU and are built on the device."""
        return self.runtime != TENSORRT

    @property
    def measured_by(self) -> str:
        """The device's backend that computes it here: its own, or ONNX Runtime's for what stands in for an engine."""
        return self.runtime if self.runs_here else RUNTIME


def task_of(recipe: ClassifierRecipe, labels: Sequence[str], prompt: str = "") -> dict[str, Any]:
    """The task for the device; `prompt` is the base's, put before every text."""
    task = recipe.task
    return {
        "kind": task.kind,
        "labels": [] if recipe.answers else list(labels),
        "max_tokens": task.max_tokens,
        "threshold": task.threshold,
        "out_of_scope": task.out_of_scope,
        **with_prompt(prompt),
        **({"pairs": True} if recipe.pairs else {}),
        **(_answer_fields(recipe, labels) if recipe.answers else {}),
    }


def _answer_fields(recipe: ClassifierRecipe, labels: Sequence[str]) -> dict[str, Any]:
    """What a task of answers has beside; the model may say that there is no answer where the rows have such."""
    task = recipe.task
    return {
        "window_overlap": task.window_overlap,
        "answer_tokens": task.answer_tokens,
        "no_answer": NO_ANSWER in labels,
    }


def with_prompt(prompt: str) -> dict[str, str]:
    """The task's field for a prompt, where there is one."""
    return {"prompt": prompt} if prompt else {}


def variants(graphs: Sequence[GraphVariant], answers: bool = False) -> list[VariantSource]:
    """The variants of a model with their figures; a model that `answers` alone also carries its drift reference."""
    return [
        VariantSource(
            weights=graph.path,
            runtime=graph.runtime,
            dtype=graph.dtype,
            peak_bytes=int((graph.figures or {}).get("peak_bytes") or _estimated_bytes(graph)),
            accuracy=(graph.figures or {}).get("accuracy"),
            options={"precision": graph.dtype} if graph.runtime == TENSORRT else {},
            metrics=numbers(graph) | (drift_reference(graph) if answers else {}),
            engines=graph.engines,
        )
        for graph in graphs
    ]


def _estimated_bytes(graph: GraphVariant) -> int:
    """Memory of a graph that was not loaded here. A device's trial replaces it by what it measures."""
    size = graph.path.stat().st_size
    return 3 * size if graph.runs_here else ENGINE_HOST_BYTES + 2 * size


def numbers(graph: GraphVariant) -> dict[str, float]:
    """The figures of a graph that travel in its package, rounded so that they read well.

    `judged_on_cpu` is 1 for a graph whose accuracy is that of its emulation on this host's processor.
    """
    wanted = ("accuracy", "macro_f1", "mcc", "ece", "latency_ms", "parity", "peak_bytes", LOSS_LOW, LOSS_HIGH)
    judged = {} if graph.runs_here else {"judged_on_cpu": 1.0}
    figures = graph.figures or {}
    return {key: float(f"{figures[key]:.6g}") for key in wanted if figures.get(key) is not None} | judged


def drift_reference(graph: GraphVariant) -> dict[str, float]:
    """The drift reference of the test set: histograms of top scores and of tokens per byte, and the share of unknown
    tokens. A device compares its own requests with it. Empty where nothing was measured."""
    figures = graph.figures or {}
    found: dict[str, float] = {}
    for kind in get_args(Kind):
        if figures.get(kind):
            found |= to_metrics(figures[kind], kind)
    unknown = figures.get("out_of_vocabulary")
    return found if unknown is None else {**found, UNKNOWN_SHARE: round(unknown, 6)}


def base_task(max_tokens: int, prompt: str = "") -> dict[str, Any]:
    """What the base answers without an adapter."""
    return {"kind": "embed", "max_tokens": max_tokens, **with_prompt(prompt)}


def base_model(
    recipe: ClassifierRecipe,
    base_id: str,
    config: Mapping[str, Any],
    graphs: Sequence[GraphVariant],
    files: Mapping[str, Path],
    max_tokens: int,
    prompt: str = "",
) -> ModelSource:
    """The base with its bank; `files` are 'tokenizer' and 'probes'. Without an adapter it answers embeddings."""
    return ModelSource(
        name=recipe.base.name,
        base_id=base_id,
        task=base_task(max_tokens, prompt),
        variants=variants(graphs),
        probes=files["probes"],
        tokenizer=files["tokenizer"],
        architecture=str(config.get("model_type", "")),
        requires=(BANK_WITH_TOKENS,),
    )


def merged_model(
    recipe: ClassifierRecipe, labels: Sequence[str], merged_from: Mapping[str, str], graphs: Sequence[GraphVariant],
    files: Mapping[str, Path], prompt: str = "",
) -> ModelSource:  # fmt: skip
    """Base and adapter in one graph; `merged_from` names the base_id and the digest of what was folded in."""
    return ModelSource(
        name=recipe.merged_name,
        base_id=merged_id(merged_from),
        task=task_of(recipe, labels, prompt),
        variants=variants(graphs, answers=True),
        probes=files["probes"],
        tokenizer=files["tokenizer"],
        licences=[recipe.package.licence] if recipe.package.licence else (),
        merged_from=merged_from,
        docs=_docs(files),
    )


def adapter(
    recipe: ClassifierRecipe, labels: Sequence[str], record: Mapping[str, Any], files: Mapping[str, Path],
    graphs: Sequence[GraphVariant], prompt: str = "",
) -> AdapterPackageSource:  # fmt: skip
    """The adapter, with what it is worth on each variant of the base ('accuracy.onnx/int8')."""
    settings = record["settings"]
    reference = next(graph for graph in graphs if graph.variant == f"{RUNTIME}/fp32")
    metrics = {
        f"{key}.{graph.variant}": value
        for graph in graphs
        for key, value in numbers(graph).items()
        if key in ("accuracy", "macro_f1", "latency_ms")
    }
    return AdapterPackageSource(
        name=recipe.name,
        base_id=record["base_id"],
        weights=files["adapter"],
        rank=record["adapter_rank"],
        alpha=settings["alpha"],
        targets=record["adapted_modules"],
        task=task_of(recipe, labels, prompt),
        probes=files["probes"],
        accuracy=(reference.figures or {}).get("accuracy"),
        metrics=metrics | drift_reference(reference),
        docs=_docs(files),
        licences=[recipe.package.licence] if recipe.package.licence else (),
        requires=(BANK_WITH_TOKENS,) if recipe.of_tokens else (),
    )


def _docs(files: Mapping[str, Path]) -> dict[str, Path]:
    """The card travels as README.md, the name that registries show."""
    return {"README.md": files["card"]} if "card" in files else {}
