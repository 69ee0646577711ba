"""Settings from defaults < TOML file < environment (`EDGE_AGENT__SECTION__KEY`).

Every problem is collected, so that a file is repaired in one go; each names the file or variable, the key, the value
and what is expected. Secrets are never settings: see `config.secrets`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edge_agent.base.errors import ConfigError, brief
from edge_agent.base.limits import CLIENT_ID_BYTES, MIB
from edge_agent.base.named_file import open_named
from edge_agent.config.fields import FieldSpec, Unfit, specs
from edge_agent.config.settings import Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_PATH = Path("/etc/edge-agent/edge-agent.toml")
"""Read when no file is named and it exists."""

_REMEDIES: Mapping[type[OSError], str] = {
    FileNotFoundError: "`edge-agent check-config --example` prints one to start from",
    PermissionError: "use sudo, or join the group that may read it: sudo usermod -aG edge-agent USER; or name a file "
    "of your own with --config",
    IsADirectoryError: "name the settings file",
}
ENV_PREFIX = "EDGE_AGENT__"
FILE_BYTES = MIB


def load(path: Path | None = None, env: Mapping[str, str] | None = None) -> Settings:
    """The settings of `path` (None: `DEFAULT_PATH` where it exists) and `env` (None: the process's environment).

    Raises ConfigError: the one problem, or all of them in one message.
    """
    settings, problems = check(path, env)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(f"{len(problems)} problems in the settings:{listed}")
    return settings


def default_exists() -> bool:
    """Whether there is a settings file of the service. True as well where this user may not look: reading then says
    so."""
    try:
        DEFAULT_PATH.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def default_readable() -> bool:
    """Whether this user may read the settings of the service, or there are none."""
    try:
        with open_named(DEFAULT_PATH):
            return True
    except PermissionError:
        return False
    except OSError:
        return True


def check(path: Path | None = None, env: Mapping[str, str] | None = None) -> tuple[Settings, tuple[ConfigError, ...]]:
    """Like `load`, but returns every problem, with the settings as far as they are valid."""
    problems: list[ConfigError] = []
    settings = Settings()
    try:
        table = _table(path)
    except ConfigError as problem:
        problems.append(problem)
        table = {}
    where = str(path if path is not None else DEFAULT_PATH)
    folder = (path if path is not None else DEFAULT_PATH).absolute().parent
    settings = _overlaid(settings, table, where, folder, problems)
    settings = _from_environment(settings, os.environ if env is None else env, problems)
    problems.extend(_contradictions(settings))
    return settings, tuple(problems)


STOCK_NAMES = frozenset({"raspberrypi", "jetson", "nano", "nvidia", "ubuntu", "debian", "dietpi", "tegra-ubuntu", "pi"})
"""Host names that every image of a distribution has; two boards of one name throw each other off the broker."""


def device_id(settings: Settings, hostname: str | None = None) -> str:
    """The device's name: the setting, or made from the host name. Raises ConfigError when neither gives one."""
    if settings.device.id is not None:
        return settings.device.id
    host = os.uname().nodename if hostname is None else hostname
    name = re.sub(r"[^a-z0-9]+", "-", host.split(".")[0].lower()).strip("-")[:CLIENT_ID_BYTES]
    if name in ("", "localhost"):
        raise ConfigError(
            f"the host name {host!r} does not name this device", "device.id", "set device.id, or a host name of its own"
        )
    return name


def _table(path: Path | None) -> dict[str, Any]:
    if path is None and not default_exists():
        return {}
    return read_table(DEFAULT_PATH if path is None else path, _REMEDIES)


def read_table(path: Path, remedies: Mapping[type[OSError], str] = MappingProxyType({})) -> dict[str, Any]:
    """A TOML file that a person named. Raises ConfigError, which says what is wrong with it."""
    try:
        with open_named(path) as file:
            data = file.read(FILE_BYTES + 1)
    except OSError as problem:
        remedy = remedies.get(type(problem))
        raise ConfigError(f"cannot be read: {problem.strerror}", str(path), remedy) from problem
    if len(data) > FILE_BYTES:
        raise ConfigError(f"is larger than {FILE_BYTES} bytes; this is no file of settings or of a plan", str(path))
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as problem:
        raise ConfigError(f"is not UTF-8 at byte {problem.start}", str(path), "save it as UTF-8") from problem
    except tomllib.TOMLDecodeError as problem:
        raise ConfigError(f"is not valid TOML: {problem}", str(path)) from problem
    except RecursionError:
        raise ConfigError("is nested too deeply", str(path)) from None


def _overlaid(
    section: Any, table: Mapping[str, Any], where: str, folder: Path, problems: list[ConfigError], prefix: str = ""
) -> Any:
    """`section` overridden by the values of `table`; a value that does not fit is added to `problems` and ignored."""
    kind: type = type(section)
    known = {spec.name: spec for spec in specs(kind)}
    changes: dict[str, Any] = {}
    for key, raw in table.items():
        name = f"{prefix}{key}"
        spec = known.get(key)
        if spec is None:
            problems.append(_unknown(where, name, list(known), prefix))
        elif spec.is_section:
            if isinstance(raw, dict):
                changes[key] = _overlaid(getattr(section, key), raw, where, folder, problems, f"{name}.")
            else:
                problems.append(ConfigError(f"{name} is {brief(raw)}; it is a section, written as [{name}]", where))
        else:
            _take(spec, raw, where, name, folder, changes, problems)
    return replace(section, **changes) if changes else section


def _take(
    spec: FieldSpec,
    raw: Any,
    where: str,
    name: str,
    folder: Path,
    changes: dict[str, Any],
    problems: list[ConfigError],
) -> None:
    try:
        changes[spec.name] = None if raw is None else spec.checked(raw, folder)
    except Unfit as problem:
        problems.append(ConfigError(f"{name} is {_shown(raw)}; expected {problem}", where))


def _from_environment(settings: Settings, env: Mapping[str, str], problems: list[ConfigError]) -> Settings:
    for variable in sorted(env):
        if not variable.startswith(ENV_PREFIX):
            continue
        keys = variable[len(ENV_PREFIX) :].lower().split("__")
        spec = _field_at(keys)
        if spec is None:
            problems.append(_unknown(variable, ".".join(keys), list(_all_keys(Settings)), ""))
            continue
        try:
            raw: Any = spec.from_text(env[variable])
        except Unfit as problem:
            problems.append(ConfigError(f"is {_shown(env[variable])}; expected {problem}", variable))
            continue
        table: dict[str, Any] = {keys[-1]: raw}
        for key in reversed(keys[:-1]):
            table = {key: table}
        settings = _overlaid(settings, table, variable, Path.cwd(), problems)
    return settings


def _field_at(keys: list[str]) -> FieldSpec | None:
    """The field that a list of keys leads to; None when it leads nowhere or to a section."""
    section: type = Settings
    spec: FieldSpec | None = None
    for key in keys:
        if spec is not None:
            if not spec.is_section:
                return None
            section = spec.kind
        spec = next((item for item in specs(section) if item.name == key), None)
        if spec is None:
            return None
    return None if spec is None or spec.is_section else spec


def _all_keys(section: type, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for spec in specs(section):
        keys += _all_keys(spec.kind, f"{prefix}{spec.name}.") if spec.is_section else [f"{prefix}{spec.name}"]
    return keys


def _unknown(where: str, name: str, siblings: list[str], prefix: str) -> ConfigError:
    import difflib  # only on the way out

    asked = name[len(prefix) :]
    near = difflib.get_close_matches(asked, siblings, n=1)
    if near:
        return ConfigError(f"unknown key {brief(name)}", where, f"did you mean {prefix}{near[0]}?")
    elsewhere = [key for key in _all_keys(Settings) if key.rpartition(".")[2] == asked.rpartition(".")[2]]
    if elsewhere:
        return ConfigError(f"unknown key {brief(name)}", where, f"did you mean {elsewhere[0]}?")
    return ConfigError(f"unknown key {brief(name)}", where, f"known here: {', '.join(siblings)}")


def _shown(raw: Any) -> str:
    text = repr(raw)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _contradictions(settings: Settings) -> list[ConfigError]:
    """Settings that contradict each other."""
    mqtt, bounds, tls = settings.mqtt, settings.limits, settings.mqtt.tls
    found = [
        (
            not tls.enabled and any((tls.ca, tls.cert, tls.key)),
            "mqtt.tls names certificates, but mqtt.tls.enabled is false",
            "set mqtt.tls.enabled = true, or remove them",
        ),
        (
            (tls.cert is None) != (tls.key is None),
            "mqtt.tls.cert and mqtt.tls.key belong together; one of them is missing",
            "name both files, or neither",
        ),
        (
            mqtt.password_file is not None and mqtt.username is None,
            "mqtt.password_file is set without mqtt.username",
            "set the user name",
        ),
        (
            bounds.text_bytes > bounds.message_bytes,
            f"limits.text_bytes ({bounds.text_bytes}) is larger than limits.message_bytes ({bounds.message_bytes})",
            "a text must fit into a message",
        ),
        (
            bounds.deadline_default_s > bounds.deadline_max_s,
            f"limits.deadline_default_s ({bounds.deadline_default_s:g}) is longer than limits.deadline_max_s"
            f" ({bounds.deadline_max_s:g})",
            "lower the default",
        ),
        (
            "all" in settings.models.resident and len(settings.models.resident) > 1,
            'models.resident holds "all" beside names',
            'write ["all"], or names only',
        ),
    ]
    return [ConfigError(what, "settings", remedy) for wrong, what, remedy in found if wrong]


def as_table(section: Any) -> dict[str, Any]:
    """Settings as plain values for `--json` and for the `info` topic; paths as text, tuples as lists."""
    table: dict[str, Any] = {}
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            value = as_table(value)
        elif isinstance(value, Path):
            value = str(value)
        elif isinstance(value, tuple):
            value = list(value)
        table[item.name] = value
    return table
