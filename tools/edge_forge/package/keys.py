"""Signing keys and the trust root: made once, rotated by a new root file that old and new keys sign."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.base.errors import UsageError
from edge_agent.bundle import jsonio, sign
from edge_agent.bundle.layout import open_package
from edge_agent.bundle.manifest import Name
from edge_agent.bundle.sign import PrivateKey
from edge_agent.bundle.statement import RELEASE_FILE, RELEASE_TYPE
from edge_agent.bundle.trust import ROOT_TYPE, Role, Roles, Root, Trust
from edge_agent.bundle.verify import load_trust
from edge_forge.package.write import rewrite

ROLES: Final = ("root", "release")
_NUMBER: Final = re.compile(r"[0-9]{1,6}\Z")
_NUMBERED: Final = re.compile(r"release-[0-9]{1,6}\Z")


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """A folder of keys: `<role>-<version>.pem` private, `root.json` the newest root file, `<version>.json` each one."""

    path: Path

    @property
    def root_file(self) -> Path:
        """The newest root file: what the operator puts on devices."""
        return self.path / "root.json"

    def private(self, role: str, version: int) -> Path:
        """A role's private key that came with that version of the root."""
        return self.path / f"{role}-{version}.pem"

    @property
    def release_key(self) -> Path:
        """The newest release key: what `edge-forge sign` uses."""
        found = [path for path in self.path.glob("release-*.pem") if _NUMBERED.match(path.stem)]
        found.sort(key=lambda path: int(path.stem.split("-")[1]))
        if not found:
            raise UsageError("there is no release key in it", str(self.path), "`edge-forge keygen DIR` makes one")
        return found[-1]

    @property
    def numbered(self) -> list[Path]:
        """Every root file that has its version as its name."""
        return sorted(path for path in self.path.glob("*.json") if _NUMBER.match(path.stem))

    def all_ids(self) -> frozenset[str]:
        """The ids of all keys that the root files here trust. Raises UsageError for one that is damaged."""
        return frozenset(key for path in (self.root_file, *self.numbered) for key in load_trust(path).root.keys)

    def private_keys(self) -> dict[str, Path]:
        """The private keys that lie here, whatever they are called: id to file. Files in PEM form of other kinds
        (certificates) are passed over."""
        found = {}
        for path in sorted(self.path.glob("*.pem")):
            with contextlib.suppress(UsageError):
                found[PrivateKey.load(path).keyid] = path
        return found


def keygen(folder: Path) -> KeyFolder:
    """New root and release keys and root version 1. Never overwrites. Private keys are readable by their owner only."""
    keys = KeyFolder(folder)
    if keys.root_file.exists():
        raise UsageError("there are keys here already", str(folder), "`--rotate` replaces them by signed succession")
    if folder.exists() and not folder.is_dir():
        raise UsageError("it is a file, not a folder for keys", str(folder), "name another place")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = {role: PrivateKey.generate() for role in ROLES}
    for role, key in made.items():
        key.save(keys.private(role, 1))
    _write_root(keys, _root(1, made["root"].public_hex, made["release"].public_hex), [made["root"]])
    return keys


def delegate(folder: Path, products: Sequence[str]) -> tuple[Path, Path]:
    """A further release key that signs these products alone, and the next root file, signed by the root key.

    Returns both files. The key's name says its products' first: `release-<product>-<version>.pem`; a build signs with
    the folder's own release key as before.
    """
    keys = KeyFolder(folder)
    old = load_trust(keys.root_file).root
    try:
        msgspec.convert(list(products), list[Name])
    except msgspec.ValidationError as error:
        what = f"{', '.join(map(repr, products))}: no product has such a name"
        raise UsageError(what, "--product", "use a-z, 0-9, '.', '-' and '_'") from error
    new = PrivateKey.generate()
    role = old.roles.release
    root = msgspec.structs.replace(
        old,
        version=old.version + 1,
        keys={**old.keys, new.keyid: new.public_hex},
        roles=Roles(root=old.roles.root, release=Role(keys=(*role.keys, new.keyid), threshold=role.threshold)),
        products={**old.products, new.keyid: tuple(dict.fromkeys(products))},
    )
    signers = _owned(keys, old.roles.root.keys[:1])
    path = keys.path / f"release-{products[0]}-{root.version}.pem"
    new.save(path)
    return _write_root(keys, root, signers), path


