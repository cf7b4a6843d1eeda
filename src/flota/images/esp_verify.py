"""What a device checks before it runs an image: the rules of `esp_image_verify`, as findings and as one verdict.

Source: docs/reference/esp-image.md; espressif/esp-idf:components/bootloader_support/src/esp_image_format.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from flota.images.esp_app import (
    IMAGE_SIZE_MAX,
    EspImageLayout,
    check_checksum,
    check_hash,
    walk_image,
)
from flota.images.esp_chips import DEFAULT_MMU_PAGE_SIZE, EspChip, chip_name_of
from flota.images.esp_desc import (
    APP_DESC_FILE_OFFSET,
    APP_DESC_MAGIC,
    APP_DESC_SIZE,
    EspAppDesc,
    has_app_desc,
    parse_app_desc,
)
from flota.images.model import Finding, ImageError

Buffer = bytes | memoryview


class UnfitForChip(ImageError):
    """The image is well formed, but the chip would refuse it; each subclass is one reason."""

    code = "unfit-for-chip"


class SlotTooLarge(UnfitForChip):
    """The verifier takes no partition of that size, whatever is in it."""

    code = "slot-too-large"


class WrongChipId(UnfitForChip):
    """The image is for another chip."""

    code = "chip-id"


class ChipTooOld(UnfitForChip):
    """The chip's revision is below the least that the image names."""

    code = "chip-too-old"


class ChipTooNew(UnfitForChip):
    """The chip's revision is above the greatest that the image names."""

    code = "chip-too-new"


class NoSuchPageSize(UnfitForChip):
    """The app descriptor names an MMU page size that the chip does not have."""

    code = "page-size"


class MisalignedSegment(UnfitForChip):
    """A segment that is mapped from flash does not lie where its address falls in a page."""

    code = "misaligned-segment"


class FirstSegmentTooShort(UnfitForChip):
    """The first segment has no room for an app descriptor."""

    code = "first-segment"


class NoAppDescriptor(UnfitForChip):
    """The chip insists on an app descriptor."""

    code = "no-descriptor"


class ImageTooLarge(UnfitForChip):
    """The image is larger than its slot."""

    code = "image-too-large"


_OF_FINDING: Final = {
    kind.code: kind for kind in (NoSuchPageSize, MisalignedSegment, FirstSegmentTooShort, NoAppDescriptor)
}
"""Code of a finding about the layout -> the error that `verify_app` raises for it."""


def app_desc_of(data: Buffer, layout: EspImageLayout) -> EspAppDesc | None:
    """Return the app descriptor at the start of the first segment, None if there is none."""
    first = layout.segments[0]
    raw = memoryview(data)[first.offset : first.end]
    return parse_app_desc(raw) if has_app_desc(raw) else None


def page_size_of(chip: EspChip, desc: EspAppDesc | None) -> int:
    """Return the MMU page size (bytes) that the image is laid out for."""
    if desc and desc.page_size_log2 and chip.page_size_is_configurable:
        return 1 << min(desc.page_size_log2, 31)
    return DEFAULT_MMU_PAGE_SIZE


def layout_findings(
    layout: EspImageLayout, desc: EspAppDesc | None, chip: EspChip, *, is_app: bool = True
) -> Iterator[Finding]:
    """Yield why `chip` would refuse the image for the way it is laid out. Boot loaders (`is_app=False`) need less."""
    page_size = page_size_of(chip, desc)
    if page_size not in chip.page_sizes:
        names = ", ".join(f"{size // 1024}K" for size in chip.page_sizes)
        yield Finding(
            "error",
            NoSuchPageSize.code,
            "the chip has no such MMU page size",
            212,
            names,
            f"2^{desc and desc.page_size_log2}",
        )
        return
    for index, span in enumerate(layout.segments):
        if chip.maps(span.address) and (span.offset - span.address) % page_size:
            yield Finding(
                "error",
                MisalignedSegment.code,
                f"segment {index} is mapped from flash, but its place in the file does not match its address",
                span.offset,
                f"offset {span.address % page_size:#x} within a page of {page_size // 1024}K",
                f"{span.offset % page_size:#x}",
            )
    if not is_app:
        return
    if layout.segments[0].size < APP_DESC_SIZE:
        yield Finding(
            "error",
            FirstSegmentTooShort.code,
            "the first segment is too short for an app descriptor",
            layout.segments[0].offset,
            f"{APP_DESC_SIZE} bytes or more",
            str(layout.segments[0].size),
        )
    elif desc is None and chip.page_size_is_configurable:
        yield Finding(
            "error",
            NoAppDescriptor.code,
            f"{chip.title} refuses an image without app descriptor",
            APP_DESC_FILE_OFFSET,
            f"{APP_DESC_MAGIC:#010x}",
            "another value",
        )


def verify_app(
    data: Buffer, *, chip: EspChip, chip_revision: int | None = None, slot_size: int | None = None
) -> EspImageLayout:
    """Return the layout of an app that `chip` would take, as the verifier of the device decides.

    `chip_revision` is major x 100 + minor (None = do not check), `slot_size` the size of the app partition in bytes.
    `data` may be a whole slot: what follows the image is ignored. Raises a kind of `ImageError` or `UnfitForChip` for
    the first thing that the verifier would stumble over, in its order.
    """
    if slot_size is not None and slot_size > IMAGE_SIZE_MAX:
        raise SlotTooLarge("the slot is above 16 MiB", expected=IMAGE_SIZE_MAX, found=slot_size)
    layout = walk_image(data)
    header = layout.header
    if header.chip_id != chip.chip_id:
        raise WrongChipId(
            "the image is for another chip", offset=12, expected=chip.name, found=chip_name_of(header.chip_id)
        )
    if chip_revision is not None:
        _check_revision(layout, chip_revision)
    for finding in layout_findings(layout, app_desc_of(data, layout), chip):
        kind = _OF_FINDING[finding.code]
        raise kind(finding.text, offset=finding.offset, expected=finding.expected, found=finding.found)
    check_checksum(data, layout)
    if slot_size is not None and layout.image_size > slot_size:
        raise ImageTooLarge(
            "the image is larger than its slot", expected=f"at most {slot_size}", found=layout.image_size
        )
    check_hash(data, layout)
    return layout


def _check_revision(layout: EspImageLayout, chip_revision: int) -> None:
    header = layout.header
    if chip_revision < header.min_chip_revision:
        raise ChipTooOld(
            "the chip is too old for the image",
            offset=15,
            expected=_v(header.min_chip_revision),
            found=_v(chip_revision),
        )
    maximum = header.effective_max_revision
    if maximum is not None and chip_revision > maximum:
        raise ChipTooNew("the chip is too new for the image", offset=17, expected=_v(maximum), found=_v(chip_revision))


def _v(revision: int) -> str:
    return f"v{revision // 100}.{revision % 100}"
