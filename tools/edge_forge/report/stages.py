"""The seven stages in which a report tells how a build came about, and the blocks that reports of every kind share.

Data preparation, initialisation, set-up, tuning, evaluation, deployment and monitoring: the pipeline of "The Ultimate
Guide to Fine-Tuning LLMs" (Parthasarathy et al., 2024, arXiv:2408.13296). Each section is a function of the figures
of a build; one that has nothing to tell yields nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from edge_agent.bundle.drift_reference import BINS, FRAGMENTATION_EDGES
from edge_forge.progress import duration, size
from edge_forge.report.blocks import Block, Heading, Paragraph, Table
from edge_forge.report.claims import percent

Section = Callable[[Mapping[str, Any]], Iterator[Block]]

DATA, BASE, SETUP, TUNING, EVALUATION, DEPLOYMENT, MONITORING = (
    "Data preparation", "Initialisation", "Set-up", "Tuning", "Evaluation", "Deployment", "Monitoring",
)  # fmt: skip


def walk(figures: Mapping[str, Any], sections: Mapping[str, Sequence[Section]]) -> Iterator[Block]:
    """The stages in their order, numbered; `sections` are those of each."""
    for number, title in enumerate((DATA, BASE, SETUP, TUNING, EVALUATION, DEPLOYMENT, MONITORING), 1):
        yield Heading(f"{number}. {title}")
        for section in sections[title]:
            yield from section(figures)


def base(figures: Mapping[str, Any]) -> Iterator[Block]:
    """What training began with, and which part of it moved."""
    found, record = figures["base"], figures["train"]
    share = record["trainable_parameters"] / record["total_parameters"]
    yield Paragraph(
        f"Base `{found['name']}` from `{found['source']}`, {size(found['size_bytes'])}, `{found['base_id']}`. "
        f"The method `{record['method']}` trains {record['trainable_parameters']:,} of {record['total_parameters']:,} "
        f"parameters ({share:.1%}); new ones are drawn with seed {record['settings'].get('seed', 0)}."
    )


def setup(figures: Mapping[str, Any]) -> Iterator[Block]:
    """The settings, what was chosen for this host, and the versions."""
    record = figures["train"]
    choice = record["choice"]
    preset = f" (preset {record['preset']})" if record.get("preset") else ""
    chosen = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in choice.items() if _is_plain(value))
    yield Table(
        ("what", "value"),
        [
            ["method", f"{record['method']}{preset}"],
            ["found on this host and data", chosen],
            ["settings", ", ".join(f"{key} = {value}" for key, value in sorted(record["settings"].items()))],
            ["versions", ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items()))],
        ],
    )


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def tuning(figures: Mapping[str, Any], left_out: str) -> Table:
    """What training took and what it kept. `left_out`: what `truncated` of the record counts."""
    record = figures["train"]
    counts = ", ".join(f"{count} {split}" for split, count in record["truncated"].items())
    return Table(
        ("what", "value"),
        [
            ["time", f"{duration(record['wall_s'])}, {duration(record['cpu_s'])} of processor time"],
            ["peak memory", f"{size(record['peak_bytes'])}, of which libraries {size(record['baseline_bytes'])}"],
            ["kept state", f"epoch {record['best_epoch']:g}{', stopped early' if record['stopped_early'] else ''}"],
            [left_out, counts or "none"],
        ],
    )


def packages(figures: Mapping[str, Any]) -> Iterator[Block]:
    """The files that devices install."""
    if figures.get("packages"):
        yield Heading("Packages")
        yield Table(
            ("file", "what", "size", "digest"),
            [[f"`{one['file']}`", one["what"], size(one["size_bytes"]), f"`{one['digest'][:19]}…`"]
             for one in figures["packages"]],
        )  # fmt: skip


def steps(figures: Mapping[str, Any]) -> Iterator[Block]:
    """How long each step of the build took."""
    yield Heading("Steps of the build", 3)
    yield Table(("step", "time"), [[one["name"], duration(one["took_s"])] for one in figures["steps"]])


def probes(figures: Mapping[str, Any]) -> Iterator[Block]:
    """How a device sees that it still computes what was measured here."""
    if not figures.get("packages"):
        yield Paragraph("No package was made, so no device has anything to compare with.")
    else:
        yield Paragraph(
            "The packages carry golden probes: texts with what this build's code answered. A device runs them at the "
            "install, and again every hour (`telemetry.canary_s`), alone and in company; one that no longer holds is "
            "the event `verify-failed`. Each model's latency, confidence, refusals and energy are in "
            "the topic `telemetry`."
        )


def drift(figures: Mapping[str, Any]) -> Iterator[Block]:
    """The drift reference: how the measured rows look, which a device compares its requests with."""
    variants = [one for one in figures.get("variants") or () if one.get("confidence")]
    if not variants or not figures.get("packages"):
        return
    one = next((found for found in variants if found.get("shipped")), variants[0])
    unknown = one.get("out_of_vocabulary")
    yield Paragraph(
        f"They also carry how the {figures['split']} rows look to the model, so that a device tells how far its "
        "requests are from them: `models.*.drift` in `telemetry` has two population stability indices, from 50 "
        "texts on; 0.1 is taken for a small shift, 0.25 for a large one."
        + ("" if unknown is None else f" Unknown tokens: {percent(unknown)} of all, which it compares, too.")
    )
    yield Table(
        ("top score up to", "rows", "tokens per byte up to", "rows"),
        [[f"{(place + 1) / BINS:.1f}", percent(sure), _edge(place), percent(pieces)]
         for place, (sure, pieces) in enumerate(zip(one["confidence"], one["fragmentation"], strict=True))],
    )  # fmt: skip


def _edge(place: int) -> str:
    return f"{FRAGMENTATION_EDGES[place]:.2f}" if place < len(FRAGMENTATION_EDGES) else "more"
