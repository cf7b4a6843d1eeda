from __future__ import annotations

from dataclasses import replace

import pytest

from flota.boards.catalogue import BOARDS, board
from flota.boards.fit import fit_check, slots_of
from flota.boards.model import TypeProfile, Unfit, VersionFrom
from flota.images.esp_app import pack_app
from flota.images.esp_chips import CHIP_NAMES
from flota.images.esp_layout import AppIdentity, PackOptions, retag_app
from flota.images.esp_partitions import Partition, PartitionTable, pack_table, parse_csv
from flota.images.esp_secure_boot import public_key_digest
from flota.images.inspection import inspect
from tests.images.esp_samples import bootloader_of, merged_image, sample_app, sample_image
from tests.images.signed_samples import p256_key, padded, pem_of, signed

C3 = TypeProfile(board("esp32-c3"))
UNUSABLE_TABLES = (
    "app,app,factory,,1M\n",
    "a,app,ota_0,,1M\nb,app,ota_1,,1M\n",
    "od,data,ota,,8K\na,app,ota_0,,1M\n",
)


def reasons_of(profile: TypeProfile, data: bytes, version: str = "1.2.3") -> tuple[Unfit, ...]:
    return fit_check(profile, inspect(data), file_size=len(data), version=version)


def blocking(profile: TypeProfile, data: bytes, version: str = "1.2.3") -> list[str]:
    return [reason.code for reason in reasons_of(profile, data, version) if reason.blocking]


def test_an_app_fits_its_own_chip_and_no_other() -> None:
    for name in CHIP_NAMES:
        packed = sample_app(name)
        for other in CHIP_NAMES:
            assert blocking(TypeProfile(board(other)), packed) == ([] if other == name else ["wrong-chip"])


@pytest.mark.parametrize("name", CHIP_NAMES)
@pytest.mark.parametrize("size", [None, 1 << 20, 4 << 20])
def test_a_merged_image_is_refused_with_the_place_of_the_app_inside(name: str, size: int | None) -> None:
    reasons = reasons_of(TypeProfile(board(name)), merged_image(name, size=size))
    assert reasons[0].code == "merged-image"
    assert reasons[0].blocking
    assert "0x20000" in (reasons[0].hint or "")


@pytest.mark.parametrize("data", [bootloader_of("esp32-c3"), b"hello", b"\x7fELF" + bytes(60), b"\x1f\x8b\x08"])
def test_what_is_no_app_is_refused_with_what_it_is(data: bytes) -> None:
    reason = reasons_of(C3, data)[0]
    assert (reason.code, reason.expected, reason.blocking) == ("wrong-format", "esp-app", True)
    assert reason.found == inspect(data).format.value


def test_an_elf_is_refused_with_the_command_that_packs_it() -> None:
    assert "flota image pack esp-app" in (reasons_of(C3, b"\x7fELF" + bytes(60))[0].hint or "")


def test_any_file_fits_a_machine_with_two_files_but_not_an_empty_or_endless_one() -> None:
    linux = TypeProfile(BOARDS["generic-linux"])
    for data in (b"hello", sample_app(), merged_image(), b"\x1f\x8b\x08"):
        assert blocking(linux, data) == []
    assert "empty" in blocking(linux, b"")
    found = inspect(b"hello")
    assert [r.code for r in fit_check(linux, found, file_size=1 << 40, version="1")] == ["too-large"]


@pytest.mark.parametrize("position", [-1, 40])
def test_a_damaged_app_is_refused_with_offset_expected_and_found(position: int) -> None:
    packed = bytearray(sample_app())
    packed[position] ^= 1
    reason = reasons_of(C3, bytes(packed))[0]
    assert reason.blocking
    assert None not in (reason.offset, reason.expected, reason.found)


def test_an_app_may_fill_the_smallest_slot_and_not_exceed_it() -> None:
    table = pack_table(
        PartitionTable(
            (
                Partition("otadata", 1, 0, 0xF000, 0x2000),
                Partition("ota_0", 0, 0x10, 0x20000, 0x40000),
                Partition("ota_1", 0, 0x11, 0x60000, 0x30000),
            )
        )
    )
    profile = replace(C3, partition_table=table)
    assert [slot.size for slot in slots_of(profile)] == [0x40000, 0x30000]
    assert blocking(profile, sample_app(options=PackOptions(pad_to=0x30000))) == []
    reasons = reasons_of(profile, sample_app(options=PackOptions(pad_to=0x30010)))
    assert [(r.code, r.found) for r in reasons] == [("too-large", f"{0x30010} bytes")]
    assert "ota_1" in (reasons[0].expected or "")


def test_bytes_after_the_image_count_for_the_slot() -> None:
    slot = slots_of(C3)[0].size
    assert blocking(C3, sample_app().ljust(slot, b"\xff")) == []
    assert blocking(C3, sample_app().ljust(slot + 1, b"\xff")) == ["too-large"]


