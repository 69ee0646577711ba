"""Files for a root file system: what is looked at, what is put there, what a second run and --remove do."""

from __future__ import annotations

import datetime
import io
import json
import stat
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_agent.base.errors import EdgeError, PackageError, UsageError
from edge_agent.config.settings import Settings
from edge_agent.lifecycle import service
from edge_forge.cli import main
from edge_forge.provision import cloud_seed, first_boot, image_plan, provision_commands
from edge_forge.provision.devices import Device, read_devices
from edge_forge.provision.image_writer import RECORD, Entry, ImageWriter
from edge_forge.provision.target_root import group_id, host_name, inspect_root, locate
from edge_forge.provision.target_wheels import WheelOrder, platform_tags, unpack, wheels_for
from tests.support.agents import echo_adapter_package, echo_package, keys
from tests.support.made_up_root import elf, made_up_root, made_up_wheel

GIB = 1 << 30


def snapshot(root: Path) -> dict[str, tuple[int, object]]:
    """Mode, contents and time of change of everything in a folder."""
    return {
        path.relative_to(root).as_posix(): (
            stat.S_IMODE(path.lstat().st_mode),
            str(path.readlink()) if path.is_symlink() else None if path.is_dir()
            else (path.read_bytes(), path.stat().st_mtime_ns),
        )
        for path in sorted(root.rglob("*"))
    }  # fmt: skip


def writer(root: Path, free: int = GIB) -> ImageWriter:
    return ImageWriter(root, own=False, free_bytes=lambda _path: free)


# What a root is


@pytest.mark.parametrize(("machine", "python", "minor"), [("aarch64", "3.11", 36), ("x86_64", "3.13", 41)])
def test_a_root_is_read_without_running_it(tmp_path: Path, machine: str, python: str, minor: int) -> None:
    found = inspect_root(made_up_root(tmp_path / "root", machine, python, minor))
    assert (found.machine, found.glibc, found.interpreter) == (machine, (2, minor), f"/usr/bin/python{python}")
    assert found.python == tuple(int(part) for part in python.split("."))
    assert "Made-up" in found.text() and host_name(found.path) == "raspberrypi"


def test_roots_that_cannot_be_filled_are_refused_by_what_they_lack(tmp_path: Path) -> None:
    root = made_up_root(tmp_path / "root")
    with pytest.raises(EdgeError, match="of aarch64, not of x86_64"):
        inspect_root(root, "x86_64")
    (root / "usr/bin/python3.11").write_bytes(elf("armv7l"))
    with pytest.raises(EdgeError, match="armv7l, which is a 32-bit system"):
        inspect_root(root)
    (root / "usr/bin/python3.11").write_bytes(b"#!/bin/sh\n" + bytes(40))
    with pytest.raises(EdgeError, match="no program of Linux"):
        inspect_root(root)
    (root / "usr/bin/python3").unlink()
    with pytest.raises(EdgeError, match="it has no Python"):
        inspect_root(root)
    with pytest.raises(UsageError, match="no root file system"):
        inspect_root(tmp_path)
    with pytest.raises(UsageError, match="running system"):
        inspect_root(Path("/"))
    with pytest.raises(EdgeError, match=r"its Python is 3\.9"):
        inspect_root(made_up_root(tmp_path / "old", python="3.9"))
    (made_up_root(tmp_path / "minimal") / "usr/lib/python3.11/asyncio/__init__.py").unlink()
    with pytest.raises(EdgeError, match="whole standard library"):
        inspect_root(tmp_path / "minimal")
    (made_up_root(tmp_path / "musl") / "lib/aarch64-linux-gnu/libc.so.6").unlink()
    with pytest.raises(EdgeError, match="no GNU C library"):
        inspect_root(tmp_path / "musl")


def test_links_are_followed_as_from_inside(tmp_path: Path) -> None:
    root = made_up_root(tmp_path / "root")
    (root / "etc/up").symlink_to("../../../../usr/bin/python3")
    (root / "etc/round").symlink_to("round")
    (root / "etc/gone").symlink_to("/no/such")
    assert locate(root, "etc/up") == root / "usr/bin/python3.11"
    assert locate(root, "etc/round") is None and locate(root, "etc/gone") is None


