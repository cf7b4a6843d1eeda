"""`flota image pack ameba` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flota.cli.app import main
from flota.cli.image_ameba import arduino_upload_files
from flota.errors import NotFound
from flota.images.ameba import pack_ota_file
from tests.images.ameba_samples import image2, km0_image, km4_image


def flota(*arguments: str | Path) -> int:
    """Run the command in this process; returns its exit status."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture
def built(tmp_path: Path) -> dict[str, Path]:
    files = {"both": image2(), "km0": km0_image(), "km4": km4_image()}
    for name, data in files.items():
        (tmp_path / f"{name}.bin").write_bytes(data)
    return {name: tmp_path / f"{name}.bin" for name in files}


def test_the_joined_file_and_its_halves_pack_alike(
    built: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.bin", tmp_path / "second.bin"
    assert flota("image", "pack", "ameba", built["both"], "-o", first) == 0
    assert "8224 bytes, checksum of the image 0x001f4434" in capsys.readouterr().out
    assert flota("image", "pack", "ameba", "--km0", built["km0"], "--km4", built["km4"], "-o", second) == 0
    assert first.read_bytes() == second.read_bytes() == pack_ota_file(image2())


def test_version_and_json(built: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.bin"
    assert flota("image", "pack", "ameba", built["both"], "-o", out, "--version", "0x10203", "--json") == 0
    assert out.read_bytes()[:4] == b"\x03\x02\x01\x00"
    facts = json.loads(capsys.readouterr().out)
    assert (facts["files"], facts["size"], facts["checksum"]) == ([str(out)], 8224, 0x1F4434)


def test_what_would_not_start_is_refused_and_nothing_written(
    built: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.bin"
    assert flota("image", "pack", "ameba", built["km0"], "-o", out) == 1
    assert "KM0's alone" in capsys.readouterr().err.replace("it is ", "")
    assert flota("image", "pack", "ameba", "--km0", built["km4"], "--km4", built["km0"], "-o", out) == 1
    assert not out.exists()
    assert flota("image", "pack", "ameba", built["km0"], "--opaque", "-o", out) == 0


@pytest.mark.parametrize(
    "options",
    [
        ("-o", "out"),
        ("BOTH",),
        ("BOTH", "--km0", "KM0", "--km4", "KM4", "-o", "out"),
        ("--km0", "KM0", "-o", "out"),
        ("BOTH", "--version", "1.2", "-o", "out"),
        ("BOTH", "--version", "0x1ffffffff", "-o", "out"),
        ("--km0", "KM0", "--km4", "KM4", "--opaque", "-o", "out"),
    ],
)
def test_options_that_mean_nothing_are_wrong_use(
    options: tuple[str, ...], built: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = [str(built[option.lower()]) if option.lower() in built else option for option in options]
    assert flota("image", "pack", "ameba", *named) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("platform", "folder"),
    [
        ("linux", ".arduino15/packages/realtek"),
        ("darwin", "Library/Arduino15/packages/Realtek"),
        ("win32", "AppData/Local/Arduino15/packages/realtek"),
    ],
)
def test_the_arduino_cores_folder_is_found_on_every_system(platform: str, folder: str, tmp_path: Path) -> None:
    for version in ("1.0.9", "1.1.2"):
        (tmp_path / folder / "tools" / "ameba_d_tools" / version).mkdir(parents=True)
    found = arduino_upload_files(platform, {}, tmp_path)
    assert [path.relative_to(tmp_path / folder / "tools" / "ameba_d_tools").as_posix() for path in found] == [
        "1.0.9/misc/OTA_All.bin",
        "1.1.2/misc/OTA_All.bin",
    ]
    with pytest.raises(NotFound):
        arduino_upload_files(platform, {}, tmp_path / "elsewhere")
