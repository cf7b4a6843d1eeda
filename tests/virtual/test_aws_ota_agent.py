"""The shell around the OTA agent: its connection, its timers, what it lets through; against a scripted connection."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from flota.errors import PeerError
from flota.protocols.mqtt.packets import Publish, pack_packet
from flota.virtual.ab_board import AbSlots
from flota.virtual.agents.aws_ota.ab_pal import AbPal
from flota.virtual.agents.aws_ota.agent import AwsOtaAgent, AwsOtaSettings
from flota.virtual.agents.aws_ota.ports import AgentBuild
from flota.virtual.device import AppContext, Identity, SelfTestingAgent
from flota.virtual.events import DeviceEvent, EventKind
from flota.virtual.pace import Pace
from flota.virtual.slots import ResetReason, Restart
from tests.virtual.aws_ota_bench import (
    NEXT_GET,
    NOTHING,
    THING,
    AwsBench,
    certificate_of,
    image,
    job,
)

NEW = image("1.0.1")
BUILD = AgentBuild(request_wait_s=0.02, momentum=3)


async def no_wait(seconds: float) -> None:
    await asyncio.sleep(min(seconds, 0.001))


@dataclass
class ScriptedLink:
    """A connection: keeps what is published, gives `answers[topic]` back, ends when `cut` is called."""

    answers: dict[str, bytes] = field(default_factory=dict)
    published: list[tuple[str, bytes]] = field(default_factory=list)
    inbox: asyncio.Queue[Publish | None] = field(default_factory=asyncio.Queue)
    is_aborted: bool = False

    async def subscribe(self, topic_filter: str, qos: int) -> int:
        return qos

    async def unsubscribe(self, topic_filter: str) -> None: ...

    async def publish(self, topic: str, payload: bytes, qos: int) -> None:
        self.published.append((topic, payload))
        if topic in self.answers:
            self.inbox.put_nowait(Publish(f"{topic}/accepted", self.answers[topic]))

    async def receive(self) -> Publish:
        message = await self.inbox.get()
        if message is None:
            raise PeerError("the connection ended")
        return message

    def abort(self) -> None:
        self.is_aborted = True


@dataclass
class Shell:
    """An agent that runs as a task on a bench's board."""

    bench: AwsBench
    links: list[ScriptedLink] = field(default_factory=list)
    answers: dict[str, bytes] = field(default_factory=lambda: {NEXT_GET: NOTHING})
    refusals: int = 0
    events: list[DeviceEvent] = field(default_factory=list)

    async def connect(self) -> ScriptedLink:
        if self.refusals:
            self.refusals -= 1
            raise PeerError("nobody listens")
        self.links.append(ScriptedLink(dict(self.answers)))
        return self.links[-1]

    def start(self, *, floor_s: float = 30.0, build: AgentBuild = BUILD) -> asyncio.Task[None]:
        report = self.bench.hardware.boot()
        assert isinstance(report.slots, AbSlots)
        slots, pace = report.slots, Pace(10_000, no_wait)
        context = AppContext(
            Identity(THING, "aws-reference", "02:00:00:00:00:01", "aws-reference"),
            slots,
            self.bench.nvs,
            pace,
            random.Random(1),
            ResetReason.POWER_ON,
            lambda kind, text, facts: self.events.append(DeviceEvent(THING, kind, text, facts)),
        )
        settings = AwsOtaSettings(
            THING,
            self.connect,
            lambda _: AbPal(slots, self.bench.nvs, pace, certificate_of()),
            build=build,
            self_test_floor_s=floor_s,
        )
        agent = AwsOtaAgent(settings)
        assert isinstance(agent, SelfTestingAgent)
        return asyncio.create_task(agent.run(context))

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.002)

    def told(self, kind: EventKind) -> list[str]:
        return [event.text for event in self.events if event.kind is kind]


async def stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_it_tries_again_until_somebody_listens_and_asks_for_its_job() -> None:
    shell = Shell(AwsBench(), refusals=3)
    task = shell.start()
    await shell.until(lambda: shell.links and shell.links[0].published)
    assert shell.links[0].published == [(NEXT_GET, b'{"clientToken":"0:pump-1"}')]
    assert [text.partition(";")[0] for text in shell.told(EventKind.BREAK)] == ["nobody listens"] * 3
    await stopped(task)
    assert shell.links[0].is_aborted, "what stops says no good-bye"


