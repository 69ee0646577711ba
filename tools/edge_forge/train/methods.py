"""Training methods: what each one trains, how its result is folded into the base, and in which forms it can be shipped.

To add a method, add a `Method` to `METHODS`. No other module compares a method's name. This module imports no tensor
library; the functions of a method import what they need when they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.base.errors import ConfigError

if TYPE_CHECKING:
    from edge_forge.train.lora import AdapterSettings

ADAPTER = "adapter"
"""A form of a result: a file of its own that a device attaches to a shared base."""
MERGED = "merged"
"""A form of a result: base and adapter in one set of weights."""
BASE = "base"
"""A form of a result: the base of other recipes."""


def _same(model: Any) -> Any:
    return model


def _keep_forward(model: Any, precision: str) -> None:
    """Change nothing: the model computes in the same way at every precision."""


@dataclass(frozen=True)
class Method:
    """One way to train. `apply`, `merge` and `choose_forward` run in the training process."""

    name: str
    title: str
    """What messages call it."""
    trains_adapter: bool
    """True: the base's weights stay as they are and an adapter is trained; False: every weight is trained."""
    forms: frozenset[str]
    presets: str
    """The name under which its starting values stand in the presets: its own, or that of a similar method."""
    apply: Callable[[Any, Sequence[str], AdapterSettings, str | None], Any]
    """(model, names of the adapted modules, settings, peft's task type) -> the model that is trained."""
    merge: Callable[[Any], Any] = _same
    """The trained model -> a model of the base's own classes with the adapter folded into its weights."""
    choose_forward: Callable[[Any, str], None] = _keep_forward
    """Lets the trained model compute in the way that is fastest at a precision ('fp32' or 'bf16')."""

    def exportable_to(self, form: str) -> bool:
        """Whether the result of training can be shipped as `ADAPTER`, `MERGED` or `BASE`."""
        return form in self.forms


def _apply_lora(model: Any, names: Sequence[str], settings: AdapterSettings, task_type: str | None) -> Any:
    from edge_forge.train.lora import apply_lora

    return apply_lora(model, names, settings, task_type)


def _merge_lora(model: Any) -> Any:
    return model.merge_and_unload()


def _choose_lora_forward(model: Any, precision: str) -> None:
    from edge_forge.train.lora import compute_in_place, compute_plainly

    (compute_in_place if precision == "fp32" else compute_plainly)(model)


def _thaw(model: Any, *_: object) -> Any:
    """Let every weight be trained but those of a pooler, which mean pooling never reads."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("pooler."))
    return model


LORA = Method(
    "lora", "LoRA", True, frozenset({ADAPTER, MERGED}), "lora", _apply_lora, _merge_lora, _choose_lora_forward
)
FULL = Method("full", "full fine-tuning", False, frozenset({MERGED, BASE}), "full", _thaw)
METHODS: Mapping[str, Method] = {one.name: one for one in (LORA, FULL)}


def name_of(value: object, where: str) -> str:
    """The name of a method as a recipe has it. Raises ConfigError where it is no string."""
    if not isinstance(value, str):
        raise ConfigError(f"name = {value!r} must be a string", f"{where}.name", f"use one of {', '.join(METHODS)}")
    return value


def method(name: str, where: str = "method") -> Method:
    """The method of that name. Raises ConfigError that names the known ones."""
    if name not in METHODS:
        raise ConfigError(f"method = {name!r} is not known", f"{where}.name", f"use one of {', '.join(METHODS)}")
    return METHODS[name]


def save_trained(model: Any, path: Path) -> None:
    """Write the weights that are trained, by name, as safetensors."""
    from safetensors.torch import save_file

    save_file(
        {name: value.detach().contiguous() for name, value in model.named_parameters() if value.requires_grad}, path
    )


def restore_trained(model: Any, path: Path) -> None:
    """Put the weights that `save_trained` wrote back into the model; without the file, leave the model as it is."""
    import torch
    from safetensors.torch import load_file

    if path.is_file():
        found = load_file(path)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in found:
                    parameter.copy_(found[name])
