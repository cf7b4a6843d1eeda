"""AWS IoT Jobs over MQTT: every operation and every rejection, over real sockets, with a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flota.fleet.devices import DeviceState
from flota.fleet.executions import Basis, ExecutionState
from flota.fleet.rollouts import RolloutPolicy, RolloutState
from tests.server.aws_iot_bench import Bench, a_bench, a_bench_over, job_id

S = ExecutionState


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with a_bench(tmp_path) as made:
        yield made


async def test_an_update_from_notify_next_to_succeeded(bench: Bench) -> None:
    """The C agent's whole life: it subscribes to notify-next alone and never to an answer."""
    pump = await bench.fleet.add_device("pump-1")
    release, execution = await bench.roll_out(pump)
    thing = await bench.listening("pump-1", "notify-next")
    answer = await thing.accepted("$next/get", {"clientToken": "0:pump-1"})
    assert answer["clientToken"] == "0:pump-1"
    found = answer["execution"]
    assert (found["jobId"], found["status"], found["versionNumber"], found["executionNumber"]) == (
        job_id(bench),
        "QUEUED",
        1,
        1,
    )
    assert "statusDetails" not in found
    assert "startedAt" not in found
    file = found["jobDocument"]["afr_ota"]["files"][0]
    assert (file["filesize"], file["fileid"]) == (release.artifact.digests.size, 0)
    update = f"{job_id(bench)}/update"
    await thing.accepted(update, {"status": "IN_PROGRESS", "statusDetails": {"receive": "1/3"}})
    await thing.accepted(
        update, {"status": "IN_PROGRESS", "statusDetails": {"self_test": "ready", "updatedBy": "0x01000000"}}
    )
    # after its reset it finds exactly what it had left
    found = (await thing.accepted("$next/get"))["execution"]
    assert found["status"] == "IN_PROGRESS"
    assert found["statusDetails"] == {"self_test": "ready", "updatedBy": "0x01000000"}
    assert found["versionNumber"] == 3
    await thing.accepted(
        update, {"status": "SUCCEEDED", "statusDetails": {"reason": "accepted  v1.0.1", "updatedBy": "  v1.0.0"}}
    )
    ended = await bench.fleet.execution(execution)
    assert (ended.state, ended.version, ended.basis) == (S.SUCCEEDED, 4, Basis.REPORTED)
    assert ended.details["reason"] == "accepted  v1.0.1"
    await bench.settle()
    topic, members = await thing.told()
    assert (topic, set(members)) == ("jobs/notify-next", {"timestamp"})
    assert (await bench.fleet.device("pump-1")).running_version == "2.0.0"


async def test_nothing_pending_is_told_by_token_and_time_alone(bench: Bench) -> None:
    await bench.fleet.add_device("pump-1")
    thing = await bench.connect()
    assert set(await thing.accepted("$next/get", {"clientToken": "0:t1"})) == {"clientToken", "timestamp"}
    assert set(await thing.accepted("start-next")) == {"timestamp"}
    empty = await thing.accepted("get", b"")
    assert (empty["inProgressJobs"], empty["queuedJobs"]) == ([], [])


async def test_pending_jobs_are_listed_in_progress_first_then_by_age(bench: Bench) -> None:
    pump = await bench.fleet.add_device("pump-1")
    for version in ("2.0.0", "2.1.0", "2.2.0"):
        await bench.roll_out(pump, version=version)
    thing = await bench.connect()
    await thing.accepted(f"{job_id(bench, 1)}/update", {"status": "IN_PROGRESS"})
    listed = await thing.accepted("get", {"clientToken": "x"})
    assert [one["jobId"] for one in listed["inProgressJobs"]] == [job_id(bench, 1)]
    assert [one["jobId"] for one in listed["queuedJobs"]] == [job_id(bench, 0), job_id(bench, 2)]
    assert set(listed["queuedJobs"][0]) == {"jobId", "queuedAt", "lastUpdatedAt", "versionNumber", "executionNumber"}
    assert (await thing.accepted("$next/get"))["execution"]["jobId"] == job_id(bench, 1)
    # the one that is at work goes first; a second one is refused
    lost = await thing.rejected(f"{job_id(bench, 0)}/update", {"status": "IN_PROGRESS"})
    assert lost["code"] == "InvalidStateTransition"
    assert lost["executionState"] == {"status": "QUEUED", "versionNumber": 1}


