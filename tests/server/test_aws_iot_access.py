"""Who is let in over MQTT, and what each can reach: its own reserved topics and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flota.errors import PeerError
from flota.fleet.devices import Device, DeviceState
from flota.fleet.rollouts import RolloutState
from flota.fleet.scope import Role
from flota.protocols.mqtt.packets import Connect, ConnectReturn, Publish, Will
from flota.server.api.aws_iot.identity import ThingIdentity
from flota.server.auth import digest_of_secret
from flota.transports.mqtt_client import ConnectRefused, MqttLink, MqttLinkLost, open_mqtt
from tests.server.aws_iot_bench import WAIT_S, Bench, a_bench, job_id
from tests.server.update_fleet import TOKEN
from tests.store.fleets import a_fleet

OWN = "$aws/things/pump-1"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with a_bench(tmp_path) as made:
        yield made


async def _refusal(bench: Bench, username: str | None, password: bytes | None, will: Will | None = None) -> int:
    with pytest.raises(ConnectRefused) as caught:
        await open_mqtt("127.0.0.1", bench.port, Connect("c", True, 60, username, password, will))
    return caught.value.code_returned


async def test_a_thing_comes_in_with_its_name_and_its_token_alone(bench: Bench) -> None:
    await bench.fleet.add_device("pump-1")
    await bench.fleet.add_device("pump-2", token="another-token")
    await bench.fleet.add_device("pump.with.dots")
    await bench.fleet.add_device("refused", state=DeviceState.REFUSED)
    await bench.fleet.add_device("without", token=None)
    bad, no = ConnectReturn.BAD_CREDENTIALS, ConnectReturn.NOT_AUTHORISED
    for username, password, code in (
        ("pump-1", b"wrong", bad),
        ("pump-2", TOKEN.encode(), bad),
        ("pump.with.dots", TOKEN.encode(), bad),
        ("nobody", TOKEN.encode(), bad),
        ("refused", TOKEN.encode(), bad),
        ("without", b"", bad),
        ("pump-1", b"\xff\xfe", bad),
        ("pump-1", b"x" * 300, no),
        ("pump-1", None, no),
        (None, None, no),
        ("$operator", TOKEN.encode(), no),
        ("a/b", TOKEN.encode(), bad),
        ("#", TOKEN.encode(), bad),
        ("x" * 5000, TOKEN.encode(), bad),
    ):
        assert await _refusal(bench, username, password) == code, (username, password)
    thing = await bench.connect("pump-1", client_id="any client id will do")
    await thing.accepted("get")
    seen = await bench.fleet.device("pump-1")
    assert (seen.last_route, seen.address) == ("aws-iot", "127.0.0.1")


@pytest.mark.parametrize(
    ("topic_filter", "granted"),
    [
        (f"{OWN}/jobs/notify-next", True),
        (f"{OWN}/jobs/#", True),
        (f"{OWN}/jobs/+/get/accepted", True),
        (f"{OWN}/streams/+/data/cbor", True),
        (f"{OWN}/#", True),
        (f"{OWN}/shadow/update/accepted", True),
        ("$aws/things/pump-2/jobs/#", False),
        ("$aws/things/+/jobs/#", False),
        ("$aws/things/pump-1", False),
        ("$aws/things/pump-11/jobs/#", False),
        ("$aws/things/#", False),
        ("$aws/#", False),
        ("$aws/events/#", False),
        ("$aws/certificates/create/json/accepted", False),
        ("#", False),
        ("+/things/pump-1/jobs/#", False),
        ("+/+/+/jobs/#", False),
        ("telemetry/pump-1", False),
        ("$SYS/#", False),
    ],
)
async def test_a_thing_subscribes_to_its_own_and_nothing_else(bench: Bench, topic_filter: str, granted: bool) -> None:
    await bench.fleet.add_device("pump-1")
    thing = await bench.connect()
    if granted:
        assert await thing.link.subscribe(topic_filter, 1) == 1
        return
    with pytest.raises(PeerError):
        await thing.link.subscribe(topic_filter, 1)
    await thing.accepted("get")


@pytest.mark.parametrize(
    ("topic", "retain"),
    [
        ("$aws/things/pump-2/jobs/get", False),
        ("$aws/things/pump-2/jobs/$next/get", False),
        ("$aws/things/pump-2/jobs/notify-next", False),
        ("$aws/things/pump-1/jobs/get", True),
        ("$aws/things/pump-1/unknown", False),
        ("$aws/things/pump-1/", False),
        ("$aws/things/pump-1", False),
        ("$aws/events/job/x/completed", False),
        ("$aws/certificates/create/json", False),
        ("$aws/provisioning-templates/t/provision/json", False),
        ("$SYS/broker", False),
        ("$anything", False),
    ],
)
async def test_a_publish_to_anothers_or_an_unknown_reserved_topic_ends_the_connection(
    bench: Bench, topic: str, retain: bool
) -> None:
    await bench.fleet.add_device("pump-1")
    other = await bench.fleet.add_device("pump-2")
    _, execution = await bench.roll_out(other)
    victim = await bench.listening("pump-2")
    thing = await bench.connect("pump-1")
    await thing.link.publish(topic, b'{"clientToken":"forged"}', 0, retain=retain)
    assert await _is_closed(thing.link)
    assert await victim.has_nothing_new()
    assert await bench.fleet.execution(execution) == execution


async def _is_closed(link: MqttLink) -> bool:
    try:
        async with asyncio.timeout(WAIT_S):
            await link.receive()
    except MqttLinkLost:
        return True
    return False


async def test_a_topic_of_its_own_is_dropped_where_there_is_no_bridge_and_the_connection_goes_on(bench: Bench) -> None:
    await bench.fleet.add_device("pump-1")
    thing = await bench.connect()
    await thing.link.publish("telemetry/pump-1", b"21.5", 1)
    await thing.accepted("get")
    assert bench.aws_iot.dropped == 1


async def test_a_bridge_decides_about_topics_outside_aws(bench: Bench) -> None:
    class Bridge:
        def __init__(self) -> None:
            self.got: list[tuple[str, str, bytes]] = []

        def may_subscribe(self, thing: ThingIdentity, topic_filter: str) -> bool:
            return topic_filter.startswith(f"commands/{thing.name}/")

        def may_publish(self, thing: ThingIdentity, topic: str) -> bool:
            return topic.startswith(f"telemetry/{thing.name}/")

        def receive(self, thing: ThingIdentity, publish: Publish) -> None:
            self.got.append((thing.name, publish.topic, publish.payload))

    bridge = Bridge()
    bench.aws_iot.other_topics = bridge
    await bench.fleet.add_device("pump-1")
    thing = await bench.connect()
    assert await thing.link.subscribe("commands/pump-1/#", 1) == 1
    with pytest.raises(PeerError):
        await thing.link.subscribe("commands/pump-2/#", 1)
    await thing.link.publish("telemetry/pump-1/t", b"21.5", 1)
    await thing.link.publish("telemetry/pump-2/t", b"99", 1)
    await thing.accepted("get")
    assert bridge.got == [("pump-1", "telemetry/pump-1/t", b"21.5")]


async def test_answers_go_to_the_connection_that_asked_and_to_nobody_else(bench: Bench) -> None:
    await bench.fleet.add_device("pump-1")
    one = await bench.connect(client_id="one")
    two = await bench.connect(client_id="two")
    for thing in (one, two):
        await thing.link.subscribe(f"{OWN}/jobs/#", 1)
    assert (await one.accepted("get", {"clientToken": "of one"}))["clientToken"] == "of one"
    assert (await two.accepted("get", {"clientToken": "of two"}))["clientToken"] == "of two"
    assert await one.has_nothing_new()


async def test_requests_to_the_shadow_are_refused_plainly(bench: Bench) -> None:
    await bench.fleet.add_device("pump-1")
    thing = await bench.connect()
    topic, told = await thing.ask("shadow/get", {"clientToken": "t"})
    assert (topic, told["code"], told["clientToken"]) == ("shadow/get/rejected", 404, "t")
    topic, told = await thing.ask("shadow/name/config/update", {"state": {}})
    assert (topic, told["code"]) == ("shadow/name/config/update/rejected", 403)
    for payload in (b"", b"{", b"\xff", b"[" * 4000, b"x" * 9000):
        assert (await thing.ask("shadow/update", payload))[1]["code"] == 403


async def _rolled_out(bench: Bench, device: Device) -> int:
    _, execution = await bench.roll_out(device)
    return execution.rollout_id


class TestWhoeverIsLetInNoMore:
    """Open connections end when their reason to be there does."""

    async def test_a_refused_device(self, bench: Bench) -> None:
        await bench.fleet.add_device("pump-1")
        thing = await bench.connect()
        async with bench.fleet.database.transaction() as tx:
            await tx.set_device_state(bench.fleet.scope, "pump-1", DeviceState.REFUSED, now=bench.fleet.clock())
        await bench.settle()
        assert await _is_closed(thing.link)

    async def test_a_device_that_was_refused_between_its_admission_and_its_session(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody could close it when everybody else was looked at: it had no session yet."""
        await bench.fleet.add_device("pump-1")

        async def refused_meanwhile(_thing: ThingIdentity) -> None:
            async with bench.fleet.database.transaction() as tx:
                await tx.set_device_state(bench.fleet.scope, "pump-1", DeviceState.REFUSED, now=bench.fleet.clock())
            await bench.settle()

        monkeypatch.setattr(bench.aws_iot, "_watch_restarts", refused_meanwhile)  # the last that admission waits for
        thing = await bench.connect()
        await bench.settle()
        assert await _is_closed(thing.link)

    async def test_a_removed_device_and_one_that_came_in_its_place(self, bench: Bench) -> None:
        await bench.fleet.add_device("pump-1")
        thing = await bench.connect()
        async with bench.fleet.database.transaction() as tx:
            await tx.remove_device(bench.fleet.scope, "pump-1", now=bench.fleet.clock())
        await bench.fleet.add_device("pump-1", token="the-new-one's")
        await bench.settle()
        assert await _is_closed(thing.link)
        again = await bench.connect(token="the-new-one's")
        await again.accepted("get")

    async def test_a_device_with_another_token_now(self, bench: Bench) -> None:
        await bench.fleet.add_device("pump-1")
        thing = await bench.connect()
        await bench.fleet.add_device("pump-2")
        other = await bench.connect("pump-2")
        async with bench.fleet.database.transaction() as tx:
            digest = digest_of_secret("another")
            await tx.set_device_token(bench.fleet.scope, "pump-1", digest, now=bench.fleet.clock())
        await bench.settle()
        assert await _is_closed(thing.link)
        await other.accepted("get")

    async def test_a_removal_ends_its_jobs_as_removed(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        _, execution = await bench.roll_out(pump)
        await bench.connect()
        async with bench.fleet.database.transaction() as tx:
            await tx.remove_device(bench.fleet.scope, "pump-1", now=bench.fleet.clock())
        assert (await bench.fleet.execution(execution)).state.value == "REMOVED"


class TestWills:
    """A will is published only where its client could publish itself."""

    async def test_one_for_anothers_topic_is_refused(self, bench: Bench) -> None:
        await bench.fleet.add_device("pump-1")
        for topic in ("$aws/things/pump-2/jobs/get", "$aws/events/job/x/completed", "$SYS/x"):
            will = Will(topic, b"{}")
            assert await _refusal(bench, "pump-1", TOKEN.encode(), will) == ConnectReturn.NOT_AUTHORISED

    async def test_one_for_its_own_job_is_worked_off(self, bench: Bench) -> None:
        pump = await bench.fleet.add_device("pump-1")
        _, execution = await bench.roll_out(pump)
        will = Will(f"{OWN}/jobs/{job_id(bench)}/update", b'{"status":"FAILED","statusDetails":{"reason":"gone"}}')
        link = await open_mqtt("127.0.0.1", bench.port, Connect("c", True, 60, "pump-1", TOKEN.encode(), will))
        link.abort()
        for _ in range(200):
            if not (await bench.fleet.execution(execution)).is_open:
                break
            await asyncio.sleep(0.02)
        assert (await bench.fleet.execution(execution)).details["reason"] == "gone"


class TestOperatorEvents:
    """`$aws/events/`, for who has a management token, where they are switched on."""

    async def test_the_ends_of_executions_and_jobs_are_told(self, bench: Bench) -> None:
        object.__setattr__(bench.fleet.context.settings, "aws_iot_events", True)
        pump = await bench.fleet.add_device("pump-1")
        bench.fleet.database.on_commit(bench.fleet.context.journal.notify)
        async with bench.fleet.database.transaction() as tx:
            digest = digest_of_secret("flota_secret")
            await tx.add_access_token(bench.fleet.scope, "watcher", Role.VIEWER, digest, now=bench.fleet.clock())
        assert await _refusal(bench, "$operator", b"flota_wrong") == ConnectReturn.BAD_CREDENTIALS
        link = await open_mqtt("127.0.0.1", bench.port, Connect("op", True, 60, "$operator", b"flota_secret"))
        bench.links.append(link)
        assert await link.subscribe("$aws/events/#", 1) == 1
        with pytest.raises(PeerError):
            await link.subscribe("$aws/things/#", 1)
        stop = asyncio.Event()
        running = asyncio.create_task(bench.aws_iot.run(stop))
        try:
            await bench.roll_out(pump)
            thing = await bench.connect()
            await bench.aws_iot.events.ready.wait()
            details = {"reason": "accepted  v1.0.1"}
            await thing.accepted(f"{job_id(bench)}/update", {"status": "SUCCEEDED", "statusDetails": details})
            while (await bench.engine.tick()).effects:
                pass
            async with asyncio.timeout(WAIT_S):
                told = [await link.receive() for _ in range(2)]
        finally:
            stop.set()
            await running
        by_topic = {message.topic: json.loads(message.payload) for message in told}
        execution = by_topic[f"$aws/events/jobExecution/{job_id(bench)}/succeeded"]
        assert (execution["eventType"], execution["status"], execution["operation"]) == (
            "JOB_EXECUTION",
            "SUCCEEDED",
            "succeeded",
        )
        assert execution["statusDetails"] == details
        assert execution["thingArn"].endswith(":thing/pump-1")
        job = by_topic[f"$aws/events/job/{job_id(bench)}/completed"]
        assert (job["status"], job["jobProcessDetails"]["numberOfSucceededThings"]) == ("COMPLETED", 1)

    async def test_operators_watch_their_own_tenant_alone(self, bench: Bench) -> None:
        object.__setattr__(bench.fleet.context.settings, "aws_iot_events", True)
        bench.fleet.database.on_commit(bench.fleet.context.journal.notify)
        other = await a_fleet(bench.fleet.database, tenant="OTHER", size=1)
        links = {}
        for scope, secret in ((bench.fleet.scope, "flota_ours"), (other.scope, "flota_theirs")):
            async with bench.fleet.database.transaction() as tx:
                digest = digest_of_secret(secret)
                await tx.add_access_token(scope, "watcher", Role.VIEWER, digest, now=bench.fleet.clock())
            link = await open_mqtt("127.0.0.1", bench.port, Connect("op", True, 60, "$operator", secret.encode()))
            links[secret] = link
            bench.links.append(link)
            await link.subscribe("$aws/events/#", 1)
        stop = asyncio.Event()
        running = asyncio.create_task(bench.aws_iot.run(stop))
        try:
            await bench.aws_iot.events.ready.wait()
            pump = await bench.fleet.add_device("pump-1")
            for scope, rollout in (
                (other.scope, other.rollout.id),
                (bench.fleet.scope, await _rolled_out(bench, pump)),
            ):
                async with bench.fleet.database.transaction() as tx:
                    await tx.set_rollout_state(scope, rollout, RolloutState.CANCELED, now=bench.fleet.clock())
            async with asyncio.timeout(WAIT_S):
                ours = [(await links["flota_ours"].receive()).topic for _ in range(2)]
                theirs = (await links["flota_theirs"].receive()).topic
        finally:
            stop.set()
            await running
        assert set(ours) == {
            f"$aws/events/job/{job_id(bench)}/canceled",
            f"$aws/events/jobExecution/{job_id(bench)}/canceled",
        }
        assert theirs == "$aws/events/job/AFR_OTA-spring/canceled"

    async def test_an_operator_publishes_nothing(self, bench: Bench) -> None:
        object.__setattr__(bench.fleet.context.settings, "aws_iot_events", True)
        async with bench.fleet.database.transaction() as tx:
            digest = digest_of_secret("flota_secret")
            await tx.add_access_token(bench.fleet.scope, "watcher", Role.ADMIN, digest, now=bench.fleet.clock())
        link = await open_mqtt("127.0.0.1", bench.port, Connect("op", True, 60, "$operator", b"flota_secret"))
        await link.publish("telemetry/x", b"", 0)
        assert await _is_closed(link)