# Wheels


def test_the_wheels_are_closed_for_the_target_and_not_for_this_python(tmp_path: Path) -> None:
    """tomli is needed before Python 3.11 alone; of two architectures and two C libraries the target's is taken."""
    wheels = tmp_path / "wheels"
    agent = made_up_wheel(
        tmp_path, "edge-agent", needs=['tomli; python_version < "3.11"', "msgspec>=1", 'numpy; extra == "onnx"', "pure"]
    )
    for tag in ("cp310-cp310-manylinux2014_aarch64", "cp310-cp310-manylinux_2_28_x86_64",
                "cp310-cp310-manylinux_2_39_aarch64", "cp311-cp311-manylinux_2_17_aarch64"):  # fmt: skip
        made_up_wheel(wheels, "msgspec", tag)
    made_up_wheel(wheels, "tomli")
    made_up_wheel(wheels, "pure", needs=['colorama; sys_platform == "win32"'])
    made_up_wheel(wheels, "numpy", "cp310-abi3-manylinux_2_28_aarch64")
    old = inspect_root(made_up_root(tmp_path / "old", python="3.10", glibc_minor=35))
    new = inspect_root(made_up_root(tmp_path / "new"))
    names = [path.name for path in wheels_for(WheelOrder(agent, (), old), wheels, tmp_path)]
    assert names == ["edge_agent-1.0-py3-none-any.whl", "msgspec-1.0-cp310-cp310-manylinux2014_aarch64.whl",
                     "pure-1.0-py3-none-any.whl", "tomli-1.0-py3-none-any.whl"]  # fmt: skip
    names = [path.name for path in wheels_for(WheelOrder(agent, ("onnx",), new), wheels, tmp_path)]
    assert "tomli-1.0-py3-none-any.whl" not in names and "msgspec-1.0-cp311-cp311-manylinux_2_17_aarch64.whl" in names
    assert "numpy-1.0-cp310-abi3-manylinux_2_28_aarch64.whl" in names
    (wheels / "pure-1.0-py3-none-any.whl").unlink()
    with pytest.raises(EdgeError, match=r"no wheel for aarch64, Python 3\.11 is there for: pure"):
        wheels_for(WheelOrder(agent, (), new), wheels, tmp_path)
    (wheels / "pure-1.0-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(EdgeError, match="no sound wheel"):
        wheels_for(WheelOrder(agent, (), new), wheels, tmp_path)


def test_platforms_end_at_the_targets_c_library(tmp_path: Path) -> None:
    tags = platform_tags(inspect_root(made_up_root(tmp_path / "root", glibc_minor=31)))
    assert tags[0] == "manylinux_2_31_aarch64" and "manylinux2014_aarch64" in tags and tags[-1] == "linux_aarch64"
    assert not [tag for tag in tags if "x86" in tag]


def test_an_environment_is_laid_out_for_the_targets_interpreter(tmp_path: Path) -> None:
    target = inspect_root(made_up_root(tmp_path / "root"))
    unpack([made_up_wheel(tmp_path, "edge-agent")], target, tmp_path / "stage")
    top = tmp_path / "stage/opt/edge-agent"
    assert (top / "bin/python").readlink() == Path("/usr/bin/python3.11")
    assert (top / "lib/python3.11/site-packages/edge_agent/__init__.py").is_file()
    script = top / "bin/edge-agent"
    assert script.read_text().startswith("#!/opt/edge-agent/bin/python\n") and script.stat().st_mode & 0o111
    assert "home = /usr/bin\n" in (top / "pyvenv.cfg").read_text()


# The table of devices


def table(path: Path, *lines: str, mode: int = 0o600) -> Path:
    path.write_text("\n".join(lines) + "\n")
    path.chmod(mode)
    return path


def test_a_table_gives_each_board_its_own(tmp_path: Path) -> None:
    secret = tmp_path / "p2"
    secret.write_text("two\n")
    secret.chmod(0o600)
    first, second = read_devices(
        table(tmp_path / "d.csv", "\ufeffname,broker,username,password,password_file", "gh-1,b.lan:8883,u1,one,", "",
              "gh-2,[fd00::1]:1884,u2,,p2")
    )  # fmt: skip
    assert first.settings == {"device": {"id": "gh-1"}, "mqtt": {"host": "b.lan", "port": 8883, "username": "u1"}}
    assert first.credentials == {"mqtt-password": b"one\n"} and second.credentials == {"mqtt-password": b"two\n"}
    assert second.settings["mqtt"]["host"] == "fd00::1" and second.settings["mqtt"]["port"] == 1884
    assert "one" not in repr(first)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (("name,password", "gh-1,x"), r"line 2: has a password and no username"),
        (("name,user", "gh-1,x"), r"line 1: has a column 'user' that is not known"),
        (("username", "x"), r"line 1: has no column 'name'"),
        (("name,name", "a,b"), r"has the column 'name' twice"),
        (("name", "raspberrypi"), r"line 2: 'raspberrypi' is the name that every such image has"),
        (("name", "gh-1", "GH-1"), r"line 3: the device 'GH-1' is listed twice, before in .*line 2"),
        (("name,username,password", "a,u,same", "b,v,same"), r"line 3: the password is also that of .*line 2"),
        (("name", "gh/1"), r"line 2: the name 'gh/1' cannot be used"),
        (("name,broker", "a,host:99999"), r"no port between 1 and 65535"),
        (("name,cert", "a,c.pem"), r"has one of cert and key"),
        (("name,username,password_file", "a,u,none"), r"none cannot be read"),
        (("name", "a,b"), r"more fields than"),
        (("name",), r"names no device"),
        (("name,username,password,password_file", "a,u,x,y"), r"both a password and a password_file"),
    ],
)
def test_a_table_that_cannot_be_is_refused_by_line(tmp_path: Path, lines: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_devices(table(tmp_path / "d.csv", *lines))


def test_secrets_that_others_can_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"d\.csv: others can read or write it \(mode 0644\), and it holds passwords"):
        read_devices(table(tmp_path / "d.csv", "name,username,password", "a,u,x", mode=0o644))
    (tmp_path / "p").write_text("x\n")
    (tmp_path / "p").chmod(0o640)
    lines = ("name,username,password_file", "a,u,p")
    with pytest.raises(UsageError, match=r"p: others can read or write it \(mode 0640\)"):
        read_devices(table(tmp_path / "d.csv", *lines, mode=0o644))
    (tmp_path / "p").chmod(0o600)
    assert read_devices(table(tmp_path / "d.csv", *lines, mode=0o644)), "the table itself then holds no secret"


