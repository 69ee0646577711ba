"""Runs of generators side by side: a table of what each brings and costs, and a recommendation in words.

`runs` maps a name to the figures of a build (`plan.generator_plan`: of these `train`, `files`, `adapter`, `scores` and
`kept` are read), perhaps with `seeds` ({seed, scores, cpu_s, wall_s, peak_bytes} of each run) and `step_sizes`; with
`beside`: by the name of another run on the same rows, how the two differ there (`perplexity`: `PairedLosses`, the
other's over this one's; `exact_match` and `preferred` as {gain, gain_low, gain_high} in shares, the other's minus this
one's). Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edge_forge.evaluate.forgetting import EXACT
from edge_forge.progress import duration, size
from edge_forge.report import forgetting_report
from edge_forge.report.blocks import Block, Heading, Paragraph, Table
from edge_forge.report.claims import Runs, wilson
from edge_forge.report.generator_report import SCORES, flat
from edge_forge.report.methods_table import spread, steps_said
from edge_forge.train.methods import ADAPTER, METHODS

_NEAR = {"perplexity": 0.01, "preferred": 0.003}
"""A run whose perplexity is at most so much above the best one's, as a share, or whose share of preferred pairs is at
most so much below, is as good, where rows or seeds do not show more."""


def headline(runs: Runs) -> str:
    """The score that runs are ranked by: the share of preferred pairs, or the perplexity of the measured answers, which
    tells runs apart where few answers are the wanted ones to the letter."""
    return "preferred" if all(figures["scores"]["tuned"].get("preferences") for figures in runs.values()) else (
        "perplexity"
    )  # fmt: skip


def table(runs: Runs) -> Table:
    """A row per run: scores with 95 % intervals, cost of training, what devices get, and what is forgotten."""
    keys = _keys(runs)
    dtypes = list(dict.fromkeys(one["dtype"] for figures in runs.values() for one in figures["files"]))
    formats = [dtype for dtype in dtypes if dtype != "f16"]
    asked = any(figures.get("kept") for figures in runs.values())
    sets = [name for name in dict.fromkeys(key for one in runs.values() for key in one.get("kept") or {})
            if name.startswith(EXACT)]  # fmt: skip
    columns = (
        "run", "step size", *(SCORES[key][0] for key in keys), *map(forgetting_report.title, sets),
        "train time", "processor time", "peak memory", "trained parameters", "one more task",
        *(f"{dtype} loss" for dtype in formats), "intruders", *(["most forgotten"] if asked else []),
    )  # fmt: skip
    return Table(columns, [
        [
            name, f"{figures['train']['settings']['learning_rate']:g}", *(_score(figures, key) for key in keys),
            *(_exact(figures, one) for one in sets), *_costs(figures), _one_more(figures),
            *(_loss(figures, dtype) for dtype in formats), str(figures.get("intruders", "–")),
            *([forgetting_report.worst(figures.get("kept") or {})] if asked else []),
        ]
        for name, figures in runs.items()
    ])  # fmt: skip


def blocks_of(runs: Runs) -> Iterator[Block]:
    """The table, what was said of step sizes, and the recommendation."""
    count = min(len(figures.get("seeds") or [0]) for figures in runs.values())
    by = (
        f"means of {count} runs with other seeds and Student's 95 % interval over them" if count > 1
        else "of one run each, with 95 % intervals by the rows (Wilson's of shares)"
    )  # fmt: skip
    yield Heading("Methods side by side")
    yield Paragraph(
        f"Scores by PyTorch on the measured split, {by}. A format's loss is that of its file beside F16 on the same "
        "rows: of the perplexity in percent, with its interval; of preferences in points of the preferred pairs too. "
        "What is forgotten is in points of a hundred, the worst of the questions."
    )
    yield table(runs)
    yield Paragraph(steps_said(runs, "minus the least validation loss"))
    yield Heading("What to choose")
    yield Paragraph(recommendation(runs))


def recommendation(runs: Runs) -> str:
    """Of the runs that are as good as the best one, an adapter before a model of its own, then the one that takes the
    least processor time; with form and number format, and what speaks against it."""
    if not comparable(runs):
        return "The runs are not scored on the same rows in the same tokens: nothing is recommended between them."
    key = headline(runs)
    values = {name: _mean(figures, key) for name, figures in runs.items()}
    best = (min if key == "perplexity" else max)(values, key=lambda name: values[name])
    equal = [name for name in runs if name == best or _as_good(runs, name, best, key)]
    chosen = min(equal, key=lambda name: (not attached(runs[name]), _mean_cost(runs[name], "cpu_s")))
    others = [name for name in equal if name != chosen]
    told = f"**Take {chosen}** ({_method(runs[chosen])}), {_form(runs[chosen])}: {_why_good(values, chosen, best, key)}"
    told += f", and {_why_cheap(runs, chosen, others)}." if others else "; no other run is as good."
    behind = [f"{name} ({_behind(values[name], values[best], key)})" for name in runs if name not in equal]
    told += f" Behind: {', '.join(behind)}." if behind else ""
    return " ".join([told, *_against(runs, chosen)])


def comparable(runs: Runs) -> bool:
    """Whether all runs are scored on the same rows and in the tokens of one tokenizer."""
    held = [figures["exam"] for figures in runs.values()]
    return all(one == held[0] for one in held)


def attached(figures: Mapping[str, Any]) -> bool:
    """Whether devices can have it as an adapter on a shared base, and the run made one."""
    return METHODS[figures["train"]["method"]].exportable_to(ADAPTER) and bool(figures.get("adapter"))


def _keys(runs: Runs) -> list[str]:
    wanted = (headline(runs), "perplexity", "exact_match", "json_match")
    return [
        key for key in dict.fromkeys(wanted)
        if any(flat(figures["scores"]["tuned"]).get(key) is not None for figures in runs.values())
    ]  # fmt: skip


def _values(figures: Mapping[str, Any], key: str) -> list[float]:
    """A score of each seed; of the one run where there are none."""
    found = [one["scores"].get(key) for one in figures.get("seeds") or ()] or [
        flat(figures["scores"]["tuned"]).get(key)
    ]
    return [] if None in found else found


def _mean(figures: Mapping[str, Any], key: str) -> float:
    return spread(_values(figures, key)).mean


def _score(figures: Mapping[str, Any], key: str) -> str:
    """A score with its interval: over seeds, or by the rows."""
    values, form = _values(figures, key), SCORES[key][1].format
    if not values:
        return "–"
    found = spread(values)
    if not math.isnan(found.half):
        return f"{form(found.mean)} ± {form(found.half)}"
    own = flat(figures["scores"]["tuned"])
    ends = own.get(f"{key}_low"), own.get(f"{key}_high")
    if None in ends and key != "perplexity":
        rows = int(own["rows"])
        ends = wilson(round(found.mean * rows), rows)
    return form(found.mean) if None in ends else f"{form(found.mean)} ({form(ends[0])} to {form(ends[1])})"


def _exact(figures: Mapping[str, Any], name: str) -> str:
    """How many questions of a set the tuned model has right (Wilson's interval), and the base."""
    one = (figures.get("kept") or {}).get(name)
    if one is None:
        return "–"
    rows = int(one["rows"])
    low, high = wilson(round(one["after"] * rows), rows)
    return f"{one['after']:.1%} ({low:.1%} to {high:.1%}); base {one['before']:.1%}"


def _mean_cost(figures: Mapping[str, Any], key: str) -> float:
    found = [float(one[key]) for one in figures.get("seeds") or ()] or [float(figures["train"][key])]
    return sum(found) / len(found)


def _costs(figures: Mapping[str, Any]) -> list[str]:
    return [
        duration(_mean_cost(figures, "wall_s")), duration(_mean_cost(figures, "cpu_s")),
        size(round(_mean_cost(figures, "peak_bytes"))), f"{figures['train']['trainable_parameters']:,}",
    ]  # fmt: skip


def _one_more(figures: Mapping[str, Any]) -> str:
    """What a further task of this method adds to a device."""
    if attached(figures):
        return f"{size(figures['adapter']['size_bytes'])} adapter"
    made = [one["size_bytes"] for one in figures["files"] if one["form"] == "merged"]
    return f"{size(min(made))} model" if made else "–"


def _file(figures: Mapping[str, Any], form: str, dtype: str) -> Mapping[str, Any] | None:
    return next((one for one in figures["files"] if (one["form"], one["dtype"]) == (form, dtype)), None)


def _loss(figures: Mapping[str, Any], dtype: str) -> str:
    """What a number format loses in the form that is recommended."""
    one = next(
        (found for form in _forms(figures) if (found := _file(figures, form, dtype)) and found.get("paired")), None
    )
    if one is None:
        return "–"
    ratio = one["paired"]
    low, middle, high = (f"{100 * (ratio[key] - 1):+.1f}" for key in ("ratio_low", "ratio", "ratio_high"))
    text = f"{middle} % ({low} to {high})"
    pairs = one.get("paired_preferences")
    return text if pairs is None else f"{text}; {100 * pairs['loss']:+.1f} points preferred"


def _forms(figures: Mapping[str, Any]) -> tuple[str, ...]:
    return ("adapter", "merged", "base") if attached(figures) else ("merged", "base")


def _method(figures: Mapping[str, Any]) -> str:
    record = figures["train"]
    method = METHODS[record["method"]]
    return f"{method.title}, rank {record['settings']['rank']}" if method.trains_adapter else method.title


def _form(figures: Mapping[str, Any]) -> str:
    """Attached or merged, and in which number format: of those within the recipe's limits the smallest one that is not
    told apart from the fastest on this host; where the speed was not measured the smallest one."""
    form = "attached to a shared base" if attached(figures) else METHODS[figures["train"]["method"]].on_devices
    made = [one for kind in _forms(figures)[:1] for one in figures["files"] if one["form"] == kind]
    fit = [one for one in made if one.get("holds", True)]
    if not fit:
        return form
    timed = [one for one in fit if (one.get("speed") or {}).get("tokens_per_s")]
    if not timed:
        one = min(fit, key=lambda one: float(one["size_bytes"]))
        return f"{form}, as {one['dtype'].upper()} (the smallest within the limits; speed was not measured)"
    fastest = max(timed, key=lambda one: float(one["speed"]["tokens_per_s"]))
    near = [one for one in timed if one["speed"]["tokens_per_s_high"] >= fastest["speed"]["tokens_per_s_low"]]
    one = min(near, key=lambda one: float(one["size_bytes"]))
    told = f"{one['speed']['tokens_per_s']:.0f} tokens/s on this host, {size(one['peak_bytes'])} of memory"
    if one.get("paired"):
        told += f", perplexity {100 * (one['paired']['ratio'] - 1):+.1f} % beside F16"
    out = [other["dtype"].upper() for other in made if other not in fit]
    told += f"; {', '.join(out)} lost more than the recipe allows" if out else ""
    return f"{form}, as {one['dtype'].upper()} ({told})"


def _why_good(values: Mapping[str, float], chosen: str, best: str, key: str) -> str:
    form, title = SCORES[key][1].format, {"perplexity": "perplexity", "preferred": "share of preferred pairs"}[key]
    side = "lowest" if key == "perplexity" else "highest"
    if chosen == best:
        return f"its {title}, {form(values[chosen])}, is the {side}"
    return f"its {title}, {form(values[chosen])}, is not told apart from the {side}, {form(values[best])} of {best}"


def _why_cheap(runs: Runs, chosen: str, others: Sequence[str]) -> str:
    figures = runs[chosen]
    least = min(others, key=lambda name: _mean_cost(runs[name], "cpu_s"))
    cost = (
        f"it trains in {_mean_cost(figures, 'cpu_s') / max(1e-9, _mean_cost(runs[least], 'cpu_s')):.2f} times the "
        f"processor time of {least}"
    )
    if attached(figures) and not all(attached(runs[name]) for name in others):
        return f"a further task adds {size(figures['adapter']['size_bytes'])} to a device that has the base; {cost}"
    return cost


def _behind(value: float, best: float, key: str) -> str:
    return f"{100 * (value / best - 1):+.1f} %" if key == "perplexity" else f"{100 * (value - best):+.1f} points"


def _as_good(runs: Runs, name: str, best: str, key: str) -> bool:
    """Whether it is left open that a run is as good as the best, or it is nearly so: by seeds in pairs, or by rows."""
    one, other = _values(runs[name], key), _values(runs[best], key)
    if key == "perplexity":
        worse = [math.log(own / least) for own, least in zip(one, other, strict=False)]
        near = math.log1p(_NEAR[key])
    else:
        worse = [most - own for own, most in zip(one, other, strict=False)]
        near = _NEAR[key]
    found = spread(worse)
    if found.mean <= near:
        return True
    if len(worse) > 1:
        return found.mean - found.half <= 0.0
    beside = (runs[best].get("beside") or {}).get(name)
    if beside is None:
        return False
    low = math.log(beside["perplexity"]["ratio_low"]) if key == "perplexity" else -beside["preferred"]["gain_high"]
    return bool(low <= 0.0)


def _against(runs: Runs, chosen: str) -> Iterator[str]:
    """What a reader should know before following: a base that was better, answers that another run has right more
    often, what is forgotten."""
    figures, key = runs[chosen], headline(runs)
    base = figures["scores"].get("base")
    own, before = _mean(figures, key), None if base is None else flat(base).get(key)
    if before is not None and (own >= before if key == "perplexity" else own <= before):
        yield f"Mind that it is no better than the base itself ({SCORES[key][1].format(before)})."
    for name, beside in (figures.get("beside") or {}).items():
        found = beside.get("exact_match")
        if found and found["gain_low"] > 0.0:
            yield (
                f"Mind that {name} has {100 * found['gain']:.1f} points more answers right to the letter "
                f"(95 % interval {100 * found['gain_low']:.1f} to {100 * found['gain_high']:.1f})."
            )
    lost = {name: one["lost"] for name, one in (figures.get("kept") or {}).items() if one["lost"] > 0.0}
    if lost:
        worst = max(lost, key=lambda name: lost[name])
        kept = "an attached adapter leaves the base as it is" if attached(figures) else "the device has no other model"
        yield (
            f"Of what the base knew it lost {forgetting_report.share(lost[worst])} points of "
            f"{forgetting_report.title(worst)}; {kept}."
        )
