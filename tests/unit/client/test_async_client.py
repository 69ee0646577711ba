"""The client library on a link under the test's control: what it sends, when it sends it again, what it raises."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from edge_agent.base.causes import Cause
from edge_agent.base.clock import ManualClock
from edge_agent.base.errors import RequestError, UsageError
from edge_agent.client import (
    AsyncClient,
    ContextQuestion,
    DeadlineMissed,
    DeviceBusy,
    DeviceUnavailable,
    InvalidRequest,
    MqttOptions,
    RawPrompt,
    RequestCancelled,
    StreamPart,
    TextPair,
    UnknownName,
    WorkerFault,
    request_client,
)
from edge_agent.client.async_client import broker_options
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.messages import Reply, StreamChunk, Usage
from tests.support.scripted_link import ScriptedLink
from tests.support.virtual_time import run as run_on

Device = Callable[[ScriptedLink, Outbound], None]
LABEL = {
    "label": "on", "score": 0.9, "labels": [{"label": "on", "score": 0.9}], "out_of_scope": False, "tokens": 3,
    "truncated": False,
}  # fmt: skip
GENERATED = {
    "text": "a b", "finish_reason": "stop", "seed": 7,
    "usage": {"prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 2},
}  # fmt: skip


def talk(
    monkeypatch: pytest.MonkeyPatch,
    device: Device,
    body: Callable[[AsyncClient, ScriptedLink], Awaitable[Any]],
    **options: Any,
) -> tuple[Any, list[Outbound]]:
    """What `body` returns, and everything that was published meanwhile. Time moves only when all wait."""

    async def scenario() -> tuple[Any, list[Outbound]]:
        link = ScriptedLink(device)
        monkeypatch.setattr(request_client, "MqttTransport", link)
        async with AsyncClient(MqttOptions(host="nowhere", client_id="me"), "pi", **options) as edge:
            return await body(edge, link), link.published

    return run_on(scenario, ManualClock())


def served(result: Any = LABEL) -> Device:
    def device(link: ScriptedLink, message: Outbound) -> None:
        if "/infer/" in message.topic:
            link.answer(message, Reply(id="x", status=200, model="home", result=result))

    return device


def refuses(*replies: Reply | dict[str, Any]) -> Device:
    """A device that gives these answers, one after another, then serves."""
    waiting = list(replies)

    def device(link: ScriptedLink, message: Outbound) -> None:
        if "/cancel" not in message.topic:
            link.answer(message, waiting.pop(0) if waiting else Reply(id="x", status=200, result=LABEL))

    return device


def silent(_link: ScriptedLink, _message: Outbound) -> None:
    pass


def sent(message: Outbound) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(message.payload)
    return found


@pytest.mark.parametrize(
    ("question", "form"),
    [
        ("dark", {"text": "dark"}),
        (["dark", "cold"], {"texts": ["dark", "cold"]}),
        (RawPrompt("Once"), {"prompt": "Once"}),
        (TextPair("dark", "cold"), {"text": "dark", "text_pair": "cold"}),
        (ContextQuestion("who", "it is me"), {"text": "who", "text_pair": "it is me"}),
        ([TextPair("a", "b"), ContextQuestion("c", "d")], {"texts": ["a", "c"], "text_pairs": ["b", "d"]}),
        ([{"role": "user", "content": "Hi"}], {"messages": [{"role": "user", "content": "Hi"}]}),
    ],
)
def test_a_question_has_the_form_that_its_type_says(
    monkeypatch: pytest.MonkeyPatch, question: Any, form: dict[str, Any]
) -> None:
    async def body(edge: AsyncClient, _link: ScriptedLink) -> str:
        return (await edge.ask("home", question, adapter="a", priority=2, request_id="r1", top_k=3)).label

    label, published = talk(monkeypatch, served(), body)
    assert label == "on"
    assert published[0].topic == "edge/v1/pi/infer/home"
    assert sent(published[0]) == {**form, "adapter": "a", "priority": 2, "params": {"top_k": 3}, "id": "r1"}
    assert (published[0].correlation, published[0].expiry_s) == (b"r1", 30.0)


@pytest.mark.parametrize(
    "question", [[], [1], ["x", {"role": "user", "content": "x"}], [None], ["x", TextPair("a", "b")]]
)
def test_what_is_no_question_is_a_sentence(monkeypatch: pytest.MonkeyPatch, question: Any) -> None:
    async def body(edge: AsyncClient, _link: ScriptedLink) -> None:
        with pytest.raises(UsageError):
            await edge.ask("home", question)

    assert talk(monkeypatch, served(), body)[1] == []


def test_a_model_may_name_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(edge: AsyncClient, _link: ScriptedLink) -> None:
        await edge.ask("jetson/home", "x")
        for wrong in ("a/b/c", "", "a/", "#", "pi/+"):
            with pytest.raises(UsageError):
                await edge.ask(wrong, "x")

    assert [one.topic for one in talk(monkeypatch, served(), body)[1]] == ["edge/v1/jetson/infer/home"]


def test_without_a_device_a_model_alone_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="ask DEVICE/MODEL"):
        asyncio.run(AsyncClient("nowhere").ask("home", "x"))


@pytest.mark.parametrize(
    ("status", "kind", "cause"),
    [
        (400, InvalidRequest, Cause.MALFORMED),
        (404, UnknownName, Cause.UNKNOWN_MODEL),
        (408, DeadlineMissed, Cause.EXPIRED),
        (413, InvalidRequest, Cause.TOO_LARGE),
        (415, InvalidRequest, Cause.MALFORMED),
        (422, InvalidRequest, Cause.INVALID),
        (429, DeviceBusy, Cause.QUEUE_FULL),
        (499, RequestCancelled, Cause.CANCELLED),
        (500, WorkerFault, Cause.WORKER_FAILED),
        (503, DeviceUnavailable, Cause.UNAVAILABLE),
        (599, DeviceUnavailable, Cause.UNAVAILABLE),
    ],
)
def test_a_status_is_an_exception_with_its_cause(
    monkeypatch: pytest.MonkeyPatch, status: int, kind: type[RequestError], cause: Cause
) -> None:
    def body_of(expected: Cause) -> Callable[[AsyncClient, ScriptedLink], Awaitable[None]]:
        async def body(edge: AsyncClient, _link: ScriptedLink) -> None:
            with pytest.raises(kind, match="no room") as caught:
                await edge.ask("home", "x")
            assert (caught.value.status, caught.value.cause, caught.value.retry_after_s) == (status, expected, None)

        return body

    plain = {"id": "x", "status": status, "reason": "no room"}
    talk(monkeypatch, refuses(plain), body_of(cause))
    talk(monkeypatch, refuses({**plain, "cause": "a word of a later version"}), body_of(cause))
    talk(monkeypatch, refuses({**plain, "cause": "heat"}), body_of(Cause.HEAT))


def refusal(status: int, retry_after_s: float) -> Reply:
    return Reply(id="x", status=status, reason="full", cause="queue-full", retry_after_s=retry_after_s)


def test_a_refusal_with_a_time_to_come_back_is_asked_again_as_another_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the old id the device would repeat the refusal of a request that it had taken."""

    async def body(edge: AsyncClient, _link: ScriptedLink) -> float:
        began_s = asyncio.get_running_loop().time()
        assert (await edge.ask("home", "x", deadline_s=20.0, request_id="r")).label == "on"
        return asyncio.get_running_loop().time() - began_s

    took_s, published = talk(monkeypatch, refuses(refusal(429, 2.0), refusal(503, 4.0)), body)
    assert 6.0 <= took_s <= 7.5
    assert [one.correlation for one in published] == [b"r", b"r.1", b"r.2"]
    assert published[0].expiry_s == 20.0
    assert (published[2].expiry_s or 0) <= 14, "the deadline is that of the whole call"


