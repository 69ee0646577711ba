"""Write packages, sign them, and read each back against the trust root as a device would; the same for all kinds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edge_agent.base.errors import ConfigError
from edge_forge.package import release as releases
from edge_forge.plan.cache import StepResult
from edge_forge.plan.step_runner import StepRunner
from edge_forge.recipe.schema import CommonRecipe

PACKAGE = "package.tar"
Packages = Mapping[str, tuple[str, StepResult]]
"""Unsigned packages: file name to (what it is, step), in the order of installation."""


@dataclass(frozen=True, slots=True)
class SignedPackage:
    """A signed package: `file` is where it lies for people, `digest` that of the whole file."""

    what: str
    file: Path
    digest: str
    size_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, for the report."""
        return {"file": self.file.name, "what": self.what, "size_bytes": self.size_bytes, "digest": self.digest}


class PackageSigner:
    """Writes the unsigned packages of one recipe, signs them, and puts them where people look for them."""

    def __init__(self, recipe: CommonRecipe, steps: StepRunner) -> None:
        self.recipe = recipe
        self.steps = steps

    @property
    def card(self) -> dict[str, Path]:
        """`card.md` beside the recipe, where there is one: what the model is for, for who finds its package."""
        card = self.steps.recipe_dir / "card.md"
        return {"card": card} if card.is_file() else {}

    @cached_property
    def keys(self) -> Any:
        """The key folder (`package.keys.KeyFolder`). Development keys are made where the recipe names none."""
        from edge_forge.package.keys import KeyFolder, keygen

        named = self.recipe.package.keys
        folder = KeyFolder(
            self.steps.recipe_dir / Path(named).expanduser() if named else self.steps.cache.root / "keys"
        )
        if not named and not folder.root_file.is_file():
            self.steps.progress.say(
                f"keys: development keys in {folder.path} (for devices of your own; see edge-forge keygen)"
            )
            folder = keygen(folder.path)
        if not folder.root_file.is_file():
            raise ConfigError(
                f"there is no root.json in {folder.path}", "package.keys", "`edge-forge keygen DIR` makes it"
            )
        folder.release_key  # noqa: B018 - a missing key is said before anything long begins
        return folder

    def shipped(self, packed: Packages) -> list[SignedPackage]:
        """Sign the packages, read each back as a device would, and put them into BUILD/packages."""
        folder = self.steps.cache.root / "packages"
        folder.mkdir(parents=True, exist_ok=True)
        found = []
        for name, (what, unsigned) in packed.items():
            entry = self._signed(name, unsigned)
            _place(entry.path(PACKAGE), folder / name)
            digest = f"sha256:{entry.digests(PACKAGE)[PACKAGE]}"
            found.append(SignedPackage(what, folder / name, digest, (folder / name).stat().st_size))
        return found

    def _signed(self, name: str, entry: StepResult) -> StepResult:
        keys = self.keys
        roots = [path for path in sorted(keys.path.glob("[0-9]*.json")) if int(path.stem) > 1]
        from edge_agent.bundle.sign import PrivateKey

        settings = {"key": PrivateKey.load(keys.release_key).keyid, "roots": [path.name for path in roots]}

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.package.keys import sign_package

            shutil.copyfile(entry.path(PACKAGE), folder / PACKAGE)
            signers = sign_package(folder / PACKAGE, [keys.release_key], roots)
            return {"signers": list(signers), "verified": releases.verify(folder / PACKAGE, keys.root_file)}

        return self.steps.run("sign", entry.digests(PACKAGE), settings, work, f"sign and verify {name}")

    def packaged(
        self, product: str, counter: int, inputs: Mapping[str, str], settings: Mapping[str, Any], pack: Any
    ) -> StepResult:
        """One unsigned package; `pack(folder, release)` writes it and returns `package.build.BuiltPackage`."""
        section, now_s = self.recipe.package, releases.issued_s()
        names = ("channel", "hardware", "min_agent", "expires_days")
        release = {"counter": counter, **{name: getattr(section, name) for name in names}}
        release |= {
            "freshness": releases.freshness(section, now_s),
            "epoch": os.environ.get("SOURCE_DATE_EPOCH"),
        }

        def work(folder: Path) -> Mapping[str, Any]:
            built = pack(folder, releases.release(section, product, counter, now_s))
            return {"product": product, "index": built.index_digest, "digest": built.digest}

        return self.steps.run(
            "package", inputs, {**settings, "product": product, "release": release}, work,
            f"package {product}",
        )  # fmt: skip


def _place(source: Path, target: Path) -> None:
    """A file at a second place, by a link where the file system has them; the old one is replaced whole."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # two names of one file: then a rename does nothing
