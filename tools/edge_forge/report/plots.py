"""The drawings of a report, as SVG text. matplotlib is imported when the first one is drawn, without a display.

Colours are Okabe and Ito's, which people with any colour vision tell apart; no drawing needs its colours to be read.
The same figures give the same text, so that a report's digest says whether anything changed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edge_agent.base.shown_text import one_line

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6B7280"
_COLOURS = (BLUE, ORANGE, GREEN, RED, GREY)
_WIDTH = 8.0


class Bin(NamedTuple):
    """One bin of a reliability diagram: mean confidence, accuracy and rows of those whose confidence is in it."""

    confidence: float
    accuracy: float
    rows: int


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "svg.hashsalt": "edge-forge", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10,
            "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#E5E7EB",
            "text.parse_math": False,  # a label with '$' is no formula
            "axes.axisbelow": True, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
        }
    )  # fmt: skip
    return pyplot.subplots(1, columns, figsize=(width, height), layout="constrained")


def _text(figure: Any) -> str:
    from matplotlib import pyplot

    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": "edge-forge"})
    pyplot.close(figure)
    return out.getvalue()


def curves(points: Sequence[Mapping[str, float]], best_epoch: float) -> str:
    """Losses and validation scores by epoch; the kept epoch is marked."""
    figure, (left, right) = _figure(_WIDTH, 3.2, 2)
    epochs = [point["epoch"] for point in points]
    for axes, title, lines in (
        (left, "Loss", (("train_loss", "training", GREY), ("validation_loss", "validation", BLUE))),
        (right, "On the validation split", (
            ("validation_accuracy", "accuracy", BLUE), ("validation_macro_f1", "macro-F1", ORANGE))),
    ):  # fmt: skip
        for key, name, colour in lines:
            known = [(point["epoch"], point[key]) for point in points if point.get(key) is not None]
            if known:
                axes.plot(*zip(*known, strict=True), color=colour, marker="o", markersize=4, label=name)
        axes.axvline(best_epoch, color=RED, linewidth=1, linestyle="--", label="kept")
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.set_xticks(epochs if len(epochs) <= 12 else epochs[:: len(epochs) // 10])
        axes.legend(frameon=False)
    return _text(figure)


def confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Gold labels down, answers across; shade is the share of the gold label's rows, numbers are rows."""
    labels = [one_line(label) for label in labels]
    side = max(3.6, 1.6 + 0.36 * len(labels))
    figure, axes = _figure(min(side + 1.4, 11.0), min(side + 0.6, 10.5))
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(visible=False)
    small = 9 if len(labels) <= 12 else 7.5
    axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=small)
    axes.set_yticks(range(len(labels)), labels, fontsize=small)
    axes.set_xlabel("answered")
    axes.set_ylabel("gold")
    for gold, row in enumerate(matrix):
        for answered, count in enumerate(row):
            if count:
                colour = "white" if shares[gold][answered] > 0.55 else ("black" if gold == answered else RED)
                axes.text(answered, gold, str(count), ha="center", va="center", color=colour, fontsize=small)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return _text(figure)


def reliability(bins: Sequence[Bin], error: float) -> str:
    """Accuracy against confidence, and how many rows there are at each confidence."""
    figure, (left, right) = _figure(_WIDTH, 3.4, 2)
    used = [found for found in bins if found.rows]
    left.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect")
    most = max(found.rows for found in used)
    left.scatter(
        [found.confidence for found in used], [found.accuracy for found in used],
        s=[20 + 160 * found.rows / most for found in used], color=BLUE, alpha=0.75, label="rows of a bin", zorder=3,
    )  # fmt: skip
    left.set(xlim=(0, 1.02), ylim=(-0.03, 1.05), xlabel="confidence", ylabel="accuracy")
    left.set_title(f"Calibration, ECE {error:.3f}")
    left.legend(frameon=False, loc="lower right")
    right.bar(
        [(at + 0.5) / len(bins) for at in range(len(bins))], [found.rows for found in bins],
        width=0.9 / len(bins), color=BLUE,
    )  # fmt: skip
    right.set(xlim=(0, 1.02), xlabel="confidence", ylabel="rows")
    right.set_title("Rows by confidence")
    return _text(figure)


