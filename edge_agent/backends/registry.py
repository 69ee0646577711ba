"""Which backends exist: the ones that come with the agent, and plug-ins by the entry point `edge_agent.backends`.

Who may run is not decided here: the operator's `worker.backends` is an allow-list of names, and only a name from there
ever reaches `create`. Importable on Python 3.6, where entry points cannot be read and only the built-in table counts.
"""

import importlib
from typing import Dict

from edge_agent.backends.api import Backend
from edge_agent.base.errors import BackendMissing

GROUP = "edge_agent.backends"
BUILT_IN: Dict[str, str] = {
    "echo": "edge_agent.backends.echo:EchoBackend",
    "onnx": "edge_agent.backends.onnx:OnnxBackend",
    "llamacpp": "edge_agent.backends.llamacpp.backend:LlamaBackend",
}


def known() -> Dict[str, str]:
    """Every backend by name, as 'module:class'. A plug-in never replaces a built-in one."""
    found = {}
    try:
        from importlib.metadata import entry_points
    except ImportError:  # Python 3.6 and 3.7
        return dict(BUILT_IN)
    points = entry_points()
    chosen = points.select(group=GROUP) if hasattr(points, "select") else points.get(GROUP, ())
    for point in chosen:
        found[point.name] = point.value
    found.update(BUILT_IN)
    return found


def create(name: str) -> Backend:
    """The backend of that name. Raises BackendMissing when there is none or its module cannot be imported."""
    places = known()
    if name not in places:
        names = ", ".join(sorted(places))
        raise BackendMissing("there is no backend {!r}".format(name), "backends", "there are: {}".format(names))
    module, _, attribute = places[name].partition(":")
    try:
        backend = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise BackendMissing("backend {!r} cannot be imported: {}".format(name, error), "backends") from error
    if not isinstance(backend, Backend):
        raise BackendMissing("{} is not a backend".format(places[name]), "backends")
    return backend
