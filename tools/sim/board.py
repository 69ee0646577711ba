"""A simulated board in real time: `python -m sim.board --board pi-5-bare --root DIR`.

Updates the files under DIR (see `sim.sysfs`) from a thermal plant; with --jtop it also serves the jtop protocol. The
load is the number in DIR/load (0 to 1, which can be edited at any time) or, with --follow PID, the processor time of
that process and its children relative to the cores of this machine, so that a running agent heats the board that it
reads. The memory of these processes, and the MiB in DIR/others for other programs, is missing on the board. While a
file DIR/jtop-frozen exists, the jtop service repeats its last sample.

    python -m sim.board --board orin-nano --root /tmp/board --run edge-agent run --config agent.toml

starts the command with `--sysroot DIR` on the board that it heats, and ends with it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from edge_agent.sensors.memory import parse_meminfo
from sim.boards import BOARDS, BoardModel
from sim.plant import Plants
from sim.procfs import Used
from sim.sysfs import BoardTree, Shown

STEPS = 4
NOTHING = Used()


class LiveBoard:
    """A plant and its files; `second` advances both. `shown`: what the sensors show."""

    def __init__(self, model: BoardModel, root: Path, ambient_c: float = 25.0, cooling: float = 1.0) -> None:
        self.model = model
        self.plant = Plants([model], np.array([ambient_c]), np.array([cooling]), seed=0)
        self.tree = BoardTree(root, model)
        self._seen_flags = 0
        self.shown = self._show(1.0)
        self.tree.update(self.shown)

    def second(self, load: float, requested: float = 1.0, used: Used = NOTHING) -> Shown:
        """Advance by a second at this share of full dynamic power, this requested clock (at most the cap) and this
        memory.
        """
        requested = min(requested, self.tree.cap())
        self.plant.second()
        for _ in range(STEPS):
            self.plant.step(np.array([load]), np.array([requested]), 1.0 / STEPS)
        self.shown = self._show(requested)
        self.tree.update(self.shown)
        self.tree.proc.pass_time(used, 1.0)
        return self.shown

    def _show(self, requested: float) -> Shown:
        levels = max(1, len(self.model.fan.k_per_w) - 1)
        return Shown(
            float(self.plant.sensor_c[0]),
            float(self.plant.power_w[0]),
            float(self.plant.clock[0]),
            requested,
            int(self.plant.fan[0]) / levels,
            self._flags(),
        )

    def _flags(self) -> int:
        """The throttle word now: each bit with its bit for 'since boot' (bits 16 to 19)."""
        now = int(self.plant.flags[0])
        self._seen_flags |= now << 16
        return now | self._seen_flags


def _read_figure(path: Path, most: float) -> float:
    try:
        return max(0.0, min(float(path.read_text()), most))
    except (OSError, ValueError):
        return 0.0


class Follower:
    """The load of a process tree on this machine (0 to 1 of all cores), and its memory."""

    def __init__(self, pid: int) -> None:
        import psutil

        self._psutil = psutil
        self._process = psutil.Process(pid)
        self._used: dict[int, float] = {}
        self._at_s = time.monotonic()

    def load(self) -> float:
        """The load since the last call."""
        now_s = time.monotonic()
        spent_s, used = 0.0, {}
        try:
            for process in (self._process, *self._process.children(recursive=True)):
                times = process.cpu_times()
                used[process.pid] = times.user + times.system
                spent_s += used[process.pid] - self._used.get(process.pid, used[process.pid])
        except self._psutil.Error:
            return 0.0
        share = spent_s / max(1e-3, now_s - self._at_s) / (self._psutil.cpu_count() or 1)
        self._used, self._at_s = used, now_s
        return float(max(0.0, min(share, 1.0)))

    def held(self) -> Used:
        """PSS by the real kernel, of the processes that `load` found last."""
        texts: dict[int, str] = {}
        for pid in self._used:
            with contextlib.suppress(OSError):
                texts[pid] = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return Used(sum(int(parse_meminfo(text).get("Pss", 0.0)) // 1024 for text in texts.values()), texts)


def main() -> int:
    """Run until interrupted or terminated; a started command is ended as well."""
    parser = argparse.ArgumentParser(
        prog="sim.board", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--board", choices=sorted(BOARDS), default="pi-5-bare")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--ambient", type=float, default=25.0, help="°C")
    parser.add_argument("--cooling", type=float, default=1.0, help="factor on the sink's resistance")
    parser.add_argument("--speed", type=float, default=1.0, help="simulated seconds per second")
    parser.add_argument("--follow", type=int, metavar="PID")
    parser.add_argument("--jtop", type=Path, metavar="SOCKET")
    parser.add_argument("--run", nargs=argparse.REMAINDER, metavar="COMMAND", help="start this on the board")
    options = parser.parse_args()
    options.root.mkdir(parents=True, exist_ok=True)
    live = LiveBoard(BOARDS[options.board], options.root, options.ambient, options.cooling)
    # Set before the command is started: a signal in between would leave the command running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = None
    try:
        if options.run:
            started = subprocess.Popen([*options.run, "--sysroot", str(options.root)])
        _live_on(live, options, started)
    except KeyboardInterrupt:
        return 130
    finally:
        if started is not None:
            started.terminate()
            started.wait()
    return 0


def _live_on(live: LiveBoard, options: argparse.Namespace, started: subprocess.Popen[bytes] | None) -> None:
    """Advance the board until the started command ends."""
    followed = started.pid if started else options.follow
    follower = Follower(followed) if followed else None

    def beat() -> None:
        while started is None or started.poll() is None:
            time.sleep(1.0 / options.speed)
            load = follower.load() if follower else _read_figure(options.root / "load", 1.0)
            held = follower.held() if follower else NOTHING
            others_kib = int(1024 * _read_figure(options.root / "others", 1e6))
            shown = live.second(load, used=held._replace(kib=held.kib + others_kib))
            print(
                f"load {load:.2f}  {shown.temperature_c:.1f} °C  {shown.power_w:.1f} W  clock {shown.clock:.2f}",
                flush=True,
            )
        # The jtop service never returns, so the process exits here with the status of the command.
        os._exit(started.returncode)

    print(f"{live.model.name} under {options.root}", flush=True)
    if options.jtop is None:
        beat()
        return
    from sim.jtop_service import JtopService

    service = JtopService(options.jtop, live.model, lambda: live.shown, 1.0 / options.speed)
    service.froze = (options.root / "jtop-frozen").exists
    threading.Thread(target=beat, daemon=True).start()
    service.run()


if __name__ == "__main__":
    raise SystemExit(main())
