"""MCUboot images: header, TLV areas, hash, signatures, slot trailers. Source: docs/reference/mcuboot.md."""

from flota.images.mcuboot.header import (
    ImageFlag,
    ImageVersion,
    McubootHeader,
    flag_names,
    is_mcuboot,
    pack_header,
    parse_header,
)
from flota.images.mcuboot.image import (
    HashMismatch,
    McubootImage,
    McubootLayout,
    NoHash,
    SignedFacts,
    check_hash,
    pack_image,
    pack_signed_part,
    parse_image,
    signed_facts,
    walk_image,
)
from flota.images.mcuboot.signing import ImageKeyKind, ImageOptions, ImageSigner, build_image, sign_image
from flota.images.mcuboot.tlvs import Dependency, Tlv, TlvError, TlvType
from flota.images.mcuboot.trailer import SlotShape, Trailer, check_fits, fill_slot, read_trailer

__all__ = [
    "Dependency",
    "HashMismatch",
    "ImageFlag",
    "ImageKeyKind",
    "ImageOptions",
    "ImageSigner",
    "ImageVersion",
    "McubootHeader",
    "McubootImage",
    "McubootLayout",
    "NoHash",
    "SignedFacts",
    "SlotShape",
    "Tlv",
    "TlvError",
    "TlvType",
    "Trailer",
    "build_image",
    "check_fits",
    "check_hash",
    "fill_slot",
    "flag_names",
    "is_mcuboot",
    "pack_header",
    "pack_image",
    "pack_signed_part",
    "parse_header",
    "parse_image",
    "read_trailer",
    "sign_image",
    "signed_facts",
    "walk_image",
]
