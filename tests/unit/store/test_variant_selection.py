from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import PackageError
from edge_agent.base.limits import MIB
from edge_agent.bundle.catalog import TaskSpec, Variant
from edge_agent.bundle.gguf_memory import GeneratorOverrides
from edge_agent.bundle.variant_sizing import sized
from edge_agent.core.paired_times import PairedTimes
from edge_agent.store.variant_selection import Hardware, RefusedVariant, SelectionPolicy, choose
from edge_agent.store.variant_selection import RefusalCause as Cause
from tests.support.generator_headers import SMOL

BOARD = Hardware(names=("pi5", "raspberrypi,5-model-b", "aarch64"), runtimes=("onnx",), ram_bytes=200 * MIB)


def variant(dtype: str, accuracy: float | None, peak_mib: int, runtime: str = "onnx") -> Variant:
    return Variant(f"sha256:{runtime}{dtype}", runtime, dtype, {}, peak_mib * MIB // 2, peak_mib * MIB, accuracy)


FP32, FP16, INT8 = variant("fp32", 0.92, 180), variant("fp16", 0.92, 110), variant("int8", 0.915, 60)


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (SelectionPolicy(), "onnx/int8"),
        (SelectionPolicy(policy="fastest"), "onnx/int8"),
        (SelectionPolicy(policy="smallest"), "onnx/int8"),
        (SelectionPolicy(policy="most-accurate"), "onnx/fp32"),
        (SelectionPolicy(prefer=("fp32",)), "onnx/fp32"),
        (SelectionPolicy(prefer=("onnx/fp16", "fp32")), "onnx/fp16"),
        (SelectionPolicy(prefer=("q4", "fp16")), "onnx/fp16"),
        (SelectionPolicy(accuracy_loss_limit=0.001), "onnx/fp32"),
        (SelectionPolicy(accuracy_loss_limit=0.005), "onnx/int8"),
    ],
)
def test_the_policy_and_the_preference_decide(selection: SelectionPolicy, chosen: str) -> None:
    choice = choose([FP32, FP16, INT8], BOARD, selection)
    assert choice.variant.name == chosen
    assert choice.why.startswith(f"{chosen} of 3 ")
    assert {one.name for one in choice.refused} == {"onnx/fp32", "onnx/fp16", "onnx/int8"} - {chosen}


@pytest.mark.parametrize(
    ("bad", "cause", "reason"),
    [
        (
            variant("fp16", 0.92, 60, "tensorrt"),
            Cause.RUNTIME_MISSING,
            "runtime 'tensorrt' is not available here (onnx)",
        ),
        (replace(INT8, hardware=("orin-nano",)), Cause.OTHER_HARDWARE, "it is for orin-nano, this is pi5"),
        (
            replace(INT8, features=("asimddp", "sve")),
            Cause.FEATURE_MISSING,
            "it needs the processor feature sve",
        ),
        (variant("fp32", 0.92, 300), Cause.TOO_LARGE, "it needs 300.0 MiB of memory, 200.0 MiB may be used"),
    ],
)
def test_what_cannot_run_is_refused_with_its_reason(bad: Variant, cause: Cause, reason: str) -> None:
    board = replace(BOARD, features=frozenset({"asimddp"}))
    assert RefusedVariant(bad.name, cause, reason) in choose([bad, FP16], board, SelectionPolicy()).refused
    with pytest.raises(PackageError) as caught:
        choose([bad], board, SelectionPolicy())
    assert f"no variant can run on pi5: {bad.name}: {reason}" in str(caught.value)


def test_accuracy_loss_is_told() -> None:
    bad = variant("int8", 0.80, 60)
    choice = choose([FP32, bad], BOARD, SelectionPolicy())
    assert choice.variant is FP32
    assert choice.refused == (
        RefusedVariant("onnx/int8", Cause.TOO_INACCURATE, "it loses 12.00 points of accuracy, 1.00 are allowed"),
    )
    assert choose([FP32, bad], BOARD, SelectionPolicy(policy="smallest")).variant is bad


