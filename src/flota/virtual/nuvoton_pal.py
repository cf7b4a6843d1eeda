"""The M487's platform layer under AWS's OTA agent: staging, signature, descriptor, backup, reset.

All in the vendor's order. With boot programs of the `rollback` profile it writes the descriptor through the journal,
notes checksums beside the backup and for the staged image, and gives up the backup when it commits; with `stock` it
does what the vendor's does.
Source: docs/reference/nuvoton.md, "Steps of the application"; OpenNuvoton/mbed-client-for-aws:
mbed/COMPONENT_AWSIOT_OTA/COMPONENT_AWSIOT_OTA_PAL_NVTBL/ota_pal_mbed.cpp.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, replace
from typing import Final, NoReturn

from cryptography.exceptions import UnsupportedAlgorithm

from flota.errors import FlotaError
from flota.images.markers import find_markers
from flota.images.nuvoton import DESCRIPTOR_SIZE, Descriptor, ImageFlag, Trailer, has_magic, parse_descriptor
from flota.images.nuvoton.descriptor import FLAG_OFFSET, SIGNATURE_ROOM_SINCE_3_4
from flota.images.nuvoton.flash_map import (
    APP_ADDR,
    APP_SIZE,
    BACKUP_ADDR,
    DESCRIPTOR_ADDR,
    LDROM_ADDR,
    STAGING_ADDR,
    STAGING_SIZE,
    TRAILER_ADDR,
    backup_image_addr,
)
from flota.trust.code_signing import parse_chain, public_pem_of
from flota.trust.file_signatures import FileAlgorithm, FilePublicKey
from flota.virtual.agents.aws_ota.job_document import OtaFile
from flota.virtual.agents.aws_ota.pal import ImageState, PalCode, PalError, PalImageState
from flota.virtual.boot.nuvoton_journal import Record, present_record, write_descriptor
from flota.virtual.device import AppContext
from flota.virtual.events import EventKind
from flota.virtual.flash import NorFlash
from flota.virtual.hardware import ImageNote
from flota.virtual.nuvoton_board import WORD_SIZE, M487Hardware
from flota.virtual.nuvoton_kvstore import CODE_VERIFY_KEY, NO_ENTRIES, read_entries
from flota.virtual.nuvoton_programs import BootProfile
from flota.virtual.nuvoton_slots import M487Slots
from flota.virtual.slots import ResetReason, Restart
from flota.virtual.spi_nor import SpiFlashMissing, SpiGeometry

READ_BACK_BYTES: Final = 512
RESET_AFTER_S: Final = 1.0
BACKUP_MARKER: Final = "backup-bank"
WITHOUT_BACKUP: Final = "without"
"""Marker of an app that was built with NVT_OTA_WITHOUT_BACKUP_BANK."""

_FLAG_OF: Final = {
    ImageState.TESTING: ImageFlag.PENDING_COMMIT,
    ImageState.ACCEPTED: ImageFlag.VALID,
    ImageState.REJECTED: ImageFlag.INVALID,
    ImageState.ABORTED: ImageFlag.INVALID,
}
_STATE_OF: Final = {
    ImageFlag.PENDING_COMMIT: PalImageState.PENDING_COMMIT,
    ImageFlag.VALID: PalImageState.VALID,
    ImageFlag.NEW: PalImageState.VALID,
}


@dataclass(frozen=True, slots=True)
class NvtblBuild:
    """How the application was built.

    `compiled_certificate` is `aws_codeVerCrt` (PEM), used when the job names another label than `Code_Verify_Key` or
    the key store has none. `noise` fills the fields that the vendor's code never sets (four bytes, None = zeros).
    """

    compiled_certificate: bytes = b""
    noise: bytes | None = None

    @property
    def garbage(self) -> int:
        """What stands in a field that nobody sets."""
        return int.from_bytes(self.noise or b"", "little")


class NvtblPal:
    """The platform of one app's life."""

    def __init__(self, context: AppContext, build: NvtblBuild) -> None:
        slots = context.slots
        assert isinstance(slots, M487Slots)
        self._context = context
        self._build = build
        self._board: M487Hardware = slots.hardware
        self._aprom: NorFlash = slots.hardware.chips.aprom
        self._file: OtaFile | None = None
        self._with_backup = slots.running.markers.get(BACKUP_MARKER) != WITHOUT_BACKUP
        self._journaled = slots.hardware.profile is BootProfile.ROLLBACK

    # --- the file -----------------------------------------------------------------------------------------------------

    async def create_file(self, file: OtaFile) -> None:
        """Erase the whole staging bank, check that it is blank, write a descriptor that says invalid."""
        if self._journaled and file.size > APP_SIZE:
            raise PalError(PalCode.FILE_TOO_LARGE, f"the app has {APP_SIZE} bytes, the file {file.size}")
        spi = self._board.spi
        try:
            geometry = spi.geometry
            spi.erase(STAGING_ADDR, geometry.erase_size)
            spi.erase(STAGING_ADDR, STAGING_SIZE)
            await self._context.pace.pay()
            for start in range(STAGING_ADDR, STAGING_SIZE, READ_BACK_BYTES):
                if spi.read(start, READ_BACK_BYTES) != b"\xff" * READ_BACK_BYTES:
                    raise PalError(PalCode.FILE_CREATE_FAILED, f"the staging bank is not blank at {start:#x}")
        except SpiFlashMissing as error:
            raise PalError(PalCode.FILE_CREATE_FAILED, str(error)) from error
        self._file = file
        garbage = self._build.garbage
        descriptor = Descriptor(ImageFlag.INVALID, file.size - 1, sequence=garbage, hardware_id=garbage)
        self._write(Record(descriptor))
        await self._context.pace.pay()

    async def write_block(self, offset: int, data: bytes) -> None:
        """Program a block of the file into the staging bank."""
        if self._file is None:
            raise PalError(PalCode.NULL_FILE_CONTEXT, "a block without a file")
        try:
            self._board.spi.program(STAGING_ADDR + offset, data)
        except SpiFlashMissing as error:
            raise PalError(PalCode.FILE_ABORT, str(error)) from error
        await self._context.pace.pay()

    async def close_file(self) -> None:
        """Check the signature over what the SPI flash holds; good: the flag says new, and the trailer follows."""
        file, self._file = self._file, None
        if file is None:
            raise PalError(PalCode.NULL_FILE_CONTEXT, "no file is open")
        try:
            content = b"".join(
                self._board.spi.read(start, min(READ_BACK_BYTES, file.size - start))
                for start in range(STAGING_ADDR, file.size, READ_BACK_BYTES)
            )
            self._check_signature(file, content)
        except SpiFlashMissing as error:
            self._set_flag(ImageFlag.INVALID)
            raise PalError(PalCode.FILE_CLOSE, str(error)) from error
        except PalError:
            self._set_flag(ImageFlag.INVALID)
            raise
        self._note(content)
        self._set_flag(ImageFlag.NEW, zlib.crc32(content))
        self._write_trailer(file.signature)
        self._context.tell(EventKind.VERIFIED, f"the signature over {file.size} bytes is good", size=file.size)
        await self._context.pace.pay()

    async def abort(self) -> None:
        """Forget the file; nothing is erased."""
        self._file = None

    # --- the image ----------------------------------------------------------------------------------------------------

    async def activate(self) -> NoReturn:
        """Save the running app to the backup bank, unless built without, and restart."""
        if self._with_backup:
            try:
                await self._back_up()
            except SpiFlashMissing as error:
                self._context.tell(EventKind.TROUBLE, f"no backup was made: {error}")
        self._context.tell(EventKind.INSTALLED, "the new image is staged for the Cloner", slot="staging")
        await self.reset("the new image is activated")

    async def reset(self, why: str) -> NoReturn:
        """Restart through LDROM: vectors mapped there, then a CPU reset."""
        self.say("Resetting the device.")
        await self._context.pace.spend(RESET_AFTER_S)
        if not self._board.allow_programming():
            self._board.reset.cpu_reset_to = LDROM_ADDR
        raise Restart(ResetReason.SOFTWARE, why)

    async def set_image_state(self, state: ImageState) -> None:
        """Write the flag that stands for a state. Raises `PalError` for a commit with a file open, and no state."""
        flag = _FLAG_OF.get(state)
        if flag is None:
            raise PalError(PalCode.BAD_IMAGE_STATE, f"no such state: {state.name}")
        if state is ImageState.ACCEPTED and self._file is not None:
            raise PalError(PalCode.COMMIT_FAILED, "a file is still open")
        self._set_flag(flag)
        if state is ImageState.ACCEPTED:
            self.say("Accepted and committed final image.")
        self.say(f"Flag[0x{flag.value:02x}]")
        await self._context.pace.pay()

    def image_state(self) -> PalImageState:
        """Return what the descriptor says, and print it."""
        raw = self._descriptor_bytes()
        if not has_magic(raw):
            return PalImageState.UNKNOWN
        flag = parse_descriptor(raw).flag
        state = next((state for known, state in _STATE_OF.items() if known == flag), PalImageState.INVALID)
        self.say(f"image state [{state.value}] -- Flag[0x{flag:02x}]")
        return state

    def say(self, text: str) -> None:
        """Print a line on the console."""
        self._context.tell(EventKind.SERIAL, text)

    # --- signature ----------------------------------------------------------------------------------------------------

    def _check_signature(self, file: OtaFile, content: bytes) -> None:
        key = self._verifying_key(file.certificate_path)
        try:
            key.check(hashlib.sha256(content).digest(), file.signature, FileAlgorithm.ECDSA_P256)
        except FlotaError as error:
            raise PalError(PalCode.SIGNATURE_CHECK_FAILED, f"the signature check failed: {error}") from error

    def _verifying_key(self, label: str) -> FilePublicKey:
        """Return the key of the certificate with this label; any other label, or none: of the one compiled in."""
        entries = read_entries(self._aprom) or NO_ENTRIES
        pem = entries.get(CODE_VERIFY_KEY, "").encode() if label == CODE_VERIFY_KEY else b""
        if not pem:
            self.say(f"No such certificate file: {label}. Using aws_codeVerCrt.")
            pem = self._build.compiled_certificate
        try:
            return FilePublicKey.from_pem(public_pem_of(parse_chain(pem)[0]))
        except (FlotaError, IndexError, ValueError, UnsupportedAlgorithm) as error:
            text = f"the certificate for {label or 'no label'} cannot be used: {error}"
            raise PalError(PalCode.BAD_SIGNER_CERTIFICATE, text) from error

    # --- descriptor, trailer, backup ----------------------------------------------------------------------------------

    def _descriptor_bytes(self) -> bytes:
        return self._aprom.read(DESCRIPTOR_ADDR, DESCRIPTOR_SIZE)

    def _set_flag(self, flag: ImageFlag, crc: int | None = None) -> None:
        """Write the descriptor anew with another flag; the vendor's code does so even where there is none."""
        raw = self._descriptor_bytes()
        if not self._journaled:
            self._rewrite(raw[:FLAG_OFFSET] + bytes((flag,)) + raw[FLAG_OFFSET + 1 :])
            return
        record = present_record(self._board.controller)
        if record is None:
            return
        descriptor = replace(record.descriptor, flag=flag.value)
        if flag is ImageFlag.VALID:
            descriptor = replace(descriptor, reserved=0)  # what was accepted is not to be undone later
        if crc is not None:
            record = replace(record, image_crc=crc, save_first=self._with_backup)
        self._write(replace(record, descriptor=descriptor))

    def _write(self, record: Record) -> None:
        if self._journaled:
            write_descriptor(self._board.controller, record)
        else:
            self._rewrite(record.descriptor.pack())

    def _rewrite(self, raw: bytes) -> None:
        """Erase the page and program it word by word, as the vendor's driver does."""
        self._aprom.erase_sector(DESCRIPTOR_ADDR)
        for start in range(0, len(raw), WORD_SIZE):
            self._aprom.program(DESCRIPTOR_ADDR + start, raw[start : start + WORD_SIZE])

    def _write_trailer(self, signature: bytes) -> None:
        room = SIGNATURE_ROOM_SINCE_3_4
        rest = None if self._build.noise is None else (self._build.noise * room)[: room - len(signature)]
        trailer = Trailer(signature, room=room, rest=rest).pack()
        self._aprom.erase_sector(TRAILER_ADDR)
        for start in range(0, len(trailer), WORD_SIZE):
            self._aprom.program(TRAILER_ADDR + start, trailer[start : start + WORD_SIZE])

    async def _back_up(self) -> None:
        """Copy the app's whole area, then the header that vouches for it, then say in the descriptor where it is."""
        spi, geometry = self._board.spi, self._board.spi.geometry
        place = backup_image_addr(geometry.erase_size)
        spi.erase(BACKUP_ADDR, _erased_for_backup(geometry))
        await self._context.pace.pay()
        image = self._aprom.read(APP_ADDR, APP_SIZE)
        spi.program(place, image, skip_blank=self._journaled)
        header = Descriptor(ImageFlag.VALID, APP_SIZE - 1, reserved=place)
        record = Record(header, zlib.crc32(image))
        spi.program(BACKUP_ADDR, record.pack() if self._journaled else header.pack())
        present = present_record(self._board.controller)
        if present is not None:
            self._write(replace(present, descriptor=replace(present.descriptor, reserved=BACKUP_ADDR)))
        self._context.tell(EventKind.PROGRESS, "the running app is saved to the backup bank")
        await self._context.pace.pay()

    def _note(self, content: bytes) -> None:
        """Note what the file is, for whoever looks at the device: no byte of the flash says it."""
        version = find_markers(content).get("version", "unknown")
        self._board.notes.add(ImageNote(version, len(content), hashlib.sha256(content).hexdigest()))


def _erased_for_backup(geometry: SpiGeometry) -> int:
    """Return how many bytes the backup bank takes: the app in whole blocks, and the header's block."""
    return -(-APP_SIZE // geometry.erase_size) * geometry.erase_size + geometry.erase_size
