"""Modules in the current folder, a recipe's or a base's are never imported, whatever command is typed there."""

import argparse
import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edge_agent.app.daemon import StoreProcess, find_runtimes
from edge_agent.base.errors import StoreError
from edge_agent.cli.verbs import parser as agent_parser
from edge_agent.protocol.worker_messages import BackendsProbed, NoListener, ProbeBackends
from edge_agent.worker.supervisor import SpawnOptions, spawn
from edge_forge.cli import _parser as forge_parser
from edge_forge.models.bases import resolve
from edge_forge.train.classifier_job import train
from edge_forge.train.settings import settings
from tests.support.desk import write_config
from tests.support.hostile_modules import plant, ran
from tests.support.packages import base_package, keys
from tests.support.tiny_base import LABELS, ROWS, Told, write

HERE = str(Path(sys.executable).parent)
LONG_S = {"run": 6, "demo": 6, "gateway": 6, "metrics": 6, "console": 6}  # they serve until they are ended


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    folder = tmp_path / "hostile"
    folder.mkdir()
    plant(folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return folder


AGENT = {
    "run": "run --config {config}",
    "demo": "demo --models {tmp} --build {tmp}/build",
    "infer": "infer --config {config} m text",
    "chat": "chat --config {config} m",
    "bench": "bench --config {config} m --seconds 1",
    "load": "load --config {config} m",
    "unload": "unload --config {config} m",
    "top": "top --config {config} --once --seconds 1",
    "fleet": "fleet status --config {config} --seconds 1",
    "record": "record --config {config} {tmp}/out.csv --seconds 1",
    "plot": "plot {tmp}/none.csv {tmp}/out.png",
    "install": "install --config {config} {package}",
    "models": "models --config {config}",
    "rollback": "rollback --config {config} tiny",
    "promote": "promote --config {config} tiny",
    "remove": "remove --config {config} tiny",
    "doctor": "doctor --config {config}",
    "power-mode": "power-mode --config {config}",
    "check-config": "check-config {config}",
    "service": "service status --root {tmp}",
    "completion": "completion bash",
    "gateway": "gateway --config {config} --listen-port 0",
    "metrics": "metrics --config {config} --listen-port 0",
    "console": "console --config {config} --listen-port 0",
}
FORGE = {
    "init": "init name --dir {tmp}/new",
    **{verb: f"{verb} . --build {{tmp}}/build" for verb in ("train", "evaluate", "export", "quantize", "package")},
    "build": "build . --build {tmp}/build",
    "compare": "compare . . --build {tmp}/build",
    "keygen": "keygen {tmp}/keys",
    "sign": "sign {package} --key {keys}/release-1.pem",
    "verify": "verify {package} --root {keys}/root.json",
    "inspect": "inspect {package}",
    "oci": "oci {package} {tmp}/layout",
    "diagnose": "diagnose . --build {tmp}/build",
    "sequence": "sequence . . --build {tmp}/build",
    "sweep": "sweep . --trials 1 --build {tmp}/build",
    "provision": "provision {tmp} --dry-run",
    "completion": "completion bash",
}
PROGRAMS = {"edge-agent": (AGENT, agent_parser), "edge-forge": (FORGE, forge_parser)}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_verb_has_a_line_here(program):
    lines, parser = PROGRAMS[program]
    verbs = next(one for one in parser()._actions if isinstance(one, argparse._SubParsersAction))
    assert set(verbs.choices) == set(lines)


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_verb_runs_a_module_of_the_folder_in_which_it_is_typed(hostile, tmp_path, program):
    """As far as each gets: there is no broker, and the recipe's data are missing; a whole build is in `test_build`."""
    (hostile / "recipe.toml").write_text(
        'name = "r"\n[base]\nname = "b"\nsource = "./base"\n[data]\ntrain = "none.tsv"\n'
    )
    plant(hostile / "base")

    def typed(verb):
        place = tmp_path / verb
        place.mkdir()
        line = PROGRAMS[program][0][verb].format(
            config=write_config(place, 1), tmp=place, package=base_package(place), keys=keys().path
        )
        try:
            return subprocess.run(
                [f"{HERE}/{program}", *line.split()], capture_output=True, text=True, check=False,
                timeout=LONG_S.get(verb, 100), stdin=subprocess.DEVNULL,
            ).stderr  # fmt: skip
        except subprocess.TimeoutExpired:
            assert verb in LONG_S
            return ""

    with ThreadPoolExecutor(6) as pool:  # most of them wait for a broker
        said = dict(zip(PROGRAMS[program][0], pool.map(typed, PROGRAMS[program][0]), strict=True))
    assert ran(hostile) == ran(hostile / "base") == []
    assert {verb: text for verb, text in said.items() if "Traceback" in text or "hostile" in text.split()} == {}


def test_the_doctor_and_its_worker(hostile, tmp_path):
    """`doctor` asks every runtime in a worker process."""
    command = [f"{HERE}/edge-agent", "doctor", "--json"]
    command += ["--config", str(write_config(tmp_path, 1))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran(hostile) == [], done.stderr
    assert "hostile" not in done.stdout + done.stderr
    assert json.loads(done.stdout)


def test_a_store_command_of_the_daemon(hostile, tmp_path):
    store = StoreProcess(write_config(tmp_path, 1), tmp_path)
    with pytest.raises(StoreError, match="no-such"):
        asyncio.run(store.remove("no-such", None))
    for options in (SpawnOptions(), SpawnOptions(python=sys.executable)):
        (found,) = asyncio.run(find_runtimes(options, ["echo"]))
        assert found.version, found.reason
    assert ran(hostile) == []


def test_a_worker_works_in_a_fixed_folder_with_a_cleaned_environment(hostile, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", ":lib:/opt/cuda/lib64")
    monkeypatch.setenv("LD_AUDIT", "")
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "cache")
    monkeypatch.setenv("HF_HOME", "hub")

    async def look():
        worker = await spawn(SpawnOptions(python=sys.executable), NoListener())
        try:
            place = Path(f"/proc/{worker.pid}")
            await worker.call(ProbeBackends(backends=["echo"]), BackendsProbed)
            return str((place / "cwd").readlink()), dict(
                entry.split("=", 1) for entry in (place / "environ").read_text().split("\0") if "=" in entry
            )
        finally:
            await worker.close()

    folder, environment = asyncio.run(look())
    assert folder == "/"
    assert environment["LD_LIBRARY_PATH"] == "/opt/cuda/lib64"
    assert not {"LD_AUDIT", "PYTHONPYCACHEPREFIX", "HF_HOME"} & set(environment)
    assert ran(hostile) == []


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_training_in_one_process_and_under_torchrun(hostile, tmp_path, processes):
    values = {"epochs": 1, "batch_size": 4, "threads": 1, "precision": "fp32", "rank": 2, "processes": processes}
    out_dir, place = tmp_path / "out", write(tmp_path / "base")
    plant(place)
    train(
        base=resolve([str(place)], tmp_path), rows=(ROWS, ROWS), labels=LABELS,
        settings=settings(values=values), out_dir=out_dir, progress=Told(),
    )  # fmt: skip
    assert (out_dir / "adapter.safetensors").is_file()
    assert ran(place) == []
    assert ran(hostile) == []
