"""What HTTPUpdate and esp_https_ota clients may rely on at `/update/…`."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from flota.fleet.devices import DeviceState, UnknownDevices
from flota.fleet.executions import Basis, ExecutionState
from flota.fleet.releases import ReleaseState
from flota.fleet.rollouts import RolloutPolicy, RolloutState
from flota.protocols.http_update import ChipFamily, UpdateMode, UpdateRequest, request_headers
from tests.server.update_fleet import START, TOKEN, UpdateFleet, an_update_fleet, image

MAC = "AA:BB:CC:DD:EE:01"
OLD_HASH = "0" * 63 + "1"
NEW_HASH = "2" * 64
OTHER_HASH = "3" * 64


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[UpdateFleet]:
    async with an_update_fleet(tmp_path) as made:
        await made.add_type()
        yield made


def headers(running: str | None = OLD_HASH, **more: object) -> dict[str, str]:
    fields: dict[str, object] = {
        "sta_mac": MAC,
        "free_space": 1_310_720,
        "sketch_sha256": running,
        "sketch_size": 4000,
        "chip_size": 4 << 20,
        **more,
    }
    return dict(request_headers(UpdateRequest(ChipFamily.ESP32, **fields)))  # type: ignore[arg-type]


async def ask(fleet: UpdateFleet, running: str | None = OLD_HASH, **more: object) -> httpx.Response:
    return await fleet.client.get("/update/pump", headers=headers(running, **more))


# offers


async def test_a_device_with_an_execution_gets_the_whole_image_with_its_md5_and_length(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    release = await fleet.add_release("2.0.0", validation_hash=NEW_HASH)
    (execution,) = await fleet.roll_out(release, device)

    answer = await ask(fleet)

    assert answer.status_code == 200
    assert answer.content == image("2.0.0")
    assert answer.headers["content-length"] == "5000"
    assert answer.headers["x-md5"] == hashlib.md5(image("2.0.0")).hexdigest()
    assert answer.headers["etag"] == f'"{hashlib.sha256(image("2.0.0")).hexdigest()}"'
    assert "content-encoding" not in answer.headers
    assert "transfer-encoding" not in answer.headers
    assert await fleet.state(execution) is ExecutionState.IN_PROGRESS


async def test_a_device_is_offered_nothing_outside_of_its_maintenance_window(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    release = await fleet.add_release("2.0.0", validation_hash=NEW_HASH)
    policy = RolloutPolicy(maintenance="sun 14:00 2h UTC")  # the clock starts on a Sunday at noon
    (execution,) = await fleet.roll_out(release, device, policy=policy)
    assert (await ask(fleet)).status_code == 304
    assert await fleet.state(execution) is ExecutionState.QUEUED
    fleet.clock.advance(2 * 3600)
    assert (await ask(fleet)).status_code == 200
    fleet.clock.advance(3 * 3600)
    assert (await ask(fleet, NEW_HASH)).status_code == 304  # it reports after the window has closed
    assert await fleet.state(execution) is ExecutionState.SUCCEEDED


async def test_a_device_with_nothing_to_do_gets_304_without_a_body(fleet: UpdateFleet) -> None:
    await fleet.add_device("pump-1", mac=MAC)
    answer = await ask(fleet)
    assert (answer.status_code, answer.content) == (304, b"")


async def test_header_names_count_in_any_case(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    await fleet.roll_out(await fleet.add_release("2.0.0"), device, policy=RolloutPolicy(attempts=2))
    shouted = {name.upper(): value for name, value in headers().items()}
    assert (await fleet.client.get("/update/pump", headers=shouted)).status_code == 200
    whispered = {name.lower(): value for name, value in headers().items()}
    assert (await fleet.client.get("/update/pump", headers=whispered)).status_code == 200


async def test_an_image_larger_than_the_free_space_is_never_offered(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    answer = await ask(fleet, free_space=4999)
    assert answer.status_code == 304
    ended = await fleet.execution(execution)
    assert ended.state is ExecutionState.REJECTED
    assert ended.details["reason"] == "the image has 5000 bytes, the device has 4999 bytes free"


async def test_an_image_for_the_other_chip_family_is_never_offered(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0", image_format="esp8266-app"), device)
    assert (await ask(fleet)).status_code == 304
    assert await fleet.state(execution) is ExecutionState.REJECTED


async def test_a_file_system_request_gets_304_and_changes_nothing(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    assert (await ask(fleet, mode=UpdateMode.SPIFFS)).status_code == 304
    assert await fleet.state(execution) is ExecutionState.QUEUED


async def test_an_expired_release_is_not_offered_and_its_execution_ends(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    release = await fleet.add_release("2.0.0", expires_at=START + timedelta(hours=1))
    (execution,) = await fleet.roll_out(release, device)
    fleet.clock.advance(3601)
    assert (await ask(fleet)).status_code == 304
    assert await fleet.state(execution) is ExecutionState.CANCELED


async def test_a_paused_rollout_offers_nothing_new(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    async with fleet.database.transaction() as tx:
        await tx.set_rollout_state(fleet.scope, fleet.rollouts[0].id, RolloutState.PAUSED, now=fleet.clock())
    assert (await ask(fleet)).status_code == 304
    assert await fleet.state(execution) is ExecutionState.QUEUED


# verdicts


async def test_running_the_offered_image_is_success_as_reported(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    release = await fleet.add_release("2.0.0", validation_hash=NEW_HASH)
    (execution,) = await fleet.roll_out(release, device)
    await ask(fleet)
    assert (await ask(fleet, NEW_HASH)).status_code == 304
    ended = await fleet.execution(execution)
    assert (ended.state, ended.basis) == (ExecutionState.SUCCEEDED, Basis.REPORTED)
    assert (await fleet.device("pump-1")).running_hash == NEW_HASH


async def test_running_the_offered_image_is_known_by_md5_too(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    await ask(fleet, None, sketch_md5="0" * 32)
    await ask(fleet, None, sketch_md5=hashlib.md5(image("2.0.0")).hexdigest())
    assert await fleet.state(execution) is ExecutionState.SUCCEEDED


async def test_a_device_that_runs_the_release_already_succeeds_without_a_delivery(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    release = await fleet.add_release("2.0.0", validation_hash=NEW_HASH)
    (execution,) = await fleet.roll_out(release, device)
    assert (await ask(fleet, NEW_HASH)).status_code == 304
    assert await fleet.state(execution) is ExecutionState.SUCCEEDED


async def test_still_running_the_old_image_after_a_whole_delivery_is_failure(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    release = await fleet.add_release("2.0.0", validation_hash=NEW_HASH)
    (execution,) = await fleet.roll_out(release, device)
    await ask(fleet)
    assert (await ask(fleet)).status_code == 304
    ended = await fleet.execution(execution)
    assert (ended.state, ended.basis) == (ExecutionState.FAILED, Basis.REPORTED)
    assert "reverted, or its verification failed" in ended.details["reason"]


async def test_the_policys_attempts_are_whole_deliveries(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    release = await fleet.add_release("2.0.0", validation_hash=NEW_HASH)
    (execution,) = await fleet.roll_out(release, device, policy=RolloutPolicy(attempts=2))
    assert [(await ask(fleet)).status_code for _ in range(3)] == [200, 200, 304]
    assert await fleet.state(execution) is ExecutionState.FAILED


async def test_a_delivery_from_before_a_server_restart_costs_no_attempt(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    release = await fleet.add_release("2.0.0", validation_hash=NEW_HASH)
    (execution,) = await fleet.roll_out(release, device)
    await ask(fleet)
    fleet.clock.advance(1)
    fleet = fleet.restarted()
    assert (await ask(fleet)).status_code == 200
    assert (await ask(fleet)).status_code == 304
    assert await fleet.state(execution) is ExecutionState.FAILED


async def test_an_interrupted_delivery_costs_no_attempt(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    release = await fleet.add_release("2.0.0", data=image("2.0.0", 300_000), validation_hash=NEW_HASH)
    (execution,) = await fleet.roll_out(release, device)
    app = fleet.client._transport.app  # type: ignore[attr-defined]
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/update/pump",
        "raw_path": b"/update/pump",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers().items()],
        "client": ("192.0.2.1", 1),
        "server": ("flota.test", 80),
        "scheme": "http",
        "http_version": "1.0",
    }
    received: list[int] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect" if received else "http.request"}

    async def send(message: dict[str, object]) -> None:
        received.append(len(message.get("body", b"")))  # type: ignore[arg-type]
        if len(received) > 2:
            raise OSError("the peer is gone")

    await app(scope, receive, send)
    assert (await fleet.execution(execution)).details["delivery"] == "interrupted"
    assert (await ask(fleet)).status_code == 200
    assert (await ask(fleet, NEW_HASH)).status_code == 304
    assert await fleet.state(execution) is ExecutionState.SUCCEEDED


async def test_an_unknown_running_image_is_reported_as_such(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    release = await fleet.add_release("2.0.0", validation_hash=NEW_HASH)
    (execution,) = await fleet.roll_out(release, device)
    await ask(fleet)
    await ask(fleet, OTHER_HASH)
    ended = await fleet.execution(execution)
    assert ended.state is ExecutionState.FAILED
    assert ended.details["running-unknown"] == OTHER_HASH
    assert ended.details["reason"] == "runs an image that is neither the old nor the offered one"


async def test_a_device_that_says_nothing_about_its_image_is_never_flashed_twice(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    assert [(await ask(fleet, None)).status_code for _ in range(2)] == [200, 304]
    assert await fleet.state(execution) is ExecutionState.IN_PROGRESS
    fleet.clock.advance(3601)
    await ask(fleet, None)
    ended = await fleet.execution(execution)
    assert (ended.state, ended.basis) == (ExecutionState.TIMED_OUT, Basis.INFERRED)


async def test_a_changed_sketch_size_infers_success(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    await ask(fleet, None)
    await ask(fleet, None, sketch_size=5000)
    ended = await fleet.execution(execution)
    assert (ended.state, ended.basis) == (ExecutionState.SUCCEEDED, Basis.INFERRED)


async def test_after_success_the_next_queued_release_is_offered_in_the_same_answer(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    (first,) = await fleet.roll_out(await fleet.add_release("2.0.0", validation_hash=NEW_HASH), device)
    (second,) = await fleet.roll_out(await fleet.add_release("3.0.0"), device)
    await ask(fleet)
    answer = await ask(fleet, NEW_HASH)
    assert answer.content == image("3.0.0")
    assert await fleet.state(first) is ExecutionState.SUCCEEDED
    assert await fleet.state(second) is ExecutionState.IN_PROGRESS


@pytest.mark.parametrize(("asks_before", "end"), [(0, ExecutionState.CANCELED), (1, ExecutionState.FAILED)])
async def test_an_aborted_rollout_offers_nothing_and_tells_what_became_of_the_device(
    fleet: UpdateFleet, asks_before: int, end: ExecutionState
) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    release = await fleet.add_release("2.0.0", validation_hash=NEW_HASH)
    (execution,) = await fleet.roll_out(release, device, policy=RolloutPolicy(attempts=3))
    for _ in range(asks_before):
        await ask(fleet)
    async with fleet.database.transaction() as tx:
        await tx.set_rollout_state(fleet.scope, fleet.rollouts[0].id, RolloutState.ABORTED, now=fleet.clock())
    assert (await ask(fleet)).status_code == 304
    assert await fleet.state(execution) is end


async def test_a_withdrawn_release_is_not_offered(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC)
    release = await fleet.add_release("2.0.0")
    await fleet.roll_out(release, device)
    async with fleet.database.transaction() as tx:
        await tx.set_release_state(fleet.scope, release.id, ReleaseState.WITHDRAWN, now=fleet.clock())
    assert (await ask(fleet)).status_code == 304


# who asks


@pytest.mark.parametrize(
    ("policy", "status", "state"),
    [
        (UnknownDevices.ACCEPT, 304, DeviceState.ACCEPTED),
        (UnknownDevices.HOLD, 304, DeviceState.PENDING),
        (UnknownDevices.REFUSE, 403, None),
    ],
)
async def test_an_unknown_mac_is_treated_as_its_types_policy_says(
    fleet: UpdateFleet, policy: UnknownDevices, status: int, state: DeviceState | None
) -> None:
    await fleet.add_type("valve", unknown=policy)
    answer = await fleet.client.get("/update/valve", headers=headers(version="1.0.0"))
    assert answer.status_code == status
    async with fleet.database.reading() as tx:
        device = await tx.find_device_by_mac(fleet.scope, MAC)
    assert (device.state if device else None) is state
    if device:
        seen = await fleet.device(MAC)
        assert (seen.running_version, seen.running_hash, seen.last_route) == ("1.0.0", OLD_HASH, "http-update")
        assert seen.attributes["chip-size"] == str(4 << 20)


async def test_a_pending_device_is_offered_nothing(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1", mac=MAC, state=DeviceState.PENDING)
    await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    assert (await ask(fleet)).status_code == 304


async def test_a_refused_device_gets_403(fleet: UpdateFleet) -> None:
    await fleet.add_device("pump-1", mac=MAC, state=DeviceState.REFUSED)
    assert (await ask(fleet)).status_code == 403


async def test_a_device_of_another_type_gets_403(fleet: UpdateFleet) -> None:
    await fleet.add_type("valve")
    await fleet.add_device("valve-1", type_name="valve", mac=MAC)
    assert (await ask(fleet)).status_code == 403


async def test_a_board_name_is_a_type_and_an_unknown_type_is_404(fleet: UpdateFleet) -> None:
    assert (await fleet.client.get("/update/esp32-c3", headers=headers())).status_code == 304
    assert (await fleet.client.get("/update/no-such-type", headers=headers())).status_code == 404


def basic(token: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"device:{token}".encode()).decode()}


async def test_a_token_at_the_types_url_is_optional_but_must_be_right(fleet: UpdateFleet) -> None:
    await fleet.add_device("pump-1", mac=MAC)
    for query, more, status in (
        ("", {}, 304),
        (f"?token={TOKEN}", {}, 304),
        ("?token=wrong", {}, 403),
        ("", basic(TOKEN), 304),
        ("", basic("wrong"), 403),
    ):
        answer = await fleet.client.get(f"/update/pump{query}", headers=headers() | more)
        assert answer.status_code == status, (query, more)


async def test_the_devices_own_url_needs_its_token(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1")
    await fleet.add_device("pump-2", token="another-token")
    await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    without = await fleet.client.get("/update/pump/pump-1")
    assert without.status_code == 401
    assert without.headers["www-authenticate"].startswith("Basic ")
    for url in (
        "/update/pump/pump-1?token=wrong",
        f"/update/pump/pump-2?token={TOKEN}",
        f"/update/pump/nobody?token={TOKEN}",
        f"/update/esp32-c3/pump-1?token={TOKEN}",
    ):
        assert (await fleet.client.get(url)).status_code == 403, url
    assert (await fleet.client.get(f"/update/pump/pump-1?token={TOKEN}")).status_code == 200
    assert (await fleet.client.get("/update/pump/pump-1", headers=basic(TOKEN))).status_code == 200


async def test_one_identity_with_two_macs_is_refused_and_noticed(fleet: UpdateFleet) -> None:
    await fleet.add_device("pump-1", mac=MAC)
    url = f"/update/pump/pump-1?token={TOKEN}"
    assert (await fleet.client.get(url, headers=headers())).status_code == 304
    for _ in range(3):
        assert (await fleet.client.get(url, headers=headers(sta_mac="AA:BB:CC:DD:EE:99"))).status_code == 403
    assert await fleet.audited("device.identity-conflict") == [{"trait": "mac", "seen": [MAC, "AA:BB:CC:DD:EE:99"]}]


async def test_two_devices_with_one_mac_are_noticed_once(fleet: UpdateFleet) -> None:
    await fleet.add_device("pump-1", mac=MAC)
    for ap_mac in ("AA:BB:CC:DD:EE:02", "AA:BB:CC:DD:EE:77", "AA:BB:CC:DD:EE:02", "AA:BB:CC:DD:EE:77"):
        await ask(fleet, ap_mac=ap_mac)
    (conflict,) = await fleet.audited("device.identity-conflict")
    assert conflict["seen"] == ["AA:BB:CC:DD:EE:02", "AA:BB:CC:DD:EE:77"]


# channel and esp_https_ota


async def test_without_identity_the_types_url_gives_the_current_release_and_no_execution(fleet: UpdateFleet) -> None:
    await fleet.add_release("1.0.0")
    await fleet.add_release("2.0.0")
    answer = await fleet.client.get("/update/pump")
    assert answer.content == image("2.0.0")
    exposition, _ = fleet.context.metrics.exposition()
    assert b'flota_channel_downloads_total{type="pump"} 1.0' in exposition
    async with fleet.database.reading() as tx:
        assert not await tx.list_executions(fleet.scope)


async def test_a_channel_without_a_release_is_404(fleet: UpdateFleet) -> None:
    assert (await fleet.client.get("/update/pump")).status_code == 404


async def test_the_channel_leaves_out_what_a_rollout_holds_back(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1")
    await fleet.add_release("1.0.0")
    await fleet.roll_out(await fleet.add_release("2.0.0"), device)

    async def handed_out() -> bytes:
        return (await fleet.client.get("/update/pump")).content

    async def put_newest(state: RolloutState) -> None:
        async with fleet.database.transaction() as tx:
            await tx.set_rollout_state(fleet.scope, fleet.rollouts[-1].id, state, now=fleet.clock())

    assert await handed_out() == image("1.0.0")
    await put_newest(RolloutState.PAUSED)
    assert await handed_out() == image("1.0.0")
    await put_newest(RolloutState.SUCCEEDED)
    assert await handed_out() == image("2.0.0")

    for number, stopped in ((3, RolloutState.ABORTED), (4, RolloutState.CANCELED)):
        await fleet.roll_out(await fleet.add_release(f"{number}.0.0"), device)
        await put_newest(stopped)
        assert await handed_out() == image("2.0.0")

    finished = await fleet.add_release("5.0.0")
    await fleet.roll_out(finished, device)
    await put_newest(RolloutState.FINISHED_WITH_FAILURES)
    assert await handed_out() == image("5.0.0")
    await fleet.roll_out(finished, device)
    assert await handed_out() == image("2.0.0")


async def test_a_channel_whose_releases_are_all_held_back_is_404(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1")
    await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    assert (await fleet.client.get("/update/pump")).status_code == 404


async def test_a_type_that_refuses_unknown_devices_has_no_channel(fleet: UpdateFleet) -> None:
    await fleet.add_release("2.0.0")
    async with fleet.database.transaction() as tx:
        await tx.set_unknown_devices(fleet.scope, "pump", UnknownDevices.REFUSE, now=fleet.clock())
    for method in ("GET", "HEAD"):
        assert (await fleet.client.request(method, "/update/pump")).status_code == 403


async def test_head_tells_length_etag_and_md5_without_a_body_and_starts_nothing(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1")
    await fleet.add_release("2.0.0")
    same_bytes = await fleet.add_release("2.0.1", data=image("2.0.0"))
    (execution,) = await fleet.roll_out(same_bytes, device)
    for url in ("/update/pump", f"/update/pump/pump-1?token={TOKEN}"):
        answer = await fleet.client.head(url)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == "5000"
        assert answer.headers["x-md5"] == hashlib.md5(image("2.0.0")).hexdigest()
        assert answer.headers["accept-ranges"] == "bytes"
    assert await fleet.state(execution) is ExecutionState.QUEUED


async def test_parts_come_with_206_and_only_the_last_byte_makes_a_delivery_whole(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1")
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    url = f"/update/pump/pump-1?token={TOKEN}"
    body = b""
    for wanted, shown, delivery in (
        ("bytes=0-1999", "bytes 0-1999/5000", "under-way"),
        ("bytes=2000-3999", "bytes 2000-3999/5000", "under-way"),
        ("bytes=4000-", "bytes 4000-4999/5000", "handed-over"),
    ):
        answer = await fleet.client.get(url, headers={"range": wanted})
        assert (answer.status_code, answer.headers["content-range"]) == (206, shown)
        body += answer.content
        assert (await fleet.execution(execution)).details["delivery"] == delivery
    assert body == image("2.0.0")
    assert (await fleet.execution(execution)).details["deliveries"] == "1"
    assert (await fleet.execution(execution)).details["deliveries-whole"] == "1"


async def test_a_resumed_delivery_is_whole_even_over_a_server_restart(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1")
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    url = f"/update/pump/pump-1?token={TOKEN}"
    await fleet.client.get(url, headers={"range": "bytes=0-1999"})
    fleet.clock.advance(5)
    fleet = fleet.restarted()
    await fleet.client.get(url, headers={"range": "bytes=2000-"})
    assert (await fleet.execution(execution)).details["delivery"] == "handed-over"
    assert (await fleet.execution(execution)).details["deliveries-whole"] == "1"


async def test_a_probe_of_one_byte_starts_nothing(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1")
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    answer = await fleet.client.get(f"/update/pump/pump-1?token={TOKEN}", headers={"range": "bytes=0-0"})
    assert (answer.status_code, answer.headers["content-range"]) == (206, "bytes 0-0/5000")
    assert await fleet.state(execution) is ExecutionState.QUEUED


@pytest.mark.parametrize("wanted", ["bytes=5000-", "bytes=9-1", "bytes=x", "bytes=0-1,3-4"])
async def test_a_range_that_cannot_be_given_is_416_with_the_size(fleet: UpdateFleet, wanted: str) -> None:
    await fleet.add_release("2.0.0")
    answer = await fleet.client.get("/update/pump", headers={"range": wanted})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */5000")


async def test_the_etag_of_the_current_image_gives_304(fleet: UpdateFleet) -> None:
    await fleet.add_release("2.0.0")
    etag = (await fleet.client.head("/update/pump")).headers["etag"]
    assert (await fleet.client.get("/update/pump", headers={"if-none-match": etag})).status_code == 304


async def test_a_client_that_decides_for_itself_may_look_at_the_image_again(fleet: UpdateFleet) -> None:
    device = await fleet.add_device("pump-1")
    (execution,) = await fleet.roll_out(await fleet.add_release("2.0.0"), device)
    url = f"/update/pump/pump-1?token={TOKEN}"
    assert [(await fleet.client.get(url)).status_code for _ in range(3)] == [200, 200, 200]
    assert (await fleet.execution(execution)).details["deliveries-whole"] == "1"
    assert (await fleet.device("pump-1")).last_route == "esp-https-ota"


# bad input


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("x-ESP32-STA-MAC", "not a mac", 400),
        ("x-ESP32-STA-MAC", "AA:BB:CC:DD:EE", 400),
        ("x-ESP32-STA-MAC", "00:00:00:00:00:00", 400),
        ("x-ESP32-free-space", "many", 400),
        ("x-ESP32-free-space", "-1", 400),
        ("x-ESP32-free-space", "99999999999999999999", 400),
        ("x-ESP32-free-space", "4294967296", 400),
        ("x-ESP32-version", "1.0\x01\x1b[31m", 400),
        ("x-ESP32-version", "v" * 8192, 413),
        ("x-ESP32-sketch-sha256", "ABC", 400),
        ("x-ESP32-sketch-sha256", "a" * 64, 400),
        ("x-ESP32-sketch-md5", "A" * 32, 400),
        ("x-ESP32-mode", "firmware", 400),
        ("x-ESP8266-mode", "sketch", 400),
    ],
)
async def test_bad_headers_are_refused_and_nothing_is_stored(
    fleet: UpdateFleet, name: str, value: str, status: int
) -> None:
    await fleet.add_type("valve", unknown=UnknownDevices.ACCEPT)
    answer = await fleet.client.get("/update/valve", headers=headers() | {name: value})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    async with fleet.database.reading() as tx:
        assert await tx.find_device_by_mac(fleet.scope, MAC) is None


async def test_a_request_a_second_ends_in_429_with_retry_after(fleet: UpdateFleet) -> None:
    await fleet.add_device("pump-1", mac=MAC)
    statuses = []
    for _ in range(300):
        answer = await ask(fleet)
        statuses.append(answer.status_code)
        fleet.clock.advance(1)
        if answer.status_code == 429:
            break
    assert statuses[-1] == 429
    assert int(answer.headers["retry-after"]) >= 1
    other = await ask(fleet, sta_mac="AA:BB:CC:DD:EE:02")
    assert other.status_code == 304


async def test_a_version_that_a_person_must_not_see_raw_is_stored_clean(fleet: UpdateFleet) -> None:
    await fleet.add_device("pump-1", mac=MAC)
    raw = [(name.encode(), value.encode()) for name, value in headers().items()]
    raw.append((b"x-ESP32-version", "2.0 \u202e<b>é</b>".encode() + b"\xff" + b"z" * 500))
    await fleet.client.get("/update/pump", headers=raw)
    version = (await fleet.device("pump-1")).running_version
    assert version is not None
    assert version.isprintable()
    assert version.startswith("2.0 <b>é</b>\ufffdz")
    assert len(version) == 128


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_other_methods_are_405(fleet: UpdateFleet, method: str) -> None:
    assert (await fleet.client.request(method, "/update/pump")).status_code == 405
