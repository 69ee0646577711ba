"""Recipes on the base of `tiny_base`, built: slots (what is switched, and to which state) and the classes on and off.

A file of its own because the tests of slots and the conformance of Node-RED's flow build the same models.
"""

import json
import os
import subprocess
from pathlib import Path

from edge_agent.base.child_python import module_command
from tests.support import tiny_base

_RECIPE = """
name = "{name}"
[base]
name = "{base}"
source = "./base"
[task]
kind = "{kind}"
max_tokens = 12
[data]
train = "train.jsonl"
validation = "train.jsonl"
[method]
name = "lora"
[train]
epochs = 30
learning_rate = 5e-3
batch_size = 8
precision = "fp32"
threads = 1
token_dropout = 0.0
[quantize]
variants = ["fp32"]
[export]
merged = {merged}
"""
THINGS = {"lamp", "light"}
STATES = {"on", "off"}


def row(text):
    """The words of tiny_base's task, marked."""
    spans, at = [], 0
    for word in text.split():
        for label, known in (("thing", THINGS), ("state", STATES)):
            if word in known:
                spans.append({"start": at, "end": at + len(word), "label": label})
        at += len(word) + 1
    return {"text": text, "spans": spans}


def slots(place: Path, name="parts", base="tiny", merged=True, out=None):
    """Build the recipe of slots; the report of `edge-forge build --json`."""
    rows = [row(text) for text in (*tiny_base.ON, *tiny_base.OFF, "please", "now please")]
    return _build(place, _RECIPE.format(name=name, base=base, kind="slots", merged=str(merged).lower()), rows, out)


def classes(place: Path, name="switch", base="tiny", out=None):
    """Build the recipe of a classifier on the same base, as an adapter alone. `out`: a build folder, with its keys."""
    texts = {"on": tiny_base.ON, "off": tiny_base.OFF}
    rows = [{"text": text, "label": label} for label, of in texts.items() for text in of]
    return _build(place, _RECIPE.format(name=name, base=base, kind="classify", merged="false"), rows, out)


def _build(place, recipe, rows, out):
    place.mkdir(exist_ok=True)
    tiny_base.write(place / "base")
    (place / "recipe.toml").write_text(recipe)
    (place / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    done = subprocess.run(
        module_command("edge_forge.cli", "build", str(place), "--build", str(out or place / "build"), "--json"),
        capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
