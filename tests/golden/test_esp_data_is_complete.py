"""No vendor file is left out: what the independent parser read is compared, and every table has a partner."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest

from flota.images.esp_partitions import parse_table
from flota.images.inspection import inspect
from flota.images.model import ImageFormat
from tests.golden import (
    test_esp_images,
    test_esp_nvs_and_secure_boot,
    test_esp_partition_tables,
)
from tests.golden.vendor_data import vendor_bytes, vendor_directory, vendor_json, vendor_names

pytestmark = pytest.mark.golden

COMPARED = {
    "images/*.bin": test_esp_images.IMAGES,
    "bootloaders/*.bin": test_esp_images.IMAGES,
    "signed/*.bin": test_esp_images.IMAGES,
    "partitions/*.bin": [*test_esp_partition_tables.TABLES, "esp32/partitions/esptool_partitions_singleapp.bin"],
    "otadata/*.bin": vendor_names("esp32/otadata/*.bin"),
    "nvs/*.bin": vendor_names("esp32/nvs/*.bin"),
}
"""Pattern of a file's name -> the files of that kind that tests compare with the independent parser."""


def test_every_file_that_the_independent_parser_read_is_compared_with_what_it_found() -> None:
    parsed = vendor_json("esp32/parsed.json")
    assert len(parsed) == 45
    for name in parsed:
        compared = [f"esp32/{name}" in names for pattern, names in COMPARED.items() if fnmatch(name, pattern)]
        assert compared == [True], name


def test_eighteen_images_are_among_them() -> None:
    assert vendor_json("esp32/parsed.json")
    assert len(test_esp_images.IMAGES) == 18
    assert len([name for name in test_esp_images.IMAGES if "signed/" in name]) == 3
    assert test_esp_nvs_and_secure_boot.SIGNED in test_esp_images.IMAGES


def test_every_csv_has_the_reference_tool_s_binary_and_every_binary_its_csv() -> None:
    vendor_bytes("esp32/parsed.json")
    directory = vendor_directory() / "esp32" / "partitions"
    tables = {path.name.removesuffix(".csv") for path in directory.glob("*.csv")}
    compiled = {path.name.split(".")[0] for path in directory.glob("*.expected.bin")}
    assert tables == compiled
    assert len(tables) == 20
    tested = {name.rsplit("/", 1)[-1].removesuffix(".csv") for name in test_esp_partition_tables.CSVS}
    assert tables - tested == {"idf_partitions_ota_3"}  # needs boot loader offsets, and has a test of its own


def test_the_table_without_end_row_has_the_rows_that_the_independent_parser_read() -> None:
    name = "partitions/esptool_partitions_singleapp.bin"
    table = parse_table(vendor_bytes(f"esp32/{name}") + b"\xff" * 32)
    rows = [[r.label, r.type, r.subtype, hex(r.offset), hex(r.size), r.flags] for r in table.partitions]
    assert rows == vendor_json("esp32/parsed.json")[name]
    assert not table.with_md5


DELTAS = {
    "derived_hello_world_to_v2.patch": ImageFormat.ESP_DELTA_PATCH,
    "derived_hello_world_v2.bin": ImageFormat.ESP_APP,
    "espdelta_base.bin": ImageFormat.ESP_ENCRYPTED,
}


@pytest.mark.parametrize("name", vendor_names("esp32/*/*.*"))
def test_any_of_the_files_can_be_inspected(name: str) -> None:
    found = inspect(vendor_bytes(name))
    assert found.file_size == len(vendor_bytes(name))
    assert all(row.value.isprintable() for row in found.properties)
    wanted = DELTAS.get(name.rsplit("/", 1)[-1])
    assert wanted in (None, found.format)
