"""What the vendor's programming tool does to virtual Nuvoton boards, and what a factory puts into them.

Source: docs/reference/nuvoton.md, "Programming".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flota.digests import digests_of
from flota.durable_files import write_durably
from flota.errors import InvalidInput
from flota.images.inspection import inspect
from flota.images.mcuboot import ImageKeyKind
from flota.images.nuvoton import Place, parse_program
from flota.images.nuvoton.flash_map import APP_ADDR, CLONER_ADDR, LDROM_ADDR, NON_SECURE_ADDR
from flota.trust.code_signing import parse_chain, public_pem_of
from flota.trust.image_keys import ImagePrivateKey, ImagePublicKey
from flota.virtual.hardware import ImageNote
from flota.virtual.m2354_board import M2354Hardware
from flota.virtual.m2354_pal import CODE_VERIFY_KEY as PSA_CODE_VERIFY_KEY
from flota.virtual.nuvoton_board import M487Hardware
from flota.virtual.nuvoton_kvstore import CODE_VERIFY_KEY, THING_NAME
from flota.virtual.nuvoton_programs import program_in

OWN_BOOT_KEY_FILE: Final = "boot-key.pem"
"""In the directory of an M2354 that was given no boot key: one of its own, with which sample firmware is signed."""


def flash_nuvoton(
    machine: M487Hardware | M2354Hardware,
    data: bytes,
    *,
    address: int | None,
    erase: bool,
    boot_keys: Sequence[ImagePublicKey] = (),
) -> str:
    """Write a file and return where it went. Without an address: the app, with boot programs around it if missing.

    A loader or Cloner without an address goes to its place. Raises `InvalidInput` or `ImageError`.
    """
    if erase:
        machine.erase_chip()
    if isinstance(machine, M2354Hardware):
        if boot_keys and machine.chain is None:
            machine.provision(boot_keys)
        return _flash_m2354(machine, data, address)
    if address is None and (place := _boot_place(data)) is not None:
        address = place
    if address is None:
        machine.flash_app(data)
        note_nuvoton(machine, data)
        profile = machine.profile
        assert profile is not None
        return (
            f"loader ({profile}) to LDROM, app, {len(data)} bytes to {APP_ADDR:#x}, Cloner ({profile}) to "
            f"{CLONER_ADDR:#x}"
        )
    machine.write_flash(address, data)
    if address == APP_ADDR:
        note_nuvoton(machine, data)
    return f"{len(data)} bytes to {'LDROM' if address >= LDROM_ADDR else f'{address:#x}, erased from there on'}"


def note_nuvoton(machine: M487Hardware | M2354Hardware, data: bytes, version: str | None = None) -> None:
    """Note what an app is that a programmer has written."""
    told = inspect(data).markers.get("version") or version or inspect(data).version or "unknown"
    machine.notes.add(ImageNote(told, len(data), digests_of(data).sha256))


def provision(
    machine: M487Hardware | M2354Hardware,
    thing: str,
    code_certificate: bytes | None,
    boot_keys: Sequence[ImagePublicKey] = (),
) -> None:
    """Give a new board what the vendor's example has compiled in: its name, and what it checks releases with.

    `code_certificate` in PEM. An M2354 without a boot loader gets one with `boot_keys`. Raises `BadCertificate` or
    `InvalidInput`.
    """
    if isinstance(machine, M487Hardware):
        entries = {THING_NAME: thing}
        if code_certificate is not None:
            entries[CODE_VERIFY_KEY] = code_certificate.decode("ascii", "replace")
        machine.provision(entries)
        return
    if machine.chain is None:
        if not boot_keys:
            raise InvalidInput(
                "an M2354's boot loader needs the key that its images are signed with",
                hint="Give the public key with --boot-key FILE (RSA-3072, PEM).",
            )
        machine.provision(boot_keys)
    if code_certificate is not None and machine.nvs.get(PSA_CODE_VERIFY_KEY) is None:
        machine.nvs.set(PSA_CODE_VERIFY_KEY, public_pem_of(parse_chain(code_certificate)[0]))


def own_boot_key(directory: Path) -> ImagePrivateKey:
    """Return the key in a device's directory with which its sample firmware is signed, made if there is none."""
    path = directory / OWN_BOOT_KEY_FILE
    if path.exists():
        return ImagePrivateKey.from_pem(path.read_bytes())
    key = ImagePrivateKey.generate(ImageKeyKind.RSA_3072)
    directory.mkdir(parents=True, exist_ok=True)
    write_durably(path, key.to_pem())
    return key


def _flash_m2354(machine: M2354Hardware, data: bytes, address: int | None) -> str:
    if address is not None:
        machine.write_flash(address, data)
    else:
        machine.flash_app(data)
    if address in (None, NON_SECURE_ADDR):
        note_nuvoton(machine, data)
        address = NON_SECURE_ADDR
    return f"{len(data)} bytes to {address:#x}"


def _boot_place(data: bytes) -> int | None:
    """Return where a boot program belongs, by its vectors; None for an app."""
    for place, address in ((Place.LOADER, LDROM_ADDR), (Place.CLONER, CLONER_ADDR)):
        if program_in(data, place) is not None:
            return address
    try:
        linked_for = parse_program(data).place
    except InvalidInput:
        return None
    return {Place.LOADER: LDROM_ADDR, Place.CLONER: CLONER_ADDR}.get(linked_for)
