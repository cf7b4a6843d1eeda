"""Blynk devices: who is let in, what they are told, what becomes of their executions."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from flota.errors import FlotaError
from flota.fleet.devices import DeviceState
from flota.fleet.executions import ExecutionState
from flota.fleet.firmware_reports import APPLY_TIME
from flota.fleet.rollouts import RolloutPolicy, RolloutState
from flota.fleet.shipments import (
    STATUS_DETAIL,
    CompareField,
    DeviceStatus,
    ShipmentConditions,
    ShipmentRecord,
    device_status,
)
from flota.fleet.storage import NewDevice, NewDeviceType
from flota.protocols.blynk.cloud import INFO_MAX_BYTES
from flota.protocols.mqtt.packets import ConnectReturn, Will
from flota.protocols.peer_text import clean_text
from flota.server.auth import digest_of_secret
from flota.server.blynk_links import LINK_LIFETIME
from flota.transports.mqtt_client import ConnectRefused
from tests.server.blynk_bench import NEW, OLD, PRODUCT, BlynkBench, a_blynk_bench, another_tenant, tagged_image

SECRET = "mill-1-token"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[BlynkBench]:
    async with a_blynk_bench(tmp_path) as bench:
        yield bench


async def test_a_device_is_told_of_its_file_on_connect_although_it_has_subscribed_to_nothing(bench: BlynkBench) -> None:
    device = await bench.device()
    execution = await bench.roll_out(device)
    client = await bench.connect(SECRET)
    await client.report(OLD)
    offer = await client.offer()
    assert (offer.size, offer.fw_type, offer.version) == (len(tagged_image()), PRODUCT, "1.2.4")
    assert await bench.fleet.state(execution) is ExecutionState.IN_PROGRESS
    answer = await bench.get(offer.url)
    assert answer.content == tagged_image()
    assert answer.headers["x-sha256"] == base64.b64encode(hashlib.sha256(answer.content).digest()).decode()
    assert answer.headers["x-fw-build"] == "Jan  5 2024 10:00:00"
    assert await bench.fleet.state(execution) is ExecutionState.IN_PROGRESS, "that it was downloaded is no success"
    await client.report(NEW)
    await client.nothing()
    assert await bench.fleet.state(execution) is ExecutionState.SUCCEEDED
    assert (await bench.fleet.device("mill-1")).running_version == "1.2.4"


async def test_a_connected_device_is_told_when_a_rollout_opens_once(bench: BlynkBench) -> None:
    device = await bench.device()
    client = await bench.connect(SECRET)
    await client.report(OLD)
    await client.nothing()
    execution = await bench.roll_out(device)
    await bench.settle()
    await client.offer()
    await bench.settle()
    await client.nothing()
    assert (await bench.fleet.execution(execution)).details[STATUS_DETAIL] == DeviceStatus.REQUEST_SENT


async def test_a_device_that_runs_the_firmware_already_succeeds_without_a_download(bench: BlynkBench) -> None:
    execution = await bench.roll_out(await bench.device())
    client = await bench.connect(SECRET)
    await client.report(NEW)
    await client.nothing()
    assert await bench.fleet.state(execution) is ExecutionState.SUCCEEDED


async def test_old_then_new_then_old_is_a_rollback(bench: BlynkBench) -> None:
    execution = await bench.roll_out(await bench.device())
    client = await bench.connect(SECRET)
    await client.report(OLD)
    await bench.get((await client.offer()).url)
    await client.report(NEW)
    await client.report(OLD)
    await client.nothing()
    after = await bench.fleet.execution(execution)
    assert (after.state, after.details[STATUS_DETAIL]) == (ExecutionState.SUCCEEDED, DeviceStatus.ROLLBACK)
    assert "1.2.3" in after.details["flag"]


async def test_firmware_of_another_type_is_refused_before_anything_is_sent(bench: BlynkBench) -> None:
    execution = await bench.roll_out(await bench.device())
    client = await bench.connect(SECRET)
    await client.report({**OLD, "type": "TMPLother"})
    await client.nothing()
    after = await bench.fleet.execution(execution)
    assert (after.state, after.details[STATUS_DETAIL]) == (ExecutionState.REJECTED, DeviceStatus.TYPE_MISMATCH)


async def test_three_requests_and_no_new_firmware_reach_the_limit(bench: BlynkBench) -> None:
    execution = await bench.roll_out(await bench.device())
    client = await bench.connect(SECRET)
    await client.report(OLD)
    offer = await client.offer()
    for _ in range(3):
        assert (await bench.get(offer.url)).status_code == 200
    refused = await bench.get(offer.url)
    assert refused.status_code == 410
    after = await bench.fleet.execution(execution)
    assert (after.state, after.details[STATUS_DETAIL]) == (ExecutionState.FAILED, DeviceStatus.LIMIT_REACHED)


@pytest.mark.parametrize(
    "said",
    [{**NEW, "build": "Jan 05 2024 10:00:01"}, {**NEW, "ver": "v1.2.4"}, {**NEW, "ver": ""}],
    ids=["another build time", "a letter", "no version"],
)
async def test_a_device_that_reports_something_else_than_the_tag_of_its_file_never_counts_as_updated(
    bench: BlynkBench, said: dict[str, object]
) -> None:
    execution = await bench.ship(await bench.device(), attempts=1, attempt_period_s=None)
    client = await bench.connect(SECRET)
    await client.report(OLD)
    await bench.get((await client.offer()).url)
    bench.fleet.clock.advance(APPLY_TIME.total_seconds())
    await client.report(said)
    await client.nothing()
    after = await bench.fleet.execution(execution)
    shown = clean_text(str(said["ver"]), max_len=128) or "no version"
    assert (after.state, after.details[STATUS_DETAIL]) == (ExecutionState.FAILED, DeviceStatus.LIMIT_REACHED)
    assert after.details["reason"] == f"asked for the file once and still reports {shown}"


@pytest.mark.parametrize(
    ("room", "members", "name"),
    [
        (1024, {"type", "ver", "build"}, "mill.bin"),
        (None, {"type", "ver", "build"}, "mill.bin"),
        (0, {"type", "ver", "build"}, "mill.bin"),
        (180, {"type", "ver"}, "mill.bin"),
        (140, set(), "mill.bin"),
        (128, set(), "f.bin"),
    ],
)
async def test_an_announcement_fits_into_the_devices_receive_buffer(
    bench: BlynkBench, room: int | None, members: set[str], name: str
) -> None:
    await bench.roll_out(await bench.device())
    client = await bench.connect(SECRET)
    await client.report({**OLD, "rxbuff": room})
    offer = await client.offer()
    told = {"type": offer.fw_type, "ver": offer.version, "build": offer.build}
    assert {key for key, value in told.items() if value is not None} == members
    assert f"/{name}?token=" in offer.url
    assert (await bench.get(offer.url)).headers["x-fw-build"] == "Jan  5 2024 10:00:00"


async def test_a_device_without_room_for_any_announcement_is_told_nothing_and_the_reason_is_kept(
    bench: BlynkBench,
) -> None:
    execution = await bench.roll_out(await bench.device())
    client = await bench.connect(SECRET)
    await client.report({**OLD, "rxbuff": 100})
    await client.nothing()
    after = await bench.fleet.execution(execution)
    assert (after.state, device_status(after)) == (ExecutionState.REJECTED, DeviceStatus.UPLOAD_FAILURE)
    assert "100 bytes (rxbuff)" in after.details["reason"]


async def test_the_old_firmware_may_be_reported_while_the_mcu_is_being_flashed(bench: BlynkBench) -> None:
    execution = await bench.roll_out(await bench.device())
    client = await bench.connect(SECRET)
    await client.report(OLD)
    await bench.get((await client.offer()).url)
    await client.report(OLD)
    await client.nothing()
    assert await bench.fleet.state(execution) is ExecutionState.IN_PROGRESS
    bench.fleet.clock.advance(APPLY_TIME.total_seconds())
    await bench.settle()
    assert (await client.offer()).version == "1.2.4", "it has had its time: the file is offered again"


async def test_going_on_with_a_download_is_no_further_attempt(bench: BlynkBench) -> None:
    execution = await bench.roll_out(await bench.device())
    client = await bench.connect(SECRET)
    await client.report(OLD)
    offer = await client.offer()
    await bench.get(offer.url)
    for first in range(1000, 4000, 1000):
        part = await bench.get(offer.url, range=f"bytes={first}-{first + 999}")
        assert (part.status_code, part.content) == (206, tagged_image()[first : first + 1000])
    assert (await bench.fleet.execution(execution)).details["requests"] == "1"


async def test_a_link_is_good_until_it_expires_or_its_update_is_called_off(bench: BlynkBench) -> None:
    execution = await bench.roll_out(await bench.device())
    client = await bench.connect(SECRET)
    await client.report(OLD)
    url = (await client.offer()).url
    assert (await bench.http.head(url.removeprefix("http://flota.test:8080"))).status_code == 200
    assert (await bench.get(url[:-1] + ("A" if url[-1] != "A" else "B"))).status_code == 404
    async with bench.fleet.database.transaction() as transaction:
        rollout = bench.fleet.rollouts[0]
        await transaction.set_rollout_state(
            bench.fleet.scope, rollout.id, RolloutState.CANCELED, now=bench.fleet.clock()
        )
    assert (await bench.get(url)).status_code == 410
    await client.report(OLD)
    await client.nothing()
    assert await bench.fleet.state(execution) is ExecutionState.CANCELED
    bench.fleet.clock.advance(LINK_LIFETIME.total_seconds())
    assert (await bench.get(url)).status_code == 404


async def test_nothing_is_offered_while_a_rollout_is_paused_and_resuming_it_tells_the_device(bench: BlynkBench) -> None:
    execution = await bench.roll_out(await bench.device())
    scope, rollout = bench.fleet.scope, bench.fleet.rollouts[0]
    async with bench.fleet.database.transaction() as transaction:
        await transaction.set_rollout_state(scope, rollout.id, RolloutState.PAUSED, now=bench.fleet.clock())
    client = await bench.connect(SECRET)
    await client.report(OLD)
    await client.nothing()
    assert await bench.fleet.state(execution) is ExecutionState.QUEUED
    async with bench.fleet.database.transaction() as transaction:
        await transaction.set_rollout_state(scope, rollout.id, RolloutState.ACTIVE, now=bench.fleet.clock())
    await bench.settle()
    await client.offer()


async def test_nothing_is_offered_while_a_maintenance_window_is_closed(
    bench: BlynkBench,
) -> None:
    policy = RolloutPolicy(maintenance="daily 13:00 1h UTC")  # the clock stands at noon
    execution = await bench.roll_out(await bench.device(), policy=policy)
    client = await bench.connect(SECRET)
    await client.report(OLD)
    await client.nothing()
    assert await bench.fleet.state(execution) is ExecutionState.QUEUED
    bench.fleet.clock.advance(3600)
    await bench.settle()
    await client.offer()


async def test_conditions_of_a_shipment_decide_before_anything_is_sent(bench: BlynkBench) -> None:
    device = await bench.device()
    execution = await bench.roll_out(device)
    record = ShipmentRecord(
        execution.rollout_id, ShipmentConditions(CompareField.LATEST_FIRMWARE_VERSION, attempts=1), "test", "mill.bin"
    )
    async with bench.fleet.database.transaction() as transaction:
        await transaction.add_shipment(bench.fleet.scope, record)
    client = await bench.connect(SECRET)
    await client.report({**OLD, "ver": "1.10.0"})
    await client.nothing()
    after = await bench.fleet.execution(execution)
    assert (after.state, after.details[STATUS_DETAIL]) == (ExecutionState.REJECTED, DeviceStatus.VERSION_MISMATCH)


async def test_a_silent_device_ends_by_the_rollouts_limit(bench: BlynkBench) -> None:
    execution = await bench.roll_out(await bench.device(), policy=RolloutPolicy(silence_limit_s=600))
    client = await bench.connect(SECRET)
    await client.report(OLD)
    await client.offer()
    await bench.fleet.context.sightings.flush()
    bench.fleet.clock.advance(601)
    await bench.settle()
    assert await bench.fleet.state(execution) is ExecutionState.TIMED_OUT


@pytest.mark.parametrize("token", ["", "wrong", "x" * 300, "a\x00b"])
async def test_nobody_without_a_devices_token_is_let_in_and_the_return_code_blames_the_credentials(
    bench: BlynkBench, token: str
) -> None:
    await bench.device()
    with pytest.raises(ConnectRefused) as caught:
        await bench.connect(token)
    assert caught.value.code_returned == ConnectReturn.BAD_CREDENTIALS, "4"


async def test_a_token_that_two_devices_have_names_neither(bench: BlynkBench) -> None:
    await bench.device()
    await bench.fleet.add_device("mill-2", type_name=PRODUCT, token=SECRET)
    with pytest.raises(FlotaError):
        await bench.connect(SECRET)


async def test_a_device_whose_token_changes_or_that_is_refused_is_cut_off(bench: BlynkBench) -> None:
    await bench.device()
    client = await bench.connect(SECRET)
    async with bench.fleet.database.transaction() as transaction:
        await transaction.set_device_token(
            bench.fleet.scope, "mill-1", digest_of_secret("another"), now=bench.fleet.clock()
        )
    await bench.settle()
    assert await client.is_closed()
    client = await bench.connect("another")
    async with bench.fleet.database.transaction() as transaction:
        await transaction.set_device_state(bench.fleet.scope, "mill-1", DeviceState.REFUSED, now=bench.fleet.clock())
    await bench.settle()
    assert await client.is_closed()
    with pytest.raises(FlotaError):
        await bench.connect("another")


async def test_while_a_token_is_rotated_both_name_the_device_and_the_new_one_ends_that(bench: BlynkBench) -> None:
    await bench.device()
    clock = bench.fleet.clock
    async with bench.fleet.database.transaction() as transaction:
        await transaction.set_device_token(
            bench.fleet.scope,
            "mill-1",
            digest_of_secret("another"),
            now=clock(),
            previous_until=clock() + timedelta(hours=1),
        )
    await bench.connect(SECRET)
    await bench.connect("another")
    with pytest.raises(FlotaError):
        await bench.connect(SECRET)


@pytest.mark.parametrize(
    "topic", ["$aws/things/mill-1/jobs/get", "$SYS/broker", "downlink/ota/json", "downlink/reboot"]
)
async def test_a_publish_to_a_reserved_topic_ends_the_connection(bench: BlynkBench, topic: str) -> None:
    await bench.device()
    client = await bench.connect(SECRET)
    with_will = Will(topic, b"{}")
    await client.link.publish(topic, b"{}", 0)
    assert await client.is_closed()
    with pytest.raises(FlotaError):
        await bench.connect(SECRET, will=with_will)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"ver":1}',
        b'{"ver":"1","ver":"2"}',
        b'{"ver":"1","rxbuff":-1}',
        b'{"ver":"1","rxbuff":true}',
        b"\xff\xfe",
        b"[" * 3000,
        b'{"ver":"' + b"9" * INFO_MAX_BYTES + b'"}',
        b" " * 100_000,
    ],
    ids=range(12),
)
async def test_a_report_that_cannot_be_read_changes_nothing_and_the_next_one_counts(
    bench: BlynkBench, payload: bytes
) -> None:
    execution = await bench.roll_out(await bench.device())
    client = await bench.connect(SECRET)
    await client.report(payload)
    await client.nothing()
    assert await bench.fleet.state(execution) is ExecutionState.QUEUED
    await client.report(OLD)
    await client.offer()


async def test_other_messages_of_a_device_are_dropped_and_foreign_filters_refused(bench: BlynkBench) -> None:
    await bench.device()
    client = await bench.connect(SECRET)
    for topic in ("ds/temperature", "event/alarm", "info/other", "get/ds/all"):
        await client.link.publish(topic, b"21.5", 1)
    assert bench.blynk.dropped == 4
    for topic_filter in ("#", "$aws/#", "ds/#", "+/ota/json"):
        with pytest.raises(FlotaError):
            await client.link.subscribe(topic_filter, 0)
    await client.link.subscribe("downlink/#", 0)


async def test_devices_of_two_tenants_see_nothing_of_each_other(bench: BlynkBench) -> None:
    mine = await bench.device()
    execution = await bench.roll_out(mine)
    other = await another_tenant(bench.fleet.context)
    async with bench.fleet.database.transaction() as transaction:
        await transaction.add_device_type(other, NewDeviceType(PRODUCT, "dual-mcu-ab"), now=bench.fleet.clock())
        theirs = await transaction.add_device(
            other,
            NewDevice("mill-1", PRODUCT, DeviceState.ACCEPTED, digest_of_secret("their-token")),
            now=bench.fleet.clock(),
        )
    stranger = await bench.connect("their-token")
    await stranger.report(OLD)
    await stranger.nothing()
    client = await bench.connect(SECRET)
    await client.report(OLD)
    url = (await client.offer()).url
    await stranger.nothing()
    token = url.rpartition("token=")[2]
    tenant, number, device, expires, mac = token.split(".")
    forged = ".".join((str(other.tenant_id), number, str(theirs.id), expires, mac))
    assert (await bench.get(url.replace(token, forged))).status_code == 404
    assert (await bench.fleet.execution(execution)).device_id == mine.id
    assert (tenant, device) == (str(bench.fleet.scope.tenant_id), str(mine.id))


async def test_things_of_aws_are_still_served_on_the_same_endpoint(bench: BlynkBench) -> None:
    await bench.device()
    client = await bench.connect(SECRET, user="mill-1")
    await client.link.subscribe("$aws/things/mill-1/jobs/notify", 1)
    with pytest.raises(FlotaError):
        await client.link.subscribe("downlink/#", 0)


async def test_where_others_write_the_database_too_every_device_is_looked_at(bench: BlynkBench) -> None:
    device = await bench.device()
    client = await bench.connect(SECRET)
    await client.report(OLD)
    await bench.roll_out(device)
    bench.blynk._changed.clear()  # as if another process had committed it
    await bench.blynk.tell_changes()
    await client.nothing()
    await bench.blynk.look_at_all()
    await bench.blynk.tell_changes()
    await client.offer()
    async with bench.fleet.database.transaction() as transaction:
        await transaction.set_device_token(
            bench.fleet.scope, "mill-1", digest_of_secret("another"), now=bench.fleet.clock()
        )
    bench.blynk._doubtful.clear()
    bench.blynk._changed.clear()
    await bench.blynk.look_at_all()
    assert await client.is_closed()


async def test_a_token_is_found_by_an_index(bench: BlynkBench) -> None:
    wanted = "SELECT id FROM devices WHERE (token_sha256 = 'x' OR previous_token_sha256 = 'x') AND removed_at IS NULL"
    async with bench.fleet.database.reading() as transaction:
        rows = await transaction._connection.execute(text(f"EXPLAIN QUERY PLAN {wanted}"))  # type: ignore[attr-defined]
        plan = " ".join(str(row) for row in rows)
    assert "ix_devices_token_sha256" in plan
    assert "ix_devices_previous_token_sha256" in plan
    assert "SCAN" not in plan
