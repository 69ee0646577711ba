"""That the comparison with other readers sees differences: those that are meant occur, and a faulty reader is found.

A file of its own because it is about the comparison, not about a parser.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from edge_agent.bundle import gguf_header, onnx_graph, safetensors
from tests.fuzz import corpus, differential_targets, mutate
from tests.fuzz.differential_targets import STRICTER, TARGETS, _reader, _walked
from tests.fuzz.runtimes import DIED
from tests.fuzz.target import Found, check
from tests.support import gguf_bytes
from tests.support.needs import need


def test_graphs_that_the_runtime_loads_are_passed_or_refused_for_the_reasons_that_are_meant() -> None:
    need("onnxruntime")
    chance, found = Random("differences"), Counter[str]()
    seeds = differential_targets.with_external_data()
    for number in range(400):
        data = mutate.by_protobuf(seeds[number % len(seeds)], chance)
        if (read := _reader("onnx").ask(data)) in (None, DIED):
            continue
        assert read is not None
        refused = _walked(data)
        found[next((words for words in STRICTER["onnx"] if words in refused), "?") if refused else "passed"] += 1
    assert found["passed"] > 50
    assert found["is no field of an ONNX"] > 10
    assert found["?"] == 0


@pytest.mark.parametrize("name", ["_EXTERNAL_DATA", "_EP_CONTEXT"])
def test_a_walk_that_misses_something_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = differential_targets.with_external_data()[1]
    compiled = corpus.small_models()[0]
    compiled.graph.node[0].op_type = "EPContext"
    data = outside if name == "_EXTERNAL_DATA" else compiled.SerializeToString()
    check(TARGETS["onnx-protobuf"], data)
    monkeypatch.setattr(onnx_graph, name, b"" if name == "_EP_CONTEXT" else 0)
    monkeypatch.setattr(onnx_graph, "_DATA_LOCATION", 0)
    with pytest.raises(Found, match="AssertionError"):
        check(TARGETS["onnx-protobuf"], data)


def test_a_gguf_reader_that_takes_gaps_or_empty_keys_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp refuses the first, and ends its process at the second."""
    need("llama_cpp")
    target = TARGETS["gguf-llama"]
    gap = gguf_bytes.gguf_bytes(gguf_bytes.LLAMA, {"a": ((8,), 0, 32), "b": ((8,), 0, 32)})
    gap = gap[: gap.rindex(b"\x20" + bytes(7))] + b"\x40" + bytes(7) + gap[gap.rindex(b"\x20" + bytes(7)) + 8 :]
    check(target, gap + bytes(64))
    empty = gguf_bytes.gguf_bytes({"": 1, **gguf_bytes.LLAMA}, gguf_bytes.WEIGHTS)
    check(target, empty)
    monkeypatch.setattr(gguf_header._Cursor, "name_text", gguf_header._Cursor.text)
    with pytest.raises(Found, match=r"llama\.cpp (ends its process|refuses it)"):
        check(target, empty)


def test_a_safetensors_reader_that_takes_any_metadata_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    need("safetensors")
    data = corpus.safetensors()[0].replace(b'"rank": "4"', b'"rank":  4 ')
    check(TARGETS["safetensors-library"], data)
    monkeypatch.setattr(safetensors, "_metadata", lambda found, _name: found or {})
    with pytest.raises(Found, match="the library refuses it"):
        check(TARGETS["safetensors-library"], data)
