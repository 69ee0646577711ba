"""One package for each version of a base: what was built before and computes the same is released again as it stands.

A base's package says what was measured of it (memory, parity, perplexity), and two measurements differ. Devices refuse
the same version with other contents. A second recipe on the base, or the same one after an update of this program,
therefore takes the contents of the package before, figures and golden probes included, under a statement of today.

A file of its own because it reads finished packages, which `build` only writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from edge_agent.base.errors import EdgeError
from edge_agent.bundle import jsonio, sign
from edge_agent.bundle import manifest as forms
from edge_agent.bundle.contents import Contents, VariantItem
from edge_agent.bundle.layout import open_package
from edge_agent.bundle.manifest import TaskDoc
from edge_agent.bundle.statement import RELEASE_FILE, RELEASE_TYPE, IndexRef, Release, seconds
from edge_agent.bundle.trust import Trust
from edge_agent.bundle.verify import read_package, read_release
from edge_forge.package.build import BuiltPackage
from edge_forge.package.sources import ReleaseSource
from edge_forge.package.write import package_file, rewrite


def released_again(built: BuiltPackage, release: ReleaseSource, shelf: Iterable[Path], trust: Trust) -> BuiltPackage:
    """`built`, an unsigned package of a base, with the contents of one on the `shelf` where that computes the same.

    Of several it is the one that was issued first. Only packages that `trust` accepts count: a build folder may have
    come with a recipe. Raises PackageError where `built` cannot be read.
    """
    wanted, _ = _read(built.path, None)
    found: list[tuple[float, str, Path, IndexRef]] = []
    for path in shelf:
        try:
            contents, statement = _read(path, trust)
        except EdgeError:
            continue  # no package, of other keys, or of another program: it is not used
        same_line = (statement.product, statement.channel, statement.counter) == (
            release.product, release.channel, release.counter,
        )  # fmt: skip
        if same_line and computes_the_same(contents, wanted):
            found.append((seconds(statement.issued_at), path.name, path, statement.index))
    if not found:
        return built
    _, _, path, index = min(found, key=lambda one: one[:2])
    if index.digest == built.index_digest:
        return built
    with open_package(path) as before:
        statement_bytes = jsonio.encode(release.statement(index))
        rewrite(before, built.path, {RELEASE_FILE: sign.wrap(RELEASE_TYPE, statement_bytes, [])})
    with open_package(built.path) as now:
        size_bytes = sum(now.sizes.values())
    return dataclasses.replace(
        built, index_digest=index.digest, digest=package_file(built.path).digest, size_bytes=size_bytes
    )


def computes_the_same(before: Contents, now: Contents) -> bool:
    """Whether a device that runs `before` answers as with `now`, and takes every request that `now` takes.

    Compared are the base, its task, and of each variant the weights, the tokenizer and how they are run. Figures that
    were measured and golden probes, which hold the last digits of this host, are not. A language model may state a
    longer context than is wanted: an adapter brings its own.
    """
    one, other = before.model, now.model
    if one is None or other is None or before.adapters or now.adapters:
        return False
    same_model = (one.name, one.kind, one.base_id, one.requires) == (
        other.name, other.kind, other.base_id, other.requires,
    )  # fmt: skip
    return same_model and _covers(one.task, other.task) and _variants(before) == _variants(now)


def _covers(before: TaskDoc, now: TaskDoc) -> bool:
    if before.kind == "generate" == now.kind:
        return before.max_tokens >= now.max_tokens
    return before == now


def _variants(contents: Contents) -> list[tuple[object, ...]]:
    return sorted(map(_computation, contents.variants), key=repr)


def _computation(item: VariantItem) -> tuple[object, ...]:
    info = item.info
    files = {name: one.digest for name, one in item.files.items() if name not in (forms.MODEL_FILE, forms.PROBES_FILE)}
    return (
        item.name, sorted(files.items()), sorted(info.features), sorted(info.hardware), sorted(info.requires),
        sorted(info.options.items()),
    )  # fmt: skip


def _read(path: Path, trust: Trust | None) -> tuple[Contents, Release]:
    """Contents and statement; `trust` None: whoever signed it, or nobody."""
    with open_package(path) as opened:
        release = read_release(opened, trust, allow_unsigned=trust is None).release
        return read_package(opened, release), release
