"""Chooses the tokens that the next decode call computes. Pure.

Every decoding sequence gets one token; the rest of the batch goes to prompts, in chunks that bound the delay of the
decoding ones (chunked prefill). A context applies one adapter at a time, so adapters are served in round robin: a turn
ends after `AdapterRoundRobin.steps` steps when another adapter waits, which bounds the wait to (adapters - 1) turns.

A file of its own because it is pure and tested without llama.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

OLDEST_SHARE = 4
"""One OLDEST_SHARE-th of a call's room for prompts is reserved for the oldest of them."""


@dataclass(slots=True, eq=False)
class TokenSequence:
    """One active sequence: its tokens so far (prompt and answer), of which the first `cached` are in the cache.

    Times are monotonic seconds. `reused`: tokens of its prompt that the prefix cache had. `held`: logits from which its
    next token is drawn when the mask of its `grammar` has come; until then it is not computed. `read_s`, `decode_s`: of
    its present turn, see `answer_turns` (a prompt is read in no turn: what is read of it need not be read again).
    """

    job_id: str
    adapter: str | None
    client: str
    slot: int
    tokens: list[int]
    prompt_tokens: int
    cached: int
    max_tokens: int = 0
    sampler: Any = None
    grammar: Any = None
    held: Any = None
    logprobs: bool = False
    reused: int = 0
    submitted_s: float = 0.0
    started_s: float = 0.0
    first_s: float | None = None
    last_s: float = 0.0
    worked_s: float = 0.0
    compute_s: float = 0.0
    batch_rows: int = 1
    read_s: float = 0.0
    decode_s: float = 0.0

    def note_computed(self, stop: int, started_s: float, now_s: float) -> None:
        """Its tokens to `stop` were computed in a call from `started_s` to `now_s`."""
        if self.decoding and self.reading:
            self.read_s += now_s - started_s
        elif self.decoding:
            self.decode_s += now_s - started_s
        self.cached, self.worked_s = stop, now_s
        self.compute_s += now_s - started_s

    def begin_turn(self, slot: int, cached: int) -> None:
        """It goes on after it was parked."""
        self.slot, self.cached = slot, cached
        self.read_s = self.decode_s = 0.0

    def hold(self, logits: Any) -> None:
        """Keep the logits of its next token until the mask of its grammar comes."""
        self.held = logits

    def release(self) -> Any:
        """The logits that were held; it is computed again from now on."""
        logits, self.held = self.held, None
        return logits

    @property
    def pending(self) -> int:
        """Tokens that are not computed yet: one while it decodes, more during its prompt."""
        return len(self.tokens) - self.cached

    @property
    def decoding(self) -> bool:
        """Whether its first token was sampled."""
        return len(self.tokens) > self.prompt_tokens

    @property
    def reading(self) -> bool:
        """Whether tokens are computed that are no new ones: its prompt, or what was dropped while it was parked."""
        return not self.decoding or self.pending > 1

    @property
    def may_park(self) -> bool:
        """Whether it is between two tokens of its answer."""
        return not self.reading and self.held is None

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_tokens


class ScheduledChunk(NamedTuple):
    """Tokens `cached` to `stop` of a sequence; `last`: no token of the sequence is pending after
    them, so the next token is sampled."""

    sequence: TokenSequence
    stop: int

    @property
    def last(self) -> bool:
        """Whether a token is sampled after them."""
        return self.stop == len(self.sequence.tokens)


def schedule_chunks(sequences: Sequence[TokenSequence], batch: int, prompt_chunk: int) -> list[ScheduledChunk]:
    """The chunks of one call of at most `batch` tokens; prompts, and answers that are read again, get `prompt_chunk` of
    them while others decode.

    The prompt with the fewest tokens left comes first, so that its first token does not wait for longer prompts. A
    quarter of the room is reserved for the oldest prompt, so that short ones cannot starve it.
    """
    chunks = [ScheduledChunk(one, len(one.tokens)) for one in sequences if not one.reading][:batch]
    room = batch - len(chunks)
    if chunks:
        room = min(room, prompt_chunk)
    prompting = [one for one in sequences if one.reading]
    kept = min(room // OLDEST_SHARE, prompting[0].pending) if prompting else 0
    for one in sorted(prompting, key=lambda waiting: waiting.pending):
        kept = 0 if one is prompting[0] else kept
        count = min(one.pending, room - kept)
        if count > 0:
            chunks.append(ScheduledChunk(one, one.cached + count))
            room -= count
    return chunks


def longest_waiting(sequences: Sequence[TokenSequence], rows: int) -> list[TokenSequence]:
    """At most `rows` of the sequences, those whose last step is longest ago, in the given order."""
    chosen = {one.job_id for one in sorted(sequences, key=lambda one: one.worked_s)[:rows]}
    return [one for one in sequences if one.job_id in chosen]


@dataclass(slots=True)
class AdapterRoundRobin:
    """Which adapter is computed next: the one that was served longest ago, after `steps` steps of the present one."""

    steps: int
    _current: str | None = None
    _held: int = 0
    _served: dict[str | None, int] = field(default_factory=dict)
    _clock: int = 0

    def next(self, waiting: Sequence[str | None]) -> str | None:
        """The adapter of the next step, one of `waiting` (which is not empty)."""
        others = [name for name in waiting if name != self._current]
        if self._current not in waiting or (others and self._held >= self.steps):
            self._current = min(others, key=lambda name: self._served.get(name, -1))
            self._held = 0
        self._held += 1
        self._clock += 1
        self._served[self._current] = self._clock
        return self._current

    def forget(self, adapter: str) -> None:
        """Forget an adapter that was detached."""
        self._served.pop(adapter, None)
