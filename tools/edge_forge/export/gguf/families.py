"""The families of models that are converted: their hyperparameters as GGUF keys and what is done to their tensors.

Names of tensors come from the maps of the `gguf` package. Sources: the converters and `llm_build_*` of llama.cpp
(which keys a family reads, that Gemma's norms are stored with 1 added, that only the Llama family stores the rows of q
and k in the order of its own rotary embedding), checked here by parity of logits for every family.

A family that is not named here is refused: a file with a wrong key loads and answers nonsense.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edge_agent.base.errors import ConfigError

Floats = NDArray[np.float32]
_GEMMA2_27B_LAYERS = 46
# Names in transformers of the functions that llama.cpp has built into a family's feed-forward part. GELU's exact form
# and its approximation by tanh differ by 5e-4 at most.
_SILU = frozenset({"silu", "swish"})
_GELU = frozenset({
    "gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh", "gelu_accurate",
})  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One architecture. `permute`: rows of q and k are reordered; `norm_add`: what is added to norms' weights;
    `own_head`: llama.cpp reads a head beside the embedding; `tied`: what a config.json that says nothing means;
    `needs_head`: llama.cpp wants a head even where it is the embedding; `windows`: it computes sliding windows;
    `partial`: `partial_rotary_factor` has an effect; `factors`: llama.cpp reads divisors of the rotary frequencies;
    `activation` is the key of the feed-forward part's function, `activations` the names of the one that is computed."""

    arch: Any
    permute: bool = False
    norm_add: float = 0.0
    own_head: bool = True
    tied: bool = False
    needs_head: bool = False
    windows: bool = False
    partial: bool = False
    factors: bool = False
    activation: str = "hidden_act"
    activations: frozenset[str] = _SILU
    check: Callable[[Mapping[str, Any]], None] | None = None
    keys: Callable[[Any, Mapping[str, Any]], None] | None = None

    @property
    def name(self) -> str:
        """The architecture's name in GGUF: 'llama', 'qwen2', ..."""
        name: str = gguf.MODEL_ARCH_NAMES[self.arch]
        return name


def family(config: Mapping[str, Any]) -> Family:
    """The family of a config.json. Raises ConfigError for a type that has no converter, or features it lacks."""
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise ConfigError(
            f"models of type {kind!r} cannot be converted to GGUF", "base.source",
            f"choose one of the families {', '.join(sorted(FAMILIES))}",
        )  # fmt: skip
    found = FAMILIES[kind]
    _check_rope(found, config)
    function = config.get(found.activation)
    if function is not None and function not in found.activations:
        raise ConfigError(
            f"{found.activation} = {function!r}: llama.cpp computes {min(found.activations)!r} in a {found.name}",
            "base.source", "choose a base of this family as it was published",
        )  # fmt: skip
    if found.check is not None:
        found.check(config)
    return found


