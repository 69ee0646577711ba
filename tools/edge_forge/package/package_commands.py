"""The commands keygen, sign, verify and inspect: each takes parsed arguments, prints, and returns an exit code.

`describe` and `table` show what a package holds and check its form; only `verify_verb` checks who signed it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_agent.base import limits
from edge_agent.base.errors import UsageError
from edge_agent.base.units import bytes_text
from edge_agent.bundle import sign
from edge_agent.bundle.contents import AdapterItem, Contents, VariantItem, read_probes
from edge_agent.bundle.layout import Package, blob_name, open_package
from edge_agent.bundle.manifest import TaskDoc
from edge_agent.bundle.sign import PrivateKey
from edge_agent.bundle.statement import RELEASE_FILE, RELEASE_TYPE, Now, Release, check_time
from edge_agent.bundle.verify import check_weights, fetcher, load_trust, read_package, read_release
from edge_forge.package.keys import ROLES, KeyFolder, delegate, keygen, rotate, sign_package
from edge_forge.package.oci_layout import write_layout
from edge_forge.user_state import UserState, named_key, require_known


def keygen_verb(arguments: argparse.Namespace) -> int:
    """`edge-forge keygen DIR [--rotate ROLE | --product NAME | --adopt]`."""
    state = UserState.of(os.environ)
    if arguments.adopt:
        return _adopt(KeyFolder(arguments.dir), state)
    if arguments.rotate is not None:
        roles = ROLES if arguments.rotate == "all" else (arguments.rotate,)
        root_file = rotate(arguments.dir, roles)
        state.remember(load_trust(root_file).root.keys, made_here=True)
        print(f"wrote {root_file}")
        key = shlex.quote(str(KeyFolder(arguments.dir).release_key))
        print(f"next: edge-forge sign PACKAGE --key {key} --root {shlex.quote(str(root_file))}")
        return 0
    if arguments.product:
        root_file, path = delegate(arguments.dir, arguments.product)
        state.remember(load_trust(root_file).root.keys, made_here=True)
        print(f"private: {path}   (signs {', '.join(arguments.product)} and nothing else)")
        print(f"wrote {root_file}")
        print(f"next: edge-forge sign PACKAGE --key {shlex.quote(str(path))} --root {shlex.quote(str(root_file))}")
        return 0
    keys = keygen(arguments.dir)
    state.remember(keys.all_ids(), made_here=True)
    print(f"private: {keys.private('root', 1)}   (keep it offline; it decides who may release)")
    print(f"private: {keys.release_key}   (signs packages)")
    print(f"public:  {keys.root_file}   (goes to every device as store.trust_root)")
    return 0


def _adopt(keys: KeyFolder, state: UserState) -> int:
    """Note the keys of a folder as this user's, and name each: those of its root files, and private ones alone."""
    found = keys.private_keys()
    if keys.root_file.is_file():
        found = dict.fromkeys(keys.all_ids(), keys.root_file) | found
    if not found:
        raise UsageError(
            "there is neither root.json nor a private key (*.pem) in it", str(keys.path),
            "`edge-forge keygen DIR` makes new keys",
        )  # fmt: skip
    state.remember(found, made_here=False)
    for keyid, path in sorted(found.items()):
        print(f"known    {named_key(state.known(keyid), keyid, path, time.time())}")
    return 0


def sign_verb(arguments: argparse.Namespace) -> int:
    """`edge-forge sign PACKAGE --key FILE [--root FILE]`. Refuses keys that `build` would refuse, before it signs."""
    state = UserState.of(os.environ)
    for path in arguments.key:
        require_known(state, {PrivateKey.load(path).keyid}, path, "--key")
    for keyid, path in zip(sign_package(arguments.package, arguments.key, arguments.root), arguments.key, strict=True):
        named = named_key(state.known(keyid), keyid, path, time.time())
        print(f"{arguments.package}: signed by {named}")
    return 0


