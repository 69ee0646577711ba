"""`edge-agent metrics`: an exporter for Prometheus, over HTTP or as a text file for node_exporter, or to an
OpenTelemetry collector, with spans; and the dashboards and alert rules that go with it, as files.

A file of its own because it alone needs prometheus_client.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.resources
import importlib.util
import signal
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.app.ask import target
from edge_agent.base.errors import UsageError
from edge_agent.client.device_feed import Heard, hear

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from edge_agent.exporter.device_metrics import DeviceMetrics
    from edge_agent.exporter.otlp import RequestSpans

SHORTEST_S, LONGEST_S = 1.0, 3600.0


def metrics(arguments: argparse.Namespace) -> int:
    """Export until Ctrl-C or SIGTERM, or write the dashboards. Raises UsageError."""
    if arguments.dashboards is not None:
        _write_dashboards(arguments.dashboards)
        return 0
    if importlib.util.find_spec("prometheus_client") is None:
        raise UsageError(
            "prometheus_client is not installed",
            "metrics",
            "pip install prometheus_client (the extra `metrics` names it)",
        )
    from prometheus_client import CollectorRegistry

    from edge_agent.exporter.device_metrics import KINDS, DeviceMetrics, MetricsCollector

    if not SHORTEST_S <= arguments.interval <= LONGEST_S:
        raise UsageError(f"--interval is {arguments.interval:g}; {SHORTEST_S:g} to {LONGEST_S:g} seconds are possible")
    place = target(arguments)
    known = DeviceMetrics()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MetricsCollector(known))

    async def run() -> None:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        device = "+" if arguments.all else place.device
        with _published(arguments, registry) as file, _sent_by_otlp(arguments, known) as spans:
            written_s, broker = 0.0, _BrokerNotes()
            kinds = (*KINDS, *(() if spans is None else ("trace",)))
            async with contextlib.aclosing(hear(place.options, place.prefix, device, kinds, None)) as feed:
                async for heard in feed:
                    now_s = time.monotonic()
                    known.connection(heard.connected)
                    broker.note(heard)
                    if heard.kind == "trace" and spans is not None:
                        if not spans.take(heard.device, heard.payload, time.time()):
                            known.count_unreadable()
                    elif heard.kind:
                        known.take(heard.device, heard.kind, heard.payload, now_s)
                    if file is not None and now_s - written_s >= arguments.interval:
                        _write(file, registry)
                        written_s = now_s

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run())
    return 0


class _BrokerNotes:
    """Says on stderr why there is no broker, once for each reason, and when it is back."""

    def __init__(self) -> None:
        self._said = ""

    def note(self, heard: Heard) -> None:
        """What was heard last."""
        if heard.trouble == self._said:
            return
        said = f"no broker, tried again: {heard.trouble}" if heard.trouble else "the broker is there again"
        print(f"edge-agent: {said}", file=sys.stderr, flush=True)
        self._said = heard.trouble


@contextlib.contextmanager
def _published(arguments: argparse.Namespace, registry: CollectorRegistry) -> Iterator[Path | None]:
    """The text file to write, or None while HTTP serves, or all goes to a collector. The file goes with the exporter:
    what it says would stay true for ever."""
    path: Path | None = arguments.textfile
    if arguments.otlp is not None:
        yield None
        return
    if path is not None:
        if path.suffix != ".prom":
            raise UsageError(f"{path} is not read by node_exporter", "--textfile", "name it *.prom")
        _write(path, registry)
        print(f"metrics go to {path} every {arguments.interval:g} s; Ctrl-C ends it", flush=True)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
        return
    from prometheus_client import make_wsgi_app

    from edge_agent.exporter.scrape_server import serving

    shown = f"[{arguments.listen}]" if ":" in arguments.listen else arguments.listen
    with contextlib.ExitStack() as stack:
        try:
            port = stack.enter_context(serving(arguments.listen, arguments.listen_port, make_wsgi_app(registry)))
        except OSError as error:
            where = f"{shown}:{arguments.listen_port}"
            raise UsageError(f"cannot listen on {where}: {error.strerror}", "metrics") from error
        print(f"metrics on http://{shown}:{port}/metrics; Ctrl-C ends it", flush=True)
        yield None


@contextlib.contextmanager
def _sent_by_otlp(arguments: argparse.Namespace, known: DeviceMetrics) -> Iterator[RequestSpans | None]:
    """What takes the reports of traced requests while metrics and spans go to a collector; None where none is named."""
    url: str | None = arguments.otlp
    if url is None:
        yield None
        return
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is no address of a collector", "--otlp", "such as http://localhost:4318")
    if arguments.textfile is not None:
        raise UsageError("metrics go to a collector or into a text file", "--otlp", "start a second one for the other")
    if importlib.util.find_spec("opentelemetry") is None:
        raise UsageError(
            "opentelemetry-sdk is not installed", "metrics", "pip install 'edge-agent[otlp]' (--otlp needs that extra)"
        )
    from edge_agent.exporter.otlp import exporting

    with exporting(url, known, arguments.interval) as spans:
        print(f"metrics and spans go to {url} every {arguments.interval:g} s; Ctrl-C ends it", flush=True)
        yield spans


def _write_dashboards(folder: Path) -> None:
    """Grafana's dashboards and Prometheus' alert rules, each in its file. What was there under these names is replaced,
    so that an upgrade can write them anew."""
    shipped = importlib.resources.files("edge_agent.exporter") / "monitoring"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(shipped.iterdir(), key=lambda file: file.name):
            (folder / file.name).write_bytes(file.read_bytes())
            print(folder / file.name)
    except OSError as error:
        raise UsageError(f"{error.filename or folder} cannot be written: {error.strerror}", "--dashboards") from error


def _write(path: Path, registry: CollectorRegistry) -> None:
    """In one rename, as node_exporter may read it at any time."""
    from prometheus_client import write_to_textfile

    try:
        write_to_textfile(str(path), registry)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "--textfile") from error