def rotate(folder: Path, roles: Sequence[str] = ROLES) -> Path:
    """New keys for `roles` and the next root file, signed by the old and the new root key. Returns that file."""
    keys = KeyFolder(folder)
    old = load_trust(keys.root_file).root
    version = old.version + 1
    limited = {keyid: old.keys[keyid] for keyid in old.roles.release.keys[1:]}
    public = {}
    for role, found in zip(ROLES, (old.roles.root, old.roles.release), strict=True):
        public[role] = old.keys[found.keys[0]]
        if role in roles:
            new = PrivateKey.generate()
            new.save(keys.private(role, version))
            public[role] = new.public_hex
    signers = _owned(keys, (old.roles.root.keys[0], sign.key_id(public["root"])))
    root = _root(version, public["root"], public["release"])
    if limited:  # keys of single products stay; `delegate` made them
        release = Role(keys=(*root.roles.release.keys, *limited), threshold=1)
        root = msgspec.structs.replace(
            root,
            keys={**root.keys, **limited},
            roles=Roles(root=root.roles.root, release=release),
            products={keyid: old.products[keyid] for keyid in limited if keyid in old.products},
        )
    return _write_root(keys, root, signers)


def sign_package(package: Path, key_paths: Sequence[Path], root_files: Sequence[Path] = ()) -> tuple[str, ...]:
    """Sign a package in place; root files travel with it. Returns the ids of the keys."""
    keys = [PrivateKey.load(path) for path in key_paths]
    if not keys:
        raise UsageError("no key was given", str(package), "--key FILE")
    with open_package(package) as opened:
        data = opened.read(RELEASE_FILE, opened.sizes.get(RELEASE_FILE, 0))
        _, payload = sign.unwrap(data, RELEASE_TYPE, RELEASE_FILE)
        changed = {RELEASE_FILE: sign.wrap(RELEASE_TYPE, payload, keys)}
        for path in root_files:
            changed[f"root/{root_version(path)}.json"] = path.read_bytes()
        rewrite(opened, package, changed)
    return tuple(key.keyid for key in keys)


def root_version(path: Path) -> int:
    """The version of a root file, whose own signatures must hold."""
    return load_trust(path).root.version


def _owned(keys: KeyFolder, keyids: Sequence[str]) -> list[PrivateKey]:
    """The private keys of these ids. Raises UsageError when one is not in the folder."""
    here = {key.keyid: key for key in map(PrivateKey.load, sorted(keys.path.glob("root-*.pem")))}
    missing = [keyid for keyid in keyids if keyid not in here]
    if missing:
        raise UsageError(f"the private root key {missing[0][:12]} is not in it", str(keys.path))
    return [here[keyid] for keyid in dict.fromkeys(keyids)]


def _root(version: int, root_hex: str, release_hex: str) -> Root:
    root_id, release_id = sign.key_id(root_hex), sign.key_id(release_hex)
    return Root(
        schema=1,
        version=version,
        keys={root_id: root_hex, release_id: release_hex},
        roles=Roles(root=Role(keys=(root_id,), threshold=1), release=Role(keys=(release_id,), threshold=1)),
    )


def _write_root(keys: KeyFolder, root: Root, signers: Sequence[PrivateKey]) -> Path:
    data = sign.wrap(ROOT_TYPE, jsonio.encode(root), signers)
    Trust.from_operator(data, "root.json")
    numbered = keys.path / f"{root.version}.json"
    numbered.write_bytes(data)
    temporary = keys.root_file.with_suffix(".tmp")
    temporary.write_bytes(data)
    temporary.replace(keys.root_file)
    return numbered
