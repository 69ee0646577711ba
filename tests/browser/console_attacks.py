"""What a hostile device could do to who looks at it in the console; a part of `make console-test`."""

import json
import time
from typing import Any

from edge_agent.protocol import telemetry_parts
from tests.browser.window import MODEL, WAIT_MS, Place, Window, card, panel, shown, told
from tests.support import told_devices
from tests.support.told_devices import Teller

EVIL = '<img src=x onerror="window.evil=1"><script>window.evil=1</script>{{7*7}}\u202egnp.exe'


def evil(value: Any, depth: int = 0) -> Any:
    """The same body with every text replaced, and names of fields that are data as well."""
    if isinstance(value, str):
        return EVIL
    if isinstance(value, list):
        return [evil(one, depth + 1) for one in value]
    return {key: evil(one, depth + 1) for key, one in value.items()} if isinstance(value, dict) else value


ODD = (
    None,
    True,
    1e308,
    "text",
    [],
    {},
    [[]],
    {"__proto__": {"evil": 1}},
    -1,
    [None, {"name": None}],
    {"constructor": 1},
)


def test_nothing_that_a_device_says_becomes_more_than_text(window: Window, place: Place) -> None:
    import msgspec

    total = telemetry_parts.Quantiles(p50=1.0, p95=2.0, p99=3.0)
    model = telemetry_parts.ModelTelemetry(
        requests=1, failed=0, total_ms=total, compute_ms=total, batch_mean=1.0, joules=None
    )
    report = msgspec.to_builtins(told_devices.telemetry())
    report = evil(report) | {
        "models": {EVIL: evil(msgspec.to_builtins(model)) | {"adapters": {EVIL: {"requests": 1}}, "drift": {EVIL: {}}}},
        "refusals": {EVIL: 1},
        "refusal_reasons": {EVIL: 1},
        "dropped": {EVIL: 1, "__proto__": 1},
        "sensors": {
            EVIL: {"value": 1, "unit": EVIL, "source": EVIL, "reason": EVIL},
            "temperature": {"value": 50, "unit": EVIL},
        },
        "canaries": {EVIL: {"ok": False, "reason": EVIL, "adapters": {EVIL: {"ok": False, "reason": EVIL}}}},
    }
    report["memory"] |= {
        "models": {EVIL: {"promised_bytes": 5, "held_bytes": 5, "mapped_bytes": 0}},
        "available_bytes": 99,
    }
    entry = evil(msgspec.to_builtins(MODEL)) | {
        "adapters": [{"name": EVIL, "labels": [EVIL]}],
        "variants": [{"digest": EVIL, "runtime": EVIL}],
    }
    info = {
        "agent": EVIL,
        "board": EVIL,
        "python": EVIL,
        "runtimes": [{"name": EVIL, "version": EVIL, "devices": [EVIL], "reason": EVIL}],
    }
    with told(place, "mallory") as teller:
        page = window.open("mallory")
        teller.say("mallory", "status", evil(msgspec.to_builtins(told_devices.status())) | {"state": "degraded"})
        panel(page, "Events").wait_for()
        teller.say("mallory", "info", info)
        teller.say("mallory", "models", {"models": [entry, {"name": "askable", "task": "classify", "labels": [EVIL]}]})
        item = {"model": EVIL, "adapter": EVIL, "package": EVIL, "state": EVIL, "reason": EVIL, "next": EVIL}
        held = [
            {"model": EVIL, "adapter": None, "package": "sha256:" + "0" * 64},
            {"model": "m", "package": EVIL},
            EVIL,
        ]
        reported = {"version": 1, "state": EVIL, "items": [item], "not_taken": {"reason": EVIL}, "installed": held}
        teller.say("mallory", "reported", reported)
        teller.say("mallory", "telemetry", report)
        teller.say("mallory", "telemetry", report)
        teller.say(
            "mallory",
            "event",
            {"kind": EVIL, "severity": EVIL, "message": EVIL, "seq": 1, "boot_id": EVIL, "ts": time.time()},
        )
        shown(panel(page, "Events"), "<img src=x onerror=")
        for name in ("Heat", "Models", "Refusals", "Memory", "About", "Desired state"):
            shown(panel(page, name), "<img src=x onerror=")
        for kind in ("status", "info", "models", "reported", "telemetry", "event"):
            for odd in ODD:
                teller.say("mallory", kind, json.dumps(odd).encode(), retain=False)
                teller.say(
                    "mallory",
                    kind,
                    {**dict.fromkeys(report, odd), **dict.fromkeys(entry, odd), "models": odd},
                    retain=False,
                )
            teller.say("mallory", kind, b"\xff\x00", retain=False)
        teller.say("mallory", "models", {"models": [entry, {"name": "askable", "task": "classify", "labels": [EVIL]}]})
        teller.say("mallory", "status", {"state": "online", "ts": time.time(), "heartbeat_s": 30})
        answer_as_mallory(page, place)
        page.get_by_role("button", name="← All devices").click()
        card(page, "mallory").wait_for()
        plan = {"models": [{"model": EVIL, "package": EVIL}, {"model": "m", "package": EVIL, "adapters": [EVIL, {}]}]}
        rollout = {"rollout": EVIL, "phase": "rolling", "wave": 7, "waves": [[EVIL, "mallory"], EVIL], "plan": plan}
        for odd in ODD:
            teller.say("group", "rollout/state", {**dict.fromkeys(rollout, odd), "claim": odd}, retain=False)
        teller.say("group", "rollout/state", {**rollout, "reason": EVIL, "claim": {"who": EVIL}}, retain=False)
        shown(panel(page, "Rollout"), "<img src=x onerror=")
        assert page.evaluate("[window.evil, ({}).evil]") == [None, None]
        assert page.locator("img, iframe, object, embed, svg, body script:not([type]) ~ script").count() == 0
        assert "\u202e" not in page.content()


