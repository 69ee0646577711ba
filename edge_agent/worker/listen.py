"""The child's ear while it computes: a cancel is heard inside a step, and everything else waits for its end.

Only for sessions whose steps can be interrupted (generators): one thread that reads frames into a bounded queue. The
child's own thread takes them from there, in order, as it takes them from the channel otherwise.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from edge_agent.base.errors import WorkerError
from edge_agent.base.limits import WORKER_BACKLOG_FRAMES
from edge_agent.protocol.worker_messages import AnyRequest, CancelJob
from edge_agent.worker.wire import Channel, UnknownRequest

Request = AnyRequest | UnknownRequest


class Listener:
    """Reads a channel in a thread of its own. `on_cancel` is called there, with a job's id."""

    def __init__(self, channel: Channel, on_cancel: Callable[[str], object]) -> None:
        self._channel = channel
        self._on_cancel = on_cancel
        self._frames: queue.Queue[Request | Exception] = queue.Queue(maxsize=WORKER_BACKLOG_FRAMES)
        threading.Thread(target=self._listen, name="listener", daemon=True).start()

    def receive(self, timeout_s: float | None) -> Request | None:
        """See `Channel.receive`."""
        try:
            found = self._frames.get(timeout_s != 0.0, timeout_s or None)
        except queue.Empty:
            return None
        if isinstance(found, Exception):
            raise found
        return found

    def _listen(self) -> None:
        try:
            while True:
                request = self._channel.receive(None)
                if request is None:
                    continue
                if isinstance(request, CancelJob):
                    self._on_cancel(request.id)
                self._frames.put(request)
        except (EOFError, OSError, WorkerError) as error:
            # The child's own thread meets it as if it had read the channel itself, and ends.
            self._frames.put(error)
