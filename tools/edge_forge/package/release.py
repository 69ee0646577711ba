"""The release statement of a package, the identity of merged weights, and the check that a device would make.

Moments come from the caller; SOURCE_DATE_EPOCH makes a package the same on any day.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent.base.errors import ConfigError, PackageError
from edge_agent.bundle.layout import open_package
from edge_agent.bundle.statement import Now, Release, check_time
from edge_agent.bundle.verify import check_weights, load_trust, read_package, read_release
from edge_forge.package.sources import ReleaseSource
from edge_forge.recipe.schema import PackageSection

_DAY_S = 86_400
_LATEST_S = 253_000_000_000  # in the year 9987: a package may expire ten years later, in four digits


def issued_s() -> int:
    """Now, or the moment that SOURCE_DATE_EPOCH names. Raises ConfigError where that is no moment."""
    named = os.environ.get("SOURCE_DATE_EPOCH", "").strip()
    if not named:
        return int(time.time())
    if not re.fullmatch(r"[0-9]{1,12}", named) or int(named) > _LATEST_S:
        raise ConfigError(
            f"SOURCE_DATE_EPOCH = {named[:40]!r} is no number of seconds since 1970", "the environment",
            "set it as in SOURCE_DATE_EPOCH=$(git log -1 --format=%ct), or unset it",
        )  # fmt: skip
    return int(named)


def freshness(section: PackageSection, now_s: int) -> int:
    """A number that changes every half life of a package: part of its key, so that no build hands out an old one."""
    return now_s // (section.expires_days * _DAY_S // 2)


def release(section: PackageSection, product: str, counter: int, now_s: int) -> ReleaseSource:
    """The statement's fields for one product."""
    return ReleaseSource(
        product=product,
        counter=counter,
        issued_at=_moment(now_s),
        expires=_moment(now_s + section.expires_days * _DAY_S),
        channel=section.channel,
        min_agent=section.min_agent,
        hardware=section.hardware,
    )


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def merged_id(merged_from: Mapping[str, str]) -> str:
    """The base_id of folded weights: a digest of what was folded, the same for classifiers and generators."""
    text = "edge-merged/1\n" + "".join(f"{key}={value}\n" for key, value in sorted(merged_from.items()))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def statement_of(package: Path) -> Release | None:
    """The release statement of a package, whoever signed it; None for a file that is no package."""
    try:
        with open_package(package) as opened:
            return read_release(opened, None, allow_unsigned=True).release
    except PackageError:
        return None


def verify(package: Path, root_file: Path) -> dict[str, Any]:
    """Check a signed package as a device would, weights included. Raises PackageError, SignatureError."""
    trust = load_trust(root_file)
    with open_package(package) as opened:
        verified = read_release(opened, trust, allow_unsigned=False)
        check_time(verified.release, Now(time.time(), trusted=True))
        contents = read_package(opened, verified.release)
        absent = check_weights(opened, contents)
    release = verified.release
    return {"product": release.product, "counter": release.counter, "signers": sorted(verified.signers),
            "expires": release.expires, "left_to_the_device": [one.digest for one in absent]}  # fmt: skip