def test_a_certificate_is_of_its_key_and_names_the_device(tmp_path: Path) -> None:
    for name in ("gh-1", "gh-2"):
        _certificate(tmp_path, name)
    (tmp_path / "ca").write_text("authority\n")
    (found,) = read_devices(table(tmp_path / "d.csv", "name,ca,cert,key", "gh-1,ca,gh-1.crt,gh-1.key"))
    assert set(found.credentials) == {"mqtt-ca", "mqtt-cert", "mqtt-key"}
    assert found.settings["mqtt"] == {"tls": {"enabled": True}}
    with pytest.raises(UsageError, match="not of this key"):
        read_devices(table(tmp_path / "d.csv", "name,cert,key", "gh-1,gh-1.crt,gh-2.key"))
    with pytest.raises(UsageError, match="is for gh-2, the device's name is 'gh-1'"):
        read_devices(table(tmp_path / "d.csv", "name,cert,key", "gh-1,gh-2.crt,gh-2.key"))


def _certificate(folder: Path, name: str) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    begin = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(1).not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=9000)).sign(key, None)
    )  # fmt: skip
    (folder / f"{name}.crt").write_bytes(made.public_bytes(Encoding.PEM))
    path = folder / f"{name}.key"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)


# Settings and packages


def test_settings_are_the_shared_ones_under_the_boards_own(tmp_path: Path) -> None:
    shared = {"mqtt": {"host": "b", "tls": {"enabled": False}}, "models": {"prefer": ["int8"]}}
    own = {"device": {"id": "gh-1"}, "mqtt": {"username": "u", "tls": {"enabled": True}}}
    text, settings = image_plan.settings_text(shared, own, "s.toml")
    assert (settings.device.id, settings.mqtt.host, settings.mqtt.username) == ("gh-1", "b", "u")
    assert settings.mqtt.tls.enabled and settings.models.prefer == ("int8",)
    assert text.count("[mqtt]") == 1
    with pytest.raises(EdgeError, match=r"s\.toml: the settings cannot be used: .*hots"):
        image_plan.settings_text({"mqtt": {"hots": "b"}}, {}, "s.toml")
    with pytest.raises(EdgeError, match="may write /var/lib/edge-agent alone"):
        image_plan.settings_text({"store": {"state_dir": "/data"}}, {}, "s.toml")


