"""The console's page, and a web server for it on this machine.

The server hands out one page and knows nothing else: the browser itself speaks to the broker, by MQTT over WebSockets.
Any other web server does as well, and so does the file opened from the disk.

A file of its own because it knows the page alone: no settings, no command line.
"""

from __future__ import annotations

import re
import socketserver
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("index.html")
IDLE_S = 10.0
"""A browser opens connections in advance and keeps them."""
CONNECTIONS = 64
_POLICY = re.compile(rb'http-equiv="Content-Security-Policy" content="([^"]+)"')


def page() -> bytes:
    """The page as it is shipped."""
    return PAGE.read_bytes()


def policy(html: bytes) -> str:
    """The content security policy that the page names itself, and that no other page may frame it, which only a header
    can say."""
    found = _POLICY.search(html)
    own = found[1].decode("ascii") if found else "default-src 'none'"
    return f"{own}; frame-ancestors 'none'"


class PageServer(ThreadingHTTPServer):
    """Serves the page at `/` on `address`, until `shutdown`; further `connections` are closed. Raises OSError where it
    cannot listen."""

    # Their number is bounded by `connections`.
    request_queue_size = CONNECTIONS
    daemon_threads = True
    # A second console on the same port would take half of the connections.
    allow_reuse_port = False

    def __init__(self, address: tuple[str, int], html: bytes, connections: int = CONNECTIONS) -> None:
        self.html = html
        self._room = threading.BoundedSemaphore(connections)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for each connection, as long as there is room; others are closed."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Give the room back at the end of the connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is nothing to report."""

    def server_bind(self) -> None:
        """Bind, without asking a name server for this machine's name as `HTTPServer` does."""
        socketserver.TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = IDLE_S
    protocol_version = "HTTP/1.1"
    server_version = "edge-agent"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        found = self.path.split("?", 1)[0] in {"/", "/index.html"}
        body = self.server.html if found else b"the console is at /\n"
        self.send_response(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)
        self.send_header("Content-Type", f"text/{'html' if found else 'plain'}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", policy(self.server.html))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: each line would be a browser that looks again."""
