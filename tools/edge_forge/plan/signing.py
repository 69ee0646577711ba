"""Write packages, sign them, and read each back against the trust root as a device would; the same for all kinds."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edge_agent.base.errors import ConfigError
from edge_forge.evaluate.training_outcome import TrainingOutcome
from edge_forge.package import release as releases
from edge_forge.package.sources import ReleaseSource
from edge_forge.plan.cache import StepResult
from edge_forge.plan.step_runner import StepRunner, runtime_versions
from edge_forge.recipe.schema import CommonRecipe
from edge_forge.user_state import UserState, named_key, require_known

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
        self._tries_packages = True

    def hand_out_untried(self) -> None:
        """Leave out the install of the packages in a scratch store."""
        self._tries_packages = False

    @property
    def card(self) -> dict[str, Path]:
        """`card.md` beside the recipe, where there is one: what the model is for, for who finds its package."""
        card = self.steps.recipe_dir / "card.md"
        return {"card": card} if card.is_file() else {}

    @cached_property
    def keys(self) -> Any:
        """The key folder (`package.keys.KeyFolder`). Development keys are made where the recipe names none."""
        from edge_forge.package.keys import KeyFolder, keygen

        state, named = UserState.of(os.environ), self.recipe.package.keys
        folder = KeyFolder(
            self.steps.recipe_dir / Path(named).expanduser() if named else self.steps.cache.root / "keys"
        )
        if not named and not folder.root_file.is_file():
            self.steps.progress.say(
                f"keys: development keys in {folder.path} (for devices of your own; see edge-forge keygen)"
            )
            folder = keygen(folder.path)
            state.remember(folder.all_ids(), made_here=True)
        if not folder.root_file.is_file():
            raise ConfigError(
                f"there is no root.json in {folder.path}", "package.keys", "`edge-forge keygen DIR` makes it"
            )
        _check_signer(folder)
        require_known(state, folder.all_ids(), folder.path, "package.keys")
        self.steps.progress.say(f"signing key {_signing_key(folder, state)}")
        return folder

    def key_as_dict(self) -> dict[str, Any]:
        """The key that signs, as JSON values: the same for every build with it, so without its age."""
        from edge_agent.bundle.sign import PrivateKey

        keyid = PrivateKey.load(self.keys.release_key).keyid
        known = UserState.of(os.environ).known(keyid)
        since = None if known is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(known.since_s))
        return {"keyid": keyid, "file": str(self.keys.release_key), "known_since": since}

    @property
    def key_named(self) -> str:
        """The key that signs, for people: fingerprint, file, age."""
        return _signing_key(self.keys, UserState.of(os.environ))

    def require_learned(self, outcome: TrainingOutcome) -> str:
        """What is said of a run that led nowhere; raises ConfigError unless the recipe takes it all the same."""
        if outcome.failed and self.recipe.package.failed_training == "refuse":
            raise ConfigError(
                f"the training failed: {outcome.failed}", "package.failed_training",
                "lower learning_rate, train longer, or look at the labels; "
                '[package] failed_training = "warn" packages it all the same',
            )  # fmt: skip
        said = f"the training failed: {outcome.failed}" if outcome.failed else outcome.weak
        if said:
            self.steps.progress.warn(said)
        return said

    def shipped(self, packed: Packages, backends: Sequence[str]) -> list[SignedPackage]:
        """Sign the packages, read each back and install it as a device would, and put them into BUILD/packages.

        `backends` of the device run them. Raises EdgeError where one cannot be installed; then none is put there.
        """
        folder = self.steps.cache.root / "packages"
        folder.mkdir(parents=True, exist_ok=True)
        signed = {name: self._signed(name, unsigned) for name, (_, unsigned) in packed.items()}
        if self._tries_packages:
            self._try(signed, backends)
        found = []
        for name, entry in signed.items():
            self._warn_of_reuse(name, entry.path(PACKAGE), folder)
            _place(entry.path(PACKAGE), folder / name)
            digest = f"sha256:{entry.digests(PACKAGE)[PACKAGE]}"
            found.append(SignedPackage(packed[name][0], folder / name, digest, (folder / name).stat().st_size))
        return found

    def _try(self, signed: Mapping[str, StepResult], backends: Sequence[str]) -> None:
        """Install the packages with the device's program in a scratch store; a step, so that it runs once."""
        boards = self.recipe.package.hardware
        if boards:
            self.steps.progress.warn(
                f"the packages are for {', '.join(boards)}; this host is none of them, so their install was not tried"
            )
            return
        inputs = {name: entry.digests(PACKAGE)[PACKAGE] for name, entry in signed.items()}

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.package.package_trial import try_packages

            files = [(name, entry.path(PACKAGE)) for name, entry in signed.items()]
            return try_packages(files, self.keys.root_file, backends)

        settings = {"backends": list(backends), **runtime_versions(backends)}
        self.steps.run("trial", inputs, settings, work, "install the packages in a scratch store")

    def _warn_of_reuse(self, name: str, package: Path, folder: Path) -> None:
        """Say that another package of the same version was built before; keep a file that would be overwritten."""
        release = releases.statement_of(package)
        built = {path: releases.statement_of(path) for path in sorted(folder.glob("*.tar"))}
        others = {path: found for path, found in built.items() if found is not None}
        if release is None:
            return
        same = [
            path for path, found in others.items() if found.line == release.line and found.index != release.index
        ]  # fmt: skip
        used = [path for path in same if others[path].counter == release.counter]
        if not used:
            return
        highest = max(others[path].counter for path in same)
        key = "base.version" if release.product == self.recipe.base.name else "package.version"
        kept = ""
        if folder / name in used:
            old = folder / name
            spare = old.with_name(f"{old.stem}-{others[old].index.digest[7:15]}.tar")
            old.replace(spare)
            kept = f"; the one before is kept as {spare.name}"
        self.steps.progress.warn(
            f"version {release.counter} of {release.product} was built before with other contents{kept}. A device that "
            f"installed it refuses this one: set {key} = {highest + 1} in the recipe, and build again"
        )

    def _signed(self, name: str, entry: StepResult) -> StepResult:
        keys = self.keys
        roots = [path for path in keys.numbered if int(path.stem) > 1]
        from edge_agent.bundle.sign import PrivateKey

        settings = {"key": PrivateKey.load(keys.release_key).keyid, "roots": [path.name for path in roots]}

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.package.keys import sign_package

            shutil.copyfile(entry.path(PACKAGE), folder / PACKAGE)
            signers = sign_package(folder / PACKAGE, [keys.release_key], roots)
            return {"signers": list(signers), "verified": releases.verify(folder / PACKAGE, keys.root_file)}

        return self.steps.run("sign", entry.digests(PACKAGE), settings, work, f"sign and verify {name}")

    def packaged_base(
        self, product: str, counter: int, inputs: Mapping[str, str], settings: Mapping[str, Any], pack: Any
    ) -> StepResult:
        """The unsigned package of a base, which recipes share: contents that were built before under this version and
        compute the same are taken again (`package.base_reuse`)."""

        def pack_once(folder: Path, release: ReleaseSource) -> Any:
            from edge_agent.bundle.verify import load_trust
            from edge_forge.package.base_reuse import released_again

            built = pack(folder, release)
            shelf = sorted((self.steps.cache.root / "packages").glob("*.tar"))
            again = released_again(built, release, shelf, load_trust(self.keys.root_file))
            if again.index_digest != built.index_digest:
                self.steps.progress.say(
                    f"{product}: version {counter} was built before and computes the same; its contents stay"
                )
            return again

        return self.packaged(product, counter, inputs, settings, pack_once)

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


def _check_signer(folder: Any) -> None:
    """Whether the folder's root file lets its newest release key sign alone. Raises ConfigError, UsageError."""
    from edge_agent.bundle.sign import PrivateKey
    from edge_agent.bundle.verify import load_trust

    role, key = load_trust(folder.root_file).root.roles.release, folder.release_key
    if PrivateKey.load(key).keyid not in role.keys:
        raise ConfigError(
            f"{folder.root_file} does not know the release key {key.name}: every device would refuse the packages",
            "package.keys", "take root.json and key of one folder of `edge-forge keygen`",
        )  # fmt: skip
    if role.threshold > 1:
        raise ConfigError(
            f"{folder.root_file} asks for {role.threshold} signatures, a build makes one", "package.keys",
            "`edge-forge package` makes the packages, `edge-forge sign --key ... --key ...` signs them",
        )  # fmt: skip


def _signing_key(folder: Any, state: UserState) -> str:
    """The key that signs, for people: fingerprint, file, age."""
    from edge_agent.bundle.sign import PrivateKey

    key: Path = folder.release_key
    keyid = PrivateKey.load(key).keyid
    return named_key(state.known(keyid), keyid, key, time.time())


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
