from __future__ import annotations

import gzip
import io
import itertools
import json
import struct
import zipfile
from dataclasses import replace

import pytest

from flota.boards.catalogue import TWO_OTA_4MB_CSV
from flota.images.esp_app import pack_app, parse_app
from flota.images.esp_chips import CHIP_NAMES, chip_named
from flota.images.esp_desc import EspBootloaderDesc, pack_app_desc, pack_bootloader_desc, parse_app_desc
from flota.images.esp_idf_version import is_older_release
from flota.images.esp_nvs_writing import create_nvs, write_string
from flota.images.esp_otadata import OtaEntry, pack_otadata
from flota.images.esp_partitions import pack_table, parse_csv
from flota.images.esp_secure_boot import public_key_digest
from flota.images.inspection import inspect, inspection_as_dict
from flota.images.markers import find_markers, pack_marker
from flota.images.model import ImageFormat
from flota.images.text import cleaned_text
from tests.images.esp_samples import bootloader_of, merged_image, sample_app, sample_image
from tests.images.signed_samples import p256_key, padded, pem_of, signed

C3 = chip_named("esp32-c3")
HEX_LINE = b":10010000214601360121470136007EFE09D2190140\r\n:00000001FF\r\n"


def zip_file() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("app.bin"), b"x")  # the same date each time
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (sample_app(), ImageFormat.ESP_APP),
        (bootloader_of("esp32-c3"), ImageFormat.ESP_BOOTLOADER),
        (pack_app(replace(sample_image(), segments=sample_image().segments[1:2])), ImageFormat.ESP_RAM_IMAGE),
        (merged_image(), ImageFormat.ESP_MERGED),
        (pack_table(parse_csv(TWO_OTA_4MB_CSV)), ImageFormat.ESP_PARTITION_TABLE),
        (pack_otadata(OtaEntry.for_seq(1), OtaEntry()), ImageFormat.ESP_OTADATA),
        (create_nvs(0x3000, {"n": {"k": "v"}}), ImageFormat.ESP_NVS),
        (create_nvs(0x3000, {"n": {"k": "v"}})[:-1], ImageFormat.RAW),
        (b"\x10\xde\xcd\xfc" + bytes(60), ImageFormat.ESP_DELTA_PATCH),
        (b"\xcf\xb6\x88\x07" + bytes(508), ImageFormat.ESP_ENCRYPTED),
        (b"\x7fELF\x01\x01\x01" + bytes(45), ImageFormat.ELF),
        (gzip.compress(b"x", mtime=0), ImageFormat.GZIP),
        (zip_file(), ImageFormat.ZIP),
        (struct.pack("<8I", 0x0A324655, 0x9E5D5157, 0x2000, 0x1000, 256, 0, 1, 0xD42BA06C), ImageFormat.UF2),
        (HEX_LINE, ImageFormat.INTEL_HEX),
        (b":10010000214601360121470136007EFE09D2190141\r\n", ImageFormat.RAW),
        (b"hello", ImageFormat.RAW),
        (b"\xe9" + b"not an image at all, but text that begins with one byte", ImageFormat.RAW),
    ],
)
def test_files_are_told_apart_by_their_bytes(data: bytes, expected: ImageFormat) -> None:
    assert inspect(data).format is expected
    assert inspect(memoryview(data)) == inspect(data)


@pytest.mark.parametrize("name", CHIP_NAMES)
def test_a_merged_image_is_told_from_an_app_on_every_chip(name: str) -> None:
    for size in (None, 4 << 20):
        found = inspect(merged_image(name, size=size))
        assert (found.format, found.chip, found.version) == (ImageFormat.ESP_MERGED, name, "1.2.3")
    assert inspect(sample_app(name)).format is ImageFormat.ESP_APP


def test_an_app_that_carries_a_partition_table_as_data_is_still_an_app() -> None:
    image = sample_image(size=0x9000)
    first = image.segments[0]
    at = 0x8000 - 32
    table = pack_table(parse_csv(TWO_OTA_4MB_CSV))
    data = first.data[:at] + table + first.data[at + len(table) :]
    packed = pack_app(replace(image, segments=(replace(first, data=data), *image.segments[1:])))
    assert packed[0x8000:0x8002] == b"\xaa\x50"
    assert inspect(packed).format is ImageFormat.ESP_APP


