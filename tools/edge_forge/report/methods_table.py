"""Methods side by side over seeds, and a recommendation in words: which method, attached or merged, in which format.

`runs` maps a name to the figures of a build (`plan.classifier_plan`: of these `train`, `variants`, `adapter_bytes`,
`split` and `scores` are read) with `seeds`: {seed, score, cpu_s, wall_s, peak_bytes} of each run, and `step_sizes`:
what each step size scored on the validation rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from edge_forge.progress import duration, size
from edge_forge.report import forgetting_report, plots
from edge_forge.report.blocks import Block, Drawing, Heading, Paragraph, Table
from edge_forge.report.claims import Runs
from edge_forge.train.methods import ADAPTER, METHODS

_NEAR = 0.003
"""A run whose mean accuracy is at most so far below the best one's is as good, where seeds do not show more."""

UNSEARCHED = (
    "No step size was searched for each of them (`--step-sizes`): a method that looks worse may only have had the "
    "wrong one."
)


class Spread(NamedTuple):
    """Mean and half the 95 % interval (Student's) of a few runs; NaN of one run."""

    mean: float
    half: float


def spread(values: Sequence[float]) -> Spread:
    """Of runs with other seeds."""
    mean, count = sum(values) / len(values), len(values)
    if count < 2:
        return Spread(mean, math.nan)
    from scipy import stats

    deviation = math.sqrt(sum((one - mean) ** 2 for one in values) / (count - 1))
    return Spread(mean, float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count))


def blocks_of(runs: Runs) -> Iterator[Block]:
    """The table, what was said of step sizes, and the recommendation."""
    count = min(len(figures["seeds"]) for figures in runs.values())
    yield Heading("Methods over seeds")
    yield Paragraph(
        f"{count} run{'s' * (count != 1)} of each, with other seeds; scores by PyTorch on the measured split, with "
        "Student's 95 % interval over the seeds. Files, losses and latencies are those of the first seed; a loss is "
        "that of the number format beside FP32, in points. `attached p50` is a text by the base with the adapter "
        "in its bank, `swap` the time to put another adapter there; a model of its own is loaded instead. "
        "`intruders` are directions that the base did not have (`edge-forge diagnose`). Energy is told by devices "
        "with a sensor."
    )
    yield Table(
        ("run", "step size", "accuracy", "±", "train time", "processor time", "peak memory", "trained parameters",
         "file", "INT8 loss", "FP16 loss", "INT8 p50", "INT8 p99", "INT8 memory", "attached p50", "swap", "intruders",
         "most forgotten"),
        [[name, *_cells(figures)] for name, figures in runs.items()],
    )  # fmt: skip
    yield Paragraph(steps_said(runs))
    if len(runs) > 1:
        yield Drawing(
            "pareto", "Further up and further left is better; the line joins the runs that no other beats in both.",
            pareto_of(runs),
        )  # fmt: skip
    yield Heading("What to choose")
    searched = len(runs) == 1 or all(len(figures.get("step_sizes") or ()) > 1 for figures in runs.values())
    yield Paragraph(recommendation(runs) if searched else f"{recommendation(runs)} {UNSEARCHED}")


def _cells(figures: Mapping[str, Any]) -> list[str]:
    seeds, record = figures["seeds"], figures["train"]
    score = spread([one["score"] for one in seeds])
    cost = {key: sum(one[key] for one in seeds) / len(seeds) for key in ("wall_s", "cpu_s", "peak_bytes")}
    int8, latency = _variant(figures, "int8"), (_variant(figures, "int8") or {}).get("latency") or {}
    return [
        f"{record['settings']['learning_rate']:g}", f"{score.mean:.4f}",
        "–" if math.isnan(score.half) else f"{score.half:.4f}", duration(cost["wall_s"]), duration(cost["cpu_s"]),
        size(cost["peak_bytes"]), f"{record['trainable_parameters']:,}", _file(figures), _loss(figures, "int8"),
        _loss(figures, "fp16"), f"{latency['p50_ms']:.1f} ms" if "p50_ms" in latency else "–",
        f"{latency['p99_ms']:.1f} ms" if "p99_ms" in latency else "–",
        size(int8["peak_bytes"]) if int8 and int8.get("peak_bytes") else "–",
        *_attached_costs(figures), str(figures.get("intruders", "–")),
        forgetting_report.worst(figures.get("kept") or {}),
    ]  # fmt: skip


