"""TensorRT on a Jetson or another NVIDIA GPU: encoders, with another adapter in every row of a batch.

A graph comes from `edge-forge` in the form for TensorRT (`edge_forge.export.onnx.tensorrt_form`): all bank inputs have
one rank. Its engine is built when the model is loaded first on a device, in a process of its own, and kept
(`engine_cache`). Tokens, tasks, batches and the choice of bank positions are those of ONNX Runtime.

The worker is told by its environment which interpreter has tensorrt and pycuda, and where engines are kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.backends.adapter_bank import (
    COLUMNS,
    BankSpec,
    PositionalCache,
    ResidentAdapter,
    read_adapter,
)
from edge_agent.backends.api import (
    AdapterSource,
    Backend,
    Capabilities,
    Footprint,
    LoadStage,
    Session,
    Unavailable,
    check_ranges,
    checked_options,
    model_file,
)
from edge_agent.backends.encoder_session import (
    INPUTS,
    RANGES,
    EncoderGraph,
    EncoderSession,
    in_order_of_rows,
    padded,
    read_graph_metadata,
)
from edge_agent.backends.tensorrt.engine_cache import EngineCache, device_key, graph_digest
from edge_agent.backends.tensorrt.host_client import EngineHost
from edge_agent.base.errors import AdapterRefused, BackendError, BackendMissing, EngineMissing, PackageError
from edge_agent.base.runtimes import ENGINE_FOLDER_VARIABLE, ENGINE_ROLE, TENSORRT_PYTHON_VARIABLE
from edge_agent.base.units import bytes_text
from edge_agent.bundle.engine_files import engine_origin
from edge_agent.bundle.onnx_graph import graph_metadata

# max_rows, max_tokens: the largest batch; the engine is built for it. positions: of the adapter bank; 0 means as many
# as rows. precision: what TensorRT 8 may compute in (int8: where the graph has codes, fp16 elsewhere); from 10 on the
# graph's own types rule. threads: without effect. build: build an engine where there is none, else refuse the load.
# memory_bytes: the most that a build may take (0: not limited).
DEFAULTS: dict[str, Any] = {
    "max_rows": 16,
    "max_tokens": 128,
    "threads": 0,
    "positions": 0,
    "base_id": "",
    "precision": "fp16",
    "build": True,
    "memory_bytes": 0,
}
_PRECISIONS = ("fp32", "fp16", "int8")
RESIDENTS = 8
"""Adapters in the memory that is shared with the engine host; more wait in the worker's own."""
WORKSPACE_BYTES = 256 << 20
BUILD_NICENESS = 10
STAGE_CHARS = 100
TOLD_AGAIN_S = 1.0
"""A stage's share is told at most once in this time."""
# Layers of this prefix are computed in FP32 also in an FP16 engine; `tensorrt_form` names them so.
_FP32_PREFIX = "fp32:"
_FLOAT16_MAX = 65504.0


def _tell_nobody(stage: LoadStage) -> None:
    """Where nobody watches."""


class TensorRtBackend(Backend):
    """TensorRT in the engine host's process."""

    def __init__(self) -> None:
        self._tell: Callable[[LoadStage], None] = _tell_nobody

    def watch(self, tell: Callable[[LoadStage], None]) -> None:
        """See `Backend.watch`."""
        self._tell = tell

    def probe(self) -> Capabilities | Unavailable:
        """See `Backend.probe`."""
        try:
            with contextlib.closing(_host()) as host:
                found = host.probe()
        except BackendMissing as error:
            return Unavailable(error.what, error.remedy or "")
        return Capabilities(
            runtime="tensorrt",
            version=str(found["tensorrt"]),
            devices=(str(found["device"]),),
            dtypes=tuple(name for name in _PRECISIONS if name == "fp32" or found[f"fast_{name}"]),
            adapters=True,
            mixed_adapters=True,
            streams=False,
        )

    def load(self, files: Mapping[str, str], options: Mapping[str, Any]) -> Session:
        """See `Backend.load`; `files` needs the role 'model'. The first load of a graph on a device builds its engine,
        which takes minutes."""
        checked = checked_options(options, DEFAULTS, "tensorrt")
        check_ranges(checked, RANGES, "tensorrt")
        if checked["precision"] not in _PRECISIONS:
            raise BackendError(
                f"option 'precision' is {checked['precision']!r}, {' or '.join(_PRECISIONS)} are possible", "tensorrt"
            )
        graph = EngineGraph(model_file(files, "tensorrt"), checked, self._tell, shipped_engines(files))
        return EncoderSession(graph, checked["max_rows"], checked["max_tokens"])


