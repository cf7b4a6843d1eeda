"""State posts and versions that apps tell are evidence: by HTTP where the configuration says, and in announcements."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flota.errors import InvalidInput
from flota.gateway.check_ins import check_ins_heard, note_post
from flota.gateway.configuration import Patience, settings_from
from flota.gateway.driver import SightingBasis
from flota.gateway.network_watch import MacQuestions, note_announcement
from flota.gateway.sightings import SightingBook
from flota.gateway.update_states import Stage
from flota.protocols.ameba_http import OtaState, StatePost, pack_state_request
from flota.protocols.arduino_mdns import Announcement, ameba_txt
from flota.protocols.ddi import FeedbackFinished
from flota.transports.mdns import BoardHeard
from tests.gateway.benches import QUICK, bench, device, eventually, free_port, ota
from tests.virtual.ameba_devices import blank_board, image_of, running

IDLE = OtaState.IDLE.value
PATIENT = Patience(evidence_s=10, poll_s=0.05, look_s=0.02, retry_s=0.05, retry_max_s=0.1)


async def post(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(("said", "basis"), [(StatePost(IDLE), "state-post"), (StatePost(IDLE, "2.0.0"), "check-in")])
async def test_a_post_after_the_close_ends_the_update_with_its_basis(
    tmp_path: Path, said: StatePost, basis: str
) -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    place = free_port()
    async with running(hardware) as board, bench(tmp_path, ota()) as one:
        gateway = one.gateway(device(await board.ports.get()), patience=PATIENT)
        gateway.settings = replace(gateway.settings, check_ins=("127.0.0.1", place))
        stop = asyncio.Event()
        life = asyncio.create_task(gateway.run(stop))
        await eventually(lambda: (update := one.update()) is not None and update.stage is Stage.SENT)
        assert b"200 OK" in await post(place, pack_state_request("127.0.0.1", said))
        closing = await one.closing()
        stop.set()
        await life
    assert closing.finished is FeedbackFinished.SUCCESS
    assert closing.details[1] == f"basis: {basis}"


async def test_a_board_whose_app_tells_another_version_has_failed_however_often_it_announces_itself(
    tmp_path: Path,
) -> None:
    hardware = blank_board()
    hardware.flash_app(image_of("1.0.0"))
    async with (
        running(hardware) as board,
        bench(tmp_path, ota()) as one,
        one.running(device(await board.ports.get()), patience=replace(QUICK, evidence_s=1.0)) as gateway,
    ):
        await eventually(lambda: (update := one.update()) is not None and update.stage is Stage.SENT)
        hear(gateway.book, txt={"version": "1.0.0"})
        hear(gateway.book, txt={})
        closing = await one.closing()
    assert closing.finished is FeedbackFinished.FAILURE
    assert "reports version 1.0.0 after the push of 2.0.0" in closing.details[0]
    assert closing.details[1] == "basis: check-in"


@pytest.mark.parametrize("state", [state.value for state in OtaState if state is not OtaState.IDLE] + ["nonsense", ""])
def test_states_of_an_app_that_was_not_restarted_are_no_sign_of_life(state: str) -> None:
    book = SightingBook()
    assert not note_post(book, "10.0.0.1", StatePost(state, "2.0.0"), 1.0)
    assert len(book) == 0


async def test_a_version_in_an_announcement_is_a_check_in_only_when_it_came_with_it() -> None:
    book = SightingBook()
    hear(book, txt={"version": "2.0.0"}, text_age_s=60.0)
    seen = book.at("127.0.0.1")
    assert seen is not None
    assert (seen.basis, seen.version) == (SightingBasis.ANNOUNCEMENT, None)
    hear(book, txt={"version": "2.0.0"})
    seen = book.at("127.0.0.1")
    assert seen is not None
    assert (seen.basis, seen.version) == (SightingBasis.CHECK_IN, "2.0.0")


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /api/connectedclients HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /api/connectedclients HTTP/1.1\r\nContent-Length: 4\r\n\r\n\xff\xfe\xff\xfe",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /api/uploadfile HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
        b"\x00\xff\r\n\r\n",
        b"x" * 20_000 + b"\r\n\r\n",
    ],
)
async def test_nonsense_is_refused_is_no_evidence_and_the_listener_lives_on(request_: bytes) -> None:
    book = SightingBook()
    async with check_ins_heard(book, ("127.0.0.1", 0)) as (_, port):
        assert b" 200 " not in (await post(port, request_))[:20]
        assert len(book) == 0
        assert b"200 OK" in await post(port, pack_state_request("x", StatePost(IDLE, "1.2")))
        seen = book.at("127.0.0.1")
        answer = await post(port, b"GET /api/connectedclients HTTP/1.1\r\n\r\n")
    assert seen is not None
    assert seen.version == "1.2"
    entry = json.loads(answer.partition(b"\r\n\r\n")[2])["recentEntries"][0]
    assert entry["ip"] == "127.0.0.1"
    assert abs(entry["timestamp"] / 1000 - time.time()) < 60


async def test_a_port_that_is_taken_is_told_and_nothing_is_served() -> None:
    async with check_ins_heard(SightingBook(), ("127.0.0.1", 0)) as (_, port):
        with pytest.raises(InvalidInput, match=f"cannot listen at 127.0.0.1:{port}"):
            async with check_ins_heard(SightingBook(), ("127.0.0.1", port)):
                pass


@pytest.mark.parametrize(
    ("told", "place"),
    [({}, None), ({"check_ins": "3000"}, ("127.0.0.1", 3000)), ({"check_ins": "::1:3000"}, ("::1", 3000))],
)
def test_nothing_is_listened_to_unless_told_and_then_on_loopback_unless_told_otherwise(
    told: dict[str, str], place: tuple[str, int] | None
) -> None:
    settings = settings_from({"server": "http://127.0.0.1:1", **told}, {}, base=Path())
    assert settings.check_ins == place
    assert settings.metrics is None


def hear(book: SightingBook, *, txt: dict[str, str], text_age_s: float = 0.0) -> None:
    """Be a board at 127.0.0.1 that announces itself now."""
    now = time.monotonic()
    announcement = Announcement("MyAmeba", "bw16.local", 5000, ("127.0.0.1",), dict(ameba_txt()) | txt)
    questions = AsksNobody(book)
    note_announcement(book, questions, BoardHeard("MyAmeba._arduino", now, announcement, now - text_age_s))


class AsksNobody(MacQuestions):
    """Loopback has no MAC addresses to ask for."""

    def ask(self, address: str) -> None:
        """Leave it."""
