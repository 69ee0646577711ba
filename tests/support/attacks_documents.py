"""Attacks inside a good signature: documents, file paths, and files that are not what they say."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from edge_agent.base.errors import PackageError
from edge_agent.bundle.statement import RELEASE_FILE
from edge_forge.package.build import base_descriptor, build
from tests.support import hostile
from tests.support import packages as tiny
from tests.support.hostile import Attack, Forge, Good, Make, forged, unpinned


def layer_path(name: str) -> Make:
    """A manifest whose weights claim another file path."""

    def change(manifest: Any) -> None:
        Forge.layer(manifest, "model.onnx")["annotations"]["org.cncf.model.filepath"] = name

    return forged(lambda forge: forge.edit(change))


def edit_weights(**fields: Any) -> Make:
    def change(manifest: Any) -> None:
        Forge.layer(manifest, "model.onnx").update(fields)

    return forged(lambda forge: forge.edit(change))


def many_layers(manifest: Any) -> None:
    manifest["layers"] = manifest["layers"] * 100


def raw_manifest(raw: bytes) -> Make:
    return forged(lambda forge: forge.set_manifest(None, raw=raw))


def weights(data: bytes) -> Make:
    return forged(lambda forge: forge.edit_layer("model.onnx", data, 1))


def document(name: str, data: bytes) -> Make:
    """A document that both variants share, replaced in both."""

    def change(forge: Forge) -> None:
        forge.edit_layer(name, data, 0)
        forge.edit_layer(name, data, 1)

    return forged(change)


def edit_document(path: str, **fields: Any) -> Make:
    def change(forge: Forge) -> None:
        layer = forge.layer(forge.manifest(), path)
        data = json.loads(forge.parts["blobs/sha256/" + layer["digest"][7:]])
        data.update(fields)
        for number in (0, 1):
            forge.edit_layer(path, json.dumps(data).encode(), number)

    return forged(change)


def variant_field(**fields: Any) -> Make:
    def change(manifest: Any) -> None:
        info = json.loads(manifest["annotations"]["edge-agent.variant+json"])
        info.update(fields)
        manifest["annotations"]["edge-agent.variant+json"] = json.dumps(info)

    return forged(lambda forge: (forge.edit(change, 0), forge.edit(change, 1)))  # type: ignore[arg-type, return-value]


def add_file(name: str, kind: str, data: bytes = b"import os") -> Make:
    def change(forge: Forge) -> None:
        layer = {"mediaType": kind, **forge.blob(data), "annotations": {"org.cncf.model.filepath": name}}
        forge.edit(lambda manifest: manifest["layers"].append(layer))

    return forged(change)


def drop_file(name: str) -> Make:
    def change(manifest: Any) -> None:
        manifest["layers"] = [
            one for one in manifest["layers"] if one["annotations"]["org.cncf.model.filepath"] != name
        ]

    return forged(lambda forge: forge.edit(change))


def bad_adapter(kind: str) -> Make:
    def make(good: Good, folder: Path) -> Path:
        forge = Forge(good.adapter)
        forge.edit_layer("adapter.safetensors", hostile.bad_safetensors(kind, tiny.BASE_ID))
        return forge.write(folder / "adapter.tar")

    return make


def foreign_adapter(good: Good, folder: Path) -> Path:
    source = tiny.adapter_source(folder / "src", "foreign", base_id=tiny.OTHER_BASE_ID)
    subject = base_descriptor(good.base, tiny.BASE_ID)
    keys = [tiny.keys().release_key]
    return build(folder / "foreign.tar", tiny.release("foreign"), None, [source], subject, keys).path


def missing_weights(good: Good, folder: Path) -> Path:
    forge = Forge(good.newer)
    layer = forge.layer(forge.manifest(1), "model.onnx")
    del forge.parts["blobs/sha256/" + layer["digest"][7:]]
    return forge.write(folder / "missing.tar")


def exchange_weights(forge: Forge) -> None:
    """Other weights of the same size under the same name, in every variant."""
    for number in (0, 1):
        layer = forge.layer(forge.manifest(number), "model.onnx")
        name = "blobs/sha256/" + layer["digest"][7:]
        forge.parts[name] = forge.parts[name][:-1] + b"!"


def demanding_adapter(good: Good, folder: Path) -> Path:
    """An adapter whose config asks for something that no agent knows."""
    forge = Forge(good.adapter)

    def change(manifest: Any) -> None:
        name = "blobs/sha256/" + manifest["config"]["digest"][7:]
        config = {**json.loads(forge.parts.pop(name)), "requires": ["magic/9"]}
        manifest["config"].update(forge.blob(json.dumps(config).encode()))

    forge.edit(change)
    return forge.write(folder / "demanding.tar")


def two_bases(good: Good, folder: Path) -> Path:
    """Adapters of two bases in one package; the builder would refuse it, so two are put together by hand."""
    forge, other = Forge(good.adapter), Forge(foreign_adapter(good, folder))
    forge.parts.update({name: data for name, data in other.parts.items() if name.startswith("blobs/")})
    forge.index["manifests"] += other.index["manifests"]
    return forge.write(folder / "two.tar")


def adapter_beside_a_foreign_model(good: Good, folder: Path) -> Path:
    forge, other = Forge(good.newer), Forge(foreign_adapter(good, folder))
    forge.parts.update({name: data for name, data in other.parts.items() if name.startswith("blobs/")})
    forge.index["manifests"] += other.index["manifests"]
    return forge.write(folder / "beside.tar")


def adapter_in_a_merged_model(good: Good, folder: Path) -> Path:
    """A merged model that claims the base_id of a base, with an adapter for it."""
    forge, other = Forge(good.newer), Forge(good.adapter)
    layer = forge.layer(forge.manifest(), "edge/model.json")
    merged = {**json.loads(forge.parts["blobs/sha256/" + layer["digest"][7:]]), "kind": "merged"}
    for number in (0, 1):
        forge.edit_layer("edge/model.json", json.dumps(merged).encode(), number)
    forge.parts.update({name: data for name, data in other.parts.items() if name.startswith("blobs/")})
    forge.index["manifests"] += other.index["manifests"]
    return forge.write(folder / "merged.tar")


def huge_tokenizer(manifest: Any) -> None:
    Forge.layer(manifest, "tokenizer.json")["size"] = 65 * 1024 * 1024


WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
CODE = "application/vnd.cncf.model.code.v1.raw"
FORM = "does not follow the format"

# Limits of the operator beside threads and memory. Written out, so that a word that goes from the list fails here.
OTHER_LIMITS = {"max_rows": 64, "max_tokens": 512, "decode_threads": 64, "shrink": True, "spinning": True}

DOCUMENTS = {
    "deep-index": Attack(forged(lambda forge: None, index=hostile.deep_json()), PackageError, "nests deeper than"),
    "deep-manifest": Attack(raw_manifest(hostile.deep_json()), PackageError, "nests deeper than"),
    "deep-statement": Attack(
        unpinned(lambda forge: forge.parts.update({RELEASE_FILE: hostile.deep_json(500)})),
        PackageError,
        "nests deeper than",
    ),
    "wide-statement": Attack(
        unpinned(lambda forge: forge.parts.update({RELEASE_FILE: b"[" + b"[]," * 2000 + b"[]]"})),
        PackageError,
        "has more than 1,024 objects and lists",
    ),
    "huge-statement": Attack(
        unpinned(lambda forge: forge.parts.update({RELEASE_FILE: b" " * 300_000})),
        PackageError,
        "256.0 KiB are allowed",
    ),
    "huge-manifest": Attack(raw_manifest(b"[" + b" " * 5_000_000 + b"]"), PackageError, "4.0 MiB are allowed"),
    "not-utf8": Attack(raw_manifest(b'{"schemaVersion": 2, "x": "\xff\xfe"}'), PackageError, "not UTF-8"),
    "lone-surrogate": Attack(raw_manifest(b'{"schemaVersion": 2, "x": "\\ud800"}'), PackageError, "manifest"),
    "duplicate-key": Attack(
        raw_manifest(b'{"schemaVersion": 2, "schemaVersion": 2}'), PackageError, "stands twice in one"
    ),
    "nan": Attack(raw_manifest(b'{"schemaVersion": NaN}'), PackageError, "NaN is no number"),
    "endless-number": Attack(raw_manifest(b'{"schemaVersion": ' + b"9" * 9999 + b"}"), PackageError, "no valid JSON"),
    "not-json": Attack(raw_manifest(pickle.dumps({"a": 1})), PackageError, "not UTF-8"),
    "utf16": Attack(raw_manifest('{"schemaVersion": 2}'.encode("utf-16")), PackageError, "not UTF-8"),
    "unknown-manifest-field": Attack(
        forged(lambda forge: forge.edit(lambda manifest: manifest.update(hooks=["x"]))),
        PackageError,
        "unknown field `hooks`",
    ),
    "too-many-layers": Attack(forged(lambda forge: forge.edit(many_layers)), PackageError, FORM),
    "too-many-manifests": Attack(
        forged(lambda forge: forge.index.update(manifests=forge.index["manifests"] * 200)), PackageError, FORM
    ),
    "manifest-twice": Attack(
        forged(lambda forge: forge.index["manifests"].append(forge.index["manifests"][0])), PackageError, "listed twice"
    ),
    "other-layout-version": Attack(
        forged(lambda forge: forge.parts.update({"oci-layout": b'{"imageLayoutVersion":"2.0.0"}'})),
        PackageError,
        "no OCI image layout",
    ),
    "urls": Attack(edit_weights(urls=["https://example.org/x"]), PackageError, "carries `urls`"),
    "embedded-data": Attack(edit_weights(data="QUJD"), PackageError, "unknown field `data`"),
    "sha512": Attack(edit_weights(digest="sha512:" + "0" * 128), PackageError, FORM),
    "digest-with-path": Attack(edit_weights(digest="sha256:../../../etc/passwd"), PackageError, FORM),
    "digest-with-line-break": Attack(edit_weights(digest="sha256:" + "0" * 64 + "\n"), PackageError, FORM),
    "negative-blob-size": Attack(edit_weights(size=-1), PackageError, FORM),
    "blob-size-over-limit": Attack(edit_weights(size=2**60), PackageError, FORM),
    "wrong-size": Attack(edit_weights(size=17), PackageError, "its descriptor says 17"),
    "wrong-digest": Attack(unpinned(exchange_weights), PackageError, "damaged or exchanged"),
    "path-dot-dot": Attack(layer_path("../../etc/cron.d/x.onnx"), PackageError, "not a plain relative path"),
    "path-absolute": Attack(layer_path("/etc/x.onnx"), PackageError, "not a plain relative path"),
    "path-hidden": Attack(layer_path(".ssh/x.onnx"), PackageError, "not a plain relative path"),
    "path-backslash": Attack(layer_path("..\\x.onnx"), PackageError, "not a plain relative path"),
    "path-newline": Attack(layer_path("a\nb.onnx"), PackageError, "not a plain relative path"),
    "path-too-long": Attack(layer_path("a" * 300 + ".onnx"), PackageError, "not a plain relative path"),
    "path-twice": Attack(layer_path("tokenizer.json"), PackageError, "manifest"),
    "code-layer": Attack(add_file("run.py", CODE), PackageError, "is not carried"),
    "python-as-config": Attack(add_file("modeling.py", CONFIG), PackageError, "is not carried"),
    "pickle-by-name": Attack(layer_path("model.pt"), PackageError, "is not carried"),
    "tar-layer": Attack(
        edit_weights(mediaType="application/vnd.cncf.model.weight.v1.tar+gzip"), PackageError, "is not carried"
    ),
    "two-weights": Attack(
        add_file("second.onnx", WEIGHT, tiny.onnx_bytes(b"x")), PackageError, "exactly one weights file"
    ),
    "no-probes": Attack(drop_file("edge/probes.json"), PackageError, "proves itself by golden probes"),
    "no-model-file": Attack(drop_file("edge/model.json"), PackageError, "edge/model.json is missing"),
    "pickle-as-onnx": Attack(weights(pickle.dumps({"a": 1})), PackageError, "a Python pickle"),
    "zip-as-onnx": Attack(weights(b"PK\x03\x04" + bytes(100)), PackageError, "a zip archive"),
    "elf-as-onnx": Attack(weights(b"\x7fELF" + bytes(100)), PackageError, "a program or library"),
    "script-as-onnx": Attack(weights(b"#!/bin/sh\nrm -rf /\n"), PackageError, "a script"),
    "noise-as-onnx": Attack(weights(bytes(range(1, 200))), PackageError, "model.onnx"),
    "onnx-field-too-long": Attack(
        weights(b"\x08\x08\x3a\xff\xff\xff\xff\x0fxx"), PackageError, "claims more bytes than its model holds"
    ),
    "onnx-without-graph": Attack(weights(b"\x08\x08"), PackageError, "holds no ONNX graph"),
    "onnx-endless-number": Attack(
        weights(b"\x08\x08\x3a" + b"\xff" * 20), PackageError, "the number at byte 3 does not end"
    ),
    "tokenizer-not-json": Attack(document("tokenizer.json", b"\x80\x04pickle"), PackageError, "a Python pickle"),
    "safetensors-header-size": Attack(bad_adapter("header-size"), PackageError, "its header claims"),
    "safetensors-overlap": Attack(bad_adapter("overlap"), PackageError, "overlap or leave a gap"),
    "safetensors-gap": Attack(bad_adapter("gap"), PackageError, "overlap or leave a gap"),
    "safetensors-shape": Attack(bad_adapter("shape"), PackageError, "does not fit its bytes"),
    "adapter-file-of-other-base": Attack(bad_adapter("base"), PackageError, "the manifest says otherwise"),
    "adapter-of-other-base": Attack(
        foreign_adapter,
        PackageError,
        "'foreign' needs base 0dd00dd00dd0, which is not installed; installed bases: tiny",
    ),
    "weights-missing": Attack(missing_weights, PackageError, "neither in the package nor intact in the store"),
    "variant-sets-the-threads": Attack(
        variant_field(options={"threads": 64}), PackageError, "sets the option 'threads', which the device decides"
    ),
    "variant-sets-its-memory": Attack(
        variant_field(options={"memory_bytes": 1 << 40}), PackageError, "sets the option 'memory_bytes'"
    ),
    **{
        f"variant-sets-{name.replace('_', '-')}": Attack(
            variant_field(options={name: value}), PackageError, f"sets the option '{name}'"
        )
        for name, value in OTHER_LIMITS.items()
    },
    **{
        f"{runtime}-variant-sets-{name.replace('_', '-')}": Attack(
            variant_field(runtime=runtime, options={name: value}), PackageError, f"sets the option '{name}'"
        )
        for runtime in ("llamacpp", "tensorrt", "echo")
        for name, value in {**OTHER_LIMITS, "threads": 64, "memory_bytes": 1 << 40}.items()
    },
    "variant-sets-what-its-runtime-does-not-have": Attack(
        variant_field(options={"context": 4096}), PackageError, "sets the option 'context', which onnx does not have"
    ),
    "generator-of-less-than-no-context": Attack(
        variant_field(runtime="llamacpp", options={"context": -1_000_000}),
        PackageError,
        "sets the option 'context' to -1000000, 0 to 131072 are possible",
    ),
    "generator-of-a-true-context": Attack(
        variant_field(runtime="llamacpp", options={"context": True}), PackageError, "sets the option 'context' to True"
    ),
    "generator-of-endless-sequences": Attack(
        variant_field(runtime="llamacpp", options={"sequences": 2**60}), PackageError, "sets the option 'sequences'"
    ),
    "generator-of-less-than-no-batch": Attack(
        variant_field(runtime="llamacpp", options={"batch": -(10**9)}), PackageError, "sets the option 'batch'"
    ),
    "generator-that-says-it-frees-memory": Attack(
        variant_field(runtime="llamacpp", metrics={"peak_bytes.ctx512.kv_f16": -1e300}),
        PackageError,
        "states peak_bytes.ctx512.kv_f16 as -1e+300 bytes",
    ),
    "variant-unknown-field": Attack(variant_field(pre_load="x"), PackageError, "unknown field `pre_load`"),
    "variant-unknown-requirement": Attack(variant_field(requires=["magic/9"]), PackageError, "requires 'magic/9'"),
    "variant-other-board": Attack(variant_field(hardware=["pi5"]), PackageError, "it is for pi5, this is test-board"),
    "variant-no-runtime": Attack(
        variant_field(runtime="tensorrt"), PackageError, "runtime 'tensorrt' is not available"
    ),
    "model-name-is-a-path": Attack(edit_document("edge/model.json", name="../x"), PackageError, FORM),
    "model-name-is-a-topic": Attack(edit_document("edge/model.json", name="a/#"), PackageError, FORM),
    "model-name-with-line-break": Attack(edit_document("edge/model.json", name="tiny\n"), PackageError, FORM),
    "adapter-unknown-requirement": Attack(demanding_adapter, PackageError, "requires 'magic/9'"),
    "adapters-of-two-bases": Attack(two_bases, PackageError, "belong to different bases"),
    "adapter-beside-a-foreign-model": Attack(
        adapter_beside_a_foreign_model, PackageError, "do not belong to its model"
    ),
    "adapter-in-a-merged-model": Attack(adapter_in_a_merged_model, PackageError, "do not belong to its model"),
    "huge-tokenizer": Attack(forged(lambda forge: forge.edit(huge_tokenizer)), PackageError, "64.0 MiB are allowed"),
    "labels-twice": Attack(
        edit_document("edge/model.json", task={"kind": "classify", "labels": ["a", "a"]}), PackageError, "stands twice"
    ),
    "too-many-probes": Attack(edit_document("edge/probes.json", texts=["x"] * 65), PackageError, FORM),
    "probe-rows-missing": Attack(
        edit_document("edge/probes.json", texts=["one"]), PackageError, "not as many as the texts"
    ),
}
