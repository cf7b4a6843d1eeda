"""ELF files of any machine: what goes into flash, and where."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from flota.images.elf_file import ElfError, parse_elf
from flota.images.intel_hex import pack_hex, parse_hex
from flota.images.memory_map import MemoryBlock, MemoryMap, OverlappingMemory, flatten
from flota.images.model import ImageError, TruncatedImage
from tests.images.elf_samples import small_elf

BUILT = Path(__file__).resolve().parents[2] / "examples" / "firmware" / "built"
ELF = (BUILT / "sample-2.0.0.elf").read_bytes()


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_segments_are_taken_at_their_load_address_in_every_class_and_byte_order(bits: int, order: str) -> None:
    held = parse_elf(small_elf([(0x2000, b"data"), (0x100, b"code")], bits=bits, order=order))
    assert held == MemoryMap((MemoryBlock(0x100, b"code"), MemoryBlock(0x2000, b"data")), 0x1004)


@pytest.mark.program
@pytest.mark.parametrize("path", sorted(BUILT.glob("sample-*.elf")), ids=lambda path: path.name)
def test_objcopy_makes_the_same_of_our_sample_firmware(path: Path, tmp_path: Path) -> None:
    program = shutil.which("riscv64-unknown-elf-objcopy") or shutil.which("llvm-objcopy")
    if program is None:
        pytest.skip("riscv64-unknown-elf-objcopy is not installed")
    subprocess.run([program, "-O", "ihex", str(path), str(tmp_path / "x.hex")], check=True)
    theirs = (tmp_path / "x.hex").read_bytes()
    held = parse_elf(path.read_bytes())
    assert parse_hex(theirs) == held
    assert pack_hex(held) == theirs.replace(b"\r\n", b"\n")


@pytest.mark.program
def test_objcopy_makes_the_same_plain_file_of_a_program_of_this_machine(tmp_path: Path) -> None:
    if shutil.which("objcopy") is None:
        pytest.skip("objcopy is not installed")
    program = Path(shutil.which("true") or "/bin/true").resolve()
    subprocess.run(["objcopy", "-O", "binary", str(program), str(tmp_path / "x.bin")], check=True)
    assert flatten(parse_elf(program.read_bytes()), gap_fill=0) == (tmp_path / "x.bin").read_bytes()


def test_a_file_cut_off_is_an_error_and_nothing_else() -> None:
    whole = small_elf([(0x100, b"code"), (0x200, b"data")])
    for length in range(len(whole)):
        with pytest.raises(ImageError):
            parse_elf(whole[:length])
    for length in range(0, len(ELF), 97):
        with pytest.raises(ImageError):
            parse_elf(ELF[:length])


@pytest.mark.parametrize(
    ("elf", "kind", "message"),
    [
        (b"", ElfError, "not an ELF"),
        (b"MZ" + bytes(98), ElfError, "not an ELF"),
        (b"\x7fELF\x03\x01" + bytes(90), ElfError, "unknown class"),
        (small_elf([(1, b"x")], kind=1), ElfError, "not a linked program.*an object file"),
        (small_elf([(1, b"x")], kind=4), ElfError, "core dump"),
        (small_elf([]), ElfError, "nothing to load"),
        (small_elf([(1, b"x")], load=2), ElfError, "nothing to load"),
        (small_elf([(1, b"ab"), (2, b"ab")]), OverlappingMemory, "overlap"),
        (small_elf([(0xFFFF_FFFF_FFFF_FFFF, b"ab")], bits=64), ImageError, "bad piece"),
    ],
)
def test_what_cannot_be_loaded_is_refused(elf: bytes, kind: type[ImageError], message: str) -> None:
    with pytest.raises(kind, match=message):
        parse_elf(elf)


@pytest.mark.parametrize(
    ("offset", "value", "kind", "message"),
    [
        (44, 0xFFFF, ElfError, "too many segments"),
        (44, 900, TruncatedImage, "header table ends outside"),
        (42, 8, ElfError, "rows of a header table"),
        (48, 0xFFFF, ElfError, "too many sections"),
        (48, 9, ElfError, "rows of a header table"),
    ],
)
def test_hostile_counts_are_checked_before_anything_is_read(
    offset: int, value: int, kind: type[ImageError], message: str
) -> None:
    bent = bytearray(small_elf([(0x100, b"code")]))
    struct.pack_into("<H", bent, offset, value)
    with pytest.raises(kind, match=message):
        parse_elf(bent)


def test_a_segment_that_ends_outside_the_file_is_refused() -> None:
    bent = bytearray(small_elf([(0x100, b"code")]))
    struct.pack_into("<I", bent, 52 + 16, 0xFFFF_FFFF)
    with pytest.raises(TruncatedImage, match="ends inside what it says to load"):
        parse_elf(bent)


def test_many_sections_over_the_same_bytes_are_refused() -> None:
    held = small_elf([(0x100, bytes(1000))] * 3)
    bent = bytearray(held)
    for index in range(3):
        struct.pack_into("<I", bent, 52 + 32 * index + 4, 200)
        struct.pack_into("<I", bent, 52 + 32 * index + 12, 0x1000 * index)
        struct.pack_into("<I", bent, 52 + 32 * index + 16, 2000)
    with pytest.raises(ElfError, match="larger than the file"):
        parse_elf(bent)
