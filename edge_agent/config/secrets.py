"""Secrets by file: a path from the settings, else a systemd credential, else none. Never a setting, never a log line.

A unit hands credentials over in the folder `$CREDENTIALS_DIRECTORY` (systemd 247 and later); older ones use files. A
file of its own because nothing else may read a secret, and the settings never hold one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from edge_agent.base.errors import ConfigError
from edge_agent.base.limits import KIB
from edge_agent.base.named_file import open_named
from edge_agent.config.settings import Settings

SECRET_BYTES = 4 * KIB
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
SERVICE_CREDENTIALS = Path("/etc/edge-agent/credentials")
"""The folder that the unit loads the service's credentials from; root's alone."""


class TlsFiles(NamedTuple):
    """The files of a TLS connection; None where the system's authorities or no client certificate are used."""

    ca: Path | None
    cert: Path | None
    key: Path | None


def mqtt_password(settings: Settings, env: Mapping[str, str] | None = None) -> str | None:
    """The password for the broker, or None. Raises ConfigError when a file that should hold it cannot be read."""
    return _secret(settings.mqtt.password_file, "mqtt.password_file", "mqtt-password", env)


def tls_files(settings: Settings, env: Mapping[str, str] | None = None) -> TlsFiles:
    """The files for the TLS connection, each from the settings or the credential `mqtt-ca`, `mqtt-cert`, `mqtt-key`."""
    tls = settings.mqtt.tls
    cert = tls.cert or credential("mqtt-cert", env)
    key = tls.key or credential("mqtt-key", env)
    if (cert is None) != (key is None):
        missing = "mqtt-key" if key is None else "mqtt-cert"
        raise ConfigError(f"the credential {missing} is missing", "mqtt.tls", "a certificate needs its private key")
    return TlsFiles(tls.ca or credential("mqtt-ca", env), cert, key)


def service_environment(env: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """The environment in which a command of an operator finds the service's secrets: those that systemd hands over, or,
    for who may read it, the folder that systemd takes them from."""
    env = os.environ if env is None else env
    return env if env.get(CREDENTIALS_VARIABLE) else {**env, CREDENTIALS_VARIABLE: str(SERVICE_CREDENTIALS)}


def service_secrets_hidden() -> bool:
    """Whether there may be secrets of the service that this user may not read."""
    try:
        os.listdir(SERVICE_CREDENTIALS)  # noqa: PTH208 - only whether it may be read counts
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def credential(name: str, env: Mapping[str, str] | None = None) -> Path | None:
    """The file of a systemd credential, or None where there is none or it is blank (the unit's fallback)."""
    folder = (os.environ if env is None else env).get(CREDENTIALS_VARIABLE)
    if not folder:
        return None
    path = Path(folder) / name
    try:
        with path.open("rb") as file:
            return path if file.read(64).strip() else None
    except OSError:
        return None


def _secret(path: Path | None, key: str, name: str, env: Mapping[str, str] | None) -> str | None:
    found = path if path is not None else credential(name, env)
    if found is None:
        return None
    try:
        with open_named(found) as file:
            data = file.read(SECRET_BYTES + 1)
        text = data.decode("utf-8").splitlines()[0] if data.strip() else ""
    except OSError as problem:
        remedy = "make it readable for the service's user: chown root:edge-agent FILE; chmod 640 FILE"
        raise ConfigError(f"{key} names {found}, which cannot be read: {problem.strerror}", None, remedy) from problem
    except UnicodeDecodeError:
        raise ConfigError(f"{key} names {found}, which is not a text", None, "write the password as UTF-8") from None
    if len(data) > SECRET_BYTES:
        raise ConfigError(f"{key} names {found}, which is larger than {SECRET_BYTES} bytes", None, "name another file")
    if text == "" and path is not None:
        raise ConfigError(f"{key} names {found}, which is empty", None, "write the password into its first line")
    return text or None
