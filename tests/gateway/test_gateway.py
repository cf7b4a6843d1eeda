"""A gateway carries updates to boards that cannot fetch, and says only what it knows."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from flota.errors import Conflict
from flota.gateway.configuration import Patience
from flota.gateway.driver import SightingBasis
from flota.gateway.journal import Journal
from flota.gateway.update_states import Stage
from flota.protocols.ddi import FeedbackExecution, FeedbackFinished
from flota.transports.ameba_push import push
from flota.virtual.agents.ameba_push import PushSettings
from tests.gateway.benches import (
    DEVICE,
    OTHER_KEY,
    QUICK,
    accepts,
    announce_boots,
    bench,
    decisions,
    device,
    eventually,
    free_port,
    journal_text,
    ota,
    signed,
)
from tests.virtual.ameba_devices import blank_board, image_of, running
from tests.virtual.small_server import Answer, Request

MAC = "00:E0:4C:00:00:01"
PATIENT = Patience(evidence_s=10, unreachable_s=60, poll_s=0.05, look_s=0.02, retry_s=0.05, retry_max_s=0.1)


async def test_an_offer_is_pushed_and_succeeds_when_the_board_announces_itself_again(tmp_path: Path) -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    async with (
        running(hardware) as board,
        bench(tmp_path, ota()) as one,
        one.running(device(await board.ports.get())) as gateway,
    ):
        announce_boots(board, gateway)
        closing = await one.closing()
        await eventually(lambda: (update := one.update()) is not None and update.stage is Stage.TOLD)
    assert closing.finished is FeedbackFinished.SUCCESS
    assert "announced itself" in closing.details[0]
    assert closing.details[1] == "basis: announcement"
    assert board.boots() == ["ota1", "ota2"]
    assert accepts(board) == 1
    assert {one.execution for one in one.ddi.feedback} == {FeedbackExecution.PROCEEDING, FeedbackExecution.CLOSED}


async def test_a_validly_signed_release_for_a_4_mb_type_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    """Layer two of three: `release create` and `push` refuse it too."""
    file = ota(size=1_500_000)
    metadata = signed(file, device_type="big", board="amebad-4mb")
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    async with (
        running(hardware) as board,
        bench(tmp_path, file, metadata) as one,
        one.running(device(await board.ports.get())),
    ):
        closing = await one.closing()
    assert closing.finished is FeedbackFinished.FAILURE
    assert "another device type" in closing.details[0]
    assert accepts(board) == 0
    assert not one.ddi.downloads


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"board": "amebad-4mb"}, "another board"),
        ({"hardware_revision": "C"}, "another hardware revision"),
        ({"key": OTHER_KEY}, "sign"),
    ],
)
async def test_what_is_not_signed_for_this_device_is_refused(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    file = ota()
    async with bench(tmp_path, file, signed(file, **changes)) as one, one.running(device(9)):  # type: ignore[arg-type]
        closing = await one.closing()
    assert closing.finished is FeedbackFinished.FAILURE
    assert reason in closing.details[0]


async def test_an_unsigned_release_is_refused(tmp_path: Path) -> None:
    async with bench(tmp_path, ota(), {}) as one, one.running(device(9)):
        assert "not signed" in (await one.closing()).details[0]


async def test_an_image_larger_than_a_slot_is_refused_though_it_is_signed_for_the_board(tmp_path: Path) -> None:
    file = ota(size=1_100_000)
    async with bench(tmp_path, file) as one, one.running(device(9)):
        closing = await one.closing()
    assert "larger" in closing.details[0]
    assert closing.finished is FeedbackFinished.FAILURE


async def test_a_file_that_is_no_image_is_refused_though_it_is_signed(tmp_path: Path) -> None:
    file = b"not an image at all" * 100
    async with bench(tmp_path, file) as one, one.running(device(9)):
        closing = await one.closing()
    assert "wrong kind of file" in closing.details[0]
    assert one.ddi.downloads


async def test_a_board_that_is_not_heard_again_has_an_unknown_outcome_which_is_no_success(tmp_path: Path) -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    async with running(hardware) as board, bench(tmp_path, ota()) as one, one.running(device(await board.ports.get())):
        closing = await one.closing()
    assert closing.finished is FeedbackFinished.FAILURE
    assert "outcome is unknown" in closing.details[0]
    assert closing.details[1] == "basis: unknown"


@pytest.mark.parametrize(("says", "finished"), [("2.0.0", "success"), ("1.0.0", "failure")])
async def test_the_version_that_a_board_checks_in_with_decides(tmp_path: Path, says: str, finished: str) -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    async with (
        running(hardware) as board,
        bench(tmp_path, ota()) as one,
        one.running(device(await board.ports.get())) as gateway,
    ):
        gateway.book.heard("127.0.0.1", time.monotonic(), SightingBasis.CHECK_IN, version="1.0.0")
        await eventually(lambda: (update := one.update()) is not None and update.stage is Stage.SENT)
        gateway.book.heard("127.0.0.1", time.monotonic(), SightingBasis.ANNOUNCEMENT)
        gateway.book.heard("127.0.0.1", time.monotonic(), SightingBasis.CHECK_IN, version=says)
        closing = await one.closing()
    assert closing.finished.value == finished
    assert closing.details[1] == "basis: check-in"


async def test_a_deaf_board_is_given_up_after_its_time_and_nothing_was_sent(tmp_path: Path) -> None:
    async with bench(tmp_path, ota()) as one, one.running(device(9)):
        closing = await one.closing()
    assert closing.finished is FeedbackFinished.FAILURE
    assert "deaf until it is reset" in closing.details[0]


async def test_a_deaf_board_is_tried_again_and_gets_the_update_once_it_listens(tmp_path: Path) -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    port = free_port()
    async with bench(tmp_path, ota()) as one, one.running(device(port), patience=PATIENT) as gateway:
        await eventually(lambda: decisions(gateway, "not-connected") == 1)
        async with running(hardware, PushSettings(port=port, receive_limit_s=0.5)) as board:
            announce_boots(board, gateway)
            closing = await one.closing()
    assert closing.finished is FeedbackFinished.SUCCESS
    assert accepts(board) == 1


async def test_a_board_that_closes_early_is_tried_so_often_and_no_more(tmp_path: Path) -> None:
    connections = []

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(await reader.read(1000))
        writer.close()

    listener = await asyncio.start_server(early, "127.0.0.1", 0)
    async with (
        listener,
        bench(tmp_path, ota(size=900_000)) as one,
        one.running(device(listener.sockets[0].getsockname()[1])),
    ):
        closing = await one.closing()
        await asyncio.sleep(0.3)
    assert closing.finished is FeedbackFinished.FAILURE
    assert closing.details[1] == "basis: broke-off"
    assert len(connections) == QUICK.attempts


async def test_a_half_open_link_is_given_up_and_the_device_looked_at_again(tmp_path: Path) -> None:
    links = []

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        links.append(writer)
        await asyncio.sleep(30)

    listener = await asyncio.start_server(mute, "127.0.0.1", 0)
    async with listener, bench(tmp_path, ota(size=900_000) * 1) as one:
        async with one.running(device(listener.sockets[0].getsockname()[1])):
            closing = await one.closing()
        for link in links:
            link.close()
    assert closing.finished is FeedbackFinished.FAILURE
    assert closing.details[1] in {"basis: broke-off", "basis: unknown"}


async def test_a_push_while_another_one_is_served_breaks_and_is_done_again(tmp_path: Path) -> None:
    hardware = blank_board(speed=3)
    hardware.flash_app(image_of("1.0.0"))
    settings = PushSettings(port=free_port(), receive_limit_s=3)
    file = ota("3.0.0", 60_000)
    async with running(hardware, settings) as board, bench(tmp_path, file, signed(file, version="3.0.0")) as one:
        port = await board.ports.get()
        foreign = asyncio.create_task(push("127.0.0.1", port, ota("2.0.0", 60_000)))
        await board.seen("Erase is ongoing")
        async with one.running(device(port), patience=PATIENT) as gateway:
            announce_boots(board, gateway)
            closing = await one.closing(within_s=30)
        await foreign
    assert closing.finished is FeedbackFinished.SUCCESS
    assert board.boots() == ["ota1", "ota2", "ota1"], "the foreign image first, then ours"
    update = one.update()
    assert update is not None
    assert update.attempts == 2


async def test_a_verdict_that_could_not_be_told_is_told_after_a_restart_and_nothing_is_pushed_again(
    tmp_path: Path,
) -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    async with running(hardware) as board, bench(tmp_path, ota()) as one:
        handle = one.server.handler

        def busy(request: Request) -> Answer:
            closes = request.method == "POST" and b'"closed"' in request.body
            return Answer(503) if closes else handle(request)

        one.server.handler = busy
        port = await board.ports.get()
        async with one.running(device(port)) as gateway:
            announce_boots(board, gateway)
            await eventually(lambda: (update := one.update()) is not None and update.stage is Stage.DECIDED)
        assert one.ddi.closing is None
        one.server.handler = handle
        async with one.running(device(port)):
            closing = await one.closing()
            await eventually(lambda: (update := one.update()) is not None and update.stage is Stage.TOLD)
    assert closing.finished is FeedbackFinished.SUCCESS
    assert accepts(board) == 1


async def test_an_action_that_the_server_shows_again_after_its_verdict_is_told_again_and_never_pushed(
    tmp_path: Path,
) -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    async with (
        running(hardware) as board,
        bench(tmp_path, ota()) as one,
        one.running(device(await board.ports.get())) as gateway,
    ):
        announce_boots(board, gateway)
        await one.closing()
        await eventually(lambda: (update := one.update()) is not None and update.stage is Stage.TOLD)
        one.ddi.feedback.clear()
        again = await one.closing()
    assert again.finished is FeedbackFinished.SUCCESS
    assert accepts(board) == 1


async def test_a_push_in_which_the_gateway_died_is_doubted_and_the_device_looked_at_first(tmp_path: Path) -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    async with running(hardware) as board, bench(tmp_path, ota()) as one:
        port = await board.ports.get()
        found_by_mac = device(port, address=None, mac=MAC)
        async with one.running(found_by_mac) as gateway:
            await eventually(lambda: (update := one.update()) is not None and update.stage is Stage.OFFERED)
        journal = Journal(one.state)
        entry = journal.load(DEVICE)
        text = journal.path(DEVICE).read_text().replace('"offered"', '"intended"')
        journal.path(DEVICE).write_text(text)
        assert entry.update is not None
        async with one.running(found_by_mac) as gateway:
            await eventually(lambda: (update := one.update()) is not None and update.stage is Stage.DOUBTED)
            await eventually(lambda: len(one.ddi.downloads) > 0)
            assert accepts(board) == 0, "pushed before it was seen"
            gateway.book.heard("127.0.0.1", time.monotonic(), SightingBasis.ANNOUNCEMENT, mac=MAC)
            announce_boots(board, gateway)
            closing = await one.closing()
    assert closing.finished is FeedbackFinished.SUCCESS
    assert accepts(board) == 1


async def test_a_doubted_device_that_checks_in_with_the_version_is_not_pushed_to_again(tmp_path: Path) -> None:
    async with bench(tmp_path, ota()) as one:
        found_by_mac = device(9, address=None, mac=MAC)
        async with one.running(found_by_mac):
            await eventually(lambda: (update := one.update()) is not None and update.stage is Stage.OFFERED)
        path = Journal(one.state).path(DEVICE)
        path.write_text(path.read_text().replace('"offered"', '"intended"'))
        async with one.running(found_by_mac) as gateway:
            await eventually(lambda: (update := one.update()) is not None and update.stage is Stage.DOUBTED)
            gateway.book.heard("127.0.0.1", time.monotonic(), SightingBasis.CHECK_IN, mac=MAC, version="2.0.0")
            closing = await one.closing()
    assert closing.finished is FeedbackFinished.SUCCESS
    assert closing.details[1] == "basis: check-in"


async def test_another_board_at_the_devices_address_is_not_pushed_to(tmp_path: Path) -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    async with (
        running(hardware) as board,
        bench(tmp_path, ota()) as one,
        one.running(device(await board.ports.get(), mac=MAC)) as gateway,
    ):
        gateway.book.heard("127.0.0.1", time.monotonic(), SightingBasis.ANNOUNCEMENT, mac="00:E0:4C:00:00:02")
        await eventually(lambda: len(one.ddi.downloads) > 0)
        await asyncio.sleep(0.3)
        update = one.update()
    assert accepts(board) == 0
    assert update is not None
    assert update.stage is Stage.OFFERED


async def test_an_update_that_waits_for_its_device_can_be_canceled(tmp_path: Path) -> None:
    async with bench(tmp_path, ota()) as one, one.running(device(9, address=None, mac=MAC)):
        await eventually(lambda: (update := one.update()) is not None and update.stage is Stage.OFFERED)
        one.ddi.canceling = True
        await eventually(lambda: one.ddi.cancel_feedback)
        await eventually(lambda: (update := one.update()) is not None and update.stage is Stage.TOLD)
    assert one.ddi.cancel_feedback[0].finished is FeedbackFinished.SUCCESS


async def test_no_token_goes_to_another_address_than_the_servers(tmp_path: Path) -> None:
    async with bench(tmp_path, ota()) as one:
        thief = []
        listener = await asyncio.start_server(lambda reader, writer: thief.append(writer), "127.0.0.1", 0)
        async with listener:
            handle = one.server.handler
            elsewhere = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}".encode()
            own = one.server.url.removeprefix("http://").encode()

            def lying(request: Request) -> Answer:
                answer = handle(request)
                return Answer(answer.status, answer.body.replace(own, elsewhere), answer.headers)

            one.server.handler = lying
            async with one.running(device(9)):
                await eventually(lambda: len(one.server.requests) > 3)
        assert not thief
        assert not one.ddi.downloads


async def test_two_gateways_cannot_share_a_state_directory(tmp_path: Path) -> None:
    async with bench(tmp_path, ota()) as one, one.running(device(9, address=None, mac=MAC)):
        await eventually(lambda: one.update() is not None)
        with pytest.raises(Conflict):
            await one.gateway(device(9)).run(asyncio.Event())


async def test_a_damaged_journal_takes_its_device_out_and_nothing_is_pushed(tmp_path: Path) -> None:
    async with bench(tmp_path, ota()) as one:
        path = Journal(one.state).path(DEVICE)
        path.write_text('{"schema": 1, "entry": {"device": "unit-1", "upd')
        async with one.running(device(9)) as gateway:
            await eventually(lambda: gateway._out == {DEVICE})
    assert not one.server.requests
    assert journal_text(one.state).count("upd") == 1


async def test_the_token_is_in_no_repr_of_a_device_or_of_settings(tmp_path: Path) -> None:
    async with bench(tmp_path, ota()) as one:
        assert "secret-of-unit-1" not in repr(one.gateway(device(9)).settings)
