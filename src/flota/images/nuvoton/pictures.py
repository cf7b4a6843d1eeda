"""The three memory pictures of an update: before it, the download, the reset; for the M487 and for the M2354.

Source: docs/reference/nuvoton.md, "Memory maps" and "Steps of the application".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flota.images.flash_layout import FlashLayout, FlashRegion, layout_of_areas
from flota.images.memory_pictures import CLOUD, Memory, MemoryPicture, Move, Place
from flota.images.model import Finding
from flota.images.nuvoton.aprom import cloned_pages
from flota.images.nuvoton.flash_map import (
    APP_SIZE,
    APROM_AREAS,
    APROM_SIZE,
    LDROM_AREAS,
    LDROM_SIZE,
    M2354_AREAS,
    M2354_FLASH_SIZE,
    NON_SECURE_SIZE,
    PAGE_SIZE,
    SD_AREAS,
    SD_END,
    SPI_ERASE_SIZE,
    SPI_SIZE,
    spi_areas,
)

APROM, LDROM, SPI = "APROM", "LDROM", "SPI flash"
FLASH, SD = "internal flash", "SD card"
OLD, NEW, SAVED = "running firmware", "new firmware", "previous firmware"


def m487_pictures(
    image_size: int | None = None, *, spi_size: int = SPI_SIZE, spi_erase_size: int = SPI_ERASE_SIZE
) -> tuple[MemoryPicture, ...]:
    """Return the three pictures for an image of `image_size` bytes, None = not said.

    `spi_size` and `spi_erase_size` (bytes) are those of the SPI flash. An image that is too large has an error finding
    where it does damage.
    """
    aprom = layout_of_areas(APROM_AREAS, flash_size=APROM_SIZE)
    ldrom = layout_of_areas(LDROM_AREAS, flash_size=LDROM_SIZE)
    spi = layout_of_areas(spi_areas(spi_erase_size), flash_size=spi_size)
    staged, cloned = spi, aprom
    if image_size is not None:
        staged = _used(spi, "staging bank", image_size)
        copied = cloned_pages(0, max(image_size - 1, 0)) * PAGE_SIZE
        cloned = _limited(_used(aprom, "application", copied), "application", image_size, APP_SIZE, written=copied)
    app, staging = Place(APROM, "application"), Place(SPI, "staging bank")

    def picture(
        title: str, text: str, layouts: tuple[FlashLayout, FlashLayout], holds: Mapping[str, str], *moves: Move
    ) -> MemoryPicture:
        kept = {"KVStore": "key, certificates"}
        first, second = layouts
        memories = (Memory(APROM, first, {**kept, **holds}), Memory(LDROM, ldrom), Memory(SPI, second, holds))
        return MemoryPicture(title, text, memories, moves)

    return (
        picture(
            "1. Before",
            "The application runs from APROM. The loader and the Cloner wait; the SPI flash is not in use.",
            (aprom, spi),
            {"application": OLD},
        ),
        picture(
            "2. Download",
            "The application writes the new image to the SPI flash, checks its signature, and saves itself to the "
            "backup bank.",
            (aprom, staged),
            {"application": OLD, "OTA descriptor": "0xF8, then 0xFF", "staging bank": NEW, "backup bank": OLD},
            Move(Place(CLOUD), staging, "the application"),
            Move(app, Place(SPI, "backup bank"), "the application"),
        ),
        picture(
            "3. Reset",
            "The loader finds the descriptor and starts the Cloner, which copies the new image over the application "
            "and starts it for its self-test.",
            (cloned, staged),
            {"application": NEW, "OTA descriptor": "0xFE, then 0xFC", "staging bank": NEW, "backup bank": SAVED},
            Move(staging, app, "the Cloner"),
        ),
    )


def m2354_pictures(image_size: int | None = None) -> tuple[MemoryPicture, ...]:
    """Return the three pictures for a signed image of `image_size` bytes, None = not said."""
    flash = layout_of_areas(M2354_AREAS, flash_size=M2354_FLASH_SIZE)
    card = layout_of_areas(SD_AREAS, flash_size=SD_END)
    staged, installed = card, flash
    if image_size is not None:
        staged = _used(card, "app secondary", image_size)
        staged = _limited(staged, "app secondary", image_size, NON_SECURE_SIZE, written=image_size)
        installed = _used(flash, "application", image_size)
    secondary, primary = Place(SD, "app secondary"), Place(FLASH, "application")

    def picture(
        title: str, text: str, layouts: tuple[FlashLayout, FlashLayout], holds: Mapping[str, str], *moves: Move
    ) -> MemoryPicture:
        first, second = layouts
        return MemoryPicture(title, text, (Memory(FLASH, first, holds), Memory(SD, second, holds)), moves)

    return (
        picture("1. Before", "The application runs from internal flash.", (flash, card), {"application": OLD}),
        picture(
            "2. Download",
            "The secure world writes the new image to the SD card and asks MCUboot to install it.",
            (flash, staged),
            {"application": OLD, "app secondary": NEW},
            Move(Place(CLOUD), secondary, "the application, through TF-M"),
        ),
        picture(
            "3. Reset",
            "MCUboot checks the image and copies it over the application. The old one is gone: there is no rollback.",
            (installed, staged),
            {"application": NEW, "app secondary": NEW},
            Move(secondary, primary, "MCUboot"),
        ),
    )


def _used(layout: FlashLayout, name: str, used: int) -> FlashLayout:
    regions = tuple(replace(one, used=used) if one.name == name else one for one in layout.regions)
    return replace(layout, regions=regions)


def _limited(layout: FlashLayout, name: str, size: int, room: int, *, written: int) -> FlashLayout:
    """Return the layout with an error if an image of `size` bytes is larger than the region `name` of `room` bytes.

    What of the `written` bytes goes beyond it is a region that overlaps the neighbours.
    """
    if size <= room:
        return layout
    start = next(one.end for one in layout.regions if one.name == name)
    finding = Finding(
        "error", "too-large", f"the image is larger than {name}", start, f"at most {room} bytes", f"{size} bytes"
    )
    excess = (FlashRegion("too much", "app", start, written - room),) if written > room else ()
    regions = tuple(sorted((*layout.regions, *excess), key=lambda region: (region.start, region.end)))
    return replace(layout, regions=regions, findings=(*layout.findings, finding))
