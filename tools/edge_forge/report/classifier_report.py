"""Reports of classifiers: of one build (`report`) and of several runs side by side (`comparison`).

`figures` is what `plan.classifier_plan` gathers and writes as JSON beside the report: recipe, data, base, train (a
TrainRecord), scores by split, split (the measured one), calibration (bins), variants, gates, packages, steps. A section
is left out where the build made nothing for it. `runs` maps a name to the figures of a build.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edge_forge.progress import size
from edge_forge.report import compression_report, methods_table, plots, stages
from edge_forge.report.blocks import Block, Drawing, Heading, Items, Paragraph, Table
from edge_forge.report.claims import (
    COSTS,
    Runs,
    claims,
    cost_changes,
    cost_panels,
    costs,
    percent,
    settings,
    training_claims,
    variant_claims,
    wilson,
)
from edge_forge.train.methods import FULL, LORA

_COLUMNS = ("model", "accuracy", "macro-F1", "MCC", "ECE", "size", "memory", "latency p50", "against PyTorch")


def report(figures: Mapping[str, Any]) -> list[Block]:
    """All blocks: the result and the packages first, then stage by stage how they came about."""
    name = figures["recipe"]["name"]
    return [
        Heading(f"{name}: report of a build", 1),
        Paragraph(figures["recipe"]["description"]),
        *_result(figures),
        *stages.packages(figures),
        *stages.walk(figures, _SECTIONS),
    ]


def _result(figures: Mapping[str, Any]) -> Iterator[Block]:
    split, scores = figures["split"], figures["scores"][figures["split"]]
    errors = scores["rows"] - round(scores["accuracy"] * scores["rows"])
    low, high = wilson(scores["rows"] - errors, scores["rows"])
    yield Paragraph(
        f"PyTorch answers **{percent(scores['accuracy'])}** of the {scores['rows']} {split} rows as labelled "
        f"({errors} otherwise; 95 % interval {percent(low)} to {percent(high)}), "
        f"macro-F1 {scores['macro_f1']:.3f}, Matthews correlation {scores['mcc']:.3f}."
    )
    if spans := scores.get("spans"):
        yield Paragraph(
            f"Span F1 **{percent(spans['f1'])}** of {spans['spans']} spans (95 % interval {percent(spans['low'])} to "
            f"{percent(spans['high'])}). A text is answered as labelled where its spans are exactly those of its row; "
            "macro-F1 and the table of answers count spans, the matrix, Matthews correlation and calibration words."
        )
    if answers := scores.get("answers"):
        yield from _answers(answers)
    if figures.get("outcome"):
        yield Paragraph(f"**Mind: {figures['outcome']}.**")


def _answers(found: Mapping[str, Any]) -> Iterator[Block]:
    """Exact match and F1 by SQuAD's rules, of questions with and without an answer apart."""
    parts = [
        f"{found[name]['rows']} {name} ones: exact {percent(found[name]['exact'])}, F1 {percent(found[name]['f1'])}"
        for name in ("answerable", "unanswerable") if name in found
    ]  # fmt: skip
    yield Paragraph(
        f"Exact match **{percent(found['exact'])}** and F1 **{percent(found['f1'])}** of {found['questions']} "
        f"questions by the rules of SQuAD's script (95 % interval of F1 {percent(found['low'])} to "
        f"{percent(found['high'])}); {'; '.join(parts)}. The whole context, or no answer, to every question would have "
        f"an F1 of {percent(found['trivial'])}. A question is answered as labelled where exactly; macro-F1 above is "
        "that F1; the table of answers, the matrix and Matthews correlation are of whether there is an answer."
    )


