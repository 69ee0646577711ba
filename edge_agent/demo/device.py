"""The demo's device: packages that are built from recipes, a store of its own, and the daemon that serves it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from edge_agent.base.child_python import module_command
from edge_agent.base.errors import EdgeError
from edge_agent.base.units import duration_text
from edge_agent.demo import stage
from edge_agent.demo.stage import Broker, call, say
from edge_agent.store.state_folder import running_daemon

DEVICE = "demo"


@dataclass(frozen=True, slots=True)
class Built:
    """Packages in the order of installation, and the trust root of their signatures."""

    packages: tuple[Path, ...]
    root: Path


_NO_CLONE = "run it from a clone of the project, or name --models"


def build_packages(build: Path, recipe: Path, settings: Sequence[str] = (), remedy: str = _NO_CLONE) -> Built:
    """Run a recipe with `settings` ('KEY=VALUE') in place of its own. Raises EdgeError; `remedy`: if it is missing."""
    return built_by(call(build_command(build, [recipe], settings, remedy), capture=True))


def build_command(
    build: Path, recipes: Sequence[Path], settings: Sequence[str] = (), remedy: str = _NO_CLONE
) -> list[str]:
    """The command that builds the recipes, all of which train at the same time; `built_by` reads what it prints.

    There is no trial in a scratch store, because the demo installs at once what was built. Raises EdgeError.
    """
    for recipe in recipes:
        if not recipe.exists():
            raise EdgeError(f"there is no recipe {recipe}", "demo", remedy)
    options = [part for setting in settings for part in ("--set", setting)]
    together = ["--together", str(len(recipes))] if len(recipes) > 1 else []
    places = map(str, recipes)
    return module_command(
        "edge_forge.cli", "build", *places, *options, *together, "--build", str(build), "--no-trial", "--json"
    )


def built_by(printed: bytes) -> Built:
    """What `build_command` made.

    Merged models are left out beside their adapter, because one base is to carry all adapters: a device that has those
    too would answer by them where they are faster (`core.adapter_routing`), each alone in its batch.
    """
    found = msgspec.json.decode(printed)
    packages = [Path(path) for path in found["packages"]]
    names = {path.name for path in packages}
    wanted = (path for path in packages if path.name.replace("-merged-v", "-v") not in names - {path.name})
    return Built(tuple(wanted), Path(found["trust_root"]))


class DemoDevice:
    """A device in one folder. `install` begins its state anew where packages are others than it committed before.

    A device refuses other contents under a counter that it committed, and packages of foreign keys. Both are right for
    a device, but the demo builds the same versions again after code or a recipe changed: its device is a scratch one.
    """

    def __init__(self, folder: Path, broker: Broker, *backends: str) -> None:
        self.folder = folder
        self.broker = broker
        self.config = folder / "edge-agent.toml"
        self._backends = backends
        self._installed: list[Path] = []
        self._daemon = contextlib.ExitStack()
        self._running: stage.Running | None = None

    def __enter__(self) -> DemoDevice:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._end()

    def install(self, built: Built) -> None:
        """Install what is new, while the daemon serves what was installed before; start it where it does not run."""
        self.check()
        new = [package for package in built.packages if package not in self._installed]
        wanted = [*self._installed, *new]
        if not state_fits(self.folder, wanted, built.root):
            self._end()
            renew_state(self.folder)
            new = wanted
        stage.write_config(self.folder, self.broker, built.root, DEVICE, *self._backends)
        stamp(self.folder, wanted, built.root)
        say("install", "verify signatures, run the golden probes on this machine, activate")
        for package in new:
            call(module_command("edge_agent", "install", "--config", str(self.config), str(package)))
        self._installed = wanted
        if self._running is None:
            self._running = self._daemon.enter_context(stage.daemon(self.config, self.folder))
            say("daemon", f"pid {self._running.pid}, ready after {duration_text(self._running.ready_s)}")

    def check(self) -> None:
        """Raise EdgeError where the broker or the daemon has ended by itself."""
        self.broker.part.check()
        if self._running is not None:
            self._running.part.check()

    async def watched(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work, which asks the device. Raises EdgeError as soon as nobody can answer any more."""
        running = asyncio.ensure_future(work)
        try:
            while not running.done():
                await asyncio.wait({running}, timeout=stage.LOOK_S)
                self.check()
            running.result()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def _end(self) -> None:
        self._daemon.close()
        self._running = None


@contextlib.contextmanager
def device(folder: Path, port: int, *backends: str) -> Iterator[DemoDevice]:
    """A broker and a device without a model, all in `folder`, for the length of the block."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(stage.alone(folder))
        stack.enter_context(stage.ended_by_signals())
        if (pid := running_daemon(folder / "state")) is not None:
            left = f"the daemon of a demo that was killed (pid {pid}) still serves {folder}"
            raise EdgeError(left, "demo", f"end it with `kill {pid}`, then begin again")
        mqtt = stack.enter_context(stage.broker(folder, port))
        say("broker", f"{mqtt.name} on port {mqtt.port}")
        yield stack.enter_context(DemoDevice(folder, mqtt, *backends))


_STAMP = "packages.sha256"


def state_fits(folder: Path, packages: Sequence[Path], root: Path) -> bool:
    """Whether the folder's state committed nothing that contradicts these packages: the same product with other
    contents, or signatures by other keys. Raises EdgeError where a package cannot be read."""
    wanted = _digests(packages, root)
    if not (folder / "state").exists():
        return True
    before = _stamped(folder)
    return bool(before) and all(before.get(product, digest) == digest for product, digest in wanted.items())


def stamp(folder: Path, packages: Sequence[Path], root: Path) -> None:
    """Note what the state is about to commit; what was interrupted is compared the next time. Raises EdgeError."""
    try:
        lines = {**_stamped(folder), **_digests(packages, root)}
        (folder / _STAMP).write_text("".join(f"{digest}  {product}\n" for product, digest in lines.items()))
    except OSError as error:
        raise EdgeError(f"{folder}: its state cannot be noted: {error}", "demo", f"remove {folder}") from None


def renew_state(folder: Path) -> None:
    """Remove the state. Call it inside `alone`, and without a daemon. Raises EdgeError."""
    say("device", "the packages are others than the last time: the demo's device begins anew")
    try:
        shutil.rmtree(folder / "state")
        (folder / _STAMP).unlink(missing_ok=True)
    except OSError as error:
        raise EdgeError(f"{folder}: its state cannot be renewed: {error}", "demo", f"remove {folder}") from None


def _stamped(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / _STAMP).read_text().splitlines()
        return {product: digest for digest, product in (line.split("  ", 1) for line in lines)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EdgeError(f"{folder}: its state cannot be compared: {error}", "demo", f"remove {folder}") from None


def _digests(packages: Sequence[Path], root: Path) -> dict[str, str]:
    """sha256 by product; the name of a package's file is the product's with a version or digest behind it."""
    try:
        found = {path.stem.rpartition("-")[0]: _digest(path) for path in packages}
        return {**found, "trust root": _digest(root)}
    except OSError as error:
        raise EdgeError(f"a package cannot be read: {error}", "demo") from None


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        value = hashlib.sha256()
        while block := stream.read(1 << 20):
            value.update(block)
    return value.hexdigest()
