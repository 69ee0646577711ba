"""`edge-forge provision --boot`: the filled tree is started by systemd-nspawn, without a network, and asked over MQTT.

What runs is a copy (an overlay, where the kernel takes one), so that nothing of this boot is left in the image: no
machine id, no journal, no installed package. The broker is a mosquitto of this host in the container's network, which
has nothing but a loopback: the address of the fleet's broker is one of this loopback's own, and its name leads there.

A tree of another architecture runs under qemu-user, which binfmt_misc starts. It cannot do all that a kernel does, so
the copy gets drop-ins (`_prepare_emulation`), and what they leave out is said to be not tried.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_agent.base.errors import EdgeError, UsageError
from edge_agent.config.settings import Settings
from edge_agent.lifecycle import service
from edge_agent.lifecycle.service import ServiceTarget, make_user
from edge_forge.provision.image_plan import CREDENTIALS, FACTORY
from edge_forge.provision.image_writer import Entry, ImageWriter
from edge_forge.provision.target_root import TargetRoot, locate

NEEDED: Final = ("systemd-nspawn", "nsenter")
_BINFMT: Final = Path("/proc/sys/fs/binfmt_misc")
_EMULATED: Final = 8.0
"""How many times longer everything may take under qemu-user."""
_EMULATED_CPU: Final = "cortex-a76"
"""Of a Raspberry Pi 5. qemu's default has instructions that INT8 kernels choose and qemu 7.2 computes wrongly."""
_STAND_INS: Final = "etc/edge-first-boot"
"""Files that exist in the copy alone."""
_ARM_CORE: Final = """\
processor\t: {number}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
"""/proc/cpuinfo of such a core: that of the host, which qemu-user shows, makes ONNX Runtime 1.32 crash."""
_BOOT_S: Final = 120.0
_COMMAND_S: Final = 60.0
_POLL_S: Final = 0.5
_TEXT: Final = "turn on the light in the kitchen"
_SAID_CHARS: Final = 2000
_PLAIN: Final = "EDGE_AGENT__MQTT__TLS__ENABLED=false "
_STAND_IN: Final = "127.0.0.2"
"""Where the name of the fleet's broker leads: not to the loopback's usual address, at which a broker of the image
itself may listen."""
_FAILURE: Final = "journalctl --no-pager -n 15 -o cat -u edge-agent -u edge-agent-factory"


@dataclass(frozen=True, slots=True)
class FirstBoot:
    """What a boot showed. Seconds are since the container was started; `answers` by model, `models` as `edge-agent
    models` tells them, `notes` what this boot could not try."""

    up_s: float
    online_s: float
    answered_s: Mapping[str, float]
    answers: Mapping[str, str]
    models: Sequence[str]
    notes: Sequence[str]

    def lines(self) -> list[str]:
        """The report for a person."""
        shown = [
            f"booted    systemd answered after {self.up_s:.1f} s, the service was ready after {self.online_s:.1f} s"
        ]
        shown += [f"installed {one}" for one in self.models]
        shown += [
            f"answered  {name} after {self.answered_s[name]:.1f} s: {self.answers[name]}" for name in self.answers
        ]
        return [*shown, *(f"not tried {note}" for note in self.notes)]


class BootedTree:
    """A root file system that systemd-nspawn has booted, with a network of its own that has no way out. `patience`: how
    many times longer than usual everything may take."""

    def __init__(self, root: Path, patience: float = 1.0) -> None:
        self.patience = patience
        self.started_s = time.monotonic()
        self._nspawn = subprocess.Popen(
            ["systemd-nspawn", "-q", "-D", str(root), "--boot", "--register=no", "--keep-unit", "--private-network",
             "--link-journal=no", "--console=pipe"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._init = 0

    def wait_for_boot(self, seconds: float = _BOOT_S) -> None:
        """Until systemd answers. Raises EdgeError."""
        until_s = time.monotonic() + seconds * self.patience
        while time.monotonic() < until_s and self._nspawn.poll() is None:
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
                self._init = int(children[-1]) if children else 0
            if self._init and self.run("systemctl is-system-running")[1].strip() in {"running", "degraded", "starting"}:
                return
            time.sleep(_POLL_S)
        raise EdgeError("systemd did not come up in the container", None, "`systemd-nspawn -bD ROOT` shows why")

    def run(self, command: str, seconds: float = _COMMAND_S) -> tuple[int, str]:
        """Exit code and output of a shell command inside; 124 for one that does not end."""
        line = ["nsenter", "--target", str(self._init), "--all", "/usr/bin/env", "-i",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8",
                f"QEMU_CPU={_EMULATED_CPU}", "sh", "-c", command]  # fmt: skip
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=seconds * self.patience, check=False)
        except subprocess.TimeoutExpired:
            return 124, f"no end within {seconds * self.patience:g} s"
        return done.returncode, (done.stdout + done.stderr).strip()[-_SAID_CHARS:]

    def in_network(self, *command: str) -> list[str]:
        """A command line that runs a program of the host in the container's network."""
        return ["nsenter", "--target", str(self._init), "--net", *command]

    def stop(self) -> None:
        """Power off."""
        if self._init:
            self.run("systemctl poweroff")
        try:
            self._nspawn.wait(30.0 * self.patience)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()


