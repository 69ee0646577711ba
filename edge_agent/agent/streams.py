"""The messages of an answer that is sent in parts.

A stream ends with exactly one final message: the chunk with `done`, or a reply with the reason why there is none. A
repeated request for an answered stream gets the whole text in one reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from edge_agent.agent.context import Context
from edge_agent.core.job import Job
from edge_agent.protocol import encode
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.messages import Reply, StreamChunk, Timing, Usage
from edge_agent.protocol.topics import ReplyAddress
from edge_agent.protocol.worker_messages import GeneratedText

END_S = 5.0
"""The reply that ends a stream which cannot be finished is worth sending until this long after now, even past the
deadline: its client waits for the next part."""

SHARED_FIELDS = tuple(sorted(set(StreamChunk.__struct_fields__) & set(Reply.__struct_fields__) - {"id"}))
"""Fields of a reply that the last part repeats: those that both types have. The id is the request's for every part."""


def waits_s(remaining_s: float) -> float:
    """Seconds for which the reply that ends an unfinished stream may wait to be sent and fetched."""
    return max(remaining_s, END_S)


def send_part(context: Context, job: Job, to: ReplyAddress, text: str) -> bool:
    """Send a part of a job's answer; False when it cannot be sent now."""
    body = StreamChunk(id=to.request_id, seq=job.parts, text=text, done=False)
    remaining_s = job.deadline_s - context.clock.monotonic_s()
    if not context.transport.connected or not context.transport.publish(encode.chunk(body, to, remaining_s)):
        return False
    job.sent_part()
    return True


def last_part(job: Job, to: ReplyAddress, whole: Reply, text: str, remaining_s: float) -> Outbound:
    """The chunk that ends a stream: the rest of the text and every field that the reply (of status 200) shares."""
    result: Mapping[str, Any] = whole.result
    shared = {name: getattr(whole, name) for name in SHARED_FIELDS}
    body = StreamChunk(
        id=to.request_id,
        seq=job.parts,
        text=text,
        done=True,
        finish_reason=result["finish_reason"],
        usage=Usage(**result["usage"]),
        seed=result["seed"],
        logprobs=result.get("logprobs", UNSET),
        **shared,
    )
    return encode.chunk(body, to, remaining_s)


def timed(timing: Timing, generated: GeneratedText | None) -> Timing:
    """The timing, completed for a generator's answer: `queue_ms` grows by the wait inside the worker, and prompt time,
    time to the first token (which contains `queue_ms`) and tokens per second are set. Unchanged for other answers."""
    if generated is None:
        return timing
    queue_ms = timing.queue_ms + generated.wait_ms
    return msgspec.structs.replace(
        timing,
        queue_ms=round(queue_ms, 3),
        prompt_ms=round(generated.prompt_ms, 3),
        first_token_ms=round(queue_ms + timing.tokenize_ms + generated.prompt_ms, 3),
        tokens_per_s=UNSET if generated.tokens_per_s is None else round(generated.tokens_per_s, 2),
    )
