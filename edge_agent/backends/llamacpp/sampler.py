"""From logits to a token: a chain of llama.cpp's samplers, and a grammar that is applied only when it is needed.

Order as in llama.cpp's tools: penalties, top-k, top-p, min-p, temperature, then a draw (or the best, at temperature 0).
Applying a grammar to the whole vocabulary for every token is slow. So the chain draws first; only when the grammar
refuses the token, the grammar is applied to all tokens and the chain draws again (as in llama.cpp common/sampling.cpp).

A file of its own because it owns the memory of llama.cpp's samplers, one chain per sequence.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.backends.llamacpp import grammar
from edge_agent.backends.llamacpp.llama_context import LlamaContext
from edge_agent.backends.llamacpp.model import LlamaModel
from edge_agent.base.errors import BackendError, ProgramRefused

PENALTY_WINDOW = 64
GRAMMAR_STEP_S = 1.0
"""Seconds per token after which a grammar is refused: an ambiguous one grows without bound and delays all sequences."""

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
    """Samples the tokens of one sequence. Raises BackendError for a grammar that cannot be used."""

    def __init__(self, model: LlamaModel, params: Mapping[str, Any], prompt: Sequence[int]) -> None:
        self._api = model.library.api
        self._vocab_size = model.vocab_size
        settings = {**NEUTRAL, **{name: params[name] for name in NEUTRAL if name in params}}
        # The grammar comes first: only it can fail, and then nothing else has to be freed.
        self._grammar = grammar.build(model, params)
        self._chain = self._build(settings)
        if settings["repeat_penalty"] != 1.0:
            for token in prompt[-PENALTY_WINDOW:]:
                self._api.llama_sampler_accept(self._chain, token)
        self._candidates: npt.NDArray[Any] | None = None

    def sample(self, context: LlamaContext, place: int) -> int:
        """The next token from the logits of a place in the last batch. Raises DeadEnd, ProgramRefused."""
        if self._grammar is None:
            token: int = self._api.llama_sampler_sample(self._chain, context.handle, place)
            return token
        logits = context.logits(place)
        began_s = time.monotonic()
        token = self._choose(logits, ruled=False)
        if not self._allowed(token):
            token = self._choose(logits, ruled=True)
            if not self._allowed(token):
                # When no allowed token has a probability above 0, the chain may draw one that is not allowed.
                raise DeadEnd("no token that the grammar allows can be drawn", "grammar", "raise the temperature")
        self._api.llama_sampler_accept(self._chain, token)
        self._api.llama_sampler_accept(self._grammar, token)
        took_s = time.monotonic() - began_s
        if took_s > GRAMMAR_STEP_S:
            raise ProgramRefused(
                f"the grammar takes {took_s:.1f} s for one token; {GRAMMAR_STEP_S:g} s are possible", "grammar"
            )
        return token

    def close(self) -> None:
        """Give its memory back."""
        self._api.llama_sampler_free(self._chain)
        if self._grammar is not None:
            self._api.llama_sampler_free(self._grammar)

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

    def _choose(self, logits: npt.NDArray[np.float32], ruled: bool) -> int:
        found = self._filled(logits)
        array = grammar.token_array(self._api, found)
        if ruled:
            self._api.llama_sampler_apply(self._grammar, ctypes.byref(array))
            if not np.isfinite(found["logit"]).any():
                raise DeadEnd("the grammar allows no further token", "grammar")
        self._api.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def _allowed(self, token: int) -> bool:
        one = np.zeros(1, grammar.CANDIDATE)
        one["id"] = token
        array = grammar.token_array(self._api, one)
        self._api.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return bool(np.isfinite(one["logit"][0]))

    def _filled(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        if self._candidates is None:
            self._candidates = np.zeros(self._vocab_size, grammar.CANDIDATE)
        self._candidates["id"] = np.arange(self._vocab_size, dtype=np.int32)
        self._candidates["logit"] = logits
        return self._candidates


def logprob(logits: npt.NDArray[np.float32], token: int) -> float:
    """The natural logarithm of the token's probability under the model itself, before any sampling parameter."""
    highest = float(logits.max())
    return float(logits[token]) - highest - math.log(float(np.exp(logits - highest, dtype=np.float64).sum()))
