"""The comparison of generators: runs side by side. `runs` maps a name to the figures of a build.

The base stands beside what was made of it, and a model in one file beside the base with an adapter attached. This
module is apart from `generator_report`, the report of one build, since both show the same things in other tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from edge_forge.progress import size
from edge_forge.report import generator_methods, plots
from edge_forge.report.blocks import Block, Drawing, Heading, Items, Paragraph, Table
from edge_forge.report.claims import (
    COSTS,
    Panel,
    Runs,
    claims,
    cost_changes,
    cost_panels,
    costs,
    percent,
    settings,
    wilson,
)
from edge_forge.report.generator_report import SCORES, cell, flat

_DRAWN = {"perplexity": "{:.3f}", "exact_match": "{:.3f}", "bleu": "{:.1f}", "rouge_l": "{:.3f}"}
# Of files at a terminal and in the drawing: there are many, and these two tell them apart.
_SHOWN = ("perplexity", "exact_match")


class _Model(NamedTuple):
    """A file as a device runs it: its run (the base's own where it is bare), and its figures."""

    run: str
    form: str
    dtype: str
    figures: Mapping[str, Any]

    @property
    def name(self) -> str:
        """How it is named to people."""
        return " ".join(part for part in (self.run, self.form, self.dtype) if part)


def comparison_tables(runs: Runs) -> list[Table]:
    """What is shown at a terminal: quality beside the base's, cost of training, what runs on devices."""
    quality, keys = _quality(runs), _keys(runs)
    return [
        Table(("quality", *(SCORES[key][0] for key in keys)),
              [[name, *(cell(scores, key) for key in keys)] for name, scores in quality.items()]),
        _training(runs),
        _devices(runs, [key for key in keys if key in _SHOWN]),
    ]  # fmt: skip


def comparison(runs: Runs) -> list[Block]:
    """All blocks."""
    quality, training, _ = comparison_tables(runs)
    keys, quality_of = _keys(runs), _quality(runs)
    return [
        Heading("Comparison", 1),
        Paragraph(_reading(runs)),
        Heading("Quality"),
        Paragraph("By PyTorch in float32; answers are greedy. `base` is the model before, on the same rows."),
        quality,
        Drawing("quality", "Quality of the base and of each run.", plots.bars(_quality_panels(quality_of, keys))),
        Heading("Training"),
        training,
        Drawing(
            "cost", "Cost of each run.", plots.bars(cost_panels({_short(runs)[name]: runs[name] for name in runs}))
        ),
        *generator_methods.blocks_of(runs),
        *_differences(runs, keys, quality_of),
        Heading("What runs on devices"),
        Paragraph(
            "By llama.cpp: `adapter` is the base with the adapter attached, `merged` both in one file. Memory is "
            "predicted, for the recipe's context and sequences; an adapter counts with the bytes of its file. "
            f"{_timing(runs)}"
        ),
        _devices(runs, keys),
        *_in_turns(runs),
        Drawing("files", "Quality, size, memory and speed of every file.", _files_drawing(runs)),
        *_merged(runs),
        *claims(runs),
        *settings(runs),
    ]


def _reading(runs: Runs) -> str:
    """How far the figures can be believed."""
    first = next(iter(runs.values()))
    scores = flat(first["scores"]["tuned"])
    text = f"Measured in one build folder on one machine, on the {first['split']} split."
    if scores.get("exact_match") is not None:
        low, high = wilson(round(scores["exact_match"] * scores["rows"]), scores["rows"])
        text += (
            f" With {scores['rows']} rows an exact match like the first run's is known to "
            f"{percent((high - low) / 2)} either way (95 %); what is smaller is noise."
        )
    if not all(_same(figures, first, "rows") for figures in runs.values()):
        text += " Not all runs are scored on the same rows: set each beside its base."
    elif not all(_same(figures, first, "tokenizer") for figures in runs.values()):
        text += " Perplexities of different tokenizers say nothing about each other."
    return text


def _same(figures: Mapping[str, Any], other: Mapping[str, Any], what: str) -> bool:
    """Whether both are scored on the same rows, or in the tokens of the same tokenizer."""
    return bool(figures["exam"][what] == other["exam"][what])


def _timing(runs: Runs) -> str:
    found = next((one.figures["speed"] for one in _models(runs) if one.figures.get("speed")), None)
    if found is None:
        return "Speed was not measured."
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    return (
        f"Speed: one request at a time by the code that the device runs, on {threads} of this host, "
        f"{found['prompts']} rows (in the first line {found['prompt_tokens']:g} tokens in, {found['answer_tokens']:g} "
        f"out). The files took turns in {found['rounds']} rounds, so that other work on the host slows all alike: "
        "medians of the rounds, in brackets their 95 % interval."
    )


def _short(runs: Runs) -> dict[str, str]:
    """Names of runs without the recipe's where all have the same one."""
    recipes = {figures["recipe"]["name"] for figures in runs.values()}
    if len(recipes) > 1:
        return {name: name for name in runs}
    return {name: name.removeprefix(f"{next(iter(recipes))} ") for name in runs}


def _bases(runs: Runs) -> dict[str, str]:
    """By run, the name of the base that it began with; runs of one recipe on the same base share it."""
    found: dict[str, str] = {}
    seen: dict[str, Any] = {}
    for name, figures in runs.items():
        recipe, scores = figures["recipe"]["name"], figures["scores"].get("base")
        if scores is None:
            continue
        short = "base" if _short(runs)[name] != name else f"{recipe} base"
        same = seen.setdefault(short, scores) == scores
        found[name] = short if same else f"{_short(runs)[name]} base"
    return found


def _quality(runs: Runs) -> dict[str, Mapping[str, Any]]:
    """Scores by PyTorch by name, every base before the first run on it."""
    found: dict[str, Mapping[str, Any]] = {}
    bases, short = _bases(runs), _short(runs)
    for name, figures in runs.items():
        if name in bases:
            found.setdefault(bases[name], flat(figures["scores"]["base"]))
        found[short[name]] = flat(figures["scores"]["tuned"])
    return found


def _keys(runs: Runs) -> list[str]:
    """The scores that any run has."""
    return [key for key in SCORES if any(one.get(key) is not None for one in _quality(runs).values())]


def _models(runs: Runs) -> Iterator[_Model]:
    """Every file once, the base's before those of its runs; forms of one number format beside each other."""
    bases, short, seen = _bases(runs), _short(runs), set()
    for name, figures in runs.items():
        files = figures["files"]
        dtypes = list(dict.fromkeys(one["dtype"] for one in files))
        for one in sorted(files, key=lambda one: (one["form"] != "base", dtypes.index(one["dtype"]), one["form"])):
            bare = one["form"] == "base"
            adapter = figures["adapter"]["size_bytes"] if one["form"] == "adapter" else 0
            run = bases.get(name, short[name]) if bare else short[name]
            model = _Model(run, "" if bare else one["form"], one["dtype"], {**one, "adapter_bytes": adapter})
            if model.name not in seen:
                seen.add(model.name)
                yield model


def _training(runs: Runs) -> Table:
    return Table(("training", *COSTS), [[_short(runs)[name], *costs(one["train"])] for name, one in runs.items()])


def _devices(runs: Runs, keys: list[str]) -> Table:
    titles = [SCORES[key][0] for key in keys]
    columns = ("on devices", *titles, "file", "adapter", "memory", "first token", "tokens/s")
    return Table(columns, [
        [one.name, *(cell(one.figures, key) for key in keys), *_sizes(one), size(_memory(one)), *_speed(one)]
        for one in _models(runs)
    ])  # fmt: skip


def _sizes(one: _Model) -> list[str]:
    adapter = one.figures["adapter_bytes"]
    return [size(one.figures["size_bytes"]), size(adapter) if adapter else "–"]


def _memory(one: _Model) -> int:
    return int(one.figures["peak_bytes"]) + int(one.figures["adapter_bytes"])


def _rate(one: _Model) -> float | None:
    rate: float | None = (one.figures.get("speed") or {}).get("tokens_per_s")
    return rate


def _speed(one: _Model) -> list[str]:
    speed = one.figures.get("speed") or {}
    return [_known(speed, "first_token_ms", " ms"), _known(speed, "tokens_per_s", "")]


def _known(speed: Mapping[str, Any], key: str, unit: str) -> str:
    """A median with its interval."""
    if speed.get(key) is None:
        return "–"
    return f"{speed[key]:.1f}{unit} ({speed[f'{key}_low']:.1f} to {speed[f'{key}_high']:.1f})"


def _in_turns(runs: Runs) -> Iterator[Block]:
    """How many times the tokens/s of the first file: taken by round, which is known better than the rates."""
    timed = [(one.name, one.figures["speed"]) for one in _models(runs) if "ratio" in (one.figures.get("speed") or {})]
    if len(timed) > 1:
        yield Paragraph(f"Tokens/s, times those of `{timed[0][0]}`, by round:")
        yield Items([f"`{name}`: {speed['ratio']:.2f} ({speed['ratio_low']:.2f} to {speed['ratio_high']:.2f})"
                     for name, speed in timed[1:]])  # fmt: skip


def _differences(runs: Runs, keys: list[str], quality: Mapping[str, Mapping[str, Any]]) -> Iterator[Block]:
    short, names = _short(runs), list(runs)
    first, matched = runs[names[0]], "exact_match" in keys
    start = quality[short[names[0]]]

    def change(name: str) -> list[str]:
        """What can be compared: exact match on the same rows, perplexity in the same tokens as well."""
        own, asked = quality[short[name]], _same(runs[name], first, "rows")
        ratio = f"{own['perplexity'] / start['perplexity']:.3f}×"
        known = None not in (own.get("exact_match"), start.get("exact_match"))
        points = f"{100 * (own['exact_match'] - start['exact_match']):+.1f}" if asked and known else "–"
        return [ratio if asked and _same(runs[name], first, "tokenizer") else "–", *([points] if matched else [])]

    yield Heading("Differences to the first run")
    yield Table(
        ("run", "perplexity", *(["exact match, points"] if matched else []), *COSTS),
        [[short[name], *change(name), *cost_changes(runs[name]["train"], first["train"])] for name in names[1:]],
    )


def _merged(runs: Runs) -> Iterator[Block]:
    """One file against base and adapter, where both exist."""
    found = {(one.run, one.form, one.dtype): one for one in _models(runs)}
    rows = []
    for (run, form, dtype), one in found.items():
        beside = found.get((run, "adapter", dtype))
        if form != "merged" or beside is None:
            continue
        rate, other = _rate(one), _rate(beside)
        rows.append([
            f"{run} {dtype}", f"{one.figures['perplexity'] / beside.figures['perplexity']:.3f}×",
            size(one.figures["size_bytes"]), size(beside.figures["adapter_bytes"]),
            f"{100 * (_memory(one) / _memory(beside) - 1):+.1f} %",
            f"{100 * (rate / other - 1):+.0f} %" if rate and other else "–",
        ])  # fmt: skip
    if rows:
        yield Heading("Merged against adapter")
        yield Paragraph(
            "One file for each task against one base for all: what merging changes, and what one more task costs on "
            "disk in either form."
        )
        columns = ("run", "perplexity", "one more merged", "one more adapter", "memory", "tokens/s")
        yield Table(columns, rows)


def _files_drawing(runs: Runs) -> str:
    models = {one.name: one for one in _models(runs)}
    keys = [key for key in _keys(runs) if key in _SHOWN]
    panels: list[Panel] = [
        *_quality_panels({name: one.figures for name, one in models.items()}, keys),
        ("File, MiB", "{:.1f}", {
            name: (one.figures["size_bytes"] + one.figures["adapter_bytes"]) / 2**20 for name, one in models.items()
        }),
        ("Memory, MiB", "{:.0f}", {name: _memory(one) / 2**20 for name, one in models.items()}),
        ("Tokens/s", "{:.0f}", {name: _rate(one) for name, one in models.items()}),
    ]  # fmt: skip
    return plots.bars(panels)


def _quality_panels(scores: Mapping[str, Mapping[str, Any]], keys: list[str]) -> list[Panel]:
    return [
        (title[0].upper() + title[1:], _DRAWN[key], {name: one.get(key) for name, one in scores.items()})
        for key, (title, _) in SCORES.items()
        if key in keys and key in _DRAWN
    ]
