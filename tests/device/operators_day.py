"""An operator's day on a real systemd, as root: `make operators-day`, or `python -m tests.device.operators_day WHEELS`.

A Debian root is made by debootstrap (kept in build/day-root) and booted by systemd-nspawn with a broker in it. WHEELS
is a folder with the wheel of edge-agent and of what it needs. Each part of the day is a line, ok or FAILED; one that
fails does not end the others. Exit code 1 when one failed; 0 with a loud line where no container can be booted. Not
tried here but in tests/integration (test_worker_accounts.py, test_odd_clocks_and_upgrades.py): a kill for lack of
memory (no memory cgroup in the container where the host has version 1) and a clock in 1970 (it shares the host's).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.agents import echo_package

SUITE = "bookworm"
NEEDED = ("debootstrap", "systemd-nspawn", "nsenter")
PARTS = "systemd,systemd-sysv,dbus,python3,python3-venv,mosquitto,mosquitto-clients"
PORT = 18_839
SETTINGS = "/etc/edge-agent/edge-agent.toml"
SECRET = "/etc/edge-agent/credentials/mqtt-password"
STATE = "/var/lib/edge-agent"
LOCKS = "/run/systemd/system/edge-agent.service.d"
BROKER = f"""listener {PORT} 127.0.0.1
allow_anonymous false
password_file /etc/mosquitto/passwords
"""
CONFIG = f"""[mqtt]
host = "127.0.0.1"
port = {PORT}
username = "day"
[device]
id = "day"
[store]
allow_unsigned = true
[worker]
backends = ["echo"]
"""


class Failed(Exception):
    """A part of the day did not go as it should."""


class Board:
    """The booted container."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._nspawn = subprocess.Popen(
            ["systemd-nspawn", "-q", "-D", str(root), "--boot", "--register=no", "--keep-unit", "--private-network",
             "--console=pipe"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._init = 0

    def wait_for_boot(self) -> None:
        """Until systemd answers. Raises Failed."""
        until_s = time.monotonic() + 60.0
        while time.monotonic() < until_s and self._nspawn.poll() is None:
            children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
            for child in children:
                self._init = int(child)
                if self.run("systemctl is-system-running", check=False) in {"running", "degraded"}:
                    return
            time.sleep(0.5)
        raise Failed("systemd did not come up in the container")

    def run(self, command: str, check: bool = True, timeout_s: float = 90.0) -> str:
        """The output of a shell command in the container. Raises Failed when it fails and `check` is set."""
        line = ["nsenter", "--target", str(self._init), "--all", "env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin",
                "HOME=/root", "sh", "-c", command]  # fmt: skip
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            raise Failed(f"{command}: no end within {timeout_s:g} s") from None
        said = (done.stdout + done.stderr).strip()
        if "Traceback" in said or (check and done.returncode != 0):
            raise Failed(f"{command}: exit code {done.returncode}: {said[-600:]}")
        return said

    def until(self, command: str, wanted: str, seconds: float = 40.0) -> str:
        """Repeat a command until its output holds these words. Raises Failed."""
        until_s, said = time.monotonic() + seconds, ""
        while time.monotonic() < until_s:
            said = self.run(command, check=False)
            if wanted in said:
                return said
            time.sleep(0.5)
        raise Failed(f"{command}: not {wanted!r} within {seconds:g} s, but {said[-600:]}")

    def pid(self) -> str:
        """The daemon's process id."""
        return self.run("systemctl show -p MainPID --value edge-agent")

    def answers(self, seconds: float = 40.0) -> None:
        """A request is answered."""
        self.until("edge-agent infer echo hello", "on the device", seconds)

    def stop(self) -> None:
        """Power off."""
        if self._init:
            self.run("systemctl poweroff", check=False)
        try:
            self._nspawn.wait(30.0)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()


def service_is_installed_and_answers(board: Board) -> None:
    said = board.run("edge-agent service install")
    assert "edge-agent.service" in said, said
    Path(board.root, SETTINGS[1:]).write_text(CONFIG)
    board.run("systemctl restart mosquitto edge-agent")
    board.run("edge-agent install /opt/packages/echo-1.tar")
    board.answers()
    assert board.run("systemctl is-active edge-agent") == "active"


def a_killed_daemon_comes_back(board: Board) -> None:
    before = board.pid()
    board.run(f"kill -9 {before}")
    board.answers()
    assert board.pid() != before


def a_stopped_daemon_is_ended_by_the_watchdog(board: Board) -> None:
    """With ten seconds instead of sixty."""
    board.run(
        f"mkdir -p {LOCKS} && printf '[Service]\\nWatchdogSec=10\\n' > {LOCKS}/day.conf && systemctl daemon-reload"
    )
    board.run("systemctl restart edge-agent")
    board.answers()
    before = board.pid()
    board.run(f"kill -STOP {before}")
    board.until("systemctl show -p MainPID -p ActiveState edge-agent | grep -v MainPID=0", "ActiveState=active")
    board.until(f"test $(systemctl show -p MainPID --value edge-agent) != {before} && echo another", "another", 60.0)
    board.answers()
    assert "Watchdog timeout" in board.run("journalctl -u edge-agent --no-pager")
    board.run(f"rm {LOCKS}/day.conf && systemctl daemon-reload")


def the_broker_goes_and_comes_back(board: Board) -> None:
    before = board.pid()
    board.run("systemctl stop mosquitto")
    time.sleep(5.0)
    assert board.run("systemctl is-active edge-agent") == "active"
    board.run("systemctl start mosquitto")
    board.answers(90.0)
    assert board.pid() == before, "without a restart"


def a_wrong_password_is_named_and_mended(board: Board) -> None:
    board.run(f"echo wrong > {SECRET} && systemctl restart edge-agent")
    said = board.run("edge-agent doctor", check=False)
    assert "not authorized" in said.lower() or "password" in said, said
    assert board.run("systemctl is-active edge-agent") == "active"
    board.run(f"echo secret > {SECRET} && systemctl restart edge-agent")
    board.answers()


def settings_that_the_service_cannot_read_are_named(board: Board) -> None:
    board.run(f"chmod 600 {SETTINGS} && chown root:root {SETTINGS}")
    said = board.run(f"edge-agent check-config {SETTINGS}; edge-agent doctor", check=False)
    board.run(f"chmod 640 {SETTINGS} && chown root:edge-agent {SETTINGS}")
    assert "cannot" in said and "edge-agent" in said, said
    board.run(f"edge-agent check-config {SETTINGS}")


def an_ordinary_user_gets_sentences(board: Board) -> None:
    for verb in ("doctor", "models", "infer echo x", "top --once --seconds 1", "service status", "check-config"):
        said = board.run(f"setpriv --reuid=65534 --clear-groups edge-agent {verb}", check=False)
        assert said, verb


def roots_commands_leave_nothing_of_root(board: Board) -> None:
    board.run("edge-agent models && edge-agent install /opt/packages/more-1.tar && edge-agent remove more")
    assert board.run(f"find {STATE} -user root") == ""


def changes_by_command_are_in_the_journal_and_events(board: Board) -> None:
    board.run(
        f"mosquitto_sub -h 127.0.0.1 -p {PORT} -u day -P secret -t edge/v1/day/event > /tmp/events 2>&1 & sleep 1"
    )
    board.run("edge-agent install /opt/packages/echo-2.tar && sleep 3 && edge-agent rollback echo")
    board.until("cat /tmp/events", '"rolled-back"')
    assert '"installed"' in board.run("cat /tmp/events")
    lines = board.run("journalctl -t edge-agent --no-pager")
    assert "installed" in lines and "(by root)" in lines, lines[-500:]
    board.answers()


def an_order_empties_the_incoming_folder(board: Board) -> None:
    board.run(f"cp /opt/packages/third-1.tar {STATE}/inbox/ && chown edge-agent: {STATE}/inbox/third-1.tar")
    said = board.run(
        f"timeout 60 mosquitto_rr -h 127.0.0.1 -p {PORT} -u day -P secret -V 5 -q 1 -t edge/v1/day/cmd/install "
        "-e edge/v1/client/op/reply -m '{\"package\": \"third-1.tar\"}'"
    )  # fmt: skip
    assert '"status":200' in said.replace(" ", ""), said
    board.until(f"ls {STATE}/inbox | wc -l", "0")


def a_full_disk_serves_and_lets_models_be_removed(board: Board) -> None:
    board.run(f"systemctl stop edge-agent && cp -a {STATE} /var/saved && mount -t tmpfs -o size=400m none {STATE}")
    board.run(
        f"cp -a /var/saved/. {STATE}/ && chown edge-agent: {STATE} && chmod 750 {STATE} && systemctl start edge-agent"
    )
    board.answers()
    board.run(f"dd if=/dev/zero of={STATE}/filler bs=64k", check=False)
    board.answers()
    board.run("edge-agent remove third")
    assert "third" not in board.run("edge-agent models")
    board.run(f"rm {STATE}/filler")
    board.run("edge-agent install /opt/packages/third-1.tar", check=False)
    board.answers()


def a_read_only_state_folder_is_waited_for(board: Board) -> None:
    """After the part before: the state folder is a file system of its own."""
    board.run(f"systemctl stop edge-agent && mount -o remount,ro {STATE} && systemctl start --no-block edge-agent")
    board.answers(60.0)
    board.run(f"mount -o remount,rw {STATE}")
    time.sleep(12.0)
    board.answers()
    board.run("edge-agent install /opt/packages/more-1.tar")
    board.run(f"systemctl stop edge-agent && umount -l {STATE} && systemctl start edge-agent")
    board.answers()


def an_upgrade_is_seen_and_restarts(board: Board) -> None:
    before = board.pid()
    board.run("echo '# newer' >> $(find /opt/edge-agent/lib -path '*edge_agent/agent/loop.py')")
    said = board.run("edge-agent service status; edge-agent doctor", check=False)
    assert "on the disk is" in said, said
    board.run("edge-agent service install")
    board.answers()
    assert board.pid() != before, "service install did not restart the daemon"


def a_second_board_of_the_same_name_is_named(board: Board) -> None:
    board.run(
        "mkdir -p /tmp/twin && "
        "sed 's#^.store.#[store]\\nstate_dir = \"/tmp/twin\"#; s#^username = .*#&\\npassword_file = "
        f"\"{SECRET}\"#' {SETTINGS} > /tmp/twin.toml"
    )  # fmt: skip
    board.run("timeout 40 edge-agent run --config /tmp/twin.toml > /tmp/twin.log 2>&1", check=False)
    said = board.run("cat /tmp/twin.log; journalctl -u edge-agent --no-pager --since -60s")
    assert "same" in said or "another client" in said or "taken over" in said, said[-800:]
    board.answers(120.0)


def removal_leaves_settings_and_state(board: Board) -> None:
    board.run("edge-agent service uninstall")
    assert board.run("systemctl is-active edge-agent", check=False) != "active"
    board.run(f"test -e {SETTINGS} && test -d {STATE}/inbox && ! test -e /etc/systemd/system/edge-agent.service")


DAY: tuple[Callable[[Board], None], ...] = (
    service_is_installed_and_answers, a_killed_daemon_comes_back, a_stopped_daemon_is_ended_by_the_watchdog,
    the_broker_goes_and_comes_back, a_wrong_password_is_named_and_mended,
    settings_that_the_service_cannot_read_are_named,
    an_ordinary_user_gets_sentences, roots_commands_leave_nothing_of_root,
    changes_by_command_are_in_the_journal_and_events, an_order_empties_the_incoming_folder,
    a_full_disk_serves_and_lets_models_be_removed, a_read_only_state_folder_is_waited_for,
    an_upgrade_is_seen_and_restarts, a_second_board_of_the_same_name_is_named, removal_leaves_settings_and_state,
)  # fmt: skip


def debootstrapped(base: Path, root: Path) -> None:
    """A fresh Debian in `root`; `base` is made once and kept."""
    if not (base / "etc").is_dir():
        print(f"debootstrap {SUITE} into {base}", flush=True)
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={PARTS}", SUITE, str(base)], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
    subprocess.run(["cp", "-a", "--reflink=auto", f"{base}/.", str(root)], check=True)


def prepare(base: Path, root: Path, wheels: Path) -> None:
    """A fresh root with the wheel, packages and the broker's settings."""
    debootstrapped(base, root)
    shutil.copytree(wheels, root / "opt/wheels", dirs_exist_ok=True)
    packages = root / "opt/packages"
    for name, counter in (("echo", 1), ("echo", 2), ("more", 1), ("third", 1)):
        echo_package(packages, name=name, counter=counter)
    (root / "etc/mosquitto/conf.d/day.conf").write_text(BROKER)
    credentials = root / SECRET[1:]
    credentials.parent.mkdir(parents=True)
    credentials.write_text("secret\n")
    credentials.chmod(0o600)
    # The constraints of this clone (make sets them) are a path that does not exist in there.
    install = ("unset PIP_CONSTRAINT; python3 -m venv /opt/edge-agent && "
               "/opt/edge-agent/bin/pip install -q --no-index --find-links /opt/wheels "
               "edge-agent cryptography && ln -sf /opt/edge-agent/bin/edge-agent /usr/local/bin/ && touch "
               "/etc/mosquitto/passwords && mosquitto_passwd -b /etc/mosquitto/passwords day secret && "
               "chown mosquitto /etc/mosquitto/passwords")  # fmt: skip
    subprocess.run(["chroot", str(root), "sh", "-c", install], check=True)


def main() -> int:
    """The day; the exit code."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        print(f"SKIPPED, THE OPERATOR'S DAY WAS NOT TRIED: it needs root, and {', '.join(missing or NEEDED)}")
        return 0
    failed = 0
    with tempfile.TemporaryDirectory(prefix="edge-day-", dir="/var/tmp") as folder:
        root = Path(folder) / "root"
        root.mkdir()
        prepare(Path("build/day-root"), root, Path(sys.argv[1]))
        board = Board(root)
        try:
            board.wait_for_boot()
            for part in DAY:
                failed += not _passes(part, board)
        except Failed as error:
            print(f"SKIPPED, THE OPERATOR'S DAY WAS NOT TRIED: {error}")
        finally:
            board.stop()
    return 1 if failed else 0


def _passes(part: Callable[[Board], None], board: Board) -> bool:
    began_s, name = time.monotonic(), part.__name__.replace("_", " ")
    try:
        part(board)
    except (Failed, AssertionError) as error:
        print(f"FAILED {name}: {str(error)[-900:]}", flush=True)
        return False
    print(f"ok     {name} ({time.monotonic() - began_s:.0f} s)", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
