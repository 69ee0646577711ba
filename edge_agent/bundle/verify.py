"""Verification of a package, cheapest checks first, so that a hostile one costs little.

Container names and sizes, then the statement's signatures, then its rules, then `oci-layout`, then `index.json` by size
and digest, then manifests and documents, then that no byte is there which the statement does not cover. Weights are
hashed by whoever reads them (the store while it copies, `check_weights` on the host).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from edge_agent import __version__
from edge_agent.base import limits
from edge_agent.base.causes import Cause
from edge_agent.base.errors import PackageError, SignatureError
from edge_agent.bundle import manifest as forms
from edge_agent.bundle import sign, statement
from edge_agent.bundle.contents import Contents, Fetch, check_bytes, read_contents, read_probes
from edge_agent.bundle.jsonio import decode, read_file
from edge_agent.bundle.layout import Package, blob_name
from edge_agent.bundle.manifest import Descriptor, Index
from edge_agent.bundle.statement import RELEASE_FILE, RELEASE_TYPE, Release
from edge_agent.bundle.trust import Trust


@dataclass(frozen=True, slots=True)
class Verified:
    """A statement that was read, and by whose trust it counts.

    `trust` is the newest root (the package may have brought it), `new_roots` the files by which it was reached.
    `warning` says why an unsigned package was let through; None: it is signed.
    """

    release: Release
    trust: Trust | None
    new_roots: tuple[Trust, ...]
    signers: frozenset[str]
    warning: str | None


def read_release(package: Package, trust: Trust | None, allow_unsigned: bool = False) -> Verified:
    """Read the statement, follow root files, check signatures. Raises SignatureError or PackageError."""
    if RELEASE_FILE not in package:
        raise SignatureError("it has no release statement", package.where, "`edge-forge sign` makes one")
    data = package.read(RELEASE_FILE, limits.STATEMENT_BYTES)
    envelope, payload = sign.unwrap(data, RELEASE_TYPE, RELEASE_FILE)
    newest, new_roots = _follow_roots(package, trust)
    signers, warning = _signers(newest, envelope, payload, allow_unsigned)
    release = decode(payload, Release, RELEASE_FILE, limits.STATEMENT_BYTES)
    if newest is not None and warning is None:
        newest.check_product(release.product, signers, RELEASE_FILE)
    statement.check_agent(release, __version__)
    return Verified(release, newest, new_roots, signers, warning)


def read_package(package: Package, release: Release, stored: Fetch | None = None) -> Contents:
    """Index, manifests and documents under a verified statement. `stored` gives blobs that the package omits.

    Raises PackageError, also for a blob in the package that nothing refers to.
    """
    if package.read("oci-layout", 64) != forms.OCI_LAYOUT:
        raise PackageError("it is no OCI image layout of version 1.0.0", "oci-layout")
    fetch = fetcher(package, stored)
    index_size = package.sizes.get("index.json", 0)
    if index_size != release.index.size:
        raise PackageError(f"it has {index_size} bytes, the statement signed {release.index.size}", "index.json")
    raw = package.read("index.json", limits.MANIFEST_BYTES)
    if "sha256:" + hashlib.sha256(raw).hexdigest() != release.index.digest:
        raise SignatureError("its SHA-256 is not the one that was signed", "index.json", "fetch the package again")
    contents = read_contents(decode(raw, Index, "index.json"), fetch)
    _check_covered(package, contents)
    for item in contents.items:
        read_probes(item, fetch)
    return contents


def fetcher(package: Package, stored: Fetch | None = None) -> Fetch:
    """A `Fetch` over the package, then over the store; both check size and digest."""

    def fetch(found: Descriptor, limit_bytes: int) -> bytes:
        name = blob_name(found.digest)
        where = f"blob {found.digest[7:19]}"
        if name in package:
            if package.sizes[name] != found.size:
                raise PackageError(f"it has {package.sizes[name]} bytes, its descriptor says {found.size}", where)
            return check_bytes(found, package.read(name, limit_bytes), where)
        if stored is None:
            raise PackageError("it is missing from the package", where)
        return stored(found, limit_bytes)

    return fetch


def check_weights(package: Package, contents: Contents) -> tuple[Descriptor, ...]:
    """Hash every blob that travels; returns those that do not (the device must have them). Raises PackageError."""
    absent = []
    for found in contents.descriptors().values():
        name = blob_name(found.digest)
        if name not in package:
            absent.append(found)
            continue
        check_blob(package, found.digest)
    return tuple(absent)


def check_blob(package: Package, digest: str) -> None:
    """Hash a blob of the package. Raises PackageError when it is not what its name says."""
    running = hashlib.sha256()
    for chunk in package.stream(blob_name(digest)):
        running.update(chunk)
    if "sha256:" + running.hexdigest() != digest:
        raise PackageError(
            "its SHA-256 is not its name: damaged or exchanged", f"blob {digest[7:19]}", "fetch the package again"
        )


def load_trust(path: Path) -> Trust:
    """The operator's root file. Raises SignatureError that says how to make one."""
    try:
        data = read_file(path, limits.STATEMENT_BYTES)
    except OSError as error:
        raise SignatureError(
            f"the trust root cannot be read: {error.strerror}", str(path), "`edge-forge keygen DIR` makes one"
        ) from error
    return Trust.from_operator(data, str(path))


def _follow_roots(package: Package, trust: Trust | None) -> tuple[Trust | None, tuple[Trust, ...]]:
    if trust is None:
        return None, ()
    found: list[Trust] = []
    newest = trust
    while (name := f"root/{newest.root.version + 1}.json") in package:
        newest = newest.next(package.read(name, limits.STATEMENT_BYTES), name)
        found.append(newest)
    same = f"root/{trust.root.version}.json"
    if same in package and package.read(same, limits.STATEMENT_BYTES) != trust.data:
        raise SignatureError("it differs from the root file of that version on this device", same)
    beyond = [name for name in package.sizes if name.startswith("root/") and int(name[5:-5]) > newest.root.version]
    if beyond:
        raise SignatureError(f"the root files from {newest.root.version + 1} up to it are missing", beyond[0])
    return newest, tuple(found)


def _signers(
    trust: Trust | None, envelope: sign.Envelope, payload: bytes, allow_unsigned: bool
) -> tuple[frozenset[str], str | None]:
    known = trust is not None and any(one.keyid in trust.root.roles.release.keys for one in envelope.signatures)
    if trust is not None and (known or not allow_unsigned):
        return trust.check_release(envelope, payload, RELEASE_FILE), None
    if allow_unsigned:
        state = "signed by nobody whom this device trusts" if envelope.signatures else "unsigned"
        return frozenset(), f"the package is {state}; it is taken because allow_unsigned is set"
    raise SignatureError(
        "this device has no trust root, so no signature can be checked",
        RELEASE_FILE,
        "set store.trust_root",
        Cause.NO_TRUST_ROOT,
    )


def _check_covered(package: Package, contents: Contents) -> None:
    stray = sorted(set(package.blobs()) - set(contents.descriptors()))
    if stray:
        raise PackageError(f"blob {stray[0][7:19]} is not covered by the signed index", package.where)
    sizes = package.blobs()
    for digest, found in contents.descriptors().items():
        if digest in sizes and sizes[digest] != found.size:
            raise PackageError(
                f"it has {sizes[digest]} bytes, its descriptor says {found.size}", f"blob {digest[7:19]}"
            )
