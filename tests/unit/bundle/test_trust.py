from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from edge_agent.base.errors import PackageError, SignatureError
from edge_agent.bundle import jsonio, sign
from edge_agent.bundle.sign import PrivateKey
from edge_agent.bundle.trust import ROOT_TYPE, Role, Roles, Root, Trust

KEYS = [PrivateKey.generate() for _ in range(6)]


def root_file(
    version: int,
    root: Sequence[int],
    threshold: int,
    release: Sequence[int],
    signers: Sequence[int],
    release_due: int = 1,
    products: Mapping[int, tuple[str, ...]] | None = None,
) -> bytes:
    """A root file over KEYS by number."""
    keys = {KEYS[number].keyid: KEYS[number].public_hex for number in (*root, *release)}
    roles = Roles(
        root=Role(keys=tuple(KEYS[number].keyid for number in root), threshold=threshold),
        release=Role(keys=tuple(KEYS[number].keyid for number in release), threshold=release_due),
    )
    limited = {KEYS[number].keyid: names for number, names in (products or {}).items()}
    payload = jsonio.encode(Root(schema=1, version=version, keys=keys, roles=roles, products=limited))
    return sign.wrap(ROOT_TYPE, payload, [KEYS[number] for number in signers])


def first(threshold: int = 2) -> Trust:
    return Trust.from_operator(root_file(1, (0, 1, 2), threshold, (3,), (0, 1)))


def test_the_first_root_signs_itself() -> None:
    assert first().root.version == 1
    with pytest.raises(SignatureError, match="1 of 2 needed signatures"):
        Trust.from_operator(root_file(1, (0, 1, 2), 2, (3,), (0,)))


def test_succession_needs_both_thresholds() -> None:
    new = (2, 4, 5)
    assert first().next(root_file(2, new, 2, (3,), (0, 1, 4, 5)), "root/2.json").root.version == 2
    assert first().next(root_file(2, new, 2, (3,), (1, 2, 4)), "root/2.json").root.version == 2
    with pytest.raises(SignatureError, match="1 of 2"):
        first().next(root_file(2, new, 2, (3,), (0, 4, 5)), "root/2.json")
    with pytest.raises(SignatureError, match="1 of 2"):
        first().next(root_file(2, new, 2, (3,), (0, 1, 4)), "root/2.json")


@pytest.mark.parametrize("version", [1, 3, 7])
def test_versions_are_taken_in_turn(version: int) -> None:
    with pytest.raises(SignatureError, match="does not follow 1"):
        first().next(root_file(version, (0, 1), 1, (3,), (0, 1)), "root")


def test_a_key_signs_once_however_often_it_stands_there() -> None:
    data = jsonio.decode(root_file(1, (0, 1), 2, (3,), (0,)), sign.Envelope, "root")
    doubled = sign.Envelope(
        payload_type=data.payload_type, payload=data.payload, signatures=(*data.signatures, *data.signatures)
    )
    with pytest.raises(SignatureError, match="1 of 2"):
        Trust.from_operator(jsonio.encode(doubled))


def test_a_release_needs_its_threshold_of_release_keys() -> None:
    trust = Trust.from_operator(root_file(1, (0,), 1, (3, 4), (0,), release_due=2))
    for signers, enough in (((3, 4), True), ((3,), False), ((0, 1), False), ((0, 3), False)):
        envelope, payload = sign.unwrap(sign.wrap("t", b"{}", [KEYS[one] for one in signers]), "t", "w")
        if enough:
            assert len(trust.check_release(envelope, payload, "w")) == 2
        else:
            with pytest.raises(SignatureError):
                trust.check_release(envelope, payload, "w")


def test_a_revoked_release_key_is_refused_after_rotation() -> None:
    rotated = first().next(root_file(2, (0, 1, 2), 2, (5,), (0, 1)), "root/2.json")
    envelope, payload = sign.unwrap(sign.wrap("t", b"{}", [KEYS[3]]), "t", "w")
    assert first().check_release(envelope, payload, "w")
    with pytest.raises(SignatureError, match="none of which root version 2 trusts"):
        rotated.check_release(envelope, payload, "w")


def test_a_key_under_a_false_id_is_refused() -> None:
    data = root_file(1, (0,), 1, (3,), (0,))
    _, payload = sign.unwrap(data, ROOT_TYPE, "root")
    swapped = payload.replace(KEYS[3].public_hex.encode(), KEYS[4].public_hex.encode())
    with pytest.raises(PackageError, match="not the key of that id"):
        Trust.from_operator(sign.wrap(ROOT_TYPE, swapped, [KEYS[0]]))


def test_a_threshold_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(PackageError, match="asks for 3 signatures of 1 keys"):
        Trust.from_operator(root_file(1, (0,), 3, (3,), (0,)))


def test_a_key_of_one_product_signs_no_other() -> None:
    trust = Trust.from_operator(root_file(1, (0,), 1, (3, 4), (0,), products={3: ("home", "hall")}))
    limited, free = (frozenset({KEYS[number].keyid}) for number in (3, 4))
    for product in ("home", "hall"):
        trust.check_product(product, limited, "w")
    with pytest.raises(SignatureError, match="signs home, hall and not car"):
        trust.check_product("car", limited, "w")
    trust.check_product("car", free, "w")
    trust.check_product("car", limited | free, "w")


def test_signatures_beyond_a_product_do_not_count_towards_the_threshold() -> None:
    data = root_file(1, (0,), 1, (3, 4, 5), (0,), release_due=2, products={3: ("home",)})
    trust = Trust.from_operator(data)
    with pytest.raises(SignatureError, match="1 of 2 needed signatures are left"):
        trust.check_product("car", frozenset({KEYS[3].keyid, KEYS[4].keyid}), "w")
    trust.check_product("car", frozenset({KEYS[4].keyid, KEYS[5].keyid}), "w")


def test_products_are_named_for_release_keys_alone() -> None:
    with pytest.raises(PackageError, match="which is no release key"):
        Trust.from_operator(root_file(1, (0,), 1, (3,), (0,), products={0: ("home",)}))