def _variants(figures: Mapping[str, Any]) -> Iterator[Block]:
    variants = figures.get("variants")
    if not variants:
        return
    yield Heading("What runs on devices", 3)
    yield Paragraph(
        f"Each was run by the code that the device runs, on the {figures['split']} rows. `banked` is the base with "
        "this adapter attached, as in a mixed batch; `merged` is one graph. Latency: one text at a time on this host."
    )
    yield Table(_COLUMNS, [_variant_row(one) for one in variants])
    for one in variants:
        if one.get("range"):
            yield Paragraph(f"{one['range']} Its answers are those of float16 arithmetic, emulated.")
    if any(one["dtype"].startswith("tensorrt ") for one in variants):
        yield Paragraph(
            "Variants for TensorRT were judged on this host's processor, where no engine runs: float16 is emulated, "
            "INT8 computed with the same codes. Their latency is not known here. On a device the golden probes decide."
        )
    if any(one["dtype"].startswith("litert ") for one in variants):
        yield Paragraph(
            "Variants for LiteRT have no bank of adapters, so only the merged model has them. Their INT8 measures a "
            "range per row when it runs. A device that has both runtimes chooses by what it measures."
        )
    names = {label(one): one for one in variants}
    panels = [
        ("Accuracy", "{:.3f}", {name: one["accuracy"] for name, one in names.items()}),
        ("File, MiB", "{:.1f}", {name: one["size_bytes"] / 2**20 for name, one in names.items()}),
        ("Latency p50, ms", "{:.1f}", {name: one.get("latency_ms") for name, one in names.items()}),
    ]
    yield Drawing("variants", "Quality, size and speed of what was exported.", plots.bars(panels))
    if figures.get("gates"):
        yield Paragraph("What decided what is shipped:")
        yield Items(
            [f"{'holds' if gate['holds'] else '**does not hold**'}: {gate['sentence']}" for gate in figures["gates"]]
        )
    for form, dtype in figures.get("left_out", ()):
        yield Paragraph(f"**{form} {dtype} was left out of the package**; the verdict above says why.")


def label(variant: Mapping[str, Any]) -> str:
    """How a variant is named to people: 'merged int8'."""
    return f"{variant['form']} {variant['dtype']}"


def _variant_row(one: Mapping[str, Any]) -> list[str]:
    return [
        label(one), f"{one['accuracy']:.4f}", f"{one['macro_f1']:.3f}", f"{one['mcc']:.3f}", f"{one['ece']:.3f}",
        size(one["size_bytes"]), size(one["peak_bytes"]) if one.get("peak_bytes") else "–",
        f"{one['latency_ms']:.1f} ms" if one.get("latency_ms") else "–",
        f"{one['parity']:.2g}" if one.get("parity") is not None else "–",
    ]  # fmt: skip


_READABLE = 30
"""Classes that a table and a matrix can show; of more, the worst are shown."""
_WORST = 20


def _scope(figures: Mapping[str, Any]) -> Iterator[Block]:
    """In scope and out of scope apart, and what a threshold would change."""
    scope = figures.get("scope")
    if not scope:
        return
    points, plain = scope["curve"], scope["curve"][0]
    yield Heading("Scope and threshold", 3)
    if plain["out_of_scope_rows"]:
        yield Paragraph(
            f"Without a threshold, {percent(plain['in_scope_right'])} of the {plain['in_scope_rows']} "
            f"{figures['split']} rows in scope are answered rightly, and {percent(plain['out_of_scope_caught'])} of "
            f"the {plain['out_of_scope_rows']} rows out of scope as `{scope['label']}`."
        )
    chosen = next((point for point in points if point["threshold"] == scope["proposed"]), None)
    if chosen is None:
        yield Paragraph("No threshold serves better than none on the validation rows.")
    else:
        caught = (
            f"{percent(chosen['out_of_scope_caught'])} of those out of scope" if chosen["out_of_scope_rows"]
            else f"{percent(chosen['wrong_caught'] or 0.0)} of the wrong answers are replaced"
        )  # fmt: skip
        yield Paragraph(
            f"Proposed by the validation rows: **`threshold = {scope['proposed']:g}`**. On the {figures['split']} rows "
            f"{percent(chosen['in_scope_right'])} of those in scope are then answered rightly, and {caught}. "
            f"The recipe's is {scope['threshold']:g}."
            + ("" if scope["label"] else ' A threshold needs `out_of_scope`, such as "unsure".')
        )
    if scope["threshold"] and "at" in scope:
        yield Paragraph(f"What devices answer: {at_threshold(scope)}.")
    columns = ("threshold", "answered", "right, of those in scope", "caught, of those out of scope",
               "wrong answers replaced", "right answers lost")  # fmt: skip
    keys = ("answered", "in_scope_right", "out_of_scope_caught", "wrong_caught", "right_lost")
    yield Table(
        columns,
        [[f"{point['threshold']:g}", *("–" if point[key] is None else percent(point[key]) for key in keys)]
         for point in points],
    )  # fmt: skip


