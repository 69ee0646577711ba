"""Checks of what is written and read: schemas, packages, signatures, metrics, the interface's description."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conformance.outcome import ROOT, Absent, Outcome, Places, program, pytest, run, version

SCHEMAS_S = 7200
PARSE = """
const {Parser} = require('@asyncapi/parser');
new Parser().parse(require('fs').readFileSync(FILE, 'utf8')).then(({document, diagnostics}) => console.log(
  JSON.stringify({ok: !!document, said: diagnostics.map(one => one.severity + ' ' + one.message)})));
"""

# `definition` is what Grafana's editor writes beside the query of a variable; its types leave it out.
GRAFANA = """
import importlib.metadata, json, sys
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
plugins.register_default_plugins()
def lost(ours, theirs, at=""):
    if isinstance(ours, dict):
        for key, value in ours.items():
            if key != "definition":
                known = isinstance(theirs, dict) and key in theirs
                yield from lost(value, theirs[key], at + "." + key) if known else [at + "." + key + " is not known"]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for place, (one, other) in enumerate(zip(ours, theirs)):
            yield from lost(one, other, f"{at}[{place}]")
    elif ours != theirs:
        yield at + " is read as something else"
def fields(value):
    if isinstance(value, dict):
        return len(value) + sum(map(fields, value.values()))
    return sum(map(fields, value)) if isinstance(value, list) else 0
files = []
for path in sys.argv[1:]:
    ours = json.load(open(path))
    theirs = json.loads(JSONEncoder().encode(Dashboard.from_json(ours)))
    files.append({"fields": fields(ours), "lost": list(lost(ours, theirs))})
