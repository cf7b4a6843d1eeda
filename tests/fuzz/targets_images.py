"""The fuzz targets of `flota.images`, and of what boots them. One line each; see `table.py`."""

from __future__ import annotations

import hashlib
import struct
import zlib
from functools import cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from flota.boards.catalogue import BOARDS, MICRO_RDK_8MB_CSV, TWO_OTA_4MB_CSV
from flota.boards.fit import fit_check
from flota.boards.model import TypeProfile
from flota.errors import FlotaError
from flota.images.ameba import inspection as ameba_inspection
from flota.images.ameba.boot_image import BOOT_RAM_ADDRESS, BOOT_XIP_ADDRESS, find_slot_addresses, parse_boot_image
from flota.images.ameba.image2 import parse_core, parse_image2
from flota.images.ameba.ota_file import pack_ota_file, parse_ota_file, parse_ota_headers
from flota.images.ameba.segment import BOOT_SIGNATURE, SegmentHeader, parse_segment_header
from flota.images.elf_file import parse_elf
from flota.images.esp8266 import find_esp8266_segments
from flota.images.esp_app import parse_app, parse_header, walk_image
from flota.images.esp_chips import chip_named
from flota.images.esp_desc import EspBootloaderDesc, pack_bootloader_desc, parse_app_desc, parse_bootloader_desc
from flota.images.esp_elf import parse_elf as parse_esp_elf
from flota.images.esp_inspection import inspect_esp_image, inspect_merged
from flota.images.esp_merge import merge
from flota.images.esp_merged import find_merged
from flota.images.esp_nvs import looks_like_nvs, parse_nvs, read_string, readable_nvs
from flota.images.esp_nvs_inspection import inspect_nvs
from flota.images.esp_nvs_writing import create_nvs, write_string
from flota.images.esp_otadata import OtaEntry, boot_app0, looks_like_otadata, pack_otadata, parse_entry, parse_otadata
from flota.images.esp_partitions import check_table, csv_of, pack_table, parse_csv, parse_table
from flota.images.esp_secure_boot import find_signature_blocks, parse_block, require_signed
from flota.images.esp_verify import verify_app
from flota.images.flash_layout import layout_as_dict, layout_of_file, layout_of_table
from flota.images.flash_layout_svg import layout_svg
from flota.images.inspection import inspect, inspection_as_dict
from flota.images.intel_hex import looks_like_hex, pack_hex, parse_hex
from flota.images.markers import find_markers, pack_marker
from flota.images.mcuboot import (
    Dependency,
    ImageVersion,
    SlotShape,
    build_image,
    fill_slot,
    pack_image,
    parse_image,
    read_trailer,
    sign_image,
)
from flota.images.mcuboot import parse_header as parse_mcuboot_header
from flota.images.mcuboot import walk_image as walk_mcuboot
from flota.images.mcuboot.inspection import inspect_mcuboot
from flota.images.mcuboot.tlvs import walk_area
from flota.images.memory_map import MemoryBlock, MemoryMap
from flota.images.nuvoton import inspection as nuvoton_inspection
from flota.images.nuvoton.aprom import looks_like_program, pack_app, parse_program
from flota.images.nuvoton.descriptor import (
    Descriptor,
    Trailer,
    parse_descriptor,
    parse_trailer,
)
from flota.images.nuvoton.update import build_update
from flota.images.nuvoton.version import AppVersion, version_in_name
from flota.images.other_files import recognise
from flota.images.sbom import parse_sbom
from flota.images.text import cleaned_text
from tests.fuzz.model import Target, target
from tests.fuzz.repairs import (
    repair_esp_image,
    repair_hex,
    repair_nvs,
    repair_ota_file,
    repair_otadata,
    repair_signature_block,
    repair_signed_image,
    repair_table,
)
from tests.images.ameba_samples import image2, km0_image, km4_image
from tests.images.elf_samples import small_elf
from tests.images.esp_samples import bootloader_of, merged_image, sample_app
from tests.images.mcuboot_samples import OPTIONS, RFC_8032_KEY
from tests.images.nuvoton_samples import m2354_program, program

C3, ESP32 = chip_named("esp32-c3"), chip_named("esp32")
BOOTLOADER_DESC = pack_bootloader_desc(EspBootloaderDesc(0, 1, "v5.4", "Jan  1 2026 12:00:00"))
TABLE = pack_table(parse_csv(MICRO_RDK_8MB_CSV))
PROFILES = tuple(TypeProfile(board) for board in BOARDS.values())


