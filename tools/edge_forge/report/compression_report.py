"""What a smaller base cost and brought: the section of a classifier's report beside its own figures.

`figures["compression"]` is what `plan.classifier_plan` gathers: {kept, parameters, teacher, distill, right,
accuracy}, and in a build `before` and `after`. A file of its own because `classifier_report` holds what every build
has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edge_forge.progress import duration, size
from edge_forge.report.blocks import Block, Heading, Paragraph, Table
from edge_forge.report.claims import percent


def compression(figures: Mapping[str, Any]) -> Iterator[Block]:
    """The blocks; none where the recipe's base was not made smaller."""
    found = figures.get("compression")
    if not found:
        return
    yield Heading("A smaller base", 3)
    yield Paragraph(" ".join(sentences(figures)))
    after = {one["dtype"]: one for one in found.get("after", ())}
    rows = [_row(one, after[one["dtype"]]) for one in found.get("before", ()) if one["dtype"] in after]
    if rows:
        yield Paragraph("Merged files of both, run by the code that devices run, one text at a time and in turns:")
        yield Table(
            ("format", "size before", "size after", "latency before", "latency after", "times as long"), rows
        )  # fmt: skip


def sentences(figures: Mapping[str, Any]) -> list[str]:
    """What was cut, what it cost, and what became of the accuracy, for people."""
    from edge_forge.evaluate.paired import difference_interval

    found, scores = figures["compression"], figures["scores"][figures["split"]]
    before, after = found["parameters"]
    right, now = found["right"], figures["exam"]["right"]
    gained = sum(one < other for one, other in zip(right, now, strict=True))
    lost = sum(one > other for one, other in zip(right, now, strict=True))
    low, high = difference_interval(len(right), gained, lost)
    taught = found["distill"]
    cost_s = found["teacher"]["cpu_s"] + taught["cpu_s"]
    return [
        f"Of a teacher tuned by `{found['teacher']['method']}` stay {found['kept']}: {after:,} of {before:,} weights.",
        f"Teacher and distillation took {duration(cost_s)} of processor time ({duration(taught['cpu_s'])} the "
        f"distillation, with at most {size(taught['peak_bytes'])} of memory).",
        f"The teacher answers {percent(found['accuracy'])} of the {scores['rows']} {figures['split']} rows rightly, "
        f"what is shipped {percent(scores['accuracy'])}: {100 * (gained - lost) / len(right):+.2f} points "
        f"(95 % interval {100 * low:+.2f} to {100 * high:+.2f}).",
    ]


def _row(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    one, other = before["latency"], after["latency"]
    return [
        after["dtype"], size(before["size_bytes"]), size(after["size_bytes"]), f"{one['p50_ms']:.1f} ms",
        f"{other['p50_ms']:.1f} ms", f"{other['ratio']:.2f} ({other['ratio_low']:.2f} to {other['ratio_high']:.2f})",
    ]  # fmt: skip
