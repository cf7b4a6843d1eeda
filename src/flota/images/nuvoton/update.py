"""The update of a NuMaker-M2354: a program for the non-secure slot, made into an MCUboot image as mbed-os's build does.

Source: docs/reference/nuvoton.md, "The file"; ARMmbed/mbed-os:tools/targets (`m2354_tfm_bin`).
"""

from __future__ import annotations

import struct
from typing import Final

from flota.images.mcuboot import Dependency, ImageOptions, ImageVersion, McubootImage, SlotShape, build_image
from flota.images.model import ImageError, TruncatedImage
from flota.images.nuvoton.flash_map import (
    M2354_WRITE_ALIGNMENT,
    MCUBOOT_HEADER_SIZE,
    NON_SECURE_ADDR,
    NON_SECURE_CODE_ALIAS,
    NON_SECURE_RAM_ADDR,
    NON_SECURE_RAM_SIZE,
    NON_SECURE_SIZE,
)

TFM_VERSION: Final = (1, 4, 0)
"""What the build script puts before the `+` of every image's version; the build number tells images apart."""
SECURE_IMAGE: Final = 0
"""Number of the image that the application depends on, in whatever version."""
CODE_START: Final = NON_SECURE_CODE_ALIAS + NON_SECURE_ADDR
"""Where the non-secure world sees the slot, its header first."""

SLOT_SHAPE: Final = SlotShape(NON_SECURE_SIZE, align=M2354_WRITE_ALIGNMENT, overwrite_only=True)
"""Primary and secondary slot of the application. The last bytes belong to the boot magic, which the device writes."""

_START: Final = struct.Struct("<II")
assert _START.size == 8


class LinkedElsewhere(ImageError):
    """The program does not start in the slot of the non-secure image, behind the header."""

    code = "linked-elsewhere"


def update_version(build: int) -> ImageVersion:
    """Return the version in the header of a build with this number (u32). Raises `ImageError` for another number."""
    return ImageVersion(*TFM_VERSION, build=build)


def build_update(program: bytes, version: ImageVersion, *, header_size: int = MCUBOOT_HEADER_SIZE) -> McubootImage:
    """Return the image of `program`, the bytes behind the header, not signed yet.

    Raises `TruncatedImage` below eight bytes, `LinkedElsewhere` when stack or entry are not those of this board's
    non-secure world behind a header of `header_size` bytes.
    """
    if len(program) < _START.size:
        raise TruncatedImage(
            "the file ends inside the vector table",
            offset=len(program),
            expected=f"{_START.size} bytes",
            found=len(program),
        )
    stack, reset = _START.unpack_from(program)
    if not NON_SECURE_RAM_ADDR < stack <= NON_SECURE_RAM_ADDR + NON_SECURE_RAM_SIZE:
        raise LinkedElsewhere(
            "the stack is not in the RAM of the non-secure world",
            offset=0,
            expected=f"{NON_SECURE_RAM_ADDR + 8:#010x} to {NON_SECURE_RAM_ADDR + NON_SECURE_RAM_SIZE:#010x}",
            found=f"{stack:#010x}",
        )
    start = CODE_START + header_size
    if reset % 2 == 0 or not start < reset < start + len(program):
        raise LinkedElsewhere(
            "the program does not start in the slot of the non-secure image",
            offset=4,
            expected=f"an odd address from {start:#010x} to {start + len(program) - 1:#010x}",
            found=f"{reset:#010x}",
            hint="Is it linked for another header size (--header-size), or is it the secure image?",
        )
    return build_image(
        program,
        ImageOptions(
            version=version,
            header_size=header_size,
            add_header=True,
            security_counter=version.automatic_security_counter,
            dependencies=(Dependency(SECURE_IMAGE, ImageVersion(0)),),
        ),
    )
