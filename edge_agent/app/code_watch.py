"""Notices that the code on the disk is not the code that runs: a wheel was installed and the daemon not restarted.

Its workers start from the new files, so daemon and workers would be of two versions. A file of its own because it joins
the stamp of the code with the agent's status, which only the composition root may do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from edge_agent.agent.context import Context

LOOK_S = 60.0
CONDITION = "code"
log = logging.getLogger("edge_agent")


class CodeWatch:
    """Looks at the files of the package. Implements `agent.loop.Background`."""

    def __init__(self, context: Context, runs: str, on_disk: Callable[[], str]) -> None:
        """`runs`: the stamp of the code as the daemon began; `on_disk`: that of the files now, raising OSError while
        they are being replaced (`lifecycle.running_code.code_stamp`)."""
        self._context = context
        self._runs = runs
        self._on_disk = on_disk

    async def run(self) -> None:
        """Look until cancelled; says so when two looks found the same other code, since an upgrade takes a while."""
        before = reported = self._runs
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                now = self._on_disk()
            except OSError:
                continue
            if now == before and now != reported:
                reported = now
                text = f"the daemon runs {self._runs}, on the disk is {now}: restart the service"
                self._context.note_condition(CONDITION, None if now == self._runs else text)
                log.warning("%s", "the code on the disk is that of the daemon again" if now == self._runs else text)
            before = now
