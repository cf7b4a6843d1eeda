"""Who is let in at the DDI addresses: devices, gateways, certificates behind a proxy; and two with one identity."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from flota.errors import InvalidInput
from flota.fleet.devices import DeviceState, UnknownDevices
from flota.fleet.storage import DeviceFilter, NewGatewayToken
from flota.server.api.ddi import routes
from flota.server.auth import digest_of_secret
from flota.server.configuration import settings_from
from flota.server.context import make_context
from flota.server.identity_watch import IdentityWatch
from flota.server.settings import parse_authority, parse_network
from tests.server.serving import app_of
from tests.server.update_fleet import START, TOKEN, UpdateFleet, an_update_fleet

GATEWAY = "a-gateway-secret"
AUTHORITY = "ab" * 32


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[UpdateFleet]:
    async with an_update_fleet(tmp_path) as made:
        await made.add_type(unknown=UnknownDevices.ACCEPT)
        await made.add_device("pump-1")
        yield made


async def a_gateway(fleet: UpdateFleet, **covers: object) -> int:
    new = NewGatewayToken("hall", digest_of_secret(GATEWAY), **covers)  # type: ignore[arg-type]
    async with fleet.database.transaction() as tx:
        return (await tx.add_gateway_token(fleet.scope, new, now=fleet.clock())).id


async def status(fleet: UpdateFleet, name: str, secret: str = GATEWAY, scheme: str = "GatewayToken") -> int:
    answer = await fleet.client.get(f"/DEFAULT/controller/v1/{name}", headers={"authorization": f"{scheme} {secret}"})
    if answer.status_code == 401:
        assert answer.content == b""
    return answer.status_code


# gateways


async def test_a_gateway_token_stands_for_its_listed_devices_and_no_other(fleet: UpdateFleet) -> None:
    await fleet.add_device("pump-2")
    await fleet.add_device("pump-3")
    await a_gateway(fleet, device_names=("pump-1", "pump-2", "pump-9"))
    assert [await status(fleet, name) for name in ("pump-1", "pump-2", "pump-3", "pump-9", "pump-8")] == [
        *(200, 200),
        *(401, 401, 401),  # not listed; listed but unknown, and nobody said what it would become; neither
    ]
    assert await status(fleet, "pump-1", "another-secret") == 401
    assert await status(fleet, "pump-1", TOKEN) == 401
    assert await status(fleet, "pump-1", GATEWAY, "TargetToken") == 401


async def test_a_selector_picks_at_every_moment(fleet: UpdateFleet) -> None:
    await a_gateway(fleet, selector="type=pump label.hall=3")
    assert await status(fleet, "pump-1") == 401
    async with fleet.database.transaction() as tx:
        await tx.set_device_labels(fleet.scope, "pump-1", {"hall": "3"}, now=fleet.clock())
    assert await status(fleet, "pump-1") == 200
    async with fleet.database.transaction() as tx:
        await tx.set_device_labels(fleet.scope, "pump-1", {"hall": "4"}, now=fleet.clock())
    assert await status(fleet, "pump-1") == 401
    assert await status(fleet, "unknown") == 401


async def test_a_tenant_wide_token_has_to_be_asked_for(fleet: UpdateFleet) -> None:
    with pytest.raises(InvalidInput):
        await a_gateway(fleet)
    with pytest.raises(InvalidInput):
        await a_gateway(fleet, all_devices=True, selector="all")
    with pytest.raises(InvalidInput):
        await a_gateway(fleet, device_names=())
    await a_gateway(fleet, all_devices=True)
    assert await status(fleet, "pump-1") == 200
    assert await status(fleet, "unknown") == 401


@pytest.mark.parametrize(
    ("policy", "answer", "state"),
    [
        (UnknownDevices.ACCEPT, 200, DeviceState.ACCEPTED),
        (UnknownDevices.HOLD, 200, DeviceState.PENDING),
        (UnknownDevices.REFUSE, 401, None),
    ],
)
async def test_plug_and_play_registers_as_the_type_says(
    fleet: UpdateFleet, policy: UnknownDevices, answer: int, state: DeviceState | None
) -> None:
    await fleet.add_type("valve", unknown=policy)
    await a_gateway(fleet, device_names=("valve-1",), type_name="valve")
    assert await status(fleet, "valve-1") == answer
    async with fleet.database.reading() as tx:
        found = await tx.find_device(fleet.scope, "valve-1")
    assert (None if found is None else found.state) is state
    assert await status(fleet, "valve-2") == 401
    if state is DeviceState.PENDING:
        made = await fleet.audited("device.created")
        assert any(one["state"] == "pending" and one["type"] == "valve" for one in made)
        links = (
            await fleet.client.get(
                "/DEFAULT/controller/v1/valve-1", headers={"authorization": f"GatewayToken {GATEWAY}"}
            )
        ).json()["_links"]
        assert set(links) == {"configData"}


@pytest.mark.parametrize("name", ["..", "%2e%2e", "a%2Fb", "a%00b", "%C3%A4", "a b", "x" * 129, "-a", "%252e"])
async def test_no_name_that_a_path_cannot_carry_is_registered(fleet: UpdateFleet, name: str) -> None:
    await a_gateway(fleet, all_devices=True, type_name="pump")
    answer = await fleet.client.get(
        f"/DEFAULT/controller/v1/{name}", headers={"authorization": f"GatewayToken {GATEWAY}"}
    )
    assert answer.status_code in (401, 404)
    async with fleet.database.reading() as tx:
        assert [one.name for one in await tx.list_devices(fleet.scope, DeviceFilter())] == ["pump-1"]


async def test_a_revoked_token_and_an_expired_one_are_useless_at_once(fleet: UpdateFleet) -> None:
    first = await a_gateway(fleet, device_names=("pump-1",))
    assert await status(fleet, "pump-1") == 200
    async with fleet.database.transaction() as tx:
        await tx.revoke_gateway_token(fleet.scope, first, now=fleet.clock())
    assert await status(fleet, "pump-1") == 401
    new = NewGatewayToken(
        "hall", digest_of_secret("other"), device_names=("pump-1",), expires_at=START + timedelta(hours=1)
    )
    async with fleet.database.transaction() as tx:
        await tx.add_gateway_token(fleet.scope, new, now=fleet.clock())
    assert await status(fleet, "pump-1", "other") == 200
    fleet.clock.advance(3600)
    assert await status(fleet, "pump-1", "other") == 401
    assert [one["name"] for one in await fleet.audited("gateway-token.created")] == ["hall", "hall"]
    assert len(await fleet.audited("gateway-token.revoked")) == 1


async def test_a_gateway_token_is_of_one_tenant(fleet: UpdateFleet) -> None:
    await a_gateway(fleet, all_devices=True, type_name="pump")
    async with fleet.database.transaction() as tx:
        await tx.add_tenant("OTHER", now=fleet.clock())
    answer = await fleet.client.get("/OTHER/controller/v1/pump-1", headers={"authorization": f"GatewayToken {GATEWAY}"})
    assert answer.status_code == 401


async def test_a_refused_device_stays_out_whoever_asks_for_it(fleet: UpdateFleet) -> None:
    await a_gateway(fleet, all_devices=True)
    async with fleet.database.transaction() as tx:
        await tx.set_device_state(fleet.scope, "pump-1", DeviceState.REFUSED, now=fleet.clock())
    assert await status(fleet, "pump-1") == 401


# rotated tokens


async def test_while_a_token_is_rotated_the_old_one_works_until_the_new_one_is_used(fleet: UpdateFleet) -> None:
    until = fleet.clock() + timedelta(hours=24)
    async with fleet.database.transaction() as tx:
        await tx.set_device_token(
            fleet.scope, "pump-1", digest_of_secret("the-new-token"), now=fleet.clock(), previous_until=until
        )
    assert await status(fleet, "pump-1", TOKEN, "TargetToken") == 200
    assert await status(fleet, "pump-1", "the-new-token", "TargetToken") == 200
    assert await status(fleet, "pump-1", TOKEN, "TargetToken") == 401
    assert await status(fleet, "pump-1", "the-new-token", "TargetToken") == 200
    assert len(await fleet.audited("device.token-rotated")) == 1


async def test_the_old_token_ends_with_its_time(fleet: UpdateFleet) -> None:
    until = fleet.clock() + timedelta(hours=24)
    async with fleet.database.transaction() as tx:
        await tx.set_device_token(
            fleet.scope, "pump-1", digest_of_secret("the-new-token"), now=fleet.clock(), previous_until=until
        )
    assert await status(fleet, "pump-1", TOKEN, "TargetToken") == 200
    fleet.clock.advance(24 * 3600)
    assert await status(fleet, "pump-1", TOKEN, "TargetToken") == 401
    assert await status(fleet, "pump-1", "the-new-token", "TargetToken") == 200


async def test_without_an_overlap_the_old_token_is_useless_at_once(fleet: UpdateFleet) -> None:
    async with fleet.database.transaction() as tx:
        await tx.set_device_token(fleet.scope, "pump-1", digest_of_secret("the-new-token"), now=fleet.clock())
    assert await status(fleet, "pump-1", TOKEN, "TargetToken") == 401


# two with one identity


def from_address(fleet: UpdateFleet, address: str) -> httpx.AsyncClient:
    app = app_of(fleet.context, routes(fleet.context))
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, client=(address, 40_000)),
        base_url="http://flota.test:8080",
        headers={"authorization": f"TargetToken {TOKEN}"},
    )


async def polls_from(fleet: UpdateFleet, *addresses: str, every_s: float) -> None:
    for address in addresses:
        async with from_address(fleet, address) as client:
            assert (await client.get("/DEFAULT/controller/v1/pump-1")).status_code == 200
        await fleet.context.sightings.flush()
        fleet.clock.advance(every_s)


async def test_two_devices_with_one_identity_are_noticed(fleet: UpdateFleet) -> None:
    await polls_from(fleet, "10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.2", every_s=150)
    conflict = (await fleet.device("pump-1")).identity_conflict
    assert conflict is not None
    assert (conflict.trait, conflict.seen) == ("address", ("10.0.0.1", "10.0.0.2"))
    await polls_from(fleet, "10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.2", every_s=150)
    assert len(await fleet.audited("device.identity-conflict")) == 1
    async with fleet.database.transaction() as tx:
        await tx.set_device_token(fleet.scope, "pump-1", digest_of_secret(TOKEN), now=fleet.clock())
    assert (await fleet.device("pump-1")).identity_conflict is None
    await polls_from(fleet, "10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.2", "10.0.0.1", every_s=150)
    assert (await fleet.device("pump-1")).identity_conflict is not None


async def test_a_device_that_moves_is_no_conflict(fleet: UpdateFleet) -> None:
    await polls_from(fleet, "10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.1", "10.0.0.4", every_s=150)
    assert (await fleet.device("pump-1")).identity_conflict is None
    await polls_from(fleet, "10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.2", every_s=4000)
    assert (await fleet.device("pump-1")).identity_conflict is None


async def test_attributes_that_go_back_and_forth_are_noticed_too(fleet: UpdateFleet) -> None:
    async with from_address(fleet, "10.0.0.1") as client:
        for serial in ("A", "B", "A", "B"):
            body = {"data": {"serial": serial, "board": "m487"}}
            answer = await client.put("/DEFAULT/controller/v1/pump-1/configData", json=body)
            assert answer.status_code == 200
            fleet.clock.advance(3600)
    conflict = (await fleet.device("pump-1")).identity_conflict
    assert conflict is not None
    assert (conflict.trait, conflict.seen) == ("attribute serial", ("A", "B"))


def test_the_watch_remembers_a_bounded_number_of_devices() -> None:
    watch = IdentityWatch(watched_max=10)
    for device_id in range(1000):
        assert watch.changed(device_id, "address", "a", "b", now=START, within=timedelta(hours=1)) is None
    assert len(watch._last) == 10


# behind a proxy


async def behind(
    fleet: UpdateFleet, headers: dict[str, str], *, peer: str = "10.9.0.1", name: str = "pump-1", **settings: object
) -> httpx.Response:
    defaults: dict[str, object] = {
        "trusted_proxies": (parse_network("10.9.0.0/24"),),
        "certificate_proxies": (parse_network("10.9.0.0/24"),),
        "proxy_authorities": (parse_authority(AUTHORITY),),
    }
    changed = dataclasses.replace(fleet.context.settings, **{**defaults, **settings})  # type: ignore[arg-type]
    context = make_context(changed, fleet.database, fleet.context.artifacts, download_key=bytes(32), now=fleet.clock)
    app = app_of(context, routes(context))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, client=(peer, 40_000)), base_url="http://flota.test:8080", headers=headers
    ) as client:
        answer = await client.get(f"/DEFAULT/controller/v1/{name}")
    await context.sightings.flush()
    return answer


CERTIFIED = {"x-controller-id": "pump-1", "x-authority": AUTHORITY}


@pytest.mark.parametrize(
    "headers",
    [
        CERTIFIED,
        {"x-controller-id": "pump-1", "x-authority": AUTHORITY.upper()},
        {"x-controller-id": "pump-1", "x-authority": f"root; {AUTHORITY}"},
        {"x-controller-id": "pump-1", "x-authority": f"{AUTHORITY},root"},
        {"x-controller-id": "pump-1", "x-authority-0": "root", "x-authority-1": AUTHORITY},
        {"x-controller-id": "pump-1", "x-authority-1": "root", "x-authority-2": AUTHORITY},
    ],
)
async def test_a_certificate_that_a_trusted_proxy_checked_is_enough(
    fleet: UpdateFleet, headers: dict[str, str]
) -> None:
    assert (await behind(fleet, headers)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "options"),
    [
        (CERTIFIED, {"peer": "10.8.0.1"}),
        (CERTIFIED, {"certificate_proxies": ()}),
        (CERTIFIED, {"proxy_authorities": ()}),
        (CERTIFIED, {"proxy_authorities": (parse_authority(f"OTHER={AUTHORITY}"),)}),
        ({**CERTIFIED, "x-controller-id": "pump-2"}, {}),
        ({"x-authority": AUTHORITY}, {}),
        ({"x-controller-id": "pump-1"}, {}),
        ({"x-controller-id": "pump-1", "x-authority": AUTHORITY[:-1]}, {}),
        ({"x-controller-id": "pump-1", "x-authority-1": "root", "x-authority-3": AUTHORITY}, {}),
        ({**CERTIFIED, "x-forwarded-for": "10.9.0.1"}, {"peer": "10.8.0.1"}),
        ({"x-controller-id": "new", "x-authority": AUTHORITY}, {"name": "new"}),
    ],
)
async def test_every_other_certificate_header_is_as_if_it_were_not_there(
    fleet: UpdateFleet, headers: dict[str, str], options: dict[str, object]
) -> None:
    answer = await behind(fleet, headers, **options)  # type: ignore[arg-type]
    assert (answer.status_code, answer.content) == (401, b"")


async def test_an_unknown_device_with_a_certificate_becomes_what_the_settings_say(fleet: UpdateFleet) -> None:
    headers = {"x-controller-id": "new", "x-authority": AUTHORITY}
    answer = await behind(fleet, headers, name="new", proxy_device_type="pump")
    assert answer.status_code == 200
    assert (await fleet.device("new")).state is DeviceState.ACCEPTED


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({"x-forwarded-proto": "https", "x-forwarded-host": "ota.example.org"}, "https://ota.example.org"),
        (
            {"x-forwarded-proto": "https", "x-forwarded-host": "ota.example.org", "x-forwarded-port": "8443"},
            "https://ota.example.org:8443",
        ),
        ({"forwarded": 'for=192.0.2.7;proto=https;host="ota.example.org:8443"'}, "https://ota.example.org:8443"),
        ({"forwarded": "host=evil.example;proto=http, host=ota.example.org;proto=https"}, "https://ota.example.org"),
        ({"x-forwarded-prefix": "/updates/"}, "http://flota.test:8080/updates"),
    ],
)
async def test_links_are_where_the_trusted_proxy_was_asked(
    fleet: UpdateFleet, headers: dict[str, str], base: str
) -> None:
    href = (await behind(fleet, {**CERTIFIED, **headers})).json()["_links"]["configData"]["href"]
    assert href == f"{base}/DEFAULT/controller/v1/pump-1/configData"


async def test_a_proxy_that_says_nonsense_is_400(fleet: UpdateFleet) -> None:
    for headers in ({"x-forwarded-host": 'a"b'}, {"x-forwarded-proto": "gopher"}, {"x-forwarded-prefix": "//evil"}):
        assert (await behind(fleet, {**CERTIFIED, **headers})).status_code == 400


async def test_the_devices_address_is_the_one_that_the_trusted_proxy_tells(fleet: UpdateFleet) -> None:
    await behind(fleet, {**CERTIFIED, "x-forwarded-for": "203.0.113.9, 192.0.2.7"})
    assert (await fleet.device("pump-1")).address == "192.0.2.7"
    await behind(fleet, {"authorization": f"TargetToken {TOKEN}", "x-forwarded-for": "192.0.2.99"}, peer="10.8.0.1")
    assert (await fleet.device("pump-1")).address == "10.8.0.1"


@pytest.mark.parametrize(
    "flags",
    [
        {"proxy_client_cert": ["10.0.0.1"]},
        {"proxy_authority": [AUTHORITY]},
        {"trusted_proxy": ["0.0.0.0/0"]},
        {"trusted_proxy": ["proxy.example"]},
        {"trusted_proxy": ["10.0.0.1/24"]},
        {"proxy_client_cert": ["10.0.0.1"], "proxy_authority": ["with blank"]},
    ],
)
def test_settings_that_would_let_anybody_in_are_refused(tmp_path: Path, flags: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        settings_from(tmp_path, {}, {}, flags)


def test_a_certificate_proxy_is_a_trusted_one(tmp_path: Path) -> None:
    environment = {"FLOTA_PROXY_CLIENT_CERT": "10.0.0.1,::1", "FLOTA_PROXY_AUTHORITY": f"acme={AUTHORITY}"}
    settings = settings_from(tmp_path, {}, environment, {})
    assert settings.trusted_proxies == settings.certificate_proxies == (parse_network("10.0.0.1"), parse_network("::1"))
    assert settings.proxy_authorities[0].tenant == "ACME"
