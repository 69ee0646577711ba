"""`edge-agent fleet` with a real mosquitto and devices that are messages."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edge_agent.app import fleet_rollout
from edge_agent.cli import main
from edge_agent.fleet.rollout_driver import CLAIM_S
from tests.support import told_devices as told
from tests.support.fleet_devices import BAD, GOOD, OLD, Command, plan_words, simulated
from tests.support.mosquitto import Mosquitto, find
from tests.support.mqtt import until


def fleet(capsys: pytest.CaptureFixture[str], broker: Mosquitto, *words: str) -> tuple[int, str, str]:
    """A verb of `edge-agent fleet` in this process: exit code, output, errors."""
    code = main(["fleet", *words, "--host", "127.0.0.1", "--port", str(broker.port)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_status_is_one_table_from_what_the_broker_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Mosquitto(tmp_path) as broker, told.Teller(broker.port) as teller:
        teller.say("pi-1", "status", told.status())
        teller.say("pi-2", "status", told.status("degraded", "too hot"))
        teller.say("old", "status", told.status(ts=1_700_000_000.0))
        teller.say("odd", "status", {"state": 1})
        code, out, _ = fleet(capsys, broker, "status", "--seconds", "1")
        assert code == 0
        shown = [line.split()[:2] for line in out.splitlines() if not line.startswith("    ")]
        assert shown[1:4] == [["old", "lost"], ["pi-2", "degraded"], ["pi-1", "online"]]
        assert (
            out.splitlines()[-1] == "3 devices: 1 degraded, 1 lost, 1 online; 2 in trouble; 1 message could not be read"
        )
        _, text, _ = fleet(capsys, broker, "status", "pi-*", "--trouble", "--json", "--seconds", "1")
        body: dict[str, Any] = json.loads(text)
        assert [(one["device"], one["trouble"]) for one in body["devices"]] == [("pi-2", ["too hot"])]
        assert body["unreadable_messages"] == 0, "of the devices that were asked for"


def test_status_says_where_nothing_was_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Mosquitto(tmp_path) as broker:
        code, _, err = fleet(capsys, broker, "status", "--seconds", "1")
        assert code == 1
        assert "no device was heard" in err


def retained(broker: Mosquitto, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `--status --json` says."""
    code, out, _ = fleet(capsys, broker, "rollout", "--status", "--json")
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_bad_release_stops_in_its_first_wave_and_its_devices_hold_what_they_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(broker: Mosquitto) -> None:
        async with simulated(broker, 12, 0.1) as devices:
            with told.Teller(broker.port) as teller:  # what else a desired state names stays
                before = {"version": 5, "models": [{"model": "m", "package": OLD}, {"model": "x", "package": GOOD}]}
                for device in devices:
                    teller.say(device.name, "desired", json.dumps(before).encode(), retain=True)
            await until(lambda: all(device.version == 5 for device in devices))
            await asyncio.sleep(0.5)
            command = Command(broker, plan_words(BAD, "10%,100%"))
            assert await command.run() == 1
            assert "stopped: 1 of 2 devices failed, 0 may" in command.text or "2 of 2 devices failed" in command.text
            assert "returned: 2 hold what they had" in command.text, command.text
            assert [device.package for device in devices] == [OLD] * 12
            assert sorted(device.version or 0 for device in devices) == [5] * 10 + [7] * 2
            held = await asyncio.to_thread(desired_of, broker, [d.name for d in devices if d.version == 7])
            assert [one["models"] for one in held] == [before["models"]] * 2

    with Mosquitto(tmp_path) as broker:
        asyncio.run(run(broker))
        state = retained(broker, capsys)
        assert (state["phase"], state["claim"]) == ("returned", None)
        assert "its golden probes fail" in state["reason"]
        code, _, err = fleet(capsys, broker, "rollout", "--resume")
        assert (code, "has ended: returned" in err) == (2, True)


