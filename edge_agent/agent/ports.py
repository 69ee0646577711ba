"""What the agent needs from the rooms beside it, as protocols; `app` hands it the real ones, tests their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from edge_agent.base.reading import Reading
from edge_agent.bundle.catalog import InstalledModel
from edge_agent.protocol.envelope import Inbound, Outbound


class Transport(Protocol):
    """An MQTT connection that heals itself. Implemented by `mqtt.link.MqttTransport`."""

    @property
    def connected(self) -> bool:
        """True between a successful CONNACK and the loss of the connection."""
        ...

    async def start(self) -> None:
        """Begin to connect, and to reconnect for ever with full jitter; returns at once. Offline is not a failure."""
        ...

    def messages(self) -> AsyncIterator[Inbound]:
        """What arrives on the subscribed topics, in order."""
        ...

    def ack(self, message: Inbound) -> None:
        """Acknowledge a QoS 1 message once the agent has taken responsibility for it."""
        ...

    def publish(self, message: Outbound) -> bool:
        """Hand a message over without waiting. False when it cannot be sent now (offline, outbox full)."""
        ...

    async def stop(self, last_words: Sequence[Outbound]) -> None:
        """Publish `last_words`, wait a bounded time for them, disconnect cleanly (which suppresses the will)."""
        ...


class Library(Protocol):
    """The packages on this device. Implemented by `store.library.Library`."""

    def active(self) -> tuple[InstalledModel, ...]:
        """Every active model with its chosen variant and adapters."""
        ...

    def generation(self) -> int:
        """A number that changes whenever `active()` may have changed, cheap to ask (one stat)."""
        ...


class Sensors(Protocol):
    """The board's sensors. Implemented in `app` over the `sensors` room."""

    def sample(self) -> Mapping[str, Reading]:
        """One round over all sensors, by key: temperature, throttle, power, ram_available, ram_total and others."""
        ...


class Worker(Protocol):
    """One resident model in a child process. Implemented by `worker.supervisor.Worker`."""

    model: str

    async def attach(self, name: str) -> None:
        """Make an adapter resident."""
        ...


class Notifier(Protocol):
    """The service manager. Implemented by `lifecycle.notify.SystemdNotifier`."""

    def ready(self) -> None:
        """Start-up is over."""
        ...

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        ...

    def watchdog(self) -> None:
        """The agent is alive and well."""
        ...

    def stopping(self) -> None:
        """Shutdown has begun."""
        ...