def _attached_costs(figures: Mapping[str, Any]) -> tuple[str, str]:
    """A text with the adapter in the bank, and the time to put it there; of INT8 where it was measured."""
    found = {one["dtype"]: one["latency"] for one in figures.get("attached") or ()}
    latency = found.get("int8") or next(iter(found.values()), None)
    return ("–", "–") if latency is None else (f"{latency['p50_ms']:.1f} ms", f"{latency['attach_ms']:.2f} ms")


def pareto_of(runs: Runs) -> str:
    """The drawing of quality against each cost, with the runs that no other beats in both."""
    scores = {name: spread([one["score"] for one in figures["seeds"]]) for name, figures in runs.items()}
    panels: dict[str, dict[str, float]] = {"Processor time to train, s": {name: _cpu_s(runs[name]) for name in runs}}
    panels["Peak memory to train, MiB"] = {
        name: sum(one["peak_bytes"] for one in figures["seeds"]) / len(figures["seeds"]) / 2**20
        for name, figures in runs.items()
    }
    panels["File of one more task, MiB"] = {
        name: found / 2**20 for name, figures in runs.items() if (found := _file_bytes(figures)) is not None
    }
    panels["INT8 p50, ms"] = {
        name: latency["p50_ms"]
        for name, figures in runs.items()
        if "p50_ms" in (latency := (_variant(figures, "int8") or {}).get("latency") or {})
    }
    return plots.pareto(scores, {title: costs for title, costs in panels.items() if costs})


def _variant(figures: Mapping[str, Any], dtype: str) -> Mapping[str, Any] | None:
    return next(
        (one for one in figures.get("variants") or () if (one["form"], one["dtype"]) == ("merged", dtype)), None
    )


def _file(figures: Mapping[str, Any]) -> str:
    """What a further task adds to a device."""
    found = _file_bytes(figures)
    return "–" if found is None else f"{size(found)} {'adapter' if 'adapter_bytes' in figures else 'model'}"


def _file_bytes(figures: Mapping[str, Any]) -> int | None:
    if "adapter_bytes" in figures:
        return int(figures["adapter_bytes"])
    shipped = [one for one in figures.get("variants") or () if one["shipped"] and one["form"] == "merged"]
    return min((int(one["size_bytes"]) for one in shipped), default=None)


def _loss(figures: Mapping[str, Any], dtype: str) -> str:
    one, float32 = _variant(figures, dtype), _variant(figures, "fp32")
    return f"{100 * (float32['accuracy'] - one['accuracy']):+.2f}" if one and float32 else "–"


def steps_said(runs: Runs, score: str = "score") -> str:
    """At which step sizes the runs were trained, and what each that was tried scored."""
    tried = {name: figures["step_sizes"] for name, figures in runs.items() if figures.get("step_sizes")}
    if not tried:
        return "Each ran at the step size of its recipe or of the table of methods; none was searched (`--step-sizes`)."
    said = "; ".join(
        f"{name}: " + ", ".join(f"{one['learning_rate']:g} {_validation(one)}" for one in found)
        for name, found in tried.items()
    )
    return (
        f"Each ran at the step size that was best on the validation rows, by the first seed (step size, {score}): "
        f"{said}."
    )


def _validation(tried: Mapping[str, Any]) -> str:
    """The score of a step size, or why it has none."""
    return f"failed ({tried['failed']})" if tried["validation"] is None else f"{tried['validation']:.4f}"


