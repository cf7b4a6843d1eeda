"""The fit check: does this file suit this device type? Every reason why not, with offset, expected and found.

Source: docs/reference/esp-image.md, "what to check before offering an image".
"""

from __future__ import annotations

from collections.abc import Iterator

from flota.boards.model import Slot, TypeProfile, Unfit, VersionFrom
from flota.images.esp_idf_version import is_older_release
from flota.images.esp_partitions import PartitionTable, parse_csv, parse_table
from flota.images.model import ImageFormat, Inspection
from flota.versions import version_order

TWO_FILE_SLOTS = ("a", "b")


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
    table = partition_table_of(profile)
    if table is None:
        return tuple(Slot(name, None, profile.board.max_file_size) for name in TWO_FILE_SLOTS)
    return tuple(Slot(row.label, row.offset, row.size) for row in table.ota_slots)


def fit_check(profile: TypeProfile, inspection: Inspection, *, file_size: int, version: str) -> tuple[Unfit, ...]:
    """Return every reason why the inspected file does not suit the type; empty = it fits.

    `file_size` in bytes is what will be sent; `version` is the release's. Reasons with `blocking=False` are warnings.
    """
    reasons = list(_format(profile, inspection))
    if not reasons:
        reasons += _damage(inspection)
        reasons += _chip(profile, inspection)
    reasons += _partitions(profile)
    reasons += _size(profile, file_size)
    reasons += _version(profile, inspection, version)
    reasons += _secure_version(profile, inspection)
    reasons += _boot_loader(profile, inspection)
    reasons += _signature(profile, inspection)
    return tuple(reasons)


def _format(profile: TypeProfile, inspection: Inspection) -> Iterator[Unfit]:
    if inspection.format in profile.board.formats:
        return
    note = next((finding for finding in inspection.findings if finding.hint), None)
    what = "a merged image cannot be an update" if inspection.format is ImageFormat.ESP_MERGED else "wrong kind of file"
    yield Unfit(
        "merged-image" if inspection.format is ImageFormat.ESP_MERGED else "wrong-format",
        f"{what}: {profile.board.name} takes another format",
        note.offset if note else 0,
        ", ".join(sorted(profile.board.formats)),
        inspection.format.value,
        note.hint if note else None,
    )


def _damage(inspection: Inspection) -> Iterator[Unfit]:
    for finding in inspection.errors:
        yield Unfit(finding.code, finding.text, finding.offset, finding.expected, finding.found, finding.hint)


def _chip(profile: TypeProfile, inspection: Inspection) -> Iterator[Unfit]:
    wanted = profile.board.chip
    if wanted is None:
        return
    if inspection.chip is None or inspection.chip != wanted:
        found = inspection.chip or "an unknown chip"
        yield Unfit("wrong-chip", "the image is for another chip", 12, wanted, found)
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
        yield Unfit("empty", "the file is empty", 0, "1 byte or more", "0 bytes")
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
            "Build a smaller image, or give the type the partition table that its devices really have.",
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
        )
    elif table.otadata is None:
        yield Unfit(
            "no-otadata",
            "the partition table of the type has no otadata partition: nothing can select the new image",
            expected="a data partition of subtype ota",
            found="none",
        )
    elif len(slots) == 1 and table.factory is None:
        yield Unfit(
            "one-slot",
            "the partition table of the type has a single app partition: a device cannot overwrite what it runs",
            expected="two ota slots, or one and a factory app",
            found=slots[0].label,
        )


def _version(profile: TypeProfile, inspection: Inspection, version: str) -> Iterator[Unfit]:
    said = inspection.version
    if profile.version_from is VersionFrom.APP_DESC:
        if said != version:
            yield Unfit(
                "version",
                "the type takes its version from the image, and the release says another",
                48,
                said or "a version in the app descriptor",
                version,
                f"Release it as {said}." if said else None,
            )
    elif said is not None and version_order(said) != version_order(version):
        yield Unfit("version", "the image calls itself by another version", 48, version, said, blocking=False)


def _secure_version(profile: TypeProfile, inspection: Inspection) -> Iterator[Unfit]:
    minimum = profile.minimum_secure_version
    if minimum > 0 and (inspection.secure_version or 0) < minimum:
        yield Unfit(
            "secure-version",
            "devices with anti-rollback never boot an image with a lower secure version",
            36,
            f"{minimum} or more",
            "none" if inspection.secure_version is None else str(inspection.secure_version),
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
    expected = f"a signature by {', '.join(sorted(keys))}"
    if any(region.kind == "signature" for region in inspection.regions):
        yield Unfit(
            "untrusted-key",
            "no signature that holds is of a key in the efuses of the type's devices",
            inspection.image_size,
            expected,
            ", ".join(inspection.signed_with) or "none that holds",
        )
    else:
        yield Unfit(
            "not-signed",
            "the type's devices start only signed images",
            inspection.image_size,
            expected,
            "no signature",
            "Sign it with espsecure sign-data --version 2.",
        )


def _v(revision: int) -> str:
    return f"v{revision // 100}.{revision % 100}"
