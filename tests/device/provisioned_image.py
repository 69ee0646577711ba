"""A Debian image is filled before it is flashed, booted without a network and taken back, as root:
`make provisioned-image`, or `python -m tests.device.provisioned_image`.

The root is that of the operator's day (build/day-root, by debootstrap). The wheels are downloaded for it, the package
is a real encoder with an adapter for ONNX Runtime. Each part is a line, ok or FAILED; exit code 1 when one failed, 0
with a loud line where no container can be booted.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from edge_forge.provision.first_boot import BootedTree
from tests.device.operators_day import debootstrapped
from tests.support.agents import echo_package
from tests.support.packages import base_package, keys
from tests.support.small_package import small_package

NEEDED = ("debootstrap", "systemd-nspawn", "nsenter", "mosquitto", "mosquitto_passwd", "ip")
OWN = "etc/edge-agent"
# What making the user changes, and the time of /usr.
BY_SYSUSERS = ("etc/passwd", "etc/group", "etc/shadow", "etc/gshadow", "etc/subuid", "etc/subgid", "etc/.pwd.lock")


class Image:
    """The mounted root and the files of the fleet beside it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.root = place / "root"
        self.root.mkdir()
        debootstrapped(Path("build/day-root"), self.root)
        (place / "packages").mkdir()
        self.package = small_package(place / "packages")
        (place / "fleet.toml").write_text('[mqtt]\nhost = "10.1.2.3"\n[models]\nkeep = "all"\n')
        table = place / "devices.csv"
        table.write_text("name,broker,username,password\ngh-1,,gh-1,first\ngh-2,broker.lan:1999,gh-2,second\n")
        table.chmod(0o600)
        self.before = self.files()

    def provision(
        self,
        *options: str,
        package: Path | None = None,
        code: int = 0,
        path: str | None = None,
        settings: str = "fleet.toml",
    ) -> str:
        """The output of the verb on this image. Fails for another exit code."""
        line = [sys.executable, "-m", "edge_forge.cli", "provision", str(self.root), "--trust-root",
                str(keys().root_file), "--package", str(package or self.package), "--settings",
                str(self.place / settings), "--devices", str(self.place / "devices.csv"), *options]  # fmt: skip
        env = os.environ if path is None else {**os.environ, "PATH": path}
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=600, env=env)
        said = done.stdout + done.stderr
        assert done.returncode == code and "Traceback" not in said, f"{' '.join(options)}: {done.returncode}: {said}"
        return done.stdout if code == 0 else said

    def files(self) -> dict[str, tuple[int, int, int, str, int]]:
        """Mode, owners, link and size of everything in the root; times and contents where it is small enough to differ
        unseen would be the unit tests' matter."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            one = path.lstat()
            link = str(path.readlink()) if path.is_symlink() else ""
            size = one.st_size if stat.S_ISREG(one.st_mode) else 0
            found[path.relative_to(self.root).as_posix()] = (one.st_mode, one.st_uid, one.st_gid, link, size)
        return {name: one for name, one in found.items() if name.rstrip("-") not in BY_SYSUSERS}


def a_dry_run_says_every_file_and_writes_none(image: Image) -> None:
    said = image.provision("--device", "gh-1", "--dry-run")
    for name in ("/usr/local/bin/edge-agent", "/etc/edge-agent/credentials/mqtt-password",
                 "/etc/edge-agent/trust-root.json", "/var/lib/edge-agent/factory/01-small.tar",
                 "onnxruntime/__init__.py"):  # fmt: skip
        assert name in said, name
    assert image.files() == image.before


def the_first_boot_is_tried_before_anything_is_written(image: Image) -> None:
    """At an address that nobody has, with the board's password; the adapter is asked, too."""
    said = json.loads(image.provision("--device", "gh-1", "--boot", "--dry-run", "--json"))["boot"]
    assert set(said["answers"]) == {"small", "small with one"}, said
    assert "adapters one" in said["models"][0], said
    print(f"       service ready {said['online_s']:.1f} s after power on, answer {said['answered_s']['small']:.1f} s")
    assert image.files() == image.before, "the boot left something in the image"


