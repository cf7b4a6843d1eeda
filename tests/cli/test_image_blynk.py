"""`flota image blynk-tag`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flota.cli.app import main
from flota.images.blynk_tag import find_tags, pack_tag, written_pairs

FIRMWARE = bytes(range(256)) * 8
TAG = pack_tag(written_pairs(mcu="1.2.3", fw_type="TMPLabcd1234"))


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in ("image", "blynk-tag", *arguments)])
    return int(left.value.code or 0)


def test_a_tag_is_added_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "fw.bin", tmp_path / "tagged.bin"
    file.write_bytes(FIRMWARE)
    assert run(file, "--mcu", "1.2.3", "--fw-type", "TMPLabcd1234", "--build", "Jan  5 2024 01:02:03", "-o", out) == 0
    assert out.read_bytes().startswith(FIRMWARE)
    capsys.readouterr()
    assert run(out, "--show", "--strict") == 0
    shown = capsys.readouterr().out
    assert "1.2.3" in shown
    assert "recognised by the vendor's cloud: yes" in shown
    assert run(out, "--show", "--json") == 0
    assert json.loads(capsys.readouterr().out)["cloud_recognises"] is True


def test_the_time_now_is_a_build_time(tmp_path: Path) -> None:
    file, out = tmp_path / "fw.bin", tmp_path / "tagged.bin"
    file.write_bytes(FIRMWARE)
    assert run(file, "--mcu", "1", "--fw-type", "T", "--build", "now", "--blynk", "0.7.0", "-o", out) == 0
    assert find_tags(out.read_bytes())[0].tag.build


def test_a_file_without_a_tag_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fw.bin"
    file.write_bytes(FIRMWARE)
    assert run(file, "--show") == 1
    assert "has no firmware tag" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [[], ["--mcu", "1"], ["--show", "--mcu", "1"], ["--mcu", "1", "--fw-type", "T"], ["--show", "--replace"]],
)
def test_contradictions_are_wrong_use(tmp_path: Path, options: list[str]) -> None:
    file = tmp_path / "fw.bin"
    file.write_bytes(FIRMWARE)
    assert run(file, *options) == 2


def test_a_plus_in_a_version_is_refused_with_the_character(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "fw.bin", tmp_path / "tagged.bin"
    file.write_bytes(FIRMWARE)
    assert run(file, "--mcu", "1.2.3+7", "--fw-type", "T", "-o", out) == 1
    assert "'+'" in capsys.readouterr().err
    assert not out.exists()


def test_a_second_tag_needs_replace(tmp_path: Path) -> None:
    file, out = tmp_path / "fw.bin", tmp_path / "tagged.bin"
    file.write_bytes(FIRMWARE + TAG)
    assert run(file, "--mcu", "1.2.4", "--fw-type", "T", "-o", out) == 1
    assert not out.exists()
    assert run(file, "--mcu", "1.2.4", "--fw-type", "T", "--replace", "-o", out) == 0
    assert [one.tag.version for one in find_tags(out.read_bytes())] == ["1.2.4"]


def test_a_tag_inside_an_image_with_a_hash_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flota.images.esp_app import pack_app
    from flota.images.esp_chips import chip_named
    from flota.images.esp_layout import AppIdentity, MemoryPiece, PackOptions, build_app

    code = bytes(64) + TAG + bytes(64)
    pieces = [MemoryPiece(0x3C00_0200, code), MemoryPiece(0x4200_0020, bytes(256))]
    app = build_app(
        pieces, chip=chip_named("esp32-c3"), entry=0x4200_0020, identity=AppIdentity("1", "p"), options=PackOptions()
    )
    file, out = tmp_path / "app.bin", tmp_path / "tagged.bin"
    file.write_bytes(pack_app(app))
    assert run(file, "--mcu", "1.2.4", "--fw-type", "T", "--replace", "-o", out) == 1
    assert "would break the file" in capsys.readouterr().err
    assert not out.exists()