def test_a_merged_image_with_a_broken_boot_loader_is_still_no_app() -> None:
    merged = bytearray(merged_image())
    merged[1] = 17
    found = inspect(bytes(merged))
    assert found.format is ImageFormat.ESP_MERGED
    assert found.errors


def test_a_sound_app_has_no_errors_and_says_what_devices_report() -> None:
    packed = sample_app()
    found = inspect(packed)
    assert found.errors == ()
    assert found.validation_hash == packed[-32:].hex()
    assert (found.chip, found.version, found.project, found.secure_version) == ("esp32-c3", "1.2.3", "pump", 0)
    assert found.image_size == found.file_size == len(packed)


def test_regions_cover_the_file_in_order_without_overlap() -> None:
    for data in (sample_app(), sample_app() + b"x" * 9, merged_image()):
        regions = inspect(data).regions
        for before, after in itertools.pairwise(regions):
            assert before.end <= after.start
        assert regions[-1].end == len(data)


@pytest.mark.parametrize(("position", "code"), [(-1, "bad-hash"), (33, "bad-checksum"), (30, "truncated-image")])
def test_a_damaged_app_stays_an_app_and_the_finding_has_offset_expected_and_found(position: int, code: str) -> None:
    packed = bytearray(sample_app())
    packed[position] ^= 0x0F
    found = inspect(bytes(packed))
    assert found.format is ImageFormat.ESP_APP
    finding = next(finding for finding in found.errors if finding.code == code)
    assert None not in (finding.offset, finding.expected, finding.found)
    assert found.validation_hash is None


def test_an_app_cut_anywhere_has_an_error_finding() -> None:
    packed = sample_app()
    for length in (*range(300), *range(300, len(packed), 499)):
        assert inspect(packed[:length]).errors


def test_an_unknown_chip_is_named_by_its_number() -> None:
    image = sample_image()
    found = inspect(pack_app(replace(image, header=replace(image.header, chip_id=0x77))))
    assert found.chip is None
    assert [(f.code, f.found) for f in found.errors] == [("unknown-chip", "0x0077")]


def test_bytes_after_the_image_are_told_and_padding_is_only_a_note() -> None:
    for rest, level in ((b"\xff" * 99, "note"), (bytes(99), "note"), (b"payload", "warning")):
        findings = inspect(sample_app() + rest).findings
        assert [(f.level, f.code) for f in findings] == [(level, "trailing-bytes")]


def test_an_image_without_hash_is_a_warning_and_reports_the_hash_of_its_bytes() -> None:
    image = sample_image()
    found = inspect(pack_app(replace(image, header=replace(image.header, hash_appended=False))))
    assert [finding.code for finding in found.findings] == ["no-hash"]
    assert found.validation_hash is not None


def test_an_empty_file_is_an_error() -> None:
    assert [finding.code for finding in inspect(b"").errors] == ["empty"]


def test_the_plain_data_is_json_and_keeps_numbers() -> None:
    for data in (sample_app(), merged_image(), b"", b"hello", sample_app()[:100]):
        plain = json.loads(json.dumps(inspection_as_dict(inspect(data, name="fir\x1bmware.bin"))))
        assert plain["file_size"] == len(data)
        assert plain["properties"]["file"].isprintable()
        assert plain["ok"] == (not inspect(data).errors)


# --- signatures, boot loaders, NVS -----------------------------------------------------------------------------------


def rows_of(data: bytes) -> dict[str, str]:
    return {row.name: row.value for row in inspect(data).properties}


def test_every_signature_block_is_shown_with_its_key_digest_and_whether_it_holds() -> None:
    app = sample_app()
    data = signed(app, p256_key(1), p256_key(2))
    assert inspect(data).errors == ()
    for number in (1, 2):
        digest = public_key_digest(pem_of(p256_key(number)))
        assert rows_of(data)[f"secure boot v2 block {number}"] == f"ECDSA P-256, key digest {digest}, verified"
    assert inspect(data).image_size == len(app)


