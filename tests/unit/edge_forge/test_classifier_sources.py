"""What of a graph's figures travels in its package, so that the device can tell drift from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.bundle.drift_reference import reference, unknown_share
from edge_forge.package import classifier_sources
from edge_forge.package.classifier_sources import GraphVariant

SHARES = [0.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.05, 0.1, 0.2, 0.6]


@pytest.fixture
def graph(tmp_path: Path) -> GraphVariant:
    """A measured graph."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x" * 100)
    figures = {"accuracy": 0.91, "latency_ms": 3.25, "peak_bytes": 1000, "confidence": SHARES,
               "fragmentation": SHARES[::-1], "out_of_vocabulary": 0.0123456789}  # fmt: skip
    return GraphVariant("merged", "int8", path, "sha256:0", figures=figures)


def test_a_model_that_answers_carries_what_its_test_set_was_like(graph: GraphVariant) -> None:
    (variant,) = classifier_sources.variants([graph], answers=True)
    assert reference(variant.metrics) == tuple(SHARES)
    assert reference(variant.metrics, "fragmentation") == tuple(SHARES[::-1])
    assert unknown_share(variant.metrics) == 0.012346
    assert variant.metrics["accuracy"] == 0.91
    (base,) = classifier_sources.variants([graph])
    assert reference(base.metrics) is None, "a base answers embeddings: it is never sure of anything"


def test_a_tokenizer_without_an_unknown_token_has_no_share_of_it(graph: GraphVariant) -> None:
    figures = {**(graph.figures or {}), "out_of_vocabulary": None}
    metrics = classifier_sources.drift_reference(
        GraphVariant("merged", "int8", graph.path, "sha256:0", figures=figures)
    )
    assert unknown_share(metrics) is None
    assert reference(metrics, "fragmentation") is not None


def test_a_graph_without_a_test_set_has_no_histogram(graph: GraphVariant) -> None:
    bare = GraphVariant("merged", "int8", graph.path, "sha256:0", figures={"accuracy": 0.5})
    assert classifier_sources.drift_reference(bare) == {}
    assert classifier_sources.drift_reference(GraphVariant("merged", "int8", graph.path, "sha256:0")) == {}
