"""Install, adapters, rollback, removal: what a person does, on tiny packages."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.app.packages import models_text
from edge_agent.base.clock import ManualClock
from edge_agent.base.errors import AdapterRefused, PackageError, ProbeError, SignatureError, StoreError, WorkerError
from edge_agent.bundle.gguf_memory import GeneratorOverrides
from edge_agent.bundle.verify import load_trust
from edge_agent.core.desired_state import Wanted
from edge_agent.store.crash_points import PHASES
from edge_agent.store.install import _still_signed as still_signed
from edge_agent.store.install_plan import InstallContext
from edge_agent.store.model_store import ModelStore
from edge_agent.store.state_file import StateFile
from edge_agent.store.state_folder import change_lock
from edge_agent.store.variant_selection import SelectionPolicy
from edge_forge.package.build import base_descriptor, build
from edge_forge.package.keys import delegate, keygen, rotate, sign_package
from edge_forge.package.sources import ModelSource, VariantSource
from tests.support import packages as tiny
from tests.support.gguf_bytes import LLAMA, WEIGHTS, gguf_bytes


def install_context(**changes: Any) -> InstallContext:
    known: dict[str, Any] = {
        "prober": tiny.TinyProber(),
        "hardware": tiny.HARDWARE,
        "trust": tiny.trust(),
        "clock": ManualClock(wall_s=tiny.WALL_S),
        "reserve_bytes": 0,
    }
    return InstallContext(**{**known, **changes})


@pytest.fixture
def library(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store", install_context())


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "change.lock"
    }


def test_a_base_becomes_active_with_the_chosen_variant(library: ModelStore, tmp_path: Path) -> None:
    phases: list[str] = []
    report = library.install(tiny.base_package(tmp_path), lambda phase, _done, _total: phases.append(phase))
    (model,) = library.active()
    assert (model.name, model.kind, model.version, model.base_id) == ("tiny", "base", 1, tiny.BASE_ID)
    assert model.variant.name == "onnx/int8" and model.task.kind == "embed" and model.adapters == ()
    assert set(model.variant.files) == {"model", "tokenizer"}
    assert [(one.name, bool(one.files)) for one in model.variants] == [("onnx/fp32", False), ("onnx/int8", True)]
    assert [phase for phase in phases if phase in PHASES] == list(PHASES)
    assert report.lines[0].startswith("tiny: onnx/int8 of 2 by policy 'balanced'")
    assert "tiny: 2 golden probes hold" in report.lines
    assert library.models()[0].current.measured.latency_ms == 1.5


def test_all_variants_are_kept_where_the_operator_wants_them(tmp_path: Path) -> None:
    library = ModelStore(tmp_path / "store", install_context(keep_all=True))
    library.install(tiny.base_package(tmp_path))
    assert all(variant.files for variant in library.active()[0].variants)
    assert library.scrub() == () and library.collect() == 0


def test_an_adapter_that_is_a_head_alone_is_not_said_to_have_a_rank(library: ModelStore, tmp_path: Path) -> None:
    base = tiny.base_package(tmp_path)
    library.install(base)
    library.install(tiny.adapter_package(tmp_path, base))
    head = replace(tiny.adapter_source(tmp_path / "head", "head"), rank=1, targets=[])
    shapes = {"head.weight": (8, 2), "head.bias": (2,)}
    metadata = {"format": "edge-adapter/1", "base_id": tiny.BASE_ID, "rank": "1"}
    Path(head.weights).write_bytes(tiny.safetensors_bytes(shapes, metadata))
    subject = tiny.base_descriptor(base, tiny.BASE_ID)
    keys = [tiny.keys().release_key]
    library.install(build(tmp_path / "head-1.tar", tiny.release("head", 1), None, [head], subject, keys).path)
    (model,) = library.active()
    assert {adapter.name: adapter.rank for adapter in model.adapters} == {"intents": 4, "head": 0}
    listed = {"name": "tiny", "version": 1, "task": "embed", "variant": "x", "why": "y", "choice": ""}
    adapters = [{"name": one.name, "rank": one.rank, "task": "classify"} for one in model.adapters]
    text = models_text([{**listed, "adapters": adapters}], why=False)
    assert "  + head  head alone  classify" in text
    assert "  + intents  rank 4  classify" in text


def test_an_adapter_ships_alone_and_rolls_back(library: ModelStore, tmp_path: Path) -> None:
    base = tiny.base_package(tmp_path)
    library.install(base)
    before = library.generation()
    report = library.install(tiny.adapter_package(tmp_path, base, counter=7))
    assert library.generation() != before
    assert report.written_bytes < 6000, "only the adapter's own files"
    (model,) = library.active()
    (adapter,) = model.adapters
    assert (model.version, adapter.name, adapter.rank, adapter.version) == (2, "intents", 4, 7)
    assert adapter.task.labels == ("light", "heat") and Path(adapter.path).stat().st_size == adapter.size_bytes
    assert adapter.measured is not None and adapter.measured.latency_ms == 2.5, "what a text takes with it is kept"
    assert adapter.file_digest.removeprefix("sha256:") == Path(adapter.path).name
    assert not library.install(tmp_path / "intents-7.tar").changed, "what was measured is no change of its own"
    assert library.rollback("tiny").adapters == ()
    assert library.active()[0].version == 1
    assert library.rollback("tiny").version == 2, "two slots: back and forth"


def test_two_adapters_on_one_base_and_a_new_base_under_them(library: ModelStore, tmp_path: Path) -> None:
    base = tiny.base_package(tmp_path)
    library.install(base)
    library.install(tiny.adapter_package(tmp_path, base))
    library.install(tiny.adapter_package(tmp_path, base, name="urgency"))
    assert [one.name for one in library.active()[0].adapters] == ["intents", "urgency"]
    library.install(tiny.base_package(tmp_path, counter=2, seed=2))
    (model,) = library.active()
    assert [one.name for one in model.adapters] == ["intents", "urgency"], "the same base_id: they come along"
    assert library.install(tiny.adapter_package(tmp_path, base, counter=2, seed=5)).changed
    assert {one.name: one.version for one in library.active()[0].adapters} == {"intents": 2, "urgency": 1}


def test_adapters_of_the_old_base_stay_behind(library: ModelStore, tmp_path: Path) -> None:
    base = tiny.base_package(tmp_path)
    library.install(base)
    library.install(tiny.adapter_package(tmp_path, base))
    other = tiny.model_source(tmp_path / "other", "tiny", 3, base_id=tiny.OTHER_BASE_ID)
    package = build(tmp_path / "o.tar", tiny.release("tiny", 2), other, keys=[tiny.keys().release_key]).path
    report = library.install(package)
    assert "tiny: adapter intents does not fit and stays behind" in report.lines
    assert library.active()[0].adapters == ()
    assert [one.name for one in library.rollback("tiny").adapters] == ["intents"]


def test_a_base_with_its_adapters_in_one_package(library: ModelStore, tmp_path: Path) -> None:
    model, adapter = tiny.model_source(tmp_path / "m"), tiny.adapter_source(tmp_path / "a")
    package = build(tmp_path / "x.tar", tiny.release("tiny"), model, [adapter], keys=[tiny.keys().release_key]).path
    library.install(package)
    assert [one.name for one in library.active()[0].adapters] == ["intents"]


def test_a_merged_model_takes_no_adapters(library: ModelStore, tmp_path: Path) -> None:
    base = tiny.base_package(tmp_path)
    source = replace(tiny.model_source(tmp_path / "m", "home-merged"), merged_from={"adapter": "intents"})
    library.install(build(tmp_path / "m.tar", tiny.release("m"), source, keys=[tiny.keys().release_key]).path)
    assert library.active()[0].kind == "merged"
    with pytest.raises(PackageError, match="is not installed; no base is installed"):
        library.install(tiny.adapter_package(tmp_path, base))


def test_no_adapter_lands_on_a_merged_model_whatever_its_base_id(library: ModelStore, tmp_path: Path) -> None:
    base = tiny.base_package(tmp_path)
    library.install(base)
    library.install(tiny.adapter_package(tmp_path, base))
    source = replace(tiny.model_source(tmp_path / "m", "tiny", 3), merged_from={"adapter": "intents"})
    keys = [tiny.keys().release_key]
    report = library.install(build(tmp_path / "m.tar", tiny.release("tiny", 2), source, keys=keys).path)
    assert library.active()[0].kind == "merged" and library.active()[0].adapters == ()
    assert "tiny: adapter intents does not fit and stays behind" in report.lines
    with pytest.raises(PackageError, match="no base is installed"):
        library.install(tiny.adapter_package(tmp_path, base, counter=2, seed=4))


def test_the_same_package_again_changes_nothing(library: ModelStore, tmp_path: Path) -> None:
    package = tiny.base_package(tmp_path)
    library.install(package)
    before, generation = snapshot(tmp_path / "store"), library.generation()
    report = library.install(package)
    assert not report.changed and report.written_bytes == 0
    assert snapshot(tmp_path / "store") == before and library.generation() == generation


def test_an_install_repairs_what_the_disk_has_changed(library: ModelStore, tmp_path: Path) -> None:
    package = tiny.base_package(tmp_path)
    library.install(package)
    weights = Path(library.active()[0].variant.files["model"])
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + b"!")
    (damage,) = library.scrub()
    assert damage.models == ("tiny",) and damage.digest.endswith(weights.name)
    generation = library.generation()
    assert library.install(package).written_bytes == len(good)
    assert weights.read_bytes() == good and library.scrub() == ()
    assert library.generation() != generation, "a daemon that gave the model up looks again"


def test_a_cut_off_file_takes_the_model_out_of_service_and_says_so(library: ModelStore, tmp_path: Path) -> None:
    library.install(tiny.base_package(tmp_path))
    os.truncate(library.active()[0].variant.files["model"], 10)
    reopened = ModelStore(tmp_path / "store", install_context())
    assert reopened.active() == ()
    assert reopened.problems() == (
        "tiny: tiny: a file of variant onnx/int8 is missing or cut off (install its package again)",
    )
    assert "cut off" in str(reopened.models()[0].problem)
    held = reopened.packages()
    assert held.current == {} and held.damaged == {("tiny", None)} and not held.shows(Wanted("tiny", None, None))


@pytest.mark.parametrize("weights", [False, True], ids=["manifest", "weights"])
def test_a_bad_sector_takes_one_model_out_of_service_and_an_install_writes_it_anew(
    library: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bool
) -> None:
    packages = [tiny.base_package(tmp_path, 1, name, seed) for seed, name in enumerate(("tiny", "mini"))]
    for package in packages:
        library.install(package)
    model = next(one for one in library.active() if one.name == "tiny")
    bad = Path(model.variant.files["model"]) if weights else tmp_path / "store/blobs/sha256" / model.variant.digest[7:]
    inode, real = bad.stat().st_ino, Path.open

    def opened(path: Path, *more: Any, **named: Any) -> Any:
        if path.exists() and path.stat().st_ino == inode:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, *more, **named)

    monkeypatch.setattr(Path, "open", opened)
    reopened = ModelStore(tmp_path / "store", install_context())
    if not weights:  # which are read by the worker alone
        assert [one.name for one in reopened.active()] == ["mini"]
        assert "it cannot be read: Input/output error (check the card" in reopened.problems()[0]
        assert reopened.packages().damaged == {("tiny", None)}
    assert [one.models for one in reopened.scrub()] == [("tiny",)]
    assert reopened.install(packages[0]).written_bytes > 0
    assert reopened.scrub() == () and len(reopened.active()) == 2 and bad.stat().st_ino != inode


def test_probes_that_fail_keep_the_old_version(library: ModelStore, tmp_path: Path) -> None:
    library.install(tiny.base_package(tmp_path))
    before = snapshot(tmp_path / "store")
    bad = tiny.model_source(tmp_path / "bad", seed=9, off=0.5)
    package = build(tmp_path / "bad.tar", tiny.release("tiny", 2), bad, keys=[tiny.keys().release_key]).path
    with pytest.raises(ProbeError) as caught:
        library.install(package)
    assert str(caught.value).startswith("model tiny, variant onnx/int8: probe-mismatch: probe 1 ('turn on the light')")
    assert snapshot(tmp_path / "store") == before


def test_an_adapter_without_effect_is_refused_by_name(tmp_path: Path) -> None:
    base = tiny.base_package(tmp_path)
    ModelStore(tmp_path / "store", install_context()).install(base)
    deaf = ModelStore(tmp_path / "store", install_context(prober=tiny.TinyProber(deaf=True)))
    before = snapshot(tmp_path / "store")
    with pytest.raises(ProbeError) as caught:
        deaf.install(tiny.adapter_package(tmp_path, base))
    assert "adapter intents on tiny, variant onnx/int8: adapter-ineffective: with and without it" in str(caught.value)
    assert snapshot(tmp_path / "store") == before


@pytest.mark.parametrize("error", [WorkerError("the worker died", "worker"), AdapterRefused("rank 4 is too large")])
def test_a_worker_that_fails_is_a_failed_probe(error: Exception, tmp_path: Path) -> None:
    library = ModelStore(tmp_path / "store", install_context(prober=tiny.TinyProber(error=error)))
    with pytest.raises(ProbeError, match="the golden probes could not be run: "):
        library.install(tiny.base_package(tmp_path))
    assert snapshot(tmp_path / "store") == {}


def test_a_variant_without_probes_of_the_adapter(library: ModelStore, tmp_path: Path) -> None:
    base = tiny.base_package(tmp_path)
    library.install(base)
    source = tiny.adapter_source(tmp_path / "a")
    source = replace(source, probes=tiny.probe_file(tmp_path, ["onnx/fp32"], adapter="intents"))
    subject = base_descriptor(base, tiny.BASE_ID)
    keys = [tiny.keys().release_key]
    package = build(tmp_path / "a.tar", tiny.release("intents"), None, [source], subject, keys).path
    with pytest.raises(ProbeError, match="no golden probes for variant onnx/int8"):
        library.install(package)


def test_only_what_is_new_is_probed(tmp_path: Path) -> None:
    prober = tiny.TinyProber()
    library = ModelStore(tmp_path / "store", install_context(prober=prober))
    base = tiny.base_package(tmp_path)
    library.install(base)
    library.install(tiny.adapter_package(tmp_path, base))
    library.install(tiny.base_package(tmp_path, counter=2, seed=2))
    assert prober.asked == [
        ("tiny", (None,)),
        ("tiny", ("intents", None)),
        ("tiny", (None, "intents", None)),
    ]


def test_the_disk_is_full_before_a_byte_is_written(tmp_path: Path) -> None:
    library = ModelStore(
        tmp_path / "store", install_context(reserve_bytes=2**30, free_bytes=lambda _path: 2**30 + 5000)
    )
    with pytest.raises(StoreError) as caught:
        library.install(tiny.base_package(tmp_path))
    assert "the disk is too full: 1.0 MiB are needed and 1.0 GiB stay reserved, 1.0 GiB are free" in str(caught.value)
    assert snapshot(tmp_path / "store") == {}


def test_the_disk_fills_up_on_the_way(tmp_path: Path, library: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every write in turn: refused with the reason, and nothing changed; but for the last, which is the switch."""
    library.install(tiny.base_package(tmp_path))
    package = tiny.base_package(tmp_path, counter=2, seed=2)
    sync = os.fsync
    calls: list[int] = []
    full_at = 0

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    while True:
        before, full_at = snapshot(tmp_path / "store"), full_at + 1
        calls.clear()
        try:
            library.install(package)
        except StoreError as error:
            assert "No space left on device" in str(error)
        else:
            break
        if len(library.models()) and library.models()[0].current.version == 1:
            assert snapshot(tmp_path / "store") == before, full_at
    assert full_at > 10 and library.active()[0].version == 2 and library.scrub() == ()