def _scores(figures: Mapping[str, Any]) -> Iterator[Block]:
    split, scores = figures["split"], figures["scores"][figures["split"]]
    yield Heading("Answers", 3)
    shown = list(scores["per_label"])
    if len(shown) > _READABLE:
        shown = sorted((one for one in shown if one["support"]), key=lambda one: one["f1"])[:_WORST]
        yield Paragraph(f"The {len(shown)} worst of {len(scores['labels'])} classes; all are in the JSON beside this.")
    yield Table(
        ("label", "rows", "precision", "recall", "F1"),
        [
            [f"`{one['label']}`", str(one["support"]), *(f"{one[key]:.3f}" for key in ("precision", "recall", "f1"))]
            for one in shown
        ],
    )
    if len(scores["labels"]) <= _READABLE:
        yield Drawing("confusion", f"Gold labels and answers on the {split} rows.",
                     plots.confusion(scores["confusion"], scores["labels"]))  # fmt: skip
    worst = confusions(scores["confusion"], scores["labels"], 5 if len(scores["labels"]) <= _READABLE else _WORST)
    if worst:
        yield Paragraph("Most often taken for another:")
        yield Items([f"`{gold}` answered as `{answered}`: {count} rows" for gold, answered, count in worst])
    if figures.get("calibration"):
        bins = [plots.Bin(*found) for found in figures["calibration"]]
        yield Drawing("calibration", "How far the score can be believed: points on the line say what they mean.",
                     plots.reliability(bins, scores["ece"]))  # fmt: skip


def confusions(matrix: Sequence[Sequence[int]], labels: Sequence[str], most: int = 5) -> list[tuple[str, str, int]]:
    """The largest off-diagonal counts: (gold, answered, rows)."""
    found = [
        (labels[gold], labels[answered], count)
        for gold, row in enumerate(matrix)
        for answered, count in enumerate(row)
        if gold != answered and count
    ]
    return sorted(found, key=lambda one: -one[2])[:most]


def _training(figures: Mapping[str, Any]) -> Iterator[Block]:
    record = figures["train"]
    yield stages.tuning(figures, "texts cut to max_tokens")
    if record["curves"]:
        yield Drawing("training", "Training by epoch.", plots.curves(record["curves"], record["best_epoch"]))


def _data(figures: Mapping[str, Any]) -> Iterator[Block]:
    statistics = figures["data"]["statistics"]
    rows = statistics["rows"]
    yield Paragraph(
        f"{rows['train']} rows to train, {rows['validation']} to validate, {rows['test']} to test; the largest class "
        f"has {statistics['imbalance']:g}× the training rows of the smallest. Half of the texts have at most "
        f"{statistics['characters']['p50']} characters, 95 % at most {statistics['characters']['p95']}."
    )
    if statistics["out_of_scope"]:
        yield Paragraph(
            f"Out of scope (`{statistics['out_of_scope']}`): {percent(statistics['out_of_scope_share'])} of training."
        )
    yield Table(
        ("label", "train", "validation", "test"),
        [[f"`{name}`", *(str(counts[split]) for split in ("train", "validation", "test"))]
         for name, counts in statistics["labels"].items()],
    )  # fmt: skip
    if figures["data"]["warnings"]:
        yield Items([f"Note: {warning}." for warning in figures["data"]["warnings"]])


