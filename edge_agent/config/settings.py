"""All settings, frozen. Under each field: its meaning, unit, and the reason for its default.

`config.load` fills them from defaults < file < environment; `config.example` writes the commented example file from
this source, so that the two cannot drift. A field `X | None = None` is unset by default, and says what then happens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from edge_agent.base import limits
from edge_agent.config.fields import HOST, NAME, VARIANT, Between, Example, Matches


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """Who this device is."""

    id: Annotated[str | None, NAME, Example("greenhouse-pi")] = None
    """The device's name in every topic, its MQTT client id and the CN of its certificate, so that one broker rule
    covers a fleet. Unset: the host name in lower case, other characters than a-z, 0-9 and '-' replaced."""


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS to the broker."""

    enabled: bool = False
    """Speak TLS. Off by default because the usual first broker is on the same board."""

    ca: Annotated[Path | None, Example("/etc/edge-agent/ca.pem")] = None
    """The certificate authority that signed the broker's certificate, PEM. Unset: the systemd credential `mqtt-ca`,
    else the authorities that the system trusts."""

    cert: Annotated[Path | None, Example("/etc/edge-agent/device.pem")] = None
    """This device's certificate, PEM, where the broker asks for one. Unset: the credential `mqtt-cert`, else none."""

    key: Annotated[Path | None, Example("/etc/edge-agent/device.key")] = None
    """The certificate's private key, PEM, readable by the service's user only. Unset: the credential `mqtt-key`."""


