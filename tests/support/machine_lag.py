"""How late this machine lets a waiting program run, measured beside a test: other programs may hold its few cores.

A bound on a delay that holds on an idle machine is widened by what was measured, so that such a test fails for what
the device does and not for what the machine does. On an idle machine the lags are below 5 ms.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

TICK_S = 0.01


class MachineLag:
    """`with MachineLag() as lag:` measures, in a thread, by how much sleeps of 10 ms end too late."""

    def __init__(self) -> None:
        self._lags_s: list[float] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> MachineLag:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _tick(self) -> None:
        while not self._stopped.is_set():
            began_s = time.monotonic()
            time.sleep(TICK_S)
            self._lags_s.append(time.monotonic() - began_s - TICK_S)

    @property
    def mean_s(self) -> float:
        """The mean lag."""
        return sum(self._lags_s) / max(1, len(self._lags_s))

    @property
    def most_s(self) -> float:
        """The largest lag."""
        return max(self._lags_s, default=0.0)
