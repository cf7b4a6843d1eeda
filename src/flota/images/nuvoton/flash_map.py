"""What lies where on the NuMaker M487 boards and on the NuMaker-M2354. Addresses and sizes in bytes.

Source: docs/reference/nuvoton.md, "Memory maps"; OpenNuvoton/NuMaker-mbed-AWS-IoT-CSDK-OTA-example:mbed_app.json;
ARMmbed/mbed-os:targets/TARGET_NUVOTON/TARGET_M2354/TARGET_TFM/TARGET_NU_M2354/COMPONENT_TFM_S_FW/partition/
flash_layout.h.
"""

from __future__ import annotations

from typing import Final

from flota.images.flash_area import FlashArea

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- M487: APROM (internal flash), LDROM, SPI NOR ---

PAGE_SIZE: Final = 0x1000
"""Erase unit of APROM and LDROM."""
PROGRAM_UNIT: Final = 8
"""What the Cloner programs at once; the application's driver programs words of 4."""

APROM_SIZE: Final = 0x8_0000
APP_ADDR: Final = 0x0
APP_SIZE: Final = 0x6_8000
"""`mbed_app_size`: also how much is copied to the backup bank, whatever the length of the image."""
KVSTORE_ADDR: Final = 0x6_8000
KVSTORE_SIZE: Final = 0x8000
"""The device's key, its certificates, the root and the certificate that checks releases."""
DESCRIPTOR_ADDR: Final = 0x7_0000
TRAILER_ADDR: Final = 0x7_1000
CLONER_ADDR: Final = 0x7_2000
CLONER_SIZE: Final = 0xE000
DESCRIPTOR_COPY_ADDR: Final = 0x7_E000
"""Second descriptor page of the `rollback` profile, inside the Cloner's room; the vendor's code does not use it."""
TRIAL_ADDR: Final = 0x7_F000
"""Page of the trial byte of the `rollback` profile, likewise."""
LDROM_ADDR: Final = 0x10_0000
LDROM_SIZE: Final = 0x1000
DESCRIPTOR_LIMIT: Final = 0x7_0000
"""The Cloner takes images whose end address is below this: 32 KiB more than the application may have."""

RAM_ADDR: Final = 0x2000_0000
RAM_SIZE: Final = 0x2_8000
"""128 KiB and the 32 KiB that the SPI memory controller can use as a cache (mbed-os M480_mem.h)."""

SPI_SIZE: Final = 4 * MIB
"""The stock part, a W25Q32; larger ones work if SFDP describes them."""
SPI_ERASE_SIZE: Final = 0x1000
"""Of the stock part; other parts say theirs through SFDP."""
STAGING_ADDR: Final = 0x0
STAGING_SIZE: Final = 0x8_0000
BACKUP_ADDR: Final = 0x8_0000
"""Header of the backup bank: a descriptor at the start of its first erase block."""

APROM_AREAS: Final = (
    FlashArea("application", "app", APP_ADDR, APP_SIZE),
    FlashArea("KVStore", "nvs", KVSTORE_ADDR, KVSTORE_SIZE),
    FlashArea("OTA descriptor", "otadata", DESCRIPTOR_ADDR, PAGE_SIZE),
    FlashArea("OTA trailer", "otadata", TRAILER_ADDR, PAGE_SIZE),
    FlashArea("Cloner", "bootloader", CLONER_ADDR, CLONER_SIZE),
)
LDROM_AREAS: Final = (FlashArea("loader", "bootloader", 0, LDROM_SIZE),)
"""Offsets in the LDROM, which the processor sees at `LDROM_ADDR`."""


def backup_image_addr(spi_erase_size: int = SPI_ERASE_SIZE) -> int:
    """Return where in the SPI flash the backup of the application begins: one erase block behind its header.

    Readers follow the address in the backup's descriptor; this is what the application writes into it.
    """
    return BACKUP_ADDR + spi_erase_size


def spi_areas(spi_erase_size: int = SPI_ERASE_SIZE) -> tuple[FlashArea, ...]:
    """Return the areas of an SPI flash with this erase size (bytes)."""
    return (
        FlashArea("staging bank", "staging", STAGING_ADDR, STAGING_SIZE),
        FlashArea("backup header", "otadata", BACKUP_ADDR, spi_erase_size),
        FlashArea("backup bank", "backup", backup_image_addr(spi_erase_size), APP_SIZE),
    )


# --- M2354: internal flash, SD card ---

M2354_FLASH_SIZE: Final = MIB
M2354_SECTOR_SIZE: Final = 0x800
M2354_WRITE_ALIGNMENT: Final = 4
SECURE_ADDR: Final = 0x2_0000
SECURE_SIZE: Final = 0x5_0000
NON_SECURE_ADDR: Final = 0x7_0000
NON_SECURE_SIZE: Final = 0x9_0000
NON_SECURE_CODE_ALIAS: Final = 0x1000_0000
"""Added to a flash address for what runs in the non-secure world."""
NON_SECURE_RAM_ADDR: Final = 0x3001_8000
NON_SECURE_RAM_SIZE: Final = 0x2_8000
"""256 KiB less the 96 KiB of the secure world, in the alias 0x3000_0000 (mbed-os region_defs.h)."""
MCUBOOT_HEADER_SIZE: Final = 0x400
"""What mbed-os's build script signs with; a later region_defs.h has 0x1000. Readers take the header's word."""

SD_SECURE_ADDR: Final = 0x0
SD_NON_SECURE_ADDR: Final = 0x10_0000
SD_SCRATCH_ADDR: Final = 0x20_0000
SD_SCRATCH_SIZE: Final = 0x4000
"""Not used by a boot loader that only overwrites."""
SD_END: Final = SD_SCRATCH_ADDR + SD_SCRATCH_SIZE

M2354_AREAS: Final = (
    FlashArea("MCUboot", "bootloader", 0x0, 0xC000),
    FlashArea("protected storage", "nvs", 0xC000, 0xE000),
    FlashArea("trusted storage", "nvs", 0x1_A000, 0x5000),
    FlashArea("NV counters", "data", 0x1_F000, 0x1000),
    FlashArea("secure image", "secure", SECURE_ADDR, SECURE_SIZE),
    FlashArea("application", "app", NON_SECURE_ADDR, NON_SECURE_SIZE),
)
SD_AREAS: Final = (
    FlashArea("secure secondary", "staging", SD_SECURE_ADDR, SECURE_SIZE),
    FlashArea("app secondary", "staging", SD_NON_SECURE_ADDR, NON_SECURE_SIZE),
    FlashArea("scratch", "padding", SD_SCRATCH_ADDR, SD_SCRATCH_SIZE),
)
"""Raw offsets on the card, two images, which is the default build; the secure world owns the card."""

assert APROM_AREAS[-1].end == APROM_SIZE
assert M2354_AREAS[-1].end == M2354_FLASH_SIZE
assert backup_image_addr() + APP_SIZE <= SPI_SIZE
