"""The bench's models are what they are said to be: an adapter merged into the weights says what the adapter says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_agent.backends.gguf import read_header
from tests.support import generators, tiny_gguf
from tests.support.needs import need

pytestmark = pytest.mark.usefixtures("llama")


@pytest.fixture
def llama() -> None:
    need("llama_cpp", "gguf")


def test_a_merged_adapter_says_what_the_adapter_says(tmp_path: Path) -> None:
    lora = tiny_gguf.Lora(3, 8, ("attn_q", "attn_v"))
    base = tiny_gguf.write_model(tmp_path / "base.gguf", dtype="f32")
    merged = tiny_gguf.write_model(tmp_path / "merged.gguf", dtype="f32", merged=lora)
    adapter = tiny_gguf.write_adapter(tmp_path / "adapter.gguf", *lora)
    alone, apart, inside = (
        np.array(generators.features(model, path)) for model, path in ((base, None), (base, adapter), (merged, None))
    )
    assert np.abs(apart - inside).max() < 0.01 < np.abs(apart - alone).max()


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
@pytest.mark.parametrize("tied", [True, False])
def test_quantised_models_speak_whether_their_output_is_tied_or_not(tmp_path: Path, dtype: str, tied: bool) -> None:
    model = tiny_gguf.write_model(tmp_path / "model.gguf", tiny_gguf.Shape(tied=tied), dtype=dtype)
    assert np.isfinite(generators.features(model, None)).all()
    plain = tiny_gguf.write_model(tmp_path / "plain.gguf", dtype=dtype)
    assert (read_header(model).tensor_bytes > read_header(plain).tensor_bytes) != tied
