"""What every image format has in common: its name, what `inspect()` found in it, and the root of the image errors."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Literal

from flota.errors import InvalidInput


class ImageFormat(enum.StrEnum):
    """Formats that `inspect()` tells apart. The value is what the command line, the JSON and the manifest say."""

    ESP_APP = "esp-app"
    ESP_BOOTLOADER = "esp-bootloader"
    ESP_RAM_IMAGE = "esp-ram-image"
    ESP_MERGED = "esp-merged"
    ESP_PARTITION_TABLE = "esp-partition-table"
    ESP_OTADATA = "esp-otadata"
    ESP_NVS = "esp-nvs"
    ESP_DELTA_PATCH = "esp-delta-patch"
    ESP_ENCRYPTED = "esp-encrypted-image"
    ESP8266_APP = "esp8266-app"
    MCUBOOT = "mcuboot"
    AMEBA_OTA = "ameba-ota"
    AMEBA_IMAGE2 = "ameba-image2"
    AMEBA_CORE_IMAGE = "ameba-core-image"
    AMEBA_BOOT = "ameba-boot"
    NUVOTON_APROM = "nuvoton-aprom"
    NUVOTON_BOOT = "nuvoton-boot"
    NUVOTON_DESCRIPTOR = "nuvoton-descriptor"
    NUVOTON_TRAILER = "nuvoton-trailer"
    ELF = "elf"
    GZIP = "gzip"
    ZIP = "zip"
    UF2 = "uf2"
    INTEL_HEX = "intel-hex"
    RAW = "raw"
    """Not recognised: any bytes. Boards that take any file accept it."""


class ImageError(InvalidInput):
    """The bytes are not a well-formed image of the format that was asked for."""

    code = "bad-image"


class TruncatedImage(ImageError):
    """The file ends before the structure that its own header announces."""

    code = "truncated-image"


FindingLevel = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing worth telling about an image: why it cannot work (`error`), might not (`warning`), or a `note`."""

    level: FindingLevel
    code: str
    text: str
    offset: int | None = None
    expected: str | None = None
    found: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """A half-open range `[start, start + size)` of bytes in the file, for the memory-layout bar.

    `address` is where the bytes are loaded or mapped on the device, if the format says so.
    """

    name: str
    start: int
    size: int
    kind: str
    address: int | None = None

    @property
    def end(self) -> int:
        """First byte after the region."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Property:
    """A row of the table that `flota image inspect` prints; `value` is cleaned text."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class McubootFacts:
    """What a board's boot loader decides by, of an MCUboot image. Sizes in bytes.

    `signature_schemes` are the names of its signature TLVs, `flags` those of the header's flags. `entry` is the address
    of the firmware's first instruction, None when it does not begin with the vector table of a Cortex-M core.
    """

    header_size: int
    signature_schemes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    entry: int | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect()` read out of a file. All text from the file is cleaned (docs/reference/esp-image.md).

    `image_size` (bytes) is the length of the image proper, which may be less than the file's when signatures or padding
    follow. `validation_hash` is the hex hash that a device reports for this image when it runs: for an ESP app with an
    appended hash the last 32 bytes of the image, not the digest of the file (docs/reference/http-update.md).
    """

    format: ImageFormat
    file_size: int
    image_size: int
    chip: str | None = None
    """Chip name as in `boards`, e.g. `esp32-c3`."""
    version: str | None = None
    project: str | None = None
    validation_hash: str | None = None
    secure_version: int | None = None
    min_chip_revision: int | None = None
    """major x 100 + minor."""
    idf_version: str | None = None
    """The ESP-IDF version that an ESP app or boot loader was built with, as its descriptor says it."""
    max_chip_revision: int | None = None
    signed_with: tuple[str, ...] = ()
    """Key digests (hex) of the Secure Boot v2 signatures that hold and that the chip looks at."""
    mcuboot: McubootFacts | None = None
    properties: tuple[Property, ...] = ()
    regions: tuple[Region, ...] = ()
    findings: tuple[Finding, ...] = ()
    firmware_tag: dict[str, str] = field(default_factory=dict)
    """What a Blynk firmware tag says: key -> first value; empty without one (docs/reference/blynk.md)."""
    markers: dict[str, str] = field(default_factory=dict)
    """Strings that our own sample firmware carries for virtual devices, e.g. `{"behaviour": "crash"}`."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that mean that no boot loader would take this image."""
        return tuple(finding for finding in self.findings if finding.level == "error")