def desired_of(broker: Mosquitto, names: list[str]) -> list[dict[str, Any]]:
    """What the broker retains as the desired state of these devices."""
    command = [find("mosquitto_sub"), "-p", str(broker.port), "-C", str(len(names)), "-W", "10"]
    for name in names:
        command += ["-t", f"edge/v1/{name}/desired"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=30)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_rollout_that_was_killed_is_taken_up_and_one_at_a_time_carries_it_out(tmp_path: Path) -> None:
    async def run(broker: Mosquitto) -> None:
        async with simulated(broker, 10, 0.3) as devices:
            killed = Command(broker, plan_words(GOOD, "10%,50%,100%", 0.5))
            assert await killed.run(until="wave 2 of 3") == -9
            assert any(device.package == OLD for device in devices)
            resumed = Command(broker, ["--resume"])
            work = asyncio.create_task(resumed.run())
            await until(lambda: "goes on" in resumed.text)
            second = Command(broker, ["--resume"])
            assert await second.run() in (1, 2)  # it is at work, or has ended meanwhile
            assert await work == 0, resumed.text
            assert [device.package for device in devices] == [GOOD] * 10
            assert {device.version for device in devices} == {1}
            back = Command(broker, ["--abort"])
            assert await back.run() == 0, back.text
            assert "returned: 10 hold what they had" in back.text
            assert [device.package for device in devices] == [OLD] * 10

    with Mosquitto(tmp_path) as broker:
        asyncio.run(run(broker))


def test_an_operators_account_needs_what_the_page_names_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text(encoding="utf-8")
    listed = page.split("```\nuser rollout\n")[1].split("```")[0]
    (tmp_path / "password").write_text("pw", encoding="utf-8")
    (tmp_path / "password").chmod(0o600)
    config = tmp_path / "operator.toml"
    config.write_text(f'[mqtt]\nusername = "rollout"\npassword_file = "{tmp_path}/password"\n', encoding="utf-8")
    words = ["rollout", *plan_words(GOOD, "100%"), "--config", str(config)]

    async def run(broker: Mosquitto) -> tuple[int, str]:
        async with simulated(broker, 2, 0.1, username="boards", password="pw"):
            code, out, err = await asyncio.to_thread(fleet, capsys, broker, *words)
            return code, out + err

    boards = "user boards\ntopic readwrite edge/v1/#\n"
    users = {"rollout": "pw", "boards": "pw"}
    with Mosquitto(tmp_path, users=users, acl=f"{boards}user rollout\n{listed}") as broker:
        code, said = asyncio.run(run(broker))
        assert code == 0, said
        assert "done: 2 have applied it" in said
    fewer = listed.replace("topic readwrite edge/v1/group/rollout/#", "topic read edge/v1/group/rollout/#")
    with Mosquitto(tmp_path / "fewer", users=users, acl=f"{boards}user rollout\n{fewer}") as broker:
        fleet_rollout.CLAIM_S = 2.0
        try:
            code, said = asyncio.run(run(broker))
        finally:
            fleet_rollout.CLAIM_S = CLAIM_S
        assert code == 2
        assert "the broker does not show what is published on edge/v1/group/rollout/state" in said


def test_a_plan_that_cannot_be_followed_is_refused_with_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.toml"
    wrong = {
        'waves = ["5%"]': "missing required field `models`",
        f'waves = ["0%"]\n[[models]]\nmodel = "m"\npackage = "{GOOD}"': "waves[0] is '0%'",
        '[[models]]\nmodel = "m"\npackage = "sha256:1"': "models[0].package",
        f'hours = 3\n[[models]]\nmodel = "m"\npackage = "{GOOD}"': "unknown field `hours`",
        "models = 3": "Expected `array`, got `int`",
        "models = [": "is not valid TOML",
    }
    for text, said in wrong.items():
        plan.write_text(text, encoding="utf-8")
        assert main(["fleet", "rollout", str(plan), "--host", "127.0.0.1", "--port", "1"]) == 2
        assert said in capsys.readouterr().err, text
    with Mosquitto(tmp_path) as broker:
        for words, said in (
            (["--give", f"m={GOOD}", "--devices", "nobody-*"], "fits no device that was heard"),
            (["--resume"], "the broker holds no rollout"),
        ):
            code, _, err = fleet(capsys, broker, "rollout", *words)
            assert (code, said in err) == (2, True), err
