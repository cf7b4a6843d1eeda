"""The declared boards. Every board name is also a built-in device type.

Source: docs/reference/esp-image.md for the ESP chips, docs/reference/esp-partitions.md for the tables,
docs/reference/ameba-images.md for the AmebaD maps, docs/reference/nuvoton.md for the Nuvoton boards,
docs/reference/blynk.md for the primary MCUs behind an NCP.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Final

from flota.boards.model import (
    BOOT_AB_RECORD,
    BOOT_DUAL_BANK,
    BOOT_MCUBOOT_OVERWRITE,
    BOOT_NCP_ASSISTED,
    BOOT_NUVOTON_CLONER,
    AgentLimits,
    Board,
    CodeSignature,
    Route,
    Slot,
    VerifiedBy,
)
from flota.errors import NotFound
from flota.images.ameba.flash_map import flash_map
from flota.images.ameba.inspection import CHIP as AMEBA_CHIP
from flota.images.esp_chips import CHIPS, MIB, EspChip
from flota.images.model import ImageFormat
from flota.images.nuvoton import flash_map as nuvoton

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

_AWS_SLOT_SIZE: Final = 3 * MIB
"""Below the 4 MiB (1024 blocks of 4 KiB) that AWS's OTA agent can keep count of.

Source: docs/reference/aws-iot.md, "What the virtual agent mirrors".
"""

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

_NUVOTON_AGENT: Final = AgentLimits(block_size=2048, blocks_held=2, packet_max_bytes=2048 + 128)
"""Source: docs/reference/nuvoton.md, "The agent's build"."""

_NUVOTON_BOARDS: Final = (
    Board(
        name="m487",
        title="Nuvoton NuMaker-IoT-M487 (Wi-Fi) and NuMaker-PFM-M487 (Ethernet)",
        formats=frozenset({ImageFormat.NUVOTON_APROM}),
        routes=frozenset({Route.AWS_IOT}),
        verified_by=VerifiedBy.AGENT,
        boot=BOOT_NUVOTON_CLONER,
        flash_size=nuvoton.APROM_SIZE,
        sector_size=nuvoton.PAGE_SIZE,
        write_alignment=4,
        slots=(Slot("app", nuvoton.APP_ADDR, nuvoton.APP_SIZE),),
        code_signatures=(CodeSignature.SHA256_ECDSA,),
        agent_limits=_NUVOTON_AGENT,
        aliases=("pfm-m487", "numaker-iot-m487", "numaker-pfm-m487"),
        notes=(
            "The signature is checked once, after the download; what is staged afterwards is copied unchecked.",
            "The vendor's published loader and Cloner never read the backup bank: rollback needs the restoring Cloner.",
        ),
    ),
    Board(
        name="m2354",
        title="Nuvoton NuMaker-M2354 (TF-M, MCUboot)",
        formats=frozenset({ImageFormat.MCUBOOT}),
        routes=frozenset({Route.AWS_IOT}),
        verified_by=VerifiedBy.BOOT_LOADER,
        boot=BOOT_MCUBOOT_OVERWRITE,
        flash_size=nuvoton.M2354_FLASH_SIZE,
        sector_size=nuvoton.M2354_SECTOR_SIZE,
        write_alignment=nuvoton.M2354_WRITE_ALIGNMENT,
        slots=(Slot("app", nuvoton.NON_SECURE_ADDR, nuvoton.NON_SECURE_SIZE),),
        code_signatures=(CodeSignature.SHA256_ECDSA,),
        agent_limits=replace(_NUVOTON_AGENT, in_order=True),
        rolls_back=False,
        aliases=("numaker-m2354",),
        notes=(
            "Two signatures: the agent checks the one over the file, MCUboot the RSA-3072 one inside it.",
            "There is no rollback: MCUboot overwrites the old image.",
        ),
    ),
)

_BLYNK_SLOT_SIZE: Final = 0xF_0000
"""Sectors of 4 KiB behind a boot loader of 64 KiB: a plausible MCU, since the vendor's guide names none."""

_BLYNK_BOARDS: Final = (
    Board(
        name="dual-mcu-ab",
        title="A primary MCU with two banks behind a Blynk NCP",
        formats=frozenset(ImageFormat),
        routes=frozenset({Route.BLYNK_NCP}),
        verified_by=VerifiedBy.GATEWAY,
        boot=BOOT_DUAL_BANK,
        flash_size=2 * MIB,
        write_alignment=8,
        slots=(Slot("a", 0x1_0000, _BLYNK_SLOT_SIZE), Slot("b", 0x10_0000, _BLYNK_SLOT_SIZE)),
        notes=("The NCP checks our signature before it offers the image; the MCU compares digests.",),
    ),
    Board(
        name="dual-mcu-ncp",
        title="A primary MCU with one bank, which its boot loader fills from a Blynk NCP",
        formats=frozenset(ImageFormat),
        routes=frozenset({Route.BLYNK_NCP}),
        verified_by=VerifiedBy.GATEWAY,
        boot=BOOT_NCP_ASSISTED,
        flash_size=1 * MIB,
        write_alignment=8,
        slots=(Slot("app", 0x1_0000, _BLYNK_SLOT_SIZE),),
        rolls_back=False,
        notes=(
            "The NCP checks our signature before it offers the image; the boot loader compares digests.",
            "There is no way back to the old image but another update.",
        ),
    ),
)
"""Source: docs/reference/blynk.md, "Strategies"."""

_GENERIC_LINUX: Final = Board(
    name="generic-linux",
    title="Any machine that keeps two files",
    formats=frozenset(ImageFormat),
    routes=frozenset({Route.DDI}),
    verified_by=VerifiedBy.AGENT,
    boot="two-files",
    max_file_size=GENERIC_LINUX_MAX_FILE_SIZE,
)

_AWS_REFERENCE: Final = Board(
    name="aws-reference",
    title="Any device with AWS's OTA agent and two slots",
    formats=frozenset(ImageFormat),
    routes=frozenset({Route.AWS_IOT}),
    verified_by=VerifiedBy.AGENT,
    boot=BOOT_AB_RECORD,
    flash_size=8 * MIB,
    slots=(Slot("a", 0x01_0000, _AWS_SLOT_SIZE), Slot("b", 0x01_0000 + _AWS_SLOT_SIZE, _AWS_SLOT_SIZE)),
    code_signatures=(CodeSignature.SHA256_ECDSA, CodeSignature.SHA256_RSA),
    notes=(
        "The agent checks the code signature over the file (`flota release sign --code-key`), not our manifest's.",
        "It compares versions only after the download: 1.0.1 must be above what runs.",
    ),
)

BOARDS: Final[MappingProxyType[str, Board]] = MappingProxyType(
    {
        board.name: board
        for board in (
            *(_esp_board(chip) for chip in CHIPS.values()),
            *_AMEBA_BOARDS,
            *_NUVOTON_BOARDS,
            *_BLYNK_BOARDS,
            _GENERIC_LINUX,
            _AWS_REFERENCE,
        )
    }
)
"""Board name -> board."""


def board(name: str) -> Board:
    """Return the board called `name`, or that has it as an alias. Raises `NotFound` with the list of names."""
    wanted = name.strip().lower()
    found = BOARDS.get(wanted) or next((one for one in BOARDS.values() if wanted in one.aliases), None)
    if found is None:
        raise NotFound("no such board", found=repr(name[:64]), expected=", ".join(BOARDS))
    return found
