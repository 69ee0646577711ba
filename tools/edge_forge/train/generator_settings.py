"""The settings of a training run of a generator and their presets; checked as those of encoders are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edge_forge.train import methods
from edge_forge.train.methods import FULL, LORA
from edge_forge.train.settings import replaced, started


@dataclass(frozen=True)
class GeneratorSettings:
    """One training run. Keys that encoders have too mean the same (`train.settings.TrainSettings`)."""

    # What is trained: a name of `methods.METHODS`.
    method: str = LORA.name
    # The preset these values started from; kept for the record.
    preset: str = "best"
    # Peak step size of AdamW; LoRA wants about ten times that of "full".
    learning_rate: float = 2e-4
    # Passes over the training rows at most; early stopping may end sooner.
    epochs: int = 3
    # Packed rows of max_tokens per optimiser step.
    batch_size: int = 16
    # Packed rows computed at once; the gradients of a step are summed over them. Bounds the memory.
    rows_at_once: int = 4
    schedule: str = "cosine"
    # Share of all steps over which the step size rises from 0.
    warmup_fraction: float = 0.05
    # AdamW's decoupled decay per step, in units of the step size; biases and norms are left out.
    weight_decay: float = 0.01
    # Evaluations (one per epoch) without a lower validation loss before training ends; 0 = never.
    early_stopping_patience: int = 0
    seed: int = 17
    # Length of a packed row; a dialogue that is longer is left out, a text is cut into rows.
    max_tokens: int = 1024
    # "auto": bf16 on an accelerator that has it, fp32 on a CPU; "bf16" is autocast.
    precision: str = "auto"
    # Threads of the tensor library; 0 = all cores.
    threads: int = 0
    # Processes under `accelerate launch` on this machine; 1 = no launcher. Each takes its share of a batch.
    processes: int = 1
    # Where transformers' Trainer reports to, beside the record (`train.settings.REPORTERS`).
    report_to: tuple[str, ...] = ()
    # LoRA: width of the adapter.
    rank: int = 16
    # LoRA: scale numerator; the branch is scaled by alpha / rank (rsLoRA: alpha / sqrt(rank)).
    alpha: float = 32.0
    # LoRA: modules adapted: "all", "attention", "qkv", "mlp", or the end of a module name ("self_attn.q_proj").
    targets: tuple[str, ...] = ("all",)
    # Share of the layers, from the first one up, that are neither adapted nor (half) trained.
    frozen_share: float = 0.0
    # LoRA+: step size of B over that of A (Hayou et al. 2024); 1 = plain LoRA.
    lora_plus_ratio: float = 1.0
    # Preferences: how closely the model is held to the one that it began as (DPO's beta, Rafailov et al. 2023).
    beta: float = 0.1
    # Preferences: weight of the likelihood of the chosen answer beside the preference (0 = none): it keeps DPO from
    # making chosen answers less likely (Pang et al. 2024).
    chosen_weight: float = 0.0


# rank 16 on all linears and 2e-4: what QLoRA (Dettmers et al. 2023, table 9) found to match full tuning.
_LORA = GeneratorSettings()
PRESETS: Mapping[str, GeneratorSettings] = {
    LORA.name: _LORA,
    FULL.name: replace(_LORA, method=FULL.name, learning_rate=2e-5),
    # From random weights: as small Llamas are trained, the step size falling with width.
    "new": replace(_LORA, method=FULL.name, learning_rate=2e-3, weight_decay=0.1, batch_size=16, rows_at_once=16),
}


# TRL's default for all weights, ten times that for adapters: beyond it chosen answers become unlikely, too.
_PREFERENCE_RATES = {LORA.name: 1e-5, FULL.name: 1e-6}


def settings(
    method: str, new_model: bool, values: Mapping[str, object], where: str, preferences: bool = False
) -> GeneratorSettings:
    """The settings of a method (`new_model`: of random weights; `preferences`: for DPO), with `values` over them.

    Raises ConfigError.
    """
    known = methods.method(method, where)
    if new_model:
        return replaced(PRESETS["new"], {**values, "method": known.name}, where)
    start = PRESETS[known.presets]
    rate = _PREFERENCE_RATES[known.presets] if preferences else start.learning_rate
    return replaced(started(start, known, rate), values, where)