def test_a_board_without_a_name_of_its_own_is_refused(tmp_path: Path) -> None:
    root = made_up_root(tmp_path / "root")
    with pytest.raises(UsageError, match=r"no name of its own.*'raspberrypi'"):
        image_plan.check_own_name(Settings(), root, "s.toml")
    (root / "etc/hostname").write_text("greenhouse-pi\n")
    image_plan.check_own_name(Settings(), root, "s.toml")


def test_packages_are_verified_before_they_are_put_there(tmp_path: Path) -> None:
    base = echo_package(tmp_path)
    adapter = echo_adapter_package(tmp_path, base, "tone")
    both = image_plan.verify_packages([base, adapter], keys().root_file)
    assert [(one.models, one.adapters) for one in both] == [(("echo",), ()), ((), ("tone",))]
    assert image_plan.extras_for(both, signed=True) == ("verify",)
    data = bytearray(base.read_bytes())
    data[data.rindex(b"echo1[")] ^= 1  # in the weights
    broken = tmp_path / "broken.tar"
    broken.write_bytes(data)
    with pytest.raises(PackageError):
        image_plan.verify_packages([broken], keys().root_file)


# Writing


def entries(root: Path, tmp_path: Path, packages: list[image_plan.FactoryPackage], password: str) -> list[Entry]:
    stage = tmp_path / "stage"
    if not stage.exists():
        unpack([made_up_wheel(tmp_path, "edge-agent")], inspect_root(root), stage)
    shared = image_plan.shared_entries(stage, packages, ("etc/edge-agent/trust-root.json", b"{}"), ["clock"])
    device = Device("gh-1", "d.csv, line 2", {}, {"mqtt-password": password.encode()})
    return [*shared, *image_plan.own_entries("# settings\n", device)]


def test_what_is_put_there_changes_nothing_twice_and_is_taken_back(tmp_path: Path) -> None:
    root = made_up_root(tmp_path / "root")
    before = snapshot(root)
    packages = image_plan.verify_packages([echo_package(tmp_path / "packages")], keys().root_file)
    actions = writer(root).plan(entries(root, tmp_path, packages, "one"))
    assert snapshot(root) == before, "a plan writes nothing"
    assert {one.kind for one in actions} == {"write"}
    writer(root).write(actions)
    filled = snapshot(root)
    assert filled["etc/edge-agent/credentials/mqtt-password"][0] == 0o600
    assert filled["etc/edge-agent/credentials"][0] == 0o700 and filled["etc/edge-agent"][0] == 0o750
    assert filled[RECORD][0] == 0o600
    assert filled["var/lib/edge-agent/factory/01-echo-1.tar"][1][0] == packages[0].path.read_bytes()
    assert str(filled[service.WANTS][1]) == "/etc/systemd/system/edge-agent.service"
    assert f"{service.DROP_INS}/clock.conf" in filled
    again = writer(root).plan(entries(root, tmp_path, packages, "one"))
    assert {one.kind for one in again} == {"same"}
    writer(root).write(again)
    assert snapshot(root) == filled, "a second run changes nothing, times included"
    # What a boot leaves: byte code, and the package in the store instead of the folder.
    cache = root / "opt/edge-agent/lib/python3.11/site-packages/edge_agent/__pycache__"
    cache.mkdir()
    (cache / "x.pyc").touch()
    (root / "var/lib/edge-agent/factory/01-echo-1.tar").unlink()
    writer(root).remove()
    assert snapshot(root) == before


