"""The check for boards runs to its end against the stand-in; what only a device can hold (times) is not asked here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.device.check import BUILDS, PART_S, PARTS, fits
from tests.support import tiny_base

ROOT = Path(__file__).resolve().parents[2]
# Demands that a machine without a GPU may miss: times, and a build that must last long enough to be killed.
OF_A_DEVICE = ("second build", "mixed batch against one adapter", "a run through the host", "swap of an adapter")


@pytest.mark.slow
def test_graphs_are_prepared_and_every_part_of_the_check_runs(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base, graphs = tiny_base.write(tmp_path / "base"), tmp_path / "graphs"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tools")))}
    made = [sys.executable, "-m", "tests.device.prepare", str(base), str(graphs)]
    subprocess.run(made, env=env, cwd=ROOT, check=True, capture_output=True, timeout=120)
    stand_in = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support" / "fake_gpu")))
    env = {**os.environ, "PYTHONPATH": stand_in, "EDGE_FAKE_BUILD_S": "3"}
    # As an owner of a board calls it, in less than the 13 minutes of a borrowed GPU.
    command = ["make", "-s", "device-check", f"PYTHON={sys.executable}", f"GRAPHS={graphs}",
               "DEVICE_FLAGS=--churn-s 1 --repeats 3 --whole-s 780"]  # fmt: skip
    done = subprocess.run(command, env=env, cwd=ROOT, check=False, capture_output=True, text=True, timeout=280)
    found = json.loads((graphs / "found" / "check.json").read_text())
    assert {
        name: figures["failed"] for name, figures in found.items() if isinstance(figures, dict) and "failed" in figures
    } == {}, done.stderr
    missed = [what for what in found.get("missed", []) if not any(words in what for words in OF_A_DEVICE)]
    assert missed == [], done.stdout
    assert found["churn"]["runs"] > 0 and found["churn"]["lost_bytes"] == 0
    assert found["parity int8"]["same_label"] == 1.0


def test_a_borrowed_gpu_is_given_back_in_time() -> None:
    """Parts that would end too late are left out, however long this device builds; churn takes what is left."""
    for build_s in (5.0, 35.0, 90.0, 400.0):
        left_s, run = 780.0 - build_s - PART_S, []
        for part in PARTS[1:]:
            if fits(part.__name__, build_s, left_s):
                left_s -= BUILDS.get(part.__name__, 0) * build_s + PART_S
                run.append(part.__name__)
        assert left_s >= 0.0 and run[0] == "fp32"
        assert (len(run) == len(PARTS) - 1) == (build_s <= 35.0), "with builds as on an H200 everything fits"
