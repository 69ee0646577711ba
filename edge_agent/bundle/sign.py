"""DSSE envelopes signed with Ed25519: keys, signing, and counting the valid signatures of a set of keys.

DSSE v1 (secure-systems-lab/dsse protocol.md): the signature covers the payload's type and bytes, length-prefixed, so
that one document cannot be taken for another. The key id is a hint; it must still name the key that verifies.
`cryptography` is imported inside the functions, because the resident daemon does not need it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from edge_agent.base import limits
from edge_agent.base.errors import BackendMissing, PackageError, SignatureError, UsageError
from edge_agent.bundle import jsonio

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_BYTES = 64 * limits.KIB
Base64 = Annotated[str, Meta(max_length=limits.STATEMENT_BYTES)]
KeyId = Annotated[str, Meta(pattern="^[0-9a-f]{64}\\Z")]
PublicHex = Annotated[str, Meta(pattern="^[0-9a-f]{64}\\Z")]


class Signature(jsonio.Document, frozen=True, kw_only=True):
    """One signature; `keyid` is the SHA-256 of the public key."""

    keyid: KeyId
    sig: Annotated[str, Meta(max_length=128)]


class Envelope(jsonio.Document, frozen=True, kw_only=True, rename={"payload_type": "payloadType"}):
    """DSSE: `payload` is base64 of the document that was signed."""

    payload_type: Annotated[str, Meta(max_length=128)]
    payload: Base64
    signatures: Annotated[tuple[Signature, ...], Meta(max_length=16)]


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding of DSSE v1: the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def wrap(payload_type: str, payload: bytes, keys: Iterable[PrivateKey] = ()) -> bytes:
    """The envelope of a payload, signed by `keys` (none: an unsigned one)."""
    message = pae(payload_type, payload)
    found = [Signature(keyid=key.keyid, sig=base64.b64encode(key.sign(message)).decode()) for key in keys]
    signatures = tuple(sorted(found, key=lambda signature: signature.keyid))
    text = base64.b64encode(payload).decode()
    return jsonio.encode(Envelope(payload_type=payload_type, payload=text, signatures=signatures))


def unwrap(data: bytes, payload_type: str, where: str) -> tuple[Envelope, bytes]:
    """Envelope and payload bytes, not verified yet. Raises PackageError."""
    envelope = jsonio.decode(data, Envelope, where, limits.STATEMENT_BYTES)
    if envelope.payload_type != payload_type:
        raise PackageError(f"its payload is {envelope.payload_type!r}, {payload_type!r} is needed", where)
    for signature in envelope.signatures:  # also those of keys that nobody here knows: other readers look at them
        _from_base64(signature.sig, where)
    return envelope, _from_base64(envelope.payload, where)


def valid_signers(envelope: Envelope, payload: bytes, keys: Mapping[str, str], where: str) -> frozenset[str]:
    """The ids of those of `keys` (id -> public key, hex) that signed.

    Raises SignatureError for a signature that claims one of the keys and is not valid: the package was changed.
    """
    message = pae(envelope.payload_type, payload)
    signers = set()
    for signature in envelope.signatures:
        public_hex = keys.get(signature.keyid)
        if public_hex is None:
            continue
        if not _verifies(public_hex, _from_base64(signature.sig, where), message):
            raise SignatureError(
                f"the signature of key {signature.keyid[:12]} does not fit the contents: changed after it was signed",
                where,
                "fetch the package again from who made it",
            )
        signers.add(signature.keyid)
    return frozenset(signers)


class PrivateKey:
    """An Ed25519 signing key with its id."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_hex = key.public_key().public_bytes_raw().hex()
        self.keyid = key_id(self.public_hex)

    @classmethod
    def generate(cls) -> PrivateKey:
        """A new key from the system's random source."""
        return cls(_ed25519().generate())

    @classmethod
    def load(cls, path: Path) -> PrivateKey:
        """A key from a PEM file. Raises UsageError that names the file."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(jsonio.read_file(path, KEY_BYTES), password=None)
        except PackageError as error:
            raise UsageError(f"this is no key: {error.what}", str(path), error.remedy) from error
        except OSError as error:
            raise UsageError(
                f"the key cannot be read: {error.strerror}", str(path), "`edge-forge keygen DIR`"
            ) from error
        except (ValueError, TypeError) as error:
            raise UsageError("this is no unencrypted private key in PEM form", str(path)) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError("the key is not Ed25519", str(path), "`edge-forge keygen DIR` makes one")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key as PEM, readable by its owner only; an existing file is never overwritten."""
        from cryptography.hazmat.primitives import serialization

        data = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise UsageError("a key stands here already and is not overwritten", str(path)) from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the signature (deterministic, RFC 8032)."""
        return self._key.sign(message)


def key_id(public_hex: str) -> str:
    """The id of a public key: SHA-256 of its 32 bytes, hex."""
    return hashlib.sha256(bytes.fromhex(public_hex)).hexdigest()


def _verifies(public_hex: str, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        _public(public_hex).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _public(public_hex: str) -> Ed25519PublicKey:
    _ed25519()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))


def _ed25519() -> type[Ed25519PrivateKey]:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise BackendMissing(
            "the Python package `cryptography` is missing",
            "signature check",
            "install edge-agent with its extra verify",
        ) from error
    return Ed25519PrivateKey


def _from_base64(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PackageError("a base64 field is damaged", where) from error
    if base64.b64encode(data).decode() != text:
        raise PackageError("a base64 field is not in its one canonical form", where)
    return data
