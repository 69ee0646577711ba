"""A session of llama.cpp: jobs in, decode calls in each step, chunks and figures out; golden probes by `FeatureRun`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_agent.backends.api import (
    AdapterSource,
    Chunk,
    Done,
    Event,
    Failed,
    Footprint,
    Generated,
    GrammarReady,
    Limits,
    Session,
    SessionJob,
    Vocabulary,
)
from edge_agent.backends.encoder_session import JobQueue
from edge_agent.backends.gguf import GgufHeader, read_header
from edge_agent.backends.llamacpp.answer_turns import AnswerTurns
from edge_agent.backends.llamacpp.feature_run import FeatureRun
from edge_agent.backends.llamacpp.grammar_client import FollowedGrammar, GrammarClient, Phase, grammar_of
from edge_agent.backends.llamacpp.llama_context import ContextSizes, DecodeInput, LlamaContext, Outcome
from edge_agent.backends.llamacpp.model import LlamaModel, LlamaVocabulary, shares_memory
from edge_agent.backends.llamacpp.sampler import Sampler, logprob
from edge_agent.backends.llamacpp.sequence_slots import Place, SequenceSlots
from edge_agent.backends.llamacpp.step_schedule import (
    AdapterRoundRobin,
    ScheduledChunk,
    TokenSequence,
    longest_waiting,
    schedule_chunks,
)
from edge_agent.backends.llamacpp.tuners import BatchSizeTuner, ThreadTuner
from edge_agent.base.errors import AdapterRefused, BackendError
from edge_agent.base.limits import ANSWERS_BEYOND, QUEUE_JOBS

MASK_WAIT_S = 0.01
"""Seconds that one call's sequences wait for masks in all; usually they came during the call. After that the others go
on, and the sequence whose mask is late joins them when it has come."""
IDLE_WAIT_S = 0.02
"""Seconds that a step waits where grammars are all that there is to wait for."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a session works; see `backend.DEFAULTS`. `context` is one sequence's, in tokens."""

    base_id: str
    context: int
    sequences: int
    batch: int
    prompt_chunk: int
    turn_steps: int
    decode_threads: int
    kv_type: str
    cells: int
    computed_by: str = ""


class _Adapter(NamedTuple):
    handle: Any
    owner: int
    size_bytes: int


class _WaitingJob(NamedTuple):
    job: SessionJob
    sampler: Sampler
    grammar: FollowedGrammar | None
    submitted_s: float

    @property
    def client(self) -> str:
        """Who asked."""
        return self.job.client