def test_other_contents_replace_what_provision_put_there(tmp_path: Path) -> None:
    root = made_up_root(tmp_path / "root")
    packages = image_plan.verify_packages([echo_package(tmp_path / "packages")], keys().root_file)
    writer(root).write(writer(root).plan(entries(root, tmp_path, packages, "one")))
    actions = writer(root).plan(entries(root, tmp_path, [], "two"))
    changed = {(one.kind, one.name) for one in actions if one.kind != "same"}
    assert changed == {("replace", "etc/edge-agent/credentials/mqtt-password"),
                       ("remove", "var/lib/edge-agent/factory/01-echo-1.tar")}  # fmt: skip
    writer(root).write(actions)
    assert not (root / "var/lib/edge-agent/factory").exists()
    assert (root / "etc/edge-agent/credentials/mqtt-password").read_text() == "two"


def test_files_of_somebody_else_are_neither_overwritten_nor_removed(tmp_path: Path) -> None:
    root = made_up_root(tmp_path / "root")
    (root / "etc/edge-agent").mkdir(parents=True)
    settings = root / service.CONFIG
    settings.write_text("# the operator's\n")
    before = snapshot(root)
    with pytest.raises(EdgeError, match=r"/etc/edge-agent/edge-agent\.toml: there already"):
        writer(root).plan(entries(root, tmp_path, [], "one"))
    assert snapshot(root) == before
    settings.unlink()
    writer(root).write(writer(root).plan(entries(root, tmp_path, [], "one")))
    settings.write_text("# changed since\n")
    with pytest.raises(EdgeError, match="not as provision put it there"):
        writer(root).plan([*entries(root, tmp_path, [], "one")[:-2], Entry(service.CONFIG, 0o644, data=b"# new\n")])
    kept = [one for one in writer(root).remove() if one.kind == "keep"]
    assert [one.name for one in kept] == [service.CONFIG] and settings.read_text() == "# changed since\n"
    with pytest.raises(EdgeError, match="nothing was put there"):
        writer(root).remove()


def test_what_was_there_before_as_wanted_is_not_taken_back(tmp_path: Path) -> None:
    root = made_up_root(tmp_path / "root")
    (root / "usr/local/bin").mkdir(parents=True)
    (root / "usr/local/bin/edge-agent").symlink_to("/opt/edge-agent/bin/edge-agent")
    (root / "etc/sysusers.d").mkdir()
    (root / service.SYSUSERS).write_text(service.read_unit_file("edge-agent.sysusers.conf"))
    (root / service.SYSUSERS).chmod(0o644)
    before = snapshot(root)
    for password in ("one", "two"):
        writer(root).write(writer(root).plan(entries(root, tmp_path, [], password)))
    writer(root).remove()
    assert snapshot(root) == before


def test_a_run_that_was_cut_off_can_be_done_again_or_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = made_up_root(tmp_path / "root")
    before = snapshot(root)
    for cut in range(0, 16, 3):
        todo = writer(root)
        actions = todo.plan(entries(root, tmp_path, [], f"password {cut}"))
        monkeypatch.setattr(ImageWriter, "_put", _until(cut, ImageWriter._put))
        with pytest.raises(KeyboardInterrupt):
            todo.write(actions)
        monkeypatch.undo()
        again = writer(root).plan(entries(root, tmp_path, [], f"password {cut}"))
        writer(root).write(again)
        assert (root / "etc/edge-agent/credentials/mqtt-password").read_text() == f"password {cut}"
        writer(root).remove()
        assert snapshot(root) == before, cut


