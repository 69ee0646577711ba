"""Secrets come from files only: the setting's, else the systemd credential."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.base.errors import ConfigError
from edge_agent.config.secrets import credential, mqtt_password, tls_files
from edge_agent.config.settings import MqttSettings, Settings, TlsSettings


def with_password(path: Path | None) -> Settings:
    return Settings(mqtt=MqttSettings(username="u", password_file=path))


def test_without_anything_there_is_no_password() -> None:
    assert mqtt_password(Settings(), {}) is None


def test_the_first_line_of_the_file_is_the_password(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("s3cret \nrest\n")
    assert mqtt_password(with_password(path), {}) == "s3cret "


def test_the_credential_serves_where_no_file_is_named(tmp_path: Path) -> None:
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert mqtt_password(with_password(None), env) is None
    (tmp_path / "mqtt-password").write_text("\n")
    assert mqtt_password(with_password(None), env) is None, "the unit's blank fallback is no password"
    (tmp_path / "mqtt-password").write_text("from-systemd\n")
    assert mqtt_password(with_password(None), env) == "from-systemd"
    named = tmp_path / "named"
    named.write_text("from-file")
    assert mqtt_password(with_password(named), env) == "from-file"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read: No such file"),
        (b"", "which is empty"),
        (b"\n\n", "which is empty"),
        (b"\xff", "which is not a text"),
        (b"x" * 5000, "larger than 4096 bytes"),
    ],
)
def test_a_file_that_holds_no_password_is_explained(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as caught:
        mqtt_password(with_password(path), {})
    assert str(path) in str(caught.value)
    assert "x" * 20 not in str(caught.value), "a secret is never repeated"


def test_tls_files_from_settings_go_before_credentials(tmp_path: Path) -> None:
    for name in ("mqtt-ca", "mqtt-cert", "mqtt-key"):
        (tmp_path / name).write_text("pem")
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    (tmp_path / "mqtt-password").write_text("")
    assert mqtt_password(Settings(), env) is None
    found = tls_files(Settings(mqtt=MqttSettings(tls=TlsSettings(enabled=True, ca=Path("/etc/ca.pem")))), env)
    assert found == (Path("/etc/ca.pem"), tmp_path / "mqtt-cert", tmp_path / "mqtt-key")
    assert tls_files(Settings(), {}) == (None, None, None)


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mqtt-cert").write_text("pem")
    with pytest.raises(ConfigError, match="the credential mqtt-key is missing"):
        tls_files(Settings(), {"CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_no_credential_is_no_error(tmp_path: Path) -> None:
    assert credential("mqtt-ca", {}) is None
    (tmp_path / "mqtt-ca").write_text("\n")
    assert credential("mqtt-ca", {"CREDENTIALS_DIRECTORY": str(tmp_path)}) is None, "the unit's fallback is no file"
    assert credential("mqtt-ca", {"CREDENTIALS_DIRECTORY": "/nonexistent"}) is None
