"""What arrives: decode it, recognise duplicates, find the model, check the form, admit or refuse, queue.

Commands and cancels are handed on; what is none of these is refused, or dropped with an event. Nothing here waits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from edge_agent.agent.commands import Commands
from edge_agent.agent.context import Context
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.respond import Origin
from edge_agent.agent.served_model import ServedModel
from edge_agent.agent.serving import ModelServer
from edge_agent.agent.worker_events import WorkerEventHandler
from edge_agent.base.causes import Cause
from edge_agent.base.errors import RequestError
from edge_agent.core import admission
from edge_agent.core.forecast import (
    GeneratorLoad,
    WorkerLoad,
    expected_windows,
    generator_wait_and_first_token_s,
    generator_work_s,
    remaining_s,
    wait_and_compute_s,
    work_s,
)
from edge_agent.core.grammar_bans import barred_reason, has_grammar
from edge_agent.core.job import Job
from edge_agent.core.request_table import RequestStatus
from edge_agent.protocol import encode
from edge_agent.protocol.decode import Bounds, Cancel, Command, Refusal, Request, decode
from edge_agent.protocol.envelope import Inbound
from edge_agent.protocol.messages import CommandReply, Reply
from edge_agent.protocol.topics import CommandTarget, DesiredTarget, ReplyAllowed

GENERATOR_FORMS = frozenset({"prompt", "messages"})


class DesiredMessages(Protocol):
    """Takes the messages on the desired topic. Implemented by `desired_keeper.DesiredKeeper`."""

    def receive(self, message: Inbound) -> None:
        """A message."""
        ...

    def receive_later(self, message: Inbound) -> None:
        """One of too many at once: only the last of them counts."""
        ...


@dataclass(frozen=True, slots=True)
class IntakeOptions:
    """`queue_jobs`: requests that may be open at once on this device; `bounds`: what one message may hold; `desired`
    takes the messages on the desired topic."""

    queue_jobs: int
    bounds: Bounds
    desired: DesiredMessages


class Intake:
    """Answers every inbound message, hands it on, or puts it into the queue of a model."""

    def __init__(
        self,
        context: Context,
        options: IntakeOptions,
        manager: ModelManager,
        server: ModelServer,
        events: WorkerEventHandler,
        commands: Commands,
    ) -> None:
        self._context = context
        self._options = options
        self._manager = manager
        self._server = server
        self._events = events
        self._commands = commands

    async def take(self, message: Inbound) -> None:
        """One message."""
        self._context.acks.hold(message)
        if self._context.topics.is_self_check(message.topic):  # the transport has seen it: it hears what arrives
            self._context.acks.release(message)
            return
        now_s, sender = self._context.clock.monotonic_s(), self._sender(message)
        if self._context.door_rate.turns_away(sender, now_s):
            self._context.acks.release(message)
            if isinstance(self._context.topics.parse(message.topic), DesiredTarget):
                # The broker retains the last one and does not send it again while the connection lasts.
                self._options.desired.receive_later(message)
            return
        decoded = decode(message, topics=self._context.topics, now_s=now_s, bounds=self._options.bounds)
        if isinstance(decoded, Request):
            admitted = self._take_request(decoded, message)
        else:
            admitted = await self._take_other(decoded, message)
            self._context.acks.release(message)
        if not admitted:
            self._context.door_rate.note_futile(sender, now_s)

    async def _take_other(self, decoded: Refusal | Cancel | Command | None, message: Inbound) -> bool:
        if isinstance(decoded, Refusal):
            self._refuse(decoded, message)
        elif isinstance(decoded, Cancel):
            return self._cancel(decoded)
        elif isinstance(decoded, Command):
            await self._commands.take(decoded)
        elif isinstance(self._context.topics.parse(message.topic), DesiredTarget):
            self._options.desired.receive(message)
        # Orders count, too, as if they came to nothing: nobody has use for a hundred a second.
        return False

    def _sender(self, message: Inbound) -> str:
        """Whose message it is, as far as that is known without decoding its body, apart for requests, cancels and
        orders. Those that name no reply topic count as one sender, and so do those that name a forbidden one."""
        topics, named = self._context.topics, message.named_reply_topic()
        allowed = topics.reply_allowed(named) if named else None
        client = allowed.client if isinstance(allowed, ReplyAllowed) else ""
        return f"{type(topics.parse(message.topic)).__name__}/{client}"

    async def close(self) -> None:
        """Give up waiting for a command that is being carried out, and answer it with 503."""
        await self._commands.close()

    def _take_request(self, request: Request, message: Inbound) -> bool:
        """True when the request is admitted."""
        now_s = self._context.clock.monotonic_s()
        if self._is_duplicate(request, message, now_s):
            self._context.acks.release(message)
            return False
        try:
            served = self._find_model(request)
            check_form(request, served)
            check_grammar(request, served, now_s)
            job = _job(request, message, served)
            self._admit(job, served, now_s)
        except RequestError as error:
            self._refuse_request(request, error, now_s)
            self._context.acks.release(message)
            return False
        self._queue(job, served, now_s)
        return True

    def _is_duplicate(self, request: Request, message: Inbound, now_s: float) -> bool:
        """Whether this request was seen before. Repeats the answer, where there is one, and refuses another question
        under an id that is in use."""
        key = (request.client, request.id)
        status = self._context.requests.status(key, now_s, _fingerprint(message))
        if status is RequestStatus.NEW:
            return False
        if status is RequestStatus.TAKEN:
            reason = "another request of this client with the same id is open; give each its own id or correlation data"
            self._refuse_request(request, RequestError(422, Cause.INVALID, reason), now_s)
            return True
        self._context.stats.duplicated()
        answer = self._context.requests.answer(key)
        if status is RequestStatus.ANSWERED and answer is not None:
            again = encode.again(answer, request.reply, request.deadline_s - now_s)
            self._context.send_expendable(again, request.reply)
        return True

    def _find_model(self, request: Request) -> ServedModel:
        """The model that answers: the one asked for, or its merged model for the adapter. Raises RequestError 404."""
        served = self._manager.served_models.get(request.model)
        if served is None:
            models = self._manager.served_models
            bases = sorted(name for name, one in models.items() if one.model.adapter(request.model) is not None)
            hint = f"; it is an adapter: ask {bases[0]!r} with adapter {request.model!r}" if bases else ""
            reason = f"no model {request.model!r} on this device; {_names(models)}{hint}"
            raise RequestError(404, Cause.UNKNOWN_MODEL, reason)
        if request.adapter is not None and served.model.adapter(request.adapter) is None:
            names = _names({adapter.name: adapter for adapter in served.model.adapters})
            reason = f"model {served.name!r} has no adapter {request.adapter!r}; {names}"
            raise RequestError(404, Cause.UNKNOWN_ADAPTER, reason)
        return self._manager.route(served, request.adapter)

    def _admit(self, job: Job, served: ServedModel, now_s: float) -> None:
        """Raise RequestError 429 or 503 for a job that cannot be taken now."""
        closed = self._context.grant.closed or self._manager.closed
        load = self._queue_load(job, served, now_s)
        refused = admission.decide(load, job.deadline_s, now_s, closed)
        if refused is not None and refused.lacks and admission.would_be_taken(load, job.deadline_s, now_s):
            refused = self._make_room(job, served, load, refused, now_s)
        if refused is None:
            return
        if refused.cause is Cause.DEADLINE:
            self._server.demand(served, now_s)
        raise RequestError(refused.status, refused.cause, refused.reason, refused.retry_after_s)

    def _make_room(
        self, job: Job, served: ServedModel, load: admission.QueueLoad, refused: admission.Refused, now_s: float
    ) -> admission.Refused | None:
        """Take waiting jobs of clients that hold more out of the queue until this one is admitted (None), or none of
        them does."""
        decided: admission.Refused | None = refused
        while decided is not None and decided.lacks is not None:
            queues = {one.key: model for model in self._manager.every_served_model() for one in model.queue.jobs()}
            held = self._context.requests.open_jobs()
            waiting = [one for one in held if one.key in queues]
            own = load.own_jobs + 1 if decided.lacks == "places" else load.own_bytes
            found = admission.gives_way(job.key[0], own, decided.lacks, held, waiting)
            if found is None:
                break
            self._events.displace(queues[found[0].key], *found, round(load.wait_s or 1.0, 3))
            load = self._queue_load(job, served, now_s)
            decided = admission.decide(load, job.deadline_s, now_s, None)
        return decided

    def _queue(self, job: Job, served: ServedModel, now_s: float) -> None:
        self._context.requests.open(job)
        only = job.key[0] if served.queue.is_beyond_turn(job) else None
        work_s = self._work_s(job, served, now_s)
        served.priority_load.note(job.priority, job.deadline_s - now_s, work_s, now_s, only)
        self._server.add(served, job)

    def _queue_load(self, job: Job, served: ServedModel, now_s: float) -> admission.QueueLoad:
        """What is open on this device and of this client, and the predicted times of the job."""
        wait_s, compute_s = self._predicted_s(job, served, now_s)
        if wait_s is not None:
            left_s = job.deadline_s - now_s
            wait_s = served.priority_load.wait_s(job.priority, left_s, wait_s, now_s, job.key[0])
        requests = self._context.requests
        own_jobs, own_bytes = requests.open_of(job.key[0])
        # A request gives its place back when its answer has left, not when it was computed: so answers that wait to be
        # sent are bounded, and shared, as the requests at the door are.
        unsent = self._context.transport.waiting_of(job.key[0])
        return admission.QueueLoad(
            len(requests) + unsent.places,
            self._options.queue_jobs,
            wait_s,
            compute_s,
            own_jobs + unsent.own_places,
            requests.held_bytes + unsent.size_bytes + job.message_bytes,
            own_bytes + unsent.own_bytes + job.message_bytes,
        )

    def _predicted_s(self, job: Job, served: ServedModel, now_s: float) -> tuple[float | None, float | None]:
        """Seconds until the worker begins with the job, and seconds that its batch, or its first token, takes."""
        costs = self._context.costs
        if served.generates:
            generator, running = self._generator_load(served, now_s), served.running.values()
            return generator_wait_and_first_token_s(served.queue, job, running, costs, generator, now_s)
        load = self._worker_load(served)
        # What takes several steps itself is begun after another such request.
        client = job.key[0] if job.rows <= load.max_rows else None
        rows_ahead = served.queue.rows_ahead(job, now_s)
        running_s = remaining_s(served.running.values(), costs, load, now_s, client, rows_ahead)
        load = replace(load, running_s=running_s, load_s=served.lifecycle.load_left_s(now_s))
        return wait_and_compute_s(served.queue, job, costs, load, now_s)

    def _work_s(self, job: Job, served: ServedModel, now_s: float) -> float:
        """Seconds of the worker's time that the job will use; 0 while nothing was measured."""
        if served.generates:
            return generator_work_s(job, self._context.costs, self._generator_load(served, now_s))
        return work_s(job, self._context.costs, self._worker_load(served))

    def _worker_load(self, served: ServedModel) -> WorkerLoad:
        grant = self._context.grant
        return served.load_at(grant, self._context.duty_cycle.share_of(served.name, grant))

    def _generator_load(self, served: ServedModel, now_s: float) -> GeneratorLoad:
        grant = self._context.grant
        return GeneratorLoad(
            served.cost_key,
            served.whole_cost_key,
            served.token_cost_key,
            max(1, served.sequences),
            grant.threads,
            self._context.duty_cycle.share_of(served.name, grant),
            served.lifecycle.load_left_s(now_s),
        )

    def _refuse_request(self, request: Request, error: RequestError, now_s: float) -> None:
        """Answer a request that becomes no job. It is not noted as seen: asked again, it is decided anew."""
        self._context.stats.refused(error.status, error.cause)
        remaining_s = request.deadline_s - now_s
        limit = self._context.transport.payload_limit
        message = encode.refusal(error, request.reply, remaining_s, limit=limit)
        self._context.send_expendable(message, request.reply)
        if self._context.traces is not None:
            self._context.traces.note(request, error.status, error.cause)

    def _refuse(self, refusal: Refusal, message: Inbound) -> None:
        self._context.stats.refused(refusal.status, refusal.cause)
        if refusal.reply is not None:
            ordered = isinstance(self._context.topics.parse(message.topic), CommandTarget)
            kind: type[Reply] | type[CommandReply] = CommandReply if ordered else Reply
            limit, left_s = self._context.transport.payload_limit, refusal.remaining_s
            error = RequestError(refusal.status, refusal.cause, refusal.reason)
            answer = encode.refusal(error, refusal.reply, left_s, kind, limit)
            self._context.send_expendable(answer, refusal.reply)
        if refusal.event is not None:
            self._context.announce(refusal.event, refusal.reason, {})

    def _cancel(self, cancel: Cancel) -> bool:
        """True when there was something to cancel."""
        if cancel.client is None:
            text = f"a cancel of request {cancel.id!r} does not say whose it is: give the request's reply topic, too"
            self._context.announce("request-unanswerable", text, {"id": cancel.id})
            return False
        job = self._context.requests.get((cancel.client, cancel.id))
        if job is None:
            return False  # most likely it is answered already
        # A removed model may still have a worker that finishes its jobs: look among those, too.
        for served in self._manager.every_served_model():
            if served.name == job.model:
                self._events.cancel(served, job)
                return True
        return False


