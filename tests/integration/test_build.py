"""`edge-forge build` on a tiny real encoder: packages that a device accepts, a report, and nothing done twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from edge_agent.base.child_python import module_command
from edge_agent.base.errors import EdgeError
from edge_agent.bundle.contents import VariantItem, read_probes
from edge_agent.bundle.drift_reference import reference, unknown_share
from edge_agent.bundle.layout import open_package
from edge_agent.bundle.verify import fetcher, read_package, read_release
from edge_forge.package.package_trial import try_packages
from tests.support import fake_gpu, tiny_base, tutorials
from tests.support.agents import AgentProcess
from tests.support.desk import cli, said
from tests.support.hostile_modules import plant, ran
from tests.support.mosquitto import Mosquitto
from tests.support.packages import keys

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RECIPE = """
name = "lamps"
description = "Whether a lamp is to go on or off."
[base]
name = "tiny"
source = "./base"
[task]
max_tokens = 16
[data]
train = "train.tsv"
validation = "train.tsv"
test = "train.tsv"
[method]
rank = 4
[train]
epochs = 20
learning_rate = 5e-3
batch_size = 4
precision = "fp32"
threads = 1
[export]
bank_rank = 4
bank_labels = 4
bank_tokens = 32
[quantize]
max_loss_points = 20.0
"""


def forge(*arguments, **options):
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, env=environment(), **options
    )


def command(*arguments):
    return [sys.executable, "-m", "edge_forge.cli", *map(str, arguments)]


def environment():
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("lamps")
    tiny_base.write(place / "base")
    (place / "recipe.toml").write_text(RECIPE)
    # The first two texts are longer than task.max_tokens: golden probes are chosen from the top of each class.
    long = [("please " * 20 + text, label) for text, label in (tiny_base.ROWS[0], tiny_base.ROWS[-1])]
    rows = "".join(f"{text}\t{label}\n" for text, label in (*long, *tiny_base.ROWS))
    (place / "train.tsv").write_text("text\tlabel\n" + rows)
    (place / "card.md").write_text("# Lamps\nOn or off.\n")
    return place


@pytest.fixture(scope="module")
def built(folder):
    """Built in the recipe's folder, with modules there and in the base's that must not be run."""
    plant(folder)
    plant(folder / "base")
    program = module_command("edge_forge.cli", "build", str(folder), "--build", str(folder / "build"), "--json")
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment(), cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_no_module_of_the_recipes_or_the_bases_folder_was_run(built, folder):
    assert ran(folder) == ran(folder / "base") == []


def test_the_packages_verify_and_say_what_they_hold(built):
    found, _ = built
    names = [Path(path).name for path in found["packages"]]
    assert names[0].startswith("tiny-")
    assert names[1:] == ["lamps-v1.tar", "lamps-merged-v1.tar"]
    for path in found["packages"]:
        assert Path(path).read_bytes()[:512].rstrip(b"\0").startswith(b"release.dsse.json")
        done = forge("verify", path, "--root", found["trust_root"], "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["signers"]
    near = forge("verify", found["packages"][1])
    assert near.returncode == 0, near.stderr
    shown = forge("inspect", found["packages"][1])
    assert "lamps" in shown.stdout
    assert Path(found["packages"][1]).stat().st_size < Path(found["packages"][0]).stat().st_size


def test_the_card_travels_in_the_packages_made_of_the_recipe(built):
    held = [b"# Lamps\nOn or off.\n" in Path(path).read_bytes() for path in built[0]["packages"]]
    assert held == [False, True, True]


def test_a_device_installs_them_and_its_golden_probes_hold(built, tmp_path):
    found, _ = built
    for path in found["packages"][1:]:
        with open_package(Path(path)) as package:
            contents = read_package(package, read_release(package, None, allow_unsigned=True).release)
            probes = read_probes(contents.items[0], fetcher(package))
        assert any(len(text.split()) > 16 for text in probes.texts), "a probe that is cut at the adapter's own limit"
    config = tmp_path / "edge-agent.toml"
    config.write_text(
        f'[device]\nid = "test"\n\n[mqtt]\nhost = "127.0.0.1"\n\n[store]\nstate_dir = "{tmp_path / "state"}"\n'
        f'trust_root = "{found["trust_root"]}"\n\n[worker]\nbackends = ["onnx"]\n'
    )
    for path in found["packages"]:
        done = subprocess.run(
            [sys.executable, "-m", "edge_agent", "install", "--config", config, path],
            capture_output=True, text=True, check=False, env=environment(),
        )  # fmt: skip
        assert done.returncode == 0, f"{Path(path).name}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("max_rows", [1, 3, 4])
def test_a_board_that_cuts_its_batches_gets_the_same_numbers_of_int8(built, tmp_path, max_rows):
    """Without measuring, INT8 is the variant that is tried; its probes were measured by a host that runs 16 rows."""
    found, _ = built
    config = tmp_path / "edge-agent.toml"
    config.write_text(
        f'[device]\nid = "test"\n\n[mqtt]\nhost = "127.0.0.1"\n\n[store]\nstate_dir = "{tmp_path / "state"}"\n'
        f'trust_root = "{found["trust_root"]}"\n\n[worker]\nbackends = ["onnx"]\nmax_rows = {max_rows}\n'
        "\n[models]\nmeasure = false\n"
    )
    for path in found["packages"][:2]:
        done = subprocess.run(
            [sys.executable, "-m", "edge_agent", "install", "--config", config, path],
            capture_output=True, text=True, check=False, env=environment(),
        )  # fmt: skip
        assert done.returncode == 0, f"{Path(path).name}: {done.stdout}{done.stderr}"
        assert "golden probes hold, alone and in company" in done.stdout
    told = subprocess.run(
        [sys.executable, "-m", "edge_agent", "models", "--json", "--config", config],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    assert [model["variant"] for model in json.loads(told.stdout)] == ["onnx/int8"]


def test_the_build_tried_its_packages_as_a_device_would(built, monkeypatch):
    found, told = built
    assert "install the packages in a scratch store" in told
    base, adapter, _ = map(Path, found["packages"])
    root = Path(found["trust_root"])
    with pytest.raises(EdgeError, match=r"adapter: edge-agent does not install it here: .*install"):
        try_packages([("adapter", adapter)], root, ("onnx",))
    # By a relative path, as `--build build` gives it.
    monkeypatch.chdir(base.parent)
    with pytest.raises(EdgeError, match=r"base: edge-agent does not install it here: .*sign"):
        try_packages([("base", Path(base.name))], keys().root_file, ("onnx",))


@pytest.mark.parametrize("form", ["merged", "unmerged"])
def test_an_adapter_and_its_merged_model_answer_alike_for_who_asks_for_the_adapter(built, tmp_path, form):
    found, _ = built
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / form, broker.port, extra=f'[models]\nprefer = ["{form}"]\n', backends=("onnx",))
        agent.config.write_text(agent.config.read_text().replace(str(keys().root_file), found["trust_root"]))
        for path in found["packages"]:
            agent.install(Path(path))
        shown = said(cli("models", "--why", "--config", agent.config))
        assert f"because: {form} as preferred: on tiny" in shown and " ms a text, accuracy " in shown, shown
        assert "not measured" not in shown
        agent.start()
        replies = [
            json.loads(said(cli("infer", "tiny", text, "--adapter", "lamps", "--json", "--config", agent.config)))
            for text, _ in tiny_base.ROWS[:6]
        ]
        assert agent.stop() == 0
    assert {(one["status"], one["model"], one["adapter"]) for one in replies} == {(200, "tiny", "lamps")}
    assert {one.get("merged") for one in replies} == {"lamps-merged" if form == "merged" else None}
    assert [one["result"]["label"] for one in replies] == [label for _, label in tiny_base.ROWS[:6]]


def test_adapter_and_merged_model_say_what_the_test_set_was_like_and_the_base_does_not(built):
    told = []
    for path in built[0]["packages"]:
        with open_package(Path(path)) as package:
            release = read_release(package, None, allow_unsigned=True).release
            contents = read_package(package, release)
        owners = [item.info if isinstance(item, VariantItem) else item.config for item in contents.items]
        for metrics in (owner.metrics for owner in owners):
            fragmentation, unknown = reference(metrics, "fragmentation"), unknown_share(metrics)
            told.append((Path(path).name.split("-")[0], fragmentation is not None))
            if fragmentation is not None:
                assert sum(fragmentation) == pytest.approx(1.0, abs=1e-3)
                assert sum(reference(metrics)) == pytest.approx(1.0, abs=1e-3)
                assert unknown == 0.0, "the tokenizer was made of these very texts"
    assert set(told) == {("tiny", False), ("lamps", True)}


def test_the_report_has_every_part(built):
    found, _ = built
    text = Path(found["report"][0]).read_text()
    words = (
        "## Packages",
        "merged int8",
        "banked int8",
        "Float16 holds every tensor",
        "## 4. Tuning",
        "confusion.svg",
        "## 7. Monitoring",
        "golden probes",
        "| 1.0 |",
    )
    for word in (*words, "claims"):
        assert word in text, word
    assert "<svg" in Path(found["report"][1]).read_text()


def test_the_verb_quantize_names_every_graph_with_its_figures(built, folder):
    done = forge("quantize", folder, "--build", folder / "build", "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"banked fp32", "banked int8", "merged fp32", "merged fp16", "merged int8"}


def test_a_second_build_does_nothing_and_says_so(built, folder):
    before = written(folder)
    done = forge("build", folder, "--build", folder / "build", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == built[0]
    told = ("base:", "warning:", "method:", "signing key ")
    steps = [line for line in done.stderr.splitlines() if not line.startswith(told)]
    assert steps
    assert f"signing key {built[0]['signing_key']['keyid'][:16]} {folder / 'build' / 'keys'}" in done.stderr
    assert all(line.endswith(": cached") for line in steps), done.stderr
    assert written(folder) == before


def test_what_a_build_ends_with_serves_it_and_asks_it(built, folder):
    """The commands of docs/tutorials/train.md, which are those that the build prints last, with this recipe's names."""
    *_, build, serve, ask = (line for line, _ in tutorials.lines(tutorials.page("train")))
    terminal = tutorials.Terminal(folder.parent, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    printed = terminal.run(build.replace("my-task", folder.name))
    to_serve, to_ask = (line.strip() for line in printed.splitlines()[-2:])
    where = folder.name + "/build"
    assert to_serve.replace(f"--build {where} ", "").replace(folder.name, "my-task") == serve
    text = '"what time is it in tokyo"'
    named = {"build/": f"{where}/", "minilm": "tiny", text: f"'{tiny_base.ROWS[0][0]}'", "my-task": "lamps"}
    for mine, here in named.items():
        assert mine in ask
        ask = ask.replace(mine, here)
    assert to_ask == ask
    with terminal.meanwhile(to_serve, "[   stay]"):
        answer = terminal.run(to_ask)
    assert answer.split()[0] == tiny_base.ROWS[0][1], answer


def written(folder):
    """When each file of the steps was written. A record's time is that of its last use, so its inode stands for it."""
    found = {}
    for path in (folder / "build" / "steps").rglob("*"):
        status = path.stat()
        found[path] = status.st_ino if path.name == "record.json" else status.st_mtime_ns
    return found


def test_a_second_recipe_shares_the_base(built, folder):
    (folder / "other").mkdir()
    text = (
        RECIPE.replace('"lamps"', '"lights"').replace('"./base"', '"../base"').replace('"train.tsv"', '"../train.tsv"')
    )
    (folder / "other" / "recipe.toml").write_text(text.replace("[method]", "[method]\npreset = 'A'"))
    done = forge("build", folder / "other", "--build", folder / "build", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["packages"][0] == built[0]["packages"][0]
    for step in ("export-base", "quantize base", "golden probes of base", "package tiny"):
        assert f"{step}: cached" in done.stderr


@pytest.fixture(scope="module")
def for_both(built, folder):
    """The same recipe with variants for TensorRT: what was trained is used again."""
    place = folder / "jetson"
    place.mkdir()
    text = (
        RECIPE.replace('"lamps"', '"boards"').replace('"./base"', '"../base"').replace('"train.tsv"', '"../train.tsv"')
    )
    more = 'tensorrt = ["fp16", "int8"]\nmin_agreement = 0.0\nmax_logit_error = 1.0\n'
    (place / "recipe.toml").write_text(text + more)
    done = forge("build", place, "--build", folder / "build", "--json")
    assert done.returncode == 0, done.stderr
    assert "train: cached" in done.stderr, done.stderr
    return json.loads(done.stdout)


def test_a_package_for_tensorrt_says_what_it_holds_and_how_it_was_judged(for_both, built):
    assert for_both["packages"][0] != built[0]["packages"][0], "a base with other variants is another release"
    for path, names in zip(for_both["packages"], (("int8",), (), ("fp16", "int8")), strict=True):
        with open_package(Path(path)) as package:
            contents = read_package(package, read_release(package, None, allow_unsigned=True).release)
        variants = {f"{one.info.runtime}/{one.info.dtype}": one.info for one in contents.variants}
        if not variants:
            continue
        assert set(variants) == {"onnx/fp32", "tensorrt/fp16", "tensorrt/int8", *(f"onnx/{name}" for name in names)}
        for name, info in variants.items():
            assert ("judged_on_cpu" in info.metrics) == name.startswith("tensorrt/")
            assert ("precision" in info.options) == name.startswith("tensorrt/")
    report = Path(for_both["report"][0]).read_text()
    for words in ("merged tensorrt fp16", "banked tensorrt int8", "were judged on this host's processor"):
        assert words in report, words


def test_one_package_serves_a_pi_and_a_jetson(for_both, folder, tmp_path, monkeypatch):
    """The board without TensorRT takes ONNX Runtime's variant, the one with it TensorRT's, with the same adapter."""
    python = fake_gpu.write_python(tmp_path / "python", "10.3")
    monkeypatch.setenv("EDGE_AGENT__WORKER__TENSORRT_PYTHON", str(python))
    answers = {}
    with Mosquitto(tmp_path) as broker:
        for backends in (("onnx",), ("tensorrt", "onnx")):
            agent = AgentProcess(tmp_path / backends[0], broker.port, backends=backends,
                                 extra='[models]\nmeasure = false\nprefer = ["fp16"]\n')  # fmt: skip
            agent.config.write_text(agent.config.read_text().replace(str(keys().root_file), for_both["trust_root"]))
            for path in for_both["packages"][:2]:
                agent.install(Path(path))
            agent.start()
            answers[backends[0]] = [
                json.loads(said(cli("infer", "tiny", text, "--adapter", "boards", "--json", "--config", agent.config)))
                for text, _ in tiny_base.ROWS[:6]
            ]
            assert agent.stop() == 0
    assert {one["variant"] for one in answers["tensorrt"]} == {"fp16"}
    assert {one["variant"] for one in answers["onnx"]} == {"int8"}
    for found in answers.values():
        assert [one["result"]["label"] for one in found] == [label for _, label in tiny_base.ROWS[:6]]
    _second_board_takes_the_engine(tmp_path, folder, for_both["trust_root"])


def _second_board_takes_the_engine(tmp_path: Path, folder: Path, root: str) -> None:
    """The engine that the first board built and proved travels in the next release: the second one builds none."""
    place = folder / "jetson"
    (engines,) = (tmp_path / "tensorrt").rglob("engines")
    shutil.copytree(engines, place / "engines")
    changed = [f"{key}=2" for key in ("base.version", "package.version")]
    words = [word for one in ('quantize.tensorrt_engines="engines"', *changed) for word in ("--set", one)]
    done = forge("build", place, "--build", folder / "build", "--json", *words)
    assert done.returncode == 0, done.stderr
    with Mosquitto(tmp_path / "second") as broker:
        agent = AgentProcess(tmp_path / "second", broker.port, backends=("tensorrt", "onnx"),
                             extra='[models]\nmeasure = false\nprefer = ["fp16"]\n')  # fmt: skip
        agent.config.write_text(agent.config.read_text().replace(str(keys().root_file), root))
        for path in json.loads(done.stdout)["packages"][:2]:
            agent.install(Path(path))
        agent.start()
        text, label = tiny_base.ROWS[0]
        found = said(cli("infer", "tiny", text, "--adapter", "boards", "--json", "--config", agent.config))
        assert json.loads(found)["result"]["label"] == label and json.loads(found)["variant"] == "fp16"
        assert agent.stop() == 0
    (kept,) = (tmp_path / "second").rglob("*.proven")
    assert kept.read_text() == (engines / kept.name).read_text()
    assert list(engines.glob("*.timings")) and not list(kept.parent.glob("*.timings")), "a build leaves its timings"


def test_the_same_moment_gives_the_same_packages(built, folder, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(int(time.time())))
    first = forge("package", folder, "--build", folder / "build", "--json")
    assert first.returncode == 0, first.stderr
    path = Path(json.loads(first.stdout)["lamps-v1.tar"])
    content = path.read_bytes()
    path.unlink()
    assert forge("package", folder, "--build", folder / "build", "--json").stdout == first.stdout
    assert path.read_bytes() == content


def copy_of_the_recipe(folder, place, text=RECIPE):
    """The recipe's own files (not its build folder, not the planted modules) at another place."""
    (place / "base").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copyfile(folder / "base" / name, place / "base" / name)
    for name in ("train.tsv", "card.md"):
        shutil.copyfile(folder / name, place / name)
    (place / "recipe.toml").write_text(text)
    return place


def layers_of(package):
    """Digest of every layer of a package, by the name of its manifest and the layer's file name."""
    with tarfile.open(package) as archive:
        index = json.load(archive.extractfile("index.json"))
        found = {}
        for one in index["manifests"]:
            manifest = json.load(archive.extractfile(f"blobs/sha256/{one['digest'].removeprefix('sha256:')}"))
            name = one["annotations"]["org.opencontainers.image.ref.name"]
            for layer in manifest["layers"]:
                found[name, layer["annotations"]["org.cncf.model.filepath"]] = layer["digest"]
    return found


def outputs_of(build):
    """(title of the step, name, digest) of every file that a step left. Logs and records hold times, and packages the
    latency and the memory that were measured. Other recipes may have used the folder, too."""
    records = [json.loads(path.read_text()) for path in (build / "steps").glob("*/*/record.json")]
    return {
        (one["title"], name, output["sha256"])
        for one in records if one["step"] != "package"
        for name, output in one["outputs"].items() if not name.endswith((".log", "record.json"))
    }  # fmt: skip


def test_a_build_elsewhere_gives_the_same_graphs_adapters_probes_and_layers(built, folder, tmp_path):
    place = copy_of_the_recipe(folder, tmp_path / "elsewhere", RECIPE + "[package]\nexpires_days = 90\n")
    # Everything is made anew, but for the keys and the packages: the shared base's memory is measured a second time.
    for name in ("keys", "packages"):
        shutil.copytree(folder / "build" / name, tmp_path / "out" / name)
    done = forge("package", place, "--build", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert "cached" not in done.stderr
    base, base_again = built[0]["packages"][0], next(iter(json.loads(done.stdout).values()))
    with open_package(Path(base)) as first, open_package(Path(base_again)) as second:
        assert first.read("index.json", 65536) == second.read("index.json", 65536)
        statements = [read_release(one, None, allow_unsigned=True).release for one in (first, second)]
    assert statements[0].expires != statements[1].expires
    found, before = outputs_of(tmp_path / "out"), outputs_of(folder / "build")
    assert {title for title, _, _ in found} >= {"train", "export-base", "quantize merged", "golden probes of adapter"}
    assert found <= before
    for path, other in zip(built[0]["packages"], json.loads(done.stdout).values(), strict=True):
        assert len(layers_of(path)) >= 2
        assert layers_of(path) == layers_of(other)


def test_a_recipe_of_the_same_name_in_one_build_folder_overwrites_nothing(built, folder, tmp_path):
    text = RECIPE.replace("[export]", "[export]\nbanked = false").replace(
        "[quantize]", "[quantize]\nvariants = ['fp32']"
    )
    place = copy_of_the_recipe(folder, tmp_path / "twin", text.replace("epochs = 20", "epochs = 30"))
    weights = load_file(place / "base" / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"] * 1.01
    save_file(weights, place / "base" / "model.safetensors", metadata={"format": "pt"})
    build = tmp_path / "build"
    # What served it has left a socket there.
    shutil.copytree(folder / "build", build, ignore=shutil.ignore_patterns("demo"))
    held = {
        path.name: path.read_bytes() for name in ("packages", "reports") for path in (build / name).glob("lamps*.*")
    }
    done = forge("build", place, "--build", build, "--json", "--no-trial")
    assert done.returncode == 0, done.stderr
    assert not any(f"{step}: cached" in done.stderr for step in ("base", "trace-base", "train", "evaluate"))
    (kept,) = {path.name for path in (build / "packages").glob("lamps-merged-v1-*.tar")}
    assert f"the one before is kept as {kept}" in done.stderr
    now = {path.name: path.read_bytes() for name in ("packages", "reports") for path in (build / name).glob("lamps*.*")}
    assert now.pop(kept) == held.pop("lamps-merged-v1.tar") != now.pop("lamps-merged-v1.tar")
    assert {name: now[name] for name in held} == held
    report = Path(json.loads(done.stdout)["report"][0])
    assert report.name in now.keys() - held.keys()
    assert json.loads(report.with_suffix(".json").read_text())["recipe"]["file"] == str(place / "recipe.toml")


def test_an_interrupt_leaves_nothing_half_written(built, folder):
    (folder / "long").mkdir()
    text = (
        RECIPE.replace("epochs = 20", "epochs = 900")
        .replace('"./base"', '"../base"')
        .replace('"train.tsv"', '"../train.tsv"')
    )
    (folder / "long" / "recipe.toml").write_text(text)
    steps = folder / "build" / "steps"
    before = sorted(steps.rglob("*"))
    with subprocess.Popen(
        command("build", folder / "long", "--build", folder / "build"),
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment(),
    ) as process:  # fmt: skip
        while process.poll() is None and not list((folder / "build" / "tmp").glob("train-*/run/train.log")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read().strip().splitlines()
    assert process.returncode == 130
    assert said[-1] == "edge-forge: stopped; finished steps are kept, nothing half-written is"
    assert "Traceback" not in "".join(said)
    assert sorted(steps.rglob("*")) == before
    assert not list((folder / "build" / "tmp").iterdir())


def kill_in_the_middle(build, *arguments):
    """Run a verb and kill -9 all its processes once the training has two checkpoints."""
    with subprocess.Popen(
        command(*arguments), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment(),
        start_new_session=True,
    ) as process:  # fmt: skip
        while process.poll() is None and len(list(build.glob("checkpoints/*/checkpoint-*/seal.json"))) < 2:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it was killed before it ended"


def test_a_build_that_is_killed_goes_on_to_the_same_bytes(built, folder, tmp_path):
    overlay = ("--set", "train.epochs=60", "--set", "train.token_dropout=0.2", "--set", "train.average_decay=0.9")
    whole = json.loads(forge("train", folder, "--build", tmp_path / "whole", *overlay, "--json").stdout)
    build = tmp_path / "killed"
    kill_in_the_middle(build, "train", folder, "--build", build, *overlay)
    assert not list(build.glob("steps/train/*"))
    done = forge("train", folder, "--build", build, *overlay, "--json")
    assert done.returncode == 0 and "goes on from its last checkpoint" in done.stderr, done.stderr
    again = json.loads(done.stdout)
    for path in Path(whole["folder"]).rglob("*.safetensors"):
        other = Path(again["folder"]) / path.relative_to(whole["folder"])
        assert path.read_bytes() == other.read_bytes(), path.name
    record = json.loads((Path(again["folder"]) / "record.json").read_text())
    assert 0 < record["done_before"] < 1
    assert not list(build.glob("checkpoints/*")), "they go with the finished step"


def test_tasks_one_after_another_show_what_is_left_of_each(built, folder, tmp_path):
    place = copy_of_the_recipe(folder, tmp_path / "rooms", RECIPE.replace('"lamps"', '"rooms"'))
    rows = [line.split("\t") for line in (folder / "train.tsv").read_text().splitlines()[1:]]
    turned = {"on": "off", "off": "on"}
    header = (folder / "train.tsv").read_text().splitlines()[0]
    lines = ["\t".join(turned.get(cell, cell) for cell in row) for row in rows]
    (place / "train.tsv").write_text("\n".join([header, *lines]) + "\n")
    arguments = ("sequence", folder, place, "--build", folder / "build", "--json", "--set", "train.learning_rate=3e-2")
    done = forge(*arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tasks"] == ["lamps", "rooms"] and [len(scores) for scores in found["after"]] == [1, 2]
    scores = json.loads(forge("evaluate", *arguments[1:2], *arguments[3:]).stdout)
    own = pytest.approx(scores["accuracy"])
    assert found["after"][0][0] == own and found["apart"][0] == own
    assert all(0.0 <= score <= 1.0 for row in (*found["after"], found["apart"]) for score in row)
    report = Path(found["report"][0]).read_text()
    assert "Lost of each by the end" in report and "each apart on the base" in report
    again = forge(*arguments)
    assert again.returncode == 0 and "train: cached" in again.stderr and "train ..." not in again.stderr
    done = forge("sequence", folder, place, "--build", folder / "build", "--set", "method.name=bottleneck")
    assert done.returncode == 2 and "cannot be folded" in done.stderr


def test_methods_are_compared_side_by_side(built, folder):
    done = forge("compare", folder, "--methods", "lora,full", "--seeds", "2", "--build", folder / "build", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["runs"]) == {"lamps lora", "lamps full"}
    full, lora = found["runs"]["lamps full"]["train"], found["runs"]["lamps lora"]["train"]
    assert full["trainable_parameters"] > lora["trainable_parameters"]
    report = Path(found["report"][0]).read_text()
    assert "trained parameters" in report and "**Take lamps lora** (LoRA, rank " in report
    assert [one["seed"] for one in found["runs"]["lamps full"]["seeds"]] == [17, 18]
    for run in found["runs"].values():
        for one in run["variants"]:
            assert ("ratio_low" in one["latency"]) == one["shipped"], "all that is shipped was measured in turns"
    attached = {one["dtype"]: one["latency"] for one in found["runs"]["lamps lora"]["attached"]}
    shipped = {one["dtype"] for one in found["runs"]["lamps lora"]["variants"] if one["shipped"]}
    assert set(attached) == {"fp32", "int8"} & shipped
    assert all(one["ratio_low"] <= one["ratio"] <= one["ratio_high"] != 1.0 for one in attached.values())
    assert "attached" not in found["runs"]["lamps full"], "full tuning has no adapter"
    assert "Attached, times as long as merged" in report
    assert "Latencies were measured in turns" in report
    assert "## What to choose" in report
    assert "a further task adds " in report


def test_a_diagnosis_shows_intruders_and_fails_where_the_recipe_says_so(built, folder):
    done = forge("diagnose", folder, "--build", folder / "build", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    run = found["runs"]["lamps lora"]
    changed = [one for one in run["weights"] if one["change"] > 0]
    assert changed and all(one["rank_90"] <= run["train"]["settings"]["rank"] for one in changed)
    assert Path(found["report"][1]).read_text().count("<svg") == 2
    strict = ("--set", "diagnose.cosine=1.0", "--set", "diagnose.beyond=fail")
    done = forge("diagnose", folder, "--build", folder / "build", *strict)
    assert done.returncode == 1 and "lamps lora has " in done.stderr and "the recipe takes 0" in done.stderr
    assert "singular values" in (folder / "build" / "reports" / "diagnose-lamps.md").read_text(), "the repair was tried"


def test_a_head_is_trained_while_its_base_is_traced(folder, tmp_path):
    """What is wrong with the base is said all the same, and nothing is packaged."""
    place = copy_of_the_recipe(folder, tmp_path / "head", RECIPE)
    overlay = ("--set", "method.name=head", "--set", "export.parity_tolerance=1e-15")
    done = forge("build", place, "--build", tmp_path / "build", *overlay)
    said = done.stderr.splitlines()
    ended = next((at for at, line in enumerate(said) if line.startswith(("train: done", "error"))), len(said) - 1)
    assert said.index("train ...") < ended and said.index("trace-base ...") < ended, done.stderr
    assert done.returncode == 1 and "the base's graph" in said[-1], done.stderr
    assert not any((tmp_path / "build" / "packages").glob("*.tar"))


def test_a_diagnosis_says_what_the_base_knew_and_what_is_left_of_it(built, folder, tmp_path):
    alike = tmp_path / "alike.tsv"
    rows = [
        ("lamp on", "light on", 4),
        ("lamp on", "lamp off", 2),
        ("switch on", "now", 1),
        ("light off", "lamp off", 5),
    ]
    alike.write_text("score\ttext_b\ttext_a\n" + "".join(f"{score}\t{b}\t{a}\n" for a, b, score in rows))
    asked = ("--build", folder / "build", "--similarity", alike, "--earlier", folder / "recipe.toml")
    done = forge("diagnose", folder, *asked, "--set", "diagnose.cosine=1.0", "--json")
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)["runs"]["lamps lora"]
    assert set(run["kept"]) == {"similarity", "probe lamps"}
    similarity = run["kept"]["similarity"]
    assert similarity["lost"] == pytest.approx(similarity["before"] - similarity["after"]) and similarity["before"] != 0
    first = run["repair"][0]
    assert first["kept"]["similarity"] == pytest.approx(similarity["after"]), "a factor of 1 is the model as trained"
    page = (folder / "build" / "reports" / "diagnose-lamps.html").read_text()
    assert page.count("<svg") == 3 and "similarity (Spearman)" in page and "probe of lamps" in page
    # What a recipe takes is judged by the same figures; a head alone leaves the base as it is.
    done = forge("diagnose", folder, *asked, "--methods", "head", "--set", "diagnose.forgotten=0", "--json",
                 "--set", "diagnose.beyond=fail")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {one["lost"] for one in json.loads(done.stdout)["runs"]["lamps head"]["kept"].values()} == {0.0}
    (tmp_path / "bad.tsv").write_text("text_a\ttext_b\na\tb\n")
    done = forge(
        "compare", folder, "--methods", "lora,head", "--build", tmp_path / "b", "--similarity", tmp_path / "bad.tsv"
    )
    assert done.returncode == 1 and "there is no score" in done.stderr and "bad.tsv:1" in done.stderr
    assert "train ..." not in done.stderr, "a file that cannot ask is said before anything is trained"


def test_a_comparison_has_a_column_for_what_was_forgotten(built, folder, tmp_path):
    alike = tmp_path / "alike.csv"
    alike.write_text("sentence1,sentence2,score\nlamp on,light on,4\nlamp on,lamp off,2\nswitch on,now,1\n")
    done = forge("compare", folder, "--methods", "lora,head", "--seeds", "2", "--build", folder / "build",
                 "--similarity", alike)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if "similarity (Spearman)" in line]
    assert [line[1] for line in lines] == ["lora", "head"] and lines[1][-1] == "0.00"
    report = (folder / "build" / "reports" / "compare-lamps.md").read_text()
    assert "most forgotten" in report and "## What was forgotten" in report
