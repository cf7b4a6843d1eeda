"""Virtual AmebaD boards that fetch for themselves, from the listeners that `flota serve-ameba` runs."""

from __future__ import annotations

import asyncio

import pytest

from flota.images.ameba import pack_ota_file
from flota.protocols.ameba_http import OtaState
from flota.protocols.ameba_push import push_stream_start
from flota.transports.ameba_http import PullServer, trigger
from flota.virtual.agents.ameba_ota_http import OtaHttpAgent, OtaHttpSettings
from flota.virtual.agents.ameba_pull import (
    OTA_FINISHED,
    TASK_RUNS,
    HttpUpdateOtaAgent,
    LocalUpdateAgent,
    PullSource,
)
from flota.virtual.ameba_board import AmebaHardware
from tests.virtual.ameba_devices import LiveBoard, blank_board, image_of, running

NEW = image_of("2.0.0")
FILE = pack_ota_file(NEW)


def programmed() -> AmebaHardware:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    return hardware


async def test_http_update_ota_fetches_at_power_on_boots_ota2_and_rests_after_that() -> None:
    told: list[str] = []
    async with PullServer(FILE, tell=lambda _, text: told.append(text)).http("127.0.0.1", 0) as (host, port):
        agent = HttpUpdateOtaAgent(PullSource(host, port, "ota.bin"))
        async with running(programmed(), agent=agent) as board:
            await board.seen("version 2.0.0")
            await asyncio.sleep(0.1)
    assert board.boots() == ["ota1", "ota2"]
    assert told == ["fetches the file (/ota.bin)", f"has been sent all {len(FILE)} bytes"]
    assert board.hardware.image_in("ota2") == NEW
    assert "OTA image(08106000) checksum ok!!!" in board.serial
    assert board.serial[-1] == "[http_update_ota_task] Ready to reboot"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(FILE) + FILE, "No Content-Length in header"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/ota.bin\r\n\r\n", "200"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "size = 0"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(FILE) + FILE[:9000], "closed before the end"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(FILE) + FILE[:-1] + b"\0", "the sum is wrong"),
        (b"", "closed before"),
    ],
)
async def test_an_answer_that_the_device_cannot_read_leaves_the_old_image_running(answer: bytes, reason: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readuntil(b"\r\n\r\n") == b"GET /ota.bin HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        writer.write(answer)
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with (
        listener,
        running(programmed(), agent=HttpUpdateOtaAgent(PullSource("127.0.0.1", port, "ota.bin"))) as board,
    ):
        await board.seen(reason)
        board.device.cut_power()
        await eventually_boots(board, 2)
    assert set(board.boots()) == {"ota1"}
    assert "Ready to reboot" not in " ".join(board.serial)


async def test_without_a_server_nothing_happens_and_the_app_runs_on() -> None:
    async with running(programmed(), agent=HttpUpdateOtaAgent(PullSource("127.0.0.1", 9))) as board:
        await board.seen("cannot fetch from 127.0.0.1:9")
    assert board.boots() == ["ota1"]


@pytest.mark.parametrize("order", ["ATWO=127.0.0.1[{}]", "ATSO=127.0.0.1,{}", "wifi_update 127.0.0.1 {}"])
async def test_update_ota_local_takes_the_stream_and_leaves_the_restart_to_the_button(order: str) -> None:
    console: asyncio.Queue[str] = asyncio.Queue()
    async with (
        PullServer(FILE).tcp("127.0.0.1", 0) as (_, port),
        running(programmed(), agent=LocalUpdateAgent(console)) as board,
    ):
        console.put_nowait(order.format(port))
        await board.seen(OTA_FINISHED)
        assert board.boots() == ["ota1"]
        board.device.press_reset()
        await board.seen("version 2.0.0")
    assert board.boots() == ["ota1", "ota2"]
    lines = [line for line in board.serial if "ATSO" not in line]
    assert ("[ATSO] OK" in board.serial) == order.startswith("ATSO")
    assert lines == [
        "[ota_update_local_task] Update task start",
        "[ota_update_local_task] OTA2 address space will be upgraded",
        "[ota_update_local_task] Receive file_info done",
        "[ota_update_local_task] Receive firmware header done",
        "[ota_update_local_task] Get OTA header done",
        "[ota_update_local_task] Erase is ongoing...",
        f"[ota_update_local_task] Update file size: {len(NEW)} bytes, start addr:08106000",
        "[ota_update_local_task] Download new firmware done",
        "OTA image(08106000) checksum ok!!!",
        "[change_ota_signature] Update OTA success!",
        "[ota_update_local_task] Update OTA signature done",
        "[ota_update_local_task] Update task exit",
        OTA_FINISHED,
    ]


async def test_a_server_that_stalls_blocks_the_task_and_a_second_order_is_turned_away() -> None:
    links: list[asyncio.StreamWriter] = []

    async def stall(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(push_stream_start(FILE) + FILE[:9000])
        links.append(writer)

    listener = await asyncio.start_server(stall, "127.0.0.1", 0)
    console: asyncio.Queue[str] = asyncio.Queue()
    async with listener, running(programmed(), agent=LocalUpdateAgent(console)) as board:
        order = f"ATSO=127.0.0.1,{listener.sockets[0].getsockname()[1]}"
        console.put_nowait(order)
        await board.seen("Erase is ongoing")
        console.put_nowait(order)
        await board.seen(TASK_RUNS)
        board.device.press_reset()
        await eventually_boots(board, 2)
        for link in links:
            link.close()
    assert set(board.boots()) == {"ota1"}


async def test_a_wrong_order_is_answered_as_the_console_answers_it() -> None:
    console: asyncio.Queue[str] = asyncio.Queue()
    async with running(programmed(), agent=LocalUpdateAgent(console)) as board:
        console.put_nowait("ATSO=nowhere")
        await board.seen("[ATSO] ERROR:1")
        console.put_nowait("hello")
        await board.seen("no order to update")
        console.put_nowait("ATSO=127.0.0.1,9")
        await board.seen("cannot fetch from 127.0.0.1:9")
        await board.seen("[ota_update_local_task] Update task exit")
    assert OTA_FINISHED not in board.serial


async def test_ota_http_posts_its_state_is_triggered_fetches_and_is_idle_again() -> None:
    told: list[str] = []
    ports: asyncio.Queue[int] = asyncio.Queue()
    async with PullServer(FILE, tell=lambda _, text: told.append(text)).http("127.0.0.1", 0) as (host, port):
        agent = OtaHttpAgent(
            OtaHttpSettings(host, port, "127.0.0.1", 0, tells_version=True),
            on_listening=lambda _, where: ports.put_nowait(where),
        )
        async with running(programmed(), agent=agent) as board:
            await eventually_told(told, f"{OtaState.IDLE.value}, version 1.0.0")
            assert (await trigger("127.0.0.1", port=await ports.get())).endswith(b"start_ota")
            await eventually_told(told, f"{OtaState.IDLE.value}, version 2.0.0")
    assert board.boots() == ["ota1", "ota2"]
    wanted = iter(told)
    states = [OtaState.IDLE, OtaState.DOWNLOADING, OtaState.COMPLETED, OtaState.REBOOT]
    assert all(f"{state.value}, version 1.0.0" in wanted for state in states)


async def test_after_a_failed_download_ota_http_ignores_triggers_until_it_is_reset() -> None:
    ports: asyncio.Queue[int] = asyncio.Queue()
    broken = FILE[:-1] + b"\0"
    async with PullServer(broken).http("127.0.0.1", 0) as (host, port):
        agent = OtaHttpAgent(
            OtaHttpSettings(host, port, "127.0.0.1", 0), on_listening=lambda _, where: ports.put_nowait(where)
        )
        async with running(programmed(), agent=agent) as board:
            where = await ports.get()
            await trigger("127.0.0.1", port=where)
            await board.seen("the sum is wrong")
            await trigger("127.0.0.1", port=where)
            await board.seen("a trigger is ignored in state OTA_STATE_DOWNLOAD_FIRMWARE_COMPLETED")
    assert board.boots() == ["ota1"]


async def eventually_boots(board: LiveBoard, count: int) -> None:
    async with asyncio.timeout(30):
        while len(board.boots()) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def eventually_told(told: list[str], text: str) -> None:
    async with asyncio.timeout(30):
        while text not in told:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
