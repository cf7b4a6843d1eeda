from __future__ import annotations

import struct
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from flota.images.esp_app import pack_app, parse_app, walk_image
from flota.images.esp_chips import CHIP_NAMES, KIB, MIB, chip_named
from flota.images.esp_desc import EspAppDesc, pack_app_desc
from flota.images.esp_elf import app_from_elf, parse_elf
from flota.images.esp_layout import AppIdentity, MemoryPiece, PackOptions, build_app, retag_app
from flota.images.esp_verify import verify_app
from flota.images.inspection import inspect
from flota.images.model import ImageError
from tests.images.esp_samples import IDENTITY, sample_app, sample_image

C3 = chip_named("esp32-c3")
DATA, CODE, RAM = 0x3C00_0020, 0x4200_0020, 0x4038_0000
ELF = Path(__file__).resolve().parents[2] / "examples" / "firmware" / "built" / "sample-2.0.0.elf"


def esptool_image_info(path: Path, packed: bytes) -> str:
    """What esptool says about the image; the test is skipped where esptool is not installed."""
    if find_spec("esptool") is None:
        pytest.skip("esptool is not installed")
    path.write_bytes(packed)
    done = subprocess.run(
        [sys.executable, "-m", "esptool", "image-info", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", CHIP_NAMES)
def test_every_chip_takes_what_is_packed_for_it(name: str) -> None:
    packed = sample_app(name)
    verify_app(packed, chip=chip_named(name))
    found = inspect(packed)
    assert (found.chip, found.version, found.project, found.errors) == (name, "1.2.3", "pump", ())


@pytest.mark.program
@pytest.mark.parametrize("name", CHIP_NAMES)
def test_esptool_accepts_what_is_packed(name: str, tmp_path: Path) -> None:
    said = esptool_image_info(tmp_path / "app.bin", sample_app(name, options=PackOptions(pad_to=256 * KIB)))
    assert said.count("(valid)") == 2
    assert "1.2.3" in said
    assert "pump" in said


@pytest.mark.program
@pytest.mark.parametrize("pad_to", [None, 1 * MIB])
def test_esptool_accepts_what_is_packed_from_an_elf(pad_to: int | None, tmp_path: Path) -> None:
    elf = ELF.read_bytes()
    packed = app_from_elf(elf, chip="esp32-c3", version="7.8.9", project="pump", secure_version=3, pad_to=pad_to)
    said = esptool_image_info(tmp_path / "app.bin", packed)
    assert said.count("(valid)") == 2
    for text in (
        "ESP32-C3",
        "App version: 7.8.9",
        "Project name: pump",
        "Secure version: 3",
        parse_elf(elf).sha256.hex(),
    ):
        assert text in said
    assert pad_to in (None, len(packed))


@pytest.mark.program
def test_our_image_of_an_elf_maps_the_same_memory_as_esptool_s(tmp_path: Path) -> None:
    if find_spec("esptool") is None:
        pytest.skip("esptool is not installed")
    subprocess.run(
        [sys.executable, "-m", "esptool", "--chip", "esp32c3", "elf2image", "-o", str(tmp_path / "x.bin"), str(ELF)],
        check=True,
        capture_output=True,
    )

    def memory(packed: bytes) -> dict[int, int]:
        return {
            s.address + i: byte
            for s in parse_app(packed).segments
            if s.address > 0x1000_0000
            for i, byte in enumerate(s.data)
        }

    ours = memory(app_from_elf(ELF.read_bytes(), chip="esp32-c3"))
    theirs = memory((tmp_path / "x.bin").read_bytes())
    desc_hash = range(min(theirs) + 144, min(theirs) + 176)
    different = {a for a in ours.keys() | theirs.keys() if ours.get(a, 0) != theirs.get(a, 0)}
    assert different <= set(desc_hash)


def test_gaps_before_mapped_segments_are_filled_with_parts_of_ram_segments() -> None:
    ram = bytes(range(256)) * 1024
    image = build_app(
        [MemoryPiece(DATA, pack_app_desc(EspAppDesc("1", "p"))), MemoryPiece(CODE, b"code"), MemoryPiece(RAM, ram)],
        chip=C3,
        entry=CODE,
    )
    layout = walk_image(pack_app(image))
    assert [hex(s.address) for s in layout.segments] == ["0x3c000020", "0x40380000", "0x42000020", "0x4038fef0"]
    assert layout.segments[2].offset % (64 * KIB) == 0x20
    parts = [segment for segment in image.segments if RAM <= segment.address < RAM + len(ram)]
    assert b"".join(part.data for part in parts) == ram


@pytest.mark.parametrize("gap", range(0, 48, 4))
def test_mapped_segments_are_aligned_whatever_comes_before_them(gap: int) -> None:
    data = pack_app_desc(EspAppDesc("1", "p")) + bytes(64 * KIB - 256 - 48 + gap)
    pieces = [MemoryPiece(DATA, data), MemoryPiece(CODE, b"code" * 9)]
    for extra in ([], [MemoryPiece(RAM, b"ram!")], [MemoryPiece(RAM, b"ram!" * 40000)]):
        verify_app(pack_app(build_app([*pieces, *extra], chip=C3, entry=CODE)), chip=C3)


def test_a_descriptor_is_made_when_the_input_has_none_and_needs_version_and_project() -> None:
    pieces = [MemoryPiece(CODE, b"code")]
    with pytest.raises(ImageError, match="no app descriptor"):
        build_app(pieces, chip=C3, entry=CODE)
    image = build_app(pieces, chip=C3, entry=CODE, identity=replace(IDENTITY, secure_version=5))
    desc = image.app_desc
    assert desc is not None
    assert (desc.version, desc.project, desc.secure_version) == ("1.2.3", "pump", 5)


def test_a_made_descriptor_never_overwrites_data() -> None:
    with pytest.raises(ImageError, match="no room") as caught:
        build_app([MemoryPiece(DATA, b"data"), MemoryPiece(CODE, b"code")], chip=C3, entry=CODE, identity=IDENTITY)
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("pieces", "what"),
    [
        ([], "nothing to pack"),
        ([(CODE, b"")], "nothing to pack"),
        ([(CODE + 1, b"code")], "multiple of 4"),
        ([(CODE, b"codecode"), (CODE + 4, b"code")], "overlap"),
        ([(0xFFFF_FFFC, b"codecode")], "4 GiB"),
        ([(RAM + 8 * index, b"ram!") for index in range(20)], "too many segments"),
        ([(RAM, bytes(16 * MIB))], "segment length"),
    ],
)
def test_pieces_that_make_no_image_are_refused(pieces: list[tuple[int, bytes]], what: str) -> None:
    with pytest.raises(ImageError, match=what):
        build_app([MemoryPiece(*piece) for piece in pieces], chip=C3, entry=CODE, identity=IDENTITY)


@pytest.mark.parametrize(
    "options",
    [
        PackOptions(spi_mode="octal"),
        PackOptions(flash_size="3MB"),
        PackOptions(speed="48m"),
        PackOptions(page_size=32 * KIB),
        PackOptions(pad_to=1000),
        PackOptions(pad_to=1 * MIB, padding=b""),
        PackOptions(pad_to=1024),
    ],
)
def test_options_that_the_chip_does_not_have_are_refused(options: PackOptions) -> None:
    with pytest.raises(ImageError):
        sample_image(options=options)


@pytest.mark.parametrize("page_size", [8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB])
def test_a_page_size_asked_for_is_written_into_the_descriptor_and_kept_to(page_size: int) -> None:
    image = sample_image("esp32-c6", options=PackOptions(page_size=page_size))
    desc = image.app_desc
    assert desc is not None
    assert 1 << desc.page_size_log2 == page_size
    verify_app(pack_app(image), chip=chip_named("esp32-c6"))


@pytest.mark.parametrize("pad_to", [128 * KIB, 128 * KIB + 16, 1 * MIB])
@pytest.mark.parametrize("append_hash", [True, False])
def test_padding_makes_the_image_exactly_as_long_as_asked(pad_to: int, append_hash: bool) -> None:
    packed = sample_app(options=PackOptions(pad_to=pad_to, padding=b"generated", append_hash=append_hash))
    assert len(packed) == pad_to
    verify_app(packed, chip=C3)


def test_retagging_gives_a_sound_image_and_drops_the_signature() -> None:
    image = replace(sample_image(), trailer=b"signature")
    again = parse_app(pack_app(retag_app(image, AppIdentity(version="9.9"))))
    assert again.app_desc is not None
    assert (again.app_desc.version, again.app_desc.project, again.trailer) == ("9.9", "pump", b"")


# --- ELF ----------------------------------------------------------------------------------------------------


def test_an_elf_cut_anywhere_is_an_image_error() -> None:
    elf = ELF.read_bytes()
    for length in (*range(200), *range(200, len(elf) - 1, 211)):
        with pytest.raises(ImageError):
            app_from_elf(elf[:length], chip="esp32-c3", version="1", project="p")


def test_an_elf_with_any_header_byte_changed_is_an_image_or_an_image_error() -> None:
    elf = bytearray(ELF.read_bytes())
    for position in range(52):
        for value in (0, 0xFF, elf[position] ^ 1):
            bent = bytes(elf[:position]) + bytes([value]) + bytes(elf[position + 1 :])
            try:
                packed = app_from_elf(bent, chip="esp32-c3", version="1", project="p")
            except ImageError:
                continue
            parse_app(packed)


def test_an_elf_for_another_machine_is_refused_by_name() -> None:
    elf = bytearray(ELF.read_bytes())
    struct.pack_into("<H", elf, 18, 0x28)
    with pytest.raises(ImageError, match="not for an ESP chip") as caught:
        parse_elf(bytes(elf))
    assert "EM_ARM" in str(caught.value.found)


def test_sections_that_hold_more_than_the_file_or_are_too_many_are_refused() -> None:
    elf = bytearray(ELF.read_bytes())
    (table,), (row_size, count) = struct.unpack_from("<I", elf, 32), struct.unpack_from("<HH", elf, 46)
    for index in range(1, count):
        struct.pack_into("<II", elf, table + index * row_size + 16, 0, len(elf))
    with pytest.raises(ImageError, match="more than the file"):
        parse_elf(bytes(elf))
    struct.pack_into("<H", elf, 48, 0xFFFF)
    with pytest.raises(ImageError, match="too many sections"):
        parse_elf(bytes(elf))
