"""Settings to the options of each room; nothing here starts anything."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from edge_agent.base.runtimes import (
    ENGINE_FOLDER_VARIABLE,
    GPU_LAYERS_VARIABLE,
    LITERT_DELEGATE_VARIABLE,
    TENSORRT_PYTHON_VARIABLE,
)
from edge_agent.bundle.gguf_memory import GeneratorOverrides
from edge_agent.config import secrets
from edge_agent.config.load import DEFAULT_PATH, device_id
from edge_agent.config.settings import Settings
from edge_agent.core import adapter_routing
from edge_agent.core.energy import UtilisationModel
from edge_agent.core.governor import GovernorConfig
from edge_agent.core.thermal_model import PRIORS, prior_for
from edge_agent.mqtt.options import MqttOptions, Protocol, TlsOptions
from edge_agent.protocol.decode import Bounds
from edge_agent.protocol.topics import Topics
from edge_agent.sensors.boards import Board
from edge_agent.store.variant_selection import Hardware, SelectionPolicy
from edge_agent.worker.supervisor import SpawnOptions

SOFT_BELOW_HARD_C = 2.0
"""An operator's soft limit nearer to the board's hard one would be met by stops instead of by control."""
PROTOCOLS: Mapping[str, Protocol] = {"auto": "auto", "5": 5, "3.1.1": 311}


def quiet_rooms() -> None:
    """Commands say what happened in their own words; what the rooms log is the daemon's and would say it twice."""
    logging.getLogger("edge_agent").addHandler(logging.NullHandler())


def operator_environment(config: Path | None) -> Mapping[str, str]:
    """Where a command finds secrets: with the service's own settings the service's own, else only what settings name.

    Settings of another file may lead to another broker, which must not get the service's password.
    """
    own = config is None or config.absolute() == DEFAULT_PATH
    return secrets.service_environment() if own else os.environ


def topics(settings: Settings) -> Topics:
    """The device's topic tree."""
    return Topics(settings.mqtt.prefix, device_id(settings), settings.mqtt.pools)


def mqtt_options(settings: Settings, client_id: str, env: Mapping[str, str] | None = None) -> MqttOptions:
    """How to reach the broker, with the secrets that `env` leads to (None: this process's environment). Raises
    ConfigError when a secret cannot be read."""
    tls = None
    if settings.mqtt.tls.enabled:
        files = secrets.tls_files(settings, env)
        tls = TlsOptions(ca_file=_text(files.ca), cert_file=_text(files.cert), key_file=_text(files.key))
    return MqttOptions(
        host=settings.mqtt.host,
        port=settings.mqtt.broker_port,
        client_id=client_id,
        username=settings.mqtt.username,
        password=secrets.mqtt_password(settings, env),
        tls=tls,
        keepalive_s=settings.mqtt.keepalive_s,
        session_expiry_s=settings.mqtt.session_expiry_s,
        protocol=PROTOCOLS[settings.mqtt.protocol],
    )


def bounds(settings: Settings) -> Bounds:
    """What one request may hold."""
    limits = settings.limits
    return Bounds(
        message_bytes=limits.message_bytes,
        texts=limits.texts_per_request,
        text_bytes=limits.text_bytes,
        deadline_default_s=limits.deadline_default_s,
        deadline_max_s=limits.deadline_max_s,
    )


def spawn_options(settings: Settings) -> SpawnOptions:
    """How workers are started."""
    worker = settings.worker
    environment = {ENGINE_FOLDER_VARIABLE: str(settings.store.state_dir.absolute() / "engines")}
    if worker.tensorrt_python is not None:
        environment[TENSORRT_PYTHON_VARIABLE] = str(worker.tensorrt_python)
    if worker.litert_delegate is not None:
        environment[LITERT_DELEGATE_VARIABLE] = str(worker.litert_delegate)
    if settings.models.gpu_layers is not None:
        environment[GPU_LAYERS_VARIABLE] = str(settings.models.gpu_layers)
    return SpawnOptions(
        python=_text(worker.python),
        environment=environment,
        oom_score_adj=worker.oom_score_adj,
        nice=worker.nice,
        load_limit_s=worker.load_limit_s,
    )


def threads(settings: Settings) -> int:
    """Compute threads of a worker: the setting, or one per core that this process may use."""
    return settings.worker.threads or len(os.sched_getaffinity(0))


def utilisation(board: Board) -> UtilisationModel | None:
    """What the board takes by its load, for boards whose figures are known; None elsewhere."""
    if board.key not in PRIORS:
        return None
    prior = prior_for(board.key)
    return UtilisationModel(board.name, prior.idle_w, prior.full_w, board.cores)


def selection_policy(settings: Settings) -> SelectionPolicy:
    """Which variant the operator wants."""
    models = settings.models
    return SelectionPolicy(models.policy, models.prefer, models.accuracy_loss_limit, generators(settings))


def routing_policy(settings: Settings) -> adapter_routing.RoutingPolicy:
    """Whether an adapter's requests run on a merged model, as the operator wants it."""
    models = settings.models
    return adapter_routing.RoutingPolicy(models.policy, models.prefer, models.accuracy_loss_limit)


def generators(settings: Settings) -> GeneratorOverrides:
    """What the operator wants of generators."""
    models = settings.models
    return GeneratorOverrides(models.context, models.sequences, models.kv_type, models.shrink_context)


def hardware(
    board: Board, runtimes: tuple[str, ...], features: frozenset[str] | None, ram_bytes: int | None
) -> Hardware:
    """The board in the terms of a package's requirements."""
    names = (board.key, board.family, *board.compatible, platform.machine())
    known = dict.fromkeys(name for name in names if name not in ("unknown", "other"))
    return Hardware(tuple(known), runtimes, features, ram_bytes)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def store_dir(settings: Settings) -> Path:
    """Where packages lie."""
    return settings.store.state_dir / "store"


def governor_config(settings: Settings, board: Board, max_rows: int, threads: int) -> GovernorConfig:
    """What the governor is told of this board, and of what the operator has set: a soft limit below the hard one."""
    own_c = settings.thermal.soft_limit_c
    if own_c is not None and board.hard_limit_c is not None:
        own_c = min(own_c, board.hard_limit_c - SOFT_BELOW_HARD_C)
    return GovernorConfig(
        own_c or board.soft_limit_c,
        max_rows,
        threads,
        board.hard_limit_c,
        prior_for(board.key),
        firmware_soft_c=board.flags_c,
    )
