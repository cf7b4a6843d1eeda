"""`km0_km4_image2.bin`: the firmware of both cores, as it lies in an OTA slot.

KM0's image (XIP and RAM segment) padded to whole sectors, then KM4's (XIP, RAM and perhaps PSRAM segment, perhaps a
secure-boot block), then perhaps image3. Nothing says where KM4's part begins: the boot loader computes it.
Source: docs/reference/ameba-images.md, "image2".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flota.images.ameba.segment import (
    HEADER_SIZE,
    IMAGE2_SIGNATURE,
    NOT_SET,
    SECTOR_SIZE,
    MissingSignature,
    Segment,
    parse_segment_header,
    require_ram_text,
    require_word_size,
    rounded_up,
    take_segment,
)
from flota.images.model import ImageError, TruncatedImage

Buffer = bytes | memoryview

KM0: Final = "km0"
KM4: Final = "km4"

XIP_ADDRESS: Final = {KM0: 0x0C00_0020, KM4: 0x0E00_0020}
RAM_ADDRESS: Final = {KM0: 0x0008_3000, KM4: 0x1000_5000}
PSRAM_ADDRESS: Final = 0x0200_0020
KM4_BASE: Final = 0x0E00_0000

SECURE_FILLER_SIZE: Final = 48
SECURE_SIGNATURE_SIZE: Final = 64
SECURE_BLOCK_SIZE: Final = SECURE_FILLER_SIZE + SECURE_SIGNATURE_SIZE
"""48 bytes of FF, then an Ed25519 signature R, S."""


class MisplacedKm4(MissingSignature):
    """KM4's part is not where KM0's sizes put it: the boot loader would hang, whatever the other slot holds."""

    code = "ameba-km4-place"


class BadSecureBlock(ImageError):
    """KM4's header points to a secure-boot block that is not there."""

    code = "ameba-secure-block"


class BadPadding(ImageError):
    """Bytes other than FF where only padding, or another image, may stand."""

    code = "ameba-padding"


class UnalignedEnd(ImageError):
    """The file does not end on a whole sector."""

    code = "ameba-unaligned-end"


@dataclass(frozen=True, slots=True)
class SecureBlock:
    """A KM4 image's secure-boot block. Offsets and sizes in bytes, in the file.

    The signature is over `[signed_start, offset)`: everything from the first payload on, not the first header.
    """

    offset: int
    signed_start: int
    signature: bytes

    @property
    def end(self) -> int:
        """First offset after the signature."""
        return self.offset + SECURE_BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class CoreImage:
    """image2 of one core. Offsets in bytes in the file; `end` is before padding, `padded_end` after it."""

    core: str
    offset: int
    segments: tuple[Segment, ...]
    secure: SecureBlock | None
    end: int

    @property
    def padded_end(self) -> int:
        """Where a sector begins at or after the image's end."""
        return self.offset + rounded_up(self.end - self.offset)


@dataclass(frozen=True, slots=True)
class AmebaImage2:
    """Both cores' images; `image3_offset` is where a TrustZone image follows, None without one. `size` in bytes."""

    km0: CoreImage
    km4: CoreImage
    image3_offset: int | None
    size: int


def parse_core(data: Buffer, core: str, offset: int = 0, *, allow_unpadded: bool = False) -> CoreImage:
    """Return the image of `core` (`km0` or `km4`) that begins at `offset`.

    Checks what the boot loaders check: signature, addresses, sizes, `RTKWin`, and that a secure-boot block is where the
    header says. `allow_unpadded` takes a signed file before its last padding. Raises an `ImageError` for each of it.
    """
    xip = take_segment(data, offset, f"{core} XIP", signature=IMAGE2_SIGNATURE, address=XIP_ADDRESS[core])
    require_word_size(xip)
    ram = take_segment(data, xip.end, f"{core} RAM", signature=IMAGE2_SIGNATURE, address=RAM_ADDRESS[core])
    require_ram_text(data, ram)
    segments = [xip, ram]
    if core == KM4 and _has_psram_header(data, ram.end):
        segments.append(take_segment(data, ram.end, "km4 PSRAM", signature=IMAGE2_SIGNATURE, address=PSRAM_ADDRESS))
    end = segments[-1].end
    secure = _secure_block(data, offset, end, xip) if core == KM4 else None
    if secure:
        _require_padding(data, end, secure.offset)
        end = secure.end
    image = CoreImage(core, offset, tuple(segments), secure, end)
    if not (allow_unpadded and image.end == len(data)):
        if image.padded_end > len(data):
            raise UnalignedEnd(
                f"the {core} image is not padded to whole sectors",
                offset=len(data),
                expected=f"{image.padded_end - offset} bytes",
                found=f"{len(data) - offset} bytes",
            )
        _require_padding(data, image.end, image.padded_end)
    return image


