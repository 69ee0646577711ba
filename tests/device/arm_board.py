"""The short walk on aarch64, emulated, as root: `make device-arm64`, which runs `python -m tests.device.arm_board DEB`.

An arm64 Debian root is made by debootstrap (kept in build/arm-root) and runs under qemu-user. It is filled once by
`edge-forge provision` and once by the Debian package, booted, and a model with an adapter answers over MQTT. Each part
is a line, ok or FAILED; exit code 1 when one failed, 0 with a loud line where nothing could be booted.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from edge_agent.base.errors import EdgeError
from edge_agent.config.load import load
from edge_forge.provision.first_boot import check_can_boot, first_boot
from edge_forge.provision.image_plan import FACTORY
from edge_forge.provision.image_writer import Entry
from edge_forge.provision.target_root import inspect_root
from tests.support.packages import keys
from tests.support.small_package import small_package

BASE = Path("build/arm-root")
PARTS = "systemd,systemd-sysv,dbus,python3"
SETTINGS = '[device]\nid = "gh-1"\n[mqtt]\nhost = "10.1.2.3"\nusername = "gh-1"\n[models]\nkeep = "all"\n'


class Place:
    """The files of the walk: the arm64 root and what is put into it."""

    def __init__(self, folder: Path, deb: Path) -> None:
        self.folder, self.deb = folder, deb
        (folder / "packages").mkdir()
        self.package = small_package(folder / "packages")
        self.settings = folder / "fleet.toml"
        self.settings.write_text(SETTINGS)
        self.table = folder / "devices.csv"
        self.table.write_text("name,broker,username,password\ngh-1,,gh-1,first\n")
        self.table.chmod(0o600)


def debootstrapped() -> None:
    """The root, made once: the second stage runs under the emulator and takes minutes."""
    if (BASE / "etc/os-release").exists() and not (BASE / "debootstrap").exists():
        return
    shutil.rmtree(BASE, ignore_errors=True)
    print(f"debootstrap of arm64 into {BASE} (ten minutes)", flush=True)
    first = [
        "debootstrap",
        "--arch=arm64",
        "--foreign",
        "--variant=minbase",
        f"--include={PARTS}",
        "bookworm",
        str(BASE),
    ]
    for command in (first, ["chroot", str(BASE), "/debootstrap/debootstrap", "--second-stage"]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "QEMU_CPU": "cortex-a76"})


def a_provisioned_root_boots_and_answers(place: Place) -> None:
    line = [sys.executable, "-m", "edge_forge.cli", "provision", str(BASE), "--trust-root", str(keys().root_file),
            "--package", str(place.package), "--settings", str(place.settings), "--devices", str(place.table),
            "--device", "gh-1", "--boot", "--dry-run", "--json"]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stderr[-1500:]
    said = json.loads(done.stdout)["boot"]
    assert set(said["answers"]) == {"small", "small with one"}, said
    assert any("emulated" in note for note in said["notes"]), said
    print(f"       service ready {said['online_s']:.0f} s after power on, answer {said['answered_s']['small']:.0f} s")


def the_debian_package_installs_boots_and_answers(place: Place) -> None:
    """Settings, a password, the trust root and a package for the first boot lie beside it, as in an image."""
    root = place.folder / "root"
    subprocess.run(["cp", "-a", "--reflink=auto", f"{BASE}/.", f"{root}/"], check=True)
    shutil.copy(place.deb, root / "edge-agent.deb")
    done = subprocess.run(
        ["chroot", str(root), "dpkg", "-i", "/edge-agent.deb"], capture_output=True, text=True, check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "QEMU_CPU": "cortex-a76"},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-1500:]
    (root / "etc/edge-agent/edge-agent.toml").unlink()
    entries = [
        Entry("etc/edge-agent/edge-agent.toml", 0o644, data=SETTINGS.encode()),
        Entry("etc/edge-agent/credentials/mqtt-password", 0o600, data=b"first\n"),
        Entry("etc/edge-agent/trust-root.json", 0o644, source=keys().root_file),
        Entry(f"{FACTORY}/01-small.tar", 0o640, source=place.package),
    ]
    said = first_boot(inspect_root(root), entries, load(place.settings, {}), ["small"])
    assert set(said.answers) == {"small", "small with one"}, said
    print(f"       service ready {said.online_s:.0f} s after power on, answer {said.answered_s['small']:.0f} s")


WALK: tuple[Callable[[Place], None], ...] = (
    a_provisioned_root_boots_and_answers, the_debian_package_installs_boots_and_answers,
)  # fmt: skip


def main() -> int:
    """The walk; the exit code."""
    if os.geteuid() != 0 or platform.machine() == "aarch64" or shutil.which("debootstrap") is None:
        print("SKIPPED, NO ARM64 ROOT WAS BOOTED: it needs root, debootstrap, and a host of another architecture")
        return 0
    failed = 0
    debootstrapped()
    try:
        check_can_boot(inspect_root(BASE))
    except EdgeError as error:
        print(f"SKIPPED, NO ARM64 ROOT WAS BOOTED: {error}")
        return 0
    with tempfile.TemporaryDirectory(prefix="edge-arm-", dir="/var/tmp") as folder:
        place = Place(Path(folder), Path(sys.argv[1]))
        for part in WALK:
            began_s, name = time.monotonic(), part.__name__.replace("_", " ")
            try:
                part(place)
                print(f"ok     {name} ({time.monotonic() - began_s:.0f} s)", flush=True)
            except (AssertionError, EdgeError) as error:
                print(f"FAILED {name}: {str(error)[-1500:]}", flush=True)
                failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
