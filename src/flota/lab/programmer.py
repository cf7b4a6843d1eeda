"""What a programmer does to a virtual device: write files to flash, read slots, without the device's help."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flota.digests import digests_of
from flota.errors import InvalidInput
from flota.images.esp_partitions import DEFAULT_TABLE_OFFSET, PartitionTable, parse_csv
from flota.images.inspection import inspect
from flota.images.model import ImageFormat
from flota.lab.nuvoton_programmer import flash_nuvoton, note_nuvoton
from flota.lab.state_directory import DeviceRecord, Machine, StateDirectory
from flota.trust.image_keys import ImagePublicKey
from flota.virtual.ab_board import AbHardware
from flota.virtual.ameba_board import AmebaHardware
from flota.virtual.dual_bank_board import DualBankHardware
from flota.virtual.esp_board import EspHardware
from flota.virtual.hardware import ImageNote, ImageNotes
from flota.virtual.m2354_board import M2354Hardware
from flota.virtual.nuvoton_board import M487Hardware
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.one_bank_board import OneBankHardware
from flota.virtual.pace import Pace
from flota.virtual.two_files import TwoFileMachine

RUNNING = "running"


def flash_file(
    directory: StateDirectory,
    record: DeviceRecord,
    data: bytes,
    *,
    address: int | None = None,
    erase: bool = False,
    table: PartitionTable | None = None,
    boot_keys: Sequence[ImagePublicKey] = (),
) -> str:
    """Write a file to a device that is not running, and return where it went.

    An app image goes to the first app partition (otadata becomes blank), a merged image to 0, a partition table to its
    place, anything else needs an `address`. `boot_keys` are what the boot loader of an M2354 is built with if there is
    none. `erase` empties the whole flash and the device's store first; `table`
    replaces the partition table. Raises `InvalidInput` for what does not fit or is not known.
    """
    nvs = directory.nvs()
    if erase:
        nvs = _empty(directory)
    machine = directory.machine(record, nvs, Pace())
    try:
        if isinstance(machine, EspHardware):
            return _flash_esp(machine, nvs, data, address=address, erase=erase, table=table)
        if isinstance(machine, AmebaHardware):
            return _flash_ameba(machine, nvs, data, address=address, erase=erase)
        if isinstance(machine, AbHardware | DualBankHardware | OneBankHardware):
            return _flash_ab(machine, nvs, data, address=address, erase=erase)
        if isinstance(machine, M487Hardware | M2354Hardware):
            return flash_nuvoton(machine, data, address=address, erase=erase, boot_keys=boot_keys)
        if address is not None:
            raise InvalidInput("this board has files as slots, not addresses", found=f"{address:#x}")
        slot = machine.flash(data)
        return f"{len(data)} bytes to {slot}"
    finally:
        machine.close()


def prepare_blank(
    machine: Machine,
    nvs: NonVolatileStore,
    firmware: bytes | None,
    table: PartitionTable | None,
    version: str | None = None,
) -> bool:
    """Give a device that was never programmed its partition table and `firmware`; returns whether it was blank.

    `version` is the firmware's where the file itself does not tell.
    """
    if isinstance(machine, EspHardware):
        if not machine.blank:
            return False
        machine.provision(table)
        if firmware is not None:
            machine.flash_app(firmware)
            _note(nvs, firmware, version)
        return True
    if not isinstance(machine, TwoFileMachine):
        if not machine.blank:
            return False
        if firmware is not None:
            machine.flash_app(firmware)
            _note_app(machine, nvs, firmware, version)
        return True
    if machine.record.files:
        return False
    if firmware is not None:
        machine.flash(firmware)
        _note(nvs, firmware, version)
    return True


def read_slot(directory: StateDirectory, slot: str) -> tuple[str, bytes]:
    """Return the name of a slot and exactly the image file in it. `running` is the slot that boots.

    Works while the device runs, as a debugger would. Raises `InvalidInput` without such a slot, `ImageError` without
    an image.
    """
    record = directory.require_record()
    machine = directory.machine(record, directory.nvs(), Pace())
    try:
        name: str | None = slot
        if slot == RUNNING:
            name = machine.running_slot()
        if name is None:
            raise InvalidInput("nothing boots on this device")
        return name, machine.image_in(name)
    finally:
        machine.close()


FLASH_SIZES: Final = tuple(1 << exponent for exponent in range(20, 28))
"""Flash chips of ESP boards, in bytes: 1 to 128 MiB."""


def flash_size_for(table: PartitionTable | None, usual: int) -> int | None:
    """Return the size of the smallest flash that holds the table, None if the `usual` one (bytes) does."""
    end = 0 if table is None else max((partition.end for partition in table.partitions), default=0)
    if end <= usual:
        return None
    return next((size for size in FLASH_SIZES if size >= end), None)


def read_partitions(path: Path, bootloader_offset: int | None) -> PartitionTable:
    """Return the partition table in a CSV file. Raises `InvalidInput` or `ImageError`."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}", found=error.strerror) from error
    return parse_csv(text, flash_size=FLASH_SIZES[-1], bootloader_offset=bootloader_offset)


