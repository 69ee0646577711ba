"""Every verb as a person types it: help, exit codes, and what is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.cli.verbs import parser
from edge_agent.config.load import check
from tests.support import pages
from tests.support.agents import LABELS, AgentProcess, echo_adapter_package, echo_package, running
from tests.support.desk import cli, said, write_config
from tests.support.mosquitto import Mosquitto

VERBS = (
    "run",
    "demo",
    "infer",
    "bench",
    "install",
    "models",
    "rollback",
    "remove",
    "doctor",
    "power-mode",
    "check-config",
    "service",
)
HELP_CPU_S = 0.6
PRESENT = sorted(pages.verbs(parser()))


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    folder = tmp_path_factory.mktemp("cli")
    with Mosquitto(folder) as broker:
        found = AgentProcess(folder / "device", broker.port)
        base = echo_package(folder)
        found.install(base)
        found.install(echo_adapter_package(folder, base, "one"))
        with running(found):
            yield found


def test_the_help_names_every_verb() -> None:
    result = cli("--help")
    assert result.returncode == 0
    listed = {line.split()[0] for line in said(result).splitlines() if line.startswith("    ") and line.split()}
    assert set(VERBS) <= set(PRESENT) <= listed


@pytest.mark.parametrize("verb", ["", *PRESENT])
def test_help_is_quick_and_imports_no_room(verb: str) -> None:
    """Its processor time is bounded, not the clock's: other tests may run beside it."""
    program = (
        "import sys, time; from edge_agent.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'asyncio', 'paho', 'msgspec', 'psutil', 'numpy', 'cryptography'} & set(sys.modules)\n"
        "print(f'\\ncpu {time.process_time():.3f} {sorted(heavy)}')"
    )
    arguments = [verb, "--help"] if verb else ["--help"]
    started_s = time.monotonic()
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    wall_s = time.monotonic() - started_s
    assert result.returncode == 0, result.stderr
    assert "usage: " in result.stdout
    cpu_s, heavy = result.stdout.strip().splitlines()[-1].removeprefix("cpu ").split(" ", 1)
    print(f"\n{' '.join(arguments)}: {cpu_s} s of processor, {wall_s:.2f} s in all")
    assert heavy == "[]"
    assert float(cpu_s) < HELP_CPU_S


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("infer",),
        ("infer", "echo"),
        ("install",),
        ("infer", "echo", "x", "--priority", "high"),
        ("infer", "echo", "x", "--colour", "red"),
        ("models", "--config", "nowhere.toml"),
        ("service", "restart"),
    ],
)
def test_a_wrong_call_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    result = cli(*arguments)
    assert result.returncode == 2
    assert said(result)


def test_an_empty_store(tmp_path: Path) -> None:
    config = write_config(tmp_path, 1883)
    listed = cli("models", "--config", config)
    assert listed.returncode == 0
    assert said(listed) == "nothing is installed; `edge-agent install PACKAGE` installs a package\n"
    assert json.loads(cli("models", "--config", config, "--json").stdout) == []
    for verb in ("rollback", "remove"):
        result = cli(verb, "--config", config, "nobody")
        assert result.returncode == 1
        assert said(result) == "edge-agent: there is no model 'nobody' (installed: none)\n"


def test_models_are_listed_with_adapters(agent: AgentProcess) -> None:
    text = said(cli("models", "--config", agent.config))
    print(f"\n{text}")
    assert text.startswith("echo  version 2  classify  ")
    assert "  + one  rank 2  classify, 3 labels" in text
    (model,) = json.loads(cli("models", "--config", agent.config, "--json").stdout)
    assert [adapter["name"] for adapter in model["adapters"]] == ["one"]


def test_install_says_what_was_done_and_rollback_undoes_it(agent: AgentProcess, tmp_path: Path) -> None:
    installed = cli("install", "--config", agent.config, echo_package(tmp_path, counter=2))
    print(f"\n{said(installed)}")
    assert installed.returncode == 0
    assert installed.stdout.startswith("installed echo release 2: echo version 3\n")
    assert "golden probes hold" in installed.stdout
    again = cli("install", "--config", agent.config, tmp_path / "echo-2.tar")
    assert again.returncode == 0
    assert "was active already" in again.stdout
    back = cli("rollback", "--config", agent.config, "echo")
    pid = agent.process.pid
    taken = f"  the running daemon (pid {pid}) takes it over within a second\n"
    assert said(back) == "echo is back at version 2 (echo/fp32)\n" + taken
    forth = cli("rollback", "--config", agent.config, "echo")
    assert forth.returncode == 0
    assert "version 3" in said(forth)
    assert cli("rollback", "--config", agent.config, "echo").returncode == 0


def test_rollback_without_a_version_before(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path / "device", 1883)
    agent.install(echo_package(tmp_path))
    result = cli("rollback", "--config", agent.config, "echo")
    assert result.returncode == 1
    assert said(result) == "edge-agent: rollback: there is no version of 'echo' before version 1\n"


