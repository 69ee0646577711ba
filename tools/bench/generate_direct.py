"""llama.cpp driven directly, with the settings of the agent's backend: what the agent is held against."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from edge_agent.backends.gguf import padded
from edge_agent.backends.llamacpp.context import Context, Part, Sizes
from edge_agent.backends.llamacpp.library import open_library
from edge_agent.backends.llamacpp.model import Model


@dataclass(frozen=True, slots=True)
class Speed:
    """One answer: seconds until its first token was chosen, tokens per second of the others."""

    prompt_s: float
    prompt_per_s: float
    decode_per_s: float


class Direct:
    """A model and one sequence: `llama_decode` and the greedy sampler in a loop."""

    def __init__(self, model: Path, context: int, batch: int, threads: int) -> None:
        library = open_library()
        self._api = library.api
        self._batch = batch
        self._model = Model(library, str(model), repack=False)
        self._context = Context(self._model, Sizes(padded(context), 1, batch, "f16"))
        self._context.use_threads(threads, threads)
        self._sampler = self._api.llama_sampler_init_greedy()

    def close(self) -> None:
        """Give the memory back."""
        self._api.llama_sampler_free(self._sampler)
        self._context.close()
        self._model.close()

    def run(self, prompt: list[int], answer: int) -> Speed:
        """Read a prompt, then choose `answer` tokens."""
        self._context.cut(0, 0)
        started_s = time.perf_counter()
        for start in range(0, len(prompt), self._batch):
            tokens = prompt[start : start + self._batch]
            self._context.decode([Part(0, start, tokens, start + len(tokens) == len(prompt))])
        token = self._api.llama_sampler_sample(self._sampler, self._context.handle, len(tokens) - 1)
        first_s = time.perf_counter()
        for place in range(answer - 1):
            self._context.decode([Part(0, len(prompt) + place, [token], True)])
            token = self._api.llama_sampler_sample(self._sampler, self._context.handle, 0)
        ended_s = time.perf_counter()
        return Speed(first_s - started_s, len(prompt) / (first_s - started_s), (answer - 1) / (ended_s - first_s))