def _flash_esp(
    machine: EspHardware,
    nvs: NonVolatileStore,
    data: bytes,
    *,
    address: int | None,
    erase: bool,
    table: PartitionTable | None,
) -> str:
    if erase:
        machine.erase_chip()
    if table is not None:
        machine.provision(table)
    if address is not None:
        machine.write_flash(address, data)
        return f"{len(data)} bytes to {address:#x}"
    kind = inspect(data).format
    if kind is ImageFormat.ESP_MERGED:
        machine.write_flash(0, data)
        return f"merged image, {len(data)} bytes to 0x0"
    if kind is ImageFormat.ESP_PARTITION_TABLE:
        machine.write_flash(DEFAULT_TABLE_OFFSET, data)
        return f"partition table to {DEFAULT_TABLE_OFFSET:#x}"
    if kind is not ImageFormat.ESP_APP:
        raise InvalidInput(
            "it is not clear where this file belongs",
            expected="an app image, a merged image or a partition table",
            found=kind.value,
            hint="Give the flash address with --at.",
        )
    if machine.blank:
        machine.provision()
    partition = machine.flash_app(data)
    _note(nvs, data)
    return f"app image, {len(data)} bytes to {partition.label} at {partition.address:#x}, otadata blank"


def _flash_ameba(
    machine: AmebaHardware, nvs: NonVolatileStore, data: bytes, *, address: int | None, erase: bool
) -> str:
    """Write as the serial upload does: to OTA1, whatever OTA2 holds; the answer says which slot boots then."""
    if erase:
        machine.erase_chip()
    if address is not None:
        machine.write_flash(address, data)
        return f"{len(data)} bytes to {address:#x}"
    slot = machine.flash_app(data)
    _note_ameba(machine, nvs, data, None)
    running = machine.running_slot()
    told = f"image, {len(data)} bytes to {slot} at {machine.layout.ota1:#x}"
    if running == slot:
        return told
    where = "nothing boots" if running is None else f"{running} is still valid and is what boots"
    return f"{told}; {where}: erase the flash first (--erase)"


def _flash_ab(
    machine: AbHardware | DualBankHardware | OneBankHardware,
    nvs: NonVolatileStore,
    data: bytes,
    *,
    address: int | None,
    erase: bool,
) -> str:
    """Write to the first slot, confirmed and chosen; with an address anywhere."""
    if erase:
        machine.erase_chip()
    if address is not None:
        machine.write_flash(address, data)
        return f"{len(data)} bytes to {address:#x}"
    slot = machine.flash_app(data)
    _note(nvs, data)
    return f"image, {len(data)} bytes to {slot} at {machine.slot(slot).offset:#x}"


def _note_app(machine: Machine, nvs: NonVolatileStore, data: bytes, version: str | None) -> None:
    if isinstance(machine, AmebaHardware):
        _note_ameba(machine, nvs, data, version)
    elif isinstance(machine, M487Hardware | M2354Hardware):
        note_nuvoton(machine, data, version)
    else:
        _note(nvs, data, version)


def _note_ameba(machine: AmebaHardware, nvs: NonVolatileStore, data: bytes, version: str | None) -> None:
    image = machine.image_in("ota1")
    ImageNotes(nvs).add(ImageNote(inspect(data).version or version or "unknown", len(image), digests_of(image).sha256))


def _note(nvs: NonVolatileStore, data: bytes, version: str | None = None) -> None:
    told = inspect(data).version or version or "unknown"
    ImageNotes(nvs).add(ImageNote(told, len(data), digests_of(data).sha256))


def _empty(directory: StateDirectory) -> NonVolatileStore:
    for name in ("nvs.json", "boot.json", "slot_a.bin", "slot_b.bin"):
        (directory.path / name).unlink(missing_ok=True)
    return directory.nvs()
