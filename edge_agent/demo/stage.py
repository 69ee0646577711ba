"""A broker and a daemon on this machine for the length of a block, in one folder: for the demos and for measuring."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent.base.child_python import child_environment, module_command
from edge_agent.base.errors import EdgeError

READY_S = 60.0
STOP_S = 10.0
LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Part:
    """A process of the stage, by the name that sentences give it, and the file that has what it said."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise EdgeError with its last words where it has ended."""
        if self.process.poll() is not None:
            raise EdgeError(f"{self.name} ended with exit code {self.process.returncode}: {_tail(self.log)}", "demo")


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker of the stage. amqtt speaks MQTT 3.1.1 only and does not answer a client that tries MQTT 5 first.
    `websockets`: its port for browsers, None where it has none."""

    port: int
    name: str
    protocol: str
    part: Part
    websockets: int | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """A daemon of the stage: its pid and how long it took to be ready."""

    pid: int
    ready_s: float
    part: Part


def write_config(folder: Path, broker: Broker, root: Path, device: str, *backends: str) -> Path:
    """Settings of a daemon that keeps everything in `folder`; `root` is the trust root of its packages;
    without `backends` it has ONNX Runtime."""
    names = ", ".join(f'"{name}"' for name in backends or ("onnx",))
    config = folder / "edge-agent.toml"
    config.write_text(
        f'[device]\nid = "{device}"\n\n[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n'
        f'protocol = "{broker.protocol}"\n\n'
        f'[store]\nstate_dir = "{folder / "state"}"\ntrust_root = "{root.absolute()}"\n\n'
        f"[worker]\nbackends = [{names}]\n\n[telemetry]\ninterval_s = 2.0\n"
    )
    return config


@contextlib.contextmanager
def broker(folder: Path, port: int = 0) -> Iterator[Broker]:
    """A broker on `port` (0: a free one): mosquitto where it is installed, else amqtt in its own process.

    Raises EdgeError when the port is taken, or the broker does not start.
    """
    port = _free(port)
    mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if mosquitto is None:
        with _part("the broker", _amqtt(folder, port), folder / "broker.log") as part:
            _wait_for_port(port, part)
            yield Broker(port, "amqtt", "3.1.1", part)
        return
    # A mosquitto that was built without WebSockets ends at once where its settings name them.
    for websockets in (_free(0), None):
        command = _mosquitto(mosquitto, folder, port, websockets)
        with _part("the broker", command, folder / "broker.log") as part:
            try:
                for each in (port, *((websockets,) if websockets is not None else ())):
                    _wait_for_port(each, part)
            except EdgeError:
                if websockets is None:
                    raise
                continue
            yield Broker(port, "mosquitto", "auto", part, websockets)
            return


def _mosquitto(program: str, folder: Path, port: int, websockets: int | None) -> list[str]:
    """The command that starts it, with its settings written."""
    # Started by root it would become another user, and the kernel then forgets that it is to end with the demo.
    user = "user root\n" if os.geteuid() == 0 else ""
    browsers = "" if websockets is None else f"listener {websockets} 127.0.0.1\nprotocol websockets\n"
    settings = folder / "mosquitto.conf"
    settings.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\npersistence false\n{user}{browsers}"
    )
    return [program, "-c", str(settings)]


def _amqtt(folder: Path, port: int) -> list[str]:
    """The command that starts it, with its settings written."""
    settings = folder / "amqtt.yaml"
    settings.write_text(
        f"listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{port}\n"
        "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n"
    )
    return module_command("amqtt.scripts.broker_script", "-c", str(settings))


@contextlib.contextmanager
def daemon(config: Path, folder: Path) -> Iterator[Running]:
    """`edge-agent run`, ready: it reports READY over a socket such as systemd's $NOTIFY_SOCKET."""
    address = folder / "notify.sock"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(address))
        channel.settimeout(LOOK_S)
        started_s = time.monotonic()
        command = module_command("edge_agent", "run", "--config", str(config))
        with _part("the daemon", command, folder / "agent.log", NOTIFY_SOCKET=str(address)) as part:
            while b"READY=1" not in _next_word(channel, part):
                pass
            ready_s = time.monotonic() - started_s
            over = threading.Event()
            reader = threading.Thread(target=_read_on, args=(channel, over), name="notifications")
            reader.start()
            try:
                yield Running(part.process.pid, ready_s, part)
            finally:
                over.set()
                reader.join()


def _read_on(channel: socket.socket, over: threading.Event) -> None:
    """Read what the daemon says on: a socket that nobody reads is full after ten words, and the daemon warns of it."""
    while not over.is_set():
        with contextlib.suppress(TimeoutError):
            channel.recv(4096)