@cache
def apps() -> tuple[bytes, ...]:
    return sample_app(), sample_app("esp32"), bootloader_of("esp32-c3")


@cache
def merged_images() -> tuple[bytes, ...]:
    return (merged_image(), merged_image("esp32"))


@cache
def nvs_partitions() -> tuple[bytes, ...]:
    filled = create_nvs(0x3000, {"VIAM_NS": {"OTA_VERSION": "v1", "ROBOT_ID": "r" * 90}, "n": {"k": ""}})
    return (filled, write_string(filled, "VIAM_NS", "OTA_VERSION", "v2"), create_nvs(0x3000))


@cache
def signature_block(content: bytes) -> bytes:
    """A P-256 block; its signature is deterministic, so that every run begins with the same bytes."""
    key, digest = ec.derive_private_key(0x1234567, ec.SECP256R1()), hashlib.sha256(content).digest()
    algorithm = ec.ECDSA(utils.Prehashed(hashes.SHA256()), deterministic_signing=True)
    r, s = utils.decode_dss_signature(key.sign(digest, algorithm))
    point = key.public_key().public_numbers()
    body = b"\xe7\x03\x00\x00" + digest + b"\x02"
    body += b"".join(number.to_bytes(32, "little") for number in (point.x, point.y, r, s)) + bytes(1031)
    return body + struct.pack("<I", zlib.crc32(body)) + bytes(16)


