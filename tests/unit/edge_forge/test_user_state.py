"""What this user made on this machine: seals and known keys, kept by nobody else."""

import os

import pytest

from edge_agent.base.errors import EdgeError
from edge_forge.user_state import UserState, named_key

KEY = "ab" * 32


@pytest.fixture
def state(tmp_path):
    return UserState(tmp_path / "state")


def test_a_seal_is_of_this_user_and_these_bytes(state, tmp_path):
    seal = state.seal(b"record")
    assert UserState(state.folder).is_sealed(b"record", seal)
    assert not state.is_sealed(b"another", seal)
    assert not UserState(tmp_path / "other").is_sealed(b"record", seal)
    assert not any(state.is_sealed(b"record", wrong) for wrong in (None, 1, "", "ä", seal[:-1]))


def test_files_are_for_their_user_only(state):
    state.seal(b"")
    state.remember([KEY], made_here=True)
    files = [path for path in state.folder.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == [f"{KEY}.json", "cache.key"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert state.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("spoil", ["open", "short", "link", "pipe", "folder"])
def test_a_secret_that_others_may_know_is_refused_by_name(state, tmp_path, spoil):
    state.seal(b"")
    secret = state.folder / "cache.key"
    if spoil == "open":
        secret.chmod(0o644)
    else:
        secret.unlink()
    if spoil == "short":
        secret.write_bytes(b"short")
        secret.chmod(0o600)
    elif spoil == "link":
        (tmp_path / "theirs").write_bytes(bytes(32))
        secret.symlink_to(tmp_path / "theirs")
    elif spoil == "pipe":
        os.mkfifo(secret, 0o600)
    elif spoil == "folder":
        secret.mkdir()
    with pytest.raises(EdgeError, match=r"cache.key: .*remove it; every step runs again"):
        state.seal(b"")


def test_a_known_key_keeps_its_age(state):
    assert state.known(KEY) is None
    state.remember([KEY], made_here=True)
    first = state.known(KEY)
    state.remember([KEY], made_here=False)
    assert state.known(KEY) == first
    assert first.made_here


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"since_s": [], "made_here": 1}', "[" * 60_000])
def test_a_damaged_note_makes_no_key_known(state, text):
    state.remember([KEY], made_here=True)
    (state.folder / "keys" / f"{KEY}.json").write_text(text)
    assert state.known(KEY) is None
    assert state.known("../../secret") is None


def test_a_key_is_named_with_fingerprint_age_and_file(state, tmp_path):
    file = tmp_path / "release-1.pem"
    file.write_text("")
    state.remember([KEY], made_here=True)
    known = state.known(KEY)
    said = named_key(known, KEY, file, known.since_s + 3 * 86400 + 5)
    assert said.startswith(f"{KEY[:16]} {file}, made here 3 days ago (20")
    assert named_key(None, KEY, file, file.stat().st_mtime + 7200) == (
        f"{KEY[:16]} {file}, not made here; its file is 2 hours old"
    )


def test_the_folder_is_that_of_xdg_and_a_relative_one_is_ignored(monkeypatch, tmp_path):
    assert UserState.of({"XDG_STATE_HOME": str(tmp_path)}).folder == tmp_path / "edge-forge"
    monkeypatch.setenv("HOME", str(tmp_path))
    for environ in ({}, {"XDG_STATE_HOME": "here"}):
        assert UserState.of(environ).folder == tmp_path / ".local" / "state" / "edge-forge"


def test_a_state_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeError, match=r"state folder of this user cannot be written.*set XDG_STATE_HOME"):
        UserState(tmp_path / "file").seal(b"")
