"""Packages that must not become active, installed by the command that a person types: exit code 1 and one sentence."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.app.packages import models
from edge_forge.package.build import base_descriptor, build
from tests.support.agents import AgentProcess, echo_adapter_package, echo_package
from tests.support.desk import cli, said
from tests.support.generators import base_package as generator_package
from tests.support.llama import needs_llama
from tests.support.packages import BASE_ID, OTHER_BASE_ID, adapter_source, base_package, keys, model_source, release

RESERVE_BYTES = 64 << 30


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """A device with one model installed; no daemon runs, and no broker is needed."""
    folder = tmp_path_factory.mktemp("bad-packages")
    agent = AgentProcess(folder / "device", 1883)
    agent.install(echo_package(folder))
    yield agent


def refused(device: AgentProcess, package: Path, *words: str, **environment: str) -> None:
    """An install that fails with all these words, in one line, and changes nothing."""
    before = models(device.config)
    result = cli("install", "--config", device.config, package, **environment)
    text = said(result)
    print(f"\n{text.strip()}")
    assert result.returncode == 1
    assert not result.stdout
    assert all(word in text for word in words), text
    assert models(device.config) == before


def test_an_adapter_of_another_base_names_both(device: AgentProcess, tmp_path: Path) -> None:
    source = adapter_source(tmp_path / "source", "foreign", base_id=OTHER_BASE_ID)
    model = model_source(tmp_path / "other", "other", base_id=OTHER_BASE_ID)
    other = build(tmp_path / "other.tar", release("other"), model, keys=[keys().release_key]).path
    subject = base_descriptor(other, OTHER_BASE_ID)
    package = build(tmp_path / "foreign.tar", release("foreign"), None, [source], subject, [keys().release_key]).path
    refused(device, package, "'foreign' needs base", OTHER_BASE_ID[7:19], f"echo ({BASE_ID[7:19]})")


def test_an_adapter_without_its_base(tmp_path: Path) -> None:
    empty = AgentProcess(tmp_path / "device", 1883)
    base = echo_package(tmp_path)
    refused(empty, echo_adapter_package(tmp_path, base, "one"), "'one' needs base", "no base is installed")


def test_what_is_no_package(device: AgentProcess, tmp_path: Path) -> None:
    text = tmp_path / "notes.tar"
    text.write_text("not a package")
    refused(device, text, "notes.tar: this is no package: it has 13 bytes")
    refused(device, tmp_path / "missing.tar", "there is no such file")
    (tmp_path / "folder").mkdir()
    refused(device, tmp_path / "folder", "folder: it has no release statement")


def test_a_package_with_one_bit_changed(device: AgentProcess, tmp_path: Path) -> None:
    package = echo_package(tmp_path, name="bits")
    data = bytearray(package.read_bytes())
    at = data.rindex(b"bits1")
    data[at] ^= 1
    package.write_bytes(data)
    refused(device, package, "its SHA-256 is not its name")


def test_a_package_cut_short(device: AgentProcess, tmp_path: Path) -> None:
    package = echo_package(tmp_path, name="short")
    package.write_bytes(package.read_bytes()[:-3000])
    refused(device, package, "short-1.tar: the tar is cut off")


def test_a_package_for_other_hardware(device: AgentProcess, tmp_path: Path) -> None:
    package = base_package(tmp_path, name="jetson", hardware=["nvidia,p3737-0000"])
    refused(device, package, "for other hardware: nvidia,p3737-0000; this is ")


def test_a_package_whose_runtime_is_not_here(device: AgentProcess, tmp_path: Path) -> None:
    refused(device, base_package(tmp_path, name="needs-onnx"), "runtime 'onnx' is not available here (echo)")


def test_an_older_release(device: AgentProcess, tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path / "device", 1883)
    agent.install(echo_package(tmp_path, counter=5))
    refused(agent, echo_package(tmp_path, counter=4), "counter 4 of echo/stable is older than 5")


def test_a_release_that_has_expired(device: AgentProcess, tmp_path: Path) -> None:
    source = model_source(tmp_path / "src", "stale")
    dates = {"issued_at": "2020-01-01T00:00:00Z", "expires": "2020-02-01T00:00:00Z"}
    package = build(tmp_path / "stale.tar", release("stale", **dates), source, keys=[keys().release_key]).path
    refused(device, package, "expired", "2020-02-01")


def test_unsigned_or_signed_by_a_stranger(device: AgentProcess, tmp_path: Path) -> None:
    source = model_source(tmp_path / "src", "unsigned")
    package = build(tmp_path / "unsigned.tar", release("unsigned"), source).path
    refused(device, package, "it is not signed")
    told = cli("install", "--json", "--config", device.config, package)
    assert (told.returncode, json.loads(told.stdout)["cause"]) == (1, "signature")
    no_root = {"EDGE_AGENT__STORE__TRUST_ROOT": str(tmp_path / "no-root.json")}
    refused(
        device, echo_package(tmp_path, counter=7), "no-root.json: is missing, so no signature can be checked", **no_root
    )


def test_the_reserve_is_kept_and_the_sentence_has_the_numbers(tmp_path: Path) -> None:
    """A shared-memory file system has less than the largest reserve that may be set."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free > RESERVE_BYTES:
        pytest.skip("no small file system here")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        agent = AgentProcess(Path(folder), 1883)
        reserve = {"EDGE_AGENT__STORE__RESERVE_BYTES": str(RESERVE_BYTES)}
        refused(agent, echo_package(tmp_path), "64.0 GiB stay reserved", "are free; nothing was changed", **reserve)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        agent = AgentProcess(disk / "device", 1883)
        agent.install(echo_package(tmp_path))
        with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1024))
        newer = echo_package(tmp_path, counter=2)
        refused(agent, newer, "the disk is too full", "are free; nothing was changed", "free some space")
        (disk / "filler").unlink()
        assert cli("install", "--config", agent.config, newer).returncode == 0
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@needs_llama
def test_a_chat_template_that_makes_no_prompt(tmp_path: Path) -> None:
    """Found at the install, and not by the first chat."""
    agent = AgentProcess(tmp_path / "device", 1883, backends=("llamacpp",))
    unknown = generator_package(
        tmp_path / "unknown", template="{% for m in messages %}{{ m.content | nothing }}{% endfor %}"
    )
    refused(agent, unknown, "its chat template makes no prompt of plain messages", "No filter named 'nothing'")
    own_words = "{{ raise_exception('only tools may speak') }}"
    refused(agent, generator_package(tmp_path / "refusing", template=own_words), "refuses", "only tools may speak")
    without_system = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    agent.install(generator_package(tmp_path / "good", template=without_system + "{{ m.content }}{% endfor %}"))
