"""What micro-RDK devices and their operators may rely on: links, deliveries, and what is concluded from requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from flota.errors import Refused
from flota.fleet.devices import DeviceState
from flota.fleet.executions import Basis, ExecutionState
from flota.fleet.inferences import QUICK_REPEATS_MAX
from flota.fleet.releases import ReleaseState
from flota.fleet.rollouts import RolloutPolicy, RolloutState
from flota.fleet.storage import NewRollout
from flota.protocols.viam import ConfigError, UnusableUrl, check_offered_url, judge_response, parse_service_config
from flota.server.settings import Address, ServerSettings
from flota.server.viam_addresses import choose_base
from flota.server.viam_links import NO_STATUS, LinksWanted, make_links
from tests.server.update_fleet import START, image
from tests.server.viam_fleet import ASKED_AT, TYPE, ViamFleet, a_viam_fleet

S = ExecutionState
SLOT = 0x377000


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[ViamFleet]:
    async with a_viam_fleet(tmp_path) as made:
        yield made


def settings(**more: object) -> ServerSettings:
    from flota.server.settings import DataDirectory

    fields = {"data": DataDirectory(Path("/nowhere")), "http": Address("0.0.0.0", 8080)} | more
    return ServerSettings(**fields)  # type: ignore[arg-type]


# links


async def test_the_link_of_a_device_is_what_the_guide_asks_for_and_leads_to_the_image(fleet: ViamFleet) -> None:
    await fleet.execution()
    link = await fleet.link()
    assert list(link.service) == ["name", "namespace", "type", "model", "attributes"]
    config = parse_service_config(link.service)
    assert (config.version, config.url) == ("2.0.0", link.url)
    assert check_offered_url(config.url).authority == "10.0.0.5:8080"
    answer = await fleet.get(link)
    assert (answer.status_code, answer.content) == (200, image("2.0.0"))


async def test_a_rollout_gives_each_of_its_devices_a_link_of_its_own(fleet: ViamFleet) -> None:
    release = await fleet.release()
    devices = [await fleet.at.add_device(f"pump-{n}", type_name=TYPE) for n in (1, 2, 3)]
    await fleet.at.roll_out(release, *devices)
    links = await fleet.links(rollout="rollout-1")
    assert [link.device for link in links] == ["pump-1", "pump-2", "pump-3"]
    assert len({link.url for link in links}) == 3
    (only,) = await fleet.links(rollout="rollout-1", device="pump-2")
    assert only.url == links[1].url


async def test_a_shared_link_hands_out_the_image_and_says_that_nothing_can_be_known(fleet: ViamFleet) -> None:
    release = await fleet.release()
    made = await make_links(fleet.at.context, fleet.at.scope, LinksWanted(release=str(release.id), asked_at=ASKED_AT))
    assert NO_STATUS in made.warnings
    (link,) = made.links
    assert (link.device, link.execution) == (None, None)
    assert (await fleet.get(link)).content == image("2.0.0")
    async with fleet.at.database.transaction() as tx:
        await tx.set_release_state(fleet.at.scope, release.id, ReleaseState.WITHDRAWN, now=fleet.at.clock())
    assert (await fleet.get(link)).status_code == 410


async def test_making_links_is_in_the_audit_trail(fleet: ViamFleet) -> None:
    await fleet.execution()
    await fleet.link()
    (entry,) = await fleet.at.audited("viam.links-made")
    assert (entry["device"], entry["links"], entry["base"]) == ("pump-1", 1, ASKED_AT)


async def test_a_device_without_an_open_execution_is_told_how_to_get_one(fleet: ViamFleet) -> None:
    await fleet.release()
    await fleet.at.add_device("pump-1", type_name=TYPE)
    with pytest.raises(Refused, match="no open execution") as caught:
        await fleet.link()
    assert caught.value.hint == f"Make one: flota rollout create --release {TYPE}@2.0.0 --devices pump-1"


async def test_a_rollout_made_a_moment_ago_is_waited_for(fleet: ViamFleet) -> None:
    release, device = await fleet.release(), await fleet.at.add_device("pump-1", type_name=TYPE)
    async with fleet.at.database.transaction() as tx:
        new = NewRollout("new", release.id, RolloutPolicy(), ((device.id,),), "all")
        await tx.add_rollout(fleet.at.scope, new, now=fleet.at.clock())
    asked = asyncio.create_task(fleet.link())
    by_rollout = asyncio.create_task(fleet.links(rollout="new"))
    await asyncio.sleep(0)
    await fleet.tick()
    assert (await asked).device == "pump-1"
    assert [link.device for link in await by_rollout] == ["pump-1"]


async def test_a_merged_image_is_refused_as_a_configuration(fleet: ViamFleet) -> None:
    release = await fleet.release("3.0.0", image_format="esp-merged")
    with pytest.raises(Refused, match="app image only") as caught:
        await fleet.links(release=str(release.id))
    assert "merged" in str(caught.value)


@pytest.mark.parametrize("size", [287, SLOT + 1])
async def test_an_image_of_a_size_that_no_device_takes_is_refused(fleet: ViamFleet, size: int) -> None:
    release = await fleet.release("3.0.0", data=b"\xe9" * size)
    with pytest.raises(Refused, match="size"):
        await fleet.links(release=str(release.id))


async def test_a_type_without_micro_rdk_is_refused(fleet: ViamFleet) -> None:
    await fleet.at.add_type("pump")
    release = await fleet.at.add_release("2.0.0", type_name="pump")
    with pytest.raises(Refused, match="no micro-RDK"):
        await fleet.links(release=str(release.id))


async def test_a_version_of_128_bytes_is_offered_as_it_is(fleet: ViamFleet) -> None:
    """A longer one is no version of a release at all."""
    longest = "2.0.0-" + "ä" * 61
    release = await fleet.release(longest)
    (link,) = await fleet.links(release=str(release.id))
    assert parse_service_config(link.service).version == longest
    with pytest.raises(ConfigError):
        parse_service_config({**link.service, "attributes": {"url": link.url, "version": longest + "x"}})


async def test_a_release_that_is_not_published_or_has_expired_gets_no_link(fleet: ViamFleet) -> None:
    release = await fleet.release(expires_at=START + timedelta(hours=1))
    fleet.at.clock.advance(3600)
    with pytest.raises(Refused, match="expired"):
        await fleet.links(release=str(release.id))
    async with fleet.at.database.transaction() as tx:
        await tx.set_release_state(fleet.at.scope, release.id, ReleaseState.WITHDRAWN, now=fleet.at.clock())
    with pytest.raises(Refused, match="not published"):
        await fleet.links(release=str(release.id))


# the address in a link


@pytest.mark.parametrize(
    ("public_url", "more", "base"),
    [
        ("http://u.example", {}, "http://u.example:80"),
        ("http://u.example:8080", {}, "http://u.example:8080"),
        ("http://u.example:8080/ota", {}, "http://u.example:8080/ota"),
        ("https://u.example", {"https": None}, "https://u.example:443"),
        ("https://u.example:8443", {"https": Address("0.0.0.0", 8443)}, "http://u.example:8080"),
        ("https://[fd00::1]:8443", {"https": Address("::", 8443)}, "http://[fd00::1]:8080"),
        ("https://u.example", {"https": Address("0.0.0.0", 8443)}, "https://u.example:443"),
        (
            "https://u.example:8443",
            {"https": Address("0.0.0.0", 8443), "tls_cert": Path("c"), "tls_key": Path("k")},
            "https://u.example:8443",
        ),
        (None, {}, ASKED_AT),
    ],
)
def test_the_address_always_names_its_port_and_never_a_certificate_that_devices_do_not_know(
    public_url: str | None, more: dict[str, object], base: str
) -> None:
    chosen, notes = choose_base(settings(public_url=public_url, **more), asked_at=ASKED_AT, base_url=None)
    assert chosen == base
    assert any("does not know the certificate" in note for note in notes) is (
        str(public_url).startswith("https") and base.startswith("http:")
    )
    assert any("plain http" in note for note in notes) is base.startswith("http:")


def test_without_http_and_with_our_own_authority_nothing_is_left_to_offer() -> None:
    without = settings(public_url="https://u.example:8443", https=Address("0.0.0.0", 8443), http=None)
    with pytest.raises(Refused, match="certificate") as caught:
        choose_base(without, asked_at=ASKED_AT, base_url=None)
    assert "--tls-cert" in str(caught.value.hint)


def test_an_address_of_the_operators_own_is_taken_with_a_warning_where_devices_will_refuse_it() -> None:
    ours = settings(https=Address("0.0.0.0", 8443))
    base, notes = choose_base(ours, asked_at=ASKED_AT, base_url="https://u.example:8443/")
    assert base == "https://u.example:8443"
    assert any("will refuse the certificate" in note for note in notes)
    _, notes = choose_base(ours, asked_at=ASKED_AT, base_url="http://localhost:8080")
    assert any("this machine only" in note for note in notes)


@pytest.mark.parametrize("url", ["ftp://u:1", "u.example:80", "http://a:b@u:80", "http://u:80/a b", "http://u:x", ""])
def test_an_address_that_devices_cannot_use_is_refused(url: str) -> None:
    with pytest.raises(UnusableUrl):
        choose_base(settings(), asked_at=ASKED_AT, base_url=url)


# deliveries


async def test_the_answer_is_one_that_a_device_accepts_whatever_the_request_says(fleet: ViamFleet) -> None:
    """A 304 and a part are errors to a device, and so is a body of unknown length."""
    await fleet.execution(policy=RolloutPolicy(attempts=100))
    link = await fleet.link()
    etag = (await fleet.get(link, "HEAD")).headers["etag"]
    for headers in (
        {"if_none_match": etag},
        {"if_modified_since": "Wed, 21 Oct 2065 07:28:00 GMT"},
        {"range": "bytes=100-200"},
        {"range": "bytes=99999-"},
        {"accept_encoding": "gzip, br"},
    ):
        answer = await fleet.get(link, **headers)
        assert (answer.status_code, answer.content) == (200, image("2.0.0")), headers
        assert answer.headers["content-length"] == "5000"
        assert not {"content-encoding", "transfer-encoding", "location"} & set(answer.headers)
        assert judge_response(answer.status_code, answer.headers.items(), slot_size=SLOT)


async def test_head_shows_the_length_and_counts_nothing(fleet: ViamFleet) -> None:
    execution = await fleet.execution()
    answer = await fleet.get(await fleet.link(), "HEAD")
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "5000", b"")
    assert await fleet.at.state(execution) is S.QUEUED


async def test_other_methods_are_refused(fleet: ViamFleet) -> None:
    await fleet.execution()
    assert (await fleet.get(await fleet.link(), "POST")).status_code == 405


def altered(url: str) -> list[str]:
    head, _, token = url.partition("?token=")
    kind, tenant, execution, device, mac = token.split(".")
    changed = [
        ("s", tenant, execution, device, mac),
        (kind, "2", execution, device, mac),
        (kind, tenant, "2", device, mac),
        (kind, tenant, execution, "2", mac),
        (kind, tenant, execution, device, mac[:-1] + ("A" if mac[-1] != "A" else "B")),
        (kind, tenant, execution, device, mac + "A"),
        (kind, tenant, execution, device, ""),
        (kind, tenant, execution, mac),
        ("s", tenant, execution, mac),
    ]
    return [f"{head}?token={'.'.join(fields)}" for fields in changed] + [
        head,
        f"{head}?token=",
        f"{head}?token=%ff%00",
        f"{head}?token={'1.' * 60}",
        f"{head}?{'a=1&' * 40}",
        f"{head}?x={token}",
    ]


async def test_any_other_token_gets_a_few_bytes_and_nothing_of_the_database(fleet: ViamFleet) -> None:
    await fleet.execution()
    link = await fleet.link()
    await fleet.at.database.close()
    for url in altered(link.url):
        answer = await fleet.get(url)
        assert (answer.status_code, answer.text) == (404, "no such link\n"), url


async def test_a_link_that_is_over_is_answered_from_memory_for_ever(fleet: ViamFleet) -> None:
    execution = await fleet.execution()
    link = await fleet.link()
    await fleet.get(link)
    await fleet.tick(181)
    assert await fleet.at.state(execution) is S.SUCCEEDED
    first = await fleet.get(link)
    assert (first.status_code, first.text) == (410, "this update is over\n")
    await fleet.at.context.sightings.flush()
    await fleet.at.database.close()
    for _ in range(100):
        fleet.at.clock.advance(10)
        answer = await fleet.get(link)
        assert answer.status_code == 410
        assert len(answer.content) < 64


async def test_a_device_that_asks_far_too_often_is_held_back(fleet: ViamFleet) -> None:
    await fleet.execution()
    link = await fleet.link()
    answers = [(await fleet.get(link)).status_code for _ in range(140)]
    assert answers[-1] == 429
    assert set(answers) == {200, 410, 429}


async def test_a_paused_rollout_lets_its_devices_wait(fleet: ViamFleet) -> None:
    execution = await fleet.execution()
    link = await fleet.link()
    scope, database = fleet.at.scope, fleet.at.database
    async with database.transaction() as tx:
        await tx.set_rollout_state(scope, execution.rollout_id, RolloutState.PAUSED, now=fleet.at.clock())
    answer = await fleet.get(link)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
    async with database.transaction() as tx:
        await tx.set_rollout_state(scope, execution.rollout_id, RolloutState.ACTIVE, now=fleet.at.clock())
    assert (await fleet.get(link)).status_code == 200


async def test_a_device_does_one_update_after_the_other(fleet: ViamFleet) -> None:
    first = await fleet.execution()
    device = await fleet.at.device("pump-1")
    (second,) = await fleet.at.roll_out(await fleet.release("3.0.0"), device)
    waiting = await fleet.link(release=f"{TYPE}@3.0.0")
    assert (await fleet.get(waiting)).status_code == 503
    assert (await fleet.get(await fleet.link())).status_code == 200
    assert (await fleet.get(waiting)).status_code == 503
    await fleet.tick(181)
    assert await fleet.at.state(first) is S.SUCCEEDED
    assert (await fleet.get(waiting)).content == image("3.0.0")
    assert await fleet.at.state(second) is S.IN_PROGRESS


async def test_a_canceled_update_is_over_at_the_next_request(fleet: ViamFleet) -> None:
    queued, begun = await fleet.execution(), await fleet.execution("pump-2", await fleet.release("2.0.1"))
    links = [await fleet.link(), await fleet.link("pump-2", f"{TYPE}@2.0.1")]
    await fleet.get(links[1])
    for execution in (queued, begun):
        async with fleet.at.database.transaction() as tx:
            await tx.set_rollout_state(
                fleet.at.scope, execution.rollout_id, RolloutState.CANCELED, now=fleet.at.clock()
            )
    assert [(await fleet.get(link)).status_code for link in links] == [410, 410]
    assert [await fleet.at.state(one) for one in (queued, begun)] == [S.CANCELED, S.CANCELED]


async def test_a_device_that_is_turned_away_gets_nothing(fleet: ViamFleet) -> None:
    await fleet.execution()
    link = await fleet.link()
    async with fleet.at.database.transaction() as tx:
        await tx.set_device_state(fleet.at.scope, "pump-1", DeviceState.REFUSED, now=fleet.at.clock())
    assert (await fleet.get(link)).status_code in (410, 503)


async def test_an_expired_release_is_not_begun(fleet: ViamFleet) -> None:
    execution = await fleet.execution(release=await fleet.release(expires_at=START + timedelta(hours=1)))
    link = await fleet.link()
    fleet.at.clock.advance(3600)
    assert (await fleet.get(link)).status_code == 410
    assert await fleet.at.state(execution) is S.CANCELED


# conclusions


async def test_a_request_and_then_silence_is_success_by_inference_without_any_further_request(fleet: ViamFleet) -> None:
    execution = await fleet.execution()
    await fleet.get(await fleet.link())
    under_way = await fleet.at.execution(execution)
    assert (under_way.state, under_way.basis) == (S.IN_PROGRESS, None)
    assert (under_way.details["gets"], under_way.details["delivery"]) == ("1", "handed-over")
    await fleet.tick(179)
    assert await fleet.at.state(execution) is S.IN_PROGRESS
    await fleet.tick(1)
    done = await fleet.at.execution(execution)
    assert (done.state, done.basis) == (S.SUCCEEDED, Basis.INFERRED)
    device = await fleet.at.device("pump-1")
    assert device.last_route == "viam"


async def test_the_quiet_time_is_a_setting(tmp_path: Path) -> None:
    async with a_viam_fleet(tmp_path, viam_quiet_s=2.0) as fleet:
        execution = await fleet.execution()
        await fleet.get(await fleet.link())
        await fleet.tick(2)
        assert await fleet.at.state(execution) is S.SUCCEEDED


async def test_a_request_after_a_whole_delivery_is_a_failure_and_the_link_is_over(fleet: ViamFleet) -> None:
    execution = await fleet.execution()
    link = await fleet.link()
    await fleet.get(link)
    fleet.at.clock.advance(100)
    assert (await fleet.get(link)).status_code == 410
    ended = await fleet.at.execution(execution)
    assert (ended.state, ended.basis, ended.details["gets"]) == (S.FAILED, Basis.INFERRED, "2")
    assert "handed over whole" in ended.details["reason"]


async def test_more_attempts_are_given_when_the_rollout_allows_them(fleet: ViamFleet) -> None:
    execution = await fleet.execution(policy=RolloutPolicy(attempts=2))
    link = await fleet.link()
    await fleet.get(link)
    fleet.at.clock.advance(100)
    assert (await fleet.get(link)).status_code == 200
    await fleet.tick(180)
    done = await fleet.at.execution(execution)
    assert (done.state, done.basis, done.details["failed-whole"]) == (S.SUCCEEDED, Basis.INFERRED, "1")


async def test_a_device_that_refuses_what_it_is_offered_every_ten_seconds_is_flagged_and_then_given_up(
    fleet: ViamFleet,
) -> None:
    execution = await fleet.execution()
    link = await fleet.link()
    statuses = []
    for _ in range(QUICK_REPEATS_MAX + 4):
        statuses.append((await fleet.get(link)).status_code)
        fleet.at.clock.advance(10)
    assert statuses == [200] * (QUICK_REPEATS_MAX + 1) + [410] * 3
    ended = await fleet.at.execution(execution)
    assert (ended.state, ended.basis) == (S.FAILED, Basis.INFERRED)
    assert ended.details["flag"] == "asks again and again: 14 requests"


async def test_a_device_that_asks_after_it_was_taken_for_done_is_flagged_once(fleet: ViamFleet) -> None:
    execution = await fleet.execution()
    link = await fleet.link()
    await fleet.get(link)
    await fleet.tick(181)
    await fleet.get(link)
    flagged = await fleet.at.execution(execution)
    assert (flagged.state, flagged.basis) == (S.SUCCEEDED, Basis.INFERRED)
    assert "does not run the image" in flagged.details["flag"]
    again = fleet.restarted()
    async with again.http:
        assert (await again.get(link)).status_code == 410
    assert (await fleet.at.execution(execution)).version == flagged.version


async def test_a_restarted_server_goes_on_from_what_is_stored(fleet: ViamFleet) -> None:
    execution = await fleet.execution()
    link = await fleet.link()
    await fleet.get(link)
    fleet.at.clock.advance(600)
    again = fleet.restarted()
    async with again.http:
        await again.tick()
        assert await fleet.at.state(execution) is S.IN_PROGRESS  # nobody could have asked while it was down
        answer = await again.get(link)
        assert answer.content == image("2.0.0")  # the delivery of the old process costs no attempt
        await again.tick(181)
    done = await fleet.at.execution(execution)
    assert (done.state, done.details["gets"], done.details["failed-early"]) == (S.SUCCEEDED, "2", "1")


async def test_a_late_end_of_an_old_delivery_does_not_end_the_new_one(fleet: ViamFleet) -> None:
    from flota.server.viam_links import read_token
    from flota.server.viam_updates import ViamUpdates

    execution = await fleet.execution()
    grant = read_token(fleet.at.context, (await fleet.link()).url.partition("?token=")[2])
    updates = ViamUpdates(fleet.at.context)
    first = await updates.begin(grant, None)
    fleet.at.clock.advance(20)
    second = await updates.begin(grant, None)
    await updates.finish(first, whole=True)
    assert (await fleet.at.execution(execution)).details["delivery"] == "under-way"
    await updates.finish(second, whole=False)
    assert (await fleet.at.execution(execution)).details["delivery"] == "interrupted"


# through the management API


async def ask(fleet: ViamFleet, method: str, path: str, body: object = None) -> httpx.Response:
    from flota.fleet.scope import Role
    from flota.server.auth import digest_of_secret, new_secret

    secret = new_secret()
    async with fleet.at.database.transaction() as tx:
        name = f"t-{secret[-12:]}".replace("_", "-")
        await tx.add_access_token(fleet.at.scope, name, Role.OPERATOR, digest_of_secret(secret), now=START)
    return await fleet.http.request(method, f"/api/v1{path}", json=body, headers={"authorization": f"Bearer {secret}"})


async def test_operators_get_links_flags_and_bring_evidence(fleet: ViamFleet) -> None:
    execution = await fleet.execution()
    made = (await ask(fleet, "POST", "/viam/links", {"release": f"{TYPE}@2.0.0", "device": "pump-1"})).json()
    (link,) = made["items"]
    assert link["per_device_status"] is True
    for _ in range(3):
        assert (await fleet.get(link["url"])).status_code == 200
        fleet.at.clock.advance(10)
    device = (await ask(fleet, "GET", "/devices/pump-1")).json()
    assert device["flags"] == [f"execution {execution.id}: asks again and again: 3 requests"]
    await fleet.tick(181)
    concluded = await fleet.at.execution(execution)
    fleet.at.clock.advance(60)

    async def evidence(seconds: float) -> httpx.Response:
        at = (concluded.changed_at + timedelta(seconds=seconds)).isoformat()
        return await ask(
            fleet, "POST", f"/executions/{execution.id}/evidence", {"last_online_at": at, "source": "viam"}
        )

    assert (await evidence(-1)).status_code == 409
    assert (await evidence(3600)).status_code == 400
    confirmed = (await evidence(30)).json()
    assert (confirmed["state"], confirmed["basis"]) == ("SUCCEEDED", "reported")
    assert (await evidence(30)).status_code == 409


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"release": "none@1"},
        {"release": "1", "device": "nobody"},
        {"rollout": "none"},
        {"release": "1", "more": 1},
        {"release": "1", "base_url": "http://a:b@h:80"},
        {"release": 1},
    ],
)
async def test_wrong_wishes_are_refused_with_a_reason(fleet: ViamFleet, body: dict[str, object]) -> None:
    await fleet.release()
    answer = await ask(fleet, "POST", "/viam/links", body)
    assert 400 <= answer.status_code < 500
    assert answer.json()["detail"]