print(json.dumps({"version": importlib.metadata.version("grafana-foundation-sdk"), "files": files}))
"""


def schemas(places: Places) -> Iterator[Outcome]:
    """The JSON schemas of JSON-Schema-Test-Suite, as the grammar process follows them."""
    yield _followed(places, "suite", "tests", "JSON-Schema-Test-Suite")


def maskbench(places: Places) -> Iterator[Outcome]:
    """Those of JSONSchemaBench."""
    yield _followed(places, "maskbench", "maskbench/data", "JSONSchemaBench")


def _followed(places: Places, name: str, part: str, title: str) -> Outcome:
    try:
        folder, commit = places.suite(name, part)
    except Absent as error:
        return Outcome("answers that follow a JSON schema", title, note=str(error))
    out = places.work / f"{name}.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.schemas", f"--{name}", str(folder), "--walks", "1", "--out", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=_with_tools(), timeout=SCHEMAS_S
    )
    assert out.exists(), done.stdout[-500:] + done.stderr[-500:]
    tallies = list(json.loads(out.read_text())[name].values())

    def total(key: str) -> int:
        return sum(int(one[key]) for one in tallies)

    wrong = {key: total(key) for key in ("wrong", "walks_wrong", "walks_stuck")}
    return Outcome(
        "answers that follow a JSON schema", title, commit, total("invalid") + total("valid") + total("walks"),
        tuple(f"{count} {key.replace('_', ' ')}" for key, count in wrong.items() if count),
        f"{total('taken')} of {total('schemas')} schemas are taken, the others refused by keyword; of "
        f"{total('valid')} valid instances {total('not_derivable')} cannot be drawn (order of properties)",
    )  # fmt: skip


def _with_tools() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT / "tools")}


def packages(places: Places) -> Iterator[Outcome]:
    """A package as OCI and ModelPack describe it, and as skopeo and umoci read it."""
    from edge_forge.package.build import build
    from tests.support import packages as tiny

    out = places.work / "package"
    if not out.exists():
        model, adapter = tiny.model_source(places.work / "src"), tiny.adapter_source(places.work / "adapter")
        build(out, tiny.release("tiny"), model, [adapter], folder=True)
    yield _described(out, places, "oci", "schema", "OCI image-spec's schemas")
    yield _described(out, places, "modelpack", "schema", "ModelPack's schema")
    names = ("skopeo", "umoci")
    try:
        versions = ", ".join(version(program(name, name), "--version") for name in names)
        tried, failed = pytest("tests/unit/edge_forge/test_packages.py", "-k", "skopeo")
    except Absent as error:
        yield Outcome("a package's index", "skopeo, umoci", note=str(error))
    else:
        yield Outcome("a package's index", "skopeo, umoci", versions, tried, failed)


def _described(package: Path, places: Places, name: str, part: str, title: str) -> Outcome:
    import jsonschema
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT4

    try:
        folder, commit = places.suite(name, part)
    except Absent as error:
        return Outcome("a package's manifests", title, note=str(error))
    base = "https://opencontainers.org/schema/"
    loaded = {path.name: json.loads(path.read_text()) for path in (folder / part).glob("*.json")}
    assert loaded, f"{folder / part} holds no schema"
    resources = []
    for file, schema in loaded.items():
        resource = Resource.from_contents(schema, default_specification=DRAFT4)
        resources += [(f"{base}{place}{file}", resource) for place in ("", "image/", "descriptor/")]
        resources += [(str(schema[key]), resource) for key in ("id", "$id") if key in schema]
    registry: Any = Registry().with_resources(resources)
    failed, tried = [], 0
    for what, document, file in _documents(package, name):
        tried += 1
        validator = jsonschema.validators.validator_for(loaded[file])(loaded[file], registry=registry)
        failed += [f"{what}: {error.message[:120]}" for error in validator.iter_errors(document)]
    return Outcome("a package's manifests", title, commit, tried, tuple(failed))


def _documents(package: Path, name: str) -> Iterator[tuple[str, Any, str]]:
    """Each document of a package with the schema file that describes it."""

    def blob(descriptor: dict[str, Any]) -> Any:
        return json.loads((package / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes())

    index = json.loads((package / "index.json").read_bytes())
    if name == "oci":
        yield "oci-layout", json.loads((package / "oci-layout").read_bytes()), "image-layout-schema.json"
        yield "index.json", index, "image-index-schema.json"
    for descriptor in index["manifests"]:
        manifest = blob(descriptor)
        if name == "oci":
            yield descriptor["digest"], manifest, "image-manifest-schema.json"
        elif ".model.config." in manifest["config"]["mediaType"]:
            yield manifest["config"]["digest"], blob(manifest["config"]), "config-schema.json"


def signatures(places: Places) -> Iterator[Outcome]:
    """Ed25519 as a release is checked with it, and the bytes that DSSE signs."""
    from edge_agent.bundle import sign

    spec = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    found = sign.pae("http://example.com/HelloWorld", b"hello world")
    yield Outcome("what is signed of a release", "DSSE's example", "v1", 1, () if found == spec else (repr(found),))
    tried, failed = pytest("tests/fuzz/test_targets.py", "-k", "signature or envelope or dsse")
    from importlib.metadata import version as of

    yield Outcome("signed envelopes", "securesystemslib", of("securesystemslib"), tried, failed)
    try:
        folder, commit = places.suite("wycheproof", "testvectors_v1/ed25519_test.json")
    except Absent as error:
        yield Outcome("signatures", "Wycheproof's Ed25519", note=str(error))
        return
    tried, wrong = 0, []
    for group in json.loads((folder / "testvectors_v1" / "ed25519_test.json").read_text())["testGroups"]:
        for one in group["tests"]:
            tried += 1
            verified = sign._verifies(group["publicKey"]["pk"], bytes.fromhex(one["sig"]), bytes.fromhex(one["msg"]))
            if verified != (one["result"] == "valid"):
                wrong.append(f"{one['tcId']}: {one['comment']}")
    yield Outcome("signatures", "Wycheproof's Ed25519", commit, tried, tuple(wrong))


def interface(places: Places) -> Iterator[Outcome]:
    """docs/asyncapi.yaml as AsyncAPI's own parser and a linter read it."""
    document = ROOT / "docs" / "asyncapi.yaml"
    try:
        _, found = places.npm_package("@asyncapi/parser")
    except Absent as error:
        yield Outcome("docs/asyncapi.yaml", "AsyncAPI's parser", note=str(error))
    else:
        script = PARSE.replace("FILE", json.dumps(str(document)))
        said = json.loads(run(["node", "-e", script], cwd=places.npm).stdout)
        bad = [line for line in said["said"] if line[0] in "01"] + ([] if said["ok"] else ["it is not read"])
        yield Outcome("docs/asyncapi.yaml", "AsyncAPI's parser", found, 1, tuple(bad))
    try:
        folder, found = places.npm_package("@stoplight/spectral-cli")
    except Absent as error:
        yield Outcome("docs/asyncapi.yaml", "spectral", note=str(error))
        return
    rules = places.work / "spectral.yaml"
    rules.write_text("extends: spectral:asyncapi\n")
    done = subprocess.run(
        ["node", str(folder / "dist" / "index.js"), "lint", str(document), "--ruleset", str(rules), "-f", "json"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    start = done.stdout.find("[")
    assert start >= 0, done.stdout[-300:] + done.stderr[-500:]
    said = json.loads(done.stdout[start : done.stdout.rfind("]") + 1])
    yield Outcome("docs/asyncapi.yaml", "spectral", found, 1, tuple(f"{one['code']}: {one['message']}" for one in said))


def metrics(places: Places) -> Iterator[Outcome]:
    """Metrics, alert rules and dashboards as Prometheus reads them; the dashboards' fields as Grafana names them."""
    try:
        found = version(program("promtool", "prometheus"), "--version")
        tried, failed = pytest(
            "tests/unit/exporter", "tests/integration/test_dashboards.py", "-k", "prom or alert or panel"
        )
    except Absent as error:
        yield Outcome("metrics, rules, dashboards", "promtool, Prometheus", note=str(error))
    else:
        yield Outcome("metrics, rules, dashboards", "promtool, Prometheus", found, tried, failed)
    yield _dashboards(places)


def _dashboards(places: Places) -> Outcome:
    """Grafana is no package of Debian or PyPI; its types in Python are. A field that they do not know is lost there."""
    subject, against = "dashboards", "Grafana's types (grafana-foundation-sdk)"
    if not places.python.is_file() or subprocess.run([places.python, "-c", "import grafana_foundation_sdk"],
                                                     capture_output=True, check=False).returncode:  # fmt: skip
        return Outcome(subject, against, note=f"{places.python} -m pip install grafana-foundation-sdk")
    files = sorted((ROOT / "edge_agent" / "exporter" / "monitoring").glob("*.json"))
    said = json.loads(run([places.python, "-c", GRAFANA, *files]).stdout)
    tried = sum(one["fields"] for one in said["files"])
    failed = tuple(f"{file.name}{lost}" for file, one in zip(files, said["files"], strict=True) for lost in one["lost"])
    note = "every field of two dashboards is known there; values are not judged, and Grafana itself was not run"
    return Outcome(subject, against, said["version"].rpartition("!")[2], tried, failed, note)


def debian(places: Places) -> Iterator[Outcome]:
    """The Debian package as lintian sees it."""
    files = sorted((ROOT / "dist").glob("*.deb"))
    try:
        lint = program("lintian", "lintian")
        if not files:
            raise Absent("make deb")
    except Absent as error:
        yield Outcome("the Debian package", "lintian", note=str(error))
        return
    done = subprocess.run([lint, *map(str, files)], capture_output=True, text=True, timeout=900, check=False)
    bad = tuple(line for line in done.stdout.splitlines() if line.startswith(("E:", "W:")))
    yield Outcome("the Debian package", "lintian", version(lint, "--version"), len(files), bad)
