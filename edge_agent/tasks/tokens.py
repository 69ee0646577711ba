"""Texts to token ids. Truncation is set here, never taken from the tokenizer's file, and always reported."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edge_agent.base.errors import BackendError, BackendMissing
from edge_agent.base.texts import Text, parts_of, size_bytes

if TYPE_CHECKING:
    from edge_agent.base.context_windows import ContextWindow
    from edge_agent.base.words import TextWord

UNIGRAM_UNKNOWN = "<unk>"
_SAID_CHARACTERS = 200
FIRST_BYTE = "<0x00>"
"""In a vocabulary with byte fallback every byte has a token of this form."""


class EncodedText(NamedTuple):
    """One text: its ids (at most the bound), how many it would have had, whether it was cut.

    `pieces` are the tokens of the whole text without special ones, `unknown` how many of them are the tokenizer's
    unknown token (None: the tokenizer has none; it splits unknown text into smaller pieces or bytes).
    """

    ids: list[int]
    tokens: int
    truncated: bool
    pieces: int
    unknown: int | None


class Wording(NamedTuple):
    """How the tokenizer split one text: bytes in UTF-8, tokens without special ones, and the unknown ones of these."""

    size_bytes: int
    pieces: int
    unknown: int | None


class Tokenizer:
    """A `tokenizer.json` by the `tokenizers` library, with a bound on tokens (special ones included).

    A pair becomes one row, by the template of the file: `[CLS] text [SEP] text_pair [SEP]` of a BERT. A text cannot
    write a special token: "[SEP]" in it is split like any other word. `prompt` is put before every text, of a pair
    before the first: some encoders were trained with one.
    """

    def __init__(self, path: str, max_tokens: int, prompt: str = "") -> None:
        self._library = _opened(path)
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._added = {pair: self._library.num_special_tokens_to_add(pair) for pair in (False, True)}
        self._unknown_id = unknown_id(self._library)

    def encode(self, texts: Sequence[Text]) -> list[EncodedText]:
        """Ids of every text or pair, in order. Of a pair that is too long, tokens are cut from its longer text.

        Raises BackendError for texts that the library cannot split.
        """
        with _by_the_library("the tokenizer cannot split the text"):
            singles = [text for text in texts if isinstance(text, str)]
            encoded = iter(self._encode(singles) if singles else ())
            return [next(encoded) if isinstance(text, str) else self._encode_pair(*text) for text in texts]

    def _encode(self, texts: Sequence[str]) -> list[EncodedText]:
        # The tasks of a worker share the library's object and may have different bounds.
        self._library.enable_truncation(max_length=self._max_tokens)
        encodings = self._library.encode_batch([self._prompt + text for text in texts])
        found = []
        for encoding in encodings:
            ids, rest = encoding.ids, encoding.overflowing
            cut = sum(len(part.ids) - _specials(part) for part in rest)
            tokens = len(ids) + cut
            unknown = None
            if self._unknown_id is not None:
                unknown = ids.count(self._unknown_id) + sum(part.ids.count(self._unknown_id) for part in rest)
            found.append(EncodedText(ids, tokens, cut > 0, max(0, tokens - self._added[False]), unknown))
        return found

    def words(self, text: str) -> list[TextWord]:
        """The words of a text whose first token is among those that `encode` gives. Raises BackendError."""
        from edge_agent.base.words import words_of  # imported here: other tasks do without it

        with _by_the_library("the tokenizer cannot split the text"):
            self._library.no_truncation()
            found = self._library.encode(self._prompt + text)
        return words_of(text, found, self._max_tokens, len(self._prompt))

    def windows(self, question: str, context: str, overlap: int, most: int) -> tuple[EncodedText, list[ContextWindow]]:
        """How the pair is split as a whole, and its rows (`context_windows.windows_of`); no rows where the question is
        too long. Raises BackendError."""
        from edge_agent.base.context_windows import windows_of  # imported here: other tasks do without it

        with _by_the_library("the tokenizer cannot split the text"):
            self._library.no_truncation()
            found = self._library.encode(self._prompt + question, context)
        ids: list[int] = found.ids
        unknown = None if self._unknown_id is None else ids.count(self._unknown_id)
        whole = EncodedText(ids, len(ids), False, max(0, len(ids) - self._added[True]), unknown)
        return whole, windows_of(found, self._max_tokens, overlap, most) or []

    def _encode_pair(self, text: str, pair: str) -> EncodedText:
        """A pair is split whole first: what the library gives of a cut pair holds its rest in several combinations,
        from which its length cannot be told."""
        self._library.no_truncation()
        whole: list[int] = self._library.encode(self._prompt + text, pair).ids
        ids = whole
        if len(whole) > self._max_tokens:
            self._library.enable_truncation(max_length=self._max_tokens, strategy="longest_first")
            ids = self._library.encode(self._prompt + text, pair).ids
        unknown = None if self._unknown_id is None else whole.count(self._unknown_id)
        tokens = len(whole)
        return EncodedText(ids, tokens, tokens > len(ids), max(0, tokens - self._added[True]), unknown)


@contextlib.contextmanager
def _by_the_library(what: str, where: str | None = None) -> Iterator[None]:
    """Raises BackendError where `tokenizers` fails. It raises Exception itself (a token that a text needs is missing),
    and a panic of its Rust code (a merge shorter than its prefix) comes as a BaseException of no importable class."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the model, or the one job, is refused with the library's words
        raise BackendError(f"{what}: {str(error)[:_SAID_CHARACTERS]}", where) from error


