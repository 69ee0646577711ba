"""The step cache: once per content, whole or not at all, one build at a time."""

import fcntl
import io
import json
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from edge_agent.base.errors import EdgeError
from edge_forge.plan import step_runner as versions
from edge_forge.plan.cache import BuildStep, Cache, canonical, describe, file_digest, write_json
from edge_forge.plan.step_runner import Once, code_version
from edge_forge.progress import Progress
from edge_forge.train.checkpoints import Checkpoints
from edge_forge.user_state import UserState


class Work:
    def __init__(self, text="made", fails=None):
        self.runs, self.text, self.fails = 0, text, fails

    def __call__(self, folder):
        self.runs += 1
        (folder / "sub").mkdir()
        (folder / "sub" / "out.txt").write_text(self.text)
        if self.fails is not None:
            raise self.fails
        return {"rows": 3}


class Said(io.StringIO):
    """Keeps what is said, and lets a test wait for the line that says that a build waits."""

    def __init__(self):
        super().__init__()
        self.waits = threading.Event()

    def write(self, text):
        if "waiting for it" in text:
            self.waits.set()
        return super().write(text)


@pytest.fixture
def said():
    return Said()


@pytest.fixture
def cache(tmp_path, said):
    return Cache(tmp_path / "build", Progress(said))


def later(cache, said, state=None):
    """The same build folder in another process."""
    return Cache(cache.root, Progress(said), state)


def step(work, **parts):
    return BuildStep(
        "toy", parts.get("inputs", {"a": "1"}), parts.get("settings", {"x": 1}), parts.get("code", "c"), work
    )


def test_a_step_runs_once_and_says_so(cache, said):
    work = Work()
    first, second = cache.run(step(work)), cache.run(step(work))
    assert work.runs == 1
    assert (first.cached, second.cached) == (False, True)
    assert second.facts == {"rows": 3}
    assert second.path("sub/out.txt").read_text() == "made"
    assert second.digests("sub") == second.digests() == first.digests()
    assert said.getvalue().splitlines()[-1] == "toy: cached"


@pytest.mark.parametrize("parts", [{"inputs": {"a": "2"}}, {"settings": {"x": 2}}, {"code": "d"}])
def test_other_inputs_settings_or_code_run_it_again(cache, parts):
    work = Work()
    cache.run(step(work))
    cache.run(step(work, **parts))
    assert work.runs == 2


