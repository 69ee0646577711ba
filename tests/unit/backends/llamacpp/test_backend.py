from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_agent.backends.gguf import GgufHeader, predict, read_header
from edge_agent.backends.llamacpp.backend import DEFAULTS, LlamaBackend, fitting
from edge_agent.backends.llamacpp.library import Log, cpu_words, missing_instructions, never
from edge_agent.base.errors import BackendError, MemoryRefused
from tests.support.gguf_bytes import LLAMA, WEIGHTS, adapter_bytes, gguf_bytes


@pytest.fixture
def header(tmp_path: Path) -> GgufHeader:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(LLAMA, WEIGHTS))
    return replace(read_header(path), head_dim=64, kv_width=4096, context_length=8192)


def options(**changes: Any) -> dict[str, Any]:
    return {**DEFAULTS, "max_tokens": 4096, **changes}


def need(header: GgufHeader, context: int, sequences: int, kv_type: str = "f16") -> int:
    return sum(predict(header, context, sequences, kv_type, DEFAULTS["batch"]))


def test_where_memory_is_not_known_nothing_is_made_smaller(header: GgufHeader) -> None:
    assert fitting(header, options(), "m") == (4096, 4)
    assert fitting(header, options(context=1024, sequences=2), "m") == (1024, 2)


def test_what_does_not_fit_is_refused_with_the_arithmetic(header: GgufHeader) -> None:
    with pytest.raises(BackendError) as refused:
        fitting(header, options(memory_bytes=need(header, 4096, 4) - 1), "m")
    text = str(refused.value)
    assert "a context of 4096 tokens for 4 sequences takes weights 640 B + cache 256.0 MiB (2 x 4096 x 4096" in text
    assert "x 4 x 2 bytes, f16) + work" in text
    assert "a context of 3840 tokens for 4 sequences would fit (models.context = 3840)" in text


def test_with_leave_it_shrinks_to_what_fits_and_no_further(header: GgufHeader) -> None:
    for allowed, wanted in ((need(header, 2048, 4), (2048, 4)), (need(header, 512, 3), (512, 3))):
        assert fitting(header, options(memory_bytes=allowed, shrink=True), "m") == wanted
    with pytest.raises(BackendError, match="does not fit"):
        fitting(header, options(memory_bytes=need(header, 512, 1) - 1, shrink=True), "m")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"context": 9000}, "9000 tokens is asked for, the model was trained for 8192"),
        ({"kv_type": "q3"}, "there are: f16, q8_0"),
    ],
)
def test_options_that_cannot_be_are_refused(header: GgufHeader, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BackendError, match=says):
        fitting(header, options(**changes), "m")


def test_a_quantised_cache_needs_heads_that_fill_its_blocks(header: GgufHeader) -> None:
    with pytest.raises(BackendError, match="multiple of 32 values, these have 20"):
        fitting(replace(header, head_dim=20), options(kv_type="q8_0"), "m")


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(adapter_bytes())
    with pytest.raises(BackendError, match="the file is an adapter"):
        LlamaBackend().load({"model": str(path)}, {})


@pytest.mark.parametrize("name", ["sequences", "batch", "context", "prompt_chunk"])
def test_a_number_out_of_range_is_refused_by_name(name: str) -> None:
    with pytest.raises(BackendError, match=f"{name!r} is -1"):
        LlamaBackend().load({"model": "m"}, {name: -1})


def test_instructions_that_a_cpu_lacks_are_named(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd crc32\nprocessor\t: 1\nFeatures\t: fp asimd crc32\n")
    words = cpu_words(cpuinfo)
    assert words == {"fp", "asimd", "crc32"}
    assert missing_instructions(["neon", "dotprod", "matmul_int8"], words) == ["dotprod", "matmul_int8"]
    assert missing_instructions(["avx2"], frozenset()) == [], "where the kernel says nothing, nothing is refused"
    assert cpu_words(tmp_path / "absent") == frozenset()


@pytest.mark.parametrize(
    "line",
    [
        b"ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 1073741824",
        b"ggml_aligned_malloc: insufficient memory (attempted to allocate 1024.00 MB)",
        b"llama_init_from_model: failed to initialize the context: std::bad_alloc",
    ],
)
def test_a_failed_allocation_is_told_from_other_refusals(line: bytes) -> None:
    log = Log()
    log.take(4, line, None)
    refused = never("cannot load the model", "/blobs/sha256/0", log)
    assert isinstance(refused, MemoryRefused)
    assert str(refused) == "llama.cpp got less memory than it asked for"
    log.begin()
    log.take(4, b"llama_model_load: error loading model: unknown architecture", None)
    assert not isinstance(never("cannot load the model", "m", log), MemoryRefused)


def test_the_log_keeps_reasons_and_sizes() -> None:
    log = Log()
    log.take(2, b"llama_kv_cache:  CPU KV buffer size =     6.00 MiB\n", None)
    log.take(3, b"cannot \xff\n", None)
    log.take(3, b"llama_graph_n_input_tensors: noise\n", None)
    assert log.buffer_mib == {"KV": 6.0}
    log.take(4, b"failed\n", None)
    assert log.reason() == "cannot \ufffd; failed"
    log.begin()
    assert log.reason() == "it gives no reason"
