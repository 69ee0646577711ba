"""The page of the study from its results (docs/study.md is one); nothing is measured here.

`content` is what `bench.study` writes: `conditions`, `wanted`, and by task its `conditions`, `rows`, `runs` (by the
name of the run, then by step size and seed) and `graphs`. Runs that are not there are counted as left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edge_forge.progress import duration, size
from edge_forge.report import blocks, claims, forgetting_report, methods_table
from edge_forge.report.blocks import Block, Heading, Items, Paragraph, Table

Content = Mapping[str, Any]
_MEASURES = {"accuracy": "accuracy", "mcc": "Matthews correlation", "f1": "F1 of the label 1"}
_PUBLISHED = {"sst2": 0.930, "cola": 0.585, "rte": 0.733, "mrpc": 0.895}
"""Of MiniLM-L12-H384, twice as many layers, tuned whole on all rows (accuracy, Matthews, accuracy, F1), dev sets: the
README of microsoft/MiniLM-L12-H384-uncased, after Wang et al. 2020."""
CPU_SHARE, MEMORY_SHARE, POINTS = 0.60, 0.65, 0.3
"""LoRA is called the cheaper one at this share of full fine-tuning's processor time and peak memory, and so many
points less at most."""


def page(content: Content) -> str:
    """The page as Markdown."""
    return blocks.markdown(list(_blocks(content)))


def state_lines(content: Content) -> list[str]:
    """One line for each task: what is done and what is left."""
    return [
        f"{task}: {done} of {whole} done{f', {whole - done} left' if whole > done else ''}"
        for task, done, whole in _state(content)
    ]


def _blocks(content: Content) -> Iterator[Block]:
    yield Heading("The study: methods on public tasks", 1)
    yield Paragraph(
        "Full fine-tuning, a head alone, LoRA at three ranks and its kin, each at the step size that is best on the "
        "validation rows, over seeds. This page is written from the results beside it (JSON) by the command that runs "
        "the study and goes on where it was stopped: `make study DATA=DIR` (`MINUTES=60` ends it between two runs, "
        '`FLAGS="--rows 1000"` makes it smaller, `PAGE=docs/study` is this page; `python -m bench.study --help`). '
        "[Decision 0264](decisions/0264-a-study-is-a-list-of-recorded-runs.md)."
    )
    yield Heading("What these figures tell")
    yield Items(list(_told(content)))
    yield Heading("Done and left")
    yield Paragraph(
        "A run is one training; the graphs of a method are exported and measured once. What is left was not run, and "
        "no figure of it is on this page."
    )
    rows = [[task, str(done), str(whole - done)] for task, done, whole in _state(content)]
    yield Table(("task", "done", "left"), rows)
    yield from _conditions(content)
    for task in content["tasks"]:
        yield from _task(content, task)
    yield from _step_sizes(content)


def _names(content: Content, task: str) -> list[str]:
    """The runs of a task in the order that is wanted, then those of other wishes."""
    held = content["tasks"][task]["runs"]
    return list(dict.fromkeys([*content["wanted"]["runs"], *held]))


def _scored(content: Content, task: str, name: str) -> list[Mapping[str, Any]]:
    found = content["tasks"][task]["runs"].get(name, {}).values()
    return [one for one in found if "failed" not in one]


def _best(content: Content, task: str, name: str) -> list[Mapping[str, Any]]:
    """The runs of a method at its best step size, by the validation rows of the first seed; that seed's first.

    On equal scores the smaller step size is taken, as `trials.best_step_size` does.
    """
    scored = _scored(content, task, name)
    first = content["conditions"]["first_seed"]
    searched = sorted((one for one in scored if one["seed"] == first), key=lambda one: float(one["learning_rate"]))
    if not searched:
        return []
    rate = max(searched, key=lambda one: float(one["validation"]))["learning_rate"]
    return sorted((one for one in scored if one["learning_rate"] == rate), key=lambda one: int(one["seed"]))


def _state(content: Content) -> Iterator[tuple[str, int, int]]:
    """(task, what is done of the wish, what is wished)."""
    wanted = content["wanted"]
    for task in content["tasks"]:
        if task not in wanted["tasks"]:
            continue
        done = whole = 0
        for name in wanted["runs"]:
            runs = content["tasks"][task]["runs"].get(name, {})
            first = content["conditions"]["first_seed"]
            searched = sum(one["seed"] == first for one in runs.values())
            others = len([one for one in _best(content, task, name) if one["seed"] != first])
            graph = name in content["tasks"][task]["graphs"]
            whole += len(wanted["factors"]) + wanted["seeds"] - 1 + wanted["graphs"]
            done += min(searched, len(wanted["factors"])) + min(others, wanted["seeds"] - 1)
            done += bool(wanted["graphs"] and graph)
        yield task, done, whole


def _conditions(content: Content) -> Iterator[Block]:
    conditions = content["conditions"]
    settings = ", ".join(f"{key} {value}" for key, value in conditions["settings"].items())
    runs = [one for task in content["tasks"] for name in _names(content, task) for one in _scored(content, task, name)]
    codes, shares = {one["code"] for one in runs}, [one["cpu_s"] / one["wall_s"] for one in runs]
    load = f" A training had {100 * min(shares):.0f} to {100 * max(shares):.0f} % of a core." if shares else ""
    yield Heading("Conditions")
    yield Paragraph(
        f"Base `{conditions['base']}`; {conditions['host']}; {settings}; other settings are the presets' of each "
        "method ([methods.md](methods.md)), so LoRA and its kin compute the lower third of the layers once. Seeds "
        f"from {conditions['first_seed']} on. Processor time is that of the training process, its start with the "
        "libraries included; peak memory likewise. "
        f"{len(codes)} version{'s' * (len(codes) != 1)} of the training's code.{load}"
    )
    yield Table(
        ("task", "training rows", "validation rows", "test rows", "passes", "measure"),
        [
            [task, *(f"{held['rows'][split]:,}" for split in ("train", "validation", "test")),
             str(held["conditions"]["epochs"]), _MEASURES[held["conditions"]["measure"]]]
            for task, held in content["tasks"].items() if held["rows"]
        ],
    )  # fmt: skip


def _task(content: Content, task: str) -> Iterator[Block]:
    measured = {name: runs for name in _names(content, task) if (runs := _best(content, task, name))}
    yield Heading(task)
    if not measured:
        yield Paragraph("Not run.")
        return
    measure = _MEASURES[content["tasks"][task]["conditions"]["measure"]]
    yield Table(
        ("run", "step size", measure, "95 % interval", "seeds", "processor time", "peak memory", "trained parameters",
         "file", "INT8 loss", "FP16 loss", "most forgotten"),
        [_row(content, task, name, runs) for name, runs in measured.items()],
    )  # fmt: skip
    said = [
        "Intervals are Student's over the seeds, of one seed Wilson's over the test rows (accuracy alone). A file is "
        "what a task adds to a device: an adapter beside the shared base, or a model in FP32. Losses are those of the "
        "number format beside FP32, in points of accuracy."
    ]
    if task in _PUBLISHED:
        said.append(
            f"The nearest published figure is {_PUBLISHED[task]:.3f}: MiniLM-L12-H384, twice as many layers, full "
            "fine-tuning on all rows (README of `microsoft/MiniLM-L12-H384-uncased`)."
        )
    yield Paragraph(" ".join(said))
    if len(measured) > 1:
        fair = all(len(_rates(content, task, name)) > 1 for name in measured)
        if fair:
            yield Paragraph("By `edge-forge compare`'s rule: " + methods_table.recommendation(as_runs(content, task)))
        else:
            yield Paragraph("No method is recommended: of one of them a single step size was tried.")


def _row(content: Content, task: str, name: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    graph = content["tasks"][task]["graphs"].get(name)
    if graph and graph["learning_rate"] != runs[0]["learning_rate"]:
        graph = None
    mean = {key: sum(one[key] for one in runs) / len(runs) for key in ("cpu_s", "peak_bytes")}
    quality = methods_table.spread([one["quality"] for one in runs])
    return [
        name, f"{runs[0]['learning_rate']:g}", f"{quality.mean:.4f}", _interval(content, task, runs, quality),
        str(len(runs)), duration(mean["cpu_s"]), size(mean["peak_bytes"]), f"{runs[0]['trainable_parameters']:,}",
        size(runs[0]["file_bytes"]), _loss(graph, "int8"), _loss(graph, "fp16"),
        forgetting_report.worst(graph["kept"]) if graph else "not run",
    ]  # fmt: skip


def _interval(content: Content, task: str, runs: Sequence[Mapping[str, Any]], quality: methods_table.Spread) -> str:
    if len(runs) > 1:
        return f"{quality.mean - quality.half:.3f} to {quality.mean + quality.half:.3f}"
    held = content["tasks"][task]
    if held["conditions"]["measure"] != "accuracy":
        return "–"
    low, high = claims.wilson(round(quality.mean * held["rows"]["test"]), held["rows"]["test"])
    return f"{low:.3f} to {high:.3f}"


def _loss(graph: Mapping[str, Any] | None, dtype: str) -> str:
    if graph is None:
        return "not run"
    found = {one["dtype"]: one["accuracy"] for one in graph["variants"] if one["form"] == "merged"}
    return f"{100 * (found['fp32'] - found[dtype]):+.2f}" if dtype in found and "fp32" in found else "–"


def as_runs(content: Content, task: str) -> dict[str, dict[str, Any]]:
    """The best runs of a task in the form that a comparison's figures have (`report.methods_table`).

    Of runs with other seeds than others, all are cut to what each has: means over other seeds are no comparison.
    """
    best = {name: runs for name in _names(content, task) if (runs := _best(content, task, name))}
    common = set.intersection(*({int(one["seed"]) for one in runs} for runs in best.values()))
    rows = content["tasks"][task]["rows"]["test"]
    found: dict[str, dict[str, Any]] = {}
    for name, runs in best.items():
        first = runs[0]
        found[name] = {
            "seeds": [dict(one) for one in runs if one["seed"] in common],
            "split": "test", "scores": {"test": {"rows": rows}},
            "train": {"method": first["method"], "adapter_rank": first["adapter_rank"]},
        }  # fmt: skip
        if first["is_adapter"]:
            found[name]["adapter_bytes"] = first["file_bytes"]
    return found


def _told(content: Content) -> Iterator[str]:
    """What the figures say in words, and what they cannot say."""
    for task in content["tasks"]:
        yield from _lora_beside_full(content, task)
    counts = [len(_best(content, task, name)) for task in content["tasks"] for name in _names(content, task)]
    seeds = [count for count in counts if count]
    if not seeds:
        yield "Nothing was run yet."
        return
    left = [task for task in content["tasks"] if not any(content["tasks"][task]["runs"].values())]
    if left:
        yield f"Nothing is said of {', '.join(left)}: no run was made."
    if min(seeds) < 3:
        yield (
            f"Some methods have {min(seeds)} seed{'s' * (min(seeds) != 1)}: differences between them that are smaller "
            "than the intervals may be chance."
        )
    small = [
        f"{task} ({held['rows']['train']:,} training and {held['rows']['test']:,} test rows)"
        for task, held in content["tasks"].items() if held["conditions"]["most_rows"] and held["rows"]
    ]  # fmt: skip
    if small:
        yield (
            f"Rows were cut: {', '.join(small)}. Scores lie below those of all rows, the number of steps is smaller, "
            "and the best step size for so few steps is not that of a long training."
        )
    single = [
        f"{name} on {task}" for task in content["tasks"] for name in _names(content, task)
        if len(_rates(content, task, name)) == 1
    ]  # fmt: skip
    if single:
        yield (
            f"One step size alone was tried, which is not known to be the best, for {', '.join(single)}: which method "
            "learns more is not told by these runs; what they cost is."
        )
    edges = [f"{name} on {task} ({side})" for task, name, side in _edges(content)]
    if edges:
        yield (
            f"The best step size is the smallest or largest that was tried for {', '.join(edges)}: a better one may "
            "lie beyond."
        )
    yield "Processor times and memory are of one machine; no board was measured."


def _lora_beside_full(content: Content, task: str) -> Iterator[str]:
    full = _best(content, task, "full")
    names = [name for name in _names(content, task) if name.startswith("lora r")]
    best = {name: runs for name in names if (runs := _best(content, task, name))}
    if not full or not best:
        return
    for name, runs in best.items():
        others = {one["seed"]: one["accuracy"] for one in full}
        rises = [one["accuracy"] - others[one["seed"]] for one in runs if one["seed"] in others]
        count, points = len(rises), 100 * sum(rises) / len(rises)
        cost = {
            key: sum(one[key] for one in runs) / len(runs) / (sum(one[key] for one in full) / len(full))
            for key in ("cpu_s", "peak_bytes")
        }
        cheap = cost["cpu_s"] <= CPU_SHARE and cost["peak_bytes"] <= MEMORY_SHARE
        fair = len(_rates(content, task, name)) > 1 and len(_rates(content, task, "full")) > 1
        yield (
            f"{task}, {name} beside full: {100 * cost['cpu_s']:.0f} % of the processor time, "
            f"{100 * cost['peak_bytes']:.0f} % of the peak memory, {points:+.1f} points of accuracy, {count} "
            f"seed{'s' * (count != 1)}. {_judged(cheap, points, fair)}{' One seed proves neither.' * (count == 1)}"
        )


def _judged(cheap: bool, points: float, fair: bool) -> str:
    """Whether LoRA is the cheaper one; `fair`: several step sizes of both were tried."""
    aim = (
        f"at most {100 * CPU_SHARE:.0f} % of the time and {100 * MEMORY_SHARE:.0f} % of the memory at no more than "
        f"{POINTS} points less"
    )
    if cheap and not fair:
        return (
            f"The costs are within the aim ({aim}); the points are not judged, since one step size alone was tried of "
            "one of them."
        )
    return f"The aim ({aim}) is {'met' if cheap and points >= -POINTS else 'not met'}."


def _edges(content: Content) -> Iterator[tuple[str, str, str]]:
    """(task, run, smallest or largest) where the best of at least two step sizes is the outermost."""
    for task in content["tasks"]:
        for name in _names(content, task):
            best, rates = _best(content, task, name), _rates(content, task, name)
            if best and len(rates) > 1 and best[0]["learning_rate"] in (rates[0], rates[-1]):
                yield task, name, "smallest" if best[0]["learning_rate"] == rates[0] else "largest"


def _rates(content: Content, task: str, name: str) -> list[float]:
    first = content["conditions"]["first_seed"]
    runs = content["tasks"][task]["runs"].get(name, {}).values()
    return sorted({float(one["learning_rate"]) for one in runs if one["seed"] == first})


def _step_sizes(content: Content) -> Iterator[Block]:
    rows = []
    first = content["conditions"]["first_seed"]
    for task in content["tasks"]:
        for name in _names(content, task):
            found = content["tasks"][task]["runs"].get(name, {}).values()
            tried = sorted((one for one in found if one["seed"] == first), key=lambda one: float(one["learning_rate"]))
            if tried:
                rows.append([task, name, ", ".join(f"{one['learning_rate']:g}: {_validation(one)}" for one in tried)])
    if rows:
        yield Heading("Step sizes")
        yield Paragraph(
            "Macro-F1 on the validation rows at each step size that was tried, by the first seed; the best is taken. "
            "The usual ones are in [methods.md](methods.md)."
        )
        yield Table(("task", "run", "step size: macro-F1"), rows)


def _validation(one: Mapping[str, Any]) -> str:
    return f"failed ({one['failed']})" if "failed" in one else f"{one['validation']:.3f}"
