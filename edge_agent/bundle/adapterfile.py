"""The adapter file `adapter.safetensors`: does it say of itself what its manifest says of it?

Tensors are named by the module they adapt, `<module>.A` [d_in, rank] and `<module>.B` [rank, d_out], plus `head.weight`
[hidden, labels] and `head.bias` [labels]; the string metadata carries {format: "edge-adapter/1", base_id, rank, ...}.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from edge_agent.base.errors import PackageError
from edge_agent.bundle.magic import safetensors_table
from edge_agent.bundle.manifest import ADAPTER_FILE, AdapterConfig

FORMAT = "edge-adapter/1"
_DTYPES = {"float32": "F32", "float16": "F16"}


def check_adapter(path: Path, config: AdapterConfig) -> None:
    """Raises PackageError when base, rank, labels or number format of the file are not those of the manifest."""
    with path.open("rb") as file:
        table = safetensors_table(file, os.fstat(file.fileno()).st_size, ADAPTER_FILE)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(length)).get("__metadata__", {})
    where = f"adapter {config.name}"
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise PackageError(f"its file does not say that it is {FORMAT}", where)
    if metadata.get("base_id") != config.base_id:
        raise PackageError(
            f"its file is for base {str(metadata.get('base_id'))[:19]}, the manifest says otherwise", where
        )
    labels = len(config.task.labels)
    if labels and table.get("head.bias", ("", ()))[1] != (labels,):
        raise PackageError(f"its head is not for the {labels} labels of its task", where)
    for name, (dtype, shape) in table.items():
        if dtype != _DTYPES[config.dtype]:
            raise PackageError(f"tensor {name[:80]} is {dtype}, the manifest says {config.dtype}", where)
        if name.endswith((".A", ".B")) and (len(shape) != 2 or shape[name.endswith(".A")] > config.rank):
            raise PackageError(f"tensor {name[:80]} has a rank above the manifest's {config.rank}", where)
