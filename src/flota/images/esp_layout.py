"""Lay out an ESP app image from pieces of memory, as `elf2image` does.

Every piece mapped from flash must lie in the file where its address falls in an MMU page; gaps are filled with parts of
the RAM pieces, or with segments that are not loaded.

Source: docs/reference/esp-image.md; espressif/esptool:esptool/bin_image.py (`ESP32FirmwareImage.save`) for the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from flota.images.esp_app import (
    HASH_SIZE,
    HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    SEGMENTS_MAX,
    EspAppImage,
    EspImageHeader,
    EspSegment,
)
from flota.images.esp_chips import FLASH_SIZES, SPI_MODES, EspChip
from flota.images.esp_desc import (
    APP_DESC_FILE_OFFSET,
    APP_DESC_SIZE,
    EspAppDesc,
    has_app_desc,
    pack_app_desc,
    parse_app_desc,
    retag_app_desc,
)
from flota.images.esp_verify import page_size_of
from flota.images.model import ImageError

NOT_LOADED_ADDRESS: Final = 0
"""Segments below 0x10000000 are skipped by the boot loader; 0 is what tools write for padding."""
PAD_GRANULE: Final = 16
"""The length of every image is a multiple of this (bytes)."""


@dataclass(frozen=True, slots=True)
class MemoryPiece:
    """Bytes that belong at an address of the chip."""

    address: int
    data: bytes = field(repr=False)

    @property
    def end(self) -> int:
        """First address after the piece, its length rounded up to 4 bytes."""
        return self.address + -(-len(self.data) // 4) * 4


@dataclass(frozen=True, slots=True)
class AppIdentity:
    """What the app descriptor is to say; None = leave what the descriptor in the pieces says."""

    version: str | None = None
    project: str | None = None
    secure_version: int | None = None
    elf_sha256: bytes | None = None


@dataclass(frozen=True, slots=True)
class PackOptions:
    """The choices that are not in the code: header fields, hash, page size, padding.

    `page_size` in bytes (None = as the app descriptor says, else the chip's default). Revisions are major x 100 +
    minor. `pad_to` is a multiple of 16 bytes: the image is filled up to exactly that length with `padding`, repeated,
    in a segment that is not loaded but covered by checksum and hash.
    """

    spi_mode: str = "dio"
    flash_size: str = "4MB"
    speed: str | None = None
    min_chip_revision: int = 0
    max_chip_revision: int = 0xFFFF
    append_hash: bool = True
    page_size: int | None = None
    pad_to: int | None = None
    padding: bytes = field(default=b"\0", repr=False)


KEEP_IDENTITY: Final = AppIdentity()
DEFAULT_OPTIONS: Final = PackOptions()


def build_app(
    pieces: Sequence[MemoryPiece],
    *,
    chip: EspChip,
    entry: int,
    identity: AppIdentity = KEEP_IDENTITY,
    options: PackOptions = DEFAULT_OPTIONS,
) -> EspAppImage:
    """Return the app image for `chip` that holds `pieces` and starts at address `entry`.

    The descriptor comes first: the one found at the start of a flash-mapped piece, edited as `identity` says, or a new
    one in a page of its own (then `identity` must give version and project). Raises `ImageError` when pieces overlap,
    two mapped pieces fall into one MMU page, there are too many segments, or a value is not one of the chip's.
    """
    flash, ram = _sorted_pieces(pieces, chip)
    flash = _with_descriptor(flash, chip, identity, options)
    page_size = _page_size(flash, chip)
    flash = _descriptor_first(_joined_in_pages(flash, page_size))
    ram = _joined_where_adjacent(ram)
    segments = _placed(flash, ram, page_size)
    header = _header(chip, entry, options)
    if options.pad_to is not None:
        segments.append(_filler_to(options.pad_to, segments, options))
    if len(segments) > SEGMENTS_MAX:
        raise ImageError(
            "too many segments",
            expected=f"at most {SEGMENTS_MAX}",
            found=len(segments),
            hint="Join sections in the linker script.",
        )
    return EspAppImage(header, tuple(segments))


def retag_app(image: EspAppImage, identity: AppIdentity) -> EspAppImage:
    """Return `image` with the descriptor edited and any signature behind it dropped (it would not match any more).

    Raises `ImageError` if the image has no app descriptor.
    """
    first = image.segments[0]
    edited = _retagged(first.data, identity)
    return replace(image, segments=(EspSegment(first.address, edited), *image.segments[1:]), trailer=b"")


def _sorted_pieces(pieces: Sequence[MemoryPiece], chip: EspChip) -> tuple[list[MemoryPiece], list[MemoryPiece]]:
    """Return the pieces mapped from flash and those copied to RAM, each by rising address, without the empty ones."""
    ordered = sorted((piece for piece in pieces if piece.data), key=lambda piece: piece.address)
    if not ordered:
        raise ImageError("nothing to pack: no piece has any bytes")
    previous: MemoryPiece | None = None
    for piece in ordered:
        if piece.address % 4:
            raise ImageError("a segment must start at a multiple of 4", found=f"{piece.address:#010x}")
        if piece.address + len(piece.data) > 1 << 32:
            raise ImageError("a segment ends above 4 GiB", found=f"{piece.address:#010x} + {len(piece.data):#x}")
        if previous and piece.address < previous.address + len(previous.data):
            raise ImageError(
                "two segments overlap",
                expected=f"{previous.address + len(previous.data):#010x} or above",
                found=f"{piece.address:#010x}",
            )
        previous = piece
    return [p for p in ordered if chip.maps(p.address)], [p for p in ordered if not chip.maps(p.address)]


def _with_descriptor(
    flash: list[MemoryPiece], chip: EspChip, identity: AppIdentity, options: PackOptions
) -> list[MemoryPiece]:
    """Return the flash pieces by rising address, one of them with the app descriptor, edited or new."""
    log2 = _asked_page_size_log2(chip, options)
    for index, piece in enumerate(flash):
        if has_app_desc(piece.data):
            edited = MemoryPiece(piece.address, _retagged(piece.data, identity, log2))
            return [*flash[:index], edited, *flash[index + 1 :]]
    if identity.version is None or identity.project is None:
        raise ImageError(
            "there is no app descriptor in the input", hint="Give --version and --project, and one is made."
        )
    desc = EspAppDesc(
        version=identity.version,
        project=identity.project,
        secure_version=identity.secure_version or 0,
        elf_sha256=identity.elf_sha256 or bytes(32),
        page_size_log2=log2 or 0,
    )
    address = chip.data_map.start + APP_DESC_FILE_OFFSET
    for piece in flash:
        if chip.data_map.start <= piece.address < address + APP_DESC_SIZE:
            raise ImageError(
                "no room for an app descriptor: it must come first in the data mapped from flash",
                expected=f"{address:#010x} to {address + APP_DESC_SIZE - 1:#010x} free",
                found=f"a segment at {piece.address:#010x}",
                hint="Leave 256 bytes there, or link an esp_app_desc_t to that place.",
            )
    made = MemoryPiece(address, pack_app_desc(desc))
    return sorted([made, *flash], key=lambda piece: piece.address)


def _retagged(data: bytes, identity: AppIdentity, page_size_log2: int | None = None) -> bytes:
    edited = retag_app_desc(
        data,
        version=identity.version,
        project=identity.project,
        secure_version=identity.secure_version,
        elf_sha256=identity.elf_sha256,
        page_size_log2=page_size_log2,
    )
    return edited + data[APP_DESC_SIZE:]


def _asked_page_size_log2(chip: EspChip, options: PackOptions) -> int | None:
    """Return what the descriptor must say when a page size is asked for; None = leave it."""
    if options.page_size is None:
        return None
    if options.page_size not in chip.page_sizes:
        names = ", ".join(f"{size // 1024}K" for size in chip.page_sizes)
        raise ImageError(f"{chip.title} has no such MMU page size", expected=names, found=options.page_size)
    return options.page_size.bit_length() - 1 if chip.page_size_is_configurable else None


def _page_size(flash: list[MemoryPiece], chip: EspChip) -> int:
    """Return the MMU page size (bytes) that the descriptor stands for on this chip."""
    desc = next(parse_app_desc(piece.data) for piece in flash if has_app_desc(piece.data))
    page_size = page_size_of(chip, desc)
    if page_size not in chip.page_sizes:
        raise ImageError(
            "the app descriptor names a page size that the chip does not have", found=f"2^{desc.page_size_log2}"
        )
    return page_size


def _joined_in_pages(flash: list[MemoryPiece], page_size: int) -> list[MemoryPiece]:
    """Join mapped pieces of which the later begins in a page that the earlier one uses: a page maps one place."""
    joined: list[MemoryPiece] = []
    for piece in flash:
        if joined and piece.address // page_size <= (joined[-1].end - 1) // page_size:
            before = joined.pop()
            gap = piece.address - before.address - len(before.data)
            joined.append(MemoryPiece(before.address, before.data + bytes(gap) + piece.data))
        else:
            joined.append(piece)
    return joined


def _descriptor_first(flash: list[MemoryPiece]) -> list[MemoryPiece]:
    """Put the piece with the descriptor at the start of the file, where clients look for it."""
    for index, piece in enumerate(flash):
        if has_app_desc(piece.data):
            if piece.address % 0x1000 != APP_DESC_FILE_OFFSET:
                break
            return [piece, *flash[:index], *flash[index + 1 :]]
    raise ImageError(
        "the app descriptor cannot come first in the file",
        expected=f"it at {APP_DESC_FILE_OFFSET:#x} within a page, nothing mapped before it there",
        found="another place",
        hint="Link the descriptor to the start of the data mapped from flash.",
    )


def _joined_where_adjacent(ram: list[MemoryPiece]) -> list[MemoryPiece]:
    """Join RAM pieces that touch; gaps stay, since something else may live there."""
    joined: list[MemoryPiece] = []
    for piece in ram:
        if joined and joined[-1].end == piece.address:
            before = joined.pop()
            piece = MemoryPiece(before.address, _padded(before.data) + piece.data)
        joined.append(piece)
    return joined


def _placed(flash: list[MemoryPiece], ram: list[MemoryPiece], page_size: int) -> list[EspSegment]:
    """Return the segments in file order: the mapped ones where they must be, RAM pieces cut to fill the gaps."""
    segments: list[EspSegment] = []
    waiting = [EspSegment(piece.address, _padded(piece.data)) for piece in ram]
    position = HEADER_SIZE
    for piece in flash:
        while gap := (piece.address - SEGMENT_HEADER_SIZE - position) % page_size:
            room = (gap - SEGMENT_HEADER_SIZE) % page_size
            if waiting and room:
                filler, rest = _split(waiting.pop(0), room)
                if rest:
                    waiting.insert(0, rest)
            else:
                filler = EspSegment(NOT_LOADED_ADDRESS, bytes(room))
            segments.append(filler)
            position += SEGMENT_HEADER_SIZE + len(filler.data)
        segments.append(EspSegment(piece.address, _padded(piece.data)))
        position += SEGMENT_HEADER_SIZE + len(segments[-1].data)
    return segments + waiting


def _split(segment: EspSegment, size: int) -> tuple[EspSegment, EspSegment | None]:
    if len(segment.data) <= size:
        return segment, None
    return EspSegment(segment.address, segment.data[:size]), EspSegment(segment.address + size, segment.data[size:])


def _filler_to(pad_to: int, segments: list[EspSegment], options: PackOptions) -> EspSegment:
    """Return the segment, not loaded, that makes the whole image `pad_to` bytes long."""
    if pad_to % PAD_GRANULE or not options.padding:
        raise ImageError("bad padding", expected=f"a length that is a multiple of {PAD_GRANULE}", found=pad_to)
    used = HEADER_SIZE + sum(SEGMENT_HEADER_SIZE + len(segment.data) for segment in segments)
    tail = PAD_GRANULE + (HASH_SIZE if options.append_hash else 0)
    room = (pad_to - tail - used - SEGMENT_HEADER_SIZE) // 4 * 4
    if room < 0:
        raise ImageError("the image is already longer than that", expected=f"{pad_to} bytes or less", found=used + tail)
    return EspSegment(NOT_LOADED_ADDRESS, (options.padding * (room // len(options.padding) + 1))[:room])


def _header(chip: EspChip, entry: int, options: PackOptions) -> EspImageHeader:
    speed = options.speed or ("40m" if "40m" in chip.speeds else next(iter(chip.speeds)))
    for what, value, known in (
        ("flash mode", options.spi_mode, SPI_MODES),
        ("flash size", options.flash_size, FLASH_SIZES),
        ("flash frequency", speed, chip.speeds),
    ):
        if value not in known:
            raise ImageError(f"{chip.title} has no such {what}", expected=", ".join(known), found=value)
    return EspImageHeader(
        chip_id=chip.chip_id,
        entry=entry,
        spi_mode=SPI_MODES[options.spi_mode],
        flash_size_code=FLASH_SIZES[options.flash_size],
        speed_code=chip.speeds[speed],
        min_chip_revision=options.min_chip_revision,
        max_chip_revision=options.max_chip_revision,
        hash_appended=options.append_hash,
    )


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
