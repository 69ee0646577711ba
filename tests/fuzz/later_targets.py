"""What came after the first parsers: rows of slots, preferences and what a base knows; a desired state, the device's
own files of it and of trials; the state of a rollout; what a registry lists.

A file of its own because `device_targets` and `forge_targets` would pass 600 lines together with it.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.base import errors, limits
from edge_agent.base.causes import Cause
from edge_agent.core.desired_state import DesiredState, Item, ItemState, Terms, Wanted
from edge_agent.core.trial_records import TrialRecord
from edge_agent.fleet.rollout_driver import Intent, RolloutDriver
from edge_agent.protocol import messages
from edge_agent.protocol.decode import DesiredRefused, decode_desired
from edge_agent.protocol.envelope import Inbound
from edge_agent.protocol.rollout_messages import RolloutClaim
from edge_agent.protocol.trial_terms import read_trial, trial_text
from edge_agent.store.desired_file import DESIRED_FILE, DesiredFile
from edge_agent.store.registry import RegistryPlace
from edge_agent.store.registry_download import read_artefact
from edge_agent.store.trial_file import TRIALS_FILE, TrialFile
from edge_forge.data import generator_rows, knowledge_files, slot_rows
from edge_forge.recipe.classifier_recipe import ClassifierDataSection, ClassifierTaskSection
from edge_forge.recipe.generator_recipe import GeneratorDataSection
from tests.fuzz import mutate
from tests.fuzz.target import Target

NEW = f"sha256:{'a' * 64}"
TRIAL = trial_text(messages.TrialOrder())
DESIRED = {
    "version": 3,
    "models": [{"model": "m", "package": NEW, "adapters": [{"adapter": "a", "package": NEW}]}],
    "sources": [{"package": NEW, "url": "https://host/m.tar"}, {"package": NEW, "url": "oci://host/edge/m:7"}],
    "policy": {"within_s": 100, "others": "keep", "trial": json.loads(TRIAL)},
}  # fmt: skip
SLOTS = (
    {"text": "set the kitchen to 21 degrees", "spans": [{"start": 8, "end": 15, "label": "room"}]},
    {"text": "café au lait", "spans": []},
    {"text": "dim the hall", "spans": [{"start": 8, "end": 12, "label": "room"}]},
)


def _lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def slots(data: bytes) -> None:
    """A file of rows with labelled spans."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        (Path(folder) / "rows.jsonl").write_bytes(data)
        found = slot_rows.load(ClassifierDataSection(train="rows.jsonl"), ClassifierTaskSection(), Path(folder))
        for row in (*found.train, *found.validation):
            assert all(span.label in found.labels for span in slot_rows.spans_of(row))


def preferences(data: bytes) -> None:
    """A file of rows with a chosen and a rejected answer."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(data)
        for row in generator_rows.read(path, GeneratorDataSection(train="x", format="preference")):
            assert generator_rows.chosen(row) != row and generator_rows.rejected(row)[-1].role == "assistant"
            generator_rows.question(row).encode()


def knowledge(data: bytes) -> None:
    """A table, behind a line with its suffix, of pairs or texts that ask what a base still knows."""
    suffix, _, text = data.partition(b"\n")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / f"rows.{suffix.decode() if suffix in (b'csv', b'tsv', b'jsonl') else 'txt'}"
        path.write_bytes(text)
        readers: list[Callable[[Path], Any]] = [
            knowledge_files.alike_pairs,
            knowledge_files.sentence_pairs,
            functools.partial(knowledge_files.texts, pairs=False),
        ]
        refused = []
        for read in readers:
            try:
                read(path)
            except errors.ConfigError as error:
                refused.append(error)
        if len(refused) == len(readers):
            raise refused[0]


def desired(data: bytes) -> None:
    """A message on `desired`; what is said of one that is not taken can be published."""
    found = decode_desired(Inbound("edge/v1/pi/desired", data))
    if isinstance(found, DesiredRefused):
        said = msgspec.json.encode(messages.NotTaken(version=found.version, reason=found.reason))
        msgspec.json.decode(said, type=messages.NotTaken)
        raise errors.PackageError(found.reason)


def terms(data: bytes) -> None:
    """The terms of a trial, as an order, a command line and the store's record have them."""
    order = read_trial(data.decode(errors="replace"))
    assert read_trial(trial_text(order)) == order


