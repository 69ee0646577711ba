"""From measured graphs to packages: the base's, the adapter's and the merged model's, each unsigned and deterministic.

The base's package depends on the base and the bank's settings alone, so that recipes which agree on them share it
(docs/decisions/0023). Moments come from the caller; SOURCE_DATE_EPOCH makes a package the same on any day.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from edge_agent.bundle.drift_reference import UNKNOWN_SHARE, Kind, to_metrics
from edge_agent.bundle.layout import open_package
from edge_agent.bundle.statement import Now, check_time
from edge_agent.bundle.verify import check_weights, load_trust, read_package, read_release
from edge_forge.package.sources import AdapterSource, ModelSource, ReleaseSource, VariantSource
from edge_forge.recipe.classifier_recipe import Recipe
from edge_forge.recipe.schema import PackageSection

_DAY_S = 86_400
RUNTIME = "onnx"


@dataclass(frozen=True, slots=True)
class Graph:
    """One ONNX file and what was measured of it. `form` is 'banked' or 'merged', `how` 'dynamic' or 'static' INT8.

    `figures` holds accuracy and the like where the graph has a task, and peak_bytes, latency_ms.
    """

    form: str
    dtype: str
    path: Path
    digest: str
    how: str = ""
    figures: Mapping[str, Any] | None = None

    @property
    def variant(self) -> str:
        """The variant's name in a package: 'onnx/int8'."""
        return f"{RUNTIME}/{self.dtype}"


def issued_s() -> int:
    """Now, or the moment that SOURCE_DATE_EPOCH names."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())


def freshness(section: PackageSection, now_s: int) -> int:
    """A number that changes every half life of a package: part of its key, so that no build hands out an old one."""
    return now_s // (section.expires_days * _DAY_S // 2)


def release(section: PackageSection, product: str, counter: int, now_s: int) -> ReleaseSource:
    """The statement's fields for one product."""
    return ReleaseSource(
        product=product,
        counter=counter,
        issued_at=_moment(now_s),
        expires=_moment(now_s + section.expires_days * _DAY_S),
        channel=section.channel,
        min_agent=section.min_agent,
        hardware=section.hardware,
    )


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def task_of(recipe: Recipe, labels: Sequence[str]) -> dict[str, Any]:
    """The classifier's task for the device."""
    task = recipe.task
    return {
        "kind": "classify",
        "labels": list(labels),
        "max_tokens": task.max_tokens,
        "threshold": task.threshold,
        "out_of_scope": task.out_of_scope,
    }


def variants(graphs: Sequence[Graph], answers: bool = False) -> list[VariantSource]:
    """The variants of a model, with what was measured; where it `answers` by itself, also what its test set is like."""
    return [
        VariantSource(
            weights=graph.path,
            runtime=RUNTIME,
            dtype=graph.dtype,
            peak_bytes=int((graph.figures or {}).get("peak_bytes") or 3 * graph.path.stat().st_size),
            accuracy=(graph.figures or {}).get("accuracy"),
            metrics=numbers(graph) | (likeness(graph) if answers else {}),
        )
        for graph in graphs
    ]


def numbers(graph: Graph) -> dict[str, float]:
    """The figures of a graph that travel in its package, rounded so that they read well."""
    wanted = ("accuracy", "macro_f1", "mcc", "ece", "latency_ms", "parity", "peak_bytes")
    figures = graph.figures or {}
    return {key: float(f"{figures[key]:.6g}") for key in wanted if figures.get(key) is not None}


def likeness(graph: Graph) -> dict[str, float]:
    """What the test set is like, for the device to see drift: histograms of top scores and of how texts fall apart, and
    the share of unknown tokens. Empty where nothing was measured."""
    figures = graph.figures or {}
    found: dict[str, float] = {}
    for kind in get_args(Kind):
        if figures.get(kind):
            found |= to_metrics(figures[kind], kind)
    unknown = figures.get("out_of_vocabulary")
    return found if unknown is None else {**found, UNKNOWN_SHARE: round(unknown, 6)}


def base_model(
    recipe: Recipe, base_id: str, config: Mapping[str, Any], graphs: Sequence[Graph], files: Mapping[str, Path]
) -> ModelSource:
    """The base with its bank; `files` are 'tokenizer' and 'probes'. Without an adapter it answers embeddings."""
    return ModelSource(
        name=recipe.base.name,
        base_id=base_id,
        task={"kind": "embed", "max_tokens": recipe.export.bank_tokens},
        variants=variants(graphs),
        probes=files["probes"],
        tokenizer=files["tokenizer"],
        architecture=str(config.get("model_type", "")),
        requires=("adapter-bank/1",),
    )


def merged_model(
    recipe: Recipe, labels: Sequence[str], merged_from: Mapping[str, str], graphs: Sequence[Graph],
    files: Mapping[str, Path],
) -> ModelSource:  # fmt: skip
    """Base and adapter in one graph; `merged_from` names the base_id and the digest of what was folded in."""
    return ModelSource(
        name=merged_name(recipe),
        base_id=merged_id(merged_from),
        task=task_of(recipe, labels),
        variants=variants(graphs, answers=True),
        probes=files["probes"],
        tokenizer=files["tokenizer"],
        licences=[recipe.package.licence] if recipe.package.licence else (),
        merged_from=merged_from,
        docs=_docs(files),
    )


def merged_id(merged_from: Mapping[str, str]) -> str:
    """The base_id of folded weights: a digest of what was folded, the same for classifiers and generators."""
    text = "edge-merged/1\n" + "".join(f"{key}={value}\n" for key, value in sorted(merged_from.items()))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def merged_name(recipe: Recipe) -> str:
    """The merged model's name on the device."""
    return f"{recipe.name}-merged"


def adapter(
    recipe: Recipe, labels: Sequence[str], record: Mapping[str, Any], files: Mapping[str, Path],
    graphs: Sequence[Graph],
) -> AdapterSource:  # fmt: skip
    """The adapter, with what it is worth on each variant of the base ('accuracy.onnx/int8')."""
    settings = record["settings"]
    reference = next(graph for graph in graphs if graph.dtype == "fp32")
    metrics = {
        f"{key}.{graph.variant}": value
        for graph in graphs
        for key, value in numbers(graph).items()
        if key in ("accuracy", "macro_f1", "latency_ms")
    }
    return AdapterSource(
        name=recipe.name,
        base_id=record["base_id"],
        weights=files["adapter"],
        rank=settings["rank"],
        alpha=settings["alpha"],
        targets=record["adapted_modules"],
        task=task_of(recipe, labels),
        probes=files["probes"],
        accuracy=(reference.figures or {}).get("accuracy"),
        metrics=metrics | likeness(reference),
        docs=_docs(files),
    )


def _docs(files: Mapping[str, Path]) -> dict[str, Path]:
    """The card travels as README.md, the name that registries show."""
    return {"README.md": files["card"]} if "card" in files else {}


def verify(package: Path, root_file: Path) -> dict[str, Any]:
    """Check a signed package as a device would, weights included. Raises PackageError, SignatureError."""
    trust = load_trust(root_file)
    with open_package(package) as opened:
        verified = read_release(opened, trust, allow_unsigned=False)
        check_time(verified.release, Now(time.time(), trusted=True))
        contents = read_package(opened, verified.release)
        absent = check_weights(opened, contents)
    release = verified.release
    return {"product": release.product, "counter": release.counter, "signers": sorted(verified.signers),
            "expires": release.expires, "left_to_the_device": [one.digest for one in absent]}  # fmt: skip
