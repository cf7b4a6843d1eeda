"""A virtual AmebaD board takes a push as the vendor's library does, and can be bricked in all the ways it can."""

from __future__ import annotations

import asyncio

import pytest

from flota.images.ameba import byte_sum, pack_ota_file
from flota.protocols.ameba_push import PushOutcome, judge_push, push_stream_start
from flota.transports.ameba_push import PushLimits, push
from flota.virtual.agents.ameba_push import PushSettings
from tests.images.ameba_samples import km0_image
from tests.virtual.ameba_devices import LiveBoard, blank_board, image_of, put, running

LIMITS = PushLimits(connect_s=5, stall_s=5, close_s=2)


async def pushed(board: LiveBoard, payload: bytes) -> PushOutcome:
    record = await push("127.0.0.1", await board.ports.get(), payload, limits=LIMITS)
    return judge_push(record).outcome


async def sent_raw(board: LiveBoard, data: bytes, *, close: bool = True) -> None:
    """Put bytes on the wire without any care."""
    _, writer = await asyncio.open_connection("127.0.0.1", await board.ports.get())
    writer.write(data)
    await writer.drain()
    board.links.append(writer)
    if close:
        writer.close()
        await writer.wait_closed()


async def test_an_update_goes_to_ota2_and_the_next_one_to_ota1_with_the_vendors_lines() -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    async with running(hardware) as board:
        second, third = image_of("2.0.0"), image_of("3.0.0")
        assert await pushed(board, pack_ota_file(second)) is PushOutcome.DELIVERED
        await board.seen("version 2.0.0")
        assert await pushed(board, pack_ota_file(third)) is PushOutcome.DELIVERED
        await board.seen("version 3.0.0")
    assert board.boots() == ["ota1", "ota2", "ota1"]
    port = board.serial[3].split()[-1].rstrip(".")
    client = next(line for line in board.serial if "[PORT]" in line)
    assert board.serial[:24] == [
        "[beginOTA] Alloc buffer Init",
        "[beginOTA] Alloc buffer Succeed",
        "[beginOTA] <Arduino>",
        f"[beginOTA] Listening on port {port}.",
        "[beginOTA] Waiting for client ...",
        "[ota_accept_socket] [INFO] Accept connection successfully",
        "[beginOTA] OTA server connected to this client :",
        client,
        "[beginOTA] [IP]:127.0.0.1",
        "[syncOTAAddr] OTA_INDEX_1 will be upgraded",
        "[beginOTA] Current index = 1, Target index = 2",
        "[beginOTA] Receive file_info done",
        "[beginOTA] Receive firmware header done",
        "[beginOTA] Get OTA header done",
        "[beginOTA] \tErase is ongoing...",
        "[beginOTA] Erasing OTA target flash index 2...",
        f"[beginOTA] Update file size: {len(second)} bytes, start addr:08106000",
        "[beginOTA] Download new firmware done",
        "OTA image(08106000) checksum ok!!!",
        "[change_ota_signature] Update OTA success!",
        "[beginOTA] Update OTA signature done",
        "[beginOTA] Ready to reboot",
        "[beginOTA] Update task exit",
        "[beginOTA] Alloc buffer Init",
    ]
    assert hardware.image_in("ota2") == second
    assert hardware.image_in("ota1") == third
    assert hardware.read(hardware.layout.ota2, 8) == bytes(4) + b"8711"


@pytest.mark.parametrize(
    ("data", "close", "line"),
    [
        pytest.param(b"", False, "Receive firmware file_info failed", id="connects and is silent"),
        pytest.param(b"", True, "Get OTA header failed", id="closes at once"),
        pytest.param(pack_ota_file(image_of("2.0.0")), True, "Get OTA header failed", id="12 bytes missing"),
        pytest.param(
            push_stream_start(image_of("2.0.0")) + image_of("2.0.0"), True, "Get OTA header failed", id="bare image"
        ),
        pytest.param(
            (push_stream_start(b"") + pack_ota_file(image_of("2.0.0")))[:9000],
            False,
            "Download new firmware failed",
            id="stalls in the body",
        ),
        pytest.param(
            (push_stream_start(b"") + pack_ota_file(image_of("2.0.0")))[:9000],
            True,
            "checksum error!!!",
            id="closes in the body",
        ),
        pytest.param(
            push_stream_start(b"") + pack_ota_file(image_of("2.0.0"))[:-1] + b"\0",
            True,
            "checksum error!!!",
            id="a wrong byte",
        ),
    ],
)
async def test_a_failed_update_leaves_the_old_image_and_a_deaf_board(data: bytes, close: bool, line: str) -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    async with running(hardware) as board:
        await sent_raw(board, data, close=close)
        await board.seen(line)
        await board.seen("[beginOTA] Update task exit")
        assert "Ready to reboot" not in " ".join(board.serial)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", int(board.serial[3].split()[-1].rstrip(".")))
        board.device.press_reset()
        assert await pushed(board, pack_ota_file(image_of("2.0.0"))) is PushOutcome.DELIVERED
        await board.seen("version 2.0.0")
    assert board.boots() == ["ota1", "ota1", "ota2"]


