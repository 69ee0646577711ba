"""Attacks on the statement: who signed, over what, for whom, until when, and in which order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edge_agent.base.errors import PackageError, SignatureError
from edge_agent.bundle import sign
from edge_agent.bundle.statement import RELEASE_FILE
from tests.support import hostile
from tests.support import packages as tiny
from tests.support.hostile import Attack, Forge, Good, Make, forged, unpinned


def release_field(**fields: Any) -> Make:
    return forged(lambda forge: forge.release.update(fields))


def drop_statement(forge: Forge) -> None:
    forge.parts["oci-layout"], forge.parts[RELEASE_FILE] = forge.parts["oci-layout"], b""


def add_manifest_outside(forge: Forge) -> None:
    """The index gains a manifest that the statement never saw."""
    forge.index["manifests"].append(dict(forge.index["manifests"][0]))
    forge.parts["index.json"] = json.dumps(forge.index).encode()


def longer_index(forge: Forge) -> None:
    """The signed bytes are still the first part of the index: a reader that checks a prefix would believe it."""
    forge.parts["index.json"] += b" "


def same_size_index(forge: Forge) -> None:
    forge.parts["index.json"] = forge.parts["index.json"].replace(b'"schemaVersion":2', b'"schemaVersion":3')


def other_payload_type(forge: Forge) -> None:
    envelope = json.loads(forge.parts[RELEASE_FILE])
    envelope["payloadType"] = "application/vnd.edge-agent.root.v1+json"
    forge.parts[RELEASE_FILE] = json.dumps(envelope).encode()


def swapped_payload(forge: Forge) -> None:
    forge.release["counter"] = 99
    honest = json.loads(forge.parts[RELEASE_FILE])
    forge.sign()
    changed = json.loads(forge.parts[RELEASE_FILE])
    changed["signatures"] = honest["signatures"]
    forge.parts[RELEASE_FILE] = json.dumps(changed).encode()


def loose_base64(forge: Forge) -> None:
    envelope = json.loads(forge.parts[RELEASE_FILE])
    envelope["signatures"][0]["sig"] = envelope["signatures"][0]["sig"] + "===="
    forge.parts[RELEASE_FILE] = json.dumps(envelope).encode()


def base64_with_spare_bits(forge: Forge) -> None:
    """64 bytes end in a character of which four bits say nothing: another one decodes to the same signature."""
    envelope = json.loads(forge.parts[RELEASE_FILE])
    text = envelope["signatures"][0]["sig"]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    envelope["signatures"][0]["sig"] = text[:-3] + letters[letters.index(text[-3]) ^ 1] + "=="
    forge.parts[RELEASE_FILE] = json.dumps(envelope).encode()


def other_root_of_that_version(forge: Forge) -> None:
    forge.parts["root/1.json"] = tiny.trust().data.replace(b'"', b' "', 1)


def stray_blob(forge: Forge) -> None:
    forge.blob(b"nobody signed me")


def foreign_root(forge: Forge) -> None:
    stranger = sign.PrivateKey.generate()
    keys = {stranger.keyid: stranger.public_hex}
    role = {"keys": [stranger.keyid], "threshold": 1}
    root = {"schema": 1, "version": 2, "keys": keys, "roles": {"root": role, "release": role}}
    kind = "application/vnd.edge-agent.root.v1+json"
    forge.parts["root/2.json"] = sign.wrap(kind, json.dumps(root).encode(), [stranger])


def skipped_root(forge: Forge) -> None:
    foreign_root(forge)
    forge.parts["root/3.json"] = forge.parts.pop("root/2.json")


def replayed(good: Good, folder: Path) -> Path:
    return tiny.base_package(folder, counter=4, seed=3)


def same_counter(good: Good, folder: Path) -> Path:
    return tiny.base_package(folder, counter=5, seed=4)


def write_with_field(good: Good, folder: Path) -> Path:
    forge = Forge(good.newer)
    forge.release["run_after_install"] = "rm -rf /"
    return forge.write(folder / "field.tar")


SIGNATURE = {
    "no-statement": Attack(
        lambda good, folder: hostile.write_parts(
            folder / "none.tar", {k: v for k, v in hostile.read_parts(good.newer).items() if k != RELEASE_FILE}
        ),
        PackageError,
        "not with the signed statement",
    ),
    "empty-statement": Attack(unpinned(drop_statement), PackageError, "no valid JSON"),
    "unsigned": Attack(forged(lambda forge: None, keys=[]), SignatureError, "it is not signed"),
    "unknown-key": Attack(
        forged(lambda forge: None, keys=[sign.PrivateKey.generate()]),
        SignatureError,
        "none of which root version 1 trusts",
    ),
    "root-key-for-a-release": Attack(
        lambda good, folder: Forge(good.newer).write(
            folder / "role.tar", keys=[sign.PrivateKey.load(tiny.keys().private("root", 1))]
        ),
        SignatureError,
        "none of which root version 1 trusts",
    ),
    "payload-swapped": Attack(unpinned(swapped_payload), SignatureError, "does not fit the contents"),
    "payload-type-swapped": Attack(unpinned(other_payload_type), PackageError, "is needed"),
    "base64-loose": Attack(unpinned(loose_base64), PackageError, "base64"),
    "base64-spare-bits": Attack(unpinned(base64_with_spare_bits), PackageError, "canonical form"),
    "root-differs": Attack(unpinned(other_root_of_that_version), SignatureError, "differs from the root file"),
    "signed-over-a-prefix": Attack(unpinned(longer_index), PackageError, "the statement signed"),
    "index-same-size": Attack(unpinned(same_size_index), SignatureError, "not the one that was signed"),
    "manifest-outside": Attack(unpinned(add_manifest_outside), PackageError, "the statement signed"),
    "blob-outside": Attack(unpinned(stray_blob), PackageError, "not covered by the signed index"),
    "expired": Attack(
        release_field(issued_at="2026-07-02T00:00:00Z", expires="2026-08-02T00:00:00Z"), SignatureError, "expired at"
    ),
    "expires-before-issued": Attack(
        release_field(issued_at="2028-01-01T00:00:00Z", expires="2027-01-01T00:00:00Z"), PackageError, "expires before"
    ),
    "issued-in-the-future": Attack(
        release_field(issued_at="2029-01-01T00:00:00Z", expires="2031-01-01T00:00:00Z"), SignatureError, "in the future"
    ),
    "no-such-day": Attack(release_field(issued_at="2026-02-31T00:00:00Z"), PackageError, "no moment of the calendar"),
    "replayed-counter": Attack(replayed, SignatureError, "is older than 5"),
    "same-counter-other-contents": Attack(same_counter, SignatureError, "committed with other contents"),
    "newer-agent": Attack(release_field(min_agent="99.0"), PackageError, "it needs edge-agent 99.0"),
    "other-hardware": Attack(
        release_field(hardware=["jetson-orin-nano"]),
        PackageError,
        "for other hardware: jetson-orin-nano; this is test-board",
    ),
    "unknown-requirement": Attack(release_field(requires=["quantum/1"]), PackageError, "requires 'quantum/1'"),
    "unknown-field": Attack(write_with_field, PackageError, "unknown field `run_after_install`"),
    "foreign-root": Attack(unpinned(foreign_root), SignatureError, "none of which root version 1 trusts"),
    "root-skipped": Attack(unpinned(skipped_root), SignatureError, "root files from 2"),
}
