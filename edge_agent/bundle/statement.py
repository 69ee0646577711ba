"""The signed release statement: what is released, for which boards, and whether this device may take it now.

The statement signs the digest and size of `index.json`, which pins every other byte. The rules here are pure; who has
signed is `trust`'s question, what was committed before is the store's.
"""

from __future__ import annotations

import calendar
import re
import time
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from edge_agent.base import limits
from edge_agent.base.errors import PackageError, SignatureError
from edge_agent.bundle.jsonio import Document
from edge_agent.bundle.manifest import Digest, Name, Words, check_requires

RELEASE_TYPE = "application/vnd.edge-agent.release.v1+json"
RELEASE_FILE = "release.dsse.json"

BUILT_AT_S = calendar.timegm((2026, 7, 1, 0, 0, 0))
"""A moment that this code is certainly later than: the floor for a clock that stands in 1970. Raised with releases."""
ISSUE_SKEW_S = 86_400.0
"""How far ahead of a trusted clock a statement may be issued: one day covers time zones taken for UTC."""

Moment = Annotated[str, Meta(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\\Z")]
Version = Annotated[str, Meta(pattern="^[0-9]{1,4}(\\.[0-9]{1,4}){0,3}\\Z")]


class IndexRef(Document, frozen=True, kw_only=True):
    """Digest and size of `index.json`."""

    digest: Digest
    size: Annotated[int, Meta(ge=1, le=limits.MANIFEST_BYTES)]


class Release(Document, frozen=True, kw_only=True):
    """The payload of `release.dsse.json`. `counter` only rises within (product, channel)."""

    schema: Literal[1]
    product: Name
    channel: Name
    counter: Annotated[int, Meta(ge=0, le=2**53)]
    index: IndexRef
    issued_at: Moment
    expires: Moment
    min_agent: Version = "0"
    hardware: Words = ()
    requires: Words = ()

    @property
    def line(self) -> str:
        """The key of the anti-rollback counter."""
        return f"{self.product}/{self.channel}"


@dataclass(frozen=True, slots=True)
class Now:
    """What is known of the time: the wall clock, whether it is synchronised, and the newest signed issue time."""

    wall_s: float
    trusted: bool
    newest_issued_s: float = 0.0

    @property
    def at_least_s(self) -> float:
        """A time that has certainly passed; the clock counts only where it is trusted."""
        known = max(self.newest_issued_s, float(BUILT_AT_S))
        return max(known, self.wall_s) if self.trusted else known


def seconds(moment: str, where: str = RELEASE_FILE) -> float:
    """Seconds since 1970 of '2026-07-01T00:00:00Z'. Raises PackageError for a day that does not exist."""
    try:
        return float(calendar.timegm(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ")))
    except ValueError as error:
        raise PackageError(f"{moment!r} is no moment of the calendar", where) from error


def moment(at_s: float) -> str:
    """The inverse of `seconds`, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))


def check_time(release: Release, now: Now) -> None:
    """Refuse an expired statement, and one from the future, as far as the time is known. Raises SignatureError."""
    issued_s, expires_s = seconds(release.issued_at), seconds(release.expires)
    if expires_s <= issued_s:
        raise PackageError("the release expires before it was issued", RELEASE_FILE)
    if now.at_least_s >= expires_s:
        raise SignatureError(
            f"the release expired at {release.expires}; it is at least {moment(now.at_least_s)}",
            RELEASE_FILE,
            "sign a new release of the package",
        )
    if now.trusted and issued_s > now.wall_s + ISSUE_SKEW_S:
        raise SignatureError(
            f"the release was issued at {release.issued_at}, which is in the future", RELEASE_FILE, "check the clocks"
        )


def check_agent(release: Release, agent_version: str) -> None:
    """Refuse a package made for a newer agent or with requirements that this one does not know."""
    if _numbers(release.min_agent) > _numbers(agent_version):
        raise PackageError(
            f"it needs edge-agent {release.min_agent} or newer, this is {agent_version}",
            RELEASE_FILE,
            "update edge-agent",
        )
    check_requires(release.requires, RELEASE_FILE, agent_version)


def check_counter(release: Release, committed: int | None, committed_index: str | None) -> None:
    """Refuse a replay: an older counter, or the committed counter with other contents. Raises SignatureError."""
    if committed is None or release.counter > committed:
        return
    if release.counter < committed:
        raise SignatureError(
            f"counter {release.counter} of {release.line} is older than {committed}, which this device committed",
            RELEASE_FILE,
            "`edge-agent rollback MODEL` returns to the version before",
        )
    if release.index.digest != committed_index:
        raise SignatureError(
            f"counter {release.counter} of {release.line} was committed with other contents",
            RELEASE_FILE,
            f"release it under a higher counter: in its recipe set package.version (of a base: base.version) to "
            f"{committed + 1} or more, and build again",
        )


def matches_hardware(wanted: tuple[str, ...], names: tuple[str, ...]) -> bool:
    """True where a package or variant for `wanted` may run on a board that goes by `names`; nothing wanted: any."""
    return not wanted or any(word in names for word in wanted)


def _numbers(version: str) -> tuple[int, ...]:
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:4])
    return found + (0,) * (4 - len(found))
