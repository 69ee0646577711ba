"""A package as an OCI image layout with one artefact, which skopeo or oras copies into a registry.

Every file of the package is a layer, named by the annotation that OCI has for file names: the statement, the root
files, the index, and each blob under its own digest. One manifest holds all, so a tag is never half a package.

A file of its own because the device reads this form from registries (`edge_agent.store.registry_download`) and nothing
else writes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from edge_agent.base.errors import PackageError, UsageError
from edge_agent.base.limits import ARTEFACT_BYTES, ARTEFACT_PARTS
from edge_agent.base.units import bytes_text
from edge_agent.bundle import manifest as forms
from edge_agent.bundle.layout import BLOBS, Package, blob_name, open_package
from edge_agent.bundle.statement import RELEASE_FILE


def write_layout(path: Path, folder: Path) -> str:
    """Write the package at `path` as a layout to `folder`, which must not be there; the digest of the artefact. Raises
    UsageError, PackageError."""
    if folder.exists():
        raise UsageError("is there already", str(folder), "name a folder that does not exist")
    with open_package(path) as package, contextlib.ExitStack() as unfinished:
        unfinished.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / BLOBS).mkdir(parents=True)
        digest = _write(package, folder)
        unfinished.pop_all()
    return digest


def _write(package: Package, folder: Path) -> str:
    if RELEASE_FILE not in package:
        raise PackageError("it has no release statement", package.where, "`edge-forge sign` makes one")
    artefact = {
        "schemaVersion": 2,
        "mediaType": forms.OCI_MANIFEST,
        "artifactType": forms.PACKAGE,
        "config": _put(folder, b"{}", forms.EMPTY),
        "layers": [_layer(package, name, folder) for name in package.sizes],
    }
    described = _put(folder, data := _json(artefact), forms.OCI_MANIFEST)
    if len(data) > ARTEFACT_BYTES or 2 * len(package.sizes) > ARTEFACT_PARTS - 8:
        text = f"it has {len(package.sizes)} files, whose list would have {bytes_text(len(data))}"
        remedy = (
            f"devices read lists of {bytes_text(ARTEFACT_BYTES)} from registries: split it, or serve the tar by HTTP"
        )
        raise PackageError(text, package.where, remedy)
    outer = {"schemaVersion": 2, "mediaType": forms.OCI_INDEX, "manifests": [described]}
    (folder / "index.json").write_bytes(_json(outer))
    (folder / "oci-layout").write_bytes(forms.OCI_LAYOUT)
    digest: str = described["digest"]
    return digest


def _layer(package: Package, name: str, folder: Path) -> dict[str, Any]:
    temporary, running = folder / BLOBS / "new", hashlib.sha256()
    with temporary.open("wb") as file:
        for chunk in package.stream(name):
            running.update(chunk)
            file.write(chunk)
    digest = "sha256:" + running.hexdigest()
    if name.startswith(BLOBS) and name != blob_name(digest):
        raise PackageError("its SHA-256 is not its name: damaged or exchanged", f"blob {name[len(BLOBS) :][:12]}")
    temporary.replace(folder / blob_name(digest))
    described = {"mediaType": forms.PACKAGE_FILE, "digest": digest, "size": package.sizes[name]}
    return described | {"annotations": {forms.TITLE: name}}


def _put(folder: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    (folder / blob_name(digest)).write_bytes(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
