"""A real mosquitto under the control of a test: started on a free port, stopped, killed, frozen, started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from edge_agent.mqtt.options import MqttOptions, TlsOptions
from tests.support.certificates import Authority, Pair


def find(program: str) -> str:
    """The path of a mosquitto program. Skips the test where there is none, fails it in CI, where it must be."""
    found = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        message = f"{program} is not installed: install the packages mosquitto and mosquitto-clients"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Mosquitto:
    """`with Mosquitto(tmp_path) as broker:` gives a running broker on `broker.port`.

    `users` maps names to passwords (anonymous otherwise), `acl` is the text of an access list, `tls` asks for client
    certificates of that authority, `persistence` keeps sessions and retained messages over restarts, `extra` are lines
    of configuration.
    """

    def __init__(
        self,
        folder: Path,
        *,
        users: Mapping[str, str] | None = None,
        acl: str | None = None,
        tls: Authority | None = None,
        persistence: bool = False,
        nodelay: bool = True,
        extra: Sequence[str] = (),
    ) -> None:
        self.folder = folder / "mosquitto"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._tls = tls
        self._program = find("mosquitto")
        self._process: subprocess.Popen[bytes] | None = None
        lines = [f"listener {self.port} 127.0.0.1", f"set_tcp_nodelay {'true' if nodelay else 'false'}"]
        if os.geteuid() == 0:
            lines.append("user root")
        if persistence:
            lines += ["persistence true", f"persistence_location {self.folder}/", "autosave_interval 1"]
        if acl is not None:
            lines.append(f"acl_file {self._file('acl', acl)}")
        lines += self._authentication(users)
        self.config = self._file("mosquitto.conf", "\n".join([*lines, *extra, "log_type all"]) + "\n")

    def _authentication(self, users: Mapping[str, str] | None) -> list[str]:
        lines = [f"allow_anonymous {'false' if users else 'true'}"]
        if users:
            passwords = self._file("passwords", "")
            for name, password in users.items():
                command = [find("mosquitto_passwd"), "-b", str(passwords), name, password]
                subprocess.run(command, check=True, capture_output=True)
            lines.append(f"password_file {passwords}")
        if self._tls is not None:
            server = self._tls.issue("broker", server=True)
            lines += [f"cafile {self._tls.ca}", f"certfile {server.cert}", f"keyfile {server.key}"]
            lines += ["require_certificate true", "use_identity_as_username true"]
        return lines

    def _file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return path

    @property
    def log(self) -> str:
        """What the broker has said so far."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def options(self, client_id: str, pair: Pair | None = None, **more: object) -> MqttOptions:
        """Settings of a client of this broker; quick to retry, so that tests are."""
        settings: dict[str, object] = {"host": "127.0.0.1", "port": self.port, "client_id": client_id}
        settings |= {"reconnect_base_s": 0.05, "reconnect_cap_s": 0.2, "connect_timeout_s": 3.0}
        if self._tls is not None:
            files = {"cert_file": str(pair.cert), "key_file": str(pair.key)} if pair else {}
            settings["tls"] = TlsOptions(ca_file=str(self._tls.ca), **files)
        return MqttOptions(**(settings | more))  # type: ignore[arg-type]

    def start(self) -> None:
        """Start it and wait until it listens."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", str(self.config)], stdout=log, stderr=log)
        for _ in range(500):
            if self._process.poll() is not None:
                raise RuntimeError(f"mosquitto ended at once: {self.log}")
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)
        raise RuntimeError("mosquitto does not listen after 5 s")

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut does."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop it from running while its sockets stay open."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run again."""
        self._send(signal.SIGCONT)

    def reload(self) -> None:
        """Let it read its access list again."""
        self._send(signal.SIGHUP)

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(timeout=10)
            self._process = None

    def __enter__(self) -> Mosquitto:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