def test_half_a_secret_of_a_run_that_was_cut_off_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = made_up_root(tmp_path / "root")
    before = snapshot(root)
    todo = writer(root)
    actions = todo.plan(entries(root, tmp_path, [], "one"))
    secret = "etc/edge-agent/credentials/mqtt-password"

    def full(path: Path, target: Path) -> Path:
        if target == root / secret:
            raise KeyboardInterrupt
        return replace(path, target)

    replace = Path.replace
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(KeyboardInterrupt):
        todo.write(actions)
    monkeypatch.undo()
    assert (root / f"{secret}.edge-new").read_text() == "one", "the cut was where it should be"
    writer(root).remove()
    assert snapshot(root) == before


def _until(count: int, put: Callable[[ImageWriter, Entry], None]) -> Callable[[ImageWriter, Entry], None]:
    """`put` for so many files; the next one is interrupted."""
    left = iter(range(count))

    def cut_off(self: ImageWriter, entry: Entry) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        put(self, entry)

    return cut_off


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    root = made_up_root(tmp_path / "root")
    small = writer(root, free=300 << 20)
    actions = small.plan(entries(root, tmp_path, [], "one"))
    small.check_room(actions, 256 << 20)
    with pytest.raises(EdgeError, match=r"too little space.*are free; nothing was changed"):
        small.check_room(actions, 300 << 20)


def test_a_link_that_leads_out_of_the_image_is_refused(tmp_path: Path) -> None:
    root = made_up_root(tmp_path / "root")
    (tmp_path / "host").mkdir()
    (root / "opt").symlink_to(tmp_path / "host")
    with pytest.raises(EdgeError, match="leads out of the image"):
        writer(root).plan(entries(root, tmp_path, [], "one"))
    assert not list((tmp_path / "host").iterdir())


def test_files_of_an_image_without_end_cost_nothing(tmp_path: Path) -> None:
    """An image comes from elsewhere, and a sparse file of a tebibyte takes no room in it. Here they have 256 MiB each,
    so that a reader without a bound fails and ends no test run."""
    root = made_up_root(tmp_path / "root")
    for name in ("etc/hostname", "etc/group", "etc/os-release", "lib/aarch64-linux-gnu/libc.so.6"):
        with (root / name).open("ab") as file:
            file.truncate(256 << 20)
    tracemalloc.start()
    try:
        assert "Made-up" in inspect_root(root).text() and host_name(root) and group_id(root, "edge-agent") is None
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "record",
    [
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"files": []}',
        b'{"files": {}, "folders": 5}',
        b'{"files": {}, "folders": [5]}',
        b'{"files": {"../host": "x"}}',
        b'{"files": {"/etc/passwd": "x"}}',
        b'{"files": {"etc/..": ""}}',
        b'{"files": {}, "folders": ["etc/../.."]}',
    ],
)
def test_a_record_that_provision_did_not_write_is_a_sentence(tmp_path: Path, record: bytes) -> None:
    root = made_up_root(tmp_path / "root")
    (root / RECORD).parent.mkdir(parents=True, exist_ok=True)
    (root / RECORD).write_bytes(record)
    before = snapshot(root)
    with pytest.raises(EdgeError, match=r"is no record of provision|cannot be read"):
        writer(root).remove()
    with pytest.raises(EdgeError, match=r"is no record of provision|cannot be read"):
        writer(root).plan(entries(root, tmp_path, [], "one"))
    assert snapshot(root) == before


