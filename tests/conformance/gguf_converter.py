"""llama.cpp's own converter beside ours, over random models of every family that ours writes.

A file of its own because it needs PyTorch and the source of llama.cpp. Its converter is run as it is, but for two
things that it takes from tables or files which random models have no part in: the name of a BPE tokenizer's splitting
(it knows published tokenizers by a digest) is set to what ours derived, and of families with a SentencePiece model the
vocabulary is left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.conformance.outcome import LIMIT_S, Absent, Outcome, Places

FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "olmo2", "granite", "smollm3", "phi3")
# Keys that say who wrote the file and what it is called.
OURS_ALONE = ("GGUF.", "general.name", "general.size_label")
SUBJECT, AGAINST = "GGUF files of generators", "llama.cpp's converter"
RUN = """
import sys
folder, pre, out, model = sys.argv[1:]
sys.path[:0] = [folder, folder + "/gguf-py"]
import convert_hf_to_gguf
from conversion import gemma, phi
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
if pre == "pieces":
    for one in [*vars(gemma).values(), *vars(phi).values()]:
        if isinstance(one, type) and issubclass(one, TextModel) and "set_vocab" in vars(one):
            one.set_vocab = lambda self: None
sys.argv = ["convert", model, "--outtype", "f16", "--outfile", out]
convert_hf_to_gguf.main()
"""


def converter(places: Places) -> Iterator[Outcome]:
    """Every tensor and every key that llama.cpp's converter writes, in the file that ours writes."""
    try:
        folder, version = _found(places)
    except Absent as error:
        yield Outcome(SUBJECT, AGAINST, note=str(error))
        return
    tried, failed, more = 0, list[str](), list[str]()
    for family in FAMILIES:
        tensors, keys, wrong, extra = _compared(folder, places.work / "converted", family)
        tried += tensors + keys
        failed += [f"{family}: {one}" for one in wrong]
        more += [f"{family} {one}" for one in extra]
    note = f"{len(FAMILIES)} families of random models; tensors and keys of its files, with equal values in ours"
    yield Outcome(SUBJECT, AGAINST, version, tried, tuple(failed), "; ".join([note, *more]))


def _found(places: Places) -> tuple[Path, str]:
    """The folder of llama.cpp's source and its version. Raises Absent."""
    folder = places.work / "llama.cpp"
    if not (folder / "convert_hf_to_gguf.py").is_file():
        raise Absent(f"{folder} has no convert_hf_to_gguf.py: make conformance takes it from llama-cpp-python's source")
    said = folder / "VERSION"
    return folder, said.read_text().strip() if said.is_file() else "?"


def _compared(source: Path, out: Path, family: str) -> tuple[int, int, list[str], list[str]]:
    """How many tensors and keys llama.cpp's file has, what differs in ours, and what ours has more of a tensor."""
    from edge_forge.export.gguf import write_model
    from tests.support import tiny_generators

    folder = out / family
    if not folder.exists():
        tiny_generators.write(folder, family)
    ours, theirs = out / f"{family}-ours.gguf", out / f"{family}-theirs.gguf"
    found = write_model.convert(folder, ours, "tiny", "sha256:" + "0" * 64)
    theirs.unlink(missing_ok=True)
    pre = "pieces" if found.tokenizer == "llama" else found.pre
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(source), pre, str(theirs), str(folder)],
        capture_output=True, text=True, timeout=LIMIT_S, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode:
        return 0, 0, [f"its converter ended with {done.returncode}: {(done.stdout + done.stderr)[-300:]}"], []
    (keys, tensors), (their_keys, their_tensors) = _read(ours), _read(theirs)
    wanted = {key: value for key, value in their_keys.items() if not key.startswith(OURS_ALONE)}
    wrong = [
        f"{key} is {keys.get(key)!r:.60}, not {value!r:.60}" for key, value in wanted.items() if keys.get(key) != value
    ]
    wrong += [f"{name} is no tensor of theirs" for name in tensors.keys() - their_tensors.keys()]
    extra = []
    for name, (kind, value) in their_tensors.items():
        our_kind, our = tensors.get(name, ("", np.empty(0)))
        if pre == "pieces" and len(our) > len(value):
            # It leaves out the rows of tokens that the tokenizer does not have; llama.cpp reads both.
            extra.append(f"{name}: {len(our) - len(value)} rows without a token")
            our = our[: len(value)]
        if our_kind != kind or not np.array_equal(our, value):
            wrong.append(f"tensor {name} differs")
    return len(their_tensors), len(wanted), wrong, extra


def _read(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, Any]]]:
    """Keys with their values, and tensors by name with type and values, rows first."""
    import gguf

    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    return keys, {one.name: (one.tensor_type.name, np.array(one.data)) for one in reader.tensors}
