"""The device tries what a package offers, in real workers, and says in numbers why it runs what it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from edge_forge.package.build import build
from edge_forge.package.sources import ModelSource, VariantSource
from tests.support.agents import LABELS, AgentProcess, echo_rows
from tests.support.desk import cli, said
from tests.support.packages import BASE_ID, TEXTS, keys, onnx_bytes, release

SLOW_S = 0.03


def two_variants(folder: Path) -> Path:
    """An echo model as int8, slow here and small, and as fp32, which is quick, holds more and is better."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {"base_id": BASE_ID, "labels": len(LABELS)}
    options = {"int8": {**known, "delay_s": SLOW_S}, "fp32": {**known, "hold_mib": 40}}
    rows = echo_rows(None, known)
    entry = {"features": [row["features"] for row in rows], "features_tolerance": 1e-6}
    probes = folder / "probes.json"
    probes.write_text(
        json.dumps({"schema": 1, "texts": list(TEXTS), "expected": {f"echo/{dtype}": entry for dtype in options}})
    )
    variants = []
    for dtype, accuracy in (("int8", 0.915), ("fp32", 0.92)):
        weights = folder / f"{dtype}.onnx"
        weights.write_bytes(onnx_bytes(dtype.encode() * 40))
        variants.append(
            VariantSource(weights, "echo", dtype, peak_bytes=1 << 20, accuracy=accuracy, options=options[dtype])
        )
    model = ModelSource(
        name="pair",
        base_id=BASE_ID,
        task={"kind": "classify", "labels": list(LABELS), "max_tokens": 64},
        variants=variants,
        probes=probes,
        licences=("Apache-2.0",),
    )
    return build(folder / "pair.tar", release("pair", 1), model, [], None, [keys().release_key]).path


def test_the_policy_decides_by_what_real_workers_took(tmp_path: Path) -> None:
    """The table of formats would have taken INT8."""
    package = two_variants(tmp_path)
    chosen = {}
    for policy in ("fastest", "smallest"):
        agent = AgentProcess(tmp_path / policy, 1, extra=f'[models]\npolicy = "{policy}"\n')
        lines = said(cli("install", package, "--config", agent.config))
        assert "2 golden probes hold" in lines
        (model,) = json.loads(said(cli("models", "--json", "--config", agent.config)))
        chosen[policy] = model["variant"]
        figures = {one["name"]: one["measured"] for one in model["variants"]}
        assert figures["echo/int8"]["latency_ms"] >= 1000 * SLOW_S > figures["echo/fp32"]["latency_ms"]
        assert figures["echo/fp32"]["peak_bytes"] - figures["echo/int8"]["peak_bytes"] > 30 << 20
        why = said(cli("models", "--why", "--config", agent.config))
        print(f"\n{why}")
        assert f"because: {chosen[policy]} of 2 by policy '{policy}':" in why
        assert "ms a text" in why
        assert "31 turns" in why
        assert [one["kept"] for one in model["variants"] if one["name"] != chosen[policy]] == [False]
    assert chosen == {"fastest": "echo/fp32", "smallest": "echo/int8"}


def test_without_trials_the_table_of_formats_decides(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path / "device", 1, extra="[models]\nmeasure = false\n")
    command = [sys.executable, "-m", "edge_agent", "install", str(two_variants(tmp_path))]
    subprocess.run([*command, "--config", str(agent.config)], check=True, env=dict(os.environ), timeout=60)
    (model,) = json.loads(said(cli("models", "--json", "--config", agent.config)))
    assert model["variant"] == "echo/int8"
    assert [one["measured"] is None for one in model["variants"]] == [False, True], "the chosen one was probed"


def test_a_budget_that_only_one_variant_fits_decides(tmp_path: Path) -> None:
    """As the policy would have it the quick one wins; its measured 50 MiB are more than all models may have."""
    budget = "[memory]\nmodels_bytes = 31457280\n"
    agent = AgentProcess(tmp_path / "device", 1, extra=f'[models]\npolicy = "fastest"\n{budget}')
    lines = said(cli("install", two_variants(tmp_path), "--config", agent.config))
    (model,) = json.loads(said(cli("models", "--json", "--config", agent.config)))
    assert model["variant"] == "echo/int8"
    assert "not echo/fp32: it needs" in lines
    assert "of memory, 30.0 MiB may be used" in lines


def test_variants_that_do_not_fit_together_are_timed_in_alternate_loads(tmp_path: Path) -> None:
    """Each of them fits alone: the budget is a little more than what the larger one was measured to hold."""
    package, policy = two_variants(tmp_path), '[models]\npolicy = "fastest"\n'
    both = AgentProcess(tmp_path / "both", 1, extra=policy)
    said(cli("install", package, "--config", both.config))
    (model,) = json.loads(said(cli("models", "--json", "--config", both.config)))
    held = max(one["measured"]["peak_bytes"] for one in model["variants"])
    tight = AgentProcess(tmp_path / "tight", 1, extra=f"{policy}[memory]\nmodels_bytes = {held + (4 << 20)}\n")
    lines = said(cli("install", package, "--config", tight.config))
    assert "echo/fp32 of 2 by policy 'fastest'" in lines
    assert "in 3 loads each, since they do not fit into memory together)" in lines
