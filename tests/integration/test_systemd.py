"""The shipped unit and drop-ins under systemd's own checks: no warning, and an exposure of at most 2.0."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.lifecycle.service import UNIT, drop_in_names, read_unit_file, rendered_unit

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is NOT INSTALLED: the unit was not checked"
)
HIGHEST_EXPOSURE = 2.0


def placed(folder: Path, *drop_ins: str) -> Path:
    """The unit, with an interpreter that exists here, and some of its drop-ins."""
    unit = folder / UNIT
    unit.write_text(rendered_unit(str(Path(sys.executable).resolve())), encoding="utf-8")
    beside = folder / f"{UNIT}.d"
    beside.mkdir()
    for name in drop_ins:
        (beside / f"{name}.conf").write_text(read_unit_file(f"drop-ins/{name}.conf"), encoding="utf-8")
    return unit


def verified(unit: Path) -> str:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr + (f"exit code {done.returncode}" if done.returncode else "")


def exposure(unit: Path) -> float:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    return float(found[1])


@needs_systemd
@pytest.mark.parametrize("drop_ins", [(), *((name,) for name in drop_in_names()), drop_in_names()])
def test_the_unit_is_clean_and_tight(tmp_path: Path, drop_ins: tuple[str, ...]) -> None:
    unit = placed(tmp_path, *drop_ins)
    assert verified(unit) == ""
    assert exposure(unit) <= HIGHEST_EXPOSURE


@pytest.mark.parametrize(
    "region", ["57000000.gpu", "17000000.ga10b", "17000000.gpu", "nvhost", "nvidia", "nvidia-uvm", "drm"]
)
def test_the_drop_in_for_a_jetson_opens_the_gpu_by_the_name_that_the_kernel_registers(region: str) -> None:
    """As /proc/devices has them on a Nano, and on an Orin under JetPack 5, 6 and 7; systemd matches them as globs."""
    allowed = re.findall(r"^DeviceAllow=char-(\S+) rw$", read_unit_file("drop-ins/jetson.conf"), re.MULTILINE)
    assert any(fnmatch.fnmatchcase(region, pattern) for pattern in allowed)
    assert not any(
        fnmatch.fnmatchcase(other, pattern) for pattern in allowed for other in ("mem", "tty", "block", "gpio")
    )


@needs_systemd
def test_the_checks_see_a_wrong_unit(tmp_path: Path) -> None:
    """So that the test above cannot pass for nothing."""
    unit = placed(tmp_path)
    text = unit.read_text()
    unit.write_text(text.replace("WatchdogSec=60", "WatchdogSec=often").replace("ProtectHome=yes", "ProtectHom=yes"))
    assert "Failed to parse sec value" in verified(unit)
    assert "ProtectHom" in verified(unit)
    kept = [line for line in text.splitlines() if not line.startswith(("Protect", "Restrict", "SystemCall", "Cap"))]
    unit.write_text("\n".join(kept))
    assert exposure(unit) > HIGHEST_EXPOSURE


@needs_systemd
def test_the_user_is_made_by_sysusers(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    rules = [line for line in read_unit_file("edge-agent.sysusers.conf").splitlines() if not line.startswith("#")]
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", "--inline", *rules], check=True, timeout=60)
    passwd = (tmp_path / "etc/passwd").read_text()
    assert re.search(r"^edge-agent:x:\d+:\d+:edge-agent service:/var/lib/edge-agent:\S*nologin$", passwd, re.MULTILINE)
    groups = (tmp_path / "etc/group").read_text()
    assert re.search(r"^video:x:\d+:edge-agent$", groups, re.MULTILINE)
    assert re.search(r"^render:x:\d+:edge-agent$", groups, re.MULTILINE)


@needs_systemd
def test_the_folders_are_made_by_tmpfiles(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nedge-agent:x:0:0::/:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nedge-agent:x:0:\n")
    rules = tmp_path / "etc/tmpfiles.d/edge-agent.conf"
    rules.parent.mkdir()
    rules.write_text(read_unit_file("edge-agent.tmpfiles.conf"))
    done = subprocess.run(
        ["systemd-tmpfiles", f"--root={tmp_path}", "--create", "edge-agent.conf"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    expected = {
        "etc/edge-agent": 0o750,
        "etc/edge-agent/credentials": 0o700,
        "var/lib/edge-agent": 0o750,
        "var/lib/edge-agent/inbox": 0o770,
    }
    assert {name: (tmp_path / name).stat().st_mode & 0o777 for name in expected} == expected


def test_what_the_program_relies_on_is_in_the_unit() -> None:
    unit = rendered_unit("/opt/edge-agent/bin/python")
    lines = unit.splitlines()
    assert "ExecStart=/opt/edge-agent/bin/python -I -m edge_agent run --config /etc/edge-agent/edge-agent.toml" in lines
    assert "Environment=PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1" in lines, "its children"
    for line in ("Type=notify", "WatchdogSec=60", "Restart=always", "User=edge-agent", "StateDirectory=edge-agent",
                 "StartLimitIntervalSec=0", "OOMPolicy=continue", "KillMode=mixed"):  # fmt: skip
        assert line in lines
    assert not any(line.startswith(("ProcSubset=", "DynamicUser=", "MemoryDenyWriteExecute=")) for line in lines)
    for name in ("mqtt-password", "mqtt-ca", "mqtt-cert", "mqtt-key"):
        assert f"SetCredential={name}:\\n" in lines, (
            "a credential without fallback would keep the service from starting"
        )
