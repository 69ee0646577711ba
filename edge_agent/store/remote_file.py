"""A file on an HTTP server, read forwards, that goes on where a connection broke off.

Ranges are asked for from the first request on. A server that does not know them sends the whole file, and what lies
before the position is read and thrown away. What a server states of itself (size, place, mark) is compared at every
answer. No size, another size or another mark is an error with a sentence; so is a connection that brings next to
nothing, in its head, in its body, or by ranges of a few bytes. A redirection leads to no less protected scheme, and
to no address that is nearer to this device than the server that was named (`Reach`).

A file of its own because it knows HTTP and nothing of packages. The daemon never imports it: urllib costs memory.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import http.client
import ipaddress
import os
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar

from edge_agent import __version__
from edge_agent.base import limits
from edge_agent.base.causes import Cause
from edge_agent.base.errors import PackageError, StoreError, UsageError

SCHEMES = ("http", "https")
TIMEOUT_S = 30.0
TRIES = 5
"""Connections in a row that bring next to nothing, with pauses of 1, 2, 4 and 8 s; then the source is given up."""
MOST_RENEWALS = 3
"""Challenges in a row that a server is answered without giving a byte."""
SLOW_S, SLOW_BYTES = 60.0, 60 * limits.KIB
"""A connection that brings less in that time is broken off: a byte every half minute would hold it for ever."""
HEAD_S = 60.0
"""From the first connection to the last header of an answer, redirections included. A time for each read alone lets a
server drip its headers, or send `100 Continue` without end."""
SHORT_BYTES = 4 * limits.KIB
"""A range that is cut short by the server to less than that is no progress."""
BURST_S = 1.0
"""What the operator's limit allowed and nobody used is kept so long: a server that stalls is not made up for."""
WINDOW = 32 * limits.KIB
"""So much is asked for at once where it is not known how much is needed: the heads of a tar."""
DISCARD = 64 * limits.KIB
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
"""More digits are no place in a file, and `int` refuses thousands of them."""
T = TypeVar("T")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Distance(enum.IntEnum):
    """How far an address is from this device."""

    DEVICE = 0
    LINK = 1
    SITE = 2
    WORLD = 3


_PLACES: Mapping[Distance, str] = {
    Distance.DEVICE: "this device itself",
    Distance.LINK: "an address of the local link",
    Distance.SITE: "an address of a private network",
    Distance.WORLD: "a public address",
}


def distance(address: str) -> Distance:
    """Of an IP address as the resolver gives it; one of IPv4 that IPv6 wraps counts as itself."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        found = inner or found
    if found.is_loopback or found.is_unspecified:
        return Distance.DEVICE
    if found.is_link_local:
        return Distance.LINK
    return Distance.WORLD if found.is_global else Distance.SITE


class RedirectionRefused(StoreError):
    """A server sends this device to where it does not go."""

    def __init__(self, what: str, remedy: str = "name that server itself where it is the right one") -> None:
        super().__init__(what, None, remedy, Cause.SOURCE)


class Reach:
    """What the server that was named may send this device to: an address as far as its own, or farther.

    A server in the world that redirects into the network of the device, or any server that redirects to services of
    the device itself, would have the device ask what it cannot reach itself. `named`: how far the one that was named
    is, from its last connection. What a proxy asks is the proxy's matter, who resolves names for itself.
    """

    def __init__(self) -> None:
        self.named = Distance.WORLD

    def way(self, request: urllib.request.Request, sent: bool) -> Callable[..., socket.socket]:
        """How to connect for a request; `sent`: a server has named its place. urllib marks what it asks for a
        redirection's sake as unverifiable."""
        if request.has_proxy() or getattr(request, "_tunnel_host", None):
            return socket.create_connection
        return self.connect_sent if sent or request.unverifiable else self.connect_named

    def connect_named(self, to: tuple[str, int], *more: Any) -> socket.socket:
        """A connection to the host and port that were named. Raises OSError."""
        found = socket.create_connection(to, *more)
        self.named = distance(found.getpeername()[0])
        return found

    def connect_sent(self, to: tuple[str, int], *more: Any) -> socket.socket:
        """A connection to where a server has sent. Raises RedirectionRefused where it may not, OSError."""
        # Resolved once: a second answer of the resolver could be another one.
        addresses = [str(place[4][0]) for place in socket.getaddrinfo(*to, type=socket.SOCK_STREAM)]
        for address in addresses:
            if (near := distance(address)) < self.named:
                shown = "" if to[0] == address else f" ({address})"
                text = f"it sends on to {to[0][:100]}{shown}, {_PLACES[near]}, and is {_PLACES[self.named]} itself"
                raise RedirectionRefused(text)
        failed = OSError(f"{to[0][:100]} has no address")
        for address in addresses:
            try:
                return socket.create_connection((address, to[1]), *more)
            except OSError as error:
                failed = error
        raise failed


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
    head_s: float = HEAD_S
    sleep: Callable[[float], None] = time.sleep
    now_s: Callable[[], float] = time.monotonic


