"""The report of one build of a generator: from the figures of `plan.generator_plan` to blocks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from edge_forge.progress import size
from edge_forge.report import stages
from edge_forge.report.blocks import Block, Heading, Items, Paragraph, Table

SCORES = {
    "perplexity": ("perplexity", "{:.3f}"),
    "exact_match": ("exact match", "{:.1%}"),
    "json_match": ("same JSON", "{:.1%}"),
    "bleu": ("BLEU", "{:.1f}"),
    "rouge_l": ("ROUGE-L", "{:.3f}"),
    "preferred": ("chosen preferred", "{:.1%}"),
    "margin": ("margin, nats", "{:+.2f}"),
}
"""Scores as people read them: key to (title, format)."""


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
    scores = figures["scores"]
    yield Heading("Result")
    yield Paragraph(
        f"By PyTorch in float32 on {scores['tuned']['rows']} {figures['split']} rows ({scores['tuned']['tokens']} "
        "tokens of answers). Answers are greedy; BLEU and ROUGE-L compare words, exact match the whole answer."
    )
    found = {who: flat(one) for who, one in scores.items()}
    yield Table(("", *found), [
        [title, *(cell(one, key) for one in found.values())] for key, (title, _) in _taken(found.values()).items()
    ])  # fmt: skip
    if figures.get("outcome"):
        yield Paragraph(f"**Mind: {figures['outcome']}.**")


def flat(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of an evaluation set (`generator_scores.by_torch`) with those of its answers beside the perplexity."""
    return {**scores, **(scores.get("answers") or {}), **(scores.get("preferences") or {})}


