"""Training methods: what each one trains, how its update becomes W + BA, and in which forms it can be shipped.

`METHODS` is the one table of them: recipe, trainer, exports, comparison and docs/methods.md read it. To add a method,
add a `Method` to it. No other module compares a method's name. This module imports no tensor library; the functions of
a method import what they need when they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.base.errors import ConfigError

if TYPE_CHECKING:
    from edge_forge.train.lora import AdapterSettings, Pairs

ADAPTER = "adapter"
"""A form of a result: a file of its own that a device attaches to a shared base (W + BA in the adapter bank)."""
MERGED = "merged"
"""A form of a result: one set of weights of the base's own architecture."""
OWN_GRAPH = "own graph"
"""A form of a result: one graph that computes more than the base's architecture does."""
BASE = "base"
"""A form of a result: the base of other recipes."""

EVERYTHING, UPPER, HEAD, INSERTED = "every weight", "the upper layers", "the classifier's head", "inserted weights"
"""What a method trains (`Method.scope`); the classifier's head is always among it."""


def _same(model: Any) -> Any:
    return model


def _keep_forward(model: Any, precision: str) -> None:
    """Change nothing: the model computes in the same way at every precision."""


def _alone(model: Any) -> None:
    """No callback."""


def _no_pairs(_: Any) -> Pairs:
    return {}


@dataclass(frozen=True)
class Method:
    """One way to train. `apply`, `merge`, `pairs`, `companion` and `choose_forward` run in the training process."""

    name: str
    title: str
    """What messages call it."""
    scope: str
    """What is trained: `EVERYTHING`, `UPPER`, `HEAD` or `INSERTED`."""
    forms: frozenset[str]
    presets: str
    """The method whose presets it starts from: its own, or a similar one's."""
    becomes: str
    """How its update reaches a device, for people."""
    apply: Callable[[Any, Sequence[str], AdapterSettings, str | None], Any]
    """(model, names of modules, settings, peft's task type) -> the model that is trained. The names are the adapted
    modules; with `scope` UPPER those that stay as they are."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from those of `presets`."""
    step: float = 1.0
    """Its step size over that of `presets`."""
    rank_factor: int = 1
    """Ranks that it needs in the bank over `rank`."""
    scales_by_root: bool = False
    """Whether the branch is scaled by alpha / sqrt(rank), which is made for one alpha at all ranks."""
    merge: Callable[[Any], Any] = _same
    """The trained model -> a model of the base's own classes with the adapter folded into its weights."""
    pairs: Callable[[Any], Pairs] = _no_pairs
    """The trained model -> (A, B) by module, scale folded into B: the weight becomes W + BA."""
    peft_form: bool = False
    """Whether peft's own files hold the result; else the pairs are written as plain LoRA."""
    choose_forward: Callable[[Any, str], None] = _keep_forward
    """Lets the trained model compute in the way that is fastest at a precision ('fp32', 'bf16' or 'int8')."""
    companion: Callable[[Any], Any] = _alone
    """The trained model -> a callback of transformers' Trainer that the method needs, or None."""
    resumes: bool = True
    """Whether a run that was killed goes on from a checkpoint; else it begins anew."""
    not_in_int8: str = ""
    """Why it cannot be trained with `precision = "int8"`: what it computes is not what the INT8 variant does; '' where
    it can."""
    no_generator: str = ""
    """Why a generator cannot be trained by it; '' where it can."""
    no_preferences: str = ""
    """Why it cannot be trained on preferences; '' where it can."""

    @property
    def trains_adapter(self) -> bool:
        """True: the base's weights stay as they are and weights are inserted."""
        return self.scope == INSERTED

    @property
    def freezes_below(self) -> bool:
        """True where `first_layer` and `frozen_share` say which layers are computed once."""
        return self.scope in (INSERTED, UPPER)

    def exportable_to(self, form: str) -> bool:
        """Whether the result of training can be shipped as `ADAPTER`, `MERGED`, `OWN_GRAPH` or `BASE`."""
        return form in self.forms

    def bank_rank(self, rank: int) -> int:
        """The rank that a bank must have for an adapter that is trained with `rank`."""
        return self.rank_factor * rank

    def said(self) -> str:
        """One line for the beginning of a build: what is trained, and in which form devices take it."""
        return f"method: {self.title} trains {self.scope}; on devices: {self.on_devices}"

    @property
    def on_devices(self) -> str:
        """In which forms devices take it, for people."""
        if self.exportable_to(ADAPTER):
            return "attached to a shared base, or merged"
        return "in a graph of its own" if self.exportable_to(OWN_GRAPH) else "merged only"


def _apply_lora(model: Any, names: Sequence[str], settings: AdapterSettings, task_type: str | None) -> Any:
    from edge_forge.train.lora import apply_lora

    return apply_lora(model, names, settings, task_type)


def _apply_rslora(model: Any, names: Sequence[str], settings: AdapterSettings, task_type: str | None) -> Any:
    from edge_forge.train.lora import apply_lora

    return apply_lora(model, names, settings, task_type, use_rslora=True)


def _apply_dora(model: Any, names: Sequence[str], settings: AdapterSettings, task_type: str | None) -> Any:
    from edge_forge.train.lora import apply_lora

    return apply_lora(model, names, settings, task_type, use_dora=True)


