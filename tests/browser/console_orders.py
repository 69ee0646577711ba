"""Orders and desired states by the console, in a real Chromium, with a real mosquitto and real agents: `make
console-test`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edge_agent.store.inbox_packages import package_digest
from tests.browser.window import USERS, Place, Window, card, fill_form, orders_of, panel, shown, told
from tests.support import told_devices
from tests.support.agents import echo_package
from tests.support.told_devices import Teller


def orders_seen(place: Place) -> tuple[Teller, list[str]]:
    teller, seen = Teller(place.broker.port), list[str]()
    teller._client.on_message = lambda _c, _u, message: seen.append(message.topic) if "~" not in message.topic else None
    teller._client.subscribe("edge/v1/pi/cmd/#")
    return teller, seen


def test_an_order_asks_once_is_sent_once_and_shows_its_answer(window: Window, place: Place, tmp_path: Path) -> None:
    second = echo_package(tmp_path, "second")
    page = window.open("pi")
    act = panel(page, "Act")
    teller, seen = orders_seen(place)
    with teller:
        orders_of(page, "echo").get_by_role("button", name="Unload").click()
        page.get_by_role("button", name="No", exact=True).click()
        answers = act.locator(".answers li")
        for button, words, answer in (
            ("Unload", "unload echo", "done"),
            ("Load", "load echo", "it holds"),
            ("Roll back", "roll back echo", "echo"),
        ):
            orders_of(page, "echo").get_by_role("button", name=button, exact=True).click()
            page.get_by_role("button", name=f"Yes, {words}").click()
            shown(answers.first, words)
            shown(answers.first, answer)
        inbox = place.pi.folder / "state" / "inbox"
        inbox.mkdir(exist_ok=True)
        shutil.move(second, inbox)
        act.get_by_label("Package").fill("second-1.tar")
        act.get_by_role("button", name="Install").click()
        page.get_by_role("button", name="Yes, install second-1.tar").click()
        shown(answers.first, re.compile("install second-1.tar: done"))
        panel(page, "Models").locator("[data-model=second]").wait_for()
        act.get_by_label("Package").fill("none.tar")
        act.get_by_role("button", name="Install").click()
        page.get_by_role("button", name="Yes, install none.tar").click()
        shown(answers.first, re.compile("4[0-9][0-9]: .*none.tar"))
        names = [topic.rpartition("/")[2] for topic in seen]
        assert names == ["unload", "load", "rollback", "install", "install"]


def sees_desired(place: Place) -> tuple[Teller, list[dict[str, Any]]]:
    teller, seen = Teller(place.broker.port), list[dict[str, Any]]()
    teller._client.on_message = lambda _c, _u, message: seen.append(json.loads(message.payload or b"{}"))
    teller._client.subscribe("edge/v1/pi/desired")
    return teller, seen


def test_a_desired_state_is_looked_at_declared_once_and_reported(window: Window, place: Place, tmp_path: Path) -> None:
    third = echo_package(tmp_path, "third")
    digest = package_digest(third)
    inbox = place.pi.folder / "state" / "inbox"
    inbox.mkdir(exist_ok=True)
    shutil.move(third, inbox)
    page = window.open("pi")
    wanted = panel(page, "Desired state")
    wanted.get_by_text("Declare another one").click()
    look, said = wanted.get_by_role("button", name="Look at it"), wanted.get_by_role("status")
    policy = {"within_s": 86400, "others": "keep"}
    gone = {"models": [{"model": "third", "package": None}], "policy": policy}
    teller, seen = sees_desired(place)
    with teller:
        try:
            look.click()
            shown(said, "Nothing is named")
            wanted.get_by_role("button", name="Name a package").click()
            wanted.get_by_label("Model").fill("third")
            wanted.get_by_label("Package").fill("sha256:12")
            look.click()
            shown(said, "64 digits")
            wanted.get_by_label("Package").fill(digest)
            look.click()
            shown(wanted.locator("pre"), digest)
            wanted.get_by_role("button", name="No", exact=True).click()
            look.click()
            wanted.get_by_role("button", name="Yes, declare version 1").click()
            shown(said, "the broker keeps it")
            shown(wanted, "version 1: applied")
            panel(page, "Models").locator("[data-model=third]").wait_for()
            wanted.locator("[data-added]").wait_for(state="detached")
            wanted.locator("[data-installed=third] select").select_option("to be removed")
            wanted.get_by_label("Version").fill("1")
            look.click()
            wanted.get_by_role("button", name="Yes, declare version 1").click()
            shown(wanted, "the last one was not taken")
            wanted.get_by_label("Version").fill("2")
            look.click()
            wanted.get_by_role("button", name="Yes, declare version 2").click()
            shown(wanted, "version 2: applied")
            panel(page, "Models").locator("[data-model=third]").wait_for(state="detached")
            wanted.get_by_role("button", name="Withdraw").click()
            wanted.get_by_role("button", name="Yes, withdraw").click()
            shown(said, "withdraw the desired state: the broker keeps it")
        finally:
            # A rollout refuses a device that reports a version which the broker does not show.
            last = json.dumps({"version": 3} | gone).encode()
            teller._client.publish("edge/v1/pi/desired", last, 1, retain=True).wait_for_publish(10)
            shown(wanted, "version 3: applied")
    assert seen == [
        {"version": 1, "models": [{"model": "third", "package": digest}], "policy": policy},
        {"version": 1} | gone,
        {"version": 2} | gone,
        {},
        {"version": 3} | gone,  # of this test's end
    ]


def test_the_form_begins_with_what_is_declared_and_keeps_its_sources_and_its_trial(
    window: Window, place: Place
) -> None:
    held, newer = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    declared: dict[str, Any] = {
        "version": 7,
        "models": [
            {"model": "minilm", "package": newer, "adapters": [{"adapter": "one", "package": held}]},
            {"model": "old", "package": None},
        ],
        "sources": [
            {"package": newer, "url": "https://one.example/minilm.tar"},
            {"package": newer, "url": "oci://two.example/edge/minilm:8"},
        ],
        "policy": {"within_s": 5400, "others": "remove", "trial": {"mode": "shadow", "least": 80, "agreement": 0.97}},
    }
    installed = [{"model": "minilm", "adapter": name, "package": held} for name in (None, "one", "two")]
    trial = {"model": "minilm", "version": 8, "package": newer, "state": "running", "since": time.time() - 90,
             "spent_s": 90.0, "figures": {"seen": 34.0, "agreement": 0.9706, "slower": None}}  # fmt: skip
    with told(place, "told") as teller:
        try:
            page = window.open("told")
            teller.say("told", "status", told_devices.status())
            reported = {"version": 7, "state": "pending", "items": [], "installed": installed, "trials": [trial]}
            teller.say("told", "reported", reported)
            teller.say("told", "desired", declared, retain=True)
            wanted = panel(page, "Desired state")
            shown(wanted.locator("[data-trial=minilm]"), re.compile(r"minilm v8.*running.*seen 34, agreement 0\.971"))
            wanted.get_by_text("Declare another one").click()
            shown(wanted.locator("[data-begins]"), "as version 7")
            look = wanted.get_by_role("button", name="Look at it")
            look.click()
            assert json.loads(wanted.locator("pre").inner_text()) == declared | {"version": 8}
            wanted.get_by_role("button", name="No", exact=True).click()
            wanted.locator("[data-installed=minilm] select").select_option("this package")
            wanted.get_by_label("New versions").select_option("answer at once")
            look.click()
            models = [{**declared["models"][0], "package": held}, declared["models"][1]]
            expected = {"version": 8, "models": models, "policy": {"within_s": 5400, "others": "remove"}}
            assert json.loads(wanted.locator("pre").inner_text()) == expected
            wanted.get_by_role("button", name="No", exact=True).click()
            teller.say("told", "desired", b"", retain=True)
            shown(wanted, "withdrawn, or this user may not read it")
        finally:
            teller.say("told", "desired", b"", retain=True)


def test_a_rollout_is_followed_and_returned_from_the_page(window: Window, place: Place, tmp_path: Path) -> None:
    fourth = echo_package(tmp_path, "fourth")
    digest = package_digest(fourth)
    inbox = place.pi.folder / "state" / "inbox"
    inbox.mkdir(exist_ok=True)
    shutil.move(fourth, inbox)
    plan = tmp_path / "plan.toml"
    plan.write_text(f'devices = ["pi"]\nwaves = [["pi"]]\n[[models]]\nmodel = "fourth"\npackage = "{digest}"\n')
    page = window.open()
    card(page, "pi").wait_for()
    rollout = panel(page, "Rollout")
    command = [sys.executable, "-m", "edge_agent", "fleet", "rollout", "--config", str(place.pi.config), str(plan)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        shown(rollout, "is being rolled out")
        shown(rollout, f"fourth → {digest[:19]}")
        rollout.get_by_text("1 have applied it").wait_for(timeout=120_000)
        shown(rollout, "carried out by")
        rollout.get_by_role("button", name="Return all devices").click()
        rollout.get_by_role("button", name="Yes, return them").click()
        shown(rollout, "is asked to return")
        shown(rollout, "was returned")
        assert process.wait(60) == 1, process.stdout.read() if process.stdout else ""
    page.goto(page.url.partition("&device")[0] + "&device=pi")
    panel(page, "Models").wait_for()
    panel(page, "Models").locator("[data-model=fourth]").wait_for(state="detached")


def test_what_the_access_list_forbids_to_declare_is_a_sentence(window: Window, place: Place) -> None:
    page = window.open(broker=None)
    fill_form(page, place, "viewer", USERS["viewer"])
    card(page, "pi").click()
    wanted = panel(page, "Desired state")
    wanted.get_by_text("Declare another one").click()
    wanted.locator("[data-installed=slow] select").select_option("to be removed")
    wanted.get_by_role("button", name="Look at it").click()
    wanted.get_by_role("button", name=re.compile("Yes, declare")).click()
    shown(wanted.get_by_role("status"), "access list does not let this user send there")
