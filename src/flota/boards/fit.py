"""The fit check: does this file suit this device type? Every reason why not, with offset, expected and found.

Source: docs/reference/esp-image.md, "what to check before offering an image".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from flota.boards.fit_blynk import BLYNK_BOOTS, blynk_reasons
from flota.boards.fit_nuvoton import (
    FORMAT_HINTS,
    NUVOTON_BOOTS,
    SIZE_HINTS,
    nuvoton_limits,
    nuvoton_reasons,
    version_of_name,
)
from flota.boards.model import Board, Slot, TypeProfile, Unfit, VersionFrom
from flota.images.esp_idf_version import is_older_release
from flota.images.esp_partitions import PartitionTable, parse_csv, parse_table
from flota.images.esp_secure_boot import signature_offset
from flota.images.model import ImageFormat, Inspection
from flota.images.nuvoton.inspection import version_inside
from flota.images.nuvoton.version import version_in_name
from flota.versions import version_order

TWO_FILE_SLOTS = ("a", "b")

AMEBA_SETTINGS_FROM: Final = 0xF_6000
"""Offset in OTA1 (bytes) from which the SDK keeps settings, on the 2 MB map, when those features are compiled in."""

_AMEBA_FORMATS: Final = frozenset({ImageFormat.AMEBA_OTA, ImageFormat.AMEBA_IMAGE2})

_WRONG_FORMAT_HINTS: Final[Mapping[ImageFormat, str]] = {
    ImageFormat.ESP_BOOTLOADER: "That is a boot loader: ship the app that the same build made.",
    ImageFormat.ESP_RAM_IMAGE: "That program runs from RAM and is lost at the next start: ship the app.",
    ImageFormat.ESP_PARTITION_TABLE: "That is a partition table: ship the app. Types take tables (--partitions).",
    ImageFormat.ESP_OTADATA: "That is otadata, which devices write themselves: ship the app.",
    ImageFormat.ESP_NVS: "That is an NVS partition: ship the app.",
    ImageFormat.ESP_DELTA_PATCH: "That is a difference between two images: ship the whole app.",
    ImageFormat.ESP_ENCRYPTED: "Devices encrypt what they are sent: ship the app as it is before encryption.",
    ImageFormat.ESP8266_APP: "That is an app for an ESP8266: build it for this board's chip.",
    ImageFormat.ESP_APP: "That is an app for an ESP32: build it for this board, or choose another type.",
    ImageFormat.AMEBA_OTA: "That is an OTA_All.bin for an AmebaD board: choose another type.",
    ImageFormat.AMEBA_IMAGE2: "That is firmware for an AmebaD board: choose another type.",
    ImageFormat.AMEBA_CORE_IMAGE: "That is the firmware of one core: join both with `flota image pack ameba`.",
    ImageFormat.AMEBA_BOOT: "That is a boot image, which only a programmer writes: ship km0_km4_image2.bin.",
    ImageFormat.MCUBOOT: "That is an image for the boot loader MCUboot: choose a type whose board uses it.",
    ImageFormat.NUVOTON_APROM: "That is a program for a NuMaker M487: choose another type.",
    ImageFormat.NUVOTON_BOOT: "That is a loader, which only a programmer writes: ship the application.",
    ImageFormat.NUVOTON_DESCRIPTOR: "That was read back from a device's flash: ship the application.",
    ImageFormat.NUVOTON_TRAILER: "That was read back from a device's flash: ship the application.",
}
_ANY_OTHER_FORMAT: Final = "Is it the right file? `flota image inspect FILE` shows what it is."

_DAMAGE_HINTS: Final[Mapping[str, str]] = {
    "truncated-image": "The file ends too early: copy or download it again, or take it from the build once more.",
    "bad-checksum": "The file is damaged: copy or download it again, or take it from the build once more.",
    "bad-hash": "The file is damaged: copy or download it again, or take it from the build once more.",
    "unknown-chip": "The file is damaged, or made for a chip that Flota does not know yet.",
    "empty": "The build, or the copy of it, went wrong: look at the file.",
}
_ANY_OTHER_DAMAGE: Final = "Build or copy the file again; `flota image inspect FILE` shows what is wrong with it."

_ONE_SLOT_HINT: Final = "Give the type the partition table of its devices; they need otadata and two ota slots."


def partition_table_of(profile: TypeProfile) -> PartitionTable | None:
    """Return the type's partition table, else the board's default one; None for boards without any.

    Raises `PartitionTableError` when the type's own table is no table.
    """
    if profile.partition_table is not None:
        return parse_table(profile.partition_table)
    if profile.board.partition_csv is None:
        return None
    return parse_csv(profile.board.partition_csv, bootloader_offset=profile.board.bootloader_offset)


def slots_of(profile: TypeProfile) -> tuple[Slot, ...]:
    """Return the regions that an update can go to, in boot order; empty when the table has no ota slot."""
    if profile.board.slots:
        return profile.board.slots
    table = partition_table_of(profile)
    if table is None:
        return tuple(Slot(name, None, profile.board.max_file_size) for name in TWO_FILE_SLOTS)
    return tuple(Slot(row.label, row.offset, row.size) for row in table.ota_slots)


def fit_check(
    profile: TypeProfile, inspection: Inspection, *, file_size: int, version: str, filename: str = ""
) -> tuple[Unfit, ...]:
    """Return every reason why the inspected file does not suit the type; empty = it fits.

    `file_size` in bytes is what will be sent; `version` is the release's; `filename` counts only where file names carry
    versions (Nuvoton). Reasons with `blocking=False` are warnings.
    """
    reasons = list(_format(profile, inspection))
    is_right_kind = not reasons
    if is_right_kind:
        reasons += _damage(inspection)
        reasons += _chip(profile, inspection)
    reasons += _partitions(profile)
    reasons += _size(profile, _flashed_size(inspection, file_size))
    reasons += _ameba_settings(profile, inspection)
    if is_right_kind:
        reasons += nuvoton_reasons(profile.board, inspection, file_size=file_size)
        reasons += blynk_reasons(profile, inspection, version)
        if profile.board.boot not in BLYNK_BOOTS:
            reasons += _version(profile, inspection, version)
        reasons += version_of_name(profile.board, filename, version)
        reasons += nuvoton_limits(profile.board)
    reasons += _secure_version(profile, inspection)
    reasons += _boot_loader(profile, inspection)
    reasons += _signature(profile, inspection)
    return tuple(reasons)


def version_of(board: Board, inspection: Inspection, filename: str) -> str:
    """Return the version that a file says for this board, where no release says one yet; empty = none.

    What an MCUboot header of a Nuvoton build says has nothing to do with the application's version: there it is our own
    marker's, else that of the file's name.
    """
    if board.boot in NUVOTON_BOOTS:
        return version_inside(inspection.markers) or version_in_name(filename) or ""
    return inspection.version or ""


def _format(profile: TypeProfile, inspection: Inspection) -> Iterator[Unfit]:
    if inspection.format in profile.board.formats:
        return
    note = next((finding for finding in inspection.findings if finding.hint), None)
    hint = FORMAT_HINTS.get((profile.board.boot, inspection.format))
    what = "a merged image cannot be an update" if inspection.format is ImageFormat.ESP_MERGED else "wrong kind of file"
    yield Unfit(
        "merged-image" if inspection.format is ImageFormat.ESP_MERGED else "wrong-format",
        f"{what}: {profile.board.name} takes another format",
        note.offset if note else 0,
        ", ".join(sorted(profile.board.formats)),
        inspection.format.value,
        hint or (note.hint if note else _WRONG_FORMAT_HINTS.get(inspection.format, _ANY_OTHER_FORMAT)),
    )


def _damage(inspection: Inspection) -> Iterator[Unfit]:
    for finding in inspection.errors:
        hint = finding.hint or _DAMAGE_HINTS.get(finding.code, _ANY_OTHER_DAMAGE)
        yield Unfit(finding.code, finding.text, finding.offset, finding.expected, finding.found, hint)


def _chip(profile: TypeProfile, inspection: Inspection) -> Iterator[Unfit]:
    wanted = profile.board.chip
    if wanted is None:
        return
    if inspection.chip is None and inspection.errors:
        return  # the header could not be read or names no chip: that is told already
    if inspection.chip != wanted:
        found = inspection.chip or "an unknown chip"
        hint = f"Build it for {wanted}, or ship it to a type of a board with that chip: `flota type list`."
        yield Unfit("wrong-chip", "the image is for another chip", 12, wanted, found, hint)
        return
    revision = profile.board.chip_revision
    low, high = inspection.min_chip_revision or 0, inspection.max_chip_revision
    if revision is not None and (revision < low or (high is not None and revision > high)):
        limits = f"{_v(low)} and later" if high is None else f"{_v(low)} to {_v(high)}"
        yield Unfit(
            "chip-revision",
            "devices with the usual revision of the chip refuse the image",
            15,
            limits,
            _v(revision),
            blocking=False,
        )


def _size(profile: TypeProfile, file_size: int) -> Iterator[Unfit]:
    if file_size == 0:
        yield Unfit("empty", "the file is empty", 0, "1 byte or more", "0 bytes", _DAMAGE_HINTS["empty"])
    slots = slots_of(profile)
    if not slots:
        return
    smallest = min(slots, key=lambda slot: slot.size)
    if file_size > smallest.size:
        yield Unfit(
            "too-large",
            "the file is larger than the smallest slot",
            smallest.size,
            f"at most {smallest.size} bytes (slot {smallest.name})",
            f"{file_size} bytes",
            SIZE_HINTS.get(
                profile.board.boot,
                "Build a smaller image, or give the type the partition table that its devices really have.",
            ),
        )


def _flashed_size(inspection: Inspection, file_size: int) -> int:
    """Return how many bytes go to the slot: the header of an `OTA_All.bin` never does."""
    return inspection.image_size if inspection.format is ImageFormat.AMEBA_OTA else file_size


def _ameba_settings(profile: TypeProfile, inspection: Inspection) -> Iterator[Unfit]:
    """Warn where SDK features keep their settings in the tail of OTA1 (docs/reference/ameba-images.md)."""
    slots = profile.board.slots
    if inspection.format not in _AMEBA_FORMATS or not slots or slots[0].size > AMEBA_SETTINGS_FROM + 0x4000:
        return
    if inspection.image_size > AMEBA_SETTINGS_FROM:
        yield Unfit(
            "settings-overlap",
            "the image reaches where the SDK's UART and access-point settings lie, if the app uses them",
            AMEBA_SETTINGS_FROM,
            f"at most {AMEBA_SETTINGS_FROM} bytes",
            f"{inspection.image_size} bytes",
            blocking=False,
        )


def _partitions(profile: TypeProfile) -> Iterator[Unfit]:
    """Yield why no update at all can work with the type's partition table."""
    table = partition_table_of(profile)
    if table is None:
        return
    slots = table.ota_slots
    if not slots:
        yield Unfit(
            "no-slots",
            "the partition table of the type has no ota slot: nothing can be updated over the air",
            expected="ota_0 and ota_1",
            found="none",
            hint=_ONE_SLOT_HINT,
        )
    elif table.otadata is None:
        yield Unfit(
            "no-otadata",
            "the partition table of the type has no otadata partition: nothing can select the new image",
            expected="a data partition of subtype ota",
            found="none",
            hint=_ONE_SLOT_HINT,
        )
    elif len(slots) == 1 and table.factory is None:
        yield Unfit(
            "one-slot",
            "the partition table of the type has a single app partition: a device cannot overwrite what it runs",
            expected="two ota slots, or one and a factory app",
            found=slots[0].label,
            hint=_ONE_SLOT_HINT,
        )


