"""A file on an HTTP server, read forwards, that goes on where a connection broke off.

Ranges are asked for from the first request on. A server that does not know them sends the whole file, and what lies
before the position is read and thrown away. What a server states of itself (size, place, mark) is compared at every
answer. No size, another size or another mark is an error with a sentence; so is a connection that brings next to
nothing.

A file of its own because it knows HTTP and nothing of packages. The daemon never imports it: urllib costs memory.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from edge_agent import __version__
from edge_agent.base import limits
from edge_agent.base.causes import Cause
from edge_agent.base.errors import PackageError, StoreError, UsageError

SCHEMES = ("http", "https")
TIMEOUT_S = 30.0
TRIES = 5
"""Connections in a row that bring next to nothing, with pauses of 1, 2, 4 and 8 s; then the source is given up."""
SLOW_S, SLOW_BYTES = 60.0, 60 * limits.KIB
"""A connection that brings less in that time is broken off: a byte every half minute would hold it for ever."""
WINDOW = 32 * limits.KIB
"""So much is asked for at once where it is not known how much is needed: the heads of a tar."""
DISCARD = 64 * limits.KIB
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
"""More digits are no place in a file, and `int` refuses thousands of them."""
T = TypeVar("T")


def check_url(url: str) -> str:
    """The URL, where a package may be fetched from it. Raises UsageError."""
    remedy = "name http://HOST/PATH or https://HOST/PATH"
    try:
        found = urllib.parse.urlsplit(url)
        host, _ = found.hostname, found.port
    except ValueError as error:
        raise UsageError(f"it is no URL: {error}", url, remedy) from error
    if found.scheme not in SCHEMES or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError("a package is fetched by http or https alone", url, remedy)
    if found.username is not None:
        text = "a password in a URL is seen by every user of this machine"
        raise UsageError(
            text, f"{found.scheme}://...@{host}", "let the server ask for none: signatures protect packages"
        )
    return url


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """`bytes_per_s`: the most that is read in a second, None without a limit. The others are for tests."""

    bytes_per_s: float | None = None
    timeout_s: float = TIMEOUT_S
    sleep: Callable[[float], None] = time.sleep
    now_s: Callable[[], float] = time.monotonic


class _SourceFailed(Exception):
    """The connection is of no use any more; another one may be."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections to http and https, never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """See `urllib.request.HTTPRedirectHandler`."""
        before, after = urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl).scheme
        if after not in SCHEMES or (before == "https" and after != "https"):
            raise urllib.error.HTTPError(newurl, code, f"a redirection from {before} to {after}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """See `urllib.request.HTTPRedirectHandler`, which leaves the answer open where its place is no URL."""
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError:
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class RemoteFile:
    """The file at `url`. `total_bytes` and `ranges` are known after `open`; `moved_bytes`: what was read of bodies."""

    def __init__(self, url: str, options: TransferOptions) -> None:
        self.url = check_url(url)
        self.position = 0
        self.total_bytes = 0
        self.ranges = False
        self.moved_bytes = 0
        self._options = options
        self._opener = urllib.request.build_opener(_Redirects())
        self._response: http.client.HTTPResponse | None = None
        # Where the response stands and ends, up to where is read on, and the mark (a strong ETag) of the file.
        self._at = self._end = self._aim = 0
        self._mark: str | None = None
        self._began_s = options.now_s()
        # When the connection began to be watched for its speed, and what had been moved by then.
        self._watched: tuple[float, int] = (0.0, 0)
        # What the caller was given: what a server without ranges sends again on the way there is no progress.
        self._given_bytes = self._given_at_failure = 0
        self._failures = 0

    def open(self) -> None:
        """Ask for the file. Raises StoreError."""
        self._persist(self._connect)

    def close(self) -> None:
        """End the connection."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def seek(self, position: int, until: int = 0) -> None:
        """Go on reading there; `until`: up to where, as far as that is known."""
        self.position, self._aim = position, until

    def read(self, count: int) -> bytes:
        """Exactly so many bytes. Raises as `some`."""
        found = bytearray()
        while len(found) < count:
            found += self.some(count - len(found))
        return bytes(found)

    def some(self, most: int) -> bytes:
        """At least one byte, at most so many. Raises PackageError behind the end of the file, StoreError when the
        source gives no more."""
        if self.position >= self.total_bytes:
            text = f"the server states {self.total_bytes} bytes, and the package goes on behind them"
            raise PackageError(text, self.url, "it was cut or changed on the server")
        chunk = self._persist(lambda: self._chunk(most))
        self.position += len(chunk)
        self._given_bytes += len(chunk)
        return chunk

    def _persist(self, step: Callable[[], T]) -> T:
        """Do it, with a new connection where one fails, as often as the source brings something."""
        while True:
            try:
                return step()
            except urllib.error.HTTPError as error:
                error.close()
                if 400 <= error.code < 500 and error.code not in (408, 429):
                    raise self._given_up(f"the server answers {error.code} {error.reason}") from error
                self._note_failure(f"the server answers {error.code} {error.reason}", error)
            # ValueError: a redirection to what is no URL, or to a host that can have no name.
            except (OSError, http.client.HTTPException, ValueError, _SourceFailed) as error:
                reason = getattr(error, "reason", None) or error
                self._note_failure(f"{reason}" or type(error).__name__, error)

    def _note_failure(self, reason: str, error: Exception) -> None:
        self.close()
        if self._given_bytes - self._given_at_failure >= SLOW_BYTES:
            self._failures = 0
        self._failures, self._given_at_failure = self._failures + 1, self._given_bytes
        if self._failures >= TRIES:
            where = f"after {self.position} of {self.total_bytes} bytes: " if self.total_bytes else ""
            raise self._given_up(f"{where}{reason}; {TRIES} connections in a row brought next to nothing") from error
        self._options.sleep(2.0 ** (self._failures - 1))

    def _given_up(self, reason: str) -> StoreError:
        remedy = "look at the server and at the way there; what was fetched is kept for the next try"
        return StoreError(reason, self.url, remedy, Cause.SOURCE)

    def _connect(self) -> http.client.HTTPResponse:
        self.close()
        headers = {
            "Range": f"bytes={self.position}-{max(self.position + WINDOW, self._aim) - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": f"edge-agent/{__version__}",
        }
        if self._mark is not None:
            headers["If-Range"] = self._mark
        request = urllib.request.Request(self.url, headers=headers)  # noqa: S310 - `check_url` has looked at the scheme
        response: http.client.HTTPResponse = self._opener.open(request, timeout=self._options.timeout_s)
        with contextlib.ExitStack() as stack:
            stack.callback(response.close)
            self._take_head(response)
            stack.pop_all()
        self._response = response
        self._watched = (self._options.now_s(), self.moved_bytes)
        return response

    def _take_head(self, response: http.client.HTTPResponse) -> None:
        """What the server states of itself. Raises StoreError for what contradicts itself, or an earlier answer."""
        start, end, total = 0, "", response.headers.get("Content-Length", "")
        if response.status == 206:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
            if found is None or int(found[1]) != self.position:
                stated = response.headers.get("Content-Range", "nothing")[:60]
                raise self._given_up(
                    f"bytes from {self.position} on were asked for, the server says it sends {stated!r}"
                )
            start, end, total = int(found[1]), found[2], found[3]
        elif response.status != 200:
            raise self._given_up(f"the server answers {response.status}")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise self._given_up("the server sends the file compressed, which was not asked for")
        if re.fullmatch(r"\d{1,18}", total, re.ASCII) is None:
            raise self._given_up("the server does not state how large the file is")
        mark = response.headers.get("ETag")
        mark = mark if mark is not None and mark.startswith('"') else None
        if self.total_bytes and (int(total), mark) != (self.total_bytes, self._mark):
            raise self._given_up("the file was changed on the server while it was fetched")
        if not self.total_bytes:
            self.ranges = response.status == 206
        self.total_bytes, self._mark, self._at = int(total), mark, start
        self._end = int(end) + 1 if end else self.total_bytes

    def _chunk(self, most: int) -> bytes:
        response = self._response
        if response is None or self.position < self._at or (self.ranges and self.position >= self._end):
            response = self._connect()
        while self._at < self.position:
            self._receive(response, min(DISCARD, self.position - self._at))
        return self._receive(response, most)

    def _receive(self, response: http.client.HTTPResponse, most: int) -> bytes:
        chunk = response.read1(most)
        if not chunk:
            raise _SourceFailed("the connection ended before the file did")
        self._at += len(chunk)
        self.moved_bytes += len(chunk)
        self._keep_pace()
        return chunk

    def _keep_pace(self) -> None:
        """Not faster than the operator allows; a connection that is next to still is given up."""
        now_s, rate = self._options.now_s(), self._options.bytes_per_s
        if rate is not None and (ahead_s := self.moved_bytes / rate - (now_s - self._began_s)) > 0.0:
            self._options.sleep(ahead_s)
        since_s, moved = self._watched
        if now_s - since_s < SLOW_S or (rate is not None and rate * SLOW_S < 2 * SLOW_BYTES):
            return
        if self.moved_bytes - moved < SLOW_BYTES:
            raise _SourceFailed(f"less than {SLOW_BYTES // limits.KIB} KiB came in {SLOW_S:.0f} s")
        self._watched = (now_s, self.moved_bytes)