def recommendation(runs: Runs) -> str:
    """One sentence or two: of the runs that are as good as the best one, an adapter before a model of its own, then the
    one that takes the least processor time."""
    means = {name: spread([one["score"] for one in figures["seeds"]]).mean for name, figures in runs.items()}
    best = max(means, key=lambda name: means[name])
    equal = [name for name in runs if name == best or _as_good(runs[name], runs[best])]
    chosen = min(equal, key=lambda name: (not _attached(runs[name]), _cpu_s(runs[name])))
    figures = runs[chosen]
    method, rank = METHODS[figures["train"]["method"]], figures["train"].get("adapter_rank") or 0
    form = "attached to a shared base" if _attached(figures) else method.on_devices
    told = f"**Take {chosen}** ({method.title}{f', rank {rank}' if rank > 1 else ''}), {form}{_format(figures)}: "
    if chosen == best:
        told += f"its mean accuracy, {means[chosen]:.4f}, is the highest"
    else:
        told += (
            f"its mean accuracy, {means[chosen]:.4f}, is not told apart from the highest, {means[best]:.4f} of {best}, "
            f"by {_by(figures)}"
        )
    others = [name for name in equal if name != chosen]
    told += f", and {_why(runs, chosen, others)}." if others else "; no other run is as good."
    behind = [f"{name} ({100 * (means[name] - means[best]):+.2f} points)" for name in runs if name not in equal]
    return told + (f" Behind: {', '.join(behind)}." if behind else "")


def _by(figures: Mapping[str, Any]) -> str:
    """What does not tell two runs apart."""
    count = len(figures["seeds"])
    return f"{count} seeds" if count > 1 else "one seed on so many rows"


def _as_good(one: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    """Whether it is left open that a run is as good as the best, or it is nearly so: by the seeds, in pairs; of one
    seed by the number of rows that both were measured on."""
    pairs = [other["score"] - own["score"] for own, other in zip(one["seeds"], best["seeds"], strict=False)]
    found = spread(pairs)
    half = _of_rows(one, best) if len(pairs) == 1 else found.half
    return found.mean <= _NEAR or found.mean - half <= 0.0


def _of_rows(one: Mapping[str, Any], best: Mapping[str, Any]) -> float:
    """Half the 95 % interval of the difference of two accuracies by their rows, as if those were drawn for each anew;
    both answer the same rows, so it is rather too wide."""
    variances = [
        share * (1.0 - share) / figures["scores"][figures["split"]]["rows"]
        for figures in (one, best)
        for share in [figures["seeds"][0]["score"]]
    ]
    return 1.96 * math.sqrt(sum(variances))


def _attached(figures: Mapping[str, Any]) -> bool:
    return METHODS[figures["train"]["method"]].exportable_to(ADAPTER) and "adapter_bytes" in figures


def _cpu_s(figures: Mapping[str, Any]) -> float:
    return float(sum(one["cpu_s"] for one in figures["seeds"]) / len(figures["seeds"]))


def _format(figures: Mapping[str, Any]) -> str:
    """The shipped number format that answers fastest on this host."""
    timed = [
        one for one in figures.get("variants") or () if one["shipped"] and (one.get("latency") or {}).get("p50_ms")
    ]
    if not timed:
        return ""
    fastest = min(timed, key=lambda one: float(one["latency"]["p50_ms"]))
    return f", as {str(fastest['dtype']).upper()} (merged: {fastest['latency']['p50_ms']:.1f} ms a text on this host)"


def _why(runs: Runs, chosen: str, others: Sequence[str]) -> str:
    figures = runs[chosen]
    least = min(others, key=lambda name: _cpu_s(runs[name]))
    cost = f"it trains in {_cpu_s(figures) / _cpu_s(runs[least]):.2f} times the processor time of {least}"
    if _attached(figures) and not all(_attached(runs[name]) for name in others):
        return f"a further task adds {size(figures['adapter_bytes'])} to a device that has the base; {cost}"
    return cost
