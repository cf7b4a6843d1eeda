"""The declared boards. Every board name is also a built-in device type.

Source: docs/reference/esp-image.md for the ESP chips, docs/reference/esp-partitions.md for the tables,
docs/reference/ameba-images.md for the AmebaD maps.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from flota.boards.model import Board, Route, Slot, VerifiedBy
from flota.errors import NotFound
from flota.images.ameba.flash_map import flash_map
from flota.images.ameba.inspection import CHIP as AMEBA_CHIP
from flota.images.esp_chips import CHIPS, MIB, EspChip
from flota.images.model import ImageFormat

TWO_OTA_4MB_CSV: Final = """\
# Name, Type, SubType, Offset, Size, Flags
nvs,      data, nvs,   0x9000,  0x6000,
otadata,  data, ota,   0xf000,  0x2000,
phy_init, data, phy,   0x11000, 0x1000,
ota_0,    app,  ota_0, 0x20000, 0x1a9000,
ota_1,    app,  ota_1, 0x1d0000, 0x1a9000,
"""
"""ESP-IDF's own table "two large OTA partitions" for 4 MB of flash.

Source: espressif/esp-idf:components/partition_table/partitions_two_ota_large.csv.
"""

MICRO_RDK_8MB_CSV: Final = """\
# Name, Type, SubType, Offset, Size, Flags
nvs,      data, nvs,   0x9000,  0x6000,
otadata,  data, ota,   0xf000,  0x2000,
phy_init, data, phy,   0x11000, 0x1000,
ota_0,    app,  ota_0, ,        0x377000,
ota_1,    app,  ota_1, ,        0x377000,
"""
"""The table of Viam's guide to over-the-air updates of micro-RDK, for 8 MB of flash; slots are placed at 64 KiB."""

GENERIC_LINUX_MAX_FILE_SIZE: Final = 1024 * MIB
"""Largest file for a board without flash slots (bytes)."""

_ESP_ROUTES: Final = frozenset({Route.HTTP_UPDATE, Route.ESP_HTTPS_OTA, Route.DDI})

_VIRTUAL_CHIP_REVISIONS: Final = MappingProxyType(
    {"esp32": 300, "esp32-s2": 100, "esp32-s3": 2, "esp32-c3": 4, "esp32-c2": 200, "esp32-c6": 1, "esp32-h2": 2}
)
"""Revision (major x 100 + minor) of a virtual device's chip: one that is widely sold; chips not named have v1.0."""


def _esp_board(chip: EspChip) -> Board:
    classic = chip.name == "esp32"
    return Board(
        name=chip.name,
        title=chip.title,
        formats=frozenset({ImageFormat.ESP_APP}),
        routes=_ESP_ROUTES | {Route.VIAM} if classic else _ESP_ROUTES,
        verified_by=VerifiedBy.AGENT,
        boot="esp-otadata",
        chip=chip.name,
        chip_revision=_VIRTUAL_CHIP_REVISIONS.get(chip.name, 100),
        flash_size=(8 if classic else 4) * MIB,
        bootloader_offset=chip.bootloader_offset,
        partition_csv=MICRO_RDK_8MB_CSV if classic else TWO_OTA_4MB_CSV,
        rolls_back=not classic,  # micro-RDK, which the classic ESP32 stands for here, is built without
        aliases=(chip.name.replace("-", ""),) if "-" in chip.name else (),
        notes=("Stock HTTPUpdate and esp_https_ota check hashes, not our signature; a DDI agent of yours can.",),
    )


def _ameba_board(name: str, map_name: str, aliases: tuple[str, ...]) -> Board:
    layout = flash_map(map_name)
    return Board(
        name=name,
        title=f"Realtek AmebaD (RTL872xD), {map_name} flash map",
        formats=frozenset({ImageFormat.AMEBA_OTA, ImageFormat.AMEBA_IMAGE2}),
        routes=frozenset({Route.AMEBA_PUSH}),
        verified_by=VerifiedBy.GATEWAY,
        boot="ameba-signature",
        chip=AMEBA_CHIP,
        flash_size=layout.flash_size,
        slots=(Slot("ota1", layout.ota1, layout.slot_size), Slot("ota2", layout.ota2, layout.slot_size)),
        aliases=aliases,
        notes=(
            "The device checks a sum of bytes and nothing else: the gateway checks our signature before it pushes.",
            "There is no rollback: an image that starts and hangs needs a serial cable.",
        ),
    )


_AMEBA_BOARDS: Final = (
    _ameba_board(
        "amebad",
        "2MB",
        ("bw16", "rtl8720dn", "rtl8722dm", "amb21", "amb22", "amb23", "amb25", "amb26", "aw-cu488", "nora-w30"),
    ),
    _ameba_board("amebad-4mb", "4MB", ()),
)

_GENERIC_LINUX: Final = Board(
    name="generic-linux",
    title="Any machine that keeps two files",
    formats=frozenset(ImageFormat),
    routes=frozenset({Route.DDI}),
    verified_by=VerifiedBy.AGENT,
    boot="two-files",
    max_file_size=GENERIC_LINUX_MAX_FILE_SIZE,
)

BOARDS: Final[MappingProxyType[str, Board]] = MappingProxyType(
    {board.name: board for board in (*(_esp_board(chip) for chip in CHIPS.values()), *_AMEBA_BOARDS, _GENERIC_LINUX)}
)
"""Board name -> board."""


def board(name: str) -> Board:
    """Return the board called `name`, or that has it as an alias. Raises `NotFound` with the list of names."""
    wanted = name.strip().lower()
    found = BOARDS.get(wanted) or next((one for one in BOARDS.values() if wanted in one.aliases), None)
    if found is None:
        raise NotFound("no such board", found=repr(name[:64]), expected=", ".join(BOARDS))
    return found