def bars(panels: Sequence[tuple[str, str, Mapping[str, float | None]]]) -> str:
    """One panel per figure: (title, format of the value, value by name); None is drawn as 'not measured'.

    Names that begin with the same word have one colour. A panel of shares (all values within 0..1 and above 0.5, no
    unit after a comma in its title) begins near its smallest value, and its title says so.
    """
    panels = [
        (one_line(title), form, {one_line(name): value for name, value in values.items()})
        for title, form, values in panels
    ]
    names = list(panels[0][2])
    figure, axes = _figure(max(_WIDTH, 2.4 * len(panels)), 1.1 + 0.42 * len(names), len(panels))
    kinds = list(dict.fromkeys(name.split(" ")[0] for name in names))
    colours = [(BLUE, ORANGE, GREEN, RED, GREY)[kinds.index(name.split(" ")[0]) % 5] for name in names]
    for at, (one, (title, form, values)) in enumerate(zip([axes] if len(panels) == 1 else axes, panels, strict=True)):
        known = [values[name] or 0.0 for name in names]
        floor = 0.0 if ", " in title else _floor([value for value in values.values() if value is not None])
        widths = [value - floor for value in known]
        one.barh(names, widths, left=floor, height=0.6, color=colours)
        one.set_title(title if not floor else f"{title}\n(from {floor:g})")
        one.invert_yaxis()
        high = max([*known, floor + 1e-9])
        one.set_xlim(floor, high + (high - floor) * 0.45)
        one.grid(axis="y", visible=False)
        one.tick_params(axis="y", length=0, labelleft=at == 0)
        one.set_xticks([])
        one.spines["bottom"].set_visible(False)
        for place, name in enumerate(names):
            value = values[name]
            text = "not measured" if value is None else form.format(value)
            one.text(max(value or 0.0, floor), place, f" {text}", va="center", fontsize=9)
    return _text(figure)


def intruders(runs: Mapping[str, Sequence[Mapping[str, Any]]], threshold: float) -> str:
    """A panel per run: a dot for each of the first singular vectors of every weight, by layer. Dots below the line are
    intruders, and their number stands in the title."""
    width = max(_WIDTH, 3.4 * len(runs))
    figure, axes = _figure(width, 3.6, len(runs))
    for one, (name, weights) in zip([axes] if len(runs) == 1 else axes, runs.items(), strict=True):
        count = 0
        for weight in weights:
            cosines = weight["cosines"]
            layer = layer_of(weight["name"])
            spread = [layer + 0.6 * ((place + 0.5) / len(cosines) - 0.5) for place in range(len(cosines))]
            below = [value < threshold for value in cosines]
            count += sum(below)
            one.scatter(spread, cosines, s=9, alpha=0.7, linewidths=0,
                        color=[RED if under else BLUE for under in below])  # fmt: skip
        one.axhspan(0, threshold, color=RED, alpha=0.08)
        one.axhline(threshold, color=RED, linewidth=1)
        one.text(0.02, 0.04, "intruders: unlike anything in the base", color=RED, fontsize=9, va="center",
                 transform=one.get_yaxis_transform())  # fmt: skip
        one.set_title(f"{one_line(name)}: {count} intruder{'s' * (count != 1)}")
        one.set(ylim=(0, 1.04), xlabel="layer", ylabel="largest cosine to the base")
        one.set_xticks(sorted({layer_of(weight["name"]) for weight in weights}))
    return _text(figure)


