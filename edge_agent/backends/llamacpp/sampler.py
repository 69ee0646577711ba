"""From logits to a token: a chain of llama.cpp's samplers, over all tokens or those that a grammar's mask allows.

Order as in llama.cpp's tools: penalties, top-k, top-p, min-p, temperature, then a draw (or the best, at temperature 0).
A mask comes before all of them, so that what is drawn is what the model would say among the tokens that are allowed.

A file of its own because it owns the memory of llama.cpp's samplers, one chain per sequence.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.backends.llamacpp.llama_context import LlamaContext
from edge_agent.backends.llamacpp.model import LlamaModel
from edge_agent.base.errors import BackendError

PENALTY_WINDOW = 64
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama.cpp's `llama_token_data`."""

# The task gives all of these; what it leaves out has no effect.
NEUTRAL: Mapping[str, Any] = {
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repeat_penalty": 1.0,
    "seed": 0,
}


class DeadEnd(BackendError):
    """The grammar allows no further token."""


class Sampler:
    """Samples the tokens of one sequence."""

    def __init__(self, model: LlamaModel, params: Mapping[str, Any], prompt: Sequence[int]) -> None:
        self._api = model.library.api
        self._vocab_size = model.vocab_size
        settings = {**NEUTRAL, **{name: params[name] for name in NEUTRAL if name in params}}
        self._greedy = settings["temperature"] <= 0.0 and settings["repeat_penalty"] == 1.0
        self._chain = self._build(settings)
        if settings["repeat_penalty"] != 1.0:
            for token in prompt[-PENALTY_WINDOW:]:
                self._api.llama_sampler_accept(self._chain, token)

    def sample(self, context: LlamaContext, place: int) -> int:
        """The next token from the logits of a place in the last batch."""
        token: int = self._api.llama_sampler_sample(self._chain, context.handle, place)
        return token

    def sample_masked(self, context: LlamaContext, place: int, logits: npt.NDArray[np.float32], mask: bytes) -> int:
        """The next token from a place and its logits [vocab] in the context, of those that the mask (a bit per token)
        allows. The others' logits may be overwritten. Raises DeadEnd."""
        if self._greedy:  # the best is found in the same pass; the chain would copy and read all tokens once more
            best = context.best(logits, mask)
        else:
            best = self.sample(context, place) if context.bar(logits, mask) else -1
        if best < 0:
            raise DeadEnd("the grammar allows no further token", "grammar")
        return best

    def sample_held(self, logits: npt.NDArray[np.float32], mask: bytes) -> int:
        """As `sample_masked`, from logits [vocab] that were kept while others were computed."""
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=self._vocab_size, bitorder="little")
        allowed = np.flatnonzero(bits)
        if not len(allowed):
            raise DeadEnd("the grammar allows no further token", "grammar")
        found = np.zeros(len(allowed), CANDIDATE)
        found["id"] = allowed
        found["logit"] = logits[allowed]
        data = ctypes.cast(found.ctypes.data, ctypes.POINTER(self._api.llama_token_data))
        array = self._api.llama_token_data_array(data, len(found), -1, False)
        self._api.llama_sampler_apply(self._chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        self._api.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        """Give its memory back."""
        self._api.llama_sampler_free(self._chain)

    def _build(self, settings: Mapping[str, Any]) -> Any:
        api = self._api
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        if settings["repeat_penalty"] != 1.0:
            penalty = settings["repeat_penalty"]
            penalties = api.llama_sampler_init_penalties(self._vocab_size, PENALTY_WINDOW, penalty, 0.0, 0.0)
            api.llama_sampler_chain_add(chain, penalties)
        if settings["temperature"] <= 0.0:
            api.llama_sampler_chain_add(chain, api.llama_sampler_init_greedy())
            return chain
        if settings["top_k"] > 0:
            api.llama_sampler_chain_add(chain, api.llama_sampler_init_top_k(settings["top_k"]))
        if settings["top_p"] < 1.0:
            api.llama_sampler_chain_add(chain, api.llama_sampler_init_top_p(settings["top_p"], 1))
        if settings["min_p"] > 0.0:
            api.llama_sampler_chain_add(chain, api.llama_sampler_init_min_p(settings["min_p"], 1))
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_temp(settings["temperature"]))
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_dist(settings["seed"]))
        return chain


def logprob(logits: npt.NDArray[np.float32], token: int) -> float:
    """The natural logarithm of the token's probability under the model itself, before any sampling parameter."""
    highest = float(logits.max())
    return float(logits[token]) - highest - math.log(float(np.exp(logits - highest, dtype=np.float64).sum()))