def test_infer_answers_a_person_and_a_program(agent: AgentProcess) -> None:
    spoken = cli("infer", "--config", agent.config, "echo", "turn on the light", "--adapter", "one", "--top-k", 3)
    print(f"\n{said(spoken)}")
    assert spoken.returncode == 0
    assert spoken.stdout.split()[0] in LABELS
    assert " ms on the device (queue " in spoken.stdout
    reply = json.loads(cli("infer", "--config", agent.config, "echo", "a", "b", "--json").stdout)
    assert reply["status"] == 200
    assert [result["label"] in LABELS for result in reply["result"]] == [True, True]
    assert {"model", "adapter", "variant", "timing", "batch", "energy"} <= set(reply)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nobody", "x"), "404: no model 'nobody' on this device; there are: echo"),
        (("echo", "x", "--adapter", "two"), "404: model 'echo' has no adapter 'two'; there are: one"),
        (("echo", " "), "422: text: the text is empty"),
        (("echo", "x", "--top-k", "99"), "422: "),
        (("echo", "x", "--priority", "10"), "422: priority: 10 is not in 0..9"),
        (("echo", "x" * 40_000), "413: "),
        (("echo", "x", "--deadline", "0"), "--deadline is 0; seconds from 0 to 3600 are needed"),
        (("echo", "x", "--deadline", "-3"), "--deadline is -3"),
        (("a/b", "x"), "'a/b' cannot be the model's name"),
        (("echo", "x", "--device", "a/#"), "'a/#' cannot be the device's name"),
    ],
)
def test_infer_says_what_is_wrong(agent: AgentProcess, arguments: tuple[str, ...], words: str) -> None:
    result = cli("infer", "--config", agent.config, *arguments)
    print(f"\n{said(result).strip()}")
    assert result.returncode in (1, 2)
    assert words in said(result)
    assert said(result).count("\n") == 1
    assert not result.stdout, "nothing that a program could take for an answer"


def test_bench_prints_rate_and_latency(agent: AgentProcess) -> None:
    result = cli("bench", "--config", agent.config, "echo", "--seconds", 1, "--adapter", "one", "--json")
    figures = json.loads(result.stdout)
    assert result.returncode == 0
    assert set(figures["statuses"]) == {"200"}
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    failed = cli("bench", "--config", agent.config, "nobody", "--seconds", 1)
    assert failed.returncode == 1, "a bench in which nothing was served is no success"
    assert "404: " in said(failed)
    assert "such as: no model 'nobody'" in said(failed)


def test_check_config_says_every_problem_at_once(tmp_path: Path) -> None:
    config = tmp_path / "edge-agent.toml"
    config.write_text('[mqtt]\nhots = "broker"\nport = 99999\n[limits]\nqueue_jobs = "many"\n')
    result = cli("check-config", config)
    print(f"\n{said(result).strip()}")
    assert result.returncode == 1
    assert [words in said(result) for words in ("mqtt.hots", "did you mean mqtt.host?", "99999", "queue_jobs")] == [
        True
    ] * 4
    assert said(result).endswith("edge-agent: 3 problems in the settings\n")
    refused = cli("models", "--config", config)
    assert refused.returncode == 2
    assert "3 problems in the settings" in said(refused)


def test_check_config_prints_an_example_that_it_accepts(tmp_path: Path) -> None:
    example = tmp_path / "example.toml"
    example.write_text(cli("check-config", "--example").stdout)
    assert check(example)[1] == ()
    sound = cli("check-config", write_config(tmp_path / "own", 1884))
    assert sound.returncode == 0
    assert said(sound).endswith("edge-agent.toml: sound; device 'dev1', broker 127.0.0.1:1884\n")


def test_doctor_of_this_device(agent: AgentProcess) -> None:
    checks = json.loads(cli("doctor", "--config", agent.config, "--json").stdout)
    by_name = {entry["name"]: entry for entry in checks}
    print("\n" + "\n".join(f"{entry['verdict']:<5} {entry['name']}: {entry['text']}" for entry in checks))
    assert by_name["broker"]["verdict"] == "ok"
    assert by_name["trust"]["verdict"] == "ok"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_the_doctor_speaks_in_a_terminal_that_knows_few_characters(agent: AgentProcess, encoding: str) -> None:
    """Degrees and dots are said in plain letters there; a locale of C is what a service's shell has."""
    command = [str(Path(sys.executable).with_name("edge-agent")), "doctor", "--config", str(agent.config)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, check=False, timeout=120, env=environment)
    assert b"Traceback" not in done.stdout + done.stderr
    assert ("80 deg C" if encoding == "ascii" else "80 °C") in done.stdout.decode(encoding)
    assert done.returncode in (0, 1)
