"""Pieces for merged images, and the reference tool to compare with."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from flota.boards.catalogue import MICRO_RDK_8MB_CSV
from flota.images.esp_chips import EspChip, chip_named
from flota.images.esp_partitions import pack_table, parse_csv

GUIDE_TABLE = pack_table(parse_csv(MICRO_RDK_8MB_CSV))
GUIDE_ROWS = "nvs,data,nvs,0x9000,0x6000,\notadata,data,ota,0xF000,0x2000,\nphy_init,data,phy,0x11000,0x1000,\n"
GUIDE_CSV = GUIDE_ROWS + "ota_0,app,ota_0,,0x377000,\nota_1,app,ota_1,,0x377000,\n"


def csv_table(*rows: str) -> bytes:
    return pack_table(parse_csv("\n".join(rows)))


def esptool_merge(directory: Path, chip: str, pieces: dict[int, bytes], *options: str) -> bytes:
    """What `esptool merge-bin` makes of the pieces; the test is skipped where esptool is not installed."""
    if find_spec("esptool") is None:
        pytest.skip("not run: esptool is not installed")
    output, arguments = directory / "merged-by-esptool.bin", []
    for offset, data in pieces.items():
        path = directory / f"{offset:x}.bin"
        path.write_bytes(data)
        arguments += [hex(offset), str(path)]
    command = [sys.executable, "-m", "esptool", "--chip", chip.replace("-", ""), "merge-bin"]
    ran = subprocess.run(
        [*command, "-o", str(output), *options, *arguments], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return output.read_bytes()


def pieces_of(chip: EspChip | str, bootloader: bytes, table: bytes, app: bytes, app_offset: int) -> dict[int, bytes]:
    esp = chip_named(chip) if isinstance(chip, str) else chip
    return {esp.bootloader_offset: bootloader, 0x8000: table, app_offset: app}
