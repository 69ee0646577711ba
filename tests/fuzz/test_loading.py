"""Graphs that pass the walk, in the backend that serves them: a session that answers a batch, or a refusal by name.

A file of its own because it is no target for `make nightly`: ONNX Runtime takes what memory a graph asks for.
"""

from __future__ import annotations

import contextlib
import sys
from random import Random

from edge_agent.backends.api import Limits, SessionJob
from edge_agent.backends.onnx import OnnxBackend
from edge_agent.base.errors import BackendError, PackageError
from tests.fuzz import corpus, mutate
from tests.fuzz.device_targets import graph
from tests.fuzz.target import placed

CHANGES = 300


def loaded(data: bytes) -> None:
    """Load a graph and compute a batch. Raises BackendError."""
    with placed(data) as path, contextlib.redirect_stdout(sys.stderr):
        session = OnnxBackend().load({"model": str(path)}, {"max_rows": 4, "max_tokens": 16, "threads": 1})
        session.submit(SessionJob("a", None, [[1, 2, 3], [4]], {}, ""))
        session.step(Limits(4, 1))
        session.close()


def test_changed_graphs_are_served_or_refused_by_name() -> None:
    chance, served, refused = Random("graphs"), 0, 0
    seed = corpus.graphs()[0]
    loaded(seed)
    for number in range(CHANGES):
        data = seed
        for _ in range(1 + number % 3):
            data = mutate.by_protobuf(data, chance)
        try:
            graph(data)
            loaded(data)
            served += 1
        except (PackageError, BackendError):
            refused += 1
    assert served > CHANGES // 20
    assert refused > CHANGES // 20
