"""The command line: exit codes, sentences, a fast start, and a recipe written by `init`."""

import subprocess
import sys

import pytest

from edge_agent.base.errors import EdgeError
from edge_forge import cli, commands
from edge_forge.commands import Opened
from edge_forge.kinds import registry
from edge_forge.plan.cache import Cache
from edge_forge.plan.classifier_plan import ClassifierPlan
from edge_forge.progress import Progress
from edge_forge.recipe import classifier_recipe as recipe


def test_help_imports_nothing_heavy():
    code = (
        "import sys, edge_forge.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy', 'matplotlib', 'sklearn', 'cryptography'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for verb in ("init", "build", "train", "evaluate", "compare", "sweep", "keygen", "sign", "verify", "inspect"):
        assert f"\n    {verb} " in done.stdout


def test_wrong_usage_is_2(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["bake"])
    assert caught.value.code == 2
    assert cli.main(["init", "Not Good"]) == 2
    assert "'Not Good' cannot be a name" in capsys.readouterr().err


def test_a_failure_is_1_with_a_sentence(capsys, tmp_path):
    assert cli.main(["build", str(tmp_path)]) == 1
    assert "recipe.toml: there is no such recipe" in capsys.readouterr().err


def test_an_interrupt_is_130_with_one_sentence(capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_load", lambda _: interrupted)
    assert cli.main(["build", "x"]) == 130
    assert capsys.readouterr().err.strip() == "edge-forge: stopped; finished steps are kept, nothing half-written is"


def test_init_writes_a_generators_recipe_whose_rows_load(tmp_path, capsys):
    from edge_forge.data import generator_rows as data
    from edge_forge.recipe import generator_recipe as generators

    assert cli.main(["init", "toy", "--task", "generate", "--dir", str(tmp_path)]) == 0
    assert "train.jsonl" in capsys.readouterr().out
    recipe = generators.load(tmp_path / "toy" / "recipe.toml", {})
    assert recipe.base.sources == ("HuggingFaceTB/SmolLM2-135M-Instruct",)
    assert data.load(recipe.data, tmp_path / "toy").answers


def test_init_writes_a_recipe_that_loads_and_never_overwrites(tmp_path, capsys):
    assert cli.main(["init", "toy", "--dir", str(tmp_path)]) == 0
    assert "edge-forge build" in capsys.readouterr().out
    found = recipe.load(tmp_path / "toy" / "recipe.toml", {})
    progress = Progress(quiet=True)
    plan = ClassifierPlan(found, tmp_path / "toy", Cache(tmp_path / "build", progress), progress)
    assert plan.training.data.labels == ("other", "time", "weather")
    assert cli.main(["init", "toy", "--dir", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_build_folder_is_that_of_the_project(tmp_path):
    (tmp_path / "models" / "toy").mkdir(parents=True)
    file = tmp_path / "models" / "toy" / "recipe.toml"
    assert commands.project_root(file) in (tmp_path / "models" / "toy", *tmp_path.parents)
    (tmp_path / "pyproject.toml").write_text("")
    assert commands.project_root(file) == tmp_path


def test_methods_of_a_comparison_are_checked():
    assert commands.methods("lora, full:B") == ["lora", "full:B"]
    with pytest.raises(EdgeError, match="'qlora' is no method"):
        commands.methods("lora,qlora")
    assert list(commands.unique(["a", "b", "a"])) == ["a", "b", "a (2)"]


def test_another_method_starts_from_its_preset_and_keeps_what_concerns_all(tmp_path):
    raw = {
        "name": "toy",
        "base": {"name": "m", "source": "./x"},
        "data": {"train": "t.tsv"},
        "method": {"rank": 4},
        "train": {"learning_rate": 0.01, "seed": 5},
    }
    progress = Progress(quiet=True)
    plan = Opened(
        registry.kind("classify"),
        ClassifierPlan(recipe.parse(raw, "r", {}), tmp_path, Cache(tmp_path, progress), progress),
        tmp_path / "recipe.toml",
    )
    assert commands.with_method(plan, "") is plan
    assert commands.with_method(plan, "lora") is plan
    full = commands.with_method(plan, "full").plan.recipe
    assert (full.training.method, full.training.seed) == ("full", 5)
    assert full.training.learning_rate != 0.01
    assert commands.title(full) == "toy full"
    assert commands.title(commands.with_method(plan, "lora:B").plan.recipe) == "toy lora:B"


def test_one_thing_cannot_be_compared(tmp_path, capsys):
    assert cli.main(["init", "toy", "--dir", str(tmp_path)]) == 0
    assert cli.main(["compare", str(tmp_path / "toy")]) == 2
    assert "name two recipes" in capsys.readouterr().err


def test_a_panic_of_a_library_in_rust_ends_in_one_line(monkeypatch, capsys, tmp_path):
    """It comes as a BaseException of a class that nobody can import."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    panic = type("PanicException", (BaseException,), {})

    def work(_arguments):
        raise panic("range end index out of range")

    monkeypatch.setattr(cli, "_load", lambda _place: work)
    assert cli.main(["build", "recipe.toml"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("edge-forge: an error of the program itself: ")
    assert "PanicException: range end index out of range" in said
    assert len(said.splitlines()) == 1
