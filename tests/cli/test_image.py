from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flota.boards.catalogue import MICRO_RDK_8MB_CSV, TWO_OTA_4MB_CSV
from flota.cli.app import main
from flota.cli.image_view import memory_bar
from flota.images.esp_app import parse_app
from flota.images.esp_chips import chip_named
from flota.images.esp_partitions import parse_csv, parse_table
from flota.images.esp_secure_boot import public_key_digest
from flota.images.esp_verify import verify_app
from flota.images.inspection import inspect
from flota.images.model import Region
from tests.images.esp_samples import bootloader_of, merged_image, sample_app
from tests.images.signed_samples import p256_key, pem_of, signed

ELF = Path(__file__).resolve().parents[2] / "examples" / "firmware" / "built" / "sample-2.0.0.elf"


def flota(*arguments: str | Path) -> int:
    """Run the command in this process; returns its exit status."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture
def app_file(tmp_path: Path) -> Path:
    path = tmp_path / "app.bin"
    path.write_bytes(sample_app())
    return path


def test_inspect_shows_facts_bar_and_regions(app_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert flota("image", "inspect", app_file) == 0
    said = capsys.readouterr().out
    for text in ("esp-app", "ESP32-C3", "pump", "1.2.3", "segment 0 (DROM)", "[D", "SHA-256"):
        assert text in said


def test_inspect_json_is_the_same_as_data(app_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert flota("image", "inspect", app_file, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    found = inspect(app_file.read_bytes())
    assert (said["file"], said["format"], said["chip"], said["version"]) == ("app.bin", "esp-app", "esp32-c3", "1.2.3")
    assert said["validation_hash"] == found.validation_hash
    assert len(said["regions"]) == len(found.regions)


def test_a_file_name_that_is_no_text_is_shown_cleaned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/fir\x1b[31m\xffware.bin"))
    path.write_bytes(sample_app())
    assert flota("image", "inspect", path) == 0
    assert capsys.readouterr().out.startswith("fir\ufffd[31m\ufffdware.bin: esp-app")


def test_a_damaged_file_is_shown_and_the_exit_status_is_1(app_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app_file.write_bytes(app_file.read_bytes()[:-1] + b"x")
    assert flota("image", "inspect", app_file) == 1
    said = capsys.readouterr().out
    for text in ("error: the appended SHA-256 is wrong", "offset:", "expected:", "found:"):
        assert text in said


def test_inspect_says_whether_a_file_suits_a_board(
    app_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flota("image", "inspect", app_file, "--board", "esp32-c3") == 0
    assert "esp32-c3: fits" in capsys.readouterr().out
    assert flota("image", "inspect", app_file, "--board", "esp32-s3", "--json") == 1
    assert json.loads(capsys.readouterr().out)["fit"]["reasons"][0]["code"] == "wrong-chip"
    table = tmp_path / "partitions.csv"
    table.write_text(TWO_OTA_4MB_CSV)
    merged = tmp_path / "merged.bin"
    merged.write_bytes(merged_image())
    assert flota("image", "inspect", merged, "--board", "esp32-c3", "--partitions", table) == 1
    assert "merged image cannot be an update" in capsys.readouterr().out


def test_wrong_use_is_status_2_and_an_unknown_board_is_a_clear_error(
    app_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flota("image", "inspect", tmp_path / "absent.bin") == 2
    assert flota("image", "inspect", app_file, "--partitions", app_file) == 2
    assert flota("image", "pack", "esp-app", "0x0", "--chip", "esp32-c3", "-o", tmp_path / "x") == 2
    capsys.readouterr()
    assert flota("image", "inspect", app_file, "--board", "esp33") == 1
    assert "esp32-c61" in capsys.readouterr().err


def test_an_elf_is_packed_into_an_app(tmp_path: Path) -> None:
    out = tmp_path / "app.bin"
    assert (
        flota(
            "image",
            "pack",
            "esp-app",
            ELF,
            "--chip",
            "esp32-c3",
            "--version",
            "4.5.6",
            "--project",
            "pump",
            "--secure-version",
            "2",
            "--pad-to",
            "1M",
            "-o",
            out,
        )
        == 0
    )
    packed = out.read_bytes()
    verify_app(packed, chip=chip_named("esp32-c3"))
    desc = parse_app(packed).app_desc
    assert desc is not None
    assert (desc.version, desc.project, desc.secure_version, len(packed)) == ("4.5.6", "pump", 2, 1 << 20)


def test_raw_pieces_are_packed_into_an_app(tmp_path: Path) -> None:
    code, ram, out = tmp_path / "code", tmp_path / "ram", tmp_path / "app.bin"
    code.write_bytes(b"\x13\0\0\0" * 9)
    ram.write_bytes(b"ram!")
    pieces = (f"0x42000020:{code}", f"0x40380000:{ram}")
    identity = ("--version", "1", "--project", "p")
    assert flota("image", "pack", "esp-app", *pieces, "--chip", "esp32-c3", *identity, "-o", out) == 2
    assert (
        flota("image", "pack", "esp-app", *pieces, "--entry", "0x42000020", "--chip", "esp32-c3", *identity, "-o", out)
        == 0
    )
    verify_app(out.read_bytes(), chip=chip_named("esp32-c3"))


def test_what_cannot_be_packed_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "text"
    source.write_bytes(b"no ELF")
    assert flota("image", "pack", "esp-app", source, "--chip", "esp32-c3", "-o", tmp_path / "app.bin") == 1
    assert "not an ELF file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_a_table_goes_from_csv_to_binary_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, binary, again = tmp_path / "a.csv", tmp_path / "a.bin", tmp_path / "b.csv"
    text.write_text(MICRO_RDK_8MB_CSV)
    assert flota("image", "partitions", text, "-o", binary, "--flash-size", "8MB") == 0
    assert flota("image", "partitions", binary, "-o", again) == 0
    assert parse_table(binary.read_bytes()) == parse_csv(MICRO_RDK_8MB_CSV) == parse_csv(again.read_bytes())
    capsys.readouterr()
    assert flota("image", "partitions", binary, "--json") == 0
    assert json.loads(capsys.readouterr().out)[-1]["offset"] == 0x3A0000
    assert flota("image", "partitions", text, "--flash-size", "4MB") == 1
    assert "beyond the flash" in capsys.readouterr().err


def test_an_app_is_checked_against_the_slots_of_a_table(
    app_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "t.csv"
    table.write_text(TWO_OTA_4MB_CSV)
    assert flota("image", "partitions", table, "--check", app_file) == 0
    app_file.write_bytes(sample_app().ljust(2 << 20, b"\xff"))
    assert flota("image", "partitions", table, "--check", app_file) == 1
    assert "larger than the smallest slot" in capsys.readouterr().out


def test_the_bar_gives_each_column_to_the_region_with_most_of_it() -> None:
    regions = [Region("a", 0, 40, "ram"), Region("b", 50, 50, "flash-code")]
    assert memory_bar(regions, 100, 10) == "RRRR CCCCC"
    assert memory_bar(regions, 100, 3) == "RCC"
    assert memory_bar([Region("a", 0, 1, "raw")], 1, 4) == "▒▒▒▒"
    assert memory_bar([], 0, 4) == "    "


def test_a_string_of_nvs_is_written_and_read_and_credentials_are_never_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "nvs.bin", tmp_path / "new.bin"
    assert flota("image", "nvs", "create", "24K", "VIAM_NS", "OTA_VERSION", "v1", "-o", first) == 0
    assert first.stat().st_size == 24 * 1024
    assert flota("image", "nvs", "set", first, "VIAM_NS", "ROBOT_SECRET", "hunter2", "-o", second) == 0
    assert flota("image", "nvs", "set", second, "VIAM_NS", "OTA_VERSION", "v2", "-o", second) == 0
    capsys.readouterr()
    assert flota("image", "nvs", "get", second, "VIAM_NS", "OTA_VERSION") == 0
    assert capsys.readouterr().out == "v2\n"
    assert flota("image", "nvs", "get", second, "VIAM_NS", "ROBOT_SECRET") == 1
    assert flota("image", "inspect", second) == 0
    said = capsys.readouterr()
    assert "hunter2" not in said.out + said.err
    assert "ROBOT_SECRET (string)" in said.out


def test_a_table_with_boot_loader_rows_needs_their_offsets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, packed = tmp_path / "t.csv", tmp_path / "t.bin"
    table.write_text("b,bootloader,primary,,\nnvs,data,nvs,,24K\nr,bootloader,recovery,,\n")
    assert flota("image", "partitions", table) == 1
    assert "--primary-bootloader-offset" in capsys.readouterr().err
    offsets = ("--primary-bootloader-offset", "0x1000", "--recovery-bootloader-offset", "0x3f0000")
    assert flota("image", "partitions", table, *offsets, "-o", packed) == 0
    assert [row.offset for row in parse_table(packed.read_bytes()).partitions] == [0x1000, 0x9000, 0x3F0000]


def test_an_app_is_checked_against_the_boot_loader_of_the_board(
    app_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bootloader = tmp_path / "boot.bin"
    bootloader.write_bytes(bootloader_of("esp32-c3"))
    assert flota("image", "inspect", app_file, "--board", "esp32-c3", "--bootloader", bootloader) == 0
    assert "does not say" in capsys.readouterr().err
    assert flota("image", "inspect", app_file, "--board", "esp32-c3", "--bootloader", app_file) == 1
    assert "no boot loader for the board" in capsys.readouterr().err
    assert flota("image", "inspect", app_file, "--bootloader", bootloader) == 2


def test_an_esp_image_is_verified_against_trusted_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, ours, theirs = tmp_path / "signed.bin", tmp_path / "ours.pem", tmp_path / "theirs.pem"
    image.write_bytes(signed(sample_app(), p256_key(1)))
    ours.write_text(pem_of(p256_key(1)))
    theirs.write_text(pem_of(p256_key(2)))
    digest = public_key_digest(ours.read_bytes())
    assert flota("image", "verify", image, "--public-key", theirs, "--public-key", ours) == 0
    assert f"ECDSA P-256 key with the digest {digest}" in capsys.readouterr().out
    assert flota("image", "verify", image, "--public-key", ours, "--json") == 0
    assert json.loads(capsys.readouterr().out)["key_digest"] == digest
    assert flota("image", "verify", image, "--public-key", theirs) == 1
    assert "no signature is of a trusted key" in capsys.readouterr().err
    image.write_bytes(sample_app())
    assert flota("image", "verify", image, "--public-key", ours) == 1
    assert "no Secure Boot v2 signature" in capsys.readouterr().err
    assert flota("image", "verify", image, "--public-key", image) == 1
