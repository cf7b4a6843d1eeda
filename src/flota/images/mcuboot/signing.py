"""From firmware to a signed MCUboot image, as imgtool makes it. The key stays outside: a function signs 32 bytes.

Every scheme signs the SHA-256 of the image: RSA and ECDSA take it as their digest, Ed25519 as its whole message.
Source: docs/reference/mcuboot.md; mcu-tools/mcuboot:scripts/imgtool/image.py (`Image.create`), scripts/imgtool/keys/.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from flota.images.mcuboot.header import HEADER_SIZE, HEADER_SIZE_MAX, NO_FLAGS, ImageFlag, ImageVersion
from flota.images.mcuboot.image import McubootImage, pack_signed_part
from flota.images.mcuboot.tlvs import SECURITY_COUNTER_SIZE, Dependency, Tlv, TlvType
from flota.images.model import ImageError


class ImageKeyKind(enum.StrEnum):
    """Kinds of keys that images are signed with."""

    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    P256 = "p256"
    ED25519 = "ed25519"


SIGNATURE_TLV_OF: Final = {
    ImageKeyKind.RSA_2048: TlvType.RSA2048_PSS,
    ImageKeyKind.RSA_3072: TlvType.RSA3072_PSS,
    ImageKeyKind.P256: TlvType.ECDSA_SIG,
    ImageKeyKind.ED25519: TlvType.ED25519,
}


@dataclass(frozen=True, slots=True)
class ImageSigner:
    """Somebody who signs images.

    `public_key` is the public half as boot loaders have it built in (docs/reference/mcuboot.md, keys); `sign` returns
    the signature of the image whose SHA-256 (32 bytes) it is given.
    """

    kind: ImageKeyKind
    public_key: bytes
    sign: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """What goes into the header and the protected TLVs.

    `header_size` in bytes. With `add_header` the header is put before the firmware, else the firmware has left that
    many zero bytes for it. `load_address` is where the boot loader copies it to (RAM), `rom_address` the flash address
    it is linked for; at most one of them.
    """

    version: ImageVersion
    header_size: int = HEADER_SIZE
    add_header: bool = False
    load_address: int | None = None
    rom_address: int | None = None
    non_bootable: bool = False
    security_counter: int | None = None
    dependencies: tuple[Dependency, ...] = ()
    erased: int = 0xFF


def build_image(firmware: bytes, options: ImageOptions) -> McubootImage:
    """Return the image of `firmware` without any hash or signature.

    Raises `ImageError` when the room for the header is missing or in use, or a number does not fit its field.
    """
    if not HEADER_SIZE <= options.header_size <= HEADER_SIZE_MAX:
        raise ImageError(
            "bad header size", expected=f"{HEADER_SIZE} to {HEADER_SIZE_MAX} bytes", found=options.header_size
        )
    padding = bytes((options.erased,)) * (options.header_size - HEADER_SIZE)
    payload = firmware
    if not options.add_header:
        room = firmware[: options.header_size]
        if len(room) < options.header_size or any(room):
            raise ImageError(
                "the firmware leaves no room for the header",
                offset=next((index for index, byte in enumerate(room) if byte), len(room)),
                expected=f"{options.header_size} zero bytes at its start",
                found=room[:16].hex() or "nothing",
                hint="If it is linked to start behind the header, give --pad-header.",
            )
        padding, payload = room[HEADER_SIZE:], firmware[options.header_size :]
    flags, address = _placement(options)
    protected = _protected(options)
    return McubootImage(
        version=options.version,
        payload=payload,
        header_padding=padding,
        load_address=address,
        flags=flags,
        protected=protected or None,
    )


def sign_image(image: McubootImage, signer: ImageSigner | None, *, full_key: bool = False) -> McubootImage:
    """Return `image` with the unprotected TLVs that make it complete: hash, key, signature. Old ones are dropped.

    Without a signer only the hash is added, which boot loaders without keys accept. `full_key` puts the key itself
    instead of its hash into the image, for boot loaders that hold only the hash. Raises `ImageError`, and what
    the signer raises.
    """
    digest = hashlib.sha256(pack_signed_part(image)).digest()
    entries = [Tlv(TlvType.SHA256, digest)]
    if signer is not None:
        if full_key:
            entries.append(Tlv(TlvType.PUBKEY, signer.public_key))
        else:
            entries.append(Tlv(TlvType.KEYHASH, hashlib.sha256(signer.public_key).digest()))
        entries.append(Tlv(SIGNATURE_TLV_OF[signer.kind], signer.sign(digest)))
    return replace(image, unprotected=tuple(entries))


def _placement(options: ImageOptions) -> tuple[ImageFlag, int]:
    flags = ImageFlag.NON_BOOTABLE if options.non_bootable else NO_FLAGS
    if options.load_address is not None and options.rom_address is not None:
        raise ImageError("an image is either loaded into RAM or fixed in ROM", hint="Give one of the two addresses.")
    if options.load_address is not None:
        return flags | ImageFlag.RAM_LOAD, options.load_address
    if options.rom_address is not None:
        return flags | ImageFlag.ROM_FIXED, options.rom_address
    return flags, 0


def _protected(options: ImageOptions) -> tuple[Tlv, ...]:
    entries: list[Tlv] = []
    counter = options.security_counter
    if counter is not None:
        if not 0 <= counter <= 0xFFFF_FFFF:
            raise ImageError("the security counter is out of range", expected="0 to 4294967295", found=counter)
        entries.append(Tlv(TlvType.SEC_CNT, counter.to_bytes(SECURITY_COUNTER_SIZE, "little")))
    entries += [Tlv(TlvType.DEPENDENCY, one.pack()) for one in options.dependencies]
    return tuple(entries)
