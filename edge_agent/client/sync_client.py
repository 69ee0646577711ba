"""The client library without asyncio: the same calls, which wait. A thread runs the event loop; the calls may come from
any number of threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from edge_agent.base.errors import UsageError
from edge_agent.client.answers import Answer, Embedding, StreamPart
from edge_agent.client.async_client import DEADLINE_S, ORDER_S, RETRIES, AsyncClient, Question
from edge_agent.mqtt.options import MqttOptions
from edge_agent.protocol.messages import Models, Status

T = TypeVar("T")


class Client:
    """`with Client("localhost", device="pi") as edge: print(edge.ask("minilm", "it is dark").label)`.

    Arguments, calls and exceptions are those of `AsyncClient`.
    """

    def __init__(
        self,
        broker: str | MqttOptions = "localhost",
        device: str | None = None,
        *,
        prefix: str = "edge/v1",
        deadline_s: float = DEADLINE_S,
        retries: int = RETRIES,
        devices: Sequence[str] = (),
    ) -> None:
        self._client = AsyncClient(
            broker, device, prefix=prefix, deadline_s=deadline_s, retries=retries, devices=devices
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Client:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self, timeout_s: float = 10.0) -> None:
        """See `AsyncClient.connect`."""
        if self._loop is not None:
            raise UsageError("this client is connected already", "client")
        # A selector loop on every system: the connection waits for its socket with add_reader.
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="edge-agent-client", daemon=True)
        self._thread.start()
        with contextlib.ExitStack() as failed:
            failed.callback(self._end)
            self._wait(self._client.connect(timeout_s))
            failed.pop_all()

    def close(self) -> None:
        """See `AsyncClient.close`."""
        if self._loop is not None:
            try:
                self._wait(self._client.close())
            finally:
                self._end()

    @property
    def connected(self) -> bool:
        """Whether the broker is there now."""
        return self._client.connected

    def ask(
        self,
        model: str,
        question: Question,
        *,
        adapter: str | None = None,
        deadline_s: float | None = None,
        priority: int | None = None,
        request_id: str | None = None,
        **params: Any,
    ) -> Answer:
        """See `AsyncClient.ask`."""
        return self._wait(
            self._client.ask(
                model,
                question,
                adapter=adapter,
                deadline_s=deadline_s,
                priority=priority,
                request_id=request_id,
                **params,
            )
        )

    def stream(
        self,
        model: str,
        question: Question,
        *,
        adapter: str | None = None,
        deadline_s: float | None = None,
        priority: int | None = None,
        request_id: str | None = None,
        **params: Any,
    ) -> Iterator[StreamPart]:
        """See `AsyncClient.stream`."""
        parts = self._client.stream(
            model,
            question,
            adapter=adapter,
            deadline_s=deadline_s,
            priority=priority,
            request_id=request_id,
            **params,
        )
        try:
            while (part := self._wait(_next(parts))) is not None:
                yield part
        finally:
            with contextlib.suppress(UsageError):  # the client was closed meanwhile
                self._wait(_close(parts))

    def embed(
        self,
        model: str,
        texts: Sequence[str],
        *,
        adapter: str | None = None,
        deadline_s: float | None = None,
        priority: int | None = None,
    ) -> list[Embedding]:
        """See `AsyncClient.embed`."""
        return self._wait(self._client.embed(model, texts, adapter=adapter, deadline_s=deadline_s, priority=priority))

    def cancel(self, model: str, request_id: str) -> None:
        """See `AsyncClient.cancel`."""

        async def cancel() -> None:
            self._client.cancel(model, request_id)

        self._wait(cancel())

    def order(
        self, name: str, *, device: str | None = None, deadline_s: float = ORDER_S, **fields: Any
    ) -> Mapping[str, Any]:
        """See `AsyncClient.order`."""
        return self._wait(self._client.order(name, device=device, deadline_s=deadline_s, **fields))

    def status(self, device: str | None = None) -> Status:
        """See `AsyncClient.status`."""
        return self._wait(self._client.status(device))

    def models(self, device: str | None = None) -> Models:
        """See `AsyncClient.models`."""
        return self._wait(self._client.models(device))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the loop's thread. Whoever is interrupted while waiting (Ctrl-C) withdraws it."""
        if self._loop is None:
            work.close()
            raise UsageError("this client is not connected", "client", "use it in a `with` block")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # without effect on what is done

    def _end(self) -> None:
        loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        with contextlib.suppress(concurrent.futures.CancelledError):
            asyncio.run_coroutine_threadsafe(_end_tasks(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _next(parts: Any) -> StreamPart | None:
    found: StreamPart | None = await anext(parts, None)
    return found


async def _close(parts: Any) -> None:
    await parts.aclose()


async def _end_tasks() -> None:
    """Cancel what other threads still wait for, and wait until it has ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
