"""The third party's sketch for BW16: it takes the bare image and its sum, and has a dangerous moment of its own."""

from __future__ import annotations

import asyncio

import pytest

from flota.images.ameba.segment import IMAGE2_SIGNATURE
from flota.protocols.ameba_push import ANCHOROTA, ARDUINO, PushOutcome, judge_push, payload_for, push_stream_start
from flota.transports.ameba_push import PushLimits, push
from flota.virtual.agents.ameba_anchorota import AnchorotaAgent
from flota.virtual.agents.ameba_push import PushSettings
from flota.virtual.ameba_board import AmebaHardware
from flota.virtual.boot.ameba import BootEnd
from tests.virtual.ameba_devices import LiveBoard, blank_board, image_of, running

LIMITS = PushLimits(connect_s=5, stall_s=5, close_s=2)


def agent(ports: asyncio.Queue[int]) -> AnchorotaAgent:
    settings = PushSettings(port=0, receive_limit_s=0.5)
    return AnchorotaAgent(settings, on_listening=lambda _, port: ports.put_nowait(port))


def programmed() -> AmebaHardware:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    return hardware


async def sent(board: LiveBoard, port: int, data: bytes) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    await writer.drain()
    board.links.append(writer)


async def test_the_profile_sends_what_the_sketch_takes_into_ota2_and_then_into_ota1() -> None:
    ports: asyncio.Queue[int] = asyncio.Queue()
    async with running(programmed(), agent=agent(ports)) as board:
        for version in ("2.0.0", "3.0.0"):
            payload, unpacked = payload_for(ANCHOROTA, payload_for(ARDUINO, image_of(version))[0])
            assert unpacked
            record = await push("127.0.0.1", await ports.get(), payload, limits=LIMITS)
            assert judge_push(record).outcome is PushOutcome.DELIVERED
            await board.seen(f"version {version}")
    assert board.boots() == ["ota1", "ota2", "ota1"]
    assert board.hardware.image_in("ota1") == image_of("3.0.0")


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"\1" + push_stream_start(image_of("2.0.0"))[1:] + image_of("2.0.0"), id="another sum in front"),
        pytest.param(
            push_stream_start(image_of("2.0.0")) + image_of("2.0.0")[:-1] + b"\0", id="a wrong byte in the image"
        ),
        pytest.param(push_stream_start(image_of("2.0.0")) + image_of("2.0.0")[:9000], id="silence in the image"),
    ],
)
async def test_a_wrong_sum_or_a_short_stream_gives_the_old_slot_back(stream: bytes) -> None:
    ports: asyncio.Queue[int] = asyncio.Queue()
    async with running(programmed(), agent=agent(ports)) as board:
        await sent(board, await ports.get(), stream)
        await board.seen("the update failed" if len(stream) < 10_000 else "the sum is wrong")
        board.device.press_reset()
        await ports.get()
    assert board.boots() == ["ota1", "ota1"]
    assert board.hardware.read(board.layout.ota2, 4) == bytes(4)


async def test_a_power_cut_while_ota2_is_written_leaves_a_board_that_never_starts_again() -> None:
    """The signature is written first: the boot loader takes half an image for a whole one."""
    ports: asyncio.Queue[int] = asyncio.Queue()
    hardware = programmed()
    async with running(hardware, agent=agent(ports)) as board:
        image = image_of("2.0.0")
        await sent(board, await ports.get(), push_stream_start(image) + image[:2048])
        async with asyncio.timeout(30):
            while hardware.read(hardware.layout.ota2, 8) != IMAGE2_SIGNATURE:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        board.device.cut_power()
        await board.seen("nothing boots")
    assert hardware.decision().end is BootEnd.HANG
