"""MCUboot images: header, TLV areas, hash, slot trailer."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace

import pytest

from flota.images.mcuboot import (
    Dependency,
    HashMismatch,
    ImageFlag,
    ImageOptions,
    ImageVersion,
    NoHash,
    SlotShape,
    Tlv,
    TlvError,
    TlvType,
    build_image,
    check_fits,
    check_hash,
    fill_slot,
    flag_names,
    pack_image,
    parse_header,
    parse_image,
    read_trailer,
    sign_image,
    signed_facts,
    walk_image,
)
from flota.images.model import ImageError, TruncatedImage
from tests.images.mcuboot_samples import OPTIONS, RFC_8032_KEY, VERSION, image_key, sample, sample_bytes

GOLDEN = bytes.fromhex(
    "3db8f3960000000020001c0008000000000000000102030004000000000000006669726d7761726508691c00500004000700000040000c00"
    "01000000010000000000000007699000100020006ff2d529aee07a8db34bcd104e81208d941c3ea8410825090fd1c247f1380add01002000"
    "06e3fd8fda29bb60ab59557de61edb0aecdb231134be30e75b455f8e1b792fa9240040008f568e152ecba4b043f66fd0519a81ade804114b"
    "e3cdf075b40060ce4e6cfca2767033661605872d08e59a6233f2a5f7a7232fbadc0664081c0c513944021102"
)
"""What imgtool 2.5.0 makes of `firmware` with the first key of RFC 8032."""


def test_the_golden_image_is_packed_byte_for_byte() -> None:
    image = build_image(b"firmware", replace(OPTIONS, header_size=32))
    assert pack_image(sign_image(image, RFC_8032_KEY.signer)) == GOLDEN


def test_the_golden_image_says_what_went_into_it() -> None:
    image, layout = parse_image(GOLDEN), walk_image(GOLDEN)
    facts = signed_facts(image)
    assert (image.version, image.payload, layout.image_size) == (VERSION, b"firmware", len(GOLDEN))
    assert (facts.security_counter, facts.dependencies) == (7, (Dependency(1, ImageVersion(1)),))
    assert [entry.name for entry in image.unprotected] == ["SHA256", "KEYHASH", "ED25519"]
    assert image.unprotected[1].value == RFC_8032_KEY.public.key_hash
    assert check_hash(GOLDEN, layout) == image.unprotected[0].value


def test_tlv_numbers_are_those_of_the_device_code() -> None:
    assert (TlvType.UUID_VID, TlvType.UUID_CID) == (0x74, 0x75)  # not the 0x80 and 0x81 of MCUboot's docs/design.md
    assert (TlvType.ECDSA_SIG, TlvType.RSA3072_PSS, TlvType.ED25519, TlvType.SIG_PURE) == (0x22, 0x23, 0x24, 0x25)
    assert (TlvType.DEPENDENCY, TlvType.SEC_CNT, TlvType.BOOT_RECORD) == (0x40, 0x50, 0x60)


def test_a_file_cut_anywhere_is_truncated() -> None:
    whole = sample_bytes()
    for length in range(len(whole)):
        with pytest.raises(TruncatedImage):
            parse_image(whole[:length])
    assert parse_image(whole).trailer == b""


def test_every_flipped_bit_of_the_signed_part_is_noticed() -> None:
    whole = bytearray(sample_bytes())
    end = walk_image(whole).header.hashed_end
    for position in range(end):
        whole[position] ^= 1
        with pytest.raises(ImageError):
            check_hash(bytes(whole), walk_image(bytes(whole)))
        whole[position] ^= 1


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"\x3c", "not an MCUboot image"),
        (8, b"\x1f\0", "shorter than it is"),
        (8, b"\xff\xff", "inside the firmware"),
        (10, b"\xff\xff", "before its TLVs|disagree|outside"),
        (10, b"\0\0", "magic of a TLV area"),
        (12, b"\xff\xff\xff\xff", "more than 4 GiB"),
        (12, b"\xff\xff\0\xf0", "inside the firmware"),
    ],
)
def test_hostile_sizes_in_the_header_are_refused_before_anything_is_allocated(
    offset: int, value: bytes, message: str
) -> None:
    bent = bytearray(sample_bytes())
    bent[offset : offset + len(value)] = value
    tracemalloc.start()
    with pytest.raises(ImageError, match=message):
        parse_image(bytes(bent))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("at", "value", "kind", "message"),
    [
        (0, 0x6908, TlvError, "magic of a TLV area"),
        (2, 3, TlvError, "shorter than its header"),
        (2, 0xFFFF, TruncatedImage, "outside the file"),
        (2, 6, TlvError, "inside the header of an entry"),
        (6, 0xFFFF, TlvError, "leaves its TLV area"),
    ],
)
def test_a_tlv_area_that_lies_about_itself_is_refused(
    at: int, value: int, kind: type[ImageError], message: str
) -> None:
    bent = bytearray(sample_bytes())
    struct.pack_into("<H", bent, walk_image(bent).unprotected.offset + at, value)
    with pytest.raises(kind, match=message):
        walk_image(bent)


def test_header_and_protected_area_must_agree_on_its_size() -> None:
    bent = bytearray(sample_bytes())
    protected = walk_image(bent).protected
    assert protected is not None
    struct.pack_into("<H", bent, protected.offset + 2, protected.size - 4)
    with pytest.raises(TlvError):
        walk_image(bent)


def test_a_wrong_hash_names_both() -> None:
    image = sample()
    wrong = replace(image, unprotected=(Tlv(TlvType.SHA256, bytes(32)), *image.unprotected[1:]))
    packed = pack_image(wrong)
    with pytest.raises(HashMismatch) as caught:
        check_hash(packed, walk_image(packed))
    assert caught.value.found == "00" * 32
    assert caught.value.expected == image.unprotected[0].value.hex()


def test_no_hash_and_no_pure_signature_is_an_error_and_encryption_leaves_it_open() -> None:
    bare = pack_image(replace(sample(), unprotected=()))
    with pytest.raises(NoHash):
        check_hash(bare, walk_image(bare))
    pure = pack_image(replace(sample(), unprotected=(Tlv(TlvType.SIG_PURE, b"\1"),)))
    assert check_hash(pure, walk_image(pure)) is None
    encrypted = pack_image(replace(sample(), flags=ImageFlag.ENCRYPTED_AES128))
    assert check_hash(encrypted, walk_image(encrypted)) is None


def test_an_empty_protected_area_survives() -> None:
    image = replace(sample(), protected=())
    assert parse_image(pack_image(image)) == image
    assert walk_image(pack_image(image)).header.protected_size == 4


def test_fields_outside_the_signed_part_count_for_nothing() -> None:
    image = sample()
    forged = (
        Tlv(TlvType.SEC_CNT, b"\xff\xff\xff\xff"),
        Tlv(TlvType.DEPENDENCY, Dependency(9, ImageVersion(9)).pack()),
        Tlv(TlvType.BOOT_RECORD, b"forged"),
        Tlv(TlvType.UUID_VID, bytes(16)),
        Tlv(TlvType.UUID_CID, bytes(16)),
    )
    assert signed_facts(replace(image, unprotected=image.unprotected + forged)) == signed_facts(image)


@pytest.mark.parametrize(
    "entries",
    [
        (Tlv(TlvType.SEC_CNT, b"\1\0\0"),),
        (Tlv(TlvType.SEC_CNT, bytes(4)), Tlv(TlvType.SEC_CNT, bytes(4))),
        (Tlv(TlvType.DEPENDENCY, bytes(11)),),
        (Tlv(TlvType.UUID_VID, bytes(15)),),
    ],
)
def test_signed_fields_of_the_wrong_shape_are_refused(entries: tuple[Tlv, ...]) -> None:
    with pytest.raises(TlvError):
        signed_facts(replace(sample(), protected=entries))


@pytest.mark.parametrize(
    "text", ["", "1.2.3.4", "01.2", "1.2.3+", "v1.2.3", "1.2.3-rc1", "256.0.0", "1.0.65536", "١.٢"]
)
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ImageError):
        ImageVersion.parse(text)


def test_versions_compare_as_boot_loaders_compare_them() -> None:
    ordered = [ImageVersion.parse(text) for text in ("0", "1.2", "1.2.3", "1.2.3+1", "1.10", "2")]
    assert ordered == sorted(ordered)
    assert str(ImageVersion.parse("1.2")) == "1.2.0+0"
    assert ImageVersion.parse("1.2.3+99").automatic_security_counter == 0x0102_0003


@pytest.mark.parametrize("text", ["", "1", "x,1.2.3", "1,", "300,1.0.0"])
def test_what_is_no_dependency_is_refused(text: str) -> None:
    with pytest.raises(ImageError):
        Dependency.parse(text).pack()


def test_firmware_that_left_room_for_the_header_keeps_its_length() -> None:
    firmware = bytes(64) + b"code"
    image = build_image(firmware, replace(OPTIONS, add_header=False))
    assert (image.payload, image.header_padding) == (b"code", bytes(32))
    with pytest.raises(ImageError, match="no room") as caught:
        build_image(bytes(63) + b"xcode", replace(OPTIONS, add_header=False))
    assert caught.value.offset == 63
    with pytest.raises(ImageError, match="no room"):
        build_image(bytes(63), replace(OPTIONS, add_header=False))


def test_addresses_set_their_flag_and_exclude_each_other() -> None:
    options = ImageOptions(VERSION, add_header=True)
    loaded = build_image(b"x", replace(options, load_address=0x2000_0000, non_bootable=True))
    assert (loaded.load_address, loaded.flags) == (0x2000_0000, ImageFlag.RAM_LOAD | ImageFlag.NON_BOOTABLE)
    assert build_image(b"x", replace(options, rom_address=0x800)).flags == ImageFlag.ROM_FIXED
    with pytest.raises(ImageError):
        build_image(b"x", replace(options, load_address=1, rom_address=2))


@pytest.mark.parametrize("bad", [{"security_counter": -1}, {"security_counter": 1 << 32}, {"header_size": 31}])
def test_options_out_of_range_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ImageError):
        build_image(b"x", replace(OPTIONS, **bad))  # type: ignore[arg-type]


def test_numbers_that_do_not_fit_their_field_are_refused() -> None:
    for bent in (
        replace(sample(), load_address=1 << 32),
        replace(sample(), header_padding=bytes(0x10000)),
        replace(sample(), unprotected=(Tlv(0x10000, b""),)),
        replace(sample(), unprotected=(Tlv(1, bytes(0xFFF8)),) * 2),
    ):
        with pytest.raises(ImageError):
            pack_image(bent)


def test_flags_are_named_and_unknown_ones_kept() -> None:
    image = replace(sample(), flags=ImageFlag.RAM_LOAD | ImageFlag(0x4000_0000))
    assert parse_image(pack_image(image)).flags == image.flags
    assert flag_names(image.flags) == "ram-load, 0x40000000"
    assert flag_names(ImageFlag(0)) == "none"


def test_the_old_format_and_big_endian_images_are_named_in_the_hint() -> None:
    for magic, word in ((b"\x3c\xb8\xf3\x96", "2017"), (b"\x96\xf3\xb8\x3d", "big-endian")):
        with pytest.raises(ImageError) as caught:
            parse_header(magic + bytes(28))
        assert word in str(caught.value)


def test_signing_again_replaces_the_old_signature() -> None:
    assert sign_image(sample(), image_key().signer) == sample()
    assert [entry.name for entry in sign_image(sample(), None).unprotected] == ["SHA256"]


@pytest.mark.parametrize(
    ("slot", "trailer_size"),
    [
        (SlotShape(0x10000), 128 * 3 * 1 + 4 * 8 + 16),
        (SlotShape(0x10000, align=8), 128 * 3 * 8 + 4 * 8 + 16),
        (SlotShape(0x10000, align=16), 128 * 3 * 16 + 4 * 16 + 16),
        (SlotShape(0x10000, align=32), 128 * 3 * 32 + 4 * 32 + 32),
        (SlotShape(0x10000, overwrite_only=True), 2 * 8 + 16),
        (SlotShape(0x10000, max_sectors=10, max_align=32), 10 * 3 + 4 * 32 + 32),
    ],
)
def test_an_image_may_fill_its_slot_up_to_the_trailer_and_not_one_byte_more(slot: SlotShape, trailer_size: int) -> None:
    assert slot.trailer_size == trailer_size
    check_fits(slot.size - trailer_size, slot)
    with pytest.raises(ImageError, match="does not fit"):
        fill_slot(bytes(slot.size - trailer_size + 1), slot)
    assert len(fill_slot(bytes(slot.size - trailer_size), slot)) == slot.size


@pytest.mark.parametrize("align", [1, 8, 16, 32])
def test_a_confirmed_slot_reads_as_confirmed_and_a_padded_one_as_pending(align: int) -> None:
    slot = SlotShape(0x8000, align=align)
    for confirmed in (False, True):
        trailer = read_trailer(fill_slot(sample_bytes(), slot, confirmed=confirmed))
        assert trailer is not None
        assert (trailer.image_ok, trailer.copy_done, trailer.cell) == (confirmed, False, max(8, align))


def test_overwrite_only_slots_are_never_marked_confirmed() -> None:
    slot = SlotShape(0x1000, overwrite_only=True)
    assert fill_slot(b"x", slot, confirmed=True) == fill_slot(b"x", slot)


@pytest.mark.parametrize(
    "bad",
    [{"size": 0}, {"size": 1 << 40}, {"align": 3}, {"align": 32, "max_align": 8}, {"max_align": 64}, {"max_sectors": 0},
     {"erased": 1}],
)  # fmt: skip
def test_slots_that_cannot_be_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ImageError):
        SlotShape(**{"size": 0x1000, **bad})


@pytest.mark.parametrize("data", [b"", b"x" * 16, bytes.fromhex("40002de15d29410b8d77679c110f1f8a"),
                                  bytes.fromhex("20002de15d29410b8d77679c110f1f8a")])  # fmt: skip
def test_no_trailer_is_found_where_none_can_be(data: bytes) -> None:
    assert read_trailer(data) is None


@pytest.mark.parametrize("length", range(8))
def test_a_version_cut_off_is_a_truncated_image(length: int) -> None:
    with pytest.raises(TruncatedImage, match="version is cut off"):
        ImageVersion.unpack(bytes(length))


@pytest.mark.parametrize("text", ["²,1.0.0", "٣,1.0.0"])
def test_a_dependency_on_digits_of_other_scripts_is_refused(text: str) -> None:
    with pytest.raises(ImageError):
        Dependency.parse(text)


def test_separators_around_a_dependencys_number_are_white_space() -> None:
    """`str.strip` takes U+001C for white space, `int` does not."""
    assert Dependency.parse("0\x1c,1.0.0").image_id == 0
