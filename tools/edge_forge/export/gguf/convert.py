"""The gguf steps: write files from a model folder or an adapter, and compare each with PyTorch before it is used.

Parity is the largest relative L2 distance of a row of logits between PyTorch in float32 and llama.cpp on the F16 file,
over sample texts; a step fails beyond the recipe's tolerance. The tokenizers are compared first (`tokenizer_gate`).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.base.errors import BackendError
from edge_forge.data.chat_tokenizer import ChatTokenizer, usable_template
from edge_forge.evaluate.generator_metrics import perplexity
from edge_forge.evaluate.probes import BASE_TEXTS
from edge_forge.export.gguf import ADAPTER_FILE, MODEL_FILE, engine, families, tokenizer_gate
from edge_forge.export.gguf import write_adapter as lora
from edge_forge.export.gguf import write_model as models

# Short of where sliding windows begin, and cheap: a wrong key or row order shows in the first tokens.
_LONGEST = 96


def check_form(folder: Path) -> None:
    """Raise what keeps a model folder from becoming a GGUF file that devices serve, as far as that is known before it
    is computed: its family and flags, its tensors' names, shapes and values, its tokenizer and its chat template.

    Raises ConfigError, and BackendError where the tokens differ.
    """
    from edge_forge.models.causal_lm import check_tensors

    models.check_names(folder)
    check_tensors(folder)
    models.check_values(folder)
    tokenizer_gate.check_readable(folder)
    usable_template(folder)
    tokenizer_gate.check_alone(folder, int(models.read_config(folder)["vocab_size"]))


def convert_model(
    folder: Path, out: Path, name: str, base_id: str, tolerance: float, adapter: Path | None = None
) -> dict[str, Any]:
    """Write `out`/f16.gguf of a model folder, with the peft adapter folded in where one is given; returns the facts.

    Raises ConfigError for what has no GGUF form, BackendError where tokens or logits differ from PyTorch's.
    """
    from edge_forge.models.causal_lm import logits, open_model

    path = out / MODEL_FILE
    with nullcontext() if adapter is None else lora.deltas(adapter) as delta:
        written = models.convert(folder, path, name, base_id, delta)
    tokenizer_gate.check(folder, path)
    rows = _sample_rows(folder)
    wanted = logits(open_model(folder, adapter), rows)
    parity = _demand(engine.logits(path, rows), wanted, tolerance, f"{name} as GGUF")
    return {**asdict(written), "parity": parity}


def convert_adapter(
    folder: Path, peft: Path, base: Path, out: Path, name: str, base_id: str, tolerance: float
) -> dict[str, Any]:
    """Write `out`/adapter.gguf for the base's file `base`; parity and effect are measured through llama.cpp.

    `effect` is the mean relative L2 distance between the logits with and without it; one without any is an error.
    """
    from edge_forge.models.causal_lm import logits, open_model

    path = out / ADAPTER_FILE
    written = lora.convert(peft, models.read_config(folder), path, name, base_id)
    rows = _sample_rows(folder)
    found = engine.logits(base, rows, path)
    parity = _demand(found, logits(open_model(folder, peft), rows), tolerance, f"the adapter {name} as GGUF")
    effect = float(distances(found, engine.logits(base, rows)).mean())
    if effect <= 2 * parity:
        raise BackendError(
            f"the adapter changes the logits by {effect:.2g}, hardly more than the conversion itself ({parity:.2g})",
            name, "train longer, or with a larger learning_rate",
        )  # fmt: skip
    return {**asdict(written), "parity": parity, "effect": effect}


def quantize(source: Path, out: Path, dtype: str) -> dict[str, Any]:
    """Write `out`/<dtype>.gguf from an F16 file; says how many tensors llama.cpp gave another format."""
    return {"fallbacks": engine.quantize(source, out / f"{dtype}.gguf", dtype)}


def sample_perplexity(folder: Path, path: Path) -> float:
    """Perplexity of a GGUF file on the sample texts, each from its second token on."""
    rows = _sample_rows(folder)
    return perplexity(engine.losses(path, rows, [1] * len(rows)), sum(len(row) - 1 for row in rows))


def distances(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float64]:
    """Relative L2 distance of every row."""
    off = np.linalg.norm((found - wanted).astype(np.float64), axis=1)
    result: NDArray[np.float64] = off / np.maximum(np.linalg.norm(wanted.astype(np.float64), axis=1), 1e-12)
    return result


def _sample_rows(folder: Path) -> list[list[int]]:
    """The sample texts as ids, within what the model takes."""
    tokenizer = ChatTokenizer(folder, "no")
    longest = min(_LONGEST, families.context(models.read_config(folder)))
    return [row[:longest] for row in (list(tokenizer.ids(text)) for text in BASE_TEXTS) if row]


def _demand(found: NDArray[np.float32], wanted: NDArray[np.float32], tolerance: float, what: str) -> float:
    off = float(distances(found, wanted).max())
    if not off <= tolerance:
        raise BackendError(
            f"{what} differs from PyTorch by {off:.2g} (relative, worst token), {tolerance:.2g} is allowed", "parity",
            "raise gguf.parity_tolerance only when you know why",
        )  # fmt: skip
    return off
