"""`base_id`: what makes two bases the same. Equal ids mean that equal functions are computed.

The digest is over the configuration as transformers reads it, with the defaults of its class left out, so that a key
that nobody wrote, its default written out, and an older spelling of it (`rope_theta`, `rope_parameters`) are one.
Every key counts that is not known to have no effect: a key that transformers adds tomorrow makes another base, not
silently the same one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.base.errors import ConfigError
from edge_agent.bundle.safetensors import TensorPlace
from edge_forge.models import bases

if TYPE_CHECKING:
    from edge_forge.models.encoder import Encoder
    from edge_forge.models.sentence_pooling import PoolingPlan

FORMAT, LANGUAGE_FORMAT = "edge-base/2", "edge-base/3 language"
_CHUNK_BYTES = 1 << 22
# Keys without effect on what an encoder computes, or a language model for given tokens: names, versions, training,
# heads of other tasks, outputs that nobody asks for, generation, and number formats of storage.
_NO_EFFECT = re.compile(
    r".*dropout.*|.*layerdrop|initializer_.*|classifier_.*|summary_.*|pooler_.*|problem_type|id2label|label2id|num_labels|"
    r"architectures|transformers_version|_.*|name_or_path|dtype|torch_dtype|use_cache|output_.*|return_dict.*|"
    r"gradient_checkpointing|chunk_size_feed_forward|tokenizer_class|prefix|task_specific_params|finetuning_task|"
    r"(bos|eos|cls|sep|mask|unk|decoder_start|forced_bos|forced_eos)_token_id|is_decoder|is_encoder_decoder|"
    r"add_cross_attention|cross_attention_hidden_size|tie_encoder_decoder|auto_map|attn_implementation|torchscript|"
    r"decoder_bias|sparse_prediction|sparse_pred_ignore_index|deterministic_flash_attn|reference_compile|"
    r"repad_logits_with_grad|generator_size|type_vocab_buffer|vocab_size|pruned_heads|use_bfloat16|tf_legacy_loss|"
    r"max_length|min_length|do_sample|num_beams|temperature|top_k|top_p|repetition_penalty|length_penalty|"
    r"early_stopping|bad_words_ids|no_repeat_ngram_size|suppress_tokens|begin_suppress_tokens|typical_p|diversity_penalty|"
    r"transformers\.js_config|unsloth_.*|cache_implementation|is_llama_config|rope_interleaved|"  # of other programs
    r"num_beam_groups|num_return_sequences|encoder_no_repeat_ngram_size|exponential_decay_length_penalty|remove_invalid_values"
)
# Families whose padding id only keeps a row of the table from being trained. In the others positions depend on it.
_PADDING_UNREAD = frozenset((
    "bert", "distilbert", "electra", "albert", "deberta", "deberta-v2", "modernbert", "eurobert", "llama", "mistral",
    "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3", "olmo2", "granite",
))  # fmt: skip
# Older spellings: the class makes `layer_types` of them, which is what is computed.
_SAID_BY_LAYER_TYPES = frozenset(("global_attn_every_n_layers", "sliding_window_pattern"))
_UNUSED_TENSORS = ("pooler.",)
_ROPE = ("rope_parameters", "rope_scaling")
_HEAD, _TIED = "lm_head.weight", "tie_word_embeddings"


def encoder_id(encoder: Encoder, plan: PoolingPlan) -> str:
    """The identity of an opened encoder: `sha256:<hex>`. The digest runs over, each part ended by a newline:

      1. the text `edge-base/2`;
      2. canonical JSON (sorted keys, no spaces) of `effective` and of the pooling plan;
      3. for every tensor in order of its name, in float32 and named as transformers names it: canonical JSON
         `[name, shape]`, then its bytes in little-endian order. A pooler is left out: features never read it.

    The same weights in one file or in shards, with or without heads, under old names, in float16 or in its exact copy
    in float32 are one base.
    """
    import numpy as np

    settings = effective(encoder.model.config)
    settings.pop(_TIED, None)  # there is no head
    digest = hashlib.sha256(f"{FORMAT}\n".encode() + _canonical([settings, plan.described()]) + b"\n")
    tensors = {**encoder.model.state_dict(), **{f"pooling.{k}": v for k, v in encoder.pooling.state_dict().items()}}
    for name in sorted(tensors):
        if not name.startswith(_UNUSED_TENSORS):
            value = tensors[name].detach().float().contiguous().numpy()
            digest.update(_canonical([name, list(value.shape)]) + b"\n")
            digest.update(np.ascontiguousarray(value, dtype="<f4").data)
            digest.update(b"\n")
    return f"sha256:{digest.hexdigest()}"


def language_id(directory: Path) -> str:
    """The identity of a causal language model, over its files: as `encoder_id`, with these differences.

    The text is `edge-base/3 language`. Tensors have the names of the file, and their values in float32: half formats
    are exact in it. Buffers that every runtime computes anew (`bases.STORED_BUFFERS`) are left out. So is a head that
    equals the table of tokens, as in a file where it is tied, and the flag that ties them; a head of its own counts
    together with the flag.
    """
    found: dict[str, tuple[Path, TensorPlace]] = {}
    for path in bases.weight_files(directory):
        found |= {
            name: (path, place)
            for name, place in bases.tensor_places(path).items()
            if not name.endswith(bases.STORED_BUFFERS)
        }
    settings = effective(_config(directory))
    if _HEAD not in found or _is_the_table(found):
        found.pop(_HEAD, None)
        settings.pop(_TIED, None)
    digest = hashlib.sha256(f"{LANGUAGE_FORMAT}\n".encode() + _canonical(settings) + b"\n")
    for name in sorted(found):
        path, place = found[name]
        digest.update(_canonical([name, place.shape]) + b"\n")
        for chunk in _values_of(path, place):
            digest.update(chunk)
        digest.update(b"\n")
    return f"sha256:{digest.hexdigest()}"


def with_language_id(base: bases.Base) -> bases.Base:
    """The base with its `language_id`."""
    return dataclasses.replace(base, base_id=language_id(base.directory))


def effective(config: Any) -> dict[str, Any]:
    """The settings of a transformers configuration that have an effect and are not the default of its class."""
    kind = type(config)
    own = config.to_dict()
    try:
        usual = kind().to_dict()
    except (TypeError, ValueError, AttributeError):  # a class without defaults: everything counts
        usual = {}
    # Where the class does not declare it, transformers computes absolute positions; another value is refused.
    ignored = {"position_embedding_type"} - usual.keys()
    if own.get("layer_types"):
        ignored |= _SAID_BY_LAYER_TYPES
    if own.get("model_type") in _PADDING_UNREAD:
        ignored.add("pad_token_id")
    if own.get("partial_rotary_factor") == 1:
        ignored.add("partial_rotary_factor")
    kept = {
        key: value
        for key, value in own.items()
        if key not in ignored and not _NO_EFFECT.fullmatch(key) and value is not None
        and (key not in usual or _spelled(key, value) != _spelled(key, usual[key]))
    }  # fmt: skip
    return {"model_type": own.get("model_type"), **{key: _spelled(key, value) for key, value in kept.items()}}


def _spelled(key: str, value: Any) -> Any:
    """A setting in one spelling."""
    found = _plain(value)
    if key not in _ROPE or not isinstance(found, dict):
        return found
    if found and all(isinstance(one, dict) for one in found.values()):  # by kind of layer
        return {kind: _spelled(key, one) for kind, one in found.items()}
    kind = found.get("rope_type", found.get("type", "default"))
    kept = ("rope_theta", "partial_rotary_factor") if kind == "default" else found.keys() - {"type"}
    return {"rope_type": kind} | {
        one: found[one] for one in kept if one in found and (one, found[one]) != ("partial_rotary_factor", 1)
    }


def _config(directory: Path) -> Any:
    from transformers import AutoConfig

    try:
        with bases.only_listed(directory) as folder:
            return AutoConfig.from_pretrained(folder, local_files_only=True)
    except bases.opening_errors() as error:
        reason = bases.opening_reason(error)
        raise ConfigError(f"the base's config.json cannot be used: {reason}", str(directory)) from error


def _is_the_table(found: Mapping[str, tuple[Path, TensorPlace]]) -> bool:
    """Whether the head has the values of the table of tokens."""
    tables = [name for name in found if name.endswith("embed_tokens.weight")]
    return len(tables) == 1 and _digest(found[tables[0]]) == _digest(found[_HEAD])


def _digest(tensor: tuple[Path, TensorPlace]) -> str:
    digest = hashlib.sha256()
    for chunk in _values_of(*tensor):
        digest.update(chunk)
    return digest.hexdigest()


def _values_of(path: Path, place: TensorPlace) -> Iterator[bytes]:
    """The values in float32, little-endian; of a format that is refused later (integers) its bytes."""
    import numpy as np

    for chunk in _bytes_of(path, place):
        if place.dtype == "BF16":  # the upper half of a float32
            yield (np.frombuffer(chunk, "<u2").astype("<u4") << 16).tobytes()
        elif place.dtype in ("F16", "F64"):
            yield np.frombuffer(chunk, f"<f{int(place.dtype[1:]) // 8}").astype("<f4").tobytes()
        else:
            yield chunk


def _bytes_of(path: Path, place: TensorPlace) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(place.begin)
        left = place.end - place.begin
        while left > 0:
            chunk = file.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise ConfigError("the file ended while it was read", str(path), "fetch the base again")
            left -= len(chunk)
            yield chunk


def _plain(value: Any) -> Any:
    """A JSON value in which 1 and 1.0 are the same, and keys are text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
