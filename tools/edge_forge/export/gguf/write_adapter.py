"""A peft LoRA folder as a GGUF adapter.

llama.cpp adds `scale * B (A x)` with scale = alpha / rank of each tensor, one alpha per file. So whatever scale a
module really has (rsLoRA, `alpha_pattern`, `rank_pattern`) is folded into its B, and rows of B follow the permutation
of q and k where the family has one. What has no form in such a file is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edge_agent.base.errors import ConfigError
from edge_forge.export.gguf import families
from edge_forge.export.gguf.tensors import BASE_ID_KEY, Floats, Tensors, as_float16

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class ConvertedAdapter:
    """What was written: the largest rank, the file's alpha, and the adapted modules by their names in the base."""

    arch: str
    rank: int
    alpha: float
    modules: tuple[str, ...]
    size_bytes: int


def convert(folder: Path, config: Mapping[str, Any], out: Path, name: str, base_id: str) -> ConvertedAdapter:
    """Write the peft adapter in `folder` for the base of `config` (its config.json) as `out`. Raises ConfigError."""
    settings = _settings(folder)
    found = families.family(config)
    known = gguf.get_tensor_name_map(found.arch, int(config["num_hidden_layers"]))
    with Tensors([folder / _WEIGHTS]) as tensors:
        modules = sorted(_modules(tensors, folder), key=_in_order)
        ranks = {module: tensors.shape(_key(module, "A"))[0] for module in modules}
        rank, alpha = max(ranks.values()), float(settings["lora_alpha"])
        writer = gguf.GGUFWriter(out, found.name)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(name)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        writer.add_string(BASE_ID_KEY, base_id)
        for module in modules:
            target = known.get_name(module)
            if target is None:
                raise ConfigError(f"the adapted module {module!r} has no place in a GGUF of {found.name}", str(folder))
            a, b = tensors.read(_key(module, "A")), tensors.read(_key(module, "B"))
            scale = scaling(settings, module) / (alpha / ranks[module])
            b = families.rows_permuted(found, config, module, b * np.float32(scale))
            writer.add_tensor(f"{target}.weight.lora_a", as_float16(a, module))
            writer.add_tensor(f"{target}.weight.lora_b", as_float16(b, module))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ConvertedAdapter(found.name, rank, alpha, tuple(modules), out.stat().st_size)


def scaling(settings: Mapping[str, Any], module: str) -> float:
    """What peft multiplies a module's branch by: alpha / rank, or alpha / sqrt(rank), after the patterns."""
    rank = float(_of_pattern(settings.get("rank_pattern"), module, settings["r"]))
    alpha = float(_of_pattern(settings.get("alpha_pattern"), module, settings["lora_alpha"]))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


@contextmanager
def deltas(folder: Path) -> Iterator[Callable[[str], Floats | None]]:
    """What the adapter in `folder` adds to the weight [out, in] of a module, by its name: s B A. Raises ConfigError."""
    settings = _settings(folder)
    with Tensors([folder / _WEIGHTS]) as tensors:
        modules = set(_modules(tensors, folder))

        def delta(module: str) -> Floats | None:
            if module not in modules:
                return None
            modules.discard(module)
            product = tensors.read(_key(module, "B")) @ tensors.read(_key(module, "A"))
            return np.float32(scaling(settings, module)) * product

        yield delta
        if modules:
            raise ConfigError(f"the base has no module {min(modules)!r}, which the adapter adapts", str(folder))


def _of_pattern(pattern: Mapping[str, Any] | None, module: str, usual: Any) -> Any:
    """The value of the first key that is the end of the module's name, as peft reads its patterns."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return usual


def _settings(folder: Path) -> Mapping[str, Any]:
    path = folder / "adapter_config.json"
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"adapter_config.json cannot be read: {error}", str(path)) from error
    if str(found.get("peft_type")).upper() != "LORA":
        raise ConfigError(f"an adapter of type {found.get('peft_type')!r} has no GGUF form", str(path), "use LoRA")
    if found.get("use_dora"):
        raise ConfigError("DoRA (use_dora) has no GGUF form", str(path), "train plain LoRA, or ship the merged model")
    if found.get("modules_to_save"):
        raise ConfigError(
            f"modules_to_save ({', '.join(found['modules_to_save'])}) has no GGUF form", str(path),
            "adapt these modules by LoRA, or ship the merged model",
        )  # fmt: skip
    if found.get("bias", "none") != "none":
        raise ConfigError(f"bias = {found['bias']!r} has no GGUF form", str(path), 'use bias = "none"')
    if found.get("fan_in_fan_out"):
        raise ConfigError("fan_in_fan_out has no GGUF form", str(path))
    return found


def _key(module: str, part: str) -> str:
    return f"{_PREFIX}{module}.lora_{part}.weight"


def _modules(tensors: Tensors, folder: Path) -> list[str]:
    found = []
    for name in tensors:
        match = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_(A|B)\.weight", name)
        if match is None:
            raise ConfigError(f"tensor {name!r} has no GGUF form", str(folder), "only plain LoRA on linear layers has")
        if match[2] == "A":
            if _key(match[1], "B") not in tensors:
                raise ConfigError(f"module {match[1]!r} has an A and no B", str(folder))
            found.append(match[1])
    if not found:
        raise ConfigError("the adapter adapts nothing", str(folder))
    return found


def _in_order(module: str) -> list[tuple[bool, int, str]]:
    """By number of layer, then by name."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in module.split(".")]
