"""The platform layers of M487 and M2354 by themselves: what each call writes, in order, and every way to refuse.

Source: docs/reference/nuvoton.md, "Steps of the application" and "M2354: boot and platform layer".
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from flota.boards.catalogue import board as board_named
from flota.images.nuvoton import ImageFlag, has_magic, parse_descriptor, parse_trailer
from flota.images.nuvoton.flash_map import (
    APP_SIZE,
    APROM_SIZE,
    BACKUP_ADDR,
    DESCRIPTOR_ADDR,
    LDROM_ADDR,
    LDROM_SIZE,
    MIB,
    STAGING_SIZE,
    TRAILER_ADDR,
)
from flota.lab.at_once import TimelessPace
from flota.lab.nuvoton_programmer import flash_nuvoton, provision
from flota.lab.nuvoton_sweep_device import m487_image, m2354_image, sweep_boot_key
from flota.trust.code_signing import make_code_signing_certificate, parse_chain, public_pem_of
from flota.trust.file_signatures import FilePrivateKey
from flota.trust.keys import PrivateKey
from flota.virtual.agents.aws_ota.job_document import OtaFile
from flota.virtual.agents.aws_ota.pal import ImageState, Pal, PalCode, PalError, PalImageState
from flota.virtual.device import AppContext, Identity
from flota.virtual.events import DeviceEvent, EventKind
from flota.virtual.flash import FlashOperation, FlashOperationKind, NorFlash
from flota.virtual.m2354_board import M2354Chips, M2354Hardware
from flota.virtual.m2354_pal import PsaFwuPal, read_record
from flota.virtual.nuvoton_board import CONFIG_SIZE, M487Chips, M487Hardware
from flota.virtual.nuvoton_kvstore import CODE_VERIFY_KEY, write_entries
from flota.virtual.nuvoton_pal import NvtblBuild, NvtblPal
from flota.virtual.nuvoton_programs import BootProfile
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.sd_card import SdCard
from flota.virtual.slots import DeviceSlots, ResetReason, Restart
from flota.virtual.spi_nor import SpiNor

SIGNER, OTHER = PrivateKey.generate("p256"), PrivateKey.generate("p256")
OLD, NEW = m487_image("1.0.0", 12_288), m487_image("1.0.1", 9_000)
BLOCK = 2048


def certificate_of(key: PrivateKey) -> bytes:
    made = make_code_signing_certificate(key, subject="pals", serial=1, now=datetime(2026, 1, 1, tzinfo=UTC))
    return made.public_bytes(Encoding.PEM)


def signed(data: bytes, key: PrivateKey = SIGNER, **changes: object) -> OtaFile:
    signature = FilePrivateKey.from_pem(key.to_pem()).sign(hashlib.sha256(data).digest())
    file = OtaFile(len(data), certificate_path=CODE_VERIFY_KEY, signature=signature)
    return replace(file, **changes)  # type: ignore[arg-type]


def context_of(slots: DeviceSlots | None, nvs: NonVolatileStore, events: list[DeviceEvent]) -> AppContext:
    assert slots is not None
    return AppContext(
        Identity("thing", "m487", "02:00:00:00:00:01", "m487"),
        slots,
        nvs,
        TimelessPace(),
        random.Random(1),
        ResetReason.POWER_ON,
        lambda kind, text, facts: events.append(DeviceEvent("thing", kind, text, facts)),
    )


async def refused(call: Callable[[], object], code: PalCode) -> PalError:
    with pytest.raises(PalError) as refusal:
        await call()  # type: ignore[misc]
    assert refusal.value.main == code, refusal.value
    return refusal.value


async def download(pal: Pal, data: bytes, file: OtaFile) -> None:
    """Create the file and write all its blocks."""
    await pal.create_file(file)
    for start in range(0, len(data), BLOCK):
        await pal.write_block(start, data[start : start + BLOCK])


# --- M487 -------------------------------------------------------------------------------------------------------------


@dataclass
class M487:
    """A board that runs OLD; `app` starts it and gives its platform layer."""

    profile: BootProfile = BootProfile.STOCK
    first: bytes = OLD
    events: list[DeviceEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        spi = SpiNor(NorFlash.blank(MIB, write_alignment=1), jedec_id=bytes.fromhex("ef4014"))
        chips = M487Chips(NorFlash.blank(APROM_SIZE), NorFlash.blank(LDROM_SIZE), NorFlash.blank(CONFIG_SIZE), spi)
        self.nvs = NonVolatileStore()
        self.board = M487Hardware(
            board_named("m487"), chips, nvs=self.nvs, pace=TimelessPace(), usual_profile=self.profile
        )
        flash_nuvoton(self.board, self.first, address=None, erase=False)
        self.stored(certificate_of(SIGNER))

    def stored(self, certificate: bytes) -> None:
        write_entries(self.board.chips.aprom, {CODE_VERIFY_KEY: certificate.decode()})

    def app(self, build: NvtblBuild | None = None) -> NvtblPal:
        report = self.board.boot()
        return NvtblPal(context_of(report.slots, self.nvs, self.events), build or NvtblBuild())

    @property
    def descriptor(self) -> tuple[int, int, int]:
        """Flag, end and reserved."""
        found = parse_descriptor(self.board.chips.aprom.read(DESCRIPTOR_ADDR, 32))
        return found.flag, found.end, found.reserved

    @property
    def said(self) -> list[str]:
        return [event.text for event in self.events if event.kind is EventKind.SERIAL]


async def test_create_file_erases_the_staging_bank_then_writes_a_descriptor_that_says_invalid() -> None:
    m487 = M487()
    m487.board.chips.spi.flash.program(STAGING_SIZE - 4096, b"\0" * 8)
    pal = m487.app()
    operations: list[tuple[str, FlashOperationKind, int]] = []

    def note(operation: FlashOperation) -> None:
        operations.append((operation.chip, operation.kind, operation.address))

    m487.board.chips.spi.flash.listener = m487.board.chips.aprom.listener = note
    await pal.create_file(signed(NEW))
    erases = [(kind, address) for _, kind, address in operations[:129]]
    wanted = [(FlashOperationKind.ERASE, address) for address in (0, *range(0, STAGING_SIZE, 4096))]
    assert erases == wanted, "block 0 first, then all of it"
    assert operations[129][1:] == (FlashOperationKind.ERASE, DESCRIPTOR_ADDR)
    assert [address for _, _, address in operations[130:]] == list(range(DESCRIPTOR_ADDR, DESCRIPTOR_ADDR + 32, 4))
    assert m487.descriptor == (ImageFlag.INVALID, len(NEW) - 1, 0)
    assert pal.image_state() is PalImageState.INVALID


async def test_a_staging_bank_that_is_not_blank_after_its_erase_is_no_place_for_a_file() -> None:
    m487 = M487()
    spi = m487.board.chips.spi.flash
    spi.program(0x5_0000, b"\0" * 8)
    pal = m487.app()
    spi.erase = lambda address, length: None  # type: ignore[method-assign]  # a chip whose cells do not erase
    error = await refused(lambda: pal.create_file(signed(NEW)), PalCode.FILE_CREATE_FAILED)
    assert "0x50000" in str(error)
    assert not has_magic(m487.board.chips.aprom.read(DESCRIPTOR_ADDR, 32)), "the descriptor was not touched"


@pytest.mark.parametrize("fault", ["fitted", "has_sfdp"])
async def test_an_spi_flash_that_is_absent_or_says_nothing_of_itself_creates_no_file(fault: str) -> None:
    m487 = M487()
    setattr(m487.board.chips.spi, fault, False)
    await refused(lambda: m487.app().create_file(signed(NEW)), PalCode.FILE_CREATE_FAILED)
    assert m487.app().image_state() is PalImageState.UNKNOWN


async def test_calls_without_an_open_file_are_refused() -> None:
    pal = M487().app()
    await refused(lambda: pal.write_block(0, b"\0" * 8), PalCode.NULL_FILE_CONTEXT)
    await refused(pal.close_file, PalCode.NULL_FILE_CONTEXT)


async def test_a_good_signature_sets_the_flag_new_and_then_the_trailer() -> None:
    m487 = M487()
    pal = m487.app()
    file = signed(NEW)
    await download(pal, NEW, file)
    await pal.close_file()
    assert m487.descriptor == (ImageFlag.NEW, len(NEW) - 1, 0)
    trailer = parse_trailer(m487.board.chips.aprom.read(TRAILER_ADDR, 4096))
    assert trailer.signature == file.signature
    assert pal.image_state() is PalImageState.VALID


@pytest.mark.parametrize(
    ("file", "staged"),
    [
        (signed(NEW, OTHER), NEW),
        (signed(NEW, signature=b""), NEW),
        (signed(NEW, signature=b"\x30\x06\x02\x01\x01\x02\x01\x01"), NEW),
        (signed(NEW, signature=bytes(64)), NEW),
        (signed(NEW), NEW[:-1] + b"\0"),
        (signed(OLD), OLD[:-2048] + NEW[:2048]),
    ],
    ids=["wrong-key", "unsigned", "not-its-signature", "raw-r-and-s", "one-byte-changed", "last-block-of-another"],
)
async def test_a_signature_that_does_not_hold_ends_as_invalid_and_writes_no_trailer(
    file: OtaFile, staged: bytes
) -> None:
    m487 = M487()
    pal = m487.app()
    await download(pal, staged, file)
    await refused(pal.close_file, PalCode.SIGNATURE_CHECK_FAILED)
    assert m487.descriptor[0] == ImageFlag.INVALID
    assert m487.board.chips.aprom.read(TRAILER_ADDR, 4096) == b"\xff" * 4096
    assert m487.board.image_in("app") == OLD


@pytest.mark.parametrize("label", ["Code_Verify_Key_2", "", "/Code_Verify_Key"])
async def test_another_label_means_the_certificate_that_is_compiled_in(label: str) -> None:
    m487 = M487()
    pal = m487.app(NvtblBuild(certificate_of(OTHER)))
    await download(pal, NEW, signed(NEW, OTHER, certificate_path=label))
    await pal.close_file()
    assert any("Using aws_codeVerCrt" in line for line in m487.said)


async def test_the_stored_certificate_is_not_asked_under_another_label_and_the_compiled_one_not_under_its_own() -> None:
    m487 = M487()
    pal = m487.app(NvtblBuild(certificate_of(OTHER)))
    await download(pal, NEW, signed(NEW, SIGNER, certificate_path="other"))
    await refused(pal.close_file, PalCode.SIGNATURE_CHECK_FAILED)
    await download(pal, NEW, signed(NEW, OTHER))
    await refused(pal.close_file, PalCode.SIGNATURE_CHECK_FAILED)


@pytest.mark.parametrize(
    "certificate",
    [
        b"",
        b"no certificate",
        certificate_of(SIGNER)[:200],
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ],
    ids=["none", "text", "cut-off", "empty-der"],
)
async def test_a_certificate_that_cannot_be_read_is_an_error_of_its_own(certificate: bytes) -> None:
    m487 = M487()
    m487.stored(certificate)
    pal = m487.app()
    await download(pal, NEW, signed(NEW))
    await refused(pal.close_file, PalCode.BAD_SIGNER_CERTIFICATE)
    assert m487.descriptor[0] == ImageFlag.INVALID


async def test_rsa_is_not_supported_by_this_layer_even_with_a_certificate_of_its_kind() -> None:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rsa")])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + timedelta(days=9))
    m487 = M487()
    m487.stored(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    pal = m487.app()
    await download(pal, NEW, signed(NEW, signature=key.sign(NEW, padding.PKCS1v15(), hashes.SHA256())))
    await refused(pal.close_file, PalCode.SIGNATURE_CHECK_FAILED)


@pytest.mark.parametrize("profile", list(BootProfile))
async def test_an_spi_flash_that_dies_before_the_check_leaves_invalid_behind(profile: BootProfile) -> None:
    m487 = M487(profile)
    pal = m487.app()
    await download(pal, NEW, signed(NEW))
    m487.board.chips.spi.fitted = False
    await refused(pal.close_file, PalCode.FILE_CLOSE)
    assert m487.descriptor[0] == ImageFlag.INVALID


@pytest.mark.parametrize(
    ("state", "flag", "told"),
    [
        (ImageState.TESTING, ImageFlag.PENDING_COMMIT, PalImageState.PENDING_COMMIT),
        (ImageState.ACCEPTED, ImageFlag.VALID, PalImageState.VALID),
        (ImageState.REJECTED, ImageFlag.INVALID, PalImageState.INVALID),
        (ImageState.ABORTED, ImageFlag.INVALID, PalImageState.INVALID),
    ],
)
async def test_each_state_has_its_flag(state: ImageState, flag: ImageFlag, told: PalImageState) -> None:
    m487 = M487()
    pal = m487.app()
    await download(pal, NEW, signed(NEW))
    await pal.close_file()
    await pal.set_image_state(state)
    assert (m487.descriptor[0], pal.image_state()) == (flag, told)
    assert m487.said[-2:] == [f"Flag[0x{flag:02x}]", f"image state [{told.value}] -- Flag[0x{flag:02x}]"]


async def test_a_commit_with_a_file_open_and_a_state_that_is_none_are_refused() -> None:
    m487 = M487()
    pal = m487.app()
    await pal.create_file(signed(NEW))
    await refused(lambda: pal.set_image_state(ImageState.ACCEPTED), PalCode.COMMIT_FAILED)
    assert m487.descriptor[0] == ImageFlag.INVALID
    await refused(lambda: pal.set_image_state(ImageState.UNKNOWN), PalCode.BAD_IMAGE_STATE)
    await pal.abort()
    await pal.set_image_state(ImageState.ACCEPTED)


async def test_stock_a_state_set_on_a_blank_page_leaves_the_magic_blank() -> None:
    m487 = M487()
    pal = m487.app()
    await pal.set_image_state(ImageState.TESTING)
    raw = m487.board.chips.aprom.read(DESCRIPTOR_ADDR, 32)
    assert raw == b"\xff" * 7 + b"\xfe" + b"\xff" * 24
    assert pal.image_state() is PalImageState.UNKNOWN


async def test_activate_saves_the_whole_area_then_its_header_then_says_where_and_resets_through_ldrom() -> None:
    m487 = M487()
    pal = m487.app()
    await download(pal, NEW, signed(NEW))
    await pal.close_file()
    with pytest.raises(Restart, match="activated"):
        await pal.activate()
    spi = m487.board.chips.spi.flash
    header = parse_descriptor(spi.read(BACKUP_ADDR, 32))
    assert (header.flag, header.end, header.reserved) == (ImageFlag.VALID, APP_SIZE - 1, 0x8_1000)
    assert spi.read(0x8_1000, len(OLD)) == OLD
    assert m487.descriptor == (ImageFlag.NEW, len(NEW) - 1, 0x8_0000)
    assert m487.said[-1] == "Resetting the device."
    assert not m487.board.allow_programming(), "that was done on the way, by a chip reset"
    with pytest.raises(Restart):
        await pal.reset("once more")
    assert m487.board.boot().console[0] == "Boot from LDROM successful"


async def test_activate_of_a_build_without_the_backup_bank_touches_none() -> None:
    m487 = M487(first=m487_image("1.0.0", 12_288, with_backup=False))
    pal = m487.app()
    await download(pal, NEW, signed(NEW))
    await pal.close_file()
    with pytest.raises(Restart):
        await pal.activate()
    assert m487.board.chips.spi.flash.read(BACKUP_ADDR, 4096) == b"\xff" * 4096
    assert m487.descriptor == (ImageFlag.NEW, len(NEW) - 1, 0)


async def test_a_backup_that_fails_is_told_and_the_update_goes_on() -> None:
    m487 = M487()
    pal = m487.app()
    await download(pal, NEW, signed(NEW))
    await pal.close_file()
    m487.board.chips.spi.fitted = False
    with pytest.raises(Restart):
        await pal.activate()
    (trouble,) = (event.text for event in m487.events if event.kind is EventKind.TROUBLE)
    assert trouble.startswith("no backup was made: ")
    assert m487.descriptor == (ImageFlag.NEW, len(NEW) - 1, 0)


async def test_noise_in_the_fields_that_nobody_sets_changes_nothing() -> None:
    m487 = M487()
    pal = m487.app(NvtblBuild(noise=b"\xd8\x11\x00\x20"))
    await download(pal, NEW, signed(NEW))
    await pal.close_file()
    found = parse_descriptor(m487.board.chips.aprom.read(DESCRIPTOR_ADDR, 32))
    assert (found.sequence, found.hardware_id) == (0x2000_11D8, 0x2000_11D8)
    m487.board.reset.cpu_reset_to = LDROM_ADDR
    report = m487.board.boot()
    assert report.app is not None
    assert report.app.version == "1.0.1"


# --- M2354 ------------------------------------------------------------------------------------------------------------

M_OLD, M_NEW = m2354_image("1.0.0", 8_000), m2354_image("1.0.1", 8_000)


@dataclass
class M2354:
    """A board that runs M_OLD with the public key of SIGNER in TF-M."""

    events: list[DeviceEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        flash = NorFlash.blank(MIB, sector_size=2048)
        chips = M2354Chips(flash, SdCard(bytearray(2 * MIB), power=flash.power))
        self.nvs = NonVolatileStore()
        self.board = M2354Hardware(board_named("m2354"), chips, nvs=self.nvs, pace=TimelessPace())
        provision(self.board, "thing", None, (sweep_boot_key().public,))
        flash_nuvoton(self.board, M_OLD, address=None, erase=False)
        self.nvs.set(CODE_VERIFY_KEY, public_pem(SIGNER))

    def app(self) -> PsaFwuPal:
        return PsaFwuPal(context_of(self.board.boot().slots, self.nvs, self.events))

    async def updated(self) -> PsaFwuPal:
        """Take M_NEW, up to its first start."""
        pal = self.app()
        await download(pal, M_NEW, signed(M_NEW))
        await pal.close_file()
        with pytest.raises(Restart, match="activated"):
            await pal.activate()
        return self.app()


def public_pem(key: PrivateKey) -> str:
    return public_pem_of(parse_chain(certificate_of(key))[0])


@pytest.mark.parametrize(
    "block", [b"", M_NEW[:31], b"\0" * BLOCK, NEW[:BLOCK]], ids=["empty", "31-bytes", "zeros", "an-m487s"]
)
async def test_a_file_that_does_not_begin_with_the_header_is_refused_at_its_first_block(block: bytes) -> None:
    m2354 = M2354()
    pal = m2354.app()
    await pal.create_file(signed(M_NEW))
    await refused(lambda: pal.write_block(0, block), PalCode.FILE_ABORT)
    assert read_record(m2354.nvs).stage_version is None
    assert m2354.board.secondary.read(0, 32) == b"\xff" * 32


async def test_blocks_out_of_order_or_twice_cost_the_signature() -> None:
    for order in ([1, 0, 2, 3, 4], [0, 0, 1, 2, 3, 4]):
        pal = M2354().app()
        await pal.create_file(signed(M_NEW))
        for number in order:
            await pal.write_block(number * BLOCK, M_NEW[number * BLOCK : (number + 1) * BLOCK])
        await refused(pal.close_file, PalCode.SIGNATURE_CHECK_FAILED)


@pytest.mark.parametrize(
    "file",
    [signed(M_NEW, OTHER), signed(M_NEW, signature=b""), signed(M_OLD)],
    ids=["wrong-key", "unsigned", "of-another-file"],
)
async def test_m2354_a_signature_that_does_not_hold_is_refused(file: OtaFile) -> None:
    m2354 = M2354()
    pal = m2354.app()
    await download(pal, M_NEW, file)
    await refused(pal.close_file, PalCode.SIGNATURE_CHECK_FAILED)
    await pal.set_image_state(ImageState.REJECTED)
    assert pal.image_state() is PalImageState.INVALID
    assert m2354.board.secondary.read(0, 32) == b"\xff" * 32, "what was staged is dropped"


@pytest.mark.parametrize("pem", ["", "no key", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
async def test_a_key_that_cannot_be_used_is_an_error_of_its_own_and_certfile_means_nothing(pem: str) -> None:
    m2354 = M2354()
    m2354.nvs.set(CODE_VERIFY_KEY, pem)
    pal = m2354.app()
    await download(pal, M_NEW, signed(M_NEW, certificate_path="somewhere/else.pem"))
    await refused(pal.close_file, PalCode.BAD_SIGNER_CERTIFICATE)
    assert any("somewhere/else.pem is not used" in event.text for event in m2354.events)


async def test_what_was_not_installed_can_be_neither_tested_nor_accepted() -> None:
    pal = M2354().app()
    await refused(lambda: pal.set_image_state(ImageState.TESTING), PalCode.COMMIT_FAILED)
    await refused(lambda: pal.set_image_state(ImageState.ACCEPTED), PalCode.COMMIT_FAILED)
    await refused(lambda: pal.set_image_state(ImageState.UNKNOWN), PalCode.BAD_IMAGE_STATE)
    assert pal.image_state() is PalImageState.UNKNOWN


async def test_what_is_installed_can_be_neither_rejected_nor_aborted_since_the_old_image_is_gone() -> None:
    m2354 = M2354()
    pal = await m2354.updated()
    assert pal.installed
    assert pal.image_state() is PalImageState.INVALID, "before the first state: no self-test timer"
    await pal.set_image_state(ImageState.TESTING)
    assert pal.image_state() is PalImageState.PENDING_COMMIT
    await refused(lambda: pal.set_image_state(ImageState.REJECTED), PalCode.REJECT_FAILED)
    await refused(lambda: pal.set_image_state(ImageState.ABORTED), PalCode.ABORT_FAILED)
    await pal.set_image_state(ImageState.ACCEPTED)
    assert pal.image_state() is PalImageState.VALID
    assert m2354.board.image_in("app") == M_NEW


async def test_an_image_that_is_staged_and_not_restarted_into_is_not_installed() -> None:
    m2354 = M2354()
    pal = m2354.app()
    await download(pal, M_OLD, signed(M_OLD))
    await pal.close_file()
    assert not pal.installed, "the versions are equal, but nothing was restarted"
    with pytest.raises(Restart):
        await pal.activate()
    assert read_record(m2354.nvs).rebooted is False
    assert m2354.app().installed


@pytest.mark.parametrize("moment", ["create", "write", "activate"])
async def test_a_card_that_is_gone_is_told_at_the_call_that_needs_it(moment: str) -> None:
    m2354 = M2354()
    pal, card = m2354.app(), m2354.board.chips.card
    if moment == "create":
        card.fitted = False
        await refused(lambda: pal.create_file(signed(M_NEW)), PalCode.FILE_CREATE_FAILED)
    elif moment == "write":
        await pal.create_file(signed(M_NEW))
        card.fitted = False
        await refused(lambda: pal.write_block(0, M_NEW[:BLOCK]), PalCode.FILE_ABORT)
    else:
        await download(pal, M_NEW, signed(M_NEW))
        await pal.close_file()
        card.fitted = False
        await refused(pal.activate, PalCode.ACTIVATE_FAILED)
    card.fitted = True
    assert m2354.board.image_in("app") == M_OLD
    assert (await m2354.updated()).installed, "with the card back the next update is taken"


async def test_a_file_above_the_slot_is_too_large() -> None:
    await refused(lambda: M2354().app().create_file(OtaFile(0x9_0001, signature=b"x")), PalCode.FILE_TOO_LARGE)
