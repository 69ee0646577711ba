"""One GGUF file in memory: its mapped weights, its vocabulary, and adapters for it."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from edge_agent.backends.api import Vocabulary
from edge_agent.backends.gguf import GgufHeader
from edge_agent.backends.llamacpp.grammar_process import SPECIAL
from edge_agent.backends.llamacpp.library import LlamaLibrary, never, present
from edge_agent.base.errors import AdapterRefused
from edge_agent.base.limits import MIB
from edge_agent.bundle.prompt_tokens import AddedToken, TextEncoder, TextRules

PIECE_BYTES = 256
DEEP_BYTES = 4096
STACK_BYTES_PER_BYTE = 1024
"""llama.cpp splits texts of some vocabularies (tekken, gpt-4o, falcon) by a regular expression that recurses for every
character of a long word: 32 KiB of one letter overran a stack of 8 MiB. Stack that is not touched takes no memory."""

_NO_DEVICES = (ctypes.c_void_p * 1)(None)
_SHARED = "/dev/nvmap"
"""The allocator of a Jetson's GPU, which takes from the memory of the processor."""


def shares_memory() -> bool:
    """Whether GPU and processor have one memory."""
    return os.path.exists(_SHARED)  # noqa: PTH110 (pathlib costs memory for one line)


BYTE_LEVEL = "gpt2"
"""The tokenizer for which llama.cpp's default for bos and eos is no special token but number 11 of GPT-2's."""


def _deeply(work: Callable[[bytes], list[int]], data: bytes) -> list[int]:
    """Run `work` on a thread whose stack is large enough for the text."""
    found: list[list[int]] = []
    before = threading.stack_size(16 * MIB + STACK_BYTES_PER_BYTE * len(data))
    try:
        thread = threading.Thread(target=lambda: found.append(work(data)), name="tokenize")
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    return found[0]


