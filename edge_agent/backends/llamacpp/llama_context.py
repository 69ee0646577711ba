"""A llama.cpp context: the KV cache of all sequences, and the call that computes (`decode`).

The cache is one pool for all sequences (kv_unified): sequences of different lengths share one graph, a prefix is copied
between them without moving data, and Flash Attention skips the cells of other sequences.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_agent.backends.llamacpp.library import never, present
from edge_agent.backends.llamacpp.model import LlamaModel
from edge_agent.base.errors import BackendError, WorkerError

# ggml_type of the cache (ggml.h).
KV_TYPES = {"f16": 1, "q8_0": 8}
_FLASH_ATTENTION_ON = 1
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_HIGHEST = np.where(_BITS, np.inf, -np.inf).astype(np.float32)
"""For each byte of a mask the highest values that the logits of its eight tokens may have."""


class DecodeInput(NamedTuple):
    """Tokens of one sequence for one call, at positions from `start`; `sample` asks for the last one's logits."""

    slot: int
    start: int
    tokens: Sequence[int]
    sample: bool


class Outcome(Enum):
    """How a decode call ended; after ABORTED the cache may hold a part of the tokens."""

    DONE = 0
    ABORTED = 2


class ContextSizes(NamedTuple):
    """The sizes of a context: cells of the cache, slots that share them, tokens per call, and the number format of the
    cache."""

    cells: int
    slots: int
    batch: int
    kv_type: str


