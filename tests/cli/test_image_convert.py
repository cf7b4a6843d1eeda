from __future__ import annotations

from pathlib import Path

import pytest

from flota.cli.app import main
from flota.images.elf_file import parse_elf
from flota.images.intel_hex import pack_hex, parse_hex
from flota.images.memory_map import MemoryBlock, memory_map
from tests.images.elf_samples import small_elf

ELF = Path(__file__).resolve().parents[2] / "examples" / "firmware" / "built" / "sample-2.0.0.elf"
HELD = memory_map([MemoryBlock(0x0800_0000, b"vectors"), MemoryBlock(0x0800_0010, b"code")], entry=0x0800_0011)


def convert(source: Path, out: Path, *options: str) -> int:
    """Run the command in this process; returns its exit status."""
    with pytest.raises(SystemExit) as left:
        main(["image", "convert", str(source), "-o", str(out), *options])
    return int(left.value.code or 0)


@pytest.fixture
def hex_file(tmp_path: Path) -> Path:
    path = tmp_path / "a.hex"
    path.write_bytes(pack_hex(HELD))
    return path


def test_hex_becomes_plain_bytes(hex_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.bin"
    assert convert(hex_file, out) == 0
    assert out.read_bytes() == b"vectors" + b"\xff" * 9 + b"code"
    assert "20 bytes, 0x8000000 to 0x8000014, 11 of data" in capsys.readouterr().out
    assert convert(hex_file, out, "--at", "0x7FFFFFF", "--gap-fill", "0") == 0
    assert out.read_bytes() == b"\0vectors" + b"\0" * 9 + b"code"


def test_plain_bytes_become_hex_at_an_address(tmp_path: Path) -> None:
    source, out = tmp_path / "a.bin", tmp_path / "a.hex"
    source.write_bytes(b"firmware")
    assert convert(source, out, "--at", "0x8000000") == 0
    assert parse_hex(out.read_bytes()) == memory_map([MemoryBlock(0x0800_0000, b"firmware")])


def test_an_elf_becomes_hex_or_plain_bytes(tmp_path: Path) -> None:
    out, source = tmp_path / "out", tmp_path / "a.elf"
    assert convert(ELF, out, "--format", "hex") == 0
    assert parse_hex(out.read_bytes()) == parse_elf(ELF.read_bytes())
    source.write_bytes(small_elf([(0x14, b"data"), (0x10, b"go")]))
    assert convert(source, out) == 0
    assert out.read_bytes() == b"go\xff\xffdata"


def test_hex_over_four_gigabytes_stays_hex(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "far.hex"
    source.write_bytes(pack_hex(memory_map([MemoryBlock(0, b"a"), MemoryBlock(0xF000_0000, b"b")])))
    assert convert(source, tmp_path / "far.bin") == 1
    assert "too far apart" in capsys.readouterr().err
    assert not (tmp_path / "far.bin").exists()
    assert convert(source, tmp_path / "again.hex") == 0


@pytest.mark.parametrize(
    ("name", "content", "options", "status", "message"),
    [
        ("a.bin", b"plain", (), 1, "nothing to convert"),
        ("a.bin", b"plain", ("--format", "hex"), 2, "need the address"),
        ("a.bin", b"plain", ("--format", "hex", "--at", "x"), 2, "not a number"),
        ("a.bin", b"plain", ("--format", "hex", "--at", "0xFFFFFFFF"), 1, "32 bits"),
        ("a.bin", b"", ("--format", "hex", "--at", "0"), 1, "bad piece of memory"),
        ("a.hex", b"hello", (), 1, "line 1 is no record"),
        ("a.hex", pack_hex(HELD)[:-12], (), 1, "no end record"),
        ("a.hex", pack_hex(HELD), ("--format", "hex", "--at", "0"), 2, "has its own addresses"),
        ("a.hex", pack_hex(HELD), ("--at", "0x8000001"), 1, "data lies before"),
        ("a.hex", pack_hex(HELD), ("--gap-fill", "256"), 1, "fill byte"),
        ("a.elf", b"\x7fELF", (), 1, "ELF header"),
    ],
)
def test_what_cannot_be_converted_says_why_and_leaves_nothing_behind(
    name: str,
    content: bytes,
    options: tuple[str, ...],
    status: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / name
    source.write_bytes(content)
    assert convert(source, tmp_path / "out", *options) == status
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]