def test_a_block_that_does_not_hold_is_an_error_with_its_place_and_reason() -> None:
    app = sample_app()
    start = len(padded(app))
    data = bytearray(signed(app, p256_key(1), p256_key(2)))
    data[start + 1216 + 120] ^= 1
    finding = inspect(bytes(data)).errors[0]
    assert (finding.code, finding.offset) == ("bad-signature-block", start + 1216)
    assert "block 2" in finding.text
    data = bytearray(signed(app, p256_key()))
    data[start - 1] = 0
    assert [finding.code for finding in inspect(bytes(data)).errors] == ["wrong-content-digest"]
    assert "does not hold" in rows_of(bytes(data))["secure boot v2 block 1"]


def test_an_esp32_with_more_than_one_block_is_told_that_it_looks_at_the_first() -> None:
    data = signed(sample_app("esp32"), p256_key(1), p256_key(2))
    assert "signature-blocks" in [finding.code for finding in inspect(data).findings]


def test_bytes_after_the_signature_are_told() -> None:
    data = signed(sample_app(), p256_key()) + b"payload"
    assert [(f.level, f.code) for f in inspect(data).findings] == [("warning", "trailing-bytes")]


def bootloader_built_with(idf_version: str, chip: str = "esp32-c3") -> bytes:
    image = parse_app(bootloader_of(chip))
    desc = pack_bootloader_desc(EspBootloaderDesc(3, 1, idf_version, "Jan  1 2026 00:00:00"))
    segment = replace(image.segments[0], data=desc + image.segments[0].data)
    return pack_app(replace(image, segments=(segment,)))


def test_a_boot_loader_says_with_which_esp_idf_it_was_built() -> None:
    data = bootloader_built_with("v5.2.1")
    found = inspect(data)
    assert (found.format, found.idf_version) == (ImageFormat.ESP_BOOTLOADER, "v5.2.1")
    assert (rows_of(data)["ESP-IDF"], rows_of(data)["secure version"], rows_of(data)["boot loader version"]) == (
        "v5.2.1",
        "3",
        "1",
    )
    assert inspect(bootloader_of("esp32-c3")).idf_version is None


def app_built_with(idf_version: str) -> bytes:
    image = sample_image()
    desc = replace(parse_app_desc(image.segments[0].data), idf_version=idf_version)
    first = replace(image.segments[0], data=pack_app_desc(desc) + image.segments[0].data[256:])
    return pack_app(replace(image, segments=(first, *image.segments[1:])))


def test_a_merged_image_with_an_app_older_than_its_boot_loader_is_a_warning() -> None:
    for built_with, codes in (("v5.1.4", ["merged-image", "idf-version"]), ("v5.2", ["merged-image"])):
        flash = bytearray(merged_image()[:0x20000])
        bootloader = bootloader_built_with("v5.2.1")
        flash[: len(bootloader)] = bootloader
        found = inspect(bytes(flash) + app_built_with(built_with))
        assert [finding.code for finding in found.findings] == codes


@pytest.mark.parametrize(
    ("version", "reference", "older"),
    [
        ("v5.1.4", "v5.2", True),
        ("v4.4-beta1-183-gf23dcd3555", "v6.1-beta1", True),
        ("5.2.3", "v5.2.9-dirty", False),
        ("v5.10", "v5.9", False),
        ("v5.9", "v5.10", True),
        ("HEAD-HASH-NOTFOUND", "v6.1", False),
        ("v5.1", "", False),
        ("v99999.1", "v5.1", False),
    ],
)
def test_release_lines_are_compared_and_not_patches(version: str, reference: str, older: bool) -> None:
    assert is_older_release(version, reference) is older


