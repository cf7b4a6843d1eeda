"""Where a device is seen, by what it is recognised, and what a push's end means."""

from __future__ import annotations

from pathlib import Path

import pytest

from flota.errors import InvalidInput
from flota.gateway.ameba import AmebaDriver, delivery_of
from flota.gateway.driver import AdoptedDevice, DeliveryEnd, SightingBasis
from flota.gateway.seen_at import WrongDeviceThere
from flota.gateway.sightings import REMEMBERED_MAX, SightingBook
from flota.protocols.ameba_push import PushRecord, PushStage
from flota.transports.neighbours import mac_in_table, mac_of_neighbour

MAC, OTHER = "00:E0:4C:00:00:01", "00:E0:4C:00:00:02"
AT_ADDRESS = AdoptedDevice("a", "amebad", "amebad", address="10.0.0.1")
BY_MAC = AdoptedDevice("a", "amebad", "amebad", mac=MAC, profile="guide")


def test_a_device_at_a_fixed_address_is_seen_without_having_been_heard() -> None:
    seen = AmebaDriver(SightingBook()).look(AT_ADDRESS)
    assert seen is not None
    assert (seen.address, seen.port, seen.basis, seen.heard_at) == ("10.0.0.1", 8082, SightingBasis.FIXED_ADDRESS, None)


def test_a_device_with_a_mac_is_seen_only_where_its_mac_was_heard_and_follows_it() -> None:
    book = SightingBook()
    driver = AmebaDriver(book)
    book.heard("10.0.0.5", 1.0, SightingBasis.ANNOUNCEMENT)
    assert driver.look(BY_MAC) is None
    book.learn_mac("10.0.0.5", MAC)
    book.heard("10.0.0.6", 2.0, SightingBasis.ANNOUNCEMENT, mac=OTHER)
    seen = driver.look(BY_MAC)
    assert seen is not None
    assert (seen.address, seen.port, seen.heard_at) == ("10.0.0.5", 8020, 1.0)
    book.heard("10.0.0.9", 3.0, SightingBasis.ANNOUNCEMENT, mac=MAC)
    moved = driver.look(BY_MAC)
    assert moved is not None
    assert moved.address == "10.0.0.9"


def test_learning_a_mac_is_no_sign_of_life() -> None:
    book = SightingBook()
    book.heard("10.0.0.5", 1.0, SightingBasis.ANNOUNCEMENT)
    book.learn_mac("10.0.0.5", MAC)
    heard = book.at("10.0.0.5")
    assert heard is not None
    assert heard.heard_at == 1.0


def test_another_mac_at_the_address_is_refused() -> None:
    book = SightingBook()
    book.heard("10.0.0.1", 1.0, SightingBasis.ANNOUNCEMENT, mac=OTHER)
    with pytest.raises(WrongDeviceThere):
        AmebaDriver(book).look(AdoptedDevice("a", "amebad", "amebad", address="10.0.0.1", mac=MAC))


def test_a_version_report_stays_dated_when_later_announcements_come() -> None:
    book = SightingBook()
    book.heard("10.0.0.1", 1.0, SightingBasis.CHECK_IN, version="1.0")
    book.heard("10.0.0.1", 5.0, SightingBasis.ANNOUNCEMENT)
    heard = book.at("10.0.0.1")
    assert heard is not None
    assert (heard.heard_at, heard.version, heard.version_at) == (5.0, "1.0", 1.0)


def test_a_host_name_is_found_by_what_announced_it() -> None:
    book = SightingBook()
    book.heard("10.0.0.1", 1.0, SightingBasis.ANNOUNCEMENT, host="bw16.local")
    assert book.at("BW16.local.") is book.at("10.0.0.1")


def test_the_book_is_bounded_and_forgets_the_oldest() -> None:
    book = SightingBook()
    for number in range(REMEMBERED_MAX + 10):
        book.heard(f"10.1.{number // 256}.{number % 256}", float(number), SightingBasis.ANNOUNCEMENT)
    assert len(book) == REMEMBERED_MAX
    assert book.at("10.1.0.0") is None


def test_a_board_of_another_route_cannot_be_served() -> None:
    with pytest.raises(InvalidInput):
        AmebaDriver(SightingBook()).identify(AdoptedDevice("a", "x", "esp32-c3", address="10.0.0.1"))
    with pytest.raises(InvalidInput):
        AmebaDriver(SightingBook()).identify(AdoptedDevice("a", "x", "amebad"))


@pytest.mark.parametrize(
    ("record", "end"),
    [
        (PushRecord(PushStage.NOT_CONNECTED), DeliveryEnd.NOT_CONNECTED),
        (PushRecord(PushStage.CONNECTED, 0, 10), DeliveryEnd.BROKEN),
        (PushRecord(PushStage.INFO_SENT, 5, 10), DeliveryEnd.BROKEN),
        (PushRecord(PushStage.ALL_SENT, 10, 10), DeliveryEnd.SENT),
        (PushRecord(PushStage.ALL_SENT, 10, 10, unacknowledged=3), DeliveryEnd.BROKEN),
        (PushRecord(PushStage.CLOSED, 10, 10, 0.5, unacknowledged=3), DeliveryEnd.BROKEN),
        (PushRecord(PushStage.CLOSED, 10, 10, 0.5, unacknowledged=0), DeliveryEnd.SENT),
        (PushRecord(PushStage.CLOSED, 10, 10, 60.0), DeliveryEnd.SENT),
    ],
)
def test_what_a_push_means_for_the_gateway(record: PushRecord, end: DeliveryEnd) -> None:
    assert delivery_of(record, 1.0).end is end


ARP = """\
IP address       HW type     Flags       HW address            Mask     Device
10.0.0.1         0x1         0x2         00:e0:4c:00:00:01     *        eth0
10.0.0.2         0x1         0x0         00:00:00:00:00:00     *        eth0
10.0.0.3         0x1         0x2         nonsense              *        eth0
10.0.0.4
"""


def test_the_arp_table_tells_macs_of_complete_lines_only() -> None:
    found = [mac_in_table(ARP, f"10.0.0.{number}") for number in range(1, 6)]
    assert found == [MAC, None, None, None, None]


@pytest.mark.parametrize("address", ["no address", "::1", ""])
async def test_what_is_no_ipv4_address_has_no_neighbour(address: str) -> None:
    assert await mac_of_neighbour(address) is None


def test_state_is_kept_in_files_that_only_the_owner_reads(tmp_path: Path) -> None:
    import asyncio

    from flota.gateway.journal import DeviceEntry, Journal

    journal = Journal(tmp_path)
    asyncio.run(journal.save(DeviceEntry("a")))
    assert journal.path("a").stat().st_mode & 0o077 == 0
