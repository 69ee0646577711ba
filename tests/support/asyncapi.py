"""docs/asyncapi.yaml: reading it, checking messages against it, and writing its schemas from the message types.

`python -m tests.support.asyncapi` rewrites the schemas at the end of the file.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import yaml

from edge_agent.client.answers import KINDS
from edge_agent.protocol import messages, rollout_messages

PATH = Path(__file__).resolve().parents[2] / "docs" / "asyncapi.yaml"
ROOTS = (
    messages.InferRequest,
    messages.CancelRequest,
    *sorted(set(messages.ORDERS.values()), key=lambda order: order.__name__),
    messages.Desired,
    messages.Reply,
    messages.StreamChunk,
    messages.CommandReply,
    messages.Status,
    messages.Info,
    messages.Models,
    messages.Reported,
    messages.Telemetry,
    messages.Event,
    messages.RequestTrace,
    rollout_messages.RolloutState,
    rollout_messages.RolloutRecord,
    rollout_messages.RolloutAbort,
)
# MQTT 5 properties, named as in the mqtt message binding.
HEADERS: dict[str, Any] = {
    "RequestHeaders": {
        "title": "RequestHeaders",
        "description": "Properties of a request (MQTT 5); traceparent and tracestate are user properties.",
        "type": "object",
        "properties": {
            "responseTopic": {"type": "string", "maxLength": 512},
            "correlationData": {"type": "string", "maxLength": 128},
            "messageExpiryInterval": {"type": "integer", "minimum": 1},
            "contentType": {"const": "application/json"},
            "traceparent": {"type": "string"},
            "tracestate": {"type": "string"},
        },
    },
    "ReplyHeaders": {
        "title": "ReplyHeaders",
        "description": "Properties of an answer (MQTT 5); status, reason and traceparent are user properties.",
        "type": "object",
        "properties": {
            "correlationData": {"type": "string", "maxLength": 128},
            "messageExpiryInterval": {"type": "integer", "minimum": 1},
            "status": {"type": "string", "pattern": "^[2-5][0-9][0-9]$"},
            "reason": {"type": "string"},
            "traceparent": {"type": "string", "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"},
        },
    },
}
_MARK = "  schemas:\n"


def load() -> dict[str, Any]:
    """The document."""
    document: dict[str, Any] = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    return document


def schemas() -> dict[str, Any]:
    """The schemas that the message types have, and those of the properties.

    A daemon hands results of workers on as they are, so its type of a reply does not say what they hold; the types of
    the client library, which reads them, do.
    """
    kinds, found = msgspec.json.schema_components((*ROOTS, *KINDS.values()), ref_template="#/components/schemas/{name}")
    results = list(kinds[len(ROOTS) :])
    found["Reply"]["properties"]["result"] = {
        "description": "What the model's task gives; of several texts one for each, in their order.",
        "anyOf": [*results, {"type": "array", "items": {"anyOf": results}}, {"type": "null"}],
        "default": None,
    }
    return {**HEADERS, **{name: _cleaned(schema) for name, schema in found.items()}}


def _cleaned(schema: dict[str, Any]) -> dict[str, Any]:
    """Without the indentation of docstrings, which depends on the Python and on what else runs in the process."""
    if "description" in schema:
        return {**schema, "description": inspect.cleandoc(schema["description"])}
    return schema


def check(document: dict[str, Any], message: str, payload: bytes) -> None:
    """Validate a body against the message of that name. Raises jsonschema.ValidationError."""
    schema = {**document["components"]["messages"][message]["payload"], "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(msgspec.json.decode(payload))


class _Dumper(yaml.SafeDumper):
    """Text of several lines as it reads."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _write() -> None:
    head = PATH.read_text(encoding="utf-8").split(_MARK)[0]
    body = yaml.dump(schemas(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    lines = (f"    {line}".rstrip() + "\n" for line in body.splitlines())
    PATH.write_text(head + _MARK + "".join(lines), encoding="utf-8")


if __name__ == "__main__":
    _write()
