"""The M2354's platform layer under AWS's OTA agent: TF-M's firmware update service, and the state that it keeps.

What is staged cannot be read back, so the digest is fed as blocks arrive: they have to come in ascending order, each
once. The signature is checked with a public key, and the job's `certfile` means nothing.
Source: docs/reference/nuvoton.md, "M2354: boot and platform layer"; OpenNuvoton/mbed-client-for-aws:
mbed/COMPONENT_AWSIOT_OTA/COMPONENT_AWSIOT_OTA_PAL_PSAFWU/ota_pal_psafwu.cpp.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Final, NoReturn

from flota.errors import FlotaError
from flota.images.markers import find_markers
from flota.images.mcuboot import ImageVersion, is_mcuboot, parse_header
from flota.images.mcuboot.header import HEADER_SIZE
from flota.trust.file_signatures import FileAlgorithm, FilePublicKey
from flota.virtual.agents.aws_ota.job_document import OtaFile
from flota.virtual.agents.aws_ota.pal import ImageState, PalCode, PalError, PalImageState
from flota.virtual.boot.mcuboot_overwrite import ask_for_copy, drop_staged, header_of
from flota.virtual.device import AppContext
from flota.virtual.events import EventKind
from flota.virtual.hardware import ImageNote
from flota.virtual.m2354_board import STATE_KEY, M2354Hardware, M2354Slots
from flota.virtual.nvs import NonVolatileStore, Value
from flota.virtual.sd_card import BLOCK_SIZE
from flota.virtual.slots import ResetReason, Restart

CODE_VERIFY_KEY: Final = "Code_Verify_Key"
"""The public key (PEM) that checks releases, an object of PKCS#11 in TF-M."""

FWU_BLOCK_MAX_BYTES: Final = 1024
"""PSA_FWU_MAX_BLOCK_SIZE, TF-M's usual one."""

REBOOT_AFTER_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class FwuRecord:
    """What survives a reset. `stage_version` is the MCUboot version of the staged image, None if not set."""

    stage_version: str | None = None
    image_state: int | None = None
    rebooted: bool = False


def read_record(nvs: NonVolatileStore) -> FwuRecord:
    """Return the record; an empty one if there is none."""
    stored = nvs.get_record(STATE_KEY)
    if stored is None:
        return FwuRecord()
    version, state = stored.get("stage_version"), stored.get("image_state")
    return FwuRecord(
        version if isinstance(version, str) else None,
        state if isinstance(state, int) else None,
        stored.get("rebooted") is True,
    )


def write_record(nvs: NonVolatileStore, record: FwuRecord) -> None:
    """Store the record, whole or not at all."""
    values: dict[str, Value] = asdict(record)
    nvs.set(STATE_KEY, values)


