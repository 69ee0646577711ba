"""A life of the Debian package on a real systemd, as root: `make deb-life`, which runs
`python -m tests.device.debian_package DEB`.

The root is that of the operator's day (build/day-root, by debootstrap), booted by systemd-nspawn without a network. Two
later versions are made of DEB by repacking it with a changed module. The package that is installed on it is a real
encoder with an adapter for ONNX Runtime. Each part is a line, ok or FAILED; exit code 1 when one failed, 0 with a loud
line where no container can be booted.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.device.operators_day import NEEDED, PORT, SECRET, SETTINGS, STATE, Board, Failed, _passes, debootstrapped
from tests.support.packages import keys
from tests.support.small_package import small_package

CONFIG = f"""[mqtt]
host = "127.0.0.1"
port = {PORT}
username = "day"
[device]
id = "day"
"""
BROKER = f"listener {PORT} 127.0.0.1\nallow_anonymous false\npassword_file /etc/mosquitto/passwords\n"
LATER = ("2", "3")
"""What is added to the version of the repacked packages."""
INSTALL_S = 600.0


def dpkg(board: Board, words: str, check: bool = True) -> str:
    """Run dpkg as apt does in a script: nothing is asked, settings that were changed stay."""
    return board.run(f"DEBIAN_FRONTEND=noninteractive dpkg --force-confold {words}", check, INSTALL_S)


def answers(board: Board, seconds: float = 60.0) -> None:
    """The model answers with its adapter."""
    board.until("edge-agent infer small 'turn on the light' --adapter one", "on the device", seconds)


def it_installs_without_a_network_and_answers(board: Board) -> None:
    dpkg(board, "-i /opt/deb/1.deb")
    assert board.run("systemctl is-active edge-agent; systemctl is-enabled edge-agent edge-agent-factory") == (
        "active\nenabled\nenabled"
    )
    modes = {"/etc/edge-agent": "root:edge-agent 750", "/etc/edge-agent/credentials": "root:root 700",
             STATE: "edge-agent:edge-agent 750"}  # fmt: skip
    for name, wanted in modes.items():
        assert board.run(f"stat -c '%U:%G %a' {name}") == wanted, name
    Path(board.root, SETTINGS[1:]).write_text(CONFIG)
    credential = Path(board.root, SECRET[1:])
    credential.write_text("secret\n")
    credential.chmod(0o600)
    shutil.copy(keys().root_file, Path(board.root, "etc/edge-agent/trust-root.json"))
    board.run("chmod 644 /etc/edge-agent/trust-root.json && systemctl restart mosquitto edge-agent")
    board.run("edge-agent install /opt/packages/*.tar", timeout_s=200.0)
    answers(board)
    assert board.run(f"find {STATE} -user root") == ""


def it_is_known_to_its_own_commands(board: Board) -> None:
    said = board.run("edge-agent service status")
    assert "installed, started at boot" in said and "another version" not in said, said
    found = board.run("edge-agent doctor", check=False)
    assert re.search(r"ok +service", found), found
    assert "the Debian package's" in board.run("edge-agent service install --drop-in local-broker")
    answers(board)
    assert board.run("python3 -c 'import glob; print(len(glob.glob(\"/usr/lib/edge-agent/lib/*/site-packages/"
                     "edge_agent/__pycache__/*\")) > 0)'") == "True"  # fmt: skip


def an_upgrade_restarts_with_the_new_code(board: Board) -> None:
    before, stamp = board.pid(), board.run("edge-agent service status")
    dpkg(board, "-i /opt/deb/2.deb")
    answers(board)
    assert board.pid() != before
    said = board.run("edge-agent service status; edge-agent doctor", check=False)
    assert "on the disk is" not in said, (stamp, said)
    assert Path(board.root, SETTINGS[1:]).read_text() == CONFIG, "the operator's settings stay"


def an_upgrade_without_a_restart_is_said(board: Board) -> None:
    """As where policy-rc.d forbids it."""
    policy = Path(board.root, "usr/sbin/policy-rc.d")
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    before = board.pid()
    dpkg(board, "-i /opt/deb/3.deb")
    policy.unlink()
    assert board.pid() == before
    for verb in ("service status", "doctor"):
        assert "on the disk is" in board.run(f"edge-agent {verb}", check=False), verb
    board.run("systemctl restart edge-agent")
    answers(board)
    assert "on the disk is" not in board.run("edge-agent service status")


def its_scripts_may_run_twice(board: Board) -> None:
    scripts = "/var/lib/dpkg/info/edge-agent"
    for words in ("preinst upgrade 0.1", "postinst configure", "postinst configure 0.1", "postinst configure 0.1",
                  "prerm upgrade 9", "prerm upgrade 9", "postinst abort-upgrade 9", "postrm upgrade 9",
                  "postinst configure 9"):  # fmt: skip
        script, _, rest = words.partition(" ")
        board.run(f"test ! -e {scripts}.{script} || {scripts}.{script} {rest}", timeout_s=INSTALL_S)
    answers(board)
    # Cut off between unpacking and configuring, as by a power cut.
    dpkg(board, "--unpack /opt/deb/2.deb")
    dpkg(board, "--configure --pending")
    answers(board)


def what_was_disabled_stays_disabled(board: Board) -> None:
    board.run("systemctl disable --now edge-agent")
    dpkg(board, "-i /opt/deb/3.deb")
    assert board.run("systemctl is-enabled edge-agent", check=False) == "disabled"
    board.run("systemctl enable --now edge-agent")
    answers(board)


def an_earlier_installations_unit_is_named_and_taken_away(board: Board) -> None:
    unit = Path(board.root, "etc/systemd/system/edge-agent.service")
    unit.write_text("[Service]\nExecStart=/opt/edge-agent/bin/python -m edge_agent run\n")
    assert "edge-agent service install" in dpkg(board, "-i /opt/deb/3.deb")
    board.run("edge-agent service install", timeout_s=200.0)
    assert not unit.exists()
    answers(board)


def removal_leaves_settings_and_models(board: Board) -> None:
    dpkg(board, "-r edge-agent")
    assert board.run("systemctl is-active edge-agent", check=False) != "active"
    board.run(
        f"test -e {SETTINGS} && test -d {STATE}/inbox && test ! -e /usr/lib/edge-agent && test ! -e /usr/bin/edge-agent"
    )
    dpkg(board, "-r edge-agent", check=False)


def a_second_installation_serves_at_once(board: Board) -> None:
    dpkg(board, "-i /opt/deb/1.deb")
    answers(board)
    assert Path(board.root, SETTINGS[1:]).read_text() == CONFIG


def a_purge_leaves_nothing(board: Board) -> None:
    dpkg(board, "-P edge-agent")
    left = board.run(
        "find / -xdev -name '*edge-agent*' -not -path '/proc/*' -not -path '/opt/*' -not -path '/var/log/*' "
        "-not -path '/tmp/*' -not -path '/run/*' -not -path '/var/tmp/*' -not -path '/sys/*'"
    )
    assert left == "", left
    assert "edge-agent" in board.run("getent passwd edge-agent"), "its number is not given to another"
    dpkg(board, "-P edge-agent", check=False)


def a_mounted_disk_is_not_purged(board: Board) -> None:
    dpkg(board, "-i /opt/deb/1.deb")
    board.run(f"systemctl stop edge-agent && mount -t tmpfs none {STATE} && touch {STATE}/precious")
    assert "was left" in dpkg(board, "-P edge-agent")
    board.run(f"test -e {STATE}/precious && umount {STATE} && rm -r {STATE}")


LIFE: tuple[Callable[[Board], None], ...] = (
    it_installs_without_a_network_and_answers, it_is_known_to_its_own_commands, an_upgrade_restarts_with_the_new_code,
    an_upgrade_without_a_restart_is_said, its_scripts_may_run_twice, what_was_disabled_stays_disabled,
    an_earlier_installations_unit_is_named_and_taken_away, removal_leaves_settings_and_models,
    a_second_installation_serves_at_once, a_purge_leaves_nothing, a_mounted_disk_is_not_purged,
)  # fmt: skip


def later(package: Path, out: Path, suffix: str, scratch: Path) -> None:
    """The package as of a later version: another version number, and one module with a line more."""
    tree = scratch / suffix
    subprocess.run(["dpkg-deb", "-R", str(package), str(tree)], check=True)
    (loop,) = tree.glob("usr/lib/edge-agent/lib/*/site-packages/edge_agent/agent/loop.py")
    loop.write_text(f"{loop.read_text()}# {suffix}\n")
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"^Version: (.*)$", rf"Version: \1.{suffix}", control.read_text(), flags=re.MULTILINE))
    subprocess.run(["dpkg-deb", "-Zgzip", "-z1", "-b", str(tree), str(out)], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)


def prepare(package: Path, root: Path, scratch: Path) -> None:
    """A fresh root with three versions, a signed package and a broker that wants a password."""
    debootstrapped(Path("build/day-root"), root)
    debs = root / "opt/deb"
    debs.mkdir(parents=True)
    shutil.copy(package, debs / "1.deb")
    for suffix in LATER:
        later(package, debs / f"{suffix}.deb", suffix, scratch)
    (root / "opt/packages").mkdir()
    small_package(root / "opt/packages")
    (root / "etc/mosquitto/conf.d/day.conf").write_text(BROKER)
    passwords = ("touch /etc/mosquitto/passwords && mosquitto_passwd -b /etc/mosquitto/passwords day secret && "
                 "chown mosquitto /etc/mosquitto/passwords")  # fmt: skip
    subprocess.run(["chroot", str(root), "sh", "-c", passwords], check=True)


def main() -> int:
    """The life; the exit code."""
    missing = [name for name in (*NEEDED, "dpkg-deb") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        print(f"SKIPPED, THE DEBIAN PACKAGE WAS NOT TRIED: it needs root, and {', '.join(missing or NEEDED)}")
        return 0
    failed = 0
    with tempfile.TemporaryDirectory(prefix="edge-deb-life-", dir="/var/tmp") as folder:
        root = Path(folder) / "root"
        root.mkdir()
        prepare(Path(sys.argv[1]), root, Path(folder))
        board = Board(root)
        try:
            board.wait_for_boot()
            for part in LIFE:
                failed += not _passes(part, board)
        except Failed as error:
            print(f"SKIPPED, THE DEBIAN PACKAGE WAS NOT TRIED: {error}")
        finally:
            board.stop()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
