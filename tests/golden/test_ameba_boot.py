"""Every state that the vendor's own boot images decided when they were run is decided alike by our model."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from flota.images.ameba import flash_map
from flota.virtual.boot.ameba import BootBinary, BootEnd, ForcePin, Km0Boot, Verify, boot_km0, boot_km4
from tests.golden.vendor_data import vendor_bytes, vendor_json

pytestmark = pytest.mark.golden

MAP = flash_map("2MB")
SLOT = {1: MAP.ota1, 2: MAP.ota2}
SIGNATURE = b"81958711"
SAMPLE_KEY = bytes.fromhex("37313468df98b5b6cec9d5f6b347fdcf1cd2f06c4f5887edf6d3f8c7a88745e4")

LETTERS = {
    (BootEnd.NO_IMAGE, None): "N",
    (BootEnd.HANG, 1): "h",
    (BootEnd.HANG, 2): "H",
}
ENDS = {BootEnd.BAD_RAM_HEADER: "A", BootEnd.BAD_RAM_TEXT: "S", BootEnd.FAULT: "F"}
Pieces = list[tuple[int, bytes]]


class Flash:
    """A flash given as pieces; everything else, and everything beyond its end, reads FF."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(b"\xff" * length)
        for start, piece in self._pieces:
            low, high = max(offset, start), min(offset + length, start + len(piece), MAP.flash_size)
            if low < high:
                data[low - offset : high - offset] = piece[low - start : high - start]
        return bytes(data)


@cache
def vectors() -> dict[str, Any]:
    loaded: dict[str, Any] = vendor_json("boot-vectors/ameba.json")
    return loaded


def pieces_of(state: str, slot: int) -> Pieces:
    return [(SLOT[slot] + offset, bytes.fromhex(text)) for offset, text in vectors()["slot_states"][state]["bytes"]]


def letter(boot: Km0Boot) -> str:
    if boot.started:
        return str(boot.slot)
    return LETTERS.get((boot.end, boot.slot)) or ENDS[boot.end]


def booted(pieces: Pieces, binary: str = "arduino", *, forced: bool = False) -> Km0Boot:
    return boot_km0(Flash(pieces).read, MAP, force_ota1=forced, binary=BootBinary(binary))


def test_every_pair_of_slot_states_with_and_without_the_forced_pin() -> None:
    matrix = vectors()["matrix"]
    order = matrix["slot_state_order"]
    assert len(order) == 33
    for table, forced in (("no_gpio_or_inactive", False), ("gpio_active", True)):
        for ota1, row in zip(order, matrix[table], strict=True):
            found = "".join(letter(booted(pieces_of(ota1, 1) + pieces_of(ota2, 2), forced=forced)) for ota2 in order)
            for ota2, ours, theirs in zip(order, found, row, strict=True):
                assert ours == theirs or (theirs == "X" and ours in "12"), (ota1, ota2, forced)


def test_calls_and_console_of_every_pair_in_detail() -> None:
    """The lines that the boot images print, but for the block of warnings that the ROM's mask decides."""
    text = vectors()["text"]
    for binary, ota1, ota2, log_on, result, calls, console, *_ in vectors()["detail"]["rows"]:
        boot = booted(pieces_of(ota1, 1) + pieces_of(ota2, 2), binary)
        assert letter(boot) == result, (binary, ota1, ota2)
        lines = [text[index] for index in console if not text[index].startswith("Warnning")]
        ours = [line for line in boot.log if log_on or "LEVEL_ERROR" in line]
        assert ours == lines, (binary, ota1, ota2)
        mapped = [text[index] for index in calls if text[index].startswith("map1 len")]
        if mapped:
            assert boot.km4_mapped == int(mapped[-1].split()[-1], 16)
            checks = [text[index] for index in calls if text[index].startswith("check_km4@")]
            assert boot.km4_place == int(checks[-1].removeprefix("check_km4@"), 16) - 0x0800_0000


def mini(slot: int) -> Pieces:
    return pieces_of("valid", slot)


def over(slot: int, offset: int, data: bytes) -> Pieces:
    return [(SLOT[slot] + offset, data)]


