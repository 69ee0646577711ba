"""The TensorRT backend with a real engine host and the stand-in for TensorRT: builds, cache, deaths, many adapters."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_agent.backends.api import AdapterSource, Done, Failed, Limits, LoadStage, SessionJob, Unavailable
from edge_agent.backends.tensorrt import engine_cache
from edge_agent.backends.tensorrt.engine_backend import RESIDENTS, TensorRtBackend
from edge_agent.backends.tensorrt.engine_cache import (
    ENGINES_BYTES,
    ENGINES_KEPT,
    EngineCache,
    device_key,
)
from edge_agent.base.errors import AdapterRefused, BackendError, EngineMissing, PackageError
from edge_agent.base.runtimes import ENGINE_FOLDER_VARIABLE, ENGINE_ROLE, TENSORRT_PYTHON_VARIABLE
from edge_agent.bundle.engine_files import engine_origin
from edge_agent.bundle.onnx_graph import graph_metadata
from edge_agent.client.request_client import RequestClient
from edge_agent.mqtt.options import MqttOptions
from edge_agent.protocol.messages import Reply
from edge_forge.export.onnx.export_graphs import Bank
from edge_forge.export.onnx.graph import save
from edge_forge.export.onnx.quantize import TokenCut
from edge_forge.export.onnx.tensorrt_form import for_tensorrt, lower, make
from tests.support import fake_gpu, small_graph
from tests.support.agents import AgentProcess, running
from tests.support.mosquitto import Mosquitto
from tests.support.small_package import LABELS, TEXTS, WORDS, small_package, tokenizer

LIMITS = Limits(max_rows=8, threads=1)
TEXT = [3, 1, 4, 1, 5]


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The small encoder with a bank in the form for TensorRT; the environment of a worker on a board."""
    small_graph.banked(tmp_path / "open.onnx", of_tokens=False)
    onnx.save(for_tensorrt(onnx.load(tmp_path / "open.onnx"), small_graph.RANK), tmp_path / "model.onnx")
    monkeypatch.setenv(TENSORRT_PYTHON_VARIABLE, str(fake_gpu.write_python(tmp_path / "python")))
    monkeypatch.setenv(ENGINE_FOLDER_VARIABLE, str(tmp_path / "engines"))
    return str(tmp_path / "model.onnx")


def load(path: str, **options: object):
    defaults = {"max_rows": 8, "max_tokens": 24, "precision": "fp32"}
    return TensorRtBackend().load({"model": path}, {**defaults, **options})


@pytest.fixture
def session(graph: str) -> Iterator:
    made = load(graph)
    yield made
    made.close()


def answer(session, adapter: str | None = None):
    session.submit(SessionJob("one", adapter, [TEXT], {}))
    (event,) = session.step(LIMITS)
    return event


def source(folder: Path, name: str, seed: int, **changes: float) -> AdapterSource:
    path = small_graph.write_adapter(folder / f"{name}.safetensors", small_graph.adapter(seed, **changes))
    return AdapterSource(name, str(path), small_graph.BASE_ID)


def plans(folder: Path) -> list[Path]:
    return sorted((folder / "engines").glob("*.plan"))


def test_an_engine_is_built_once_for_a_graph_and_its_shapes(graph: str, tmp_path: Path) -> None:
    load(graph).close()
    (built,) = plans(tmp_path)
    before = built.stat().st_ino
    load(graph).close()
    assert [path.stat().st_ino for path in plans(tmp_path)] == [before]
    load(graph, max_tokens=12).close()
    assert len(plans(tmp_path)) == 2
    assert list((tmp_path / "engines").glob("*.timings"))


