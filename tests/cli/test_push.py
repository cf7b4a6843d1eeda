"""`flota push` refuses, before a byte is sent, what would brick a board; and tells the truth about the rest."""

from __future__ import annotations

import json
import os
import resource
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from flota.cli.app import main
from flota.images.ameba import byte_sum, pack_ota_file
from flota.lab.sample_firmware import sample_ameba, sample_app
from flota.protocols.ameba_push import push_stream_start
from flota.transports import ameba_push as transport
from tests.cli.push_peers import Peer, peer
from tests.images.ameba_samples import image2, km0_image

IMAGE = sample_ameba("2.0.0", size=64 * 1024)
FILE = pack_ota_file(IMAGE)


def flota(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def push(file: Path, to: Peer, *options: object) -> int:
    return flota("push", file, "--to", f"127.0.0.1:{to.port}", *options)


def changed(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset] + new + data[offset + len(new) :]


def with_right_sum(image: bytes) -> bytes:
    """An OTA_All.bin that a device would accept: only the sum is checked there."""
    return pack_ota_file(image, opaque=True)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "no signature at the start": (lambda: with_right_sum(changed(IMAGE, 0, b"12345678")), "signature"),
    "KM4 misplaced": (lambda: with_right_sum(km0_image() + b"\xff" * 4096 + image2()[4096:]), "KM4"),
    "KM0 alone": (km0_image, "Ship both cores"),
    "larger than the slot": (lambda: with_right_sum(sample_ameba("2.0.0", size=1_024_000 + 4096)), "larger"),
    "two images": (lambda: changed(FILE, 4, b"\x02"), "several images"),
    "no image at all": (lambda: changed(FILE, 4, b"\x00"), "wrong kind of file"),
    "a hundred images": (lambda: changed(FILE, 4, b"\x64"), "wrong kind of file"),
    "another id": (lambda: changed(FILE, 8, b"RDP\0"), "wrong kind of file"),
    "a sum that is wrong": (lambda: changed(FILE, len(FILE) - 1, b"\x00"), "sum"),
    "a length that is wrong": (lambda: changed(FILE, 20, struct.pack("<I", len(IMAGE) + 1)), "length"),
    "an offset that is wrong": (lambda: changed(FILE, 24, struct.pack("<I", 40)), "offset"),
    "trailing bytes": (lambda: FILE + b"trailing", "length"),
    "cut off": (lambda: FILE[:-4096], "length"),
    "RTKWin missing": (lambda: with_right_sum(IMAGE.replace(b"RTKWin", b"RTKLos")), "RTKWin"),
    "an odd XIP size": (lambda: with_right_sum(changed(IMAGE, 8, struct.pack("<I", 17))), "multiple of 4"),
    "empty": (lambda: b"", "empty"),
    "zeros": (lambda: bytes(100_000), "wrong kind of file"),
    "text": (lambda: b"hello\n" * 100, "wrong kind of file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_brick_a_board_or_be_refused_by_it_is_refused_before_a_byte_is_sent(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, word = REFUSED[name]
    file = tmp_path / "OTA_All.bin"
    file.write_bytes(make())
    with peer() as board:
        assert push(file, board) == 1
        assert (board.connections, board.received) == (0, b"")
    told = capsys.readouterr().err
    assert word in told, told
    assert "Traceback" not in told


def test_a_file_of_two_gigabytes_is_refused_without_being_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "huge.bin"
    with file.open("wb") as out:
        out.write(FILE)
        out.truncate(2 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with peer() as board:
        assert push(file, board) == 1
        assert board.connections == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024, "KiB"
    assert f"{2 << 30} bytes" in capsys.readouterr().err


def test_both_forms_of_a_file_reach_the_board_as_the_same_stream(tmp_path: Path) -> None:
    packed, raw = tmp_path / "OTA_All.bin", tmp_path / "km0_km4_image2.bin"
    packed.write_bytes(FILE)
    raw.write_bytes(IMAGE)
    for file in (packed, raw):
        with peer() as board:
            assert push(file, board) == 0
            assert bytes(board.received) == push_stream_start(FILE) + FILE
            assert board.received[:4] == byte_sum(FILE).to_bytes(4, "little")


def test_a_deaf_board_and_a_closed_port_are_told_with_the_port(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "OTA_All.bin"
    file.write_bytes(FILE)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert flota("push", file, "--to", f"127.0.0.1:{port}") == 1
        told = capsys.readouterr()
        assert "nothing listens there: connection refused" in told.err
        assert f"127.0.0.1:{port}" in told.out


def test_without_a_port_the_guides_is_tried_and_then_the_cores_and_both_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "OTA_All.bin"
    file.write_bytes(FILE)
    assert flota("push", file, "--to", "127.1.2.3", "--no-look") == 1
    told = capsys.readouterr()
    assert "127.1.2.3:8020" in told.out
    assert "127.1.2.3:8020: connection refused; trying the next port" in told.err
    assert "127.1.2.3:8082" in told.out


def test_an_early_close_is_a_failure_that_says_how_far_it_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "OTA_All.bin"
    file.write_bytes(pack_ota_file(sample_ameba("2.0.0", size=1_000 * 1024)))
    with peer(limit=4096) as board:
        assert push(file, board, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["outcome"] == "failed"
    assert "bytes" in found["reason"]


def test_a_half_open_link_ends_after_the_stall_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport.PushLimits.__init__, "__defaults__", (5.0, 0.5, 0.5))
    file = tmp_path / "OTA_All.bin"
    file.write_bytes(FILE)
    with peer(reads=False) as board:
        assert push(file, board, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["outcome"] == "doubtful"
    assert "half open" in found["reason"]


def test_of_two_pushes_at_once_the_board_takes_one_and_the_other_is_not_told_as_delivered(tmp_path: Path) -> None:
    """The board serves one connection and closes its listener: the second is reset, or refused."""
    file = tmp_path / "OTA_All.bin"
    file.write_bytes(FILE)
    statuses: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0), backlog=10)
    port = listener.getsockname()[1]
    both_came = threading.Barrier(3, timeout=20)

    def one_push() -> None:
        import subprocess
        import sys

        command = [sys.executable, "-m", "flota", "push", str(file), "--to", f"127.0.0.1:{port}"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            both_came.wait()
            statuses.append(process.wait(40))

    threads = [threading.Thread(target=one_push) for _ in range(2)]
    for thread in threads:
        thread.start()
    both_came.wait()
    first, _ = listener.accept()
    taken = 0
    while taken < 12 + len(FILE):
        taken += len(first.recv(65536))
    listener.close()  # what waits in the backlog is reset
    first.close()
    for thread in threads:
        thread.join(50)
    assert sorted(statuses) == [0, 1]


def test_what_is_for_esp_boards_goes_the_other_way_and_is_checked_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "app.bin"
    file.write_bytes(sample_app("2.0.0", size=80 * 1024))
    with peer() as board:
        assert push(file, board, "--board", "esp32") == 1
        assert board.connections == 0
    assert "esp32-c3" in capsys.readouterr().err
    file.write_bytes(sample_app("2.0.0", size=80 * 1024)[:-100])
    with peer() as board:
        assert push(file, board) == 1
        assert board.connections == 0


def test_a_password_for_a_board_that_takes_none_is_wrong_use(tmp_path: Path) -> None:
    file = tmp_path / "OTA_All.bin"
    file.write_bytes(FILE)
    with peer() as board:
        assert push(file, board, "--password", "x") == 2
        assert board.connections == 0


def test_a_file_that_is_not_there_is_wrong_use(tmp_path: Path) -> None:
    assert flota("push", tmp_path / "none.bin", "--to", "127.0.0.1:1") == 2
    assert os.listdir(tmp_path) == []  # noqa: PTH208
