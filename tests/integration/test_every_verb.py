"""No verb of either program ends in a traceback: every verb, three users, inputs that are missing, closed, empty, of
another kind, binary, enormous, full of NaN, a named pipe that nobody writes to, or a device that has no end.

One process per user and program runs all command lines, so that imports are paid once. Most lines wait for something
that is not there, so `make test` takes a quarter of them; `make every-verb` takes all, in about three minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.agents import echo_package

ROOT = Path(__file__).resolve().parents[2]
USERS = {"root": 0, "the service's user": 4242, "an ordinary user": 65534}
WHOLE = os.environ.get("EDGE_EVERY_VERB") == "whole"
KINDS_OF_A_LINE = 2
"""How many kinds of input a command line meets as one user where not all are taken."""
ENORMOUS_BYTES = 40 << 30
"""Sparse: it takes no room, and whoever reads it whole is ended by the limit of memory."""
NAN = {
    "toml": "[telemetry]\ninterval_s = nan\n[train]\nlearning_rate = nan\nepochs = inf\n",
    "json": '{"schema": NaN, "keys": [NaN, Infinity, -Infinity], "manifests": NaN}',
    "csv": "time,device,interval_s,model,requests,refused,p50_ms,p99_ms,temperature_c,forecast_c\n"
    "nan,d,inf,m,nan,1,1,1,1,1\n",
    "tar": '{"schema": NaN}' * 100,
    "pem": "NaN",
}
KINDS = (
    "missing", "closed", "empty", "binary", "enormous", "nan", "folder", "closed-folder/file", "pipe", "device",
)  # fmt: skip

AGENT = {
    "run --config {toml}": "toml",
    "infer --config {toml} m text": "toml",
    "chat --config {toml} m": "toml",
    "bench --config {toml} m --seconds 1": "toml",
    "load --config {toml} m": "toml",
    "unload --config {toml} m": "toml",
    "top --config {toml} --once --seconds 1": "toml",
    "fleet status --config {toml} --seconds 1": "toml",
    "fleet rollout --config {toml} --status": "toml",
    "fleet rollout {toml} --host 127.0.0.1 --port 1": "toml",
    "record --config {toml} {tmp}/out.csv --seconds 1": "toml",
    "record {csv} --seconds 1 --host 127.0.0.1 --port 1 --device d": "csv",
    "plot {csv} {tmp}/out.png": "csv",
    "plot {good} {csv}": "csv",
    "install --config {config} {tar}": "tar",
    "install --config {toml} {good}": "toml",
    "install --config {config} --from {tar}": "tar",
    "models --config {toml}": "toml",
    "rollback --config {toml} m": "toml",
    "promote --config {toml} m": "toml",
    "remove --config {toml} m": "toml",
    "doctor --config {toml}": "toml",
    "check-config {toml}": "toml",
    "service status --root {tar}": "tar",
    "service install --root {tar}": "tar",
    "service uninstall --root {tar}": "tar",
    "demo --models {tar} --build {tmp}/build": "tar",
    "gateway --config {toml} --host 127.0.0.1 --port 1": "toml",
    "console --config {toml} --broker http://no": "toml",
    "console --config {good} --write {tar}": "tar",
    "gateway --token-file {pem} --host 127.0.0.1 --port 1 --device d": "pem",
}
"""Each command line, and the form of the file in it; `{tmp}` is a folder that everybody may write to."""
STATES = (
    "models --config {config}",
    "rollback --config {config} m",
    "promote --config {config} m",
    "remove --config {config} m --adapter a",
    "run --config {config}",
)
"""With the kinds as the state folder."""
FORGE = {
    **{
        f"{verb} {{toml}} --build {{tmp}}/b": "toml"
        for verb in (
            "train",
            "evaluate",
            "export",
            "quantize",
            "package",
            "build",
            "compare",
            "diagnose",
            "sequence",
            "sweep",
        )
    },
    "init name --dir {tar}": "tar",
    "keygen {tar}": "tar",
    "keygen {tar} --rotate all": "tar",
    "sign {tar} --key {good}": "tar",
    "sign {good} --key {pem}": "pem",
    "sign {good} --key {good} --root {json}": "json",
    "verify {tar} --root {good}": "tar",
    "verify {good} --root {json}": "json",
    "verify {tar} --allow-unsigned": "tar",
    "inspect {tar}": "tar",
    "inspect {tar} --json": "tar",
    "provision {tar} --dry-run --device x": "tar",
    "provision {tmp} --dry-run --out {tmp}/o --devices {csv}": "csv",
    "provision {tmp} --dry-run --settings {toml}": "toml",
}


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that every user can reach: pytest's own are closed."""
    folder = Path(tempfile.mkdtemp(prefix="edge-every-verb-"))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwX", str(folder)], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def make(place: Path, form: str) -> Mapping[str, Path]:
    """A file of each kind, with the suffix of its form."""
    folder = place / form
    folder.mkdir(exist_ok=True)
    found = {kind: folder / f"{kind}.{form}" for kind in KINDS}
    found["closed"].write_text("x = 1\n")
    found["closed"].chmod(0)
    found["empty"].write_text("")
    found["binary"].write_bytes(bytes(range(256)) * 64)
    with found["enormous"].open("wb") as file:
        file.truncate(ENORMOUS_BYTES)
    found["nan"].write_text(NAN[form])
    found["folder"].mkdir()
    os.mkfifo(found["pipe"])
    found["pipe"].chmod(0o666)
    found["device"].symlink_to("/dev/zero")
    closed = folder / "closed-folder"
    closed.mkdir()
    found["closed-folder/file"] = closed / f"file.{form}"
    found["closed-folder/file"].write_text("x = 1\n")
    closed.chmod(0o700)
    return found


