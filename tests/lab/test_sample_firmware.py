"""The sample firmware: real images, accepted by the vendor's tool, and the same bytes every time."""

import re
import shutil
import struct
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from flota.errors import NotFound
from flota.images.ameba import pack_ota_file, parse_image2
from flota.images.esp_app import parse_app
from flota.images.esp_chips import CHIP_NAMES
from flota.images.inspection import inspect
from flota.images.markers import find_markers
from flota.images.model import ImageError, ImageFormat
from flota.lab.sample_firmware import (
    AMEBA_BUILT_VERSIONS,
    BEHAVIOURS,
    BUILT_VERSIONS,
    SAMPLE_PROJECT,
    built_elf,
    sample_ameba,
    sample_app,
    sample_linux_file,
)

FIRMWARE = Path(__file__).resolve().parents[2] / "examples" / "firmware"
SECTOR = 4096
MIB = 1 << 20


@pytest.mark.parametrize("version", BUILT_VERSIONS)
def test_an_image_is_a_megabyte_without_findings_and_says_its_version_and_behaviour(version: str) -> None:
    found = inspect(sample_app(version))
    assert (found.format, found.file_size, found.image_size) == (ImageFormat.ESP_APP, MIB, MIB)
    assert (found.chip, found.project, found.version) == ("esp32-c3", SAMPLE_PROJECT, version)
    assert found.findings == ()
    assert found.markers == {"behaviour": BUILT_VERSIONS[version]}


@pytest.mark.program
@pytest.mark.parametrize("version", BUILT_VERSIONS)
def test_esptool_accepts_the_image(version: str, tmp_path: Path) -> None:
    file = tmp_path / "app.bin"
    file.write_bytes(sample_app(version))
    text = esptool("image-info", file)
    assert "Detected image type: ESP32-C3" in text
    assert re.search(r"Checksum: 0x[0-9a-f]{2} \(valid\)", text)
    assert re.search(r"Validation hash: [0-9a-f]{64} \(valid\)", text)
    assert f"App version: {version}" in text
    assert f"Project name: {SAMPLE_PROJECT}" in text
    assert f"Validation hash: {inspect(file.read_bytes()).validation_hash} " in text


@pytest.mark.program
def test_esptool_makes_the_same_segments_of_the_elf(tmp_path: Path) -> None:
    (tmp_path / "app.elf").write_bytes(built_elf("2.0.0"))
    esptool("--chip", "esp32c3", "elf2image", "-o", tmp_path / "app.bin", tmp_path / "app.elf")
    theirs = parse_app((tmp_path / "app.bin").read_bytes()).segments
    ours = {segment.address: segment.data for segment in parse_app(sample_app("2.0.0")).segments}
    for segment in theirs:
        if segment.address:
            same = len(segment.data) if segment.address & 0xFF00_0000 != 0x3C00_0000 else 0
            assert ours[segment.address][:same] == segment.data[:same]
            assert ours[segment.address][256 : len(segment.data)] == segment.data[256:]  # behind the descriptor


def esptool(*arguments: object) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "esptool", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if "No module named esptool" in result.stderr:
        pytest.skip("esptool is not installed")
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_same_version_gives_the_same_bytes() -> None:
    assert sample_app("2.0.0") == sample_app("2.0.0")
    assert sample_linux_file("2.0.0") == sample_linux_file("2.0.0")


def test_no_sector_of_one_version_occurs_at_its_place_in_another() -> None:
    for one, other in combinations([sample_app(version) for version in BUILT_VERSIONS], 2):
        assert all(one[at : at + SECTOR] != other[at : at + SECTOR] for at in range(0, MIB, SECTOR))


def test_a_version_that_is_not_built_is_a_built_one_with_another_descriptor() -> None:
    found = inspect(sample_app("7.1.2-rc1"))
    assert (found.version, found.markers, found.errors) == ("7.1.2-rc1", {"behaviour": "healthy"}, ())


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_any_version_can_have_any_behaviour(behaviour: str) -> None:
    assert inspect(sample_app("1.0.0", behaviour=behaviour)).markers == {"behaviour": behaviour}
    assert find_markers(sample_linux_file("1.0.0", behaviour=behaviour)) == {"behaviour": behaviour}