@cache
def signed_images() -> tuple[bytes, ...]:
    app = sample_app("esp32-s3", size=300)
    content = app.ljust(-(-len(app) // 4096) * 4096, b"\xff")
    return (content + signature_block(content).ljust(4096, b"\xff"), content)


@cache
def signature_blocks() -> tuple[bytes, ...]:
    rsa = b"\xe7\x02\x00\x00" + bytes(range(256)) * 4 + bytes(168)
    p384 = (b"\xe7\x03\x01\x00" + bytes(48) + b"\x03").ljust(1196, b"\1")
    return (
        *tuple(body + struct.pack("<I", zlib.crc32(body)) + bytes(16) for body in (rsa, p384)),
        signature_block(bytes(4096)),
    )


@cache
def elf_files() -> tuple[bytes, ...]:
    return tuple(
        small_elf([(0x0800_0000, b"text"), (0x2000_0000, b"data!")], bits=bits, order=order)
        for bits in (32, 64)
        for order in "<>"
    )


@cache
def elf_with_sections() -> tuple[bytes, ...]:
    """An executable whose section table has a text and a data section, for RISC-V and for Xtensa."""
    made = []
    for machine in (0xF3, 0x5E):
        header = struct.pack("<HHIIIIIHHHHHH", 2, machine, 1, 0x4200_0020, 0, 68, 0, 52, 32, 0, 40, 3, 0)
        rows = struct.pack("<10I", *[0] * 10)
        for flags, address, offset, size in ((6, 0x4200_0020, 52, 8), (3, 0x3FC8_0000, 60, 8)):
            rows += struct.pack("<10I", 1, 1, flags, address, offset, size, 0, 0, 4, 0)
        made.append(b"\x7fELF\1\1\1" + bytes(9) + header + b"text" * 2 + b"data" * 2 + rows)
    return tuple(made)


@cache
def ameba_boot_images() -> tuple[bytes, ...]:
    def part(address: int, payload: bytes) -> bytes:
        return SegmentHeader(BOOT_SIGNATURE, len(payload), address, 0xFFFF_FFFF).pack() + payload

    slots = bytes(8) + bytes.fromhex("0060000800601008") + bytes(8)
    return (
        part(BOOT_XIP_ADDRESS["km0"], slots) + part(BOOT_RAM_ADDRESS["km0"], bytes(16)),
        part(BOOT_XIP_ADDRESS["km4"], bytes(16)) + part(BOOT_RAM_ADDRESS["km4"], bytes(16)),
    )


@cache
def hex_files() -> tuple[bytes, ...]:
    held = MemoryMap((MemoryBlock(0, b"vectors"), MemoryBlock(0x0800_FFF0, bytes(range(60)))), 0x0800_0001)
    return pack_hex(held), b":020000021200EA\n:0400000300003800C1\n:00000001FF\n"


@cache
def ameba_files() -> tuple[bytes, ...]:
    return pack_ota_file(image2()), image2(), km0_image(), km4_image()


@cache
def mcuboot_images() -> tuple[bytes, ...]:
    """Signed with the key of RFC 8032, so that every run begins with the same bytes."""
    image = pack_image(sign_image(build_image(b"firmware", OPTIONS), RFC_8032_KEY.signer))
    return (image, fill_slot(image, SlotShape(0x2000), confirmed=True))


@cache
def nuvoton_files() -> tuple[bytes, ...]:
    whole = program(0x7_0000) + Descriptor(0xFC, 0x2FFF).pack().ljust(0x1_0000, b"\xff")
    records = (Descriptor(0xFE, 0x2FFF).pack(), Trailer(bytes(71)).pack(), Trailer(bytes(300), room=384).pack())
    return (program(600), program(4097), program(600, base=0x7_2000), *records, whole)


def files_of_every_kind() -> tuple[bytes, ...]:
    csv = MICRO_RDK_8MB_CSV.encode()
    others = (b"UF2\n\x57\x51\x5d\x9e" + bytes(504), b"\x10\xde\xcd\xfc" + bytes(80), b"\xcf\xb6\x88\x07" + bytes(520))
    old = b"\xe9\x01\x02\x40\x04\x00\x10\x40" + b"\x00\x00\x10\x40\x08\x00\x00\x00" + bytes(8) + bytes(8)
    images = (
        *apps(),
        *merged_images(),
        *nvs_partitions(),
        *signed_images(),
        *ameba_files(),
        *mcuboot_images(),
        *nuvoton_files()[:-1],
    )
    return (
        *images,
        *elf_files(),
        *hex_files(),
        TABLE,
        csv,
        pack_otadata(OtaEntry.for_seq(1), OtaEntry()),
        old,
        *others,
    )


def inspect_and_check(data: bytes) -> object:
    """Everything that an uploaded file goes through before a person sees it."""
    found = inspect(data)
    inspection_as_dict(found)
    for profile in PROFILES:
        fit_check(profile, found, file_size=len(data), version="1")
    return found


def layout(data: bytes) -> object:
    return layout_as_dict(layout_of_file(data))


def table_through_everything(data: bytes) -> object:
    table = parse_table(data)
    check_table(table)
    layout_svg(layout_of_table(table, chip=C3), title="t")
    csv_of(table)
    return table


def csv_through_everything(data: bytes) -> object:
    table = parse_csv(data, bootloader_offset=0x1000, recovery_bootloader_offset=0x3F0000, flash_size=8 << 20)
    return pack_table(table), csv_of(table), check_table(table)


def merged_apart(data: bytes) -> object:
    found = find_merged(data)
    return found and inspect_merged(data, found)


def damaged_piece(data: bytes) -> object:
    """A boot loader, table or app of someone else, merged with sound pieces."""
    pieces = {"bootloader": apps()[2], "table": TABLE, "app": apps()[0]}
    pieces["table" if data[:2] == b"\xaa\x50" else "app" if len(data) % 2 else "bootloader"] = data
    return merge(C3, pieces["bootloader"], pieces["table"], pieces["app"])


def first_signature(data: bytes) -> object:
    try:
        size = walk_image(data).image_size
    except FlotaError:
        size = 4096
    find_signature_blocks(data, size)
    return require_signed(data, size)


CSV_ROWS = (
    MICRO_RDK_8MB_CSV,
    TWO_OTA_4MB_CSV,
    "\ufeffnvs,data,nvs,,24K,encrypted:readonly\nboot,bootloader,primary,N/A,N/A,\nx,0x40,0,0x20000,-0x30000\n",
)

SBOMS = (
    '{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{"name":"a","components":[{"name":"b"}]}]}',
    '{"spdxVersion":"SPDX-2.3","SPDXID":"SPDXRef-DOCUMENT","packages":[{"name":"a"}]}',
    (
        '{"@context":"https://spdx.org/rdf/3.0.1/spdx-context.jsonld",'
        '"@graph":[{"type":"CreationInfo","specVersion":"3.0.1"},{"type":"software_Package"}]}'
    ),
)

TARGETS: tuple[Target, ...] = (
    target(parse_app, apps, repair=repair_esp_image),
    target(parse_header, apps),
    target(walk_image, apps),
    target(verify_app, apps, chip=C3, chip_revision=3, slot_size=1 << 20, repair=repair_esp_image),
    target(parse_app_desc, lambda: [app[32:288] for app in apps()]),
    target(parse_bootloader_desc, [BOOTLOADER_DESC]),
    target(inspect_esp_image, lambda: apps() + signed_images(), repair=repair_esp_image),
    target(find_merged, merged_images, read=merged_apart, also=[inspect_merged]),
    target(merge, lambda: [*apps(), TABLE], read=damaged_piece, may_hold=300 << 20),
    target(parse_table, [TABLE, TABLE[:128]], repair=repair_table),
    target(parse_table, [TABLE], read=table_through_everything, repair=repair_table, variant="shown"),
    target(parse_csv, CSV_ROWS),
    target(parse_csv, CSV_ROWS, read=csv_through_everything, variant="for a chip"),
    target(parse_entry, [b"\1\0\0\0" + b"\xff" * 20 + b"\2\0\0\0\x9a\x98\x43\x47"], repair=repair_otadata),
    target(parse_otadata, [boot_app0()], repair=repair_otadata),
    target(looks_like_otadata, [boot_app0()], repair=repair_otadata),
    target(parse_nvs, nvs_partitions, repair=repair_nvs),
    target(readable_nvs, nvs_partitions, repair=repair_nvs),
    target(read_string, nvs_partitions, namespace="VIAM_NS", key="OTA_VERSION", repair=repair_nvs),
    target(write_string, nvs_partitions, namespace="n", key="k", value="v" * 60, repair=repair_nvs),
    target(looks_like_nvs, nvs_partitions, repair=repair_nvs),
    target(inspect_nvs, nvs_partitions, repair=repair_nvs),
    target(parse_block, signature_blocks, repair=repair_signature_block),
    target(find_signature_blocks, signed_images, read=first_signature, repair=repair_signed_image),
    target(find_esp8266_segments, lambda: [files_of_every_kind()[-4], *apps()]),
    target(parse_esp_elf, lambda: elf_with_sections() + elf_files()),
    target(parse_elf, lambda: elf_files() + elf_with_sections()),
    target(parse_hex, hex_files, repair=repair_hex),
    target(looks_like_hex, hex_files, repair=repair_hex),
    target(recognise, files_of_every_kind),
    target(find_markers, [pack_marker({"behaviour": "crash", "slot": "2"})]),
    target(parse_sbom, SBOMS),
    target(cleaned_text, ["text", b"\xe2\x80\xae\0"]),
    target(parse_mcuboot_header, mcuboot_images),
    target(walk_mcuboot, mcuboot_images),
    target(parse_image, mcuboot_images),
    target(inspect_mcuboot, mcuboot_images),
    target(walk_area, [b"\x07\x69\x0e\x00\x10\x00\x02\x00hi\x01\x00\x00\x00"], offset=0, magic=0x6907),
    target(read_trailer, mcuboot_images),
    target(ImageVersion.parse, ["1.2.3+4", "1"]),
    target(ImageVersion.unpack, [ImageVersion(1, 2, 3, 4).pack()]),
    target(Dependency.parse, ["0,1.2.3+4", "(1, 2.0)"]),
    target(Dependency.unpack, [Dependency(1, ImageVersion(1)).pack()]),
    target(parse_image2, ameba_files),
    target(parse_core, lambda: [km0_image(), km4_image()], core="km0"),
    target(parse_core, lambda: [km4_image()], core="km4", allow_unpadded=True, variant="km4"),
    target(parse_ota_file, ameba_files, repair=repair_ota_file),
    target(parse_ota_headers, ameba_files),
    target(parse_segment_header, ameba_files),
    target(parse_boot_image, ameba_boot_images),
    target(find_slot_addresses, ameba_boot_images),
    target(ameba_inspection.looks_like_ameba, ameba_files),
    target(ameba_inspection.inspect_ameba, ameba_files, repair=repair_ota_file),
    target(parse_descriptor, nuvoton_files),
    target(parse_trailer, nuvoton_files),
    target(parse_trailer, lambda: nuvoton_files()[3:6], room=384, variant="384"),
    target(parse_program, nuvoton_files),
    target(pack_app, nuvoton_files),
    target(looks_like_program, nuvoton_files),
    target(build_update, lambda: [m2354_program(600)], version=ImageVersion(1, 4)),
    target(nuvoton_inspection.looks_like_nuvoton, nuvoton_files),
    target(nuvoton_inspection.inspect_nuvoton, nuvoton_files),
    target(AppVersion.parse, ["1.0.1", "255.255.65535"]),
    target(version_in_name, ["app_V1.0.1.bin", "x_update_v1.0.1"]),
    target(inspect, files_of_every_kind, read=inspect_and_check),
    target(inspect, lambda: apps() + signed_images(), read=inspect_and_check, repair=repair_esp_image, variant="esp"),
    target(layout_of_file, lambda: [*merged_images(), TABLE], read=layout, repair=repair_table),
)