async def test_start_next_begins_the_oldest_and_later_only_sets_its_timer(bench: Bench) -> None:
    pump = await bench.fleet.add_device("pump-1")
    await bench.roll_out(pump)
    thing = await bench.connect()
    begun = (await thing.accepted("start-next", {"statusDetails": {"step": "one"}, "stepTimeoutInMinutes": 5}))[
        "execution"
    ]
    assert (begun["status"], begun["versionNumber"], begun["statusDetails"]) == ("IN_PROGRESS", 2, {"step": "one"})
    assert begun["approximateSecondsBeforeTimedOut"] == 300
    assert "startedAt" in begun
    bench.fleet.clock.advance(60)
    again = (await thing.accepted("start-next", {"statusDetails": {"step": "two"}, "stepTimeoutInMinutes": 10}))[
        "execution"
    ]
    assert (again["versionNumber"], again["statusDetails"]) == (2, {"step": "one"})
    assert again["approximateSecondsBeforeTimedOut"] == 600
    assert again["startedAt"] == begun["startedAt"]


async def test_describe_never_changes_anything(bench: Bench) -> None:
    pump = await bench.fleet.add_device("pump-1")
    _, execution = await bench.roll_out(pump)
    thing = await bench.connect()
    for rest in ("$next/get", f"{job_id(bench)}/get"):
        found = await thing.accepted(rest, {"includeJobDocument": False, "executionNumber": 1})
        assert "jobDocument" not in found["execution"]
        assert "jobDocument" in (await thing.accepted(rest, {}))["execution"]
    assert (await bench.fleet.execution(execution)) == execution


async def test_the_status_details_given_replace_those_there_were_and_absent_ones_leave_them(bench: Bench) -> None:
    pump = await bench.fleet.add_device("pump-1")
    await bench.roll_out(pump)
    thing = await bench.connect()
    update = f"{job_id(bench)}/update"
    asked = {"status": "IN_PROGRESS", "includeJobExecutionState": True, "includeJobDocument": True}
    first = await thing.accepted(update, asked | {"statusDetails": {"a": "1", "b": "2"}})
    assert first["executionState"] == {
        "status": "IN_PROGRESS",
        "statusDetails": {"a": "1", "b": "2"},
        "versionNumber": 2,
    }
    assert "afr_ota" in first["jobDocument"]
    kept = await thing.accepted(update, asked)
    assert kept["executionState"]["statusDetails"] == {"a": "1", "b": "2"}
    replaced = await thing.accepted(update, asked | {"statusDetails": {"c": "3"}})
    assert replaced["executionState"]["statusDetails"] == {"c": "3"}
    gone = await thing.accepted(update, asked | {"statusDetails": {}})
    assert "statusDetails" not in gone["executionState"]


async def test_a_device_cannot_write_what_the_server_keeps_for_itself(bench: Bench) -> None:
    pump = await bench.fleet.add_device("pump-1")
    _, execution = await bench.roll_out(pump)
    thing = await bench.connect()
    told = {"route": "viam", "cancel": "rejected", "confirmation": "confirmed", "device:route": "x", "gets": "1"}
    update = {"status": "IN_PROGRESS", "statusDetails": told, "includeJobExecutionState": True}
    answer = await thing.accepted(f"{job_id(bench)}/update", update)
    assert answer["executionState"]["statusDetails"] == told
    stored = (await bench.fleet.execution(execution)).details
    assert stored["route"] == "aws-iot"
    assert stored.keys().isdisjoint({"cancel", "confirmation", "gets"})


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "REJECTED"])
async def test_an_update_ends_a_queued_execution_in_one_step(bench: Bench, status: str) -> None:
    pump = await bench.fleet.add_device("pump-1")
    _, execution = await bench.roll_out(pump)
    thing = await bench.connect()
    await thing.accepted(f"{job_id(bench)}/update", {"status": status, "expectedVersion": "1"})
    ended = await bench.fleet.execution(execution)
    assert (ended.state.value, ended.version) == (status, 2)
    for again in ("IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED"):
        lost = await thing.rejected(f"{job_id(bench)}/update", {"status": again, "clientToken": "t"})
        assert (lost["code"], lost["clientToken"]) == ("InvalidStateTransition", "t")
        assert lost["executionState"] == {"status": status, "versionNumber": 2}
    over = await thing.rejected(f"{job_id(bench)}/get")
    assert over["code"] == "TerminalStateReached"