def test_an_nvs_partition_is_shown_with_namespaces_and_keys_and_never_a_value() -> None:
    data = create_nvs(0x4000, {"VIAM_NS": {"OTA_VERSION": "v1.2.3", "ROBOT_SECRET": "hunter2"}, "app": {}})
    data = write_string(data, "app", "note", "FLOTA-LAB{behaviour=crash}")
    found = inspect(data, name="nvs.bin")
    assert (found.format, found.errors) == (ImageFormat.ESP_NVS, ())
    assert rows_of(data)["namespace VIAM_NS"] == "OTA_VERSION (string), ROBOT_SECRET (string)"
    assert rows_of(data)["namespace app"] == "note (string)"
    assert rows_of(data)["pages"] == "1 active, 3 empty"
    shown = json.dumps(inspection_as_dict(found))
    for value in ("v1.2.3", "hunter2", "crash"):
        assert value not in shown


def test_damage_in_an_nvs_partition_is_told() -> None:
    data = bytearray(create_nvs(0x3000, {"n": {"k": "v"}}))
    data[64 + 32 + 9] ^= 1
    assert "nvs-entries" in [finding.code for finding in inspect(bytes(data)).findings]
    data[64 + 9] ^= 1
    assert [finding.code for finding in inspect(bytes(data)).findings] == ["nvs-unreadable"]
    full = create_nvs(0x3000, {"n": {"k": "v"}})[:0x1000]
    assert "nvs-full" in [finding.code for finding in inspect(full).findings]


# --- markers and text --------------------------------------------------------------------------------------


def test_markers_are_found_anywhere_and_later_ones_win() -> None:
    data = b"\x80" * 999 + pack_marker({"behaviour": "crash", "a": "1"}) + b"\0" + pack_marker({"a": "2.0-x_y"})
    assert find_markers(data) == {"behaviour": "crash", "a": "2.0-x_y"}
    assert find_markers(memoryview(data)) == find_markers(data)
    assert inspect(data).markers == find_markers(data)


def test_markers_of_an_app_are_those_in_its_data() -> None:
    image = sample_image()
    for index, segment in enumerate(image.segments):
        data = segment.data[:300] + pack_marker({"in": str(index)})
        data += bytes(-len(data) % 4)
        segments = (*image.segments[:index], replace(segment, data=data), *image.segments[index + 1 :])
        found = inspect(pack_app(replace(image, segments=segments)))
        readable = segment.address >= 0x1000_0000 and segment.address not in C3.code_map
        assert found.markers == ({"in": str(index)} if readable else {})


def test_a_marker_is_looked_for_within_the_bounds_given() -> None:
    data = b"x" * 10 + pack_marker({"a": "1"}) + b"y" * 10
    assert find_markers(data, 10, len(data) - 10) == {"a": "1"}
    assert find_markers(memoryview(data), 10, len(data) - 10) == {"a": "1"}
    assert find_markers(data, 11) == find_markers(data, 10, len(data) - 11) == {}


@pytest.mark.parametrize(
    "text",
    [b"", b"FLOTA-LAB{", b"FLOTA-LAB{}", b"FLOTA-LAB{A=1}", b"FLOTA-LAB{a=}", b"FLOTA-LAB{a=1;;b=2}", b"FLOTA-LAB{a=1"],
)
def test_what_is_no_marker_is_ignored(text: bytes) -> None:
    assert find_markers(text) == {}


def test_a_file_full_of_marker_starts_costs_no_more() -> None:
    assert find_markers(b"FLOTA-LAB{" * 100_000) == {}


def test_markers_that_could_not_be_read_back_are_not_packed() -> None:
    for values in ({"A": "1"}, {"a": ""}, {"a": "x;y"}, {}, {"a": "x" * 300}):
        with pytest.raises(ValueError, match="not a marker"):
            pack_marker(values)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"1.0\0garbage", "1.0"),
        (b" v1 \0", "v1"),
        (b"\x1b[2Jx", "\ufffd[2Jx"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("a\u202eb", "a\ufffdb"),
        ("x" * 100, "x" * 64),
        ("инит".encode(), "инит"),
    ],
)
def test_text_from_files_is_printable_and_capped(raw: bytes | str, shown: str) -> None:
    assert cleaned_text(raw) == shown