class LlamaModel:
    """Weights, vocabulary and adapters.

    Raises BackendError when the file cannot be loaded.
    """

    def __init__(
        self, library: LlamaLibrary, path: str, repack: bool, vocabulary_only: bool = False, gpu_layers: int = 0
    ) -> None:
        self.library = library
        api = library.api
        settings = api.llama_model_default_params()
        settings.load_mode = api.LLAMA_LOAD_MODE_MMAP
        settings.n_gpu_layers = gpu_layers
        if not gpu_layers:
            # An empty list of devices, ended by a null pointer: a GPU that is listed takes its memory without a layer.
            settings.devices = ctypes.cast(_NO_DEVICES, ctypes.c_void_p).value
        # Repacked weights are a second, anonymous copy, and AMX buffers crash on quantised models (llama.cpp#20824).
        settings.use_extra_bufts = repack
        settings.vocab_only = vocabulary_only
        library.log.begin()
        self.handle = api.llama_model_load_from_file(path.encode(), settings)
        if not present(self.handle):
            raise never("cannot load the model", path, library.log)
        self.gpu_bytes = int(library.log.gpu_mib * MIB)
        self.vocab = api.llama_model_get_vocab(self.handle)
        self.vocab_size: int = api.llama_vocab_n_tokens(self.vocab)

    def load_adapter(self, path: str, name: str) -> Any:
        """A resident adapter. Raises AdapterRefused with llama.cpp's reason."""
        self.library.log.begin()
        handle = self.library.api.llama_adapter_lora_init(self.handle, path.encode())
        if not present(handle):
            raise AdapterRefused(f"adapter {name!r} does not fit this model: {self.library.log.reason()}", path)
        return handle

    def free_adapter(self, handle: Any) -> None:
        """Free an adapter, which no context may use any more."""
        self.library.api.llama_adapter_lora_free(handle)

    def ends(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return bool(self.library.api.llama_vocab_is_eog(self.vocab, token))

    def words(self) -> tuple[list[bytes], list[int]]:
        """(bytes of every token, tokens that end an answer), as `grammar_process` reads them.

        What is no text has `SPECIAL` before it; where nothing ends an answer, one token more is given that does. Safe
        on any thread: nothing is written but a buffer of its own.
        """
        api, buffer = self.library.api, ctypes.create_string_buffer(PIECE_BYTES)
        special = api.LLAMA_TOKEN_ATTR_CONTROL | api.LLAMA_TOKEN_ATTR_UNKNOWN | api.LLAMA_TOKEN_ATTR_UNUSED
        found, ends = list[bytes](), list[int]()
        for token in range(self.vocab_size):
            word = self._word(token, buffer)
            kind = api.llama_vocab_get_attr(self.vocab, token)
            mark = kind & api.LLAMA_TOKEN_ATTR_USER_DEFINED and word.startswith(b"<") and word.endswith(b">")
            if self.ends(token):
                ends.append(token)
                mark = True
            found.append(SPECIAL + word if mark or kind & special else word)
        if not ends:
            ends.append(len(found))
            found.append(SPECIAL + b"<end>")
        return found, ends

    def _word(self, token: int, buffer: ctypes.Array[ctypes.c_char]) -> bytes:
        to_piece = self.library.api.llama_token_to_piece
        count = to_piece(self.vocab, token, buffer, PIECE_BYTES, 0, True)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = to_piece(self.vocab, token, buffer, -count, 0, True)
        return buffer.raw[:count]

    def close(self) -> None:
        """Unmap the weights; contexts and adapters must be gone."""
        self.library.api.llama_model_free(self.handle)


class LlamaVocabulary(Vocabulary):
    """The tokenizer in a GGUF file, computed by llama.cpp."""

    def __init__(self, model: LlamaModel, header: GgufHeader, context: int) -> None:
        self._api = model.library.api
        self._vocab = model.vocab
        self._size = model.vocab_size
        self._buffer = ctypes.create_string_buffer(PIECE_BYTES)
        self.context = context
        self.chat_template = header.chat_template
        self._header = header
        self.special_tokens = self._special_tokens(header)
        self._cached = functools.lru_cache(maxsize=16384)(self._piece)

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """See `Vocabulary.encoder`. Added tokens are found here and not by llama.cpp, which looks for the longest first
        instead of the leftmost, knows nothing of the spaces that a token takes along, and finds those that are no
        control tokens in any text."""
        header = self._header
        bos = self._api.llama_vocab_bos(self._vocab) if self._api.llama_vocab_get_add_bos(self._vocab) else -1
        rules = TextRules(header.space_prefix, header.spares_spaces, header.nfc)
        return TextEncoder(tuple(self._added()), self._plain, rules, bos if bos >= 0 else None)

    def _added(self) -> Iterator[AddedToken]:
        api, header = self._api, self._header
        control = api.LLAMA_TOKEN_ATTR_CONTROL | api.LLAMA_TOKEN_ATTR_UNKNOWN
        for token in range(self._size):
            kind = api.llama_vocab_get_attr(self._vocab, token)
            if kind & (control | api.LLAMA_TOKEN_ATTR_USER_DEFINED) and (text := self._text(token)):
                before = bool(kind & api.LLAMA_TOKEN_ATTR_LSTRIP) or token in header.takes_spaces_before
                behind = bool(kind & api.LLAMA_TOKEN_ATTR_RSTRIP) or token in header.takes_spaces_behind
                yield AddedToken(token, text, bool(kind & control), before, behind)

    def _plain(self, text: str) -> list[int]:
        """Ids of a text without control tokens and without bos. It has at most one token per byte, and a prefix."""
        data = text.encode("utf-8")
        return self._tokens(data) if len(data) <= DEEP_BYTES else _deeply(self._tokens, data)

    def _tokens(self, data: bytes) -> list[int]:
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = self._api.llama_tokenize(self._vocab, data, len(data), ids, room, False, False)
        return list(ids[: max(0, count)])

    def piece(self, token: int) -> bytes:
        """See `Vocabulary.piece`."""
        return self._cached(token)

    def _special_tokens(self, header: GgufHeader) -> dict[str, str]:
        """Texts of the special tokens that the file names, by the names that chat templates use."""
        ids = dict(header.special_token_ids)
        if header.tokenizer != BYTE_LEVEL:
            ids.setdefault("bos", self._api.llama_vocab_bos(self._vocab))
            ids.setdefault("eos", self._api.llama_vocab_eos(self._vocab))
        texts = {f"{name}_token": self._text(token) for name, token in ids.items()}
        return {name: text for name, text in texts.items() if text}

    def _piece(self, token: int) -> bytes:
        return self._read(token, special=False)

    def _text(self, token: int) -> str:
        return self._read(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def _read(self, token: int, special: bool) -> bytes:
        count = self._api.llama_token_to_piece(self._vocab, token, self._buffer, PIECE_BYTES, 0, special)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = self._api.llama_token_to_piece(self._vocab, token, buffer, -count, 0, special)
            return buffer.raw[:count]
        return self._buffer.raw[:count]