def test_a_loss_that_few_rows_cannot_show_refuses_nothing() -> None:
    """The package states what its rows show: 12 points of 50 rows may be 0.4."""
    unclear = replace(INT8, accuracy=0.80, metrics={"accuracy_loss_low": 0.004, "accuracy_loss_high": 0.24})
    assert choose([FP32, unclear], BOARD, SelectionPolicy()).variant is unclear
    shown = replace(unclear, metrics={"accuracy_loss_low": 0.02, "accuracy_loss_high": 0.22})
    assert choose([FP32, shown], BOARD, SelectionPolicy()).refused == (
        RefusedVariant(
            "onnx/int8", Cause.TOO_INACCURATE, "it loses at least 2.00 points of accuracy, 1.00 are allowed"
        ),
    )


def test_unknown_features_and_memory_refuse_nothing() -> None:
    board = Hardware(names=(), runtimes=("onnx",))
    assert (
        choose([replace(INT8, features=("sve",), peak_bytes=2**50)], board, SelectionPolicy()).variant.dtype == "int8"
    )


VARIANTS = st.lists(
    st.builds(
        variant,
        st.sampled_from(["fp32", "fp16", "int8", "q4_k_m"]),
        st.none() | st.floats(0, 1),
        st.integers(1, 400),
        st.sampled_from(["onnx", "tensorrt"]),
    ),
    min_size=1,
    max_size=6,
)


@given(VARIANTS, st.sampled_from(["balanced", "fastest", "smallest", "most-accurate"]), st.floats(0, 1))
def test_every_variant_is_chosen_or_has_a_reason(variants: list[Variant], policy: str, limit: float) -> None:
    try:
        choice = choose(variants, BOARD, SelectionPolicy(policy=policy, accuracy_loss_limit=limit))
    except PackageError as error:
        assert all(one.name in str(error) for one in variants)
        return
    assert choice.variant.runtime == "onnx" and choice.variant.peak_bytes <= 200 * MIB
    assert len(choice.refused) == len(variants) - 1
    assert all(one.detail for one in choice.refused)


@given(VARIANTS.flatmap(lambda found: st.tuples(st.just(found), st.permutations(found))))
def test_the_order_in_the_package_decides_nothing_but_ties(pair: tuple[list[Variant], list[Variant]]) -> None:
    found = []
    for variants in pair:
        try:
            one = choose(variants, BOARD, SelectionPolicy()).variant
            found.append((one.runtime, one.dtype, one.size_bytes, one.accuracy or 0.0))
        except PackageError:
            found.append(None)
    assert found[0] == found[1]


def test_a_generator_that_is_too_large_is_refused_with_its_arithmetic() -> None:
    board = Hardware(names=("pi5",), runtimes=("llamacpp",), ram_bytes=400 * MIB)
    packaged = variant("q8_0", None, 0, "llamacpp")
    task = TaskSpec("generate", max_tokens=8192)
    with pytest.raises(PackageError) as refused:
        choose([sized(packaged, task, SMOL, GeneratorOverrides(), board.ram_bytes)], board, SelectionPolicy())
    assert "it needs 928.2 MiB of memory, 400.0 MiB may be used: a context of 8192 tokens" in str(refused.value)
    assert "would fit (models.context = " in str(refused.value)
    choice = choose(
        [sized(packaged, task, SMOL, GeneratorOverrides(shrink=True), board.ram_bytes)], board, SelectionPolicy()
    )
    assert choice.why.endswith("shrunk to a context of 2048 tokens for 4 sequences")


def test_overrides_for_generators_belong_to_the_policy() -> None:
    assert SelectionPolicy().text() == "balanced  0.01", "as it was recorded before there were any"
    assert (
        SelectionPolicy(generators=GeneratorOverrides(context=512, shrink=True)).text()
        == "balanced  0.01 context=512 shrink"
    )


