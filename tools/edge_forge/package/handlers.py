"""What the verbs keygen, sign, verify and inspect do and print. Each takes parsed arguments, returns an exit code."""

from __future__ import annotations

import argparse
import json
import time

from edge_agent.base.units import bytes_text
from edge_agent.bundle.layout import open_package
from edge_agent.bundle.statement import Now, check_time
from edge_agent.bundle.verify import check_weights, load_trust, read_package, read_release
from edge_forge.package.inspect import describe, table
from edge_forge.package.keys import ROLES, KeyFolder, keygen, rotate, sign_package


def keygen_verb(arguments: argparse.Namespace) -> int:
    """`edge-forge keygen DIR [--rotate ROLE]`."""
    if arguments.rotate is not None:
        roles = ROLES if arguments.rotate == "all" else (arguments.rotate,)
        root_file = rotate(arguments.dir, roles)
        print(f"wrote {root_file}")
        print(f"next: edge-forge sign PACKAGE --key {KeyFolder(arguments.dir).release_key} --root {root_file}")
        return 0
    keys = keygen(arguments.dir)
    print(f"private: {keys.private('root', 1)}   (keep it offline; it decides who may release)")
    print(f"private: {keys.release_key}   (signs packages)")
    print(f"public:  {keys.root_file}   (goes to every device as store.trust_root)")
    return 0


def sign_verb(arguments: argparse.Namespace) -> int:
    """`edge-forge sign PACKAGE --key FILE [--root FILE]`."""
    for keyid in sign_package(arguments.package, arguments.key, arguments.root):
        print(f"{arguments.package}: signed by {keyid[:12]}")
    return 0


def verify_verb(arguments: argparse.Namespace) -> int:
    """`edge-forge verify PACKAGE --root FILE`."""
    trust = None if arguments.root is None else load_trust(arguments.root)
    with open_package(arguments.package) as package:
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


def inspect_verb(arguments: argparse.Namespace) -> int:
    """`edge-forge inspect PACKAGE [--json]`."""
    found = describe(arguments.package)
    print(json.dumps(found, indent=2) if arguments.json else table(found))
    return 0
