"""The boot choice of ESP-IDF's second-stage boot loader, as a value. Pure.

Three builds: plain, rollback (`CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE`) and anti-rollback (which needs rollback).
An app is named by its index: -2 test app, -1 factory, 0 and up ota_0, ota_1, …

The order of things in one boot:

1. `decide(...)` gives the otadata writes and efuse burns that come before any image is tried, and the order of tries;
2. the caller makes those writes, then tries the images in that order;
3. `after_load(...)` gives the writes that follow the first image that loads and precede its start.

Source: docs/reference/virtual-devices.md, "Boot choice"; espressif/esp-idf:components/bootloader_support/src/
bootloader_utility.c and bootloader_common_loader.c. Checked against vectors made by running that code.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from flota.images.esp_otadata import SEQ_BLANK, OtaEntry, OtaState

TEST_APP: Final = -2
FACTORY: Final = -1

SECURE_VERSION_BITS: Final[dict[str, int]] = {"esp32": 32, "esp32-c2": 4, "esp32-c5": 9}
"""Size in bits of the efuse field that counts the secure version, where it is not the usual 16."""

USUAL_SECURE_VERSION_BITS: Final = 16


class BootBuild(enum.StrEnum):
    """How boot loader and app were built."""

    PLAIN = "plain"
    ROLLBACK = "rollback"
    ANTI_ROLLBACK = "anti-rollback"

    @property
    def rolls_back(self) -> bool:
        """Whether a new app has to confirm itself."""
        return self is not BootBuild.PLAIN


@dataclass(frozen=True, slots=True)
class AppRows:
    """What the boot loader notes of the partition table: which app rows there are.

    `present` holds the indices of `ota_*` rows; the boot loader counts them and looks only below that count, so that
    with ota_0 and ota_2 alone it never finds ota_2.
    """

    present: frozenset[int]
    factory: bool = False
    test: bool = False

    @property
    def ota_count(self) -> int:
        """Number of `ota_*` rows."""
        return len(self.present)

    def has(self, index: int) -> bool:
        """Return whether the boot loader sees a row for `index`."""
        if index == TEST_APP:
            return self.test
        if index == FACTORY:
            return self.factory
        return index < self.ota_count and index in self.present


@dataclass(frozen=True, slots=True)
class SetState:
    """Erase otadata sector `sector` (0 or 1), then program the entry that was there with another state."""

    sector: int
    state: OtaState


@dataclass(frozen=True, slots=True)
class WriteEntry:
    """Erase otadata sector `sector`, then program a fresh entry: `seq`, `state`, and the CRC of `seq`."""

    sector: int
    seq: int
    state: OtaState


@dataclass(frozen=True, slots=True)
class BurnSecureVersion:
    """Burn the efuse counter up to `version`."""

    version: int


BootWrite = SetState | WriteEntry | BurnSecureVersion


@dataclass(frozen=True, slots=True)
class SecureVersions:
    """What anti-rollback compares: `apps[index]` = secure_version of that app, None = no readable descriptor.

    `efuse` is the value burned so far, `field_bits` the most that it can count.
    """

    apps: Mapping[int, int | None]
    efuse: int = 0
    field_bits: int = USUAL_SECURE_VERSION_BITS

    def allows(self, index: int) -> bool:
        """Return whether the app at `index` is new enough to boot."""
        version = self.apps.get(index)
        return version is not None and version >= self.efuse

    def burn(self, index: int) -> BurnSecureVersion | None:
        """Return the burn that the app at `index` causes: none if not higher, or higher than the field can count."""
        version = self.apps.get(index)
        if version is None or not self.efuse < version <= self.field_bits:
            return None
        return BurnSecureVersion(version)


@dataclass(frozen=True, slots=True)
class BootDecision:
    """What one boot does before it tries an image, and which images it tries.

    `index` is the choice (-1 also means "try all"); `order` the indices in the order of tries;
    `initial` says that otadata is blank, so that the slot that loads is written down.
    """

    index: int
    order: tuple[int, ...]
    writes: tuple[BootWrite, ...] = ()
    initial: bool = False


def names_a_slot(entry: OtaEntry) -> bool:
    """Return whether the entry has a number with a right CRC, rejected or not."""
    return entry.seq != SEQ_BLANK and entry.crc_ok


def decide(
    entries: tuple[OtaEntry, OtaEntry] | None,
    rows: AppRows,
    *,
    build: BootBuild,
    secure_versions: SecureVersions | None = None,
) -> BootDecision:
    """Return what the boot loader does with these otadata entries (None = the table has no otadata row).

    `secure_versions` is needed in the anti-rollback build only.
    """
    versions = None
    if build is BootBuild.ANTI_ROLLBACK:
        if secure_versions is None:
            raise ValueError("an anti-rollback build compares secure versions: none given")
        versions = secure_versions
    if entries is None:
        return BootDecision(FACTORY, _order(FACTORY, rows, versions))
    writes: list[BootWrite] = []
    if build.rolls_back:
        entries, writes = _abort_pending(entries)
    blank = not (names_a_slot(entries[0]) or names_a_slot(entries[1]))
    if versions is None and (rows.ota_count == 0 or (entries[0].invalid and entries[1].invalid)):
        index = FACTORY if rows.factory else 0
        return BootDecision(index, _order(index, rows, None), tuple(writes), initial=blank and not rows.factory)
    if blank or rows.ota_count == 0:
        order = _order(FACTORY, rows, versions)
        initial = blank and versions is not None and any(index >= 0 for index in order)
        return BootDecision(FACTORY, order, tuple(writes), initial=initial)
    return _from_active(entries, rows, writes, build, versions)


def after_load(
    decision: BootDecision, loaded: int, *, secure_versions: SecureVersions | None = None
) -> tuple[BootWrite, ...]:
    """Return the writes between loading the app at index `loaded` and starting it: the first boot of a blank otadata.

    `secure_versions` (anti-rollback builds only) as it is after the writes of `decision`.
    """
    if not decision.initial or loaded < 0:
        return ()
    entry = WriteEntry(0, loaded + 1, OtaState.VALID)
    burn = secure_versions.burn(loaded) if secure_versions is not None else None
    return (entry,) if burn is None else (entry, burn)


def _abort_pending(entries: tuple[OtaEntry, OtaEntry]) -> tuple[tuple[OtaEntry, OtaEntry], list[BootWrite]]:
    """Give up on an app that was still to be verified at the reset, whatever its entry's number and CRC say."""
    writes: list[BootWrite] = []
    after = list(entries)
    for sector in (0, 1):
        if entries[sector].state == OtaState.PENDING_VERIFY:
            after[sector] = replace(entries[sector], state=OtaState.ABORTED)
            writes.append(SetState(sector, OtaState.ABORTED))
    return (after[0], after[1]), writes


