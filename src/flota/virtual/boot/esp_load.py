"""Where an ESP boot loader agrees to copy a segment: into RAM of the chip, nowhere else. Pure.

Source: espressif/esp-idf:components/soc/esp32c3/include/soc/soc.h and
components/bootloader_support/src/esp_image_format.c (`verify_load_addresses`).
"""

from __future__ import annotations

from typing import Final

from flota.images.esp_app import EspImageLayout
from flota.images.esp_chips import EspChip
from flota.images.esp_verify import UnfitForChip

FIRST_LOADED_ADDRESS: Final = 0x1000_0000
"""A segment with a lower load address is not loaded; 0 is padding."""

RAM: Final[dict[str, tuple[range, ...]]] = {
    "esp32-c3": (
        range(0x3FC8_0000, 0x3FCE_0000),
        range(0x4037_C000, 0x403E_0000),
        range(0x5000_0000, 0x5000_2000),
    ),
}
"""Data RAM, instruction RAM and RTC RAM. Chips without an entry are not checked."""


def refuse_illegal_load_addresses(layout: EspImageLayout, chip: EspChip) -> None:
    """Raise `UnfitForChip` for the first segment that would be copied outside the chip's RAM."""
    regions = RAM.get(chip.name)
    if regions is None:
        return
    for number, span in enumerate(layout.segments):
        if span.address < FIRST_LOADED_ADDRESS or chip.maps(span.address) or not span.size:
            continue
        if not any(span.address in region and span.address + span.size - 1 in region for region in regions):
            raise UnfitForChip(
                f"segment {number} would be loaded outside the RAM of {chip.title}",
                offset=span.offset,
                expected=", ".join(f"{region.start:#x}-{region.stop:#x}" for region in regions),
                found=f"{span.address:#x}, {span.size} bytes",
            )
