"""`edge-agent install --from DIR`: what waits in a folder is installed in order, refusals stay with their reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edge_agent.app import packages
from edge_agent.base.errors import StoreError, UsageError
from tests.support.agents import AgentProcess, echo_adapter_package, echo_package


def test_a_folder_is_installed_in_order_and_a_bad_package_keeps_no_other_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AgentProcess(tmp_path / "device", 1).config
    folder = tmp_path / "factory"
    folder.mkdir()
    base = echo_package(tmp_path)
    shutil.copy(base, folder / "02-echo.tar")
    shutil.copy(echo_adapter_package(tmp_path, base, "tone"), folder / "03-tone.tar")
    (folder / "01-bad.tar").write_bytes(base.read_bytes()[:-4096])
    report = packages.install_waiting(config, folder)
    assert report["installed"] == ["02-echo.tar", "03-tone.tar"] and report["refused"] == ["01-bad.tar"]
    assert sorted(path.name for path in folder.iterdir()) == ["01-bad.refused", "01-bad.tar"]
    assert (folder / "01-bad.refused").read_text().strip() in report["text"]
    (model,) = packages.models(config)
    assert [adapter["name"] for adapter in model["adapters"]] == ["tone"]
    # The next boot: the refused one is not tried again, and what could not be tried (a full disk) is.
    shutil.copy(echo_package(tmp_path, counter=2), folder / "04-echo.tar")
    with monkeypatch.context() as full:
        full.setattr(packages, "install", _disk_is_full)
        report = packages.install_waiting(config, folder)
    assert report["refused"] == ["04-echo.tar"] and not (folder / "04-echo.refused").exists()
    assert packages.install_waiting(config, folder)["installed"] == ["04-echo.tar"]
    assert packages.install_waiting(config, folder)["text"].startswith("no package waits")
    with pytest.raises(UsageError, match="is no folder"):
        packages.install_waiting(config, tmp_path / "none")


def test_a_trust_root_that_comes_later_finds_the_packages_waiting(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path / "device", 1)
    settings = agent.config.read_text()
    agent.config.write_text(settings.replace('trust_root = "', 'trust_root = "/none'))
    folder = tmp_path / "factory"
    folder.mkdir()
    shutil.copy(echo_package(tmp_path), folder / "echo.tar")
    assert packages.install_waiting(agent.config, folder)["refused"] == ["echo.tar"]
    assert [path.name for path in folder.iterdir()] == ["echo.tar"], "no verdict on the package"
    agent.config.write_text(settings)
    assert packages.install_waiting(agent.config, folder)["installed"] == ["echo.tar"]


def _disk_is_full(_config: Path, _package: Path) -> None:
    raise StoreError("the disk is too full")