class PsaFwuPal:
    """The platform of one app's life. Made once at the app's start, as the vendor's static constructor is."""

    def __init__(self, context: AppContext) -> None:
        slots = context.slots
        assert isinstance(slots, M2354Slots)
        self._context = context
        self._board: M2354Hardware = slots.hardware
        self._nvs = context.nvs
        self._file: OtaFile | None = None
        self._digest = hashlib.sha256()
        self._staged = bytearray()
        record = read_record(self._nvs)
        if record.stage_version is not None and not record.rebooted:
            write_record(self._nvs, replace(record, rebooted=True))

    # --- the file -----------------------------------------------------------------------------------------------------

    async def create_file(self, file: OtaFile) -> None:
        """Forget any older update, say that nothing valid is staged, make the staging area blank."""
        self._file = None
        write_record(self._nvs, FwuRecord(image_state=PalImageState.INVALID.value))
        try:
            self._board.secondary.erase(0, self._board.secondary.size)
        except FlotaError as error:
            raise PalError(PalCode.FILE_CREATE_FAILED, str(error)) from error
        await self._context.pace.pay()
        if file.size > self._board.secondary.size:
            raise PalError(PalCode.FILE_TOO_LARGE, f"the slot has {self._board.secondary.size} bytes")
        self._digest = hashlib.sha256()
        self._staged.clear()
        self._file = file

    async def write_block(self, offset: int, data: bytes) -> None:
        """Write a block; the first has to bring MCUboot's header, whose version is remembered."""
        if self._file is None:
            raise PalError(PalCode.NULL_FILE_CONTEXT, "a block without a file")
        if offset == 0:
            if len(data) < HEADER_SIZE or not is_mcuboot(data):
                raise PalError(PalCode.FILE_ABORT, "the file does not begin with MCUboot's header")
            record = replace(read_record(self._nvs), stage_version=str(parse_header(data).version))
            write_record(self._nvs, record)
        self._digest.update(data)
        self._staged += data
        try:
            for start in range(0, len(data), FWU_BLOCK_MAX_BYTES):
                piece = data[start : start + FWU_BLOCK_MAX_BYTES]
                self._board.secondary.write(offset + start, piece + b"\xff" * (-len(piece) % BLOCK_SIZE))
        except FlotaError as error:
            raise PalError(PalCode.FILE_ABORT, str(error)) from error
        await self._context.pace.pay()

    async def close_file(self) -> None:
        """Check the signature over what came, in the order in which it came."""
        file, self._file = self._file, None
        if file is None:
            raise PalError(PalCode.NULL_FILE_CONTEXT, "no file is open")
        if file.certificate_path:
            self.say(f"certfile {file.certificate_path} is not used: the key is {CODE_VERIFY_KEY}")
        try:
            key = FilePublicKey.from_pem(str(self._nvs.get(CODE_VERIFY_KEY) or ""))
        except FlotaError as error:
            raise PalError(PalCode.BAD_SIGNER_CERTIFICATE, f"{CODE_VERIFY_KEY} cannot be used: {error}") from error
        try:
            key.check(self._digest.digest(), file.signature, FileAlgorithm.ECDSA_P256)
        except FlotaError as error:
            raise PalError(PalCode.SIGNATURE_CHECK_FAILED, f"the signature check failed: {error}") from error
        content = bytes(self._staged)
        version = find_markers(content).get("version", "unknown")
        self._board.notes.add(ImageNote(version, len(content), hashlib.sha256(content).hexdigest()))
        self._context.tell(EventKind.VERIFIED, f"the signature over {file.size} bytes is good", size=file.size)
        await self._context.pace.pay()

    async def abort(self) -> None:
        """Forget the file."""
        self._file = None

    # --- the image ----------------------------------------------------------------------------------------------------

    async def activate(self) -> NoReturn:
        """Ask the boot loader for the copy, and restart. Raises `PalError` if the card is gone."""
        try:
            ask_for_copy(self._board.secondary)
        except FlotaError as error:
            raise PalError(PalCode.ACTIVATE_FAILED, str(error)) from error
        write_record(self._nvs, replace(read_record(self._nvs), rebooted=False))
        self.say("System will reboot in 3 seconds...")
        await self._context.pace.spend(REBOOT_AFTER_S)
        raise Restart(ResetReason.SOFTWARE, "the new image is activated")

    async def reset(self, why: str) -> NoReturn:
        """Restart."""
        self.say("Resetting the device.")
        raise Restart(ResetReason.SOFTWARE, why)

    async def set_image_state(self, state: ImageState) -> None:
        """Store a state, where this board can have it: what is installed can be confirmed, never rejected."""
        installed = self.installed
        if state in (ImageState.TESTING, ImageState.ACCEPTED):
            if not installed:
                raise PalError(PalCode.COMMIT_FAILED, "the image that runs is not the one that was staged")
            stored = PalImageState.PENDING_COMMIT if state is ImageState.TESTING else PalImageState.VALID
        elif state in (ImageState.REJECTED, ImageState.ABORTED):
            code = PalCode.REJECT_FAILED if state is ImageState.REJECTED else PalCode.ABORT_FAILED
            if installed:
                raise PalError(code, "MCUboot has overwritten the old image: there is no rollback")
            self._drop(code)
            stored = PalImageState.INVALID
        else:
            raise PalError(PalCode.BAD_IMAGE_STATE, f"no such state: {state.name}")
        write_record(self._nvs, replace(read_record(self._nvs), image_state=stored.value))
        await self._context.pace.pay()

    def image_state(self) -> PalImageState:
        """Return the stored state."""
        state = read_record(self._nvs).image_state
        return PalImageState.UNKNOWN if state is None else PalImageState(state)

    @property
    def installed(self) -> bool:
        """Whether the staged image runs now: there was a reboot, and the versions are equal."""
        record = read_record(self._nvs)
        return record.rebooted and record.stage_version is not None and record.stage_version == str(self.active_version)

    @property
    def active_version(self) -> ImageVersion:
        """The MCUboot version of the image that runs."""
        return header_of(self._board.primary).version

    def say(self, text: str) -> None:
        """Print a line on the console."""
        self._context.tell(EventKind.SERIAL, text)

    def _drop(self, code: PalCode) -> None:
        """Give up what is staged. Raises `PalError` without a card."""
        try:
            drop_staged(self._board.secondary)
        except FlotaError as error:
            raise PalError(code, str(error)) from error
