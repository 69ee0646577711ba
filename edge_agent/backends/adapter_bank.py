"""The adapter bank of an encoder's graph: unmerged LoRA adapters as arrays for the graph's bank inputs.

The graph's metadata (`edge.bank`) says which adapter tensors go to which inputs. A batch binds, per input, one of three
arrays; each is bound by pointer and not copied per run:
  base alone      arrays of rank 0, so that the LoRA branches cost little
  one adapter     that adapter's own arrays, first axis 1: the graph broadcasts them
  several         a window of the bank, one position per row (`PositionalCache`)

The bank has a fixed number of positions, and each holds one adapter. A mixed batch of n rows gets n adjacent positions
(a view, no copy), and its rows are put in the order in which those positions hold their adapters. Only a row whose
adapter is not in the window costs a write. Popular adapters therefore come to hold several positions, and the positions
that have not been used for longest are overwritten first (docs/decisions/0034). An adapter's file is read with numpy
alone (`read_tensors`): `bundle.safetensors` checks its header. numpy is imported when a bank is made.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edge_agent.backends.api import AdapterSource
from edge_agent.base import limits
from edge_agent.base.errors import AdapterRefused, BackendError, PackageError, brief
from edge_agent.bundle.safetensors import OF_TOKENS, read_safetensors

HEADER_BYTES = 4 * limits.MIB
TENSORS_MAX = 4096
_NUMPY_TYPES = {"F32": "<f4", "F16": "<f2"}


class TensorFile(NamedTuple):
    """`tensors` by name as float32 arrays, and the string metadata."""

    tensors: Mapping[str, Any]
    metadata: Mapping[str, str]


def read_tensors(path: str, size_max_bytes: int) -> TensorFile:
    """All tensors of a file. Raises AdapterRefused for anything that is not exactly a safetensors file."""
    try:
        size = os.stat(path).st_size  # noqa: PTH116 (pathlib costs memory for two lines)
        if size > size_max_bytes:
            raise AdapterRefused(f"the file has {size} bytes, at most {size_max_bytes} are taken", path)
        with open(path, "rb") as stream:  # noqa: PTH123 (as above)
            data = stream.read(size)
    except OSError as error:
        raise AdapterRefused(f"the file cannot be read: {error.strerror}", path) from error
    return parse_tensors(data, path)


def parse_tensors(data: bytes, where: str) -> TensorFile:
    """The same from bytes; `where` is named in errors."""
    try:
        header = read_safetensors(io.BytesIO(data), len(data), where, HEADER_BYTES)
    except PackageError as error:
        raise AdapterRefused(error.what, error.where, error.remedy) from error
    if len(header.tensors) > TENSORS_MAX:
        raise AdapterRefused(f"{len(header.tensors)} tensors are more than {TENSORS_MAX}", where)
    tensors = {}
    for name, (dtype, shape, begin, _) in header.tensors.items():
        if dtype not in _NUMPY_TYPES or len(shape) > 2:
            raise AdapterRefused(f"tensor {brief(name)} is not a float32 or float16 vector or matrix", where)
        tensors[name] = _array(data, begin, _NUMPY_TYPES[dtype], shape)
    return TensorFile(tensors, header.metadata)


def _array(data: bytes, first: int, dtype: str, shape: tuple[int, ...]) -> Any:
    import numpy

    array = numpy.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=first).reshape(shape)
    return array.astype(numpy.float32, copy=False)


FORMAT = "edge-adapter/1"
VERSIONS = (3, 4)
"""Of the bank's description. 4: with heads for tokens, in `tokens`; 3: a site is one module, up to `COLUMNS` of its
rank (2: modules with the same input shared an A; 1: the head's labels' axis was as wide as `max_labels`)."""
HEAD = ("head.weight", "head.bias")
"""Bank inputs [rows, hidden, labels] and [rows, labels]: of features to `logits`. An adapter's file has its head under
these names, whatever it reads."""
TOKEN_HEAD = ("token_head.weight", "token_head.bias")
"""Bank inputs [rows, hidden, classes] and [rows, classes]: of the hidden states of every token to `token_logits`."""
COLUMNS = 16
"""Columns of a site's A: ONNX Runtime divides a wider product between threads where a text is alone and not where it
has company, and the sums then differ (docs/decisions/0031)."""
ADAPTER_BYTES = 256 * 1024 * 1024
SIZE_MAX = 2**20
"""Of a bank: rank, labels, widths. A graph's own figures must not make numpy ask for more than any model has."""


