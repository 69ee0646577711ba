"""Merged or unmerged: by what was measured here, by the operator's policy, and always with both sides' figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.limits import MIB
from edge_agent.bundle.catalog import InstalledModel, TrialFigures
from edge_agent.core.adapter_routing import AdapterRoute, RoutingPolicy, route_adapters
from tests.support.fakes import a_model, a_variant, an_adapter

FILE = "sha256:f11e"


def base(ms: float | None = 2.0, accuracy: float | None = 0.9, text_bytes: int = 40) -> InstalledModel:
    measured = None if ms is None else TrialFigures(ms, 0, 0.0, text_bytes)
    adapter = replace(an_adapter("a"), file_digest=FILE, measured=measured, metrics={}, accuracy=accuracy)
    return replace(a_model("m", a_variant("m", peak_mib=100)), adapters=(adapter,))


def folded(ms: float | None = 1.0, accuracy: float | None = 0.9, file: str = "f11e") -> InstalledModel:
    measured = None if ms is None else TrialFigures(ms, 120 * MIB, 0.0, 40)
    variant = replace(a_variant("merged"), measured=measured, accuracy=accuracy)
    model = a_model("a-merged", variant)
    return replace(model, kind="merged", merged_from={"base": "sha256:base", "adapter.safetensors": file})


def chosen(
    one: InstalledModel, other: InstalledModel, rules: RoutingPolicy | None = None, ceiling: int | None = 10**9
) -> AdapterRoute:
    (found,) = route_adapters([one, other], rules or RoutingPolicy(), lambda: ceiling).values()
    return found


def test_the_sentence_has_the_figures_of_both() -> None:
    assert chosen(base(), folded()) == AdapterRoute(
        "a-merged",
        "merged by policy 'balanced', 2.00 times as fast, timed at two installs: on m 2 ms a text, accuracy 0.900, "
        "1.0 MiB beside the base; "
        "a-merged 1 ms a text, accuracy 0.900, 120.0 MiB",
    )


@pytest.mark.parametrize(
    ("one", "other", "rules", "ceiling", "merged", "reason"),
    [
        (base(1.05), folded(), RoutingPolicy(), None, False, "would not be a tenth faster"),
        (base(1.05), folded(), RoutingPolicy("fastest"), None, True, "1.05 times as fast, timed at two installs"),
        (base(0.95), folded(), RoutingPolicy("fastest"), None, False, "the faster one"),
        (base(), folded(), RoutingPolicy("smallest"), None, False, "no second model"),
        (base(), folded(), RoutingPolicy(), 200 * MIB, False, "the other models leave 100.0 MiB for the merged one"),
        (base(), folded(), RoutingPolicy(), 60 * MIB, False, "the other models leave 0 B for the merged one"),
        (base(), folded(), RoutingPolicy(), 220 * MIB, True, "2.00 times as fast, timed at two installs"),
        (base(), folded(), RoutingPolicy("fastest"), 200 * MIB, False, "leave 100.0 MiB"),
        (base(0.5), folded(accuracy=0.91), RoutingPolicy("most-accurate"), 200 * MIB, True, "the more accurate one"),
        (base(), folded(), RoutingPolicy(prefer=("merged",)), 200 * MIB, True, "merged as preferred"),
        (base(), folded(accuracy=0.88), RoutingPolicy(), None, False, "loses too much accuracy"),
        (
            base(),
            folded(accuracy=0.88),
            RoutingPolicy(accuracy_loss_limit=0.02),
            None,
            True,
            "2.00 times as fast, timed at two installs",
        ),
        (base(9.0), folded(accuracy=0.89), RoutingPolicy("most-accurate"), None, False, "the more accurate one"),
        (base(0.5), folded(accuracy=0.91), RoutingPolicy("most-accurate"), None, True, "the more accurate one"),
        (base(0.5), folded(), RoutingPolicy("most-accurate"), None, False, "the faster one"),
        (base(0.0), folded(), RoutingPolicy(), None, False, "not measured alike"),
        (base(), folded(0.0), RoutingPolicy(), None, False, "not measured alike"),
        (base(None), folded(), RoutingPolicy(), None, False, "not measured alike"),
        (base(), folded(None), RoutingPolicy(), None, False, "not measured alike"),
        (base(text_bytes=80), folded(), RoutingPolicy(), None, False, "not measured alike"),
        (base(accuracy=None), folded(), RoutingPolicy(), None, True, "2.00 times as fast, timed at two installs"),
        (base(0.1), folded(), RoutingPolicy(prefer=("int8", "merged")), None, True, "merged as preferred"),
        (base(), folded(), RoutingPolicy(prefer=("unmerged",)), None, False, "unmerged as preferred"),
    ],
)
def test_the_policy_decides(
    one: InstalledModel, other: InstalledModel, rules: RoutingPolicy, ceiling: int | None, merged: bool, reason: str
) -> None:
    found = chosen(one, other, rules, ceiling)
    assert (found.merged == "a-merged", reason in found.why) == (merged, True), found.why


def three(slowest: str) -> list[InstalledModel]:
    """A base of 100 MiB with three adapters, each merged as well (120 MiB); unmerged, one of them takes longest."""
    adapters = tuple(
        replace(
            an_adapter(name),
            file_digest=f"sha256:{name}",
            measured=TrialFigures(9.0 if name == slowest else 2.0, 0, 0.0, 40),
            metrics={},
        )
        for name in "abc"
    )
    twins = [replace(folded(file=name), name=f"{name}-merged") for name in "abc"]
    return [replace(base(), adapters=adapters), *twins]


@pytest.mark.parametrize(
    ("more", "ceiling_mib", "merged"),
    [
        (0, 460, {"a", "b", "c"}),
        (0, 459, {"a", "c"}),
        (0, 340, {"c", "a"}),
        (0, 220, {"c"}),
        (0, 219, set()),
        (100, 320, {"c"}),
        (100, 319, set()),
    ],
)
def test_all_that_are_chosen_fit_together_and_what_saves_most_comes_first(
    more: int, ceiling_mib: int, merged: set[str]
) -> None:
    models = three("c") + ([a_model("other", a_variant("other", peak_mib=more))] if more else [])
    found = route_adapters(models, RoutingPolicy(), lambda: ceiling_mib * MIB)
    assert {name for (_, name), form in found.items() if form.merged is not None} == merged


@given(
    peaks=st.lists(st.integers(1, 300), min_size=4, max_size=4),
    times=st.lists(st.floats(0.5, 9.0), min_size=3, max_size=3),
    ceiling_mib=st.integers(0, 1200),
    policy=st.sampled_from(["balanced", "fastest", "most-accurate"]),
)
def test_what_speed_chooses_never_needs_more_than_there_is(
    peaks: list[int], times: list[float], ceiling_mib: int, policy: str
) -> None:
    first, *twins = three("a")
    adapters = tuple(
        replace(adapter, measured=TrialFigures(ms, 0, 0.0, 40))
        for adapter, ms in zip(first.adapters, times, strict=True)
    )
    first = replace(first, variant=a_variant("m", peak_mib=peaks[0]), adapters=adapters)
    twins = [
        replace(twin, variant=replace(twin.variant, measured=TrialFigures(1.0, mib * MIB, 0.0, 40)))
        for twin, mib in zip(twins, peaks[1:], strict=True)
    ]
    found = route_adapters([first, *twins], RoutingPolicy(policy), lambda: ceiling_mib * MIB)
    size = dict(zip(("a-merged", "b-merged", "c-merged"), peaks[1:], strict=True))
    chosen_mib = [size[form.merged] for form in found.values() if form.merged is not None]
    assert not chosen_mib or peaks[0] + sum(chosen_mib) <= ceiling_mib


@pytest.mark.parametrize("runtime", ["", "echo/"])
def test_the_accuracy_is_that_of_the_base_variant_that_runs(runtime: str) -> None:
    """Packages of classifiers name the variant with its runtime."""
    one = base(accuracy=0.5)
    metrics = {f"accuracy.{runtime}fp32": 0.95, f"accuracy.{runtime}int8": 0.1}
    one = replace(one, adapters=(replace(one.adapters[0], metrics=metrics),))
    assert "accuracy 0.950" in chosen(one, folded()).why


@pytest.mark.parametrize(
    "other",
    [
        folded(file="0123"),
        replace(folded(), merged_from={"base": "sha256:another", "adapter.safetensors": "f11e"}),
        replace(folded(), merged_from={}),
    ],
)
def test_another_adapter_or_base_is_never_taken_for_it(other: InstalledModel) -> None:
    assert route_adapters([base(), other], RoutingPolicy(prefer=("merged",)), lambda: None) == {}


def test_memory_is_not_asked_for_without_a_merged_model() -> None:
    assert route_adapters([base()], RoutingPolicy(), lambda: pytest.fail("asked")) == {}
