"""Polls from memory: the same bytes as from the database, never after something has changed, in bounded memory."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from flota.fleet.changes import EVERYTHING, Changes
from flota.fleet.devices import Device, DeviceState
from flota.fleet.rollouts import RolloutState
from flota.fleet.scope import Scope
from flota.fleet.storage import NewGatewayToken, Transaction
from flota.server import poll_answers
from flota.server.auth import digest_of_secret
from flota.server.poll_answers import PollAnswers, ReadyAnswer
from flota.server.sightings import SightingsWriter
from flota.store.database import Database
from tests.server.update_fleet import START, TOKEN, Clock, UpdateFleet, an_update_fleet

BASE = "/DEFAULT/controller/v1/pump-1"
AUTH = {"authorization": f"TargetToken {TOKEN}"}


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[UpdateFleet]:
    async with an_update_fleet(tmp_path) as made:
        await made.add_type()
        await made.add_device("pump-1")
        made.client.headers.update(AUTH)
        yield made


async def poll(fleet: UpdateFleet, path: str = BASE, **headers: str) -> httpx.Response:
    return await fleet.client.get(path, headers=headers)


async def was_from_memory(fleet: UpdateFleet, path: str = BASE, **headers: str) -> bool:
    before = fleet.context.poll_answers.hits
    await poll(fleet, path, **headers)
    return fleet.context.poll_answers.hits > before


async def set_rollout(fleet: UpdateFleet, state: RolloutState) -> None:
    async with fleet.database.transaction() as tx:
        await tx.set_rollout_state(fleet.scope, fleet.rollouts[-1].id, state, now=fleet.clock())


# the same answer


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "application/hal+json;charset=UTF-8", "application/cbor"]
)
async def test_the_second_poll_is_answered_from_memory_with_the_same_bytes(fleet: UpdateFleet, accept: str) -> None:
    first = await poll(fleet, accept=accept)
    assert await was_from_memory(fleet, accept=accept)
    second = await poll(fleet, accept=accept)
    assert (second.status_code, second.content) == (200, first.content)
    assert second.headers.raw == first.headers.raw


async def test_who_has_the_answer_gets_304_from_memory_too(fleet: UpdateFleet) -> None:
    etag = (await poll(fleet)).headers["etag"]
    fleet.context.poll_answers.forget(EVERYTHING)
    slow = await poll(fleet, **{"if-none-match": etag})
    for condition in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        assert await was_from_memory(fleet, **{"if-none-match": condition})
        fast = await poll(fleet, **{"if-none-match": condition})
        assert (fast.status_code, fast.content) == (304, b"")
    assert (await poll(fleet, **{"if-none-match": etag})).headers.raw == slow.headers.raw
    assert (await poll(fleet, **{"if-none-match": '"other"'})).status_code == 200


async def test_a_device_that_always_has_the_answer_is_remembered_as_well(fleet: UpdateFleet) -> None:
    etag = (await poll(fleet)).headers["etag"]
    fleet.context.poll_answers.forget(EVERYTHING)
    assert not await was_from_memory(fleet, **{"if-none-match": etag})
    assert await was_from_memory(fleet, **{"if-none-match": etag})


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (BASE + "?x=1", {}),
        (BASE + "/", {}),
        (BASE.lower(), {}),
        (BASE.replace("pump-1", "..%2Fv1%2Fpump-1"), {}),
        (BASE, {"host": "other.test"}),
        (BASE, {"accept": "application/json"}),
        (BASE, {"x-forwarded-for": "192.0.2.7"}),
        (BASE, {"authorization": "TargetToken wrong"}),
        (BASE, {"authorization": f"targettoken {TOKEN}"}),
        (BASE, {"authorization": ""}),
        (BASE, {"if-none-match": '"' + "x" * 300 + '"'}),
    ],
)
async def test_whatever_is_not_the_same_request_goes_the_ordinary_way(
    fleet: UpdateFleet, path: str, headers: dict[str, str]
) -> None:
    await poll(fleet)
    hits = fleet.context.poll_answers.hits
    answer = await poll(fleet, path, **headers)
    assert fleet.context.poll_answers.hits == hits
    fleet.context.poll_answers.forget(EVERYTHING)
    again = await poll(fleet, path, **headers)
    assert (again.status_code, again.content) == (answer.status_code, answer.content)


async def test_an_encoded_name_is_the_same_device(fleet: UpdateFleet) -> None:
    await poll(fleet)
    assert await was_from_memory(fleet, BASE.replace("pump", "%70ump"))


async def test_head_is_never_answered_with_a_remembered_body(fleet: UpdateFleet) -> None:
    whole = await poll(fleet)
    hits = fleet.context.poll_answers.hits
    head = await fleet.client.head(BASE)
    assert (head.status_code, head.headers["etag"]) == (200, whole.headers["etag"])
    assert fleet.context.poll_answers.hits == hits


async def test_a_device_keeps_one_answer_however_it_writes_its_tenant(fleet: UpdateFleet) -> None:
    for tenant in ("DEFAULT", "default", "Default", "dEFAULT"):
        answer = await poll(fleet, f"/{tenant}/controller/v1/pump-1")
        assert f"/{tenant}/" in answer.text
    assert len(fleet.context.poll_answers) == 1


# nothing stale


async def test_a_replaced_token_is_useless_at_the_next_poll(fleet: UpdateFleet) -> None:
    await poll(fleet)
    assert await was_from_memory(fleet)
    async with fleet.database.transaction() as tx:
        await tx.set_device_token(fleet.scope, "pump-1", digest_of_secret("new"), now=fleet.clock())
    assert (await poll(fleet)).status_code == 401
    assert (await poll(fleet, authorization="TargetToken new")).status_code == 200


async def test_a_token_that_may_be_used_for_a_while_ends_on_time(fleet: UpdateFleet) -> None:
    until = fleet.clock() + timedelta(minutes=10)
    async with fleet.database.transaction() as tx:
        await tx.set_device_token(
            fleet.scope, "pump-1", digest_of_secret("new"), now=fleet.clock(), previous_until=until
        )
    assert (await poll(fleet)).status_code == 200
    assert await was_from_memory(fleet)
    fleet.clock.advance(600)
    assert (await poll(fleet)).status_code == 401


@pytest.mark.parametrize("end", ["revoked", "expired", "other label"])
async def test_a_gateways_token_ends_at_the_next_poll(fleet: UpdateFleet, end: str) -> None:
    async with fleet.database.transaction() as tx:
        await tx.set_device_labels(fleet.scope, "pump-1", {"site": "north"}, now=fleet.clock())
        token = NewGatewayToken(
            "gw",
            digest_of_secret("s"),
            selector="label.site=north",
            expires_at=fleet.clock() + timedelta(minutes=10),
        )
        made = await tx.add_gateway_token(fleet.scope, token, now=fleet.clock())
    gateway = {"authorization": "GatewayToken s"}
    assert (await poll(fleet, **gateway)).status_code == 200
    assert await was_from_memory(fleet, **gateway)
    async with fleet.database.transaction() as tx:
        if end == "revoked":
            await tx.revoke_gateway_token(fleet.scope, made.id, now=fleet.clock())
        elif end == "other label":
            await tx.set_device_labels(fleet.scope, "pump-1", {"site": "south"}, now=fleet.clock())
        else:
            fleet.clock.advance(600)
    assert (await poll(fleet, **gateway)).status_code == 401


@pytest.mark.parametrize("end", ["removed", "refused"])
async def test_a_device_that_takes_part_no_more_is_told_so_at_the_next_poll(fleet: UpdateFleet, end: str) -> None:
    await poll(fleet)
    async with fleet.database.transaction() as tx:
        if end == "removed":
            await tx.remove_device(fleet.scope, "pump-1", now=fleet.clock())
        else:
            await tx.set_device_state(fleet.scope, "pump-1", DeviceState.REFUSED, now=fleet.clock())
    assert (await poll(fleet)).status_code == 401


async def test_a_wave_reaches_its_own_devices_only(fleet: UpdateFleet) -> None:
    await fleet.add_device("pump-2")
    other = BASE.replace("pump-1", "pump-2")
    await poll(fleet)
    await poll(fleet, other)
    release = await fleet.add_release("2.0.0")
    await fleet.roll_out(release, await fleet.device("pump-1"))
    assert await was_from_memory(fleet, other)
    assert "deploymentBase" in (await poll(fleet)).text
    await set_rollout(fleet, RolloutState.PAUSED)
    assert await was_from_memory(fleet, other)
    assert "deploymentBase" not in (await poll(fleet)).text
    await set_rollout(fleet, RolloutState.ACTIVE)
    assert "deploymentBase" in (await poll(fleet)).text
    await set_rollout(fleet, RolloutState.CANCELED)
    assert "deploymentBase" not in (await poll(fleet)).text
    assert await was_from_memory(fleet, other)


async def test_what_expires_by_time_alone_is_not_offered_from_memory(fleet: UpdateFleet) -> None:
    release = await fleet.add_release("2.0.0", expires_at=START + timedelta(hours=1))
    await fleet.roll_out(release, await fleet.device("pump-1"))
    assert "deploymentBase" in (await poll(fleet)).text
    assert await was_from_memory(fleet)
    fleet.clock.advance(3600)
    assert "deploymentBase" not in (await poll(fleet)).text


async def test_a_window_opens_on_time_for_remembered_devices(fleet: UpdateFleet) -> None:
    async with fleet.database.transaction() as tx:
        await tx.set_update_rules(fleet.scope, "pump", maintenance="daily 14:00 1h UTC", now=fleet.clock())
    await fleet.roll_out(await fleet.add_release("2.0.0"), await fleet.device("pump-1"))
    assert "deploymentBase" not in (await poll(fleet)).text  # 12:00
    assert await was_from_memory(fleet)
    fleet.clock.advance(2 * 3600)
    assert "deploymentBase" in (await poll(fleet)).text
    assert await was_from_memory(fleet)
    fleet.clock.advance(3600)
    assert "deploymentBase" not in (await poll(fleet)).text


async def test_an_answer_made_while_something_changed_is_not_kept(
    fleet: UpdateFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused, go_on = asyncio.Event(), asyncio.Event()
    at_once = Database.read_at_once

    async def slowly(database: Database, work: Callable[[Transaction], Awaitable[Any]]) -> Any:
        found = await at_once(database, work)
        paused.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(Database, "read_at_once", slowly)
    fleet = fleet.restarted()
    fleet.client.headers.update(AUTH)
    late = asyncio.create_task(poll(fleet))
    await paused.wait()
    async with fleet.database.transaction() as tx:
        await tx.set_device_token(fleet.scope, "pump-1", digest_of_secret("new"), now=fleet.clock())
    go_on.set()
    await late
    assert (await poll(fleet)).status_code == 401


async def test_a_database_that_others_write_is_asked_again_after_seconds(fleet: UpdateFleet) -> None:
    answers = PollAnswers(fleet.context.sightings, now=fleet.clock, max_age_s=5.0)
    keep(answers, a_device(1))
    assert answers.answer(a_request(1)) is not None
    fleet.clock.advance(5)
    assert answers.answer(a_request(1)) is None


# rates and sightings


async def test_polls_from_memory_count_against_the_devices_rate(fleet: UpdateFleet) -> None:
    answers = [(await poll(fleet)).status_code for _ in range(poll_answers.REQUESTS_BURST + 1)]
    assert answers[-1] == 429
    assert answers.count(200) == poll_answers.REQUESTS_BURST


async def test_an_idle_device_is_noted_as_seen_at_most_once_a_minute(fleet: UpdateFleet) -> None:
    await poll(fleet)
    for _ in range(59):
        fleet.clock.advance(1)
        await poll(fleet)
    assert (await fleet.device("pump-1")).last_seen_at == START
    fleet.clock.advance(1)
    assert await was_from_memory(fleet)
    assert (await fleet.device("pump-1")).last_seen_at == START + timedelta(seconds=60)


async def test_a_device_with_something_to_do_is_noted_each_time(fleet: UpdateFleet) -> None:
    await fleet.roll_out(await fleet.add_release("2.0.0"), await fleet.device("pump-1"))
    await poll(fleet)
    fleet.clock.advance(1)
    assert await was_from_memory(fleet)
    assert (await fleet.device("pump-1")).last_seen_at == START + timedelta(seconds=1)


# memory


def a_device(number: int) -> Device:
    return Device(id=number, name=f"pump-{number:06}", type_name="pump", state=DeviceState.ACCEPTED)


def a_request(number: int) -> dict[str, object]:
    return {
        "type": "http",
        "method": "GET",
        "path": f"/DEFAULT/controller/v1/pump-{number:06}",
        "query_string": b"",
        "scheme": "http",
        "client": ("192.0.2.1", 5),
        "headers": [(b"host", b"flota.test"), (b"authorization", b"TargetToken %d" % number)],
    }


def keep(answers: PollAnswers, device: Device) -> None:
    request = a_request(device.id)
    if answers.answer(request) is None:
        href = f'"http://flota.test/DEFAULT/controller/v1/{device.name}/configData"'
        body = b'{"config":{"polling":{"sleep":"00:05:00"}},"_links":{"configData":{"href":%s}}}' % href.encode()
        ready = ReadyAnswer(body, b'"0%032x"' % device.id, b"application/hal+json", None, None, is_busy=False)
        answers.remember(request, Scope(1, "x"), device, ready, address="192.0.2.1")


def test_so_many_devices_are_remembered_and_no_more(monkeypatch: pytest.MonkeyPatch, fleet_less: PollAnswers) -> None:
    monkeypatch.setattr(poll_answers, "KNOWN_MAX", 100)
    monkeypatch.setattr(poll_answers, "DROPPED_AT_ONCE", 10)
    for number in range(1000):
        keep(fleet_less, a_device(number))
        assert len(fleet_less) <= 100
    assert fleet_less.answer(a_request(999)) is not None
    fleet_less.forget(Changes.of_work(999))
    assert fleet_less.answer(a_request(999)) is None
    assert fleet_less.answer(a_request(998)) is not None
    fleet_less.forget(Changes(tenants=frozenset({1})))
    assert len(fleet_less) == 0


def test_a_remembered_device_costs_less_than_a_kilobyte(fleet_less: PollAnswers) -> None:
    tracemalloc.start()
    try:
        for number in range(2000):
            keep(fleet_less, a_device(number))
        cost = tracemalloc.get_traced_memory()[0] / 2000
    finally:
        tracemalloc.stop()
    assert cost < 1024


@pytest.fixture
def fleet_less() -> PollAnswers:
    return PollAnswers(SightingsWriter(None), now=Clock())  # type: ignore[arg-type] - nothing is written
