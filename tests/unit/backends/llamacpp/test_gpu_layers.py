"""How many layers a GPU computes: the arithmetic, and the steps back to the CPU. No GPU is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backends.api import Done, Limits, SessionJob
from edge_agent.backends.gguf import GgufHeader, read_header
from edge_agent.backends.llamacpp import backend, library, model
from edge_agent.backends.llamacpp.backend import LlamaBackend, asked_layers, on_gpu_or_not, wanted_layers
from edge_agent.backends.llamacpp.library import Log
from edge_agent.base.errors import BackendError, MemoryRefused
from edge_agent.base.limits import MIB
from edge_agent.base.runtimes import GPU_LAYERS_VARIABLE
from edge_agent.bundle.gguf_memory import GPU_BYTES, Demand, gpu_need, need
from tests.support.gguf_bytes import LLAMA, WEIGHTS, gguf_bytes
from tests.support.llama import needs_llama
from tests.support.tiny_gguf import Shape

DEMAND = Demand(1024, 2)


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    path.write_bytes(gguf_bytes(LLAMA, WEIGHTS))
    return replace(read_header(path), blocks=22, embedding=2048, feed_forward=5632, tensor_bytes=600 * MIB)


@given(room=st.integers(0, 1 << 34))
def test_all_layers_where_the_room_holds_model_and_gpu_and_none_otherwise(header: GgufHeader, room: int) -> None:
    layers, why = wanted_layers(header, DEMAND, room, None, has_gpu=True)
    takes = sum(need(header, DEMAND)) + gpu_need(header, DEMAND)
    assert layers == (23 if room == 0 or room >= takes else 0)
    assert bool(why) == (layers == 0)


def test_what_is_missing_is_named(header: GgufHeader) -> None:
    takes = sum(need(header, DEMAND)) + gpu_need(header, DEMAND)
    assert gpu_need(header, DEMAND) > GPU_BYTES
    _, why = wanted_layers(header, DEMAND, takes - 120 * MIB, None, has_gpu=True)
    assert why == "the GPU takes 315.0 MiB beside the model, 120.0 MiB of it are missing"


@pytest.mark.parametrize(
    ("asked", "has_gpu", "found"),
    [
        (None, False, (0, "")),
        (5, False, (0, "this build of llama.cpp has no GPU")),
        (0, False, (0, "")),
        (0, True, (0, "models.gpu_layers = 0")),
        (5, True, (5, "")),
        (500, True, (23, "")),
    ],
)
def test_the_operators_number_counts_whatever_the_room(
    header: GgufHeader, asked: int | None, has_gpu: bool, found: tuple[int, str]
) -> None:
    assert wanted_layers(header, DEMAND, 1, asked, has_gpu) == (found if asked is not None or has_gpu else (0, ""))


@pytest.mark.parametrize(
    ("holds", "tried", "said"),
    [
        (23, [23], "GPU: 23 of 23 layers"),
        (11, [23, 11], "GPU: 11 of 23 layers; 23 layers were refused: no room"),
        (0, [23, 11, 0], "CPU; 11 layers were refused: no room"),
    ],
)
def test_layers_that_are_refused_are_halved_and_then_given_up(holds: int, tried: list[int], said: str) -> None:
    seen: list[int] = []

    def load(layers: int, computed_by: str) -> str:
        seen.append(layers)
        if layers > holds:
            raise MemoryRefused("no room")
        return computed_by

    assert on_gpu_or_not(load, 23, 23, "") == said
    assert seen == tried


def test_what_the_cpu_refuses_as_well_is_raised() -> None:
    def load(layers: int, computed_by: str) -> str:
        raise BackendError(f"refused with {layers}")

    with pytest.raises(BackendError, match="refused with 0"):
        on_gpu_or_not(load, 23, 23, "")


def test_without_a_choice_nothing_is_said() -> None:
    assert on_gpu_or_not(lambda layers, said: (layers, said), 0, 23, "") == (0, "")
    assert on_gpu_or_not(lambda layers, said: (layers, said), 0, 23, "why") == (0, "CPU; why")


@pytest.mark.parametrize(("text", "layers"), [(None, None), ("0", 0), ("12", 12)])
def test_the_setting_comes_by_the_environment(monkeypatch: pytest.MonkeyPatch, text: str | None, layers: Any) -> None:
    monkeypatch.delenv(GPU_LAYERS_VARIABLE, raising=False)
    if text is not None:
        monkeypatch.setenv(GPU_LAYERS_VARIABLE, text)
    assert asked_layers() == layers


@pytest.mark.parametrize("text", ["", "-1", "many", "9" * 5, "１"])
def test_an_environment_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(GPU_LAYERS_VARIABLE, text)
    with pytest.raises(BackendError, match="a number of layers is needed"):
        asked_layers()


def test_buffers_of_the_gpu_are_told_from_those_of_the_processor() -> None:
    """Lines of llama.cpp with CUDA; CUDA_Host is pinned memory of the processor."""
    log = Log()
    for line in (
        b"load_tensors:   CPU_Mapped model buffer size =   102.54 MiB",
        b"load_tensors:        CUDA0 model buffer size =  1918.25 MiB",
        b"load_tensors:   CPU_REPACK model buffer size =    90.00 MiB",
    ):
        log.take(2, line, None)
    assert log.gpu_mib == 1918.25
    log.begin()
    for line in (
        b"llama_kv_cache:        CPU KV buffer size =    16.00 MiB",
        b"llama_kv_cache:      CUDA0 KV buffer size =   480.00 MiB",
        b"llama_context:  CUDA_Host  output buffer size =     0.58 MiB",
        b"llama_context:      CUDA0 compute buffer size =   254.50 MiB",
        b"llama_context:  CUDA_Host compute buffer size =    14.01 MiB",
    ):
        log.take(2, line, None)
    assert log.gpu_mib == 734.5
    assert log.buffer_mib == {"KV": 496.0, "output": 0.58, "compute": 268.51}


@needs_llama
def test_a_model_that_the_gpu_refuses_is_computed_by_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library, with a GPU that is said to be there and takes nothing."""
    from tests.support import tiny_gguf

    path = tmp_path / "model.gguf"
    tiny_gguf.write_model(path, Shape())
    tried: list[int] = []

    class NoRoomOnTheGpu(model.LlamaModel):
        def __init__(self, *arguments: Any, gpu_layers: int = 0, **more: Any) -> None:
            tried.append(gpu_layers)
            if gpu_layers:
                raise MemoryRefused("cudaMalloc failed: out of memory")
            super().__init__(*arguments, gpu_layers=gpu_layers, **more)

    monkeypatch.setattr(library.LlamaLibrary, "has_gpu", property(lambda _: True))
    monkeypatch.setattr(model, "LlamaModel", NoRoomOnTheGpu)
    session = LlamaBackend().load({"model": str(path)}, {"max_tokens": 256})
    try:
        layers = tried[0]
        assert tried == [layers, layers // 2, 0]
        assert session.computed_by == f"CPU; {layers // 2} layers were refused: cudaMalloc failed: out of memory"
        session.submit(SessionJob("job", None, [[1, 2, 3]], {"max_tokens": 2}))
        found = [event for _ in range(50) for event in session.step(Limits(1, 1))]
        assert any(isinstance(event, Done) for event in found)
    finally:
        session.close()
    assert backend.LlamaBackend().probe().devices == ("gpu", "cpu")  # type: ignore[union-attr]
