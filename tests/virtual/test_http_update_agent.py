"""The HTTPUpdate agent, against a real socket."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from flota.protocols.http_update import parse_request_headers
from flota.virtual.agents.http_update import HttpUpdateAgent
from flota.virtual.events import EventKind
from tests.virtual.benches import EspBench, until
from tests.virtual.images import app_image
from tests.virtual.small_server import Answer, Request, small_server

OLD, NEW = app_image("1.0.0"), app_image("2.0.0", size=30_001)


def reported_sha256(request: Request) -> str:
    return request.headers["x-esp32-sketch-sha256"]


def hash_of(image: bytes) -> str:
    """The appended hash: the image's last 32 bytes, as the device reports it."""
    return image[-32:].hex().upper()


def offering(image: bytes, *, md5: str | None = None, **answer: object):  # type: ignore[no-untyped-def]
    def handler(request: Request) -> Answer:
        if reported_sha256(request) == hash_of(image):
            return Answer(304)
        return Answer(200, image, {"x-MD5": md5 or hashlib.md5(image).hexdigest()}, **answer)  # type: ignore[arg-type]

    return handler


async def run_until(bench: EspBench, agent: HttpUpdateAgent, condition) -> None:  # type: ignore[no-untyped-def]
    stop = asyncio.Event()
    life = asyncio.create_task(bench.device(agent).run(stop))
    try:
        await until(lambda: life.done() or condition(), told=bench.events)
    finally:
        stop.set()
        await life


async def test_the_device_updates_confirms_and_reports_the_new_images_appended_hash() -> None:
    bench = EspBench(OLD)
    async with small_server(offering(NEW)) as server:
        agent = HttpUpdateAgent(f"{server.url}/update/pump")
        await run_until(
            bench, agent, lambda: reported_sha256(server.requests[-1]) == hash_of(NEW) if server.requests else False
        )
    assert bench.hardware().image_in("ota_1") == NEW
    assert bench.texts(EventKind.CONFIRMED)


async def test_the_request_is_http_1_0_with_every_header_of_the_original() -> None:
    bench = EspBench(OLD)
    async with small_server(lambda request: Answer(304)) as server:
        await run_until(bench, HttpUpdateAgent(f"{server.url}/update/pump?token=abc"), lambda: bool(server.requests))
    request = server.requests[0]
    assert (request.version, request.target) == ("HTTP/1.0", "/update/pump?token=abc")
    assert request.headers["user-agent"] == "ESP32-http-Update"
    assert request.headers["connection"] == "close"
    told = parse_request_headers([(name.encode(), value.encode()) for name, value in request.headers.items()])
    assert told is not None
    assert told.sta_mac == "02:00:00:00:00:01"
    assert told.ap_mac == "02:00:00:00:00:02"
    assert told.free_space == 0x10000
    assert told.sketch_size == len(OLD)
    assert told.sketch_sha256 == OLD[-32:].hex()
    assert told.sketch_md5 == hashlib.md5(OLD).hexdigest()
    assert told.version == "1.0.0"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(404), "file not found"),
        (Answer(403), "forbidden"),
        (Answer(302, headers={"location": "/elsewhere"}), "wrong http code"),
        (Answer(500), "wrong http code"),
        (Answer(200, b""), "size not reported"),
        (Answer(200, bytes(0x10001)), "not enough space"),
        (Answer(200, b"\x7fELF" + bytes(2000)), "not an app image"),
        (Answer(200, NEW, {"x-MD5": "0" * 32}), "the MD5 is wrong"),
        (Answer(200, NEW[:-1] + b"\0"), "VALIDATE_FAILED"),
        (Answer(200, app_image("2.0.0", chip="esp32-s3")), "another chip"),
    ],
)
async def test_a_bad_answer_leaves_the_old_app_running_and_says_why(answer: Answer, reason: str) -> None:
    bench = EspBench(OLD)
    async with small_server(lambda request: answer) as server:
        await run_until(
            bench,
            HttpUpdateAgent(server.url + "/u"),
            lambda: bool(bench.texts(EventKind.UPDATE_FAILED)) and len(server.requests) > 1,
        )
    assert reason in bench.texts(EventKind.UPDATE_FAILED)[0]
    assert hash_of(OLD) == reported_sha256(server.requests[-1])
    assert not bench.texts(EventKind.RESTART)


async def test_an_interrupted_download_is_made_again_from_the_start() -> None:
    bench = EspBench(OLD)
    cuts = iter([9_000, 15_000, None])

    def handler(request: Request) -> Answer:
        if reported_sha256(request) == hash_of(NEW):
            return Answer(304)
        return Answer(200, NEW, cut_after=next(cuts))

    async with small_server(handler) as server:
        await run_until(bench, HttpUpdateAgent(server.url + "/u"), lambda: bool(bench.texts(EventKind.CONFIRMED)))
    assert bench.hardware().image_in("ota_1") == NEW
    assert all("range" not in request.headers for request in server.requests)


async def test_the_device_gives_up_on_a_silent_server() -> None:
    bench = EspBench(OLD)
    async with small_server(lambda request: Answer(200, NEW, pause_s=5)) as server:
        agent = HttpUpdateAgent(server.url + "/u", silence_limit_s=0.1)
        await run_until(bench, agent, lambda: bool(bench.texts(EventKind.BREAK)))
    assert "silent for 0.1 s" in bench.texts(EventKind.BREAK)[0]


async def test_a_crashing_app_is_rolled_back_and_the_old_hash_is_reported_again() -> None:
    bench = EspBench(OLD)
    crashing = app_image("3.0.0", behaviour="crash")
    served = 0

    def handler(request: Request) -> Answer:
        nonlocal served
        served += 1
        return Answer(200, crashing) if served == 1 else Answer(304)

    async with small_server(handler) as server:
        await run_until(bench, HttpUpdateAgent(server.url + "/u"), lambda: len(server.requests) >= 3)
    assert reported_sha256(server.requests[-1]) == hash_of(OLD)
    assert bench.texts(EventKind.PANIC)
