"""Virtual ESP32 with micro-RDK put together by the lab: the guide's board, configuration by file and by address."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from flota.errors import InvalidInput
from flota.images.esp_nvs import read_string
from flota.images.esp_partitions import parse_table
from flota.lab.fleet import DeviceSpec, Dialect, open_device, run_fleet
from flota.lab.programmer import read_slot
from flota.lab.sample_firmware import sample_app
from flota.lab.state_directory import StateDirectory
from flota.virtual.events import DeviceEvent, EventKind
from tests.virtual.images import app_image
from tests.virtual.small_http2 import H2Answer, small_http2
from tests.virtual.small_server import Answer, small_server
from tests.virtual.viam_bench import service

OLD = app_image("1.0.0", chip="esp32")
NEW = sample_app("2.0.0", chip="esp32", size=512 * 1024)


def rover(directory: Path, name: str, config: str | None, **settings: object) -> DeviceSpec:
    return DeviceSpec(name, "esp32", directory / name, firmware=OLD, speed=2000, viam_config=config, **settings)  # type: ignore[arg-type]


async def test_two_devices_of_the_guide_update_with_the_configuration_in_a_file_and_behind_an_address(
    tmp_path: Path,
) -> None:
    stop = asyncio.Event()
    events: list[DeviceEvent] = []

    def listen(event: DeviceEvent) -> None:
        events.append(event)
        if {each.device for each in events if each.kind is EventKind.POLL} == {"by-file", "by-address"}:
            stop.set()

    async with small_http2(lambda request: H2Answer(body=NEW)) as server:
        entry = service(f"{server.url}/fw.bin")
        (tmp_path / "machine.json").write_text(json.dumps(entry))
        machine = json.dumps({"services": [entry]}).encode()
        async with small_server(lambda request: Answer(200, machine)) as cloud:
            specs = [
                rover(tmp_path, "by-file", str(tmp_path / "machine.json")),
                rover(tmp_path, "by-address", f"{cloud.url}/machine.json"),
            ]
            await asyncio.wait_for(run_fleet(specs, stop, listener=listen), 40)
    assert len(server.requests) == 2
    for spec in specs:
        assert read_slot(StateDirectory(spec.state), "running") == ("ota_1", NEW)
        flash = (spec.state / "flash.bin").read_bytes()
        assert len(flash) == 8 << 20
        slots = [(row.label, row.offset, row.size) for row in parse_table(flash[0x8000:0x8C00]).ota_slots]
        assert slots == [("ota_0", 0x20000, 0x377000), ("ota_1", 0x3A0000, 0x377000)]
        assert read_string(flash[0x9000:0xF000], "VIAM_NS", "OTA_VERSION") == "2.0.0"
        record = StateDirectory(spec.state).require_record()
        assert record.build == "plain"


@pytest.mark.parametrize("answer", [Answer(404), Answer(200, b"no json"), Answer(200, b" " * (1 << 20) + b" {}")])
async def test_an_address_without_a_configuration_is_told_and_nothing_happens(tmp_path: Path, answer: Answer) -> None:
    stop = asyncio.Event()
    events: list[DeviceEvent] = []

    def listen(event: DeviceEvent) -> None:
        events.append(event)
        if event.kind is EventKind.BREAK:
            stop.set()

    async with small_server(lambda request: answer) as cloud:
        await asyncio.wait_for(run_fleet([rover(tmp_path, "r", f"{cloud.url}/m")], stop, listener=listen), 20)
    assert [event.kind for event in events if event.kind is EventKind.UPDATE_FAILED] == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dialect": Dialect.VIAM}, "--viam-config"),
        ({"viam_config": "x.json", "dialect": Dialect.DDI}, "do not go together"),
        ({"viam_config": "x.json", "server": "http://127.0.0.1:1"}, "leave out --server"),
        ({"viam_config": "x.json", "token": "t"}, "leave out --server and --token"),
        ({"viam_config": "x.json", "board": "generic-linux"}, "speaks DDI only"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_anything_is_made(
    tmp_path: Path, settings: dict[str, object], words: str
) -> None:
    spec = DeviceSpec(**{"name": "r", "board": "esp32", "state": tmp_path / "r", **settings})  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=words):
        open_device(spec, lambda event: None)
    assert not (tmp_path / "r").exists()


def test_the_usual_build_is_that_of_the_boards_usual_firmware(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path / "c3")
    assert directory.introduce("esp32-c3").build == "rollback"
    assert StateDirectory(tmp_path / "r").introduce("esp32").build == "plain"