def test_an_overlay_is_one_boards_own_files_owned_by_root(tmp_path: Path) -> None:
    device = Device("gh-1", "", {}, {"mqtt-password": b"one\n", "mqtt-key": b"k"})
    data = image_plan.overlay(image_plan.own_entries("# s\n", device))
    assert data == image_plan.overlay(image_plan.own_entries("# s\n", device))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {one.name: (one.mode, one.uid, one.gid) for one in tar}
    assert found == {"etc/edge-agent": (0o750, 0, 0), "etc/edge-agent/credentials": (0o700, 0, 0),
                     "etc/edge-agent/edge-agent.toml": (0o644, 0, 0),
                     "etc/edge-agent/credentials/mqtt-key": (0o600, 0, 0),
                     "etc/edge-agent/credentials/mqtt-password": (0o600, 0, 0)}  # fmt: skip


def test_the_tar_of_a_board_is_closed_to_others_whoever_made_it_before(tmp_path: Path) -> None:
    board = provision_commands.BoardFiles("gh-1", Settings(), image_plan.own_entries("# s\n", None))
    job = SimpleNamespace(own=[board])
    provision_commands._write_overlays(job, tmp_path)  # type: ignore[arg-type]
    (tmp_path / "gh-1.tar").chmod(0o644)
    provision_commands._write_overlays(job, tmp_path)  # type: ignore[arg-type]
    assert stat.S_IMODE((tmp_path / "gh-1.tar").stat().st_mode) == 0o600


