"""Protocols of what the agent needs from other packages; `app.daemon` passes the real objects, tests pass fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from edge_agent.base.causes import DeathCause
from edge_agent.base.reading import Reading
from edge_agent.base.texts import Text
from edge_agent.bundle.catalog import Adapter, InstalledModel, InstalledState, TaskSpec, Variant
from edge_agent.bundle.probes import ProbeFile
from edge_agent.core.memory_ledger import FootprintKey, MeasuredFootprint
from edge_agent.core.residency import HostMemory
from edge_agent.protocol.envelope import NO_LISTENER, Backlog, Inbound, LinkListener, Outbound
from edge_agent.protocol.worker_messages import (
    AdapterAttached,
    CompanyTexts,
    JobWork,
    LoadMemory,
    ModelLoaded,
    StepLimits,
    TextsMeasured,
    WorkerListener,
)


class Transport(Protocol):
    """An MQTT connection that reconnects by itself. Implemented by `mqtt.transport.MqttTransport`."""

    @property
    def connected(self) -> bool:
        """True between a successful CONNACK and the loss of the connection."""
        ...

    def payload_limit(self, message: Outbound) -> int:
        """Bytes of body that a message with this topic and these properties may have now: our own limit, or what a
        packet of the broker leaves."""
        ...

    @property
    def nearly_full(self) -> bool:
        """True while so much waits to be sent that no work should be begun that ends in another answer."""
        ...

    def waiting_of(self, client: str) -> Backlog:
        """The answers that wait to be sent: all, and those to this client."""
        ...

    def take_dropped(self) -> Mapping[str, int]:
        """Messages that were given up since the last call, by cause (`messages.Telemetry.dropped`)."""
        ...

    @property
    def troubles(self) -> Sequence[str]:
        """What is wrong with a connection that is up, a sentence each."""
        ...

    def alive(self) -> bool:
        """False when the tasks of the connection have stopped working; True while it is only offline."""
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
        """Begin to connect, and reconnect after every loss with full jitter; returns at once. `listener` is called from
        now on."""
        ...

    def messages(self) -> AsyncIterator[Inbound]:
        """What arrives on the subscribed topics, in order."""
        ...

    def ack(self, message: Inbound) -> None:
        """Acknowledge a QoS 1 message: the broker will not deliver it again."""
        ...

    def publish(self, message: Outbound) -> bool:
        """Queue a message to be sent. False when there is no room for it, or it can never be sent."""
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
        """A number that changes whenever `active()` may have changed; one stat call."""
        ...

    def proven(self, model: str) -> InstalledModel | None:
        """The version that answers while the active one is on trial; None where it cannot run. Raises StoreError."""
        ...

    def probes(self, model: InstalledModel, adapter: str | None = None) -> ProbeFile | None:
        """The golden probes of the model's variant, or of an adapter; None where there are none. Raises EdgeError."""
        ...

    def installed(self) -> Mapping[str, InstalledState]:
        """Every installed model, also one that cannot run. Raises StoreError."""
        ...


class Sensors(Protocol):
    """The board's sensors. Implemented by `sensors.suite.SensorSuite`."""

    def sample(self) -> Mapping[str, Reading]:
        """All sensors by key: temperature, throttle, power, ram_available, ram_total and others."""
        ...

    def sample_memory(self) -> Mapping[str, Reading]:
        """The part of `sample` about memory, read several times a second: ram_, swap_, memory_pressure_, cgroup_."""
        ...

    def process_bytes(self, pid: int) -> Mapping[str, Reading]:
        """Bytes that a process holds: `pss`, and `mapped`, the part that is mapped from files."""
        ...


class Host(Protocol):
    """What `ModelManager` needs to know of the board. Implemented by `agent.host_monitor.HostMonitor`."""

    def memory(self, mapped_bytes: int = 0) -> HostMemory:
        """Total and available RAM, less the bytes that models hold mapped from files, which the kernel counts as
        available."""
        ...

    def process_bytes(self, pid: int) -> tuple[int, int] | None:
        """Bytes that a process holds (PSS), and those of them mapped from files; None where that cannot be read."""
        ...

    def gpu_bytes(self) -> int:
        """Bytes of shared memory that a Jetson's GPU holds for all processes; 0 elsewhere."""
        ...

    def most_rows(self) -> int:
        """Rows of a batch without thermal limit."""
        ...

    def worker_limits(self) -> StepLimits:
        """What the governor grants now; `decode_threads` where the operator has set them."""
        ...


