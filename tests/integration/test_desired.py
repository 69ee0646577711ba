"""The desired state with a real broker, a real daemon and real packages: taken, applied, refused, over kills."""

from __future__ import annotations

import asyncio
import functools
import http.server
import json
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

from edge_agent.store.inbox_packages import package_digest
from tests.support.agents import AgentProcess, echo_adapter_package, echo_package, running
from tests.support.desk import Desk, cli, desk
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import until

WAIT_S = 60.0


def say(table: Desk, version: int, *models: dict[str, Any], within_s: float = 600.0) -> None:
    """Publish a desired state, retained."""
    body = {"version": version, "models": list(models), "policy": {"within_s": within_s}}
    table.send("desired", json.dumps(body).encode(), None, retain=True, response_topic=None, expiry_s=None)


def reported(table: Desk) -> dict[str, Any]:
    """The newest `reported`."""
    return (table.bodies("reported") or [{"version": None, "state": None, "items": []}])[-1]


async def ended(table: Desk, version: int) -> dict[str, Any]:
    """`reported` of this version, once nothing is pending."""
    await until(lambda: (now := reported(table))["version"] == version and now["state"] != "pending", WAIT_S)
    return reported(table)


def test_a_device_reaches_its_desired_state_and_says_so(tmp_path: Path) -> None:
    base, newer = echo_package(tmp_path), echo_package(tmp_path, counter=2)
    adapter = echo_adapter_package(tmp_path, base, "one")
    first, second, one = (package_digest(path) for path in (base, newer, adapter))
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        inbox = agent.folder / "state" / "inbox"

        async def run() -> None:
            async with desk(broker) as table:
                say(table, 1, {"model": "echo", "package": first, "adapters": [{"adapter": "one", "package": one}]})
                with running(agent):
                    await until(lambda: reported(table)["version"] == 1, WAIT_S)
                    for path in (base, adapter):
                        shutil.copy(path, inbox)
                    done = await ended(table, 1)
                    assert done["state"] == "applied", done
                    assert {(item["model"], item["adapter"], item["package"]) for item in done["installed"]} == {
                        ("echo", None, first),
                        ("echo", "one", one),
                    }
                    assert not list(inbox.iterdir()), "what is installed leaves the folder"
                    assert (await table.ask("q1", {"text": "x", "adapter": "one"}))["status"] == 200
                    shutil.copy(newer, inbox)
                    say(table, 2, {"model": "echo", "package": second}, {"model": "ghost", "package": None})
                    assert (await ended(table, 2))["state"] == "applied"
                    say(table, 3, {"model": "echo", "package": first})
                    back = await ended(table, 3)
                    assert back["state"] == "applied", "the version before returns without a package"
                    agent.stop(signal.SIGKILL)
                    assert cli("remove", "echo", "--config", agent.config).returncode == 0
                    agent.start()
                    await until(lambda: reported(table)["state"] == "rolled-back", WAIT_S)
                    assert "it holds nothing that can run now" in reported(table)["items"][0]["reason"]

        asyncio.run(run())


def test_a_package_is_fetched_from_the_source_that_desired_names(tmp_path: Path) -> None:
    package = echo_package(tmp_path / "served")
    digest = package_digest(package)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(package.parent))
    with Mosquitto(tmp_path) as broker, http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        agent = AgentProcess(tmp_path / "device", broker.port)
        sources = [{"package": digest, "url": f"{url}/gone.tar"}, {"package": digest, "url": f"{url}/{package.name}"}]

        async def run() -> None:
            async with desk(broker) as table:
                with running(agent):
                    body = {"version": 1, "models": [{"model": "echo", "package": digest}], "sources": sources}
                    table.send(
                        "desired", json.dumps(body).encode(), None, retain=True, response_topic=None, expiry_s=None
                    )
                    await until(lambda: (reported(table)["items"] or [{"cause": 0}])[0]["cause"] == "source", WAIT_S)
                    assert "404" in reported(table)["items"][0]["reason"], "the first one is away; the next is tried"
                    done = await ended(table, 1)
                    assert (done["state"], done["items"][0]["attempts"]) == ("applied", 2)
                    assert (await table.ask("q1", {"text": "x"}))["status"] == 200

        try:
            asyncio.run(run())
        finally:
            server.shutdown()
            thread.join()


def test_a_package_on_a_stick_is_installed_and_stays_there(tmp_path: Path) -> None:
    package = echo_package(tmp_path)
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        text = agent.config.read_text()
        agent.config.write_text(text.replace("[store]\n", f'[store]\nsticks_dir = "{tmp_path / "media"}"\n'))
        stick = tmp_path / "media" / "usb"

        async def run() -> None:
            async with desk(broker) as table:
                say(table, 1, {"model": "echo", "package": package_digest(package)})
                with running(agent):
                    await until(lambda: reported(table)["version"] == 1, WAIT_S)
                    stick.mkdir(parents=True)
                    shutil.copy(package, stick / "any-name.tar")
                    assert (await ended(table, 1))["state"] == "applied"
                    assert [path.name for path in stick.iterdir()] == ["any-name.tar"]

        asyncio.run(run())


def test_a_forged_file_is_passed_by_and_a_killed_daemon_goes_on(tmp_path: Path) -> None:
    good = echo_package(tmp_path)
    bad = tmp_path / "bad.tar"
    bad.write_bytes(good.read_bytes().replace(b"echo1[]echo1[]", b"echo1[]Xcho1[]", 1))  # in the weights
    digest = package_digest(good)
    assert package_digest(bad) == digest, "it claims to be the good one"
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        inbox = agent.folder / "state" / "inbox"

        async def run() -> None:
            async with desk(broker) as table:
                with running(agent):
                    shutil.copy(bad, inbox)
                    say(table, 1, {"model": "echo", "package": digest})
                    await until(lambda: (reported(table)["items"] or [{"cause": 0}])[0]["cause"] == "source", WAIT_S)
                    assert reported(table)["state"] == "pending", "another file may be the package"
                    agent.stop(signal.SIGKILL)
                    shutil.copy(good, inbox / "a-good.tar")
                    agent.start()
                    assert (await ended(table, 1))["state"] == "applied"
                    assert (await table.ask("q1", {"text": "x"}))["status"] == 200

        asyncio.run(run())
