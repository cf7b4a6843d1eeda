"""An ESP32 board: flash with a partition table, the boot loader, the chip's fuses.

Source: docs/reference/virtual-devices.md, "ESP32 boards".
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from flota.boards.model import Board
from flota.errors import InvalidInput
from flota.images.esp_app import EspImageLayout, check_hash, walk_image
from flota.images.esp_chips import EspChip, chip_named
from flota.images.esp_desc import APP_DESC_FILE_OFFSET, APP_DESC_SIZE, EspAppDesc, has_app_desc, parse_app_desc
from flota.images.esp_otadata import OTADATA_SIZE, OtaState
from flota.images.esp_partitions import (
    DEFAULT_TABLE_OFFSET,
    TABLE_SIZE,
    PartitionTable,
    pack_table,
    parse_csv,
    parse_table,
)
from flota.images.esp_partitions.table import SUBTYPE_DATA_NVS, TYPE_DATA
from flota.images.esp_secure_boot import SIGNATURE_SECTOR_SIZE, find_signature_blocks
from flota.images.esp_verify import verify_app
from flota.images.markers import find_markers
from flota.images.model import ImageError
from flota.virtual.boot.esp_idf import (
    SECURE_VERSION_BITS,
    USUAL_SECURE_VERSION_BITS,
    BootBuild,
    BootWrite,
    BurnSecureVersion,
    SecureVersions,
    SetState,
    after_load,
    decide,
)
from flota.virtual.boot.esp_load import refuse_illegal_load_addresses
from flota.virtual.esp_nvs import FlashNvs
from flota.virtual.esp_ota import AppPartition, EspOta, OtaData, OtaLayout, layout_of
from flota.virtual.esp_slots import EspSlots
from flota.virtual.flash import FlashOperation, FlashOperationKind, NorFlash
from flota.virtual.hardware import BootReport, ImageNotes
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.pace import SECTOR_ERASE_S, Pace, program_time_s
from flota.virtual.slots import RunningApp

FLASH_NAME: Final = "flash.bin"
NVS_LABEL: Final = "nvs"
"""Of the partition that ESP-IDF opens by default."""

SECURE_VERSION_FUSE: Final = "secure_version"
PROGRAMMER_CHUNK_BYTES: Final = 4096
EFUSE_BLOCK_REVISION: Final = 103
"""Of the virtual chips, major x 100 + minor: that of current ESP32-C3 stock."""

CONTENTS_MAX: Final = 64
"""How many slot contents a board remembers its judgement of, where the memory can tell contents apart."""

Judged = TypeVar("Judged")


class EspHardware:
    """The board under power. `fuses` keeps what flash erasing does not reach; `notes` what installers knew of files."""

    def __init__(
        self,
        board: Board,
        flash: NorFlash,
        *,
        fuses: NonVolatileStore,
        nvs: NonVolatileStore,
        pace: Pace,
        build: BootBuild,
    ) -> None:
        if board.chip is None:
            raise InvalidInput(f"the board {board.name} has no ESP chip")
        self.board = board
        self.chip: EspChip = chip_named(board.chip)
        self.flash = flash
        self.build = build
        self._fuses = fuses
        self._notes = ImageNotes(nvs)
        self._pace = pace
        self._judged: dict[Hashable, object] = {}
        flash.listener = self._spend_time

    # --- power and boot -----------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Give power to the flash."""
        self.flash.power_on()

    def power_off(self) -> None:
        """Take the power away."""
        self.flash.cut_power()

    def close(self) -> None:
        """Let go of the flash file."""
        self.flash.close()

    def boot(self) -> BootReport:
        """Run the boot loader once. A broken partition table boots nothing, as on the chip."""
        try:
            layout = self.layout()
        except ImageError as error:
            return BootReport(None, None, (f"partition table: {error}",))
        otadata = OtaData(self.flash, layout.otadata_address) if layout.otadata_address is not None else None
        decision = decide(
            otadata.read() if otadata is not None else None,
            layout.rows,
            build=self.build,
            secure_versions=self._secure_versions(layout) if self.build is BootBuild.ANTI_ROLLBACK else None,
        )
        writes = list(self._make(otadata, decision.writes))
        refused: list[str] = []
        for index in decision.order:
            partition = layout.apps[index]
            reason = self._why_not_loadable(partition)
            if reason is not None:
                refused.append(f"{partition.label}: {reason}")
                continue
            versions = self._secure_versions(layout) if self.build is BootBuild.ANTI_ROLLBACK else None
            writes += self._make(otadata, after_load(decision, index, secure_versions=versions))
            return self._started(layout, partition, tuple(refused), tuple(writes))
        return BootReport(None, None, tuple(refused), tuple(writes))

    # --- what a programmer does ---------------------------------------------------------------------------------------

    @property
    def blank(self) -> bool:
        """Whether there is nothing where the partition table ought to be."""
        table = self.flash.read(DEFAULT_TABLE_OFFSET, TABLE_SIZE)
        return table.count(0xFF) == len(table)

    def provision(self, table: PartitionTable | None = None) -> None:
        """Write a partition table; None = the board's default."""
        if table is None:
            if self.board.partition_csv is None:
                raise InvalidInput(f"the board {self.board.name} has no default partition table")
            table = parse_csv(
                self.board.partition_csv,
                bootloader_offset=self.chip.bootloader_offset,
                flash_size=self.board.flash_size or None,
            )
        end = max((partition.end for partition in table.partitions), default=0)
        if end > self.flash.size:
            raise InvalidInput(
                "the partition table is for a larger flash",
                expected=f"at most {self.flash.size:#x}",
                found=f"{end:#x}",
                hint="A new device gets a flash that its table fits into: take a state directory of its own.",
            )
        self.write_flash(DEFAULT_TABLE_OFFSET, pack_table(table))

    def write_flash(self, address: int, data: bytes) -> None:
        """Erase the sectors that `data` touches and program it at `address`, as a programmer does over UART.

        Raises `InvalidInput` for an address that is not a sector's, or bytes beyond the flash.
        """
        sector = self.flash.sector_size
        length = -(-len(data) // sector) * sector
        if address % sector or address < 0 or address + length > self.flash.size:
            raise InvalidInput(
                "cannot flash there",
                offset=address,
                expected=f"a multiple of {sector:#x}, ending at most at {self.flash.size:#x}",
                found=f"{len(data)} bytes",
            )
        self.flash.erase(address, length)
        for start in range(0, len(data), PROGRAMMER_CHUNK_BYTES):
            piece = data[start : start + PROGRAMMER_CHUNK_BYTES]
            padded = piece.ljust(-(-len(piece) // self.flash.write_alignment) * self.flash.write_alignment, b"\xff")
            self.flash.program(address + start, padded)

    def erase_chip(self) -> None:
        """Set the whole flash to 0xFF; fuses stay."""
        self.flash.erase(0, self.flash.size)

    def flash_app(self, data: bytes) -> AppPartition:
        """Put an app where a programmer puts it (factory, else ota_0) and make otadata blank; returns the partition."""
        table = self.table()
        row = table.first_app
        if row is None:
            raise InvalidInput("the partition table has no app partition")
        if len(data) > row.size:
            raise InvalidInput(
                f"the file does not fit into {row.label}", expected=f"at most {row.size}", found=len(data)
            )
        self.write_flash(row.offset, data)
        if table.otadata is not None:
            self.write_flash(table.otadata.offset, b"\xff" * OTADATA_SIZE)
        return AppPartition(0, row.label, row.offset, row.size)

    # --- looking ------------------------------------------------------------------------------------------------------

    def table(self) -> PartitionTable:
        """Return the partition table in flash. Raises `ImageError`."""
        return _parsed_table(self.flash.read(DEFAULT_TABLE_OFFSET, TABLE_SIZE), self.flash.size)

    def layout(self) -> OtaLayout:
        """Return where otadata and apps are."""
        return layout_of(self.table())

    def esp_nvs(self) -> FlashNvs | None:
        """Return the partition in which apps keep their settings: labelled `nvs`, of the subtype nvs; None without."""
        row = self.table().find(NVS_LABEL)
        if row is None or (row.type, row.subtype) != (TYPE_DATA, SUBTYPE_DATA_NVS):
            return None
        return FlashNvs(self.flash, row.offset, row.size)

    def slot_names(self) -> tuple[str, ...]:
        """Return the labels of the app partitions."""
        return tuple(partition.label for partition in self.layout().apps.values())

    def running_slot(self) -> str | None:
        """Return the slot that a boot would start now, without changing anything; None if nothing boots."""
        layout = self.layout()
        otadata = OtaData(self.flash, layout.otadata_address) if layout.otadata_address is not None else None
        versions = self._secure_versions(layout) if self.build is BootBuild.ANTI_ROLLBACK else None
        decision = decide(
            otadata.read() if otadata is not None else None,
            layout.rows,
            build=BootBuild.PLAIN if versions is None else self.build,
            secure_versions=versions,
        )
        for index in decision.order:
            if self._why_not_loadable(layout.apps[index]) is None:
                return layout.apps[index].label
        return None

    def slot_content(self, slot: str) -> bytes:
        """Return the whole partition with the label `slot`. Raises `InvalidInput` with the labels there are."""
        row = self.table().find(slot)
        if row is None:
            labels = ", ".join(row.label for row in self.table().partitions)
            raise InvalidInput("no such slot", expected=labels, found=repr(slot))
        return self.flash.read(row.offset, row.size)

    def image_in(self, slot: str) -> bytes:
        """Return exactly the file that was written into an app slot, without the erased rest of the slot.

        The length is the installer's note if its digest still holds, else the image's own with its signature sector.
        Raises `ImageError` if there is no image.
        """
        content = self.slot_content(slot)
        for note in reversed(self._notes.all()):
            if note.size <= len(content) and hashlib.sha256(content[: note.size]).hexdigest() == note.sha256:
                return content[: note.size]
        layout = walk_image(content)
        if not find_signature_blocks(content, layout.image_size):
            return content[: layout.image_size]
        signature_sector = -(-layout.image_size // SIGNATURE_SECTOR_SIZE) * SIGNATURE_SECTOR_SIZE
        return content[: signature_sector + SIGNATURE_SECTOR_SIZE]

    # --- inside -------------------------------------------------------------------------------------------------------

    def _started(
        self, layout: OtaLayout, partition: AppPartition, refused: tuple[str, ...], writes: tuple[str, ...]
    ) -> BootReport:
        ota = EspOta(
            self.flash,
            layout,
            running=partition.index,
            build=self.build,
            verify=self._why_not_valid,
            secure_versions=lambda: self._secure_versions(layout),
            burn=self._burn,
        )
        app = self._app(partition, awaits_confirmation=self.build.rolls_back and self._is_pending(ota, partition))
        slots = EspSlots(ota, layout, self.flash, app, self._pace, nvs=self.esp_nvs())
        return BootReport(app, slots, refused, writes)

    def _is_pending(self, ota: EspOta, partition: AppPartition) -> bool:
        return partition.index >= 0 and ota.state_of(partition.index) == OtaState.PENDING_VERIFY

    def _app(self, partition: AppPartition, *, awaits_confirmation: bool) -> RunningApp:
        app = self._judge_content("app", partition, lambda: self._read_app(partition))
        return replace(app, awaits_confirmation=awaits_confirmation)

    def _read_app(self, partition: AppPartition) -> RunningApp:
        content = self.flash.read(partition.address, partition.size)
        layout = walk_image(content)
        image = content[: layout.image_size]
        desc = _descriptor(image[APP_DESC_FILE_OFFSET:])
        return RunningApp(
            slot=partition.label,
            version=desc.version if desc is not None else "unknown",
            project=desc.project if desc is not None else None,
            size=len(image),
            sha256=hashlib.sha256(image).hexdigest(),
            md5=hashlib.md5(image, usedforsecurity=False).hexdigest(),
            validation_hash=check_hash(image, layout).hex(),
            markers=find_markers(image),
        )

    def _why_not_valid(self, partition: AppPartition) -> str | None:
        """Return why the app's verifier refuses the image, None if it does not."""
        try:
            self._verified(partition)
        except ImageError as error:
            return str(error)
        return None

    def _why_not_loadable(self, partition: AppPartition) -> str | None:
        """Return why the boot loader's verifier refuses: it looks at load addresses too, since it loads."""
        try:
            refuse_illegal_load_addresses(self._verified(partition), self.chip)
        except ImageError as error:
            return str(error)
        return None

    def _verified(self, partition: AppPartition) -> EspImageLayout:
        return self._judge_content("image", partition, lambda: self._verify(partition))

    def _judge_content(self, question: str, partition: AppPartition, judge: Callable[[], Judged]) -> Judged:
        """Return (or raise) what `judge` says of the partition; the very same sectors are judged once."""
        content = self.flash.content_key(partition.address, partition.size)
        if content is None:
            return judge()
        key = (question, partition, content)
        if key not in self._judged:
            if len(self._judged) >= CONTENTS_MAX:
                self._judged.clear()
            try:
                self._judged[key] = judge()
            except ImageError as error:
                self._judged[key] = error
        answer = self._judged[key]
        if isinstance(answer, ImageError):
            raise answer.with_traceback(None)
        return answer  # type: ignore[return-value]  # `question` names what `judge` returns

    def _verify(self, partition: AppPartition) -> EspImageLayout:
        content = self.flash.read(partition.address, partition.size)
        layout = verify_app(content, chip=self.chip, chip_revision=self.board.chip_revision, slot_size=partition.size)
        desc = _descriptor(content[APP_DESC_FILE_OFFSET:])
        if desc is not None and self.chip.name != "esp32" and desc.min_efuse_block_revision > EFUSE_BLOCK_REVISION:
            raise ImageError(
                "the chip's efuse block is too old for the image",
                offset=208,
                expected=f"at most {EFUSE_BLOCK_REVISION}",
                found=desc.min_efuse_block_revision,
            )
        return layout

    def _secure_versions(self, layout: OtaLayout) -> SecureVersions:
        apps: dict[int, int | None] = {}
        for index, partition in layout.apps.items():
            desc = _descriptor(self.flash.read(partition.address + APP_DESC_FILE_OFFSET, APP_DESC_SIZE))
            apps[index] = desc.secure_version if desc is not None else None
        burned = self._fuses.get(SECURE_VERSION_FUSE)
        return SecureVersions(
            apps,
            efuse=burned if isinstance(burned, int) else 0,
            field_bits=SECURE_VERSION_BITS.get(self.chip.name, USUAL_SECURE_VERSION_BITS),
        )

    def _burn(self, version: int) -> None:
        self._fuses.set(SECURE_VERSION_FUSE, version)

    def _make(self, otadata: OtaData | None, writes: Iterable[BootWrite]) -> list[str]:
        texts: list[str] = []
        for write in writes:
            if isinstance(write, BurnSecureVersion):
                self._burn(write.version)
                texts.append(f"burned secure version {write.version}")
            elif otadata is not None:
                otadata.apply(write)
                what = "" if isinstance(write, SetState) else f"seq {write.seq} "
                texts.append(f"otadata {write.sector}: {what}{write.state.name}")
        return texts

    def _spend_time(self, operation: FlashOperation) -> None:
        if operation.kind is FlashOperationKind.ERASE:
            self._pace.owe(SECTOR_ERASE_S)
        else:
            self._pace.owe(program_time_s(operation.length))


def open_flash(directory: Path, board: Board) -> NorFlash:
    """Return the flash of a board, kept in `directory`/flash.bin."""
    directory.mkdir(parents=True, exist_ok=True)
    return NorFlash.open(
        directory / FLASH_NAME, board.flash_size, sector_size=board.sector_size, write_alignment=board.write_alignment
    )


def _descriptor(raw: bytes) -> EspAppDesc | None:
    return parse_app_desc(raw[:APP_DESC_SIZE]) if has_app_desc(raw[:APP_DESC_SIZE]) else None


@functools.lru_cache(maxsize=32)
def _parsed_table(data: bytes, flash_size: int) -> PartitionTable:
    return parse_table(data, flash_size=flash_size)
