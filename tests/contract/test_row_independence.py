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


ADAPTERS = {
    "good": (1.0, 3), "other": (1.0, 3), "diverged": (1000.0, 3), "overflowing": (1e30, 3),
    "slots": (1.0, 9), "diverged-slots": (1000.0, 5), "overflowing-slots": (1e30, 9),
    "answers": (1.0, 2), "diverged-answers": (1000.0, 2), "overflowing-answers": (1e30, 2),
}  # fmt: skip
"""The factor of B and the outputs of the head; the heads of slots and answers read every token."""


def reads_tokens(adapter):
    """Whether its head gives logits of every token: nine, five or two of them in one batch."""
    return adapter is not None and adapter.endswith(("slots", "answers"))


def tensors(seed, factor=1.0, labels=3):
    """An adapter whose B is `factor` times an ordinary one's."""
    made = small_graph.adapter(seed, labels=labels)
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
    for name, model in made.items():
        inject_bank(model, small_graph.MODULES, small_graph.RANK, small_graph.MAX_LABELS, of_tokens=name in WITH_TOKENS)
    made |= {"merged-fp16": to_float16(encoder), "merged-int8": quantize_per_token(encoder)}
    return made


FORMATS = (
    "fp32", "int8", "int8-apart", "int8-tensorrt", "merged-fp16", "merged-int8", "merged-litert-fp32",
    "merged-litert-int8",
)  # fmt: skip


WITH_TOKENS = ("fp32", "int8", "int8-apart")
"""Banks with heads for tokens; the form for TensorRT has none."""


@pytest.fixture(scope="module")
def sessions(tmp_path_factory, tflite):
    """A session per format; the banked ones with `ADAPTERS`."""
    folder = tmp_path_factory.mktemp("formats")
    found = {}
    options = {"max_rows": MAX_ROWS, "max_tokens": MAX_TOKENS, "threads": 1}
    for name, model in formats().items():
        save(model, folder / f"{name}.onnx")
        session = found[name] = registry.create("onnx").load({"model": str(folder / f"{name}.onnx")}, options)
        if not name.startswith("merged"):
            for number, (adapter, given) in enumerate(ADAPTERS.items()):
                if not reads_tokens(adapter) or name in WITH_TOKENS:
                    path = small_graph.write_adapter(
                        folder / f"{adapter}.safetensors", tensors(number, *given), of_tokens=reads_tokens(adapter)
                    )
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
        for one, other in zip(value, together.outputs[name], strict=True):
            assert one.shape == other.shape
            assert np.abs(one - other).max() <= NEAR, name
            if name == "logits":
                # By how much a token's best class leads: two that are level may change places.
                first, second = np.sort(one, axis=-1)[..., -1], np.sort(one, axis=-1)[..., -2]
                assert ((one.argmax(-1) == other.argmax(-1)) | (first - second <= 2 * NEAR)).all()


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_row_answers_in_hostile_company_as_it_does_alone(sessions, form, data):
    session = sessions[form]
    banked = not form.startswith("merged")
    of_tokens = form in WITH_TOKENS
    adapters = st.sampled_from(["good", "other", None, *(["slots", "answers"] if of_tokens else [])])
    subject = (data.draw(adapters) if banked else None, [data.draw(ROW)])
    disturbing = st.sampled_from(["diverged", *(["diverged-slots", "diverged-answers"] if of_tokens else [])])
    disturbing = disturbing if banked else st.none()
    jobs = st.tuples(disturbing, st.lists(ROW, min_size=1, max_size=4))
    company = data.draw(st.lists(jobs, min_size=1, max_size=3))
    longest = (company[0][0], [[place % small_graph.VOCABULARY for place in range(MAX_TOKENS)]])
    place = data.draw(st.integers(0, len(company)))
    jobs_together = [*company[:place], subject, *company[place:], longest]
    alone = answers(session, [subject])[0]
    together = answers(session, jobs_together)[place]
    assert together.batch_rows > 1
    assert_same(alone, together)
    if banked and subject[0] is not None:
        labels = ADAPTERS[subject[0]][1]
        shape = (len(subject[1][0]), labels) if reads_tokens(subject[0]) else (labels,)
        assert together.outputs["logits"][0].shape == shape, "columns of the widest head, or tokens of others"


@pytest.mark.parametrize("form", [form for form in FORMATS if not form.startswith("merged")])
def test_a_row_that_overflows_fails_alone(sessions, form):
    sound = [("good", [[3, 1, 4]]), ("other", [[1, 5, 9, 2, 6]]), ("good", [[5]])]
    overflows = ["overflowing"]
    if form in WITH_TOKENS:
        sound += [("slots", [[1, 5, 9, 2, 6]]), ("answers", [[5, 3], [2, 7, 1]])]
        overflows += ["overflowing-slots", "overflowing-answers"]
    alone = [answers(sessions[form], [job])[0] for job in sound]
    for adapter in overflows:
        *together, overflowing = answers(sessions[form], [*sound, (adapter, [[7] * 20])])
        assert isinstance(overflowing, Failed)
        assert "not finite" in overflowing.reason
        for one, other in zip(alone, together, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("form", FORMATS)
def test_a_list_of_texts_is_answered_as_its_texts_are(sessions, form):
    rows = [[place % small_graph.VOCABULARY for place in range(first, last)] for first, last in pairwise((0, 3, 4, 20))]
    banked = ["good", *(["slots", "answers"] if form in WITH_TOKENS else [])]
    for adapter in [None] if form.startswith("merged") else banked:
        listed = answers(sessions[form], [(adapter, rows)])[0]
        for place, row in enumerate(rows):
            alone = answers(sessions[form], [(adapter, [row])])[0]
            for name, values in listed.outputs.items():
                assert np.abs(values[place] - alone.outputs[name][0]).max() <= NEAR