class BankSite(NamedTuple):
    """Two bank inputs: A [rows, d_in, columns] and B [rows, columns, d_out] of `module`, for the columns of its rank
    from `first` on, at most `COLUMNS`."""

    a: str
    b: str
    module: str
    first: int
    d_in: int
    d_out: int


class TokenHeads(NamedTuple):
    """The width of a token's hidden state, and the most classes that a head of tokens may have."""

    hidden: int
    max_classes: int


class BankSpec(NamedTuple):
    """The bank inputs of a graph, and the largest adapter that fits: rank, labels, width of the features.

    `tokens` None: the graph has no heads for tokens.
    """

    rank: int
    max_labels: int
    hidden: int
    sites: tuple[BankSite, ...]
    tokens: TokenHeads | None = None


class ResidentAdapter(NamedTuple):
    """An attached adapter: the outputs of its head (labels, or classes of every token with `of_tokens`), its rank per
    site, its arrays by bank input (first axis 1)."""

    labels: int
    of_tokens: bool
    ranks: tuple[int, ...]
    arrays: dict[str, Any]
    size_bytes: int


class Bound(NamedTuple):
    """What a batch binds: arrays by input name, and the row order (batch row i is request row `order[i]`)."""

    arrays: dict[str, Any]
    order: tuple[int, ...]


