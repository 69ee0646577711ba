"""Carries out the orders to the device over MQTT; their names and bodies are `protocol.messages.ORDERS`.

One order is carried out at a time, beside the requests; a second one is refused with a time to try again. Changes of
the store run in a process of their own (`Operator`), so that the daemon never loads the signature library. Their events
are sent when the daemon sees the store changed (`agent.store_changes`), as for changes by a command on the board.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec import UnsetType

from edge_agent.agent.context import Context
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.served_model import ServedModel
from edge_agent.base.causes import Cause
from edge_agent.base.errors import EdgeError, RequestError
from edge_agent.core.model_lifecycle import DrainReason, ModelState
from edge_agent.protocol import encode
from edge_agent.protocol.decode import Command
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.messages import AdapterOrder, CommandReply, InstallOrder, ModelOrder, RemoveOrder
from edge_agent.protocol.trial_terms import trial_text

log = logging.getLogger("edge_agent")
REMEMBERED = 64
"""Commands whose ids and answers are kept until their deadline: more than a broker can deliver twice."""
BUSY_S = 5.0
STATUSES = {
    Cause.UNKNOWN_MODEL: 404,
    Cause.UNKNOWN_ADAPTER: 404,
    Cause.EXPIRED: 408,
    Cause.BUSY: 429,
    Cause.WORKER_FAILED: 500,
    Cause.AGENT_ERROR: 500,
    Cause.MEMORY: 503,
}
"""The status of an order that failed, by the cause; of the others 422."""


@dataclass(slots=True)
class _Taken:
    """A command that was begun: when its id may be used again (monotonic seconds), and its answer once there is one."""

    until_s: float
    answer: Outbound | None = None

    def keep(self, answer: Outbound) -> None:
        """The command was answered; a second delivery gets the same answer."""
        self.answer = answer


FetchedBytes = Callable[[int, int], None]
"""Bytes that were fetched, and of how many."""


class Operator(Protocol):
    """Changes to the store, carried out by another process, in `limit_s` seconds at most (None: the limit of orders);
    `app.StoreProcess`. Raises StoreError, PackageError."""

    async def install(
        self, package: str, limit_s: float | None = None, digest: str | None = None, trial: str = ""
    ) -> Mapping[str, Any]:
        """Install a package that lies in the incoming folder, by file name; `digest`: only the one with this digest of
        its index, whatever the file has become meanwhile."""
        ...

    async def install_from(
        self, path: str, digest: str, limit_s: float | None = None, trial: str = ""
    ) -> Mapping[str, Any]:
        """Install the package with this digest of its index from a file that stays where it is, on a stick."""
        ...

    async def fetch(
        self,
        url: str,
        digest: str,
        limit_s: float | None = None,
        progress: FetchedBytes | None = None,
        trial: str = "",
    ) -> Mapping[str, Any]:
        """Install the package with this digest of its index from a server. A download that was under way when its time
        ran out fails with the cause SOURCE: what was fetched is kept, and says nothing against the package."""
        ...

    async def remove(self, model: str, adapter: str | None, limit_s: float | None = None) -> Mapping[str, Any]:
        """Remove a model or one adapter of it."""
        ...

    async def rollback(self, model: str, limit_s: float | None = None, trial: str = "") -> Mapping[str, Any]:
        """Return a model to the version before; with `trial` as after an install."""
        ...

    async def promote(self, model: str, limit_s: float | None = None) -> Mapping[str, Any]:
        """Have the version on trial answer from now on."""
        ...


class Commands:
    """Carries out orders and answers them."""

    def __init__(
        self, context: Context, manager: ModelManager, operator: Operator, diagnose: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._context = context
        self._manager = manager
        self._operator = operator
        self._diagnose = diagnose
        self._running: asyncio.Task[None] | None = None
        self._taken: OrderedDict[tuple[str, str], _Taken] = OrderedDict()

    async def take(self, command: Command) -> None:
        """Begin a command; the answer follows when it is done. A command that is delivered again is not done again."""
        key = (command.client or "", command.id)
        taken = self._taken.get(key)
        if taken is not None and self._context.clock.monotonic_s() < taken.until_s:
            if taken.answer is not None and command.reply is not None:
                self._context.send_expendable(taken.answer, command.reply)
            return
        if self._running is not None and not self._running.done():
            refused = RequestError(429, Cause.BUSY, "another command is being carried out", BUSY_S)
            self._answer(command, refused)
            return
        if command.id:
            self._taken[key] = _Taken(command.deadline_s)
            if len(self._taken) > REMEMBERED:
                self._taken.popitem(last=False)
        self._running = asyncio.create_task(self._carry_out(command), name=f"command-{command.name}")
        self._running.add_done_callback(functools.partial(self._ended, command))

    async def close(self) -> None:
        """Stop waiting for the running command and answer it; what another process does for it goes on."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _carry_out(self, command: Command) -> None:
        try:
            result = await self._actions()[command.name](command)
        except RequestError as error:
            self._answer(command, error)
        except EdgeError as error:
            retry_after_s = BUSY_S if error.cause is Cause.BUSY else None
            self._answer(command, RequestError(STATUSES.get(error.cause, 422), error.cause, str(error), retry_after_s))
            self._context.announce("command-failed", f"{command.name}: {error}", {"command": command.name}, "error")
        else:
            self._answer(command, None, result)

    def _ended(self, command: Command, task: asyncio.Task[None]) -> None:
        """Answer an order that ended by an unforeseen error, or because the device stops."""
        if task.cancelled():
            reason = "the device is stopping; diag says afterwards whether the order was carried out"
            self._answer(command, RequestError(503, Cause.UNAVAILABLE, reason))
            return
        if (error := task.exception()) is not None:
            reason = f"{command.name} ended by an error of the agent: {type(error).__name__}"
            self._answer(command, RequestError(500, Cause.AGENT_ERROR, reason))
            log.error("%s ended: %r", task.get_name(), error, exc_info=error)

    def _actions(self) -> Mapping[str, Callable[[Command], Awaitable[Mapping[str, Any]]]]:
        return {
            "install": self._install,
            "remove": self._remove,
            "rollback": self._rollback,
            "promote": self._promote,
            "load": self._load,
            "unload": self._unload,
            "attach": self._attach,
            "detach": self._detach,
            "diag": self._diag,
        }

    async def _install(self, command: Command) -> Mapping[str, Any]:
        body = _body(command, InstallOrder)
        trial = "" if isinstance(body.trial, UnsetType) else trial_text(body.trial)
        return await self._operator.install(body.package, trial=trial)

    async def _remove(self, command: Command) -> Mapping[str, Any]:
        body = _body(command, RemoveOrder)
        return await self._of(body.model, self._operator.remove(body.model, body.adapter))

    async def _rollback(self, command: Command) -> Mapping[str, Any]:
        body = _body(command, ModelOrder)
        return await self._of(body.model, self._operator.rollback(body.model))

    async def _promote(self, command: Command) -> Mapping[str, Any]:
        body = _body(command, ModelOrder)
        return await self._of(body.model, self._operator.promote(body.model))

    async def _of(self, model: str, change: Awaitable[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Change a model in the store. A model that is not served may still lie damaged in the store, so the store
        decides whether it exists."""
        try:
            return await change
        except EdgeError as error:
            if model in self._manager.served_models:
                raise
            raise RequestError(404, Cause.UNKNOWN_MODEL, str(error)) from error

    async def _load(self, command: Command) -> Mapping[str, Any]:
        """Load a model; lifts its quarantine first."""
        served = self._served(_body(command, ModelOrder).model)
        if served.lifecycle.state is ModelState.QUARANTINED:
            served.lifecycle.lift_quarantine()
            text = f"model {served.name!r} may be loaded again: quarantine lifted by cmd/load"
            self._context.announce("quarantine-lifted", text, {"model": served.name}, "info")
        self._manager.lift(served)
        async with at_rest(served):
            await self._manager.ensure_loaded(served)
        served.wake_up()
        return {"footprint_bytes": served.footprint_bytes, "load_s": round(served.lifecycle.load_s, 3)}

    async def _unload(self, command: Command) -> Mapping[str, Any]:
        served = self._served(_body(command, ModelOrder).model)
        async with at_rest(served):
            await self._manager.unload(served)
        return {}

    async def _attach(self, command: Command) -> Mapping[str, Any]:
        body = _body(command, AdapterOrder)
        served = self._served(body.model)
        async with at_rest(served):
            await self._manager.ensure_loaded(served)
            await served.ensure_attached(body.adapter)
        return {"attached": list(served.attached)}

    async def _detach(self, command: Command) -> Mapping[str, Any]:
        body = _body(command, AdapterOrder)
        served = self._served(body.model)
        async with at_rest(served):
            if served.worker is not None and body.adapter in served.attached:
                await served.worker.detach(body.adapter)
        return {"attached": list(served.attached)}

    async def _diag(self, _command: Command) -> Mapping[str, Any]:
        return self._diagnose()

    def _served(self, model: str) -> ServedModel:
        served = self._manager.served_models.get(model)
        if served is None:
            raise RequestError(404, Cause.UNKNOWN_MODEL, f"no model {model!r} on this device")
        return served

    def _answer(self, command: Command, error: RequestError | None, result: Mapping[str, Any] | None = None) -> None:
        if command.reply is None:
            return
        # Unlike requests, orders are answered after their deadline, too: they were carried out.
        remaining_s = max(1.0, command.deadline_s - self._context.clock.monotonic_s())
        limit = self._context.transport.payload_limit
        if error is None:
            body = CommandReply(id=command.id, status=200, result=result)
            message = encode.reply(body, command.reply, remaining_s, limit)
        else:
            message = encode.refusal(error, command.reply, remaining_s, CommandReply, limit)
        key = (command.client or "", command.id)
        busy = error is not None and error.status == 429
        if key in self._taken and not busy:
            self._taken[key].keep(message)
        if busy:
            self._context.send_expendable(message, command.reply)
        else:
            self._context.transport.publish(message)


@contextlib.asynccontextmanager
async def at_rest(served: ServedModel) -> AsyncIterator[None]:
    """Hold the served model's lock. A generator that always has requests would never release it: it drains first."""
    served.lifecycle.drain(DrainReason.ORDER)
    try:
        async with served.lock:
            yield
    finally:
        served.lifecycle.resume(DrainReason.ORDER)
        served.wake_up()


def _body(command: Command, kind: type[Any]) -> Any:
    if not isinstance(command.body, kind):
        raise RequestError(422, Cause.INVALID, f"the body of {command.name!r} does not fit")
    return command.body