def own_files(data: bytes) -> None:
    """Both files of the daemon, which may hold anything after a power cut: each is read, or begins anew."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for name in (DESIRED_FILE, TRIALS_FILE):
            (Path(folder) / name).write_bytes(data)
        state, trials = DesiredFile(Path(folder)).read(), TrialFile(Path(folder)).read()
        if state is None and not trials:
            raise errors.StoreError("nothing was read")
        if state is not None:
            DesiredFile(Path(folder)).write(state)
        TrialFile(Path(folder)).write(trials)


def _kept() -> list[bytes]:
    items = [Item(Wanted("m", None, NEW), ItemState.REFUSED, 1.0, "why", Cause.SOURCE, 1, 0, 0)]
    state = DesiredState(3, Terms(60.0, False, {NEW: ("https://host/m.tar",)}, TRIAL), items, fingerprint="f")
    with tempfile.TemporaryDirectory() as folder:
        DesiredFile(Path(folder)).write(state)
        TrialFile(Path(folder)).write({"m": TrialRecord("m", 2, NEW, "running", 1.0)})
        return [(Path(folder) / name).read_bytes() for name in (DESIRED_FILE, TRIALS_FILE)]


def rollout(data: bytes) -> None:
    """Lines of topic and message as a broker retains them; then a run that takes the rollout up."""
    driver = RolloutDriver("edge/v1", Intent.RESUME, RolloutClaim(by="two", who="two"))
    lines = [line.partition(b" ")[::2] for line in data.split(b"\n")]
    for topic, payload in lines:
        driver.take(topic.decode(errors="replace"), payload, 0.0, WALL_S)
    for at_s in (0.0, 0.1, 40.0, 40.1, 90.0):
        for message in driver.tick(at_s, WALL_S + at_s):
            assert not {"+", "#"} & set(message.topic)
            driver.take(message.topic, message.payload, at_s, WALL_S + at_s)


WALL_S = 1_790_000_000.0


def _retained() -> list[bytes]:
    plan = {"models": [{"model": "m", "package": NEW}], "waves": ["100%"], "within_s": 60.0, "watch_s": 0.0}
    state = {"form": 1, "rollout": "one", "seq": 2, "ts": WALL_S, "phase": "rolling", "wave": 0, "spent_s": 0.2,
             "waves": [["d"]], "plan": plan}  # fmt: skip
    give = {"version": 1, "models": plan["models"]}
    record = {"rollout": "one", "give": give, "back": {"version": 0, "models": [{"model": "m", "package": None}]}}
    item = {"model": "m", "adapter": None, "package": NEW, "state": "applied", "since": 1.0}
    reported = {"ts": 0.0, "boot_id": "b", "seq": 1, "version": 1, "state": "applied", "installed": [],
                "items": [item]}  # fmt: skip
    status = {"state": "online", "boot_id": "b", "seq": 1, "ts": WALL_S, "heartbeat_s": 30.0, "reason": ""}
    bodies = {"group/rollout/state": state, "group/rollout/device/d": record, "d/desired": give,
              "d/reported": reported, "d/status": status}  # fmt: skip
    lines = [f"edge/v1/{topic} {json.dumps(body)}" for topic, body in bodies.items()]
    back = json.dumps({**state, "phase": "returning"})
    return ["\n".join(lines).encode(), "\n".join([f"edge/v1/group/rollout/state {back}", *lines[1:]]).encode()]


def _changed_line(data: bytes, chance: Any) -> bytes:
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    topic, _, payload = lines[at].partition(b" ")
    lines[at] = topic + b" " + mutate.by_json(payload, chance).replace(b"\n", b" ")
    return b"\n".join(lines)


def registry(data: bytes) -> None:
    """The place of a package in a registry, and behind a line break the list of its files."""
    place, _, listed = data.partition(b"\n")
    assert RegistryPlace.parse(place.decode(errors="replace")).root(()).startswith("https://")
    read_artefact(listed, "registry")


def _listings() -> list[bytes]:
    file = {"mediaType": "application/octet-stream", "digest": NEW, "size": 5}
    titled = {**file, "annotations": {"org.opencontainers.image.title": "release.dsse.json"}}
    whole = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.edge-agent.package.v1+json",
        "config": file,
        "layers": [titled],
    }
    places = (b"oci://host:5000/edge/m:7", b"oci://h/m@" + NEW.encode())
    return [place + b"\n" + json.dumps(whole).encode() for place in places]


def _changed_listing(data: bytes, chance: Any) -> bytes:
    place, _, listed = data.partition(b"\n")
    if chance.random() < 0.3:
        return mutate.by_bytes(place, chance) + b"\n" + listed
    return place + b"\n" + mutate.by_json(listed, chance)


TARGETS = {
    "slot-rows": Target(
        slots, (errors.ConfigError,), lambda: [_lines(*SLOTS, *SLOTS)], mutate.then_bytes(mutate.by_json_lines)
    ),
    "preference-rows": Target(
        preferences,
        (errors.ConfigError,),
        lambda: [
            _lines({"prompt": "a", "chosen": "b", "rejected": "c"}),
            _lines({"messages": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}),
        ],
        mutate.then_bytes(mutate.by_json_lines),
    ),
    "knowledge-files": Target(
        knowledge,
        (errors.ConfigError,),
        lambda: [
            b"csv\nsentence1,sentence2,score\na,b,0.5\nc,d,1\ne,f,2\n",
            b"tsv\ngood\tbad\na\tb\n",
            b"jsonl\n" + _lines({"text": "a"}, {"text": "b"}),
        ],
        mutate.then_bytes(mutate.by_json_lines),
    ),
    "desired": Target(desired, (errors.PackageError,), lambda: [json.dumps(DESIRED).encode()], mutate.by_json),
    "trial-terms": Target(terms, (ValueError,), lambda: [TRIAL.encode()], mutate.by_json),
    "own-files": Target(own_files, (errors.StoreError,), _kept, mutate.by_json),
    "rollout": Target(rollout, (errors.UsageError,), _retained, _changed_line),
    "registry": Target(
        registry,
        (errors.PackageError, errors.UsageError),
        _listings,
        _changed_listing,
        size_bytes=limits.ARTEFACT_BYTES,
    ),
}