@pytest.mark.parametrize(
    ("csv", "codes"),
    [
        ("nvs,data,nvs,,24K\napp,app,factory,,1M\n", ["no-slots"]),
        ("nvs,data,nvs,,24K\na,app,ota_0,,1M\nb,app,ota_1,,1M\n", ["no-otadata"]),
        ("od,data,ota,,8K\na,app,ota_0,,1M\n", ["one-slot"]),
        ("od,data,ota,,8K\nf,app,factory,,1M\na,app,ota_0,,1M\n", []),
        ("od,data,ota,,8K\na,app,ota_0,,1M\nb,app,ota_1,,1M\n", []),
    ],
)
def test_a_partition_table_with_which_no_update_can_work_is_a_reason_of_its_own(csv: str, codes: list[str]) -> None:
    assert blocking(replace(C3, partition_table=pack_table(parse_csv(csv))), sample_app()) == codes


def test_another_version_in_the_image_is_a_warning_that_shows_both() -> None:
    reasons = reasons_of(C3, sample_app(), "2.0")
    assert [(r.code, r.expected, r.found, r.blocking) for r in reasons] == [("version", "2.0", "1.2.3", False)]
    assert reasons_of(C3, sample_app(), "v1.2.3") == ()


def test_another_version_in_the_image_is_an_error_where_the_type_says_so() -> None:
    strict = replace(C3, version_from=VersionFrom.APP_DESC)
    assert blocking(strict, sample_app(), "1.2.3") == []
    assert blocking(strict, sample_app(), "v1.2.3") == ["version"]


def test_another_version_is_claimed_only_where_one_was_read() -> None:
    strict = replace(C3, version_from=VersionFrom.APP_DESC)
    damaged = bytearray(sample_app())
    damaged[-1] ^= 1
    for data in (bytes(damaged), sample_app()[:600], b"hello", bootloader_of("esp32-c3"), merged_image(), b"\xe9"):
        assert {"no-version", "version"}.isdisjoint(blocking(strict, data)), inspect(data)
    assert blocking(strict, merged_image(), "9.9.9") == ["merged-image"]
    nameless = pack_app(retag_app(sample_image(), AppIdentity(version="")))
    assert blocking(strict, nameless) == ["no-version"]
    assert blocking(C3, nameless) == []


@pytest.mark.parametrize("version_from", VersionFrom)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\xe9",
        b"\x7fELF" + bytes(60),
        sample_app()[:600],
        sample_app()[:-1] + b"\0",
        sample_app("esp32-s3"),
        bootloader_of("esp32-c3"),
        merged_image(),
        pack_app(retag_app(sample_image(), AppIdentity(version=""))),
    ],
)
def test_every_blocking_reason_says_what_to_do(data: bytes, version_from: VersionFrom) -> None:
    tables = [None, *(pack_table(parse_csv(f"nvs,data,nvs,,24K\n{rows}")) for rows in UNUSABLE_TABLES)]
    for table in tables:
        profile = replace(C3, version_from=version_from, partition_table=table, minimum_secure_version=3)
        reasons = [reason for reason in reasons_of(profile, data, "2.0") if reason.blocking]
        assert reasons
        assert [reason.code for reason in reasons if not reason.hint] == []


def test_an_app_for_other_revisions_of_the_chip_is_a_warning() -> None:
    packed = sample_app(options=PackOptions(min_chip_revision=101, max_chip_revision=199))
    assert [(r.code, r.blocking) for r in reasons_of(C3, packed)] == [("chip-revision", False)]


def test_a_secure_version_below_the_fleet_s_minimum_is_refused() -> None:
    profile = replace(C3, minimum_secure_version=3)
    for secure_version, codes in ((2, ["secure-version"]), (3, []), (4, [])):
        packed = pack_app(retag_app(sample_image(), AppIdentity(secure_version=secure_version)))
        assert blocking(profile, packed) == codes


def test_an_app_built_with_an_older_esp_idf_than_the_known_boot_loader_is_refused() -> None:
    packed = sample_app()
    found = replace(inspect(packed), idf_version="v5.1.4-dirty")
    for known, codes in (("v5.2", ["idf-version"]), ("v5.1.6", []), ("v4.4", []), (None, []), ("unknown", [])):
        profile = replace(C3, bootloader_idf_version=known)
        reasons = fit_check(profile, found, file_size=len(packed), version="1.2.3")
        assert [reason.code for reason in reasons if reason.blocking] == codes
    assert blocking(replace(C3, bootloader_idf_version="v6.1"), packed) == []


def test_a_fleet_with_secure_boot_takes_only_images_signed_with_its_keys() -> None:
    ours, theirs = p256_key(1), p256_key(2)
    profile = replace(C3, secure_boot_keys=frozenset({public_key_digest(pem_of(ours))}))
    packed = sample_app()
    assert blocking(profile, packed) == ["not-signed"]
    assert blocking(profile, signed(packed, theirs)) == ["untrusted-key"]
    assert blocking(profile, signed(packed, ours)) == []
    assert blocking(profile, signed(packed, theirs, ours)) == []
    forged = bytearray(signed(packed, ours))
    forged[len(padded(packed)) + 120] ^= 1
    assert "untrusted-key" in blocking(profile, bytes(forged))


def test_an_esp32_looks_at_the_first_signature_only() -> None:
    ours, theirs = p256_key(1), p256_key(2)
    profile = TypeProfile(board("esp32"), secure_boot_keys=frozenset({public_key_digest(pem_of(ours))}))
    packed = sample_app("esp32")
    assert blocking(profile, signed(packed, ours, theirs)) == []
    assert blocking(profile, signed(packed, theirs, ours)) == ["untrusted-key"]