def updates(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Left: the share of an update's squared norm in its first directions, mean over the weights that changed. Right:
    the update's norm over the base's, by layer. A line per run."""
    figure, (left, right) = _figure(_WIDTH, 3.4, 2)
    for (name, weights), colour in zip(runs.items(), _COLOURS * len(runs), strict=False):
        changed = [weight for weight in weights if weight["change"] > 0]
        if not changed:
            continue
        points = len(changed[0]["energy"])
        mean = [sum(weight["energy"][at] for weight in changed) / len(changed) for at in range(points)]
        left.plot([100 * at / (points - 1) for at in range(points)], [100 * value for value in mean], color=colour,
                  label=one_line(name))  # fmt: skip
        layers = sorted({layer_of(weight["name"]) for weight in weights})
        shares = []
        for layer in layers:
            own = [weight["change"] / weight["norm"] for weight in weights if layer_of(weight["name"]) == layer]
            shares.append(100 * sum(own) / len(own))
        right.plot(layers, shares, color=colour, marker="o", markersize=4, label=one_line(name))
        right.set_xticks(layers)
    left.set(xlim=(0, 100), ylim=(0, 103), xlabel="directions used, % of all", ylabel="% of the update's energy")
    left.set_title("How low the update's rank is")
    right.set(ylim=(0, None), xlabel="layer", ylabel="change, % of the base's norm")
    right.set_title("How much each layer changed")
    left.legend(frameon=False, loc="lower right")
    return _text(figure)


def learning_and_forgetting(paths: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], learned: str) -> str:
    """A panel per question: (points lost, learned) of each run, and dashed behind it what its repair makes of it.

    `learned` is accuracy or perplexity, whose axis is turned so that up is better. A dotted line stands at no loss.
    """
    figure, axes = _figure(max(_WIDTH, 4.2 * len(paths)), 3.8, len(paths))
    for one, (question, runs) in zip([axes] if len(paths) == 1 else axes, paths.items(), strict=True):
        for (name, points), colour in zip(runs.items(), _COLOURS * len(runs), strict=False):
            if len(points) > 1:
                one.plot(*zip(*points, strict=True), color=colour, linestyle="--", marker=".", linewidth=1, alpha=0.7)
            one.scatter(*points[0], s=60, color=colour, label=one_line(name), zorder=3)
        one.axvline(0.0, color=GREY, linewidth=1, linestyle=":")
        one.invert_xaxis()
        if learned == "perplexity":
            one.invert_yaxis()
        one.set(xlabel="points lost: less is further right", ylabel=f"learned: {learned}")
        one.set_title(one_line(question))
        one.legend(frameon=False, fontsize=8)
    return _text(figure)


def pareto(scores: Mapping[str, tuple[float, float]], panels: Mapping[str, Mapping[str, float]]) -> str:
    """A panel per cost (title and unit: cost by run) against `scores` by run, (mean, half its interval or NaN).

    The stepped line joins the runs that are not dominated: no other is at least as good and at most as dear, and better
    in one of them. Costs that differ by more than five times are on a logarithmic axis.
    """
    from matplotlib import ticker

    figure, axes = _figure(max(_WIDTH, 4.2 * len(panels)), 3.8, len(panels))
    colours = dict(zip(scores, _COLOURS * len(scores), strict=False))
    for one, (title, costs) in zip([axes] if len(panels) == 1 else axes, panels.items(), strict=True):
        best = sorted(
            (cost, scores[name][0]) for name, cost in costs.items()
            if not any(_dominates((scores[other][0], costs[other]), (scores[name][0], cost)) for other in costs)
        )  # fmt: skip
        one.step(*zip(*best, strict=True), where="post", color=GREY, linewidth=1, linestyle="--")
        for name, cost in costs.items():
            mean, half = scores[name]
            bar = None if math.isnan(half) else half
            one.errorbar([cost], [mean], yerr=bar, fmt="o", color=colours[name], label=one_line(name), capsize=3)
        if max(costs.values()) > 5.0 * min(costs.values()):
            one.set_xscale("log")
            one.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
            one.xaxis.set_minor_formatter(ticker.NullFormatter())
        one.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        one.margins(0.12)
        one.set(xlabel=title, ylabel="accuracy")
    figure.legend(*_first(axes, panels).get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return _text(figure)


def _first(axes: Any, panels: Mapping[str, object]) -> Any:
    return axes if len(panels) == 1 else axes[0]


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether (score, cost) `one` leaves no reason to take `other`."""
    return one[0] >= other[0] and one[1] <= other[1] and one != other


def layer_of(module: str) -> int:
    """The number of the layer in a module's name; 0 where it has none."""
    return next((int(part) for part in module.split(".") if part.isdigit()), 0)


def _floor(values: Sequence[float]) -> float:
    """Where the bars of a panel begin: 0, or for high shares a round number somewhat below the smallest."""
    if not values or min(values) <= 0.5 or max(values) > 1.0:
        return 0.0
    lowest = min(values) - (max(values) - min(values)) - 0.01
    return max(0.0, int(lowest * 50) / 50)


class TrialPoint(NamedTuple):
    """A trial of a sweep: its values as TOML texts by key, its score, whether it ran to its end, whether it is best."""

    values: Mapping[str, str]
    score: float
    whole: bool
    best: bool


def trials_by_value(points: Sequence[TrialPoint], keys: Sequence[str], logarithmic: Sequence[str], title: str) -> str:
    """A panel for each key that was varied: the score of every trial over its value there."""
    figure, found = _figure(max(4.0, 3.0 * len(keys)), 3.2, len(keys))
    for key, axes in zip(keys, [found] if len(keys) == 1 else found, strict=True):
        texts = [point.values[key] for point in points]
        places, names = _places(texts)
        for whole, marker, colour, label in ((True, "o", BLUE, "trained"), (False, "x", GREY, "ended early")):
            shown = [at for at, point in enumerate(points) if point.whole is whole]
            if shown:
                axes.scatter([places[at] for at in shown], [points[at].score for at in shown], marker=marker,
                             color=colour, label=label, zorder=3)  # fmt: skip
        for at, point in enumerate(points):
            if point.best:
                axes.scatter([places[at]], [point.score], s=130, facecolors="none", edgecolors=RED, label="best",
                             zorder=4)  # fmt: skip
        if names:
            axes.set_xticks(range(len(names)), [one_line(name) for name in names], rotation=30, ha="right")
            axes.set_xlim(-0.5, len(names) - 0.5)
        elif key in logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")  # the usual one writes formulas, which are not drawn here
            axes.xaxis.set_minor_formatter("")
        axes.set_xlabel(key)
        axes.set_ylabel(title)
        axes.legend(frameon=False, fontsize=8)
    return _text(figure)


def _places(texts: Sequence[str]) -> tuple[list[float], list[str]]:
    """Where values stand on an axis: numbers where they are, each at its place, words side by side with their names."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        names = sorted(set(texts))
        return [float(names.index(text)) for text in texts], names
    kinds = sorted(set(numbers))
    if len(kinds) <= 8 and all(number == int(number) for number in kinds):
        return [float(kinds.index(number)) for number in numbers], [f"{number:g}" for number in kinds]
    return numbers, []


def trial_curves(curves: Sequence[tuple[str, Sequence[float], bool]], title: str) -> str:
    """The score of each trial after each pass: (name, scores, whether it is the best)."""
    figure, axes = _figure(_WIDTH, 3.4)
    for name, scores, best in curves:
        colour, width, marker = (RED, 2.2, "o") if best else (GREY, 0.9, ".")
        passes = range(1, len(scores) + 1)
        axes.plot(passes, scores, color=colour, linewidth=width, marker=marker, markersize=4, label=name * best,
                  zorder=3 if best else 2)  # fmt: skip
    axes.set_xlabel("pass")
    axes.set_ylabel(title)
    if any(best for _, _, best in curves):
        axes.legend(frameon=False)
    return _text(figure)
