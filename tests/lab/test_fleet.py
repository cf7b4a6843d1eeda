"""Virtual devices put together from descriptions: wrong settings, one process at a time, many in one process."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from flota.errors import Conflict, InvalidInput, NotFound
from flota.images.esp_partitions import parse_csv
from flota.lab.fleet import DeviceSpec, Dialect, default_dialect, open_device, run_fleet, update_url
from flota.lab.programmer import flash_file, read_slot
from flota.lab.state_directory import StateDirectory, mac_of
from flota.protocols.http_update import parse_mac
from flota.trust.keys import PrivateKey
from flota.trust.trust_file import TrustedSigners
from flota.virtual.events import DeviceEvent, EventKind
from flota.virtual.flash import FlashViolation
from tests.virtual.images import app_image
from tests.virtual.small_ddi import SmallDdi
from tests.virtual.small_server import Answer, Request, small_server

OLD, NEW = app_image("1.0.0"), app_image("2.0.0", size=40_000)


def esp(directory: Path, name: str = "unit-1", **settings: object) -> DeviceSpec:
    return DeviceSpec(name=name, board="esp32-c3", state=directory / name, firmware=OLD, speed=500, **settings)  # type: ignore[arg-type]


async def test_a_fleet_of_several_dialects_updates_in_one_process(tmp_path: Path) -> None:
    ddi = SmallDdi(NEW)

    def handler(request: Request) -> Answer:
        if request.path.startswith("/update/"):
            done = request.headers["x-esp32-sketch-sha256"] == NEW[-32:].hex().upper()
            return Answer(304) if done else Answer(200, NEW)
        return ddi.handle(request)

    events: list[DeviceEvent] = []
    stop = asyncio.Event()

    def listen(event: DeviceEvent) -> None:
        events.append(event)
        confirmed = [each.device for each in events if each.kind is EventKind.CONFIRMED]
        if set(confirmed) == {"unit-1", "unit-2", "unit-3"}:
            stop.set()

    async with small_server(handler) as server:
        ddi.server = server
        specs = [
            esp(tmp_path, server=server.url, dialect=Dialect.DDI, poll_interval_s=20),
            esp(tmp_path, "unit-2", server=server.url, poll_interval_s=20, device_type="pump"),
            esp(tmp_path, "unit-3", server=server.url, poll_interval_s=20, token="a-device-token"),
        ]
        await asyncio.wait_for(run_fleet(specs, stop, listener=listen), 30)
        targets = {request.target for request in server.requests}
    assert "/update/pump" in targets
    assert "/update/esp32-c3/unit-3?token=a-device-token" in targets
    for name in ("unit-1", "unit-2", "unit-3"):
        assert read_slot(StateDirectory(tmp_path / name), "running") == ("ota_1", NEW)


async def test_generic_linux_updates_over_ddi_and_read_slot_gives_the_file(tmp_path: Path) -> None:
    file = random.Random(1).randbytes(150_000)
    ddi = SmallDdi(file, version="7")
    stop = asyncio.Event()
    events: list[DeviceEvent] = []

    def listen(event: DeviceEvent) -> None:
        events.append(event)
        if event.kind is EventKind.REPORTED:
            stop.set()

    async with small_server(ddi.handle) as server:
        ddi.server = server
        spec = DeviceSpec(
            "unit-1",
            "generic-linux",
            tmp_path / "box",
            server=server.url,
            firmware=b"old",
            firmware_version="6",
            speed=500,
        )
        await asyncio.wait_for(run_fleet([spec], stop, listener=listen), 30)
    assert [event.facts["version"] for event in events if event.kind is EventKind.BOOT] == ["6", "7"]
    assert read_slot(StateDirectory(tmp_path / "box"), "b") == ("b", file)


async def test_a_broken_flash_rule_ends_the_fleet_loudly(tmp_path: Path) -> None:
    stop = asyncio.Event()

    def listen(event: DeviceEvent) -> None:
        raise FlashViolation("planted", address=0, length=0)

    with pytest.raises(FlashViolation, match="planted"):
        await asyncio.wait_for(run_fleet([esp(tmp_path)], stop, listener=listen), 10)


async def test_a_device_runs_in_one_process_only(tmp_path: Path) -> None:
    first = open_device(esp(tmp_path), lambda event: None)
    with pytest.raises(Conflict, match="is running"):
        open_device(esp(tmp_path), lambda event: None)
    await first.close()
    again = open_device(esp(tmp_path), lambda event: None)
    await again.close()


async def test_a_directory_belongs_to_one_board(tmp_path: Path) -> None:
    await open_device(esp(tmp_path), lambda event: None).close()
    with pytest.raises(Conflict, match="another board"):
        open_device(DeviceSpec("unit-1", "generic-linux", tmp_path / "unit-1"), lambda event: None)


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    signers = TrustedSigners.of([PrivateKey.generate("ed25519").public_pem])
    with pytest.raises(InvalidInput, match="cannot check signatures"):
        open_device(esp(tmp_path, signers=signers), lambda event: None)
    with pytest.raises(InvalidInput, match="speaks DDI only"):
        open_device(DeviceSpec("a", "generic-linux", tmp_path, dialect=Dialect.HTTP_UPDATE), lambda event: None)
    with pytest.raises(NotFound):
        open_device(DeviceSpec("a", "no-such-board", tmp_path), lambda event: None)


def test_urls_and_dialects_have_their_defaults(tmp_path: Path) -> None:
    assert default_dialect("esp32-c3") is Dialect.HTTP_UPDATE
    assert default_dialect("generic-linux") is Dialect.DDI
    assert update_url(esp(tmp_path, server="http://h:1/", device_type="my type")) == "http://h:1/update/my%20type"


def test_a_mac_is_stable_and_locally_administered() -> None:
    assert parse_mac(mac_of("pump-1")) == mac_of("pump-1")
    assert mac_of("pump-1") != mac_of("pump-2")
    assert mac_of("pump-1").startswith("02:")


# --- the programmer ---------------------------------------------------------------------------------------------------


def programmed(tmp_path: Path, data: bytes, **settings: object) -> tuple[StateDirectory, str]:
    directory = StateDirectory(tmp_path / "unit")
    record = directory.introduce("esp32-c3")
    return directory, flash_file(directory, record, data, **settings)  # type: ignore[arg-type]


def test_an_app_goes_to_the_first_slot_and_reads_back_exactly(tmp_path: Path) -> None:
    directory, where = programmed(tmp_path, NEW)
    assert "ota_0 at 0x20000" in where
    assert read_slot(directory, "ota_0") == ("ota_0", NEW)
    assert read_slot(directory, "running") == ("ota_0", NEW)


def test_a_file_with_bytes_after_the_image_reads_back_exactly(tmp_path: Path) -> None:
    file = NEW + b"tail that no header announces\xff\xff"
    directory, _ = programmed(tmp_path, file)
    assert read_slot(directory, "ota_0")[1] == file


LARGE = "otadata,data,ota,0xe000,0x2000\napp0,app,ota_0,0x10000,0x300000\napp1,app,ota_1,0x310000,0x300000\n"


async def test_a_new_device_gets_a_flash_that_its_table_fits_into_and_keeps_it(tmp_path: Path) -> None:
    spec = esp(tmp_path, table=parse_csv(LARGE))
    for again in (spec, replace(spec, table=None)):
        device = open_device(again, lambda event: None)
        await device.close()
    assert (spec.state / "flash.bin").stat().st_size == 8 << 20
    assert read_slot(StateDirectory(spec.state), "app0") == ("app0", OLD)


def test_a_table_for_a_larger_flash_does_not_go_into_an_old_device(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="larger flash"):
        programmed(tmp_path, NEW, table=parse_csv(LARGE))


def test_any_bytes_go_to_an_address(tmp_path: Path) -> None:
    directory, where = programmed(tmp_path, b"\0" * 100, address=0x3F0000)
    assert where == "100 bytes to 0x3f0000"
    assert directory.require_record().board == "esp32-c3"


def test_a_file_without_a_place_needs_an_address(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="where this file belongs"):
        programmed(tmp_path, b"\x7fELF" + bytes(100))


def test_the_users_own_table_decides_where_the_app_goes(tmp_path: Path) -> None:
    table = parse_csv("otadata,data,ota,0x9000,0x2000,\nota_0,app,ota_0,0x100000,1M,\nota_1,app,ota_1,0x200000,1M,\n")
    directory, where = programmed(tmp_path, NEW, table=table)
    assert "0x100000" in where
    assert read_slot(directory, "ota_0")[1] == NEW


def test_erase_forgets_everything_but_who_the_device_is(tmp_path: Path) -> None:
    directory, _ = programmed(tmp_path, OLD)
    directory.nvs().set("x", 1)
    flash_file(directory, directory.require_record(), NEW, erase=True)
    assert directory.nvs().get("x") is None
    assert read_slot(directory, "running")[1] == NEW


def test_slots_that_are_not_there_are_named(tmp_path: Path) -> None:
    directory, _ = programmed(tmp_path, NEW)
    with pytest.raises(InvalidInput, match="ota_0, ota_1"):
        read_slot(directory, "ota_7")
    with pytest.raises(NotFound, match="no virtual device"):
        read_slot(StateDirectory(tmp_path / "nowhere"), "ota_0")


def test_a_directory_of_another_make_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "device.json").write_text(json.dumps({"unknown": 1}))
    with pytest.raises(InvalidInput, match="does not describe a virtual device"):
        StateDirectory(tmp_path).introduce("esp32-c3")
