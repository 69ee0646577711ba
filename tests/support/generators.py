"""Generators in signed packages: a tiny random model, two adapters, and golden probes that llama.cpp itself gave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from edge_agent.backends import registry
from edge_agent.backends.api import AdapterSource as Attached
from edge_agent.backends.api import Done, Limits, SessionJob
from edge_forge.package.build import base_descriptor, build
from edge_forge.package.sources import AdapterPackageSource, ModelSource, VariantSource
from tests.support import tiny_gguf
from tests.support.agents import AgentProcess
from tests.support.mosquitto import Mosquitto
from tests.support.packages import keys, release

CONTEXT = 512
PROMPTS = ("Once upon a time", "turn on the light")
TASK = {"kind": "generate", "max_tokens": CONTEXT}
VARIANT = "llamacpp/f16"


def features(model: Path, adapter: Path | None, prompts: Sequence[str] = PROMPTS) -> list[list[float]]:
    """The logits that golden probes hold."""
    session = registry.create("llamacpp").load({"model": str(model)}, {"max_tokens": CONTEXT})
    try:
        vocabulary = session.vocabulary()
        assert vocabulary is not None
        if adapter is not None:
            session.attach(Attached("probe", str(adapter), ""))
        rows = [vocabulary.encode(text, True) for text in prompts]
        session.submit(SessionJob("probe", None if adapter is None else "probe", rows, {}))
        (done,) = session.step(Limits(8, 1))
        assert isinstance(done, Done)
        return [[float(value) for value in row] for row in done.outputs["features"]]
    finally:
        session.close()


def _probes(folder: Path, name: str, model: Path, adapter: Path | None = None) -> Path:
    entry: dict[str, object] = {"features": features(model, adapter), "features_tolerance": 0.05}
    if adapter is not None:
        entry["min_effect"] = 0.05
    path = folder / f"probes-{name}.json"
    path.write_text(json.dumps({"schema": 1, "texts": list(PROMPTS), "expected": {VARIANT: entry}}))
    return path


def base_package(
    folder: Path,
    name: str = "tiny",
    counter: int = 1,
    shape: tiny_gguf.Shape = tiny_gguf.TINY,
    template: str = tiny_gguf.TEMPLATE,
    **options: object,
) -> Path:
    """A signed package of a generator; `options` are the backend's."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = tiny_gguf.write_model(folder / f"{name}.gguf", shape, template=template)
    variant = VariantSource(weights, "llamacpp", "f16", peak_bytes=128 << 20, accuracy=1.0, options=options)
    model = ModelSource(name, tiny_gguf.BASE_ID, TASK, [variant], _probes(folder, name, weights))
    out = folder / f"{name}-{counter}.tar"
    return build(out, release(name, counter), model, [], None, [keys().release_key]).path


def adapter_package(
    folder: Path, base: Path, name: str, seed: int, counter: int = 1, shape: tiny_gguf.Shape = tiny_gguf.TINY
) -> Path:
    """A signed package of one adapter of `base_package`'s model."""
    weights = tiny_gguf.write_adapter(folder / f"{name}.gguf", seed, shape=shape)
    model = base.parent / f"{base.name.rpartition('-')[0]}.gguf"
    adapter = AdapterPackageSource(
        name=name,
        base_id=tiny_gguf.BASE_ID,
        weights=weights,
        rank=4,
        alpha=tiny_gguf.ALPHA,
        targets=["attn_q", "attn_v", "ffn_down"],
        task=TASK,
        probes=_probes(folder, name, model, weights),
        dtype="f32",
    )
    subject = base_descriptor(base, tiny_gguf.BASE_ID)
    out = folder / f"{name}-{counter}.tar"
    return build(out, release(name, counter), None, [adapter], subject, [keys().release_key]).path


def installed(
    folder: Path,
    broker: Mosquitto,
    shape: tiny_gguf.Shape = tiny_gguf.TINY,
    adapters: Sequence[str] = ("one", "two"),
    device: str = "dev1",
    name: str = "tiny",
    **options: object,
) -> AgentProcess:
    """An agent, not started yet, that serves `base_package` and these adapters of it, one thread each."""
    agent = AgentProcess(folder / "device", broker.port, device, backends=("llamacpp",))
    text = agent.config.read_text().replace("[worker]\n", "[worker]\nthreads = 1\n") + "[stream]\nflush_ms = 20\n"
    agent.config.write_text(text)
    base = base_package(folder, name, shape=shape, **options)
    agent.install(base)
    for seed, adapter in enumerate(adapters, start=1):
        agent.install(adapter_package(folder, base, adapter, seed, shape=shape))
    return agent
