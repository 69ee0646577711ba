"""The console in a real Chromium, with a real mosquitto over WebSockets and real agents: `make console-test`.

Not a part of `make test`: it needs Chromium (Debian package chromium), playwright and npm. `SHOTS=docs` writes the
pictures of docs/console.md anew.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from edge_agent.client.request_client import RequestClient
from edge_agent.protocol import messages, telemetry_parts
from tests.browser.window import (
    MODEL,
    SHOTS,
    USERS,
    Place,
    Window,
    card,
    fill_form,
    has_class,
    in_a_process,
    orders_of,
    panel,
    shoot,
    shown,
    told,
)
from tests.support import told_devices
from tests.support.agents import LABELS
from tests.support.mosquitto import free_port
from tests.support.told_devices import GIB


def test_trouble_stands_in_front_and_each_is_named(window: Window, place: Place) -> None:
    names = {
        "t-fine": "fine", "t-hot": "hot", "t-warm": "warm", "t-short": "memory", "t-refusing": "refusing",
        "t-off": "offline", "t-lost": "lost", "t-jailed": "quarantined", "t-degraded": "degraded",
        "t-probes": "failing", "t-behind": "behind", "t-weak": "throttled",
    }  # fmt: skip
    flags = {"throttle": messages.Measured(value=5, unit="flags", source="get_throttled")}
    memory = {"stage": "critical", "available_bytes": 1, "reserve_bytes": 1, "outstanding_bytes": 0, "models": {}}
    reports = {
        "t-hot": {"celsius": 84.0, "level": "closed"},
        "t-warm": {"celsius": 76.0, "level": "reduced"},
        "t-short": {"memory": memory},
        "t-refusing": {"refusals": {"429": 7}, "refusal_reasons": {"queue-full": 7}},
        "t-probes": {"canaries": {"m": telemetry_parts.Canary(False, "row 2 differs")}},
        "t-weak": {"sensors": flags},
    }
    states = {"t-off": ("offline", "power cut"), "t-degraded": ("degraded", "deaf")}
    with told(place, *names) as teller:
        page = window.open()
        card(page, "pi").wait_for()
        for name in names:
            late = time.time() - 3600 if name == "t-lost" else None
            teller.say(name, "status", told_devices.status(*states.get(name, ("online", "")), ts=late))
            teller.say(name, "telemetry", told_devices.telemetry(**reports.get(name, {})))  # type: ignore[arg-type]
        teller.say("t-jailed", "models", messages.Models(ts=0.0, boot_id="b", seq=1, models=[MODEL]))
        pending = {
            "model": "m",
            "adapter": "a",
            "package": "sha256:77",
            "state": "pending",
            "since": 1.0,
            "attempts": 2,
        }
        behind = {"version": 7, "state": "pending", "items": [{**pending, "next": "tried again in 40 s"}]}
        teller.say("t-behind", "reported", behind)
        page.reload()  # the hour-old status comes as a retained one
        card(page, "t-lost").wait_for()
        for name in names:
            teller.say(name, "telemetry", told_devices.telemetry(**reports.get(name, {})))  # type: ignore[arg-type]
        for name, word in names.items():
            shown(card(page, name).locator(".word"), word)
        order = page.locator("[data-device]").evaluate_all("(all) => all.map((one) => one.dataset.device)")
        ours = [names[name] for name in order if name in names]
        expected = "offline lost quarantined hot memory degraded failing behind throttled refusing warm fine"
        assert ours == expected.split()
        shown(card(page, "t-off"), "power cut")
        shown(card(page, "t-weak"), "under-voltage, throttled")
        shown(card(page, "t-behind"), "desired state 7 is pending: m + a, tried again in 40 s")
        shown(card(page, "t-refusing"), "7 in one interval: queue-full")
        colours = [card(page, name).locator(".word").evaluate("(one) => getComputedStyle(one).color") for name in
                   ("t-fine", "t-warm", "t-hot", "t-off")]  # fmt: skip
        assert len(set(colours)) == 4
        has_class(card(page, "t-lost"), "gone")
        page.get_by_role("button", name="1 hot").click()
        assert page.locator("[data-device]").count() == 1
        page.get_by_role("button", name="1 hot").click()
        card(page, "t-behind").click()
        shown(
            panel(page, "Desired state"),
            re.compile("version 7: pending.*m \\+ a.*2 attempts.*tried again in 40 s", re.DOTALL),
        )


def test_forty_devices_fit_on_a_screen_and_a_thousand_stay_usable(window: Window, place: Place) -> None:
    few, many = [f"d{number:03}" for number in range(38)], [f"n{number:04}" for number in range(960)]
    with told(place, *few, *many) as teller:
        for number, name in enumerate(few):
            hot = number == 17
            teller.say(
                name,
                "status",
                told_devices.status("offline", "connection lost") if number == 5 else told_devices.status(),
            )
            teller.say(name, "info", {"schema": "edge/v1", "board": "Raspberry Pi 5 Model B", "agent": "0.1.0"})
            del hot
        page = window.open()
        shown(page.locator(".bar strong"), "40 devices")
        for number, name in enumerate(few):
            celsius, level = (
                (83.2, "closed")
                if number == 17
                else (76.1, "reduced")
                if number == 3
                else (45.0 + number / 2, "normal")
            )
            refused = {"refusals": {"429": 12}, "refusal_reasons": {"queue-full": 12}} if number == 9 else {}
            teller.say(name, "telemetry", told_devices.telemetry(celsius, level, **refused))
        shown(card(page, "d037"), "63.5 °C")
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight"), "forty devices need scrolling"
        shoot(page, "fleet")
        for name in many:
            teller.say(name, "status", told_devices.status())
        shown(page.locator(".bar strong"), "1000 devices")
        page.get_by_label("filter").fill("n0777")
        card(page, "n0777").click()
        shown(page.locator("header"), "/ n0777")


def test_every_panel_shows_what_the_device_sent(window: Window, place: Place) -> None:
    reports: list[dict[str, Any]] = []
    page = window.open("pi")
    shown(panel(page, "Heat"), re.compile(r"6[12]\.\d °C"))
    with told(place) as teller:
        heard = teller._client
        heard.on_message = lambda _c, _u, message: reports.append(json.loads(message.payload))
        heard.subscribe("edge/v1/pi/telemetry")
        for number in range(12):
            body = {"text": f"t{number}", "adapter": "one" if number % 2 else None, "id": f"{number}"}
            teller.say("pi", "infer/echo", {**body, "reply_to": "edge/v1/client/test/reply"})
        teller.say("pi", "infer/nobody", {"text": "x", "id": "x", "reply_to": "edge/v1/client/test/reply"})
        shown(panel(page, "Refusals"), "unknown-model")
        row = panel(page, "Models").locator("[data-model=echo]")
        place.celsius[0] = 65.5
        shown(panel(page, "Heat"), re.compile(r"^Heat6[56]\.\d °C"))
    report = next(one for one in reports if one["models"].get("echo", {}).get("total_ms"))
    for word in ("p50", "p95", "p99"):
        assert report["models"]["echo"]["total_ms"][word] > 0
    shown(row, "ready")
    for word in ("p50", "p95", "p99"):
        assert float(row.locator(f".{word}").inner_text().split()[0]) > 0
    shown(panel(page, "Heat"), f"governor {report['governor']['level']}")
    shown(panel(page, "Heat"), f"{report['governor']['max_rows']}, {report['governor']['threads']}")
    soft = report["governor"]["forecast_c"] + report["governor"]["headroom_c"]
    shown(panel(page, "Heat"), f"{soft:.1f} °C")
    shown(panel(page, "Memory"), f"{report['memory']['available_bytes'] / GIB:.1f} GiB available")
    shown(panel(page, "Memory"), report["memory"]["stage"])
    shown(
        panel(page, "Memory").locator(".legend"), f"stays free {report['memory']['reserve_bytes'] / (1 << 20):.0f} MiB"
    )
    shown(panel(page, "Models"), "+ one")
    shown(panel(page, "About"), "Raspberry Pi 5")
    assert panel(page, "Last hour").locator("canvas").count() >= 4
    shown(panel(page, "Last hour"), "echo, ms")
    if SHOTS is not None:
        picture_of_work(page, place)


def picture_of_work(page: Any, place: Place) -> None:
    """Forty seconds of a board that warms up while it answers."""
    with told(place) as teller:
        for number in range(120):
            place.celsius[0] = 63.0 + number / 12
            for text in range(1 + number % 5):
                body = {"text": f"t{text}", "adapter": "one" if text % 2 else None, "id": f"w{number}-{text}"}
                teller.say("pi", "infer/echo", {**body, "reply_to": "edge/v1/client/test/reply"})
            page.wait_for_timeout(300)
    ask = panel(page, "Ask")
    ask.locator("[name=adapter]").select_option("one")
    ask.locator("textarea").fill("turn off the light in the hallway")
    ask.get_by_role("button", name="Ask").click()
    ask.locator("[data-label]").wait_for()
    page.wait_for_timeout(1500)
    shoot(page, "device", full=True)


def test_latencies_are_those_of_the_report(window: Window, place: Place) -> None:
    total = telemetry_parts.Quantiles(p50=12.34, p95=56.78, p99=2345.0)
    adapters = {"ad": telemetry_parts.AdapterTelemetry(requests=20, total_ms=total)}
    drift = {"": telemetry_parts.Drift(confidence_psi=0.41, texts=99)}
    model = telemetry_parts.ModelTelemetry(
        requests=30,
        failed=1,
        total_ms=total,
        compute_ms=total,
        batch_mean=2.5,
        joules=1.5,
        adapters=adapters,
        drift=drift,
    )
    entry = messages.AdapterEntry(name="ad", digest="d", version=4, rank=2, resident=True, labels=["a", "b"])
    held = {"m": {"promised_bytes": 3 * GIB, "held_bytes": 2 * GIB, "mapped_bytes": 0}}
    memory = {
        "stage": "tight",
        "available_bytes": 4 * GIB,
        "reserve_bytes": GIB,
        "outstanding_bytes": GIB,
        "models": held,
    }
    sensors = {
        "temperature": messages.Measured(value=50.0, unit="celsius", source="thermal"),
        "ram_total": messages.Measured(value=8.0 * GIB, unit="bytes", source="MemTotal"),
        "power": messages.Measured(value=6.4, unit="watts", source="pmic"),
    }
    with told(place, "told") as teller:
        page = window.open("told")
        teller.say("told", "status", told_devices.status())
        teller.say(
            "told", "models", {"models": [{"name": "m", "task": "classify", "reason": "ready", "adapters": [entry]}]}
        )
        panel(page, "Models").locator("[data-model=m]").wait_for()
        more = {
            "models": {"m": model},
            "memory": memory,
            "sensors": sensors,
            "dropped": {"outbox-full": 3},
            "expired": 2,
        }
        teller.say("told", "telemetry", told_devices.telemetry(**more))
        for kind in ("Models",):
            rows = panel(page, kind).locator("tbody tr")
            shown(rows.nth(0), re.compile("3.0/s.*12.3 ms.*56.8 ms.*2.35 s.*2.5.*0.41", re.DOTALL))
            shown(rows.nth(1), re.compile(r"\+ ad v4.*attached.*2.0/s.*12.3 ms", re.DOTALL))
        legend = panel(page, "Memory").locator(".legend")
        for words in ("m 2.0 GiB", "promised 1.0 GiB", "stays free 1.0 GiB", "other programs 2.0 GiB"):
            shown(legend, words)
        widths = (
            panel(page, "Memory")
            .locator(".part")
            .evaluate_all("(all) => all.map((one) => one.getBoundingClientRect().width)")
        )
        assert max(widths) == pytest.approx(2 * min(widths), rel=0.05)
        shown(panel(page, "Heat"), "6.4 W")
        shown(
            panel(page, "Refusals"), re.compile(r"outbox-full\s*3\s*3\s*expired\s*no answer in time\s*2\s*2", re.DOTALL)
        )
        teller.say("told", "telemetry", told_devices.telemetry(dropped={"outbox-full": 4}))
        shown(
            panel(page, "Refusals"), re.compile(r"outbox-full\s*4\s*7\s*expired\s*no answer in time\s*0\s*2", re.DOTALL)
        )
        shown(rows.nth(0), re.compile("0.0/s.*12.3 ms.*56.8 ms.*2.35 s", re.DOTALL))


def test_events_come_once_on_a_time_line(window: Window, place: Place) -> None:
    with told(place, "told") as teller:
        page = window.open("told")
        teller.say("told", "status", told_devices.status())
        panel(page, "Events").wait_for()
        for seq, severity in ((1, "info"), (2, "warning"), (2, "warning"), (3, "error")):
            teller.say("told", "event", told_devices.event("throttled", f"message {seq}", severity, seq))
        shown(panel(page, "Events"), "message 3")
        assert panel(page, "Events").locator(".events li").count() == 3
        assert panel(page, "Events").locator(".dot").count() == 3
        panel(page, "Events").get_by_role("button", name="error").click()
        assert panel(page, "Events").locator(".events li").count() == 1


def test_a_killed_device_greys_at_once_and_comes_back(window: Window, place: Place) -> None:
    page = window.open()
    has_class(card(page, "pi"), "gone", yes=False)
    place.pi.stop(signal.SIGKILL)
    try:
        has_class(card(page, "pi"), "gone")
        shown(card(page, "pi"), "connection lost")
        card(page, "pi").click()
        has_class(page.locator(".device"), "gone")
        shown(page.locator(".troubles"), "offline connection lost")
    finally:
        place.pi.start()
    has_class(page.locator(".device"), "gone", yes=False)


def ask_for_label(place: Place, text: str, adapter: str) -> Any:
    async def run() -> Any:
        async with RequestClient(place.broker.options("test"), devices=["pi"]) as asker:
            body = {"text": text, "adapter": adapter, "params": {"top_k": 3}}
            return (await asker.infer("pi", "echo", body, 10)).result

    return in_a_process(lambda: asyncio.run(run()))


def test_a_question_is_answered_with_labels_scores_and_where_the_time_went(window: Window, place: Place) -> None:
    page = window.open("pi")
    ask = panel(page, "Ask")
    ask.locator("[name=adapter]").select_option("one")
    ask.locator("textarea").fill("turn it off")
    ask.get_by_role("button", name="Ask").click()
    ask.locator("[data-label]").wait_for()
    expected = ask_for_label(place, "turn it off", "one")
    shown(ask.locator("[data-label]"), expected["label"])
    rows = ask.locator(".labels li")
    assert rows.count() == len(LABELS)
    for row, one in zip(range(3), expected["labels"], strict=True):
        shown(rows.nth(row), f"{one['label']}{one['score']:.3f}")
    for word in ("queue", "tokenise", "compute", "total here", "variant", "estimated: 3.2 W idle"):
        shown(ask.locator(".timing"), word)


SPAN = {"label": "room", "start": 2, "end": 9, "text": "<b>hall", "score": 0.91}
FOUND = {"answer": "<b>80", "start": 1, "end": 6, "score": 0.7, "no_answer_score": 0.1, "tokens": 9, "windows": 2}
NOTHING = FOUND | {"answer": None, "start": None, "end": None}
SHOWN: dict[str, list[tuple[dict[str, Any], str]]] = {
    "slots": [({"spans": [SPAN]}, "room.*<b>hall.*0.910"), ({"spans": []}, "no span was found")],
    "answers": [(FOUND, "<b>80.*score 0.700.*none 0.100; 2 windows"), (NOTHING, "no answer in the context")],
}


@pytest.mark.parametrize("task", SHOWN)
def test_pairs_have_two_texts_and_spans_are_shown(window: Window, place: Place, task: str) -> None:
    """Of a model that is told: what the page asks is answered here."""
    results, asked = SHOWN[task], list[dict[str, Any]]()
    with told(place, "told") as teller:
        teller.say("told", "status", told_devices.status())
        model = {"name": "m", "task": task, "pairs": True, "reason": "ready", "adapters": []}
        teller.say("told", "models", {"models": [model]})

        def answer(_client: Any, _userdata: Any, message: Any) -> None:
            asked.append(json.loads(message.payload))
            reply = {"id": asked[-1]["id"], "status": 200, "result": results[len(asked) - 1][0]}
            teller._client.publish(asked[-1]["reply_to"], json.dumps(reply), 1)

        teller._client.on_message = answer
        teller._client.subscribe("edge/v1/told/infer/m", 1)
        page = window.open("told")
        ask = panel(page, "Ask")
        ask.locator("[name=text]").fill("the first text")
        ask.locator("[name=text_pair]").fill("the other text")
        for _, words in results:
            ask.get_by_role("button", name="Ask").click()
            shown(ask.locator(".answer"), re.compile(words, re.DOTALL))
    assert [(one["text"], one["text_pair"]) for one in asked] == [("the first text", "the other text")] * 2


def test_a_refusal_is_a_sentence(window: Window, place: Place) -> None:
    page = window.open("pi")
    ask = panel(page, "Ask")
    ask.locator("textarea").fill("x" * 40_000)
    ask.get_by_role("button", name="Ask").click()
    shown(ask.get_by_role("alert"), re.compile("413: .*KiB"))


def test_a_stream_arrives_part_by_part(window: Window, place: Place) -> None:
    page = window.open(place.talker.device)
    ask = panel(page, "Ask")
    ask.locator("textarea").fill("Once upon a time")
    ask.get_by_role("button", name="Send").click()
    page.evaluate(
        """() => {
          window.lengths = [];
          const look = () => lengths.push(document.querySelector(".chat .assistant")?.textContent.length ?? 0);
          const all = { subtree: true, childList: true, characterData: true };
          new MutationObserver(look).observe(document.querySelector(".chat"), all);
        }"""
    )
    shown(ask.locator(".timing"), "first token after")
    shown(ask.locator(".timing"), "ended by")
    assert len(set(page.evaluate("lengths"))) > 2, "the answer did not grow"
    assert ask.locator(".chat .assistant").inner_text()
    shoot(page, "chat")


def test_a_question_can_be_cancelled(window: Window, place: Place) -> None:
    page = window.open("pi")
    ask = panel(page, "Ask")
    ask.locator("[name=model]").select_option("slow")
    ask.locator("textarea").fill("hello")
    ask.get_by_role("button", name="Ask").click()
    ask.get_by_role("button", name="Cancel").click()
    shown(ask.get_by_role("alert"), "499")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_wrong_password_is_a_sentence_and_the_right_one_is_kept_nowhere(
    window: Window, place: Place, protocol: str
) -> None:
    page = window.open(broker=None)
    fill_form(page, place, "operator", "wrong", protocol)
    refused = "does not let this user connect|refused this user name or password"
    shown(page.get_by_role("alert"), re.compile(refused))
    fill_form(page, place, "operator", USERS["operator"], protocol)
    card(page, "pi").click()
    ask = panel(page, "Ask")
    ask.locator("textarea").fill("hello")
    ask.get_by_role("button", name="Ask").click()
    ask.locator("[data-label]").wait_for()
    kept = page.evaluate("JSON.stringify([location.href, localStorage, sessionStorage, document.cookie])")
    assert USERS["operator"] not in kept
    assert "operator" in kept


def test_a_broker_that_is_not_there_is_a_sentence(window: Window, place: Place) -> None:
    page = window.open(broker=f"ws://127.0.0.1:{free_port()}")
    shown(page.get_by_role("status"), re.compile("Nobody answers at .*protocol websockets"))
    window.complaints[:] = [one for one in window.complaints if "ERR_CONNECTION_REFUSED" not in one]


def test_who_may_only_look_is_told_so(window: Window, place: Place) -> None:
    page = window.open(broker=None)
    fill_form(page, place, "viewer", USERS["viewer"])
    card(page, "pi").click()
    ask = panel(page, "Ask")
    ask.locator("textarea").fill("hello")
    ask.get_by_role("button", name="Ask").click()
    shown(ask.get_by_role("alert"), "access list does not let this user send there")
    orders_of(page, "echo").get_by_role("button", name="Unload").click()
    page.get_by_role("button", name="Yes, unload echo").click()
    shown(panel(page, "Act").locator(".answers"), "access list does not let this user send there")


def test_a_lost_broker_greys_everything_and_is_found_again(window: Window, place: Place) -> None:
    page = window.open()
    has_class(card(page, "pi"), "gone", yes=False)
    place.broker.stop()
    try:
        shown(page.get_by_role("status"), "The connection is lost")
        has_class(card(page, "pi"), "gone")
    finally:
        place.broker.start()
    shown(page.get_by_role("status"), "Connected")
    has_class(card(page, "pi"), "gone", yes=False)
    window.complaints[:] = [one for one in window.complaints if "WebSocket connection" not in one]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(window: Window, place: Place, scheme: str) -> None:
    page = window.open(viewport={"width": 390, "height": 844}, color_scheme=scheme, device_scale_factor=2)
    wide = "document.documentElement.scrollWidth - innerWidth"
    card(page, "pi").wait_for()
    assert page.evaluate(wide) <= 0
    card(page, "pi").click()
    panel(page, "Last hour").locator("canvas").first.wait_for()
    assert page.evaluate(wide) <= 0
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground)[:3])) < 100) == (scheme == "dark")
    shoot(page, f"phone-{scheme}")


def test_the_page_works_from_its_own_server_and_from_the_brokers(window: Window, place: Place) -> None:
    command = [sys.executable, "-m", "edge_agent", "console", "--listen-port", "0", "--broker", place.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[2].rstrip(";")
        try:
            page = window.open(start=address.partition("#")[0])
            card(page, "pi").wait_for()
        finally:
            server.terminate()
    assert server.returncode == 0
    page = window.open(start=f"http://127.0.0.1:{place.websockets}/index.html")
    card(page, "pi").wait_for()
