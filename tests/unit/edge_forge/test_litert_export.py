"""Encoders as LiteRT files, computed by the device's backend and compared with PyTorch."""

import io

import numpy as np
import pytest
import torch

from edge_agent.backends import registry
from edge_agent.backends.api import Done, Failed, Limits, SessionJob
from edge_agent.base.errors import BackendError, PackageError
from edge_agent.bundle.tflite_model import check_model
from edge_forge.export import litert
from edge_forge.export.litert_converter import lengths
from edge_forge.export.onnx.trace import PooledEncoder, takes_additive
from edge_forge.models.encoder import open_encoder
from tests.support import small_litert, tiny_encoders
from tests.support.needs import need

TOKENS = 40


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """fp32.tflite and int8.tflite of a small encoder."""
    need("litert_torch", "ai_edge_quantizer")
    return small_litert.write(tmp_path_factory.mktemp("tflite"))


def answers(path, rows, max_tokens=TOKENS):
    session = registry.create("litert").load({"model": str(path)}, {"max_tokens": max_tokens, "threads": 1})
    for place, row in enumerate(rows):
        session.submit(SessionJob(str(place), None, [row], {}))
    found = []
    while events := session.step(Limits(16, 1)):
        found += events
    return [event for _, event in sorted((int(event.job_id), event) for event in found)]


def test_lengths_grow_by_two_and_end_at_the_limit():
    assert lengths(64) == [16, 32, 64]
    assert lengths(40) == [16, 32, 40]
    assert lengths(16) == [16]
    assert lengths(5) == [5]


# A window of attention and a mask of many forms: the two that other converters fail on, and the common one.
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_family_computes_what_pytorch_computes_at_every_length(family, tmp_path):
    need("litert_torch")
    encoder = open_encoder(tiny_encoders.write(tmp_path / "base", family))
    encoder.model.set_attn_implementation("eager")
    module = PooledEncoder(encoder, torch.nn.Linear(encoder.width, 4), takes_additive(encoder, TOKENS))
    litert.convert(module, TOKENS, tmp_path / "model.tflite")
    rows = [torch.randint(5, 20, (length,)).tolist() for length in range(1, TOKENS + 1)]
    for row, event in zip(rows, answers(tmp_path / "model.tflite", rows), strict=True):
        ids = torch.tensor([row])
        with torch.inference_mode():
            features, logits = module(ids, torch.ones_like(ids))
        assert isinstance(event, Done), event
        np.testing.assert_allclose(event.outputs["features"], features.numpy(), atol=1e-5)
        np.testing.assert_allclose(event.outputs["logits"], logits.numpy(), atol=1e-5)


def test_int8_is_near_and_each_form_has_the_same_bytes_each_time(small, tmp_path):
    again = small_litert.write(tmp_path)
    for form in ("fp32", "int8"):
        assert (small / f"{form}.tflite").read_bytes() == (again / f"{form}.tflite").read_bytes()
    rows = [[3, 1, 4, 1, 5], [9] * 24]
    exact, coarse = (answers(small / f"{form}.tflite", rows, 24) for form in ("fp32", "int8"))
    off = [np.abs(a.outputs["features"] - b.outputs["features"]).max() for a, b in zip(exact, coarse, strict=True)]
    assert 0 < max(off) < 0.05


def test_an_encoder_that_cannot_be_converted_is_one_sentence(tmp_path):
    need("litert_torch")

    class Asks(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return attention_mask.float() if input_ids.sum() > 3 else input_ids.float()

    with pytest.raises(BackendError, match=r"LiteRT cannot take this encoder: \w"):
        litert.convert(Asks(), 16, tmp_path / "model.tflite")


def test_ids_beyond_the_table_fail_their_text_alone(small):
    good, bad, last = answers(small / "int8.tflite", [[1, 2], [10**6], [1, 2]], 24)
    assert isinstance(bad, Failed) and "out of bounds" in bad.reason
    assert np.array_equal(good.outputs["features"], last.outputs["features"])


def test_more_tokens_than_the_graph_takes_are_refused_at_the_load(small):
    with pytest.raises(BackendError, match="takes 24 tokens, 25 are asked for"):
        registry.create("litert").load({"model": str(small / "fp32.tflite")}, {"max_tokens": 25})


def test_what_is_written_passes_the_devices_check_and_a_file_with_outside_tensors_does_not(small):
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    for form in ("fp32", "int8"):
        content = (small / f"{form}.tflite").read_bytes()
        check_model(io.BytesIO(content), len(content), form)
        outside = schema.ModelT.InitFromPackedBuf(content)
        group = schema.ExternalBufferGroupT()
        group.name = "../other.bin"
        outside.externalBufferGroups = [group]
        builder = flatbuffers.Builder(len(content))
        builder.Finish(outside.Pack(builder), b"TFL3")
        changed = bytes(builder.Output())
        with pytest.raises(PackageError, match="other files"):
            check_model(io.BytesIO(changed), len(changed), form)