@dataclass(frozen=True, slots=True)
class MqttSettings:
    """The broker, and how this device speaks to it."""

    host: Annotated[str, Matches(r"[^\s/:]{1,253}|[0-9A-Fa-f:.]{2,45}", "a host name or an address without port")] = (
        "localhost"
    )
    """The broker's host name or address. A broker on the same board needs no network, hence the default."""

    port: Annotated[int | None, Between(1, 65535), Example(1883)] = None
    """The broker's port. Unset: 8883 with TLS, 1883 without."""

    prefix: Annotated[
        str,
        Matches(
            r"[^+#\s/$\x00][^+#\s/\x00]*(/[^+#\s/\x00]+){0,3}",
            "up to four topic levels without '+', '#', '$' or spaces",
        ),
    ] = "edge/v1"
    """The first levels of every topic. The version is in it so that two versions of the contract can share a broker."""

    username: Annotated[str | None, Example("greenhouse-pi")] = None
    """User name at the broker. Unset: none is sent."""

    password_file: Annotated[Path | None, Example("/etc/edge-agent/mqtt-password")] = None
    """A file whose first line is the password; passwords have no place in a settings file that people copy around.
    Unset: the systemd credential `mqtt-password`, else none is sent."""

    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    """MQTT version. 'auto' tries 5 and falls back to 3.1.1 when the broker refuses it."""

    keepalive_s: Annotated[int, Between(5, 3600)] = 30
    """Seconds of silence after which both sides test the connection. A broker notices a dead device after 1.5 times
    this, so it decides how old 'online' can be; 30 s costs a mobile link about 15 kB an hour with TCP's headers."""

    session_expiry_s: Annotated[int, Between(0, 7 * 86400)] = 3600
    """Seconds for which the broker keeps requests for a device that is away (MQTT 5). An hour spans a reboot or a
    router's bad night; requests older than their deadline are never answered anyway."""

    pools: Annotated[tuple[str, ...], NAME] = ()
    """Names of the pools whose shared queue this device helps to serve. Empty: only requests addressed to it."""

    tls: TlsSettings = field(default_factory=TlsSettings)

    @property
    def broker_port(self) -> int:
        """The port to connect to: the setting, or the usual one for the kind of connection."""
        return self.port if self.port is not None else (8883 if self.tls.enabled else 1883)


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Installed packages."""

    state_dir: Path = Path("/var/lib/edge-agent")
    """Everything that the agent keeps: packages, their journal, unsent events. One daemon per folder."""

    reserve_bytes: Annotated[int, Between(0, 64 * limits.GIB)] = 256 * limits.MIB
    """Bytes that an install leaves free on the state folder's file system, so that logs and the system still work."""

    trust_root: Path = Path("/etc/edge-agent/trust-root.json")
    """The public keys that packages must be signed by, and how many of them."""

    allow_unsigned: bool = False
    """Accept packages without a valid signature. Only for a bench; every start and every such install is logged loudly,
    because whoever can write a package then decides what runs here."""

    inbox_dir: Annotated[Path | None, Example("/var/lib/edge-agent/inbox")] = None
    """The only folder from which `cmd/install` takes packages by name. Unset: `inbox` in the state folder."""

    sticks_dir: Annotated[Path | None, Example("/media/edge-agent")] = None
    """The folder below which USB sticks are mounted. A package (.tar) at the top of one is taken where a desired state
    waits for it; nothing is written there. Unset: sticks are not looked at."""

    download_kib_s: Annotated[int | None, Between(1, 16 * limits.MIB), Example(500)] = None
    """The most KiB a second that a package is fetched with over HTTP, so that others have the line, too. Unset: as fast
    as it comes."""

    registry_auth: Annotated[Path | None, Example("/etc/edge-agent/registry-auth.json")] = None
    """User and password for OCI registries that ask for them, as `skopeo login --authfile FILE HOST` writes them. Not
    readable by everybody. Unset: packages are fetched without."""

    registries_plain: Annotated[tuple[str, ...], HOST] = ()
    """OCI registries (HOST or HOST:PORT) that are asked by http, without TLS: mirrors inside a network of one's own.
    All others are asked by https. Signatures protect packages either way; passwords they do not."""

    scrub_s: Annotated[int, Between(0, 366 * 86400)] = 7 * 86400
    """Seconds from one reading of every stored file to the next, to find those that have lost bits. The first one is an
    hour after the start, or after this time where it is shorter. 0: the files are not read."""

    @property
    def inbox_path(self) -> Path:
        """The folder from which packages may be installed by name."""
        return self.inbox_dir if self.inbox_dir is not None else self.state_dir / "inbox"


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which models are served, and in which variant."""

    resident: Annotated[tuple[str, ...], NAME] = ("all",)
    """Names of the models to hold in memory from the start, or ["all"] for every installed one, as far as
    there is room: nobody is evicted for a model that was not asked yet. Others are loaded when they are first asked."""

    policy: Literal["balanced", "fastest", "smallest", "most-accurate"] = "balanced"
    """Which variant of a package to run. 'balanced' takes the fastest one within `accuracy_loss_limit` that fits."""

    measure: bool = True
    """Try every variant of a package that can run here at the install, time them in turns, and take another than the
    usual one for this class of board where it is clearly better. Costs seconds and writes; without it the usual one."""

    keep: Literal["chosen", "all"] = "chosen"
    """Whose weights stay on the disk. 'all' lets the governor fall back to a cheaper variant when it is hot, at the
    price of space; a variant that lost its trial is never kept. Beside one that is compiled on this device, the best
    other one stays in any case: it answers while an engine is built."""

    prefer: Annotated[tuple[str, ...], VARIANT] = ()
    """Number formats in the order to prefer (for example ["int8", "fp16", "fp32"]), ahead of the policy, or runtime and
    format as `edge-agent models` shows them ("onnx/int8"). Empty: the policy alone decides, by what was measured on
    this device."""

    accuracy_loss_limit: Annotated[float, Between(0, 1)] = 0.01
    """The loss of accuracy, as a fraction, that 'balanced' and 'fastest' accept against the package's best variant. One
    point: INT8 usually costs less than that, and a variant that costs more is broken rather than fast."""

    context: Annotated[int | None, Between(256, limits.CONTEXT_TOKENS), Example(2048)] = None
    """Tokens that one sequence of a generator holds, prompt and answer together; the cache grows with it. Cut to what a
    model was trained for. Unset: as each package says."""

    sequences: Annotated[int | None, Between(1, 64), Example(2)] = None
    """Requests that a generator works on at once, each with a context of its own in the cache. Unset: as each package
    says."""

    kv_type: Annotated[Literal["f16", "q8_0"] | None, Example("q8_0")] = None
    """Number format of a generator's cache. 'q8_0' takes 53 % of the memory of 'f16', for models whose heads have a
    multiple of 32 values; the golden probes say at the install whether the model bears it. Unset: as each package
    says."""

    gpu_layers: Annotated[int | None, Between(0, 1000), Example(0)] = None
    """Layers of a generator that the GPU computes, where llama.cpp was built for one (docs/jetson.md). Unset: all where
    the memory holds what that takes beside the model, else none. 0: none."""

    shrink_context: bool = False
    """Give a generator a shorter context than its package recommends, or fewer sequences, where memory is too small for
    it. Off: it is refused with the arithmetic, since a context that shrinks in silence cuts conversations short."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The child processes that run the models."""

    python: Annotated[Path | None, Example("/usr/bin/python3")] = None
    """The interpreter of the workers. Unset: the daemon's own. A plug-in that needs a board's system Python
    (3.10 or newer) names that one here."""

    tensorrt_python: Annotated[Path | None, Example("/usr/bin/python3")] = None
    """The interpreter that has TensorRT and pycuda, for the backend 'tensorrt': JetPack's own, 3.6 or newer. Unset:
    that of the workers."""

    litert_delegate: Annotated[Path | None, Example("libedgetpu.so.1")] = None
    """The library by which LiteRT hands operations to an accelerator, for the backend 'litert': its path, or its name
    where the system finds it. Unset: none. What it takes of a model, or why it cannot be used, is in the topic `models`
    as `computed_by`."""

    backends: Annotated[tuple[str, ...], NAME] = ("onnx", "llamacpp")
    """Backends that may be used; a plug-in that is merely installed never runs until it is named here. On a Jetson name
    'tensorrt' too (docs/jetson.md)."""

    threads: Annotated[int | None, Between(1, 256), Example(4)] = None
    """Compute threads of a worker. Unset: one per core of the board."""

    decode_threads: Annotated[int | None, Between(1, 256), Example(3)] = None
    """Threads of a generator while it reads no prompt. Decoding waits for memory, which three cores of a small board
    use up; more only make heat. Never more than the governor grants. Unset: as each package says, else as many as are
    found to be worth it while it decodes."""

    max_rows: Annotated[int, Between(1, limits.BATCH_ROWS)] = 16
    """The most texts in one step. All texts of a step wait for its end, and a small CPU is kept busy by few."""

    load_limit_s: Annotated[float | None, Between(10, 86400), Example(1800)] = None
    """Seconds after which the load of a model is given up although its worker is at work. Unset: ten times what the
    model's trial took on this board, at least 60 s and 20 s per GiB; an hour for a model that was not tried here. A
    load without any work for a minute is given up in any case."""

    nice: Annotated[int, Between(0, 19)] = 5
    """Niceness of the workers, so that the daemon and the system answer while all cores compute."""

    oom_score_adj: Annotated[int, Between(0, 1000)] = 500
    """How much sooner the kernel kills a worker than other processes when memory runs out. A worker comes back in
    seconds; the daemon and the system would not."""

    quarantine_deaths: Annotated[int, Between(0, 100)] = 3
    """Deaths of a model's worker within fifteen minutes after which the model is left alone until `cmd/load` lifts it;
    0 never does. Three are no accident, and each costs the others memory and a reload."""


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Bounds on what clients may ask; each ceiling is the agent's own (`base.limits`)."""

    queue_jobs: Annotated[int, Between(1, limits.QUEUE_JOBS)] = limits.QUEUE_JOBS
    """Requests that may wait; one more is refused with 429. A longer queue only lets
    answers come too late."""

    deadline_default_s: Annotated[float, Between(0.01, limits.DEADLINE_MAX_S)] = limits.DEADLINE_DEFAULT_S
    """Seconds until a request without a deadline expires."""

    deadline_max_s: Annotated[float, Between(0.01, limits.DEADLINE_MAX_S)] = limits.DEADLINE_MAX_S
    """The longest deadline that is honoured, in seconds; longer ones are shortened to it. Memory for deduplication is
    kept for so long."""

    texts_per_request: Annotated[int, Between(1, limits.TEXTS_PER_REQUEST)] = limits.TEXTS_PER_REQUEST
    """Texts in one request; more are refused with 413."""

    text_bytes: Annotated[int, Between(1, limits.TEXT_BYTES)] = limits.TEXT_BYTES
    """Bytes of one text; longer ones are refused with 413."""

    message_bytes: Annotated[int, Between(1024, limits.MESSAGE_BYTES)] = limits.MESSAGE_BYTES
    """Bytes of one message in either direction. AWS IoT's limit, the smallest of the large brokers'."""


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """How much memory models may take."""

    reserve_bytes: Annotated[int | None, Between(0, 64 * limits.GIB), Example(300 * limits.MIB)] = None
    """Bytes of RAM that are left to the host: no model is loaded into them, and when less stays free idle models leave.
    Unset: the larger of 10 % and 200 MiB on boards of up to 2 GiB, 15 % above. Raise it where other programs grow."""

    models_bytes: Annotated[int | None, Between(limits.MIB, 1024 * limits.GIB), Example(1 * limits.GIB)] = None
    """Bytes that all models together may take. Unset: all that the board has less the reserve. For boards that have
    something else to do, and whose memory is free only at the moment."""