def _next_word(channel: socket.socket, part: Part) -> bytes:
    until_s = time.monotonic() + READY_S
    while time.monotonic() < until_s:
        part.check()
        with contextlib.suppress(TimeoutError):
            return channel.recv(4096)
    raise EdgeError(f"the daemon does not get ready: {_tail(part.log)}", "demo")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Allow one stage per folder. Raises EdgeError that names the process of the other one."""
    with (folder / "stage.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise EdgeError(
                f"a demo is running in {folder} already (pid {lock.read().strip() or 'unknown'})",
                "demo",
                "ask that one, or end it first",
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """End the block on SIGTERM and SIGHUP as on Ctrl-C, so that none of its processes is left running."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _part(name: str, command: Sequence[str], log: Path, **environment: str) -> Iterator[Part]:
    with log.open("ab") as stream:
        process = subprocess.Popen(
            _tied(command),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={**child_environment(os.environ), **environment},
        )
    try:
        yield Part(name, process, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free(port: int) -> int:
    """The port itself, or a free one for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            why = "is in use" if getattr(error, "errno", None) == errno.EADDRINUSE else f"cannot be used: {error}"
            raise EdgeError(f"port {port} {why}", "demo", "name another with --port, or leave it out") from None
        return int(probe.getsockname()[1])


def _tied(command: Sequence[str]) -> list[str]:
    """The command, ended by the kernel when this process ends: killed by -9 it could not do so itself."""
    return module_command("edge_agent.demo.tied", str(os.getpid()), *command)


def _wait_for_port(port: int, part: Part) -> None:
    for _ in range(200):
        if part.process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
            return
        time.sleep(0.05)
    raise EdgeError(
        f"the broker does not start: {_tail(part.log)}", "demo", "install mosquitto, or amqtt for this Python"
    )


def _tail(log: Path) -> str:
    return " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:]) or "it said nothing"


def stay(broker: Broker, check: Callable[[], None]) -> None:
    """Keep everything running until Ctrl-C, or until `check` raises EdgeError because something has ended."""
    say("stay", f"broker on 127.0.0.1:{broker.port}, Ctrl-C ends both")
    if broker.websockets is not None:
        say("console", f"edge-agent console --broker ws://127.0.0.1:{broker.websockets}   (in a browser)")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(LOOK_S)
            check()


def call(command: Sequence[str], capture: bool = False) -> bytes:
    """Run a command as a user would; returns what it printed where `capture`. Raises EdgeError when it fails."""
    stdout = subprocess.PIPE if capture else None
    done = subprocess.run(_tied(command), stdout=stdout, check=False, env=child_environment(os.environ))
    return _ended(command, done.returncode, done.stdout or b"")


def _ended(command: Sequence[str], code: int, printed: bytes) -> bytes:
    if code == 130:
        raise KeyboardInterrupt
    if code != 0:
        raise EdgeError(f"`{' '.join(command[1:5])} ...` failed, see above", "demo")
    return printed


_HELD_LINES = 200
_MEANWHILE_NICENESS = 10


class Beside:
    """A command at work while its caller does something else. Its progress lines are held back until `result`."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process = subprocess.Popen(
            _tied(["nice", "-n", str(_MEANWHILE_NICENESS), *command]),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=child_environment(os.environ),
        )  # fmt: skip
        self._lock = threading.Lock()
        self._held: deque[str] | None = deque(maxlen=_HELD_LINES)
        self._printed = b""
        self._readers = [threading.Thread(target=self._follow), threading.Thread(target=self._read)]
        for reader in self._readers:
            reader.start()

    def result(self) -> bytes:
        """Show its progress, wait for its end, return what it printed. Raises EdgeError when it fails."""
        with self._lock:
            held, self._held = self._held or (), None
            for line in held:
                _show(line)
        for reader in self._readers:
            reader.join()
        return _ended(self._command, self._process.wait(), self._printed)

    def close(self) -> None:
        """End it where it is still at work."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for reader in self._readers:
            reader.join()

    def _follow(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 - it is a pipe
        with self._process.stderr as stream:
            for data in stream:
                line = data.decode(errors="replace")
                with self._lock:
                    if self._held is None:
                        _show(line)
                    else:
                        self._held.append(line)

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        with self._process.stdout as stream:
            self._printed = stream.read()


def _show(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()


@contextlib.contextmanager
def beside(command: Sequence[str]) -> Iterator[Beside]:
    """Run a command at low priority while the block goes on; it is ended with the block."""
    running = Beside(command)
    try:
        yield running
    finally:
        running.close()


def say(step: str, text: str) -> None:
    """Print one line about the step that begins."""
    print(f"[{step:>7}] {text}", flush=True)