def shipped_engines(files: Mapping[str, str]) -> dict[str, Path]:
    """Engines among the files of a load, by their key."""
    return {role.removeprefix(ENGINE_ROLE): Path(path) for role, path in files.items() if role.startswith(ENGINE_ROLE)}


def _host() -> EngineHost:
    """An engine host under the board's interpreter, without this worker's own module path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return EngineHost(os.environ.get(TENSORRT_PYTHON_VARIABLE) or sys.executable, env=environment)


class EngineGraph(EncoderGraph):
    """An engine in its host, started again where the host has ended."""

    def __init__(
        self,
        path: str,
        options: Mapping[str, Any],
        tell: Callable[[LoadStage], None] = _tell_nobody,
        shipped: Mapping[str, Path] | None = None,
    ) -> None:
        """`tell` is called while an engine is built; `shipped` are engines of the package by their key."""
        self.path = path
        self._options = options
        self._tell = tell
        self._shipped = shipped or {}
        found = read_graph_metadata(_metadata_texts(path), options["base_id"], path)
        self.base_id, self.table_rows, self._spec = found
        self._positions = (options["positions"] or options["max_rows"]) if self._spec else 1
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._host = _host()
        with contextlib.ExitStack() as unless_loaded:
            unless_loaded.callback(self.close)
            self._engine = self._engine_of_device()
            self._bank = None if self._spec is None else EngineBank(self._spec, self._positions)
            self.adapters = self._bank
            self._load()
            unless_loaded.pop_all()

    def compute(self, rows: Sequence[Sequence[int]], adapters: Sequence[str | None]) -> dict[str, Any]:
        """See `EncoderGraph.compute`."""
        if not self._host.alive:
            self._restart()
        order, start, windows = tuple(range(len(rows))), 0, 1
        if self._bank is not None:
            order, start, windows = self._bank.place(self._host, adapters)
        outputs, _ = self._host.run(padded(rows, order), windows if self._bank is not None else 0, start)
        # Copies: what the host returns lies in the shared memory, until the next run.
        found = in_order_of_rows(outputs, order)
        return {name: value.astype(np.float32, copy=False) for name, value in found.items()}

    def use_threads(self, threads: int) -> None:
        """See `EncoderGraph.use_threads`: the GPU computes, so the number has no effect."""

    def footprint(self) -> Footprint:
        """See `EncoderGraph.footprint`: bytes of the device's memory, which on a Jetson is the board's."""
        found = self._host.footprint()
        adapters = found["bank_bytes"] + (self._bank.size_bytes if self._bank is not None else 0)
        arena = found["buffers_bytes"] + found["scratch_bytes"]
        device_bytes = found["taken_bytes"] if found["integrated"] else 0
        engine_bytes = max(0, found["taken_bytes"] - found["bank_bytes"] - arena)
        return Footprint(engine_bytes, adapters, 0, arena, device_bytes)

    def close(self) -> None:
        """See `EncoderGraph.close`."""
        self._host.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _engine_of_device(self) -> Path:
        """The engine file for this graph on this device; builds it where there is none."""
        folder = os.environ.get(ENGINE_FOLDER_VARIABLE)
        if folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="engines-")
            folder = self._folder.name
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._cache = EngineCache(Path(folder))
        found = self._found = self._host.probe()
        precision = self._options["precision"]
        if precision == "int8" and not found["fast_int8"]:
            raise BackendError(
                f"{found['device']} has no kernels for INT8", self.path, "ship a variant tensorrt/fp16 for this board"
            )
        self._device = device_key(found)
        self._origin = engine_origin(graph_digest(self.path), self._device, self._request())
        engine = self._cache.engine(self._origin)
        if not engine.exists() and not self._took_shipped(engine):
            self._build(engine)
        return engine

    def _took_shipped(self, engine: Path) -> bool:
        """Whether the package has an engine for exactly this key, which could be copied."""
        shipped = self._shipped.get(engine.stem)
        if shipped is None:
            return False
        with contextlib.suppress(OSError):
            return self._cache.take(engine, shipped)
        return False

    @property
    def unproven(self) -> bool:
        """See `Session.unproven`."""
        return not self._cache.is_proven(self._engine)

    def judge(self, passed: bool) -> None:
        """See `Session.judge`."""
        self._cache.judge(self._engine, passed, self._origin)

    def _request(self) -> dict[str, Any]:
        """What the engine is built for, without paths."""
        rows, tokens = self._options["max_rows"], self._options["max_tokens"]
        profile = {name: [[1, 1], [rows, tokens], [rows, tokens]] for name in INPUTS}
        for name, shape in _bank_shapes(self._spec).items():
            profile[name] = [[1, *shape], [rows, *shape], [rows, *shape]]
        precision = self._options["precision"]
        types = dict.fromkeys(_bank_shapes(self._spec), "float16") if precision != "fp32" else {}
        return {"profile": profile, "precision": precision, "fp32_names": [_FP32_PREFIX], "input_types": types}

    def _build(self, engine: Path) -> None:
        """Build in a host of its own: what a build leaves behind on the device goes with that process. Raises
        EngineMissing where the load is not to build."""
        if not self._options["build"]:
            raise EngineMissing(f"there is no engine for {self._found['device']} yet", self.path)
        _check_space(engine.parent, 2 * Path(self.path).stat().st_size)
        # The host that probed the device has a context of CUDA there, for whose memory the build has better use.
        self._host.close()
        progress = BuildProgress(self._tell, self._cache.expected_s(self._device))
        started_s = time.monotonic()
        progress.begin()
        with contextlib.ExitStack() as stack:
            # A host that is killed while it writes leaves half a file.
            stack.callback(Path(f"{engine}.part").unlink, missing_ok=True)
            host = stack.enter_context(contextlib.closing(_host()))
            host.build(
                progress=progress.take,
                most_bytes=self._options["memory_bytes"],
                onnx=self.path,
                plan=str(engine),
                workspace_bytes=WORKSPACE_BYTES,
                niceness=BUILD_NICENESS,
                timing_cache=str(self._cache.timings(self._device)),
                **self._request(),
            )
        self._cache.note_build(self._device, time.monotonic() - started_s)

    def _load(self) -> None:
        """Load the engine into the host; one that TensorRT does not take is built once more, and one for which there is
        no memory now is kept."""
        names = tuple(_bank_shapes(self._spec))
        if not self._host.alive:  # it made room for the build
            self._host.close()
            self._host = _host()
        try:
            self._host.load(str(self._engine), names, self._positions, RESIDENTS if names else 1)
        except BackendError:
            if not self._host.blames_engine:
                raise
            self._cache.refuse(self._engine)
            self._build(self._engine)
            self._host.close()
            self._host = _host()
            self._host.load(str(self._engine), names, self._positions, RESIDENTS if names else 1)
        self._cache.used(self._engine)
        self._warm_up()

    def _warm_up(self) -> None:
        """Run the largest batch once: kernels are loaded when they are first used."""
        shape = (self._options["max_rows"], self._options["max_tokens"])
        given = {"input_ids": np.zeros(shape, np.int64), "attention_mask": np.ones(shape, np.int64)}
        self._host.run(given, 0 if self._bank is None else 1)

    def _restart(self) -> None:
        """A new host in place of one that has ended; the adapters are handed to it as rows need them."""
        self._host.close()
        self._host = _host()
        if self._bank is not None:
            self._bank.empty()
        self._load()


def _check_space(folder: Path, needed_bytes: int) -> None:
    """Raises BackendError where the disk has no room for an engine: before minutes of a build, not after."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise BackendError(
            f"an engine takes about {bytes_text(needed_bytes)} in {folder}, {bytes_text(free_bytes)} are free",
            "tensorrt",
            f"free {bytes_text(needed_bytes - free_bytes)} there, or remove engines that are not needed",
        )


