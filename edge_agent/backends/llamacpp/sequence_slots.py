"""Slots of the KV cache for sequences, and the prefix cache in them. Pure.

A slot keeps its tokens after its job has ended, until another job needs it. Cached keys and values depend on the
adapter that computed them, so a prefix is found only under the same adapter: `owner` is a number that every attachment
gets anew (0: the base), so that an adapter that is attached again does not find the cache of its former version. A
prefix is found only for the same client too: the number of cached tokens in an answer would tell what others asked.

Cells of the cache that are kept have a cost: the attention of every computed token masks them (docs/decisions/0133). So
they are kept while prompts do share prefixes. Where few do, a free slot keeps its token ids only, without cells; with
them it is noticed when prompts begin to share prefixes again.

An answer that gave way is parked: its slot is free for others, and its cells are kept, as those of a prefix are, until
they are needed. So there are more slots than sequences. The cells of all are one pool, with room for as many full
contexts as there are sequences: `make_room` drops what is kept where the sequences at work need it.

A file of its own because it is pure and tested without llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# Cells are kept while, on average, at least _WORTH_SHARE of a prompt was cached; _FORGET is the weight of the newest
# prompt in that average. It starts at _FIRST_SHARE: a first conversation is kept, a dozen that share nothing end it.
_WORTH_SHARE = 0.1
_FIRST_SHARE, _FORGET = 0.5, 1 / 8


class Place(NamedTuple):
    """Where a new sequence goes: its slot, how many tokens of its prompt are cached, and in which slot they lie."""

    slot: int
    cached: int
    source: int


@dataclass(slots=True)
class _Slot:
    owner: int = 0
    client: str = ""
    tokens: Sequence[int] = ()
    count: int = 0
    busy: bool = False
    used: int = 0
    cells: bool = False
    parked: bool = False

    def set_busy(self, busy: bool, parked: bool = False) -> None:
        """Whether its job is at work, or its answer gave way."""
        self.busy, self.parked = busy, parked

    def drop(self) -> None:
        """Its cells are gone."""
        self.tokens, self.count, self.cells, self.parked = (), 0, False, False


@dataclass(slots=True)
class SequenceSlots:
    """The slots of one context, `at_once` of which are busy at most, with `kept` more for what is not at work. `tokens`
    of a slot is the owner's list, of which the first `count` are computed."""

    at_once: int
    kept: int = 0
    _slots: list[_Slot] = field(init=False)
    _clock: int = 0
    _share: float = _FIRST_SHARE

    def __post_init__(self) -> None:
        self._slots = [_Slot() for _ in range(self.at_once + self.kept)]

    @property
    def free(self) -> int:
        """How many more sequences can be at work."""
        return self.at_once - sum(slot.busy for slot in self._slots)

    def take(self, owner: int, prompt: Sequence[int], client: str = "") -> Place:
        """A slot for a new sequence; one must be free. The last token of a prompt is always computed.

        A free slot with the prefix is continued if at most as many of its tokens are lost as are reused. Else the
        prefix is copied to the slot that was unused for longest, and its holder keeps all tokens: two conversations
        that share little more than their beginning do not evict each other.
        """
        best, source, known = 0, -1, 0
        for number, slot in enumerate(self._slots):
            if slot.owner == owner and slot.client == client:
                common = min(_common(slot.tokens, prompt, slot.count), len(prompt) - 1)
                known = max(known, common)
                if slot.cells and (common > best or (common == best and common and not slot.busy)):
                    best, source = common, number
        if prompt and owner >= 0:
            self._share += (known / len(prompt) - self._share) * _FORGET
        idle = [number for number, slot in enumerate(self._slots) if not slot.busy]
        chosen = min(idle, key=self._least_needed)
        if source in idle and self._slots[source].count - best <= best and not self._slots[source].parked:
            chosen = source
        self._clock += 1
        self._slots[chosen] = _Slot(owner, client, prompt, best, True, self._clock, True)
        return Place(chosen, best, chosen if source < 0 else source)

    def park(self, slot: int) -> None:
        """Free the slot of an answer that gives way; its cells are kept as long as they are not needed."""
        self._slots[slot].set_busy(False, parked=True)

    def resume(self, owner: int, tokens: Sequence[int], client: str) -> Place:
        """A slot for an answer that was parked; `tokens`: the list that `computed` was given. One must be free."""
        number = self._parked(tokens)
        if number is None:
            share = self._share
            place = self.take(owner, tokens, client)
            self._share = share  # it says nothing of how much new prompts share
            return place
        self._clock += 1
        slot = self._slots[number]
        slot.set_busy(True)
        slot.used = self._clock
        return Place(number, slot.count, number)

    def unpark(self, tokens: Sequence[int]) -> None:
        """A parked answer has ended: its cells are a prefix like others."""
        number = self._parked(tokens)
        if number is not None:
            self._slots[number].set_busy(False)

    def make_room(self, tokens: int, cells: int, cut: Callable[[int, int], None]) -> None:
        """Drop what is not at work until `tokens` more fit into `cells`: prefixes first, the oldest first. `cut` as in
        `sweep`. Cells that two slots share count twice."""
        held = sum(slot.count for slot in self._slots if slot.cells)
        idle = [number for number, slot in enumerate(self._slots) if slot.cells and not slot.busy]
        for number in sorted(idle, key=self._least_needed):
            if held + tokens <= cells:
                return
            slot = self._slots[number]
            held -= slot.count
            slot.drop()
            cut(number, 0)

    def computed(self, slot: int, tokens: Sequence[int], count: int) -> None:
        """The slot's cache now holds the first `count` of `tokens`."""
        self._slots[slot].tokens = tokens
        self._slots[slot].count = count

    def leave(self, slot: int) -> None:
        """Free a slot whose job has ended; its tokens stay for prompts with the same beginning."""
        self._slots[slot].set_busy(False)

    def clear(self, slot: int) -> None:
        """Mark the slot's tokens as unusable."""
        self._slots[slot].tokens, self._slots[slot].count = (), 0

    def forget(self, owner: int) -> None:
        """Clear the free slots of an adapter that was detached."""
        for number, slot in enumerate(self._slots):
            if slot.owner == owner and not slot.busy:
                self.clear(number)

    def sweep(self, cut: Callable[[int, int], None]) -> None:
        """Free the cells that are not needed: `cut(slot, start)` drops the cells of a slot from a position on."""
        for number, slot in enumerate(self._slots):
            kept = slot.busy or slot.parked
            if slot.cells and not kept and (not slot.count or self._share < _WORTH_SHARE):
                slot.cells = False
                cut(number, 0)

    def _parked(self, tokens: Sequence[int]) -> int | None:
        found = (number for number, slot in enumerate(self._slots) if slot.parked and slot.tokens is tokens)
        return next(found, None)

    def _least_needed(self, number: int) -> tuple[bool, int]:
        return self._slots[number].parked, self._slots[number].used


def _common(held: Sequence[int], prompt: Sequence[int], count: int) -> int:
    """Length of the common prefix of `prompt` and the first `count` of `held`."""
    most = min(count, len(prompt))
    if list(held[:most]) == list(prompt[:most]):
        return most
    return next(place for place in range(most) if held[place] != prompt[place])