def answer_as_mallory(page: Any, place: Place) -> None:
    """A device that answers a question with labels and reasons of its own."""
    asked: list[dict[str, Any]] = []
    with Teller(place.broker.port) as device:
        device._client.on_message = lambda _c, _u, message: asked.append(json.loads(message.payload))
        device._client.subscribe("edge/v1/mallory/infer/#", 1)
        answers: list[dict[str, Any]] = [
            {
                "status": 200,
                "result": {"label": EVIL, "labels": [{"label": EVIL, "score": 2e9}]},
                "timing": {"total_ms": EVIL},
                "variant": EVIL,
            },
            {"status": 503, "reason": EVIL},
            {"status": 200, "result": [None, 1], "timing": 7, "energy": [EVIL], "batch": EVIL},
        ]  # fmt: skip
        ask = panel(page, "Ask")
        for count, answer in enumerate(answers, start=1):
            ask.locator("textarea").fill("hello")
            ask.get_by_role("button", name="Ask").click()
            until_s = time.monotonic() + WAIT_MS / 1000
            while len(asked) < count and time.monotonic() < until_s:
                page.wait_for_timeout(20)
            body = json.dumps({"id": asked[-1]["id"], **answer})
            device._client.publish(asked[-1]["reply_to"], body, 1).wait_for_publish(10)
            ask.locator(".answer, [role=alert]").wait_for()
            if count < 3:
                shown(ask.locator(".answer, [role=alert]"), "<script>window.evil=1</script>")


def test_the_browser_itself_refuses_code_that_would_have_come_in(window: Window, place: Place) -> None:
    """Were a text ever used as HTML, policy and trusted types stand behind it."""
    page = window.open()
    card(page, "pi").wait_for()
    found = page.evaluate(
        """() => {
          const tried = {};
          const attempt = (name, act) => {
            try { act(); tried[name] = "done"; } catch (error) { tried[name] = error.name; }
          };
          attempt("html", () => { document.createElement("div").innerHTML = "<img src=x onerror='window.evil=1'>"; });
          attempt("script", () => {
            const one = document.createElement("script");
            one.textContent = "window.evil=1";
            document.body.append(one);
          });
          // Later, because the call of a debugger itself may do what the page may not.
          const later = () => attempt("eval", () => { (0, eval)("window.evil=1"); });
          return new Promise((done) => setTimeout(() => { later(); done([tried, window.evil]); }, 0));
        }"""
    )
    assert found == [{"html": "TypeError", "script": "TypeError", "eval": "EvalError"}, None]
    assert window.complaints, "the browser says what it refused"
    window.complaints.clear()
