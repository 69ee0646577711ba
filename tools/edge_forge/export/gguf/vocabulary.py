"""A tokenizer as GGUF keys: tokens, their kinds, merges or scores, special ids, how text is split, the chat template.

Two kinds exist. Byte-level BPE ('gpt2' in GGUF) splits text by a regular expression first; llama.cpp knows these by
name (`tokenizer.ggml.pre`), and a wrong name gives wrong tokens without an error. So the name is derived from the
pre-tokenizer's own structure, an unknown one is refused, and what llama.cpp then makes of sample texts is compared with
the tokenizer itself (`export.gguf.convert`). BPE over pieces with byte fallback ('llama' in GGUF: Llama 2, Gemma)
carries scores instead of merges; `tokenizer.json` has only merges, and their rank is the order of the scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.base.errors import ConfigError, brief
from edge_agent.bundle.gguf_header import NFC_KEY, SPACE_PREFIX_KEY, SPACES_BEFORE_KEY, SPACES_BEHIND_KEY
from edge_agent.bundle.prompt_tokens import AddedToken, TextRules
from edge_forge.models.bases import plain_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens (llama.h, `llama_token_type`)."""

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_SPLITS = {_QWEN2: "qwen2", _LLAMA3: "llama-bpe"}
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEMPLATE_TOKENS = ("bos", "eos", "unk", "pad")
_UNKNOWN_SCORE = -1e6
_NAMED = 5
"""Tokens that a refusal names."""
# llama.cpp takes tokens of these names for control tokens whatever the file says (llama-vocab.cpp), and writes no text
# for them: what ends a turn, and what frames code to be filled in.
_ALWAYS_CONTROL = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>",
    "_<EOT>", "[EOT]", "[EOS]", "</s>", "<eos>", "<|eom_id|>", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
    "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<turn|>", "<|fim_prefix|>", "<fim-prefix>",
    "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>", "<|prefix|>", "<|fim_suffix|>",
    "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>", "<|suffix|>",
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
    "<|middle|>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>",
    "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
))  # fmt: skip

_FURTHER_ENDS = ("eot", "eom")
# Of these llama.cpp ends an answer at each, whatever the file names.
_ENDS_BY_NAME = frozenset((
    "<|eot_id|>", "<|im_end|>", "<turn|>", "</s>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>",
))  # fmt: skip