def _from_active(
    entries: tuple[OtaEntry, OtaEntry],
    rows: AppRows,
    writes: list[BootWrite],
    build: BootBuild,
    versions: SecureVersions | None,
) -> BootDecision:
    eligible = [
        sector
        for sector in (0, 1)
        if entries[sector].valid and (versions is None or versions.allows(entries[sector].slot_index(rows.ota_count)))
    ]
    active = max(eligible, key=lambda sector: (entries[sector].seq, -sector), default=None)
    if active is None:
        return BootDecision(FACTORY, _order(FACTORY, rows, versions), tuple(writes))
    index = entries[active].slot_index(rows.ota_count)
    state = entries[active].state
    if build.rolls_back and state == OtaState.NEW:
        writes.append(SetState(active, OtaState.PENDING_VERIFY))
    if versions is not None and state == OtaState.VALID:
        burn = versions.burn(index)
        if burn is not None:
            writes.append(burn)
            versions = replace(versions, efuse=burn.version)
    return BootDecision(index, _order(index, rows, versions), tuple(writes))


def _order(index: int, rows: AppRows, versions: SecureVersions | None) -> tuple[int, ...]:
    """Return the choice, then down to factory, then up, then the test app; what cannot boot is left out."""
    candidates = [*range(index, FACTORY - 1, -1), *range(index + 1, rows.ota_count), TEST_APP]
    return tuple(
        candidate
        for candidate in candidates
        if rows.has(candidate) and (versions is None or versions.allows(candidate))
    )
