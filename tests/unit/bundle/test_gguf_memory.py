from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.bundle.catalog import TaskSpec, Variant
from edge_agent.bundle.gguf_memory import (
    SMALLEST_CONTEXT,
    Demand,
    GeneratorOverrides,
    GgufHeader,
    advice,
    arithmetic,
    fitted,
    need,
)
from edge_agent.bundle.variant_sizing import explained, settings_text, sized
from tests.support.generator_headers import SMOL

TASK = TaskSpec("generate", max_tokens=2048)
FULL = Demand(2048, 4)


def a_generator(**options: object) -> Variant:
    return Variant("sha256:g", "llamacpp", "q8_0", {}, 150 << 20, 500 << 20, options=options)


def total(demand: Demand, header: GgufHeader = SMOL) -> int:
    return sum(need(header, demand))


def test_the_arithmetic_names_every_factor_and_adds_up() -> None:
    text = arithmetic(SMOL, FULL)
    assert text.startswith("a context of 2048 tokens for 4 sequences takes weights 136.6 MiB + cache 180.0 MiB (2 x ")
    assert "30 layers x 3 kv heads x 64 x 2048 tokens x 4 x 2 bytes, f16) + work" in text
    assert need(SMOL, FULL).cache_bytes == 2 * 30 * 3 * 64 * 2048 * 4 * 2
    assert "2 x 5760 x" in arithmetic(replace(SMOL, blocks=29), FULL), "layers that differ have one sum"


def test_the_advice_is_the_longest_context_that_fits() -> None:
    assert "(models.context = 1792)" in advice(SMOL, FULL, total(FULL) - 1)
    least = total(Demand(SMALLEST_CONTEXT, 4))
    assert "(models.context = 512)" in advice(SMOL, FULL, least)
    assert 'models.kv_type = "q8_0"' in advice(SMOL, FULL, least - 1)
    assert "models.sequences = 1" in advice(SMOL, FULL, total(Demand(SMALLEST_CONTEXT, 1)))
    assert advice(SMOL, FULL, SMOL.tensor_bytes).startswith("no context fits beside its weights")


@pytest.mark.parametrize("context", range(512, 2048, 256))
def test_the_advice_names_the_next_context_where_exactly_that_fits(context: int) -> None:
    assert f"(models.context = {context})" in advice(SMOL, FULL, total(Demand(context, 4)))
    assert f"(models.context = {context})" in advice(SMOL, FULL, total(Demand(context + 256, 4)) - 1)


def shrinking(context: int, sequences: int) -> list[tuple[int, int]]:
    """What is tried, in order: the context halved in whole blocks of 256 down to 512, then fewer sequences."""
    contexts = [context]
    while 512 <= (half := -(-(contexts[-1] // 2) // 256) * 256) < contexts[-1]:
        contexts.append(half)
    return [(one, sequences) for one in contexts] + [(contexts[-1], one) for one in range(sequences - 1, 0, -1)]


CONTEXTS = st.integers(1, 16384) | st.sampled_from([511, 512, 513, 514, 1023, 1024, 1025])


@given(
    CONTEXTS,
    st.integers(1, 16),
    st.sampled_from(["f16", "q8_0"]),
    st.integers(1 << 27, 1 << 28) | st.integers(0, 1 << 30),
)
def test_what_is_fitted_fits_and_is_never_more(context: int, sequences: int, kv_type: str, allowed: int) -> None:
    demand = Demand(context, sequences, kv_type)
    found = fitted(SMOL, demand, allowed)
    tried = (Demand(*one, kv_type) for one in shrinking(context, sequences))
    assert found == next((one for one in tried if total(one) <= allowed), None)


def test_the_operators_settings_come_before_the_packages() -> None:
    packaged = a_generator(sequences=2, kv_type="q8_0", batch=128)
    as_packaged = sized(packaged, TASK, SMOL, GeneratorOverrides())
    assert as_packaged.sizing is not None and as_packaged.options == packaged.options
    assert as_packaged.peak_bytes == total(Demand(2048, 2, "q8_0", 128))
    found = sized(packaged, TASK, SMOL, GeneratorOverrides(context=1000, kv_type="f16"))
    assert found.options == {"context": 1000, "sequences": 2, "kv_type": "f16", "batch": 128}
    assert found.peak_bytes == total(Demand(1000, 2, "f16", 128))
    assert settings_text(found, packaged) == "context=1000 kv_type=f16"
    assert settings_text(as_packaged, packaged) == ""


def test_a_context_beyond_what_the_model_was_trained_for_is_cut_to_that() -> None:
    assert (
        sized(a_generator(), TASK, SMOL, GeneratorOverrides(context=100_000)).options["context"] == SMOL.context_length
    )


def test_it_shrinks_only_where_that_is_wanted_and_needed() -> None:
    tight = total(FULL) - 1
    assert sized(a_generator(), TASK, SMOL, GeneratorOverrides(), tight).peak_bytes == total(FULL)
    roomy = sized(a_generator(), TASK, SMOL, GeneratorOverrides(shrink=True), tight + 1)
    assert roomy.options == {} and roomy.sizing is not None and not roomy.sizing.shrunk
    shrunk = sized(a_generator(), TASK, SMOL, GeneratorOverrides(shrink=True), tight)
    assert shrunk.options == {"context": 1024, "sequences": 4} and shrunk.peak_bytes == total(Demand(1024, 4))
    assert shrunk.sizing is not None and shrunk.sizing.full == FULL
    hopeless = sized(a_generator(), TASK, SMOL, GeneratorOverrides(shrink=True), 1)
    assert hopeless.peak_bytes == total(FULL) and "no context fits" in explained(hopeless, 1)


@pytest.mark.parametrize("kind", ["classify", "embed"])
def test_other_models_are_left_alone(kind: str) -> None:
    variant = a_generator()
    assert sized(variant, TaskSpec(kind), SMOL, GeneratorOverrides(context=512, shrink=True), 1) is variant
    assert explained(variant, 1) == ""


def test_without_a_header_the_packages_table_tells_the_bytes() -> None:
    packaged = replace(a_generator(), metrics={"peak_bytes.ctx512.kv_q8_0": 7.0})
    found = sized(packaged, TASK, None, GeneratorOverrides(context=512, kv_type="q8_0"))
    assert found.peak_bytes == 7 and found.options == {"context": 512, "kv_type": "q8_0"} and found.sizing is None
    assert sized(packaged, TASK, None, GeneratorOverrides(context=256)).peak_bytes == packaged.peak_bytes


def test_an_unknown_cache_format_is_the_workers_to_refuse() -> None:
    assert sized(a_generator(kv_type="q3"), TASK, SMOL, GeneratorOverrides(shrink=True), 1).sizing is None


@given(
    name=st.sampled_from(["context", "sequences", "batch", "kv_type"]),
    value=st.one_of(st.integers(), st.booleans(), st.floats(), st.text(max_size=5)),
    metric=st.floats(allow_nan=False, allow_infinity=False),
)
def test_no_option_or_figure_of_a_package_predicts_less_than_the_weights(
    name: str, value: object, metric: float
) -> None:
    """Packages that state such ones are refused; a state folder may still have one from before."""
    variant = replace(a_generator(**{name: value}), metrics={f"peak_bytes.ctx2048.kv_{value}": metric})
    found = sized(variant, TASK, SMOL, GeneratorOverrides())
    assert SMOL.tensor_bytes <= found.peak_bytes <= 1 << 46 or found.peak_bytes in (variant.peak_bytes, int(metric))
    assert found.peak_bytes >= 0