async def test_rejected_after_in_progress_is_refused_unless_the_server_is_lenient(bench: Bench) -> None:
    pump = await bench.fleet.add_device("pump-1")
    await bench.roll_out(pump)
    thing = await bench.connect()
    update = f"{job_id(bench)}/update"
    await thing.accepted(update, {"status": "IN_PROGRESS"})
    assert (await thing.rejected(update, {"status": "REJECTED"}))["code"] == "InvalidStateTransition"
    object.__setattr__(bench.fleet.context.settings, "aws_iot_lenient_rejected", True)
    await thing.accepted(update, {"status": "REJECTED"})


async def test_another_version_than_the_expected_one_loses_and_is_told(bench: Bench) -> None:
    pump = await bench.fleet.add_device("pump-1")
    await bench.roll_out(pump)
    thing = await bench.connect()
    update = f"{job_id(bench)}/update"
    await thing.accepted(update, {"status": "IN_PROGRESS", "expectedVersion": 1, "statusDetails": {"receive": "1/9"}})
    lost = await thing.rejected(update, {"status": "FAILED", "expectedVersion": 1})
    assert lost["code"] == "VersionMismatch"
    assert lost["executionState"] == {
        "status": "IN_PROGRESS",
        "statusDetails": {"receive": "1/9"},
        "versionNumber": 2,
    }


async def test_of_racing_updates_with_one_expected_version_exactly_one_wins(bench: Bench) -> None:
    pump = await bench.fleet.add_device("pump-1")
    _, execution = await bench.roll_out(pump)
    things = [await bench.connect(client_id=f"c{number}") for number in range(8)]
    for version in range(1, 6):
        update = {"status": "IN_PROGRESS", "expectedVersion": version}
        answers = await asyncio.gather(*(thing.ask(f"jobs/{job_id(bench)}/update", update) for thing in things))
        won = [topic for topic, _ in answers if topic.endswith("/accepted")]
        assert len(won) == 1
        assert {members["code"] for topic, members in answers if topic.endswith("/rejected")} == {"VersionMismatch"}
        assert (await bench.fleet.execution(execution)).version == version + 1