class Clocks(Protocol):
    """The clock cap, where the operator permits it. Implemented by `actuators.clock_cap.ClockCap`."""

    @property
    def shares(self) -> tuple[float, ...]:
        """The caps that can be set, as shares of the highest clock, descending; empty where the board has none."""
        ...

    def set(self, share: float) -> str | None:
        """Cap the clock. None, or the reason why the board refused."""
        ...

    def restore(self) -> None:
        """Restore the clock as it was before the first cap."""
        ...


class FootprintCache(Protocol):
    """Measured memory footprints of models on this device, kept over restarts.

    Implemented by `store.footprint_cache.FootprintFile`."""

    def read(self) -> Mapping[FootprintKey, MeasuredFootprint]:
        """The footprints by variant; empty where there are none, or the file is damaged."""
        ...

    def write(self, figures: Mapping[FootprintKey, MeasuredFootprint]) -> None:
        """Replace the stored footprints atomically. A failure is logged, not raised: they are measured again."""
        ...


class RetainedTopics(Protocol):
    """The topics on which the broker retains messages of this device, kept over restarts.

    Implemented by `store.retained_topics.RetainedFile`."""

    def read(self) -> Sequence[str]:
        """The topics; none where the file is missing or damaged."""
        ...

    def write(self, topics: Sequence[str]) -> None:
        """Replace the topics atomically. A failure is logged, not raised."""
        ...


class Worker(Protocol):
    """A child process that holds one model. Implemented by `worker.supervisor.WorkerProcess`."""

    @property
    def pid(self) -> int:
        """The child's process id."""
        ...

    async def load(
        self,
        variant: Variant,
        task: TaskSpec,
        limits: StepLimits,
        memory: LoadMemory | None = None,
        *,
        build: bool = True,
    ) -> ModelLoaded:
        """Load a model; `build`: see `LoadModel`. Raises EngineMissing, BackendError, WorkerError."""
        ...

    async def attach(self, adapter: Adapter) -> AdapterAttached:
        """Make an adapter resident. Raises AdapterRefused, BackendError, WorkerError."""
        ...

    async def detach(self, name: str) -> None:
        """Free an adapter. Raises WorkerError."""
        ...

    async def cancel(self, job_id: str) -> bool:
        """Drop a job; False when it has ended and its event is under way. Raises WorkerError."""
        ...

    async def measure(
        self, adapter: str | None, texts: Sequence[Text], company: Sequence[CompanyTexts] = ()
    ) -> TextsMeasured:
        """Raw outputs of texts, each alone or beside `company`, while no job is inside. Raises BackendError,
        WorkerError."""
        ...

    async def judge_engine(self, passed: bool) -> None:
        """Have the model's engine kept, or deleted. Raises WorkerError."""
        ...

    async def shrink(self) -> None:
        """Make the child return freed memory to the system. Raises WorkerError."""
        ...

    def submit(self, jobs: Sequence[JobWork]) -> None:
        """Send a batch of jobs; the listener gets JobDone or JobFailed for each, before that TextChunk for a stream."""
        ...

    def set_limits(self, limits: StepLimits) -> None:
        """Set the limits for the next steps."""
        ...

    def kill(self, cause: DeathCause | None = None) -> None:
        """End the child at once. Its death is reported with `cause` (None: the cause that the exit status shows)."""
        ...

    async def close(self) -> None:
        """End the child in order, within a bounded time; at once when this is cancelled."""
        ...


class Spawner(Protocol):
    """Starts workers. Implemented by `worker.supervisor.spawn` with its options bound."""

    async def __call__(self, listener: WorkerListener) -> Worker:
        """Start a child whose events go to `listener`. Raises WorkerError."""
        ...


class Notifier(Protocol):
    """The service manager. Implemented by `lifecycle.supervision.SystemdNotifier`."""

    def ready(self) -> None:
        """Tell that start-up is over."""
        ...

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        ...

    def watchdog(self) -> None:
        """Tell that the agent works; without this the service manager restarts it."""
        ...

    def extend_timeout(self, seconds: float) -> None:
        """Ask for up to `seconds` more for the start."""
        ...

    def stopping(self) -> None:
        """Tell that the shutdown has begun."""
        ...
