"""Which package lies in the incoming folder: by what its statement says, once it is there whole."""

from __future__ import annotations

import tarfile
from pathlib import Path

from edge_agent.core.desired_state import FoundPackage
from edge_agent.store.inbox_packages import InboxPackages, package_digest
from tests.support.agents import echo_package


def names(packages: InboxPackages, wanted: set[str]) -> dict[str, str]:
    return {digest: one.name for digest, one in packages.find(wanted).items()}


def test_packages_are_found_by_digest_when_they_are_whole(tmp_path: Path) -> None:
    package = echo_package(tmp_path / "made")
    digest, data = package_digest(package), package.read_bytes()
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "noise.txt").write_text("hello")
    (inbox / ".hidden.tar").write_bytes(data)
    found = InboxPackages(inbox)
    arriving = inbox / "p.tar"
    for size in (0, 100, len(data) // 2, len(data) - 1):
        arriving.write_bytes(data[:size])
        assert found.find({digest}) == {}, size
    arriving.write_bytes(data)
    assert names(found, {digest, "sha256:" + "0" * 64}) == {digest: "p.tar"}
    assert found.find({"sha256:" + "0" * 64}) == {}
    arriving.unlink()
    assert found.find({digest}) == {}


def test_a_file_that_was_refused_is_found_again_once_it_has_changed(tmp_path: Path) -> None:
    package = echo_package(tmp_path / "made")
    digest, data = package_digest(package), package.read_bytes()
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "p.tar").write_bytes(data)
    found = InboxPackages(inbox)
    assert names(found, {digest}) == {digest: "p.tar"}
    found.refused(found.find({digest})[digest])
    found.refused(FoundPackage("gone.tar"))
    assert found.find({digest}) == {}
    (inbox / "new").write_bytes(data)
    (inbox / "new").replace(inbox / "p.tar")
    assert names(found, {digest}) == {digest: "p.tar"}


def test_a_file_that_was_exchanged_during_the_install_is_not_refused_for_the_one_before(tmp_path: Path) -> None:
    package = echo_package(tmp_path / "made")
    digest, data = package_digest(package), package.read_bytes()
    forged = data.replace(b"echo1[]echo1[]", b"echo1[]Xcho1[]", 1)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "p.tar").write_bytes(forged)
    packages = InboxPackages(inbox)
    tried = packages.find({digest})[digest]
    (inbox / "new").write_bytes(data)
    (inbox / "new").replace(inbox / "p.tar")
    packages.refused(tried)
    assert names(packages, {digest}) == {digest: "p.tar"}, "it lies there, whole, and would never be looked at again"


def test_a_folder_of_a_packages_form_is_read_again_when_a_file_in_it_changes(tmp_path: Path) -> None:
    package = echo_package(tmp_path / "made")
    digest, folder = package_digest(package), tmp_path / "inbox" / "p"
    with tarfile.open(package) as tar:
        tar.extractall(folder, filter="data")
    found = InboxPackages(tmp_path / "inbox")
    assert names(found, {digest}) == {digest: "p"}
    found.refused(found.find({digest})[digest])
    assert found.find({digest}) == {}
    blob = next((folder / "blobs" / "sha256").iterdir())
    blob.write_bytes(blob.read_bytes() + b"x")
    assert names(found, {digest}) == {digest: "p"}


def test_a_folder_that_is_not_there_holds_nothing_and_a_changed_file_is_read_again(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    found = InboxPackages(inbox)
    one, two = (echo_package(tmp_path / str(counter), counter=counter) for counter in (1, 2))
    wanted = {package_digest(one), package_digest(two)}
    assert found.find(wanted) == {}
    inbox.mkdir()
    (inbox / "p.tar").write_bytes(one.read_bytes())
    assert names(found, wanted) == {package_digest(one): "p.tar"}
    (inbox / "new").write_bytes(two.read_bytes())
    (inbox / "new").replace(inbox / "p.tar")
    assert names(found, wanted) == {package_digest(two): "p.tar"}
