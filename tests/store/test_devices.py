from __future__ import annotations

import pytest

from flota.errors import Conflict, InvalidInput, NotFound
from flota.fleet.devices import Device, DeviceState
from flota.fleet.scope import Scope
from flota.fleet.selectors import parse_selector
from flota.fleet.storage import DeviceFilter, DeviceSighting, NewDevice
from flota.store.database import Database
from flota.store.queries.base import VALUES_PER_QUERY
from tests.store.fleets import START, a_device, a_tenant, a_type, at

TOKEN = "ab" * 32


async def test_a_device_is_stored_whole_and_found_by_name_mac_and_id(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        new = NewDevice("pump-1", "pump", DeviceState.PENDING, TOKEN, "AA:BB:CC:00:11:22", {"site": "köln"})
        made = await tx.add_device(scope, new, now=START)
    expected = Device(
        made.id, "pump-1", "pump", DeviceState.PENDING, mac=new.mac, labels={"site": "köln"}, created_at=START
    )
    assert made == expected
    async with database.reading() as tx:
        assert await tx.device(scope, "pump-1") == made
        assert await tx.find_device_by_mac(scope, "AA:BB:CC:00:11:22") == made
        assert await tx.device_by_id(scope, made.id) == made
        assert await tx.device_token_sha256(scope, "pump-1") == TOKEN
        assert await tx.device_token_sha256(scope, "pump-2") is None
        assert await tx.find_device(scope, "pump-2") is None


@pytest.mark.parametrize(
    "second", [NewDevice("a", "pump", DeviceState.PENDING), NewDevice("b", "pump", DeviceState.PENDING, mac="M")]
)
async def test_names_and_mac_addresses_are_taken_once_until_the_device_is_removed(
    database: Database, second: NewDevice
) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        first = await tx.add_device(scope, NewDevice("a", "pump", DeviceState.ACCEPTED, TOKEN, "M"), now=START)
        with pytest.raises(Conflict):
            await tx.add_device(scope, second, now=START)
        await tx.remove_device(scope, "a", now=START)
        assert (await tx.add_device(scope, second, now=START)).id > first.id
        assert await tx.device_token_sha256(scope, "a") is None


async def test_sightings_keep_what_they_do_not_know_better_and_pass_over_the_gone(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        device = await a_device(tx, scope, "pump-1")
        before = await tx.last_audit_sequence(scope)
        await tx.record_sightings(scope, [])
        await tx.record_sightings(
            scope,
            [
                DeviceSighting(device.id, at(2), "ddi", address="10.0.0.2"),
                DeviceSighting(device.id, at(1), "http-update", "10.0.0.1", "1.0", "cafe", "d00d"),
                DeviceSighting(999, at(1), "ddi"),
            ],
        )
        assert await tx.last_audit_sequence(scope) == before
    async with database.reading() as tx:
        seen = await tx.device(scope, "pump-1")
        assert await tx.last_seen(scope, [device.id, 999]) == {device.id: at(2)}
    assert (seen.last_seen_at, seen.last_route, seen.address) == (at(2), "ddi", "10.0.0.2")
    assert (seen.running_version, seen.running_hash, seen.running_md5) == ("1.0", "cafe", "d00d")


async def test_devices_seen_at_the_same_time_are_stored_together_and_keep_what_else_is_known(
    database: Database,
) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        made = [await a_device(tx, scope, f"pump-{number}") for number in range(4)]
        early = DeviceSighting(made[2].id, at(4), "http-update", "10.0.0.2")
        late = DeviceSighting(made[1].id, at(6), "http-update", "10.0.0.1")
        await tx.record_sightings(scope, [early])
        await tx.record_seen(scope, [*(device.id for device in made), 999], "ddi", at=at(5))
        await tx.record_sightings(scope, [late])
        await tx.record_seen(Scope(scope.tenant_id + 1, "x"), [made[0].id], "ddi", at=at(9))
        await tx.record_seen(scope, [], "ddi", at=at(9))
        seen = [await tx.device_by_id(scope, device.id) for device in made]
    told = [(device.last_seen_at, device.last_route, device.address) for device in seen]
    assert told == [
        (at(5), "ddi", None),
        (at(6), "http-update", "10.0.0.1"),
        (at(5), "ddi", "10.0.0.2"),
        (at(5), "ddi", None),
    ]


async def test_attributes_are_replaced_and_only_a_difference_is_audited(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        device = await a_device(tx, scope, "pump-1")
        for _ in range(2):
            await tx.set_device_attributes(scope, device.id, {"hw": "3"}, requested=False, now=START)
        assert (await tx.device(scope, "pump-1")).attributes == {"hw": "3"}
        assert not (await tx.device(scope, "pump-1")).attributes_requested
        entries = await tx.list_audit(scope)
    assert [e.action for e in entries].count("device.attributes-set") == 1


async def test_the_query_of_a_selector_gives_what_the_selector_matches(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        await a_type(tx, scope, "valve")
        for name, type_name, state, labels in (
            ("pump-1", "pump", DeviceState.ACCEPTED, {"site": "berlin"}),
            ("pump-2", "pump", DeviceState.PENDING, {"site": "berlin", "a.b-c": "1"}),
            ("Pump%3", "pump", DeviceState.ACCEPTED, {"site": "50"}),
            ("valve_1", "valve", DeviceState.ACCEPTED, {}),
        ):
            await tx.add_device(scope, NewDevice(name, type_name, state, labels=labels), now=START)
        everybody = await tx.list_devices(scope, DeviceFilter())
        assert len(everybody) == 4
        for text in (
            "all", "type=pump", "state=accepted", "name=pump-1,valve_1,none", "text=PUMP", "text=%", "text=_",
            "label.site=berlin", "label.site=50", "label.a.b-c=1", "label.none=x",
            "type=pump state=accepted label.site=berlin",
        ):  # fmt: skip
            selector = parse_selector(text)
            found = await tx.list_devices(scope, selector.device_filter())
            assert list(found) == [device for device in everybody if selector.matches(device)], text
            assert await tx.count_devices(scope, selector.device_filter()) == len(found)


async def test_devices_are_listed_in_pages(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        made = [await a_device(tx, scope, f"pump-{number}") for number in range(5)]
        page = await tx.list_devices(scope, DeviceFilter(), limit=3)
        rest = await tx.list_devices(scope, DeviceFilter(), after_id=page[-1].id, limit=3)
        assert [*page, *rest] == made


async def test_a_list_of_names_may_be_longer_than_a_statement_takes(database: Database) -> None:
    scope = await a_tenant(database)
    names = tuple(f"pump-{number}" for number in range(VALUES_PER_QUERY + 5))
    async with database.transaction() as tx:
        await a_type(tx, scope)
        for name in (names[0], names[-1]):
            await a_device(tx, scope, name)
        assert len(await tx.list_devices(scope, DeviceFilter(names=names))) == 2
        assert await tx.count_devices(scope, DeviceFilter(names=())) == 0


@pytest.mark.parametrize("label", ["", "a b", 'x"]', "$.a", "é", "x" * 64])
async def test_label_names_that_a_query_could_trip_over_are_refused(database: Database, label: str) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        with pytest.raises(InvalidInput):
            await tx.add_device(scope, NewDevice("a", "pump", DeviceState.PENDING, labels={label: "x"}), now=START)
        with pytest.raises(InvalidInput):
            await tx.list_devices(scope, DeviceFilter(labels={label: "x"}))


async def test_hostile_text_is_only_text(database: Database) -> None:
    scope = await a_tenant(database)
    hostile = "'; DROP TABLE devices; --\u202e\U0001f4a3"
    async with database.transaction() as tx:
        await a_type(tx, scope)
        await a_device(tx, scope, hostile)
        assert (await tx.device(scope, hostile)).name == hostile
        assert [d.name for d in await tx.list_devices(scope, DeviceFilter(text=hostile[:9]))] == [hostile]
        with pytest.raises(NotFound):
            await tx.device(scope, hostile + "%")
