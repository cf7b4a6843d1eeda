"""The PAL of `aws-reference`: a plain A/B device. The file goes into the other slot; the boot record keeps the states.

Source: docs/reference/aws-iot.md, "What the virtual agent mirrors"; awsdocs/aws-freertos-docs:
portingguide/afr-porting-ota.
"""

from __future__ import annotations

import enum
import hashlib
import re
from typing import Final, NoReturn

from flota.digests import digests_of
from flota.errors import FlotaError
from flota.images.inspection import inspect
from flota.images.markers import find_markers
from flota.protocols.aws_ota import FIRMWARE_FILE_TYPE
from flota.trust.code_signing import parse_chain, public_pem_of
from flota.trust.file_signatures import FileAlgorithm, FilePublicKey, FileSignatureWrong
from flota.virtual.ab_board import AbBlockWriter, AbSlots
from flota.virtual.agents.aws_ota.job_document import DEFAULT_SIGNATURE_KEY, OtaFile
from flota.virtual.agents.aws_ota.pal import ImageState, PalCode, PalError, PalImageState
from flota.virtual.hardware import ImageNote, ImageNotes
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.pace import Pace
from flota.virtual.slots import BadImage, ResetReason, Restart, SlotState

_SIGNATURE_KEYS: Final = {
    FileAlgorithm.ECDSA_P256: "sig-sha256-ecdsa",
    FileAlgorithm.RSA_PKCS1: "sig-sha256-rsa",
}
_NAMED_VERSION: Final = re.compile(r"_[vV](\d{1,3}\.\d{1,3}\.\d{1,5})(?:\.[A-Za-z0-9]+)?\Z")


class SignatureFault(enum.IntEnum):
    """Sub codes of a failed signature check on this board."""

    MISSING = 1
    """The job has no signature of the kind that the firmware reads."""
    WRONG = 2
    """It does not belong to these bytes and the certificate's key."""
    NO_CERTIFICATE = 3
    """The device was made without a code-signing certificate."""
    UNREADABLE_CERTIFICATE = 4


class AbPal:
    """The platform of a running app. `certificate` (PEM) is what the job's `certfile` stands for on this device."""

    def __init__(self, slots: AbSlots, nvs: NonVolatileStore, pace: Pace, certificate: bytes | None) -> None:
        self._slots = slots
        self._nvs = nvs
        self._pace = pace
        self._certificate = certificate
        self._file: OtaFile | None = None
        self._writer: AbBlockWriter | None = None
        self._checked: AbBlockWriter | None = None

    async def create_file(self, file: OtaFile) -> None:
        """Erase what the file needs of the other slot."""
        slot = self._slots.next_slot()
        self._checked = None
        if file.size > self._slots.capacity(slot):
            raise PalError(
                PalCode.FILE_TOO_LARGE, f"{file.size} bytes are more than the {self._slots.capacity(slot)} of {slot}"
            )
        self._writer = await self._slots.begin_blocks(slot, file.size)
        self._file = file

    async def write_block(self, offset: int, data: bytes) -> None:
        """Program a block."""
        if self._writer is None:
            raise PalError(PalCode.NULL_FILE_CONTEXT, "no file is open")
        try:
            await self._writer.write_at(offset, data)
        except BadImage as error:
            raise PalError(PalCode.UNINITIALIZED, str(error)) from error

    async def close_file(self) -> None:
        """Check the signature over the file as it stands in flash."""
        writer, file = self._writer, self._file
        if writer is None or file is None:
            raise PalError(PalCode.NULL_FILE_CONTEXT, "no file is open")
        self._writer = self._file = None
        content = writer.content()
        _check_signature(content, file.signature, self._certificate)
        digest = digests_of(content).sha256
        ImageNotes(self._nvs).add(ImageNote(version_of(content, file.path), writer.size, digest))
        self._checked = writer if file.file_type == FIRMWARE_FILE_TYPE else None

    async def abort(self) -> None:
        """Forget the open file; the slot is not in the boot record."""
        self._writer = self._file = None

    async def activate(self) -> NoReturn:
        """Put the checked image on trial and restart."""
        if self._checked is None:
            raise PalError(PalCode.ACTIVATE_FAILED, "there is no image to activate")
        self._slots.try_image(self._checked)
        await self._pace.pay()
        raise Restart(ResetReason.SOFTWARE, "to start the update")

    async def reset(self, why: str) -> NoReturn:
        """Restart."""
        raise Restart(ResetReason.SOFTWARE, why)

    async def set_image_state(self, state: ImageState) -> None:
        """Confirm or reject the running image if it is on trial; else only the other slot can be given up."""
        on_trial = self.image_state() is PalImageState.PENDING_COMMIT
        if state is ImageState.ACCEPTED:
            if not on_trial:
                raise PalError(PalCode.COMMIT_FAILED, "the running image is not on trial")
            self._slots.confirm()
        elif state in (ImageState.REJECTED, ImageState.ABORTED):
            self._give_up(on_trial=on_trial)
        elif state is not ImageState.TESTING:
            raise PalError(PalCode.BAD_IMAGE_STATE, f"no image state: {int(state)}")
        await self._pace.pay()

    def image_state(self) -> PalImageState:
        """Return what the boot record says of the running image."""
        state = self._slots.state_of(self._slots.running.slot)
        if state is SlotState.PENDING_VERIFY:
            return PalImageState.PENDING_COMMIT
        return PalImageState.VALID if state is SlotState.VALID else PalImageState.INVALID

    def _give_up(self, *, on_trial: bool) -> None:
        """Reject the image on trial; without one, what was being written is forgotten and the running image stays."""
        self._checked = None
        if not on_trial:
            self._writer = self._file = None
            return
        try:
            self._slots.reject()
        except BadImage as error:
            raise PalError(PalCode.REJECT_FAILED, str(error)) from error