def _claims(figures: Mapping[str, Any]) -> Iterator[Block]:
    scores = figures["scores"][figures["split"]]
    method = figures["train"]["method"]
    rows = training_claims({method: figures["train"]}, {method: scores["accuracy"]})
    yield Heading("Beside the sources' claims", 3)
    yield Table(
        ("source", "claim", "here", "why it may differ"), [*variant_claims(figures.get("variants") or ()), *rows]
    )


_SECTIONS: Mapping[str, Sequence[stages.Section]] = {
    stages.DATA: (_data,),
    stages.BASE: (stages.base, compression_report.compression),
    stages.SETUP: (stages.setup,),
    stages.TUNING: (_training,),
    stages.EVALUATION: (_scores, _scope, _claims),
    stages.DEPLOYMENT: (_variants, stages.steps),
    stages.MONITORING: (stages.probes, stages.drift),
}


def comparison_tables(runs: Runs) -> list[Table]:
    """What is shown at a terminal: one row per run; '–' where nothing was measured."""
    columns = (
        "run", "accuracy", "macro-F1", "MCC", *COSTS,
        "fp32 size", "int8 size", "int8 accuracy", "fp32 latency", "int8 latency",
    )  # fmt: skip
    return [Table(columns, [_row(name, figures) for name, figures in runs.items()])]


def _row(name: str, figures: Mapping[str, Any]) -> list[str]:
    scores = figures["scores"][figures["split"]]
    float32, int8 = variant(figures, "fp32"), variant(figures, "int8")
    return [
        name, f"{scores['accuracy']:.4f}", f"{scores['macro_f1']:.3f}", f"{scores['mcc']:.3f}",
        *costs(figures["train"]),
        size(float32["size_bytes"]) if float32 else "–", size(int8["size_bytes"]) if int8 else "–",
        f"{int8['accuracy']:.4f}" if int8 else "–",
        _latency(float32), _latency(int8),
    ]  # fmt: skip


def _latency(one: Mapping[str, Any] | None) -> str:
    """With the interval of the median where it was measured in turns with others."""
    if not one or not one.get("latency_ms"):
        return "–"
    found = one.get("latency") or {}
    interval = f" ({found['low_ms']:.1f} to {found['high_ms']:.1f})" if "low_ms" in found else ""
    return f"{one['latency_ms']:.1f}{interval} ms"


def variant(figures: Mapping[str, Any], dtype: str) -> Mapping[str, Any] | None:
    """The merged variant of that number format that is shipped, if there is one."""
    for one in figures.get("variants") or ():
        if one["form"] == "merged" and one["dtype"] == dtype and one["shipped"]:
            found: Mapping[str, Any] = one
            return found
    return None


def comparison(runs: Runs) -> list[Block]:
    """All blocks."""
    first = next(iter(runs.values()))
    count = first["scores"][first["split"]]["rows"]
    accuracy = {name: float(figures["scores"][figures["split"]]["accuracy"]) for name, figures in runs.items()}
    names = list(runs)
    low, high = wilson(round(accuracy[names[0]] * count), count)
    return [
        Heading("Comparison", 1),
        Paragraph(
            f"Measured in one build folder on one machine, on the {first['split']} split. With {count} rows an "
            f"accuracy like the first is known to {percent((high - low) / 2)} either way (95 %). Differences between "
            "runs on the same rows are known better; their intervals are below. Variants are those that are shipped."
        ),
        *comparison_tables(runs),
        Drawing("comparison", "Quality and cost of each run.", _drawing(runs, accuracy)),
        *_in_turns(runs),
        *(methods_table.blocks_of(runs) if _have_seeds(runs) else _pairs_said(runs)),
        Heading("Differences to the first run"),
        Table(
            ("run", "accuracy, points", *COSTS),
            [[name, _points(first, runs[name]), *cost_changes(runs[name]["train"], first["train"])]
             for name in names[1:]],
        ),
        *claims(runs, accuracy),
        *settings(runs),
    ]  # fmt: skip


