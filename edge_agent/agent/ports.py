"""What the agent needs from the rooms beside it, as protocols; `app` hands it the real ones, tests their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from edge_agent.base.causes import DeathCause, WorkerDeath
from edge_agent.base.reading import Reading
from edge_agent.bundle.catalog import Adapter, InstalledModel, TaskSpec, Variant
from edge_agent.core.memory_ledger import FootprintKey, MeasuredFootprint
from edge_agent.core.residency import HostMemory
from edge_agent.protocol.envelope import NO_LISTENER, Inbound, LinkListener, Outbound
from edge_agent.protocol.worker_messages import (
    AdapterAttached,
    AnyEvent,
    JobWork,
    LoadMemory,
    ModelLoaded,
    StepLimits,
    TextsMeasured,
)


class Transport(Protocol):
    """An MQTT connection that heals itself. Implemented by `mqtt.transport.MqttTransport`."""

    @property
    def connected(self) -> bool:
        """True between a successful CONNACK and the loss of the connection."""
        ...

    @property
    def max_payload_bytes(self) -> int:
        """The largest body that can be sent now: our own limit, or the broker's if that is smaller."""
        ...

    def alive(self) -> bool:
        """False when the link itself has stopped working; being offline is not that."""
        ...

    @property
    def events_waiting(self) -> int:
        """Events on disk that the broker has not acknowledged yet."""
        ...

    @property
    def events_lost(self) -> int:
        """Events that were given up since the start."""
        ...

    async def start(self, listener: LinkListener = NO_LISTENER) -> None:
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
    """The packages on this device. Implemented by `store.model_store.ModelStore`."""

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

    def sample_memory(self) -> Mapping[str, Reading]:
        """The part of `sample` about memory, asked several times a second: ram_, swap_, memory_pressure_, cgroup_."""
        ...

    def process_bytes(self, pid: int) -> Mapping[str, Reading]:
        """Bytes that a process holds: `pss`, and `mapped`, the part that is mapped from files."""
        ...


class Host(Protocol):
    """What the manager asks about its machine. Implemented by `agent.host_monitor.HostMonitor`."""

    def memory(self, mapped_bytes: int = 0) -> HostMemory:
        """Total and available RAM, less what models hold mapped from files and the kernel counts as available."""
        ...

    def process_bytes(self, pid: int) -> tuple[int, int] | None:
        """What a process holds (PSS) and the part of it mapped from files; None where that cannot be read."""
        ...

    def gpu_bytes(self) -> int:
        """What a Jetson's GPU holds of the shared memory for all processes; 0 elsewhere."""
        ...

    def most_rows(self) -> int:
        """Rows of a batch while nothing is wrong."""
        ...

    def worker_limits(self) -> StepLimits:
        """What the governor grants now; `decode_threads` where the operator has set them."""
        ...


class Clocks(Protocol):
    """The clock cap, where the operator permits it. Implemented by `actuators.clocks.ClockCap`."""

    @property
    def shares(self) -> tuple[float, ...]:
        """What may be asked for, as shares of the highest clock, descending; empty: this board has none to set."""
        ...

    def set(self, share: float) -> str | None:
        """Cap the clock; None, or the sentence why the board refused."""
        ...

    def restore(self) -> None:
        """Put back what was there before."""
        ...


class FootprintCache(Protocol):
    """What models were found to hold on this device, kept over restarts.

    Implemented by `store.footprint_cache.FootprintFile`."""

    def read(self) -> Mapping[FootprintKey, MeasuredFootprint]:
        """The figures by variant; empty where there are none, or none that can be believed."""
        ...

    def write(self, figures: Mapping[FootprintKey, MeasuredFootprint]) -> None:
        """Keep them, atomically. A disk that cannot is said in the log, not raised: the figures are a convenience."""
        ...


class Worker(Protocol):
    """A child process that holds one model. Implemented by `worker.supervisor.WorkerProcess`."""

    @property
    def pid(self) -> int:
        """The child's process id."""
        ...

    async def load(
        self, variant: Variant, task: TaskSpec, limits: StepLimits, memory: LoadMemory | None = None
    ) -> ModelLoaded:
        """Load a model. Raises BackendError, WorkerError."""
        ...

    async def attach(self, adapter: Adapter) -> AdapterAttached:
        """Make an adapter resident. Raises AdapterRefused, BackendError, WorkerError."""
        ...

    async def detach(self, name: str) -> None:
        """Forget an adapter. Raises WorkerError."""
        ...

    async def cancel(self, job_id: str) -> bool:
        """Drop a job; False when it has ended and its event is under way. Raises WorkerError."""
        ...

    async def measure(self, adapter: str | None, texts: Sequence[str]) -> TextsMeasured:
        """Raw outputs of texts, while no job is inside. Raises BackendError, WorkerError."""
        ...

    async def shrink(self) -> None:
        """Have it return freed memory to the system. Raises WorkerError."""
        ...

    def submit(self, jobs: Sequence[JobWork]) -> None:
        """Hand over a micro-batch; JobDone or JobFailed follows for each, before it TextChunk where it streams."""
        ...

    def set_limits(self, limits: StepLimits) -> None:
        """Pass on the governor's limits."""
        ...

    def kill(self, cause: DeathCause | None = None) -> None:
        """End it at once; `cause` is what its death is reported with, None: what the exit status tells."""
        ...

    async def close(self) -> None:
        """End it in order, within a bounded time; at once when this is cancelled."""
        ...


class WorkerListener(Protocol):
    """Hears one worker."""

    def on_event(self, event: AnyEvent) -> None:
        """The worker says something by itself."""
        ...

    def on_death(self, death: WorkerDeath) -> None:
        """The worker is gone and was not asked to go; called once, and nothing is called after it."""
        ...


class Spawner(Protocol):
    """Starts workers. Implemented by `worker.supervisor.spawn` with its options bound."""

    async def __call__(self, listener: WorkerListener) -> Worker:
        """A new child, which `listener` hears. Raises WorkerError."""
        ...


class Notifier(Protocol):
    """The service manager. Implemented by `lifecycle.supervision.SystemdNotifier`."""

    def ready(self) -> None:
        """Start-up is over."""
        ...

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        ...

    def watchdog(self) -> None:
        """The agent is alive and well."""
        ...

    def extend_timeout(self, seconds: float) -> None:
        """Start-up goes on for up to `seconds` more."""
        ...

    def stopping(self) -> None:
        """Shutdown has begun."""
        ...
