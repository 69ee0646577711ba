"""The study on a tiny real encoder: killed in mid-run, taken up again, graphs made, other conditions refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tiny_base

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]


def command(folder: Path, *more: str) -> list[str]:
    named = {"data": "data", "base": "base", "build": "build", "results": "study.json", "page": "study.md"}
    places = [text for option, name in named.items() for text in (f"--{option}", str(folder / name))]
    return [
        sys.executable, "-m", "bench.study", *places, "--tasks", "rte", "--runs", "head", "--tokens", "16",
        "--epochs", "4", "--seeds", "1", "--step-sizes", "1,3", *more,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def study(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *more), capture_output=True, text=True, check=False, env=environment(), timeout=580
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("study")
    tiny_base.write(place / "base")
    data = place / "data"
    for name in ("rte", "stsb"):
        (data / name).mkdir(parents=True)
    pairs = [f"{text}\tplease the light number {at}\t{label}\n" for at in range(3) for text, label in tiny_base.ROWS]
    for file in ("train.tsv", "dev.tsv"):
        (data / "rte" / file).write_text("text_a\ttext_b\tlabel\n" + "".join(pairs))
    alike = [
        f"{text}\t{other}\t{float(at % 6)}\n" for at, (text, _) in enumerate(tiny_base.ROWS) for other in tiny_base.ON
    ]
    (data / "stsb" / "dev.tsv").write_text("text_a\ttext_b\tscore\n" + "".join(alike))
    return place


@pytest.fixture(scope="module")
def killed(folder: Path) -> dict[str, object]:
    """The results as they were when the study was killed at its second run."""
    begun = 0
    with subprocess.Popen(
        command(folder), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment()
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            begun += line.startswith("== ")
            if begun == 2:
                process.send_signal(signal.SIGKILL)
                break
    found: dict[str, object] = json.loads((folder / "study.json").read_text())
    return found


@pytest.fixture(scope="module")
def finished(folder: Path, killed: object) -> subprocess.CompletedProcess[str]:
    done = study(folder)
    assert done.returncode == 0, done.stderr
    return done


def test_a_killed_study_goes_on_with_the_run_that_was_at_work(folder, killed, finished):
    before = killed["tasks"]["rte"]["runs"]["head"]
    after = json.loads((folder / "study.json").read_text())["tasks"]["rte"]["runs"]["head"]
    assert len(before) == 1 and len(after) == 2 and before.items() <= after.items()
    assert "rte: 1 of 3 done, 2 left" in finished.stdout and "rte: 3 of 3 done" in finished.stdout
    begun = [line for line in finished.stderr.splitlines() if line.startswith("== ")]
    assert len(begun) == 2 and "step size 0.003" in begun[0] and "graphs" in begun[1]


def test_graphs_are_measured_and_the_page_holds_them(folder, finished):
    graph = json.loads((folder / "study.json").read_text())["tasks"]["rte"]["graphs"]["head"]
    assert {one["dtype"] for one in graph["variants"]} == {"fp32", "fp16", "int8"}
    assert graph["kept"]["similarity"]["lost"] == 0.0  # a head alone leaves the encoder as it is
    page = (folder / "study.md").read_text()
    assert "| head |" in page and "| not run |" not in page


def test_nothing_is_made_again_and_without_time_nothing_is_begun(folder, finished):
    again = study(folder, "--minutes", "0")
    assert again.returncode == 0 and "all is done" in again.stdout and "== " not in again.stderr
    more = study(folder, "--minutes", "0", "--seeds", "3")
    assert "the time is over: the same command goes on" in more.stdout and "== " not in more.stderr
    assert "rte: 3 of 5 done, 2 left" in more.stdout


def test_runs_of_other_conditions_are_refused_before_anything_runs(folder, finished):
    held = (folder / "study.json").read_bytes()
    other = study(folder, "--epochs", "5")
    assert other.returncode == 1 and "epochs = 4, and 5 is wanted" in other.stderr and "--results FILE" in other.stderr
    assert (folder / "study.json").read_bytes() == held
