"""What the tests of the console work with: a broker with WebSockets, two real agents, pages in a real Chromium."""

import contextlib
import os
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.console.page_server import PAGE
from edge_agent.protocol import messages
from tests.support import sysfs
from tests.support.agents import AgentProcess
from tests.support.mosquitto import Mosquitto
from tests.support.told_devices import Teller

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT_MS = round(1000 * float(os.environ.get("WAIT_S", "20")))
SHOTS = Path(os.environ["SHOTS"]) if "SHOTS" in os.environ else None
ACL = """\
topic readwrite #
user viewer
topic read edge/v1/+/status
topic read edge/v1/+/info
topic read edge/v1/+/models
topic read edge/v1/+/reported
topic read edge/v1/+/telemetry
topic read edge/v1/+/event
user operator
topic read edge/v1/+/status
topic read edge/v1/+/info
topic read edge/v1/+/models
topic read edge/v1/+/telemetry
topic read edge/v1/+/event
topic write edge/v1/+/infer/+
topic write edge/v1/+/cancel
topic write edge/v1/+/cmd/+
topic read edge/v1/client/operator/reply/#
"""
USERS = {"viewer": "sees-all", "operator": "does-much"}


@dataclass
class Place:
    """A broker with WebSockets on `websockets`, and two real agents: `pi`, a simulated Raspberry Pi 5, and `talker`."""

    broker: Mosquitto
    websockets: int
    pi: AgentProcess
    celsius: list[float]
    talker: AgentProcess

    @property
    def url(self) -> str:
        """The broker's address for browsers."""
        return f"ws://127.0.0.1:{self.websockets}"


@contextlib.contextmanager
def wobbling(board: sysfs.Tree) -> Iterator[list[float]]:
    """A temperature that moves a little around the value in the list: one that stands still is taken for a faulty
    sensor."""
    celsius, ended, file = [61.5], threading.Event(), board.temp_path("cpu-thermal")

    def move() -> None:
        while not ended.wait(0.2):
            new = file.with_name("temp.new")
            new.write_text(f"{round((celsius[0] + random.uniform(-0.4, 0.4)) * 1000)}\n")
            new.replace(file)  # at once: an empty file is a lost sensor

    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield celsius
    finally:
        ended.set()
        thread.join()


@dataclass
class Window:
    """Opens pages, each in a profile of its own, and collects what the browser complains about."""

    browser: Any
    place: Place
    complaints: list[str]

    def open(self, device: str = "", start: str | None = None, broker: str | None = "", **profile: Any) -> Any:
        """The console, connected without a user name; with `broker` None it asks for the broker."""
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **profile})
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda told: self.complaints.append(told.text) if told.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        named = [] if broker is None else [f"broker={broker or self.place.url}"]
        named += [f"device={device}"] if device else []
        page.goto(f"{start or PAGE.as_uri()}#{'&'.join(named)}")
        return page


def in_a_process(run: Callable[[], Any]) -> Any:
    """What `run` returns, computed outside of playwright's loop."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def shoot(page: Any, name: str, full: bool = False) -> None:
    if SHOTS is not None:
        page.screenshot(path=str(SHOTS / f"console-{name}.png"), full_page=full)


def panel(page: Any, name: str) -> Any:
    return page.locator(f"[data-panel='{name}']")


def card(page: Any, device: str) -> Any:
    return page.locator(f"[data-device='{device}']")


def orders_of(page: Any, model: str) -> Any:
    return page.locator(f"[data-orders='{model}']")


def shown(locator: Any, words: str | re.Pattern[str]) -> None:
    from playwright.sync_api import expect

    expect(locator).to_contain_text(words, timeout=WAIT_MS)


def has_class(locator: Any, name: str, yes: bool = True) -> None:
    from playwright.sync_api import expect

    found = re.compile(rf"(^|\s){name}(\s|$)")
    if yes:
        expect(locator).to_have_class(found, timeout=WAIT_MS)
    else:
        expect(locator).not_to_have_class(found, timeout=WAIT_MS)


@contextlib.contextmanager
def told(place: Place, *devices: str) -> Iterator[Teller]:
    with Teller(place.broker.port) as teller:
        try:
            yield teller
        finally:
            for device in devices:
                teller.forget(device)


def fill_form(page: Any, place: Place, username: str, password: str, protocol: str = "5") -> None:
    """Connect by the form of the page."""
    page.get_by_label("Address").fill(place.url)
    page.get_by_label("User name").fill(username)
    page.get_by_label("Password").fill(password)
    page.get_by_text("More").click()
    page.get_by_label("Version of MQTT").select_option(protocol)
    page.get_by_role("button", name="Connect", exact=True).click()


MODEL = messages.ModelEntry(
    name="m", version=3, base_id="sha256:0", task="classify", labels=["a", "b"], resident=False, variant="d",
    variants=[], adapters=[], reason="quarantined",
)  # fmt: skip
