"""The table of runtimes: every row is complete, and a plug-in's runtime gets the least that can be said."""

from __future__ import annotations

import pytest

from edge_agent.base.runtimes import RUNTIMES, WEIGHT_SUFFIXES, RuntimeTraits, traits


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_row_is_what_is_asked_for_by_its_name(name: str) -> None:
    found = traits(name)
    assert found is RUNTIMES[name]
    assert set(found.weight_suffixes) <= set(WEIGHT_SUFFIXES)
    assert all(suffix.startswith(".") for suffix in found.weight_suffixes)


def test_weight_files_end_as_some_runtime_reads_them() -> None:
    """No compiled engine: TensorRT's are built on the device from a graph."""
    assert sorted(WEIGHT_SUFFIXES) == [".gguf", ".onnx", ".safetensors", ".tflite"]


def test_the_runtime_of_a_plug_in_comes_last_until_it_is_measured() -> None:
    unknown = traits("abacus")
    assert unknown == RuntimeTraits()
    assert unknown.speed_rank > traits("echo").speed_rank > traits("onnx").speed_rank
    assert not (unknown.bandwidth_bound or unknown.slow_float16 or unknown.context_sized)


def test_engines_of_a_gpu_come_before_kernels_of_a_cpu() -> None:
    assert sorted(RUNTIMES, key=lambda name: (traits(name).speed_rank, name)) == [
        "tensorrt",
        "litert",
        "llamacpp",
        "onnx",
        "echo",
    ]
