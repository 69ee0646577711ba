"""A collector that keeps what it is sent by OTLP over HTTP, decoded with OpenTelemetry's own protobuf classes."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


class Collector:
    """`spans`: (resource's attributes, span) as they came; `metrics`: the newest points by (name, attributes)."""

    def __init__(self) -> None:
        self.url = ""
        self.refuses = False
        self.spans: list[tuple[dict[str, Any], Any]] = []
        self.metrics: dict[tuple[str, tuple[tuple[str, Any], ...]], tuple[str, str, float]] = {}

    def take(self, path: str, body: bytes) -> None:
        """One export. Raises DecodeError for what is no protobuf of that kind."""
        if path == "/v1/traces":
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                told = _attributes(group.resource.attributes)
                self.spans += [(told, span) for scope in group.scope_spans for span in scope.spans]
            return
        assert path == "/v1/metrics", path
        for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for metric in (metric for scope in group.scope_metrics for metric in scope.metrics):
                kind = metric.WhichOneof("data")
                for point in getattr(metric, kind).data_points:
                    labels = tuple(sorted(_attributes(point.attributes).items()))
                    self.metrics[metric.name, labels] = (kind, metric.unit, point.as_double)

    def named(self, name: str) -> list[Any]:
        """The spans of that name."""
        return [span for _, span in self.spans if span.name == name]

    @staticmethod
    def attributes(span: Any) -> dict[str, Any]:
        """A span's attributes."""
        return _attributes(span.attributes)


@contextmanager
def collector() -> Iterator[Collector]:
    """One that listens on a free port of this machine."""
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/x-protobuf"
            if not found.refuses:
                found.take(self.path, gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(400 if found.refuses else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Not logged."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
