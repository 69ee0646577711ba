"""Install a build's packages with the device's own program, in a store that is thrown away.

A package that cannot be installed here is not handed out. `edge-agent install` runs as a child of this interpreter, so
what is tried is what a device does: signature, counter, board, every variant, golden probes. The base comes before the
adapter that needs it. A file of its own because it is a step of every kind of recipe and starts other programs.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_agent.base.child_python import child_environment, module_command
from edge_agent.base.errors import EdgeError

_TIMEOUT_S = 3600.0
_CONFIG = """
[device]
id = "build"
[mqtt]
host = "127.0.0.1"
[store]
state_dir = {state}
trust_root = {root}
reserve_bytes = 0
[worker]
backends = {backends}
"""


def try_packages(packages: Sequence[tuple[str, Path]], trust_root: Path, backends: Sequence[str]) -> Mapping[str, Any]:
    """Install `packages` (name, file) in order into a scratch store with `backends`; what the device said, by name.

    Raises EdgeError with the device's own words for the first that is refused.
    """
    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="edge-forge-trial-") as scratch:
        folder = Path(scratch)
        config = folder / "edge-agent.toml"
        values = {"state": str(folder / "state"), "root": str(trust_root.resolve()), "backends": list(backends)}
        # Strings and lists of strings are the same in JSON and TOML.
        config.write_text(
            _CONFIG.format(**{name: json.dumps(value) for name, value in values.items()}), encoding="utf-8"
        )
        for name, path in packages:
            said[name] = _install(name, path, config, folder)
    return said


def _install(name: str, path: Path, config: Path, folder: Path) -> list[str]:
    package = path.resolve()  # the child runs in another folder
    try:
        ended = subprocess.run(
            module_command("edge_agent", "install", "--json", "--config", str(config), str(package)),
            capture_output=True, text=True, check=False, timeout=_TIMEOUT_S, cwd=folder,
            env=child_environment(os.environ),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise EdgeError(f"the trial install took more than {_TIMEOUT_S / 60:g} minutes", name) from error
    if ended.returncode:
        words = [line.strip() for line in ended.stderr.splitlines() if line.strip()] or ["it gave no reason"]
        reason = words[-1].removeprefix("edge-agent: ").replace(str(package), name)
        raise EdgeError(
            f"edge-agent does not install it here: {reason}", name,
            "nothing was put into the packages folder; --no-trial hands out packages untried",
        )  # fmt: skip
    lines: list[str] = json.loads(ended.stdout)["lines"]
    return lines
