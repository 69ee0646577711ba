"""What a device would refuse of a recipe's packages, found before anything is trained.

The documents of every package that the recipe will make (release statement, model, adapter, task) are written with
stand-ins for what only training can know, and read by the same types that the device reads: a bound that is added to
the format is checked here without another line. Bounds of files and of the bank, which no document states, follow.
Every problem is a ConfigError that names the key.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent import __version__
from edge_agent.base import limits
from edge_agent.base.errors import ConfigError, PackageError, SignatureError, UsageError
from edge_agent.base.units import bytes_text
from edge_agent.bundle.manifest import AdapterConfig, ModelDoc
from edge_agent.bundle.statement import IndexRef, Now, Release, check_agent, check_time
from edge_forge.export import litert_converter
from edge_forge.package import release as releases
from edge_forge.package.sources import convert, task_doc
from edge_forge.recipe.schema import CommonRecipe

_DIGEST = "sha256:" + "0" * 64
_CHARACTERS_OF_A_NUMBER = 14
"""Of a probe's output in JSON: seven digits, sign, point, exponent, comma."""
# Where a field of a document comes from, for who must change it.
_KEYS = {
    "hardware": "package.hardware", "min_agent": "package.min_agent", "channel": "package.channel",
    "counter": "package.version", "labels": "task.labels", "max_tokens": "task.max_tokens",
    "threshold": "task.threshold", "out_of_scope": "task.out_of_scope", "rank": "method.rank", "alpha": "method.alpha",
}  # fmt: skip


@dataclass(frozen=True)
class ProbeShape:
    """How large golden probes become: rows of `width` features (and of `labels` logits) for each of `variants`."""

    width: int
    labels: int
    variants: int


def check_documents(
    recipe: CommonRecipe,
    products: Sequence[tuple[str, int]],
    base_task: Mapping[str, object],
    task: Mapping[str, object],
) -> None:
    """Write and read the documents of `products`: (name, counter) of base, adapter and merged model, as they are made.

    `base_task` and `task` are what the base and the recipe's own model answer (`manifest.TaskDoc`). Raises ConfigError.
    """
    names = [name for name, _ in products]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two of its packages have the same name ({', '.join(names)})", "base.name",
            "name the base after the model that it is, such as 'minilm'",
        )  # fmt: skip
    now_s = releases.issued_s()
    for product, counter in products:
        with _at_its_key():
            _check_release(recipe, product, counter, now_s)
            for answered in (base_task, task):
                where = f"model {product}"
                fields = {"schema": 1, "name": product, "kind": "base", "base_id": _DIGEST}
                convert({**fields, "task": task_doc(answered, where)}, ModelDoc, where)


def check_adapter_document(name: str, rank: int, alpha: float, task: Mapping[str, object]) -> None:
    """Write and read the config of an adapter. Raises ConfigError."""
    fields = {"schema": 1, "name": name, "base_id": _DIGEST, "rank": rank, "alpha": alpha, "targets": ("x",),
              "dtype": "float32"}  # fmt: skip
    with _at_its_key():
        convert({**fields, "task": task_doc(task, f"adapter {name}")}, AdapterConfig, f"adapter {name}")


def check_files(files: Mapping[str, Path], probes: int, shape: ProbeShape) -> None:
    """Bounds of files that travel: 'tokenizer', 'card', and the golden probes by their predicted size.

    Raises ConfigError.
    """
    most = {"tokenizer": limits.TOKENIZER_BYTES, "card": limits.MANIFEST_BYTES}
    for what, path in files.items():
        size = path.stat().st_size
        if size > most[what]:
            raise ConfigError(
                f"the {what} has {bytes_text(size)}; a package carries at most {bytes_text(most[what])}", str(path)
            )
    numbers = probes * (shape.width + shape.labels) * shape.variants
    if numbers * _CHARACTERS_OF_A_NUMBER > limits.MANIFEST_BYTES:
        fit = limits.MANIFEST_BYTES // (_CHARACTERS_OF_A_NUMBER * (shape.width + shape.labels) * shape.variants)
        raise ConfigError(
            f"{probes} golden probes of {shape.width} features and {shape.labels} logits for {shape.variants} variants "
            f"are more than the {bytes_text(limits.MANIFEST_BYTES)} that a package carries",
            "package.probes",
            f"set at most {fit}" if fit >= 2 else "ship fewer variants",
        )


def check_converter(formats: Sequence[str]) -> None:
    """Whether what makes and measures variants for LiteRT is installed, where there are any. Raises ConfigError."""
    if formats and (absent := litert_converter.absent()):
        raise ConfigError(
            f"variants for LiteRT need {' and '.join(absent)}, which this Python does not have", "quantize.litert",
            litert_converter.REMEDY,
        )  # fmt: skip


def check_bank(labels: Sequence[str], bank_labels: int, where: str) -> None:
    """Whether the base's bank takes a head of so many labels. Raises ConfigError."""
    if len(labels) > bank_labels:
        raise ConfigError(
            f"{where} has {len(labels)} labels, the base's bank takes {bank_labels}",
            "export.bank_labels",
            f"set export.bank_labels = {len(labels)} or more (at most {limits.LABELS}), or export.banked = false",
        )


@contextlib.contextmanager
def _at_its_key() -> Iterator[None]:
    """A UsageError about a field of a document becomes a ConfigError at the key that the field comes from."""
    try:
        yield
    except UsageError as error:
        what, _, at = error.what.partition(" - at `$")
        field = re.search(r"\.(\w+)", at)
        named = field[1] if field else ""
        if "matching regex" in what:  # of the format's strings: versions and words
            what = "it takes " + (
                "a version such as '0.1.0'"
                if named == "min_agent"
                else "letters, digits and . _ / + , : - between them"
            )
        raise ConfigError(
            f"a device would refuse {error.where}: {what[:1].lower()}{what[1:]}", _KEYS.get(named, named or "recipe")
        ) from error


def _check_release(recipe: CommonRecipe, product: str, counter: int, now_s: int) -> None:
    statement: Release = releases.release(recipe.package, product, counter, now_s).statement(
        IndexRef(digest=_DIGEST, size=1)
    )
    try:
        check_agent(statement, __version__)
    except PackageError as error:
        raise ConfigError(
            f"the edge-agent of this host could not try the package: {error.what}", "package.min_agent",
            f"set at most {__version__}, or build with the newer release",
        ) from error  # fmt: skip
    try:
        check_time(statement, Now(time.time(), trusted=True))
    except (PackageError, SignatureError) as error:
        raise ConfigError(
            f"a device would refuse the package: {error.what}",
            "package.expires_days",
            "raise it, or unset SOURCE_DATE_EPOCH",
        ) from error