class _SourceFailed(Exception):
    """The connection is of no use any more; another one may be."""


class TransferPace:
    """Counts what is read of bodies, and keeps to the operator's limit, over all files of one download."""

    def __init__(self, options: TransferOptions) -> None:
        self.moved_bytes = 0
        self._options = options
        self._due_s = options.now_s()

    def took(self, count: int) -> None:
        """So many bytes were read; waits where that was faster than is allowed."""
        self.moved_bytes += count
        if (rate := self._options.bytes_per_s) is None:
            return
        now_s = self._options.now_s()
        self._due_s = max(self._due_s, now_s - BURST_S) + count / rate
        if self._due_s > now_s:
            self._options.sleep(self._due_s - now_s)


class Access(Protocol):
    """What a server wants to know of who asks. Implemented by `registry.RegistryAccess`."""

    reach: Reach
    """Where the server that was named may send to."""

    def headers(self) -> Mapping[str, str]:
        """To send with every request, and to no server that it redirects to."""
        ...

    def renew(self, challenge: str) -> bool:
        """The server answered 401 with this `WWW-Authenticate`; whether it is worth asking again. Raises StoreError."""
        ...


class HeadLimit:
    """Ends connections whose answers have not begun in time. Use as a context manager around `urlopen`."""

    def __init__(self, limit_s: float) -> None:
        self.over = False
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._begun = threading.Event()
        self._waiting: threading.Thread | None = None

    def watch(self, connected: socket.socket) -> socket.socket:
        """A connection was made. It is held by a descriptor of its own: TLS takes the first one over."""
        with self._lock:
            self._sockets.append(socket.socket(fileno=os.dup(connected.fileno())))
            if self.over:
                self._sockets[-1].shutdown(socket.SHUT_RDWR)
        return connected

    def __enter__(self) -> HeadLimit:
        self.over = False
        self._begun.clear()
        self._waiting = threading.Thread(target=self._wait, name="head-limit", daemon=True)
        self._waiting.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._begun.set()
        if self._waiting is not None:
            self._waiting.join()
        while self._sockets:
            self._sockets.pop().close()

    def _wait(self) -> None:
        if self._begun.wait(self._limit_s):
            return
        with self._lock:
            self.over = True
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)


class _WatchedHttp(urllib.request.HTTPHandler):
    def __init__(self, limit: HeadLimit, reach: Reach, sent: bool) -> None:
        super().__init__()
        self._limit, self._reach, self._sent = limit, reach, sent

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(functools.partial(_Connection, self._limit, self._reach.way(req, self._sent)), req)


class _WatchedHttps(urllib.request.HTTPSHandler):
    def __init__(self, limit: HeadLimit, reach: Reach, sent: bool) -> None:
        super().__init__()
        self._limit, self._reach, self._sent = limit, reach, sent

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(functools.partial(_TlsConnection, self._limit, self._reach.way(req, self._sent)), req)


