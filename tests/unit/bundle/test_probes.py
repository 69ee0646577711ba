from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base import limits
from edge_agent.bundle import probes
from edge_agent.bundle.jsonio import decode
from edge_agent.bundle.probes import (
    COMPANY,
    INEFFECTIVE,
    MISMATCH,
    MISSING,
    Expected,
    ProbeFile,
    ProbeOutputs,
    judge,
    problem_of,
)

ROWS = ((3.0, 4.0), (0.0, 5.0))
LOGITS = ((1.0, -1.0, 0.0), (0.5, 0.5, 2.0))


def probe_file(**fields: Any) -> ProbeFile:
    known: dict[str, Any] = {"features": ROWS, "features_tolerance": 0.1, "logits": LOGITS, "logits_tolerance": 0.2}
    return ProbeFile(schema=1, texts=("a", "b"), expected={"onnx/int8": Expected(**{**known, **fields})})


def shifted(by: float) -> ProbeOutputs:
    """Every feature vector moved by `by` times its length along its first axis."""
    return ProbeOutputs([[row[0] + by * 5.0, *row[1:]] for row in ROWS], LOGITS)


def test_the_same_holds() -> None:
    verdict = judge(probe_file(), "onnx/int8", ProbeOutputs(ROWS, LOGITS))
    assert verdict.code is None and verdict.features_off == 0.0 and verdict.logits_off == 0.0


@given(st.floats(-1, 1))
def test_features_are_judged_by_relative_distance(by: float) -> None:
    verdict = judge(probe_file(), "onnx/int8", shifted(by))
    assert (verdict.code == MISMATCH) == (abs(by) > 0.1 * (1 + 1e-9)) or math.isclose(abs(by), 0.1)
    if verdict.code:
        assert "features are off by" in verdict.reason and "0.1 is tolerated" in verdict.reason


def test_logits_by_the_largest_difference() -> None:
    moved = ((1.0, -1.0, 0.0), (0.5, 0.5, 2.25))
    verdict = judge(probe_file(), "onnx/int8", ProbeOutputs(ROWS, moved))
    assert verdict.code == MISMATCH and verdict.reason == "probe 2 ('b'): logits are off by 0.25, 0.2 is tolerated"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_holds(value: float) -> None:
    assert judge(probe_file(), "onnx/int8", ProbeOutputs(((value, 4.0), (0.0, 5.0)), LOGITS)).code == MISMATCH
    assert judge(probe_file(), "onnx/int8", ProbeOutputs(ROWS, ((value, -1.0, 0.0), LOGITS[1]))).code == MISMATCH
    effective = probe_file(min_effect=0.05)
    assert judge(effective, "onnx/int8", ProbeOutputs(((value, 4.0), ROWS[1]), LOGITS), shifted(1)).code is not None
    assert (
        judge(effective, "onnx/int8", ProbeOutputs(ROWS, LOGITS), ProbeOutputs(((value, 4.0), ROWS[1]))).code
        is not None
    )


@pytest.mark.parametrize(
    "measured",
    [
        ProbeOutputs(ROWS[:1], LOGITS),
        ProbeOutputs(((1.0,), (1.0,)), LOGITS),
        ProbeOutputs(ROWS, None),
        ProbeOutputs(ROWS, LOGITS[:1]),
        ProbeOutputs((), ()),
    ],
)
def test_other_shapes_never_hold(measured: ProbeOutputs) -> None:
    verdict = judge(probe_file(), "onnx/int8", measured)
    assert verdict.code == MISMATCH and "have the shape" in verdict.reason


def test_an_adapter_must_change_something() -> None:
    file = probe_file(min_effect=0.05)
    assert judge(file, "onnx/int8", ProbeOutputs(ROWS, LOGITS), ProbeOutputs(ROWS)).code == INEFFECTIVE
    assert judge(file, "onnx/int8", ProbeOutputs(ROWS, LOGITS), shifted(0.04)).code == INEFFECTIVE
    verdict = judge(file, "onnx/int8", ProbeOutputs(ROWS, LOGITS), shifted(0.5))
    assert verdict.code is None and verdict.effect is not None and verdict.effect > 0.3


def test_an_adapter_without_its_base_is_not_believed() -> None:
    assert judge(probe_file(min_effect=0.05), "onnx/int8", ProbeOutputs(ROWS, LOGITS)).code == MISMATCH


def test_a_variant_without_probes_is_named() -> None:
    verdict = judge(probe_file(), "onnx/fp16", ProbeOutputs(ROWS, LOGITS))
    assert verdict.code == MISSING and "for variant onnx/fp16 (there are for onnx/int8)" in verdict.reason


def test_files_that_contradict_themselves() -> None:
    assert probes.problem_of(probe_file(), adapter=False) is None
    assert probes.problem_of(probe_file(min_effect=0.1), adapter=True) is None
    assert "min_effect" in str(probes.problem_of(probe_file(), adapter=True))
    assert "min_effect" in str(probes.problem_of(probe_file(min_effect=0.1), adapter=False))
    assert "tolerance" in str(probes.problem_of(probe_file(logits_tolerance=None), adapter=False))
    assert "as many as" in str(probes.problem_of(probe_file(features=ROWS[:1]), adapter=False))


