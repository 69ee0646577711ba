"""`edge-forge sweep` on a tiny real encoder: killed in mid-trial, taken up again, one trial ended early."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tiny_base
from tests.support.needs import need

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
RECIPE = """
name = "lamps"
[base]
name = "tiny"
source = "./base"
[task]
max_tokens = 16
[data]
train = "train.tsv"
validation = "train.tsv"
[method]
rank = 4
[train]
epochs = 12
learning_rate = 1e-2
batch_size = 4
precision = "fp32"
threads = 1
early_stopping_patience = 0
average_decay = 0.0
[export]
bank_rank = 4
bank_labels = 4
bank_tokens = 32
"""
# With eight tokens the six words that all texts begin with are left: nothing can be learned.
KEY = "task.max_tokens"
LENGTHS = f"{KEY}=16,17,18,8"


def command(*arguments):
    return [sys.executable, "-m", "edge_forge.cli", "sweep", *map(str, arguments)]


def environment():
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def sweep(folder, *arguments):
    return subprocess.run(
        command(folder, *arguments), capture_output=True, text=True, check=False, env=environment(), timeout=580
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    need("optuna")
    place = tmp_path_factory.mktemp("lamps")
    tiny_base.write(place / "base")
    (place / "recipe.toml").write_text(RECIPE)
    rows = "".join(f"{'please ' * 6}{text}\t{label}\n" for text, label in tiny_base.ROWS)
    (place / "train.tsv").write_text("text\tlabel\n" + rows)
    return place


@pytest.fixture(scope="module")
def killed(folder):
    """What a sweep said before it was killed while its second trial was at work."""
    said = []
    with subprocess.Popen(
        command(folder, "--over", LENGTHS, "--trials", "4"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        text=True, env=environment(),
    ) as process:  # fmt: skip
        for line in process.stderr:
            said.append(line)
            if line.startswith("trial 2 of 4"):
                process.send_signal(signal.SIGKILL)
                break
    return "".join(said)


@pytest.fixture(scope="module")
def finished(folder, killed):
    """The same sweep again: its result and what it said."""
    done = sweep(folder, "--over", LENGTHS, "--trials", "4", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_killed_sweep_goes_on_where_it_was(killed, finished):
    found, said = finished
    assert "cost: 4 trials of 12 epochs on 10 rows" in killed and "trial 1: trained, macro-F1 " in killed
    assert "sweep: 1 of 4 trials are there already" in said and "cost: 3 trials" in said
    assert "trial 1 of" not in said and "trial 2 of 4" in said
    again = next(line for line in said.splitlines() if line.startswith("trial 2 of 4"))
    assert again.rpartition(": ")[2] == killed.splitlines()[-1].rpartition(": ")[2] == "max_tokens 17"
    assert {trial["values"][KEY] for trial in found["trials"]} == {"16", "17", "18", "8"}


def test_a_trial_that_falls_behind_is_ended_and_stands_last(finished):
    found, _ = finished
    states = {trial["values"][KEY]: trial["state"] for trial in found["trials"]}
    assert states["8"] == "ended early" and list(states.values()).count("trained") == 3
    last = found["trials"][-1]
    assert last["values"][KEY] == "8" and last["passes"] < 12 and last["cpu_s"] > 0
    best = found["trials"][0]
    assert best["score"] == max(trial["score"] for trial in found["trials"]) > last["score"]
    assert best["parameters"] > 0 and best["cpu_s"] > 0 and found["best"]["lines"][0] == "[task]"
    html = Path(found["report"][1]).read_text()
    assert html.count("<svg") == 2 and "ended early" in html


def test_the_best_values_are_trained_already_and_so_is_a_finished_sweep(folder, finished):
    found, _ = finished
    value = found["best"]["values"][KEY]
    train = [sys.executable, "-m", "edge_forge.cli", "train", str(folder), "--set", f"{KEY}={value}"]
    done = subprocess.run(train, capture_output=True, text=True, check=True, env=environment())
    assert "train: cached" in done.stderr
    shown = sweep(folder, "--over", LENGTHS, "--trials", "4")
    assert "trial 1 of" not in shown.stderr and "4 of 4 trials are there already" in shown.stderr
    assert f"max_tokens = {value}" in shown.stdout and "edge-forge build" in shown.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--over", "train.learnig_rate=1,2"], "did you mean 'learning_rate'?"),
        (["--over", "train.epochs=0:4"], "the recipe refuses train.epochs = 0"),
        (["--over", "method.rank=4,8"], "the recipe refuses method.rank = 8: the bank holds rank 4"),
        (["--trials", "0"], "--trials: 0 trials"),
        (["--preset", "ranks", "--set", 'method={name="full"}'], "trains no adapter, so it has no rank"),
        (["--preset", "ranks", "--over", "train.epochs=1:4"], "an ablation compares values that are listed"),
        (["--set", "train.epochs=3", "--over", "train.epochs=1:4"], "train.epochs is both set and swept"),
    ],
)
def test_a_wrong_option_is_a_sentence(folder, options, said, capsys):
    from edge_forge import cli

    assert cli.main(["sweep", str(folder), *options]) in (1, 2)
    assert said in capsys.readouterr().err
