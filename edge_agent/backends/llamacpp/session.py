"""The seam over llama.cpp: jobs in, one decode call a step, chunks and figures out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from edge_agent.backends.api import (
    AdapterSource,
    Chunk,
    Done,
    Event,
    Failed,
    Footprint,
    Generated,
    Job,
    Limits,
    Session,
    Vocabulary,
)
from edge_agent.backends.gguf import GgufHeader, read_header
from edge_agent.backends.llamacpp.calls import Calls
from edge_agent.backends.llamacpp.features import FeatureRun
from edge_agent.backends.llamacpp.llama_context import Context, Outcome, Part, Sizes
from edge_agent.backends.llamacpp.model import LlamaVocabulary, Model
from edge_agent.backends.llamacpp.sampler import Sampler, logprob
from edge_agent.backends.llamacpp.sequence_slots import Slots
from edge_agent.backends.llamacpp.step_schedule import Portion, Strand, Turns, by_turns, plan
from edge_agent.backends.llamacpp.tuners import DecodeThreads
from edge_agent.backends.queue import JobQueue
from edge_agent.base.errors import AdapterRefused, BackendError, ProgramRefused


@dataclass(frozen=True, slots=True)
class Settings:
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


class _Adapter(NamedTuple):
    handle: Any
    owner: int
    size_bytes: int


class LlamaSession(Session):
    """One model, one context, its adapters, and the sequences inside it."""

    def __init__(self, model: Model, header: GgufHeader, settings: Settings) -> None:
        self._model = model
        self._header = header
        self._settings = settings
        self.sequences, self.context = settings.sequences, settings.context
        sizes = Sizes(settings.cells, settings.sequences, settings.batch, settings.kv_type)
        self._context: Context | None = Context(model, sizes)
        self._vocabulary = LlamaVocabulary(model, header, settings.context)
        self._adapters: dict[str, _Adapter] = {}
        self._owners = 0
        self._slots = Slots(settings.sequences)
        self._turns = Turns(settings.turn_steps)
        self._calls = Calls()
        self._threads = DecodeThreads(0)
        self._waiting: deque[tuple[Job, Sampler, float]] = deque()
        self._active: dict[str, Strand] = {}
        self._reading: frozenset[str] = frozenset()
        self._features = JobQueue()
        self._feature_run = FeatureRun(self._live, self._slots)
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
            self._turns.forget(name)
            self._model.free_adapter(found.handle)

    def submit(self, job: Job) -> None:
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
        self._waiting.append((job, Sampler(self._model, job.params, job.rows[0]), time.monotonic()))

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
        self._admit(limits)
        if not self._active:
            return []
        adapter = self._turns.next([strand.adapter for strand in self._active.values()])
        group = [strand for strand in self._active.values() if strand.adapter == adapter]
        portions = plan(by_turns(group, max(1, limits.max_rows)), self._settings.batch, self._settings.prompt_chunk)
        prompts = [portion.strand.job_id for portion in portions if not portion.strand.decoding]
        if prompts:
            self._use(adapter, limits.threads)
            return self._call(portions, frozenset(prompts), len(portions))
        rows = self._calls.rows(len(portions))
        found: list[Event] = []
        for start in range(0, len(portions), rows):
            found += self._decode_once(portions[start : start + rows], adapter, limits, len(portions))
        return found

    def cancel(self, job_id: str) -> bool:
        """See `Session.cancel`."""
        self._feature_run.forget(job_id)
        for place, (job, sampler, _) in enumerate(self._waiting):
            if job.job_id == job_id:
                del self._waiting[place]
                sampler.close()
                return True
        strand = self._active.get(job_id)
        if strand is None:
            return self._features.cancel(job_id)
        self._leave(strand)
        return True

    def finish(self, job_id: str) -> Done | None:
        """See `Session.finish`."""
        strand = self._active.get(job_id)
        return None if strand is None else self._done(strand, "stop")

    def interrupt(self, job_id: str) -> bool:
        """See `Session.interrupt`: a step that reads the job's prompt is cut off; a step that decodes is short."""
        context = self._context
        if job_id not in self._reading or context is None:
            return False
        context.stop()
        return True

    def footprint(self) -> Footprint:
        """See `Session.footprint`: weights as mapped, adapters by their tensors, the rest as llama.cpp reports it."""
        context = self._live()
        adapters = sum(adapter.size_bytes for adapter in self._adapters.values())
        return Footprint(self._header.tensor_bytes, adapters, context.cache_bytes, context.arena_bytes)

    def close(self) -> None:
        """See `Session.close`."""
        context, self._context = self._context, None
        if context is None:
            return
        for job_id in [job.job_id for job, _, _ in self._waiting]:
            self.cancel(job_id)
        for strand in list(self._active.values()):
            strand.sampler.close()
        self._active.clear()
        self._features.clear()
        context.close()
        for adapter in self._adapters.values():
            self._model.free_adapter(adapter.handle)
        self._adapters.clear()
        self._model.close()

    def _live(self) -> Context:
        if self._context is None:
            raise BackendError("the session is closed", "llamacpp")
        return self._context

    def _uses(self, adapter: str) -> bool:
        inside = [strand.adapter for strand in self._active.values()]
        return (
            adapter in inside
            or any(job.adapter == adapter for job, _, _ in self._waiting)
            or self._features.uses(adapter)
        )

    def _use(self, adapter: str | None, threads: int) -> None:
        """Adapter and threads of the next call."""
        context = self._live()
        context.use_threads(threads)
        self.switches += context.use_adapter(None if adapter is None else self._adapters[adapter].handle)

    def _decode_once(self, portions: list[Portion], adapter: str | None, limits: Limits, rows: int) -> list[Event]:
        """A call that only decodes: its threads are those that were set, or as many as are worth it."""
        wanted = limits.decode_threads or self._settings.decode_threads
        granted = min(limits.threads, wanted or limits.threads)
        if self._threads.granted != granted:
            self._threads = DecodeThreads(granted)
            self._calls.forget()
        kind = (len(portions), adapter is not None)
        self._use(adapter, granted if wanted else self._threads.count(kind))
        started_s = time.monotonic()
        found = self._call(portions, frozenset(), rows)
        call_s = time.monotonic() - started_s
        if wanted or self._threads.settled(kind):
            self._calls.learn(len(portions), call_s)
        if not wanted and self._threads.learn(kind, call_s):
            self._calls.forget()
        return found

    def _admit(self, limits: Limits) -> None:
        """Give waiting jobs a slot, with what the cache holds of their prompts."""
        while self._waiting and self._slots.free and len(self._active) < max(1, limits.max_rows):
            job, sampler, submitted_s = self._waiting.popleft()
            prompt = list(job.rows[0])
            owner = 0 if job.adapter is None else self._adapters[job.adapter].owner
            place = self._slots.take(owner, prompt, job.client)
            context = self._live()
            if place.source == place.slot:
                context.cut(place.slot, place.cached)
            else:
                context.cut(place.slot, 0)
                context.copy(place.source, place.slot, place.cached)
            strand = Strand(job.job_id, job.adapter, place.slot, prompt, len(prompt), place.cached)
            strand.reused, strand.max_tokens, strand.sampler = place.cached, job.params["max_tokens"], sampler
            strand.logprobs = bool(job.params.get("logprobs"))
            strand.submitted_s, strand.started_s = submitted_s, time.monotonic()
            self._active[job.job_id] = strand

    def _call(self, portions: list[Portion], reading: frozenset[str], rows: int) -> list[Event]:
        """One decode call of a step that `rows` sequences share, and what came of it; nothing when it was cut off."""
        self._reading = reading
        started_s = time.monotonic()
        try:
            done = self._decode([_part(portion) for portion in portions])
        except BackendError as error:
            return [self._fail(portion.strand, error.what) for portion in portions]
        finally:
            self._reading = frozenset()
        return self._advance(portions, started_s, rows) if done else []

    def _decode(self, parts: list[Part]) -> bool:
        """One call; False when it was cut off: then the cache is as it was before."""
        context = self._live()
        if context.decode(parts) is Outcome.DONE:
            return True
        for part in parts:
            context.cut(part.slot, part.start)
        return False

    def _advance(self, portions: list[Portion], started_s: float, rows: int) -> list[Event]:
        now_s = time.monotonic()
        events: list[Event] = []
        place = -1
        for portion in portions:
            strand = portion.strand
            count = portion.stop - strand.cached
            place += count
            strand.cached, strand.worked_s = portion.stop, now_s
            self._slots.computed(strand.slot, strand.tokens, strand.cached)
            strand.compute_s += now_s - started_s
            strand.batch_rows = max(strand.batch_rows, rows)
            if portion.last:
                events += self._sample(strand, place)
        return events

    def _sample(self, strand: Strand, place: int) -> list[Event]:
        context = self._live()
        try:
            token = strand.sampler.sample(context, place)
        except BackendError as error:
            return [self._fail(strand, error.what)._replace(costly=isinstance(error, ProgramRefused))]
        strand.last_s = time.monotonic()
        strand.first_s = strand.first_s or strand.last_s
        if self._model.ends(token):
            return [self._done(strand, "stop")]
        logprobs = [logprob(context.logits(place), token)] if strand.logprobs else []
        strand.tokens.append(token)
        chunk = Chunk(strand.job_id, [token], logprobs)
        return [chunk] if strand.generated < strand.max_tokens else [chunk, self._done(strand, "length")]

    def _done(self, strand: Strand, reason: str) -> Done:
        self._leave(strand)
        first_s = strand.first_s or strand.started_s
        figures = Generated(
            finish=reason,
            prompt_tokens=strand.prompt_tokens,
            cached_tokens=strand.reused,
            completion_tokens=strand.generated,
            wait_s=strand.started_s - strand.submitted_s,
            prompt_s=first_s - strand.started_s,
            decode_s=max(0.0, strand.last_s - first_s),
        )
        outputs: Mapping[str, Any] = figures._asdict()
        return Done(strand.job_id, outputs, strand.compute_s, strand.batch_rows)

    def _fail(self, strand: Strand, reason: str) -> Failed:
        self._slots.clear(strand.slot)
        self._leave(strand)
        return Failed(strand.job_id, reason)

    def _leave(self, strand: Strand) -> None:
        del self._active[strand.job_id]
        self._slots.leave(strand.slot)
        self._slots.sweep(self._live().cut)
        strand.sampler.close()


def _part(portion: Portion) -> Part:
    strand = portion.strand
    return Part(strand.slot, strand.cached, strand.tokens[strand.cached : portion.stop], portion.last)
