"""The table of devices: `devices.csv`, one board a line, with what is its own: name, broker user, password or
certificate.

Nothing secret may be shared: two boards with one password or one key could not be told apart, and one that is stolen
would give away the other. Files with secrets must be closed to other users.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edge_agent.base.errors import UsageError
from edge_agent.base.limits import KIB, MIB
from edge_agent.base.named_file import open_named
from edge_agent.config.load import STOCK_NAMES

COLUMNS: Final = {
    "name": "the device's name in every topic",
    "broker": "the broker's host, or host:port",
    "username": "the user name at the broker",
    "password": "the password for it",
    "password_file": "a file whose first line is the password",
    "ca": "the authority of the broker's certificate, PEM",
    "cert": "this device's certificate, PEM",
    "key": "its private key, PEM",
}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""As the settings take it (`config.fields.NAME`)."""
_SECRET_BYTES: Final = 64 * KIB


@dataclass(frozen=True, slots=True)
class Device:
    """One board. `settings` go over those that all boards share, `credentials` are files of the unit's
    LoadCredential. `where`: file and line, for messages."""

    name: str
    where: str
    settings: Mapping[str, Any]
    credentials: Mapping[str, bytes] = field(repr=False)


def read_devices(path: Path) -> list[Device]:
    """The boards of a table. Raises UsageError with file, line and column for the first that cannot be."""
    with open_named(path) as file:
        data = file.read(MIB + 1)
    if len(data) > MIB:
        raise UsageError(f"is larger than {MIB} bytes; this is no table of devices", str(path))
    try:
        rows = csv.reader(io.StringIO(data.removeprefix(codecs.BOM_UTF8).decode("utf-8"), newline=""), strict=True)
        head = [name.strip() for name in next(rows, [])]
        _check_head(head, path)
        devices = [_device(head, row, path, rows.line_num) for row in rows if any(cell.strip() for cell in row)]
    except UnicodeDecodeError as error:
        raise UsageError(f"is not UTF-8 at byte {error.start}", str(path), "save it as UTF-8") from error
    except csv.Error as error:
        raise UsageError(f"is no table: {error}", str(path), "separate the columns by commas") from error
    if not devices:
        raise UsageError("names no device", str(path), "a line per board, under a line with the names of the columns")
    _check_apart(devices)
    return devices


def _check_head(head: list[str], path: Path) -> None:
    unknown = [name for name in head if name not in COLUMNS]
    twice = [name for name in head if head.count(name) > 1]
    if "name" not in head or unknown or twice:
        what = (
            f"has a column {unknown[0]!r} that is not known" if unknown
            else f"has the column {twice[0]!r} twice" if twice else "has no column 'name'"
        )  # fmt: skip
        raise UsageError(what, f"{path}, line 1", f"the columns are {', '.join(COLUMNS)}; separated by commas")


def _device(head: list[str], row: list[str], path: Path, line: int) -> Device:
    where = f"{path}, line {line}"
    if len(row) > len(head):
        raise UsageError("has more fields than the first line has columns", where, "quote a field that has a comma")
    cells = {name: cell.strip() for name, cell in zip(head, row, strict=False)}
    name = cells["name"]
    check_name(name, where)
    settings: dict[str, Any] = {"device": {"id": name}, "mqtt": {}}
    if cells.get("broker"):
        settings["mqtt"] |= _broker(cells["broker"], where)
    if cells.get("username"):
        settings["mqtt"]["username"] = cells["username"]
    credentials = _credentials(cells, path, where)
    if "mqtt-ca" in credentials or "mqtt-cert" in credentials:
        settings["mqtt"]["tls"] = {"enabled": True}
    return Device(name, where, settings, credentials)


def check_name(name: str, where: str | None) -> None:
    """Raises UsageError for a name that no device can have, or that every image of a system has."""
    if not name:
        raise UsageError("names no device", where, "give the column 'name' a value")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"the name {name!r} cannot be used", where,
            "1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or a digit",
        )  # fmt: skip
    if name.lower() in STOCK_NAMES | {"localhost"}:
        raise UsageError(
            f"{name!r} is the name that every such image has; two of them throw each other off the broker", where,
            "give each board a name of its own",
        )  # fmt: skip