def beside(features: Any = ROWS, logits: Any = LOGITS) -> ProbeOutputs:
    """Texts that hold alone, and what they give in company."""
    return ProbeOutputs(ROWS, LOGITS, ProbeOutputs(features, logits))


def test_what_holds_alone_and_not_in_company_is_a_cause_of_its_own() -> None:
    assert judge(probe_file(), "onnx/int8", beside()) == probes.Verdict(
        None, "2 golden probes hold, alone and in company"
    )
    moved = judge(probe_file(), "onnx/int8", beside(features=(ROWS[0], (0.0, 5.1))))
    assert moved.code == COMPANY
    assert moved.reason == (
        "probe 2 ('b') holds alone; beside other texts in its batch its features differ by 0.02, 0.01 is tolerated"
    )
    scored = judge(probe_file(), "onnx/int8", beside(logits=(LOGITS[0], (0.5, 0.5, 2.01))))
    assert scored.code == COMPANY
    assert "its scores differ by 0.00" in scored.reason and "0.001 is tolerated" in scored.reason
    assert (
        judge(probe_file(), "onnx/int8", ProbeOutputs(shifted(0.2).features, LOGITS, beside().company)).code == MISMATCH
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_in_company_does_not_hold(value: float) -> None:
    assert judge(probe_file(), "onnx/int8", beside(features=((value, 4.0), ROWS[1]))).code == COMPANY
    assert judge(probe_file(), "onnx/int8", beside(logits=((value, -1.0, 0.0), LOGITS[1]))).code == COMPANY


def test_outputs_of_another_shape_in_company_do_not_hold() -> None:
    assert judge(probe_file(), "onnx/int8", beside(features=ROWS[:1])).code == MISMATCH
    assert judge(probe_file(), "onnx/int8", beside(logits=None)).code == MISMATCH


@given(st.floats(-30, 30), st.floats(-0.0035, 0.0035))
def test_scores_and_not_logits_are_compared_in_company(level: float, by: float) -> None:
    """Adding a constant to all logits of a row changes no score; a logit that moves by 0.004 moves no score by more
    than a thousandth (p (1 - p) is 1/4 at most)."""
    logits = (LOGITS[0], (0.5 + level, 0.5 + level + by, 2.0 + level))
    assert judge(probe_file(), "onnx/int8", beside(logits=logits)).code is None


def test_a_company_holds_the_longest_text_with_the_adapter_without_and_with_others() -> None:
    found = probes.company("b", [None, "c", "a", "b", "g", "f", "e", "d"])
    assert [name for name, _ in found] == ["b", None, "a", "c", "d", "e"]
    assert all(len(texts[0].split()) == probes.COMPANY_WORDS for _, texts in found)
    assert [name for name, _ in probes.company(None, [])] == [None]


def test_a_generator_has_its_tolerance_in_company_and_an_encoder_has_not() -> None:
    """llama.cpp's kernels for one row and for several round activations at other places."""
    expected = Expected(features=ROWS, features_tolerance=0.06)
    file = ProbeFile(schema=1, texts=("a", "b"), expected={"llamacpp/q4_0": expected, "onnx/int8": expected})

    def code(variant: str, by: float) -> str | None:
        moved = [[row[0] + by * 5.0, *row[1:]] for row in ROWS]
        return judge(file, variant, ProbeOutputs(ROWS, None, ProbeOutputs(moved))).code

    assert (code("llamacpp/q4_0", 0.05), code("llamacpp/q4_0", 0.07)) == (None, COMPANY)
    assert (code("onnx/int8", 0.009), code("onnx/int8", 0.05)) == (None, COMPANY)


@pytest.mark.parametrize(
    ("measured", "expected", "distance"),
    [
        ([1e200, 0.0], [0.0, 1.0], 1e200),
        ([3e200, 4e200], [0.0, 0.0], 5e212),
        ([1e308, 1e308], [-1e308, -1e308], math.inf),
        ([2e200], [1e200], 1.0),
        ([math.inf], [1.0], math.inf),
        ([math.nan], [1.0], math.inf),
        ([3.0, 5.0], [3.0, 1.0], 4 / math.sqrt(10)),
    ],
)
def test_the_distance_of_huge_values_is_a_number(measured: list[float], expected: list[float], distance: float) -> None:
    """A package's probes may state any numbers; the squares of some are beyond a float."""
    assert probes.relative_distance(measured, expected) == pytest.approx(distance)


PROBE_LENGTHS = [("", 0), ("x" * (limits.PROBE_CHARACTERS + 1), limits.PROBE_CHARACTERS + 1)]


@pytest.mark.parametrize(("text", "length"), PROBE_LENGTHS)
@pytest.mark.parametrize("pair", [False, True])
def test_a_probe_of_no_characters_or_too_many_is_a_problem(text: str, length: int, pair: bool) -> None:
    body = {"schema": 1, "texts": [["a", text] if pair else text], "expected": {"onnx/int8": {
        "features": [[1.0]], "features_tolerance": 0.1}}}  # fmt: skip
    file = decode(msgspec.json.encode(body), ProbeFile, "probes")
    assert (
        problem_of(file, adapter=False)
        == f"a text has {length} characters; 1 to {limits.PROBE_CHARACTERS} are possible"
    )
