"""llama.cpp driven directly with the settings of the agent's backend: the reference for the agent's figures."""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from edge_agent.backends.gguf import padded
from edge_agent.backends.llamacpp.library import open_library
from edge_agent.backends.llamacpp.llama_context import ContextSizes, DecodeInput, LlamaContext
from edge_agent.backends.llamacpp.model import LlamaModel

KEPT_SEQUENCES, KEPT_TOKENS, KEPT_CELLS = 8, 220, 256

Row = tuple[str, object]


@dataclass(frozen=True, slots=True)
class Speed:
    """One answer: seconds until its first token, and tokens per second of the prompt and of the other tokens."""

    prompt_s: float
    prompt_per_s: float
    decode_per_s: float


class Direct:
    """A model and one sequence: `llama_decode` and the greedy sampler in a loop."""

    def __init__(self, model: Path, context: int, batch: int, threads: int, sequences: int = 1) -> None:
        library = open_library()
        self._api = library.api
        self._batch = batch
        self._model = LlamaModel(library, str(model), repack=False)
        self._context = LlamaContext(self._model, ContextSizes(padded(context), sequences, batch, "f16"))
        self._context.use_threads(threads)
        self._sampler = self._api.llama_sampler_init_greedy()

    def close(self) -> None:
        """Free the memory."""
        self._api.llama_sampler_free(self._sampler)
        self._context.close()
        self._model.close()

    def empty(self, sequences: int) -> None:
        """Remove all sequences."""
        for sequence in range(sequences):
            self._context.cut(sequence, 0)

    def fill(self, sequence: int, prompt: list[int]) -> None:
        """Process a prompt in another sequence and keep its cells."""
        self._context.cut(sequence, 0)
        self._context.decode([DecodeInput(sequence, 0, prompt, True)])

    def run(self, prompt: list[int], answer: int) -> Speed:
        """Process a prompt, then generate `answer` tokens."""
        self._context.cut(0, 0)
        started_s = time.perf_counter()
        for start in range(0, len(prompt), self._batch):
            tokens = prompt[start : start + self._batch]
            self._context.decode([DecodeInput(0, start, tokens, start + len(tokens) == len(prompt))])
        token = self._api.llama_sampler_sample(self._sampler, self._context.handle, len(tokens) - 1)
        first_s = time.perf_counter()
        for place in range(answer - 1):
            self._context.decode([DecodeInput(0, len(prompt) + place, [token], True)])
            token = self._api.llama_sampler_sample(self._sampler, self._context.handle, 0)
        ended_s = time.perf_counter()
        return Speed(first_s - started_s, len(prompt) / (first_s - started_s), (answer - 1) / (ended_s - first_s))


def kept(_folder: Path, model: Path, options: argparse.Namespace) -> list[Row]:
    """The cost of cells that other conversations keep in the cache, for a prompt and its answer, alternately."""
    direct = Direct(model, KEPT_SEQUENCES * KEPT_CELLS, KEPT_CELLS, options.threads, KEPT_SEQUENCES)
    prompt = [65 + place % 23 for place in range(KEPT_TOKENS)]
    answer = KEPT_CELLS - KEPT_TOKENS
    prompts: list[float] = []
    tokens: list[float] = []
    for _ in range(options.rounds):
        direct.empty(KEPT_SEQUENCES)
        alone = direct.run(prompt, answer)
        direct.empty(KEPT_SEQUENCES)
        for sequence in range(1, KEPT_SEQUENCES):
            direct.fill(sequence, prompt)
        beside = direct.run(prompt, answer)
        prompts.append(beside.prompt_s / alone.prompt_s)
        tokens.append(alone.decode_per_s / beside.decode_per_s)
    direct.close()
    title = f"beside {KEPT_SEQUENCES - 1} kept prompts of {KEPT_TOKENS} tokens, times as long:"
    found = (("a prompt", prompts), ("a token of the answer", tokens))
    return [
        (f"{title} {what}", f"{statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})")
        for what, times in found
    ]
