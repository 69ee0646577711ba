"""Every backend as one kind of subject, so that each contract test runs on all of them."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from edge_agent.backends import registry
from edge_agent.backends.api import AdapterSource
from edge_agent.base.runtimes import ENGINE_FOLDER_VARIABLE, TENSORRT_PYTHON_VARIABLE
from tests.support import fake_gpu, small_graph, tiny_gguf
from tests.support.needs import need


class Subject(NamedTuple):
    """A backend with what it needs to be loaded and adapted. `tolerance` is absolute, on features and logits.

    `adapters`: it takes some; `mixed`: rows of one batch may use different ones; `heads`: one brings a classifier.
    """

    name: str
    files: dict
    options: dict
    folder: Path
    tolerance: float
    adapters: bool = True
    mixed: bool = True
    heads: bool = True
    sessions: tuple = ()

    def load(self, **options: Any):
        session = registry.create(self.name).load(self.files, {**self.options, **options})
        if self.sessions:
            self.sessions[0].callback(session.close)
        return session

    def adapter(self, name: str, seed: int = 1, **changes: Any) -> AdapterSource:
        """An adapter that fits; `changes` go to `small_graph.adapter`."""
        if self.name == "llamacpp":
            return self._gguf_adapter(name, seed, changes)
        path = small_graph.write_adapter(
            self.folder / f"{name}-{seed}.safetensors", small_graph.adapter(seed, **changes)
        )
        return AdapterSource(name, str(path), small_graph.BASE_ID)

    def _gguf_adapter(self, name: str, seed: int, changes: dict) -> AdapterSource:
        targets = ("attn_v",) if "modules" in changes else ("attn_q", "attn_v", "ffn_down")
        path = self.folder / f"{name}-{seed}.gguf"
        tiny_gguf.write_adapter(path, seed, changes.get("rank", 4), targets)
        return AdapterSource(name, str(path), small_graph.BASE_ID)


@pytest.fixture(scope="session")
def graphs(tmp_path_factory):
    """One banked graph per number format."""
    from edge_forge.export.onnx.graph import save
    from edge_forge.export.onnx.inject import inject_bank
    from edge_forge.export.onnx.quantize import ValueRange, quantize_per_token, quantize_static
    from edge_forge.export.onnx.sites import read_sites

    folder = tmp_path_factory.mktemp("graphs")
    encoder = small_graph.encoder()
    ranges = {site.x: ValueRange(-4.0, 4.0) for site in read_sites(encoder)}
    made = {
        "fp32": small_graph.encoder(),
        "int8": quantize_per_token(encoder, {site.x: (3, 7) for site in read_sites(encoder)}),
        "int8-static": quantize_static(encoder, ranges),
    }
    for name, model in made.items():
        inject_bank(model, small_graph.MODULES, small_graph.RANK, small_graph.MAX_LABELS)
        save(model, folder / f"{name}.onnx")
    return folder


@pytest.fixture(scope="session")
def gguf(tmp_path_factory):
    """A generator of two layers with random weights, per number format."""
    folder = tmp_path_factory.mktemp("gguf")
    for dtype in ("f16", "q8_0"):
        tiny_gguf.write_model(folder / f"{dtype}.gguf", dtype=dtype)
    return folder


@pytest.fixture(scope="session")
def engines(graphs):
    """The banked graph in the form for TensorRT, an interpreter with the stand-in for it, and a folder for engines."""
    import onnx

    from edge_forge.export.onnx.tensorrt_form import for_tensorrt

    plain = small_graph.banked(graphs / "plain.onnx", of_tokens=False)
    onnx.save(for_tensorrt(onnx.load(plain), small_graph.RANK), graphs / "tensorrt.onnx")
    for generation in fake_gpu.GENERATIONS:
        fake_gpu.write_python(graphs / f"python-{generation}", generation)
    return graphs


@pytest.fixture(scope="session")
def tflite(tmp_path_factory):
    """A small encoder for LiteRT, per number format."""
    need("litert_torch", "ai_edge_quantizer")
    from tests.support import small_litert

    return small_litert.write(tmp_path_factory.mktemp("tflite"))


ADAPTING = (
    "echo", "onnx-fp32", "onnx-int8", "onnx-int8-static", "tensorrt-8.2", "tensorrt-8.6", "tensorrt-10.3",
    "tensorrt-10.16", "llamacpp-f16", "llamacpp-q8_0",
)  # fmt: skip
BANKLESS = ("litert-fp32", "litert-int8")


@pytest.fixture(params=ADAPTING + BANKLESS)
def subject(request, tmp_path, monkeypatch):
    """Every backend in every number format."""
    return _subject(request, tmp_path, monkeypatch)


@pytest.fixture(params=ADAPTING)
def adapting(request, tmp_path, monkeypatch):
    """Those that take adapters."""
    return _subject(request, tmp_path, monkeypatch)


@pytest.fixture(params=BANKLESS)
def bankless(request, tmp_path, monkeypatch):
    """Those that take none."""
    return _subject(request, tmp_path, monkeypatch)


def _subject(request, tmp_path, monkeypatch):
    name, _, form = request.param.partition("-")
    options = {"max_rows": 8, "max_tokens": 24, "base_id": small_graph.BASE_ID}
    files = {}
    if name == "llamacpp":
        need("llama_cpp", "gguf")
        files = {"model": str(request.getfixturevalue("gguf") / f"{form}.gguf")}
        options["sequences"] = 8
        # Logits of about 1; a row alone and a row in a batch go through other kernels, with other roundings.
        return Subject(name, files, options, tmp_path, 0.05, mixed=False, heads=False)
    if name == "tensorrt":
        folder = request.getfixturevalue("engines")
        monkeypatch.setenv(TENSORRT_PYTHON_VARIABLE, str(folder / f"python-{form}"))
        monkeypatch.setenv(ENGINE_FOLDER_VARIABLE, str(folder / "engines"))
        files = {"model": str(folder / "tensorrt.onnx")}
        options["precision"] = "fp32"
        sessions = ExitStack()  # an engine host must be ended
        request.addfinalizer(sessions.close)
        return Subject(name, files, options, tmp_path, 1e-5, sessions=(sessions,))
    if name == "litert":
        options["threads"] = 1
        files = {"model": str(request.getfixturevalue("tflite") / f"{form}.tflite")}
        return Subject(name, files, options, tmp_path, 1e-6, adapters=False, mixed=False)
    if name == "onnx":
        options["threads"] = 1
        files = {"model": str(request.getfixturevalue("graphs") / f"{form}.onnx")}
    return Subject(name, files, options, tmp_path, 1e-5)
