"""What clients send: requests of all kinds, retries, cancels, orders, and nonsense."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, Any

from edge_agent.protocol.envelope import Inbound
from tests.support.whole.request_log import Ask

if TYPE_CHECKING:
    from tests.support.whole.world import World

PREFIX, DEVICE = "edge/v1", "dev"
HOSTILE, HOG = "hostile", "hog"
NONSENSE = (
    b"", b"{", b"[]", b'{"text": 3}', b'{"text": "a", "wish": 1}', b'{"text": "a", "texts": ["b"]}', b"\xff\xfe",
    b'{"text": "a", "priority": 99}', b'{"text": "a", "deadline_s": -1}', b'{"text": "a", "text": "b"}',
    b'{"prompt": "a"}', b'{"texts": []}', b'{"text": ' + b"[" * 40 + b"]" * 40 + b"}",
)  # fmt: skip


class Clients:
    """Sends through the broker, and notes in the request log what it asked."""

    def __init__(self, world: World, dice: random.Random) -> None:
        self._world = world
        self._dice = dice
        self._count = 0
        self.per_s = dice.choice((1.0, 3.0, 10.0, 30.0))
        self._hurried = dice.random() < 0.5

    async def traffic(self, seconds: float) -> None:
        """Requests at random moments (Poisson), for so long."""
        until_s = self._world.clock.monotonic_s() + seconds
        while self._world.clock.monotonic_s() < until_s:
            self._one()
            await asyncio.sleep(self._dice.expovariate(self.per_s))

    def _one(self) -> None:
        draw = self._dice.random()
        if draw < 0.85:
            self.request()
        elif draw < 0.90:
            self._retry()
        elif draw < 0.94:
            self._cancel()
        elif draw < 0.97:
            self._nonsense()
        else:
            self._order()

    def request(self, model: str | None = None, wait_s: float | None = None) -> Ask:
        """A request, well formed; its model or adapter may be unknown when none is asked for by name."""
        dice = self._dice
        names = [one.name for one in self._world.installed]
        chosen = model or dice.choice([*names * 8, "unknown"])
        adapter = None if model else dice.choice((None, None, None, *"aaabbc", "unknown"))
        texts = tuple(f"t{self._count}.{row}" for row in range(dice.choice((1, 1, 1, 2, 5, 20))))
        body: dict[str, Any] = {"text": texts[0]} if len(texts) == 1 else {"texts": texts}
        body |= {"adapter": adapter} if adapter else {}
        body |= {"priority": dice.randrange(10)} if dice.random() < 0.5 else {}
        wait_s = wait_s or dice.choice((0.05, 0.5, 2.0, 8.0) if self._hurried else (2.0, 8.0, 30.0))
        client = f"c{dice.randrange(4)}"
        ask = self._note(client, texts, adapter, wait_s)
        if chosen.startswith("g"):
            ask.texts, ask.prompt = texts[:1], True
            shape = {key: body[key] for key in ("adapter", "priority") if key in body}
            body = {"prompt": texts[0], "stream": dice.random() < 0.7} | shape
        old = dice.random() < 0.2
        if old:
            body |= {"id": ask.key[1], "reply_to": f"{PREFIX}/client/{client}/reply/x", "deadline_s": wait_s}
        self._send(f"infer/{chosen}", json.dumps(body).encode(), ask, old)
        return ask

    def order(self, name: str, body: dict[str, Any], wait_s: float = 60.0) -> Ask:
        """A command."""
        ask = self._note("ops", (), None, wait_s)
        ask.order = True
        self._send(f"cmd/{name}", json.dumps(body).encode(), ask, old=False)
        return ask

    def flood(self, kind: str, count: int, qos: int) -> None:
        """So many messages of a hostile client at once. Silence may be the answer to any of them."""
        again = self._note(HOSTILE, ("again",), None, 8.0)
        for _ in range(count):
            ask = again if kind == "again" else self._note(HOSTILE, ("x",), None, 8.0)
            ask.well_formed = False
            if kind == "cancel":
                self._send("cancel", b'{"id": "nothing"}', ask, old=False, qos=qos)
            else:
                names = [one.name for one in self._world.installed]
                model = names[0] if kind == "again" else "nobody"
                self._send(f"infer/{model}", b'{"text": "again"}', ask, old=False, qos=qos)

    async def modest(self, seconds: float) -> list[Ask]:
        """Two clients with requests of one text, about two a second, that wait for eight seconds; returns them."""
        dice, asked, until_s = self._world.dice("modest"), list[Ask](), self._world.clock.monotonic_s() + seconds
        while self._world.clock.monotonic_s() < until_s:
            model = dice.choice(self._world.installed).name
            ask = self._note(dice.choice(("c0", "c1")), (f"m{len(asked)}",), None, 8.0)
            ask.prompt = model.startswith("g")
            body = {"prompt" if ask.prompt else "text": ask.texts[0]}
            self._send(f"infer/{model}", json.dumps(body).encode(), ask, old=False)
            asked.append(ask)
            await asyncio.sleep(dice.expovariate(2.0))
        return asked

    async def hog(self, seconds: float, priority: int) -> None:
        """A client with valid requests, as large and as many as are taken, that have all the time in the world. It has
        dice of its own, so that the others send the same beside it as without it."""
        dice, number, until_s = self._world.dice("hog"), 0, self._world.clock.monotonic_s() + seconds
        while self._world.clock.monotonic_s() < until_s:
            for _ in range(dice.choice((1, 5, 25))):
                number += 1
                model, now_s = dice.choice(self._world.installed).name, self._world.clock.monotonic_s()
                ask = Ask((HOG, f"h{number}"), ("hog",) * 20, None, now_s, now_s + 60.0, well_formed=False)
                if model.startswith("g"):
                    ask.texts, ask.prompt = ("hog",), True
                body: dict[str, Any] = {"prompt": "hog"} if ask.prompt else {"texts": ask.texts}
                self._world.request_log.asks[ask.key] = ask
                qos = dice.choice((0, 1))
                self._send(
                    f"infer/{model}", json.dumps(body | {"priority": priority}).encode(), ask, old=False, qos=qos
                )
            await asyncio.sleep(dice.expovariate(5.0))

    def _note(self, client: str, texts: tuple[str, ...], adapter: str | None, wait_s: float) -> Ask:
        self._count += 1
        now_s = self._world.clock.monotonic_s()
        ask = Ask((client, f"r{self._count}"), texts, adapter, now_s, now_s + wait_s)
        self._world.request_log.asks[ask.key] = ask
        return ask

    def _retry(self) -> None:
        """The same request again, as a client does that heard nothing."""
        recent = list(self._world.sent.items())[-20:]
        if recent:
            key, message = self._dice.choice(recent)
            ask = self._world.request_log.asks[key]
            if not ask.order and ask.due_s > self._world.clock.monotonic_s():
                ask.sends += 1
                self._world.broker.send(message, ask.due_s)

    def _cancel(self) -> None:
        recent = list(self._world.request_log.asks.values())[-10:]
        if recent:
            ask = self._dice.choice(recent)
            ask.cancelled = True
            message = Inbound(
                f"{PREFIX}/{DEVICE}/cancel",
                json.dumps({"id": ask.key[1]}).encode(),
                qos=1,
                response_topic=f"{PREFIX}/client/{ask.key[0]}/reply/x",
            )
            self._world.broker.send(message, self._world.clock.monotonic_s() + 30.0)

    def _nonsense(self) -> None:
        dice = self._dice
        ask = self._note("c0", (), None, 5.0)
        ask.well_formed = False
        self._send(
            dice.choice(("infer/m0", "infer/", "cmd/load", "cmd/x", "desired", "status")),
            dice.choice(NONSENSE),
            ask,
            old=False,
            response_topic=dice.choice((None, "edge/v1/#", "$SYS/x", f"{PREFIX}/client/c0/reply/x")),
            retained=dice.random() < 0.3,
        )

    def _order(self) -> None:
        dice = self._dice
        name = dice.choice(("load", "unload", "attach", "detach", "rollback", "diag", "install", "remove"))
        body = {"model": dice.choice([*(one.name for one in self._world.installed), "unknown"])}
        if name in {"attach", "detach"}:
            body["adapter"] = dice.choice(("a", "b", "unknown"))
        if name == "diag":
            body = {}
        if name == "install":
            body = {"package": "p.tar"}
        self.order(name, body, dice.choice((1.0, 30.0)))

    def _send(self, tail: str, payload: bytes, ask: Ask, old: bool, **more: Any) -> None:
        fields: dict[str, Any] = {"qos": 1, "content_type": "application/json"}
        if not old:
            fields |= {"response_topic": f"{PREFIX}/client/{ask.key[0]}/reply/x", "correlation": ask.key[1].encode()}
        message = Inbound(f"{PREFIX}/{DEVICE}/{tail}", payload, **(fields | more))
        if ask.well_formed and not ask.order:
            self._world.sent[ask.key] = message
        ask.sends += 1
        self._world.broker.send(message, ask.due_s)
