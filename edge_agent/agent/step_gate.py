"""Waiting for one's turn to compute: the rests of `pace`, waited for. No lock is held meanwhile."""

from __future__ import annotations

import asyncio
import contextlib

from edge_agent.agent.context import Context
from edge_agent.agent.served_model import ServedModel
from edge_agent.core.duty_cycle import LEAST_PAUSE_S

CHECK_EVERY_S = 0.5


class StepGate:
    """Lets served models wait until their next step may begin."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._over = asyncio.Event()

    def may_begin(self, served: ServedModel) -> bool:
        """Whether the served model's next step may begin now."""
        return self._pause_s(served) <= LEAST_PAUSE_S

    async def wait(self, served: ServedModel) -> None:
        """Return when the served model's next step may begin. Looked at again twice a second, since the grant
        changes.
        """
        self._context.duty_cycle.wait(served.name)
        try:
            while not served.gone and (pause_s := self._pause_s(served)) > LEAST_PAUSE_S:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._over.wait(), min(pause_s, CHECK_EVERY_S))
        finally:
            self._context.duty_cycle.leave(served.name)
            self.over()

    def over(self) -> None:
        """A turn is over, or was not taken: who waits looks again."""
        self._over.set()
        self._over = asyncio.Event()

    def _pause_s(self, served: ServedModel) -> float:
        now_s = self._context.clock.monotonic_s()
        return self._context.duty_cycle.pause_s(served.name, self._context.grant, now_s, served.generates)
