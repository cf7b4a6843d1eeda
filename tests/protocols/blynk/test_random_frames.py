"""Frames of a peer that says anything: right ones, nearly right ones, noise. Never an exception, a wrong image, a hang.

`FLOTA_BLYNK_FRAMES=2000000` makes it a million for each end.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Sequence

import pytest

from flota.protocols.blynk.catalogue import PROCEDURES, Procedure, Side
from flota.protocols.blynk.frames import pack_frame
from flota.protocols.blynk.mcu import Mcu, McuSettings
from flota.protocols.blynk.mcu_states import (
    REFERENCE,
    ApplyNow,
    ChunkArrived,
    McuPolicy,
    McuState,
    OfferMade,
    ReceivingBegan,
    VerifyImage,
)
from flota.protocols.blynk.messages import Invoke, Oneway, Result, pack_message
from flota.protocols.blynk.ncp import Ncp, NcpSettings
from flota.protocols.blynk.ncp_job import JobEnded, NcpUpdateSettings, NeedBytes, Outcome
from flota.protocols.blynk.values import Kind, Value, pack_values
from tests.protocols.blynk.bench import NEW, OLD, job_of

FRAMES = int(os.environ.get("FLOTA_BLYNK_FRAMES", "6000"))
IMAGE = bytes(range(250)) * 20
TEXTS = ["", "TMPLabcd1234", "1.2.3", "1.2.4", "ä\U0001f600", "x" * 70, "\x1b[2J"]


class Peer:
    """Makes frames; often they fit to what the end under test waits for."""

    def __init__(self, number: int, side: Side, last_msgid: Callable[[], int]) -> None:
        self.rng = random.Random(number)
        self.procedures = [one for one in PROCEDURES.values() if one.side is side]
        self.likely = [
            one for one in self.procedures if "ota" in one.name or "initialize" in one.name or "Info" in one.name
        ]
        self.last_msgid = last_msgid
        self.offset = 0

    def burst(self) -> bytes:
        rng = self.rng
        kind = rng.random()
        if kind < 0.45:
            frame = self.call()
        elif kind < 0.85:
            body = rng.choice([b"\1", b"\0", b"", b"\1", rng.randbytes(rng.randrange(6))])
            status = rng.choice([0, 0, 0, 0, 0x15, 0x13, rng.randrange(256)])
            msgid = self.last_msgid() if rng.random() < 0.8 else rng.randrange(65_536)
            frame = pack_frame(pack_message(Result(msgid, status, body)))
        else:
            frame = pack_frame(rng.randbytes(rng.randrange(1, 40)))
        if rng.random() < 0.05:
            changed = bytearray(frame)
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            frame = bytes(changed)
        if rng.random() < 0.02:
            frame = frame[: rng.randrange(len(frame))]
        return frame

    def call(self) -> bytes:
        rng = self.rng
        procedure = rng.choice(self.likely if rng.random() < 0.7 else self.procedures)
        body = pack_values(procedure.args, self.args(procedure))
        if rng.random() < 0.05:
            body = rng.randbytes(rng.randrange(20))
        if procedure.is_oneway:
            return pack_frame(pack_message(Oneway(procedure.uid, body)))
        return pack_frame(pack_message(Invoke(procedure.uid, rng.randrange(65_536), body)))

    def args(self, procedure: Procedure) -> list[Value]:
        rng = self.rng
        if procedure.name == "client.otaUpdateAvailable" and rng.random() < 0.9:
            self.offset = 0
            return ["f.bin", len(IMAGE), NEW.fw_type, NEW.version, NEW.build]
        if procedure.name == "client.otaUpdateWrite" and rng.random() < 0.9:
            offset = self.offset if rng.random() < 0.8 else rng.randrange(0, len(IMAGE))
            data = IMAGE[offset : offset + 1000]
            self.offset = (offset + len(data)) % (len(IMAGE) + 1000)
            return [offset, data, zlib.crc32(data) ^ (rng.random() < 0.1)]
        return [self.value(kind) for kind in procedure.args]

    def value(self, kind: Kind) -> Value:
        rng = self.rng
        if kind is Kind.STRING:
            return rng.choice(TEXTS)
        if kind is Kind.BINARY:
            return rng.randbytes(rng.randrange(30))
        if kind is Kind.BOOL:
            return rng.random() < 0.5
        small = rng.choice([0, 1, 9, 100])
        return small if kind in (Kind.U8, Kind.I8) else rng.choice([small, 1024, 9600, 115_200 % 65_536])


def time_goes_on(
    end: Ncp | Mcu, now: float, rng: random.Random, told: Callable[[Sequence[object], float], None]
) -> float:
    now += rng.choice([0.001, 0.05, 0.2, 6.0, 30.0 * rng.random()])
    for _ in range(200):
        deadline = end.next_deadline()
        if deadline is None or deadline > now:
            return now
        told(end.deadline_passed(now=now), now)
    raise AssertionError("deadlines that never end")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("left_to_boot_loader", [False, True])
def test_an_ncp_survives_an_mcu_that_says_anything(left_to_boot_loader: bool) -> None:
    settings = NcpSettings(update=NcpUpdateSettings(settle_s=20.0, left_to_boot_loader=left_to_boot_loader))
    ncp, now = Ncp(settings, now=0.0), 0.0
    peer = Peer(1, Side.NCP, lambda: ncp.rpc._last_msgid)
    outcomes: list[Outcome] = []

    def told(events: Sequence[object], now: float) -> None:
        for event in events:
            if isinstance(event, NeedBytes):
                told(ncp.supply(event.offset, IMAGE[event.offset : event.offset + event.length], now=now), now)
            elif isinstance(event, JobEnded):
                outcomes.append(event.outcome)
        ncp.link_commands()

    for number in range(FRAMES // 2):
        if not ncp.update.is_open:
            told(ncp.offer(job_of(IMAGE), now=now), now)
        told(ncp.receive(peer.burst(), now=now), now)
        if number % 4 == 0:
            now = time_goes_on(ncp, now, peer.rng, told)
    assert Outcome.SUCCEEDED in outcomes, "the frames were too wild to get anywhere"
    assert len(set(outcomes)) > 1


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("policy", [McuPolicy(), REFERENCE], ids=["careful", "reference"])
def test_an_mcu_survives_an_ncp_that_says_anything(policy: McuPolicy) -> None:
    mcu, now = Mcu(McuSettings(OLD, policy=policy), now=0.0), 0.0
    peer = Peer(2, Side.MCU, lambda: mcu.rpc._last_msgid)
    flash, stored = bytearray(), [0]

    def told(events: Sequence[object], now: float) -> None:
        nonlocal mcu
        for event in events:
            if isinstance(event, OfferMade):
                told([*mcu.accept(now=now), *mcu.begin(now=now)], now)
            elif isinstance(event, ReceivingBegan):
                flash.clear()
            elif isinstance(event, ChunkArrived):
                assert event.offset == len(flash), "a chunk at another place than the next"
                flash.extend(event.data)
                stored[0] += 1
                told(mcu.chunk_stored(True, now=now), now)
            elif isinstance(event, VerifyImage):
                assert len(flash) == event.size
                told(mcu.verified(bytes(flash) == IMAGE[: event.size], now=now), now)
            elif isinstance(event, ApplyNow):
                assert bytes(flash) == IMAGE[: len(flash)]
                mcu = Mcu(McuSettings(OLD, policy=policy), now=now)
        mcu.link_commands()

    for number in range(FRAMES // 2):
        told(mcu.receive(peer.burst(), now=now), now)
        if number % 4 == 0:
            now = time_goes_on(mcu, now, peer.rng, told)
        if mcu.update.state is McuState.APPLY:
            mcu = Mcu(McuSettings(OLD, policy=policy), now=now)
    assert stored[0] > FRAMES // 2000, "the frames were too wild to get anywhere"
