"""The HTTP server that Prometheus scrapes: bounded in connections and in the time of each.

A file of its own because the server of prometheus_client waits for ever for a request, in a thread per connection: who
reaches the port could fill the exporter's memory by connections that say nothing.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

Application = Callable[..., Iterable[bytes]]
CONNECTIONS = 16
"""At once, each a thread; more are hung up on. Prometheus keeps one."""
SCRAPE_S = 10.0
"""From the connection to the end of the answer; Prometheus itself waits ten seconds."""


class ScrapeServer(ThreadingMixIn, WSGIServer):
    """Serves `application` on an address of IPv4 or IPv6; port 0 is a free one. Raises OSError."""

    daemon_threads = True

    def __init__(self, host: str, port: int, application: Application) -> None:
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__((host, port), _Handler)
        self.set_app(application)

    def process_request(self, request: Any, client_address: Any) -> None:
        """See `socketserver`."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """See `socketserver`."""
        timer = threading.Timer(SCRAPE_S, _hang_up, (request,))
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing is said of a connection that broke, which is the client's matter."""


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not logged."""


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serving(host: str, port: int, application: Application) -> Iterator[int]:
    """Serve for the length of the block; gives the port. Raises OSError where the address cannot be had."""
    server = ScrapeServer(host, port, application)
    thread = threading.Thread(target=server.serve_forever, name="scrapes", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
