from __future__ import annotations

import json
from pathlib import Path

import pytest

from flota.cli.app import main
from flota.cli.image_layout import layout_bar, show_layout
from flota.images.esp_app import parse_app
from flota.images.esp_partitions import parse_csv
from flota.images.flash_layout import layout_of_table
from tests.images.esp_samples import bootloader_of, merged_image, sample_app
from tests.images.merge_samples import GUIDE_CSV, GUIDE_TABLE

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "layout-viam-guide.svg"


def flota(*arguments: str | Path) -> int:
    """Run the command in this process; returns its exit status."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "partitions.csv"
    path.write_text(GUIDE_CSV)
    return path


@pytest.fixture
def pieces(tmp_path: Path) -> list[str]:
    (tmp_path / "boot.bin").write_bytes(bootloader_of("esp32"))
    (tmp_path / "app.bin").write_bytes(sample_app("esp32"))
    return ["--chip", "esp32", "--bootloader", f"{tmp_path}/boot.bin", "--app", f"{tmp_path}/app.bin"]


@pytest.mark.parametrize("binary", [False, True])
def test_merge_takes_the_table_as_csv_or_binary(tmp_path: Path, table: Path, pieces: list[str], binary: bool) -> None:
    if binary:
        table.write_bytes(GUIDE_TABLE)
    out = tmp_path / "merged.bin"
    flash = ["--flash-mode", "DIO", "--flash-size", "8mb", "--flash-freq", "80M", "--pad-to", "8MB"]
    assert flota("image", "merge", *pieces, "--partitions", table, "-o", out, *flash) == 0
    merged = out.read_bytes()
    assert len(merged) == 8 << 20
    assert merged[0x20000:].startswith(sample_app("esp32"))
    header = parse_app(merged[0x1000:0x8000]).header
    assert (header.spi_mode, header.flash_size_code, header.speed_code) == (2, 3, 0xF)


def test_merge_warns_when_the_boot_loader_names_too_small_a_flash(
    tmp_path: Path, table: Path, pieces: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert flota("image", "merge", *pieces, "--partitions", table, "-o", tmp_path / "merged.bin") == 0
    assert "set it with --flash-size" in capsys.readouterr().err


def test_merge_refuses_pieces_of_two_chips_and_writes_nothing(
    tmp_path: Path, table: Path, pieces: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "app.bin").write_bytes(sample_app("esp32-s3"))
    out = tmp_path / "merged.bin"
    assert flota("image", "merge", *pieces, "--partitions", table, "-o", out) == 1
    assert not out.exists()
    assert "the app is for another chip" in capsys.readouterr().err


def test_layout_of_the_guide_s_table_prints_the_offsets_that_its_users_know(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flota("image", "layout", table, "--flash-size", "8MB") == 0
    said = capsys.readouterr().out
    for text in ("0x20000", "0x3a0000", "end 0x717000", "nvs", "free"):
        assert text in said


def test_the_picture_in_the_documentation_is_what_the_command_draws(tmp_path: Path, table: Path) -> None:
    drawn = tmp_path / "layout.svg"
    assert flota("image", "layout", table, "--board", "esp32", "--svg", drawn) == 0
    assert drawn.read_text() == PICTURE.read_text()


def test_layout_shows_overlaps_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("a,data,nvs,0x9000,0x6000\nb,data,fat,0xd000,0x3000\n")
    assert flota("image", "layout", path) == 1
    said = capsys.readouterr().out
    assert "overlap: a and b both claim 0xd000 to 0xf000" in said
    assert "flash size not said" in said


def test_overlaps_are_red_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = parse_csv("a,data,nvs,0x9000,0x6000\nb,data,fat,0xd000,0x3000\n", faulty_layout=True)
    found = layout_of_table(rows, flash_size=0x10000)
    assert layout_bar(found, 16) == "BBBBBBBBPnnnn!!d"
    show_layout("bad", found, colour=True)
    assert "\x1b[31moverlap: a and b" in capsys.readouterr().out


def test_layout_of_a_board_and_of_a_merged_image_as_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert flota("image", "layout", "--board", "esp32-c3", "--json") == 0
    assert json.loads(capsys.readouterr().out)["size"] == 4 << 20
    path = tmp_path / "merged.bin"
    path.write_bytes(merged_image())
    assert flota("image", "layout", path, "--json") == 0
    regions = json.loads(capsys.readouterr().out)["regions"]
    assert {"name": "ota_0", "used": len(sample_app())}.items() <= next(
        r for r in regions if r["used"] and r["kind"] == "app"
    ).items()


def test_layout_of_nothing_is_wrong_use_and_of_a_board_without_flash_an_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert flota("image", "layout") == 2
    assert flota("image", "layout", "--board", "generic-linux") == 1
    assert "files as slots" in capsys.readouterr().err


def test_a_board_with_an_old_table_takes_the_merged_image_and_runs_its_app(tmp_path: Path) -> None:
    old = tmp_path / "old.csv"
    old.write_text("nvs,data,nvs,0x9000,0x5000\notadata,data,ota,0xe000,0x2000\na,app,ota_0,,1M\nb,app,ota_1,,1M\n")
    new = tmp_path / "new.csv"
    new.write_text(
        "nvs,data,nvs,0x9000,0x6000\notadata,data,ota,0xf000,0x2000\na,app,ota_0,,1536K\nb,app,ota_1,,1536K\n"
    )
    for name, data in (
        ("one.bin", sample_app()),
        ("two.bin", sample_app(size=9000)),
        ("boot.bin", bootloader_of("esp32-c3")),
    ):
        (tmp_path / name).write_bytes(data)
    state, merged, out = tmp_path / "state", tmp_path / "merged.bin", tmp_path / "out.bin"
    pieces = ["--chip", "esp32-c3", "--bootloader", tmp_path / "boot.bin", "--app", tmp_path / "two.bin"]
    assert flota("lab", "flash", "esp32-c3", tmp_path / "one.bin", "--state", state, "--partitions", old) == 0
    assert flota("image", "merge", *pieces, "--partitions", new, "-o", merged) == 0
    assert flota("lab", "flash", "esp32-c3", merged, "--state", state, "--erase") == 0
    assert flota("lab", "read-slot", "--state", state, "--slot", "running", "-o", out) == 0
    assert out.read_bytes() == sample_app(size=9000)