def check_can_boot(target: TargetRoot) -> None:
    """Raises UsageError where this host cannot start the tree."""
    missing = [name for name in (*NEEDED, "mosquitto", "mosquitto_passwd") if shutil.which(name) is None]
    if os.geteuid() != 0:
        raise UsageError("only root can boot a container", None, "run it with sudo, or leave out --boot")
    if missing:
        raise UsageError(
            f"--boot needs {', '.join(missing)}", None, "apt install systemd-container util-linux mosquitto"
        )
    if target.machine != platform.machine() and not _has_emulator(target.machine):
        raise UsageError(
            f"the image is of {target.machine}, this host of {platform.machine()}, and binfmt_misc has no emulator "
            "for it that works in a container", str(target.path),
            "apt install qemu-user-static; or run it on a board, or leave out --boot",
        )  # fmt: skip
    if locate(target.path, "usr/lib/systemd/systemd") is None and locate(target.path, "lib/systemd/systemd") is None:
        raise EdgeError("it has no systemd", str(target.path), "the service needs one")


def _has_emulator(machine: str) -> bool:
    """Whether the kernel starts programs of that architecture also where the emulator's file is not seen (flag F)."""
    try:
        lines = (_BINFMT / f"qemu-{machine}").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    return "enabled" in lines and any(line.startswith("flags:") and "F" in line for line in lines)


def first_boot(target: TargetRoot, entries: Sequence[Entry], settings: Settings, models: Sequence[str]) -> FirstBoot:
    """Boot a copy of a root with these files in it, and wait until each of `models` has answered.

    Raises EdgeError with the service's own words when one does not within two minutes after the boot.
    """
    emulated = target.machine != platform.machine()
    with _copy(target.path) as tree:
        make_user(ServiceTarget(tree, "/usr/bin/python3"), [])
        writer = ImageWriter(tree)
        writer.write(writer.plan(entries))
        notes = _prepare(tree, settings)
        if emulated:
            notes += _prepare_emulation(tree)
        board = BootedTree(tree, _EMULATED if emulated else 1.0)
        try:
            board.wait_for_boot()
            up_s = time.monotonic() - board.started_s
            with _broker(board, tree, settings):
                online_s = _until_online(board)
                return _asked(board, settings, models, up_s, online_s, notes)
        finally:
            board.stop()