async def test_a_lost_connection_suspends_it_and_a_new_one_resumes() -> None:
    shell = Shell(AwsBench())
    task = shell.start()
    await shell.until(lambda: shell.links and shell.links[0].published)
    shell.links[0].inbox.put_nowait(None)
    await shell.until(lambda: len(shell.links) == 2 and shell.links[1].published)
    assert shell.links[1].published == [(NEXT_GET, b'{"clientToken":"1:pump-1"}')]
    assert shell.links[0].is_aborted
    await stopped(task)


async def test_a_message_longer_than_its_buffer_is_dropped() -> None:
    shell = Shell(AwsBench())
    shell.answers = {NEXT_GET: job(NEW, filepath="p" * BUILD.message_max_bytes)}
    task = shell.start()
    await shell.until(lambda: shell.told(EventKind.TROUBLE))
    assert "is above the buffer's 5626: dropped" in shell.told(EventKind.TROUBLE)[0]
    assert [topic for topic, _ in shell.links[0].published] == [NEXT_GET]
    await stopped(task)


@pytest.mark.parametrize("over", [0, 1])
async def test_a_packet_that_is_one_byte_above_the_network_buffer_is_thrown_away(over: int) -> None:
    answer = job(NEW)
    exact = len(pack_packet(Publish(f"{NEXT_GET}/accepted", answer)))
    shell = Shell(AwsBench())
    shell.answers = {NEXT_GET: answer}
    task = shell.start(build=replace(BUILD, packet_max_bytes=exact - over))
    await shell.until(lambda: shell.told(EventKind.TROUBLE) or (shell.links and shell.links[0].published[1:]))
    dumped = f"Incoming packet will be dumped: Packet length={exact}, network buffer size={exact - 1}."
    assert shell.told(EventKind.TROUBLE) == ([dumped] if over else [])
    await stopped(task)


async def test_messages_of_other_topics_are_nothing_to_it() -> None:
    shell = Shell(AwsBench())
    task = shell.start()
    await shell.until(lambda: shell.told(EventKind.SERIAL))
    before = len(shell.events)
    for topic in (f"$aws/things/{THING}/jobs/x/update/accepted", f"$aws/things/{THING}/streams/s/rejected/cbor", "a/b"):
        shell.links[0].inbox.put_nowait(Publish(topic, b"{}"))
    await shell.until(shell.links[0].inbox.empty)
    assert len(shell.events) == before
    await stopped(task)


async def test_without_an_answer_it_asks_again_gives_up_and_is_started_anew_by_its_app() -> None:
    shell = Shell(AwsBench())
    shell.answers = {NEXT_GET: job(NEW)}
    task = shell.start()
    await shell.until(lambda: shell.told(EventKind.TROUBLE))
    assert shell.told(EventKind.TROUBLE)[0] == "the OTA agent has shut down"
    asked = [topic for topic, _ in shell.links[0].published if topic.endswith("/get/cbor")]
    assert len(asked) == BUILD.momentum
    assert shell.links[0].published[-1][1] == b'{"status":"FAILED","statusDetails":{"reason":"aborted: 0x00000000"}}'
    await shell.until(lambda: len(shell.links) >= 2)
    await stopped(task)


async def on_trial(behaviour: str) -> Shell:
    bench = AwsBench()
    new = image("1.0.1", behaviour)
    bench.service.next_job, bench.service.data = job(new), new
    with pytest.raises(Restart):
        await bench.start()
    return Shell(bench)


async def test_a_new_image_that_never_connects_is_restarted_by_the_timer() -> None:
    shell = await on_trial("lose-network")
    with pytest.raises(Restart, match="neither accepted nor rejected") as restart:
        await shell.start(floor_s=0.05)
    assert restart.value.reason is ResetReason.WATCHDOG
    assert shell.links == []


async def test_a_new_image_that_hangs_in_its_test_is_restarted_by_the_timer() -> None:
    shell = await on_trial("never-confirm")
    details = {"self_test": "ready", "updatedBy": "0x01000000"}
    shell.answers = {NEXT_GET: job(image("1.0.1", "never-confirm"), details=details)}
    with pytest.raises(Restart, match="neither accepted nor rejected"):
        await shell.start(floor_s=0.1)
    assert b'"self_test":"active"' in shell.links[0].published[-1][1]


async def test_the_self_test_timer_does_not_run_out_faster_than_its_floor() -> None:
    shell = await on_trial("healthy")
    task = shell.start(floor_s=30.0, build=AgentBuild(self_test_s=0.01))
    await shell.until(lambda: shell.links and shell.links[0].published)
    assert not task.done()
    await stopped(task)
