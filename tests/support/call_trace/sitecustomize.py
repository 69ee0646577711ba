"""Notes which functions of edge_agent a process calls between SIGUSR1 and SIGUSR2; for tests only.

Python imports this module at its start where its folder is on PYTHONPATH. `CALL_TRACE` names the output: each SIGUSR2
writes `{CALL_TRACE}.{pid}.{n}`, one line `path<TAB>function` for every function called since the last SIGUSR1.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

_OUT = os.environ.get("CALL_TRACE", "")
_PACKAGE = "/edge_agent/"


class _Trace:
    """The functions called while it is on, in the order of their first call."""

    def __init__(self) -> None:
        self._called: dict[tuple[str, str], None] = {}
        self._on = False
        self._written = 0

    def note(self, frame: FrameType, event: str, _argument: Any) -> None:
        """The profiler's hook."""
        if self._on and event == "call":
            code = frame.f_code
            _, package, module = code.co_filename.rpartition(_PACKAGE)
            if package:
                self._called[f"edge_agent/{module}", code.co_name] = None

    def start(self, *_: object) -> None:
        """SIGUSR1."""
        self._called.clear()
        self._on = True

    def stop(self, *_: object) -> None:
        """SIGUSR2."""
        self._on = False
        lines = [f"{module}\t{function}\n" for module, function in self._called]
        Path(f"{_OUT}.{os.getpid()}.{self._written}").write_text("".join(lines), encoding="utf-8")
        self._written += 1


if _OUT:
    _trace = _Trace()
    signal.signal(signal.SIGUSR1, _trace.start)
    signal.signal(signal.SIGUSR2, _trace.stop)
    sys.setprofile(_trace.note)
    threading.setprofile(_trace.note)
