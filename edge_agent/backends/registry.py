"""Which backends exist: the ones that come with the agent, and plug-ins by the entry point `edge_agent.backends`.

Which of them may run is the operator's decision: `worker.backends` is an allow-list of names, and only names from it
are passed to `create`. A file of its own because every backend imports `api`, and this one leads to every backend.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from edge_agent.backends.api import Backend
from edge_agent.base.errors import BackendMissing

GROUP = "edge_agent.backends"
BUILT_IN = {
    "onnx": "edge_agent.backends.onnx:OnnxBackend",
    "llamacpp": "edge_agent.backends.llamacpp.backend:LlamaBackend",
    "tensorrt": "edge_agent.backends.tensorrt.engine_backend:TensorRtBackend",
    "litert": "edge_agent.backends.litert:LiteRtBackend",
    "echo": "edge_agent.backends.echo:EchoBackend",
}
"""The backends that come with the agent, as 'module:class'. What the other packages have to know of each runtime is in
`base.runtimes`."""


def known() -> dict[str, str]:
    """Every backend by name, as 'module:class'. A plug-in never replaces a built-in one."""
    return {point.name: point.value for point in entry_points(group=GROUP)} | BUILT_IN


def create(name: str) -> Backend:
    """The backend of that name. Raises BackendMissing when there is none or its module cannot be imported."""
    places = known()
    if name not in places:
        names = ", ".join(sorted(places))
        raise BackendMissing(f"there is no backend {name!r}", "backends", f"there are: {names}")
    module, _, attribute = places[name].partition(":")
    try:
        backend = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise BackendMissing(f"backend {name!r} cannot be imported: {error}", "backends") from error
    if not isinstance(backend, Backend):
        raise BackendMissing(f"{places[name]} is not a backend", "backends")
    return backend
