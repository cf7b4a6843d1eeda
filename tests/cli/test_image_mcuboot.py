from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from flota.cli.app import main
from flota.images.intel_hex import parse_hex
from flota.images.mcuboot import ImageKeyKind, parse_image, read_trailer, signed_facts
from flota.trust.mcuboot_signatures import verify_image
from tests.images.elf_samples import small_elf
from tests.images.mcuboot_samples import SIGNING_KINDS, image_key

FIRMWARE = bytes(range(256)) * 4
SHAPE = ("--version", "1.2.3+4", "--header-size", "0x200", "--slot-size", "64K")


def flota(*arguments: str | Path) -> int:
    """Run the command in this process; returns its exit status."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def pack(firmware: Path, out: Path, *options: str | Path) -> int:
    return flota("image", "pack", "mcuboot", firmware, "-o", out, *SHAPE, *options)


def key_files(directory: Path, kind: ImageKeyKind = ImageKeyKind.ED25519) -> tuple[Path, Path]:
    private, public = directory / f"{kind}.pem", directory / f"{kind}.pub"
    private.write_bytes(image_key(kind).to_pem())
    private.chmod(0o600)
    public.write_text(image_key(kind).public.pem)
    return private, public


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    path = tmp_path / "firmware.bin"
    path.write_bytes(FIRMWARE)
    return path


@pytest.mark.parametrize("kind", SIGNING_KINDS)
def test_an_image_is_packed_inspected_and_verified(
    kind: ImageKeyKind, firmware: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = key_files(tmp_path, kind)
    out = tmp_path / "signed.bin"
    options = ("--pad-header", "--security-counter", "auto", "--dependency", "1,2.0", "--dependency", "2,0.1.0+7")
    assert pack(firmware, out, "--key", private, *options) == 0
    facts = verify_image(out.read_bytes(), [image_key(kind).public]).facts
    assert facts.security_counter == 0x0102_0003
    assert [str(one.minimum) for one in facts.dependencies] == ["2.0.0+0", "0.1.0+7"]
    assert flota("image", "inspect", out) == 0
    assert "mcuboot" in capsys.readouterr().out
    assert flota("image", "verify", out, "--public-key", public) == 0
    assert f"signed by the {kind} key {image_key(kind).public.key_hash.hex()}" in capsys.readouterr().out
    assert flota("image", "verify", out, "--public-key", public, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["version"], said["key_kind"], said["dependencies"][0]) == (
        "1.2.3+4",
        kind,
        {"image": 1, "minimum": "2.0.0+0"},
    )


def test_a_foreign_key_and_a_damaged_image_end_with_status_1(
    firmware: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = key_files(tmp_path)
    _, foreign = key_files(tmp_path, ImageKeyKind.P256)
    out = tmp_path / "signed.bin"
    assert pack(firmware, out, "--key", private, "--pad-header") == 0
    assert flota("image", "verify", out, "--public-key", foreign) == 1
    assert "no trusted key signed the image" in capsys.readouterr().err
    out.write_bytes(out.read_bytes().replace(b"\x07\x08", b"\x07\x09"))
    assert flota("image", "verify", out, "--public-key", public) == 1
    assert "the hash in the TLVs is not that of the image" in capsys.readouterr().err
    assert flota("image", "inspect", out) == 1


def test_padding_fills_the_slot_and_confirming_marks_it(
    firmware: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "slot.bin"
    for option, confirmed in (("--pad", False), ("--confirm", True)):
        assert pack(firmware, out, "--unsigned", "--pad-header", option, "--align", "8") == 0
        trailer = read_trailer(out.read_bytes())
        assert trailer is not None
        assert (out.stat().st_size, trailer.image_ok) == (65536, confirmed)
    capsys.readouterr()
    assert pack(firmware, out, "--unsigned", "--pad-header", "--confirm", "--overwrite-only") == 0
    assert "--confirm changes nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--unsigned",), "no room for the header"),
        (("--unsigned", "--pad-header", "--slot-size", "0x400"), "does not fit its slot"),
        (("--unsigned", "--pad-header", "--version", "v1"), "not a version"),
        (("--unsigned", "--pad-header", "--align", "3"), "bad alignment"),
        (("--unsigned", "--pad-header", "--header-size", "16"), "bad header size"),
        (("--unsigned", "--pad-header", "--dependency", "x"), "not a dependency"),
        (("--pad-header", "--key", "/nowhere/key.pem"), "no such key"),
    ],
)
def test_what_cannot_be_packed_says_why_and_leaves_nothing_behind(
    options: tuple[str, ...], message: str, firmware: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack(firmware, tmp_path / "out.bin", *options) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["firmware.bin"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pad-header",), "who signs?"),
        (("--pad-header", "--unsigned", "--key", "x"), "who signs?"),
        (("--pad-header", "--signer", "exec:true", "--key", "x"), "who signs?"),
        (("--pad-header", "--signer", "exec:true"), "needs the public key"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_use(
    options: tuple[str, ...], message: str, firmware: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack(firmware, tmp_path / "out.bin", *options) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["firmware.bin"]


SIGNER = """
import os, sys
from pathlib import Path
from flota.trust.image_keys import ImagePrivateKey
digest = sys.stdin.buffer.read()
assert len(digest) == 32
assert os.environ["FLOTA_SIGN_ALGORITHM"] == sys.argv[2], os.environ["FLOTA_SIGN_ALGORITHM"]
assert os.environ["FLOTA_SIGN_INPUT"] == ("message" if sys.argv[2] == "ed25519" else "sha256")
key = ImagePrivateKey.from_pem(Path(sys.argv[1]).read_bytes())
assert os.environ["FLOTA_SIGN_KEY_ID"] == key.public.key_hash.hex()
sys.stdout.buffer.write(key.sign(digest))
"""


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        (ImageKeyKind.RSA_3072, "rsa-3072-pss-sha256"),
        (ImageKeyKind.P256, "ecdsa-p256-sha256"),
        (ImageKeyKind.ED25519, "ed25519"),
    ],
)
def test_a_program_signs_the_digest(
    kind: ImageKeyKind, algorithm: str, firmware: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = key_files(tmp_path, kind)
    program, out = tmp_path / "sign.py", tmp_path / "signed.bin"
    program.write_text(SIGNER)
    command = f"exec:{sys.executable} {program} {private} {algorithm}"
    assert pack(firmware, out, "--pad-header", "--signer", command, "--public-key", public) == 0, (
        capsys.readouterr().err
    )
    verify_image(out.read_bytes(), [image_key(kind).public])
    _, other = key_files(tmp_path, ImageKeyKind.P256 if kind is not ImageKeyKind.P256 else ImageKeyKind.ED25519)
    assert pack(firmware, out, "--pad-header", "--signer", "exec:echo no", "--public-key", other) == 1
    assert "not a signature by the public key" in capsys.readouterr().err


def test_hex_and_elf_are_packed_as_the_bytes_they_hold(firmware: Path, tmp_path: Path) -> None:
    hex_file, plain, out = tmp_path / "firmware.hex", tmp_path / "plain.bin", tmp_path / "out.bin"
    assert pack(firmware, plain, "--unsigned", "--pad-header") == 0
    assert flota("image", "convert", firmware, "-o", hex_file, "--at", "0x8000200") == 0
    assert pack(hex_file, out, "--unsigned", "--pad-header") == 0
    assert out.read_bytes() == plain.read_bytes()
    key, public = key_files(tmp_path)
    elf = tmp_path / "firmware.elf"
    elf.write_bytes(small_elf([(0x200, FIRMWARE[:100]), (0x200 + 100, FIRMWARE[100:])]))
    assert pack(elf, out, "--key", key, "--pad-header") == 0
    assert parse_image(out.read_bytes()).payload == FIRMWARE
    assert signed_facts(parse_image(out.read_bytes())).security_counter is None
    assert flota("image", "convert", out, "-o", hex_file, "--at", "0") == 0
    assert flota("image", "verify", hex_file, "--public-key", public) == 0


def test_intel_hex_goes_out_at_the_address_that_the_firmware_came_with(firmware: Path, tmp_path: Path) -> None:
    hex_file, signed, plain, out = (tmp_path / name for name in ("fw.hex", "signed.hex", "plain.bin", "out.bin"))
    assert flota("image", "convert", firmware, "-o", hex_file, "--at", "0x8000200") == 0
    assert pack(hex_file, signed, "--unsigned", "--pad-header") == 0
    assert pack(hex_file, plain, "--unsigned", "--pad-header") == 0
    held = parse_hex(signed.read_bytes())
    assert held.start == 0x8000000
    assert flota("image", "convert", signed, "-o", out) == 0
    assert out.read_bytes() == plain.read_bytes()
    signed.unlink()
    assert pack(firmware, signed, "--unsigned", "--pad-header") == 1  # plain bytes have no address
    assert flota("image", "convert", firmware, "-o", hex_file, "--at", "0x10") == 0
    assert pack(hex_file, signed, "--unsigned", "--pad-header") == 1  # nor is there room for a header below 0x10
    assert not signed.exists()


def test_an_elf_for_more_than_the_slot_is_refused_before_its_gaps_are_filled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elf = tmp_path / "wide.elf"
    elf.write_bytes(small_elf([(0, b"low"), (0x1000_0000, b"high")]))
    assert pack(elf, tmp_path / "out.bin", "--unsigned", "--pad-header") == 1
    assert "too far apart" in capsys.readouterr().err
