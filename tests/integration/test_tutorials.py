"""The pages of docs/tutorials, line by line in a shell, each to its answer.

What a page has brought from elsewhere stands there already: packages of echo models for those that `make demo` builds,
and a base of 32 numbers a word in the recipe of the one that trains.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.base.child_python import child_environment
from tests.support import pages, tiny_base
from tests.support.agents import LABELS, demo_device, demo_packages, running
from tests.support.mosquitto import Mosquitto
from tests.support.packages import keys

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
WAIT_S = 60.0
BROUGHT = re.compile(r"\. (\.venv|edge)/bin/activate")
"""Lines that make our programs found, as `Terminal` does."""


class Terminal:
    """A shell in a folder, with our programs on its path, that reaches the broker on `port`."""

    def __init__(self, folder: Path, port: int, **environment: str) -> None:
        self.folder = folder
        (folder / "mosquitto_rr").write_text(f"-p {port}\n")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": path, "EDGE_AGENT__MQTT__PORT": str(port), "XDG_CONFIG_HOME": str(folder)}
        self._environment = {**child_environment(os.environ), **own, **environment}

    def run(self, line: str, shown: str = "") -> str:
        """What a line prints, which is as it is `shown`; it succeeds, or fails where it may."""
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=self._environment, capture_output=True, text=True,
            timeout=2 * WAIT_S, check=False,
        )  # fmt: skip
        print(f"$ {line}\n{done.stdout}{done.stderr}")
        assert done.returncode == 0 or line.startswith("edge-agent doctor"), f"{line}: {done.stdout}{done.stderr}"
        assert not shown or pages.shows(shown, done.stdout), done.stdout
        return done.stdout

    @contextlib.contextmanager
    def meanwhile(self, line: str, says: str) -> Iterator[None]:
        """A line that goes on in another terminal until Ctrl-C, from when it has said that."""
        log = self.folder / "meanwhile.log"
        with log.open("wb") as stream, subprocess.Popen(
            ["bash", "-c", f"exec {line}"], cwd=self.folder, env=self._environment, stdout=stream, stderr=stream,
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                end_s = time.monotonic() + WAIT_S
                while says not in log.read_text(errors="replace"):
                    assert process.poll() is None and time.monotonic() < end_s, log.read_text(errors="replace")
                    time.sleep(0.05)
                yield
                process.send_signal(signal.SIGINT)
                assert process.wait(WAIT_S) == 0, log.read_text(errors="replace")
            finally:
                process.kill()


def lines(page: str) -> list[tuple[str, str]]:
    """(line, what the page shows for it) of its console blocks, those left out that make our programs found."""
    bodies = "".join(body for language, body in pages.FENCE.findall(page) if language == "console")
    found = [(one.partition("\n")[0], one.partition("\n")[2]) for one in bodies.split("$ ")[1:]]
    return [(line, shown) for line, shown in found if not BROUGHT.fullmatch(line)]


def block(page: str, language: str) -> str:
    """The one block of a language."""
    (body,) = [body for name, body in pages.FENCE.findall(page) if name == language]
    return body


def test_each_of_three_people_has_a_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in TUTORIALS.iterdir()) == ["ask.md", "flash.md", "train.md"]
    assert all(f"](tutorials/{path.name})" in index for path in TUTORIALS.iterdir())


def test_who_asks_gets_answers_in_every_way(tmp_path: Path) -> None:
    page = (TUTORIALS / "ask.md").read_text(encoding="utf-8")
    (served, *_) = pages.commands(page)
    assert served.words == ("edge-agent", "demo", "--stay", "--port", "1883")
    with Mosquitto(tmp_path) as broker, running(demo_device(tmp_path / "device", broker.port)):
        terminal = Terminal(tmp_path, broker.port)
        (tmp_path / "ask.py").write_text(block(page, "python").replace('"localhost"', f'"127.0.0.1:{broker.port}"'))
        one, two, whole, by_mqtt, by_python = (terminal.run(*line) for line in lines(page))
    assert one.split()[0] in LABELS
    assert [line.split()[0] in LABELS for line in two.splitlines()] == [True, True, False]
    assert '"status": 200' in whole
    assert '"status":200' in by_mqtt.replace(" ", "")
    assert len(by_python.splitlines()) == 4 and "] True" in by_python


def test_who_flashes_gets_a_board_that_answers(tmp_path: Path) -> None:
    page = (TUTORIALS / "flash.md").read_text(encoding="utf-8")
    named = {"base": "minilm-0123abcd.tar", "adapter": "home-intents-v1.tar"}
    for name, package in demo_packages(tmp_path / "built").items():
        shutil.copy(package, tmp_path / named[name])
    shutil.copy(keys().root_file, tmp_path / "root.json")
    (tmp_path / "edge-agent.toml").write_text(block(page, "toml"))
    check, doctor, base, adapter, models, run, ask = lines(page)
    with Mosquitto(tmp_path) as broker:
        # What the page's board has by itself: a runtime for its packages, and a quiet memory.
        own = {"EDGE_AGENT__WORKER__BACKENDS": '["echo"]', "EDGE_AGENT__STORE__RESERVE_BYTES": "0"}
        terminal = Terminal(tmp_path, broker.port, **own)
        for line in (check, doctor, base, adapter, models):
            terminal.run(*line)
        with terminal.meanwhile(run[0], "connected"):
            assert terminal.run(*ask).split()[0] in LABELS


@pytest.mark.slow
def test_who_trains_gets_a_model_that_answers(tmp_path: Path) -> None:
    """Also: what `edge-forge build` ends with is what serves and asks what was built."""
    page = (TUTORIALS / "train.md").read_text(encoding="utf-8")
    init, look, build, serve, ask = lines(page)
    terminal = Terminal(tmp_path, 1, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    terminal.run(*init)
    terminal.run(*look)
    make_small(tmp_path / "my-task")
    printed = terminal.run(*build)
    assert [line.strip() for line in printed.splitlines()[-2:]] == [serve[0], re.sub(r'"(.*?)"', r"'\1'", ask[0])]
    with terminal.meanwhile(serve[0], "[   stay]"):
        terminal.run(*ask)


def make_small(place: Path) -> None:
    """Give the recipe a tiny base and little work; all rows are in all splits, as there are so few."""
    texts = [line.partition("\t")[0] for line in (place / "data" / "train.tsv").read_text().splitlines()[1:]]
    tiny_base.write(place / "base", texts)
    recipe = re.sub(r"source = \[.*?\n\]", 'source = "./base"', (place / "recipe.toml").read_text(), flags=re.DOTALL)
    settings = {
        "max_tokens": 16, "validation": '"data/train.tsv"', "test": '"data/train.tsv"', "rank": 4, "epochs": 30,
        "learning_rate": 5e-3, "batch_size": 8, "precision": '"fp32"', "threads": 1, "merged": "false", "bank_rank": 4,
        "bank_labels": 4, "bank_tokens": 32, "variants": '["fp32"]', "max_loss_points": 20.0, "probes": 4,
    }  # fmt: skip
    for key, value in settings.items():
        recipe, count = re.subn(rf"^# {key} = .*$", f"{key} = {value}", recipe, count=1, flags=re.MULTILINE)
        assert count == 1, f"{key} is not in the template"
    (place / "recipe.toml").write_text(recipe)