def verify_verb(arguments: argparse.Namespace) -> int:
    """`edge-forge verify PACKAGE --root FILE`."""
    with open_package(arguments.package) as package:
        root = arguments.root or (None if arguments.allow_unsigned else root_near(arguments.package))
        trust = None if root is None else load_trust(root)
        verified = read_release(package, trust, arguments.allow_unsigned)
        check_time(verified.release, Now(time.time(), trusted=True))
        contents = read_package(package, verified.release)
        absent = check_weights(package, contents)
        size = sum(package.sizes.values())
    release = verified.release
    found = {
        "package": str(arguments.package),
        "product": release.product,
        "channel": release.channel,
        "counter": release.counter,
        "signers": sorted(verified.signers),
        "trust_root": None if root is None else str(root),
        "warning": verified.warning,
        "size_bytes": size,
        "omitted_blobs": [one.digest for one in absent],
    }
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    by = ", ".join(keyid[:12] for keyid in sorted(verified.signers)) or "nobody"
    print(f"{arguments.package}: {release.line} counter {release.counter}, {bytes_text(size)}, signed by {by}")
    if absent:
        print(f"{len(absent)} blobs are left out; the device must have them")
    print(f"WARNING: {verified.warning}" if verified.warning else "signature, digests, sizes and forms are right")
    return 0


def root_near(package: Path) -> Path:
    """The trust root of $EDGE_FORGE_KEYS, else of the build folder that the package lies in. Raises UsageError."""
    named = os.environ.get("EDGE_FORGE_KEYS")
    places = [Path(named)] if named else [package.resolve().parent.parent / "keys"]
    root = KeyFolder(places[0]).root_file
    if not root.is_file():
        raise UsageError(
            "no trust root was named, so nobody can be told from whom it is", str(package),
            f"--root FILE ({root} does not exist), or --allow-unsigned to check everything else",
        )  # fmt: skip
    state = UserState.of(os.environ)
    if not named and any(state.known(keyid) is None for keyid in load_trust(root).root.keys):
        raise UsageError(
            "the trust root beside the package was not made here, so it says nothing of the package", str(root),
            f"--root FILE; if the keys are yours, `edge-forge keygen {shlex.quote(str(root.parent))} --adopt`",
        )  # fmt: skip
    return root


def oci_verb(arguments: argparse.Namespace) -> int:
    """`edge-forge oci PACKAGE DIR`."""
    digest = write_layout(arguments.package, arguments.folder)
    print(f"wrote {arguments.folder}   ({digest})")
    print(f"next: skopeo copy --preserve-digests oci:{shlex.quote(str(arguments.folder))} docker://HOST/REPOSITORY:TAG")
    print("then: edge-agent install oci://HOST/REPOSITORY:TAG")
    return 0


def inspect_verb(arguments: argparse.Namespace) -> int:
    """`edge-forge inspect PACKAGE [--json]`."""
    found = describe(arguments.package)
    print(json.dumps(found, indent=2) if arguments.json else table(found))
    return 0


def describe(path: Path) -> dict[str, Any]:
    """Everything worth knowing of a package, as JSON values. Raises PackageError."""
    with open_package(path) as package:
        release = read_release(package, None, allow_unsigned=True).release
        contents = read_package(package, release)
        model = contents.model
        return {
            "package": str(path),
            "size_bytes": sum(package.sizes.values()),
            "release": _release(package, release),
            "model": None
            if model is None
            else {
                "name": model.name,
                "kind": model.kind,
                "base_id": model.base_id,
                "task": _task(model.task),
                "merged_from": model.merged_from,
            },
            "variants": [_variant(package, item) for item in contents.variants],
            "adapters": [_adapter(package, item) for item in contents.adapters],
            "files": _files(package, contents),
        }


