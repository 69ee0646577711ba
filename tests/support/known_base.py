"""A base of which everything is known and nothing is opened, for tests of plans.

A file of its own because two test files need it and `tiny_base` makes a real one.
"""

from types import SimpleNamespace

from edge_forge.models import bases
from edge_forge.plan.classifier_training import ClassifierTraining
from edge_forge.plan.onnx_exports import OnnxExports

BASE_ID = "sha256:" + "0" * 64


def put(monkeypatch, folder, positions=512, width=384):
    """Let every recipe find the base `folder`, which is neither opened nor exported."""
    base = bases.Base(folder, "./base", {}, ())
    facts = {
        "base_id": BASE_ID,
        "positions": positions,
        "bounded_by": "",
        "width": width,
        "prompt": "",
        "layers": 6,
        "vocabulary": 1000,
    }
    monkeypatch.setattr(bases, "resolve", lambda *_: base)
    monkeypatch.setattr(ClassifierTraining, "examined", SimpleNamespace(facts=facts))
    monkeypatch.setattr(OnnxExports, "traced", None)
