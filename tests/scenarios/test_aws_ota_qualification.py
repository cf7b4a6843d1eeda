"""The situations in which AWS's device test suite puts an OTA agent, over both data paths, against our server.

Source: docs/reference/aws-iot.md, "What the virtual agent mirrors".
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flota.fleet.executions import ExecutionState
from flota.protocols.aws_ota import DataProtocol
from flota.virtual.events import DeviceEvent, EventKind
from tests.scenarios.aws_ota_site import STRANGER_KEY, Site, a_site, image

pytestmark = pytest.mark.scenario

SUCCEEDED, FAILED, CANCELED = ExecutionState.SUCCEEDED, ExecutionState.FAILED, ExecutionState.CANCELED
LATE_S = 1_800 + 1
"""After so long an address handed out is no good any more."""


@pytest.fixture(params=list(DataProtocol), ids=lambda path: path.value.lower())
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with a_site(tmp_path, request.param) as site:
        yield site


async def succeeds(site: Site, version: str, before: str) -> None:
    execution = await site.offer(await site.release(version, image(version)))
    assert await site.ended(execution) == (
        SUCCEEDED,
        {"reason": f"accepted  v{version}", "updatedBy": f"  v{before}"},
    ), site.story()
    await site.rests_with(version)


async def fails(site: Site, reason: str, *, rests_with: str = "1.0.0", **release: object) -> None:
    """Offer a release that does not make it; the device stays with what it has."""
    data = release.pop("data", image("1.0.1"))
    execution = await site.offer(await site.release("bad", data, **release))  # type: ignore[arg-type]
    assert await site.ended(execution) == (FAILED, {"reason": reason}), site.story()
    await site.rests_with(rests_with)


async def test_greater_version(site: Site) -> None:
    await succeeds(site, "1.0.1", "1.0.0")


async def test_three_back_to_back(site: Site) -> None:
    for version, before in (("1.0.1", "1.0.0"), ("1.1.0", "1.0.1"), ("2.0.0", "1.1.0")):
        await succeeds(site, version, before)


async def test_rollback_if_unable_to_connect_after_update(site: Site) -> None:
    await fails(site, "rejected: 0x00000010", data=image("1.0.1", "lose-network"))
    assert any("neither accepted nor rejected" in text for text in site.told(EventKind.RESTART))


async def test_same_version(site: Site) -> None:
    await fails(site, "rejected: 0x00000010", data=image("1.0.0", "healthy")[:-1])


async def test_unsigned_image(site: Site) -> None:
    await fails(site, "0x000000e3: 0x00000001", key=None)


async def test_untrusted_certificate(site: Site) -> None:
    await fails(site, "0x000000e3: 0x00000002", key=STRANGER_KEY)


async def test_previous_version(site: Site) -> None:
    await fails(site, "rejected: 0x0000000f", data=image("0.9.9"))


async def test_wrong_signing_algorithm(site: Site) -> None:
    await fails(site, "0x000000e3: 0x00000001", name="sig-sha256-rsa")


async def test_disconnect_and_resume(site: Site) -> None:
    execution = await site.offer(await site.release("1.0.1", image("1.0.1")))
    await site.happens(EventKind.PROGRESS)
    await site.take_over()
    assert (await site.ended(execution))[0] is SUCCEEDED, site.story()
    assert any("goes on" in text for text in site.told(EventKind.SERIAL)), "the blocks that were in are kept"
    await site.rests_with("1.0.1")


async def test_disconnect_then_cancel_then_new_update(site: Site) -> None:
    first = await site.offer(await site.release("1.0.1", image("1.0.1")))
    await site.happens(EventKind.PROGRESS)
    await site.take_over()
    await site.cancel(first)
    assert (await site.ended(first))[0] is CANCELED
    await succeeds(site, "1.0.2", "1.0.0")


async def test_presigned_url_expired(site: Site) -> None:
    """Over HTTP the device gets a fresh address and goes on; over MQTT it never needed the one in its document."""
    late: list[int] = []

    def make_late(event: DeviceEvent) -> None:
        if event.kind is EventKind.PROGRESS and not late:
            late.append(1)
            site.fleet.clock.advance(LATE_S)

    site._on_event.append(make_late)
    await succeeds(site, "1.0.1", "1.0.0")
    assert late
    renewed = [text for text in site.told(EventKind.SERIAL) if "goes on" in text]
    assert len(renewed) == (1 if site.path is DataProtocol.HTTP else 0)


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
