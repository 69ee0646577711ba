"""Every name of TensorRT that the host uses, and every name that the stand-in has, is a name of the real library.

`tests/support/tensorrt_names.txt` lists what `dir()` shows of TensorRT 8.5.3.1, 8.6.0 and the lean runtime 10.16.1,
which has the half without a builder. 8.5 has both the bindings of 8.2 and the tensors of later versions.
"""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from edge_agent.backends.tensorrt import engine_host
from edge_agent.backends.tensorrt.engine_host.build_engine import FP32_TYPES
from edge_agent.backends.tensorrt.engine_host.device_access import DTYPES

ROOT = Path(__file__).resolve().parents[3]
HOST = Path(engine_host.__file__).parent
# What a variable or attribute of that name is, in the host's code.
CLASSES = {
    "builder": "Builder", "config": "IBuilderConfig", "network": "INetworkDefinition", "parser": "OnnxParser",
    "profile": "IOptimizationProfile", "layer": "ILayer", "_engine": "ICudaEngine", "engine": "ICudaEngine",
    "context": "IExecutionContext", "_context": "IExecutionContext", "_runtime": "Runtime", "error": "ParserError",
    "flags": "NetworkDefinitionCreationFlag", "NetworkDefinitionCreationFlag": "NetworkDefinitionCreationFlag",
    "BuilderFlag": "BuilderFlag", "MemoryPoolType": "MemoryPoolType", "TacticSource": "TacticSource",
    "TensorIOMode": "TensorIOMode", "ILogger": "ILogger", "ICudaEngine": "ICudaEngine",
}  # fmt: skip
# The builder's half of 10 is not in the lean runtime: these are from TensorRT's documentation of 10, and in the real
# library of tests/integration/test_tensorrt_parser.py.
DOCUMENTED = {
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "IBuilderConfig.progress_monitor", "ParserError.node_operator"
}  # fmt: skip


def names():
    """{version: {class: names}} of the real libraries."""
    found = defaultdict(dict)
    version = ""
    for line in (ROOT / "tests" / "support" / "tensorrt_names.txt").read_text().splitlines():
        if line.startswith("["):
            version = line[1:].split("]")[0].split()[0]
        elif not line.startswith("#"):
            kind, _, rest = line.partition(":")
            found[version][kind] = set(rest.split())
    return dict(found)


REAL = names()


def used(path, within=None):
    """Class.name for every attribute of TensorRT's objects in a file, or in one class of it."""
    tree = ast.parse(path.read_text())
    if within is not None:
        tree = next(node for node in tree.body if getattr(node, "name", "") == within)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = getattr(node.value, "id", getattr(node.value, "attr", ""))
            if owner in CLASSES and not (owner == "engine" and path.name == "__main__.py"):
                yield f"{CLASSES[owner]}.{node.attr}"


def known(name, versions):
    kind, _, attribute = name.partition(".")
    return all(attribute in REAL[version].get(kind, set()) for version in versions)


def test_the_host_uses_only_names_of_the_real_library():
    found = {name for path in HOST.glob("*.py") for name in used(path)}
    assert len(found) > 50
    unknown = {name for name in found - DOCUMENTED if not any(known(name, [version]) for version in REAL)}
    # Of the CUDA context in `on_device`, of our own engine in `__main__`, and Python's.
    assert unknown == {"IExecutionContext.push", "IExecutionContext.pop", "ICudaEngine.close", "ILogger.__init__"}


@pytest.mark.parametrize(
    ("layer", "versions"), [("TensorApi", ["8.5.3.1", "8.6.0", "10.16.1"]), ("BindingApi", ["8.5.3.1", "8.6.0"])]
)
def test_each_layer_is_whole_in_its_generation(layer, versions):
    found = set(used(HOST / "loaded_engine.py", layer))
    assert len(found) >= 8
    assert {name for name in found if not known(name, versions)} == set()


def test_bindings_are_gone_in_ten():
    found = set(used(HOST / "loaded_engine.py", "BindingApi"))
    assert {name for name in found if known(name, ["10.16.1"])} == set()


def test_types_and_layers_are_spelt_as_there():
    assert set(DTYPES) <= REAL["10.16.1"]["DataType"]
    assert set(FP32_TYPES) <= REAL["8.6.0"]["LayerType"]


def test_the_stand_in_has_no_name_that_the_real_library_lacks():
    tree = ast.parse((ROOT / "tests" / "support" / "fake_gpu" / "tensorrt.py").read_text())
    classes = {"_Network": "INetworkDefinition", "_Config": "IBuilderConfig", "_Profile": "IOptimizationProfile",
               "_Context": "IExecutionContext", "_Layer": "ILayer", "_TimingCache": "ITimingCache",
               "_ParserError": "ParserError"}  # fmt: skip
    own = {"INetworkDefinition": {"flags", "content", "inputs", "layers"}, "IBuilderConfig": {"profiles"},
           "IOptimizationProfile": {"shapes"}, "ITimingCache": {"content"}, "ILogger": {"ready"},
           "IProgressMonitor": {"ready"},
           "ICudaEngine": {"session", "profile", "wanted", "inputs", "outputs", "names", "shape_of",
                           "dtype_of"}}  # fmt: skip
    checked = 0
    for node in ast.walk(tree):
        kind = classes.get(getattr(node, "name", ""), getattr(node, "name", ""))
        if isinstance(node, ast.ClassDef) and any(kind in REAL[version] for version in REAL):
            public = {item.name for item in ast.walk(node) if isinstance(item, ast.FunctionDef)}
            public |= {target.id for item in ast.walk(node) if isinstance(item, ast.Assign)
                       for target in item.targets if isinstance(target, ast.Name) and item in node.body}  # fmt: skip
            for name in (name for name in public if re.match("[a-z]", name)):
                full = f"{kind}.{name}"
                assert name in own.get(kind, ()) or full in DOCUMENTED or any(known(full, [v]) for v in REAL), full
                checked += 1
    assert checked > 40


def test_the_installed_library_is_the_one_that_is_listed():
    trt = pytest.importorskip("tensorrt", reason="TensorRT is not installed here: the list was read elsewhere")
    if trt.__version__ not in REAL:
        pytest.skip(f"TensorRT {trt.__version__} is not among the listed versions")
    for kind, listed in REAL[trt.__version__].items():
        assert kind == "module" or listed <= set(dir(getattr(trt, kind)))
