"""What every comparison of runs shows: the cost of training, the settings that differ, and the claims of the sources.

`runs` maps a name to the figures of a build; a `record` is its training (`train.record.TrainRecord` as plain values).
The sources: A, an article on full fine-tuning against LoRA at the edge; B, a paper on efficient fine-tuning with LoRA.
Several claims are loose or second-hand, so each row says why the figures here may differ; what was not measured stays
open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_forge.progress import duration, size
from edge_forge.report.blocks import Block, Heading, Paragraph, Table
from edge_forge.train.methods import FULL, LORA

_OPEN = "not measured in this build"


def _ratio(value: float) -> str:
    return f"{value:.2f}×"


def _find(variants: Sequence[Mapping[str, Any]], form: str, dtype: str) -> Mapping[str, Any] | None:
    """The variant of that kind: the one that is shipped; of several that are not, the one that measured best."""
    found = [one for one in variants if one["form"] == form and one["dtype"] == dtype]
    return max(
        found, key=lambda one: (bool(one.get("shipped")), float(one.get("validation_accuracy") or 0.0)), default=None
    )


def variant_claims(variants: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows (source, claim, ours, why it differs) on number formats, from one recipe's measured variants."""
    form = "merged" if _find(variants, "merged", "fp32") else "banked"
    float32 = _find(variants, form, "fp32")
    rows = []
    for dtype, claim, why in (
        ("fp16", "FP16: about 2× less memory, 2× faster, minimal loss",
         "ONNX Runtime has no float16 kernels on this CPU and converts around every product: "
         "smaller file, not faster"),
        ("int8", "INT8: about 4× less memory, 4× faster or more, moderate loss",
         "weights shrink 4×, what stays float does not; speed depends on VNNI or dotprod and the batch"),
    ):  # fmt: skip
        found = _find(variants, form, dtype)
        rows.append(["A", claim, _OPEN if not (found and float32) else _against(found, float32), why])
    return rows


def _against(found: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    parts = [f"file {_ratio(reference['size_bytes'] / found['size_bytes'])} smaller"]
    if found.get("peak_bytes") and reference.get("peak_bytes"):
        parts.append(f"memory {_ratio(reference['peak_bytes'] / found['peak_bytes'])} smaller")
    if found.get("latency_ms") and reference.get("latency_ms"):
        parts.append(f"{_ratio(reference['latency_ms'] / found['latency_ms'])} as fast")
    parts.append(f"{100 * (found['accuracy'] - reference['accuracy']):+.2f} points of accuracy")
    return ", ".join(parts)


def training_claims(records: Mapping[str, Mapping[str, Any]], accuracy: Mapping[str, float] | None) -> list[list[str]]:
    """Rows on training, from the records of runs by method; `accuracy` is on the measured split, by method, or None
    where answers are no labels."""
    lora, full = records.get(LORA.name), records.get(FULL.name)
    both = lora is not None and full is not None
    rows = [
        ["B", "LoRA trains in 40 % less time", _change(lora, full, "wall_s") if both else _OPEN,
         "theirs is a GPU with large models; here the frozen layers' forward pass weighs more"],
        ["B", "LoRA trains in 35 % less memory", _change(lora, full, "peak_bytes") if both else _OPEN,
         "optimiser state shrinks, activations do not; of a small model they are most"],
    ]  # fmt: skip
    if accuracy is not None:
        rows.append(
            ["B", "SST-2: LoRA 92.3 %, full 92.5 % (BERT-base)",
             f"LoRA {100 * accuracy[LORA.name]:.1f} %, full {100 * accuracy[FULL.name]:.1f} %" if both else _OPEN,
             "comparable on SST-2 only; ours is an encoder a fifth of the size, on whole sentences"]
        )  # fmt: skip
    if full is not None:
        model = 4 * full["total_parameters"]
        rows.append(
            ["A", "full fine-tuning needs about 12× the model's size in memory", _ratio(full["peak_bytes"] / model),
             "peak of the training process with its libraries, over the weights in float32"]
        )  # fmt: skip
    return rows


def _change(lora: Mapping[str, Any] | None, full: Mapping[str, Any] | None, key: str) -> str:
    assert lora is not None  # noqa: S101 - the caller has both
    assert full is not None  # noqa: S101
    return f"{100 * (lora[key] / full[key] - 1):+.0f} %"


Runs = Mapping[str, Mapping[str, Any]]
Panel = tuple[str, str, Mapping[str, float | None]]
COSTS = ("train time", "processor time", "peak memory", "trained parameters")
_KEYS = ("wall_s", "cpu_s", "peak_bytes", "trainable_parameters")


def costs(record: Mapping[str, Any]) -> list[str]:
    """The cells under `COSTS`."""
    return [
        duration(record["wall_s"]), duration(record["cpu_s"]), size(record["peak_bytes"]),
        f"{record['trainable_parameters']:,}",
    ]  # fmt: skip


def cost_changes(record: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    """The cells under `COSTS` as differences to the first run's."""
    return [f"{100 * (record[key] / first[key] - 1):+.0f} %" for key in _KEYS]


def cost_panels(runs: Runs) -> list[Panel]:
    """Time and memory of training, to be drawn."""
    records = {name: figures["train"] for name, figures in runs.items()}
    return [
        ("Train time, s", "{:.0f}", {name: record["wall_s"] for name, record in records.items()}),
        ("Peak memory, MiB", "{:.0f}", {name: record["peak_bytes"] / 2**20 for name, record in records.items()}),
    ]


def claims(runs: Runs, accuracy: Mapping[str, float] | None = None) -> list[Block]:
    """What the sources claim of methods, beside the recipe here that most methods were tried on.

    `accuracy` is that of every run, where answers are labels.
    """
    recipes: dict[str, dict[str, str]] = {}
    for name, figures in runs.items():
        recipes.setdefault(figures["recipe"]["name"], {})[figures["train"]["method"]] = name
    tried = max(recipes.values(), key=len)
    records = {method: runs[name]["train"] for method, name in tried.items()}
    shares = None if accuracy is None else {method: accuracy[name] for method, name in tried.items()}
    rows = training_claims(records, shares)
    return [Heading("Beside the sources' claims"), Table(("source", "claim", "here", "why it may differ"), rows)]


def settings(runs: Runs) -> list[Block]:
    """What the runs were told that differs between them, and what peak memory holds."""
    first = next(iter(runs.values()))["train"]
    return [
        Heading("Settings"),
        Table(("run", "what differs"), [[name, _own(name, runs)] for name in runs]),
        Paragraph("Memory is the peak of the training process, its libraries included "
             f"({size(first['baseline_bytes'])} of it before the base was opened)."),
    ]  # fmt: skip


def _own(name: str, runs: Runs) -> str:
    own = runs[name]["train"]["settings"]
    others = [figures["train"]["settings"] for figures in runs.values()]
    return ", ".join(f"{key} = {value}" for key, value in sorted(own.items()) if any(o[key] != value for o in others))


def wilson(right: int, rows: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927): (low, high), for 95 % by default."""
    share, weight = right / rows, z * z / rows
    middle = (share + weight / 2) / (1 + weight)
    half = z * (share * (1 - share) / rows + weight / (4 * rows)) ** 0.5 / (1 + weight)
    return middle - half, middle + half


def percent(share: float) -> str:
    """A share as a percentage with one digit."""
    return f"{100 * share:.1f} %"
