"""What a device counts as, and what stops a rollout."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edge_agent.fleet.rollout import DeviceFacts, DeviceProgress, Look, Rollout, Step, progress
from edge_agent.protocol import messages, telemetry_parts
from edge_agent.protocol.rollout_messages import RolloutPlan, RolloutRecord, RolloutState
from tests.support import told_devices as told

NEW, OLD = (f"sha256:{digit * 64}" for digit in "ab")
MODEL = {"model": "m", "package": NEW}


def body(version: int, package: str = NEW) -> messages.Desired:
    return messages.Desired(version=version, models=[messages.DesiredModel(model="m", package=package)])


def reported(version: int | None, *items: tuple[str, str], not_taken: int | None = None) -> messages.Reported:
    found = [
        messages.ReportedItem(model=model, adapter=None, package=NEW, state=state, since=0.0, reason="why")  # type: ignore[arg-type]
        for model, state in items
    ]
    refused = None if not_taken is None else messages.NotTaken(version=not_taken, reason="no")
    return messages.Reported(
        ts=0.0, boot_id="b", seq=1, version=version, state="pending", items=found, installed=[], not_taken=refused
    )


def facts(
    at: messages.Desired | None, said: messages.Reported | None, back_version: int | None = None, up: bool = True
) -> DeviceFacts:
    record = RolloutRecord(rollout="r", give=body(2), back=body(1, OLD), back_version=back_version)
    return DeviceFacts(record=record, desired=at, reported=said, up=up)


@pytest.mark.parametrize(
    ("at", "said", "how"),
    [
        (body(1, OLD), None, DeviceProgress.RECORDED),
        (None, None, DeviceProgress.RECORDED),
        (body(2), None, DeviceProgress.UNANSWERED),
        (body(2), reported(1, ("m", "applied")), DeviceProgress.UNANSWERED),
        (body(2), reported(2, ("m", "pending")), DeviceProgress.WAITING),
        (body(2), reported(2, ("m", "applied"), ("x", "refused")), DeviceProgress.APPLIED),
        (body(2), reported(2, ("m", "refused"), ("x", "applied")), DeviceProgress.FAILED),
        (body(2), reported(2, ("m", "rolled-back")), DeviceProgress.FAILED),
        (body(2), reported(1, ("m", "applied"), not_taken=2), DeviceProgress.FAILED),
        (body(3), reported(2, ("m", "applied")), DeviceProgress.OVERTAKEN),
        (body(2, OLD), reported(1, ("m", "applied")), DeviceProgress.OVERTAKEN),
        (body(2), reported(4, ("m", "applied")), DeviceProgress.OVERTAKEN),
        (None, reported(2, ("m", "applied")), DeviceProgress.APPLIED),
    ],
)
def test_a_device_counts_by_what_it_reports_of_what_the_plan_names(
    at: messages.Desired | None, said: messages.Reported | None, how: DeviceProgress
) -> None:
    assert progress(facts(at, said), [("m", None)])[0] is how


def rolled(spent_s: float = 0.0, wave: int = 0, phase: str = "rolling", **stop: Any) -> RolloutState:
    plan = {"models": [MODEL], "stop": stop, "within_s": 100.0, "watch_s": 10.0}
    return RolloutState(
        form=1, rollout="r", seq=1, ts=0.0, phase=phase, wave=wave, spent_s=spent_s,  # type: ignore[arg-type]
        waves=[["a", "b"], ["c"]], plan=msgspec.convert(plan, type=RolloutPlan),
    )  # fmt: skip


APPLIED = facts(body(2), reported(2, ("m", "applied")))


def looked(state: RolloutState, *seen: tuple[str, DeviceFacts]) -> Look:
    return Rollout(state.plan).look(state, dict(seen))


def test_a_wave_is_held_for_its_time_before_the_next_one() -> None:
    rollout, seen = Rollout(rolled().plan), {"a": APPLIED, "b": APPLIED}
    assert rollout.look(rolled(5.0), seen).state.wave == 0
    assert rollout.look(rolled(14.0), seen).state.wave == 0
    after = rollout.look(rolled(15.0), seen).state
    assert (after.wave, after.spent_s, after.phase) == (1, 0.0, "rolling")
    assert looked(after, ("a", APPLIED), ("b", APPLIED)).steps == (("c", Step.RECORD),)


def test_more_failures_than_may_be_stop_it_at_once() -> None:
    bad = facts(body(2), reported(2, ("m", "refused")))
    look = looked(rolled(), ("a", APPLIED), ("b", bad))
    assert (look.state.phase, look.steps) == ("returning", ())
    assert look.state.reason == "1 of 2 devices failed, 0 may: b: m refused: why"
    assert looked(rolled(applied=0.5), ("a", APPLIED), ("b", bad)).state.phase == "rolling"


def test_a_wave_in_which_nobody_has_applied_it_stops_however_few_must() -> None:
    bad = facts(body(2), reported(2, ("m", "refused")))
    assert looked(rolled(applied=0.0), ("a", bad), ("b", bad)).state.reason == "no device of wave 1 has applied it"


def test_a_device_that_never_answers_fails_or_is_left_out_as_the_plan_says() -> None:
    silent = facts(body(2), None, up=False)
    seen = (("a", APPLIED), ("b", silent))
    assert looked(rolled(99.0), *seen).state.phase == "rolling"
    look = looked(rolled(100.0), *seen)
    assert look.state.phase == "returning"
    assert "b: not applied within 100 s: it never answered" in look.state.reason
    look = looked(rolled(100.0, silent="skip"), *seen)
    assert (look.state.phase, look.state.left_out) == ("rolling", ["b"])
    slow = facts(body(2), reported(2, ("m", "pending")))
    assert looked(rolled(100.0, silent="skip"), ("a", APPLIED), ("b", slow)).state.phase == "returning"


def test_a_device_that_has_applied_it_and_is_gone_holds_no_wave() -> None:
    gone = facts(body(2), reported(2, ("m", "applied")), up=False)
    rollout, seen = Rollout(rolled().plan), {"a": APPLIED, "b": gone}
    assert [rollout.look(rolled(spent_s), seen).state.wave for spent_s in (1.0, 50.0, 109.0)] == [0, 0, 0]
    look = rollout.look(rolled(110.0), seen)
    assert look.state.phase == "returning"
    assert "it has applied it and is not there any more" in look.state.reason


def telemetry(seq: int, requests: int = 0, failed: int = 0, celsius: float = 50.0, **more: Any) -> messages.Telemetry:
    model = telemetry_parts.ModelTelemetry(
        requests=requests, failed=failed, total_ms=None, compute_ms=None, batch_mean=None, joules=None
    )
    return msgspec.structs.replace(told.telemetry(celsius, models={"m": model}, **more), seq=seq)


def reported_by(state: RolloutState, *bodies: messages.Telemetry) -> RolloutState:
    rollout, seen = Rollout(state.plan), {"a": APPLIED, "b": APPLIED}
    rollout.report("a", telemetry(0, 1000, 1000))  # before it was seen to have applied
    rollout.look(state, seen)
    rollout.report("a", telemetry(1, 1000, 1000))  # covers what was before, too
    for one in bodies:
        rollout.report("a", one)
        rollout.report("a", one)
    return rollout.look(state, seen).state


def test_failed_requests_count_from_the_second_report_and_once() -> None:
    assert reported_by(rolled(), telemetry(2, 95, 5)).phase == "rolling"
    assert "6 of 100 requests failed, more than 5%" in reported_by(rolled(), telemetry(2, 94, 6)).reason
    assert reported_by(rolled(), telemetry(2, 0, 19)).phase == "rolling"
    assert reported_by(rolled(failed=None), telemetry(2, 0, 100)).phase == "rolling"


def test_requests_of_all_devices_together_count_where_each_has_too_few() -> None:
    state, seen = rolled(), {"a": APPLIED, "b": APPLIED}
    rollout = Rollout(state.plan)
    rollout.look(state, seen)
    for name in seen:
        rollout.report(name, telemetry(1))
        rollout.report(name, telemetry(2, 10, 2))
    assert rollout.look(state, seen).state.reason == "on 2 devices together 4 of 24 requests failed, more than 5%"


def test_heat_drift_probes_and_refusals_stop_it_where_the_plan_says_so() -> None:
    drift = {"": telemetry_parts.Drift(confidence_psi=0.3, texts=100)}
    drifting = telemetry_parts.ModelTelemetry(
        requests=1, failed=0, total_ms=None, compute_ms=None, batch_mean=None, joules=None, drift=drift
    )
    failing = {"m": telemetry_parts.Canary(ok=False, reason="label 1")}
    cases: list[tuple[messages.Telemetry, dict[str, Any], str]] = [
        (telemetry(2, celsius=91.0), {"temperature_c": 90}, "its temperature is 91 °C, above 90"),
        (msgspec.structs.replace(telemetry(2), models={"m": drifting}), {"drift_psi": 0.25}, "the drift of m is 0.30"),
        (telemetry(2, canaries=failing), {"probes": True}, "the golden probes of m fail"),
        (telemetry(2, 50, refusals={"503": 50}), {"refused": 0.4}, "50 of 100 requests were refused, more than 40%"),
    ]
    for report, stop, said in cases:
        assert said in reported_by(rolled(**stop), report).reason
        assert reported_by(rolled(probes=False), report).phase == "rolling", said


def test_a_return_goes_to_whatever_has_a_record_but_not_over_somebody_else() -> None:
    state = rolled(phase="returning")
    on_its_way, other = (
        facts(body(1, OLD), reported(1, ("m", "applied"))),
        facts(body(3), reported(2, ("m", "applied"))),
    )
    look = looked(state, ("a", APPLIED), ("b", on_its_way), ("c", other), ("d", DeviceFacts()))
    assert look.steps == (("a", Step.RECORD_BACK), ("b", Step.RECORD_BACK))
    assert look.devices["c"][0] is DeviceProgress.OVERTAKEN


def test_a_return_has_ended_once_those_that_are_there_say_so() -> None:
    back = facts(body(3, OLD), reported(3, ("m", "applied")), back_version=3)
    away = facts(body(3, OLD), reported(2, ("m", "applied")), back_version=3, up=False)
    state = rolled(1.0, phase="returning")
    assert looked(state, ("a", facts(body(2), None, back_version=3))).steps == (("a", Step.GIVE_BACK),)
    assert looked(state, ("a", back), ("b", away)).state.phase == "returning"
    later = looked(rolled(31.0, phase="returning"), ("a", back), ("b", away))
    assert later.state.phase == "returned"
    assert [later.devices[name][0] for name in "ab"] == [DeviceProgress.APPLIED, DeviceProgress.UNANSWERED]


def test_a_package_on_trial_is_applied_once_the_trial_is_over() -> None:
    def tried(state: str, package: str = NEW, since_s: float = -1.0) -> DeviceFacts:
        trial = messages.ReportedTrial(
            model="m", version=2, package=package, state=state, since=since_s, spent_s=1.0, reason="slower"  # type: ignore[arg-type]
        )  # fmt: skip
        return facts(body(2), msgspec.structs.replace(reported(2, ("m", "applied")), trials=[trial]))

    assert progress(tried("running"), [("m", None)]) == (DeviceProgress.WAITING, "m is on trial")
    jumped = tried("running", since_s=-86400.0)  # the board's clock was set while it ran
    assert progress(jumped, [("m", None)])[0] is DeviceProgress.WAITING
    assert progress(tried("promoted"), [("m", None)])[0] is DeviceProgress.APPLIED
    assert progress(tried("returned"), [("m", None)])[1] == "the trial of m returned it: slower"
    assert progress(tried("returned", OLD), [("m", None)])[0] is DeviceProgress.APPLIED
    assert progress(tried("returned", since_s=-86400.0), [("m", None)])[0] is DeviceProgress.APPLIED, "given again"