def km4_offset_of(xip_size: int, ram_size: int) -> int:
    """Return where the KM0 boot loader looks for KM4's part, from the sizes in KM0's two headers (bytes)."""
    return rounded_up(2 * HEADER_SIZE + xip_size + ram_size)


def parse_image2(data: Buffer) -> AmebaImage2:
    """Return both images of a `km0_km4_image2.bin`. Raises an `ImageError` that names the rule it breaks."""
    km0 = parse_core(data, KM0)
    place = km0.padded_end
    if place + HEADER_SIZE > len(data):
        raise TruncatedImage(
            "the file ends where KM4's image should begin: it is KM0's alone",
            offset=place,
            expected="KM4's image",
            found=f"{max(0, len(data) - place)} bytes",
            hint="Join both: `flota image pack ameba --km0 FILE --km4 FILE`.",
        )
    if bytes(data[place : place + len(IMAGE2_SIGNATURE)]) != IMAGE2_SIGNATURE:
        raise MisplacedKm4(
            "KM4's image is not where KM0's sizes put it: the boot loader would hang there",
            offset=place,
            expected=IMAGE2_SIGNATURE.decode("ascii"),
            found=bytes(data[place : place + len(IMAGE2_SIGNATURE)]).hex(" "),
        )
    km4 = parse_core(data, KM4, place)
    if len(data) % SECTOR_SIZE:
        raise UnalignedEnd(
            "the file does not end on a whole sector", offset=len(data), expected="a multiple of 4096", found=len(data)
        )
    return AmebaImage2(km0, km4, _image3_offset(data, km4.padded_end), len(data))


def join_cores(km0: bytes, km4: bytes) -> bytes:
    """Return KM0's and KM4's image joined as the vendor does: each padded with FF to whole sectors.

    Raises an `ImageError` when one is not the image it is given as, or the result breaks a rule.
    """
    first, second = _padded(km0), _padded(km4)
    parse_core(first, KM0)
    parse_core(second, KM4)
    joined = first + second
    parse_image2(joined)
    return joined


def _padded(image: bytes) -> bytes:
    return image + b"\xff" * (rounded_up(len(image)) - len(image))


def _has_psram_header(data: Buffer, offset: int) -> bool:
    """Whether a PSRAM header follows: older builds have none, and newer ones an empty one."""
    if bytes(data[offset : offset + len(IMAGE2_SIGNATURE)]) != IMAGE2_SIGNATURE or offset + HEADER_SIZE > len(data):
        return False
    return parse_segment_header(data, offset).address == PSRAM_ADDRESS


def _secure_block(data: Buffer, offset: int, end: int, xip: Segment) -> SecureBlock | None:
    address = xip.header.secure_block
    if address == NOT_SET:
        return None
    place = offset + address - KM4_BASE
    if address < KM4_BASE or (address - KM4_BASE) % SECTOR_SIZE or place < end or place + SECURE_BLOCK_SIZE > len(data):
        raise BadSecureBlock(
            "KM4's header points to a secure-boot block that is not in the file",
            offset=offset + 16,
            expected=f"{KM4_BASE:#x} plus whole sectors, at or after {end - offset:#x}, or FFFFFFFF",
            found=f"{address:#010x}",
        )
    _require_padding(data, place, place + SECURE_FILLER_SIZE)
    signature = bytes(data[place + SECURE_FILLER_SIZE : place + SECURE_BLOCK_SIZE])
    return SecureBlock(place, offset + HEADER_SIZE, signature)


def _image3_offset(data: Buffer, offset: int) -> int | None:
    """Return where something other than padding follows KM4's image, None when nothing does."""
    rest = bytes(data[offset:])
    if rest.count(0xFF) == len(rest):
        return None
    if rest.startswith(IMAGE2_SIGNATURE):
        return offset
    first = offset + next(index for index, value in enumerate(rest) if value != 0xFF)
    raise BadPadding(
        "something that is no image follows KM4's image",
        offset=first,
        expected="padding with FF, or image3",
        found=bytes(data[first : first + 8]).hex(" "),
    )


def _require_padding(data: Buffer, start: int, end: int) -> None:
    gap = bytes(data[start:end])
    if gap.count(0xFF) == len(gap):
        return
    first = next(index for index, value in enumerate(gap) if value != 0xFF)
    raise BadPadding(
        "bytes other than padding between two parts of the image",
        offset=start + first,
        expected="FF",
        found=f"{gap[first]:02X}",
    )
