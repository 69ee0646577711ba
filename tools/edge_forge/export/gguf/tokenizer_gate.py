"""The gate that a tokenizer must pass: the library `tokenizers`, the host and the device make the same tokens.

A file of its own because it runs twice: before anything long begins, on a GGUF file that holds the tokenizer alone, and
on every converted model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np

from edge_agent.base.errors import BackendError, ConfigError
from edge_forge.data.chat_tokenizer import ChatTokenizer
from edge_forge.evaluate.measure_gguf import tokenize
from edge_forge.evaluate.measure_onnx import token_counts
from edge_forge.evaluate.probes import BASE_TEXTS
from edge_forge.export.gguf import vocabulary
from edge_forge.export.gguf.vocabulary import added_tokens

SCRIPTS = (
    "Привет, как дела? Ёлка стоит.", "Γειά σου Κόσμε, τι κάνεις;", "こんにちは、世界。カタカナと漢字",
    "你好，世界！今天天气很好。", "안녕하세요 세계", "مرحبا بالعالم، كيف حالك؟", "שלום עולם", "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "ọ̀rọ̀ Yorùbá, İstanbul'da ığdır", "Größe, naïve, Ærø, ﬁ ligature, ＦＵＬＬ width", "１２３ ٣٤٥ ⅷ ½ ² 1,234.56",
)  # fmt: skip
SYMBOLS = (
    "😀👍🏽👩‍👩‍👧‍👦🇩🇪 ok ❤️", "→ ∑ ≠ € £ ¥ © ™ § ° µ", "!?...,;:--''\"\"``~~@@##$$%%^^&&**(())[]{}<>|\\//",
    "“quotes” – dash — «these» …", "'s 't 're 'VE 'll I'M don'T",
)  # fmt: skip
SPACES = (
    " ", "  ", "   ", "\t\tx", "a  b   c    d", "  lead and trail  ", "a\nb\r\nc\rd", "\n\n\n", "a \n b\n\n  c",
    "\u00a0no\u00a0break", "x\u3000y", "def f(x):\n    return  x\n\n\tpass\n",
)  # fmt: skip
# Composed by NFC where the tokenizer says so: e + acute, Hangul jamo, the angstrom sign, a mark beside a bracket.
DECOMPOSED = (
    "cafe\u0301 A\u030angstro\u0308m", "\u1112\u1161\u11ab\u1100\u1173\u11af", "\u212b \u2126", ">\u0338 <\u0338",
    "q\u0307\u0323",
)  # fmt: skip
ODD = (
    "\x00", "a\x00b\x00\x00", "\x01\x7f\x1b[0m", "\ufeffbom", "\u200bzero\u200dwidth\u00ad", "\ufffd",
    "\ue000 private", "\U0010ffff", "",
)  # fmt: skip
LONG = ("x" * 5000, "ab1" * 2000, "日" * 2000, " " * 3000, "=" * 300, "1" * 300)
TEXTS: Sequence[str] = (*BASE_TEXTS, *SCRIPTS, *SYMBOLS, *SPACES, *DECOMPOSED, *ODD, *LONG)
_ADDED = 96
"""Added tokens that are tried, spread evenly; some vocabularies have thousands of reserved ones."""


def check(folder: Path, path: Path) -> None:
    """Compare the tokens of a model folder's tokenizer with those of a GGUF file. Raises BackendError that names the
    first text that differs."""
    from tokenizers import Tokenizer

    texts = [*TEXTS, *_around_added(folder)]
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.no_padding()
    library.no_truncation()
    wanted = [library.encode(text, add_special_tokens=False).ids for text in texts]
    host = ChatTokenizer(folder, "no")
    mine = [list(host.ids(text)) for text in texts]
    found = tokenize(path, texts)
    for text, due, ours, got in zip(texts, wanted, mine, found, strict=True):
        for who, ids in (("edge-forge", ours), ("llama.cpp", got)):
            if ids != due:
                raise BackendError(
                    f"{who} makes of {_shown(text)} the tokens {ids[:8]}, the model's tokenizer {due[:8]} "
                    f"({len(ids)} and {len(due)} in all)",
                    str(folder), "this tokenizer has no GGUF form yet",
                )  # fmt: skip


def check_readable(folder: Path) -> None:
    """Raise ConfigError for a tokenizer.json that the library cannot open or numbers otherwise, or of another kind than
    BPE, before any other part reads its fields."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        token_counts(path, ["a"])
    except BackendError as error:
        raise ConfigError(
            f"the tokenizer cannot be read: {error.what}", str(path), "give a base with its tokenizer"
        ) from error
    vocabulary.require_bpe(path)
    vocabulary.require_own_ids(path, Tokenizer.from_file(str(path)))


def check_alone(folder: Path, size: int) -> None:
    """Like `check`, with a GGUF file of nothing but the tokenizer, for a model of `size` rows. Raises ConfigError for a
    tokenizer that has no GGUF form."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "tokenizer.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for add in (writer.add_block_count, writer.add_head_count):
            add(1)
        for add in (writer.add_context_length, writer.add_embedding_length):
            add(32)
        vocabulary.read(folder, size).write(writer)
        writer.add_tensor("token_embd.weight", np.zeros(32, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        check(folder, path)


def _around_added(folder: Path) -> Iterator[str]:
    """Texts around added tokens: alone, twice, inside of a word, between spaces and line breaks, cut short."""
    added = added_tokens(folder)
    for one in added[:: max(1, len(added) // _ADDED)]:
        token = one.text
        yield from (token, token * 2, f"a{token}b", f"x  {token}  y", f" \n{token}\n\n z", f"{token[:-1]} {token[1:]}")
    yield " ".join(one.text for one in added[:_ADDED])


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:40]!r}... ({len(text)} characters)"
