"""When to dial again, and in which version."""

from __future__ import annotations

import socket
import ssl

import pytest

from edge_agent.mqtt.options import MqttOptions
from edge_agent.mqtt.reconnect import STABLE_S, Reason, Retry, from_code, from_error, from_silence

REFUSED = Reason("transient", "nothing listens there")
SILENT = Reason("transient", "the connection broke", silent="hung up")
OLD_BROKER = Reason("protocol", "unsupported protocol version")


def retry(**more: object) -> Retry:
    settings: dict[str, object] = {"host": "h", "client_id": "c", "reconnect_base_s": 1.0, "reconnect_cap_s": 60.0}
    return Retry(MqttOptions(**(settings | more)))  # type: ignore[arg-type]


def test_full_jitter_doubles_up_to_the_cap() -> None:
    one = retry()
    assert [one.pause_s(REFUSED, 0.0, 1.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert one.pause_s(REFUSED, 0.0, 0.0) == 0


def test_only_a_connection_that_held_starts_anew() -> None:
    one = retry()
    for _ in range(5):
        one.pause_s(REFUSED, 0.0, 1.0)
    one.connected()
    assert one.pause_s(REFUSED, STABLE_S / 2, 1.0) == 32
    one.connected()
    assert one.pause_s(REFUSED, STABLE_S, 1.0) == 1


def test_what_only_a_person_can_mend_is_tried_slowly() -> None:
    one = retry()
    for random01, expected in ((0.0, 30.0), (1.0, 60.0)):
        assert one.pause_s(from_code(0x86, "Bad user name or password"), 0.0, random01) == expected


def test_a_takeover_is_not_fought() -> None:
    one = retry(takeover_pause_s=300.0)
    assert one.pause_s(from_code(0x8E, "Session taken over"), 2.0, 0.0) == 150
    assert one.pause_s(from_code(0x8E, "Session taken over"), 2.0, 1.0) == 300


def test_two_of_one_name_at_a_silent_broker_are_guessed() -> None:
    one = retry()
    told = [one.explain(SILENT, lasted_s).remedy for lasted_s in (2.0, 0.0, 3.0, 1.0, STABLE_S, 1.0)]
    assert told[:3] == [None, None, None]
    assert told[3] is not None
    assert "another client use this client id" in told[3]
    assert told[4:] == [None, None]


def test_an_old_broker_is_asked_in_its_own_version_at_once() -> None:
    one = retry()
    assert one.version == 5
    assert one.pause_s(OLD_BROKER, 0.0, 1.0) == 0
    assert one.version == 4
    one.connected()
    assert one.version == 5


def test_a_broker_that_hangs_up_is_asked_in_the_old_version_after_two_tries() -> None:
    one = retry()
    assert one.pause_s(SILENT, 0.0, 1.0) > 0
    assert one.version == 5
    assert one.pause_s(SILENT, 0.0, 1.0) == 0
    assert one.version == 4
    assert one.pause_s(SILENT, 0.0, 1.0) > 0
    assert one.version == 5


def test_a_broker_that_takes_the_connection_and_says_nothing_is_asked_in_the_old_version_at_once() -> None:
    one = retry()
    assert one.pause_s(Reason("transient", "no answer to CONNECT", silent="mute"), 0.0, 1.0) == 0
    assert one.version == 4


def test_a_connection_that_breaks_later_says_nothing_about_versions() -> None:
    one = retry()
    for _ in range(5):
        one.connected()
        one.pause_s(SILENT, 3.0, 1.0)
        assert one.version == 5


@pytest.mark.parametrize(("protocol", "version"), [(5, 5), (311, 4)])
def test_a_version_that_is_set_is_kept(protocol: int, version: int) -> None:
    one = retry(protocol=protocol)
    for _ in range(3):
        assert one.pause_s(OLD_BROKER, 0.0, 1.0) == 60
        assert one.version == version


@pytest.mark.parametrize(
    ("code", "kind", "remedy"),
    [
        (0x84, "protocol", "mqtt.protocol"),
        (0x85, "permanent", "device.id"),
        (0x86, "permanent", "password"),
        (0x87, "permanent", "access list"),
        (0x8A, "permanent", "banned"),
        (0x8E, "takeover", "its own name"),
        (0x88, "transient", None),
        (0x89, "transient", None),
        (0x8B, "transient", None),
        (0x97, "transient", None),
    ],
)
def test_reason_codes_are_sorted_by_what_to_do(code: int, kind: str, remedy: str | None) -> None:
    reason = from_code(code, "words")
    assert (reason.kind, reason.code) == (kind, code)
    assert str(reason).startswith(f"the broker says: words (0x{code:02X})")
    if remedy is None:
        assert reason.remedy is None
    else:
        assert remedy in str(reason)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ConnectionRefusedError(111, "refused"), "transient", "h:1: nothing listens there (start the broker"),
        (socket.gaierror(-2, "unknown"), "transient", "h:1: the name cannot be resolved (check mqtt.host"),
        (TimeoutError(), "transient", "h:1: no answer (check the network"),
        (OSError(113, "No route to host"), "transient", "h:1: No route to host"),
        (ssl.SSLError(1, "wrong version"), "permanent", "TLS failed"),
        (ssl.SSLCertVerificationError(1, "x"), "permanent", "certificate is not trusted"),
        (FileNotFoundError(2, "No such file or directory", "ca.pem"), "permanent", "cannot read ca.pem"),
        (PermissionError(13, "Permission denied", "key"), "permanent", "cannot read key"),
        (ValueError("nonsense"), "transient", "h:1: nonsense"),
    ],
)
def test_errors_of_the_system_are_put_in_words(error: OSError | ValueError, kind: str, words: str) -> None:
    reason = from_error(error, "h:1")
    assert reason.kind == kind
    assert words in str(reason)


@pytest.mark.parametrize(("code", "words"), [(9, "clock is behind"), (10, "renew it at the broker, or set this")])
def test_a_certificate_outside_its_time_names_the_clock(code: int, words: str) -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, "certificate is not yet valid"
    reason = from_error(error, "h:1")
    assert words in str(reason)
    assert "timedatectl" in str(reason)
    assert "mqtt.tls.ca" not in str(reason)
    assert reason.kind == "transient", "a clock is set while the agent runs"


def test_the_alert_of_openssl_tells_a_refused_certificate_and_words_do_not() -> None:
    alert = ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required")
    alert.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    refused = from_silence("h:1", "failed to receive", alert, in_tls=True)
    assert (refused.kind, str(refused).partition(" (")[0]) == (
        "permanent",
        "h:1: the broker refuses our certificate: failed to receive",
    )
    other = from_silence("h:1", "ALERT CERT", ConnectionResetError(104, "ALERT CERT"), in_tls=False)
    assert (other.kind, other.silent, str(other)) == ("transient", "hung up", "h:1: the connection broke: ALERT CERT")


def test_the_detail_of_a_reason_leaves_out_the_address() -> None:
    reason = from_error(ConnectionRefusedError(111, "refused"), "h:1")
    assert reason.detail == "nothing listens there (start the broker or check mqtt.port)"
    assert str(reason) == f"h:1: {reason.detail}"