def kinds_of(line: int, user: str, whole: bool = WHOLE) -> list[str]:
    """The kinds of input that the command line of this number meets as this user: all, or such that every user runs
    every line and meets every kind, and a line meets other kinds as another user."""
    if whole:
        return list(KINDS)
    apart = len(KINDS) // KINDS_OF_A_LINE
    first = line + list(USERS).index(user)
    return [KINDS[(first + step * apart) % len(KINDS)] for step in range(KINDS_OF_A_LINE)]


def command_lines(verbs: Mapping[str, str], place: Path, user: str, config: Path) -> list[list[str]]:
    """Every verb with kinds of files."""
    good = place / "good.txt"
    good.write_text("a file that everybody may read\n")
    scratch = place / f"scratch-{USERS[user]}"
    scratch.mkdir(exist_ok=True)
    scratch.chmod(0o777)
    lines = []
    for number, (line, form) in enumerate(verbs.items()):
        files = make_once(place, form)
        for kind in kinds_of(number, user):
            path = files[kind]
            if line.startswith("run ") and kind == "empty":
                continue  # sound settings: it would serve
            words = {form: str(path), "good": str(good), "tmp": str(scratch), "config": str(config)}
            lines.append([part.format(**words) for part in line.split()])
    return lines


_MADE: dict[tuple[Path, str], Mapping[str, Path]] = {}


def make_once(place: Path, form: str) -> Mapping[str, Path]:
    """See `make`."""
    if (place, form) not in _MADE:
        _MADE[place, form] = make(place, form)
    return _MADE[place, form]


def outcomes(program: str, user: str, lines: list[list[str]], place: Path) -> list[tuple[list[str], object, str]]:
    """How each command line ended; a line may not take more than 2 GiB beside what is imported."""
    if os.geteuid() != 0 and USERS[user]:
        pytest.skip(f"NOT ROOT HERE: {program} as {user} was NOT tried")
    number = USERS[user] if os.geteuid() == 0 else 0
    environment = {**os.environ, "HOME": "/nonexistent", "TMPDIR": str(place / f"scratch-{USERS[user]}")}
    environment |= {"EDGE_AGENT__MQTT__HOST": "127.0.0.1", "EDGE_AGENT__WORKER__BACKENDS": "echo"}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tools'}"
    done = subprocess.run(
        ["timeout", "200", sys.executable, str(ROOT / "tests/support/every_verb.py"), program, str(number)],
        input=json.dumps(lines), capture_output=True, text=True, check=False, env=environment, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:], done.stdout[-500:])
    found = json.loads(done.stdout)
    return [(line, code, text) for line, (code, text) in zip(lines, found, strict=True)]


