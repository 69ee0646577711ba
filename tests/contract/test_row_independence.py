"""A row's answer depends on that row alone: every number format, alone against a batch with hostile neighbours."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.backends import registry
from edge_agent.backends.api import AdapterSource, Done, Failed, Limits, SessionJob
from edge_forge.export.onnx.float16 import to_float16
from edge_forge.export.onnx.graph import save
from edge_forge.export.onnx.inject import inject_bank
from edge_forge.export.onnx.quantize import calibrate, quantize_per_token, quantize_static, wide_channels
from tests.support import small_graph

MAX_ROWS, MAX_TOKENS = 16, 24
NEAR = 1e-3
ROW = st.lists(st.integers(0, small_graph.VOCABULARY - 1), min_size=1, max_size=MAX_TOKENS)
CALIBRATION = [{"input_ids": np.arange(48).reshape(4, 12), "attention_mask": np.ones((4, 12), np.int64)}]


def tensors(seed, factor=1.0):
    """An adapter whose B is `factor` times an ordinary one's."""
    made = small_graph.adapter(seed)
    return {name: value * np.float32(factor) if name.endswith(".B") else value for name, value in made.items()}


def formats():
    """Each format with its graph; of the merged ones features only."""
    encoder = small_graph.encoder()
    made = {
        "fp32": small_graph.encoder(),
        "int8": quantize_per_token(encoder, wide_channels(encoder, CALIBRATION)),
        "int8-apart": quantize_per_token(encoder, dict.fromkeys(wide_channels(encoder, CALIBRATION), (2, 9))),
        "int8-tensorrt": quantize_static(encoder, calibrate(encoder, CALIBRATION)),
    }
    for model in made.values():
        inject_bank(model, small_graph.MODULES, small_graph.RANK, small_graph.MAX_LABELS)
    made |= {"merged-fp16": to_float16(encoder), "merged-int8": quantize_per_token(encoder)}
    return made


FORMATS = (
    "fp32", "int8", "int8-apart", "int8-tensorrt", "merged-fp16", "merged-int8", "merged-litert-fp32",
    "merged-litert-int8",
)  # fmt: skip


@pytest.fixture(scope="module")
def sessions(tmp_path_factory, tflite):
    """A session per format; the banked ones with two good adapters, one diverged, one that overflows."""
    folder = tmp_path_factory.mktemp("formats")
    found = {}
    options = {"max_rows": MAX_ROWS, "max_tokens": MAX_TOKENS, "threads": 1}
    for name, model in formats().items():
        save(model, folder / f"{name}.onnx")
        session = found[name] = registry.create("onnx").load({"model": str(folder / f"{name}.onnx")}, options)
        if not name.startswith("merged"):
            for number, (adapter, factor) in enumerate(
                {"good": 1.0, "other": 1.0, "diverged": 1000.0, "overflowing": 1e30}.items()
            ):
                path = small_graph.write_adapter(folder / f"{adapter}.safetensors", tensors(number, factor))
                session.attach(AdapterSource(adapter, str(path), small_graph.BASE_ID))
    for form in ("fp32", "int8"):
        found[f"merged-litert-{form}"] = registry.create("litert").load(
            {"model": str(tflite / f"{form}.tflite")}, options
        )
    yield found
    for session in found.values():
        session.close()


def answers(session, jobs):
    """The event of each (adapter, rows), submitted together and run until all have ended."""
    for number, (adapter, rows) in enumerate(jobs):
        session.submit(SessionJob(str(number), adapter, rows, {}))
    found = {}
    while len(found) < len(jobs):
        for event in session.step(Limits(MAX_ROWS, 1)):
            found[event.job_id] = event
    return [found[str(number)] for number in range(len(jobs))]


def assert_same(alone, together):
    assert isinstance(alone, Done) and isinstance(together, Done), (alone, together)
    for name, value in alone.outputs.items():
        assert np.abs(value - together.outputs[name]).max() <= NEAR, name
    if "logits" in alone.outputs:
        assert (alone.outputs["logits"].argmax(1) == together.outputs["logits"].argmax(1)).all()


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_row_answers_in_hostile_company_as_it_does_alone(sessions, form, data):
    session = sessions[form]
    banked = not form.startswith("merged")
    adapters = st.sampled_from(["good", "other", None] if banked else [None])
    subject = (data.draw(adapters), [data.draw(ROW)])
    jobs = st.tuples(st.just("diverged") if banked else st.none(), st.lists(ROW, min_size=1, max_size=4))
    company = data.draw(st.lists(jobs, min_size=1, max_size=3))
    longest = (company[0][0], [[place % small_graph.VOCABULARY for place in range(MAX_TOKENS)]])
    place = data.draw(st.integers(0, len(company)))
    jobs_together = [*company[:place], subject, *company[place:], longest]
    alone = answers(session, [subject])[0]
    together = answers(session, jobs_together)[place]
    assert together.batch_rows > 1
    assert_same(alone, together)


@pytest.mark.parametrize("form", [form for form in FORMATS if not form.startswith("merged")])
def test_a_row_that_overflows_fails_alone(sessions, form):
    rows = [[3, 1, 4], [1, 5, 9, 2, 6], [5]]
    alone = [answers(sessions[form], [("good", [row])])[0] for row in rows]
    *together, overflowing = answers(sessions[form], [*(("good", [row]) for row in rows), ("overflowing", [[7] * 20])])
    assert isinstance(overflowing, Failed)
    assert "not finite" in overflowing.reason
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("form", FORMATS)
def test_a_list_of_texts_is_answered_as_its_texts_are(sessions, form):
    rows = [[place % small_graph.VOCABULARY for place in range(first, last)] for first, last in pairwise((0, 3, 4, 20))]
    adapter = None if form.startswith("merged") else "good"
    listed = answers(sessions[form], [(adapter, rows)])[0]
    for place, row in enumerate(rows):
        alone = answers(sessions[form], [(adapter, [row])])[0]
        assert np.abs(listed.outputs["features"][place] - alone.outputs["features"][0]).max() <= NEAR
