"""`flota arduino-upload` says what the vendor's sender says, and "Client Disconnected." only when it is true."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from flota.cli.app import main
from flota.images.ameba import byte_sum, pack_ota_file
from flota.lab.sample_firmware import sample_ameba
from flota.protocols.ameba_push import push_stream_start
from tests.cli.push_peers import peer

FIRST = pack_ota_file(sample_ameba("1.0.0", size=64 * 1024))
SECOND = sample_ameba("2.0.0", size=64 * 1024)
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "arduino"


def upload(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main(["arduino-upload", *(str(argument) for argument in arguments)])
    return int(left.value.code or 0)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """The core's tools folder, with a file in misc."""
    (tmp_path / "misc").mkdir()
    (tmp_path / "misc" / "OTA_All.bin").write_bytes(FIRST)
    os.utime(tmp_path / "misc" / "OTA_All.bin", (1_000_000_000, 1_000_000_000))
    return tmp_path


def test_every_line_of_the_vendors_sender_comes_in_its_order(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tools / "misc" / "OTA_All.bin"
    with peer() as board:
        assert upload(board.port, file, "127.0.0.1") == 0
        assert bytes(board.received) == push_stream_start(FIRST) + FIRST
    told = capsys.readouterr()
    assert told.err == ""
    lines = told.out.splitlines()
    descriptor = re.search(r"success \((\d+)\) !", told.out)
    assert descriptor is not None
    assert lines == [
        "[main] Default input parameters 2 usage: <file>",
        f"[main] File {file} opened succesfully in current folder (Size: {len(FIRST)} Byte)",
        f"[computeChecksum] checksum: 0x{byte_sum(FIRST):x} ",
        f"[main] Create socket: success ({descriptor[1]}) !",
        "IP   = 127.0.0.1 [User Input / Arduino Network Port]",
        f"PORT = {board.port}",
        "[main] Connect to Server successfully!",
        "[main] Send checksum and file size first",
        "[main] Send checksum 12 byte ",
        f"[main] OTA Firmware: {file} opened successfully",
        "[main] Sending file... ",
        "." * 65,
        f"[main] Total send {len(FIRST)} bytes",
        "Client Disconnected.",
    ]


@pytest.mark.parametrize("where", ["beside", "above"])
def test_a_newer_build_is_taken_and_said(tools: Path, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    built = (tools / "misc" if where == "beside" else tools) / "km0_km4_image2.bin"
    built.write_bytes(SECOND)
    with peer() as board:
        assert upload(board.port, tools / "misc" / "OTA_All.bin", "127.0.0.1") == 0
        assert bytes(board.received[12:]) == pack_ota_file(SECOND)
    told = capsys.readouterr()
    assert "km0_km4_image2.bin is newer than OTA_All.bin: it is packed and sent instead" in told.err
    assert told.out.splitlines()[-1] == "Client Disconnected."


def test_an_older_build_and_exactly_leave_the_file_as_it_is(tools: Path) -> None:
    (tools / "km0_km4_image2.bin").write_bytes(SECOND)
    os.utime(tools / "km0_km4_image2.bin", (900_000_000, 900_000_000))
    with peer() as board:
        assert upload(board.port, tools / "misc" / "OTA_All.bin", "127.0.0.1") == 0
        assert bytes(board.received[12:]) == FIRST
    os.utime(tools / "km0_km4_image2.bin")
    with peer() as board:
        assert upload("--exactly", board.port, tools / "misc" / "OTA_All.bin", "127.0.0.1") == 0
        assert bytes(board.received[12:]) == FIRST


def test_without_a_file_in_misc_the_build_alone_is_enough(tools: Path) -> None:
    (tools / "misc" / "OTA_All.bin").unlink()
    with peer() as board:
        assert upload(board.port, tools / "misc" / "OTA_All.bin", "127.0.0.1") == 1
        assert board.connections == 0
        (tools / "km0_km4_image2.bin").write_bytes(SECOND)
        assert upload(board.port, tools / "misc" / "OTA_All.bin", "127.0.0.1") == 0


def test_a_failure_does_not_say_client_disconnected_and_exits_1(
    tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    big = pack_ota_file(sample_ameba("1.0.0", size=1_000 * 1024))
    (tools / "misc" / "OTA_All.bin").write_bytes(big)
    with peer(limit=4096) as board:
        assert upload(board.port, tools / "misc" / "OTA_All.bin", "127.0.0.1") == 1
    told = capsys.readouterr()
    assert "Client Disconnected" not in told.out
    assert "flota: failed: " in told.err
    (tools / "misc" / "OTA_All.bin").write_bytes(big[:-1])
    with peer() as board:
        assert upload(board.port, tools / "misc" / "OTA_All.bin", "127.0.0.1") == 1
        assert board.connections == 0


def test_wrong_arguments_are_wrong_use(tools: Path) -> None:
    assert upload("8082", tools / "misc" / "OTA_All.bin", "my-board") == 2
    assert upload("0", tools / "misc" / "OTA_All.bin", "127.0.0.1") == 2
    assert upload("8082", tools / "misc" / "OTA_All.bin") == 2


@pytest.mark.parametrize(("system", "key"), [("windows", "windows"), ("linux", "linux"), ("macos", "macosx")])
def test_the_recipe_for_each_system_gives_port_file_and_address_in_the_vendors_order(system: str, key: str) -> None:
    text = (EXAMPLES / f"platform.local.{system}.txt").read_text()
    (pattern,) = re.findall(rf"^tools\.ameba_d_tools\.upload\.network_pattern\.{key}=(.+)$", text, re.MULTILINE)
    assert re.findall(r'"([^"]*)"', pattern)[0] == "{flota.cmd}"
    port, file, address = re.findall(r'"([^"]*)"', pattern)[1:]
    assert port == "8082"
    assert re.sub(r"\\", "/", file) == "{runtime.tools.ameba_d_tools.path}/misc/OTA_All.bin"
    assert address == "{serial.port}"
    assert re.search(r"^flota\.cmd=\S+", text, re.MULTILINE)