@pytest.mark.parametrize("chip", CHIP_NAMES)
def test_every_chip_gets_a_well_formed_image_at_its_own_addresses(chip: str) -> None:
    found = inspect(sample_app("1.0.0", chip=chip))
    assert (found.chip, found.version, found.errors) == (chip, "1.0.0", ())


@pytest.mark.parametrize("size", [80 * 1024, 131072, 262144, MIB + 16, 4 * MIB])
def test_the_image_has_exactly_the_size_that_was_asked_for(size: int) -> None:
    image = sample_app("2.0.0", size=size)
    assert len(image) == size
    assert inspect(image).errors == ()


@pytest.mark.parametrize("size", [0, 1024, MIB + 1])
def test_a_size_too_small_or_odd_is_refused(size: int) -> None:
    with pytest.raises(ImageError):
        sample_app("2.0.0", size=size)


def test_an_unknown_behaviour_or_chip_is_refused_with_the_names() -> None:
    with pytest.raises(NotFound, match="never-confirm"):
        sample_app("1.0.0", behaviour="explode")
    with pytest.raises(NotFound, match="never-confirm"):
        sample_linux_file("1.0.0", behaviour="explode")
    with pytest.raises(NotFound, match="esp32-c3"):
        sample_app("1.0.0", chip="esp99")


@pytest.mark.parametrize("version", [*AMEBA_BUILT_VERSIONS, "7.1.0"])
def test_the_ameba_image_is_a_whole_pair_of_both_cores_that_says_its_version(version: str) -> None:
    image = sample_ameba(version)
    assert sample_ameba(version) == image
    parsed = parse_image2(image)
    assert parsed.km0.segments[0].header.address == 0x0C000020
    assert parsed.km4.segments[1].header.address == 0x10005000
    behaviour = AMEBA_BUILT_VERSIONS.get(version, "healthy")
    assert find_markers(image) == {"version": version, "behaviour": behaviour}
    inspected = inspect(pack_ota_file(image))
    assert (inspected.format, inspected.errors) == (ImageFormat.AMEBA_OTA, ())


def test_the_entries_of_the_ameba_image_lie_in_the_code_of_their_core() -> None:
    image = sample_ameba("2.0.0")
    parsed = parse_image2(image)
    for core in (parsed.km0, parsed.km4):
        xip, ram = core.segments[:2]
        (entry,) = struct.unpack_from("<I", image, ram.payload_offset)
        assert entry & 1, "Thumb"
        assert xip.header.address < entry < xip.header.address + xip.header.size


@pytest.mark.parametrize("size", [12288, 65536, 1_024_000])
def test_the_ameba_image_has_exactly_the_size_that_was_asked_for(size: int) -> None:
    assert len(sample_ameba("2.0.0", size=size)) == size


@pytest.mark.parametrize("size", [0, 4096, 65537])
def test_an_ameba_image_too_small_or_not_of_whole_sectors_is_refused(size: int) -> None:
    with pytest.raises(ImageError, match="4096"):
        sample_ameba("2.0.0", size=size)


@pytest.mark.parametrize(
    ("behaviour", "status"), [("healthy", 0), ("crash", -4), ("never-confirm", 0), ("lose-network", 1)]
)
def test_the_linux_file_really_runs_and_ends_as_it_should(tmp_path: Path, behaviour: str, status: int) -> None:
    file = tmp_path / "app"
    file.write_bytes(sample_linux_file("2.1.0", behaviour=behaviour))
    result = subprocess.run(["sh", str(file)], capture_output=True, text=True, check=False)
    assert result.stdout.startswith(f"{SAMPLE_PROJECT} 2.1.0\n")
    assert result.returncode == status


def test_the_linux_file_has_its_size_and_takes_no_version_that_could_run() -> None:
    assert len(sample_linux_file("1.0.0", size=100_000)) == 100_000
    with pytest.raises(ImageError):
        sample_linux_file("1.0.0", size=10)
    for version in ('1"; rm -rf /', "$(id)", "`id`", "1\nid"):
        with pytest.raises(ImageError):
            sample_linux_file(version)


@pytest.mark.program
def test_the_committed_elf_files_are_what_the_source_gives() -> None:
    for compiler in ("riscv64-unknown-elf-gcc", "arm-none-eabi-gcc"):
        if shutil.which(compiler) is None:
            pytest.skip(f"{compiler} is not installed")
    result = subprocess.run(["sh", FIRMWARE / "check.sh"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
