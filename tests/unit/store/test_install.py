"""From a built package to an active model."""

from __future__ import annotations

from pathlib import Path

from edge_agent.base.clock import ManualClock
from edge_agent.store.library import Library
from edge_agent.store.setup import Setup
from tests.support import packages as tiny


def make_setup(prober: tiny.TinyProber | None = None) -> Setup:
    return Setup(
        prober=prober or tiny.TinyProber(),
        hardware=tiny.HARDWARE,
        trust=tiny.trust(),
        clock=ManualClock(wall_s=tiny.WALL_S),
        reserve_bytes=0,
    )


def test_base_then_adapter(tmp_path: Path) -> None:
    library = Library(tmp_path / "store", make_setup())
    base = tiny.base_package(tmp_path)
    report = library.install(base)
    assert report.changed
    (model,) = library.active()
    assert (model.name, model.version, model.variant.name, model.adapters) == ("tiny", 1, "onnx/int8", ())
    library.install(tiny.adapter_package(tmp_path, base))
    (model,) = library.active()
    assert model.version == 2 and [one.name for one in model.adapters] == ["intents"]
    assert library.rollback("tiny").adapters == ()