@dataclass(frozen=True)
class GgufVocabulary:
    """A tokenizer, ready to be written. `scores` belong to 'llama', `merges` and `pre` to 'gpt2'."""

    model: str
    pre: str
    tokens: Sequence[bytes]
    kinds: Sequence[int]
    merges: Sequence[str]
    scores: Sequence[float]
    special: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    rules: TextRules
    takes_spaces_before: Sequence[int]
    takes_spaces_behind: Sequence[int]
    chat_template: str | None

    def write(self, writer: Any) -> None:
        """Add the keys `tokenizer.*` to a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.kinds))
        if self.model == "gpt2":
            writer.add_token_merges(list(self.merges))
        else:
            writer.add_token_scores(list(self.scores))
            writer.add_add_space_prefix(self.rules.space_prefix != "never")
            if self.rules.space_prefix != "never" and self.rules.spares_spaces:
                writer.add_string(SPACE_PREFIX_KEY, self.rules.space_prefix)
        for name, value in self.special.items():
            getattr(writer, f"add_{name}_token_id")(value)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.rules.nfc:
            writer.add_bool(NFC_KEY, True)
        for key, ids in ((SPACES_BEFORE_KEY, self.takes_spaces_before), (SPACES_BEHIND_KEY, self.takes_spaces_behind)):
            if ids:
                writer.add_array(key, list(ids))
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read(folder: Path, size: int) -> GgufVocabulary:
    """The tokenizer of a folder for a model with `size` rows. Raises ConfigError for kinds it cannot write."""
    where = str(folder / "tokenizer.json")
    found = require_bpe(folder / "tokenizer.json")
    model = found["model"]
    fallback = bool(model.get("byte_fallback"))
    tokens, kinds = _tokens(found, size, fallback, where)
    merges = [one if isinstance(one, str) else " ".join(one) for one in model.get("merges", ())]
    options = _options(folder)
    add_bos, add_eos = _ends(folder, options)
    added = added_tokens(folder)
    return GgufVocabulary(
        model="llama" if fallback else "gpt2",
        pre="default" if fallback else _merging(_split_name(found, where), model, where),
        tokens=tokens,
        kinds=kinds,
        merges=merges,
        scores=_scores(tokens, kinds, merges) if fallback else (),
        special=_special(folder, {token.decode(): place for place, token in enumerate(tokens)}),
        add_bos=add_bos,
        add_eos=add_eos,
        rules=text_rules(folder),
        takes_spaces_before=[one.token for one in added if one.lstrip],
        takes_spaces_behind=[one.token for one in added if one.rstrip],
        chat_template=chat_template(folder),
    )


def require_bpe(path: Path) -> Mapping[str, Any]:
    """A tokenizer.json. Raises ConfigError where it cannot be read or is of another kind than BPE."""
    where = str(path)
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("the tokenizer is missing", where, "a generator needs tokenizer.json") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"the tokenizer cannot be read: {error}", where) from error
    kind = found.get("model", {}).get("type")
    if kind != "BPE":
        raise ConfigError(f"a tokenizer of type {kind!r} cannot be written as GGUF", where)
    return found


def require_own_ids(path: Path, library: Any) -> None:
    """Raise ConfigError where the library gives an added token another id than tokenizer.json states.

    The library numbers added tokens on from the end of the vocabulary, whatever the file says; a model's table and the
    GGUF file go by the file.
    """
    for one in _json(path).get("added_tokens", ()):
        given = library.token_to_id(one["content"])
        if given != one["id"]:
            raise ConfigError(
                f"the added token {one['content']!r} has the id {one['id']} in the file, the library takes it for "
                f"{given}", str(path), "give it an id of the vocabulary, or the one behind the last token",
            )  # fmt: skip


def added_tokens(folder: Path) -> tuple[AddedToken, ...]:
    """The added tokens of a tokenizer, with the kinds that the GGUF file gives them. Raises ConfigError for one whose
    way of being found no GGUF file can say."""
    where = str(folder / "tokenizer.json")
    found = []
    for one in _json(folder / "tokenizer.json").get("added_tokens", ()):
        if one.get("single_word"):
            raise ConfigError(
                f"the added token {one['content']!r} is one whole word only (single_word), which no GGUF file can say",
                where,
                "use a tokenizer without such tokens",
            )
        is_control = bool(one.get("special")) or one["content"] in _ALWAYS_CONTROL
        found.append(
            AddedToken(one["id"], one["content"], is_control, bool(one.get("lstrip")), bool(one.get("rstrip")))
        )
    return tuple(found)


def plain_library(folder: Path) -> Any:
    """The tokenizer (of `tokenizers`) for plain text: it takes no control token for one, and cuts nothing."""
    found = _json(folder / "tokenizer.json")
    for one in found.get("added_tokens", ()):
        one["special"] = one.get("special") or one["content"] in _ALWAYS_CONTROL
    return plain_tokenizer(json.dumps(found))


def text_rules(folder: Path) -> TextRules:
    """What the tokenizer does with plain text before it splits it."""
    found = _json(folder / "tokenizer.json")
    normalizers = [step["type"] for step in _steps(found.get("normalizer") or {})]
    return TextRules(_space_prefix(found), "Prepend" not in normalizers, "NFC" in normalizers)


def first_token(folder: Path) -> int | None:
    """The id of the token that is put before a text; None where none is."""
    adds = _ends(folder, _options(folder))[0]
    return _special(folder, _token_ids(folder)).get("bos") if adds else None


def chat_template(folder: Path) -> str | None:
    """The chat template of a Hugging Face folder: its own file, or the tokenizer's configuration."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = _options(folder).get("chat_template")
    if isinstance(found, list):
        found = next((one["template"] for one in found if one.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def special_tokens(folder: Path) -> dict[str, str]:
    """Texts by name (`bos_token` and so on) of the special tokens that a chat template may use.

    They are those that the GGUF file names, so that the device renders with the same ones: a token that config.json
    alone names is among them, and one that the vocabulary lacks is not.
    """
    ids = _token_ids(folder)
    texts = {place: token for token, place in ids.items()}
    found = _special(folder, ids)
    return {f"{name}_token": texts[found[name]] for name in TEMPLATE_TOKENS if found.get(name) in texts}


def _named_tokens(folder: Path) -> dict[str, str]:
    """Texts of the special tokens that the tokenizer's configuration names, by `bos`, `eos`, `unk` and `pad`."""
    found = {}
    for name in TEMPLATE_TOKENS:
        token = _options(folder).get(f"{name}_token")
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            found[name] = content
    return found


def end_tokens(folder: Path) -> tuple[int, ...]:
    """Ids of the tokens that end a text, the tokenizer's own first; empty where none is named."""
    found = _special(folder, _token_ids(folder))
    return tuple(found[name] for name in ("eos", *_FURTHER_ENDS) if name in found)


def _tokens(found: Mapping[str, Any], size: int, fallback: bool, where: str) -> tuple[list[bytes], list[int]]:
    by_id: dict[int, tuple[str, int]] = {}
    for token, place in found["model"]["vocab"].items():
        is_byte = fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        by_id[place] = (token, BYTE if is_byte else NORMAL)
    for one in found.get("added_tokens", ()):
        is_control = one.get("special") or one["content"] in _ALWAYS_CONTROL
        by_id[one["id"]] = (one["content"], CONTROL if is_control else USER_DEFINED)
    unknown = found["model"].get("unk_token")
    for place, (token, _) in by_id.items():
        if fallback and token == unknown:
            by_id[place] = (token, UNKNOWN)
    beyond = sorted(place for place in by_id if place >= size)
    if beyond:
        names = ", ".join(f"{by_id[place][0]!r} ({place})" for place in beyond[:_NAMED])
        raise ConfigError(
            f"{len(beyond)} tokens have an id beyond the model's table of {size} rows: {names}", where,
            "take the tokenizer that the model was trained with, or resize the model's embeddings to it",
        )  # fmt: skip
    filled = [by_id.get(place, (f"[PAD{place}]", UNUSED)) for place in range(size)]
    return [token.encode() for token, _ in filled], [kind for _, kind in filled]


def _split_name(found: Mapping[str, Any], where: str) -> str:
    """llama.cpp's name of the way in which the text is split before BPE."""
    steps = list(_steps(found.get("pre_tokenizer") or {}))
    kinds = [step["type"] for step in steps]
    if found.get("normalizer") not in (None, {"type": "NFC"}):
        raise ConfigError("a byte-level tokenizer with a normalizer cannot be written as GGUF", where)
    if kinds and kinds[-1] == "ByteLevel" and not steps[-1].get("add_prefix_space"):
        own, before = bool(steps[-1].get("use_regex", True)), steps[:-1]
        if own and not before:
            return "gpt-2"
        if own and [step["type"] for step in before] == ["Digits"] and before[0].get("individual_digits"):
            return "smollm"
        if not own and len(before) == 1 and before[0]["type"] == "Split":
            pattern = before[0].get("pattern", {}).get("Regex")
            if before[0].get("behavior") == "Isolated" and not before[0].get("invert") and pattern in _SPLITS:
                return _SPLITS[pattern]
            if pattern == _GPT2:
                return "gpt-2"
    raise ConfigError(
        f"llama.cpp would not split text as this tokenizer does ({', '.join(kinds) or 'no pre-tokenizer'})", where,
        "use a model whose tokenizer is like that of GPT-2, SmolLM2, Llama 3 or Qwen2",
    )  # fmt: skip


def _merging(split: str, model: Mapping[str, Any], where: str) -> str:
    """The name `split`, or of the same split without `ignore_merges` (a word of the vocabulary is taken whole), which
    goes with names in llama.cpp: Llama 3's has it, DBRX's splits alike and has it not."""
    ignores = bool(model.get("ignore_merges"))
    if split == "llama-bpe":
        return split if ignores else "dbrx"
    if ignores:
        raise ConfigError(
            f"ignore_merges is true, which llama.cpp does not know of tokenizers that split as {split}", where,
            "use a model whose tokenizer is like that of Llama 3",
        )  # fmt: skip
    return split


def _steps(step: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if step.get("type") == "Sequence":
        for inner in step.get("pretokenizers") or step.get("normalizers") or ():
            yield from _steps(inner)
    elif step:
        yield step


def _scores(tokens: Sequence[bytes], kinds: Sequence[int], merges: Sequence[str]) -> list[float]:
    """Scores in the order of the merges that make the pieces: the earlier merge wins, as in sentencepiece's own BPE."""
    rank: dict[str, int] = {}
    for place, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), place)
    return [
        0.0 if kind != NORMAL else -float(rank[token.decode()]) if token.decode() in rank else _UNKNOWN_SCORE
        for token, kind in zip(tokens, kinds, strict=True)
    ]


def _space_prefix(found: Mapping[str, Any]) -> str:
    """Whether a space is put before each piece of the text (Llama 2) or before the first alone, by the normalizer or
    the pre-tokenizer: 'always', 'first', 'never'."""
    normalizers = list(_steps(found.get("normalizer") or {}))
    if any(step["type"] == "Prepend" for step in normalizers):
        return "always"
    steps = _steps(found.get("pre_tokenizer") or {})
    return next((step.get("prepend_scheme", "always") for step in steps if step["type"] == "Metaspace"), "never")


def _ends(folder: Path, options: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the tokenizer puts BOS before a text and EOS behind it, found by encoding a text."""
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain = library.encode("a", add_special_tokens=False).ids
    ids = library.encode("a").ids
    at = next((place for place in range(len(ids)) if ids[place : place + len(plain)] == plain), 0)
    return at > 0 or options.get("add_bos_token") is True, len(ids) > at + len(plain)


def _token_ids(folder: Path) -> dict[str, int]:
    library = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return {**library["model"]["vocab"], **{one["content"]: one["id"] for one in library.get("added_tokens", ())}}


def _special(folder: Path, ids: Mapping[str, int]) -> dict[str, int]:
    """Ids of bos, eos, unk, pad, and of eot and eom where generation ends at further tokens. Raises ConfigError for
    ends that a GGUF file cannot name."""
    found = {name: ids[token] for name, token in _named_tokens(folder).items() if token in ids}
    texts = {place: token for token, place in ids.items()}
    config: dict[str, Any] = {}
    where = folder / "config.json"
    for path in (where, folder / "generation_config.json"):
        config |= (read := _json(path))
        where = path if "eos_token_id" in read else where
    ends = config.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    for one in ends:
        if type(one) is not int or one not in texts:
            raise ConfigError(
                f"eos_token_id names {brief(one)}, and the tokenizer has no token of that id", str(where),
                "name the tokens at which the model's answers end",
            )  # fmt: skip
    if "eos" not in found and ends:
        found["eos"] = ends[0]
    others = [one for one in dict.fromkeys(ends) if one != found.get("eos")]
    # What llama.cpp ends at by its name needs no key of its own.
    others.sort(key=lambda one: texts[one] in _ENDS_BY_NAME)
    found |= dict(zip(_FURTHER_ENDS, others, strict=False))
    beyond = [texts[one] for one in others[len(_FURTHER_ENDS) :] if texts[one] not in _ENDS_BY_NAME]
    if beyond:
        raise ConfigError(
            f"eos_token_id names {len(ends)} tokens, and llama.cpp would go on behind {beyond[0]!r}: a GGUF file names "
            "three", str(where), "leave out those that the model does not write",
        )  # fmt: skip
    begin = config.get("bos_token_id")
    if "bos" not in found and type(begin) is int and begin in texts:
        found["bos"] = begin
    return found


def _options(folder: Path) -> dict[str, Any]:
    """The merged contents of tokenizer_config.json and special_tokens_map.json."""
    return {**_json(folder / "special_tokens_map.json"), **_json(folder / "tokenizer_config.json")}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}", str(path)) from error
    return found if isinstance(found, dict) else {}
