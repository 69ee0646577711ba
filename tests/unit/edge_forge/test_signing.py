"""What a builder is told of packages of the same version, and of trainings that led nowhere."""

import io
import os

import pytest

from edge_agent.base.errors import ConfigError
from edge_agent.bundle import jsonio, sign
from edge_agent.bundle.sign import PrivateKey
from edge_agent.bundle.trust import ROOT_TYPE, Role, Roles, Root
from edge_forge.cli import main
from edge_forge.evaluate.training_outcome import TrainingOutcome
from edge_forge.package.keys import KeyFolder, keygen, sign_package
from edge_forge.plan.cache import Cache
from edge_forge.plan.signing import PackageSigner
from edge_forge.plan.step_runner import StepRunner
from edge_forge.progress import Progress
from edge_forge.recipe import classifier_recipe
from edge_forge.user_state import UserState
from tests.support.packages import base_package


@pytest.fixture
def signing(tmp_path):
    """A signer, and what it says."""

    def make(**package):
        raw = {"name": "toy", "base": {"name": "m", "source": "./base"}, "data": {"train": "t"}, "package": package}
        said = io.StringIO()
        steps = StepRunner(tmp_path, Cache(tmp_path, Progress(said)), Progress(said), {})
        return PackageSigner(classifier_recipe.parse(raw, "r", {}), steps), said

    return make


def built(folder, seed, counter=1):
    folder.mkdir(exist_ok=True)
    return base_package(folder, counter=counter, seed=seed)


def test_a_version_that_was_built_with_other_contents_is_said_and_the_file_is_kept(signing, tmp_path):
    signer, said = signing()
    shelf = tmp_path / "packages"
    shelf.mkdir()
    before = built(tmp_path / "one", 1).read_bytes()
    (shelf / "toy-v1.tar").write_bytes(before)
    (shelf / "toy-v4.tar").write_bytes(built(tmp_path / "four", 4, counter=4).read_bytes())
    (shelf / "notes.tar").write_text("no package")
    signer._warn_of_reuse("toy-v1.tar", built(tmp_path / "two", 2), shelf)
    message = said.getvalue()
    assert "version 1 of tiny was built before with other contents" in message
    assert "set package.version = 5 in the recipe" in message
    kept = [path for path in shelf.glob("toy-v1-*.tar") if path.name in message]
    assert [path.read_bytes() for path in kept] == [before]


def test_the_same_contents_and_other_versions_are_no_reason_to_warn(signing, tmp_path):
    signer, said = signing()
    shelf = tmp_path / "packages"
    shelf.mkdir()
    package = built(tmp_path / "one", 1)
    (shelf / "toy-v1.tar").write_bytes(package.read_bytes())
    signer._warn_of_reuse("toy-v1.tar", package, shelf)
    signer._warn_of_reuse("toy-v2.tar", built(tmp_path / "two", 2, counter=2), shelf)
    assert said.getvalue() == ""
    assert [path.name for path in shelf.iterdir()] == ["toy-v1.tar"]


def test_a_key_that_devices_would_not_believe_is_said_before_anything_long(signing, tmp_path):
    for name in ("ours", "theirs"):
        keygen(tmp_path / name)
    (tmp_path / "ours" / "root.json").write_bytes((tmp_path / "theirs" / "root.json").read_bytes())
    signer, _ = signing(keys=str(tmp_path / "ours"))
    with pytest.raises(ConfigError, match=r"package.keys: .*root.json does not know the release key release-1.pem"):
        signer.keys  # noqa: B018 - asking for them checks them
    UserState.of(os.environ).remember(KeyFolder(tmp_path / "theirs").all_ids(), made_here=True)
    signer, _ = signing(keys=str(tmp_path / "theirs"))
    assert signer.keys.release_key.name == "release-1.pem"


def test_a_failed_training_is_refused_unless_the_recipe_takes_it(signing):
    failed = TrainingOutcome("it answers 'a' to every one of the 9 measured rows")
    signer, _ = signing()
    with pytest.raises(ConfigError, match=r"the training failed: it answers 'a'.*failed_training = .warn. packages it"):
        signer.require_learned(failed)
    signer, said = signing(failed_training="warn")
    assert signer.require_learned(failed) == "the training failed: it answers 'a' to every one of the 9 measured rows"
    assert said.getvalue().startswith("warning: the training failed")
    assert signer.require_learned(TrainingOutcome("", "it is weak")) == "it is weak"
    assert signer.require_learned(TrainingOutcome()) == ""


def test_development_keys_are_made_once_and_named_every_time(signing, tmp_path):
    for _ in range(2):
        signer, said = signing()
        keys = signer.keys
        last = said.getvalue().splitlines()[-1]
        assert last.startswith("signing key ")
        assert f" {keys.release_key}, made here less than a minute ago (20" in last
        assert last.endswith(signer.key_named)
        assert signer.key_as_dict()["keyid"].startswith(last.split()[2])
    assert len(list((tmp_path / "keys").glob("release-*.pem"))) == 1