def table(found: dict[str, Any]) -> str:
    """The same for a person, in columns."""
    release, model = found["release"], found["model"]
    lines = [
        f"{Path(found['package']).name}  {bytes_text(found['size_bytes'])}",
        f"  product   {release['product']}  channel {release['channel']}  counter {release['counter']}",
        f"  issued    {release['issued_at']}  expires {release['expires']}",
        f"  for       {', '.join(release['hardware']) or 'any board'}, edge-agent {release['min_agent']} or newer",
        f"  signed by {', '.join(one[:12] for one in release['signed_by']) or 'NOBODY'}   (not checked here)",
    ]
    if model is not None:
        lines += [f"  model     {model['name']} ({model['kind']}, base {model['base_id'][7:19]}), {model['task']}"]
        rows = [
            [one[key] for key in ("name", "file", "size", "memory", "accuracy", "needs")] for one in found["variants"]
        ]
        lines += ["", *_columns(("VARIANT", "FILE", "SIZE", "MEMORY", "ACCURACY", "NEEDS"), rows)]
    if found["adapters"]:
        rows = [[one[key] for key in ("name", "base", "rank", "size", "accuracy", "task")] for one in found["adapters"]]
        lines += ["", *_columns(("ADAPTER", "BASE", "RANK", "SIZE", "ACCURACY", "TASK"), rows)]
    rows = [[one["digest"][7:19], one["size"], one["state"], one["file"]] for one in found["files"]]
    lines += ["", *_columns(("BLOB", "SIZE", "WHERE", "FILE"), rows)]
    return "\n".join(lines)


def _release(package: Package, release: Release) -> dict[str, Any]:
    envelope, _ = sign.unwrap(package.read(RELEASE_FILE, limits.STATEMENT_BYTES), RELEASE_TYPE, RELEASE_FILE)
    return {
        "product": release.product,
        "channel": release.channel,
        "counter": release.counter,
        "issued_at": release.issued_at,
        "expires": release.expires,
        "hardware": list(release.hardware),
        "min_agent": release.min_agent,
        "requires": list(release.requires),
        "index": release.index.digest,
        "signed_by": [signature.keyid for signature in envelope.signatures],
        "roots": [name for name in package.sizes if name.startswith("root/")],
    }


def _variant(package: Package, item: VariantItem) -> dict[str, Any]:
    info = item.info
    probes = read_probes(item, fetcher(package))
    return {
        "name": item.name,
        "digest": item.descriptor.digest,
        "file": next(name for name, layer in item.files.items() if layer.digest == item.weight.digest),
        "size_bytes": item.weight.size,
        "size": bytes_text(item.weight.size),
        "peak_bytes": info.peak_bytes,
        "memory": bytes_text(info.peak_bytes),
        "accuracy": "-" if info.accuracy is None else f"{info.accuracy:.4f}",
        "needs": ", ".join((*info.features, *info.hardware)) or "-",
        "options": dict(info.options),
        "metrics": dict(info.metrics),
        "probes": len(probes.texts),
    }


def _adapter(package: Package, item: AdapterItem) -> dict[str, Any]:
    config = item.config
    probes = read_probes(item, fetcher(package))
    return {
        "name": config.name,
        "digest": item.descriptor.digest,
        "base_id": config.base_id,
        "base": config.base_id[7:19],
        "rank": str(config.rank) if config.targets else "head",
        "alpha": config.alpha,
        "targets": list(config.targets),
        "size_bytes": item.weight.size,
        "size": bytes_text(item.weight.size),
        "accuracy": "-" if config.accuracy is None else f"{config.accuracy:.4f}",
        "task": _task(config.task),
        "labels": list(config.task.labels),
        "probes": len(probes.texts),
        "proven_on": sorted(probes.expected),
    }


def _files(package: Package, contents: Contents) -> list[dict[str, Any]]:
    names: dict[str, str] = {}
    for item in contents.items:
        what = item.name if isinstance(item, VariantItem) else item.config.name
        names.setdefault(item.descriptor.digest, f"manifest of {what}")
        names.setdefault(item.manifest.config.digest, f"config of {what}")
        for name, layer in item.files.items():
            names.setdefault(layer.digest, name)
    found = []
    for digest, one in contents.descriptors().items():
        state = "here" if blob_name(digest) in package else "on the device"
        row = {"digest": digest, "size_bytes": one.size, "size": bytes_text(one.size), "state": state}
        found.append({**row, "file": names[digest]})
    return found


def _task(task: TaskDoc) -> str:
    labels = f", {len(task.labels)} labels" if task.labels else ""
    pairs = ", pairs of texts" if task.pairs else ""
    return f"{task.kind}{labels}{pairs}, {task.max_tokens} tokens"


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
