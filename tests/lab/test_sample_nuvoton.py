"""The sample firmware of the Nuvoton boards: real images that their loaders, and MCUboot's own program, accept."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from flota.boards.catalogue import board
from flota.boards.fit import fit_check
from flota.boards.model import TypeProfile
from flota.errors import NotFound
from flota.images.elf_file import parse_elf
from flota.images.inspection import inspect
from flota.images.mcuboot import ImageKeyKind, TlvType, parse_image, signed_facts
from flota.images.model import ImageError
from flota.images.nuvoton import AppVersion, parse_program
from flota.images.nuvoton.flash_map import NON_SECURE_SIZE
from flota.lab.sample_firmware import (
    NUVOTON_BUILT_VERSIONS,
    SAMPLE_NUVOTON_BYTES,
    built_program,
    sample_m487,
    sample_m2354,
)
from flota.trust.mcuboot_signatures import verify_image
from tests.images.mcuboot_samples import image_key

KEY = image_key(ImageKeyKind.RSA_3072)


@pytest.mark.parametrize("version", [*NUVOTON_BUILT_VERSIONS, "2.0.0"])
def test_an_m487_image_says_its_version_and_suits_its_board(version: str) -> None:
    data = sample_m487(version)
    found = inspect(data)
    assert len(data) == SAMPLE_NUVOTON_BYTES
    assert found.version == version
    assert found.markers["behaviour"] == NUVOTON_BUILT_VERSIONS.get(version, "healthy")
    reasons = fit_check(
        TypeProfile(board("m487")), found, file_size=len(data), version=version, filename=f"sample_V{version}.bin"
    )
    assert [reason.code for reason in reasons] == ["power-cut-in-copy"]
    assert data == sample_m487(version)


def test_versions_differ_in_every_page_behind_the_code() -> None:
    one, two = sample_m487("1.0.0"), sample_m487("1.0.1")
    same = [start for start in range(0, len(one), 4096) if one[start : start + 4096] == two[start : start + 4096]]
    assert same == []


@pytest.mark.parametrize("name", ["m487", "m2354"])
@pytest.mark.parametrize("version", list(NUVOTON_BUILT_VERSIONS))
def test_the_built_programs_are_linked_for_their_place(name: str, version: str) -> None:
    program = parse_elf(built_program(f"{name}-{version}"))
    assert len(program.blocks) == 1
    block = program.blocks[0]
    assert block.address == {"m487": 0, "m2354": 0x1007_0400}[name]
    stack, entry = (int.from_bytes(block.data[at : at + 4], "little") for at in (0, 4))
    assert stack == {"m487": 0x2002_8000, "m2354": 0x3004_0000}[name]
    assert block.address < entry - 1 < block.end
    if name == "m487":
        assert parse_program(block.data).entry == entry - 1


@pytest.mark.parametrize("version", ["1.0.0", "1.0.1", "3.2.1"])
def test_an_m2354_update_is_signed_as_the_vendors_script_signs(version: str) -> None:
    data = sample_m2354(version, KEY.signer)
    image = parse_image(data)
    assert len(image.payload) == SAMPLE_NUVOTON_BYTES
    assert [entry.kind for entry in image.unprotected] == [TlvType.SHA256, TlvType.PUBKEY, TlvType.RSA3072_PSS]
    facts = signed_facts(image)
    assert str(facts.version) == f"1.4.0+{AppVersion.parse(version).word}"
    assert (facts.security_counter, [(one.image_id, str(one.minimum)) for one in facts.dependencies]) == (
        0x0104_0000,
        [(0, "0.0.0+0")],
    )
    assert verify_image(data, [KEY.public]).key.key_hash == KEY.public.key_hash
    found = inspect(data)
    reasons = fit_check(TypeProfile(board("m2354")), found, file_size=len(data), version=version)
    assert [reason.code for reason in reasons] == ["no-rollback"]
    assert found.markers["version"] == version


@pytest.mark.program
def test_imgtool_verifies_the_m2354_update_and_refuses_it_when_a_byte_differs(tmp_path: Path) -> None:
    if find_spec("imgtool") is None:
        pytest.skip("imgtool is not installed")
    image, key = tmp_path / "sample_update_V1.0.1.bin", tmp_path / "key.pem"
    key.write_text(KEY.public.pem)

    def verify(data: bytes) -> subprocess.CompletedProcess[str]:
        image.write_bytes(data)
        command = [sys.executable, "-c", "from imgtool.main import imgtool; imgtool()", "verify", "-k", str(key)]
        return subprocess.run([*command, str(image)], capture_output=True, text=True, check=False)

    data = sample_m2354("1.0.1", KEY.signer)
    done = verify(data)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Image was correctly validated" in done.stdout
    assert f"1.4.0+{AppVersion(1, 0, 1).word}" in done.stdout
    damaged = bytearray(data)
    damaged[0x500] ^= 1
    assert verify(bytes(damaged)).returncode != 0


@pytest.mark.parametrize(
    ("version", "size", "behaviour", "error"),
    [
        ("1.0", SAMPLE_NUVOTON_BYTES, None, ImageError),
        ("1.0.0", 4097, None, ImageError),
        ("1.0.0", 64, None, ImageError),
        ("1.0.0", NON_SECURE_SIZE, None, ImageError),
        ("1.0.0", SAMPLE_NUVOTON_BYTES, "sleepy", NotFound),
    ],
)
def test_what_cannot_be_made_is_refused(version: str, size: int, behaviour: str | None, error: type[Exception]) -> None:
    with pytest.raises(error):
        sample_m487(version, size=size, behaviour=behaviour)