@pytest.mark.parametrize("fails", [ValueError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(cache, fails):
    with pytest.raises(type(fails)):
        cache.run(step(Work(fails=fails)))
    assert not [path for path in cache.root.rglob("*") if path.is_file()]
    assert cache.find(step(Work())) is None


SPOILS = {
    "remove": lambda entry: entry.path("sub/out.txt").unlink(),
    "cut": lambda entry: entry.path("sub/out.txt").write_text("m"),
    "same size": lambda entry: entry.path("sub/out.txt").write_text("evil"),
    "more": lambda entry: entry.path("sub/more.txt").write_text("evil"),
    "record": lambda entry: entry.path("record.json").write_text("{"),
    "brackets": lambda entry: entry.path("record.json").write_text("[" * 100_000),
    "list": lambda entry: entry.path("record.json").write_text("[]"),
    "nan": lambda entry: entry.path("record.json").write_text('{"seal": "", "facts": NaN}'),
}


def replaced(entry, make):
    """An output, or the record, in another form of file."""
    for path in (entry.path("sub/out.txt"), entry.path("record.json")):
        kept = path.read_bytes()
        path.unlink()
        make(path, kept)
        yield
        if path.is_symlink() or path.exists():
            path.unlink()
        path.write_bytes(kept)


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_a_damaged_result_is_made_again(cache, said, spoil):
    work = Work()
    spoil(cache.run(step(work)))
    assert later(cache, said).run(step(work)).path("sub/out.txt").read_text() == "made"
    assert work.runs == 2


def test_a_changed_output_with_a_matching_record_is_made_again(cache, said):
    """What a recipe folder that brings its own build folder can do."""
    work = Work()
    entry = cache.run(step(work))
    entry.path("sub/out.txt").write_text("evil")
    record = json.loads(entry.path("record.json").read_text())
    record["outputs"] = {"sub/out.txt": describe(entry.folder)["sub/out.txt"]}
    entry.path("record.json").write_text(json.dumps(record))
    assert later(cache, said).run(step(work)).path("sub/out.txt").read_text() == "made"
    assert (
        "toy: the result there was made by another user or machine, or changed, so it is made again" in said.getvalue()
    )


def test_a_changed_output_is_named(cache, said):
    cache.run(step(Work())).path("sub/out.txt").write_text("evil")
    later(cache, said).run(step(Work()))
    assert "toy: sub/out.txt in the result there was changed, so it is made again" in said.getvalue()


def test_a_result_of_another_user_is_made_again(cache, said, tmp_path):
    work = Work()
    cache.run(step(work))
    later(cache, said, UserState(tmp_path / "other")).run(step(work))
    assert work.runs == 2
    assert "made by another user or machine" in said.getvalue()


def test_a_sealed_result_does_not_stand_for_another_step(cache, said):
    made, wanted = step(Work()), step(Work(), settings={"x": 2})
    folder = cache.run(made).folder
    folder.rename(folder.with_name(wanted.key))
    assert later(cache, said).find(wanted) is None
    assert "the result there is of other inputs" in said.getvalue()


def test_links_and_pipes_are_no_results(cache, said, tmp_path):
    entry = cache.run(step(Work()))

    def link(path, kept):
        (tmp_path / "elsewhere").write_bytes(kept)
        path.symlink_to(tmp_path / "elsewhere")

    for make in (link, lambda path, kept: os.mkfifo(path)):
        for _ in replaced(entry, make):
            assert later(cache, said).find(step(Work())) is None
    assert later(cache, said).find(step(Work())) is not None


def test_facts_are_sealed_in_the_form_in_which_they_are_read(cache, said):
    one = BuildStep("toy", {}, {"x": (1, 2)}, "c", lambda folder: {"by_id": {10: "a", 9: "b"}, "pair": (1, 2.5)})
    cache.run(one)
    assert later(cache, said).find(one) is not None


def test_outputs_are_hashed_once_a_build(cache, said, monkeypatch):
    work, hashed = Work(), []
    cache.run(step(work))
    monkeypatch.setattr("edge_forge.plan.cache.file_digest", lambda path: hashed.append(path) or file_digest(path))
    again = later(cache, said)
    assert [again.run(step(work)).cached for _ in range(3)] == [True] * 3
    assert [path.name for path in hashed] == ["out.txt"]


def planted_link(root, tmp_path):
    (root / "tmp").symlink_to(tmp_path)


def planted_pipe(root, tmp_path):
    (root / "packages").mkdir()
    os.mkfifo(root / "packages" / "a.tar")


def planted_log(root, tmp_path):
    (root / "logs").mkdir()
    (root / "logs" / "train.log").symlink_to(tmp_path / "mine")


def planted_lock(root, tmp_path):
    os.mkfifo(root / "lock")


def planted_step(root, tmp_path):
    (root / "steps" / "toy").mkdir(parents=True)
    (root / "steps" / "toy" / "abc").symlink_to(tmp_path)


def planted_root(root, tmp_path):
    root.rmdir()
    root.symlink_to(tmp_path)


@pytest.mark.parametrize("plant", [planted_link, planted_pipe, planted_log, planted_lock, planted_step, planted_root])
def test_a_build_folder_with_links_or_pipes_is_refused_by_name(cache, tmp_path, plant):
    (tmp_path / "mine").write_text("mine")
    cache.root.mkdir()
    plant(cache.root, tmp_path)
    with (
        pytest.raises(EdgeError, match=r"build.*it is (a link|neither a file nor a folder).*--build DIR"),
        cache.locked(),
    ):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_build_folder_of_another_user_is_refused(cache, monkeypatch):
    cache.root.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: cache.root.stat().st_uid + 1)
    with pytest.raises(EdgeError, match=r"it belongs to another user \(uid"), cache.locked():
        pass


def test_what_a_killed_build_left_is_removed(cache):
    (cache.root / "tmp" / "toy-dead").mkdir(parents=True)
    with cache.locked():
        assert not (cache.root / "tmp").exists()


def test_a_second_build_waits_for_the_first(cache, said):
    cache.root.mkdir()
    entered = threading.Event()

    def second():
        with cache.locked():
            entered.set()

    with (cache.root / "lock").open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        thread = threading.Thread(target=second)
        thread.start()
        assert said.waits.wait(5)
        assert not entered.is_set()
    assert entered.wait(5)
    thread.join()


def test_a_build_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(EdgeError, match=r"cannot be written.*--build DIR"),
        Cache(tmp_path / "file" / "build", Progress(io.StringIO())).locked(),
    ):
        pass


