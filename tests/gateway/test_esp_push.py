"""ESP boards with ArduinoOTA behind a gateway: the second driver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flota.errors import InvalidInput
from flota.gateway.configuration import device_of_flag, device_of_table
from flota.gateway.driver import AdoptedDevice, DeliveryEnd, SightingBasis
from flota.gateway.esp_push import EspotaDriver, delivery_of
from flota.gateway.judgement import FILE_HEADERS_MAX_BYTES, largest_file
from flota.gateway.sightings import SightingBook
from flota.images.model import ImageError
from flota.lab.fleet import DeviceSpec, Dialect, open_device
from flota.protocols.ddi import FeedbackFinished
from flota.transports.espota import EspotaRecord, EspotaStage
from flota.virtual.agents.espota import EspotaSettings
from flota.virtual.events import DeviceEvent, EventKind
from tests.gateway.benches import Bench, bench, device, free_port, signed
from tests.virtual.images import app_image

PASSWORD = "s3cret"
NEW = app_image("2.0.0", size=60_000)
C3 = {"device_type": "esp32-c3", "board": "esp32-c3"}


@asynccontextmanager
async def esp_board(tmp_path: Path, port: int) -> AsyncIterator[list[DeviceEvent]]:
    """A virtual ESP32-C3 with a password, in this process."""
    events: list[DeviceEvent] = []
    spec = DeviceSpec(
        name="unit-1",
        board="esp32-c3",
        state=tmp_path / "unit",
        dialect=Dialect.ESPOTA,
        speed=2000,
        firmware=app_image("1.0.0"),
        firmware_version="1.0.0",
        espota=EspotaSettings(port=port, password=PASSWORD),
        announce=False,
    )
    board = open_device(spec, events.append)
    stop = asyncio.Event()
    life = asyncio.create_task(board.device.run(stop))
    try:
        yield events
    finally:
        stop.set()
        await life
        await board.close()


def adopted(port: int, **changes: object) -> AdoptedDevice:
    return device(port, driver="espota", password=PASSWORD, **C3, **changes)


async def carried(one: Bench, events: list[DeviceEvent], what: AdoptedDevice) -> None:
    """Let a gateway work; the network hears the board's boots."""
    async with one.running(what) as gateway:
        heard = 0
        while one.ddi.closing is None:
            boots = [event for event in events if event.kind is EventKind.BOOT]
            if len(boots) > max(1, heard):
                gateway.book.heard("127.0.0.1", gateway_clock(), SightingBasis.ANNOUNCEMENT)
            heard = len(boots)
            await asyncio.sleep(0.01)


def gateway_clock() -> float:
    return asyncio.get_running_loop().time()


async def test_an_esp_board_is_updated_through_the_gateway_with_its_password(tmp_path: Path) -> None:
    port = free_port()
    async with esp_board(tmp_path, port) as events, bench(tmp_path, NEW, signed(NEW, **C3)) as one:  # type: ignore[arg-type]
        async with asyncio.timeout(30):
            await carried(one, events, adopted(port))
    assert one.ddi.closing is not None
    assert one.ddi.closing.finished is FeedbackFinished.SUCCESS
    assert one.ddi.closing.details[1] == "basis: announcement"
    versions = [str(event.facts["version"]) for event in events if event.kind is EventKind.BOOT]
    assert versions == ["1.0.0", "2.0.0"]


async def test_a_wrong_password_sends_nothing_and_the_update_fails_with_the_reason(tmp_path: Path) -> None:
    port = free_port()
    async with esp_board(tmp_path, port) as events, bench(tmp_path, NEW, signed(NEW, **C3)) as one:  # type: ignore[arg-type]
        async with asyncio.timeout(30):
            await carried(one, events, device(port, driver="espota", password="wrong", **C3))
    assert one.ddi.closing is not None
    assert one.ddi.closing.finished is FeedbackFinished.FAILURE
    assert "refused the password" in one.ddi.closing.details[0]
    assert [event.facts["version"] for event in events if event.kind is EventKind.BOOT] == ["1.0.0"]


@pytest.mark.parametrize(
    ("stage", "end"),
    [
        (EspotaStage.INVITED, DeliveryEnd.NOT_CONNECTED),
        (EspotaStage.ACCEPTED, DeliveryEnd.NOT_CONNECTED),
        (EspotaStage.CONNECTED, DeliveryEnd.BROKEN),
        (EspotaStage.ALL_SENT, DeliveryEnd.BROKEN),
        (EspotaStage.CONFIRMED, DeliveryEnd.SENT),
    ],
)
def test_what_a_push_means_for_the_gateway(stage: EspotaStage, end: DeliveryEnd) -> None:
    assert delivery_of(EspotaRecord(stage, "so"), 1.0).end is end


def test_only_esp_boards_that_can_be_found_are_served_and_only_app_images_are_sent() -> None:
    driver = EspotaDriver(SightingBook())
    with pytest.raises(InvalidInput, match="takes no push of this kind"):
        driver.identify(AdoptedDevice("a", "x", "amebad", address="10.0.0.1"))
    with pytest.raises(InvalidInput, match="nothing tells which board"):
        driver.identify(AdoptedDevice("a", "x", "esp32-c3"))
    here = AdoptedDevice("a", "x", "esp32-c3", address="10.0.0.1")
    assert driver.identify(here) == "fixed address 10.0.0.1, UDP port 3232"
    assert driver.payload(here, NEW) == NEW
    with pytest.raises(ImageError):
        driver.payload(here, b"\xff" * 5000)


def test_the_driver_and_the_slots_follow_from_the_board_and_a_password_shows_in_no_repr(tmp_path: Path) -> None:
    assert device_of_flag("a=10.0.0.1,board=esp32-c3").driver == "espota"
    assert device_of_flag("a=10.0.0.1").driver == "ameba"
    (tmp_path / "word").write_text(f"{PASSWORD}\n")
    (tmp_path / "small.csv").write_text("otadata,data,ota,,0x2000\nota_0,app,ota_0,,64K\nota_1,app,ota_1,,64K\n")
    small = {"name": "a", "address": "10.0.0.1", "board": "esp32-c3", "partitions": "small.csv"}
    assert largest_file(device_of_table(small, tmp_path)) == 64 * 1024 + FILE_HEADERS_MAX_BYTES
    with pytest.raises(InvalidInput, match="cannot read"):
        device_of_table(small | {"partitions": "absent.csv"}, tmp_path)
    found = device_of_table(
        {"name": "a", "address": "10.0.0.1", "board": "esp32-c3", "password_file": "word"}, tmp_path
    )
    assert found.password == PASSWORD
    assert PASSWORD not in repr(found)
