"""A delegate of LiteRT that works, and each way in which one cannot be used: the CPU answers, and it is said."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.backends import registry
from edge_agent.backends.api import Done, Limits, Session, SessionJob
from edge_agent.base.errors import BackendError
from edge_agent.base.runtimes import LITERT_DELEGATE_VARIABLE
from tests.support import small_litert
from tests.support.needs import need

SOURCE = Path(small_litert.__file__).with_name("empty_delegate.c")
needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="NO gcc HERE: delegates were NOT checked")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("litert_torch", "ai_edge_quantizer", "ai_edge_litert")
    return small_litert.write(tmp_path_factory.mktemp("tflite")) / "fp32.tflite"


def compiled(folder: Path, *flags: str) -> str:
    library = folder / "libempty.so"
    subprocess.run(["gcc", "-shared", "-fPIC", *flags, "-o", str(library), str(SOURCE)], check=True, timeout=60)
    return str(library)


def loaded(graph: Path, monkeypatch: pytest.MonkeyPatch, library: str = "") -> Session:
    monkeypatch.setenv(LITERT_DELEGATE_VARIABLE, library)
    return registry.create("litert").load({"model": str(graph)}, {"max_tokens": 24, "threads": 1})


def answer(session: Session, threads: int = 1) -> Any:
    session.submit(SessionJob("job", None, [[3, 1, 4, 1, 5]], {}))
    (event,) = session.step(Limits(1, threads))
    assert isinstance(event, Done), event
    return event.outputs["features"]


@needs_compiler
def test_a_delegate_is_used_and_named(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loaded(graph, monkeypatch)
    library = compiled(tmp_path)
    session = loaded(graph, monkeypatch, library)
    assert plain.computed_by == ""
    assert session.computed_by == f"delegate {library} for what it takes of the graph, CPU for the rest"
    for threads in (1, 2, 1):  # another number of threads makes another interpreter
        np.testing.assert_allclose(answer(session, threads), answer(plain), atol=1e-6)
    session.close()


@needs_compiler
@pytest.mark.parametrize(("flag", "words"), [("-DABSENT", "no such device is plugged in"), ("-DREFUSES", "elegate")])
def test_one_that_finds_no_device_or_refuses_the_graph_leaves_it_to_the_cpu(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, words: str
) -> None:
    library = compiled(tmp_path, flag)
    session = loaded(graph, monkeypatch, library)
    assert session.computed_by.startswith(f"CPU; the delegate {library} cannot be used: ")
    assert words in session.computed_by
    np.testing.assert_allclose(answer(session), answer(loaded(graph, monkeypatch)), atol=1e-6)


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("libedgetpu-none.so.1", "libedgetpu-none.so.1"),
        ("libm.so.6", "undefined symbol: tflite_plugin_create_delegate"),
    ],
)
def test_a_library_that_is_missing_or_is_none_is_said(
    graph: Path, monkeypatch: pytest.MonkeyPatch, library: str, words: str
) -> None:
    session = loaded(graph, monkeypatch, library)
    assert session.computed_by.startswith(f"CPU; the delegate {library} cannot be used: ")
    assert words in session.computed_by.partition("used: ")[2]
    assert answer(session).shape == (1, small_litert.WIDTH)


def test_a_broken_graph_is_refused_with_a_delegate_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("ai_edge_litert")
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"\x1c\0\0\0TFL3" + bytes(64))
    with pytest.raises(BackendError, match="cannot load the graph"):
        loaded(broken, monkeypatch, "libm.so.6")
