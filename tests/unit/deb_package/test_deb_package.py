"""The Debian package: which files are in it, what it depends on, what its versions order as, and the package itself."""

from __future__ import annotations

import _ssl
import itertools
import shutil
import subprocess
from pathlib import Path

import msgspec._core
import pytest

from deb_package import __main__ as program
from deb_package import contents
from deb_package.contents import SUITES
from edge_agent.base.errors import EdgeError, UsageError
from edge_agent.cli import verbs
from edge_agent.lifecycle.service import rendered_unit
from tests.support.made_up_root import made_up_wheel

BOOKWORM = SUITES["bookworm"]


def staged(tmp_path: Path) -> Path:
    wheels = [made_up_wheel(tmp_path / "wheels", name) for name in ("edge-agent", "other")]
    payload = tmp_path / "payload"
    contents.stage(payload, wheels, BOOKWORM.target("arm64"))
    return payload


def test_the_files_are_those_of_a_service_with_its_own_environment(tmp_path: Path) -> None:
    payload = staged(tmp_path)
    venv = payload / "usr/lib/edge-agent"
    assert sorted(path.name for path in (venv / "bin").iterdir()) == ["edge-agent", "python", "python3"]
    assert str((venv / "bin/python").readlink()) == "/usr/bin/python3.11"
    assert (venv / "bin/edge-agent").read_text().startswith("#!/usr/lib/edge-agent/bin/python\n")
    assert (payload / "usr/bin/edge-agent").resolve() == (venv / "bin/edge-agent").resolve()
    unit = (payload / "lib/systemd/system/edge-agent.service").read_text()
    assert unit == rendered_unit("/usr/lib/edge-agent/bin/python"), "service status compares it with that"
    assert not (payload / "var").exists(), "the folders belong to the service's user, whom tmpfiles.d gives them"


def test_modules_that_a_wheel_marks_as_programs_are_none(tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    contents.stage(payload, [made_up_wheel(tmp_path / "wheels", "edge-agent")], BOOKWORM.target("amd64"))
    module = next(payload.rglob("edge_agent/__init__.py"))
    module.chmod(0o755)
    contents._tidy(payload / contents.VENV)
    assert module.stat().st_mode & 0o777 == 0o644
    assert (payload / contents.VENV / "bin/edge-agent").stat().st_mode & 0o111


def test_libraries_of_the_system_are_read_from_the_wheels_files(tmp_path: Path) -> None:
    payload = staged(tmp_path)
    assert contents.depends(payload, BOOKWORM) == ["python3 (>= 3.11~)", "python3 (<< 3.12~)", "libc6 (>= 2.17)"]
    shutil.copy(str(msgspec._core.__file__), payload / "usr/lib/edge-agent/_core.so")
    assert any(one.startswith("libc6 (>= 2.") for one in contents.depends(payload, BOOKWORM))
    old = contents.Suite("an old system", "old", (3, 11), (2, 3))
    with pytest.raises(EdgeError, match=r"the wheels need glibc 2\.\d+, an old system has 2\.3"):
        contents.depends(payload, old)


@pytest.mark.skipif(not getattr(_ssl, "__file__", None), reason="this Python has no library beside it: NOT CHECKED")
def test_a_library_that_nobody_brings_is_named(tmp_path: Path) -> None:
    payload = staged(tmp_path)
    shutil.copy(_ssl.__file__, payload / "usr/lib/edge-agent/_ssl.so")
    with pytest.raises(EdgeError, match=r"a wheel needs lib(ssl|crypto)\.so\.\d+, which is in none of them"):
        contents.depends(payload, BOOKWORM)


def test_versions_rise_with_commits_and_with_the_system() -> None:
    bookworm, trixie = BOOKWORM, SUITES["trixie"]
    order = [
        contents.debian_version("0.1.0rc1", 900, bookworm), contents.debian_version("0.1.0", 9, bookworm),
        contents.debian_version("0.1.0", 10, bookworm), contents.debian_version("0.1.0", 10, trixie),
        contents.debian_version("0.1.1.dev2", 1, bookworm), contents.debian_version("0.1.1", 1, bookworm),
    ]  # fmt: skip
    assert order[0] == "0.1.0~rc1-900+deb12"
    if shutil.which("dpkg"):
        for earlier, follower in itertools.pairwise(order):
            ran = subprocess.run(["dpkg", "--compare-versions", earlier, "lt", follower], check=False)
            assert ran.returncode == 0, (earlier, follower)
    with pytest.raises(UsageError, match="makes no version"):
        contents.debian_version("next one", 1, bookworm)


def test_the_manual_page_has_every_verb() -> None:
    page = contents.manual_page("1")
    for verb in ("run", "infer", "doctor", "check-config"):
        assert f".B {verb.replace('-', chr(92) + '-')}\n" in page, verb
    assert page.count(".TP\n.B ") == len(verbs.parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr,arg-type]


def test_whose_the_bundled_wheels_are_is_said(tmp_path: Path) -> None:
    listed = contents.bundled([made_up_wheel(tmp_path, "edge-agent"), made_up_wheel(tmp_path, "other", version="2.0")])
    text = contents.copyright_text(listed, (3, 11))
    assert "  other 2.0: see its files" in text and "  edge-agent" not in text


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(program.shutil, "which", lambda name: None if name == "dh" else name)
    with pytest.raises(UsageError, match=r"tools of Debian are missing \(apt install debhelper\)"):
        program.build_all(program._parser().parse_args([]))


@pytest.mark.skipif(
    any(shutil.which(name) is None for name in program.NEEDED), reason="NO debhelper: THE PACKAGE WAS NOT BUILT"
)
@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_the_package_is_built_here_for_either_architecture(tmp_path: Path, arch: str) -> None:
    wheels = [made_up_wheel(tmp_path / "wheels", name) for name in ("edge-agent", "other")]
    build = program.Build(arch, "bookworm", "1.0-7+deb12", 1_764_000_000, "A Builder <a@example.org>")
    path = program.make(build, BOOKWORM, wheels, tmp_path / "out")
    if arch == "arm64":
        again = program.make(build, BOOKWORM, wheels, tmp_path / "again")
        assert path.read_bytes() == again.read_bytes(), "two builds of a commit are the same bytes"

    def field(name: str) -> str:
        return subprocess.run(["dpkg-deb", "-f", str(path), name], capture_output=True, text=True, check=True).stdout

    assert (field("Package"), field("Version"), field("Architecture")) == ("edge-agent\n", "1.0-7+deb12\n", f"{arch}\n")
    assert "python3 (>= 3.11~), python3 (<< 3.12~)" in field("Depends")
    subprocess.run(["dpkg-deb", "-R", str(path), str(tmp_path / "tree")], check=True)
    tree = tmp_path / "tree"
    assert (tree / "DEBIAN/conffiles").read_text() == "/etc/edge-agent/edge-agent.toml\n"
    assert (tree / "usr/lib/systemd/system/edge-agent.service").is_file() and not (tree / "lib").exists()
    steps = (tree / "DEBIAN/postinst").read_text()
    wanted = [
        "py3compile",
        "systemd-sysusers",
        "systemd-tmpfiles",
        "deb-systemd-invoke $_dh_action 'edge-agent.service'",
    ]
    places = [steps.index(one) for one in wanted]
    assert places == sorted(places), "the user before its folders, and both before the start"
    assert "deb-systemd-invoke $_dh_action 'edge-agent-factory.service'" not in steps
    for name in ("preinst", "postinst", "prerm", "postrm"):
        subprocess.run(["sh", "-n", str(tree / "DEBIAN" / name)], check=True)