def _fingerprint(message: Inbound) -> bytes:
    """A hash of topic and body, which a retry has in common with its request; another question under the same id has
    not."""
    return hashlib.blake2b(message.topic.encode() + b"\0" + message.payload, digest_size=8).digest()


def check_form(request: Request, served: ServedModel) -> None:
    """Raise RequestError 422 where the request has a form (text, prompt, a pair, ...) that the model, or the adapter
    that is asked for, does not take."""
    if served.generates == (request.form in GENERATOR_FORMS):
        _check_pairs(request, served)
        return
    takes = "prompt or messages" if served.generates else "text or texts"
    kind = "generates" if served.generates else "does not generate"
    reason = f"model {served.name!r} {kind}: it takes {takes}, not {request.form}"
    raise RequestError(422, Cause.WRONG_FORM, reason)


def _check_pairs(request: Request, served: ServedModel) -> None:
    model = served.model
    # A merged model that answers for the adapter has its task, and no adapters.
    adapter = model.adapter(request.adapter) if request.adapter is not None else None
    pairs = model.task.pairs if adapter is None else adapter.task.pairs
    if served.generates or isinstance(request.texts[0], tuple) == pairs:
        return
    asked = f"model {model.name!r}" if adapter is None else f"adapter {adapter.name!r} of model {model.name!r}"
    takes = "pairs: give text_pair beside text, text_pairs beside texts" if pairs else "one text: leave text_pair out"
    if (model if adapter is None else adapter).task.kind == "answers":
        takes = "a question in text and its context in text_pair (texts and text_pairs for several)"
    raise RequestError(422, Cause.TEXT_PAIR, f"{asked} takes {takes}")


