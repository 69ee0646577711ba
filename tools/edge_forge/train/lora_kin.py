"""Methods whose update is a low-rank one in the end and is trained otherwise than LoRA's: PiSSA and AdaLoRA, by peft.

PiSSA (Meng et al. 2024) puts the largest singular directions of W into B0 A0 and keeps the rest frozen, so that its
update is BA - B0 A0. AdaLoRA (Zhang et al. 2023) trains B diag(E) A and drops the entries of E that matter least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from edge_forge.train.lora import AdapterSettings, Pairs, adapted_modules, lora_config

_NAME = "default"
# Rank is dropped between these shares of all steps (Zhang et al. use 0.05 to 0.3 before and 0.2 to 0.5 after).
_BEFORE, _AFTER = 0.1, 0.3
# Weight of |A A' - I| + |B' B - I| (gamma in the paper: 0.1 for GLUE).
_ORTHOGONALITY = 0.1
# Share of `rank` that a module keeps on average.
_KEPT = 0.5
_PLACEHOLDER_STEPS = 1000


def apply_pissa(model: Any, names: Sequence[str], settings: AdapterSettings, task_type: str | None) -> Any:
    """Adapt `names` by PiSSA. Each module keeps the A0, B0 that it began with as buffers, for `pissa_pairs`."""
    from peft import get_peft_model

    made = get_peft_model(model, lora_config(names, settings, task_type, init_lora_weights="pissa_niter_16"))
    for module in adapted_modules(made).values():
        for part in ("A", "B"):
            weight = getattr(module, f"lora_{part}")[_NAME].weight
            module.register_buffer(f"initial_{part}", weight.detach().clone(), persistent=False)
    return made


def pissa_pairs(model: Any) -> Pairs:
    """The difference to the base by module: A [2r, d_in] = [A; A0], B [d_out, 2r] = s [B, -B0]. A module that did not
    change has none."""
    found: Pairs = {}
    for name, module in adapted_modules(model).items():
        a, b = (getattr(module, f"lora_{part}")[_NAME].weight.detach().cpu().float() for part in "AB")
        a0, b0 = (getattr(module, f"initial_{part}").cpu().float() for part in "AB")
        if not (torch.equal(a, a0) and torch.equal(b, b0)):
            found[name] = (torch.cat([a, a0]), torch.cat([b, -b0], dim=1) * module.scaling[_NAME])
    return found


def apply_adalora(model: Any, names: Sequence[str], settings: AdapterSettings, task_type: str | None) -> Any:
    """Adapt `names` by AdaLoRA, which begins with `rank` everywhere. `RankSchedule` drives it."""
    from peft import AdaLoraConfig, get_peft_model

    alpha: Any = settings.alpha  # peft writes int, and divides
    config = AdaLoraConfig(
        init_r=settings.rank,
        target_r=max(1, int(settings.rank * _KEPT)),
        lora_alpha=alpha,
        target_modules=list(names),
        total_step=_PLACEHOLDER_STEPS,
        orth_reg_weight=0.0,  # `RankSchedule` adds it: an encoder's loss does not pass through peft's model
        task_type=task_type,
    )
    return get_peft_model(model, config)


def adalora_pairs(model: Any) -> Pairs:
    """A [r, d_in] with E folded in and B [d_out, r] with the scale, by module; ranks whose E is 0 are left out."""
    from peft.tuners.adalora.layer import SVDLinear

    found: Pairs = {}
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, SVDLinear):
            a, e, b = (getattr(module, f"lora_{part}")[_NAME].detach().cpu().float() for part in "AEB")
            kept = e[:, 0] != 0
            if bool(kept.any()):
                scale = float(module.scaling[_NAME]) / (float(module.ranknum[_NAME]) + 1e-5)
                found[name] = ((a * e)[kept], b[:, kept] * scale)
    return found


class RankSchedule(TrainerCallback):
    """AdaLoRA's part in every step: the orthogonality of A and B before it, the allocation of ranks after it."""

    def __init__(self, tuner: Any) -> None:
        self.tuner = tuner

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the schedule, which depends on the number of steps."""
        total = max(2, int(state.max_steps))
        after = max(1, int(total * _AFTER))
        before = min(max(1, int(total * _BEFORE)), total - after - 1)
        schedule = {"total_step": total, "tinit": before, "tfinal": after, "deltaT": max(1, total // 100)}
        vars(self.tuner.peft_config[_NAME]).update(schedule)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Add the gradient of the penalty."""
        (_ORTHOGONALITY * penalty(self.tuner)).backward()  # type: ignore[no-untyped-call]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Learn the importance of every entry from its gradient, and drop what is beyond the budget."""
        self.tuner.update_and_allocate(int(state.global_step))


def penalty(model: Any) -> torch.Tensor:
    """Mean over all A [r, d_in] and B [d_out, r] of |A A' - I| and |B' B - I| (Frobenius)."""
    found = []
    for name, value in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            gram = value @ value.T if ".lora_A." in name else value.T @ value
            found.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)))
    return torch.stack(found).mean()