@dataclass(frozen=True, slots=True)
class ThermalSettings:
    """Heat."""

    soft_limit_c: Annotated[float | None, Between(40, 110), Example(75.0)] = None
    """Degrees Celsius at which the board begins to slow itself down. Unset: the value known for the board. Set it lower
    for a closed case or for a surface that people touch. Higher than 2 below the board's hard limit (a Pi's is 85) it
    has no effect."""

    set_clock: bool = False
    """Let the governor cap the clock of processor and GPU, which brings about a fifth more work at the same temperature
    than pauses alone (docs/governor.md). Off, because it changes the board for every program on it; as a service it
    also needs the drop-in `clock`. What was set before is put back at the end."""


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """What the device says about itself."""

    interval_s: Annotated[float, Between(1, 3600)] = 10.0
    """Seconds between telemetry messages. Ten catch a board that heats up in two minutes."""

    heartbeat_s: Annotated[float, Between(5, 3600)] = 60.0
    """Seconds between renewals of the retained status; who sees it older than twice this takes the device for lost."""

    canary_s: Annotated[float, Between(0, 604800)] = 3600.0
    """Seconds between two runs of a resident model's golden probes, and of its attached adapters', in its own worker
    while it is idle; 0: never. They show a board or a runtime that computes something else than at the install."""

    traces: bool = False
    """Say on the topic `trace` where the time of a request went that named a sampled trace (`traceparent`), for the
    spans of `edge-agent metrics --otlp`. Off, because it tells whoever may read that topic who asked what when."""

    home_assistant: bool = False
    """Announce the device to Home Assistant by retained discovery topics. Off, because not everybody has it."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Streamed answers."""

    flush_ms: Annotated[float, Between(0, 5000)] = 100.0
    """Milliseconds for which parts of a streamed answer are collected before they are sent, so that a token is not a
    packet. A tenth of a second still reads as fluent."""


@dataclass(frozen=True, slots=True)
class SensorSettings:
    """Where the board's sensors are read."""

    sysroot: Path = Path("/")
    """The folder in which `sys` and `proc` lie. Another one than / serves tests, simulated boards and containers."""

    jtop: bool = False
    """Also ask the jtop service of a Jetson, as a second source and for rails that only root may read. Needs
    jetson-stats (install edge-agent with its extra jetson), which is AGPL-3.0-or-later; hence not by default."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The daemon's log, written to standard error (the journal, under systemd)."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe messages that are written. 'info' says what changes, not what goes on as before."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of an agent."""

    device: DeviceSettings = field(default_factory=DeviceSettings)
    mqtt: MqttSettings = field(default_factory=MqttSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    models: ModelSettings = field(default_factory=ModelSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    thermal: ThermalSettings = field(default_factory=ThermalSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    stream: StreamSettings = field(default_factory=StreamSettings)
    sensors: SensorSettings = field(default_factory=SensorSettings)
    log: LogSettings = field(default_factory=LogSettings)
