"""What a builder is told of packages of the same version, and of trainings that led nowhere."""

import io

import pytest

from edge_agent.base.errors import ConfigError
from edge_forge.evaluate.training_outcome import TrainingOutcome
from edge_forge.package.keys import keygen
from edge_forge.plan.cache import Cache
from edge_forge.plan.signing import PackageSigner
from edge_forge.plan.step_runner import StepRunner
from edge_forge.progress import Progress
from edge_forge.recipe import classifier_recipe
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
