"""The log of root files against the cases by which clients of TUF are tested: rotation, thresholds, keys, rollback.
docs/decisions/0242 lists the cases one by one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.base.errors import PackageError, SignatureError
from edge_agent.bundle import jsonio, sign
from edge_agent.bundle.sign import PrivateKey
from edge_agent.bundle.trust import ROOT_TYPE, Role, Roles, Root, Trust
from edge_agent.store.install import newest_trust

KEYS = [PrivateKey.generate() for _ in range(10)]
RELEASE = PrivateKey.generate()


@dataclass(frozen=True)
class Step:
    """A root file: which keys decide on the next one, how many of them, and who signed this one."""

    keys: Sequence[int]
    threshold: int
    signers: Sequence[int]

    def data(self, version: int) -> bytes:
        ids = tuple(KEYS[number].keyid for number in self.keys)
        keys = {KEYS[number].keyid: KEYS[number].public_hex for number in self.keys}
        roles = Roles(root=Role(keys=ids, threshold=self.threshold), release=Role(keys=(RELEASE.keyid,), threshold=1))
        root = Root(schema=1, version=version, keys={**keys, RELEASE.keyid: RELEASE.public_hex}, roles=roles)
        return sign.wrap(ROOT_TYPE, jsonio.encode(root), [KEYS[number] for number in self.signers])


def follow(*steps: Step) -> Trust:
    """The trust after these root files, the first of which the operator placed."""
    trust = Trust.from_operator(steps[0].data(1))
    for version, step in enumerate(steps[1:], 2):
        trust = trust.next(step.data(version), f"root/{version}.json")
    return trust


FIVE, OTHERS = range(5), range(5, 10)
ONE = Step([1], 1, [1])
THREE_OF_FIVE = Step(FIVE, 3, [0, 2, 4])
LESS_TWO = [0, 1, 3, 4, 5]
FOLLOWED = {
    "the one key is replaced": (ONE, Step([2], 1, [1, 2]), Step([2], 1, [2])),
    "signatures of strangers are passed over": (
        Step([1], 1, [3, 1, 4]), Step([2], 1, [3, 2, 1, 4]), Step([2], 1, [3, 2, 4]),
    ),
    "other three of the five sign each time": (
        THREE_OF_FIVE, Step(FIVE, 3, [0, 4, 1]), Step(FIVE, 3, [0, 1, 3]), Step(FIVE, 3, [0, 1, 3]),
    ),
    "one of five is replaced, three that stay sign": (THREE_OF_FIVE, Step(LESS_TWO, 3, [0, 4, 1])),
    "one of five is replaced, the old and the new one sign": (
        THREE_OF_FIVE, Step(LESS_TWO, 3, [0, 2, 4, 5]), Step(LESS_TWO, 3, [0, 4, 5]),
    ),
    "all five are replaced": (THREE_OF_FIVE, Step(OTHERS, 3, [0, 2, 4, 5, 6, 7]), Step(OTHERS, 3, [5, 6, 7])),
    "the threshold rises": (Step([1, 2, 3], 1, [1]), Step([1, 2, 3], 2, [1, 2])),
    "a key and the threshold are added": (ONE, Step([1, 2], 2, [1, 2])),
    "the threshold falls": (Step([1, 2, 3], 2, [1, 2]), Step([1, 2, 3], 1, [1, 2]), Step([1, 2, 3], 1, [1])),
}  # fmt: skip
REFUSED = {
    "the old key did not sign": (ONE, Step([2], 1, [2, 3, 4])),
    "the new key did not sign": (ONE, Step([2], 1, [1, 3, 4])),
    "two of the three new signatures": (THREE_OF_FIVE, Step(LESS_TWO, 3, [0, 2, 4])),
    "two of the three old signatures": (THREE_OF_FIVE, Step(LESS_TWO, 3, [0, 4, 5])),
    "the risen threshold is not reached": (Step([1, 2, 3], 1, [1]), Step([1, 2, 3], 2, [2])),
    "the old threshold is not reached when it falls": (Step([1, 2, 3], 2, [1, 2]), Step([1, 2, 3], 1, [1])),
}


@pytest.mark.parametrize("steps", FOLLOWED.values(), ids=FOLLOWED)
def test_a_chain_is_followed(steps: Sequence[Step]) -> None:
    assert follow(*steps).root.version == len(steps)


@pytest.mark.parametrize("steps", REFUSED.values(), ids=REFUSED)
def test_a_root_that_lacks_either_threshold_is_refused(steps: Sequence[Step]) -> None:
    assert follow(*steps[:-1]).root.version == len(steps) - 1
    with pytest.raises(SignatureError):
        follow(*steps)


# Keys of the role, its threshold, who signed: the cases of roles other than the root, which is the release here.
RELEASES = {
    "the one key signs": ([2], 1, [2], True),
    "signatures of strangers are passed over": ([1], 1, [3, 1, 4], True),
    "the new key did not sign": ([2], 1, [1, 3, 4], False),
    "a key that was taken out signs as the third": (LESS_TWO, 3, [0, 2, 4], False),
    "two of three": (LESS_TWO, 3, [0, 4], False),
    "three of five, first": (FIVE, 3, [0, 2, 4], True),
    "three of five, second": (FIVE, 3, [0, 4, 1], True),
    "three of five, third": (FIVE, 3, [0, 1, 3], True),
    "three of five, fourth": (FIVE, 3, [1, 2, 3], True),
    "three of five, fifth": (FIVE, 3, [2, 3, 4], True),
}


def with_release_keys(keys: Sequence[int], threshold: int) -> Trust:
    """A root of one key whose release role has these."""
    every = {KEYS[number].keyid: KEYS[number].public_hex for number in {9, *keys}}
    release = Role(keys=tuple(KEYS[number].keyid for number in keys), threshold=threshold)
    root = Root(
        schema=1, version=1, keys=every, roles=Roles(root=Role(keys=(KEYS[9].keyid,), threshold=1), release=release)
    )
    return Trust.from_operator(sign.wrap(ROOT_TYPE, jsonio.encode(root), [KEYS[9]]))


@pytest.mark.parametrize(("keys", "threshold", "signers", "taken"), RELEASES.values(), ids=RELEASES)
def test_a_release_of_rotated_keys(keys: Sequence[int], threshold: int, signers: Sequence[int], taken: bool) -> None:
    envelope, payload = sign.unwrap(sign.wrap("t", b"{}", [KEYS[number] for number in signers]), "t", "w")
    trust = with_release_keys(keys, threshold)
    if taken:
        assert len(trust.check_release(envelope, payload, "w")) == threshold
    else:
        with pytest.raises(SignatureError):
            trust.check_release(envelope, payload, "w")


@pytest.mark.parametrize("damage", ["another's", "empty"])
def test_a_wrong_signature_of_a_trusted_key_is_refused_beside_enough_right_ones(damage: str) -> None:
    """Stricter than the case, which takes it: whoever changed a file after it was signed is told so."""
    envelope, payload = sign.unwrap(sign.wrap("t", b"{}", [KEYS[0], KEYS[1]]), "t", "w")
    first, second = envelope.signatures
    wrong = msgspec.structs.replace(first, sig=second.sig if damage == "another's" else "")
    damaged = msgspec.structs.replace(envelope, signatures=(wrong, second))
    with pytest.raises(SignatureError, match="does not fit the contents"):
        with_release_keys([0, 1], 1).check_release(damaged, payload, "w")


def test_another_kind_of_document_is_no_root() -> None:
    with pytest.raises(PackageError, match=r"its payload is .* is needed"):
        Trust.from_operator(sign.wrap("application/other", b"{}", [KEYS[0]]))


numbers = st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True)


@settings(max_examples=150, deadline=None)
@given(old=numbers, new=numbers, signers=numbers, data=st.data())
def test_either_threshold_decides_and_nothing_else(
    old: list[int], new: list[int], signers: list[int], data: st.DataObject
) -> None:
    old_due, new_due = (data.draw(st.integers(1, len(keys))) for keys in (old, new))

    def reached(keys: Collection[int], due: int) -> bool:
        return len({*keys} & {*signers}) >= due

    steps = (Step(old, old_due, old), Step(new, new_due, signers))
    if reached(old, old_due) and reached(new, new_due):
        assert follow(*steps).root.version == 2
    else:
        with pytest.raises(SignatureError):
            follow(*steps)


def test_a_root_is_neither_repeated_nor_left_out() -> None:
    trust = follow(THREE_OF_FIVE, Step(FIVE, 3, [0, 1, 2]))
    for version in (1, 2, 4, 2**31):
        with pytest.raises(SignatureError, match="does not follow 2"):
            trust.next(Step(FIVE, 3, [0, 1, 2]).data(version), "root")


def test_one_key_under_several_ids_is_no_second_key() -> None:
    """An id is made of its key, so another id for it is refused before anything is counted."""
    key, twin = KEYS[0], "0" * 64
    roles = Roles(root=Role(keys=(key.keyid, twin), threshold=2), release=Role(keys=(key.keyid,), threshold=1))
    root = Root(schema=1, version=1, keys={key.keyid: key.public_hex, twin: key.public_hex}, roles=roles)
    with pytest.raises(PackageError, match="is not the key of that id"):
        Trust.from_operator(sign.wrap(ROOT_TYPE, jsonio.encode(root), [key, key]))


def test_keys_of_the_root_do_not_count_for_releases() -> None:
    envelope, payload = sign.unwrap(sign.wrap("t", b"{}", [KEYS[0], KEYS[2], KEYS[4]]), "t", "w")
    with pytest.raises(SignatureError, match="none of which root version 1 trusts"):
        follow(THREE_OF_FIVE).check_release(envelope, payload, "w")


def test_a_device_takes_up_the_chain_where_it_is_kept(tmp_path: Path) -> None:
    """After a restart; a link that was exchanged on the disk ends it with a sentence, and an older root is never
    returned to."""
    steps = (ONE, Step([2], 1, [1, 2]), Step([3], 1, [2, 3]))
    (tmp_path / "roots").mkdir()
    for version, step in enumerate(steps[1:], 2):
        (tmp_path / f"roots/{version}.json").write_bytes(step.data(version))
    trust = newest_trust(tmp_path, follow(ONE))
    assert trust is not None and trust.root.version == 3
    (tmp_path / "roots/2.json").write_bytes(Step([4], 1, [4]).data(2))
    with pytest.raises(SignatureError, match="none of which root version 1 trusts"):
        newest_trust(tmp_path, follow(ONE))
