"""The demo asks again while the daemon has not looked at its store since the install, and not for ever."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from edge_agent.base.causes import Cause
from edge_agent.base.errors import EdgeError
from edge_agent.demo import show
from edge_agent.protocol.messages import Reply

NOT_YET = Reply(id="1", status=404, reason="no such adapter", cause=Cause.UNKNOWN_ADAPTER.value)


class LateClient:
    """Refuses the first `late` requests as a daemon does that has not seen the adapter yet."""

    def __init__(self, late):
        self.late, self.asked = late, 0

    async def infer(self, *_):
        self.asked += 1
        return NOT_YET if self.asked <= self.late else Reply(id="1", status=200)

    async def stream(self, *_):
        self.asked += 1
        yield NOT_YET if self.asked <= self.late else SimpleNamespace(text="on", done=True, usage=None)


def test_an_adapter_that_is_taken_over_late_is_asked_again(monkeypatch, capsys):
    monkeypatch.setattr(show, "LOOK_AGAIN_S", 0.0)
    client = LateClient(2)
    assert asyncio.run(show._ask(client, "b", "a", "text"))["status"] == 200 and client.asked == 3
    client = LateClient(2)
    asyncio.run(show._stream(client, "a", "text", time.monotonic() + 60.0))
    assert client.asked == 3 and "on" in capsys.readouterr().out


def test_one_that_never_comes_ends_the_demo(monkeypatch):
    monkeypatch.setattr(show, "TAKE_OVER_S", -1.0)
    with pytest.raises(EdgeError, match="no such adapter"):
        asyncio.run(show._ask(LateClient(9), "b", "a", "text"))
    with pytest.raises(EdgeError, match="no such adapter"):
        asyncio.run(show._stream(LateClient(9), "a", "text", time.monotonic() - 1.0))
