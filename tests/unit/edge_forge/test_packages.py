"""Packages from the host's side: the same bytes everywhere, clear words for wrong inputs, and the verbs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_agent.base.errors import EdgeError, PackageError, SignatureError, UsageError
from edge_agent.bundle.contents import read_contents
from edge_agent.bundle.jsonio import decode
from edge_agent.bundle.layout import blob_name, open_package
from edge_agent.bundle.manifest import Index
from edge_agent.bundle.verify import load_trust, read_package, read_release
from edge_forge import cli
from edge_forge.package.build import build, build_adapter_package, build_base_package, build_merged_package
from edge_forge.package.keys import keygen, rotate, sign_package
from tests.support import packages as tiny


def verb(*words: str) -> int:
    arguments = cli._parser().parse_args(words)
    found = cli._load(arguments.run)
    return found(arguments) or 0


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    """In another folder, under another umask, with other times, with files named in another order."""
    one = tiny.model_source(tmp_path / "one")
    old = os.umask(0o077)
    try:
        two = tiny.model_source(tmp_path / "deep" / "two")
        for path in (tmp_path / "deep").rglob("*"):
            os.utime(path, (1, 1))
        two = replace(two, docs=dict(reversed(list(two.docs.items()))))
        second = build_base_package(tmp_path / "b.tar", two, tiny.release("tiny"), keys=[tiny.keys().release_key])
    finally:
        os.umask(old)
    first = build_base_package(tmp_path / "a.tar", one, tiny.release("tiny"), keys=[tiny.keys().release_key])
    assert first.digest == second.digest and first.digest is not None
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert (tmp_path / "b.tar").stat().st_mode & 0o777 == 0o644


def test_signing_later_gives_what_signing_at_once_gives(tmp_path: Path) -> None:
    source = tiny.model_source(tmp_path / "s")
    at_once = build_base_package(tmp_path / "a.tar", source, tiny.release("tiny"), keys=[tiny.keys().release_key])
    later = build_base_package(tmp_path / "b.tar", source, tiny.release("tiny"))
    assert later.index_digest == at_once.index_digest
    sign_package(later.path, [tiny.keys().release_key])
    assert later.path.read_bytes() == at_once.path.read_bytes()


def test_an_adapter_package_leaves_the_base_out(tmp_path: Path) -> None:
    base = tiny.base_package(tmp_path)
    source = tiny.adapter_source(tmp_path / "a")
    built = build_adapter_package(tmp_path / "x.tar", [source], base, tiny.release("intents"))
    assert built.size_bytes < 5000
    with pytest.raises(UsageError, match="no package of base 0dd00dd00dd0"):
        other = tiny.adapter_source(tmp_path / "b", base_id=tiny.OTHER_BASE_ID)
        build_adapter_package(tmp_path / "y.tar", [other], base, tiny.release("intents"))


def test_merged_says_what_it_was_merged_from(tmp_path: Path) -> None:
    source = tiny.model_source(tmp_path / "s", "merged")
    with pytest.raises(UsageError, match="what it was merged from"):
        build_merged_package(tmp_path / "m.tar", source, tiny.release("merged"))
    source = replace(source, merged_from={"adapter": "intents", "base_id": tiny.BASE_ID})
    assert build_merged_package(tmp_path / "m.tar", source, tiny.release("merged")).size_bytes > 0
    with pytest.raises(UsageError, match="use build_merged_package"):
        build_base_package(tmp_path / "m.tar", source, tiny.release("merged"))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"name": "Tiny Model"}, "at `$.name`"),
    "base id": ({"base_id": "abc"}, "at `$.base_id`"),
    "task": ({"task": {"kind": "guess"}}, "task"),
    "task field": ({"task": {"kind": "embed", "tokens": 3}}, "unknown field `tokens`"),
    "probes": ({"probes": Path("/absent.json")}, "/absent.json"),
    "tokenizer": ({"tokenizer": Path("/absent.json")}, "/absent.json"),
    "no variant": ({"variants": ()}, "at least one variant"),
    "note": ({"docs": {"README.md": Path("/absent.md")}}, "/absent.md"),
    "note's name": ({"docs": {"run.py": Path(__file__)}}, "is not carried"),
    "requirement": ({"requires": ("magic/1",)}, "requires 'magic/1'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_named_and_leave_no_file(name: str, tmp_path: Path) -> None:
    fields, says = WRONG[name]
    source = replace(tiny.model_source(tmp_path / "s"), **fields)
    with pytest.raises(EdgeError) as caught:
        build_base_package(tmp_path / "out" / "x.tar", source, tiny.release("tiny"))
    assert says in str(caught.value)
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_weights_that_are_none(tmp_path: Path) -> None:
    source = tiny.model_source(tmp_path / "s")
    source.variants[0].weights.write_bytes(b"\x80\x04 pickled")
    with pytest.raises(UsageError, match=r"fp32\.onnx: model\.onnx is a Python pickle"):
        build_base_package(tmp_path / "x.tar", source, tiny.release("tiny"))


def test_probes_must_cover_every_variant(tmp_path: Path) -> None:
    source = tiny.model_source(tmp_path / "s")
    source = replace(source, probes=tiny.probe_file(tmp_path, ["onnx/int8"]))
    with pytest.raises(UsageError, match="no golden probes for variant onnx/fp32"):
        build_base_package(tmp_path / "x.tar", source, tiny.release("tiny"))


def test_a_package_that_cannot_be_written_again_stays_as_it_was(tmp_path: Path) -> None:
    source = tiny.model_source(tmp_path / "s")
    out = tmp_path / "x.tar"
    build_base_package(out, source, tiny.release("tiny"))
    good = out.read_bytes()
    with pytest.raises(EdgeError):
        build_base_package(out, replace(source, task={"kind": "classify"}), tiny.release("tiny"))
    assert out.read_bytes() == good


def test_a_folder_is_the_same_package(tmp_path: Path) -> None:
    source = tiny.model_source(tmp_path / "s")
    tar = build(tmp_path / "x.tar", tiny.release("tiny"), source)
    folder = build(tmp_path / "x", tiny.release("tiny"), source, folder=True)
    assert folder.index_digest == tar.index_digest and folder.size_bytes == tar.size_bytes
    sign_package(folder.path, [tiny.keys().release_key])
    with open_package(folder.path) as opened:
        assert read_release(opened, tiny.trust()).signers
    build(tmp_path / "x", tiny.release("tiny", 2), source, folder=True)
    with open_package(folder.path) as opened:
        assert read_release(opened, None, allow_unsigned=True).release.counter == 2


def test_every_manifest_has_a_name_for_the_tools_of_registries(tmp_path: Path) -> None:
    """One name each, in the letters of a registry's tag; variants that differ by their boards alone are numbered."""
    model = tiny.model_source(tmp_path / "src")
    boards = [replace(model.variants[1], hardware=(board,)) for board in ("orin", "xavier")]
    source = replace(model, variants=[model.variants[0], *boards])
    adapter = tiny.adapter_source(tmp_path / "adapter")
    out = tmp_path / "package"
    build(out, tiny.release("tiny"), source, [adapter], folder=True)
    index = json.loads((out / "index.json").read_bytes())
    assert index["mediaType"] == "application/vnd.oci.image.index.v1+json"
    names = [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index["manifests"]]
    assert names == ["onnx-fp32", "onnx-int8", "onnx-int8-2", "adapter-intents"]
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", name) for name in names)