def what_a_board_would_refuse_is_known_before_the_card_is_written(image: Image) -> None:
    other = base_package(image.place / "packages", name="other", hardware=("raspberry-pi-5",))
    said = image.provision("--device", "gh-1", "--boot", "--dry-run", package=other, code=1)
    assert "for other hardware: raspberry-pi-5" in said, said


def the_shared_image_has_no_secret_and_no_name(image: Image) -> None:
    image.provision("--out", str(image.place / "boards"))
    for board in ("gh-1", "gh-2"):
        overlay = image.place / "boards" / f"{board}.tar"
        assert stat.S_IMODE(overlay.stat().st_mode) == 0o600
        secrets = {"gh-1": b"first\n", "gh-2": b"second\n"}
        assert secrets.pop(board) in overlay.read_bytes() and secrets.popitem()[1] not in overlay.read_bytes()
    assert not list((image.root / OWN / "credentials").iterdir())
    assert not (image.root / OWN / "edge-agent.toml").exists()
    filled = image.files()
    assert "nothing to change" in image.provision("--out", str(image.place / "boards"))
    assert image.files() == filled


def an_image_with_a_boards_tar_over_it_boots_as_that_board(image: Image) -> None:
    """As flashed: nothing of the host is in it, not even a broker."""
    flashed = image.place / "flashed"
    flashed.mkdir()
    subprocess.run(["cp", "-a", "--reflink=auto", f"{image.root}/.", str(flashed)], check=True)
    subprocess.run(["tar", "-C", str(flashed), "-xpf", str(image.place / "boards/gh-2.tar")], check=True)
    (flashed / "etc/hosts").write_text("127.0.0.1 localhost broker.lan\n")
    (flashed / "etc/mosquitto/conf.d/day.conf").write_text("listener 1999 127.0.0.1\nallow_anonymous true\n")
    board = BootedTree(flashed)
    try:
        board.wait_for_boot()
        until_s = time.monotonic() + 90.0
        said = ""
        while "on the device" not in said and time.monotonic() < until_s:
            said = board.run("edge-agent infer small 'turn on the light' --adapter one")[1]
            time.sleep(1.0)
        assert "on the device" in said, said + board.run("journalctl --no-pager -n 30")[1]
        expected = {
            "systemctl show -p User --value edge-agent": "edge-agent",
            "stat -c '%U:%G %a' /etc/edge-agent /etc/edge-agent/credentials /var/lib/edge-agent":
                "root:edge-agent 750\nroot:root 700\nedge-agent:edge-agent 750",
            "stat -c '%U:%G %a' /etc/edge-agent/credentials/mqtt-password": "root:root 600",
            "find /var/lib/edge-agent -user root": "",
            "ls /var/lib/edge-agent/factory": "",
            "systemctl is-failed edge-agent edge-agent-factory": "active\ninactive",
            "mosquitto_sub -p 1999 -t edge/v1/+/status -C 1 -W 5 -F %t": "edge/v1/gh-2/status",
        }  # fmt: skip
        for command, wanted in expected.items():
            assert board.run(command)[1] == wanted, (command, board.run(command)[1])
    finally:
        board.stop()
        shutil.rmtree(flashed)


def a_host_without_sysusers_leaves_the_user_to_the_first_boot(image: Image) -> None:
    """As on a host that is not started by systemd."""
    tools = image.place / "tools"
    tools.mkdir()
    for folder in os.environ["PATH"].split(":"):
        for path in Path(folder).iterdir() if Path(folder).is_dir() else ():
            if path.name != "systemd-sysusers" and not (tools / path.name).exists():
                (tools / path.name).symlink_to(path)
    fresh = image.place / "fresh"
    fresh.mkdir()
    debootstrapped(Path("build/day-root"), fresh)
    kept, image.root = image.root, fresh
    try:
        said = json.loads(image.provision("--device", "gh-2", "--boot", "--json", path=str(tools)))
        assert "small" in said["boot"]["answers"]
        assert "edge-agent:" not in (fresh / "etc/passwd").read_text()
    finally:
        image.root = kept
        shutil.rmtree(fresh)