def _taken(found: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """The entries of `SCORES` but those of preferences where none has them."""
    held = list(found)
    return {
        key: told for key, told in SCORES.items()
        if key not in ("preferred", "margin") or any(one.get(key) is not None for one in held)
    }  # fmt: skip


def _preferences(figures: Mapping[str, Any]) -> Iterator[Block]:
    """What was learned of preferences, with intervals."""
    scores = {who: one["preferences"] for who, one in figures["scores"].items() if one.get("preferences")}
    if not scores:
        return
    shown = (
        ("preferred", "chosen answer likelier", "{:.1%}"), ("margin", "ln p(chosen) - ln p(rejected), nats", "{:+.2f}"),
        ("rewarded", "margin raised by training", "{:.1%}"), ("reward_margin", "rise of the margin × beta", "{:+.3f}"),
    )  # fmt: skip
    yield Heading("Preferences", 3)
    yield Paragraph(
        "Of the measured pairs, by the likelihood of whole answers; in brackets 95 % intervals (Wilson's of shares, "
        "Student's of means). DPO's own accuracy is the third line: its reference is the base."
    )
    yield Table(("", *scores), [
        [title, *(_with_interval(one, key, form) for one in scores.values())] for key, title, form in shown
    ])  # fmt: skip


def _with_interval(one: Mapping[str, Any], key: str, form: str) -> str:
    if one.get(key) is None:
        return "–"
    ends = [one[f"{key}_{end}"] for end in ("low", "high")]
    known = "not known" if None in ends else " to ".join(map(form.format, ends))
    return f"{form.format(one[key])} ({known})"


def cell(one: Mapping[str, Any], key: str) -> str:
    """One of `SCORES` as text; '–' where it was not taken."""
    return SCORES[key][1].format(one[key]) if one.get(key) is not None else "–"


def _files(figures: Mapping[str, Any]) -> Iterator[Block]:
    files = figures["files"]
    yield Heading("What runs on devices", 3)
    yield Paragraph(
        "The same rows through llama.cpp. `base` is the base alone, `adapter` the base with the adapter attached, "
        "`merged` both in one file. Against PyTorch: relative distance of logits, the worst token of the samples."
    )
    taken = _taken(files)
    yield Table(
        ("model", *(title for title, _ in taken.values()), "size", "against PyTorch"),
        [[f"{one['form']} {one['dtype']}", *(cell(one, key) for key in taken), size(one["size_bytes"]),
          f"{one['parity']:.2g}" if one.get("parity") is not None else "–"] for one in files],
    )  # fmt: skip
    adapter = figures["adapter"]
    if adapter:
        yield Paragraph(
            f"The adapter (rank {adapter['rank']}, {len(adapter['modules'])} modules, {size(adapter['size_bytes'])}) "
            f"moves the logits by {adapter['effect']:.2g} (relative) in llama.cpp, and differs from PyTorch by "
            f"{adapter['parity']:.2g}."
        )
    fallbacks = [f"{one['form']} {one['dtype']}: {one['fallbacks']}" for one in files if one.get("fallbacks")]
    if fallbacks:
        yield Paragraph(
            f"Tensors that llama.cpp gave another format, since their rows do not fit: {', '.join(fallbacks)}."
        )
    if figures["gates"]:
        yield Paragraph("What decided what is shipped:")
        yield Items(
            [f"{'holds' if gate['holds'] else '**does not hold**'}: {gate['sentence']}" for gate in figures["gates"]]
        )
    for form, dtype in figures["left_out"]:
        if form == "merged":
            yield Paragraph(
                f"**{form} {dtype} was left out of the package**, since it loses more than the recipe allows."
            )


def _memory(figures: Mapping[str, Any]) -> Iterator[Block]:
    files = [one for one in figures["files"] if one["form"] != "adapter" and one.get("memory")]
    if not files:
        return
    names = list(files[0]["memory"])
    yield Heading("Memory, predicted", 3)
    yield Paragraph(
        f"Bytes of a worker with {figures['task']['sequences']} sequences: weights, cache and work, by context and by "
        "number format of the cache. A device measures its own and corrects this."
    )
    yield Table(
        ("model", *names), [[f"{one['form']} {one['dtype']}", *(size(one["memory"][name]) for name in names)]
                            for one in files],
    )  # fmt: skip


def _samples(figures: Mapping[str, Any]) -> Iterator[Block]:
    tuned = figures["scores"]["tuned"].get("samples")
    if not tuned:
        return
    before = [one[2] for one in figures["scores"].get("base", {}).get("samples", ())]
    yield Heading("Answers", 3)
    columns = ("asked", "wanted", "answered", *(["by the base"] if before else []))
    yield Table(columns, [
        [f"`{_short(cell)}`" for cell in (*row, *before[place : place + 1])] for place, row in enumerate(tuned)
    ])  # fmt: skip


def _short(text: str) -> str:
    flat = " ".join(text.replace("`", "'").replace("|", "/").split())
    return flat if len(flat) <= 120 else flat[:119] + "…"


def _training(figures: Mapping[str, Any]) -> Iterator[Block]:
    curves = figures["train"]["curves"]
    yield stages.tuning(figures, "dialogues left out as too long")
    if curves:
        yield Table(
            ("epoch", "training loss", "validation loss"),
            [[f"{one['epoch']:g}", f"{one['train_loss']:.4f}", f"{one['validation_loss']:.4f}"] for one in curves],
        )


def _data(figures: Mapping[str, Any]) -> Iterator[Block]:
    statistics = figures["data"]["statistics"]
    rows, characters = statistics["rows"], statistics["characters"]
    yield Paragraph(
        f"{statistics['kind'].capitalize()}: {rows['train']} rows to train, {rows['validation']} to validate, "
        f"{rows['test']} to test. Half of the rows have at most {characters['p50']} characters, 95 % at most "
        f"{characters['p95']}."
    )
    if figures["data"]["warnings"]:
        yield Items([f"Note: {warning}." for warning in figures["data"]["warnings"]])


_SECTIONS: Mapping[str, Sequence[stages.Section]] = {
    stages.DATA: (_data,),
    stages.BASE: (stages.base,),
    stages.SETUP: (stages.setup,),
    stages.TUNING: (_training,),
    stages.EVALUATION: (_preferences, _samples),
    stages.DEPLOYMENT: (_files, _memory, stages.steps),
    stages.MONITORING: (stages.probes,),
}


UNCHANGED = 0.97
"""Of the base's perplexity: an adapter above it has learned nothing worth its place."""


def score_lines(figures: Mapping[str, Any]) -> list[str]:
    """How good it is, for who reads no report, and whether training changed anything at all."""
    base, tuned = figures["scores"].get("base"), figures["scores"]["tuned"]
    perplexity = f"perplexity  {tuned['perplexity']:.3g}"
    if base is None:  # made here from random weights: nothing to set it beside
        return [f"{perplexity} on {tuned['rows']} rows"]
    lines = [f"{perplexity} (base {base['perplexity']:.3g}) on {tuned['rows']} rows"]
    if tuned.get("preferences"):
        found, before = tuned["preferences"], base["preferences"]
        share = _with_interval(found, "preferred", "{:.1%}")
        lines.insert(0, f"chosen answer likelier in {share} of the pairs (base {before['preferred']:.1%})")
        return [*lines, f"margin      {found['margin']:+.3g} nats (base {before['margin']:+.3g})"]
    if tuned.get("answers") and base.get("answers"):
        exact, before = tuned["answers"]["exact_match"], base["answers"]["exact_match"]
        lines.insert(0, f"exact match {exact:.1%} (base {before:.1%}) on {tuned['rows']} rows")
        if exact <= before and tuned["perplexity"] > UNCHANGED * base["perplexity"]:
            lines.append("warning     training changed next to nothing: raise train.epochs or train.learning_rate")
    return lines
