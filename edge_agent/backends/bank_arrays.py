"""Adapters as arrays for a banked graph: one alone, broadcast over a batch, or many by position.

The graph says in its metadata `edge.bank` which adapter tensors go to which input (docs/decisions/0031). An adapter
alone is bound with its own rank and a first axis of 1; the base alone has the least rank there is; a mixed batch binds
a view of the bank, whose rank is the largest of the attached adapters, smaller ones padded with zeros.
"""

import json
from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence, Tuple

from edge_agent.backends.api import AdapterSource
from edge_agent.backends.bank import Placement, Positions
from edge_agent.backends.tensors import read_tensors
from edge_agent.base.errors import AdapterRefused, BackendError

Arrays = Dict[str, Any]
HEAD_WEIGHT, HEAD_BIAS = "head.weight", "head.bias"


class Site(NamedTuple):
    """One fused product: modules that read the same x [.., d_in] share the input `a` [rows, d_in, k * rank]; each has
    its own `b` [rows, rank, d_out]."""

    a: str
    b: Tuple[str, ...]
    modules: Tuple[str, ...]
    d_in: int
    d_out: Tuple[int, ...]


class Description(NamedTuple):
    """The graph's bank: the largest rank it takes, room for labels, width of the features, its sites."""

    rank: int
    max_labels: int
    hidden: int
    sites: Tuple[Site, ...]


class Adapter(NamedTuple):
    """An attached adapter: arrays by graph input with a first axis of 1, its rank per site, its labels, its bytes."""

    arrays: Arrays
    ranks: Tuple[int, ...]
    labels: int
    size_bytes: int


def read_description(text: str) -> Description:
    """Parse the metadata `edge.bank`. Raises BackendError for one that is not understood."""
    try:
        found = json.loads(text)
        if found["version"] != 1:
            raise BackendError("the graph's bank has version {!r}, 1 is known".format(found["version"]), "onnx")
        sites = tuple(
            Site(site["a"], tuple(site["b"]), tuple(site["modules"]), int(site["d_in"]), tuple(site["d_out"]))
            for site in found["sites"]
        )
        return Description(int(found["rank"]), int(found["max_labels"]), int(found["hidden"]), sites)
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError("the graph's bank cannot be read: {}".format(error), "onnx") from error


def load_adapter(source: AdapterSource, bank: Description) -> Adapter:
    """Read an adapter's file and lay it out for the graph. Raises AdapterRefused when it does not fit."""
    tensors = dict(read_tensors(source.path).tensors)
    weight, bias = tensors.pop("head.weight", None), tensors.pop("head.bias", None)
    if weight is None or bias is None or weight.shape != (bank.hidden, len(bias)):
        raise AdapterRefused("its head is not [{}, labels] with a bias".format(bank.hidden), source.name)
    if len(bias) > bank.max_labels:
        reason = "it has {} labels, the model's graph has room for {}".format(len(bias), bank.max_labels)
        raise AdapterRefused(reason, source.name)
    arrays = {
        HEAD_WEIGHT: _padded(weight, bank.max_labels, 0.0)[None],
        HEAD_BIAS: _padded(bias, bank.max_labels, -1e9)[None],
    }
    ranks = [_lay_out(site, tensors, arrays, bank.rank, source.name) for site in bank.sites]
    if tensors:
        raise AdapterRefused("the model's graph has no place for {!r}".format(min(tensors)), source.name)
    size_bytes = sum(int(array.nbytes) for array in arrays.values())
    return Adapter(arrays, tuple(ranks), len(bias), size_bytes)


def _lay_out(site: Site, tensors: Arrays, arrays: Arrays, max_rank: int, name: str) -> int:
    """Move one site's A and B from `tensors` into `arrays`; returns the rank (0: the adapter leaves it alone)."""
    import numpy

    pairs = []
    for module, d_out in zip(site.modules, site.d_out):
        a, b = tensors.pop(module + ".A", None), tensors.pop(module + ".B", None)
        if a is None and b is None:
            a, b = numpy.zeros((site.d_in, 0), numpy.float32), numpy.zeros((0, d_out), numpy.float32)
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise AdapterRefused("{} has no matching A and B".format(module), name)
        if a.shape[0] != site.d_in or b.shape[1] != d_out:
            shape = "[{}, r] and [r, {}]".format(site.d_in, d_out)
            raise AdapterRefused("{} has the wrong shape; {} are needed".format(module, shape), name)
        pairs.append((a, b))
    rank = max(_least_rank(site), *(int(a.shape[1]) for a, _ in pairs))
    if rank > max_rank:
        raise AdapterRefused("its rank is {}, the model's graph takes up to {}".format(rank, max_rank), name)
    arrays[site.a] = numpy.concatenate([_padded(a, rank, 0.0) for a, _ in pairs], axis=1)[None]
    for target, (_, b) in zip(site.b, pairs):
        arrays[target] = numpy.ascontiguousarray(_padded(b.T, rank, 0.0).T)[None]
    return rank


