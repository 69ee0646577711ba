"""The part of a plan that every recipe shares: packages are written, signed, and read back as a device would."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edge_agent.base.errors import ConfigError
from edge_forge.package import shipping
from edge_forge.plan.cache import Entry
from edge_forge.plan.classifier_training import Steps

PACKAGE = "package.tar"


@dataclass(frozen=True, slots=True)
class Shipped:
    """A signed package: `file` is where it lies for people, `digest` that of the whole file."""

    what: str
    file: Path
    digest: str
    size_bytes: int


class SigningSteps(Steps):
    """Steps from an unsigned package on. A plan says in `packed` which there are."""

    @cached_property
    def packed(self) -> dict[str, tuple[str, Entry]]:
        """The unsigned packages: file name to (what it is, step), in the order of installation."""
        raise NotImplementedError

    @property
    def card(self) -> dict[str, Path]:
        """`card.md` beside the recipe, where there is one: what the model is for, for who finds its package."""
        card = self.recipe_dir / "card.md"
        return {"card": card} if card.is_file() else {}

    @cached_property
    def keys(self) -> Any:
        """The key folder (`packaging.keys.KeyFolder`). Development keys are made where the recipe names none."""
        from edge_forge.package.keys import KeyFolder, keygen

        named = self.recipe.package.keys
        folder = KeyFolder(self.recipe_dir / Path(named).expanduser() if named else self.cache.root / "keys")
        if not named and not folder.root_file.is_file():
            self.progress.say(
                f"keys: development keys in {folder.path} (for devices of your own; see edge-forge keygen)"
            )
            folder = keygen(folder.path)
        if not folder.root_file.is_file():
            raise ConfigError(
                f"there is no root.json in {folder.path}", "package.keys", "`edge-forge keygen DIR` makes it"
            )
        folder.release_key  # noqa: B018 - a missing key is said before anything long begins
        return folder

    @cached_property
    def signed(self) -> dict[str, tuple[str, Entry]]:
        """The packages with their signature, each read back as a device would."""
        return {name: (what, self._signed(name, entry)) for name, (what, entry) in self.packed.items()}

    def shipped(self) -> list[Shipped]:
        """Put the signed packages where people look for them: BUILD/packages."""
        folder = self.cache.root / "packages"
        folder.mkdir(parents=True, exist_ok=True)
        found = []
        for name, (what, entry) in self.signed.items():
            _place(entry.path(PACKAGE), folder / name)
            digest = f"sha256:{entry.digests(PACKAGE)[PACKAGE]}"
            found.append(Shipped(what, folder / name, digest, (folder / name).stat().st_size))
        return found

    def _signed(self, name: str, entry: Entry) -> Entry:
        keys = self.keys
        roots = [path for path in sorted(keys.path.glob("[0-9]*.json")) if int(path.stem) > 1]
        from edge_agent.bundle.sign import PrivateKey

        settings = {"key": PrivateKey.load(keys.release_key).keyid, "roots": [path.name for path in roots]}

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.package.keys import sign_package

            shutil.copyfile(entry.path(PACKAGE), folder / PACKAGE)
            signers = sign_package(folder / PACKAGE, [keys.release_key], roots)
            return {"signers": list(signers), "verified": shipping.verify(folder / PACKAGE, keys.root_file)}

        return self.run("sign", entry.digests(PACKAGE), settings, work, f"sign and verify {name}")

    def packaged(
        self, product: str, counter: int, inputs: Mapping[str, str], settings: Mapping[str, Any], pack: Any
    ) -> Entry:
        """One unsigned package; `pack(folder, release)` writes it and returns `packaging.build.Built`."""
        section, now_s = self.recipe.package, shipping.issued_s()
        names = ("channel", "hardware", "min_agent", "expires_days")
        release = {"counter": counter, **{name: getattr(section, name) for name in names}}
        release |= {
            "freshness": shipping.freshness(section, now_s),
            "epoch": os.environ.get("SOURCE_DATE_EPOCH"),
        }

        def work(folder: Path) -> Mapping[str, Any]:
            built = pack(folder, shipping.release(section, product, counter, now_s))
            return {"product": product, "index": built.index_digest, "digest": built.digest}

        return self.run(
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