# Opened files by path, size and time of change. An adapter's task reuses its model's tokenizer: parsing it takes about
# 50 ms and several MB, more than attaching an adapter.
_OPENED: dict[tuple[str, int, float], Any] = {}
_OPENED_MAX = 4


def _opened(path: str) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from tokenizers import Tokenizer as Library
    except ImportError as error:
        raise BackendMissing(
            "tokenizers is not installed", "tasks", "install edge-agent with its extra onnx"
        ) from error
    with _by_the_library("the tokenizer cannot be read", path):
        state = os.stat(path)  # noqa: PTH116 (one call is not worth importing pathlib in every worker)
        key = (path, state.st_size, state.st_mtime)
        if key not in _OPENED:
            library = Library.from_file(path)
            library.no_padding()
            library.encode_special_tokens = True
            while len(_OPENED) >= _OPENED_MAX:
                del _OPENED[next(iter(_OPENED))]
            _OPENED[key] = library
    return _OPENED[key]


def unknown_id(library: Any) -> int | None:
    """The id of the unknown token; None where the tokenizer has none, or falls back to bytes.

    WordPiece, WordLevel and BPE name it. The library does not show a Unigram's: it is `<unk>` in those of
    SentencePiece, whose byte fallback shows in the vocabulary.
    """
    name = getattr(library.model, "unk_token", UNIGRAM_UNKNOWN)
    if name is None or library.token_to_id(FIRST_BYTE) is not None:
        return None
    found: int | None = library.token_to_id(name)
    return found


def _specials(encoding: Any) -> int:
    return int(sum(encoding.special_tokens_mask))


class ByteTokenizer:
    """The UTF-8 bytes themselves, for models that come without a tokenizer (the echo backend)."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens

    def encode(self, texts: Sequence[Text]) -> list[EncodedText]:
        """Bytes of every text, in order; of a pair with a zero between them."""
        found = []
        for text in texts:
            ids = list("\0".join(parts_of(text)).encode("utf-8"))
            found.append(EncodedText(ids[: self._max_tokens], len(ids), len(ids) > self._max_tokens, len(ids), None))
        return found


def wording(texts: Sequence[Text], encoded: Sequence[EncodedText]) -> list[Wording]:
    """How a tokenizer split these texts."""
    return [Wording(size_bytes(text), one.pieces, one.unknown) for text, one in zip(texts, encoded, strict=True)]


def open_tokenizer(path: str | None, max_tokens: int, prompt: str = "") -> Any:
    """The tokenizer of a model; bytes where it has none."""
    return ByteTokenizer(max_tokens) if path is None else Tokenizer(path, max_tokens, prompt)