def _least_rank(site: Site) -> int:
    """What a site needs when nothing adapts it: nothing, or a column of zeros where A is split (ONNX Runtime refuses to
    split an axis of length 0)."""
    return 0 if len(site.modules) == 1 else 1


def _padded(array: Any, width: int, value: float) -> Any:
    """`array` with its last axis filled up to `width`."""
    import numpy

    filled = numpy.full(array.shape[:-1] + (width,), value, numpy.float32)
    filled[..., : array.shape[-1]] = array
    return filled


class Bank:
    """The attached adapters and, once a batch was mixed, the positions that hold them."""

    def __init__(self, description: Description, positions: int) -> None:
        self.description = description
        self._count = positions
        self._positions = Positions(positions)
        self._adapters: Dict[str, Adapter] = {}
        self._arrays: Arrays = {}
        self._ranks: Tuple[int, ...] = tuple(map(_least_rank, description.sites))
        self._base = self._zeros(1, self._ranks)

    def attach(self, name: str, adapter: Adapter) -> None:
        """Make an adapter known; one of the same name is replaced. The bank is laid out anew when it has more rank."""
        self.detach(name)
        self._adapters[name] = adapter
        ranks = tuple(max(pair) for pair in zip(self._ranks, adapter.ranks))
        if ranks != self._ranks:
            self._ranks = ranks
            self._arrays = {}

    def detach(self, name: str) -> None:
        """Forget an adapter."""
        if self._adapters.pop(name, None) is not None and self._arrays:
            for place in self._positions.forget(name):
                self._write(place, None)

    def __contains__(self, name: object) -> bool:
        return name in self._adapters

    def labels(self, name: str) -> int:
        """How many of the logits an adapter means."""
        return self._adapters[name].labels

    @property
    def size_bytes(self) -> int:
        """Bytes of all adapters and of the positions."""
        held = sum(adapter.size_bytes for adapter in self._adapters.values())
        return held + sum(int(array.nbytes) for array in self._arrays.values())

    def alone(self, name: Optional[str]) -> Arrays:
        """The arrays of a batch in which every row uses this adapter (None: the base)."""
        return self._base if name is None else self._adapters[name].arrays

    def mixed(self, rows: Sequence[Optional[str]]) -> Tuple[Arrays, Placement]:
        """Views for a mixed batch, and where its rows go. What is missing is copied first: one position per miss."""
        if not self._arrays:
            self._arrays = self._zeros(self._count, self._ranks)
            self._positions = Positions(self._count)
        placement = self._positions.place(rows)
        for place, name in placement.writes:
            self._write(place, name)
        end = placement.start + len(rows)
        return {name: array[placement.start : end] for name, array in self._arrays.items()}, placement

    def _zeros(self, count: int, ranks: Sequence[int]) -> Arrays:
        import numpy

        bank = self.description
        shapes: Dict[str, Tuple[int, ...]] = {
            HEAD_WEIGHT: (count, bank.hidden, bank.max_labels),
            HEAD_BIAS: (count, bank.max_labels),
        }
        for site, rank in zip(bank.sites, ranks):
            shapes[site.a] = (count, site.d_in, rank * len(site.modules))
            for name, d_out in zip(site.b, site.d_out):
                shapes[name] = (count, rank, d_out)
        return {name: numpy.zeros(shape, numpy.float32) for name, shape in shapes.items()}

    def _write(self, place: int, name: Optional[str]) -> None:
        source = self._base if name is None else self._adapters[name].arrays
        if name is None:
            for array in self._arrays.values():
                array[place] = 0.0
            return
        self._arrays[HEAD_WEIGHT][place] = source[HEAD_WEIGHT][0]
        self._arrays[HEAD_BIAS][place] = source[HEAD_BIAS][0]
        for site, width, rank in zip(self.description.sites, self._ranks, self._adapters[name].ranks):
            _write_site(site, self._arrays, source, (place, width, rank))


def _write_site(site: Site, bank: Arrays, source: Mapping[str, Any], where: Tuple[int, int, int]) -> None:
    """Copy an adapter of `rank` into a position of `width`, every part of A to its own place."""
    place, width, rank = where
    parts = len(site.modules)
    target = bank[site.a][place].reshape(site.d_in, parts, width)
    target[:, :, :rank] = source[site.a][0].reshape(site.d_in, parts, rank)
    target[:, :, rank:] = 0.0
    for name in site.b:
        bank[name][place, :rank] = source[name][0]
        bank[name][place, rank:] = 0.0