def head_dim(config: Mapping[str, Any]) -> int:
    """Width of one attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def context(config: Mapping[str, Any]) -> int:
    """Tokens that a model takes. Of families whose window llama.cpp leaves out (Mistral, Phi-3, Qwen2) it is the
    window, where that is shorter: beyond it a device would compute otherwise."""
    longest = int(config["max_position_embeddings"])
    found = FAMILIES.get(str(config.get("model_type")))
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return min(longest, int(window)) if window and not (found is not None and found.windows) else longest


def write_keys(writer: Any, found: Family, config: Mapping[str, Any]) -> None:
    """The hyperparameters that llama.cpp reads, from config.json."""
    heads = int(config["num_attention_heads"])
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_context_length(context(config))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    rope = _rope(config)
    share = float(rope["partial_rotary_factor"]) if found.partial else 1.0
    writer.add_rope_dimension_count(int(head_dim(config) * share))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if found.keys is not None:
        found.keys(writer, config)


def rope_factors(config: Mapping[str, Any]) -> Floats | None:
    """Divisors of the rotary frequencies [head_dim / 2] of Llama 3.1 and later; None where there is no such scaling.

    As `_compute_llama3_parameters` of transformers: long wavelengths are divided by `factor`, short ones are left, and
    between them it is interpolated.
    """
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    factor, low, high = float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    before = float(rope["original_max_position_embeddings"])
    width = head_dim(config)
    found = []
    for place in range(0, width, 2):
        wavelength = 2 * math.pi * float(rope["rope_theta"]) ** (place / width)
        if wavelength < before / high:
            found.append(1.0)
        elif wavelength > before / low:
            found.append(factor)
        else:
            smooth = (before / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.asarray(found, np.float32)


def permuted(weight: Floats, heads: int) -> Floats:
    """Rows of q or k (or of its LoRA B) [heads * dim, ...] from halves to pairs, as llama.cpp rotates them."""
    rows = weight.shape[0]
    halves = weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def rows_permuted(found: Family, config: Mapping[str, Any], module: str, weight: Floats) -> Floats:
    """A tensor of `module` (its weight, bias or LoRA B) in the order of rows that llama.cpp expects."""
    if not found.permute or not module.endswith((".q_proj", ".k_proj")):
        return weight
    heads = int(config["num_attention_heads"])
    return permuted(weight, heads if module.endswith(".q_proj") else int(config.get("num_key_value_heads") or heads))


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rotary parameters in one form, whichever version of transformers wrote config.json."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if "full_attention" in found:
        found = dict(found["full_attention"])
    found.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    found.setdefault("rope_type", found.get("type", "default"))
    found["partial_rotary_factor"] = found.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    return found


def _check_rope(found: Family, config: Mapping[str, Any]) -> None:
    """Raise ConfigError for rotary embeddings that llama.cpp would compute otherwise."""
    kind = _rope(config)["rope_type"]
    if kind not in ("default", "linear", *(("llama3",) if found.factors else ())):
        raise ConfigError(f"rotary scaling of type {kind!r} cannot be converted", "base.source")
    if kind != "default" and float(_rope(config)["partial_rotary_factor"]) != 1.0:
        raise ConfigError(
            f"partial_rotary_factor beside rotary scaling of type {kind!r} cannot be converted", "base.source"
        )
    local = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    if local.get("rope_type", "default") != "default":
        raise ConfigError(
            f"rotary scaling of type {local['rope_type']!r} in layers with a window cannot be converted", "base.source"
        )


def _check_qwen3(config: Mapping[str, Any]) -> None:
    _refuse_bias(config, "Qwen3")


def _check_gemma2(config: Mapping[str, Any]) -> None:
    _check_layers(config, 2)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if not config[key]:
            raise ConfigError(f"{key} = {config[key]!r}: llama.cpp always caps them in a Gemma 2", "base.source")
    due = config["hidden_size"] // config["num_attention_heads"] if _is_27b(config) else head_dim(config)
    if float(config.get("query_pre_attn_scalar") or due) != due:
        raise ConfigError(f"its query_pre_attn_scalar is not the {due} that llama.cpp computes with", "base.source")


def _check_gemma3(config: Mapping[str, Any]) -> None:
    _check_layers(config, 6)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key):
            raise ConfigError(f"{key} = {config[key]!r}: llama.cpp caps none in a Gemma 3", "base.source")
    if config.get("use_bidirectional_attention"):
        raise ConfigError(
            "use_bidirectional_attention = true: such a model embeds texts, it generates none", "base.source"
        )
    if float(config.get("query_pre_attn_scalar") or head_dim(config)) != head_dim(config):
        raise ConfigError("its query_pre_attn_scalar is not its head_dim, which llama.cpp computes with", "base.source")


def _check_layers(config: Mapping[str, Any], period: int) -> None:
    """Raise unless every `period`th layer attends to everything and the others to a window, as llama.cpp assumes."""
    for place, kind in enumerate(config.get("layer_types") or (), 1):
        if (kind == "full_attention") != (place % period == 0):
            raise ConfigError(f"layer {place} has {kind!r}, which llama.cpp would compute otherwise", "base.source")


def _is_27b(config: Mapping[str, Any]) -> bool:
    return int(config["num_hidden_layers"]) == _GEMMA2_27B_LAYERS


def _gemma2_keys(writer: Any, config: Mapping[str, Any]) -> None:
    writer.add_attn_logit_softcapping(float(config["attn_logit_softcapping"]))
    writer.add_final_logit_softcapping(float(config["final_logit_softcapping"]))
    writer.add_sliding_window(int(config["sliding_window"]))


def _gemma3_keys(writer: Any, config: Mapping[str, Any]) -> None:
    writer.add_sliding_window(int(config["sliding_window"]))
    local = (config.get("rope_parameters") or {}).get("sliding_attention", {}).get("rope_theta")
    writer.add_rope_freq_base_swa(float(local or config.get("rope_local_base_freq") or 10000.0))


def _check_olmo2(config: Mapping[str, Any]) -> None:
    _refuse_bias(config, "OLMo 2")


def _check_smollm3(config: Mapping[str, Any]) -> None:
    _refuse_bias(config, "SmolLM3")
    if config.get("mlp_bias"):
        raise ConfigError("mlp_bias = true: llama.cpp adds no such biases in a SmolLM3", "base.source")
    rotates = config.get("no_rope_layers") or [
        int((place + 1) % 4 != 0) for place in range(config["num_hidden_layers"])
    ]
    for place, one in enumerate(rotates, 1):
        if bool(one) != (place % 4 != 0):
            raise ConfigError(
                f"no_rope_layers: layer {place} would be rotated otherwise, llama.cpp leaves out every fourth",
                "base.source",
            )


def _refuse_bias(config: Mapping[str, Any], name: str) -> None:
    if config.get("attention_bias"):
        raise ConfigError(
            f"attention_bias = true gives o_proj a bias, which llama.cpp does not add in a {name}", "base.source"
        )


def _granite_keys(writer: Any, config: Mapping[str, Any]) -> None:
    writer.add_attention_scale(float(config.get("attention_multiplier") or 1.0))
    writer.add_embedding_scale(float(config.get("embedding_multiplier") or 1.0))
    writer.add_residual_scale(float(config.get("residual_multiplier") or 1.0))
    writer.add_logit_scale(float(config.get("logits_scaling") or 1.0))


def _phi3_keys(writer: Any, config: Mapping[str, Any]) -> None:
    original = config.get("original_max_position_embeddings") or config["max_position_embeddings"]
    writer.add_rope_scaling_orig_ctx_len(int(original))
    # None, as llama.cpp's own converter writes it; where the model has a window, `context` ends there.
    writer.add_sliding_window(0)


FAMILIES: Mapping[str, Family] = {
    "llama": Family(gguf.MODEL_ARCH.LLAMA, permute=True, factors=True),
    "mistral": Family(gguf.MODEL_ARCH.LLAMA, permute=True, factors=True),
    "qwen2": Family(gguf.MODEL_ARCH.QWEN2),
    "qwen3": Family(gguf.MODEL_ARCH.QWEN3, check=_check_qwen3),
    "olmo2": Family(gguf.MODEL_ARCH.OLMO2, check=_check_olmo2, needs_head=True),
    "granite": Family(gguf.MODEL_ARCH.GRANITE, permute=True, keys=_granite_keys),
    "smollm3": Family(gguf.MODEL_ARCH.SMOLLM3, permute=True, tied=True, check=_check_smollm3),
    "phi3": Family(gguf.MODEL_ARCH.PHI3, keys=_phi3_keys, partial=True),
    "gemma": Family(gguf.MODEL_ARCH.GEMMA, norm_add=1.0, own_head=False, tied=True, activations=_GELU),
    "gemma2": Family(
        gguf.MODEL_ARCH.GEMMA2,
        norm_add=1.0,
        own_head=False,
        tied=True,
        windows=True,
        activation="hidden_activation",
        activations=_GELU,
        check=_check_gemma2,
        keys=_gemma2_keys,
    ),
    "gemma3_text": Family(
        gguf.MODEL_ARCH.GEMMA3,
        norm_add=1.0,
        tied=True,
        windows=True,
        activation="hidden_activation",
        activations=_GELU,
        check=_check_gemma3,
        keys=_gemma3_keys,
    ),
}
