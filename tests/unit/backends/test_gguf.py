from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.backends import gguf
from edge_agent.base.errors import BackendError
from tests.support.gguf_bytes import LLAMA, WEIGHTS, adapter_bytes, gguf_bytes


def written(folder: Path, data: bytes) -> Path:
    path = folder / "file.gguf"
    path.write_bytes(data)
    return path


def test_a_header_says_what_the_model_is(tmp_path: Path) -> None:
    found = gguf.read_header(written(tmp_path, gguf_bytes(LLAMA, WEIGHTS)))
    assert (found.arch, found.blocks, found.heads, found.kv_heads, found.head_dim) == ("llama", 2, 4, 2, 16)
    assert (found.kv_width, found.embedding, found.vocab, found.context_length) == (64, 64, 3, 512)
    assert (found.tensor_bytes, found.file_type, found.chat_template) == (640, 1, "{{ messages }}")


def test_a_header_names_the_special_tokens_that_it_has(tmp_path: Path) -> None:
    prefix = "tokenizer.ggml"
    keys = {**LLAMA, f"{prefix}.bos_token_id": 0, f"{prefix}.unknown_token_id": 2, f"{prefix}.padding_token_id": 3}
    found = gguf.read_header(written(tmp_path, gguf_bytes(keys, WEIGHTS)))
    assert found.special_token_ids == {"bos": 0, "unk": 2}, "the vocabulary has three tokens: 3 is none of them"


def test_kv_heads_may_differ_by_layer(tmp_path: Path) -> None:
    keys = {**LLAMA, "llama.attention.head_count_kv": [1, 4]}
    assert gguf.read_header(written(tmp_path, gguf_bytes(keys, WEIGHTS))).kv_width == 5 * 16


def test_an_adapter_says_what_it_is(tmp_path: Path) -> None:
    found = gguf.read_header(written(tmp_path, adapter_bytes(base_id="sha256:x")))
    assert (found.adapter_type, found.adapter_alpha, found.arch, found.base_id) == ("lora", 8.0, "llama", "sha256:x")


NEEDED = [key for key in LLAMA if key.endswith(("count", "length", "tokens")) and "feed_forward" not in key]


@pytest.mark.parametrize("missing", NEEDED)
def test_a_missing_key_is_named(tmp_path: Path, missing: str) -> None:
    keys = {key: value for key, value in LLAMA.items() if key != missing}
    with pytest.raises(BackendError, match="tokenizer" if "tokens" in missing else missing):
        gguf.read_header(written(tmp_path, gguf_bytes(keys, WEIGHTS)))


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot load the model: No such file"):
        gguf.read_header(tmp_path / "absent.gguf")


def test_the_cache_follows_context_sequences_and_number_format(tmp_path: Path) -> None:
    header = gguf.read_header(written(tmp_path, gguf_bytes(LLAMA, WEIGHTS)))
    one = gguf.predict(header, 512, 1, "f16", 512)
    assert one.weights_bytes == 640
    assert one.cache_bytes == 2 * 64 * 512 * 2
    assert gguf.predict(header, 513, 1, "f16", 512).cache_bytes == 2 * 64 * 768 * 2
    assert gguf.predict(header, 512, 4, "f16", 512).cache_bytes == 4 * one.cache_bytes
    assert gguf.predict(header, 512, 1, "q8_0", 512).cache_bytes == one.cache_bytes * 34 // 64