def parse_spec(text: str) -> BankSpec:
    """The description that `edge-forge export` wrote. Raises BackendError when it is another version or broken."""
    try:
        fields = json.loads(text)
        version = fields["version"]
        if version not in VERSIONS:
            raise BackendError(
                f"the graph's bank has version {brief(version)}, {VERSIONS[0]} to {VERSIONS[-1]} are known",
                "model",
                "export the base anew, or update edge-agent",
            )
        tokens = fields["tokens"] if version == VERSIONS[-1] else None
        sites = tuple(
            BankSite(
                str(e["a"]),
                str(e["b"]),
                str(e["module"]),
                _count(e["first"], 0),
                _count(e["d_in"]),
                _count(e["d_out"]),
            )
            for e in fields["sites"]
        )
        return BankSpec(
            _count(fields["rank"]),
            _count(fields["max_labels"]),
            _count(fields["hidden"]),
            sites,
            None if tokens is None else TokenHeads(_count(tokens["hidden"]), _count(tokens["max_classes"])),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BackendError(
            f"the graph's bank description is broken: {type(error).__name__} {brief(str(error))}", "model"
        ) from error


def _count(value: object, lowest: int = 1) -> int:
    """A size of the bank. Raises ValueError."""
    if type(value) is not int or not lowest <= value <= SIZE_MAX:
        raise ValueError(f"{brief(value)} is no size from {lowest} to {SIZE_MAX}")
    return value


def read_adapter(source: AdapterSource, spec: BankSpec) -> ResidentAdapter:
    """Load and check an adapter file. Raises AdapterRefused with what does not fit."""
    file = read_tensors(source.path, ADAPTER_BYTES)
    _check_metadata(file, source)
    tensors = dict(file.tensors)
    _check_values(tensors, source)
    of_tokens = file.metadata.get("head") == OF_TOKENS
    arrays = _heads(tensors, spec, source, of_tokens)
    pairs = {site.module: _pair(tensors, site, spec.rank, source) for site in spec.sites if site.first == 0}
    ranks = [_site(pairs[site.module], site, arrays) for site in spec.sites]
    if tensors:
        raise AdapterRefused(
            f"adapter {source.name!r} has a tensor {brief(min(tensors))} that this model has no place for",
            source.path,
            "export the base with this module among its targets",
        )
    labels = int(file.tensors["head.bias"].shape[0])
    return ResidentAdapter(labels, of_tokens, tuple(ranks), arrays, sum(array.nbytes for array in arrays.values()))


def _check_metadata(file: TensorFile, source: AdapterSource) -> None:
    if file.metadata.get("format", FORMAT) != FORMAT:
        raise AdapterRefused(f"the format is {brief(file.metadata['format'])}, {FORMAT} is known", source.path)
    stated = file.metadata.get("base_id", source.base_id)
    if stated != source.base_id:
        raise AdapterRefused(f"the file says base {stated}, its package {source.base_id}", source.path)
    head = file.metadata.get("head", OF_TOKENS)
    if head != OF_TOKENS:
        raise AdapterRefused(f"its head is for {brief(head)}, {OF_TOKENS} are known", source.path)


def _check_values(tensors: dict[str, Any], source: AdapterSource) -> None:
    import numpy

    for name, value in tensors.items():
        if not numpy.isfinite(value).all():
            raise AdapterRefused(f"adapter {source.name!r}: {name} has values that are not finite")


def _heads(tensors: dict[str, Any], spec: BankSpec, source: AdapterSource, of_tokens: bool) -> dict[str, Any]:
    """The inputs of both heads: the adapter's own, and the other as narrow as the graph takes it."""
    if not of_tokens:
        own = _head(tensors, (spec.hidden, spec.max_labels), source, HEAD)
        if spec.tokens is not None:
            own |= _nothing(TOKEN_HEAD, 1, spec.tokens.hidden, 0)
        return own
    if spec.tokens is None:
        raise AdapterRefused(
            f"adapter {source.name!r} labels tokens, and this graph has no heads for tokens",
            source.path,
            "export the base anew, or install the adapter's merged model",
        )
    return _head(tensors, spec.tokens, source, TOKEN_HEAD) | _nothing(HEAD, 1, spec.hidden, 1)


def _nothing(names: tuple[str, str], positions: int, hidden: int, outputs: int) -> dict[str, Any]:
    """Arrays of zeros for a head."""
    import numpy

    weight, bias = names
    return {
        weight: numpy.zeros((positions, hidden, outputs), numpy.float32),
        bias: numpy.zeros((positions, outputs), numpy.float32),
    }


def _head(
    tensors: dict[str, Any], most: tuple[int, int], source: AdapterSource, names: tuple[str, str]
) -> dict[str, Any]:
    """The file's head as the bank inputs `names`; `most` are its width and the most outputs."""
    import numpy

    hidden, max_labels = most
    weight, bias = (tensors.pop(name, None) for name in HEAD)
    if weight is None or bias is None:
        raise AdapterRefused(f"adapter {source.name!r} has no head.weight and head.bias", source.path)
    if weight.ndim != 2 or weight.shape[0] != hidden or bias.shape != weight.shape[1:]:
        raise AdapterRefused(
            f"adapter {source.name!r}: head {list(weight.shape)} with bias {list(bias.shape)}, "
            f"[{hidden}, labels] is needed",
            source.path,
        )
    labels = int(bias.shape[0])
    if not 1 <= labels <= max_labels:
        what = "labels" if names == HEAD else "classes of tokens"
        raise AdapterRefused(
            f"adapter {source.name!r} has {labels} {what}, this model takes 1 to {max_labels}",
            source.path,
            "export the base with a larger bank_labels" if names == HEAD else None,
        )
    # A view of the file where it is aligned: the labels' axis is free, so an adapter's own head needs no padding.
    return {name: numpy.require(value, numpy.float32, ["C", "A"])[None] for name, value in
            zip(names, (weight, bias), strict=True)}  # fmt: skip


def _site(pair: tuple[Any, Any] | None, site: BankSite, arrays: dict[str, Any]) -> int:
    """Put the site's columns of a module's (A, B) into bank form, views where they lie so; returns their number."""
    import numpy

    columns = slice(site.first, site.first + COLUMNS)
    a, b = (numpy.zeros((site.d_in, 0)), numpy.zeros((0, site.d_out))) if pair is None else pair
    parts = {site.a: a[:, columns], site.b: b[columns]}
    arrays |= {name: numpy.require(part, numpy.float32, ["C", "A"])[None] for name, part in parts.items()}
    return int(parts[site.b].shape[0])


def _pair(tensors: dict[str, Any], site: BankSite, rank_max: int, source: AdapterSource) -> tuple[Any, Any] | None:
    """A and B of the site's module, taken from `tensors`; None where the adapter has none."""
    a, b = tensors.pop(site.module + ".A", None), tensors.pop(site.module + ".B", None)
    if a is None and b is None:
        return None
    if a is None or b is None:
        raise AdapterRefused(f"adapter {source.name!r} has only one half of {site.module}", source.path)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != site.d_in or b.shape[1] != site.d_out or a.shape[1] != b.shape[0]:
        raise AdapterRefused(
            f"adapter {source.name!r}: {site.module} has A {list(a.shape)} and B {list(b.shape)}, "
            f"[{site.d_in}, r] and [r, {site.d_out}] are needed",
            source.path,
        )
    rank = int(a.shape[1])
    if rank > rank_max:
        raise AdapterRefused(
            f"adapter {source.name!r} has rank {rank} at {site.module}, the bank takes {rank_max}",
            source.path,
            "export the base with a larger bank_rank",
        )
    return a, b


class Placement(NamedTuple):
    """Batch row i is row `order[i]` of the request and lies at position `start + i`; do `writes` first.

    `writes` are (position, adapter) pairs. Adapters are names; '' stands for the base alone.
    """

    start: int
    order: tuple[int, ...]
    writes: tuple[tuple[int, str], ...]


class PositionalCache:
    """Which adapter each position holds, and in which batch it was last used. Pure; it counts batches, not time."""

    def __init__(self, positions: int) -> None:
        self._holds: list[str | None] = [None] * positions
        self._used = [0] * positions
        self._batch = 0

    @property
    def holds(self) -> tuple[str | None, ...]:
        """The adapter at every position; None where nothing was written yet."""
        return tuple(self._holds)

    def place(self, rows: Sequence[str]) -> Placement:
        """Positions for a batch whose row i needs adapter `rows[i]`; the cache then holds what the plan writes.

        `rows` must be no longer than the number of positions.
        """
        count = len(rows)
        if not 0 < count <= len(self._holds):
            raise ValueError(f"{count} rows do not fit {len(self._holds)} positions")
        start = self._window(Counter(rows), count)
        self._batch += 1
        plan = self._assign(rows, start)
        for position, adapter in plan.writes:
            self._holds[position] = adapter
        for position in range(start, start + count):
            self._used[position] = self._batch
        return plan

    def forget(self, adapter: str) -> None:
        """Mark every bank position (one per row of a batch) that holds this adapter as empty: the adapter was detached,
        or replaced by another version."""
        for position, held in enumerate(self._holds):
            if held == adapter:
                self._holds[position] = None
                self._used[position] = 0

    def _window(self, needed: dict[str, int], count: int) -> int:
        """The start of the window with the most rows already in place; among equals, the one longest unused."""
        inside = Counter(self._holds[:count])
        best, best_key = 0, (-1, 0)
        for start in range(len(self._holds) - count + 1):
            if start:
                inside[self._holds[start - 1]] -= 1
                inside[self._holds[start + count - 1]] += 1
            hits = sum(min(number, inside[adapter]) for adapter, number in needed.items())
            key = (hits, -sum(self._used[start : start + count]))
            if key > best_key or start == 0:
                best, best_key = start, key
        return best

    def _assign(self, rows: Sequence[str], start: int) -> Placement:
        waiting: dict[str, list[int]] = {}
        for row in reversed(range(len(rows))):
            waiting.setdefault(rows[row], []).append(row)
        order = [-1] * len(rows)
        for place in range(len(rows)):
            held = self._holds[start + place]
            if held is not None and waiting.get(held):
                order[place] = waiting[held].pop()
        left = sorted((row for group in waiting.values() for row in group), reverse=True)
        writes = []
        for place in range(len(rows)):
            if order[place] < 0:
                order[place] = left.pop()
                writes.append((start + place, rows[order[place]]))
        return Placement(start, tuple(order), tuple(writes))


class AdapterBank:
    """The resident adapters of a session and the bank that mixed batches read."""

    def __init__(self, spec: BankSpec, positions: int) -> None:
        self.spec = spec
        self._positions = positions
        self._cache = PositionalCache(positions)
        self._resident: dict[str, ResidentAdapter] = {}
        self._ranks = (0,) * len(spec.sites)
        self._labels, self._classes = 1, 0
        self._bank: dict[str, Any] | None = None
        self._base = self.zeros(0)

    def attach(self, source: AdapterSource) -> int:
        """Read and keep an adapter; returns its bytes. A resident one of that name is replaced."""
        adapter = read_adapter(source, self.spec)
        self.detach(source.name)
        self._resident[source.name] = adapter
        ranks = tuple(map(max, self._ranks, adapter.ranks))
        labels = self._labels if adapter.of_tokens else max(self._labels, adapter.labels)
        classes = max(self._classes, adapter.labels) if adapter.of_tokens else self._classes
        if (ranks, labels, classes) != (self._ranks, self._labels, self._classes):
            # A larger rank or head than any before needs larger bank arrays; they are filled again as rows need them.
            self._ranks, self._labels, self._classes = ranks, labels, classes
            self._bank, self._cache = None, PositionalCache(self._positions)
        return adapter.size_bytes

    def detach(self, name: str) -> None:
        """Forget an adapter; unknown names are no error."""
        if self._resident.pop(name, None) is not None:
            self._cache.forget(name)

    def labels(self, name: str) -> int:
        """The outputs of a resident adapter's head: labels, or classes of every token."""
        return self._resident[name].labels

    def of_tokens(self, name: str) -> bool:
        """Whether a resident adapter's head reads every token."""
        return self._resident[name].of_tokens

    def __contains__(self, name: object) -> bool:
        return name in self._resident

    def __len__(self) -> int:
        return len(self._resident)

    @property
    def size_bytes(self) -> int:
        """Bytes of the resident adapters and of the bank."""
        bank = sum(array.nbytes for array in self._bank.values()) if self._bank is not None else 0
        return bank + sum(adapter.size_bytes for adapter in self._resident.values())

    def bind(self, rows: Sequence[str | None]) -> Bound:
        """The arrays for a batch whose row i uses adapter `rows[i]` (None: the base alone)."""
        same = tuple(range(len(rows)))
        if all(name == rows[0] for name in rows):
            return Bound(self._base if rows[0] is None else self._resident[rows[0]].arrays, same)
        plan = self._cache.place([name or "" for name in rows])
        bank = self._laid_out()
        for position, name in plan.writes:
            self._write(bank, position, name)
        window = slice(plan.start, plan.start + len(rows))
        return Bound({name: array[window] for name, array in bank.items()}, plan.order)

    def zeros(self, rank: int) -> dict[str, Any]:
        """Arrays of zeros of that rank for one position: the base alone, with one label and no class of tokens."""
        return self._arrays(1, [max(0, min(COLUMNS, rank - site.first)) for site in self.spec.sites], 1, 0)

    def _laid_out(self) -> dict[str, Any]:
        if self._bank is None:
            self._bank = self._arrays(self._positions, self._ranks, self._labels, self._classes)
        return self._bank

    def _arrays(self, positions: int, ranks: Sequence[int], labels: int, classes: int) -> dict[str, Any]:
        import numpy

        arrays = _nothing(HEAD, positions, self.spec.hidden, labels)
        if self.spec.tokens is not None:
            arrays |= _nothing(TOKEN_HEAD, positions, self.spec.tokens.hidden, classes)
        for site, rank in zip(self.spec.sites, ranks, strict=True):
            arrays[site.a] = numpy.zeros((positions, site.d_in, rank), numpy.float32)
            arrays[site.b] = numpy.zeros((positions, rank, site.d_out), numpy.float32)
        return arrays

    def _write(self, bank: dict[str, Any], position: int, name: str) -> None:
        """Copy an adapter into a position, padded with zeros to the bank's rank."""
        if not name:
            for array in bank.values():
                array[position] = 0.0
            return
        adapter = self._resident[name]
        # Columns beyond the adapter's own labels are cut from its logits, whatever they hold.
        for weight, bias in (HEAD, TOKEN_HEAD) if self.spec.tokens is not None else (HEAD,):
            width = adapter.arrays[bias].shape[1]
            bank[weight][position, :, :width] = adapter.arrays[weight][0]
            bank[weight][position, :, width:] = 0.0
            bank[bias][position, :width] = adapter.arrays[bias][0]
            bank[bias][position, width:] = 0.0
        for index, site in enumerate(self.spec.sites):
            rank = adapter.ranks[index]
            bank[site.a][position, :, :rank] = adapter.arrays[site.a][0]
            bank[site.a][position, :, rank:] = 0.0
            bank[site.b][position, :rank] = adapter.arrays[site.b][0]
            bank[site.b][position, rank:] = 0.0


def job_rows(names: Sequence[str | None], counts: Sequence[int]) -> list[str | None]:
    """The adapter of every row, from the adapter and the number of rows of every piece."""
    rows: list[str | None] = []
    for name, count in zip(names, counts, strict=True):
        rows.extend([name] * count)
    return rows