def test_keys_that_came_with_the_recipe_are_refused_until_they_are_taken_over(signing, tmp_path, capsys):
    keygen(tmp_path / "keys")
    signer, _ = signing()
    with pytest.raises(ConfigError, match=r"package.keys: the keys in .* were not made here .*keygen .* --adopt"):
        signer.keys  # noqa: B018 - asking for them checks them
    assert main(["keygen", str(tmp_path / "keys"), "--adopt"]) == 0
    assert ", taken over here less than a minute ago" in capsys.readouterr().out
    signer, said = signing()
    assert signer.keys.path == tmp_path / "keys"
    assert ", taken over here less than a minute ago" in said.getvalue()


def test_a_foreign_root_that_knows_our_release_key_is_refused(signing, tmp_path):
    """Whoever wrote that root file decides what devices take, though the key that signs is ours."""
    signer, _ = signing()
    ours = PrivateKey.load(signer.keys.release_key)
    foreign = PrivateKey.generate()
    root = Root(
        schema=1, version=1, keys={key.keyid: key.public_hex for key in (foreign, ours)},
        roles=Roles(root=Role(keys=(foreign.keyid,), threshold=1), release=Role(keys=(ours.keyid,), threshold=1)),
    )  # fmt: skip
    (tmp_path / "keys" / "root.json").write_bytes(sign.wrap(ROOT_TYPE, jsonio.encode(root), [foreign]))
    signer, _ = signing()
    with pytest.raises(ConfigError, match=f"were not made here by this user .{foreign.keyid[:16]}"):
        signer.keys  # noqa: B018 - asking for them checks them


def test_a_file_that_is_named_like_a_key_or_root_and_is_none_is_passed_over(signing, tmp_path):
    signer, _ = signing()
    keys = signer.keys
    for name in ("release-x.pem", "release-.pem", "1x.json", "notes.json"):
        (keys.path / name).write_text("")
    assert signing()[0].keys.release_key.name == "release-1.pem"
    assert [path.name for path in keys.numbered] == ["1.json"]


def test_sign_takes_the_keys_that_build_takes_and_names_them(tmp_path, capsys):
    """A key that lies in a build folder that somebody else made is as foreign as in a recipe's `package.keys`."""
    package = built(tmp_path / "one", 1)
    foreign = keygen(tmp_path / "foreign")
    assert main(["keygen", str(tmp_path / "ours")]) == 0
    ours = tmp_path / "ours" / "release-1.pem"
    capsys.readouterr()
    assert main(["sign", str(package), "--key", str(ours)]) == 0
    out = capsys.readouterr().out
    assert f"{ours}, made here less than" in out
    assert PrivateKey.load(ours).keyid[:16] in out
    before = package.read_bytes()
    for keys in ([foreign.release_key], [ours, foreign.release_key]):
        assert main(["sign", str(package), *(f"--key={key}" for key in keys)]) != 0
        said = capsys.readouterr().err
        assert f"--key: the key {foreign.release_key} was not made here by this user" in said
        assert f"`edge-forge keygen {foreign.path} --adopt`" in said
        assert package.read_bytes() == before
    assert main(["keygen", str(foreign.path), "--adopt"]) == 0
    assert main(["sign", str(package), "--key", str(foreign.release_key)]) == 0
    assert f"{foreign.release_key}, taken over here less than" in capsys.readouterr().out


def test_a_single_key_that_a_team_hands_out_is_taken_over_without_its_root_file(tmp_path, capsys):
    package = built(tmp_path / "one", 1)
    folder = tmp_path / "from the team"
    folder.mkdir()
    key = folder / "release-team-2.pem"
    key.write_bytes(keygen(tmp_path / "team").release_key.read_bytes())
    (folder / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
    assert main(["sign", str(package), "--key", str(key)]) != 0
    assert f"keygen '{folder}' --adopt" in capsys.readouterr().err
    assert main(["keygen", str(folder), "--adopt"]) == 0
    assert capsys.readouterr().out.startswith(f"known    {PrivateKey.load(key).keyid[:16]} {key}, taken over here")
    assert main(["sign", str(package), "--key", str(key)]) == 0
    key.unlink()
    assert main(["keygen", str(folder), "--adopt"]) == 2
    assert "neither root.json nor a private key" in capsys.readouterr().err


def test_a_trust_root_that_came_with_a_package_proves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("EDGE_FORGE_KEYS", raising=False)
    foreign = keygen(tmp_path / "build" / "keys")
    package = built(tmp_path / "build" / "packages", 1)
    sign_package(package, [foreign.release_key])
    assert main(["verify", str(package)]) == 2
    assert "the trust root beside the package was not made here" in capsys.readouterr().err
    assert main(["keygen", str(foreign.path), "--adopt"]) == 0
    assert main(["verify", str(package)]) == 0