def _version(profile: TypeProfile, inspection: Inspection, version: str) -> Iterator[Unfit]:
    said = version_inside(inspection.markers) if profile.board.boot in NUVOTON_BOOTS else inspection.version
    strict = profile.version_from is VersionFrom.APP_DESC
    if said is None:
        if strict and not inspection.errors:
            yield Unfit(
                "no-version",
                "the type takes its version from the image, and the image says none",
                48,
                "a version in the app descriptor",
                "none of its own",
                "Build it with PROJECT_VER set (Arduino's own descriptor is the core's), or use a type that takes the "
                "version from the release.",
            )
    elif strict and said != version:
        yield Unfit(
            "version",
            "the type takes its version from the image, and the release says another",
            48,
            said,
            version,
            f"Release it as {said}.",
        )
    elif not strict and version_order(said) != version_order(version):
        offset = None if profile.board.boot in NUVOTON_BOOTS else 48
        yield Unfit("version", "the image calls itself by another version", offset, version, said, blocking=False)


def _secure_version(profile: TypeProfile, inspection: Inspection) -> Iterator[Unfit]:
    minimum = profile.minimum_secure_version
    if minimum > 0 and (inspection.secure_version or 0) < minimum:
        yield Unfit(
            "secure-version",
            "devices with anti-rollback never boot an image with a lower secure version",
            36,
            f"{minimum} or more",
            "none" if inspection.secure_version is None else str(inspection.secure_version),
            "Build it with CONFIG_BOOTLOADER_APP_SECURE_VERSION at least that high.",
        )