class LlamaContext:
    """One llama.cpp context. Raises BackendError when it cannot be made."""

    def __init__(self, model: LlamaModel, sizes: ContextSizes) -> None:
        self._api = model.library.api
        self._model = model
        self._vocab_size = model.vocab_size
        self._highest: npt.NDArray[np.float32] | None = None
        # llama.cpp calls the abort callback between two operations of its graph. It is `strlen` of this buffer, since a
        # Python function would take the interpreter lock a thousand times per token. '' gives 0, go on; 'x' gives 1.
        self._stop = ctypes.create_string_buffer(2)
        self._poll = self._api.ggml_abort_callback(ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value)
        model.library.log.begin()
        self.handle = self._api.llama_init_from_model(model.handle, self._settings(sizes))
        if not present(self.handle):
            raise never("cannot make room for the context", "llamacpp", model.library.log)
        mib = model.library.log.buffer_mib
        self.cache_bytes = int(mib.get("KV", 0.0) * (1 << 20))
        self.arena_bytes = int((mib.get("compute", 0.0) + mib.get("output", 0.0)) * (1 << 20))
        self.gpu_bytes = int(model.library.log.gpu_mib * (1 << 20))
        self._memory = self._api.llama_get_memory(self.handle)
        self._api.llama_set_abort_callback(self.handle, self._poll, ctypes.cast(self._stop, ctypes.c_void_p))
        self._batch = _Batch(self._api, min(sizes.batch, self._api.llama_n_batch(self.handle)))
        self._threads = 0
        self._adapter: Any = None

    def _settings(self, sizes: ContextSizes) -> Any:
        settings = self._api.llama_context_default_params()
        settings.n_ctx = sizes.cells
        settings.n_batch = settings.n_ubatch = sizes.batch
        settings.n_seq_max = settings.n_outputs_max = sizes.slots
        settings.type_k = settings.type_v = KV_TYPES[sizes.kv_type]
        settings.flash_attn_type = _FLASH_ATTENTION_ON
        settings.kv_unified = True
        settings.no_perf = True
        return settings

    def use_threads(self, count: int) -> None:
        """Set the threads from the next call on, the same for llama.cpp's two kinds of calls (one token, several)."""
        if count != self._threads:
            self._api.llama_set_n_threads(self.handle, count, count)
            self._threads = count

    def use_adapter(self, adapter: Any) -> bool:
        """Use this adapter from now on (None: none); True when that is a change."""
        if adapter is self._adapter:
            return False
        if adapter is None:
            failed = self._api.llama_set_adapters_lora(self.handle, None, 0, None)
        else:
            handles = (self._api.llama_adapter_lora_p_ctypes * 1)(adapter)
            scales = (ctypes.c_float * 1)(1.0)
            failed = self._api.llama_set_adapters_lora(self.handle, handles, 1, scales)
        if failed:
            raise BackendError("llama.cpp does not take the adapter", "llamacpp")
        self._adapter = adapter
        return True

    def decode(self, parts: Sequence[DecodeInput]) -> Outcome:
        """Compute the parts. Raises BackendError when the cache is full, WorkerError when it cannot be
        used any more."""
        self._stop[0] = b"\0"
        code = self._api.llama_decode(self.handle, self._batch.fill(parts))
        if code in (Outcome.DONE.value, Outcome.ABORTED.value):
            return Outcome(code)
        if code in (1, -1):
            what = "the cache has no room for the batch" if code == 1 else "the batch is not valid"
            raise BackendError(f"{what} ({sum(len(part.tokens) for part in parts)} tokens)", "llamacpp")
        raise WorkerError(f"llama.cpp gave up with code {code}: {self._model.library.log.reason()}", "llamacpp")

    def stop(self) -> None:
        """Make the running call end early; called from another thread."""
        self._stop[0] = b"x"

    def logits(self, place: int) -> npt.NDArray[np.float32]:
        """The logits of a place in the last batch [vocab], as a view that the next call overwrites."""
        pointer = self._api.llama_get_logits_ith(self.handle, place)
        if not present(pointer):
            raise BackendError(f"llama.cpp has no logits for place {place}", "llamacpp")
        return np.ctypeslib.as_array(pointer, (self._vocab_size,))

    def bar(self, logits: npt.NDArray[np.float32], mask: bytes) -> bool:
        """Set the logits [vocab] that a mask (a bit per token) does not allow to minus infinity. False where it allows
        none; then nothing is set."""
        highest = self._highest_of(mask)
        if highest is None:
            return False
        np.fmin(logits, highest, out=logits)
        return True

    def best(self, logits: npt.NDArray[np.float32], mask: bytes) -> int:
        """The token of the highest logit that a mask allows; -1 where it allows none."""
        highest = self._highest_of(mask)
        return -1 if highest is None else int(np.fmin(logits, highest, out=highest).argmax())

    def _highest_of(self, mask: bytes) -> npt.NDArray[np.float32] | None:
        """The highest values [vocab] that logits may have under a mask, in a buffer that the next call overwrites."""
        if self._highest is None:
            self._highest = np.empty((-(-self._vocab_size // 8), 8), np.float32)
        allowed = np.frombuffer(mask, np.uint8, count=len(self._highest))
        if not allowed.any():
            return None
        # A third of the time of unpacking bits: a fixed buffer, no branch for a token.
        np.take(_HIGHEST, allowed, axis=0, out=self._highest, mode="clip")
        return self._highest.reshape(-1)[: self._vocab_size]

    def cut(self, slot: int, start: int) -> None:
        """Forget a sequence from a position on."""
        self._api.llama_memory_seq_rm(self._memory, slot, start, -1)

    def copy(self, source: int, slot: int, stop: int) -> None:
        """Let a sequence begin with another one's first `stop` tokens; cells are shared, not copied."""
        self._api.llama_memory_seq_cp(self._memory, source, slot, 0, stop)

    def close(self) -> None:
        """Give the cache back."""
        self._api.llama_free(self.handle)


class _Batch:
    """The arrays of a `llama_batch`, allocated once."""

    def __init__(self, api: Any, size: int) -> None:
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._slots = np.zeros(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        self._ones = np.ones(size, np.int32)
        self._slot_places = np.arange(size, dtype=np.uintp) * 4 + self._slots.ctypes.data
        self._struct = api.llama_batch(
            0,
            _pointer(self._tokens, ctypes.c_int32),
            None,
            _pointer(self._positions, ctypes.c_int32),
            _pointer(self._ones, ctypes.c_int32),
            ctypes.cast(self._slot_places.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            _pointer(self._wanted, ctypes.c_int8),
        )

    def fill(self, parts: Sequence[DecodeInput]) -> Any:
        """Put the parts one after the other. More tokens than fit would crash the process: BackendError here."""
        at = 0
        for part in parts:
            stop = at + len(part.tokens)
            if stop > len(self._tokens):
                raise BackendError(f"a batch of more than {len(self._tokens)} tokens", "llamacpp")
            self._tokens[at:stop] = part.tokens
            self._positions[at:stop] = range(part.start, part.start + len(part.tokens))
            self._slots[at:stop] = part.slot
            self._wanted[at:stop] = 0
            self._wanted[stop - 1] = part.sample
            at = stop
        self._struct.n_tokens = at
        return self._struct


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))
