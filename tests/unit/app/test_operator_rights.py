"""What an operator may read decides what a command uses: settings and secrets of the service, or neither."""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.app import ask, wiring
from edge_agent.cli import main
from edge_agent.config import load, secrets
from edge_agent.config.settings import Settings
from edge_agent.lifecycle import doctor_facts, service_user


def asked(**given: object) -> argparse.Namespace:
    known = {"config": None, "host": None, "port": None, "protocol": None, "device": None, "model": "m"}
    return argparse.Namespace(**(known | given))


def test_who_may_not_read_the_settings_asks_without_them_and_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ask, "default_readable", lambda: False)
    place = ask.target(asked(host="broker.local", device="pi5"))
    assert (place.options.host, place.device) == ("broker.local", "pi5")
    assert capsys.readouterr().err == "", "nothing is missing"
    ask.target(asked(host="broker.local"))
    said = capsys.readouterr().err
    assert "may not be read by this user" in said
    assert "without --device" in said


def test_settings_that_may_not_be_read_are_a_sentence_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = tmp_path / "edge-agent.toml"

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(load, "DEFAULT_PATH", closed)
    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(load, "open_named", refuse)
    assert load.default_exists()
    assert not load.default_readable()
    assert main(["models"]) == 2
    said = capsys.readouterr().err
    assert "Permission denied" in said
    assert "sudo usermod -aG edge-agent" in said


def test_a_command_finds_the_secrets_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mqtt-password").write_text("secret\n")
    monkeypatch.setattr(secrets, "SERVICE_CREDENTIALS", tmp_path)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert secrets.mqtt_password(Settings(), wiring.operator_environment(None)) == "secret"
    assert secrets.mqtt_password(Settings(), wiring.operator_environment(load.DEFAULT_PATH)) == "secret"
    other = wiring.operator_environment(tmp_path / "other.toml")
    assert secrets.mqtt_password(Settings(), other) is None, "another broker does not get it"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "given"))
    assert secrets.mqtt_password(Settings(), wiring.operator_environment(None)) is None, "systemd's come first"


def test_a_broker_of_the_command_line_does_not_get_the_service_s_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mqtt-password").write_text("secret\n")
    monkeypatch.setattr(secrets, "SERVICE_CREDENTIALS", tmp_path)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setenv("EDGE_AGENT__MQTT__USERNAME", "dev")
    assert ask.target(asked(device="d")).options.password == "secret"
    assert ask.target(asked(device="d", host="evil.example")).options.password is None


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user reaches: pytest's own are closed."""
    folder = Path(tempfile.mkdtemp(prefix="edge-rights-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_root_is_told_what_the_service_cannot_read(reachable: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT HERE: what another user may read was NOT tried")
    closed, readable = reachable / "closed", reachable / "open"
    for path, mode in ((closed, 0o600), (readable, 0o644)):
        path.write_text("")
        path.chmod(mode)
    paths = {"one": closed, "two": readable, "three": reachable / "missing"}
    found = service_user.unreadable(paths, "nobody")
    assert list(found) == ["one"]
    assert "cannot be read by the service's user nobody" in found["one"]
    assert service_user.unreadable(paths, "no-such-user") == {}
    assert os.geteuid() == 0, "this process kept its rights"


def test_check_config_and_doctor_say_what_the_service_cannot_read(
    reachable: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT HERE: what another user may read was NOT tried")
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(service_user.pwd, "getpwnam", lambda _name: nobody)
    settings, root = reachable / "edge-agent.toml", reachable / "root.json"
    settings.write_text(f'[store]\nstate_dir = "{reachable / "state"}"\ntrust_root = "{root}"\n')
    root.write_text("{}")
    for closed, words in ((settings, "the settings"), (root, "store.trust_root")):
        settings.chmod(0o644), root.chmod(0o644)
        assert main(["check-config", str(settings)]) == 0
        closed.chmod(0o600)
        capsys.readouterr()
        assert main(["check-config", str(settings)]) == 1
        said = capsys.readouterr().err
        assert f"{words}: {closed} cannot be read by the service's user" in said
        assert f"chmod 640 {closed}" in said
        found = doctor_facts._hidden(load.load(settings), str(settings))
        assert [path for path, _ in found] == [closed]
