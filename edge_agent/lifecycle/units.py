"""The files that make the agent a system service: found and filled in. One source: the folder `systemd` of the project.

A wheel carries that folder as `edge_agent/lifecycle/systemd`; a checkout has it at its top.
"""

from __future__ import annotations

import re
from pathlib import Path

from edge_agent.base.errors import EdgeError, UsageError

UNIT = "edge-agent.service"
HIDDEN_FROM_SERVICE = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - named, not written to
"""What the unit's ProtectHome and PrivateTmp take away: an interpreter there cannot be started."""

_EXEC = re.compile(r"^ExecStart=\S+(?P<rest> .*)$", re.MULTILINE)


def units_dir() -> Path:
    """The folder with the unit and what belongs to it. Raises EdgeError when this installation lacks it."""
    packaged = Path(__file__).parent / "systemd"
    checkout = Path(__file__).parents[2] / "systemd"
    for folder in (packaged, checkout):
        if (folder / UNIT).is_file():
            return folder
    raise EdgeError(
        "the unit files are not part of this installation", str(packaged), "install edge-agent from its wheel"
    )


def drop_in_names() -> tuple[str, ...]:
    """The drop-ins that may be chosen."""
    return tuple(sorted(path.stem for path in (units_dir() / "drop-ins").glob("*.conf")))


def read_unit_file(name: str) -> str:
    """The text of a file of the folder, by its name there ('drop-ins/jetson.conf')."""
    return (units_dir() / name).read_text(encoding="utf-8")


def rendered_unit(python: str) -> str:
    """The unit with the interpreter that has edge-agent installed. Raises UsageError for an unfit path."""
    if not re.fullmatch(r"/[A-Za-z0-9_./+@-]+", python):
        raise UsageError(
            f"the interpreter's path {python!r} is not absolute or has characters that a unit does not take",
            None,
            "name one with --python, for example /opt/edge-agent/bin/python",
        )
    text, count = _EXEC.subn(rf"ExecStart={python}\g<rest>", read_unit_file(UNIT))
    if count != 1:
        raise EdgeError("has no single ExecStart line", str(units_dir() / UNIT), "reinstall edge-agent")
    return text


def check_interpreter(python: str) -> None:
    """Refuse an interpreter that the service's user cannot see. Raises UsageError with what to do."""
    for path in (Path(python), Path(python).resolve()):
        hidden = next((folder for folder in HIDDEN_FROM_SERVICE if path.is_relative_to(folder)), None)
        if hidden is not None:
            raise UsageError(
                f"the interpreter {path} lies under {hidden}, which the service cannot see",
                None,
                "install into /opt: python3 -m venv --system-site-packages /opt/edge-agent && "
                "install edge-agent with its extra pi, then /opt/edge-agent/bin/edge-agent service install",
            )