class _Connection(http.client.HTTPConnection):
    """Tells `limit` of itself as soon as there is a socket."""

    def __init__(self, limit: HeadLimit, connect: Callable[..., socket.socket], *place: Any, **options: Any) -> None:
        super().__init__(*place, **options)
        # No public way reaches the socket before TLS speaks on it.
        self._create_connection = lambda *to: limit.watch(connect(*to))


class _TlsConnection(http.client.HTTPSConnection):
    """Tells `limit` of itself as soon as there is a socket."""

    def __init__(self, limit: HeadLimit, connect: Callable[..., socket.socket], *place: Any, **options: Any) -> None:
        super().__init__(*place, **options)
        self._create_connection = lambda *to: limit.watch(connect(*to))


def _host(url: str) -> str:
    """Host and port, as written."""
    return urllib.parse.urlsplit(url).netloc.lower()


def _never_tls(reason: object) -> bool:
    """TLS did not come about, as with a certificate that is not trusted or a server without TLS: the next connection
    would meet the same. One that merely broke off is another matter."""
    broke_off = isinstance(reason, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError))
    return isinstance(reason, ssl.SSLError) and not broke_off


def opener(limit: HeadLimit, reach: Reach, sent: bool = False) -> urllib.request.OpenerDirector:
    """Opens URLs, follows redirections as far as `reach` allows, and lets `limit` end what does not begin to answer.
    `sent`: the URLs themselves are what a server has sent to."""
    handlers = (_Redirects(), _WatchedHttp(limit, reach, sent), _WatchedHttps(limit, reach, sent))
    return urllib.request.build_opener(*handlers)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections to http and https, never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """See `urllib.request.HTTPRedirectHandler`. Raises RedirectionRefused."""
        before, place = urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl)
        if place.scheme not in SCHEMES or (before == "https" and place.scheme != "https"):
            whom = f"to {place.hostname[:100]} " if place.hostname else ""
            text = f"it sends on {whom}from {before} to {place.scheme[:20] or 'no scheme'}"
            raise RedirectionRefused(text, "packages are fetched by http and https, and after https by https alone")
        # Python 3.10 follows no 308, which is a 307 that may be remembered.
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """See `urllib.request.HTTPRedirectHandler`, which leaves the answer open where its place cannot be asked."""
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except (ValueError, RedirectionRefused):
            fp.close()
            raise
        except urllib.error.HTTPError as error:
            if error.fp is not fp:  # the answer of where it was sent to
                raise
            fp.close()
            raise RedirectionRefused(f"it sends on without an end, or nowhere: {str(error.reason)[:200]}") from error

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class RemoteFile:
    """The file at `url`. `total_bytes` and `ranges` are known after `open`; `moved_bytes`: what was read of bodies."""

    def __init__(
        self,
        url: str,
        options: TransferOptions,
        pace: TransferPace | None = None,
        access: Access | None = None,
        total_bytes: int | None = None,
    ) -> None:
        """`pace`: shared by the files of one download; `access`: where the server asks who wants it; `total_bytes`:
        where that is known, so that nothing needs to be asked first and `open` may be left out."""
        self.url = check_url(url)
        self.position = 0
        self.total_bytes = total_bytes or 0
        self.ranges = False
        self._answered = False
        self._pace = pace or TransferPace(options)
        self._access = access
        self._options = options
        self._limit = HeadLimit(options.head_s)
        self._opener = opener(self._limit, Reach() if access is None else access.reach)
        self._response: http.client.HTTPResponse | None = None
        # Where the response stands and ends, up to where is read on, and the mark (a strong ETag) of the file.
        self._at = self._end = self._aim = 0
        self._mark: str | None = None
        # When the connection began to be watched for its speed, and what had been moved by then.
        self._watched: tuple[float, int] = (0.0, 0)
        # What the caller was given: what a server without ranges sends again on the way there is no progress.
        self._given_bytes = self._given_at_failure = 0
        self._renewals, self._given_at_renewal = 0, 0
        self._failures = 0

    @property
    def moved_bytes(self) -> int:
        """Bytes of bodies that were read, in the whole download."""
        return self._pace.moved_bytes

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
                access, challenge = self._access, error.headers.get("WWW-Authenticate", "")
                # A server that it was redirected to is not the one that credentials are for.
                asked = _host(error.url or "") == _host(self.url)
                if error.code == 401 and access is not None and asked and self._may_renew() and access.renew(challenge):
                    continue
                if 400 <= error.code < 500 and error.code not in (408, 429):
                    raise self._given_up(f"the server answers {error.code} {error.reason}") from error
                self._note_failure(f"the server answers {error.code} {error.reason}", error)
            # ValueError: a redirection to what is no URL, or to a host that can have no name.
            except (OSError, http.client.HTTPException, ValueError, _SourceFailed) as error:
                reason = getattr(error, "reason", None) or error
                if _never_tls(reason):
                    raise self._given_up(f"no TLS can be spoken there: {reason}") from error
                self._note_failure(f"{reason}" or type(error).__name__, error)

    def _may_renew(self) -> bool:
        """False for a server that asks again and again who wants to read, and gives nothing in between."""
        if self._given_bytes > self._given_at_renewal:
            self._renewals, self._given_at_renewal = 0, self._given_bytes
        self._renewals += 1
        return self._renewals <= MOST_RENEWALS

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
        for name, value in ({} if self._access is None else self._access.headers()).items():
            request.add_unredirected_header(name, value)
        late = f"its answer did not begin within {self._options.head_s:.0f} s"
        with self._limit:
            try:
                response: http.client.HTTPResponse = self._opener.open(request, timeout=self._options.timeout_s)
            except RedirectionRefused as error:
                raise StoreError(error.what, self.url, error.remedy, Cause.SOURCE) from error
            except (OSError, http.client.HTTPException, ValueError) as error:
                if self._limit.over:
                    raise _SourceFailed(late) from error
                raise
        with contextlib.ExitStack() as stack:
            stack.callback(response.close)
            if self._limit.over:  # headers that were cut off count as whole
                raise _SourceFailed(late)
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
            self._check_span(start, int(end), int(total))
        elif response.status != 200:
            raise self._given_up(f"the server answers {response.status}")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise self._given_up("the server sends the file compressed, which was not asked for")
        # Chunks have heads of their own, which could be dripped for ever.
        if response.chunked or re.fullmatch(r"\d{1,18}", total, re.ASCII) is None:
            raise self._given_up("the server does not state how large the file is")
        mark = response.headers.get("ETag")
        mark = mark if mark is not None and mark.startswith('"') else None
        if self._answered and (int(total), mark) != (self.total_bytes, self._mark):
            raise self._given_up("the file was changed on the server while it was fetched")
        if not self._answered and self.total_bytes not in (0, int(total)):
            raise self._given_up(f"the server states {int(total)} bytes, {self.total_bytes} were expected")
        if not self._answered:
            self.ranges = response.status == 206
        self._answered = True
        self.total_bytes, self._mark, self._at = int(total), mark, start
        self._end = int(end) + 1 if end else self.total_bytes

    def _check_span(self, start: int, end: int, total: int) -> None:
        """A server may send less than was asked for; one that sends next to nothing would be asked for ever."""
        asked = min(max(start + WINDOW, self._aim), total) - start
        if end + 1 - start < min(asked, SHORT_BYTES):
            raise _SourceFailed(f"of {asked} bytes that were asked for it sends {max(0, end + 1 - start)}")

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
        self._pace.took(len(chunk))
        self._check_speed()
        return chunk

    def _check_speed(self) -> None:
        """A connection that is next to still is given up."""
        now_s, rate = self._options.now_s(), self._options.bytes_per_s
        since_s, moved = self._watched
        if now_s - since_s < SLOW_S or (rate is not None and rate * SLOW_S < 2 * SLOW_BYTES):
            return
        if self.moved_bytes - moved < SLOW_BYTES:
            raise _SourceFailed(f"less than {SLOW_BYTES // limits.KIB} KiB came in {SLOW_S:.0f} s")
        self._watched = (now_s, self.moved_bytes)
