"""`edge-forge build` on bases that other tools get wrong: what is shipped computes the same, or it is refused first.

The generator's recipe is built in two folders: what its steps leave has the same digests in both.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_forge.cli import main
from tests.support import tiny_base, tiny_generators
from tests.support.llama import needs_llama

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
GENERATOR = """
name = "commands"
[base]
name = "odd"
source = "./base"
[task]
kind = "generate"
max_tokens = 96
chat = "auto"
[data]
train = "rows.jsonl"
validation = "rows.jsonl"
[train]
epochs = 2
batch_size = 4
learning_rate = 1e-2
threads = 1
precision = "fp32"
[evaluate]
rows = 2
answer_tokens = 4
[gguf]
contexts = [96]
[quantize]
variants = ["f16"]
[package]
failed_training = "warn"
"""
CLASSIFIER = """
name = "lamps"
[base]
name = "odd"
source = "./base"
[task]
max_tokens = 16
[data]
train = "train.tsv"
validation = "train.tsv"
[method]
rank = 4
[train]
epochs = 20
learning_rate = 5e-3
batch_size = 4
precision = "fp32"
threads = 1
[export]
banked = false
[quantize]
variants = ["fp32", "fp16"]
"""
ROWS = [
    {"prompt": f"{thing} {state}", "completion": f"{thing}={state}"}
    for thing in ("lamp", "café")
    for state in ("on", "off")
]


def forge(*arguments):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    known = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "edge_forge.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=known)


def forge_here(capsys, *arguments):
    """The same in this process, which has PyTorch loaded: for what needs no process of its own."""
    code = main(list(map(str, arguments)))
    said = capsys.readouterr()
    return SimpleNamespace(returncode=code, stdout=said.out, stderr=said.err)


def generator(place, family, own_head=False, **shape):
    """A recipe's folder with a base of a family; `own_head`: a head that is not the embedding under the tied flag."""
    from safetensors.torch import load_file, save_file

    place.mkdir()
    base = tiny_generators.write(place / "base", family, tie_word_embeddings=own_head, **shape)
    if own_head:
        tensors = load_file(base / "model.safetensors")
        embedding = tensors["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = embedding.flip(0).clone()
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    (place / "recipe.toml").write_text(GENERATOR)
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return place


def give_odd_tokens(base):
    """Tokens that take the spaces beside them, and texts composed by NFC."""
    path = base / "tokenizer.json"
    document = json.loads(path.read_text())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokens = len(document["model"]["vocab"])
    sides = ({"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True, "special": False})
    document["added_tokens"] += [
        {"id": tokens + place, "content": f"<odd {place}>", **plain, **side} for place, side in enumerate(sides)
    ]
    document["normalizer"] = {"type": "NFC"}
    path.write_text(json.dumps(document))


def outputs_of(build):
    """(title of the step, name, digest) of what the steps left, but for logs and records, which hold times."""
    records = [json.loads(path.read_text()) for path in (build / "steps").glob("*/*/record.json")]
    return {
        (one["title"], name, output["sha256"])
        for one in records for name, output in one["outputs"].items() if not name.endswith((".log", "record.json"))
    }  # fmt: skip


@needs_llama
def test_a_head_of_its_own_and_tokens_that_take_spaces_are_built_alike_in_two_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(int(time.time())))
    place = generator(tmp_path / "recipe", "llama", own_head=True)
    give_odd_tokens(place / "base")
    first = forge_here(capsys, "build", place, "--build", tmp_path / "one", "--json")
    assert first.returncode == 0, first.stderr
    report = json.loads((tmp_path / "one" / "reports" / "commands.json").read_text())
    parities = [one["parity"] for one in report["files"] if "parity" in one]
    assert parities and max(parities) < 1e-2
    again = forge("package", place, "--build", tmp_path / "two", "--json")
    assert again.returncode == 0 and "cached" not in again.stderr, again.stderr
    found, before = outputs_of(tmp_path / "two"), outputs_of(tmp_path / "one")
    names = {name for _, name, _ in found}
    assert {"f16.gguf", "adapter.gguf", "package.tar"} <= names
    different = {one[:2] for one in found - before}
    # Two builds have keys of their own, so what is signed differs; the packages before that do not.
    assert {title for title, _ in different} <= {title for title, name, _ in found if title.startswith("sign and")}


@needs_llama
@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("gemma2", {"own_head": True}, "llama.cpp reads no head in a model of architecture gemma2"),
        ("qwen3", {"attention_bias": True}, "attention_bias = true gives o_proj a bias"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_said_before_training(tmp_path, family, options, said, capsys):
    place = generator(tmp_path / "recipe", family, **options)
    done = forge_here(capsys, "build", place, "--build", tmp_path / "build")
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "train ..." not in done.stderr


def test_an_activation_beyond_float16_stays_fp32_in_what_is_shipped(tmp_path, capsys):
    import torch
    from safetensors.torch import load_file, save_file

    base = tiny_base.write(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    # The inner activation of the first layer is 1e6 times as large, its second matrix as much smaller: the same model.
    for name, by in (
        ("intermediate.dense.weight", 1e6),
        ("intermediate.dense.bias", 1e6),
        ("output.dense.weight", 1e-6),
    ):
        tensors[f"encoder.layer.0.{name}"] = tensors[f"encoder.layer.0.{name}"] * by
    assert all(torch.isfinite(one).all() for one in tensors.values() if one.is_floating_point())
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "recipe.toml").write_text(CLASSIFIER)
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in tiny_base.ROWS))
    done = forge_here(capsys, "build", tmp_path, "--build", tmp_path / "build", "--json")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"Float16 would overflow: values reach [0-9,]+ .*; [1-9][0-9]* of [0-9]+ nodes stay in float32", done.stderr
    )
    (package,) = json.loads(done.stdout)["packages"]
    variants = json.loads(forge_here(capsys, "inspect", package, "--json").stdout)["variants"]
    assert {one["name"] for one in variants} == {"onnx/fp32", "onnx/fp16"}