class LlamaSession(Session):
    """One model, one context, its adapters, and the sequences inside it."""

    def __init__(self, model: LlamaModel, header: GgufHeader, settings: SessionSettings) -> None:
        self._model = model
        self._header = header
        self._settings = settings
        self.sequences, self.context, self.computed_by = settings.sequences, settings.context, settings.computed_by
        slots = settings.sequences + ANSWERS_BEYOND  # so many answers are inside, at work or parked
        sizes = ContextSizes(settings.cells, slots, settings.batch, settings.kv_type)
        self._context: LlamaContext | None = LlamaContext(model, sizes)
        self._vocabulary = LlamaVocabulary(model, header, settings.context)
        self._adapters: dict[str, _Adapter] = {}
        self._owners = 0
        self._slots = SequenceSlots(settings.sequences, ANSWERS_BEYOND)
        self._turns = AnswerTurns()
        self._round_robin = AdapterRoundRobin(settings.turn_steps)
        self._batch_size = BatchSizeTuner()
        self._thread_tuner = ThreadTuner(0)
        self._waiting: deque[_WaitingJob] = deque(maxlen=QUEUE_JOBS)
        self._grammars = GrammarClient(model)
        self._active: dict[str, TokenSequence] = {}
        self._parked: dict[str, TokenSequence] = {}
        self._reading: frozenset[str] = frozenset()
        self._features = JobQueue()
        self._feature_run = FeatureRun(self._live, self._slots, settings.cells)
        self._mask_until_s = 0.0
        self.switches = 0

    def vocabulary(self) -> Vocabulary | None:
        """See `Session.vocabulary`."""
        return self._vocabulary

    def attach(self, adapter: AdapterSource) -> int:
        """See `Session.attach`."""
        expected = self._settings.base_id
        if expected and adapter.base_id != expected:
            raise AdapterRefused(
                f"adapter {adapter.name!r} was trained on base {adapter.base_id or '(none)'}, this is {expected}",
                adapter.path,
                "train it on this base",
            )
        if not adapter.name or self._uses(adapter.name):
            raise AdapterRefused("an adapter needs a name that no queued job uses", adapter.name)
        try:
            header = read_header(adapter.path)
        except BackendError as error:
            raise AdapterRefused(error.what, error.where, error.remedy) from error
        if header.adapter_type != "lora" or header.arch != self._header.arch:
            kind = f"a {header.adapter_type} adapter" if header.adapter_type else "no adapter"
            raise AdapterRefused(
                f"the file is {kind} of architecture {header.arch}, a LoRA adapter of {self._header.arch} is needed",
                adapter.path,
            )
        handle = self._model.load_adapter(adapter.path, adapter.name)
        self.detach(adapter.name)
        self._owners += 1
        self._adapters[adapter.name] = _Adapter(handle, self._owners, header.tensor_bytes)
        return header.tensor_bytes

    def detach(self, name: str) -> None:
        """See `Session.detach`."""
        found = self._adapters.pop(name, None)
        if found is not None:
            self._live().use_adapter(None)
            self._slots.forget(found.owner)
            self._slots.sweep(self._live().cut)
            self._round_robin.forget(name)
            self._model.free_adapter(found.handle)

    def submit(self, job: SessionJob) -> None:
        """See `Session.submit`."""
        if job.adapter is not None and job.adapter not in self._adapters:
            raise AdapterRefused(f"adapter {job.adapter!r} is not attached")
        context = self._settings.context
        most = job.params.get("max_tokens")
        for row in job.rows:
            needed = len(row) + (most or 1)
            if not row or needed > context or not all(0 <= token < self._model.vocab_size for token in row):
                raise BackendError(
                    f"a row of {len(row)} tokens with {most or 1} to come cannot run: a sequence holds {context}, and "
                    f"token ids go to {self._model.vocab_size - 1}",
                    job.job_id,
                )
        if most is None:
            if not job.rows:
                raise BackendError("a job without rows cannot run", job.job_id)
            self._features.submit(job)
            return
        if len(job.rows) != 1:
            raise BackendError(f"one row is continued, not {len(job.rows)}", job.job_id)
        if len(self._waiting) == QUEUE_JOBS:
            raise BackendError(f"{QUEUE_JOBS} jobs wait in this worker already", job.job_id)
        wanted = grammar_of(job.params)
        grammar = None if wanted is None else self._grammars.begin(*wanted, job.client)
        sampler = Sampler(self._model, job.params, job.rows[0])
        inside = [one.client for one in self._waiting] + [one.client for one in self._inside()]
        self._turns.arrive(job.client, inside)
        self._waiting.append(_WaitingJob(job, sampler, grammar, time.monotonic()))

    def step(self, limits: Limits) -> list[Event]:
        """See `Session.step`: a token for every sequence whose adapter has its turn, or a part of its prompt."""
        if len(self._features) and self._slots.free:
            rows = min(limits.max_rows, self._slots.free)
            pieces = self._features.take(rows, one_adapter=True)
            self._use(pieces[0].job.adapter, limits.threads)
            events = self._feature_run.run(pieces, self._settings.batch)
            for event in events:
                if isinstance(event, Failed):
                    self._features.cancel(event.job_id)
            return events
        ended = self._follow_grammars()
        self._admit(limits)
        ready = [sequence for sequence in self._active.values() if sequence.held is None]
        if not ready:
            if not ended:
                self._grammars.pump(IDLE_WAIT_S)
            return ended
        return ended + self._compute(ready, limits)

    def _compute(self, ready: list[TokenSequence], limits: Limits) -> list[Event]:
        """A step of these sequences."""
        adapter = self._round_robin.next([sequence.adapter for sequence in ready])
        group = [sequence for sequence in ready if sequence.adapter == adapter]
        chunks = schedule_chunks(
            longest_waiting(group, max(1, limits.max_rows)), self._settings.batch, self._settings.prompt_chunk
        )
        prompts = [chunk.sequence.job_id for chunk in chunks if chunk.sequence.reading]
        if prompts:
            self._use(adapter, limits.threads)
            return self._call(chunks, frozenset(prompts), len(chunks))
        rows = self._batch_size.rows(len(chunks))
        found: list[Event] = []
        for start in range(0, len(chunks), rows):
            found += self._decode_once(chunks[start : start + rows], adapter, limits, len(chunks))
        return found

    def cancel(self, job_id: str) -> bool:
        """See `Session.cancel`."""
        self._feature_run.forget(job_id)
        for waiting in self._waiting:
            if waiting.job.job_id == job_id:
                self._waiting.remove(waiting)
                self._drop(waiting)
                return True
        sequence = self._active.get(job_id) or self._parked.get(job_id)
        if sequence is None:
            return self._features.cancel(job_id)
        self._leave(sequence)
        return True

    def finish(self, job_id: str) -> Done | None:
        """See `Session.finish`."""
        sequence = self._active.get(job_id) or self._parked.get(job_id)
        return None if sequence is None else self._done(sequence, "stop")

    def interrupt(self, job_id: str) -> bool:
        """See `Session.interrupt`: a step that reads the job's prompt is cut off; a step that decodes is short."""
        context = self._context
        if job_id not in self._reading or context is None:
            return False
        context.stop()
        return True

    def footprint(self) -> Footprint:
        """See `Session.footprint`: weights as mapped, adapters by their tensors, the rest as llama.cpp reports it.

        Buffers of the GPU count as the board's where both share one memory, as on a Jetson.
        """
        context = self._live()
        adapters = sum(adapter.size_bytes for adapter in self._adapters.values())
        gpu_bytes = self._model.gpu_bytes + context.gpu_bytes if shares_memory() else 0
        return Footprint(self._header.tensor_bytes, adapters, context.cache_bytes, context.arena_bytes, gpu_bytes)

    def close(self) -> None:
        """See `Session.close`."""
        context, self._context = self._context, None
        if context is None:
            return
        for waiting in self._waiting:
            self._drop(waiting)
        self._waiting.clear()
        for sequence in self._inside():
            sequence.sampler.close()
        self._active.clear()
        self._parked.clear()
        self._grammars.end()
        self._features.clear()
        context.close()
        for adapter in self._adapters.values():
            self._model.free_adapter(adapter.handle)
        self._adapters.clear()
        self._model.close()

    def _live(self) -> LlamaContext:
        if self._context is None:
            raise BackendError("the session is closed", "llamacpp")
        return self._context

    def _inside(self) -> list[TokenSequence]:
        """The sequences at work and the parked ones."""
        return [*self._active.values(), *self._parked.values()]

    def _uses(self, adapter: str) -> bool:
        inside = [sequence.adapter for sequence in self._inside()]
        return (
            adapter in inside
            or any(waiting.job.adapter == adapter for waiting in self._waiting)
            or self._features.uses(adapter)
        )

    def _use(self, adapter: str | None, threads: int) -> None:
        """Set adapter and threads of the next call."""
        context = self._live()
        context.use_threads(threads)
        self.switches += context.use_adapter(None if adapter is None else self._adapters[adapter].handle)

    def _decode_once(self, chunks: list[ScheduledChunk], adapter: str | None, limits: Limits, rows: int) -> list[Event]:
        """A call without prompt tokens: its threads are the configured ones, else the tuner's."""
        wanted = limits.decode_threads or self._settings.decode_threads
        granted = min(limits.threads, wanted or limits.threads)
        if self._thread_tuner.granted != granted:
            self._thread_tuner = ThreadTuner(granted)
            self._batch_size.forget()
        kind = (len(chunks), adapter is not None)
        self._use(adapter, granted if wanted else self._thread_tuner.count(kind))
        started_s = time.monotonic()
        found = self._call(chunks, frozenset(), rows)
        call_s = time.monotonic() - started_s
        if wanted or self._thread_tuner.settled(kind):
            self._batch_size.learn(len(chunks), call_s)
        if not wanted and self._thread_tuner.learn(kind, call_s):
            self._batch_size.forget()
        return found

    def _follow_grammars(self) -> list[Event]:
        """Read what has come of grammars: refusals, answers that are complete, masks of sequences that waited."""
        self._grammars.pump(0.0)
        events: list[Event] = []
        for waiting in [one for one in self._waiting if one.grammar is not None]:
            if waiting.grammar is not None and waiting.grammar.phase is Phase.FAILED:
                events.append(_refused(waiting.job.job_id, waiting.grammar))
                self._waiting.remove(waiting)
                self._drop(waiting)
            elif waiting.grammar is not None and waiting.grammar.is_news():
                events.append(GrammarReady(waiting.job.job_id))
        for sequence in [one for one in self._inside() if one.grammar is not None]:
            phase = sequence.grammar.phase
            if phase is Phase.FAILED:
                events.append(_refused(sequence.job_id, sequence.grammar))
                self._fail(sequence, "")
            elif phase is Phase.ENDED and sequence.decoding:
                events.append(self._done(sequence, "stop"))
            elif sequence.held is not None and phase is not Phase.AWAITED:
                events += self._take(sequence, sequence.release(), None)
        return events

    def _drop(self, waiting: _WaitingJob) -> None:
        waiting.sampler.close()
        if waiting.grammar is not None:
            self._grammars.close(waiting.grammar)

    def _admit(self, limits: Limits) -> None:
        """Give what waits a sequence while at most `max_rows` of `limits` are at work: a job whose grammar, if it has
        one, is compiled, or a parked answer. Where there is none left, an answer whose turn is over gives way."""
        while True:
            able: list[_WaitingJob | TokenSequence] = [*self._parked.values()]
            able += [one for one in self._waiting if one.grammar is None or one.grammar.phase is Phase.READY]
            wanting = self._turns.next(able, self._active.values())
            if wanting is None:
                return
            if not self._slots.free or len(self._active) >= max(1, limits.max_rows):
                gives_way = self._turns.gives_way(wanting, self._active.values())
                if gives_way is None:
                    return
                self._park(gives_way)
            if isinstance(wanting, TokenSequence):
                self._resume(wanting)
            else:
                self._waiting.remove(wanting)
                self._begin(wanting)

    def _begin(self, waiting: _WaitingJob) -> None:
        job = waiting.job
        prompt = list(job.rows[0])
        place = self._slots.take(self._owner(job.adapter), prompt, job.client)
        self._occupy(place)
        sequence = TokenSequence(job.job_id, job.adapter, job.client, place.slot, prompt, len(prompt), place.cached)
        sequence.reused, sequence.max_tokens = place.cached, job.params["max_tokens"]
        sequence.sampler, sequence.grammar = waiting.sampler, waiting.grammar
        sequence.logprobs = bool(job.params.get("logprobs"))
        sequence.submitted_s, sequence.started_s = waiting.submitted_s, time.monotonic()
        self._active[job.job_id] = sequence
        if waiting.grammar is not None:
            self._grammars.open(waiting.grammar)

    def _park(self, sequence: TokenSequence) -> None:
        """An answer gives way: its sequence is free, and it goes on later where it stopped."""
        del self._active[sequence.job_id]
        self._slots.park(sequence.slot)
        self._parked[sequence.job_id] = sequence

    def _resume(self, sequence: TokenSequence) -> None:
        """A parked answer goes on. Where its cells were needed meanwhile, its tokens are read again first."""
        del self._parked[sequence.job_id]
        place = self._slots.resume(self._owner(sequence.adapter), sequence.tokens, sequence.client)
        self._occupy(place)
        sequence.begin_turn(place.slot, place.cached)
        self._active[sequence.job_id] = sequence

    def _owner(self, adapter: str | None) -> int:
        return 0 if adapter is None else self._adapters[adapter].owner

    def _occupy(self, place: Place) -> None:
        """Leave in the slot what is used of its cells, or of another slot's."""
        context = self._live()
        if place.source == place.slot:
            context.cut(place.slot, place.cached)
        else:
            context.cut(place.slot, 0)
            context.copy(place.source, place.slot, place.cached)

    def _call(self, chunks: list[ScheduledChunk], reading: frozenset[str], rows: int) -> list[Event]:
        """One decode call of a step that `rows` sequences share; its events, none when it was interrupted."""
        self._reading = reading
        started_s = time.monotonic()
        try:
            done = self._decode([_part(chunk) for chunk in chunks])
        except BackendError as error:
            return [self._fail(chunk.sequence, error.what) for chunk in chunks]
        finally:
            self._reading = frozenset()
        return self._advance(chunks, started_s, rows) if done else []

    def _decode(self, parts: list[DecodeInput]) -> bool:
        """One call; False when it was interrupted: then the cache is as it was before."""
        context = self._live()
        self._slots.make_room(sum(len(part.tokens) for part in parts), self._settings.cells, context.cut)
        if context.decode(parts) is Outcome.DONE:
            return True
        for part in parts:
            context.cut(part.slot, part.start)
        return False

    def _advance(self, chunks: list[ScheduledChunk], started_s: float, rows: int) -> list[Event]:
        now_s = time.monotonic()
        self._mask_until_s = now_s + MASK_WAIT_S
        events: list[Event] = []
        place = -1
        tokens = sum(chunk.stop - chunk.sequence.cached for chunk in chunks)
        for chunk in chunks:
            sequence = chunk.sequence
            count = chunk.stop - sequence.cached
            place += count
            self._turns.charge(sequence.client, (now_s - started_s) * count / tokens)
            sequence.note_computed(chunk.stop, started_s, now_s)
            self._slots.computed(sequence.slot, sequence.tokens, sequence.cached)
            sequence.batch_rows = max(sequence.batch_rows, rows)
            if chunk.last:
                events += self._sample(sequence, place)
        return events

    def _sample(self, sequence: TokenSequence, place: int) -> list[Event]:
        """Draw the sequence's next token; nothing yet where the mask of its grammar is late."""
        logits = self._live().logits(place)
        if sequence.grammar is None:
            return self._take(sequence, logits, place)
        while sequence.grammar.phase is Phase.AWAITED and (left_s := self._mask_until_s - time.monotonic()) > 0.0:
            self._grammars.pump(left_s)
        if sequence.grammar.phase is Phase.AWAITED:
            sequence.hold(logits.copy())
            return []
        return self._take(sequence, logits, place)

    def _take(self, sequence: TokenSequence, logits: npt.NDArray[np.float32], place: int | None) -> list[Event]:
        """Draw from the logits of a place in the last batch, or kept ones (None); the grammar's mask has come."""
        grammar, sampler = sequence.grammar, sequence.sampler
        if grammar is not None and grammar.phase is Phase.FAILED:
            self._fail(sequence, "")
            return [_refused(sequence.job_id, grammar)]
        if grammar is not None and grammar.phase is Phase.ENDED:
            return [self._done(sequence, "stop")]
        try:
            if grammar is not None and place is None:
                token = sampler.sample_held(logits, grammar.mask)
            elif grammar is not None:
                in_place, logits = logits, logits.copy() if sequence.logprobs else logits
                token = sampler.sample_masked(self._live(), place, in_place, grammar.mask)
            else:
                token = sampler.sample(self._live(), place)
        except BackendError as error:
            return [self._fail(sequence, error.what)]
        sequence.last_s = time.monotonic()
        sequence.first_s = sequence.first_s or sequence.last_s
        if self._model.ends(token):
            return [self._done(sequence, "stop")]
        logprobs = [logprob(logits, token)] if sequence.logprobs else []
        sequence.tokens.append(token)
        chunk = Chunk(sequence.job_id, [token], logprobs)
        if sequence.generated >= sequence.max_tokens:
            return [chunk, self._done(sequence, "length")]
        if grammar is not None:
            self._grammars.take(grammar, token)
        return [chunk]

    def _done(self, sequence: TokenSequence, reason: str) -> Done:
        self._leave(sequence)
        first_s = sequence.first_s or sequence.started_s
        figures = Generated(
            finish=reason,
            prompt_tokens=sequence.prompt_tokens,
            cached_tokens=sequence.reused,
            completion_tokens=sequence.generated,
            wait_s=sequence.started_s - sequence.submitted_s,
            prompt_s=first_s - sequence.started_s,
            decode_s=max(0.0, sequence.last_s - first_s),
        )
        outputs: Mapping[str, Any] = figures._asdict()
        return Done(sequence.job_id, outputs, sequence.compute_s, sequence.batch_rows)

    def _fail(self, sequence: TokenSequence, reason: str) -> Failed:
        if sequence.job_id in self._active:
            self._slots.clear(sequence.slot)
        self._leave(sequence)
        return Failed(sequence.job_id, reason)

    def _leave(self, sequence: TokenSequence) -> None:
        if self._active.pop(sequence.job_id, None) is not None:
            self._slots.leave(sequence.slot)
        elif self._parked.pop(sequence.job_id, None) is not None:
            self._slots.unpark(sequence.tokens)
        else:
            return
        self._slots.sweep(self._live().cut)
        sequence.sampler.close()
        if sequence.grammar is not None:
            self._grammars.close(sequence.grammar)


def _refused(job_id: str, grammar: FollowedGrammar) -> Failed:
    return Failed(job_id, grammar.reason, costly=grammar.costly, refused=grammar.blamed)


def _part(chunk: ScheduledChunk) -> DecodeInput:
    sequence = chunk.sequence
    return DecodeInput(sequence.slot, sequence.cached, sequence.tokens[sequence.cached : chunk.stop], chunk.last)
