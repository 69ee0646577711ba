from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import PackageError, SignatureError, UsageError
from edge_agent.bundle import sign
from edge_agent.bundle.sign import PrivateKey

KEY = PrivateKey.generate()
KNOWN = {KEY.keyid: KEY.public_hex}


def test_pae_is_that_of_dsse_v1() -> None:
    """The example of the protocol's own document."""
    assert sign.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@given(st.binary(max_size=300))
def test_what_was_signed_is_signed(payload: bytes) -> None:
    data = sign.wrap("type/x", payload, [KEY])
    envelope, found = sign.unwrap(data, "type/x", "w")
    assert found == payload
    assert sign.valid_signers(envelope, found, KNOWN, "w") == {KEY.keyid}
    assert sign.wrap("type/x", payload, [KEY]) == data


def test_a_document_of_one_type_is_none_of_another() -> None:
    """A signature over (type A, bytes) must not verify as (type B, the same bytes)."""
    envelope, payload = sign.unwrap(sign.wrap("a", b"{}", [KEY]), "a", "w")
    other = sign.Envelope(payload_type="b", payload=envelope.payload, signatures=envelope.signatures)
    with pytest.raises(SignatureError, match="does not fit the contents"):
        sign.valid_signers(other, payload, KNOWN, "w")
    with pytest.raises(PackageError, match="'b' is needed"):
        sign.unwrap(sign.wrap("a", b"{}", [KEY]), "b", "w")


def test_unknown_signatures_are_passed_over() -> None:
    stranger = PrivateKey.generate()
    envelope, payload = sign.unwrap(sign.wrap("a", b"{}", [stranger, KEY]), "a", "w")
    assert sign.valid_signers(envelope, payload, KNOWN, "w") == {KEY.keyid}


@pytest.mark.parametrize("wrong", ["é", "not base64", "QQ", "QR=="])
def test_a_signature_by_an_unknown_key_has_the_form_of_one(wrong: str) -> None:
    """Other readers decode it; nobody may take an envelope for signed that others cannot read."""
    stranger = PrivateKey.generate()
    text = sign.wrap("a", b"{}", [stranger, KEY]).decode()
    theirs = base64.b64encode(stranger.sign(sign.pae("a", b"{}"))).decode()
    assert theirs in text
    with pytest.raises(PackageError, match="base64 field"):
        sign.unwrap(text.replace(theirs, wrong).encode(), "a", "w")


def test_a_key_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    KEY.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert PrivateKey.load(path).keyid == KEY.keyid
    with pytest.raises(UsageError, match="is not overwritten"):
        KEY.save(path)


def test_key_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        PrivateKey.load(tmp_path / "absent.pem")
    bad = tmp_path / "bad.pem"
    bad.write_text("hello")
    with pytest.raises(UsageError, match="no unencrypted private key"):
        PrivateKey.load(bad)


def test_keys_of_other_kinds_are_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    path = tmp_path / "ec.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(UsageError, match="not Ed25519"):
        PrivateKey.load(path)
