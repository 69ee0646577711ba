"""The examples of docs/mqtt.md, word for word, against a live device: mosquitto's clients, and Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import pages
from tests.support.agents import LABELS, demo_device, running
from tests.support.mosquitto import Mosquitto, find

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "mqtt.md").read_text(encoding="utf-8")
PROGRAMS = ("mosquitto_pub", "mosquitto_sub", "mosquitto_rr")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The device `demo` with model `minilm` and adapter `home-intents`, and an environment that knows the port.

    mosquitto's clients read options from files in XDG_CONFIG_HOME, so that the commands need not be changed.
    """
    folder = tmp_path_factory.mktemp("docs")
    for program in PROGRAMS[:2]:
        find(program)
    with Mosquitto(folder) as broker:
        agent = demo_device(folder / "device", broker.port)
        for program in PROGRAMS:
            (folder / program).write_text(f"-p {broker.port}\n")
        with running(agent):
            yield {**os.environ, "XDG_CONFIG_HOME": str(folder), "EDGE_TEST_PORT": str(broker.port)}


def wait_for(condition: Callable[[], object], within_s: float = 15.0) -> None:
    until_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until_s, "it did not come about"
        time.sleep(0.02)


def of(program: str) -> list[list[str]]:
    return [list(command.words) for command in pages.commands(PAGE) if command.words[0] == program]


def test_the_page_shows_both_forms() -> None:
    assert len(of("mosquitto_sub")) == 1
    assert [words[words.index("-V") + 1] for words in of("mosquitto_pub")] == ["5", "311"]


@pytest.mark.parametrize("number", [0, 1], ids=["5", "3.1.1"])
def test_the_command_lines_work_as_they_stand(reader: dict[str, str], number: int, tmp_path: Path) -> None:
    """One terminal listens, the other asks; the retained status of nothing else comes on that topic."""
    heard = tmp_path / "heard"
    with heard.open("wb") as out:
        listener = subprocess.Popen([*of("mosquitto_sub")[0], "-C", "1"], env=reader, stdout=out)
    try:
        time.sleep(0.5)
        asked = subprocess.run(of("mosquitto_pub")[number], env=reader, capture_output=True, timeout=20, check=False)
        assert asked.returncode == 0, asked.stderr
        assert not asked.stderr
        wait_for(lambda: listener.poll() is not None)
    finally:
        listener.kill()
        listener.wait()
    reply = json.loads(heard.read_text())
    assert (reply["id"], reply["status"], reply["model"]) == (str(number + 1), 200, "minilm")
    assert reply["adapter"] == "home-intents"
    assert reply["result"]["label"] in LABELS


def test_mosquitto_rr_asks_in_one_command(reader: dict[str, str]) -> None:
    if shutil.which("mosquitto_rr") is None:
        pytest.skip("mosquitto_rr is not installed")
    body = '{"text": "it is dark in here", "adapter": "home-intents"}'
    command = [
        "mosquitto_rr",
        "-V",
        "5",
        "-q",
        "1",
        "-t",
        "edge/v1/demo/infer/minilm",
        "-e",
        "edge/v1/client/me/reply/1",
    ]
    done = subprocess.run([*command, "-m", body, "-W", "10"], env=reader, capture_output=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == 200


def test_the_python_example_prints_an_answer(reader: dict[str, str], tmp_path: Path) -> None:
    example = next(body for language, body in pages.FENCE.findall(PAGE) if language == "python")
    assert example.count("1883") == 1
    program = tmp_path / "example.py"
    program.write_text(example.replace("1883", reader["EDGE_TEST_PORT"]))
    done = subprocess.run(
        [sys.executable, program], env=reader, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("200 {'label': ")


def test_deleting_a_retained_message_as_the_page_says(reader: dict[str, str]) -> None:
    (remedy,) = [command.words for command in _inline() if "-r" in command.words]
    words = [word if word != "TOPIC" else "edge/v1/demo/infer/minilm" for word in remedy]
    assert subprocess.run(words, env=reader, check=False, timeout=20).returncode == 0


def _inline() -> list[pages.Command]:
    return [pages.Command(tuple(code.split())) for code in pages.inline(PAGE) if code.startswith("mosquitto_pub ")]
