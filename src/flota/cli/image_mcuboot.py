"""`flota image pack mcuboot` and `flota image verify`: sign images for MCUboot, and check whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flota.cli.image_convert import HEX_SUFFIXES, memory_of
from flota.cli.image_esp_signature import ESP_IMAGE_MAGIC, verify_esp_image
from flota.cli.image_files import parse_size, read_file, write_file
from flota.cli.output import echo, echo_json, warn
from flota.errors import InvalidInput, WrongUse


def pack_mcuboot(
    firmware: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="Plain binary, Intel HEX or ELF.", metavar="FILE")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", dir_okay=False, help="Where it goes; .hex: as Intel HEX.", metavar="OUT")
    ],
    version: Annotated[str, typer.Option(help="major.minor.revision+build, later parts optional.")],
    header_size: Annotated[str, typer.Option(help="Header with its padding, e.g. 0x400.", metavar="SIZE")],
    slot_size: Annotated[str, typer.Option(help="The (secondary) slot: the image must fit it.", metavar="SIZE")],
    key: Annotated[
        str | None, typer.Option(help="Private key that signs: a file or a named one.", metavar="KEY")
    ] = None,
    signer: Annotated[str | None, typer.Option(help="exec:COMMAND: a program signs.", metavar="SIGNER")] = None,
    public_key: Annotated[str | None, typer.Option(help="--signer's public key.", metavar="PUB")] = None,
    password_prompt: Annotated[bool, typer.Option("--password-prompt", help="Ask for the key's password.")] = False,
    password_file: Annotated[Path | None, typer.Option(help="The password is this file's first line.")] = None,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="Only the hash, for boot loaders without keys.")] = False,
    full_key: Annotated[bool, typer.Option("--full-key", help="Carry the public key instead of its hash.")] = False,
    pad_header: Annotated[
        bool, typer.Option("--pad-header", help="The firmware leaves no room for the header: put it before.")
    ] = False,
    security_counter: Annotated[
        str | None, typer.Option(help="Anti-rollback number, or auto: made of the version.", metavar="N|auto")
    ] = None,
    dependency: Annotated[
        list[str] | None, typer.Option(help="Needs image N of at least this version; repeatable.", metavar="N,VERSION")
    ] = None,
    load_address: Annotated[str | None, typer.Option(help="RAM address to copy it to.", metavar="ADDR")] = None,
    rom_address: Annotated[str | None, typer.Option(help="Flash address it is built for.", metavar="ADDR")] = None,
    non_bootable: Annotated[bool, typer.Option("--non-bootable", help="Not to be started by the boot loader.")] = False,
    pad: Annotated[bool, typer.Option("--pad", help="Fill the whole slot, trailer asking for the update.")] = False,
    confirm: Annotated[bool, typer.Option("--confirm", help="Fill the slot and mark it confirmed: no revert.")] = False,
    overwrite_only: Annotated[bool, typer.Option("--overwrite-only", help="The boot loader never swaps.")] = False,
    align: Annotated[int, typer.Option(help="Smallest write of the flash: 1, 2, 4, 8, 16 or 32.")] = 1,
    max_align: Annotated[int | None, typer.Option(help="The larger of both slots', if above 8.")] = None,
    max_sectors: Annotated[int, typer.Option(help="Most sectors that a swap may have.")] = 128,
    erased: Annotated[str, typer.Option(help="An erased byte: 0 or 0xff.", metavar="BYTE")] = "0xff",
) -> None:
    """Make a signed MCUboot image, byte for byte as imgtool does.

    Keys: RSA-3072, P-256 or Ed25519, PEM.

    Example: flota image pack mcuboot app.bin --key release.pem --version 1.2.3+4 --header-size 0x200
    --slot-size 0x60000 --pad-header -o app.signed.bin
    """
    from flota.images.mcuboot import (
        Dependency,
        ImageOptions,
        ImageVersion,
        SlotShape,
        build_image,
        check_fits,
        fill_slot,
        pack_image,
        sign_image,
    )

    if unsigned == (key is not None or signer is not None):
        raise WrongUse("who signs?", hint="Give --key KEY, --signer exec:COMMAND with --public-key, or --unsigned.")
    number = ImageVersion.parse(version)
    slot = SlotShape(
        size=parse_size(slot_size),
        align=align,
        max_align=max_align,
        max_sectors=max_sectors,
        overwrite_only=overwrite_only,
        erased=parse_size(erased),
    )
    options = ImageOptions(
        version=number,
        header_size=parse_size(header_size),
        add_header=pad_header,
        load_address=None if load_address is None else parse_size(load_address),
        rom_address=None if rom_address is None else parse_size(rom_address),
        non_bootable=non_bootable,
        security_counter=_counter(security_counter, number.automatic_security_counter),
        dependencies=tuple(Dependency.parse(text) for text in dependency or ()),
        erased=slot.erased,
    )
    content, start = _firmware(firmware, slot.size)
    place = _place_of_hex(start, options.header_size if pad_header else 0) if _is_hex(output) else None
    image = build_image(content, options)
    image_signer = None
    if not unsigned:
        from flota.cli.signers import image_signer_from_options

        image_signer = image_signer_from_options(
            key=key, signer=signer, public_key=public_key, password_prompt=password_prompt, password_file=password_file
        )
    packed = pack_image(sign_image(image, image_signer, full_key=full_key))
    check_fits(len(packed), slot)
    if pad or confirm:
        if confirm and overwrite_only:
            warn("note: --confirm changes nothing where images are only overwritten")
        packed = fill_slot(packed, slot, confirmed=confirm)
    write_file(output, packed if place is None else _as_hex(packed, place))
    echo(f"{output}: {len(packed)} bytes{'' if place is None else f' at {place:#x}'}, version {number}")


def verify(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="An MCUboot or ESP image.", metavar="FILE")],
    public_key: Annotated[
        list[Path],
        typer.Option(exists=True, dir_okay=False, help="A trusted public key, PEM; repeatable.", metavar="PUB"),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="The same as data.")] = False,
) -> None:
    """Check hash and signature of an MCUboot or ESP image as the boot loader does. Exit status 1 when not trusted.

    Example: flota image verify app.signed.bin --public-key release.pub
    """
    from flota.trust.image_keys import ImagePublicKey
    from flota.trust.mcuboot_signatures import verify_image

    if (content := read_file(file)).startswith(ESP_IMAGE_MAGIC):
        verify_esp_image(file, content, public_key, as_json=as_json)
        return
    keys = [ImagePublicKey.from_pem(read_file(path)) for path in public_key]
    held = memory_of(data := content, file)
    if held is not None:
        from flota.images.memory_map import flatten

        data = flatten(held)
    verified = verify_image(data, keys)
    facts, digest = verified.facts, verified.digest.hex()
    if as_json:
        echo_json(
            {
                "version": str(facts.version),
                "digest": digest,
                "key_kind": verified.key.kind.value,
                "key_hash": verified.key.key_hash.hex(),
                "security_counter": facts.security_counter,
                "dependencies": [{"image": one.image_id, "minimum": str(one.minimum)} for one in facts.dependencies],
            }
        )
        return
    echo(f"{file.name}: version {facts.version}")
    echo(f"signed by the {verified.key.kind.value} key {verified.key.key_hash.hex()}")
    echo(f"digest {digest}")
    if facts.security_counter is not None:
        echo(f"security counter {facts.security_counter}")


def _is_hex(output: Path) -> bool:
    return output.suffix.lower() in HEX_SUFFIXES


def _place_of_hex(start: int | None, header_size: int) -> int:
    """Return the address of the image's first byte, for Intel HEX: before the firmware by what is put before it."""
    if start is None or start < header_size:
        raise InvalidInput(
            "the image's address for Intel HEX is not known"
            if start is None
            else "there is no room below the firmware",
            expected=f"firmware at {header_size:#x} or above",
            found="plain bytes" if start is None else f"firmware at {start:#x}",
            hint="Give the firmware as ELF or Intel HEX; or make a .bin, and `flota image convert` it with --at.",
        )
    return start - header_size


def _as_hex(data: bytes, place: int) -> bytes:
    from flota.images.intel_hex import pack_hex
    from flota.images.memory_map import MemoryBlock, MemoryMap

    return pack_hex(MemoryMap((MemoryBlock(place, data),)))


def _firmware(path: Path, size_max: int) -> tuple[bytes, int | None]:
    """Return the firmware as plain bytes from its lowest address on, and that address, None for plain bytes.

    No gap takes it beyond `size_max`.
    """
    from flota.images.memory_map import flatten

    data = read_file(path)
    held = memory_of(data, path)
    return (data, None) if held is None else (flatten(held, size_max=size_max), held.start)


def _counter(text: str | None, automatic: int) -> int | None:
    if text is None:
        return None
    return automatic if text.strip().lower() == "auto" else parse_size(text)