def _asked(
    board: BootedTree, settings: Settings, models: Sequence[str], up_s: float, online_s: float, notes: Sequence[str]
) -> FirstBoot:
    """Ask until every model has answered and the first boot's installs have ended, then every adapter once."""
    answers: dict[str, str] = {}
    answered_s: dict[str, float] = {}

    def ask(model: str, adapter: str = "") -> str:
        options = f" --adapter {shlex.quote(adapter)}" if adapter else ""
        code, said = board.run(
            f"{_PLAIN if settings.mqtt.tls.enabled else ''}edge-agent infer {shlex.quote(model)} {shlex.quote(_TEXT)} "
            f"--deadline {30 * board.patience:g}{options}"
        )
        if code == 0:
            name = f"{model} with {adapter}" if adapter else model
            answers[name], answered_s[name] = said.splitlines()[0], time.monotonic() - board.started_s
        return said

    said = "it was not asked"
    until_s = time.monotonic() + _BOOT_S * board.patience
    while time.monotonic() < until_s:
        for model in [one for one in models if one not in answers]:
            said = ask(model)
        installs = board.run(f"systemctl is-active {service.FACTORY_UNIT}")[1]
        if installs not in {"active", "activating"} and (len(answers) == len(models) or _refused(board)):
            break
        time.sleep(_POLL_S)
    refused = _refused(board)
    if refused or len(answers) < len(models):
        missing = ", ".join(one for one in models if one not in answers)
        why = "; ".join(f"{name} is refused: {reason}" for name, reason in refused.items()) or f"{missing}: {said}"
        raise EdgeError(f"not everything answers after the first boot: {why}\n{board.run(_FAILURE)[1]}")
    installed = json.loads(board.run("edge-agent models --json")[1])
    for model in installed:
        for adapter in model["adapters"]:
            name, words = adapter["name"], ask(model["name"], adapter["name"])
            if f"{model['name']} with {name}" not in answers:
                raise EdgeError(f"the adapter {name} does not answer: {words}")
    return FirstBoot(up_s, online_s, answered_s, answers, [_installed(one) for one in installed], notes)


def _installed(model: Mapping[str, Any]) -> str:
    adapters = ", ".join(one["name"] for one in model["adapters"])
    return (
        f"{model['name']} version {model['version']}, {model['variant']}{f', adapters {adapters}' if adapters else ''}"
    )


def _refused(board: BootedTree) -> dict[str, str]:
    code, said = board.run(f"cd /{FACTORY} && head -c 500 -- *.refused /dev/null")
    found: dict[str, str] = {}
    name = ""
    for line in said.splitlines() if code == 0 else ():
        if line.startswith("==> ") and line.endswith(" <=="):
            name = line[4:-4]
        elif name.endswith(".refused") and line.strip():
            found[name.removesuffix(".refused")] = line.strip()
    return found


def _until_online(board: BootedTree) -> float:
    """Seconds until the service says that it is ready. Raises EdgeError with its last words."""
    until_s = time.monotonic() + _BOOT_S * board.patience
    while time.monotonic() < until_s:
        state = board.run("systemctl is-active edge-agent")[1]
        if state == "active":
            return time.monotonic() - board.started_s
        if state == "failed":
            break
        time.sleep(_POLL_S)
    raise EdgeError(f"the service did not become ready:\n{board.run(_FAILURE)[1]}", "edge-agent.service")


@contextlib.contextmanager
def _copy(root: Path) -> Iterator[Path]:
    """The tree to boot: an overlay over the image, or a whole copy where the kernel takes none."""
    # Not /tmp, which may be memory.
    with tempfile.TemporaryDirectory(prefix="edge-first-boot-", dir="/var/tmp") as scratch:
        place = Path(scratch)
        tree = place / "tree"
        for name in ("tree", "upper", "work"):
            (place / name).mkdir()
        options = f"lowerdir={root.resolve()},upperdir={place}/upper,workdir={place}/work"
        mounted = subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, str(tree)], capture_output=True, check=False
        )
        if mounted.returncode != 0:
            subprocess.run(["cp", "-a", "--reflink=auto", f"{root}/.", str(tree)], check=True)
        try:
            yield tree
        finally:
            if mounted.returncode == 0:
                subprocess.run(["umount", "--lazy", str(tree)], check=False)


def _prepare(tree: Path, settings: Settings) -> list[str]:
    """Names lead to the container's loopback; what cannot be tried here is said."""
    notes = ["the way to the fleet's broker: another one stood in for it"]
    if _address(settings.mqtt.host) is None and settings.mqtt.host != "localhost":
        with (tree / "etc/hosts").open("a", encoding="utf-8") as hosts:
            hosts.write(f"\n{_STAND_IN} {settings.mqtt.host}\n")
    if settings.mqtt.tls.enabled:
        notes.append("TLS: no broker here has the key of the fleet's")
        drop_ins = tree / service.DROP_INS
        drop_ins.mkdir(parents=True, exist_ok=True)
        (drop_ins / "zz-first-boot.conf").write_text(f"[Service]\nEnvironment={_PLAIN}\n")
    return notes


