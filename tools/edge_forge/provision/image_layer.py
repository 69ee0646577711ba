"""`edge-forge provision --layer`: the same files as a layer of rpi-image-gen, which builds images for Raspberry Pis.

The layer unpacks one tar into the root that is being built and makes the service's user there. Written for the layers
of rpi-image-gen of 2026: metadata in comments, hooks of mmdebstrap.

A file of its own because the seed of cloud-init has rules of its own for what is there already.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edge_agent.base.errors import EdgeError
from edge_agent.base.units import bytes_text
from edge_forge.provision.cloud_seed import MARK, digest_of, write_tar
from edge_forge.provision.image_writer import Entry

NAME: Final = "edge-agent"
PAYLOAD: Final = f"{NAME}.tar"
_LAYER: Final = f"""{MARK}
# METABEGIN
# X-Env-Layer-Name: {NAME}
# X-Env-Layer-Category: service
# X-Env-Layer-Desc: edge-agent with its interpreter, settings, credentials and packages; offline from the first boot on.
# X-Env-Layer-Version: 1.0.0
#
# X-Env-VarPrefix: edgeagent
#
# X-Env-Var-payload: ${{DIRECTORY}}/{PAYLOAD}
# X-Env-Var-payload-Desc: The files, as edge-forge provision wrote them beside this layer.
# X-Env-Var-payload-Required: n
# X-Env-Var-payload-Valid: string
# X-Env-Var-payload-Set: y
# METAEND
---
mmdebstrap:
  packages:
    - python3
  customize-hooks:
    - |-
      set -eu
      tar -C "$1" --numeric-owner -xpf "$IGconf_edgeagent_payload"
      chroot "$1" systemd-sysusers
      chroot "$1" systemd-tmpfiles --create --exclude-prefix=/dev --exclude-prefix=/run || true
"""


def write_layer(folder: Path, entries: Sequence[Entry], dry: bool) -> list[str]:
    """Write the layer and its files into a folder; a line per file. `dry`: write nothing. A second time changes
    nothing. Raises EdgeError where a layer of somebody else has the name."""
    layer, payload = folder / f"{NAME}.yaml", folder / PAYLOAD
    if layer.is_file() and not layer.read_text("utf-8", "replace").startswith(MARK):
        raise EdgeError("was not written by provision", str(layer), "name another folder")
    size = sum(entry.size for entry in entries)
    if dry:
        return [f"write   {layer.name}", f"write   {payload.name}, about {bytes_text(size)}"]
    folder.mkdir(parents=True, exist_ok=True)
    fresh = payload.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    try:
        fresh.touch(mode=0o600)  # credentials of a board may be in it
        write_tar(fresh, entries)
        same = payload.is_file() and digest_of(payload) == digest_of(fresh)
        if not same:
            fresh.replace(payload)
    finally:
        fresh.unlink(missing_ok=True)
    same_layer = layer.is_file() and layer.read_text("utf-8") == _LAYER
    if not same_layer:
        layer.write_text(_LAYER, encoding="utf-8")
    said = "same" if same else "write"
    size = payload.stat().st_size
    return [f"{'same' if same_layer else 'write':<7} {layer.name}", f"{said:<7} {payload.name}, {bytes_text(size)}"]