def test_another_library_gets_another_engine(graph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(graph).close()
    newer = fake_gpu.write_python(tmp_path / "newer", "10.3")
    monkeypatch.setenv(TENSORRT_PYTHON_VARIABLE, str(newer))
    session = load(graph)
    assert isinstance(answer(session), Done)
    session.close()
    assert len(plans(tmp_path)) == 2


def test_the_power_mode_is_a_part_of_the_key(tmp_path: Path) -> None:
    probe = {"tensorrt": "8.6", "cuda": 12000, "device": "Orin", "compute_capability": "8.7"}
    status = tmp_path / "var/lib/nvpmodel/status"
    status.parent.mkdir(parents=True)
    status.write_text("pmode:0000 fmode:fanNull\n")
    first = device_key(probe, tmp_path)
    status.write_text("pmode:0002 fmode:fanNull\n")
    second = device_key(probe, tmp_path)
    assert first["power_mode"] == "pmode:0000 fmode:fanNull" and first != second
    cache = EngineCache(tmp_path)
    assert cache.engine(engine_origin("ab", first, {})) != cache.engine(engine_origin("ab", second, {}))
    assert cache.timings(first) != cache.timings(second)


@pytest.mark.parametrize("content", [b"half a plan", b"crash: no answer, but the end of the process"])
def test_a_damaged_engine_is_built_again(graph: str, tmp_path: Path, content: bytes) -> None:
    load(graph).close()
    (built,) = plans(tmp_path)
    built.write_bytes(content)
    session = load(graph)
    assert isinstance(answer(session), Done)
    session.close()
    assert built.stat().st_size > 1000


def test_an_engine_of_another_gpu_is_built_again(graph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied from another board by hand, under the name of this board's."""
    load(graph).close()
    (here,) = plans(tmp_path)
    monkeypatch.setenv(TENSORRT_PYTHON_VARIABLE, str(fake_gpu.write_python(tmp_path / "other", compute="8.9")))
    load(graph).close()
    (other,) = set(plans(tmp_path)) - {here}
    monkeypatch.setenv(TENSORRT_PYTHON_VARIABLE, str(tmp_path / "python"))
    shutil.copyfile(other, here)
    session = load(graph)
    assert isinstance(answer(session), Done)
    session.close()
    assert here.read_bytes() != other.read_bytes()


def test_an_engine_for_which_memory_lacks_is_kept(graph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(graph).close()
    (built,) = plans(tmp_path)
    before = built.stat().st_ino
    monkeypatch.setenv(TENSORRT_PYTHON_VARIABLE, str(fake_gpu.write_python(tmp_path / "full", cuda="5000")))
    with pytest.raises(BackendError, match=r"the device has no \d+ bytes for .*\(free memory"):
        load(graph)
    assert built.stat().st_ino == before


def test_int8_on_a_gpu_without_kernels_for_it_is_refused_before_a_build(
    graph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Nano's."""
    monkeypatch.setenv(TENSORRT_PYTHON_VARIABLE, str(fake_gpu.write_python(tmp_path / "nano", "8.2", compute="5.3")))
    found = TensorRtBackend().probe()
    assert not isinstance(found, Unavailable) and found.dtypes == ("fp32", "fp16")
    with pytest.raises(BackendError, match=r"has no kernels for INT8 \(ship a variant tensorrt/fp16"):
        load(graph, precision="int8")
    load(graph, precision="fp16").close()


def test_an_adapter_beyond_the_bank_is_refused(session, tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match=r"rank 5.*4"):
        session.attach(source(tmp_path, "wide", 1, rank=5))


def test_the_host_that_probed_makes_room_for_a_build(graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, during = set(hosts()), []
    watched(graph, lambda told: during.append((told.stage, len(set(hosts()) - before)))).close()
    assert dict(during)["start"] == 0 and dict(during)["parse"] == 1


def test_engines_that_nobody_uses_make_room_for_one_that_passed(tmp_path: Path) -> None:
    """Only then, and only where they are many and large."""
    cache = EngineCache(tmp_path)
    origins = [engine_origin(str(number), {}, {}) for number in range(ENGINES_KEPT + 3)]
    paths = [cache.engine(origin) for origin in origins]
    for number, path in enumerate(paths):
        path.touch()
        os.utime(path, (number, number))
    cache.used(paths[0])
    cache.judge(paths[0], True, origins[0])
    assert set(tmp_path.glob("*.plan")) == set(paths), "small ones all stay"
    for number, path in enumerate(paths):
        os.truncate(path, ENGINES_BYTES // 4)  # sparse
        os.utime(path, (number, number))
    cache.used(paths[0])
    assert set(tmp_path.glob("*.plan")) == set(paths), "a load alone removes none: the new engine may be wrong"
    cache.judge(paths[0], True, origins[0])
    assert set(tmp_path.glob("*.plan")) == {paths[0], *paths[4:]} and cache.is_proven(paths[0])


def test_an_engine_is_unproven_until_it_was_judged(graph: str, tmp_path: Path) -> None:
    first = load(graph)
    assert first.unproven
    first.close()
    again = load(graph)  # the daemon was killed between the build and the probes
    assert again.unproven
    again.judge(passed=True)
    assert not again.unproven
    again.close()
    last = load(graph)
    assert not last.unproven and isinstance(answer(last), Done)
    last.judge(passed=False)
    assert not plans(tmp_path) and not list((tmp_path / "engines").glob("*.proven"))
    assert isinstance(answer(last), Done), "the session stays as it is"
    last.close()


def moved(graph: str, folder: Path) -> tuple[dict[str, str], Path]:
    """The proven engine of a graph, taken off its device: the files of a load that has it from a package."""
    first = load(graph)
    first.judge(passed=True)
    first.close()
    (built,) = plans(folder)
    shipped = folder / "shipped.plan"
    built.replace(shipped)
    for path in (folder / "engines").iterdir():
        path.unlink()
    return {"model": graph, ENGINE_ROLE + built.stem: str(shipped)}, built


def load_files(files: dict[str, str], **options: object):
    return TensorRtBackend().load(files, {"max_rows": 8, "max_tokens": 24, "precision": "fp32", **options})


def test_an_engine_in_the_package_is_taken_for_exactly_its_key(graph: str, tmp_path: Path) -> None:
    files, engine = moved(graph, tmp_path)
    session = load_files(files, build=False)  # which a load without an engine is refused
    assert session.unproven, "its golden probes decide on every device anew"
    assert isinstance(answer(session), Done) and engine.read_bytes() == (tmp_path / "shipped.plan").read_bytes()
    session.close()
    with pytest.raises(EngineMissing):
        load_files(files, build=False, max_tokens=12)


def test_an_engine_of_a_package_that_is_of_no_use_here_is_built_instead(graph: str, tmp_path: Path) -> None:
    files, engine = moved(graph, tmp_path)
    Path(files[ENGINE_ROLE + engine.stem]).write_bytes(b"of another GPU under this name")
    session = load_files(files)
    assert isinstance(answer(session), Done) and engine.stat().st_size > 1000
    session.judge(passed=False)  # nor is the package's taken a second time
    session.close()
    with pytest.raises(EngineMissing):
        load_files(files, build=False)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_load_that_may_not_build_says_that_the_engine_is_missing(graph: str, tmp_path: Path, damaged: bool) -> None:
    if damaged:
        load(graph).close()
        plans(tmp_path)[0].write_bytes(b"half a plan")
    before = set(hosts())
    with pytest.raises(EngineMissing, match="there is no engine for"):
        load(graph, build=False)
    assert not plans(tmp_path) and set(hosts()) == before
    load(graph).close()
    load(graph, build=False).close()


def test_after_the_death_of_its_host_the_next_batch_is_answered(session, tmp_path: Path) -> None:
    session.attach(source(tmp_path, "a", 1))
    before = answer(session, "a").outputs["logits"]
    os.kill(session._graph._host.pid, signal.SIGKILL)
    until_s = time.monotonic() + 10
    while session._graph._host.alive and time.monotonic() < until_s:
        time.sleep(0.01)
    after = answer(session, "a")
    assert isinstance(after, Done)
    assert after.outputs["logits"] == pytest.approx(before, abs=1e-6)


def test_a_host_that_dies_in_a_run_fails_that_batch_alone(session) -> None:
    host = session._graph._host
    host.run = lambda *_, **__: (host.kill(), host.footprint())
    assert isinstance(answer(session), Failed)
    assert isinstance(answer(session), Done)


def test_more_adapters_than_the_shared_memory_holds(session, tmp_path: Path) -> None:
    names = [f"a{number}" for number in range(RESIDENTS + 3)]
    for number, name in enumerate(names):
        session.attach(source(tmp_path, name, number + 1))
    for _ in range(2):
        for number, name in enumerate(names):
            found = answer(session, name).outputs
            features, logits = small_graph.reference([TEXT], small_graph.adapter(number + 1))
            assert found["features"][0] == pytest.approx(features[0], abs=1e-5)
            assert found["logits"][0] == pytest.approx(logits[0], abs=1e-5)
    session.detach(names[-1])
    with pytest.raises(AdapterRefused, match="is not attached"):
        session.submit(SessionJob("late", names[-1], [TEXT], {}))


def test_an_adapter_beyond_float16_is_refused(session, tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="above 65504"):
        session.attach(source(tmp_path, "huge", 1, scale=1e6))


def test_half_precision_is_near(graph: str, tmp_path: Path) -> None:
    whole, half = load(graph), load(graph, precision="fp16")
    for one in (whole, half):
        one.attach(source(tmp_path, "a", 1))
    assert answer(half, "a").outputs["features"] == pytest.approx(answer(whole, "a").outputs["features"], abs=2e-2)
    whole.close()
    half.close()
    assert len(plans(tmp_path)) == 2


@pytest.mark.parametrize("generation", fake_gpu.GENERATIONS)
@pytest.mark.parametrize(("name", "limit"), [("fp16", 1e-2), ("int8", 0.3)])
def test_what_edge_forge_packs_is_served_by_every_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generation: str, name: str, limit: float
) -> None:
    """Float16 weights and bank, or int8 codes; an adapter of a lower rank than the bank's in the same batch."""
    save(small_graph.encoder(), tmp_path / "encoder.onnx")
    bank = (Bank(rank=small_graph.RANK, max_labels=small_graph.MAX_LABELS), small_graph.MODULES)
    made = make(
        encoder_path=tmp_path / "encoder.onnx", out_dir=tmp_path, tokenizer_path=tokenizer(tmp_path / "tokenizer.json"),
        formats=[name], reading=TokenCut(16), bank=bank,
    )  # fmt: skip
    python = fake_gpu.write_python(tmp_path / "python", generation)
    monkeypatch.setenv(TENSORRT_PYTHON_VARIABLE, str(python))
    session = load(str(made.paths[name]), precision=name)
    adapters = {"a": small_graph.adapter(1), "b": small_graph.adapter(2, rank=2)}
    for place, one in enumerate(adapters):
        session.attach(source(tmp_path, one, place + 1, rank=4 - 2 * place))
        session.submit(SessionJob(one, one, [TEXT], {}))
    for event in session.step(LIMITS):
        assert isinstance(event, Done)
        features, logits = small_graph.reference([TEXT], adapters[event.job_id])
        assert event.outputs["features"][0] == pytest.approx(features[0], abs=limit)
        assert event.outputs["logits"][0] == pytest.approx(logits[0], abs=5 * limit)
    session.close()


def test_a_graph_without_a_bank_takes_no_adapters(graph: str, tmp_path: Path) -> None:
    onnx.save(lower(small_graph.encoder()), tmp_path / "plain.onnx")
    session = load(str(tmp_path / "plain.onnx"))
    found = answer(session)
    assert found.outputs["features"][0] == pytest.approx(small_graph.reference([TEXT], None)[0][0], abs=1e-5)
    with pytest.raises(AdapterRefused, match="takes no adapters"):
        session.attach(source(tmp_path, "a", 1))
    session.close()


@pytest.mark.parametrize(
    ("option", "value"), [("precision", "int4"), ("max_rows", 0), ("max_tokens", 100_000), ("threads", -1)]
)
def test_an_option_beyond_its_range_is_refused(graph: str, option: str, value: object) -> None:
    with pytest.raises(BackendError, match=f"option '{option}' is"):
        load(graph, **{option: value})


def test_a_build_that_fails_is_a_sentence_and_leaves_no_process(
    graph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TENSORRT_PYTHON_VARIABLE, str(fake_gpu.write_python(tmp_path / "small", build="memory")))
    with pytest.raises(BackendError, match=r"out of memory.*\(free memory"):
        load(graph)
    assert not plans(tmp_path)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if "engine_host" in Path(f"/proc/{pid}/cmdline").read_text()]


def watched(path: str, tell, **options: object):
    backend = TensorRtBackend()
    backend.watch(tell)
    return backend.load({"model": path}, {"max_rows": 8, "max_tokens": 24, "precision": "fp32", **options})


@pytest.mark.parametrize("generation", ["8.6", "10.3"])
def test_a_build_tells_its_stages_and_what_the_last_one_took(
    graph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generation: str
) -> None:
    python = fake_gpu.write_python(tmp_path / "slow", generation, build_s="1.3")
    monkeypatch.setenv(TENSORRT_PYTHON_VARIABLE, str(python))
    told: list[LoadStage] = []
    watched(graph, told.append).close()
    assert [one.stage.partition(":")[0] for one in told][:3] == ["start", "parse", "build"]
    assert told[-1].stage == "write" and {one.expected_s for one in told} == {None}
    shares = [one.share for one in told if one.share is not None]
    assert bool(shares) == (generation == "10.3") and all(0.0 < share <= 1.0 for share in shares)
    before = len(told)
    watched(graph, told.append).close()
    assert len(told) == before, "an engine that is there is not built"
    watched(graph, told.append, max_tokens=12).close()
    assert told[-1].expected_s == pytest.approx(1.3, abs=30.0) and told[-1].expected_s >= 1.3


@pytest.mark.parametrize("stage", ["parse", "build", "write"])
def test_a_build_that_is_killed_at_any_point_is_a_sentence_and_leaves_nothing(
    graph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """As the kernel does for lack of memory. The next load builds."""
    monkeypatch.setenv(TENSORRT_PYTHON_VARIABLE, str(fake_gpu.write_python(tmp_path / "slow", build_s="0.4")))
    before = set(hosts())

    def kill(told: LoadStage) -> None:
        if told.stage == stage:
            os.kill(max(set(hosts()) - before), signal.SIGKILL)

    with pytest.raises(BackendError, match=r"ended by signal 9 during 'build'.*\(free memory"):
        watched(graph, kill)
    assert not plans(tmp_path)
    load(graph).close()
    assert len(plans(tmp_path)) == 1 and not list((tmp_path / "engines").glob("*.part"))
    assert set(hosts()) == before


def test_a_build_that_takes_too_much_memory_is_ended_and_says_so(
    graph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = fake_gpu.write_python(tmp_path / "greedy", build="grow", build_s="2")
    monkeypatch.setenv(TENSORRT_PYTHON_VARIABLE, str(python))
    before = set(hosts())
    with pytest.raises(
        BackendError, match=r"held [\d.]+ MiB during 'build', 300.0 MiB are free for it.*worker.max_rows"
    ):
        load(graph, memory_bytes=300 << 20)
    assert not plans(tmp_path) and set(hosts()) == before
    load(graph, memory_bytes=2 << 30).close()


def test_a_disk_without_room_for_an_engine_is_said_before_the_build(
    graph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    told: list[LoadStage] = []
    with pytest.raises(BackendError, match=r"an engine takes about .* in .*engines, 1000 B are free \(free "):
        watched(graph, told.append)
    assert not told, "no build was begun"


@pytest.mark.parametrize("full", ["plan", "timings"])
def test_a_disk_that_is_full_when_the_engine_is_written(graph: str, tmp_path: Path, full: str) -> None:
    """The engine is lost, with a sentence; the timing cache alone is not worth one."""
    load(graph).close()
    (built,) = (tmp_path / "engines").glob(f"*.{full}")
    plans(tmp_path)[0].unlink()
    Path(f"{built}.part").symlink_to("/dev/full")
    if full == "plan":
        with pytest.raises(
            BackendError, match=r"cannot be written to .*: No space left on device \(free \d+ MiB there\)"
        ):
            load(graph)
    load(graph).close()
    assert len(plans(tmp_path)) == 1


def test_another_power_mode_builds_another_engine_and_the_first_one_stays(
    graph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr(engine_cache, "_POWER_MODE", str(status))
    status.write_text("pmode:0000")
    load(graph).close()
    status.write_text("pmode:0002")
    with pytest.raises(EngineMissing):
        load(graph, build=False)
    load(graph).close()
    assert len(plans(tmp_path)) == 2 and len(list((tmp_path / "engines").glob("*.timings"))) == 2
    status.write_text("pmode:0000")
    load(graph, build=False).close()


@pytest.mark.parametrize("integrated", ["0", "1"])
def test_memory_of_the_gpu_is_the_board_s_where_they_share_it(
    graph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, integrated: str
) -> None:
    python = fake_gpu.write_python(tmp_path / "gpu", integrated=integrated)
    monkeypatch.setenv(TENSORRT_PYTHON_VARIABLE, str(python))
    session = load(graph)
    found = session.footprint()
    session.close()
    assert (found.device_bytes > 0) == (integrated == "1")
    assert sum(found[:4]) > 0


def hosts() -> list[int]:
    """The engine hosts among this process's children."""
    found = []
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        with contextlib.suppress(OSError):
            if "engine_host" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(int(pid))
    return found


def test_a_machine_without_tensorrt_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TENSORRT_PYTHON_VARIABLE, raising=False)
    found = TensorRtBackend().probe()
    assert isinstance(found, Unavailable) and "cannot import tensorrt" in found.reason
    assert "python3-libnvinfer" in found.remedy
    monkeypatch.setenv(TENSORRT_PYTHON_VARIABLE, "/absent/python3")
    absent = TensorRtBackend().probe()
    assert isinstance(absent, Unavailable) and "cannot be started" in absent.reason


def test_metadata_are_read_as_the_onnx_library_reads_them(graph: str, tmp_path: Path) -> None:
    own = {entry.key: entry.value for entry in onnx.load(graph).metadata_props}
    assert graph_metadata(Path(graph)) == own and {"edge.bank", "edge.base_id"} <= set(own)
    content = Path(graph).read_bytes()
    for length in (0, 1, 7, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.onnx").write_bytes(content[:length])
        with pytest.raises(PackageError, match=r"no ONNX graph|does not end|claims more"):
            graph_metadata(tmp_path / "cut.onnx")


def test_the_answers_of_a_batch_are_not_overwritten_by_the_next(session) -> None:
    first = answer(session).outputs["features"]
    kept = np.array(first)
    session.submit(SessionJob("other", None, [[9, 2]], {}))
    session.step(LIMITS)
    assert np.array_equal(first, kept)


def test_an_agent_serves_a_package_for_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install with golden probes, load, a batch with and without an adapter, over a real broker; the engine stays."""
    python = fake_gpu.write_python(tmp_path / "python")
    monkeypatch.setenv("EDGE_AGENT__WORKER__TENSORRT_PYTHON", str(python))

    async def asked(port: int) -> list[Reply]:
        async with RequestClient(MqttOptions(host="127.0.0.1", port=port, client_id="me")) as client:
            bodies = [{"text": text, **more} for text in TEXTS for more in ({"adapter": "one"}, {})]
            return list(await asyncio.gather(*(client.infer("dev1", "small", body) for body in bodies)))

    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port, backends=("tensorrt",))
        agent.install(small_package(tmp_path, "tensorrt/fp32"))
        (built,) = (tmp_path / "device/state/engines").glob("*.plan")
        before = built.stat().st_ino
        with running(agent):
            replies = asyncio.run(asked(broker.port))
        assert built.stat().st_ino == before
    assert [reply.status for reply in replies] == [200] * 4, agent.log
    assert {reply.variant for reply in replies} == {"fp32"}
    for text, reply in zip(TEXTS, replies[::2], strict=True):
        ids = [WORDS.index(word) for word in text.split()]
        logits = small_graph.reference([ids], small_graph.adapter(1))[1][0]
        assert reply.result["label"] == LABELS[int(np.argmax(logits))], reply
