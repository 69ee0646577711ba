"""LoRA and rsLoRA: applied by peft, computed without copies, and the form of an encoder's adapter on devices.

The device form (adapter.safetensors): for every adapted module `A` [d_in, r] and `B` [r, d_out] with the scale folded
into B, so that y += (x @ A) @ B; `head.weight` [hidden, labels] and `head.bias` [labels]; string metadata.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from edge_agent.base.errors import ConfigError, EdgeError
from edge_forge.models.encoder import Encoder

ADAPTER_FORMAT = "edge-adapter/1"
_NAME = "default"


class AdapterSettings(Protocol):
    """What a method reads of the settings of a run (`settings.TrainSettings`, `generator_settings`)."""

    @property
    def rank(self) -> int:
        """Width of the adapter."""

    @property
    def alpha(self) -> float:
        """Scale numerator of the adapter's branch."""


Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""(A [r, d_in], B [d_out, r]) by the base's module, float32, with the scale in B: its weight becomes W + BA."""


class _LoraLinear(torch.autograd.Function):
    """y = x W' + b + s (x A') B', with in-place sums: no temporary of y's size, forward or backward.

    peft's own forward makes three more tensors of y's size per module (B's output, its scaled copy, the sum). Here
    the small product is added into y by addmm, and its gradient into that of x in the same way.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weights: tuple[Any, ...], a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """x [..., d_in] -> [..., d_out]; weights = (W [d_out, d_in], bias, scale); a [r, d_in], b [d_out, r]."""
        weight, bias, scale = weights
        flat = x.reshape(-1, x.shape[-1])
        inner = flat @ a.t()
        y = functional.linear(flat, weight, bias)
        y.addmm_(inner, b.t(), alpha=scale)
        ctx.save_for_backward(x, a, b)
        ctx.weight, ctx.scale = weight, scale
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor, torch.Tensor]:
        """Gradients of x, A and B; W and its bias are frozen."""
        x, a, b = ctx.saved_tensors
        flat, rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        through = rows @ b
        through *= ctx.scale
        grad_a = through.t() @ flat
        grad_b = rows.t() @ (flat @ a.t())
        grad_b *= ctx.scale
        if not ctx.needs_input_grad[0]:
            return None, None, grad_a, grad_b
        grad_x = rows @ ctx.weight
        grad_x.addmm_(through, a)
        return grad_x.view(x.shape), None, grad_a, grad_b


def _forward(self: Any, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    base = self.base_layer
    weights = (base.weight, base.bias, self.scaling[_NAME])
    y: torch.Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
        x, weights, self.lora_A[_NAME].weight, self.lora_B[_NAME].weight
    )
    return y


def apply_lora(
    model: Any, names: Sequence[str], settings: AdapterSettings, task_type: str | None = None, **kind: Any
) -> Any:
    """Adapt the modules `names` of `model` in place by peft; returns the PeftModel. All but the adapters is frozen.

    `kind` are further keys of peft's LoraConfig (`use_rslora`, `use_dora`).
    """
    from peft import get_peft_model

    return get_peft_model(model, lora_config(names, settings, task_type, **kind))


def lora_config(names: Sequence[str], settings: AdapterSettings, task_type: str | None, **kind: Any) -> Any:
    """peft's LoraConfig of the settings."""
    from peft import LoraConfig

    alpha: Any = settings.alpha  # peft writes int, and divides
    return LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(names),
        bias="none",
        task_type=task_type,
        **kind,
    )


def compute_in_place(peft_model: Any) -> int:
    """Let every adapted linear compute by `_LoraLinear`; returns how many. Only for float32 without autocast."""
    modules = adapted_modules(peft_model)
    for module in modules.values():
        module.forward = types.MethodType(_forward, module)
    return len(modules)


def compute_plainly(peft_model: Any) -> None:
    """Let every adapted linear compute as peft wrote it."""
    for module in adapted_modules(peft_model).values():
        vars(module).pop("forward", None)


def adapted_modules(peft_model: Any) -> dict[str, Any]:
    """peft's LoRA layers by the base's names of their modules."""
    from peft.tuners.lora import Linear

    return {name: module for name, module in peft_model.base_model.model.named_modules() if isinstance(module, Linear)}


def lora_pairs(peft_model: Any) -> Pairs:
    """A and B of every adapted module, the scale folded into B."""
    return {
        name: (
            module.lora_A[_NAME].weight.detach().cpu().float(),
            module.lora_B[_NAME].weight.detach().cpu().float() * module.scaling[_NAME],
        )
        for name, module in adapted_modules(peft_model).items()
    }


def device_tensors(pairs: Pairs, head: nn.Linear) -> dict[str, torch.Tensor]:
    """The adapter and head in the device form, float32, contiguous."""
    tensors: dict[str, torch.Tensor] = {}
    for name, (a, b) in pairs.items():
        tensors[f"{name}.A"], tensors[f"{name}.B"] = a.t().contiguous(), b.t().contiguous()
    tensors["head.weight"] = head.weight.detach().cpu().float().t().contiguous()
    tensors["head.bias"] = head.bias.detach().cpu().float().clone()
    return tensors


