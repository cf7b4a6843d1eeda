"""The DDI agent, against a real socket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import pytest

from flota.digests import digests_of
from flota.protocols.ddi import FeedbackExecution, FeedbackFinished, Handling
from flota.transports.ddi_link import DdiLink
from flota.transports.http import http_client
from flota.trust.keys import PrivateKey
from flota.trust.manifest import Manifest, ManifestComponent, pack_manifest
from flota.trust.signatures import signatures_as_json
from flota.trust.trust_file import TrustedSigners
from flota.virtual.agents.ddi import DdiAgent, DdiSettings
from flota.virtual.agents.ddi_action import Stage, load_action
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.device import VirtualDevice
from flota.virtual.events import EventKind
from tests.virtual.benches import EspBench, until
from tests.virtual.images import app_image
from tests.virtual.small_ddi import SmallDdi
from tests.virtual.small_server import small_server

OLD, NEW = app_image("1.0.0"), app_image("2.0.0", size=40_000)
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@contextlib.asynccontextmanager
async def living(
    bench: EspBench, ddi: SmallDdi, settings: DdiSettings | None = None, token: str | None = None
) -> AsyncIterator[VirtualDevice]:
    async with small_server(ddi.handle) as server, http_client() as client:
        ddi.server = server
        stop = asyncio.Event()
        device = bench.device(DdiAgent(DdiLink(client, ddi.addresses, token), settings))
        life = asyncio.create_task(device.run(stop))
        try:
            yield device
        finally:
            stop.set()
            await life


async def run_until_closed(
    bench: EspBench, ddi: SmallDdi, settings: DdiSettings | None = None, condition: Callable[[], bool] | None = None
) -> None:
    async with living(bench, ddi, settings):
        await until(condition or (lambda: ddi.closing is not None), told=bench.events)


def how_it_ended(ddi: SmallDdi) -> tuple[FeedbackFinished, str]:
    assert ddi.closing is not None
    return ddi.closing.finished, ddi.closing.details[0]


async def test_the_device_installs_confirms_and_then_reports_success() -> None:
    bench, ddi = EspBench(OLD), SmallDdi(NEW, token="secret-1")
    async with living(bench, ddi, token="secret-1"):
        await until(lambda: ddi.closing is not None, told=bench.events)
    assert how_it_ended(ddi)[0] is FeedbackFinished.SUCCESS
    assert [each.execution for each in ddi.feedback][:1] == [FeedbackExecution.DOWNLOAD]
    assert [each.execution for each in ddi.feedback][-3:] == [
        FeedbackExecution.DOWNLOADED,
        FeedbackExecution.PROCEEDING,
        FeedbackExecution.CLOSED,
    ]
    kinds = [event.kind for event in bench.events]
    assert kinds.index(EventKind.CONFIRMED) < kinds.index(EventKind.REPORTED)
    assert bench.hardware().image_in("ota_1") == NEW


async def test_attributes_are_sent_when_the_server_asks_for_them() -> None:
    bench, ddi = EspBench(OLD), SmallDdi()
    await run_until_closed(bench, ddi, condition=lambda: ddi.config is not None)
    assert ddi.config is not None
    assert ddi.config.data["version"] == "1.0.0"
    assert ddi.config.data["board"] == "esp32-c3"


async def test_a_broken_download_goes_on_where_it_was_with_if_range() -> None:
    bench, ddi = EspBench(OLD), SmallDdi(NEW, cuts=[10_000, 5_000, 0, None])
    await run_until_closed(bench, ddi)
    assert [request.headers.get("range") for request in ddi.downloads] == [
        None,
        "bytes=10000-",
        "bytes=15000-",
        "bytes=15000-",
    ]
    assert ddi.downloads[1].headers["if-range"] == '"etag-1"'
    assert how_it_ended(ddi)[0] is FeedbackFinished.SUCCESS


async def test_after_a_power_cut_the_download_goes_on_from_what_is_in_flash() -> None:
    image = app_image("2.0.0", size=60_000, behaviour="healthy")
    bench, ddi = EspBench(OLD), SmallDdi(image)
    writes = 0

    def pull_the_plug_once(operation: object) -> None:
        nonlocal writes
        writes += 1
        if writes == 24:
            device.cut_power()

    hardware = bench.hardware()
    async with small_server(ddi.handle) as server, http_client() as client:
        ddi.server = server
        device = bench.device(DdiAgent(DdiLink(client, ddi.addresses, None)), hardware=hardware)
        bench.flash.listener = pull_the_plug_once
        stop = asyncio.Event()
        life = asyncio.create_task(device.run(stop))
        await until(lambda: ddi.closing is not None, told=bench.events)
        stop.set()
        await life
    assert bench.texts(EventKind.POWER_CUT)
    assert bench.texts(EventKind.RESUMED) == ["goes on at 32768 of 60080"]
    assert ddi.downloads[-1].headers["range"] == "bytes=32768-"
    assert how_it_ended(ddi)[0] is FeedbackFinished.SUCCESS


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("crash", "panicked before it confirmed itself"),
        ("never-confirm", "did not confirm itself within 30 s"),
        ("lose-network", "could not reach the network"),
    ],
)
async def test_a_bad_release_is_rolled_back_and_the_reason_is_reported(behaviour: str, reason: str) -> None:
    bench, ddi = EspBench(OLD), SmallDdi(app_image("3.0.0", behaviour=behaviour), version="3.0.0")
    await run_until_closed(bench, ddi)
    finished, text = how_it_ended(ddi)
    assert finished is FeedbackFinished.FAILURE
    assert reason in text
    assert "version 1.0.0 runs again" in text


async def test_after_a_rollback_the_next_good_release_is_installed() -> None:
    bench, ddi = EspBench(OLD), SmallDdi(app_image("3.0.0", behaviour="crash"))
    await run_until_closed(bench, ddi)
    again = SmallDdi(NEW, action_id=2)
    await run_until_closed(bench, again)
    assert how_it_ended(again)[0] is FeedbackFinished.SUCCESS


async def test_in_a_plain_build_success_is_reported_by_what_runs() -> None:
    bench, ddi = EspBench(OLD, build=BootBuild.PLAIN), SmallDdi(NEW)
    await run_until_closed(bench, ddi)
    assert how_it_ended(ddi)[0] is FeedbackFinished.SUCCESS


async def test_a_file_with_another_digest_is_refused_and_the_old_app_stays() -> None:
    bench, ddi = EspBench(OLD), SmallDdi(NEW[:-1] + b"\0", announced=NEW)
    await run_until_closed(bench, ddi)
    finished, text = how_it_ended(ddi)
    assert finished is FeedbackFinished.FAILURE
    assert "SHA-256" in text
    assert not bench.texts(EventKind.RESTART)


async def test_a_file_that_is_no_app_image_is_refused() -> None:
    bench, ddi = EspBench(OLD), SmallDdi(b"\x7fELF" + bytes(5000))
    await run_until_closed(bench, ddi)
    assert "0x7f" in how_it_ended(ddi)[1]


async def test_a_file_larger_than_the_slot_is_refused_before_a_byte_is_fetched() -> None:
    bench, ddi = EspBench(OLD), SmallDdi(bytes(0x10001))
    await run_until_closed(bench, ddi)
    assert "does not fit into ota_1" in how_it_ended(ddi)[1]
    assert not ddi.downloads


async def test_a_cancellation_before_the_installation_is_obeyed() -> None:
    bench, ddi = EspBench(OLD), SmallDdi(NEW, canceling=True)
    await run_until_closed(bench, ddi, condition=lambda: bool(ddi.cancel_feedback))
    assert ddi.cancel_feedback[0].execution is FeedbackExecution.CLOSED
    assert load_action(bench.nvs) is None


async def test_a_cancellation_in_the_middle_of_a_download_stops_it() -> None:
    bench, ddi = EspBench(OLD), SmallDdi(NEW)
    settings = DdiSettings(period_s=0.000_1)

    def handle(request):  # type: ignore[no-untyped-def]
        answer = SmallDdi.handle(ddi, request)
        if "artifacts" in request.path:
            ddi.canceling = True
        return answer

    async with small_server(handle) as server, http_client() as client:
        ddi.server = server
        stop = asyncio.Event()
        device = bench.device(DdiAgent(DdiLink(client, ddi.addresses, None), settings))
        life = asyncio.create_task(device.run(stop))
        await until(lambda: bool(ddi.cancel_feedback), told=bench.events)
        stop.set()
        await life
    assert not bench.texts(EventKind.INSTALLED)
    assert ddi.cancel_feedback[0].execution is FeedbackExecution.CLOSED


async def test_update_skip_downloads_and_waits() -> None:
    bench, ddi = EspBench(OLD), SmallDdi(NEW, update=Handling.SKIP)
    await run_until_closed(
        bench, ddi, condition=lambda: any(each.execution is FeedbackExecution.DOWNLOADED for each in ddi.feedback)
    )
    assert not bench.texts(EventKind.INSTALLED)
    ddi.update = Handling.FORCED
    await run_until_closed(bench, ddi)
    assert how_it_ended(ddi)[0] is FeedbackFinished.SUCCESS


async def test_a_wrong_token_is_told_and_nothing_else_happens() -> None:
    bench, ddi = EspBench(OLD), SmallDdi(NEW, token="right")
    async with living(bench, ddi, token="wrong"):
        await until(lambda: bool(bench.texts(EventKind.TROUBLE)))
    assert "token" in bench.texts(EventKind.TROUBLE)[0]


async def test_a_report_that_the_server_already_closed_ends_the_action_on_the_device() -> None:
    bench, ddi = EspBench(OLD), SmallDdi(NEW)
    await run_until_closed(bench, ddi, condition=lambda: _stage(bench) is Stage.CLOSED)
    assert ddi.closing is not None


def _stage(bench: EspBench) -> Stage | None:
    record = load_action(bench.nvs)
    return None if record is None else record.stage


# --- signed releases --------------------------------------------------------------------------------------------------


def signed(
    key: PrivateKey, file: bytes = NEW, *, device_type: str = "pump", sequence: int = 5, expires_in_days: int = 30
) -> dict[str, str]:
    manifest = pack_manifest(
        Manifest(
            device_type,
            "esp32-c3",
            None,
            "2.0.0",
            sequence,
            NOW + timedelta(days=expires_in_days),
            (ManifestComponent("app", "esp-app", len(file), digests_of(file).sha256),),
            NOW - timedelta(days=60),
        )
    )
    return {
        "flota.manifest": base64.b64encode(manifest).decode(),
        "flota.signatures": signatures_as_json([key.sign(manifest)]),
    }


KEY, OTHER_KEY = PrivateKey.generate("ed25519"), PrivateKey.generate("p256")
SETTINGS = DdiSettings(signers=TrustedSigners.of([KEY.public_pem]), now=lambda: NOW)


async def test_a_release_signed_by_a_trusted_key_is_installed_and_its_sequence_kept() -> None:
    bench, ddi = EspBench(OLD), SmallDdi(NEW, metadata=signed(KEY))
    await run_until_closed(bench, ddi, SETTINGS)
    assert how_it_ended(ddi)[0] is FeedbackFinished.SUCCESS
    accepted = bench.nvs.get_record("accepted_release")
    assert accepted is not None
    assert accepted["sequence"] == 5


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "not signed"),
        (signed(OTHER_KEY), "key"),
        (signed(KEY, device_type="valve"), "another device type"),
        (signed(KEY, expires_in_days=-1), "expired"),
        (signed(KEY, OLD), "signed"),
        (signed(KEY) | {"flota.manifest": "!!!"}, "base64"),
    ],
)
async def test_what_is_not_signed_for_this_device_is_refused_before_a_byte_is_fetched(
    metadata: dict[str, str], reason: str
) -> None:
    bench, ddi = EspBench(OLD), SmallDdi(NEW, metadata=metadata)
    await run_until_closed(bench, ddi, SETTINGS)
    finished, text = how_it_ended(ddi)
    assert finished is FeedbackFinished.FAILURE
    assert reason in text
    assert not ddi.downloads


async def test_an_older_sequence_than_the_confirmed_one_is_refused() -> None:
    bench = EspBench(OLD)
    await run_until_closed(bench, SmallDdi(NEW, metadata=signed(KEY, sequence=5)), SETTINGS)
    older = SmallDdi(NEW, action_id=2, metadata=signed(KEY, sequence=4))
    await run_until_closed(bench, older, SETTINGS)
    assert "older than the confirmed one" in how_it_ended(older)[1]
