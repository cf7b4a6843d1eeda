"""The situations of AWS's device test suite on Nuvoton boards, over MQTT, against our server.

Thirteen of the fourteen: an expired address needs the HTTP data path, which these boards are built without.
Source: docs/reference/aws-iot.md, "What the virtual agent mirrors"; docs/reference/nuvoton.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from flota.fleet.executions import ExecutionState
from flota.images.nuvoton import ImageFlag
from flota.images.nuvoton.flash_map import APP_SIZE, DESCRIPTOR_ADDR, MIB, SD_NON_SECURE_ADDR, STAGING_ADDR
from flota.lab.nuvoton_sweep_device import m487_image, m2354_image, sweep_boot_key
from flota.protocols.aws_ota import DataProtocol
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.events import DeviceEvent, EventKind
from flota.virtual.m2354_board import M2354Hardware
from flota.virtual.nuvoton_board import M487Hardware
from flota.virtual.sd_card import SdCard
from tests.scenarios.aws_ota_site import STRANGER_KEY, Site, a_site

SUCCEEDED, FAILED, CANCELED = ExecutionState.SUCCEEDED, ExecutionState.FAILED, ExecutionState.CANCELED
SIZE = 96 * 1024
BAD_SIGNATURE = "0x000000e3: 0x00000000"


def image(version: str, behaviour: str | None = None) -> bytes:
    return m487_image(version, SIZE, behaviour)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with a_site(tmp_path, DataProtocol.MQTT, board="m487", firmware=image("1.0.0")) as site:
        yield site


def board_of(site: Site) -> M487Hardware:
    (shell,) = site.shells
    assert isinstance(shell.hardware, M487Hardware)
    return shell.hardware


def flag_of(site: Site) -> int:
    return board_of(site).chips.aprom.read(DESCRIPTOR_ADDR, 8)[7]


async def succeeds(site: Site, version: str, before: str, data: bytes | None = None) -> None:
    execution = await site.offer(await site.release(version, data or image(version)))
    assert await site.ended(execution) == (
        SUCCEEDED,
        {"reason": f"accepted  v{version}", "updatedBy": f"  v{before}"},
    ), site.story()
    await site.rests_with(version)


async def fails(site: Site, reason: str, *, rests_with: str = "1.0.0", **release: object) -> None:
    data = release.pop("data", image("1.0.1"))
    execution = await site.offer(await site.release("bad", data, **release))  # type: ignore[arg-type]
    assert await site.ended(execution) == (FAILED, {"reason": reason}), site.story()
    await site.rests_with(rests_with)


async def test_greater_version(site: Site) -> None:
    await succeeds(site, "1.0.1", "1.0.0")
    said = site.told(EventKind.SERIAL)
    for line in (
        "Boot from LDROM successful",
        "SPIM get JEDEC ID=0xEF, 0x40, 0x16",
        "Check OTA image success",
        "Clone APROM ...",
        "Self-test boot",
        "Beginning self-test.",
        "image state [1] -- Flag[0xfe]",
        "Accepted and committed final image.",
        "Flag[0xfc]",
        "Resetting the device.",
    ):
        assert line in said, line
    assert flag_of(site) == ImageFlag.VALID


async def test_three_back_to_back(site: Site) -> None:
    for version, before in (("1.0.1", "1.0.0"), ("1.1.0", "1.0.1"), ("2.0.0", "1.1.0")):
        await succeeds(site, version, before)


async def test_rollback_if_unable_to_connect_after_update(site: Site) -> None:
    await fails(site, "rejected: 0x00000010", data=image("1.0.1", "lose-network"))
    assert "Restore the backup" in site.told(EventKind.SERIAL)


async def test_same_version(site: Site) -> None:
    await fails(site, "rejected: 0x00000010", data=m487_image("1.0.0", SIZE - 4096))


async def test_unsigned_image(site: Site) -> None:
    await fails(site, BAD_SIGNATURE, key=None)
    assert flag_of(site) == ImageFlag.INVALID


async def test_untrusted_certificate_is_one_signed_by_another_key(site: Site) -> None:
    await fails(site, BAD_SIGNATURE, key=STRANGER_KEY)
    await succeeds(site, "1.0.2", "1.0.0")


async def test_previous_version(site: Site) -> None:
    await fails(site, "rejected: 0x0000000f", data=image("0.9.9"))


async def test_wrong_signing_algorithm(site: Site) -> None:
    await fails(site, BAD_SIGNATURE, name="sig-sha256-rsa")


async def test_disconnect_and_resume(site: Site) -> None:
    execution = await site.offer(await site.release("1.0.1", image("1.0.1")))
    await site.happens(EventKind.PROGRESS)
    await site.take_over()
    assert (await site.ended(execution))[0] is SUCCEEDED, site.story()
    await site.rests_with("1.0.1")


async def test_disconnect_then_cancel_then_new_update(site: Site) -> None:
    first = await site.offer(await site.release("1.0.1", image("1.0.1")))
    await site.happens(EventKind.PROGRESS)
    await site.take_over()
    await site.cancel(first)
    assert (await site.ended(first))[0] is CANCELED
    await succeeds(site, "1.0.2", "1.0.0")


async def test_two_updates_the_first_force_cancelled(site: Site) -> None:
    first = await site.offer(await site.release("1.0.1", image("1.0.1")))
    second = await site.offer(await site.release("1.0.2", image("1.0.2")))
    await site.happens(EventKind.PROGRESS)
    await site.cancel(first)
    assert (await site.ended(first))[0] is CANCELED
    assert await site.ended(second) == (SUCCEEDED, {"reason": "accepted  v1.0.2", "updatedBy": "  v1.0.0"})
    await site.rests_with("1.0.2")


async def test_cancel_then_update(site: Site) -> None:
    first = await site.offer(await site.release("1.0.1", image("1.0.1")))
    await site.cancel(first)
    assert (await site.ended(first))[0] is CANCELED
    await succeeds(site, "1.0.2", "1.0.0")


async def test_image_crashes(site: Site) -> None:
    await fails(site, "rejected: 0x00000010", data=image("1.0.1", "crash"))
    assert len(site.told(EventKind.PANIC)) == 1


# --- what goes wrong on the board -------------------------------------------------------------------------------------


async def test_an_image_that_fails_its_own_test_is_rolled_back_and_reported(site: Site) -> None:
    await fails(site, "rejected: 0x00000000", data=image("1.0.1", "fail-self-test"))
    assert "Restore the backup" in site.told(EventKind.SERIAL)


async def test_an_spi_flash_that_is_absent_fails_the_job_and_costs_nothing(site: Site) -> None:
    board_of(site).chips.spi.fitted = False
    await fails(site, "aborted: 0xe4000000")
    board_of(site).chips.spi.fitted = True
    await succeeds(site, "1.0.2", "1.0.0")


async def test_an_spi_flash_that_goes_in_mid_download_fails_the_job_and_the_next_one_takes_it_up(site: Site) -> None:
    chip = board_of(site).chips.spi
    on_event(site, EventKind.PROGRESS, lambda: setattr(chip, "fitted", False))
    await fails(site, "0x000000e0: 0x00000000")
    assert flag_of(site) == ImageFlag.INVALID
    chip.fitted = True
    await succeeds(site, "1.0.2", "1.0.0")


async def test_an_image_one_byte_too_long_for_the_app_is_refused_by_the_board(site: Site) -> None:
    await fails(site, "aborted: 0xe5000000", data=m487_image("1.0.1", APP_SIZE + 1))


def on_event(site: Site, kind: EventKind, act: Callable[[], object]) -> None:
    """Act once, at the first event of a kind."""
    done: list[int] = []

    def hear(event: DeviceEvent) -> None:
        if event.kind is kind and not done:
            done.append(1)
            act()

    site._on_event.append(hear)


async def test_a_staged_image_that_is_altered_after_its_check_is_not_copied(site: Site) -> None:
    spi = board_of(site).chips.spi.flash
    on_event(site, EventKind.INSTALLED, lambda: spi.program(STAGING_ADDR + 5000, b"\0\0\0\0"))
    await fails(site, "rejected: 0x00000010")
    assert "Wrong checksum of the staged image!!" in site.told(EventKind.SERIAL)


async def test_an_spi_flash_that_dies_after_the_check_leaves_the_old_app(site: Site) -> None:
    chip = board_of(site).chips.spi
    on_event(site, EventKind.INSTALLED, lambda: setattr(chip, "fitted", False))
    await fails(site, "rejected: 0x00000010")
    assert "No SPI flash!!" in site.told(EventKind.SERIAL)


async def test_a_plug_that_is_pulled_while_cloning_costs_nothing_with_rollback(site: Site) -> None:
    board = board_of(site)
    controller = board.controller
    cut: list[int] = []

    def erase_page(address: int) -> bool:
        if address == 0x3000 and not cut:
            cut.append(1)
            board.power_off()
        board.chips.aprom.erase_sector(address)
        return True

    controller.erase_page = erase_page  # type: ignore[method-assign]  # the power goes at the fourth page
    await succeeds(site, "1.0.1", "1.0.0")
    assert cut
    assert len(site.told(EventKind.POWER_CUT)) == 1


# --- stock ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def stock(tmp_path: Path) -> AsyncIterator[Site]:
    settings = {"board": "m487", "firmware": image("1.0.0"), "boot_build": BootBuild.PLAIN}
    async with a_site(tmp_path, DataProtocol.MQTT, **settings) as site:  # type: ignore[arg-type]
        yield site


async def test_stock_takes_a_good_update_through_ldrom_and_cloner(stock: Site) -> None:
    await succeeds(stock, "1.0.1", "1.0.0")
    said = stock.told(EventKind.SERIAL)
    assert "Boot to AWS Cloner" in said
    assert "Update OTA header ..." in said
    assert "CONFIG0 bit 6 cleared, chip reset" in said


async def test_stock_reports_a_bad_image_and_goes_on_running_it(stock: Site) -> None:
    await fails(stock, "rejected: 0x00000000", data=image("1.0.1", "fail-self-test"), rests_with="1.0.1")
    assert "Wrong image flag!!" in stock.told(EventKind.SERIAL)


async def test_stock_a_staged_image_that_is_altered_after_its_check_kills_the_board(stock: Site) -> None:
    spi = board_of(stock).chips.spi.flash
    on_event(stock, EventKind.INSTALLED, lambda: spi.program(STAGING_ADDR + 5000, b"\0\0\0\0"))
    await stock.offer(await stock.release("1.0.1", image("1.0.1")))
    await stock.happens(EventKind.NOTHING_BOOTS)


async def test_stock_an_image_above_the_apps_area_destroys_the_key_store(stock: Site) -> None:
    await stock.offer(await stock.release("1.0.1", m487_image("1.0.1", APP_SIZE + 4096)))
    await stock.happens(EventKind.NO_NETWORK)
    (shell,) = stock.shells
    assert shell.app is not None
    assert shell.app.version == "1.0.1"


# --- m2354 ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def m2354(tmp_path: Path) -> AsyncIterator[Site]:
    first = m2354_image("1.0.0", SIZE)
    keys = (sweep_boot_key().public,)
    async with a_site(tmp_path, DataProtocol.MQTT, board="m2354", firmware=first, boot_keys=keys) as site:
        yield site


def card_of(site: Site) -> M2354Hardware:
    (shell,) = site.shells
    assert isinstance(shell.hardware, M2354Hardware)
    return shell.hardware


async def test_m2354_takes_an_update_over_the_card(m2354: Site) -> None:
    await succeeds(m2354, "1.0.1", "1.0.0", m2354_image("1.0.1", SIZE))
    said = m2354.told(EventKind.SERIAL)
    assert "[INF] Swap type: test" in said
    assert "[INF] Image upgrade secondary slot -> primary slot" in said
    assert any("certfile" in line and "not used" in line for line in said)
    await succeeds(m2354, "1.0.2", "1.0.1", m2354_image("1.0.2", SIZE))


async def test_m2354_cannot_go_back_and_says_so(m2354: Site) -> None:
    data = m2354_image("1.0.1", SIZE, "fail-self-test")
    execution = await m2354.offer(await m2354.release("1.0.1", data))
    state, details = await m2354.ended(execution)
    assert (state, details["reason"].partition(":")[0]) == (FAILED, "rejected"), m2354.story()
    assert any("no rollback" in text for text in m2354.told(EventKind.SERIAL))


async def test_m2354_without_a_card_the_job_fails_and_the_app_runs_on(m2354: Site) -> None:
    card_of(m2354).chips.card.fitted = False
    await fails(m2354, "aborted: 0xe4000000", data=m2354_image("1.0.1", SIZE))
    card_of(m2354).chips.card.fitted = True
    await succeeds(m2354, "1.0.2", "1.0.0", m2354_image("1.0.2", SIZE))


async def test_m2354_a_card_that_is_pulled_in_mid_download_fails_the_job(m2354: Site) -> None:
    card = card_of(m2354).chips.card
    on_event(m2354, EventKind.PROGRESS, lambda: setattr(card, "fitted", False))
    await fails(m2354, "0x000000e0: 0x00000000", data=m2354_image("1.0.1", SIZE))
    assert "there is no SD card" in " ".join(m2354.told(EventKind.SERIAL))
    card.fitted = True
    await succeeds(m2354, "1.0.2", "1.0.0", m2354_image("1.0.2", SIZE))


async def test_m2354_a_card_that_is_full_before_the_slots_end_fails_the_job_until_there_is_a_larger_one(
    m2354: Site,
) -> None:
    hardware = card_of(m2354)
    small = SdCard(bytearray(SD_NON_SECURE_ADDR + 0x4_0000), power=hardware.chips.flash.power)
    large = SdCard(bytearray(2 * MIB), power=hardware.chips.flash.power)
    hardware.insert_card(small)
    await fails(m2354, "aborted: 0xe4000000", data=m2354_image("1.0.1", SIZE))
    assert "behind the SD card's end" in " ".join(m2354.told(EventKind.SERIAL))
    hardware.insert_card(large)
    await succeeds(m2354, "1.0.2", "1.0.0", m2354_image("1.0.2", SIZE))


async def test_m2354_a_card_that_is_pulled_after_the_check_is_not_activated_and_the_next_start_ends_the_job(
    m2354: Site,
) -> None:
    card = card_of(m2354).chips.card
    on_event(m2354, EventKind.VERIFIED, lambda: setattr(card, "fitted", False))
    execution = await m2354.offer(await m2354.release("1.0.1", m2354_image("1.0.1", SIZE)))
    await m2354.happens(EventKind.TROUBLE)
    (shell,) = m2354.shells
    shell.press_reset()
    state, details = await m2354.ended(execution)
    assert (state, details) == (FAILED, {"reason": "rejected: 0x00000010"}), m2354.story()
    await m2354.rests_with("1.0.0")


async def test_m2354_an_image_for_another_boot_key_is_never_copied(m2354: Site) -> None:
    """The file's signature is good, the one inside is not: the agent takes it, MCUboot does not."""
    good = m2354_image("1.0.1", SIZE)
    data = good[:-1] + bytes([good[-1] ^ 1])
    execution = await m2354.offer(await m2354.release("1.0.1", data))
    state, _ = await m2354.ended(execution)
    assert state is FAILED, m2354.story()
    await m2354.rests_with("1.0.0")
    assert "[ERR] Image in the secondary slot is not valid!" in m2354.told(EventKind.SERIAL)