def _broker(text: str, where: str) -> dict[str, Any]:
    host, colon, port = text.rpartition(":")
    if not colon or host.endswith(":") or (":" in host.strip("[]") and not host.startswith("[")):
        return {"host": text}
    if not port.isdecimal() or not 0 < int(port) < 65536 or not host:
        raise UsageError(f"the broker {text!r} has no port between 1 and 65535", where, "write host or host:port")
    return {"host": host.strip("[]"), "port": int(port)}


def _credentials(cells: Mapping[str, str], path: Path, where: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    if cells.get("password") and cells.get("password_file"):
        raise UsageError("has both a password and a password_file", where, "give one of them")
    if cells.get("password"):
        check_closed(path, "it holds passwords")
        found["mqtt-password"] = cells["password"].encode() + b"\n"
    elif cells.get("password_file"):
        line = (_file(cells["password_file"], path, where, secret=True).splitlines() or [b""])[0].strip()
        if not line:
            raise UsageError(f"the password file {cells['password_file']} is empty", where, "write it into line 1")
        found["mqtt-password"] = line + b"\n"
    if "mqtt-password" in found and not cells.get("username"):
        raise UsageError("has a password and no username", where, "a broker takes no password without a user name")
    if bool(cells.get("cert")) != bool(cells.get("key")):
        raise UsageError("has one of cert and key", where, "a certificate needs its private key")
    for column in ("ca", "cert", "key"):
        if cells.get(column):
            found[f"mqtt-{column}"] = _file(cells[column], path, where, secret=column == "key")
    if "mqtt-cert" in found:
        _check_certificate(found["mqtt-cert"], found["mqtt-key"], cells["name"], where)
    return found


def _file(text: str, table: Path, where: str, secret: bool) -> bytes:
    """A file that a line names, relative to the table. Raises UsageError."""
    path = table.parent / Path(text).expanduser()
    try:
        if secret:
            check_closed(path, "it holds a secret")
        with open_named(path) as file:
            data = file.read(_SECRET_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", where, "name a file that is there") from error
    if len(data) > _SECRET_BYTES:
        raise UsageError(f"{path} is larger than {_SECRET_BYTES} bytes", where, "name another file")
    return data


def check_closed(path: Path, why: str) -> None:
    """Raises UsageError where other users may read or write a file."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise UsageError(
            f"others can read or write it (mode {mode:04o}), and {why}", str(path), f"chmod 600 {path}"
        )  # fmt: skip


def _check_certificate(cert: bytes, key: bytes, name: str, where: str) -> None:
    """A certificate belongs to its key, and names the device. Raises UsageError."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        certificate = x509.load_pem_x509_certificate(cert)
        public = load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError) as error:
        raise UsageError(f"cert or key cannot be read: {error}", where, "both are PEM, the key without a passphrase")  # noqa: B904
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if certificate.public_key().public_bytes(*form) != public.public_bytes(*form):
        raise UsageError("the certificate is not of this key", where, "name the key that it was made for")
    names = [str(one.value) for one in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    if names != [name]:
        raise UsageError(
            f"the certificate is for {', '.join(names) or 'nobody'}, the device's name is {name!r}", where,
            "brokers take the certificate's CN for the user name, and rules name the device by it",
        )  # fmt: skip


def _check_apart(devices: list[Device]) -> None:
    """No device twice, nothing secret shared. Raises UsageError with both lines."""
    names: dict[str, str] = {}
    secrets: dict[bytes, str] = {}
    for device in devices:
        same = device.name.lower()
        if same in names:
            raise UsageError(
                f"the device {device.name!r} is listed twice, before in {names[same]}", device.where,
                "a name is one board's",
            )  # fmt: skip
        names[same] = device.where
        for credential in ("mqtt-password", "mqtt-key"):
            if credential in device.credentials:
                digest = hashlib.sha256(device.credentials[credential].strip()).digest()
                if digest in secrets:
                    raise UsageError(
                        f"the {credential.removeprefix('mqtt-')} is also that of {secrets[digest]}", device.where,
                        "give each board its own: one that is stolen must not open the others' way",
                    )  # fmt: skip
                secrets[digest] = device.where