def check_grammar(request: Request, served: ServedModel, now_s: float) -> None:
    """Raise RequestError 503 for a grammar or schema while `GrammarBans` takes none from this client."""
    left_s = served.grammar_bans.banned_s(request.client, now_s)
    if left_s > 0.0 and has_grammar(request.params):
        raise RequestError(503, Cause.UNAVAILABLE, barred_reason(served.name), round(left_s, 1))


def _job(request: Request, message: Inbound, served: ServedModel) -> Job:
    adapter = served.model.adapter(request.adapter) if request.adapter is not None else None
    task, windows = served.model.task if adapter is None else adapter.task, 0
    if task.kind == "answers":
        windows = expected_windows(request.texts, task.max_tokens, task.window_overlap)
    return Job(
        key=(request.client, request.id),
        model=served.name,
        # A merged model has the adapter in its weights.
        adapter=request.adapter if served.name == request.model else None,
        texts=request.texts,
        params=request.params,
        priority=request.priority,
        deadline_s=request.deadline_s,
        received_s=request.received_s,
        message_bytes=len(message.payload),
        fingerprint=_fingerprint(message),
        # Only the acknowledgement of the message is needed from here on; its body would be held twice.
        origin=Origin(request, replace(message, payload=b"")),
        messages=tuple({"role": one.role, "content": one.content} for one in request.messages),
        stream=request.stream,
        windows=windows,
    )


def _names(installed: Mapping[str, object]) -> str:
    return f"there are: {', '.join(sorted(installed))}" if installed else "there are none"
