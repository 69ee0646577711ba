"""TLS with client certificates against a real mosquitto."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.mqtt.options import TlsOptions
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.topics import Subscription
from tests.support.certificates import Authority
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import linked, until


def test_a_device_with_a_certificate_is_let_in_and_held_to_its_own_topics(tmp_path: Path) -> None:
    async def run() -> None:
        authority = Authority(tmp_path / "ca")
        acl = "pattern readwrite edge/v1/%u/#\n"
        with Mosquitto(tmp_path, tls=authority, acl=acl) as broker:
            options = broker.options("pi", authority.issue("pi"))
            async with linked(options, [Subscription("edge/v1/+/reply/#")]) as pi:
                sizes = [10, 16_384, 120_000, 1, 65_536]
                for size in sizes:
                    assert pi.link.publish(Outbound("edge/v1/pi/reply/x", b"x" * size))
                    # Whoever is called otherwise may not speak here, and may not make others hear.
                    assert pi.link.publish(Outbound("edge/v1/other/reply/x", b"y" * size))
                await until(lambda: len(pi.seen) == len(sizes))
                assert [len(body) for body in pi.bodies] == sizes
                await until(lambda: pi.link.publish_failures == len(sizes))

    asyncio.run(run())


def test_a_flood_over_tls_is_held_and_not_lost(tmp_path: Path) -> None:
    async def run() -> None:
        authority = Authority(tmp_path / "ca")
        with Mosquitto(tmp_path, tls=authority) as broker:
            options = broker.options("pi", authority.issue("pi"))
            async with linked(options, [Subscription("t")]) as pi:
                for n in range(600):
                    while not pi.link.publish(Outbound("t", str(n).encode() * 50)):
                        await asyncio.sleep(0.01)
                await until(lambda: len(pi.seen) == 600, within_s=30)
                assert pi.bodies == [str(n).encode() * 50 for n in range(600)]

    asyncio.run(run())


@pytest.mark.parametrize("case", ["foreign broker", "foreign device", "no certificate", "missing file", "no TLS"])
def test_what_is_wrong_with_tls_is_said(tmp_path: Path, case: str) -> None:
    async def run() -> None:
        authority, foreign = Authority(tmp_path / "ca"), Authority(tmp_path / "foreign")
        with Mosquitto(tmp_path, tls=authority) as broker:
            options = broker.options("pi", authority.issue("pi"))
            ca_file, stranger = str(authority.ca), foreign.issue("pi")
            tls, words = {
                "foreign broker": (replace(options.tls, ca_file=str(foreign.ca)), "certificate is not trusted"),
                "foreign device": (
                    TlsOptions(ca_file=ca_file, cert_file=str(stranger.cert), key_file=str(stranger.key)),
                    "refuse.* certificate",
                ),
                "no certificate": (TlsOptions(ca_file=ca_file), "refuse.* certificate"),
                "missing file": (TlsOptions(ca_file=str(tmp_path / "no.pem")), "no.pem: No such file"),
                "no TLS": (None, "the connection broke"),
            }[case]
            async with linked(replace(options, tls=tls), ready=False) as pi:
                await until(lambda: pi.changes)
                assert re.search(words, pi.changes[0].text)
                if case in ("foreign broker", "missing file"):
                    assert pi.changes[0].kind == "permanent"

    asyncio.run(run())


@pytest.mark.parametrize(("from_day", "words"), [(1, "not yet valid.*clock is behind"), (-3, "expired.*clock")])
def test_a_certificate_outside_its_time_names_the_clock_and_is_tried_again(
    tmp_path: Path, from_day: int, words: str
) -> None:
    async def run() -> None:
        authority = Authority(tmp_path / "ca", from_day)
        with Mosquitto(tmp_path, tls=authority) as broker:
            async with linked(broker.options("pi", authority.issue("pi")), ready=False) as pi:
                await until(lambda: pi.changes)
                assert re.search(words, pi.changes[0].text)
                assert pi.changes[0].kind == "transient", "a clock is set while the agent runs"

    asyncio.run(run())
