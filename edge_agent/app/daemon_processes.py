"""What the daemon has other processes do: changes of the store, and asking the backends of this device."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_agent.base.errors import StoreError, WorkerError
from edge_agent.protocol.messages import Runtime
from edge_agent.protocol.worker_messages import RuntimeReport, RuntimeUnavailable
from edge_agent.worker.one_shot import ask_backends
from edge_agent.worker.supervisor import SpawnOptions


class StoreProcess:
    """Carries out store commands in `edge-agent install|remove|rollback` processes. Implements `commands.Operator`.

    The signature library never enters the daemon, and a package that crashes its reader harms nobody.
    """

    def __init__(self, config: Path | None, inbox: Path) -> None:
        self._config = config
        self._inbox = inbox

    async def install(self, package: str) -> Mapping[str, Any]:
        """See `commands.Operator`; only names inside the incoming folder are taken."""
        if "/" in package or package.startswith(".") or not package.isprintable() or not package:
            raise StoreError(f"{package!r} is not the name of a file in the incoming folder", str(self._inbox))
        return await self._run("install", str(self._inbox / package))

    async def remove(self, model: str, adapter: str | None) -> Mapping[str, Any]:
        """See `commands.Operator`."""
        return await self._run("remove", model, *(("--adapter", adapter) if adapter else ()))

    async def rollback(self, model: str) -> Mapping[str, Any]:
        """See `commands.Operator`."""
        return await self._run("rollback", model)

    async def _run(self, verb: str, *arguments: str) -> Mapping[str, Any]:
        command = [sys.executable, "-m", "edge_agent", verb, "--json", *arguments]
        if self._config is not None:
            command += ["--config", str(self._config)]
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
        except OSError as error:
            raise StoreError(f"cannot be started: {error.strerror}", f"edge-agent {verb}", "try again later") from error
        try:
            out, err = await process.communicate()
        except asyncio.CancelledError:
            process.terminate()
            raise
        if process.returncode != 0:
            text = err.decode("utf-8", "replace").strip().removeprefix("edge-agent: ")
            raise StoreError(text[-500:] or f"exit code {process.returncode}", f"edge-agent {verb}")
        report: Mapping[str, Any] = json.loads(out)
        return report


async def find_runtimes(options: SpawnOptions, names: Sequence[str]) -> list[Runtime]:
    """The allowed backends as a worker's interpreter finds them; asked once, in a child, since imports are memory."""
    try:
        found = await ask_backends(options, names)
    except WorkerError as error:
        return [Runtime(name=name, version=None, devices=[], reason=str(error)) for name in names]
    return [_runtime(name, found[name]) for name in names]


def _runtime(name: str, report: RuntimeReport) -> Runtime:
    if isinstance(report, RuntimeUnavailable):
        return Runtime(name=name, version=None, devices=[], reason=report.reason)
    return Runtime(name=name, version=report.version, devices=list(report.devices), reason=report.unchecked or None)
