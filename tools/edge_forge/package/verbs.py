"""The verbs keygen, sign, verify and inspect: their arguments. What they do is imported when one of them runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_HERE = "edge_forge.package.package_commands"


def register(subparsers: Any) -> None:
    """Add the verbs to `argparse`'s subparsers; each sets `run` to 'module:function'."""
    keygen = subparsers.add_parser("keygen", help="make signing keys and the trust root that devices need")
    keygen.add_argument("dir", type=Path, metavar="DIR", help="the folder for the keys; keep it off the devices")
    keygen.add_argument(
        "--rotate", choices=("root", "release", "all"), help="new keys and the next root file, signed by old and new"
    )
    keygen.set_defaults(run=f"{_HERE}:keygen_verb")

    sign = subparsers.add_parser("sign", help="sign a package in place")
    _package(sign)
    sign.add_argument("--key", type=Path, action="append", required=True, metavar="FILE", help="a private release key")
    sign.add_argument(
        "--root", type=Path, action="append", default=[], metavar="FILE", help="a root file that travels with it"
    )
    sign.set_defaults(run=f"{_HERE}:sign_verb")

    verify = subparsers.add_parser("verify", help="check a package as a device would, weights included")
    _package(verify)
    verify.add_argument("--root", type=Path, metavar="FILE", help="the trust root (root.json)")
    verify.add_argument("--allow-unsigned", action="store_true", help="check everything but who made it")
    verify.add_argument("--json", action="store_true", help="print the result as JSON")
    verify.set_defaults(run=f"{_HERE}:verify_verb")

    inspect = subparsers.add_parser("inspect", help="say what a package holds; checks no signature")
    _package(inspect)
    inspect.add_argument("--json", action="store_true", help="print it as JSON")
    inspect.set_defaults(run=f"{_HERE}:inspect_verb")


def _package(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="a package: one tar, or a folder")