def test_an_index_without_media_type_and_names_is_read(tmp_path: Path) -> None:
    """Other writers may leave both out."""
    model = tiny.model_source(tmp_path / "src")
    out = tmp_path / "package"
    build(out, tiny.release("tiny"), model, folder=True)
    index = json.loads((out / "index.json").read_bytes())
    del index["mediaType"]
    for entry in index["manifests"]:
        del entry["annotations"]
    with open_package(out) as package:
        contents = read_contents(
            decode(json.dumps(index).encode(), Index, "index.json"),
            lambda found, limit: package.read(blob_name(found.digest), limit),
        )
    assert [item.info.dtype for item in contents.variants] == ["fp32", "int8"]


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_skopeo_and_umoci_address_a_variant(form: str, tmp_path: Path) -> None:
    """With the real programs, where they are installed; the names themselves are tested above, everywhere."""
    for program in ("skopeo", "umoci"):
        if shutil.which(program) is None:
            pytest.skip(
                f"NO {program} HERE: whether it can address a variant was NOT checked; apt-get install {program}"
            )
    out = tmp_path / "package"
    model, adapter = tiny.model_source(tmp_path / "src"), tiny.adapter_source(tmp_path / "adapter")
    build(out, tiny.release("tiny"), model, [adapter], folder=form == "folder")
    where = f"{'oci' if form == 'folder' else 'oci-archive'}:{out}"
    copy = ["skopeo", "--insecure-policy", "copy", f"{where}:onnx-int8", f"oci:{tmp_path / 'copy'}:int8"]
    subprocess.run(copy, check=True, capture_output=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    copied = json.loads((tmp_path / "copy" / "index.json").read_bytes())["manifests"][0]["digest"]
    with open_package(out) as package:
        index = decode(package.read("index.json", 1 << 20), Index, "index.json")
    assert copied == index.manifests[1].digest
    if form == "folder":
        listed = subprocess.run(["umoci", "ls", "--layout", str(out)], check=True, capture_output=True, text=True)
        assert listed.stdout.split() == ["onnx-fp32", "onnx-int8", "adapter-intents"]


def test_rotation_of_each_role(tmp_path: Path) -> None:
    keys = keygen(tmp_path / "keys")
    trust = load_trust(keys.root_file)
    for roles in (("release",), ("root",), ("root", "release"), ("root",)):
        trust = trust.next(rotate(keys.path, roles).read_bytes(), "next")
    assert trust.root.version == 5
    (tmp_path / "keys" / "root-5.pem").unlink()
    with pytest.raises(UsageError, match=r"the private root key .* is not in it"):
        rotate(keys.path)


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    keys = keygen(tmp_path / "keys")
    assert keys.path.stat().st_mode & 0o777 == 0o700
    assert keys.release_key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="there are keys here already"):
        keygen(tmp_path / "keys")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="it is a file, not a folder for keys"):
        keygen(tmp_path / "file")


