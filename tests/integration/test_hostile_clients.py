"""Three kinds of hostile clients take nothing from two good ones (ten minutes of it: `make storm`)."""

from __future__ import annotations

from pathlib import Path

from tests.support import hostile_clients
from tests.support.needs import need

IDLE_S, STORM_S = 3.0, 8.0


def test_good_clients_are_answered_in_a_storm(tmp_path: Path) -> None:
    need("llama_cpp", "gguf")
    found = hostile_clients.storm(tmp_path, IDLE_S, STORM_S)
    print(f"\n{found.table()}")
    for name, good in found.stormy.items():
        assert good.ms, name
        assert good.share >= 0.99, f"{name}: {good.other}"
    assert found.sent["flood"] > 0.5 * STORM_S * hostile_clients.FLOOD_PER_S, "the flood was one"
    assert found.refusals["404"] > 0
    assert not found.dropped["outbox-full"], "no computed answer was thrown away"