async def test_trailing_bytes_and_wrong_file_information_change_nothing() -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    async with running(hardware) as board:
        await sent_raw(board, b"\xff" * 12 + pack_ota_file(image_of("2.0.0")) + b"trailing")
        await board.seen("version 2.0.0")
    assert board.boots() == ["ota1", "ota2"]


async def test_an_image_without_signature_but_with_the_right_sum_is_a_brick() -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    unsigned = b"12345678" + image_of("2.0.0")[8:]
    async with running(hardware) as board:
        await pushed(board, pack_ota_file(unsigned, opaque=True))
        await board.seen("nothing boots")
    assert "no slot has a valid signature" in " ".join(event.text for event in board.events)


async def test_a_misplaced_km4_part_hangs_the_boot_loader_although_nothing_was_wrong_on_the_wire() -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    misplaced = km0_image() + b"\xff" * 4096 + image_of("2.0.0")[4096:]
    async with running(hardware) as board:
        await pushed(board, pack_ota_file(misplaced, opaque=True))
        await board.seen("nothing boots")
    assert "the boot loader hangs" in " ".join(event.text for event in board.events)


async def test_headers_that_overrun_the_device_end_in_nothing() -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    ota = pack_ota_file(image_of("2.0.0"))
    async with running(hardware) as board:
        await sent_raw(board, bytes(12) + ota[:4] + b"\x03" + ota[5:])
        await board.seen("overrun")
        board.device.press_reset()
        await board.ports.get()
    assert board.boots() == ["ota1", "ota1"]


async def test_a_second_client_waits_and_is_never_served() -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    async with running(hardware, PushSettings(port=0, receive_limit_s=1)) as board:
        port = await board.ports.get()
        _, first = await asyncio.open_connection("127.0.0.1", port)
        await board.seen("Accept connection")
        reader, second = await asyncio.open_connection("127.0.0.1", port)
        second.write(push_stream_start(b"") + pack_ota_file(image_of("2.0.0")))
        await board.seen("Update task exit")
        with pytest.raises(ConnectionError):
            if not await reader.read(1):
                raise ConnectionResetError
        for writer in (first, second):
            writer.close()
    assert board.boots() == ["ota1"]


async def test_old_cores_always_write_ota2_even_when_it_runs() -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    settings = PushSettings(port=0, receive_limit_s=0.5, legacy_target_bug=True)
    async with running(hardware, settings) as board:
        await pushed(board, pack_ota_file(image_of("2.0.0")))
        await board.seen("version 2.0.0")
        await pushed(board, pack_ota_file(image_of("3.0.0")))
        await board.seen("nothing boots")
    assert board.boots() == ["ota1", "ota2"]


def test_serial_upload_is_not_booted_while_ota2_is_valid_and_erasing_helps() -> None:
    hardware = blank_board()
    put(hardware, 2, image_of("2.0.0"))
    hardware.flash_app(image_of("9.0.0"))
    assert hardware.running_slot() == "ota2"
    hardware.straps.force_ota1 = True
    assert hardware.running_slot() == "ota1"
    hardware.straps.force_ota1 = False
    hardware.erase_chip()
    assert hardware.blank
    hardware.flash_app(pack_ota_file(image_of("9.0.0")))
    assert hardware.running_slot() == "ota1"
    report = hardware.boot()
    assert report.app is not None
    assert report.app.version == "9.0.0"


async def test_an_image_longer_than_its_slot_overruns_what_lies_behind() -> None:
    """OTA1 as the target: user data and the running OTA2 are erased; nobody on the device checks."""
    hardware = blank_board()
    put(hardware, 2, image_of("2.0.0"))
    hardware.write_flash(hardware.layout.user_data, b"my settings")
    huge = image_of("3.0.0", 1_100_000)
    async with running(hardware, PushSettings(port=0, receive_limit_s=5)) as board:
        await pushed(board, pack_ota_file(huge))
        await board.seen("OTA image", within_s=30)
        await board.seen("version 3.0.0", within_s=30)
    assert hardware.read(hardware.layout.user_data, 11) != b"my settings"
    assert byte_sum(hardware.read(hardware.layout.ota1, len(huge))) != 0