def test_a_seed_of_cloud_init_holds_the_same_files_and_is_taken_back(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    root, boot = made_up_root(tmp_path / "root"), tmp_path / "boot"
    boot.mkdir()
    (boot / "user-data").write_text("#cloud-config\n# a template\n")
    (boot / "network-config").write_text("version: 2\nwifis: {}\n")
    before = snapshot(boot)
    wanted = entries(root, tmp_path, [], "one")
    assert cloud_seed.write_seed(boot, wanted, dry=True)[0] == "write   user-data" and snapshot(boot) == before
    cloud_seed.write_seed(boot, wanted, dry=False)
    assert [line.split()[:2] for line in cloud_seed.write_seed(boot, wanted, dry=False)] == [
        ["same", name] for name in ("user-data", "meta-data", "network-config", "edge-agent/image.tar,")
    ]
    commands = yaml.safe_load((boot / "user-data").read_text())["runcmd"]
    assert commands[0] == ["tar", "-C", "/", "-xpf", "/boot/firmware/edge-agent/image.tar"]
    assert yaml.safe_load((boot / "meta-data").read_text())["instance-id"].startswith("edge-")
    assert "wifis" in (boot / "network-config").read_text(), "somebody's network stays"
    with tarfile.open(boot / cloud_seed.PAYLOAD) as tar:
        found = {one.name: (one.mode, one.uid, one.linkname) for one in tar}
    assert found == {one.name: (one.mode, 0, one.link or "") for one in wanted}
    cloud_seed.remove_seed(boot)
    assert snapshot(boot) == before
    (boot / "user-data").write_text("#cloud-config\nhostname: mine\n")
    with pytest.raises(EdgeError, match="user-data: has settings of somebody else"):
        cloud_seed.write_seed(boot, wanted, dry=False)
    assert not (boot / cloud_seed.PAYLOAD).exists()
    with pytest.raises(EdgeError, match="holds no seed"):
        cloud_seed.remove_seed(boot)


def test_taking_a_seed_back_can_be_tried_without_rights_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(provision_commands.os, "geteuid", lambda: 1000)
    root, boot = made_up_root(tmp_path / "root"), tmp_path / "boot"
    boot.mkdir()
    cloud_seed.write_seed(boot, entries(root, tmp_path, [], "one"), dry=False)
    before = snapshot(boot)
    assert main(["provision", str(root), "--seed", str(boot), "--remove", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][-1] == "remove  edge-agent/image.tar"
    assert snapshot(boot) == before


@pytest.mark.parametrize("left", ["image.tar", "image.new"])
def test_a_seed_that_was_cut_off_is_taken_back_with_its_secrets(tmp_path: Path, left: str) -> None:
    (tmp_path / "edge-agent").mkdir()
    (tmp_path / "edge-agent" / left).write_bytes(b"a password")
    assert cloud_seed.remove_seed(tmp_path) == [f"remove  edge-agent/{left}"]
    assert not list(tmp_path.iterdir())


def test_an_image_of_another_architecture_is_booted_with_an_emulator_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = inspect_root(made_up_root(tmp_path / "root"))
    monkeypatch.setattr(first_boot.shutil, "which", lambda name: None if name == "mosquitto" else f"/usr/bin/{name}")
    monkeypatch.setattr(first_boot.os, "geteuid", lambda: 0)
    with pytest.raises(UsageError, match="--boot needs mosquitto"):
        first_boot.check_can_boot(target)
    monkeypatch.setattr(first_boot.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(first_boot.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(first_boot, "_BINFMT", tmp_path)
    for registered in (None, "disabled\nflags: POCF\n", "enabled\nflags: PO\n"):
        if registered is not None:
            (tmp_path / "qemu-aarch64").write_text(registered)
        with pytest.raises(UsageError, match=r"of aarch64, this host of x86_64, .* \(apt install qemu-user-static"):
            first_boot.check_can_boot(target)
    (tmp_path / "qemu-aarch64").write_text("enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: POF\n")
    with pytest.raises(EdgeError, match="it has no systemd"):
        first_boot.check_can_boot(target)
    (tmp_path / "qemu-aarch64").unlink()
    monkeypatch.setattr(first_boot.platform, "machine", lambda: "aarch64")
    with pytest.raises(EdgeError, match="it has no systemd"):
        first_boot.check_can_boot(target)
    monkeypatch.setattr(first_boot.os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="only root"):
        first_boot.check_can_boot(target)


def test_an_emulated_boot_leaves_out_what_qemu_cannot_do_and_says_so(tmp_path: Path) -> None:
    secret = tmp_path / image_plan.CREDENTIALS / "mqtt-password"
    secret.parent.mkdir(parents=True)
    secret.write_text("first\n")
    (note,) = first_boot._prepare_emulation(tmp_path)
    assert "emulated" in note and "credentials" in note
    daemon, factory = (
        (tmp_path / f"etc/systemd/system/{unit}.d/zz-emulated.conf").read_text().splitlines()
        for unit in (service.UNIT, service.FACTORY_UNIT)
    )
    assert "LoadCredential=" in daemon and "LoadCredential=" not in factory
    for lines in (daemon, factory):
        (bind,) = (line.removeprefix("BindReadOnlyPaths=") for line in lines if line.startswith("BindReadOnlyPaths="))
        source, _, over = bind.partition(":")
        assert over == "/proc/cpuinfo" and "0xd0b" in (tmp_path / source.lstrip("/")).read_text()
    (named,) = (line.rpartition("=")[2] for line in daemon if "PASSWORD_FILE" in line)
    assert (tmp_path / named.lstrip("/")).read_text() == "first\n"


def test_the_first_boots_unit_has_the_services_sandbox() -> None:
    """Line by line, without the lines about starting, ending and credentials, which it does not need."""
    own = ("Type", "NotifyAccess", "ExecStart", "ExecReload", "WatchdogSec", "Restart", "Timeout", "KillMode",
           "RuntimeDirectory", "LoadCredential", "SetCredential")  # fmt: skip
    bodies = [
        [line for line in service.read_unit_file(name).partition("[Service]")[2].partition("[Install]")[0].splitlines()
         if line and not line.startswith(("#", *own))]
        for name in (service.UNIT, service.FACTORY_UNIT)
    ]  # fmt: skip
    assert bodies[0] == bodies[1] and "ProtectSystem=strict" in bodies[0]
    factory = service.read_unit_file(service.FACTORY_UNIT)
    assert factory.count(f"/{image_plan.FACTORY}") == 2


def test_only_root_may_fill_a_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(provision_commands.os, "geteuid", lambda: 1000)
    root = made_up_root(tmp_path / "root")
    before = snapshot(root)
    assert main(["provision", str(root)]) == 2
    assert "sudo" in capsys.readouterr().err
    assert snapshot(root) == before
