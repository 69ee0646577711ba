"""LoRA: applied by peft, computed without copies, and the form of an encoder's adapter on devices.

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

    @property
    def use_rslora(self) -> bool:
        """Whether the branch is scaled by alpha / sqrt(rank)."""


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


def apply_lora(model: Any, names: Sequence[str], settings: AdapterSettings, task_type: str | None = None) -> Any:
    """Adapt the modules `names` of `model` in place by peft; returns the PeftModel. All but the adapters is frozen."""
    from peft import LoraConfig, get_peft_model

    alpha: Any = settings.alpha  # peft writes int, and divides
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(names),
        use_rslora=settings.use_rslora,
        bias="none",
        task_type=task_type,
    )
    return get_peft_model(model, config)


def compute_in_place(peft_model: Any) -> int:
    """Let every adapted linear compute by `_LoraLinear`; returns how many. Only for float32 without autocast."""
    modules = _adapted(peft_model)
    for module in modules:
        module.forward = types.MethodType(_forward, module)
    return len(modules)


def compute_plainly(peft_model: Any) -> None:
    """Let every adapted linear compute as peft wrote it."""
    for module in _adapted(peft_model):
        vars(module).pop("forward", None)


def _adapted(peft_model: Any) -> list[Any]:
    from peft.tuners.lora import Linear

    return [module for module in peft_model.modules() if isinstance(module, Linear)]


def device_tensors(peft_model: Any, head: nn.Linear) -> dict[str, torch.Tensor]:
    """The adapter and head in the device form, float32, contiguous."""
    tensors: dict[str, torch.Tensor] = {}
    names = {module: name for name, module in peft_model.base_model.model.named_modules()}
    for module in _adapted(peft_model):
        a, b = module.lora_A[_NAME].weight, module.lora_B[_NAME].weight
        tensors[f"{names[module]}.A"] = a.detach().cpu().float().t().contiguous()
        tensors[f"{names[module]}.B"] = (b.detach().cpu().float() * module.scaling[_NAME]).t().contiguous()
    tensors["head.weight"] = head.weight.detach().cpu().float().t().contiguous()
    tensors["head.bias"] = head.bias.detach().cpu().float().clone()
    return tensors


def module_name(parameter: str) -> str:
    """The base's module that a parameter of the training module belongs to: `encoder.layer.3.output.dense`."""
    return parameter.removeprefix("encoder.").partition(".lora_")[0]


def check_learned(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse an adapter, in the device's form or in peft's, that changes nothing or is not finite. Raises EdgeError."""
    check_finite(tensors)
    if not any(bool(value.any()) for name, value in tensors.items() if name.endswith(".B") or ".lora_B." in name):
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
    path = folder / "adapter_config.json"
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
