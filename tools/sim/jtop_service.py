"""A small jtop service, which the real `jtop` client of jetson-stats reads over the real protocol.

The protocol (jetson-stats 7.2, from its source): a SyncManager on a Unix socket with a constant key and three
callables, `get_queue`, `sync_data` and `sync_event`. A client puts {'interval': s} into the queue and takes {'init':
...} out of it. Then it waits for the event, copies the data, clears the event, and puts {} as a heartbeat.

jetson-stats is AGPL-3.0; only this simulator and the agent's optional `sensors.jtop` import it. Run it as a process of
its own (`python -m sim.board --jtop SOCKET`), or use `JtopService` in one.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

from sim.boards import BoardModel
from sim.sysfs import CONSTANT_C, IDENTITIES, SWITCHED_OFF, Shown

OFFLINE_C = -256
QUEUE_ITEMS = 64


class _Manager(SyncManager):
    """A class of its own has its own registry, which does not disturb the registration of the jtop client."""


class JtopService:
    """Serves `sample()` once per interval."""

    def __init__(self, socket: Path, model: BoardModel, sample: Callable[[], Shown], interval_s: float = 1.0) -> None:
        """Raises ImportError when jetson-stats is not installed."""
        from jtop.core.common import get_key, get_var
        from jtop.service import VERSION_RE

        self._model, self._sample, self._interval_s = model, sample, interval_s
        self._version = str(get_var(VERSION_RE))
        self._queue: queue.Queue[dict[str, Any]] = queue.Queue(QUEUE_ITEMS)
        self._data: dict[str, Any] = {}
        self._event = threading.Event()
        self._stop = threading.Event()
        self._average_mw = 0
        self.froze: Callable[[], bool] = lambda: False
        _Manager.register("get_queue", callable=lambda: self._queue)
        _Manager.register("sync_data", callable=lambda: self._data)
        _Manager.register("sync_event", callable=lambda: self._event)
        socket.parent.mkdir(parents=True, exist_ok=True)
        socket.unlink(missing_ok=True)
        self._server = _Manager(address=str(socket), authkey=get_key().encode()).get_server()

    def run(self) -> None:
        """Serve in this thread, normally the main thread: the server ends by SystemExit."""
        threading.Thread(target=self._greet, daemon=True).start()
        threading.Thread(target=self._publish, daemon=True).start()
        self._server.serve_forever()

    def _greet(self) -> None:
        while not self._stop.is_set():
            try:
                wish = self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            if "init" in wish:
                self._queue.put(wish)
                time.sleep(0.01)
            elif "interval" in wish:
                self._queue.put({"init": self._init()})

    def _publish(self) -> None:
        while not self._stop.wait(self._interval_s if self._data else 0.0):
            if not self.froze():
                uptime_s = time.clock_gettime(time.CLOCK_BOOTTIME)
                self._data.update(data_of(self._model, self._sample(), self._average_mw) | {"uptime": uptime_s})
                self._average_mw = self._data["power"]["tot"]["avg"]
            self._event.set()

    def _init(self) -> dict[str, Any]:
        hardware = {"Model": IDENTITIES[self._model.board].model, "L4T": "36.4.0", "Jetpack": "6.1"}
        return {
            "version": self._version,
            "board": {"hardware": hardware},
            "interval": self._interval_s,
            "memory": "/swap",
            "fan": {},
            "jc": False,
        }


def data_of(model: BoardModel, shown: Shown, average_mw: int) -> dict[str, Any]:
    """One sample in jtop's format: temperatures by the first word of the zone (-256: offline), mW, kB."""
    identity = IDENTITIES[model.board]
    milliwatts = round(shown.power_w * 1000)
    average_mw = (milliwatts + average_mw) // 2 if average_mw else milliwatts
    temperatures = {}
    for zone in identity.zones:
        if zone in CONSTANT_C:
            continue
        off = zone in SWITCHED_OFF
        value = OFFLINE_C if off else shown.temperature_c
        temperatures[zone.replace("_", "-").split("-")[0]] = {"temp": value, "online": not off}
    compute = max(0, milliwatts - round(model.idle_w * 1000))
    names = ("POM_5V_IN", "POM_5V_CPU") if model.board == "jetson-nano" else ("VDD_IN", "VDD_CPU_GPU_CV")
    highest_khz = model.clocks_mhz[-1] * 1000
    clock = {"min": model.clocks_mhz[0] * 1000, "max": highest_khz, "cur": round(highest_khz * shown.clock)}
    core = {"online": True, "governor": "schedutil", "user": 0.0, "system": 0.0, "idle": 100.0, "freq": clock}
    return {
        "cpu": {"total": {"user": 0.0, "nice": 0.0, "system": 0.0, "idle": 100.0}, "cpu": [core] * model.cores},
        "mem": {
            "RAM": {"tot": identity.total_kib, "used": identity.total_kib // 4, "free": identity.total_kib // 2,
                    "buffers": 0, "cached": identity.total_kib // 4, "shared": 0, "lfb": 100},
            "SWAP": {"tot": 0, "used": 0, "cached": 0, "table": {}},
        },
        "gpu": {}, "engines": {}, "fan": {}, "processes": [], "temperature": temperatures,
        "power": {
            "rail": {names[1]: {"type": "INA3221", "volt": 5000, "curr": compute // 5, "power": compute, "avg": compute,
                                "online": True}},
            "tot": {"name": names[0], "volt": 5000, "curr": milliwatts // 5, "power": milliwatts, "avg": average_mw},
        },
    }  # fmt: skip
