"""Ask models on devices from Python: `Client`, or `AsyncClient` under asyncio (docs/client.md).

    from edge_agent.client import Client

    with Client("localhost", device="pi") as edge:
        print(edge.ask("minilm", "it is dark in here", adapter="home-intents").label)

Every answer with a status other than 200 is an exception (`refusals`), with `retry_after_s` and `cause`. One client may
be used by many threads (`Client`) or tasks (`AsyncClient`) at once; it has one connection to the broker.
"""

from edge_agent.base.causes import Cause
from edge_agent.base.errors import BrokerError, EdgeError, RequestError, UsageError
from edge_agent.client.answers import (
    Answer,
    Classification,
    ContextQuestion,
    Embedding,
    ExtractedAnswer,
    Generation,
    RawPrompt,
    Slots,
    SlotSpan,
    StreamPart,
    TextPair,
)
from edge_agent.client.async_client import AsyncClient
from edge_agent.client.refusals import (
    DeadlineMissed,
    DeviceBusy,
    DeviceUnavailable,
    InvalidRequest,
    RequestCancelled,
    UnknownName,
    WorkerFault,
)
from edge_agent.client.sync_client import Client
from edge_agent.client.traced import traced
from edge_agent.mqtt.options import MqttOptions, TlsOptions

__all__ = [
    "Answer",
    "AsyncClient",
    "BrokerError",
    "Cause",
    "Classification",
    "Client",
    "ContextQuestion",
    "DeadlineMissed",
    "DeviceBusy",
    "DeviceUnavailable",
    "EdgeError",
    "Embedding",
    "ExtractedAnswer",
    "Generation",
    "InvalidRequest",
    "MqttOptions",
    "RawPrompt",
    "RequestCancelled",
    "RequestError",
    "SlotSpan",
    "Slots",
    "StreamPart",
    "TextPair",
    "TlsOptions",
    "UnknownName",
    "UsageError",
    "WorkerFault",
    "traced",
]
