"""What the demos share: recipes are built, packages installed, and a daemon serves them until the block ends."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_agent.base.errors import EdgeError
from edge_agent.base.units import duration_text
from edge_agent.demo import stage

DEVICE = "demo"


@dataclass(frozen=True, slots=True)
class DemoPackages:
    """Packages in the order of installation, and the trust root that they are signed under."""

    packages: tuple[Path, ...]
    root: Path


@dataclass(frozen=True, slots=True)
class DemoService:
    """A running daemon: its broker and its settings."""

    broker: stage.Broker
    config: Path


def build_packages(build: Path, models: Path, recipes: Sequence[str]) -> DemoPackages:
    """Run the recipes of `models` by their names; one base is to carry all adapters, so merged models are left out.

    A device that has those too would answer by them where they are faster (`core.adapter_routing`), each alone in its
    batch.
    """
    packages: list[Path] = []
    root = build / "keys" / "root.json"
    for name in recipes:
        recipe = models / name / "recipe.toml"
        if not recipe.is_file():
            raise EdgeError(
                f"there is no recipe {recipe}", "demo", "run it from a clone of the project, or name --models"
            )
        say("build", f"{recipe}: train, evaluate, export, quantise, sign (cached: the second time it takes seconds)")
        command = [sys.executable, "-m", "edge_forge.cli", "build", str(recipe), "--build", str(build), "--json"]
        built = msgspec.json.decode(call(command, capture=True))
        made = [Path(path) for path in built["packages"] if "-merged-" not in Path(path).name]
        packages += [path for path in made if path not in packages]
        root = Path(built["trust_root"])
    return DemoPackages(tuple(packages), root)


@contextlib.contextmanager
def serving(folder: Path, built: DemoPackages, port: int, backend: str = "onnx") -> Iterator[DemoService]:
    """Broker, installed packages and daemon, all in `folder`, for the length of the block."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(stage.alone(folder))
        stack.enter_context(stage.ended_by_signals())
        broker = stack.enter_context(stage.broker(folder, port))
        say("broker", f"{broker.name} on port {broker.port}")
        config = stage.write_config(folder, broker, built.root, DEVICE, backend)
        say("install", "verify signatures, run the golden probes on this machine, activate")
        for package in built.packages:
            call([sys.executable, "-m", "edge_agent", "install", "--config", str(config), str(package)])
        running = stack.enter_context(stage.daemon(config, folder))
        say("daemon", f"pid {running.pid}, ready after {duration_text(running.ready_s)}")
        yield DemoService(broker, config)


def stay(broker: stage.Broker) -> None:
    """Keep everything running until Ctrl-C."""
    say("stay", f"broker on 127.0.0.1:{broker.port}, device {DEVICE!r}; Ctrl-C ends both")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def call(command: Sequence[str], capture: bool = False) -> bytes:
    """Run a command as a user would; returns what it printed where `capture`. Raises EdgeError when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE if capture else None, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode != 0:
        raise EdgeError(f"`{' '.join(command[1:5])} ...` failed, see above", "demo")
    return done.stdout or b""


def say(step: str, text: str) -> None:
    """One line about what happens."""
    print(f"[{step:>7}] {text}", flush=True)
