"""A release for a primary MCU behind an NCP has to say what its firmware tag says: that is what the MCU will report."""

from __future__ import annotations

import pytest

from flota.boards.catalogue import board
from flota.boards.fit import fit_check
from flota.boards.fit_blynk import firmware_type_of
from flota.boards.model import TypeProfile
from flota.images.blynk_tag import pack_tag, written_pairs
from flota.images.inspection import inspect

BOARDS = ["dual-mcu-ab", "dual-mcu-ncp"]
BUILD = "Nov 16 2023 20:35:55"


def reasons(
    data: bytes, *, version: str = "1.2.3", name: str = "dual-mcu-ab", firmware_type: str | None = None
) -> list[str]:
    profile = TypeProfile(board(name), firmware_type=firmware_type)
    found = fit_check(profile, inspect(data), file_size=len(data), version=version)
    return [f"{reason.code}{'' if reason.blocking else '?'}" for reason in found]


def firmware(mcu: str = "1.2.3", fw_type: str = "TMPLabcd1234", build: str | None = BUILD) -> bytes:
    return bytes(1000) + pack_tag(written_pairs(mcu=mcu, fw_type=fw_type, build=build))


@pytest.mark.parametrize("name", BOARDS)
def test_a_file_whose_tag_agrees_fits(name: str) -> None:
    assert reasons(firmware(), name=name) == []


@pytest.mark.parametrize("name", BOARDS)
def test_a_file_without_a_tag_is_refused(name: str) -> None:
    assert reasons(bytes(1000), name=name) == ["no-tag"]


def test_another_version_than_the_tags_is_refused() -> None:
    assert reasons(firmware(), version="1.2.4") == ["version"]


def test_the_firmware_of_an_ncp_is_refused() -> None:
    assert reasons(bytes(1000) + pack_tag([("ncp", "1.2.3")])) == ["tag-of-ncp"]


def test_firmware_of_another_type_is_refused_where_the_type_says_which() -> None:
    assert reasons(firmware(), firmware_type="TMPLabcd1234") == []
    assert reasons(firmware(), firmware_type="TMPLother0000") == ["fw-type"]
    assert firmware_type_of("TMPLother0000") == "TMPLother0000"
    assert firmware_type_of("pump") is None


def test_a_tag_without_a_type_is_refused_and_one_without_a_build_time_named() -> None:
    assert reasons(bytes(9) + pack_tag([("mcu", "1.2.3")])) == ["no-fw-type", "no-build-time?"]


def test_a_file_larger_than_a_bank_is_refused() -> None:
    assert reasons(bytes(0xF_0000) + firmware()) == ["too-large"]
