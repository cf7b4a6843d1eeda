"""`flota image` with Nuvoton files, as a user runs it."""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest

from flota.cli.app import main
from flota.images.intel_hex import pack_hex
from flota.images.mcuboot import ImageKeyKind, parse_header
from flota.images.memory_map import MemoryBlock, MemoryMap
from flota.images.nuvoton import Descriptor
from flota.trust.mcuboot_signatures import verify_image
from tests.images.elf_samples import small_elf
from tests.images.mcuboot_samples import image_key
from tests.images.nuvoton_samples import m2354_program, program

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "images"


def flota(*arguments: str | Path) -> int:
    """Run the command in this process; returns its exit status."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "app_V1.0.1.bin"
    path.write_bytes(program(4097))
    return path


# --- pack -------------------------------------------------------------------------------------------------------------


def test_a_plain_program_is_padded_to_whole_pages(
    app: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out_V1.0.1.bin"
    assert flota("image", "pack", "m487", app, "-o", out, "--json") == 0
    assert out.read_bytes() == program(4097).ljust(8192, b"\xff")
    facts = json.loads(capsys.readouterr().out)
    assert facts == {"file": str(out), "size": 8192, "padding": 4095, "version": "1.0.1"}
    assert flota("image", "inspect", app, "--board", "m487") == 1
    assert flota("image", "inspect", out, "--board", "m487") == 0


@pytest.mark.parametrize("suffix", [".elf", ".hex"])
def test_what_a_linker_made_is_taken_from_address_0_on(suffix: str, tmp_path: Path) -> None:
    source, out = tmp_path / f"app{suffix}", tmp_path / "out.bin"
    data = program(600)
    held = MemoryMap((MemoryBlock(0, data),))
    source.write_bytes(small_elf([(0, data)]) if suffix == ".elf" else pack_hex(held))
    assert flota("image", "pack", "m487", source, "-o", out) == 0
    assert out.read_bytes() == data.ljust(4096, b"\xff")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(program(0x6_8001), "key and certificates", id="a byte too long"),
        pytest.param(program(base=0x7_2000), "only a programmer writes", id="the Cloner"),
        pytest.param(bytes(4096), "no address of an M487's RAM", id="zeros"),
        pytest.param(b"", "ends inside the vector table", id="empty"),
    ],
)
def test_what_no_board_takes_is_refused_and_nothing_is_written(
    data: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "app.bin", tmp_path / "out.bin"
    source.write_bytes(data)
    assert flota("image", "pack", "m487", source, "-o", out) == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_name_that_says_another_version_than_the_program_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "app.bin"
    source.write_bytes(program(600) + b"FLOTA-LAB{version=1.0.0}")
    assert flota("image", "pack", "m487", source, "-o", tmp_path / "app_V1.0.1.bin") == 0
    assert "says version 1.0.1, the program 1.0.0" in capsys.readouterr().err


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "boot.pem"
    path.write_bytes(image_key(ImageKeyKind.RSA_3072).to_pem())
    return path


@pytest.mark.parametrize(("start", "header_size"), [(0x1007_0400, 0x400), (0x1007_1000, 0x1000)])
def test_an_m2354_update_has_the_header_that_its_program_is_linked_behind(
    start: int, header_size: int, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "app.elf", tmp_path / "app_update_V1.0.1.bin"
    vectors = struct.pack("<II", 0x3004_0000, start + 0x101)
    source.write_bytes(small_elf([(start, vectors.ljust(600, b"\x42"))]))
    assert flota("image", "pack", "m2354", source, "--key", key, "--build", "7", "-o", out, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["version"], facts["header_size"]) == ("1.4.0+7", header_size)
    verified = verify_image(out.read_bytes(), [image_key(ImageKeyKind.RSA_3072).public])
    assert (verified.facts.security_counter, str(verified.facts.version)) == (0x0104_0000, "1.4.0+7")
    assert flota("image", "inspect", out, "--board", "m2354") == 0


def test_the_build_number_of_an_m2354_update_counts_seconds_unless_given(key: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "app.bin", tmp_path / "out.bin"
    source.write_bytes(m2354_program())
    before = int((datetime.now(UTC) - datetime(2020, 1, 1, tzinfo=UTC)).total_seconds())
    assert flota("image", "pack", "m2354", source, "--key", key, "-o", out) == 0
    after = int((datetime.now(UTC) - datetime(2020, 1, 1, tzinfo=UTC)).total_seconds())
    assert before <= parse_header(out.read_bytes()).version.build <= after


@pytest.mark.parametrize(
    ("data", "options", "status", "said"),
    [
        pytest.param(program(), (), 1, "RAM of the non-secure world", id="an M487's"),
        pytest.param(m2354_program(), ("--header-size", "0x1000"), 1, "another header size", id="another header"),
        pytest.param(m2354_program(0x8_FC00), (), 1, "does not fit its slot", id="too long"),
        pytest.param(b"1234", (), 1, "vector table", id="four bytes"),
        pytest.param(m2354_program(), ("--build", 1 << 32), 2, "4294967295", id="build number"),
    ],
)
def test_what_no_m2354_takes_is_not_signed(
    data: bytes,
    options: tuple[object, ...],
    status: int,
    said: str,
    key: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = tmp_path / "app.bin", tmp_path / "out.bin"
    source.write_bytes(data)
    assert flota("image", "pack", "m2354", source, "--key", key, "-o", out, *map(str, options)) == status
    assert said in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_an_m2354_update_is_signed_with_the_kind_of_key_that_its_boot_loader_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, other = tmp_path / "app.bin", tmp_path / "other.pem"
    source.write_bytes(m2354_program())
    other.write_bytes(image_key(ImageKeyKind.P256).to_pem())
    assert flota("image", "pack", "m2354", source, "--key", other, "-o", tmp_path / "out.bin") == 1
    assert "RSA-3072 only" in capsys.readouterr().err
    assert flota("image", "pack", "m2354", source, "-o", tmp_path / "out.bin") == 2


# --- inspect ----------------------------------------------------------------------------------------------------------


def test_inspect_shows_what_is_known_and_the_fit_gives_its_reasons(
    app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flota("image", "inspect", app, "--board", "pfm-m487") == 1
    said = capsys.readouterr().out
    for text in ("nuvoton-aprom, 4097 bytes", "linked for", "0x20028000", "pfm-m487: does not fit", "image pack m487"):
        assert text in said
    assert flota("image", "inspect", app, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["version"], found["mcuboot"]) == ("nuvoton-aprom", None, None)


def test_inspect_reads_a_descriptor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.bin"
    path.write_bytes(Descriptor(0xFE, 0x2FFF, reserved=0x8_0000).pack())
    assert flota("image", "inspect", path) == 0
    said = capsys.readouterr().out
    assert "0xfe, self-test" in said
    assert "at 0x80000 in the SPI flash" in said


# --- layout -----------------------------------------------------------------------------------------------------------


def test_layout_draws_the_three_pictures_of_an_update(capsys: pytest.CaptureFixture[str]) -> None:
    assert flota("image", "layout", "m487") == 0
    said = capsys.readouterr().out
    for text in (
        "1. Before",
        "2. Download",
        "cloud  ==>  SPI flash: staging bank",
        "APROM: application  ==>  SPI flash: backup bank",
        "3. Reset",
        "SPI flash: staging bank  ==>  APROM: application   (the Cloner)",
        "0x68000",
        "key, certificates",
    ):
        assert text in said
    assert flota("image", "layout", "--board", "m487") == 0
    assert capsys.readouterr().out == said


def test_layout_of_the_m2354_says_that_nothing_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert flota("image", "layout", "m2354") == 0
    said = capsys.readouterr().out
    assert "there is no rollback" in said
    assert "SD card: app secondary  ==>  internal flash: application   (MCUboot)" in said


def test_layout_as_data_has_every_memory_of_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert flota("image", "layout", "m487", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["board"], len(found["pictures"])) == ("m487", 3)
    last = found["pictures"][2]
    assert last["moves"] == [{"from": "SPI flash: staging bank", "to": "APROM: application", "by": "the Cloner"}]
    aprom = last["memories"][0]
    assert (aprom["name"], aprom["size"], aprom["holds"]["application"]) == ("APROM", 0x8_0000, "new firmware")
    assert [row["start"] for row in aprom["regions"]] == [0, 0x6_8000, 0x7_0000, 0x7_1000, 0x7_2000]


def test_layout_of_a_file_shows_where_it_goes_and_what_it_would_overwrite(
    app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flota("image", "layout", app, "--board", "m487", "--json") == 0
    memories = json.loads(capsys.readouterr().out)["pictures"][2]["memories"]
    assert memories[0]["regions"][0]["used"] == 4096  # one byte less than the file: the Cloner's count
    assert memories[2]["regions"][0]["used"] == 4097
    app.write_bytes(program(0x6_8010))
    assert flota("image", "layout", app, "--board", "m487") == 1
    said = capsys.readouterr().out
    assert "too much and KVStore both claim 0x68000 to 0x69000" in said  # the Cloner erases whole pages
    app.write_bytes(program(0x6_8001))
    assert flota("image", "layout", app, "--board", "m487") == 1
    said = capsys.readouterr().out
    assert "overlap" not in said  # this one byte more is the one that the Cloner loses
    assert "expected at most 425984 bytes, found 425985 bytes" in said
    app.write_bytes(bytes(0x9_0001))
    assert flota("image", "layout", app, "--board", "m2354") == 1
    assert "expected at most 589824 bytes, found 589825 bytes" in capsys.readouterr().out


@pytest.mark.parametrize("board", ["m487", "m2354"])
def test_the_pictures_in_the_documentation_are_what_the_command_draws(board: str, tmp_path: Path) -> None:
    drawn = tmp_path / "layout.svg"
    assert flota("image", "layout", board, "--svg", drawn) == 0
    ElementTree.fromstring(drawn.read_text())
    assert drawn.read_text() == (PICTURES / f"layout-{board}.svg").read_text()


def test_a_name_that_is_neither_file_nor_board_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert flota("image", "layout", "m488") == 2
    assert "there is no file 'm488'" in capsys.readouterr().err
    assert flota("image", "layout", "esp32-c3") == 0
