"""Primary MCUs in a fleet: what their descriptions may say, and a life on a pseudo-terminal without an NCP."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from flota.errors import InvalidInput
from flota.lab.fleet import DeviceSpec, Dialect, default_dialect, open_device, run_fleet
from flota.lab.mcu_agents import McuOptions
from flota.lab.programmer import flash_file, read_slot
from flota.lab.sample_mcu import sample_mcu
from flota.lab.state_directory import StateDirectory
from flota.virtual.events import DeviceEvent

BOARDS = ("dual-mcu-ab", "dual-mcu-ncp")


def spec_of(board: str, directory: Path) -> DeviceSpec:
    return DeviceSpec(
        "pump-1", board, directory / "pump-1", firmware=sample_mcu("1.0.0"), mcu=McuOptions(directory / "uart")
    )


@pytest.mark.parametrize("board", BOARDS)
def test_a_primary_mcu_asks_no_server(board: str, tmp_path: Path) -> None:
    assert default_dialect(board) is Dialect.BLYNK_NCP
    with pytest.raises(InvalidInput, match="asks no server"):
        open_device(replace(spec_of(board, tmp_path), server="http://127.0.0.1:1"), print)
    with pytest.raises(InvalidInput, match="does not speak"):
        open_device(replace(spec_of(board, tmp_path), dialect=Dialect.DDI), print)


def test_no_other_board_has_a_line_to_an_ncp(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no serial line"):
        open_device(replace(spec_of("generic-linux", tmp_path), firmware=None), print)


@pytest.mark.parametrize("board", BOARDS)
async def test_without_an_ncp_the_app_runs_and_the_line_is_there(board: str, tmp_path: Path) -> None:
    told: list[DeviceEvent] = []
    stop = asyncio.Event()
    there: list[bool] = []

    def started(devices: object) -> None:
        there.append((tmp_path / "uart").is_char_device())
        asyncio.get_running_loop().call_soon(stop.set)

    await run_fleet([spec_of(board, tmp_path)], stop, listener=told.append, on_started=started)
    assert there == [True]
    assert not (tmp_path / "uart").is_symlink()


@pytest.mark.parametrize("board", BOARDS)
def test_a_programmer_writes_and_reads_the_first_slot(board: str, tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path / "pump-1")
    with directory:
        record = directory.introduce(board)
        flash_file(directory, record, sample_mcu("1.2.0"))
    name, found = read_slot(directory, "running")
    assert (name, found) == ("a" if board == "dual-mcu-ab" else "app", sample_mcu("1.2.0"))
