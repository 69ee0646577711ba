"""An encoder with fewer attention heads than its configuration makes: how config.json says so, and how it is opened.

No class of transformers can say fewer heads of the same size, so a key of ours does. A file of its own because
`encoder` opens folders by it and `pruned`, which needs `encoder`, writes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

KEPT_HEADS = "kept_heads"
"""Key of config.json: so many heads are there in every layer, of the size that num_attention_heads makes."""


def replace_linear(model: nn.Module, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Put a linear layer of this weight [d_out, d_in] and bias [d_out] in the place of `name`."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    holder, _, last = name.rpartition(".")
    model.get_submodule(holder).add_module(last, made.train(model.training))


def narrow(model: nn.Module, tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> list[str]:
    """Give an opened model the linear layers of a folder that says `KEPT_HEADS`, and return the names of the tensors
    that were taken. `names` are tensors whose shape there is not the class's."""
    taken = []
    for name in names:
        module, _, last = name.rpartition(".")
        found = dict(model.named_modules()).get(module)
        if last == "weight" and isinstance(found, nn.Linear) and tensors[name].ndim == 2:
            bias = tensors.get(f"{module}.bias") if found.bias is not None else None
            replace_linear(model, module, tensors[name].float(), None if bias is None else bias.float())
            taken += [name, f"{module}.bias"]
    return taken
