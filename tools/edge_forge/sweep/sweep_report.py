"""What a sweep found: as JSON values, as a table with the best trial first, and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_forge.kinds.api import Kind
from edge_forge.progress import duration
from edge_forge.report import plots
from edge_forge.report.blocks import Block, Drawing, Heading, Items, Paragraph, Table
from edge_forge.sweep.space import Dimension, Range, recipe_lines
from edge_forge.sweep.study import DONE, ENDED, FAILED, SweepTrial

_STATES = (DONE, ENDED, FAILED)


def found(kind: Kind, recipe: Any, space: Sequence[Dimension], trials: Sequence[SweepTrial]) -> dict[str, Any]:
    """The figures: space, trials with the best first (trained, ended early, failed), and the best one's values."""
    sign = -1.0 if kind.score.maximise else 1.0

    def place(trial: SweepTrial) -> tuple[int, float, int]:
        result = trial.result
        return _STATES.index(result.state), 0.0 if result.score is None else sign * result.score, trial.number

    ordered = sorted(trials, key=place)
    best = ordered[0] if ordered and ordered[0].result.state == DONE else None
    return {
        "recipe": recipe.name,
        "method": recipe.training.method,
        "score": {"key": kind.score.key, "title": kind.score.title, "maximise": kind.score.maximise},
        "space": [one.as_dict() for one in space],
        "shown": [str(one) for one in space],
        "trials": [_as_dict(trial) for trial in ordered],
        "best": None if best is None else {
            "number": best.number + 1, "values": best.values, "lines": recipe_lines(best.values),
        },
        "alike": [] if best is None else [trial.number + 1 for trial in ordered if _alike(trial, best)],
        "logarithmic": [one.key for one in space if isinstance(one, Range) and one.log],
    }  # fmt: skip


def _as_dict(trial: SweepTrial) -> dict[str, Any]:
    result = trial.result
    return {
        "number": trial.number + 1, "values": trial.values, "state": result.state, "score": result.score,
        "error": result.error, "cpu_s": result.cpu_s, "parameters": result.parameters, "passes": result.passes,
        "reason": result.reason, "curve": result.curve,
    }  # fmt: skip


def _alike(trial: SweepTrial, best: SweepTrial) -> bool:
    """Whether a trained trial's score is within one standard error of the best one's."""
    one, other = trial.result, best.result
    if one.state != DONE or one.score is None or other.score is None or trial is best:
        return False
    return abs(one.score - other.score) <= other.error


def table(figures: Mapping[str, Any]) -> Table:
    """All trials, the best first."""
    keys = list(dict.fromkeys(key for trial in figures["trials"] for key in trial["values"]))
    names = [key.rpartition(".")[2] for key in keys]
    columns = ["trial", figures["score"]["title"], *names, "processor", "trained", "passes", "how it ended"]
    rows = []
    for trial in figures["trials"]:
        score = "" if trial["score"] is None else f"{trial['score']:.4f}"
        parameters = f"{trial['parameters']:,}" if trial["parameters"] else ""
        ended = trial["state"] + (f": {trial['reason']}" if trial["reason"] else "")
        rows.append([
            str(trial["number"]), score, *(trial["values"].get(key, "") for key in keys), duration(trial["cpu_s"]),
            parameters, f"{trial['passes']:g}", ended,
        ])  # fmt: skip
    return Table(columns, rows)


def advice(figures: Mapping[str, Any]) -> list[str]:
    """What the trials say, and what they cannot say."""
    best = figures["best"]
    if best is None:
        return ["no trial was trained to its end: nothing can be advised"]
    by_number = {trial["number"]: trial for trial in figures["trials"]}
    top = by_number[best["number"]]
    lines = [f"best: trial {top['number']}, {figures['score']['title']} {top['score']:.4f} on the validation rows"]
    if figures["alike"]:
        near = [by_number[number] for number in figures["alike"]]
        cheapest = min([top, *near], key=lambda trial: trial["cpu_s"])
        lines.append(
            f"{len(near)} more lie within one standard error of it ({top['error']:.4f}): the validation rows do not "
            f"tell them apart; the cheapest of them is trial {cheapest['number']} ({duration(cheapest['cpu_s'])} of "
            f"processor time)"
        )
    if not top["error"]:
        lines.append(
            f"how far a {figures['score']['title']} is known is not told by the trials, so small differences may be "
            "chance: `edge-forge compare` of two of them with --seeds says more"
        )
    lines.append(
        "a score that is the best of many is too good by chance: the test rows, which no trial saw, say what to expect"
    )
    return lines


def blocks_of(figures: Mapping[str, Any]) -> list[Block]:
    """The page."""
    counts = {state: sum(trial["state"] == state for trial in figures["trials"]) for state in _STATES}
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    cpu_s = sum(trial["cpu_s"] for trial in figures["trials"])
    content: list[Block] = [
        Heading(f"Sweep of {figures['recipe']}", 1),
        Paragraph(
            f"Method {figures['method']}; {len(figures['trials'])} trials ({said}), {duration(cpu_s)} of processor "
            f"time in all. The score is {figures['score']['title']} on the validation rows, of each trial's best pass."
        ),
        Items(figures["shown"]),
        Items(advice(figures)),
    ]
    if figures["best"]:
        content += [Heading("For the recipe"), Items([f"`{line}`" for line in figures["best"]["lines"]])]
    content += [Heading("Trials"), table(figures)]
    content += _drawings(figures)
    return content


def _drawings(figures: Mapping[str, Any]) -> list[Block]:
    scored = [trial for trial in figures["trials"] if trial["score"] is not None]
    if not scored:
        return []
    title = figures["score"]["title"]
    best = figures["best"]["number"] if figures["best"] else 0
    points = [
        plots.TrialPoint(trial["values"], trial["score"], trial["state"] == DONE, trial["number"] == best)
        for trial in scored
    ]
    keys = [one["key"] for one in figures["space"]]
    content: list[Block] = [
        Heading("Score by value"),
        Drawing(
            "values",
            "Each point is a trial; the ring is the best one, grey crosses were ended early and have the score they "
            "had then.",
            plots.trials_by_value(points, keys, figures["logarithmic"], title),
        ),
    ]
    curves = [
        (f"trial {trial['number']}", trial["curve"], trial["number"] == best) for trial in scored if trial["curve"]
    ]
    if curves:
        content.append(
            Drawing(
                "curves",
                f"{title} after each pass; the bold line is the best trial, lines that end sooner were ended or had "
                "fewer passes.",
                plots.trial_curves(curves, title),
            )
        )
    return content
