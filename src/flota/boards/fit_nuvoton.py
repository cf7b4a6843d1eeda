"""What the loaders of the Nuvoton boards do not check, and what their owners should know before they ship.

Source: docs/reference/nuvoton.md, "What is refused" and "What `stock` cannot survive".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from flota.boards.model import BOOT_MCUBOOT_OVERWRITE, BOOT_NUVOTON_CLONER, Board, Unfit
from flota.images.model import ImageFormat, Inspection
from flota.images.nuvoton.aprom import loses_last_byte
from flota.images.nuvoton.flash_map import (
    APP_SIZE,
    KVSTORE_ADDR,
    NON_SECURE_SIZE,
)
from flota.images.nuvoton.update import CODE_START, SLOT_SHAPE
from flota.images.nuvoton.version import version_in_name

NUVOTON_BOOTS: Final = frozenset({BOOT_NUVOTON_CLONER, BOOT_MCUBOOT_OVERWRITE})

BOOT_LOADER_SCHEME: Final = "RSA3072_PSS"
"""What the M2354's MCUboot is built to check."""

_PACK_M487: Final = "Make plain bytes of it: `flota image pack m487 FILE -o OUT.bin`."
_PACK_M2354: Final = "Sign it: `flota image pack m2354 FILE --key KEY -o OUT.bin`."
_UPDATE_FILE: Final = "Ship the signed `<app>_update.bin` of the build, or sign it: `flota image pack m2354`."
_PLAIN_FILE: Final = "Ship the plain `<app>.bin` of the build."

FORMAT_HINTS: Final[Mapping[tuple[str, ImageFormat], str]] = MappingProxyType(
    {
        (BOOT_NUVOTON_CLONER, ImageFormat.MCUBOOT): f"That is an update for a board with MCUboot. {_PLAIN_FILE}",
        (BOOT_NUVOTON_CLONER, ImageFormat.RAW): "It does not begin with the vector table of a program for address 0.",
        (BOOT_NUVOTON_CLONER, ImageFormat.INTEL_HEX): _PACK_M487,
        (BOOT_NUVOTON_CLONER, ImageFormat.ELF): _PACK_M487,
        (BOOT_MCUBOOT_OVERWRITE, ImageFormat.NUVOTON_APROM): f"That is a program for an M487. {_UPDATE_FILE}",
        (BOOT_MCUBOOT_OVERWRITE, ImageFormat.INTEL_HEX): _PACK_M2354,
        (BOOT_MCUBOOT_OVERWRITE, ImageFormat.ELF): _PACK_M2354,
        (BOOT_MCUBOOT_OVERWRITE, ImageFormat.RAW): f"It has no header of MCUboot. {_UPDATE_FILE}",
    }
)
"""Boot decision and format found -> what to do."""

SIZE_HINTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        BOOT_NUVOTON_CLONER: f"The Cloner would copy it over the device's key and certificates at {KVSTORE_ADDR:#x}.",
        BOOT_MCUBOOT_OVERWRITE: "The slot of the non-secure image is fixed by TF-M: build a smaller one.",
    }
)


def nuvoton_reasons(board: Board, inspection: Inspection, *, file_size: int) -> Iterator[Unfit]:
    """Yield what speaks against a file of the right kind for a Nuvoton board; nothing for other boards.

    `file_size` in bytes.
    """
    if board.boot == BOOT_NUVOTON_CLONER:
        yield from _for_cloner(file_size)
    elif board.boot == BOOT_MCUBOOT_OVERWRITE:
        yield from _for_mcuboot(inspection, file_size)


def nuvoton_limits(board: Board) -> Iterator[Unfit]:
    """Yield, as warnings, what every release for the board has to live with; nothing for other boards."""
    if board.boot == BOOT_NUVOTON_CLONER:
        yield Unfit(
            "power-cut-in-copy",
            "with the vendor's published loader and Cloner a device does not survive a power cut while the new image "
            "is copied, and keeps an image that fails its self-test; a restoring Cloner mends both",
            blocking=False,
        )
    elif board.boot == BOOT_MCUBOOT_OVERWRITE:
        yield Unfit(
            "no-rollback",
            "there is no rollback on this board: MCUboot overwrites the old image, and what fails its self-test stays",
            blocking=False,
        )


def version_of_name(board: Board, filename: str, version: str) -> Iterator[Unfit]:
    """Yield a warning when a Nuvoton file's name ends with another version than the release's."""
    said = version_in_name(filename) if board.boot in NUVOTON_BOOTS else None
    if said is not None and said != version.strip().lstrip("vV"):
        yield Unfit("version-in-name", "the file's name says another version", None, version, said, blocking=False)


def _for_cloner(file_size: int) -> Iterator[Unfit]:
    if loses_last_byte(file_size) and file_size <= APP_SIZE:
        yield Unfit(
            "clone-drops-last-byte",
            "the Cloner leaves out the last byte of a file of this length",
            file_size - 1,
            "any length but k x 4096 + 1",
            f"{file_size} bytes",
            "Pad it to whole pages: `flota image pack m487 FILE -o OUT`.",
        )


def _for_mcuboot(inspection: Inspection, file_size: int) -> Iterator[Unfit]:
    facts = inspection.mcuboot
    if facts is None:
        return
    if BOOT_LOADER_SCHEME not in facts.signature_schemes:
        yield Unfit(
            "not-signed" if not facts.signature_schemes else "wrong-signature-scheme",
            "the boot loader starts only images that are signed with RSA-3072",
            None,
            "RSA-3072 PSS",
            ", ".join(facts.signature_schemes) or "no signature",
            "Sign it with the key that the boot loader knows: `flota image pack m2354 FILE --key KEY -o OUT`.",
        )
    for flag in facts.flags:
        yield Unfit(
            "image-flags",
            "this boot loader runs plain images in place",
            16,
            "no flags",
            flag,
            "Sign it without that option.",
        )
    start = CODE_START
    if facts.entry is not None and not start + facts.header_size <= facts.entry < start + NON_SECURE_SIZE:
        yield Unfit(
            "linked-elsewhere",
            "the program is linked for another place than the slot of the non-secure image",
            facts.header_size + 4,
            f"an entry from {start + facts.header_size:#010x} to {start + NON_SECURE_SIZE - 1:#010x}",
            f"{facts.entry:#010x}",
            "Is it the secure image, or one for another header size? Ship the application's `_update.bin`.",
        )
    most = NON_SECURE_SIZE - SLOT_SHAPE.trailer_size
    if most < file_size <= NON_SECURE_SIZE:
        yield Unfit(
            "no-room-for-trailer",
            "the file takes the end of the slot, where the device writes its request for the update",
            most,
            f"at most {most} bytes",
            f"{file_size} bytes",
            "Sign it without --pad.",
        )