def check(found: list[tuple[list[str], object, str]]) -> None:
    """Every end is an exit code with a sentence."""
    wrong = []
    for line, code, text in found:
        bad = code not in {0, 1, 2} or "Traceback" in text or "error of the program itself" in text
        if bad or (code != 0 and not text.strip()):
            wrong.append(f"{' '.join(line)}\n    -> {code}: {text[-1500:]}")
    assert not wrong, f"{len(wrong)} of {len(found)}\n" + "\n".join(wrong)


@pytest.fixture(scope="module")
def config(place: Path) -> Path:
    """Sound settings with a state folder of the service's user."""
    path = place / "edge-agent.toml"
    state = place / "state"
    state.mkdir()
    state.chmod(0o750)
    if os.geteuid() == 0:
        os.chown(state, USERS["the service's user"], USERS["the service's user"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    path.write_text(
        f'[mqtt]\nhost = "127.0.0.1"\nport = {port}\n[device]\nid = "dev"\n'
        f'[store]\nstate_dir = "{state}"\nallow_unsigned = true\n[worker]\nbackends = ["echo"]\n'
    )
    return path


def test_what_is_taken_of_all_lines_leaves_no_line_no_user_and_no_kind_out() -> None:
    for user in USERS:
        for verbs in (AGENT, FORGE):
            assert all(kinds_of(line, user, whole=False) for line in range(len(verbs)))
            assert {kind for line in range(len(verbs)) for kind in kinds_of(line, user, whole=False)} == set(KINDS)
    for line in range(len(AGENT)):
        met = [kind for user in USERS for kind in kinds_of(line, user, whole=False)]
        assert len(set(met)) == len(met), "a line meets no kind twice"


@pytest.mark.parametrize("user", USERS)
def test_every_verb_of_edge_agent(user: str, place: Path, config: Path) -> None:
    check(outcomes("edge-agent", user, command_lines(AGENT, place, user, config), place))


@pytest.mark.parametrize("user", ["root", "an ordinary user"])
def test_every_verb_of_edge_forge(user: str, place: Path, config: Path) -> None:
    check(outcomes("edge-forge", user, command_lines(FORGE, place, user, config), place))


@pytest.mark.parametrize("user", USERS)
def test_verbs_on_a_state_folder_that_is_not_one(user: str, place: Path, config: Path) -> None:
    """The state folder is each of the kinds; the daemon is left out where it would wait for the folder."""
    lines = []
    for kind, path in make_once(place, "tar").items():
        own = place / f"state-is-{kind.replace('/', '-')}.toml"
        own.write_text(config.read_text().replace(str(place / "state"), str(path)))
        verbs = STATES if path.is_file() and "closed" not in kind else STATES[:-1]
        taken = [line for verb, line in enumerate(verbs) if kind in kinds_of(verb, user)]
        lines += [line.format(config=own).split() for line in taken]
    check(outcomes("edge-agent", user, lines, place))


def reachable() -> bool:
    """Whether the service's user may run this interpreter; one in root's home is closed to it, which install says."""
    command = [sys.executable, "-c", ""]
    user = USERS["the service's user"]
    try:
        return subprocess.run(command, user=user, group=user, extra_groups=[], check=False).returncode == 0
    except PermissionError:
        return False


def test_root_leaves_no_file_of_root_in_the_state_folder(place: Path, config: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT HERE: who owns what root's commands leave was NOT tried")
    package = echo_package(place / "package")
    closed = place / "closed-home"
    closed.mkdir()
    shutil.copy(package, closed / "echo.tar")
    (closed / "echo.tar").chmod(0o600)
    closed.chmod(0o700)
    lines = [["models", "--config", str(config)], ["install", "--config", str(config), str(closed / "echo.tar")],
             ["models", "--config", str(config)], ["remove", "--config", str(config), "echo"]]  # fmt: skip
    for line in lines:  # one after another: each sees what the one before left
        found = outcomes("edge-agent", "root", [line], place)
        check(found)
        assert "cannot be opened" not in found[0][2], found
        if line[0] == "install" and not reachable():
            assert "cannot be used by" in found[0][2], found
    left = [place / "state", *(place / "state").rglob("*")]
    assert len(left) > 3 or not reachable()
    owners = {str(path): path.stat().st_uid for path in left}
    assert set(owners.values()) == {USERS["the service's user"]}, owners
