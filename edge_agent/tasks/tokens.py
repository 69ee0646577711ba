"""Texts to token ids. Truncation is set here, never taken from the tokenizer's file, and always reported."""

import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from edge_agent.base.errors import BackendError, BackendMissing


class Encoded(NamedTuple):
    """One text: its ids (at most the bound), how many it would have had, whether it was cut."""

    ids: List[int]
    tokens: int
    truncated: bool


class Tokenizer:
    """A `tokenizer.json` by the `tokenizers` library, with a bound on tokens (special ones included)."""

    def __init__(self, path: str, max_tokens: int) -> None:
        self._library = _opened(path)
        self._max_tokens = max_tokens

    def encode(self, texts: Sequence[str]) -> List[Encoded]:
        """Ids of every text, in order."""
        # The library's object is shared by the tasks of a worker, which may bound texts differently.
        self._library.enable_truncation(max_length=self._max_tokens)
        found = []
        for encoding in self._library.encode_batch(list(texts)):
            cut = sum(len(part.ids) - _specials(part) for part in encoding.overflowing)
            found.append(Encoded(encoding.ids, len(encoding.ids) + cut, cut > 0))
        return found


# Files that were opened, by path, size and time of change: an adapter's task reuses its model's tokenizer, which takes
# longer to parse (about 50 ms, several MB) than an adapter to attach.
_OPENED: Dict[Tuple[str, int, float], Any] = {}
_OPENED_MAX = 4


def _opened(path: str) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from tokenizers import Tokenizer as Library
    except ImportError as error:
        raise BackendMissing("tokenizers is not installed", "tasks", "pip install edge-agent[onnx]") from error
    try:
        state = os.stat(path)  # noqa: PTH116 (one call is not worth importing pathlib in every worker)
        key = (path, state.st_size, state.st_mtime)
        if key not in _OPENED:
            library = Library.from_file(path)
            library.no_padding()
            while len(_OPENED) >= _OPENED_MAX:
                del _OPENED[next(iter(_OPENED))]
            _OPENED[key] = library
    except Exception as error:  # the library raises Exception itself; the model is refused with its reason
        raise BackendError("the tokenizer cannot be read: {}".format(error), path) from error
    return _OPENED[key]


def _specials(encoding: Any) -> int:
    return int(sum(encoding.special_tokens_mask))


class ByteTokenizer:
    """The UTF-8 bytes themselves, for models that come without a tokenizer (the echo backend)."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens

    def encode(self, texts: Sequence[str]) -> List[Encoded]:
        """Bytes of every text, in order."""
        found = []
        for text in texts:
            ids = list(text.encode("utf-8"))
            found.append(Encoded(ids[: self._max_tokens], len(ids), len(ids) > self._max_tokens))
        return found


def open_tokenizer(path: Optional[str], max_tokens: int) -> Any:
    """The tokenizer of a model; bytes where it has none."""
    return ByteTokenizer(max_tokens) if path is None else Tokenizer(path, max_tokens)