BAD_REQUESTS: list[tuple[str, bytes, str]] = [
    ("$next/get", b"{", "InvalidJson"),
    ("$next/get", b"[]", "InvalidJson"),
    ("$next/get", b"\xff\xfe{}", "InvalidJson"),
    ("$next/get", b'{"clientToken":"a","clientToken":"b"}', "InvalidJson"),
    ("$next/get", b'{"includeJobDocument":NaN}', "InvalidJson"),
    ("$next/get", b"[" * 30_000, "InvalidJson"),
    ("$next/get", b'{"clientToken":"' + b"x" * 40_000 + b'"}', "InvalidRequest"),
    ("$next/get", b'{"clientToken":"' + b"x" * 65 + b'"}', "InvalidRequest"),
    ("$next/get", b'{"clientToken":7}', "InvalidRequest"),
    ("$next/get", b'{"includeJobDocument":"yes"}', "InvalidRequest"),
    ("$next/get", b'{"executionNumber":2}', "ResourceNotFound"),
    ("$next/get", b'{"executionNumber":"x"}', "InvalidRequest"),
    ("JOB/get", b'{"executionNumber":7}', "ResourceNotFound"),
    ("AFR_OTA-none/get", b"{}", "ResourceNotFound"),
    ("AFR_OTA-999999999/get", b"{}", "ResourceNotFound"),
    ("AFR_OTA-none/update", b'{"status":"FAILED"}', "ResourceNotFound"),
    ("JOB/update", b"{}", "InvalidRequest"),
    ("JOB/update", b'{"status":"QUEUED"}', "InvalidRequest"),
    ("JOB/update", b'{"status":"TIMED_OUT"}', "InvalidRequest"),
    ("JOB/update", b'{"status":"CANCELED"}', "InvalidRequest"),
    ("JOB/update", b'{"status":1}', "InvalidRequest"),
    ("JOB/update", b'{"status":"IN_PROGRESS","executionNumber":2}', "ResourceNotFound"),
    ("JOB/update", b'{"status":"IN_PROGRESS","expectedVersion":"1.0"}', "InvalidRequest"),
    ("JOB/update", b'{"status":"IN_PROGRESS","expectedVersion":-1}', "InvalidRequest"),
    ("JOB/update", b'{"status":"IN_PROGRESS","expectedVersion":2}', "VersionMismatch"),
    ("JOB/update", b'{"status":"IN_PROGRESS","statusDetails":[]}', "InvalidRequest"),
    ("JOB/update", b'{"status":"IN_PROGRESS","statusDetails":{"a b":"x"}}', "InvalidRequest"),
    ("JOB/update", b'{"status":"IN_PROGRESS","statusDetails":{"a":""}}', "InvalidRequest"),
    ("JOB/update", b'{"status":"IN_PROGRESS","statusDetails":{"a":"\\u0007"}}', "InvalidRequest"),
    ("JOB/update", b'{"status":"IN_PROGRESS","statusDetails":{"a":1}}', "InvalidRequest"),
    ("JOB/update", b'{"status":"IN_PROGRESS","stepTimeoutInMinutes":0}', "InvalidRequest"),
    ("JOB/update", b'{"status":"IN_PROGRESS","stepTimeoutInMinutes":10081}', "InvalidRequest"),
    ("JOB/update", b'{"status":"IN_PROGRESS","stepTimeoutInMinutes":"5"}', "InvalidRequest"),
    ("start-next", b'{"stepTimeoutInMinutes":-2}', "InvalidRequest"),
    ("start-next", b'{"statusDetails":{"a":1}}', "InvalidRequest"),
    ("$next/update", b'{"status":"FAILED"}', "InvalidTopic"),
    ("nothing", b"{}", "InvalidTopic"),
    ("a b/get", b"{}", "InvalidTopic"),
    ("notify-next", b"{}", "InvalidTopic"),
    ("$next/get/accepted", b"{}", "InvalidTopic"),
    ("x" * 65 + "/get", b"{}", "InvalidTopic"),
]


async def test_every_bad_request_has_its_rejection_and_changes_nothing(bench: Bench) -> None:
    pump = await bench.fleet.add_device("pump-1")
    _, execution = await bench.roll_out(pump)
    thing = await bench.connect()
    for rest, payload, code in BAD_REQUESTS:
        lost = await thing.rejected(rest.replace("JOB", job_id(bench)), payload)
        assert lost["code"] == code, (rest, payload[:60], lost)
        assert lost["message"]
        assert isinstance(lost["timestamp"], int)
    assert await bench.fleet.execution(execution) == execution


async def test_a_job_of_another_thing_is_not_found(bench: Bench) -> None:
    await bench.fleet.add_device("pump-1")
    other = await bench.fleet.add_device("pump-2")
    _, execution = await bench.roll_out(other)
    thing = await bench.connect("pump-1")
    assert (await thing.rejected(f"{job_id(bench)}/get"))["code"] == "ResourceNotFound"
    assert (await thing.rejected(f"{job_id(bench)}/update", {"status": "FAILED"}))["code"] == "ResourceNotFound"
    assert await bench.fleet.execution(execution) == execution


async def test_too_many_requests_are_throttled_and_later_ones_are_not(bench: Bench) -> None:
    await bench.fleet.add_device("pump-1")
    thing = await bench.connect()
    answers = [await thing.ask("jobs/get", b'{"clientToken":"t"}', qos=0) for _ in range(205)]
    assert answers[0][0] == "jobs/get/accepted"
    assert answers[-1][1]["code"] == "RequestThrottled"
    assert answers[-1][1]["clientToken"] == "t"
    bench.fleet.clock.advance(10)
    await thing.accepted("get")