def test_all_256_subsets_of_programmed_signature_bytes() -> None:
    for name, results in vectors()["signature_byte_subsets"]["results"].items():
        slot = 1 if "slot1" in name else 2
        rest = [] if "other blank" in name else mini(3 - slot)
        for subset, result in enumerate(results):
            damaged = bytes(SIGNATURE[i] if subset >> i & 1 else 0xFF for i in range(8))
            boot = booted(mini(slot) + over(slot, 0, damaged) + rest, name.split()[0])
            assert letter(boot) == result, (name, subset)


def test_all_single_bit_errors_of_both_signatures() -> None:
    for name, results in vectors()["signature_bit_flips"]["results"].items():
        binary, slot_name, part = name.split()
        slot = int(slot_name[-1])
        for bit, result in enumerate(results):
            damaged = bytearray(SIGNATURE)
            damaged[bit // 8] ^= 1 << bit % 8
            place = 0 if part == "km0" else 0x1000
            boot = booted(mini(slot) + over(slot, place, bytes(damaged)) + mini(3 - slot), binary)
            assert letter(boot) == result, (name, bit)


def test_every_way_to_clear_the_old_signature() -> None:
    for name, results in vectors()["old_signature_clear"]["results"].items():
        binary, slot = name.split()[0], int(name[-1])
        for subset, result in enumerate(results["word0_byte_subsets_other_blank"]):
            word = bytes(0 if subset >> i & 1 else SIGNATURE[i] for i in range(4))
            assert letter(booted(mini(slot) + over(slot, 0, word), binary)) == result, (name, subset)
        for subset, result in enumerate(results["byte0_bit_subsets_other_valid"]):
            cleared = SIGNATURE[0]
            for index, bit in enumerate((3, 4, 5)):
                if subset >> index & 1:
                    cleared &= ~(1 << bit)
            boot = booted(mini(slot) + over(slot, 0, bytes([cleared])) + mini(3 - slot), binary)
            assert letter(boot) == result, (name, subset)


def test_every_step_of_the_vendors_update() -> None:
    image = bytearray(b"\xff" * 0x2000)
    for offset, text in vectors()["slot_states"]["valid"]["bytes"]:
        piece = bytes.fromhex(text)
        image[offset : offset + len(piece)] = piece
    old = {
        "blank": [],
        "old_word0_00": "sig_word0_00",
        "old_km4_blank_sig_00": "km4_blank",
    }
    steps: dict[str, tuple[bytes | None, bytes]] = {  # target from +0 (None: as it was), running from +0
        "before": (None, SIGNATURE),
        "T sector 0 erased": (b"\xff" * 0x1000, SIGNATURE),
        "T erased": (b"\xff" * 0x2000, SIGNATURE),
        "T first 12 bytes from +8": (b"\xff" * 8 + bytes(image[8:20]) + b"\xff" * (0x2000 - 20), SIGNATURE),
        "T sector 0 from +8": (b"\xff" * 8 + bytes(image[8:0x1000]) + b"\xff" * 0x1000, SIGNATURE),
        "T all from +8": (b"\xff" * 8 + bytes(image[8:]), SIGNATURE),
        "T signature word 0": (SIGNATURE[:4] + b"\xff" * 4 + bytes(image[8:]), SIGNATURE),
        "T signature complete": (bytes(image), SIGNATURE),
        "R byte 0 = 00": (bytes(image), b"\0" + SIGNATURE[1:]),
        "R word 0 = 00000000": (bytes(image), bytes(4) + SIGNATURE[4:]),
    }
    for binary, direction, content, step, result in vectors()["update_sequence"]["rows"]:
        running = 1 if direction.startswith("R=OTA1") else 2
        target, kept = 3 - running, old[content]
        before = pieces_of(kept, target) if isinstance(kept, str) else []
        if content == "old_km4_blank_sig_00":
            before += over(target, 0, bytes(4))
        written, signature = steps[step]
        pieces = before + ([] if written is None else over(target, 0, written)) + mini(running)
        pieces += over(running, 0, signature)
        assert letter(booted(pieces, binary)) == result, (binary, direction, content, step)


def segment(size: int, address: int, fill: int, secure: int = 0xFFFF_FFFF) -> bytes:
    header = SIGNATURE + size.to_bytes(4, "little") + address.to_bytes(4, "little") + secure.to_bytes(4, "little")
    return header + b"\xff" * 12 + bytes([fill]) * size


def with_text(segment_bytes: bytes, entry: int) -> bytes:
    start = entry.to_bytes(4, "little") + bytes(8) + b"RTKWin\0"
    return segment_bytes[:32] + start + segment_bytes[32 + len(start) :]


def test_where_km4_is_expected_to_the_byte() -> None:
    for binary, xip, ram, _, page, result in vectors()["k_boundary"]["rows"]:
        km0 = segment(xip, 0x0C00_0020, 0x11) + with_text(segment(ram, 0x0008_3000, 0), 0x0008_3011)
        km4 = segment(16, 0x0E00_0020, 0x12)
        boot = booted(over(2, 0, km0) + over(2, page, km4), binary)
        assert letter(boot) == result, (binary, xip, ram, page)


def test_how_much_is_mapped_for_km4() -> None:
    km0 = segment(16, 0x0C00_0020, 0x11) + with_text(segment(32, 0x0008_3000, 0), 0x0008_3011)
    for binary, xip, ram, psram, secure, result, mapped in vectors()["km4_map_length"]["rows"]:
        km4 = segment(xip, 0x0E00_0020, 0x12, secure) + with_text(segment(ram, 0x1000_5000, 0), 0x0E00_0021)
        if psram is not None:
            km4 += segment(psram, 0x0200_0020, 0)
        boot = booted(over(2, 0, km0) + over(2, 0x1000, km4), binary)
        assert (letter(boot), boot.km4_mapped) == (result, mapped), (binary, xip, ram, psram, secure)


def test_every_code_of_the_pin_that_forces_ota1() -> None:
    text = vectors()["text"]
    for binary, code, level, result, calls in vectors()["force_gpio"]["rows"]:
        pin = ForcePin(code)
        boot = booted(mini(1) + mini(2), binary, forced=pin.forces(level))
        assert letter(boot) == result, (binary, code, level)
        if calls and code != 0xFF:
            assert text[calls[0]] == f"gpio_init pin={pin.pin:#x} mode=0 pull={pin.pull}"


def answer(value: int, _slot: int) -> int:
    return value


def test_callbacks_of_a_boot_image() -> None:
    for binary, which, value, ota1, ota2, result, _ in vectors()["callbacks"]["rows"]:
        read = Flash(pieces_of(ota1, 1) + pieces_of(ota2, 2)).read
        if which == "hook":
            ends = {"rom_shell": BootEnd.NO_IMAGE, "boot_km0_image2": BootEnd.STARTED}
            assert boot_km0(read, MAP, select_hook=partial(int, value)).end is ends[result]
        else:
            boot = boot_km0(read, MAP, binary=BootBinary(binary), firmware_check=partial(answer, value))
            assert letter(boot) == result, (binary, value, ota1, ota2)


def test_the_text_is_looked_for_at_a_fixed_address() -> None:
    for binary, address, result in vectors()["ram_image_addr"]["rows"]:
        pieces = mini(2) + over(2, 0x30 + 12, address.to_bytes(4, "little"))
        assert letter(booted(pieces, binary)) == result, (binary, address)


def test_slots_filled_with_real_images() -> None:
    sdk_km0, sdk_km4 = vendor_bytes("ameba/sdk_km0_image2_all.bin"), vendor_bytes("ameba/sdk_km4_image2_all.bin")
    signed = vendor_bytes("ameba/sdk_km4_image2_sboot.bin")
    sdk = sdk_km0 + sdk_km4
    images = {
        "blank": b"",
        "sdk": sdk,
        "arduino_km0+sdk_km4": vendor_bytes("ameba/arduino_km0_image2_all.bin") + sdk_km4,
        "anchorota": vendor_bytes("ameba/anchorota_km0_km4_image2.bin"),
        "sdk_km0+signed_km4": sdk_km0 + signed + b"\xff" * (-len(signed) % 4096),
        "mini": vendor_bytes("ameba/mini_OTA_All.bin")[32:],
        "sdk_OTA_All_with_32B_header": vendor_bytes("ameba/sdk_OTA_All.bin"),
        "sdk_from+8": b"\xff" * 8 + sdk[8:],
    }
    for binary, ota1, ota2, result, _ in vectors()["real_images"]["rows"]:
        boot = booted(over(1, 0, images[ota1]) + over(2, 0, images[ota2]), binary)
        assert letter(boot) == result, (binary, ota1, ota2)


SAMPLE_SEED = bytes.fromhex("fbed6da10400000054273a0050273a00fafaa77766b1a977ffffffff24000000")
"""The private half, public in the vendor's SDK."""


def verify_with(key: bytes) -> Verify:
    def verify(signature: bytes, message: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    return verify


def small_km4(*, signed: bool) -> bytearray:
    """KM4's page of the small image, signed with the sample key if asked for."""
    page = bytearray(b"\xff" * 0x1000)
    for offset, text in vectors()["slot_states"]["valid"]["bytes"]:
        if offset >= 0x1000:
            page[offset - 0x1000 : offset - 0x1000 + len(text) // 2] = bytes.fromhex(text)
    if signed:
        page[16:20] = (0x0E00_1000).to_bytes(4, "little")
        signature = Ed25519PrivateKey.from_private_bytes(SAMPLE_SEED).sign(bytes(page[0x20:]))
        page += b"\xff" * 48 + signature
    return page


CHANGES: dict[str, tuple[int, bytes]] = {
    "payload byte flipped": (0x28, b"\x00"),
    "header signature byte flipped": (0, b"\x00"),
    "header xip size changed": (8, b"\x14"),
    "signature byte flipped": (0x1000 + 48, b"\x00"),
    "filler before the signature changed": (0x1000, b"\x00"),
    "reserved header words changed": (0x14, b"\x00" * 12),
    "xip size FFFFFFFF": (8, b"\xff" * 4),
    "ram addr FFFFFFFF": (0x30 + 12, b"\xff" * 4),
    "ram size 0x100001": (0x30 + 8, b"\x01\x00\x10\x00"),
    "RTKWin wrong": (0x50 + 12, b"RTKWiN"),
    "RTKWin without 00": (0x50 + 18, b"\xff"),
    "ram addr 0x10006000": (0x30 + 12, b"\x00\x60\x00\x10"),
    "KM4 XIP signature blank": (0, b"\xff" * 8),
    "KM4 RAM signature blank": (0x30, b"\xff" * 8),
}


def km4_case(name: str) -> bytes:
    """The image of a case of the KM4 table, made from what its name says."""
    if name.startswith("sdk_km4_image2"):
        data = bytearray(vendor_bytes(f"ameba/{name.split(',')[0]}"))
        if "one payload bit changed" in name:
            data[0x1000] ^= 1
        return bytes(data)
    data = small_km4(signed=name.startswith("signed"))
    for change, (offset, new) in CHANGES.items():
        if change in name and not (change == "signature byte flipped" and "header signature" in name):
            data[offset : offset + len(new)] = new
    return bytes(data)


def test_every_case_of_the_km4_boot_image() -> None:
    rows = vectors()["km4"]["rows"]
    assert len(rows) == 24
    for name, inputs, result, *_ in rows:
        key = {"other key": bytes(31) + b"\1", "all FF": b"\xff" * 32}.get(inputs.get("efuse", ""))
        public = Ed25519PrivateKey.from_private_bytes(SAMPLE_SEED).public_key().public_bytes_raw()
        assert public == SAMPLE_KEY
        boot = boot_km4(
            Flash([(0x7000, km4_case(name))]).read,
            0x7000,
            secure_boot=inputs.get("chip_bit15", 0) == 0,
            verify=verify_with(key or public),
        )
        assert ("accepted" if boot.end is BootEnd.STARTED else "loop") == result, name
