"""Installing the service: into an image for real, on a live system with the commands recorded."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_agent.base.errors import EdgeError, UsageError
from edge_agent.config.load import load
from edge_agent.config.settings import Settings
from edge_agent.lifecycle import service
from edge_agent.lifecycle.running_code import code_stamp
from edge_agent.lifecycle.service import (
    IMAGE_PYTHON,
    CommandResult,
    ServiceTarget,
    check_interpreter,
    drop_in_names,
    install,
    parse_show,
    rendered_unit,
    run_command,
    status,
    uninstall,
)

UNIT = "etc/systemd/system/edge-agent.service"
WANTS = "etc/systemd/system/multi-user.target.wants/edge-agent.service"


class Recorder:
    """Stands in for the system's commands; answers what it is told to."""

    def __init__(self, **answers: CommandResult) -> None:
        self.commands: list[list[str]] = []
        self.answers = answers

    def __call__(self, command: Sequence[str]) -> CommandResult:
        self.commands.append(list(command))
        return self.answers.get(command[0].replace("-", "_"), CommandResult(0, ""))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    for name in ("etc", "usr/bin", "var/lib", "opt/edge-agent/bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "opt/edge-agent/bin/python").write_text("")
    return tmp_path


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_text(errors="replace")
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or (path.is_file() and path.name not in (".pwd.lock", "shadow", "gshadow"))
    }


def test_an_image_gets_all_it_needs_to_boot(image: Path) -> None:
    recorder = Recorder()
    lines = install(ServiceTarget(image, IMAGE_PYTHON, recorder))
    assert [command[0] for command in recorder.commands] == ["systemd-sysusers"], "nothing of the host is touched"
    assert f"--root={image}" in recorder.commands[0]
    assert (image / UNIT).read_text() == rendered_unit(IMAGE_PYTHON)
    assert str((image / WANTS).readlink()) == "/etc/systemd/system/edge-agent.service"
    assert load(image / "etc/edge-agent/edge-agent.toml", {}) == Settings()
    assert (image / "etc/sysusers.d/edge-agent.conf").is_file()
    assert (image / "etc/tmpfiles.d/edge-agent.conf").is_file()
    assert any(line.startswith("enabled by ") for line in lines)
    assert not any("warning" in line for line in lines)


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is NOT INSTALLED")
def test_an_image_gets_its_user_for_real(image: Path) -> None:
    lines = install(ServiceTarget(image, IMAGE_PYTHON))
    assert "the user edge-agent is in the image" in lines
    assert "edge-agent:x:" in (image / "etc/passwd").read_text()


def test_done_twice_nothing_changes(image: Path) -> None:
    target = ServiceTarget(image, IMAGE_PYTHON, Recorder())
    install(target, ["jetson"])
    (image / "etc/edge-agent/edge-agent.toml").write_text('[mqtt]\nhost = "mine"\n')
    before = tree(image)
    lines = install(target, ["jetson"])
    assert tree(image) == before
    assert sum(line.startswith("unchanged ") for line in lines) == 5
    assert f"kept {image / 'etc/edge-agent/edge-agent.toml'}" in lines
    assert install(target) and tree(image) == before, "without a choice the drop-ins stay"


def test_drop_ins_are_chosen_and_an_operators_own_stays(image: Path) -> None:
    target = ServiceTarget(image, IMAGE_PYTHON, Recorder())
    beside = image / "etc/systemd/system/edge-agent.service.d"
    install(target, ["jetson", "local-broker"])
    (beside / "override.conf").write_text("[Service]\nNice=3\n")
    assert sorted(path.name for path in beside.iterdir()) == ["jetson.conf", "local-broker.conf", "override.conf"]
    install(target, ["cpu-strict"])
    assert sorted(path.name for path in beside.iterdir()) == ["cpu-strict.conf", "override.conf"]
    uninstall(target)
    assert [path.name for path in beside.iterdir()] == ["override.conf"]


