"""Where a package lies in an OCI registry, and who asks for it: names, credentials, tokens.

Sources: OCI distribution-spec 1.1 ("Pulling manifests", "Pulling blobs"); the token protocol of the Docker registry,
which registries share; containers-auth.json(5) for the file of credentials, which `skopeo login` writes.

A file of its own because it knows registries and nothing of packages.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent import __version__
from edge_agent.base import limits
from edge_agent.base.causes import Cause
from edge_agent.base.errors import PackageError, StoreError, UsageError
from edge_agent.bundle.jsonio import read_file
from edge_agent.bundle.manifest import OCI_MANIFEST
from edge_agent.store.remote_file import HeadLimit, Reach, RedirectionRefused, TransferOptions, opener

SCHEME = "oci://"
CREDENTIAL_BYTES = 64 * limits.KIB
TOKEN_BYTES = 64 * limits.KIB
"""Of the answer that holds a token."""
MOST_RENEWALS, RENEWALS_S = 3, 60.0
"""So many answers 401 within that time, then the registry is believed. Tokens last for minutes."""
_PLACE = re.compile(
    r"oci://(?P<host>(?:[A-Za-z0-9]+(?:[.-][A-Za-z0-9]+)*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?)"
    r"/(?P<repository>[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)
_PARAMETER = re.compile(r'([a-z_]{1,32})="([^"]{0,2000})"', re.ASCII)


@dataclass(frozen=True, slots=True)
class RegistryPlace:
    """A repository in a registry, and which of its artefacts: by digest, else by tag."""

    host: str
    repository: str
    tag: str
    digest: str | None

    @classmethod
    def parse(cls, url: str) -> RegistryPlace:
        """`oci://HOST[:PORT]/REPOSITORY[:TAG][@sha256:...]`; the tag is `latest` where none is given. Raises
        UsageError."""
        found = _PLACE.fullmatch(url)
        if found is None:
            remedy = "name oci://HOST[:PORT]/REPOSITORY[:TAG] or ...@sha256:DIGEST, without a password"
            raise UsageError("it is no place in a registry", url[:200], remedy)
        return cls(found["host"], found["repository"], found["tag"] or "latest", found["digest"])

    def root(self, plain: Collection[str]) -> str:
        """The URL that manifests and blobs lie under; http where the operator has named the host as `plain`."""
        return f"{'http' if self.host in plain else 'https'}://{self.host}/v2/{self.repository}"


def credentials(path: Path | None, host: str) -> str | None:
    """User and password for a registry in the form of Basic, from a file as `skopeo login --authfile` writes it; None
    where there is no file, or nothing for this host. Raises StoreError for a file that others can read, or that makes
    no sense."""
    if path is None:
        return None
    try:
        if path.stat().st_mode & 0o007:
            raise StoreError("every user of this machine can read it", str(path), f"chmod o= {path}")
        found = json.loads(read_file(path, CREDENTIAL_BYTES))
        entry = found["auths"].get(host)
        text = None if entry is None else str(entry["auth"])
        if text is not None and b":" not in base64.b64decode(text, validate=True):
            raise ValueError("no user and password")
    except OSError as error:
        raise StoreError(f"cannot be read: {error.strerror}", str(path), "see store.registry_auth") from error
    except (ValueError, TypeError, KeyError, AttributeError, PackageError, binascii.Error, RecursionError) as error:
        text = f"it is no file of credentials for {host}"
        raise StoreError(text, str(path), f"`skopeo login --authfile {path} {host}` writes one") from error
    return text


class RegistryAccess:
    """Answers a registry that asks who wants to read. Implements `remote_file.Access`."""

    def __init__(
        self, place: RegistryPlace, basic: str | None, plain: Collection[str], options: TransferOptions
    ) -> None:
        """`basic`: see `credentials`."""
        self._place, self._basic, self._plain, self._options = place, basic, plain, options
        self.reach = Reach()
        self._authorization: str | None = None
        self._renewed_s: list[float] = []

    def headers(self) -> Mapping[str, str]:
        """See `remote_file.Access`."""
        found = {"Accept": OCI_MANIFEST}
        return found if self._authorization is None else found | {"Authorization": self._authorization}

    def renew(self, challenge: str) -> bool:
        """See `remote_file.Access`."""
        now_s = self._options.now_s()
        self._renewed_s = [*(at_s for at_s in self._renewed_s if now_s - at_s < RENEWALS_S), now_s]
        if len(self._renewed_s) > MOST_RENEWALS:
            return False
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            if self._basic is None:
                raise self._refused("asks for a user and a password")
            before, self._authorization = self._authorization, f"Basic {self._basic}"
            return before != self._authorization
        if scheme.lower() == "bearer":
            self._authorization = f"Bearer {self._token(dict(_PARAMETER.findall(rest[:8192])))}"
            return True
        raise self._refused(f"asks for {scheme[:40]!r}, which is not known here")

    def _refused(self, what: str) -> StoreError:
        remedy = "`skopeo login --authfile FILE` writes credentials; name FILE in store.registry_auth"
        return StoreError(f"the registry {what}", self._place.host, remedy, Cause.SOURCE)

    def _token(self, asked: Mapping[str, str]) -> str:
        scope = asked.get("scope", f"repository:{self._place.repository}:pull")
        realm = asked.get("realm", "")
        with contextlib.suppress(ValueError):
            place = urllib.parse.urlsplit(realm)
            safe = place.scheme == "https" or (place.scheme == "http" and place.netloc in self._plain)
            if safe and place.hostname and place.username is None and realm.isascii() and realm.isprintable():
                fields = {"service": asked["service"]} if "service" in asked else {}
                query = urllib.parse.urlencode({**fields, "scope": scope})
                return self._ask(f"{realm}{'&' if place.query else '?'}{query}")
        raise self._refused(f"sends for a token to {realm[:100]!r}, which is no https address")

    def _ask(self, url: str) -> str:
        request = urllib.request.Request(url, headers={"User-Agent": f"edge-agent/{__version__}"})  # noqa: S310 - checked
        if self._basic is not None:
            request.add_unredirected_header("Authorization", f"Basic {self._basic}")
        limit = HeadLimit(self._options.head_s)
        try:
            with limit, opener(limit, self.reach, sent=True).open(request, timeout=self._options.timeout_s) as response:
                data = response.read(TOKEN_BYTES + 1)
            if limit.over or len(data) > TOKEN_BYTES:
                raise self._refused("gives no token: its answer has no end")
            found: Any = json.loads(data)
            token = found.get("token") or found.get("access_token")
            if not isinstance(token, str) or not token.isascii() or not token.isprintable():
                raise self._refused("gives no token that can be used")
        except RedirectionRefused as error:
            raise self._refused(f"gives no token: for one {error.what}") from error
        except urllib.error.HTTPError as error:
            error.close()
            what = "wrong user or password" if error.code in (401, 403) and self._basic else f"it answers {error.code}"
            raise self._refused(f"gives no token: {what}") from error
        except (OSError, http.client.HTTPException, ValueError, AttributeError, RecursionError) as error:
            raise self._refused(f"gives no token: {getattr(error, 'reason', None) or error}") from error
        return token
