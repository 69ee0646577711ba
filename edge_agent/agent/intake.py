"""What arrives: decode it, recognise duplicates, admit or refuse, queue.

Every message that is not a request is handed on (commands, cancels) or dropped with an event. Nothing here waits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edge_agent.agent.commands import Commands
from edge_agent.agent.context import Context
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.respond import Origin
from edge_agent.agent.served_model import ServedModel
from edge_agent.agent.serving import ModelServer
from edge_agent.base.causes import Cause, Closure
from edge_agent.base.errors import RequestError
from edge_agent.core import admission
from edge_agent.core.forecast import remaining_s, wait_and_compute_s, work_s
from edge_agent.core.grammar_bans import brings_program
from edge_agent.core.job import Job
from edge_agent.core.request_table import RequestStatus
from edge_agent.protocol import encode
from edge_agent.protocol.decode import Bounds, Cancel, Command, Refusal, Request, decode
from edge_agent.protocol.envelope import Inbound
from edge_agent.protocol.messages import CommandReply, Reply
from edge_agent.protocol.topics import CommandTarget

GENERATOR_FORMS = frozenset({"prompt", "messages"})


@dataclass(frozen=True, slots=True)
class IntakeOptions:
    """`queue_jobs` bounds the requests open at once; `bounds` what one message may hold."""

    queue_jobs: int
    bounds: Bounds


class Intake:
    """Takes every inbound message to its end or to the queue."""

    def __init__(
        self,
        context: Context,
        options: IntakeOptions,
        manager: ModelManager,
        server: ModelServer,
        commands: Commands,
    ) -> None:
        self._context = context
        self._options = options
        self._manager = manager
        self._server = server
        self._commands = commands

    async def take(self, message: Inbound) -> None:
        """One message."""
        self._context.acks.hold(message)
        wish = decode(
            message, topics=self._context.topics, now_s=self._context.clock.monotonic_s(), bounds=self._options.bounds
        )
        if isinstance(wish, Request):
            self._take_request(wish, message)
            return
        if isinstance(wish, Refusal):
            self._refuse(wish, message)
        elif isinstance(wish, Cancel):
            self._cancel(wish)
        elif isinstance(wish, Command):
            await self._commands.take(wish)
        self._context.acks.release(message)

    async def close(self) -> None:
        """Give up waiting for a command that is being carried out, and say so."""
        await self._commands.close()

    def _take_request(self, request: Request, message: Inbound) -> None:
        now_s = self._context.clock.monotonic_s()
        key = (request.client, request.id)
        status = self._context.requests.status(key, now_s, _fingerprint(message))
        if status is RequestStatus.NEW:
            self._admit(request, message, now_s)
            return
        if status is RequestStatus.TAKEN:
            reason = "another request of this client with the same id is open; give each its own id or correlation data"
            self._refuse_request(request, admission.Refused(422, Cause.INVALID, reason, None), now_s)
            self._context.acks.release(message)
            return
        self._context.stats.duplicates += 1
        answer = self._context.requests.answer(key)
        if status is RequestStatus.ANSWERED and answer is not None:
            self._context.transport.publish(encode.again(answer, request.reply, request.deadline_s - now_s))
        self._context.acks.release(message)

    def _admit(self, request: Request, message: Inbound, now_s: float) -> None:
        try:
            served = self._served(request)
            check_form(request, served)
            check_program(request, served, now_s)
            job = _job(request, message, served)
            refused = admission.decide(self._load(job, served, now_s), job.deadline_s, now_s, self._closed())
            if refused is not None and refused.cause is Cause.DEADLINE:
                self._server.demand(served, now_s)
        except RequestError as error:
            refused = admission.Refused(error.status, error.cause, error.reason, error.retry_after_s)
        if refused is not None:
            self._refuse_request(request, refused, now_s)
            self._context.acks.release(message)
            return
        self._context.requests.open(job)
        served.priority_load.note(job.priority, job.deadline_s - now_s, self._work_s(job, served), now_s)
        self._server.add(served, job)

    def _closed(self) -> Closure | None:
        return self._context.grant.closed or self._manager.closed

    def _served(self, request: Request) -> ServedModel:
        served = self._manager.served_models.get(request.model)
        if served is None:
            reason = f"no model {request.model!r} on this device; {_names(self._manager.served_models)}"
            raise RequestError(404, Cause.UNKNOWN_MODEL, reason)
        if request.adapter is not None and served.model.adapter(request.adapter) is None:
            names = _names({adapter.name: adapter for adapter in served.model.adapters})
            reason = f"model {served.name!r} has no adapter {request.adapter!r}; {names}"
            raise RequestError(404, Cause.UNKNOWN_ADAPTER, reason)
        return self._manager.runs(served, request.adapter)

    def _load(self, job: Job, served: ServedModel, now_s: float) -> admission.QueueLoad:
        if served.generates:
            return self._generator_load(job, served, now_s)
        grant = self._context.grant
        costs = self._context.costs
        part = self._context.duty_cycle.share_of(served.name, grant)
        at = replace(served.load_at(grant, part), load_s=served.lifecycle.load_left_s(now_s))
        at = replace(at, running_s=remaining_s(served.running.values(), costs, at, now_s))
        wait_s, compute_s = wait_and_compute_s(served.queue, job, costs, at, now_s)
        if wait_s is not None:
            wait_s = served.priority_load.wait_s(job.priority, job.deadline_s - now_s, wait_s, now_s)
        return self._weighed(job, wait_s, compute_s)

    def _weighed(self, job: Job, wait_s: float | None, compute_s: float | None) -> admission.QueueLoad:
        """The times, beside what is open on this device and of the client that asks."""
        ledger = self._context.requests
        own_jobs, own_bytes = ledger.open_of(job.key[0])
        held_bytes = ledger.held_bytes + job.message_bytes
        return admission.QueueLoad(
            len(ledger),
            self._options.queue_jobs,
            wait_s,
            compute_s,
            own_jobs,
            held_bytes,
            own_bytes + job.message_bytes,
        )

    def _generator_load(self, job: Job, served: ServedModel, now_s: float) -> admission.QueueLoad:
        """A generator's sequences end one by one: what is ahead waits for its share of them, then reads its prompt."""
        grant, costs = self._context.grant, self._context.costs
        sequences = max(1, served.sequences)
        first_s = costs.predict_s(served.cost_key, 1, job.size_bytes, grant.threads)
        whole_s = costs.predict_s(served.whole_cost_key, 1, job.size_bytes, grant.threads)
        wait_s = None
        if whole_s is not None:
            near = frozenset(one.adapter for one in served.running.values())
            ahead = served.queue.rows_ahead(job, now_s, near) + len(served.running) - sequences + 1
            wait_s = (
                max(0, ahead) / sequences * whole_s / max(0.01, self._context.duty_cycle.share_of(served.name, grant))
            )
            wait_s += served.lifecycle.load_left_s(now_s)
            wait_s = served.priority_load.wait_s(job.priority, job.deadline_s - now_s, wait_s, now_s)
        return self._weighed(job, wait_s, first_s)

    def _work_s(self, job: Job, served: ServedModel) -> float:
        """Seconds of the worker's time that an admitted request will cost; 0 while nothing is known."""
        grant, costs = self._context.grant, self._context.costs
        part = self._context.duty_cycle.share_of(served.name, grant)
        if not served.generates:
            return work_s(job, costs, served.load_at(grant, part))
        whole_s = costs.predict_s(served.whole_cost_key, 1, job.size_bytes, grant.threads) or 0.0
        return whole_s / max(1, served.sequences) / max(0.01, part)

    def _refuse_request(self, request: Request, refused: admission.Refused, now_s: float) -> None:
        remaining_s = request.deadline_s - now_s
        message = encode.refusal(refused.status, refused.reason, request.reply, remaining_s, refused.retry_after_s)
        # Not noted in the ledger: whoever asks again after `retry_after_s` is asking anew.
        self._context.stats.refused(refused.status, refused.cause)
        self._context.transport.publish(message)

    def _refuse(self, refusal: Refusal, message: Inbound) -> None:
        self._context.stats.refused(refusal.status, refusal.cause)
        if refusal.reply is not None:
            ordered = isinstance(self._context.topics.parse(message.topic), CommandTarget)
            kind: type[Reply] | type[CommandReply] = CommandReply if ordered else Reply
            self._context.transport.publish(
                encode.refusal(refusal.status, refusal.reason, refusal.reply, refusal.remaining_s, None, kind)
            )
        if refusal.event is not None:
            self._context.announce(refusal.event, refusal.reason, {})

    def _cancel(self, wish: Cancel) -> None:
        if wish.client is None:
            text = f"a cancel of request {wish.id!r} does not say whose it is: give the request's reply topic, too"
            self._context.announce("request-unanswerable", text, {"id": wish.id})
            return
        mine = [job for job in self._context.requests.open_jobs() if job.key == (wish.client, wish.id)]
        if not mine:
            return  # nothing is open under that id: answered already, most likely
        # Also of a model that was removed and whose worker still finishes what it has.
        for served in self._manager.every_served_model():
            if served.name == mine[0].model:
                self._server.cancel(served, mine[0])
                return


