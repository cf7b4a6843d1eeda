"""The download over real HTTP/2, as a micro-RDK does it: it erases a whole slot between the answer's head and body."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from flota.fleet.executions import Execution, ExecutionState
from flota.protocols.viam import IMAGE_MIN_BYTES, Failure, Proceed, judge_body, judge_response
from flota.server.app import build_app
from flota.server.listeners import Listener
from tests.server.h2_device import Download, download
from tests.server.serving import listening, make_tls_files
from tests.server.viam_fleet import ViamFleet, a_viam_fleet

SLOT = 0x377000
IMAGE = b"\xe9" + random.Random(11).randbytes(SLOT - 1)
"""As long as the slot of the guide's table: more than the device's windows take while it is silent."""

ALL = os.environ.get("FLOTA_TEST_ALL") == "1"
SILENCE_S = 100.0 if ALL else 2.0
"""What erasing a slot may take, with FLOTA_TEST_ALL=1; else only long enough to fill every buffer on the way."""


@asynccontextmanager
async def served(
    fleet: ViamFleet, directory: Path, *, tls: bool
) -> AsyncIterator[tuple[Listener, ssl.SSLContext | None]]:
    files = make_tls_files(directory / "ca") if tls else None
    client = None
    if files is not None:
        client = ssl.create_default_context(cafile=str(directory / "ca" / "root.crt"))
        client.set_alpn_protocols(["h2"])
    async with listening(build_app(fleet.at.context), files) as listener:
        yield listener, client


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[ViamFleet]:
    async with a_viam_fleet(tmp_path) as made:
        yield made


async def link_of(fleet: ViamFleet, listener: Listener, name: str) -> str:
    """Return the device's URL at the address where the server really listens."""
    made = await fleet.link(name)
    host = "localhost" if listener.scheme == "https" else "127.0.0.1"
    parts = urlsplit(made.url)
    return f"{listener.scheme}://{host}:{listener.address.port}{parts.path}?{parts.query}"


async def two_devices(fleet: ViamFleet) -> list[Execution]:
    release = await fleet.release(data=IMAGE)
    devices = [await fleet.at.add_device(name, type_name="wrover") for name in ("plain", "tls")]
    return await fleet.at.roll_out(release, *devices)


async def details_once(fleet: ViamFleet, execution: Execution, delivery: str) -> dict[str, str]:
    """Return the execution's details once its delivery is noted as ended so: that comes after the last byte."""
    for _ in range(400):
        details = dict((await fleet.at.execution(execution)).details)
        if details["delivery"] == delivery:
            return details
        await asyncio.sleep(0.025)
    raise AssertionError(f"the delivery is {details['delivery']}, not {delivery}")


def check_whole(found: Download) -> None:
    assert judge_response(found.status, found.headers, slot_size=SLOT) == Proceed(SLOT)
    assert judge_body(len(found.body), SLOT, ended=found.ended) is None
    assert found.ended
    assert bytes(found.body) == IMAGE
    assert found.frames[0] >= IMAGE_MIN_BYTES
    assert max(found.frames) <= 16_384


@pytest.mark.scenario
@pytest.mark.timeout(SILENCE_S + 60)
async def test_a_device_that_erases_its_slot_before_it_reads_gets_the_whole_image_plain_and_over_tls(
    fleet: ViamFleet, tmp_path: Path
) -> None:
    executions = await two_devices(fleet)
    async with served(fleet, tmp_path, tls=False) as (plain, _), served(fleet, tmp_path, tls=True) as (secure, client):
        first, second = await asyncio.gather(
            download(await link_of(fleet, plain, "plain"), silence_s=SILENCE_S),
            download(await link_of(fleet, secure, "tls"), silence_s=SILENCE_S, tls=client),
        )
        check_whole(first)
        check_whole(second)
        assert second.alpn == "h2"
        for execution in executions:
            assert (await details_once(fleet, execution, "handed-over"))["gets"] == "1"
    await fleet.tick(181)
    assert [await fleet.at.state(one) for one in executions] == [ExecutionState.SUCCEEDED] * 2


async def test_a_device_that_goes_away_early_is_seen_to_and_starts_over_at_no_cost(
    fleet: ViamFleet, tmp_path: Path
) -> None:
    (execution, _) = await two_devices(fleet)
    async with served(fleet, tmp_path, tls=False) as (listener, _):
        url = await link_of(fleet, listener, "plain")
        cut = await download(url, stop_after=100_000)
        assert judge_body(len(cut.body), SLOT, ended=True) is Failure.CUT
        await details_once(fleet, execution, "interrupted")
        fleet.at.clock.advance(300)
        check_whole(await download(url))
        details = await details_once(fleet, execution, "handed-over")
    assert (details["gets"], details["failed-early"], details.get("failed-whole")) == ("2", "1", None)


async def test_a_link_that_is_over_is_a_short_answer_over_http2_too(fleet: ViamFleet, tmp_path: Path) -> None:
    await two_devices(fleet)
    async with served(fleet, tmp_path, tls=False) as (listener, _):
        url = await link_of(fleet, listener, "plain")
        gone = await download(url[:-1] + ("A" if url[-1] != "A" else "B"))
    assert (gone.status, bytes(gone.body), gone.ended) == (404, b"no such link\n", True)