class TestStepTimers:
    """stepTimeoutInMinutes: set, replaced, discarded, run out; a restart changes nothing."""

    async def test_one_that_runs_out_ends_the_execution_and_tells_the_thing(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        _, execution = await bench.roll_out(pump)
        thing = await bench.listening()
        await thing.accepted(f"{job_id(bench)}/update", {"status": "IN_PROGRESS", "stepTimeoutInMinutes": 7})
        bench.fleet.clock.advance(7 * 60 - 1)
        found = (await thing.accepted("$next/get"))["execution"]
        assert found["approximateSecondsBeforeTimedOut"] == 1
        bench.fleet.clock.advance(2)
        await bench.settle()
        ended = await bench.fleet.execution(execution)
        assert (ended.state, ended.version, ended.basis) == (S.TIMED_OUT, 3, None)
        assert [(await thing.told())[0], (await thing.told())[0]] == ["jobs/notify", "jobs/notify-next"]

    async def test_a_new_value_replaces_the_old_one_and_minus_one_discards_it(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        _, execution = await bench.roll_out(pump)
        thing = await bench.connect()
        update = f"{job_id(bench)}/update"
        at = bench.fleet.clock
        for minutes, value, left in ((5, 7, 7), (5, 5, 5), (3, 9, 9), (1, None, 8)):
            at.advance(60 * minutes)
            await thing.accepted(update, {"status": "IN_PROGRESS"} | ({"stepTimeoutInMinutes": value} if value else {}))
            found = (await thing.accepted("$next/get"))["execution"]
            assert found["approximateSecondsBeforeTimedOut"] == 60 * left
        await thing.accepted(update, {"status": "IN_PROGRESS", "stepTimeoutInMinutes": -1})
        assert "approximateSecondsBeforeTimedOut" not in (await thing.accepted("$next/get"))["execution"]
        at.advance(3000)
        await bench.settle()
        assert await bench.fleet.state(execution) is S.IN_PROGRESS

    async def test_an_update_after_it_ran_out_is_too_late_though_the_engine_has_not_looked(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        _, execution = await bench.roll_out(pump)
        thing = await bench.connect()
        await thing.accepted("start-next", {"stepTimeoutInMinutes": 1})
        bench.fleet.clock.advance(61)
        assert "execution" not in await thing.accepted("$next/get")
        lost = await thing.rejected(f"{job_id(bench)}/update", {"status": "SUCCEEDED"})
        assert lost["code"] == "InvalidStateTransition"
        assert lost["executionState"]["status"] == "TIMED_OUT"
        assert await bench.fleet.state(execution) is S.TIMED_OUT

    async def test_one_outlives_the_server(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        _, execution = await bench.roll_out(pump)
        thing = await bench.connect()
        await thing.accepted("start-next", {"stepTimeoutInMinutes": 2})
        async with a_bench_over(bench.fleet.restarted()) as after:
            bench.fleet.clock.advance(30)
            again = await after.connect()
            found = (await again.accepted("$next/get"))["execution"]
            assert found["approximateSecondsBeforeTimedOut"] == 90
            bench.fleet.clock.advance(91)
            await after.settle()
        assert await bench.fleet.state(execution) is S.TIMED_OUT

    async def test_it_does_not_outlive_its_execution(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        _, execution = await bench.roll_out(pump)
        thing = await bench.connect()
        await thing.accepted("start-next", {"stepTimeoutInMinutes": 1})
        await thing.accepted(f"{job_id(bench)}/update", {"status": "SUCCEEDED", "stepTimeoutInMinutes": 5})
        assert (await bench.fleet.execution(execution)).step_expires_at is None


class TestNotifications:
    """notify and notify-next: exactly when the list, or the next one, has changed."""

    async def test_a_queued_job_is_told_by_both(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        thing = await bench.listening()
        await bench.roll_out(pump)
        await bench.settle()
        topic, members = await thing.told()
        assert topic == "jobs/notify"
        assert [one["jobId"] for one in members["jobs"]["QUEUED"]] == [job_id(bench)]
        assert set(members["jobs"]) == {"QUEUED"}
        topic, members = await thing.told()
        assert topic == "jobs/notify-next"
        assert members["execution"]["jobId"] == job_id(bench)
        assert "afr_ota" in members["execution"]["jobDocument"]

    async def test_a_second_one_changes_the_list_alone(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        await bench.roll_out(pump)
        thing = await bench.listening()
        await bench.roll_out(pump, version="2.1.0")
        await bench.settle()
        topic, members = await thing.told()
        assert topic == "jobs/notify"
        assert [one["jobId"] for one in members["jobs"]["QUEUED"]] == [job_id(bench, 0), job_id(bench, 1)]
        assert await thing.has_nothing_new()

    async def test_progress_and_the_beginning_are_told_by_neither(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        await bench.roll_out(pump)
        thing = await bench.listening()
        for number in range(3):
            details = {"receive": f"{number}/3"}
            await thing.accepted(f"{job_id(bench)}/update", {"status": "IN_PROGRESS", "statusDetails": details})
            await bench.settle()
        assert await thing.has_nothing_new()

    async def test_the_end_is_told_with_what_comes_next(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        await bench.roll_out(pump)
        await bench.roll_out(pump, version="2.1.0")
        thing = await bench.listening()
        await thing.accepted(f"{job_id(bench, 0)}/update", {"status": "SUCCEEDED"})
        await bench.settle()
        topic, members = await thing.told()
        assert (topic, list(members["jobs"])) == ("jobs/notify", ["QUEUED"])
        topic, members = await thing.told()
        assert (topic, members["execution"]["jobId"]) == ("jobs/notify-next", job_id(bench, 1))
        await thing.accepted(f"{job_id(bench, 1)}/update", {"status": "FAILED"})
        await bench.settle()
        topic, members = await thing.told()
        assert (topic, members["jobs"]) == ("jobs/notify", {})
        topic, members = await thing.told()
        assert (topic, set(members)) == ("jobs/notify-next", {"timestamp"})

    async def test_beginning_a_later_one_makes_it_the_next(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        await bench.roll_out(pump)
        await bench.roll_out(pump, version="2.1.0")
        thing = await bench.listening()
        await thing.accepted(f"{job_id(bench, 1)}/update", {"status": "IN_PROGRESS"})
        await bench.settle()
        topic, members = await thing.told()
        assert (topic, members["execution"]["jobId"]) == ("jobs/notify-next", job_id(bench, 1))
        assert await thing.has_nothing_new()

    async def test_at_most_ten_are_listed(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        release = await bench.fleet.add_release("2.0.0")
        thing = await bench.listening("pump-1", "notify")
        for _ in range(12):
            await bench.fleet.roll_out(release, pump)
        await bench.settle()
        _, members = await thing.told()
        assert len(members["jobs"]["QUEUED"]) == 10
        assert len((await thing.accepted("get"))["queuedJobs"]) == 12

    async def test_a_canceled_rollout_takes_back_what_is_queued(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        await bench.roll_out(pump)
        thing = await bench.listening()
        await _set_state(bench, RolloutState.CANCELED)
        await bench.settle()
        assert (await thing.told()) == ("jobs/notify", {"timestamp": _now(bench), "jobs": {}})
        assert (await thing.told()) == ("jobs/notify-next", {"timestamp": _now(bench)})

    async def test_a_paused_rollout_hides_what_is_queued_and_shows_it_again(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        await bench.roll_out(pump)
        thing = await bench.listening("pump-1", "notify-next")
        await _set_state(bench, RolloutState.PAUSED)
        await bench.settle()
        assert "execution" not in (await thing.told())[1]
        assert (await thing.rejected(f"{job_id(bench)}/update", {"status": "IN_PROGRESS"}))[
            "code"
        ] == "ResourceNotFound"
        await _set_state(bench, RolloutState.ACTIVE)
        await bench.settle()
        assert (await thing.told())[1]["execution"]["jobId"] == job_id(bench)

    async def test_a_maintenance_window_that_opens_is_told_when_it_opens(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        release = await bench.fleet.add_release("2.0.0")
        await bench.fleet.roll_out(
            release, pump, policy=RolloutPolicy(maintenance="mon,tue,wed,thu,fri,sat,sun 13:00 60m")
        )
        thing = await bench.listening("pump-1", "notify-next")
        await bench.settle()
        assert "execution" not in await thing.accepted("$next/get")
        bench.fleet.clock.advance(3600)
        await bench.settle()
        topic, members = await thing.told()
        assert (topic, members["execution"]["jobId"]) == ("jobs/notify-next", job_id(bench))

    async def test_another_thing_hears_nothing(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        await bench.fleet.add_device("pump-2")
        other = await bench.listening("pump-2")
        await bench.roll_out(pump)
        await bench.settle()
        assert await other.has_nothing_new()

    async def test_what_is_queued_while_a_kept_session_is_away_waits_for_it(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        thing = await bench.connect(clean=False)
        await thing.link.subscribe(f"{thing.jobs}/notify-next", 1)
        await thing.link.close()
        await bench.roll_out(pump)
        await asyncio.sleep(0.05)
        await bench.settle()
        back = await bench.connect(clean=False)
        assert back.link.session_present
        topic, members = await back.told()
        assert (topic, members["execution"]["jobId"]) == ("jobs/notify-next", job_id(bench))


class TestStopping:
    """A device of this dialect cannot be asked to stop: it is told of another next one, or of none."""

    async def test_a_download_is_stopped_at_once_and_later_reports_are_too_late(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        _, execution = await bench.roll_out(pump)
        thing = await bench.listening("pump-1", "notify-next")
        await thing.accepted(f"{job_id(bench)}/update", {"status": "IN_PROGRESS", "statusDetails": {"receive": "1/9"}})
        await _set_state(bench, RolloutState.CANCELED)
        await bench.settle()
        assert await bench.fleet.state(execution) is S.CANCELED
        assert "execution" not in (await thing.told())[1]
        lost = await thing.rejected(f"{job_id(bench)}/update", {"status": "SUCCEEDED"})
        assert (lost["code"], lost["executionState"]["status"]) == ("InvalidStateTransition", "CANCELED")

    async def test_a_self_test_is_waited_for(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        _, execution = await bench.roll_out(pump)
        thing = await bench.connect()
        details = {"self_test": "ready", "updatedBy": "0x01000000"}
        await thing.accepted(f"{job_id(bench)}/update", {"status": "IN_PROGRESS", "statusDetails": details})
        await _set_state(bench, RolloutState.CANCELED)
        await bench.settle()
        assert await bench.fleet.state(execution) is S.IN_PROGRESS
        await thing.accepted(f"{job_id(bench)}/update", {"status": "SUCCEEDED"})
        assert await bench.fleet.state(execution) is S.SUCCEEDED


async def test_a_device_that_waits_to_be_accepted_is_connected_but_shown_nothing(bench: Bench) -> None:
    await bench.fleet.add_device("pump-1", state=DeviceState.PENDING)
    thing = await bench.listening()
    assert "execution" not in await thing.accepted("$next/get")
    async with bench.fleet.database.transaction() as tx:
        pump = await tx.set_device_state(bench.fleet.scope, "pump-1", DeviceState.ACCEPTED, now=bench.fleet.clock())
    await bench.roll_out(pump)
    await bench.settle()
    assert [(await thing.told())[0], (await thing.told())[0]] == ["jobs/notify", "jobs/notify-next"]


async def test_an_expired_release_is_offered_no_more(bench: Bench) -> None:
    pump = await bench.fleet.add_device("pump-1")
    expires_at = bench.fleet.clock() + timedelta(seconds=60)
    release = await bench.fleet.add_release("2.0.0", expires_at=expires_at)
    await bench.fleet.roll_out(release, pump)
    thing = await bench.connect()
    assert "execution" in await thing.accepted("$next/get")
    bench.fleet.clock.advance(61)
    assert "execution" not in await thing.accepted("$next/get")


async def _set_state(bench: Bench, state: RolloutState) -> None:
    rollout = bench.fleet.rollouts[-1]
    async with bench.fleet.database.transaction() as tx:
        await tx.set_rollout_state(bench.fleet.scope, rollout.id, state, now=bench.fleet.clock(), reason="a test")


def _now(bench: Bench) -> Any:
    return int(bench.fleet.clock().timestamp())