def _have_seeds(runs: Runs) -> bool:
    return all(figures.get("seeds") for figures in runs.values())


def _in_turns(runs: Runs) -> Iterator[Block]:
    """How many times as long each shipped variant takes as the first, where they were measured in turns."""
    timed = [
        (f"{name}, {label(one)}", one["latency"])
        for name, figures in runs.items()
        for one in figures.get("variants") or ()
        if "ratio" in (one.get("latency") or {})
    ]
    if timed:
        yield Paragraph(
            f"Latencies were measured in turns, one text of each at a time, so that other work on this host slows all "
            f"alike; intervals are of the median, 95 %. Times as long as `{timed[0][0]}`:"
        )
        yield Items([f"`{name}`: {_ratio(one)}" for name, one in timed[1:]])
    attached = [(name, one) for name, figures in runs.items() for one in figures.get("attached") or ()]
    if attached:
        yield Paragraph(
            "An adapter that is attached to the base costs two small products behind every linear layer; merged it "
            "costs nothing, and the device holds a model of its own for each task. Attached, times as long as merged, "
            "in the same turns:"
        )
        yield Items([f"`{name}, {one['dtype']}`: {_ratio(one['latency'])}, {one['latency']['p50_ms']:.1f} ms"
                     for name, one in attached])  # fmt: skip


def _ratio(latency: Mapping[str, float]) -> str:
    return f"{latency['ratio']:.2f} ({latency['ratio_low']:.2f} to {latency['ratio_high']:.2f})"


def recommendation(runs: Runs) -> str:
    """What to take, in words: by the seeds, or without them of LoRA and full tuning on the same rows."""
    return methods_table.recommendation(runs) if _have_seeds(runs) else " ".join(_advice(runs))


def _pairs_said(runs: Runs) -> Iterator[Block]:
    for sentences in _advice(runs):
        yield Heading("What to choose")
        yield Paragraph(sentences)


def _advice(runs: Runs) -> Iterator[str]:
    """What to take, of LoRA and full tuning of one recipe on the same rows: by whether the rows tell them apart, and by
    what a further task costs a device."""
    for lora, full in _pairs(runs):
        difference = paired_accuracy(runs[lora]["exam"]["right"], runs[full]["exam"]["right"])
        low, high = 100 * difference[1], 100 * difference[2]
        told = (
            f"On the same {len(runs[lora]['exam']['right'])} rows `{full}` is {100 * difference[0]:+.2f} points beside "
            f"`{lora}` (95 % interval {low:+.2f} to {high:+.2f})"
        )
        costs_more = _task_costs(runs[lora], runs[full])
        if low > 0.0:
            advice = "the rows show that full tuning is better: take it where that is worth its cost"
        elif high < 0.0:
            advice = "the rows show that LoRA is better: take LoRA"
        else:
            advice = "the rows cannot tell them apart: take LoRA"
        yield f"{told}; {advice}. {costs_more} {methods_table.UNSEARCHED}"


def _pairs(runs: Runs) -> Iterator[tuple[str, str]]:
    """(LoRA run, full run) of the same recipe on the same rows, the first of each."""
    by: dict[tuple[str, str, str], str] = {}
    for name, figures in runs.items():
        by.setdefault((figures["recipe"]["name"], figures["exam"]["rows"], figures["train"]["method"]), name)
    for (recipe, rows, method), name in by.items():
        full = by.get((recipe, rows, FULL.name))
        if method == LORA.name and full is not None:
            yield name, full