def test_a_package_that_is_not_there_is_said_before_its_trust_root(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"nope.tar: there is no such file"):
        verb("verify", str(tmp_path / "nope.tar"))


def test_an_adapters_licence_stands_where_registries_show_it(tmp_path: Path) -> None:
    base = build_base_package(tmp_path / "b.tar", tiny.model_source(tmp_path / "s"), tiny.release("tiny")).path
    source = replace(tiny.adapter_source(tmp_path / "a"), licences=["Apache-2.0"])
    built = build_adapter_package(tmp_path / "a.tar", [source], base, tiny.release("intents")).path
    with open_package(built) as package:
        found = read_package(package, read_release(package, None, allow_unsigned=True).release)
    assert found.adapters[0].manifest.annotations["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = str(tmp_path / "keys")
    assert verb("keygen", keys) == 0
    source = tiny.model_source(tmp_path / "s")
    package = str(build_base_package(tmp_path / "x.tar", source, tiny.release("tiny")).path)
    with pytest.raises(SignatureError, match="it is not signed"):
        verb("verify", package, "--root", f"{keys}/root.json")
    assert verb("verify", package, "--allow-unsigned") == 0
    assert "WARNING: the package is unsigned" in capsys.readouterr().out
    assert verb("sign", package, "--key", f"{keys}/release-1.pem") == 0
    assert verb("verify", package, "--root", f"{keys}/root.json") == 0
    assert "signature, digests, sizes and forms are right" in capsys.readouterr().out
    assert verb("verify", package, "--root", f"{keys}/root.json", "--json") == 0
    assert json.loads(capsys.readouterr().out)["product"] == "tiny"
    assert verb("inspect", package) == 0
    text = capsys.readouterr().out
    assert re.search(r"onnx/int8  model.onnx  \d+ B", text) and "model     tiny (base" in text
    assert verb("inspect", package, "--json") == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)["variants"]] == ["onnx/fp32", "onnx/int8"]
    assert verb("keygen", keys, "--rotate", "release") == 0
    assert verb("sign", package, "--key", f"{keys}/release-2.pem", "--root", f"{keys}/2.json") == 0
    assert verb("verify", package, "--root", f"{keys}/1.json") == 0, "an old device follows the root file"


def test_inspect_of_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tiny.adapter_package(tmp_path, tiny.base_package(tmp_path))
    assert verb("inspect", str(package)) == 0
    text = capsys.readouterr().out
    assert "intents  ba5eba5eba5e  4" in text and "classify, 2 labels, 32 tokens" in text
