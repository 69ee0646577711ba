"""The pages of docs/tutorials, line by line in a shell, each to its answer; that of who trains is in test_build.

Packages of echo models stand for those that `make demo` builds.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support import pages, tutorials
from tests.support.agents import LABELS, demo_device, demo_packages, running
from tests.support.mosquitto import Mosquitto
from tests.support.packages import keys
from tests.support.tutorials import Terminal, block, lines


def test_each_of_three_people_has_a_page() -> None:
    index = (tutorials.FOLDER.parent / "index.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in tutorials.FOLDER.iterdir()) == ["ask.md", "flash.md", "train.md"]
    assert all(f"](tutorials/{path.name})" in index for path in tutorials.FOLDER.iterdir())


def test_who_asks_gets_answers_in_every_way(tmp_path: Path) -> None:
    page = tutorials.page("ask")
    (served, *_) = pages.commands(page)
    assert served.words == ("edge-agent", "demo", "--stay", "--port", "1883")
    with Mosquitto(tmp_path) as broker, running(demo_device(tmp_path / "device", broker.port)):
        (tmp_path / "mosquitto_rr").write_text(f"-p {broker.port}\n")
        here = {"EDGE_AGENT__MQTT__PORT": str(broker.port), "XDG_CONFIG_HOME": str(tmp_path)}
        terminal = Terminal(tmp_path, **here)
        (tmp_path / "ask.py").write_text(block(page, "python").replace('"localhost"', f'"127.0.0.1:{broker.port}"'))
        one, two, whole, by_mqtt, by_python = (terminal.run(*line) for line in lines(page))
    assert one.split()[0] in LABELS
    assert [line.split()[0] in LABELS for line in two.splitlines()] == [True, True, False]
    assert '"status":200' in whole.replace(" ", "") and '"status":200' in by_mqtt.replace(" ", "")
    assert len(by_python.splitlines()) == 4 and "] True" in by_python


def test_who_flashes_gets_a_board_that_answers(tmp_path: Path) -> None:
    page = tutorials.page("flash")
    named = {"base": "minilm-0123abcd.tar", "adapter": "home-intents-v1.tar"}
    for name, package in demo_packages(tmp_path / "built").items():
        shutil.copy(package, tmp_path / named[name])
    shutil.copy(keys().root_file, tmp_path / "root.json")
    (tmp_path / "edge-agent.toml").write_text(block(page, "toml"))
    check, doctor, base, adapter, models, run, ask = lines(page)
    with Mosquitto(tmp_path) as broker:
        # The runtime of the stand-ins, and nothing held back on a machine that is in use.
        own = {"EDGE_AGENT__WORKER__BACKENDS": "echo", "EDGE_AGENT__STORE__RESERVE_BYTES": "0"}
        terminal = Terminal(tmp_path, EDGE_AGENT__MQTT__PORT=str(broker.port), **own)
        for line in (check, doctor, base, adapter, models):
            terminal.run(*line)
        with terminal.meanwhile(run[0], "connected"):
            assert terminal.run(*ask).split()[0] in LABELS