def _points(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The difference in accuracy to the first run; with its interval where both answered the same rows."""
    if first["exam"]["rows"] != other["exam"]["rows"]:
        one, two = (figures["scores"][figures["split"]]["accuracy"] for figures in (first, other))
        return f"{100 * (two - one):+.2f} (other rows)"
    found, low, high = (100 * one for one in paired_accuracy(first["exam"]["right"], other["exam"]["right"]))
    return f"{found:+.2f} ({low:+.2f} to {high:+.2f})"


def paired_accuracy(first: str, second: str) -> tuple[float, float, float]:
    """(difference, low, high): accuracy of the second run minus that of the first, by rows ('1': answered right)."""
    from edge_forge.evaluate.paired import difference_interval

    gained = sum(one < other for one, other in zip(first, second, strict=True))
    lost = sum(one > other for one, other in zip(first, second, strict=True))
    return ((gained - lost) / len(first), *difference_interval(len(first), gained, lost))


def _task_costs(lora: Mapping[str, Any], full: Mapping[str, Any]) -> str:
    """What a further task on a device that serves the base already takes, by either method."""
    shipped = [
        one for one in full.get("variants") or ()
        if one["form"] == "merged" and one["shipped"] and not one["dtype"].startswith("tensorrt ")
    ]  # fmt: skip
    if not shipped or "adapter_bytes" not in lora:
        return ""
    smallest = min(shipped, key=lambda one: int(one["size_bytes"]))
    memory = f" and {size(smallest['peak_bytes'])} of memory" if smallest.get("peak_bytes") else ""
    return (
        f"With LoRA a further task adds a file of {size(lora['adapter_bytes'])} to a device that has the base, and "
        f"shares its memory and its batches; a fully tuned model adds {size(smallest['size_bytes'])} "
        f"({smallest['dtype']}){memory} of its own."
    )


def _drawing(runs: Runs, accuracy: Mapping[str, float]) -> str:
    panels = [("Accuracy", "{:.4f}", accuracy), *cost_panels(runs)]
    if all(variant(figures, "int8") for figures in runs.values()):
        latencies = {name: (variant(figures, "int8") or {}).get("latency_ms") for name, figures in runs.items()}
        panels.append(("INT8 latency, ms", "{:.1f}", latencies))
    return plots.bars(panels)


def at_threshold(scope: Mapping[str, Any]) -> str:
    """What a device answers to the measured rows with the recipe's threshold."""
    at = scope["at"]
    return (
        f"with task.threshold = {at['threshold']:g}: {at['in_scope_answered'] or 0.0:.3f} of the rows in scope are "
        f"answered, {at['in_scope_right'] or 0.0:.3f} rightly; the others get {scope['label']!r}"
    )


def score_lines(figures: Mapping[str, Any]) -> list[str]:
    """How good it is, for who reads no report."""
    rows = figures.get("scores", {}).get(figures.get("split", ""), {})
    if "accuracy" not in rows:
        return []
    lines = [f"accuracy    {rows['accuracy']:.3f} on {rows['rows']} rows of {figures['split']}"]
    if spans := rows.get("spans"):
        lines.append(
            f"span F1     {spans['f1']:.3f} ({spans['low']:.3f} to {spans['high']:.3f}) of {spans['spans']} spans"
        )
    scope = figures.get("scope")
    if scope and scope["curve"][0]["out_of_scope_rows"]:
        plain = scope["curve"][0]
        inside, outside = plain["in_scope_right"] or 0.0, plain["out_of_scope_caught"]
        lines.append(f"            in scope {inside:.3f}, out of scope {outside:.3f}")
    if scope and scope["threshold"] and "at" in scope:
        lines.append(f"            {at_threshold(scope)}")
    if scope and scope["proposed"] is not None and scope["proposed"] != scope["threshold"]:
        needs = "" if scope["label"] else ' with task.out_of_scope, such as "unsure"'
        lines.append(f"proposed    task.threshold = {scope['proposed']:g}{needs}; the report has the curve")
    if figures.get("compression"):
        lines += [f"smaller     {sentence}" for sentence in compression_report.sentences(figures)]
    if figures.get("outcome"):
        lines.append(f"MIND        {figures['outcome']}")
    return lines
