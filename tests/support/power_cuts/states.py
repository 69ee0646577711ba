"""Which states a power cut may leave, by the rules of ALICE (Pillai et al., OSDI 2014) for the weakest file system.

Not synced means: it may be there or not, whatever came before or after it. Of a write the first half may be there, or
zeros of its length. A rename is there whole or not at all. `fsync` of a file makes its bytes and length durable, but
not its name; names become durable by `fsync` of their folder.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tests.support.power_cuts.recorded import Cut, Make, Operation, Remove, Rename, Said, Sync, Write

FOLDER = -1
NEVER = 1 << 30


@dataclass(frozen=True, slots=True)
class Change:
    """One atomic piece: names set or cleared (inode None) in folders, or bytes of an inode. `durable`: the index of the
    operation from which on it is there for sure."""

    at: int
    names: tuple[tuple[int, str, int | None], ...] = ()
    inode: int = FOLDER
    offset: int = 0
    data: bytes | None = None
    durable: int = NEVER


@dataclass(slots=True)
class History:
    """The changes of a run, over what was there before it."""

    changes: list[Change]
    said: list[tuple[int, str]]
    length: int
    folders: set[int]
    before: dict[int, dict[str, int]]
    bytes_before: dict[int, bytes]
    root: int = 0


@dataclass(slots=True)
class _Tree:
    """Names and inodes as the run sees them."""

    names: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})
    content: dict[int, bytes] = field(default_factory=dict)
    counter: int = 0

    def new(self, folder: bool) -> int:
        self.counter += 1
        if folder:
            self.names[self.counter] = {}
        else:
            self.content[self.counter] = b""
        return self.counter


def history(operations: Sequence[Operation], top: Path, before: Path | None) -> History:
    """Which changes the operations below `top` make, and when each becomes durable. `before`: a copy of `top` from
    before the run, None where it was empty. `top` is there for sure; its parent is inode 0."""
    tree = _Tree()
    tree.names[0][top.name] = _take_over(tree, before)
    names_before = {folder: dict(entries) for folder, entries in tree.names.items()}
    bytes_before = dict(tree.content)
    changes: list[Change] = []
    said: list[tuple[int, str]] = []

    def place(path: str) -> tuple[int, str]:
        parts = PurePosixPath(path).relative_to(top.parent).parts
        folder = 0
        for part in parts[:-1]:
            folder = tree.names[folder][part]
        return folder, parts[-1]

    def inode(path: str) -> int:
        if Path(path) == top.parent:
            return 0
        folder, name = place(path)
        return tree.names[folder][name]

    for at, one in enumerate(operations):
        match one:
            case Make(path, is_folder):
                folder, name = place(path)
                tree.names[folder][name] = made = tree.new(is_folder)
                changes.append(Change(at, names=((folder, name, made),)))
            case Rename(source, target):
                folder, name = place(source)
                moved = tree.names[folder].pop(name)
                to, new = place(target)
                tree.names[to][new] = moved
                changes.append(Change(at, names=((folder, name, None), (to, new, moved))))
            case Remove(path):
                folder, name = place(path)
                del tree.names[folder][name]
                changes.append(Change(at, names=((folder, name, None),)))
            case Write(path, offset, data):
                changes.append(Change(at, inode=inode(path), offset=offset, data=data))
            case Cut(path, size):
                changes.append(Change(at, inode=inode(path), offset=size))
            case Sync(path):
                synced = inode(path)
                changes[:] = [_made_durable(change, synced, at) for change in changes]
            case Said(text):
                said.append((at, text))
    return History(changes, said, len(operations), set(tree.names), names_before, bytes_before)


def _take_over(tree: _Tree, folder: Path | None) -> int:
    made = tree.new(folder=True)
    for path in sorted(folder.iterdir()) if folder is not None else ():
        if path.is_dir():
            tree.names[made][path.name] = _take_over(tree, path)
        else:
            tree.names[made][path.name] = inode = tree.new(folder=False)
            tree.content[inode] = path.read_bytes()
    return made


def _made_durable(change: Change, inode: int, at: int) -> Change:
    touches = change.inode == inode or any(folder == inode for folder, _, _ in change.names)
    if change.durable < NEVER or not touches:
        return change
    return Change(change.at, change.names, change.inode, change.offset, change.data, at)


@dataclass(frozen=True, slots=True)
class State:
    """A tree that a cut after operation number `cut` may leave; `lost` are the changes that are not there."""

    cut: int
    lost: tuple[int, ...]
    torn: str
    files: tuple[tuple[str, bytes | None], ...]

    @property
    def key(self) -> bytes:
        running = hashlib.sha256()
        for path, data in self.files:
            running.update(f"{path}\0{-1 if data is None else len(data)}\0".encode())
            running.update(data or b"")
        return running.digest()

    def lay_out(self, top: Path) -> None:
        """Write the tree below `top`."""
        for path, data in self.files:
            place = top / path
            if data is None:
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.write_bytes(data)


def states(found: History, all_up_to: int = 8, samples: int = 40, seed: int = 0) -> Iterator[State]:
    """The states after every operation. Where at most `all_up_to` changes are not durable, every subset of them; else
    the prefixes, each one lost alone, each one there alone, and `samples` random subsets."""
    chance = random.Random(seed)
    for cut in range(found.length + 1):
        passed = [index for index, change in enumerate(found.changes) if change.at < cut]
        loose = [index for index in passed if found.changes[index].durable >= cut]
        for lost in _subsets(loose, all_up_to, samples, chance):
            there = [index for index in passed if index not in lost]
            yield _state(found, cut, there, lost, {})
            for index in there:
                if index in loose and found.changes[index].data:
                    for torn in ("half", "zeros"):
                        yield _state(found, cut, there, lost, {index: torn})


def _subsets(loose: list[int], all_up_to: int, samples: int, chance: random.Random) -> Iterator[frozenset[int]]:
    if len(loose) <= all_up_to:
        for count in range(len(loose) + 1):
            yield from map(frozenset, itertools.combinations(loose, count))
        return
    wanted = {frozenset(loose[count:]) for count in range(len(loose) + 1)}
    wanted |= {frozenset([one]) for one in loose} | {frozenset(loose) - {one} for one in loose}
    wanted |= {frozenset(one for one in loose if chance.random() < 0.5) for _ in range(samples)}
    yield from sorted(wanted, key=sorted)


def _state(found: History, cut: int, there: Sequence[int], lost: frozenset[int], torn: dict[int, str]) -> State:
    names = {folder: dict(entries) for folder, entries in found.before.items()}
    content = dict(found.bytes_before)
    for index in there:
        change = found.changes[index]
        for folder, name, inode in change.names:
            entries = names.setdefault(folder, {})
            if inode is None:
                entries.pop(name, None)
            else:
                entries[name] = inode
        if change.inode != FOLDER:
            content[change.inode] = _changed(content.get(change.inode, b""), change, torn.get(index, ""))
    return State(cut, tuple(sorted(lost)), " ".join(torn.values()), tuple(_walk(found, names, content, 0, "")))


def _changed(old: bytes, change: Change, torn: str) -> bytes:
    if change.data is None:
        return old[: change.offset].ljust(change.offset, b"\0")
    data = change.data
    if torn == "half":
        data = data[: len(data) // 2]
    elif torn == "zeros":
        data = b"\0" * len(data)
    padded = old.ljust(change.offset, b"\0")
    return padded[: change.offset] + data + padded[change.offset + len(data) :]


def _walk(
    found: History, names: dict[int, dict[str, int]], content: dict[int, bytes], folder: int, path: str
) -> Iterator[tuple[str, bytes | None]]:
    for name, inode in sorted(names.get(folder, {}).items()):
        here = f"{path}/{name}" if path else name
        if inode in found.folders:
            yield here, None
            yield from _walk(found, names, content, inode, here)
        else:
            yield here, content.get(inode, b"")
