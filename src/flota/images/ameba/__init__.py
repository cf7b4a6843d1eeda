"""AmebaD (RTL872xD) images: segments, boot images, image2 of both cores, and `OTA_All.bin`.

Source: docs/reference/ameba-images.md.
"""

from __future__ import annotations

from flota.images.ameba.boot_image import BootImage, find_slot_addresses, parse_boot_image
from flota.images.ameba.flash_map import FLASH_MAPS, AmebaFlashMap, flash_map
from flota.images.ameba.image2 import AmebaImage2, CoreImage, join_cores, parse_core, parse_image2
from flota.images.ameba.ota_file import (
    OtaFile,
    OtaHeaders,
    byte_sum,
    file_info,
    pack_ota_file,
    parse_ota_file,
    parse_ota_headers,
)
from flota.images.ameba.segment import IMAGE2_SIGNATURE, SECTOR_SIZE, SegmentHeader

__all__ = [
    "FLASH_MAPS",
    "IMAGE2_SIGNATURE",
    "SECTOR_SIZE",
    "AmebaFlashMap",
    "AmebaImage2",
    "BootImage",
    "CoreImage",
    "OtaFile",
    "OtaHeaders",
    "SegmentHeader",
    "byte_sum",
    "file_info",
    "find_slot_addresses",
    "flash_map",
    "join_cores",
    "pack_ota_file",
    "parse_boot_image",
    "parse_core",
    "parse_image2",
    "parse_ota_file",
    "parse_ota_headers",
]