def rank_of(pairs: Pairs) -> int:
    """The largest rank of a module; 1 where there is none, the least that a package states."""
    return max((len(a) for a, _ in pairs.values()), default=1)


def check_learned(tensors: Mapping[str, torch.Tensor], inserted: bool = True) -> None:
    """Refuse an adapter in the device's form that changes nothing or is not finite. Raises EdgeError.

    `inserted`: pairs were trained, so one without any (PiSSA and AdaLoRA leave out what is 0) changes nothing,
    whatever its head is. Else it is its head alone.
    """
    check_finite(tensors)
    learned = [value for name, value in tensors.items() if name.endswith(".B" if inserted else "head.weight")]
    if not any(bool(value.any()) for value in learned):
        raise EdgeError(
            "the adapter is what it was before training: nothing was learned", "train",
            "raise epochs or learning_rate, or lower batch_size: there were too few steps",
        )  # fmt: skip


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse trained weights with NaN or infinity. Raises EdgeError."""
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise EdgeError(
            f"the run diverged: {broken[0]} has values that are not finite", "train",
            "lower learning_rate, or set precision = 'fp32'",
        )  # fmt: skip


def save_adapter(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write adapter.safetensors with its string metadata (format, base_id, rank, ...).

    Equal tensors and metadata give equal bytes: safetensors writes its metadata in the order of a hash map that has
    another seed in every process, so the keys are put in order here.
    """
    from safetensors.torch import save

    path.write_bytes(_in_order(save(dict(tensors), metadata={"format": ADAPTER_FORMAT, **metadata})))


def _in_order(content: bytes) -> bytes:
    """A safetensors file with the keys of its metadata sorted. The header keeps its length: no key or value changes."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
    if len(text) != length:
        raise ValueError("the header of a safetensors file changed its length")
    return content[:8] + text + content[8 + length :]


def save_peft(peft_model: Any, folder: Path) -> None:
    """Write peft's own form of the adapter, without what differs between two builds of one recipe.

    peft writes the folder that the base was read from, and the targets in the order of a set.
    """
    peft_model.save_pretrained(str(folder), save_embedding_layers=False)  # else it looks for the base's folder
    (folder / "README.md").unlink(missing_ok=True)
    _tidy_config(folder / "adapter_config.json")


def save_as_lora(pairs: Pairs, folder: Path, task_type: str | None) -> None:
    """Write pairs as a plain LoRA of peft with the scale 1, every module padded with zeros to the largest rank."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    rank = rank_of(pairs)
    folder.mkdir(parents=True, exist_ok=True)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(pairs), bias="none", task_type=task_type,
                        inference_mode=True)  # fmt: skip
    config.save_pretrained(str(folder))
    tensors = {}
    for name, (a, b) in pairs.items():
        missing = rank - len(a)
        tensors[f"base_model.model.{name}.lora_A.weight"] = functional.pad(a, (0, 0, 0, missing)).contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = functional.pad(b, (0, missing)).contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    _tidy_config(folder / "adapter_config.json")


def _tidy_config(path: Path) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = None
    if isinstance(settings.get("target_modules"), list):
        settings["target_modules"].sort()
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_adapter(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter.safetensors. Raises ConfigError when it is not one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") != ADAPTER_FORMAT:
                raise ConfigError(f"this is not in the form {ADAPTER_FORMAT}", str(path), "train the adapter again")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"the adapter cannot be read: {error}", str(path), "train the adapter again") from error


def apply_adapter(encoder: Encoder, tensors: Mapping[str, torch.Tensor], merged: bool) -> None:
    """Apply a device-form adapter to an encoder for inference: folded into the weights, or as added branches.

    Raises ConfigError when a tensor names a module that the encoder lacks or has another shape.
    """
    modules = dict(encoder.model.named_modules())
    for key in [name for name in tensors if name.endswith(".A")]:
        name = key.removesuffix(".A")
        a, b, module = tensors[key], tensors.get(f"{name}.B"), modules.get(name)
        if b is None or not isinstance(module, nn.Linear):
            raise ConfigError(
                f"the adapter's {name!r} has no place in the base", "adapter", "use the base it was trained on"
            )
        if a.shape[0] != module.in_features or b.shape[1] != module.out_features or a.shape[1] != b.shape[0]:
            raise ConfigError(
                f"the adapter's {name!r} has other shapes than the base", "adapter", "use the base it was trained on"
            )
        if merged:
            module.weight.data += (a @ b).t()
        else:
            module.register_forward_hook(_branch(a, b))


def _branch(a: torch.Tensor, b: torch.Tensor) -> Any:
    def add(_: nn.Module, arguments: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
        return y + (arguments[0] @ a) @ b

    return add
