"""`edge-forge build` of a generator: a base from nothing, an adapter on it, packages that a device installs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tiny_generators
from tests.support.llama import needs_llama

pytestmark = [pytest.mark.slow, needs_llama]
ROOT = Path(__file__).parents[2]
BASE = """
name = "tiny"
[base]
name = "tiny"
source = "new:llama"
[task]
kind = "generate"
max_tokens = 96
[new]
vocabulary = 320
hidden = 64
layers = 2
heads = 2
kv_heads = 1
feed_forward = 96
[data]
train = "text.txt"
[method]
name = "full"
[train]
epochs = 6
batch_size = 4
threads = 1
precision = "fp32"
[evaluate]
rows = 4
answer_tokens = 8
[quantize]
variants = ["f16"]
"""
ADAPTER = """
name = "commands"
description = "Lamps."
[base]
name = "tiny"
source = "recipe:../base"
[task]
kind = "generate"
max_tokens = 96
[data]
train = "rows.jsonl"
validation = "rows.jsonl"
[train]
epochs = 40
batch_size = 4
learning_rate = 1e-2
threads = 1
precision = "fp32"
[evaluate]
rows = 6
answer_tokens = 24
[quantize]
variants = ["f16", "q8_0"]
max_perplexity_ratio = 1.5
"""
ROWS = [
    {"prompt": f"{thing} {state}", "completion": json.dumps({"to": thing, "do": state})}
    for thing in ("lamp", "fan") for state in ("on", "off", "up")
]  # fmt: skip


def environment():
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def forge(*arguments, **options):
    command = [sys.executable, "-m", "edge_forge.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("generate")
    for name, recipe in (("base", BASE), ("commands", ADAPTER)):
        (place / name).mkdir()
        (place / name / "recipe.toml").write_text(recipe)
    (place / "base" / "text.txt").write_text(
        "\n\n".join(f"The {row['prompt']}: {row['completion']}" for row in ROWS * 4)
    )
    (place / "commands" / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return place


@pytest.fixture(scope="module")
def built(folder):
    done = forge("build", folder / "commands", "--build", folder / "build", "--json")
    assert done.returncode == 0, done.stderr
    assert "torchao" not in done.stderr and "Writing model shards" not in done.stderr
    return json.loads(done.stdout), done.stderr


def test_base_adapter_and_merged_model_are_packed_and_verify(built):
    found, _ = built
    names = [Path(path).name for path in found["packages"]]
    assert names[0].startswith("tiny-") and names[1:] == ["commands-v1.tar", "commands-merged-v1.tar"]
    for path in found["packages"]:
        done = forge("verify", path, "--root", found["trust_root"], "--json")
        assert done.returncode == 0, done.stderr
    described = json.loads(forge("inspect", found["packages"][0], "--json").stdout)
    variant = {one["name"]: one for one in described["variants"]}["llamacpp/f16"]
    assert described["model"]["task"] == "generate, 96 tokens" and variant["file"] == "model.gguf"
    metrics = variant["metrics"]
    assert metrics["peak_bytes.ctx96.kv_f16"] == variant["peak_bytes"] > metrics["size_bytes"] > 0
    assert metrics["sample_perplexity"] > 1 and metrics["parity"] < 0.01
    assert variant["options"] == {"kv_type": "f16", "sequences": 4}
    adapter = json.loads(forge("inspect", found["packages"][1], "--json").stdout)["adapters"][0]
    assert (
        adapter["proven_on"] == ["llamacpp/f16", "llamacpp/q8_0"]
        and adapter["base_id"] == described["model"]["base_id"]
    )


def test_the_adapter_learned_what_the_base_did_not_know(folder, built):
    figures = json.loads((folder / "build" / "reports" / "commands.json").read_text())
    assert figures["scores"]["tuned"]["perplexity"] < 0.5 * figures["scores"]["base"]["perplexity"]
    assert figures["scores"]["tuned"]["answers"]["exact_match"] > figures["scores"]["base"]["answers"]["exact_match"]
    files = {(one["form"], one["dtype"]): one for one in figures["files"]}
    assert set(files) == {
        ("base", "f16"),
        *((form, dtype) for form in ("adapter", "merged") for dtype in ("f16", "q8_0")),
    }
    for form in ("adapter", "merged"):
        assert files[form, "f16"]["perplexity"] == pytest.approx(figures["scores"]["tuned"]["perplexity"], rel=0.02)
    assert figures["adapter"]["effect"] > 10 * figures["adapter"]["parity"]
    assert figures["files"][0]["perplexity"] == pytest.approx(figures["scores"]["base"]["perplexity"], rel=0.02)


def test_the_report_has_every_part(built):
    text = Path(built[0]["report"][0]).read_text()
    for word in (
        "exact match",
        "ROUGE-L",
        "adapter q8_0",
        "### Memory, predicted",
        "by the base",
        "## 4. Tuning",
        "`tiny`",
    ):
        assert word in text, word


def test_a_device_installs_base_and_adapter(built, tmp_path):
    found, _ = built
    config = tmp_path / "edge-agent.toml"
    config.write_text(
        f'[device]\nid = "test"\n\n[mqtt]\nhost = "127.0.0.1"\n\n[store]\nstate_dir = "{tmp_path / "state"}"\n'
        f'trust_root = "{found["trust_root"]}"\n\n[worker]\nbackends = ["llamacpp"]\n'
    )
    for path in found["packages"]:
        done = subprocess.run(
            [sys.executable, "-m", "edge_agent", "install", "--config", config, path],
            capture_output=True, text=True, check=False, env=environment(),
        )  # fmt: skip
        assert done.returncode == 0, f"{Path(path).name}: {done.stdout}{done.stderr}"
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent", "models", "--config", config, "--json"],
        capture_output=True, text=True, check=True, env=environment(),
    )  # fmt: skip
    (adapter,) = (one for model in json.loads(done.stdout) for one in model["adapters"])
    assert "commands-merged" in adapter["form"] and "not measured" not in adapter["form"], adapter


def test_a_second_build_does_nothing_and_the_bases_own_shares_its_steps(folder, built):
    done = forge("build", folder / "commands", "--build", folder / "build", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == built[0]
    told = ("base:", "warning:", "method:", "signing key ")
    steps = [line for line in done.stderr.splitlines() if not line.startswith(told)]
    assert steps and all(line.endswith(": cached") for line in steps), done.stderr
    near = forge("build", "commands", "--build", "build", cwd=folder)
    assert near.returncode == 0, near.stderr
    serve, ask = (line.strip() for line in near.stdout.splitlines()[-2:])
    assert serve == "edge-agent demo --recipe commands --stay"
    question = f"--chat --stream '{ROWS[0]['prompt']}'"
    assert ask == f"edge-agent infer --config build/demo/edge-agent.toml tiny {question} --adapter commands"
    assert not list((folder / "build" / "packages").glob(".*")), "placing the same file again leaves nothing"
    own = forge("build", folder / "base", "--build", folder / "build")
    assert own.returncode == 0, own.stderr
    assert "train: cached" in own.stderr
    shipped = [line for line in own.stdout.splitlines() if ".tar " in line]
    assert len(shipped) == 1 and "/packages/tiny-" in shipped[0]
    assert " tiny --prompt --stream 'The " in own.stdout.splitlines()[-1]


def test_a_conversion_beyond_its_tolerance_fails(folder, built):
    (folder / "strict").mkdir()
    (folder / "strict" / "rows.jsonl").write_bytes((folder / "commands" / "rows.jsonl").read_bytes())
    (folder / "strict" / "recipe.toml").write_text(
        ADAPTER.replace("[quantize]", "[gguf]\nparity_tolerance = 1e-9\n[quantize]")
    )
    done = forge("export", folder / "strict", "--build", folder / "build")
    assert done.returncode == 1
    assert "differs from PyTorch by" in done.stderr and "1e-09 is allowed" in done.stderr


def test_methods_are_compared_beside_the_base(folder, built):
    packages = set((folder / "build" / "packages").iterdir())
    arguments = ("compare", folder / "commands", "--methods", "lora,full", "--build", folder / "build")
    done = forge(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert "train: cached" in done.stderr, "the build's own steps are taken"
    found = json.loads(done.stdout)
    lora, full = (found["runs"][f"commands {method}"] for method in ("lora", "full"))
    assert full["train"]["trainable_parameters"] > lora["train"]["trainable_parameters"] > 0
    assert full["train"]["settings"]["learning_rate"] == pytest.approx(1e-3), "50 times its preset, as the recipe's own"
    assert max(run["scores"]["tuned"]["perplexity"] for run in (lora, full)) < lora["scores"]["base"]["perplexity"]
    assert {one["form"] for one in lora["files"]} == {"base", "adapter", "merged"}
    assert [(one["form"], one["dtype"]) for one in full["files"][1:]] == [("merged", "f16"), ("merged", "q8_0")]
    for one in (*lora["files"], *full["files"]):
        assert one["speed"]["tokens_per_s"] > 0 < one["speed"]["first_token_ms"], one
        assert one["speed"]["ratio_low"] <= one["speed"]["ratio"] <= one["speed"]["ratio_high"], one
    assert lora["files"][0]["speed"] == full["files"][0]["speed"], "the base is timed once"
    assert lora["files"][0]["speed"]["ratio"] == 1.0
    for one in (*lora["files"], *full["files"]):
        assert one["peak_bytes"] > one["size_bytes"]
    assert set((folder / "build" / "packages").iterdir()) == packages, "a comparison ships nothing"
    text = Path(found["report"][0]).read_text()
    for name in ("quality", "cost", "files"):
        assert (Path(found["report"][0]).parent / f"compare-commands-figures/{name}.svg").is_file()
    assert "| lora q8_0 |" in text
    shown = forge(*arguments, "--quiet")
    assert shown.returncode == 0, shown.stderr
    heads = [line.split()[0] for line in shown.stdout.splitlines() if line]
    assert heads == ["quality", "base", "lora", "full", "training", "lora", "full", "on", "base", *["lora"] * 4,
                     *["full"] * 2, "Take", "report:"]  # fmt: skip
    assert found["recommendation"] in shown.stdout, "the sentence of the page stands at the terminal and in JSON"
    assert f"## What to choose\n\n**{found['recommendation'][:12]}" in text
    beside = lora["beside"]["commands full"]
    ratio = full["scores"]["tuned"]["perplexity"] / lora["scores"]["tuned"]["perplexity"]
    assert beside["perplexity"]["ratio"] == pytest.approx(ratio, rel=1e-3)
    quantised = next(one for one in lora["files"] if (one["form"], one["dtype"]) == ("merged", "q8_0"))
    assert quantised["paired"]["ratio_low"] <= quantised["paired"]["ratio"] and quantised["holds"] in (True, False)


def test_a_diagnosis_asks_a_generator_for_a_text_and_for_the_likelier_sentences(folder, built, tmp_path):
    (tmp_path / "text.txt").write_text("the lamp is on\nand the light is off\n\nthe door is open\n")
    (tmp_path / "pairs.tsv").write_text("paradigm\tgood\tbad\na\tthe lamp is on\tlamp the on is\nb\tit is\tis it\n")
    rows = [json.dumps({"prompt": f"{one}+1", "answer": str(one + 1)}) for one in range(5)]
    (tmp_path / "own.jsonl").write_text("\n".join(rows))
    done = forge(
        "diagnose", folder / "commands", "--build", folder / "build", "--json", "--set", "diagnose.cosine=1.0",
        "--text", tmp_path / "text.txt", "--pairs", tmp_path / "pairs.tsv", "--exact", tmp_path / "own.jsonl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (run,) = found["runs"].values()
    assert set(run["kept"]) == {"perplexity", "pairs", "exact own"} and run["kept"]["perplexity"]["before"] > 1.0
    assert run["kept"]["pairs"]["before"] in (0.0, 0.5, 1.0)
    own = run["kept"]["exact own"]
    assert own["rows"] == 2 and own["lost_low"] <= own["lost"] <= own["lost_high"]
    tuned = run["repair"][0]
    assert tuned["factor"] == 1.0 and tuned["learned"] == pytest.approx(run["learned"][1], rel=1e-3)
    assert tuned["kept"]["perplexity"] == pytest.approx(run["kept"]["perplexity"]["after"], rel=1e-3)
    assert Path(found["report"][1]).read_text().count("<svg") == 3


def test_a_model_from_nothing_is_compared_on_its_own_texts(folder, built):
    done = forge("compare", folder / "base", folder / "commands", "--build", folder / "build", "--json")
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert list(runs) == ["tiny full", "commands lora"]
    assert [one["form"] for one in runs["tiny full"]["files"]] == ["base"]
    assert runs["tiny full"]["files"][0]["perplexity"] == pytest.approx(
        runs["tiny full"]["scores"]["tuned"]["perplexity"], rel=0.02
    )
    wrong = forge("compare", folder / "base", "--methods", "lora,full", "--build", folder / "build")
    assert wrong.returncode == 1
    assert "random weights are trained as a whole" in wrong.stderr


def test_rows_longer_than_the_base_takes_are_refused_at_once(folder, built):
    (folder / "long").mkdir()
    (folder / "long" / "recipe.toml").write_text(ADAPTER.replace("max_tokens = 96", "max_tokens = 512"))
    (folder / "long" / "rows.jsonl").write_bytes((folder / "commands" / "rows.jsonl").read_bytes())
    done = forge("train", folder / "long", "--build", folder / "build")
    assert done.returncode == 1
    assert "512 tokens are more than the base takes (96)" in done.stderr


def test_a_chat_template_that_makes_no_prompt_is_refused_at_once(folder, tmp_path):
    base = tiny_generators.write(tmp_path / "model", "llama")
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content[0].text }}{% endfor %}")
    (tmp_path / "rows.jsonl").write_bytes((folder / "commands" / "rows.jsonl").read_bytes())
    (tmp_path / "recipe.toml").write_text(ADAPTER.replace('"recipe:../base"', '"./model"'))
    done = forge("train", tmp_path, "--build", tmp_path / "build")
    assert done.returncode == 1
    assert "the chat template makes no prompt of plain messages: it fails with a prompt without" in done.stderr


@pytest.mark.parametrize(
    ("name", "method", "data"), [("tuned", "full", "rows.jsonl"), ("read", "lora", "text.txt")], ids=["full", "texts"]
)
def test_full_tuning_and_continued_pre_training(folder, built, name, method, data):
    place = folder / name
    place.mkdir()
    source = folder / ("commands" if data == "rows.jsonl" else "base") / data
    (place / data).write_bytes(source.read_bytes())
    text = ADAPTER.replace('"commands"', f'"{name}"').replace("rows.jsonl", data).replace("epochs = 40", "epochs = 8")
    text = text.replace("learning_rate = 1e-2", "learning_rate = 2e-3").replace('["f16", "q8_0"]', '["f16"]')
    (place / "recipe.toml").write_text(text + f'[method]\nname = "{method}"\n[gguf]\nadapter = false\n')
    done = forge("build", place, "--build", folder / "build", "--json")
    assert done.returncode == 0, done.stderr
    assert [Path(path).name for path in json.loads(done.stdout)["packages"]] == [f"{name}-merged-v1.tar"]
    scores = json.loads((folder / "build" / "reports" / f"{name}.json").read_text())["scores"]
    assert scores["tuned"]["perplexity"] < scores["base"]["perplexity"]
    assert ("answers" in scores["tuned"]) == (data == "rows.jsonl")


def test_tasks_one_after_another_are_scored_after_each(folder, built, tmp_path):
    """Commands, then the texts that the base was made of: each by its own score, and both by their perplexity."""
    (tmp_path / "text.txt").write_bytes((folder / "base" / "text.txt").read_bytes())
    text = ADAPTER.replace('"commands"', '"logs"').replace("rows.jsonl", "text.txt")
    (tmp_path / "recipe.toml").write_text(text.replace("recipe:../base", f"recipe:{folder / 'base'}"))
    done = forge(
        "sequence", folder / "commands", tmp_path, "--build", folder / "build", "--json", "--set", "train.epochs=2"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tasks"] == ["commands", "logs"] and found["scores"] == ["exact_match", "perplexity"]
    assert [len(row) for row in found["after"]] == [1, 2]
    further = found["further"]["perplexity"]
    assert further["after"][0][0] == pytest.approx(further["apart"][0]), "the first one begins on the untouched base"
    assert further["after"][1][1] != pytest.approx(further["apart"][1], rel=1e-4), "the second on what the first made"
    page = Path(found["report"][0]).read_text()
    assert "| score | commands: exact match | logs: perplexity |" in page and "Lost of each by the end" in page


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_packed_rows_do_not_see_each_other(tmp_path, family):
    import torch

    from edge_forge.models.causal_lm import open_model
    from tests.support import tiny_generators

    model = open_model(tiny_generators.write(tmp_path, family))
    one, other = torch.arange(3, 20)[None], torch.arange(40, 70)[None]
    with torch.inference_mode():
        packed = model(
            input_ids=torch.cat([one, other], dim=1),
            position_ids=torch.cat([torch.arange(17), torch.arange(30)])[None],
            use_cache=False,
        ).logits
        alone = [model(input_ids=row, use_cache=False).logits for row in (one, other)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), atol=1e-4, rtol=1e-3)


def test_recipes_that_are_each_others_base_are_refused(folder):
    for name, other in (("egg", "hen"), ("hen", "egg")):
        place = folder / name
        place.mkdir()
        (place / "rows.jsonl").write_bytes((folder / "commands" / "rows.jsonl").read_bytes())
        text = ADAPTER.replace("../base", f"../{other}").replace('"commands"', f'"{name}"')
        (place / "recipe.toml").write_text(text + '[method]\nname = "full"\n')
    done = forge("train", folder / "egg", "--build", folder / "build")
    assert done.returncode == 1
    assert "cannot be its own base" in done.stderr


def test_an_adapter_is_no_base(folder):
    place = folder / "above"
    place.mkdir()
    (place / "rows.jsonl").write_bytes((folder / "commands" / "rows.jsonl").read_bytes())
    (place / "recipe.toml").write_text(ADAPTER.replace("../base", "../commands"))
    done = forge("train", place, "--build", folder / "build")
    assert done.returncode == 1
    assert "which is no base" in done.stderr
