"""The alert rules that are shipped: Prometheus' own checker reads them, and each fires on what it is for."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.needs import program

HERE = Path(__file__).parent
SHIPPED = HERE.parents[2] / "edge_agent" / "exporter" / "monitoring"
RULES = SHIPPED / "edge-agent-alerts.yml"
CASES = HERE / "alerts_test.yml"


def run(*command: str) -> str:
    done = subprocess.run(
        [program("promtool", "prometheus"), *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_reads_the_rules() -> None:
    assert "SUCCESS: 14 rules found" in run("check", "rules", str(RULES))


def test_each_alert_fires_on_what_it_is_for_and_on_nothing_else() -> None:
    assert "SUCCESS" in run("test", "rules", str(CASES))


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    alerts = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    for fires in (True, False):
        assert {case["alertname"] for case in cases if bool(case.get("exp_alerts")) == fires} == alerts


def test_dashboards_and_rules_name_metrics_of_the_manual_alone() -> None:
    page = (HERE.parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    known = {f"edge_agent_{word}" for row in rows for word in re.findall(r"`([a-z_]+)`", row)}
    text = "".join(path.read_text(encoding="utf-8") for path in SHIPPED.iterdir())
    assert {name for name in re.findall(r"\bedge_agent_[a-z_]+", text) if name != "edge_agent_"} - known == set()


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda path: path.stem)
def test_panels_lie_side_by_side_and_have_queries_of_the_chosen_source(path: Path) -> None:
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = set(_cells(at))
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}", panel["title"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def _cells(at: dict[str, Any]) -> Iterator[tuple[int, int]]:
    return ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"]))
