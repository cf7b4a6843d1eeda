"""imgtool, MCUboot's own program, takes our images, and we take its; where nothing is random the bytes are the same."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from flota.images.inspection import inspect
from flota.images.mcuboot import (
    Dependency,
    ImageFlag,
    ImageKeyKind,
    ImageOptions,
    ImageVersion,
    SlotShape,
    TlvType,
    build_image,
    fill_slot,
    pack_image,
    parse_image,
    read_trailer,
    sign_image,
    signed_facts,
)
from flota.trust.mcuboot_signatures import ImageSignedByOthers, verify_image
from tests.images.mcuboot_samples import SIGNING_KINDS, image_key

pytestmark = pytest.mark.program

FIRMWARE = bytes(range(256)) * 20 + b"odd"
OPTIONS = ImageOptions(
    ImageVersion(1, 2, 3, 4),
    0x200,
    add_header=True,
    security_counter=0x0102_0003,
    dependencies=(Dependency(0, ImageVersion(1, 1)), Dependency(2, ImageVersion(0, 0, 0, 9))),
)
SAME_OPTIONS = ("-v", "1.2.3+4", "-H", "0x200", "--pad-header", "-s", "auto", "-d", "(0,1.1.0), (2,0.0.0+9)")


def imgtool(*arguments: str | Path, fails: bool = False) -> str:
    """What imgtool says; the test is skipped where it is not installed."""
    if find_spec("imgtool") is None:
        pytest.skip("imgtool is not installed")
    command = [sys.executable, "-c", "from imgtool.main import imgtool; imgtool()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    path = tmp_path / "firmware.bin"
    path.write_bytes(FIRMWARE)
    return path


def key_file(tmp_path: Path, kind: ImageKeyKind) -> Path:
    path = tmp_path / f"{kind}.pem"
    path.write_bytes(image_key(kind).to_pem())
    return path


def sign_with_imgtool(tmp_path: Path, firmware: Path, *options: str | Path, slot: str = "0x20000") -> bytes:
    out = tmp_path / "theirs.bin"
    imgtool("sign", *SAME_OPTIONS, "-S", slot, *options, firmware, out)
    return out.read_bytes()


@pytest.mark.parametrize("kind", SIGNING_KINDS)
def test_imgtool_verifies_our_image_and_refuses_it_with_another_key_or_damage(
    kind: ImageKeyKind, tmp_path: Path
) -> None:
    ours = pack_image(sign_image(build_image(FIRMWARE, OPTIONS), image_key(kind).signer))
    path = tmp_path / "ours.bin"
    path.write_bytes(ours)
    said = imgtool("verify", "-k", key_file(tmp_path, kind), path)
    assert "Image was correctly validated" in said
    assert "Image version: 1.2.3+4" in said
    assert f"Image digest: {inspect(ours).validation_hash}" in said
    path.write_bytes(ours.replace(b"odd", b"even"))
    imgtool("verify", "-k", key_file(tmp_path, kind), path, fails=True)
    path.write_bytes(pack_image(sign_image(build_image(FIRMWARE, OPTIONS), image_key(kind, 1).signer)))
    imgtool("verify", "-k", key_file(tmp_path, kind), path, fails=True)


@pytest.mark.parametrize("kind", [*SIGNING_KINDS, ImageKeyKind.RSA_2048])
@pytest.mark.parametrize("key_format", ["hash", "full"])
def test_we_verify_imgtool_s_image_and_refuse_it_with_another_key(
    kind: ImageKeyKind, key_format: str, firmware: Path, tmp_path: Path
) -> None:
    key = key_file(tmp_path, kind)
    theirs = sign_with_imgtool(tmp_path, firmware, "-k", key, "--public-key-format", key_format)
    verified = verify_image(theirs, [image_key(kind).public])
    assert verified.facts == signed_facts(build_image(FIRMWARE, OPTIONS))
    assert inspect(theirs).findings == ()
    with pytest.raises(ImageSignedByOthers):
        verify_image(theirs, [image_key(kind, 1).public])
    assert pack_image(parse_image(theirs)) == theirs


@pytest.mark.parametrize(
    ("options", "slot", "confirmed", "filled"),
    [
        ((), SlotShape(0x20000), False, False),
        (("--pad",), SlotShape(0x20000), False, True),
        (("--confirm",), SlotShape(0x20000), True, True),
        (("--confirm", "--align", "8"), SlotShape(0x20000, align=8), True, True),
        (("--confirm", "--align", "32"), SlotShape(0x20000, align=32), True, True),
        (("--confirm", "--align", "4", "--max-align", "16"), SlotShape(0x20000, align=4, max_align=16), True, True),
        (("--confirm", "--overwrite-only"), SlotShape(0x20000, overwrite_only=True), True, True),
        (("--pad", "-M", "300", "-R", "0"), SlotShape(0x20000, max_sectors=300, erased=0), False, True),
    ],
)
def test_with_ed25519_every_byte_is_the_same(
    options: tuple[str, ...], slot: SlotShape, confirmed: bool, filled: bool, firmware: Path, tmp_path: Path
) -> None:
    key = key_file(tmp_path, ImageKeyKind.ED25519)
    theirs = sign_with_imgtool(tmp_path, firmware, "-k", key, *options)
    packed = pack_image(sign_image(build_image(FIRMWARE, replace(OPTIONS, erased=slot.erased)), image_key().signer))
    ours = fill_slot(packed, slot, confirmed=confirmed) if filled else packed
    assert ours == theirs
    trailer = read_trailer(theirs)
    assert (trailer is not None) is filled
    if trailer:
        assert trailer.image_ok is (confirmed and not slot.overwrite_only)


@pytest.mark.parametrize("kind", [ImageKeyKind.RSA_3072, ImageKeyKind.P256])
def test_with_random_signatures_everything_else_is_the_same(kind: ImageKeyKind, firmware: Path, tmp_path: Path) -> None:
    theirs = parse_image(sign_with_imgtool(tmp_path, firmware, "-k", key_file(tmp_path, kind)))
    ours = sign_image(build_image(FIRMWARE, OPTIONS), image_key(kind).signer)
    assert replace(theirs, unprotected=()) == replace(ours, unprotected=())
    assert theirs.unprotected[:2] == ours.unprotected[:2]
    assert [entry.kind for entry in theirs.unprotected] == [entry.kind for entry in ours.unprotected]


def test_without_a_key_every_byte_is_the_same(firmware: Path, tmp_path: Path) -> None:
    image = build_image(FIRMWARE, replace(OPTIONS, load_address=0x2000_0000, non_bootable=True))
    theirs = sign_with_imgtool(tmp_path, firmware, "-L", "0x20000000", "--non-bootable")
    assert pack_image(sign_image(image, None)) == theirs
    theirs = sign_with_imgtool(tmp_path, firmware, "-F", "0x8000")
    assert pack_image(sign_image(build_image(FIRMWARE, replace(OPTIONS, rom_address=0x8000)), None)) == theirs


@pytest.mark.parametrize("overwrite_only", [False, True])
def test_the_largest_image_that_fits_is_the_same_for_both(overwrite_only: bool, firmware: Path, tmp_path: Path) -> None:
    size = len(pack_image(sign_image(build_image(FIRMWARE, OPTIONS), None)))
    slot = size + SlotShape(1 << 20, overwrite_only=overwrite_only).trailer_size
    options = ["--overwrite-only"] if overwrite_only else []
    assert len(sign_with_imgtool(tmp_path, firmware, *options, slot=str(slot))) == size
    said = imgtool("sign", *SAME_OPTIONS, *options, "-S", str(slot - 1), firmware, tmp_path / "x.bin", fails=True)
    assert "exceeds requested size" in said


def test_boot_records_uuids_vendor_tlvs_and_pure_or_encrypted_images_of_imgtool_are_recognised(
    firmware: Path, tmp_path: Path
) -> None:
    key = key_file(tmp_path, ImageKeyKind.ED25519)
    more = ("--boot-record", "NSPE", "--vid", "example.org", "--cid", "pump", "--custom-tlv", "0xa0", "0xc0ffee")
    theirs = sign_with_imgtool(tmp_path, firmware, "-k", key, *more)
    facts = verify_image(theirs, [image_key().public]).facts
    assert facts.boot_record is not None
    assert b"NSPE" in facts.boot_record
    assert facts.vendor_id is not None
    assert facts.class_id is not None
    rows = {row.name: row.value for row in inspect(theirs).properties}
    assert rows["protected TLV vendor 0x00a0"] == "3 bytes"
    assert inspect(theirs).findings == ()

    pure = sign_with_imgtool(tmp_path, firmware, "-k", key, "--pure")
    assert str(verify_image(pure, [image_key().public]).version) == "1.2.3+4"
    assert inspect(pure).findings == ()

    long_hash = sign_with_imgtool(tmp_path, firmware, "-k", key, "--sha", "512")
    assert len(verify_image(long_hash, [image_key().public]).digest) == 64

    imgtool("keygen", "-t", "x25519", "-k", tmp_path / "encrypt.pem")
    encrypted = sign_with_imgtool(tmp_path, firmware, "-k", key, "-E", tmp_path / "encrypt.pem")
    image = parse_image(encrypted)
    assert image.flags == ImageFlag.ENCRYPTED_AES128
    assert [entry.kind for entry in image.unprotected][-1] == TlvType.ENC_X25519
    assert [finding.code for finding in inspect(encrypted).findings] == ["hash-not-checked"]