def _fingerprint(message: Inbound) -> bytes:
    """What a retry has in common with the request: topic and body. Who reuses an id asks another question."""
    return hashlib.blake2b(message.topic.encode() + b"\0" + message.payload, digest_size=8).digest()


def check_form(request: Request, served: ServedModel) -> None:
    """Raise RequestError 422 for a question in a form that the model does not take."""
    if served.generates == (request.form in GENERATOR_FORMS):
        return
    takes = "prompt or messages" if served.generates else "text or texts"
    kind = "generates" if served.generates else "does not generate"
    raise RequestError(422, Cause.INVALID, f"model {served.name!r} {kind}: it takes {takes}, not {request.form}")


def check_program(request: Request, served: ServedModel, now_s: float) -> None:
    """Raise RequestError 503 for a grammar or schema of a client whose last one ended the worker, or after many did."""
    left_s = served.grammar_bans.left_s(request.client, now_s)
    if left_s > 0.0 and brings_program(request.params):
        reason = f"grammars or schemas cost model {served.name!r} too much and are not taken now; ask without one"
        raise RequestError(503, Cause.UNAVAILABLE, reason, round(left_s, 1))


def _job(request: Request, message: Inbound, served: ServedModel) -> Job:
    return Job(
        key=(request.client, request.id),
        model=served.name,
        # On its merged model an adapter is a part of the weights.
        adapter=request.adapter if served.name == request.model else None,
        texts=request.texts,
        params=request.params,
        priority=request.priority,
        deadline_s=request.deadline_s,
        received_s=request.received_s,
        message_bytes=len(message.payload),
        fingerprint=_fingerprint(message),
        # Of the message only its acknowledgement is needed from here on.
        origin=Origin(request, replace(message, payload=b"")),
        messages=tuple({"role": one.role, "content": one.content} for one in request.messages),
        stream=request.stream,
    )


def _names(installed: Mapping[str, object]) -> str:
    return f"there are: {', '.join(sorted(installed))}" if installed else "there are none"