def a_seed_makes_the_same_of_an_image_with_cloud_init(image: Image) -> None:
    """cloud-init of Debian, told where its seed lies as Raspberry Pi OS tells it. Installed by apt: needs a network."""
    seeded = image.place / "seeded"
    seeded.mkdir()
    debootstrapped(Path("build/day-root"), seeded)
    shutil.copy("/etc/resolv.conf", seeded / "etc/resolv.conf")
    apt = (
        "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends cloud-init"
    )
    subprocess.run(["chroot", str(seeded), "sh", "-c", apt], check=True, capture_output=True)
    (seeded / "etc/cloud/cloud.cfg.d/99-seed.cfg").write_text(
        "datasource_list: [NoCloud, None]\ndatasource: {NoCloud: {seedfrom: 'file:///boot/firmware/'}}\n"
    )
    (seeded / "etc/mosquitto/conf.d/day.conf").write_text("listener 1883 127.0.0.1\nallow_anonymous true\n")
    (image.place / "local.toml").write_text('[mqtt]\nhost = "127.0.0.1"\n')
    boot = seeded / "boot/firmware"
    boot.mkdir()
    image.provision("--device", "gh-1", "--seed", str(boot), settings="local.toml")
    board = BootedTree(seeded)
    try:
        board.wait_for_boot()
        until_s, said = time.monotonic() + 120.0, ""
        while "on the device" not in said and time.monotonic() < until_s:
            said = board.run("edge-agent infer small 'turn on the light' --adapter one")[1]
            time.sleep(1.0)
        assert "on the device" in said, said + board.run("cat /var/log/cloud-init-output.log")[1]
        owners = "stat -c '%U:%G %a' /etc/edge-agent /etc/edge-agent/credentials/mqtt-password /var/lib/edge-agent"
        assert board.run(owners)[1] == "root:edge-agent 750\nroot:root 600\nedge-agent:edge-agent 750"
        assert board.run("ls /boot/firmware")[1].split() == ["meta-data", "network-config", "user-data"]
        assert board.run("systemctl is-enabled edge-agent")[1] == "enabled"
    finally:
        board.stop()
        shutil.rmtree(seeded)


def packages_may_change(image: Image) -> None:
    other = echo_package(image.place / "packages")
    said = image.provision("--device", "gh-1", package=other)
    assert "echo" in said
    assert [path.name for path in (image.root / "var/lib/edge-agent/factory").iterdir()] == ["01-echo-1.tar"]
    assert (image.root / OWN / "credentials/mqtt-password").read_text() == "first\n"


def what_was_put_there_is_taken_back(image: Image) -> None:
    image.provision("--remove")
    after = image.files()
    assert after == image.before, {
        name for name in set(after) | set(image.before) if after.get(name) != image.before.get(name)
    }


PARTS: tuple[Callable[[Image], None], ...] = (
    a_dry_run_says_every_file_and_writes_none, the_first_boot_is_tried_before_anything_is_written,
    what_a_board_would_refuse_is_known_before_the_card_is_written, the_shared_image_has_no_secret_and_no_name,
    an_image_with_a_boards_tar_over_it_boots_as_that_board, a_host_without_sysusers_leaves_the_user_to_the_first_boot,
    a_seed_makes_the_same_of_an_image_with_cloud_init, packages_may_change, what_was_put_there_is_taken_back,
)  # fmt: skip


def main() -> int:
    """All parts; the exit code."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        print(f"SKIPPED, NO IMAGE WAS FILLED: it needs root, and {', '.join(missing or NEEDED)}")
        return 0
    failed = 0
    with tempfile.TemporaryDirectory(prefix="edge-image-", dir="/var/tmp") as folder:
        image = Image(Path(folder))
        for part in PARTS:
            began_s, name = time.monotonic(), part.__name__.replace("_", " ")
            try:
                part(image)
                print(f"ok     {name} ({time.monotonic() - began_s:.0f} s)", flush=True)
            except AssertionError as error:
                print(f"FAILED {name}: {str(error)[-1500:]}", flush=True)
                failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