def seen(fp32_times: float, noise: float, seed: int, turns: int = 31) -> PairedTimes:
    """What a board measures whose FP32 takes `fp32_times` as long as INT8, each run disturbed by itself."""
    chance = random.Random(seed)
    factors = {INT8.digest: 1.0, FP32.digest: fp32_times}
    return PairedTimes(
        {one: [8.0 * by * math.exp(chance.gauss(0.0, noise)) for _ in range(turns)] for one, by in factors.items()}
    )


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3, 0.8])
@pytest.mark.parametrize("fp32_times", [0.92, 1.0, 1.4])
def test_where_the_usual_variant_is_right_99_of_100_boards_run_it_in_any_noise(fp32_times: float, noise: float) -> None:
    chosen = [choose([FP32, INT8], BOARD, SelectionPolicy(), seen(fp32_times, noise, seed)) for seed in range(200)]
    assert sum(one.variant is INT8 for one in chosen) >= 198


@pytest.mark.parametrize(("fp32_times", "noise"), [(0.5, 0.2), (0.6, 0.2), (0.7, 0.1), (0.8, 0.05)])
def test_where_another_is_much_faster_99_of_100_boards_run_that(fp32_times: float, noise: float) -> None:
    chosen = [choose([FP32, INT8], BOARD, SelectionPolicy(), seen(fp32_times, noise, seed)) for seed in range(200)]
    assert sum(one.variant is FP32 for one in chosen) >= 198


@given(st.floats(0.3, 3.0), st.floats(0.0, 1.0), st.integers(0, 2**32))
def test_a_variant_gives_way_only_to_one_whose_whole_interval_is_better(ratio: float, noise: float, seed: int) -> None:
    times = seen(ratio, noise, seed)
    choice = choose([FP32, INT8], BOARD, SelectionPolicy(), times)
    found = times.ratio(FP32.digest, INT8.digest)
    assert found is not None
    assert (choice.variant is FP32) == (found.high * 1.1 < 1.0)
    slower = found.low > 1.0
    said = "and faster than onnx/fp32 in 31 turns" if slower else "and kept: 31 turns show no other that is clearly"
    assert ("clearly better than onnx/int8" if choice.variant is FP32 else said) in choice.sure


def test_less_memory_decides_between_times_that_are_shown_to_be_close() -> None:
    light = replace(FP16, peak_bytes=40 * MIB)
    usual, turns = [INT8, light], 31
    close = PairedTimes({INT8.digest: [8.0] * turns, light.digest: [8.4] * turns})
    assert choose(usual, BOARD, SelectionPolicy(), close).variant is light
    unclear = PairedTimes({INT8.digest: [8.0] * turns, light.digest: [8.4] * 22 + [9.5] * 9})
    assert choose(usual, BOARD, SelectionPolicy(), unclear).variant is INT8
    assert choose(usual, BOARD, SelectionPolicy("fastest"), close).variant is INT8


def test_the_operator_s_preference_and_the_package_s_accuracy_are_no_matter_of_time() -> None:
    times = PairedTimes({FP32.digest: [8.0] * 31, INT8.digest: [1.0] * 31})
    assert choose([FP32, INT8], BOARD, SelectionPolicy(prefer=("fp32",)), times).variant is FP32
    assert choose([FP32, INT8], BOARD, SelectionPolicy("most-accurate"), times).variant is FP32


@pytest.mark.parametrize(
    ("features", "usual", "said"),
    [
        (frozenset({"asimddp"}), "int8", "with dot products of INT8"),
        (frozenset({"avx512_vnni", "avx2"}), "int8", "with dot products of INT8"),
        (frozenset({"avx2"}), "fp32", "without dot products of INT8"),
        (None, "int8", "whose features are not known"),
    ],
)
def test_what_is_usual_is_stated_by_class_of_board(features: frozenset[str] | None, usual: str, said: str) -> None:
    board = replace(BOARD, features=features)
    choice = choose([FP32, INT8], board, SelectionPolicy("fastest"), seen(1.0, 0.05, 1))
    assert (choice.variant.dtype, said in choice.why) == (usual, True)
    assert choose([FP32, INT8], board, SelectionPolicy(), seen(1.0, 0.05, 1)).variant is INT8, "a third of the memory"