class BuildProgress:
    """The engine host's progress as stages of a load: every new one, and its share once a second. Before TensorRT 10 a
    build has the stages alone."""

    def __init__(
        self,
        tell: Callable[[LoadStage], None],
        expected_s: float | None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._expected_s = expected_s
        self._clock_s = clock_s
        self._stage = ""
        self._told_s = 0.0

    def begin(self) -> None:
        """The build is about to be asked for."""
        self._say("start", "start", None)

    def take(self, event: Mapping[str, Any]) -> None:
        """An event of `build_engine.build`."""
        stage = str(event.get("stage", "build"))
        # TensorRT's phases lie within each other and alternate: a change of phase alone is no reason to tell it.
        if stage != self._stage or self._clock_s() - self._told_s >= TOLD_AGAIN_S:
            phase, total = event.get("phase"), event.get("total", 0)
            share = round(min(1.0, event.get("done", 0) / total), 3) if total else None
            self._say(stage, f"{stage}: {phase}" if phase else stage, share)

    def _say(self, stage: str, words: str, share: float | None) -> None:
        self._stage, self._told_s = stage, self._clock_s()
        self._tell(LoadStage(words[:STAGE_CHARS], share, self._expected_s))


class EngineBank:
    """The resident adapters and the positions of the engine's bank. Implements `encoder_session.AttachedAdapters`.

    An adapter stays in this process as its file has it; `RESIDENTS` at most lie also in the shared memory, in the
    engine's form, and in the positions that rows used last.
    """

    def __init__(self, spec: BankSpec, positions: int) -> None:
        self._spec = spec
        self._positions = positions
        self._cache = PositionalCache(positions)
        self._attached: dict[str, ResidentAdapter] = {}
        # Adapters in the shared memory by name, the longest unused first.
        self._places: OrderedDict[str, int] = OrderedDict()

    def attach(self, source: AdapterSource) -> int:
        """See `AttachedAdapters.attach`."""
        adapter = read_adapter(source, self._spec)
        for name, array in adapter.arrays.items():
            if array.size and np.abs(array).max() > _FLOAT16_MAX:
                raise AdapterRefused(
                    f"adapter {source.name!r}: {name} has values above {_FLOAT16_MAX:g}, where float16 ends",
                    source.path,
                    "train it with a smaller step size",
                )
        self.detach(source.name)
        self._attached[source.name] = adapter
        return adapter.size_bytes

    def detach(self, name: str) -> None:
        """See `AttachedAdapters.detach`."""
        if self._attached.pop(name, None) is not None:
            self._cache.forget(name)
            self._places.pop(name, None)

    def labels(self, name: str) -> int:
        """See `AttachedAdapters.labels`."""
        return self._attached[name].labels

    def of_tokens(self, name: str) -> bool:
        """See `AttachedAdapters.of_tokens`. Never: the form for TensorRT has no heads for tokens."""
        return self._attached[name].of_tokens

    def __contains__(self, name: object) -> bool:
        return name in self._attached

    @property
    def size_bytes(self) -> int:
        """See `AttachedAdapters.size_bytes`."""
        shared = RESIDENTS * 4 * sum(int(np.prod(shape)) for shape in _bank_shapes(self._spec).values())
        return shared + sum(adapter.size_bytes for adapter in self._attached.values())

    def empty(self) -> None:
        """Forget what a host holds that has ended."""
        self._cache = PositionalCache(self._positions)
        self._places.clear()

    def place(self, host: EngineHost, names: Sequence[str | None]) -> tuple[tuple[int, ...], int, int]:
        """Put the rows' adapters into neighbouring positions: (order, first position, positions used).

        Batch row i is row `order[i]` of the request. Rows of one adapter share one position.
        """
        wanted = [name or "" for name in names]
        same = len(set(wanted)) == 1
        plan = self._cache.place(wanted[:1] if same else wanted)
        for position, name in plan.writes:
            host.write(position, self._shared(host, name) if name else None)
        order = tuple(range(len(names))) if same else plan.order
        return order, plan.start, 1 if same else len(names)

    def _shared(self, host: EngineHost, name: str) -> int:
        """The place of an adapter in the shared memory; puts it there, if need be over the longest unused one."""
        if name in self._places:
            self._places.move_to_end(name)
            return self._places[name]
        place = len(self._places) if len(self._places) < RESIDENTS else self._places.popitem(last=False)[1]
        arrays = self._attached[name].arrays
        host.put(place, {given: _padded(arrays[given][0], shape) for given, shape in _bank_shapes(self._spec).items()})
        self._places[name] = place
        return place


def _bank_shapes(spec: BankSpec | None) -> dict[str, tuple[int, ...]]:
    """Every bank input of the form for TensorRT, without the rows' axis."""
    if spec is None:
        return {}
    shapes: dict[str, tuple[int, ...]] = {
        "head.weight": (spec.hidden, spec.max_labels),
        "head.bias": (spec.max_labels,),
    }
    for site in spec.sites:
        columns = max(1, min(COLUMNS, spec.rank - site.first))
        shapes[site.a] = (site.d_in, columns)
        shapes[site.b] = (columns, site.d_out)
    return shapes


def _padded(array: Any, shape: tuple[int, ...]) -> Any:
    """The array with zeros behind it up to the shape."""
    if array.shape == shape:
        return array
    whole = np.zeros(shape, np.float32)
    whole[tuple(slice(length) for length in array.shape)] = array
    return whole


def _metadata_texts(path: str) -> Mapping[str, str]:
    """What the file says of itself; engines carry none of it. Raises BackendError."""
    try:
        return graph_metadata(Path(path))
    except (PackageError, OSError) as error:
        raise BackendError(f"TensorRT cannot load the graph: {error}", path) from error
