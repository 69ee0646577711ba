"""What `edge-forge build` prints to be pasted: words that a shell takes apart again, of the names that were built."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_agent.cli import verbs
from edge_agent.demo.device import built_by
from edge_forge.data.classifier_rows import Row
from edge_forge.data.generator_rows import GeneratorData, Turn
from edge_forge.kinds import answers, classifier, generator, preference, slots
from edge_forge.report import first_request

ADAPTER = [
    {"what": "base", "file": "mini-lm-0123abcd.tar"},
    {"what": "adapter", "file": "my-task-v3.tar"},
    {"what": "merged model", "file": "my-task-merged-v3.tar"},
]


def asked(line):
    """The arguments as `edge-agent` reads them from a shell."""
    program, *words = shlex.split(line)
    assert program == "edge-agent"
    return verbs.parser().parse_args(words)


def rows(*texts):
    return SimpleNamespace(measured=("test", tuple(Row(text, "label") for text in texts)))


def dialogues(*found):
    return GeneratorData(found, found, (), {}, ())


def test_it_names_what_the_demo_installs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = asked(first_request.ask_line(tmp_path / "build", ADAPTER, ("it's dark; rm -rf $HOME",)))
    assert (options.model, options.adapter, options.text) == ("mini-lm", "my-task", ["it's dark; rm -rf $HOME"])
    assert options.config == Path("build/demo/edge-agent.toml")
    alone = asked(first_request.ask_line(tmp_path / "build", ADAPTER[2:], ("x",)))
    assert (alone.model, alone.adapter) == ("my-task-merged", None)
    bare = asked(first_request.ask_line(tmp_path / "build", ADAPTER[:1], ("x",)))
    assert (bare.model, bare.adapter) == ("mini-lm", None)


@pytest.mark.parametrize(
    ("packages", "installed"),
    [
        (["b-01.tar", "t-v1.tar", "t-merged-v1.tar"], ["b-01.tar", "t-v1.tar"]),
        (["t-merged-v1.tar"], ["t-merged-v1.tar"]),
        (["b-01.tar", "a-merged-v1.tar", "a-merged-merged-v1.tar"], ["b-01.tar", "a-merged-v1.tar"]),
    ],
    ids=["an adapter", "a model alone", "an adapter of such a name"],
)
def test_the_demo_leaves_out_a_merged_model_only_beside_its_adapter(packages, installed):
    found = built_by(json.dumps({"packages": [f"/build/{name}" for name in packages], "trust_root": "/r"}).encode())
    assert [path.name for path in found.packages] == installed


def test_the_recipes_are_served_from_their_build_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = asked(first_request.serve_line([Path("a b"), Path("c/recipe.toml")], tmp_path / "build"))
    assert (options.recipe, options.build, options.stay) == (
        [Path("a b"), Path("c/recipe.toml")], Path("build"), True,
    )  # fmt: skip
    elsewhere = asked(first_request.serve_line([Path("a")], Path("/elsewhere/build")))
    assert elsewhere.build == Path("/elsewhere/build")


def test_a_row_that_can_be_pasted_is_preferred():
    assert first_request.shown([["x" * 99], ["two\nlines"], ["short"], ["s"]]) == ("short",)
    assert first_request.shown([["x" * 99], ["\x1b[2Jtwo\nlines"], ["--help"]]) == ("help",)
    assert first_request.shown([["-\n"], ["\x00"]]) == ()


def test_each_kind_asks_in_its_own_words():
    for kind in (classifier.KIND, slots.KIND):
        options = asked(first_request.ask_line(Path("build"), ADAPTER, kind.question(rows("it is dark"))))
        assert (options.text, options.pair, options.chat) == (["it is dark"], [], False)
    options = asked(first_request.ask_line(Path("build"), ADAPTER, classifier.KIND.question(rows(("one", "two")))))
    assert (options.text, options.pair) == (["one"], ["two"])
    options = asked(first_request.ask_line(Path("build"), ADAPTER, answers.KIND.question(rows(("who?", "it was Eve")))))
    assert (options.text, options.context) == (["who?"], "it was Eve")
    said = (Turn("system", "Be brief."), Turn("user", "lamp on"), Turn("assistant", "{}"))
    for kind, row in ((generator.KIND, said), (preference.KIND, (*said, Turn("rejected", "no")))):
        options = asked(first_request.ask_line(Path("build"), ADAPTER, kind.question(dialogues(row))))
        assert (options.text, options.chat, options.stream, options.prompt) == (["lamp on"], True, True, False)
    text = (Turn("text", "Once upon a time there was a lamp that nobody lit."),)
    options = asked(first_request.ask_line(Path("build"), ADAPTER, generator.KIND.question(dialogues(text))))
    assert (options.text, options.chat, options.prompt) == (["Once upon a time there"], False, True)