@pytest.mark.parametrize("told", [True, False])
def test_a_plain_text_is_a_prompt_for_a_generator_also_where_it_does_not_stream(
    monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """Where the device has not said that it is a generator, its refusal says so."""
    wrong = Reply(id="x", status=422, reason="it takes prompt or messages, not text", cause="wrong-form")

    async def body(edge: AsyncClient, link: ScriptedLink) -> str:
        if told:
            link.say_models({"tiny": "generate", "home": "classify"})
            await asyncio.sleep(0)
        assert (await edge.ask("tiny", "Once", request_id="r")).text == "a b"
        if told:
            await edge.ask("home", "dark")
        return ""

    def device(link: ScriptedLink, message: Outbound) -> None:
        prompt = "prompt" in sent(message)
        link.answer(
            message, Reply(id="x", status=200, result=GENERATED) if prompt or "home" in message.topic else wrong
        )

    forms = [set(sent(one)) & {"text", "prompt"} for one in talk(monkeypatch, device, body)[1]]
    assert forms == [{"prompt"}, {"text"}] if told else forms == [{"text"}, {"prompt"}]


def test_the_devices_that_are_watched_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may publish on the broker can name any number."""
    monkeypatch.setattr(request_client, "DEVICES_WATCHED", 3)

    async def body(edge: AsyncClient, link: ScriptedLink) -> tuple[list[str], list[str]]:
        for name in ("client", "pi", "no name", "b", "c", "d", "pi"):
            link.say_models({"tiny": "generate"}, name)
            link.say_status("boot", name)
        await asyncio.sleep(0.1)
        return list(edge.every_model()), list(edge.every_status())

    assert talk(monkeypatch, served(), body)[0] == (["pi", "b", "c"], ["pi", "b", "c"])


def test_a_text_in_the_wrong_form_for_an_encoder_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(edge: AsyncClient, _link: ScriptedLink) -> None:
        with pytest.raises(InvalidRequest):
            await edge.ask("home", RawPrompt("x"))
        with pytest.raises(InvalidRequest):
            await edge.ask("home", ["x"])

    wrong = Reply(id="x", status=422, reason="it takes text or texts", cause="wrong-form")
    assert len(talk(monkeypatch, refuses(wrong, wrong), body)[1]) == 2


def test_a_call_that_waits_to_ask_again_is_withdrawn_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(edge: AsyncClient, _link: ScriptedLink) -> float:
        began_s = asyncio.get_running_loop().time()
        call = asyncio.create_task(edge.ask("home", "x", request_id="r"))
        await asyncio.sleep(1.0)
        with pytest.raises(InvalidRequest, match="is open at this client"):
            await edge.ask("home", "y", request_id="r")
        edge.cancel("home", "r")
        with pytest.raises(RequestCancelled, match="while it waited to be asked again"):
            await call
        assert (await edge.ask("home", "x", request_id="r")).label == "on", "the id is free again"
        return asyncio.get_running_loop().time() - began_s

    assert talk(monkeypatch, refuses(refusal(429, 5.0)), body)[0] < 2.0


def test_a_second_attempt_is_cancelled_under_its_own_id(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(edge: AsyncClient, _link: ScriptedLink) -> None:
        call = asyncio.create_task(edge.ask("home", "x", request_id="r"))
        await asyncio.sleep(2.0)
        edge.cancel("home", "r")
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    def device(link: ScriptedLink, message: Outbound) -> None:
        if message.correlation == b"r":
            link.answer(message, refusal(429, 1.0))

    cancels = [sent(one)["id"] for one in talk(monkeypatch, device, body)[1] if one.topic.endswith("/cancel")]
    assert cancels[0] == "r.1"


@pytest.mark.parametrize("retries", [0, 2])
def test_retries_end(monkeypatch: pytest.MonkeyPatch, retries: int) -> None:
    async def body(edge: AsyncClient, _link: ScriptedLink) -> None:
        with pytest.raises(DeviceBusy) as caught:
            await edge.ask("home", "x")
        assert caught.value.retry_after_s == 1.0

    assert len(talk(monkeypatch, refuses(*[refusal(429, 1.0)] * 9), body, retries=retries)[1]) == 1 + retries


def test_nobody_waits_for_a_time_beyond_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(edge: AsyncClient, _link: ScriptedLink) -> float:
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(DeviceBusy):
            await edge.ask("home", "x", deadline_s=5.0)
        return asyncio.get_running_loop().time() - began_s

    assert talk(monkeypatch, refuses(refusal(429, 6.0)), body)[0] < 1.0


def test_what_is_wrong_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(edge: AsyncClient, _link: ScriptedLink) -> None:
        with pytest.raises(InvalidRequest):
            await edge.ask("home", "x")

    assert len(talk(monkeypatch, refuses(refusal(422, 1.0)), body)[1]) == 1


def test_silence_ends_at_the_deadline_with_what_the_device_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(edge: AsyncClient, link: ScriptedLink) -> None:
        link.say_status("b1")
        with pytest.raises(DeadlineMissed, match="pi says it is online: ready"):
            await edge.ask("home", "x", deadline_s=3.0)

    talk(monkeypatch, silent, body)


def answering_after(times: int) -> Device:
    """A device that answers a request the n-th time it comes, as one that has computed it and was not heard."""
    count = 0

    def device(link: ScriptedLink, message: Outbound) -> None:
        nonlocal count
        count += "/infer/" in message.topic
        if count == times:
            link.answer(message, Reply(id="x", status=200, result=LABEL))

    return device


def test_after_a_lost_connection_the_same_request_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(edge: AsyncClient, link: ScriptedLink) -> str:
        asked = asyncio.create_task(edge.ask("home", "x", deadline_s=20.0))
        await asyncio.sleep(1.0)
        link.lose()
        await asyncio.sleep(4.0)
        link.return_()
        return (await asked).label

    label, published = talk(monkeypatch, answering_after(2), body)
    assert label == "on"
    assert published[0].payload == published[1].payload, "another body would be another request"
    assert published[0].correlation == published[1].correlation
    assert [one.expiry_s for one in published] == [20.0, 15.0]


def test_a_device_that_started_anew_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(edge: AsyncClient, link: ScriptedLink) -> str:
        link.say_status("b1")
        asked = asyncio.create_task(edge.ask("home", "x"))
        await asyncio.sleep(1.0)
        link.say_status("b1")
        link.say_status("b7", device="another")
        await asyncio.sleep(1.0)
        assert len(link.published) == 1
        link.say_status("b2")
        return (await asked).label

    assert talk(monkeypatch, answering_after(2), body, devices=["+"])[0] == "on"


def test_a_broker_that_stays_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(edge: AsyncClient, link: ScriptedLink) -> None:
        asked = asyncio.create_task(edge.ask("home", "x", deadline_s=3.0))
        await asyncio.sleep(1.0)
        link.lose()
        with pytest.raises(DeadlineMissed, match="no broker: the broker hung up"):
            await asked

    talk(monkeypatch, silent, body)


def test_an_order_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(edge: AsyncClient, link: ScriptedLink) -> None:
        asked = asyncio.create_task(edge.order("rollback", model="home", deadline_s=10.0))
        await asyncio.sleep(1.0)
        link.lose()
        link.return_()
        with pytest.raises(DeadlineMissed):
            await asked

    published = talk(monkeypatch, silent, body)[1]
    assert [one.topic for one in published] == ["edge/v1/pi/cmd/rollback"]


def test_an_order_gives_its_result_or_its_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def device(link: ScriptedLink, message: Outbound) -> None:
        known = sent(message)["model"] == "home"
        found = {"result": {"load_s": 1.0}} if known else {"reason": "no model", "cause": "unknown-model"}
        link.answer(message, {"id": "x", "status": 200 if known else 404, **found})

    async def body(edge: AsyncClient, _link: ScriptedLink) -> Any:
        with pytest.raises(UnknownName, match="no model"):
            await edge.order("load", model="typo")
        return await edge.order("load", model="home")

    assert talk(monkeypatch, device, body)[0] == {"load_s": 1.0}


def test_a_cancelled_task_withdraws_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(edge: AsyncClient, _link: ScriptedLink) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(edge.ask("home", "x", request_id="r"), 2.0)

    published = talk(monkeypatch, silent, body)[1]
    assert [one.topic for one in published] == ["edge/v1/pi/infer/home", "edge/v1/pi/cancel"]
    assert sent(published[1])["id"] == "r"


def test_an_id_is_used_for_one_open_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(edge: AsyncClient, _link: ScriptedLink) -> None:
        first = asyncio.create_task(edge.ask("home", "x", request_id="r", deadline_s=2.0))
        await asyncio.sleep(0.1)
        with pytest.raises(InvalidRequest, match="is open at this client"):
            await edge.ask("home", "y", request_id="r")
        with pytest.raises(UsageError, match="cannot be an id"):
            await edge.ask("home", "y", request_id="a\nb")
        with pytest.raises(DeadlineMissed):
            await first

    talk(monkeypatch, silent, body)


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("nan"), 1e9])
def test_a_deadline_that_no_device_takes_is_a_sentence(monkeypatch: pytest.MonkeyPatch, deadline_s: float) -> None:
    async def body(edge: AsyncClient, _link: ScriptedLink) -> None:
        with pytest.raises(UsageError, match="deadline_s"):
            await edge.ask("home", "x", deadline_s=deadline_s)

    talk(monkeypatch, served(), body)


def chunk(seq: int, text: str, done: bool = False) -> StreamChunk:
    end: dict[str, Any] = {"finish_reason": "stop", "seed": 7, "usage": Usage(1, 0, 2), "model": "t"} if done else {}
    return StreamChunk(id="x", seq=seq, text=text, done=done, **end)


def streams(*parts: Any) -> Device:
    def device(link: ScriptedLink, message: Outbound) -> None:
        for part in parts if "/infer/" in message.topic else ():
            link.answer(message, part)

    return device


async def read(edge: AsyncClient, found: list[StreamPart]) -> None:
    async for part in edge.stream("tiny", "Once", deadline_s=5.0):
        found.append(part)  # noqa: PERF401 - what came before an exception counts


def test_a_stream_gives_its_parts_and_in_the_last_one_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[StreamPart] = []
    device = streams(chunk(0, "a"), chunk(1, " b"), chunk(2, "", done=True))
    published = talk(monkeypatch, device, lambda edge, _link: read(edge, found))[1]
    assert {**sent(published[0]), "id": ""} == {"prompt": "Once", "stream": True, "id": ""}
    assert [part.text for part in found] == ["a", " b", ""]
    assert [part.answer is None for part in found] == [True, True, False]
    answer = found[2].answer
    assert answer is not None
    assert (answer.text, answer.generation.finish_reason, answer.generation.usage) == ("a b", "stop", Usage(1, 0, 2))
    assert len(published) == 1, "a stream that was read whole is not withdrawn"


def test_parts_that_come_twice_are_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device sends unacknowledged parts again, where its own connection broke."""
    found: list[StreamPart] = []
    device = streams(chunk(0, "a"), chunk(1, "b"), chunk(2, "c"), chunk(1, "b"), chunk(2, "c"), chunk(3, "d", True))
    talk(monkeypatch, device, lambda edge, _link: read(edge, found))
    assert "".join(part.text for part in found) == "abcd"


def test_a_device_that_begins_anew_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[StreamPart] = []
    device = streams(chunk(0, "a"), chunk(1, "b"), chunk(0, "x"), chunk(1, "y", True))
    talk(monkeypatch, device, lambda edge, _link: read(edge, found))
    assert [part.restarted for part in found] == [False, False, True, False]
    assert found[-1].answer is not None
    assert found[-1].answer.text == "xy"


def test_parts_that_are_missing_end_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[StreamPart] = []

    async def body(edge: AsyncClient, _link: ScriptedLink) -> None:
        with pytest.raises(DeviceUnavailable, match="parts 1 to 2 of the answer were lost"):
            await read(edge, found)

    published = talk(monkeypatch, streams(chunk(0, "a"), chunk(3, "d")), body)[1]
    assert [part.text for part in found] == ["a"]
    assert published[-1].topic == "edge/v1/pi/cancel"


def test_a_stream_that_has_begun_ends_with_a_sentence_when_the_connection_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[StreamPart] = []

    async def body(edge: AsyncClient, link: ScriptedLink) -> None:
        reading = asyncio.create_task(read(edge, found))
        await asyncio.sleep(1.0)
        link.lose()
        link.return_()
        with pytest.raises(DeviceUnavailable, match="connection to the broker was lost after 1 parts"):
            await reading

    talk(monkeypatch, streams(chunk(0, "a")), body)


def test_a_stream_of_which_nothing_was_heard_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has its whole text then, and gives it in one reply."""
    found: list[StreamPart] = []
    count = 0

    def device(link: ScriptedLink, message: Outbound) -> None:
        nonlocal count
        count += 1
        if count == 2:
            link.answer(message, Reply(id="x", status=200, result=GENERATED))

    async def body(edge: AsyncClient, link: ScriptedLink) -> None:
        reading = asyncio.create_task(read(edge, found))
        await asyncio.sleep(1.0)
        link.lose()
        link.return_()
        await reading

    talk(monkeypatch, device, body)
    assert [part.text for part in found] == ["a b"]


def test_a_refused_stream_is_retried_before_its_first_part(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[StreamPart] = []
    device = refuses(refusal(429, 1.0), Reply(id="x", status=200, result=GENERATED))
    talk(monkeypatch, device, lambda edge, _link: read(edge, found))
    assert [part.text for part in found] == ["a b"]


def test_a_long_list_is_embedded_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 texts: 16 at once do not fit a message here, 8 do."""

    def device(link: ScriptedLink, message: Outbound) -> None:
        texts = sent(message)["texts"]
        if len(texts) > 8:
            link.answer(message, {"id": "x", "status": 413, "reason": "large", "cause": "too-large"})
        else:
            rows = [{"embedding": [float(text)], "tokens": 1, "truncated": False} for text in texts]
            link.answer(message, Reply(id="x", status=200, result=rows))

    async def body(edge: AsyncClient, _link: ScriptedLink) -> list[float]:
        with pytest.raises(UsageError, match="takes a list"):
            await edge.embed("home", "one text")
        assert await edge.embed("home", []) == []
        return [one.embedding[0] for one in await edge.embed("home", [str(number) for number in range(40)])]

    assert talk(monkeypatch, device, body)[0] == [float(number) for number in range(40)]


def test_an_answer_of_another_kind_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(edge: AsyncClient, _link: ScriptedLink) -> None:
        answer = await edge.ask("home", "x")
        with pytest.raises(UsageError, match="model 'home' gives a Classification, not a Generation"):
            _ = answer.text
        with pytest.raises(UsageError, match="not a Embedding"):
            _ = answer.embedding

    talk(monkeypatch, served(), body)
    monkeypatch.undo()

    async def several(edge: AsyncClient, _link: ScriptedLink) -> None:
        answer = await edge.ask("home", ["x", "y"])
        assert [one.label for one in answer.classifications] == ["on", "on"]
        with pytest.raises(UsageError, match="2 texts were asked"):
            _ = answer.label

    talk(monkeypatch, served([LABEL, LABEL]), several)

    async def unknown(edge: AsyncClient, _link: ScriptedLink) -> None:
        with pytest.raises(DeviceUnavailable, match="cannot read"):
            _ = (await edge.ask("home", "x")).label

    talk(monkeypatch, served("what?"), unknown)


@pytest.mark.parametrize(
    ("broker", "host", "port", "user", "password", "tls"),
    [
        ("localhost", "localhost", 1883, None, None, False),
        ("broker.lan:2000", "broker.lan", 2000, None, None, False),
        ("mqtt://me:p%40ss@h", "h", 1883, "me", "p@ss", False),
        ("mqtts://h", "h", 8883, None, None, True),
        ("mqtts://[::1]:9", "::1", 9, None, None, True),
    ],
)
def test_a_broker_is_named_by_host_or_url(
    broker: str, host: str, port: int, user: str | None, password: str | None, tls: bool
) -> None:
    found = broker_options(broker)
    assert (found.host, found.port, found.username, found.password) == (host, port, user, password)
    assert (found.tls is not None) is tls


@pytest.mark.parametrize(
    "broker", ["", "http://h", "h:x", "h:0", "h:99999", "mqtt://h/topic", "mqtt://me:hunter2@", "mqtt://me:hunter2@h:x"]
)
def test_what_names_no_broker_is_a_sentence_without_the_password(broker: str) -> None:
    with pytest.raises(UsageError) as caught:
        broker_options(broker)
    assert "hunter2" not in str(caught.value)