def _prepare_emulation(tree: Path) -> list[str]:
    """Drop-ins of both units for qemu-user, where systemd cannot pass credentials (status 243); what is not tried."""
    own = tree / _STAND_INS
    own.mkdir()
    cores = "".join(_ARM_CORE.format(number=number) for number in range(os.cpu_count() or 1))
    (own / "cpuinfo").write_text(cores)
    lines = [
        "[Service]", f"Environment=QEMU_CPU={_EMULATED_CPU}", f"BindReadOnlyPaths=/{_STAND_INS}/cpuinfo:/proc/cpuinfo",
        "TimeoutStartSec=infinity",
    ]  # fmt: skip
    daemon = ["LoadCredential=", "SetCredential=", "WatchdogSec=0"]
    secret = tree / CREDENTIALS / "mqtt-password"
    if secret.is_file():
        # The copy lies in a folder that is root's alone.
        shutil.copyfile(secret, own / secret.name)
        daemon.append(f"Environment=EDGE_AGENT__MQTT__PASSWORD_FILE=/{_STAND_INS}/{secret.name}")
    for unit, more in ((service.UNIT, daemon), (service.FACTORY_UNIT, [])):
        folder = tree / f"{service.SYSTEM}/{unit}.d"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "zz-emulated.conf").write_text("\n".join([*lines, *more]) + "\n")
    return ["speed, system calls, systemd's credentials and the watchdog: the processor is emulated by qemu-user"]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


@contextlib.contextmanager
def _broker(board: BootedTree, tree: Path, settings: Settings) -> Iterator[None]:
    """A broker at the address and port of the settings, which takes the board's user and password."""
    address = _address(settings.mqtt.host)
    if address is not None and not address.is_loopback:
        bits = address.max_prefixlen
        added = board.in_network("ip", "address", "add", f"{address}/{bits}", "dev", "lo")
        if shutil.which("ip") is None or subprocess.run(added, capture_output=True, check=False).returncode != 0:
            raise EdgeError(f"the address {address} cannot be set in the container", None, "apt install iproute2")
    local = settings.mqtt.host == "localhost" or (address is not None and address.is_loopback)
    host = "127.0.0.1" if settings.mqtt.host == "localhost" else _STAND_IN if address is None else str(address)
    with tempfile.TemporaryDirectory(prefix="edge-first-broker-") as scratch:
        config, passwords = Path(scratch) / "mosquitto.conf", Path(scratch) / "passwords"
        secret = tree / CREDENTIALS / "mqtt-password"
        closed = settings.mqtt.username is not None and secret.is_file()
        rules = f"allow_anonymous false\npassword_file {passwords}" if closed else "allow_anonymous true"
        config.write_text(f"user root\nlistener {settings.mqtt.port or 1883} {host}\nset_tcp_nodelay true\n{rules}\n")
        if closed:
            _write_passwords(passwords, str(settings.mqtt.username), secret.read_text().splitlines()[0])
        broker = subprocess.Popen(
            board.in_network("mosquitto", "-c", str(config)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            time.sleep(_POLL_S)
            # A board with a broker of its own: that one has the port, and is the right one.
            if broker.poll() is not None and not (local and locate(tree, "usr/sbin/mosquitto")):
                said = broker.stderr.read(_SAID_CHARS) if broker.stderr is not None else ""
                raise EdgeError(f"no broker could be started in the container: {said.strip()}")
            yield
        finally:
            broker.terminate()
            broker.communicate()


def _write_passwords(path: Path, user: str, password: str) -> None:
    """By mosquitto's own tool, which replaces plain texts in a file: no secret is on a command line."""
    path.touch(mode=0o600)
    path.write_text(f"{user}:{password}\n", encoding="utf-8")
    subprocess.run(["mosquitto_passwd", "-U", str(path)], check=True, capture_output=True)
