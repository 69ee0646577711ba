"""A real daemon on a board: a clock that was never set, an upgrade underneath it, root's commands on its folder."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import edge_agent
from edge_agent.lifecycle.running_code import code_stamp
from edge_agent.store.state_folder import running_code
from tests.support.agents import AgentProcess, echo_package, running
from tests.support.desk import desk
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import until

DAY_S = 86_400.0

CLOCK = """
import os, time
real = time.time
began = real()
# The clock stands in 1970 at the start of each process and is set when the file is there, as by a time service.
time.time = lambda: real() if os.path.exists({flag!r}) else 60.0 + real() - began
"""


def test_a_clock_in_1970_refuses_nothing_and_harms_nothing_when_it_is_set(tmp_path: Path) -> None:
    """A signed package is installed by an order, requests are answered, and 56 years more at once change no deadline
    and no duration."""
    flag, site = tmp_path / "set", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(CLOCK.format(flag=str(flag)))
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        with running(agent, PYTHONPATH=path):
            shutil.copy(echo_package(tmp_path), agent.folder / "state" / "inbox")

            async def run() -> None:
                async with desk(broker) as table:
                    done = await table.order("i1", "install", {"package": "echo-1.tar"})
                    assert done["status"] == 200, done
                    await table.event("installed")
                    assert (await table.ask("q1", {"text": "x"}))["status"] == 200
                    await until(lambda: table.bodies("telemetry"))
                    assert 0 < table.bodies("telemetry")[-1]["ts"] < DAY_S
                    flag.touch()
                    assert (await table.ask("q2", {"text": "x"}))["status"] == 200
                    await until(lambda: table.bodies("telemetry")[-1]["ts"] > time.time() - DAY_S)
                    answer = await table.ask("q3", {"text": "x"})
                    assert (answer["status"], answer["timing"]["total_ms"] < 60_000) == (200, True)
                    assert table.bodies("telemetry")[-1]["uptime_s"] < DAY_S

            asyncio.run(run())


def test_an_upgrade_under_a_running_daemon_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon runs from a copy of the package, in which a file changes as by a newer wheel."""
    package = tmp_path / "site" / "edge_agent"
    shutil.copytree(Path(edge_agent.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    agent = AgentProcess(tmp_path / "device", 1)
    monkeypatch.chdir(package.parent)  # `-m` looks there first
    with running(agent):
        state = agent.folder / "state"
        assert running_code(state) == code_stamp(package)
        with (package / "agent" / "loop.py").open("a") as module:
            module.write("# newer\n")
        assert running_code(state) != code_stamp(package)
    assert running_code(state) is None, "no daemon"


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A state folder that another user owns, where every user may look (pytest's own folders are closed)."""
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT HERE: what root's commands leave behind was NOT tried")
    folder = Path(tempfile.mkdtemp(prefix="edge-owner-"))
    folder.chmod(0o755)
    state = folder / "state"
    state.mkdir()
    nobody = pwd.getpwnam("nobody")
    os.chown(state, nobody.pw_uid, nobody.pw_gid)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("verb", ["run", "models", "install", "remove"])
def test_root_s_commands_leave_no_file_of_root_in_a_fresh_state_folder(theirs: Path, verb: str) -> None:
    """Where the interpreter is closed to the owner (a Python in root's home) the command says so and does nothing."""
    settings = theirs / "edge-agent.toml"
    settings.write_text(
        '[device]\nid = "dev"\n[mqtt]\nhost = "127.0.0.1"\nport = 1\n[worker]\nbackends = ["echo"]\n'
        f'[store]\nstate_dir = "{theirs / "state"}"\nallow_unsigned = true\ntrust_root = "{theirs / "none"}"\n'
    )
    package = echo_package(theirs / "packages")
    more = {"install": [str(package)], "remove": ["echo"]}.get(verb, [])
    command = [sys.executable, "-m", "edge_agent", verb, "--config", str(settings), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = process.communicate(timeout=8.0 if verb == "run" else 60.0)[0]
    except subprocess.TimeoutExpired:
        process.terminate()
        said = process.communicate(timeout=20.0)[0]
    assert "Traceback" not in said, said
    owners = {path.stat().st_uid for path in (theirs / "state").rglob("*")}
    assert 0 not in owners, said
    if verb in ("run", "install"):
        nobody = pwd.getpwnam("nobody").pw_uid
        assert owners == {nobody} or "cannot be used by nobody" in said, said
