"""Checkpoints: only what this user wrote whole is taken up, the newest first."""

import pytest

from edge_forge.train.checkpoints import Checkpoints


def written(folder, number, text="weights"):
    place = folder / f"checkpoint-{number}"
    place.mkdir(parents=True)
    (place / "trained.safetensors").write_text(text)
    return place


def test_the_newest_whole_one_is_taken(tmp_path):
    kept = Checkpoints(tmp_path / "train-1")
    assert kept.newest() is None
    for number in (5, 40, 100):
        kept.seal(written(kept.folder, number))
    written(kept.folder, 200)  # the run was killed before the seal
    assert kept.newest() == kept.folder / "checkpoint-100"


def test_a_run_that_begins_leaves_the_one_that_it_goes_on_from_alone(tmp_path):
    kept = Checkpoints(tmp_path / "train-1")
    kept.remove_others(None)
    kept.seal(written(kept.folder, 5))
    kept.seal(written(kept.folder, 40))
    written(kept.folder, 60)
    kept.remove_others(kept.newest())
    assert [path.name for path in kept.folder.iterdir()] == ["checkpoint-40"]


def spoil_weights(place):
    (place / "trained.safetensors").write_text("other")


def spoil_more(place):
    (place / "optimizer.pt").write_text("a pickle")


def spoil_less(place):
    (place / "trained.safetensors").unlink()


def spoil_link(place):
    (place / "trained.safetensors").rename(place.parent / "elsewhere")
    (place / "trained.safetensors").symlink_to(place.parent / "elsewhere")


def spoil_seal(place):
    (place / "seal.json").write_text("[" * 100_000)


@pytest.mark.parametrize("spoil", [spoil_weights, spoil_more, spoil_less, spoil_link, spoil_seal])
def test_a_changed_one_is_not_opened_and_the_one_before_is_taken(tmp_path, spoil):
    kept = Checkpoints(tmp_path / "train-1")
    for number in (1, 2):
        kept.seal(written(kept.folder, number))
    spoil(kept.folder / "checkpoint-2")
    assert kept.newest() == kept.folder / "checkpoint-1"


def test_one_of_another_run_or_step_or_user_is_not_taken(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path / "train-1")
    kept.seal(written(kept.folder, 1))
    (tmp_path / "train-2").mkdir()
    (kept.folder / "checkpoint-1").rename(tmp_path / "train-2" / "checkpoint-1")
    assert Checkpoints(tmp_path / "train-2").newest() is None, "of another training"
    (tmp_path / "train-2" / "checkpoint-1").rename(kept.folder / "checkpoint-7")
    assert kept.newest() is None, "of another step"
    (kept.folder / "checkpoint-7").rename(kept.folder / "checkpoint-1")
    assert kept.newest() is not None
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    assert Checkpoints(kept.folder).newest() is None


def test_how_steps_are_computed_is_measured_once(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path / "train-1")
    assert kept.choice(lambda: {"precision": "bf16", "measured_ms": {"fp32": 1.5}})["precision"] == "bf16"
    assert kept.choice(lambda: {"precision": "fp32"}) == {"precision": "bf16", "measured_ms": {"fp32": 1.5}}
    (kept.folder / "choice-0.json").write_text('{"choice": {"precision": "evil"}, "seal": "00"}')
    assert kept.choice(lambda: {"precision": "fp32"}) == {"precision": "fp32"}
    monkeypatch.setenv("RANK", "1")
    assert kept.choice(lambda: {"precision": "bf16"}) == {"precision": "bf16"}, "each process has its own"