def test_uninstall_keeps_settings_and_state_unless_purged(image: Path) -> None:
    target = ServiceTarget(image, IMAGE_PYTHON, Recorder())
    before = tree(image)
    install(target)
    (image / "var/lib/edge-agent/blobs").mkdir(parents=True)
    lines = uninstall(target)
    assert not (image / UNIT).exists() and not (image / WANTS).is_symlink()
    assert (image / "etc/edge-agent/edge-agent.toml").exists() and (image / "var/lib/edge-agent/blobs").exists()
    assert sum("--purge removes it" in line for line in lines) == 2
    uninstall(target, purge=True)
    assert tree(image) == before
    assert uninstall(target, purge=True) == ["nothing was installed"]


def test_state_that_is_a_link_is_never_purged(image: Path) -> None:
    elsewhere = image / "data"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    (image / "var/lib/edge-agent").symlink_to(elsewhere)
    lines = uninstall(ServiceTarget(image, IMAGE_PYTHON, Recorder()), purge=True)
    assert (elsewhere / "precious").exists()
    assert f"kept {image / 'var/lib/edge-agent'}; it is a link" in lines


def test_a_link_out_of_the_image_is_refused(image: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    host = tmp_path_factory.mktemp("host")
    (image / "etc/systemd").symlink_to(host)
    with pytest.raises(EdgeError, match="a link leads out of the image"):
        install(ServiceTarget(image, IMAGE_PYTHON, Recorder()))
    assert list(host.iterdir()) == []


def test_a_host_without_sysusers_leaves_it_to_the_first_boot(image: Path) -> None:
    recorder = Recorder(systemd_sysusers=CommandResult(127, "systemd-sysusers is not installed"))
    lines = install(ServiceTarget(image, "/opt/missing/bin/python", recorder))
    assert "the user edge-agent will be made at the first boot (not here: systemd-sysusers is not installed)" in lines
    assert any(line.startswith("warning: the image has no /opt/missing/bin/python") for line in lines)


def test_what_is_refused_before_anything_is_written(image: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown drop-in 'jetsn' \(known: clock, cpu-strict, jetson"):
        install(ServiceTarget(image, IMAGE_PYTHON, Recorder()), ["jetsn"])
    with pytest.raises(UsageError, match="is no root file system"):
        install(ServiceTarget(image / "usr", IMAGE_PYTHON, Recorder()))
    for python in ("python3", "/opt/with space/python", "/opt/a\nUser=root"):
        with pytest.raises(UsageError, match="is not absolute or has characters"):
            install(ServiceTarget(image, python, Recorder()))
    assert not (image / "etc/systemd").exists()
    assert "cpu-strict" in drop_in_names()


@pytest.mark.parametrize("python", ["/home/pi/venv/bin/python", "/root/venv/bin/python", "/tmp/venv/bin/python"])
def test_an_interpreter_that_the_service_cannot_see_is_refused(python: str) -> None:
    with pytest.raises(UsageError, match=r"which the service cannot see \(install into /opt: python3 -m venv"):
        check_interpreter(python)


def live(monkeypatch: pytest.MonkeyPatch, image: Path, recorder: Recorder) -> ServiceTarget:
    """A target that passes for the running system although its files lie in a folder."""
    monkeypatch.setattr(ServiceTarget, "live", property(lambda target: True))
    monkeypatch.setattr(service, "_check", lambda target, drop_ins: None)
    return ServiceTarget(image, IMAGE_PYTHON, recorder)


def test_a_live_system_is_told_in_order(monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    recorder = Recorder()
    target = live(monkeypatch, image, recorder)
    install(target)
    install(target)
    first = [
        ["systemd-sysusers", str(image / "etc/sysusers.d/edge-agent.conf")],
        ["systemd-tmpfiles", "--create", str(image / "etc/tmpfiles.d/edge-agent.conf")],
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", "edge-agent.service"],
    ]
    assert recorder.commands == [
        *first, ["systemctl", "restart", "edge-agent.service"],
        *first, ["systemctl", "start", "edge-agent.service"],
    ]  # fmt: skip
    recorder.commands.clear()
    uninstall(target)
    assert recorder.commands == [
        ["systemctl", "disable", "--now", "edge-agent.service"],
        ["systemctl", "daemon-reload"],
    ]


def test_a_command_that_fails_is_named_with_its_output(monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    target = live(monkeypatch, image, Recorder(systemctl=CommandResult(1, "Unit is masked.")))
    with pytest.raises(EdgeError, match=r"`systemctl daemon-reload` ended with 1: Unit is masked\. \(`journalctl"):
        install(target)


def test_the_status_of_an_image(image: Path) -> None:
    target = ServiceTarget(image, IMAGE_PYTHON, Recorder())
    before = status(target)
    assert (before.installed, before.healthy) == (False, False)
    assert before.lines() == ["not installed; `edge-agent service install` does that"]
    install(target)
    after = status(target)
    assert (after.installed, after.enabled, after.current, after.healthy) == (True, True, True, True)
    (image / UNIT).write_text("[Service]\n")
    assert not status(target).current
    assert "the unit is of another version" in status(target).lines()[1]


SHOWN = """\
ActiveState=active
SubState=running
Result=success
UnitFileState=enabled
MainPID=812
NRestarts=2
StatusText=2 models resident, broker connected
MemoryCurrent=18446744073709551615
ActiveEnterTimestamp=Sat 2025-11-22 03:00:00 UTC
DropInPaths=/etc/systemd/system/edge-agent.service.d/jetson.conf /etc/systemd/system/edge-agent.service.d/override.conf
"""


def test_the_status_of_a_live_system(monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    target = live(monkeypatch, image, Recorder(systemctl=CommandResult(0, SHOWN)))
    install(target)
    found = status(target)
    assert (found.state, found.pid, found.restarts, found.memory_bytes) == ("active (running)", 812, 2, None)
    assert found.says == "2 models resident, broker connected"
    assert found.drop_ins == ("jetson", "override")
    assert found.healthy
    failed = SHOWN.replace("ActiveState=active", "ActiveState=failed").replace("Result=success", "Result=watchdog")
    target = live(monkeypatch, image, Recorder(systemctl=CommandResult(0, failed)))
    found = status(target)
    assert (found.state, found.healthy) == ("failed (running), last result: watchdog", False)
    target = live(monkeypatch, image, Recorder(systemctl=CommandResult(1, "no bus")))
    assert status(target).state is None


def test_show_is_parsed_line_by_line() -> None:
    assert parse_show("A=1\nnothing\nB=x=y\n") == {"A": "1", "B": "x=y"}


def test_the_runner_never_raises_for_what_a_command_does() -> None:
    assert run_command(["sh", "-c", "echo out; echo err >&2; exit 3"]) == CommandResult(3, "out\nerr")
    assert run_command(["no-such-command-here"]) == CommandResult(127, "no-such-command-here is not installed")
    assert run_command(["/"]).code == 126


def test_a_live_install_needs_root_and_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(UsageError, match=r"installed by root \(run it with sudo"):
        install(ServiceTarget(Path("/"), IMAGE_PYTHON, recorder))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    if not Path("/run/systemd/system").is_dir():
        with pytest.raises(UsageError, match="was not started by systemd"):
            install(ServiceTarget(Path("/"), IMAGE_PYTHON, recorder))
    assert recorder.commands == []


def test_an_image_s_unit_is_current_for_the_board_s_own_command(image: Path) -> None:
    """The image names `python`, the command on the board is run by `python3`: one interpreter, two names."""
    (image / "opt/edge-agent/bin/python3").symlink_to("python")
    (image / "opt/edge-agent/bin/other").write_text("")
    install(ServiceTarget(image, IMAGE_PYTHON, Recorder()))
    board = ServiceTarget(image, f"{IMAGE_PYTHON}3", Recorder())
    assert status(board).current
    assert f"unchanged {image / UNIT}" in install(board)
    assert not status(ServiceTarget(image, "/opt/edge-agent/bin/other", Recorder())).current


@pytest.mark.parametrize(
    ("running", "verb"),
    [(None, "start"), ("", "restart"), ("0.0.9+old", "restart"), (code_stamp(), "start")],
    ids=["no daemon", "one that does not say", "another version", "this version"],
)
def test_an_upgrade_restarts_the_daemon_though_the_unit_is_the_same(
    image: Path, running: str | None, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ServiceTarget, "live", property(lambda _self: True))
    monkeypatch.setattr(service, "_check", lambda *_: None)
    recorder = Recorder()
    target = ServiceTarget(image, IMAGE_PYTHON, recorder, lambda _folder: running)
    install(target)
    recorder.commands.clear()
    install(target)
    assert recorder.commands[-1] == ["systemctl", verb, "edge-agent.service"]


def test_status_says_that_the_daemon_runs_older_code(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(ServiceTarget(image, IMAGE_PYTHON, Recorder()))
    monkeypatch.setattr(ServiceTarget, "live", property(lambda _self: True))
    shown = CommandResult(0, "ActiveState=active\nUnitFileState=enabled")
    found = status(ServiceTarget(image, IMAGE_PYTHON, Recorder(systemctl=shown), lambda _folder: "0.0.9+old"))
    assert found.stale
    assert any("the daemon runs 0.0.9+old" in line and "systemctl restart" in line for line in found.lines())
    now = status(ServiceTarget(image, IMAGE_PYTHON, Recorder(systemctl=shown), lambda _folder: code_stamp()))
    assert not now.stale


def test_the_stamp_of_the_code_tells_two_wheels_of_one_version_apart(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one")
    first = code_stamp(tmp_path)
    assert code_stamp(tmp_path) == first
    (tmp_path / "a.py").write_text("other")
    assert code_stamp(tmp_path) != first


PACKAGED = "usr/lib/systemd/system/edge-agent.service"
PACKAGED_PYTHON = "/usr/lib/edge-agent/bin/python"


def with_package(image: Path) -> Path:
    """The image with the files of the Debian package in it that the service is made of."""
    (image / "usr/lib/edge-agent/bin").mkdir(parents=True)
    (image / PACKAGED_PYTHON[1:]).write_text("")
    files = {PACKAGED: rendered_unit(PACKAGED_PYTHON), "etc/edge-agent/edge-agent.toml": "",
             "usr/lib/sysusers.d/edge-agent.conf": "", "usr/lib/tmpfiles.d/edge-agent.conf": ""}  # fmt: skip
    for name, text in files.items():
        (image / name).parent.mkdir(parents=True, exist_ok=True)
        (image / name).write_text(text)
    return image


def test_the_debian_packages_unit_is_the_service(image: Path) -> None:
    target = ServiceTarget(with_package(image), PACKAGED_PYTHON, Recorder())
    lines = install(target, ["jetson"])
    assert f"kept {image / PACKAGED}, which is the Debian package's" in lines
    assert not (image / UNIT).exists() and not (image / "etc/sysusers.d").exists()
    assert str((image / WANTS).readlink()) == f"/{PACKAGED}"
    assert (image / "etc/systemd/system/edge-agent.service.d/jetson.conf").is_file()
    found = status(target)
    assert (found.installed, found.enabled, found.current) == (True, True, True)
    assert uninstall(target)[-1].endswith("`apt remove edge-agent` removes it")
    assert (image / PACKAGED).is_file() and not (image / WANTS).is_symlink()


def test_the_debian_package_takes_over_from_an_earlier_installation(image: Path) -> None:
    install(ServiceTarget(image, IMAGE_PYTHON, Recorder()))
    target = ServiceTarget(with_package(image), PACKAGED_PYTHON, Recorder())
    assert not status(target).current, "the earlier unit comes first and starts another interpreter"
    install(target)
    assert not (image / UNIT).exists() and str((image / WANTS).readlink()) == f"/{PACKAGED}"
    assert status(target).current
    other = ServiceTarget(image, IMAGE_PYTHON, Recorder())
    install(other)
    assert (image / UNIT).read_text() == rendered_unit(IMAGE_PYTHON), "an installation beside the package is its own"


def test_a_live_system_with_the_debian_package_is_told_the_packages_files(
    monkeypatch: pytest.MonkeyPatch, image: Path
) -> None:
    recorder = Recorder()
    live(monkeypatch, with_package(image), recorder)
    install(ServiceTarget(image, PACKAGED_PYTHON, recorder))
    assert recorder.commands[:2] == [
        ["systemd-sysusers", str(image / "usr/lib/sysusers.d/edge-agent.conf")],
        ["systemd-tmpfiles", "--create", str(image / "usr/lib/tmpfiles.d/edge-agent.conf")],
    ]
    recorder.commands.clear()
    uninstall(ServiceTarget(image, PACKAGED_PYTHON, recorder))
    assert recorder.commands[0] == ["systemctl", "disable", "--now", "edge-agent.service"]