def test_canonical_json_does_not_depend_on_order_and_refuses_nan():
    assert canonical({"b": 1, "a": (1, 2)}) == canonical({"a": [1, 2], "b": 1}) == b'{"a":[1,2],"b":1}'
    with pytest.raises(ValueError):
        canonical(float("nan"))


def test_written_json_is_whole(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert list(describe(tmp_path)) == ["a.json"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `edge_forge` of our own, so that its code may change under the test."""
    root = tmp_path / "edge_forge"
    root.mkdir()
    files = {
        "__init__.py": "",
        "one.py": 'from edge_forge import two\n\n\ndef f():\n    """Doc."""\n    import edge_forge.three\n',
        "two.py": "from . import four\nX = 1\n",
        "three.py": "Y = 1\n",
        "four.py": "Z = 1\n",
        "five.py": "not reached",
    }
    for name, text in files.items():
        (root / name).write_text(text)

    def version():
        for cached in (versions._path, versions._tree, versions._imports, versions._module_digest):
            cached.cache_clear()
        return code_version(["edge_forge.one"])

    monkeypatch.setattr(versions, "_ROOTS", ("edge_forge",))
    monkeypatch.setattr(versions.importlib.util, "find_spec", lambda name: type("S", (), {
        "submodule_search_locations": [str(root)]})())  # fmt: skip
    yield root, version
    for cached in (versions._path, versions._tree, versions._imports, versions._module_digest):
        cached.cache_clear()


@pytest.mark.parametrize("name", ["one", "two", "three", "four"])
def test_code_that_is_reached_counts(package, name):
    root, version = package
    before = version()
    with (root / f"{name}.py").open("a") as file:
        file.write("\nNEW = 2\n")
    assert version() != before


def test_comments_docstrings_layout_and_other_modules_do_not_count(package):
    root, version = package
    before = version()
    one = root / "one.py"
    one.write_text(
        "# a comment\n" + one.read_text().replace('"""Doc."""', '"""Another."""').replace("\n\n\n", "\n\n\n\n")
    )
    (root / "five.py").write_text("changed")
    assert version() == before


def test_versions_of_distributions_count():
    assert code_version(["edge_forge.plan.cache"], ["pytest"]) != code_version(
        ["edge_forge.plan.cache"], ["no-such-thing"]
    )


def test_an_entry_module_that_is_gone_is_no_silent_version():
    with pytest.raises(LookupError, match=r"edge_forge\.no_such"):
        code_version(["edge_forge.no_such"])


def test_what_no_build_asked_for_in_two_weeks_is_removed(cache, said):
    used, unused = step(Work()), step(Work("x" * 100), code="older")
    kept, dropped = cache.run(used), cache.run(unused)
    later_s = (dropped.folder / "record.json").stat().st_mtime + 13 * 86400.0
    assert cache.collect(later_s) == 0
    os.utime(kept.folder / "record.json", (later_s, later_s))
    assert cache.collect(later_s + 2 * 86400.0) > 100
    assert cache.find(used) is not None
    assert cache.find(unused) is None
    assert "removed 1 results unused for 14 days" in said.getvalue()


def test_asking_for_a_result_keeps_it(cache):
    made = step(Work())
    record = cache.run(made).folder / "record.json"
    os.utime(record, (0.0, 0.0))
    cache.find(made)
    assert cache.collect(record.stat().st_mtime + 1.0) == 0


def test_the_time_of_another_piece_of_work_is_not_called_the_last_time(cache, said):
    def run(title, inputs, settings):
        def work(folder):
            return {}

        cache.run(BuildStep("measure", inputs, settings, "c", work, title))
        records = list((cache.root / "steps" / "measure").glob("*/record.json"))
        for path in records:
            record = json.loads(path.read_text())
            path.write_text(json.dumps({**record, "took_s": 8.6}))
        return [line for line in said.getvalue().splitlines() if " ..." in line][-1]

    assert "the last time" not in run("measure int8", {"a": "1"}, {"x": [1]})
    assert "the last time" not in run("measure fp16", {"a": "1"}, {"x": [2]}), "another piece"
    assert "the last time" not in run("measure int8", {"a": "3"}, {"x": [3]}), "of another recipe"
    assert "(8.6 s the last time)" in run("measure int8", {"a": "1"}, {"x": [4]}), "the same inputs"
    assert "(8.6 s the last time)" in run("measure int8", {"a": "4"}, {"x": [4]}), "the same settings"
    assert "the last time" not in run("measure int8", {"a": "1"}, {"method": "head"}), "another method of training"


def test_libraries_say_nothing_between_the_steps_of_any_kind(cache, tmp_path):
    from transformers.utils import logging as transformers_logging

    code = {"plain": ((), ()), "torch": ((), ("torch", "transformers"))}
    steps = versions.StepRunner(tmp_path, cache, Progress(io.StringIO()), code)
    transformers_logging.enable_progress_bar()

    def shown(_):
        levels = [logging.getLogger(name).level for name in ("torchao", "torch.utils._pytree")]
        return {"bars": transformers_logging.is_progress_bar_enabled(), "levels": levels}

    assert steps.run("plain", {}, {}, shown).facts["bars"] is True
    assert steps.run("torch", {}, {}, shown).facts == {"bars": False, "levels": [logging.ERROR, logging.ERROR]}


def test_a_killed_training_is_said_to_go_on_only_where_it_does(cache, tmp_path):
    said = io.StringIO()
    steps = versions.StepRunner(tmp_path, cache, Progress(said), {})
    folder = steps.run_folders(tmp_path / "tmp" / "train-1").checkpoints
    (folder / "checkpoint-5").mkdir(parents=True)  # killed before its seal
    steps.run_folders(tmp_path / "tmp" / "train-1")
    assert said.getvalue() == ""
    Checkpoints(folder).seal(folder / "checkpoint-5")
    steps.run_folders(tmp_path / "tmp" / "train-1")
    assert "it goes on from its last checkpoint" in said.getvalue()


def test_a_build_folder_that_is_a_file_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(EdgeError, match="the build folder cannot be written: it is a file"),
        Cache(tmp_path / "file", Progress(io.StringIO())).locked(),
    ):
        pass


class _Plan:
    def __init__(self, beside: threading.Barrier) -> None:
        self.beside = beside
        self.computed = 0

    @Once
    def trained(self) -> str:
        """What a training made."""
        self.beside.wait(10.0)
        self.computed += 1
        return f"result {self.computed}"


def test_two_plans_train_at_the_same_time_and_each_once():
    """`functools.cached_property` of Python 3.10 and 3.11 lets one wait for the other, and the barrier breaks."""
    beside = threading.Barrier(2)
    plans = [_Plan(beside), _Plan(beside)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda plan: plan.trained, plans)) == ["result 1", "result 1"]
    assert [plan.trained for plan in plans] == ["result 1", "result 1"]
    assert _Plan.trained.__doc__ == "What a training made."
