"""Keeps asking for a state folder that cannot be written, while what is installed is served.

A file of its own because it joins the store's hold on the folder with the agent's events, which only the composition
root may do.
"""

from __future__ import annotations

import asyncio

from edge_agent.agent.context import Context
from edge_agent.store.model_store import ModelStore
from edge_agent.store.state_folder import DaemonHold

LOOK_S = 5.0
CONDITION = "state folder"


class StateKeeper:
    """Looks after the state folder. Implements `agent.loop.Background`."""

    def __init__(self, context: Context, hold: DaemonHold, library: ModelStore, trouble: str | None) -> None:
        """`trouble`: what the hold said at the start."""
        self._context = context
        self._hold = hold
        self._library = library
        self._trouble = trouble

    async def run(self) -> None:
        """Look at the folder until cancelled. Raises StoreError when another daemon turned out to work on it."""
        self._note()
        while True:
            await asyncio.sleep(LOOK_S)
            before, self._trouble = self._trouble, self._hold.take()
            if (before is None) is (self._trouble is None):
                continue
            if self._trouble is None:
                self._library.recover()
            self._note()
            self._announce()

    def _note(self) -> None:
        sentence = None if self._trouble is None else f"the state folder cannot be written: {self._trouble}"
        self._context.note_condition(CONDITION, sentence)

    def _announce(self) -> None:
        if self._trouble is None:
            self._context.announce("state-folder", "the state folder can be written again", {"writable": True}, "info")
        else:
            self._context.announce("state-folder", self._trouble, {"writable": False}, "error")
