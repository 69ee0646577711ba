"""Our values as paho's and back: client, credentials, properties, messages. Nothing here keeps state."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_agent.base.limits import MESSAGE_BYTES, RECEIVE_MAXIMUM
from edge_agent.mqtt.options import MqttOptions, TlsOptions
from edge_agent.protocol.envelope import Inbound, Outbound
from edge_agent.protocol.topics import Subscription

# A broker discards, without a word, what is above our Maximum Packet Size. So it stands well above the size that we
# take: what lies between is answered with 413 instead of silence.
MAX_PACKET_BYTES = 2 * MESSAGE_BYTES + 8 * 1024
USER_PROPERTIES = 16
_VERSIONS = {5: MQTTProtocolVersion.MQTTv5, 4: MQTTProtocolVersion.MQTTv311}


def make_client(options: MqttOptions, version: int, will: Outbound | None) -> Client:
    """A paho client that does nothing by itself. `version` is 5 or 4 (which is 3.1.1)."""
    clean = options.session_expiry_s == 0
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=options.client_id,
        clean_session=None if version == 5 else clean,
        protocol=_VERSIONS[version],
        reconnect_on_failure=False,
        manual_ack=True,
    )
    client.connect_timeout = options.connect_timeout_s
    # The window is ours (the broker's Receive Maximum, in `link`): paho must never hold a message back by itself.
    client.max_inflight_messages_set(0)
    if will is not None:
        properties = publish_properties(will, PacketTypes.WILLMESSAGE) if version == 5 else None
        client.will_set(will.topic, will.payload, will.qos, will.retain, properties)
    if version == 5:
        client.connect_async(
            options.host,
            options.port,
            options.keepalive_s,
            clean_start=clean,
            properties=_connect_properties(options),
        )
    else:
        client.connect_async(options.host, options.port, options.keepalive_s)
    return client


def set_credentials(client: Client, options: MqttOptions) -> None:
    """Password and certificates, read anew. Raises OSError or ValueError. Blocks: for the dialling thread."""
    if options.username is not None:
        password = options.password
        if options.password_file is not None:
            password = Path(options.password_file).read_text(encoding="utf-8").strip("\r\n")
        client.username_pw_set(options.username, password)
    if options.tls is not None:
        client.tls_set_context(_tls_context(options.tls))


def publish_properties(message: Outbound, packet: int = PacketTypes.PUBLISH) -> Properties | None:
    """The MQTT 5 properties of a message, None when it has none."""
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    if message.content_type is not None:
        properties.ContentType = message.content_type
    if message.correlation is not None:
        properties.CorrelationData = message.correlation
    if message.response_topic is not None:
        properties.ResponseTopic = message.response_topic
    if message.expiry_s is not None:
        properties.MessageExpiryInterval = int(message.expiry_s)
    if message.user:
        properties.UserProperty = list(message.user.items())
    return None if properties.isEmpty() else properties  # type: ignore[no-untyped-call]


def inbound(message: MQTTMessage, now_s: float) -> Inbound | None:
    """A received message as a value; None when its topic is not UTF-8. The ack token is filled in by the link."""
    try:
        topic = message.topic
    except UnicodeDecodeError:
        return None
    properties: Any = message.properties
    expiry_s = getattr(properties, "MessageExpiryInterval", None)
    pairs = getattr(properties, "UserProperty", ())
    return Inbound(
        topic=topic,
        payload=bytes(message.payload),
        qos=message.qos,
        retained=bool(message.retain),
        content_type=getattr(properties, "ContentType", None),
        response_topic=getattr(properties, "ResponseTopic", None),
        correlation=getattr(properties, "CorrelationData", None),
        expiry_s=None if expiry_s is None else float(expiry_s),
        user=dict(pairs[:USER_PROPERTIES]),
        received_s=now_s,
    )


def subscribe_argument(wanted: Sequence[Subscription], version: int) -> list[tuple[str, Any]]:
    """Our filters in the form that paho's `subscribe` takes for this protocol version."""
    if version != 5:
        return [(one.topic_filter, one.qos) for one in wanted]
    return [
        (
            one.topic_filter,
            SubscribeOptions(
                qos=one.qos,
                retainAsPublished=one.keep_retain,
                retainHandling=SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE
                if one.replay
                else SubscribeOptions.RETAIN_DO_NOT_SEND,
            ),
        )
        for one in wanted
    ]


def _connect_properties(options: MqttOptions) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = options.session_expiry_s
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    properties.MaximumPacketSize = MAX_PACKET_BYTES
    return properties


def _tls_context(tls: TlsOptions) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.cert_file is not None:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    return context