def test_the_same_contents_under_a_higher_counter_raise_the_floor(library: ModelStore, tmp_path: Path) -> None:
    library.install(tiny.base_package(tmp_path, counter=1))
    report = library.install(tiny.base_package(tmp_path, counter=3))
    assert not report.changed and library.active()[0].version == 1
    with pytest.raises(PackageError, match="is older than 3"):
        library.install(tiny.base_package(tmp_path, counter=2, seed=2))


def test_order_on_disk_contents_before_names_before_the_switch(
    tmp_path: Path, library: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync of a file comes before its rename, fsync of the blobs' folder before the record that needs them."""
    done: list[tuple[str, str]] = []
    sync, move = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        done.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        sync(descriptor)

    def replace_(path: Path, target: Path) -> Path:
        done.append(("move", path.name))
        return move(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace_)
    package = tiny.base_package(tmp_path)
    done.clear()
    library.install(package)
    for at, (what, name) in enumerate(done):
        if what == "move":
            assert ("sync", name) in done[:at], name
    switch = done.index(("move", "record.json.tmp"))
    last_blob = max(at for at, (what, name) in enumerate(done) if what == "move" and len(name) == 64)
    assert last_blob < done.index(("sync", "sha256")) < done.index(("move", "trials.json.tmp")) < switch
    assert ("sync", "store") in done[switch:]


def test_rollback_and_removal_of_what_is_not_there(library: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no model 'tiny' \(installed: none\)"):
        library.rollback("tiny")
    library.install(tiny.base_package(tmp_path))
    with pytest.raises(StoreError, match="no version of 'tiny' before version 1"):
        library.rollback("tiny")
    with pytest.raises(StoreError, match=r"no model 'other' \(installed: tiny\)"):
        library.remove("other")
    with pytest.raises(StoreError, match=r"'tiny' has no adapter 'x' \(it has: none\)"):
        library.remove("tiny", "x")


def test_removal_frees_the_disk_and_keeps_the_counter(library: ModelStore, tmp_path: Path) -> None:
    base = tiny.base_package(tmp_path, counter=3)
    library.install(base)
    library.install(tiny.adapter_package(tmp_path, base))
    library.remove("tiny", "intents")
    (model,) = library.active()
    assert model.adapters == () and model.version == 3
    assert [one.name for one in library.rollback("tiny").adapters] == ["intents"]
    library.remove("tiny")
    assert library.active() == () and list(snapshot(tmp_path / "store")) == ["record.json"]
    with pytest.raises(PackageError, match="is older than 3"):
        library.install(tiny.base_package(tmp_path, counter=2, seed=2))


def test_the_counter_survives_a_rollback(library: ModelStore, tmp_path: Path) -> None:
    library.install(tiny.base_package(tmp_path, counter=1))
    library.install(tiny.base_package(tmp_path, counter=2, seed=2))
    library.rollback("tiny")
    with pytest.raises(PackageError, match="is older than 2"):
        library.install(tiny.base_package(tmp_path, counter=1))
    assert library.install(tiny.base_package(tmp_path, counter=2, seed=2)).changed


def test_channels_count_for_themselves(library: ModelStore, tmp_path: Path) -> None:
    library.install(tiny.base_package(tmp_path, counter=5))
    assert library.install(tiny.base_package(tmp_path, counter=1, name="other", seed=2, channel="beta")).changed


def test_an_old_release_of_another_line_replaces_no_model(library: ModelStore, tmp_path: Path) -> None:
    """Counters belong to (product, channel), and so does what was installed by one."""
    library.install(tiny.base_package(tmp_path, counter=5))
    other = tiny.base_package(tmp_path, counter=1, seed=2, channel="beta")
    before = snapshot(tmp_path / "store")
    with pytest.raises(PackageError, match="model 'tiny' is installed from tiny/stable; this package is of tiny/beta"):
        library.install(other)
    assert snapshot(tmp_path / "store") == before
    library.remove("tiny")
    assert library.install(other).changed


def test_an_old_release_of_another_line_replaces_no_adapter(library: ModelStore, tmp_path: Path) -> None:
    base = tiny.base_package(tmp_path)
    library.install(base)
    library.install(tiny.adapter_package(tmp_path, base, counter=5))
    source = tiny.adapter_source(tmp_path / "other", "intents", 2)
    subject = base_descriptor(base, tiny.BASE_ID)
    statement = tiny.release("another")
    other = build(tmp_path / "other.tar", statement, None, [source], subject, [tiny.keys().release_key]).path
    with pytest.raises(PackageError, match="adapter 'intents' of 'tiny' is installed from intents/stable"):
        library.install(other)
    library.remove("tiny", "intents")
    assert library.install(other).changed
    assert StateFile(tmp_path / "store").read().models["tiny"].current.adapters[0].line == "another/stable"


def test_a_newer_release_of_the_same_line_replaces_model_and_adapter(library: ModelStore, tmp_path: Path) -> None:
    base = tiny.base_package(tmp_path)
    library.install(base)
    library.install(tiny.adapter_package(tmp_path, base, counter=1))
    assert library.install(tiny.base_package(tmp_path, counter=2, seed=3)).changed
    assert library.install(tiny.adapter_package(tmp_path, base, counter=2, seed=4)).changed


def test_a_rotated_root_stays_and_revokes(tmp_path: Path) -> None:
    keys = keygen(tmp_path / "keys")
    first_root, first_key = load_trust(keys.root_file), keys.release_key
    second = rotate(keys.path, ("release",))
    one, two, late = (tiny.base_package(tmp_path, counter=number, seed=number) for number in (1, 2, 3))
    sign_package(one, [first_key])
    sign_package(two, [keys.release_key], [second])
    sign_package(late, [first_key])
    root = tmp_path / "store"
    ModelStore(root, install_context(trust=first_root)).install(one)
    ModelStore(root, install_context(trust=first_root)).install(two)
    with pytest.raises(PackageError, match="none of which root version 2 trusts"):
        ModelStore(root, install_context(trust=first_root)).install(late)


def test_a_stolen_keys_highest_counter_ends_with_the_key(tmp_path: Path) -> None:
    """A fast-forward of counter and issue time, on a board without a clock: while the key is trusted both hold,
    afterwards they are nobody's, and the next ones hold."""
    keys = keygen(tmp_path / "keys")
    first_root, stolen = load_trust(keys.root_file), keys.release_key
    second = rotate(keys.path, ("release",))
    far = {"issued_at": "2200-01-01T00:00:00Z", "expires": "2300-01-01T00:00:00Z"}
    forged = tiny.base_package(tmp_path, counter=2**53, seed=0, **far)
    before = tiny.base_package(tmp_path, counter=5, seed=5, **far)
    genuine, older = (tiny.base_package(tmp_path, counter=counter, seed=counter) for counter in (6, 4))
    late = tiny.base_package(tmp_path, name="late")
    sign_package(late, [stolen])
    sign_package(forged, [stolen])
    sign_package(before, [stolen])
    sign_package(genuine, [keys.release_key], [second])
    sign_package(older, [keys.release_key], [second])
    store = ModelStore(tmp_path / "store", install_context(trust=first_root, time_trusted=lambda: False))
    assert store.install(forged).changed
    with pytest.raises(PackageError, match="the release expired at 2030"):
        store.install(late)
    with pytest.raises(PackageError, match=r"counter 5 of .* is older than"):
        store.install(before)
    assert store.install(genuine).changed
    with pytest.raises(PackageError, match=r"counter 4 of .* is older than 6"):
        store.install(older)


def test_a_mark_outlives_a_raised_threshold_and_not_a_revoked_signer() -> None:
    """What two keys must sign from now on was soundly signed by one before: its counter still counts."""
    trust = tiny.trust()
    (own,) = trust.root.roles.release.keys
    release = msgspec.structs.replace(trust.root.roles.release, keys=(own, "b"), threshold=2)
    roles = msgspec.structs.replace(trust.root.roles, release=release)
    raised = replace(trust, root=msgspec.structs.replace(trust.root, roles=roles))
    assert still_signed([own], raised) and still_signed([own, "b"], raised)
    assert not still_signed(["stolen"], raised) and not still_signed([own, "stolen"], raised)


def test_a_key_beyond_its_product_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    keys = keygen(tmp_path / "keys")
    first_root = load_trust(keys.root_file)
    second, limited = delegate(keys.path, ["tiny"])
    within, beyond = (tiny.base_package(tmp_path, name=name) for name in ("tiny", "other"))
    for package in (within, beyond):
        sign_package(package, [limited], [second])
    root = tmp_path / "store"
    library = ModelStore(root, install_context(trust=first_root))
    assert library.install(within).changed
    before = snapshot(root)
    with pytest.raises(SignatureError, match="signs tiny and not other"):
        library.install(beyond)
    assert snapshot(root) == before
    third = rotate(keys.path, ("release",))
    assert load_trust(third).root.products == load_trust(second).root.products, "a rotation keeps limited keys"
    sign_package(beyond, [keys.release_key], [second, third])
    assert library.install(beyond).changed, "a key without a limit signs every product"


def test_a_second_change_waits_its_turn(library: ModelStore, tmp_path: Path) -> None:
    package = tiny.base_package(tmp_path)
    library.install(package)
    with change_lock(tmp_path / "store"):
        reader = ModelStore(tmp_path / "store")
        assert [model.name for model in reader.active()] == ["tiny"], "reading needs no lock"
        with pytest.raises(StoreError, match="another install or rollback"):
            library.install(package)


def test_a_reader_does_not_install(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="opened for reading only"):
        ModelStore(tmp_path / "store").install(tmp_path / "x.tar")


def test_reading_is_cached_until_something_changes(library: ModelStore, tmp_path: Path) -> None:
    library.install(tiny.base_package(tmp_path))
    reader = ModelStore(tmp_path / "store")
    assert reader.active() is reader.active()
    old = reader.active()
    library.install(tiny.base_package(tmp_path, counter=2, seed=2))
    assert reader.active() is not old and reader.active()[0].version == 2


def test_nothing_is_deleted_while_a_manifest_cannot_be_read(library: ModelStore, tmp_path: Path) -> None:
    library.install(tiny.base_package(tmp_path))
    blobs = tmp_path / "store" / "blobs" / "sha256"
    version = StateFile(tmp_path / "store").read().models["tiny"].current
    (blobs / version.chosen[7:]).write_bytes(b"{}")
    stray = blobs / ("f" * 64)
    stray.write_bytes(b"x")
    assert library.collect() == 0 and stray.exists()
    assert [one.digest for one in library.scrub()] == [version.chosen]


def test_the_selection_policy_reaches_the_choice(tmp_path: Path) -> None:
    library = ModelStore(tmp_path / "store", install_context(selection=SelectionPolicy(prefer=("fp32",))))
    library.install(tiny.base_package(tmp_path))
    assert library.active()[0].variant.name == "onnx/fp32"


def test_the_daemon_reads_the_store_without_what_installs() -> None:
    """Imports are memory: signatures, planning and trials belong to the process that installs."""
    code = "import edge_agent.store.model_store, sys; print(sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = ("cryptography", "numpy", "edge_agent.bundle.sign", "edge_agent.bundle.verify", "edge_agent.store.install")
    assert [name for name in heavy if f"'{name}'" in found] == []


def generator_package(folder: Path, as_folder: bool) -> Path:
    """A generator with weights of a kilobyte and a cache of 32 MiB: its head alone says so."""
    weights = folder / "model.gguf"
    weights.write_bytes(
        gguf_bytes({**LLAMA, "llama.attention.key_length": 2048, "llama.context_length": 4096}, WEIGHTS)
    )
    variant = VariantSource(weights, "llamacpp", "f16", peak_bytes=1 << 20, accuracy=0.9, options={"sequences": 1})
    task = {"kind": "generate", "max_tokens": 1024}
    model = ModelSource("tiny", tiny.BASE_ID, task, [variant], tiny.probe_file(folder, ["llamacpp/f16"]))
    out = folder / ("package" if as_folder else "package.tar")
    return build(out, tiny.release("tiny"), model, keys=[tiny.keys().release_key]).path


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_generators_memory_is_judged_by_its_file_before_anything_is_written(tmp_path: Path, as_folder: bool) -> None:
    package = generator_package(tmp_path, as_folder)
    hardware = replace(tiny.HARDWARE, runtimes=("llamacpp",), ram_bytes=80 << 20)
    library = ModelStore(tmp_path / "store", install_context(hardware=hardware))
    before = snapshot(tmp_path / "store")
    with pytest.raises(
        PackageError, match=r"2 layers x 2 kv heads x 2048 x 1024 tokens x 1 x 2 bytes, f16\).*context = 512\)"
    ):
        library.install(package)
    assert snapshot(tmp_path / "store") == before
    lenient = install_context(hardware=hardware, selection=SelectionPolicy(generators=GeneratorOverrides(shrink=True)))
    report = ModelStore(tmp_path / "store", lenient).install(package)
    assert "shrunk to a context of 512 tokens for 1 sequence" in report.lines[0]