def _apply_pissa(model: Any, names: Sequence[str], settings: AdapterSettings, task_type: str | None) -> Any:
    from edge_forge.train.lora_kin import apply_pissa

    return apply_pissa(model, names, settings, task_type)


def _apply_adalora(model: Any, names: Sequence[str], settings: AdapterSettings, task_type: str | None) -> Any:
    from edge_forge.train.lora_kin import apply_adalora

    return apply_adalora(model, names, settings, task_type)


def _apply_bottleneck(model: Any, names: Sequence[str], settings: AdapterSettings, _: str | None) -> Any:
    from edge_forge.train.bottleneck import apply_bottlenecks

    return apply_bottlenecks(model, names, settings.rank)


def _lora_pairs(model: Any) -> Pairs:
    from edge_forge.train.lora import lora_pairs

    return lora_pairs(model)


def _pissa_pairs(model: Any) -> Pairs:
    from edge_forge.train.lora_kin import pissa_pairs

    return pissa_pairs(model)


def _adalora_pairs(model: Any) -> Pairs:
    from edge_forge.train.lora_kin import adalora_pairs

    return adalora_pairs(model)


def _rank_schedule(model: Any) -> Any:
    from edge_forge.train.lora_kin import RankSchedule

    return RankSchedule(model.base_model)


def _merge_peft(model: Any) -> Any:
    return model.merge_and_unload()


def _choose_lora_forward(model: Any, precision: str) -> None:
    from edge_forge.train.lora import compute_in_place, compute_plainly

    (compute_in_place if precision == "fp32" else compute_plainly)(model)


def _thaw(model: Any, frozen: Sequence[str], *_: object) -> Any:
    """Let weights be trained but those of the modules `frozen` and of a pooler, which mean pooling never reads."""
    still = tuple(f"{name}." for name in ("pooler", *frozen))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(still))
    return model


def _freeze(model: Any, *_: object) -> Any:
    return model.requires_grad_(False)


_ATTACHED = frozenset({ADAPTER, MERGED})
_WHOLE = frozenset({MERGED, BASE})
_FULL, _LORA = "full", "lora"

LORA = Method(
    _LORA, "LoRA", INSERTED, _ATTACHED, _LORA, "BA as trained, alpha / rank folded into B", _apply_lora,
    merge=_merge_peft, pairs=_lora_pairs, peft_form=True, choose_forward=_choose_lora_forward,
)  # fmt: skip
FULL = Method(_FULL, "full fine-tuning", EVERYTHING, _WHOLE, _FULL, "the weights themselves", _thaw)
_OTHERS = (
    Method(
        "head", "head-only tuning", HEAD, _ATTACHED, _FULL, "an adapter without A and B: its head alone",
        _freeze, step=10.0, no_generator="a generator has no head of its own beside the base's table of tokens",
    ),
    Method(
        "half", "half fine-tuning", UPPER, _WHOLE, _FULL, "the weights themselves", _thaw,
        values={"frozen_share": 0.5},
    ),
    Method(
        "rslora", "rsLoRA", INSERTED, _ATTACHED, _LORA, "BA as trained, alpha / sqrt(rank) folded into B",
        _apply_rslora, values={"alpha": 16.0}, step=0.5, scales_by_root=True, merge=_merge_peft, pairs=_lora_pairs,
        peft_form=True, choose_forward=_choose_lora_forward,
    ),
    Method(
        "lora+", "LoRA+", INSERTED, _ATTACHED, _LORA, "BA as trained, alpha / rank folded into B", _apply_lora,
        values={"lora_plus_ratio": 16.0}, step=0.25, merge=_merge_peft, pairs=_lora_pairs, peft_form=True,
        choose_forward=_choose_lora_forward,
    ),
    Method(
        "adalora", "AdaLoRA", INSERTED, _ATTACHED, _LORA,
        "B diag(E) A: E and the scale folded into A and B, ranks that were dropped left out", _apply_adalora,
        step=10.0, merge=_merge_peft, pairs=_adalora_pairs, companion=_rank_schedule,
        resumes=False,  # peft writes no importance of ranks
        no_preferences="peft adds its penalty to the loss of tokens, which DPO does not compute",
    ),
    Method(
        "pissa", "PiSSA", INSERTED, _ATTACHED, _LORA,
        "the difference to the base, [B, -B0] [A; A0]: twice the rank", _apply_pissa,
        values={"rank": 8, "alpha": 8.0}, step=0.2, rank_factor=2, merge=_merge_peft, pairs=_pissa_pairs,
        choose_forward=_choose_lora_forward,
        not_in_int8="it trains beside what is left of the base's weights, whose codes no device has",
    ),
    Method(
        "dora", "DoRA", INSERTED, _WHOLE, _LORA, "m (W + BA) / norm(W + BA) folded into the weights", _apply_dora,
        merge=_merge_peft, not_in_int8="its weights are rescaled after the product, which changes their codes",
    ),
    Method(
        "bottleneck", "bottleneck adapters", INSERTED, frozenset({OWN_GRAPH}), _LORA,
        "two further products behind each sublayer, in the graph", _apply_bottleneck,
        not_in_int8="its graph has codes of the inserted products too",
        no_generator="llama.cpp computes the base's own architecture, and bottleneck adapters add layers to it",
    ),
)  # fmt: skip
METHODS: Mapping[str, Method] = {one.name: one for one in (LORA, FULL, *_OTHERS)}
"""By name, in the order in which messages list them."""


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