def version_of(content: bytes, path: str) -> str:
    """Return the version that an image says it has, or the `_V1.2.3` at the end of the path's name; else empty."""
    marked = find_markers(content).get("version")
    if marked:
        return marked
    try:
        told = inspect(content).version
    except FlotaError:
        told = None
    named = _NAMED_VERSION.search(path)
    return told or (named.group(1) if named else "")


def verifying_key(certificate: bytes) -> FilePublicKey:
    """Return the public key in a code-signing certificate (PEM); expiry and chain are not looked at. Raises `PalError`.

    That is what the ports of the vendors do (docs/reference/code-signing.md).
    """
    try:
        return FilePublicKey.from_pem(public_pem_of(parse_chain(certificate)[0]))
    except (FlotaError, IndexError) as error:
        text = "the code-signing certificate cannot be used"
        raise PalError(PalCode.BAD_SIGNER_CERTIFICATE, text, sub_code=SignatureFault.UNREADABLE_CERTIFICATE) from error


def signature_key_of(certificate: bytes | None) -> str:
    """Return under which name of the job document a device with this certificate looks for its signature."""
    if certificate is None:
        return DEFAULT_SIGNATURE_KEY
    try:
        usual = verifying_key(certificate).algorithms[0]
    except PalError:
        return DEFAULT_SIGNATURE_KEY
    return _SIGNATURE_KEYS[usual]


def _check_signature(content: bytes, signature: bytes, certificate: bytes | None) -> None:
    """Raise `PalError` unless `signature` is the certificate's key's over `content`."""
    if certificate is None:
        text = "the device has no code-signing certificate"
        raise PalError(PalCode.BAD_SIGNER_CERTIFICATE, text, sub_code=SignatureFault.NO_CERTIFICATE)
    key = verifying_key(certificate)
    if not signature:
        text = "the job has no signature that this firmware reads"
        raise PalError(PalCode.SIGNATURE_CHECK_FAILED, text, sub_code=SignatureFault.MISSING)
    try:
        key.check(hashlib.sha256(content).digest(), signature)
    except FileSignatureWrong as error:
        text = "the signature is not the signer's over this file"
        raise PalError(PalCode.SIGNATURE_CHECK_FAILED, text, sub_code=SignatureFault.WRONG) from error