def _boot_loader(profile: TypeProfile, inspection: Inspection) -> Iterator[Unfit]:
    known, built_with = profile.bootloader_idf_version, inspection.idf_version
    if known and built_with and is_older_release(built_with, known):
        yield Unfit(
            "idf-version",
            "the app was built with an older ESP-IDF than the boot loader of the type's devices",
            144,
            f"{known} or later",
            built_with,
            "Build it with the boot loader's ESP-IDF or a later one.",
        )


def _signature(profile: TypeProfile, inspection: Inspection) -> Iterator[Unfit]:
    keys = profile.secure_boot_keys
    if not keys or keys.intersection(inspection.signed_with):
        return
    offset = signature_offset(inspection.image_size)
    expected = f"a signature by {', '.join(sorted(keys))}"
    if any(region.kind == "signature" for region in inspection.regions):
        yield Unfit(
            "untrusted-key",
            "no signature that holds is of a key in the efuses of the type's devices",
            offset,
            expected,
            ", ".join(inspection.signed_with) or "none that holds",
            "Sign it with one of the keys that the devices trust: espsecure sign-data --version 2.",
        )
    else:
        yield Unfit(
            "not-signed",
            "the type's devices start only signed images",
            offset,
            expected,
            "no signature",
            "Sign it with espsecure sign-data --version 2.",
        )


def _v(revision: int) -> str:
    return f"v{revision // 100}.{revision % 100}"
