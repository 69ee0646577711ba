"""Which keys may sign releases: root files, each signed by a threshold of keys, and the chain from one to the next.

The rule is TUF's (specification 5.3): root N+1 counts only when a threshold of N's root keys and a threshold of its own
root keys signed it, and its version is exactly N+1. So a lost release key is replaced by one signed file inside the
next package, and stolen release keys cannot change which keys are trusted. A release key may be limited to products:
what it signs of another product counts as not signed by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta, field

from edge_agent.base import limits
from edge_agent.base.errors import PackageError, SignatureError
from edge_agent.bundle import jsonio, sign
from edge_agent.bundle.manifest import Name
from edge_agent.bundle.sign import KeyId, PublicHex

ROOT_TYPE = "application/vnd.edge-agent.root.v1+json"


class Role(jsonio.Document, frozen=True, kw_only=True):
    """A set of keys, and how many of them must sign."""

    keys: Annotated[tuple[KeyId, ...], Meta(min_length=1, max_length=16)]
    threshold: Annotated[int, Meta(ge=1, le=16)]


class Roles(jsonio.Document, frozen=True, kw_only=True):
    """`root` decides on the next root file, `release` on packages."""

    root: Role
    release: Role


class Root(jsonio.Document, frozen=True, kw_only=True):
    """The payload of a root file: public keys (id -> 32 bytes hex) and roles.

    `products` limits release keys (id -> the products that it may sign); a key that is not in it signs any."""

    schema: Literal[1]
    version: Annotated[int, Meta(ge=1, le=2**31)]
    keys: Annotated[dict[KeyId, PublicHex], Meta(min_length=1, max_length=32)]
    roles: Roles
    products: Annotated[
        dict[KeyId, Annotated[tuple[Name, ...], Meta(min_length=1, max_length=64)]], Meta(max_length=16)
    ] = field(default_factory=dict)

    def keys_of(self, role: Role) -> dict[str, str]:
        """The role's keys, id -> public key."""
        return {keyid: self.keys[keyid] for keyid in role.keys}


@dataclass(frozen=True, slots=True)
class Trust:
    """A trusted root, with the bytes of its file."""

    root: Root
    data: bytes

    @classmethod
    def from_operator(cls, data: bytes, where: str = "root.json") -> Trust:
        """The first link: a root file that the operator placed on the device. It must be signed by its own keys."""
        trust, envelope, payload = _read(data, where)
        _require(trust.root, trust.root.roles.root, envelope, payload, where)
        return trust

    def next(self, data: bytes, where: str) -> Trust:
        """The trust after root N+1. Raises SignatureError unless both thresholds signed it."""
        trust, envelope, payload = _read(data, where)
        if trust.root.version != self.root.version + 1:
            raise SignatureError(
                f"root version {trust.root.version} does not follow {self.root.version}; each is taken in turn", where
            )
        _require(self.root, self.root.roles.root, envelope, payload, where)
        _require(trust.root, trust.root.roles.root, envelope, payload, where)
        return trust

    def check_release(self, envelope: sign.Envelope, payload: bytes, where: str) -> frozenset[str]:
        """The signers of a release; raises SignatureError below the threshold."""
        return _require(self.root, self.root.roles.release, envelope, payload, where)

    def check_product(self, product: str, signers: frozenset[str], where: str) -> None:
        """Raises SignatureError unless a threshold of the signers may sign that product."""
        products, threshold = self.root.products, self.root.roles.release.threshold
        within = [keyid for keyid in signers if product in products.get(keyid, (product,))]
        if len(within) >= threshold:
            return
        beyond = min(signers - set(within))
        raise SignatureError(
            f"key {beyond[:12]} signs {', '.join(products[beyond])} and not {product}"
            + (f"; {len(within)} of {threshold} needed signatures are left" if threshold > 1 else ""),
            where,
            "sign it with a key of that product",
        )


def _read(data: bytes, where: str) -> tuple[Trust, sign.Envelope, bytes]:
    envelope, payload = sign.unwrap(data, ROOT_TYPE, where)
    root = jsonio.decode(payload, Root, where, limits.STATEMENT_BYTES)
    for keyid, public_hex in root.keys.items():
        if sign.key_id(public_hex) != keyid:
            raise PackageError(f"key {keyid[:12]} is not the key of that id", where)
    for role in (root.roles.root, root.roles.release):
        if len(set(role.keys)) != len(role.keys) or not set(role.keys) <= set(root.keys):
            raise PackageError("a role names a key twice or one that the file lacks", where)
        if role.threshold > len(role.keys):
            raise PackageError(f"a role asks for {role.threshold} signatures of {len(role.keys)} keys", where)
    strange = sorted(set(root.products) - set(root.roles.release.keys))
    if strange:
        raise PackageError(f"products are named for {strange[0][:12]}, which is no release key", where)
    return Trust(root, data), envelope, payload


def _require(root: Root, role: Role, envelope: sign.Envelope, payload: bytes, where: str) -> frozenset[str]:
    if not envelope.signatures:
        raise SignatureError("it is not signed", where, "`edge-forge sign` signs a package")
    signers = sign.valid_signers(envelope, payload, root.keys_of(role), where)
    if len(signers) >= role.threshold:
        return signers
    claimed = ", ".join(signature.keyid[:12] for signature in envelope.signatures)
    if not signers:
        raise SignatureError(
            f"it is signed by {claimed}, none of which root version {root.version} trusts",
            where,
            "install the root file of who made the package, if you trust them",
        )
    raise SignatureError(f"{len(signers)} of {role.threshold} needed signatures are there", where)
