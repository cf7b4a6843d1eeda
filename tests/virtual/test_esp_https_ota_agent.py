"""The esp_https_ota agent in its three ways of fetching, against a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from flota.transports.http import http_client
from flota.virtual.agents.esp_https_ota import PROGRESS_KEY, USER_AGENT, EspHttpsOtaAgent, FetchMode
from flota.virtual.events import EventKind
from tests.virtual.benches import EspBench, until
from tests.virtual.images import app_image
from tests.virtual.small_server import Answer, Handler, Request, SmallServer, file_answer, small_server

OLD, NEW = app_image("1.0.0"), app_image("2.0.0", size=64_000)


async def run_agent(
    bench: EspBench, handler: Handler, mode: FetchMode, condition: Callable[[SmallServer], bool]
) -> list[Request]:
    async with small_server(handler) as server, http_client(user_agent=USER_AGENT) as client:
        agent = EspHttpsOtaAgent(server.url + "/update/pump", client, mode=mode)
        stop = asyncio.Event()
        life = asyncio.create_task(bench.device(agent).run(stop))
        try:
            await until(lambda: life.done() or condition(server), told=bench.events)
        finally:
            stop.set()
            await life
        return server.requests


def confirmed(bench: EspBench) -> Callable[[SmallServer], bool]:
    return lambda server: bool(bench.texts(EventKind.CONFIRMED))


def files(data: bytes, etag: str = '"v2"') -> Handler:
    return lambda request: file_answer(request, data, etag)


@pytest.mark.parametrize("mode", list(FetchMode))
async def test_every_way_of_fetching_installs_and_confirms(mode: FetchMode) -> None:
    bench = EspBench(OLD)
    requests = await run_agent(bench, files(NEW), mode, confirmed(bench))
    assert bench.hardware().image_in("ota_1") == NEW
    assert requests[0].headers["user-agent"] == "ESP32 HTTP Client/1.0"
    assert requests[0].version == "HTTP/1.1"


async def test_resumption_sends_a_range_even_for_the_first_byte() -> None:
    bench = EspBench(OLD)
    requests = await run_agent(bench, files(NEW), FetchMode.RESUME, confirmed(bench))
    assert requests[0].headers["range"] == "bytes=0-"


async def test_a_broken_download_is_resumed_from_the_bytes_kept_in_nvs() -> None:
    bench = EspBench(OLD)
    cuts = iter([50_000, None])

    def handler(request: Request) -> Answer:
        return file_answer(request, NEW, '"v2"', cut_after=next(cuts, None))

    requests = await run_agent(bench, handler, FetchMode.RESUME, confirmed(bench))
    resumed_at = int(requests[1].headers["range"].removeprefix("bytes=").removesuffix("-"))
    assert 0 < resumed_at <= 50_000
    assert resumed_at % 4096 == 0
    assert bench.hardware().image_in("ota_1") == NEW


async def test_a_server_that_answers_200_makes_it_start_again_without_range() -> None:
    bench = EspBench(OLD)

    def handler(request: Request) -> Answer:
        return Answer(200, NEW, {"etag": '"v2"'})

    requests = await run_agent(bench, handler, FetchMode.RESUME, confirmed(bench))
    assert [request.headers.get("range") for request in requests[:2]] == ["bytes=0-", None]


async def test_a_file_that_changed_in_between_is_never_mixed_with_the_new_one() -> None:
    bench = EspBench(OLD)
    newer = app_image("2.1.0", size=64_000)
    answers = iter([("first", 50_000), ("second", None)])

    def handler(request: Request) -> Answer:
        which, cut = next(answers, ("second", None))
        data, etag = (NEW, '"v2"') if which == "first" else (newer, '"v2.1"')
        return file_answer(request, data, etag, cut_after=cut)

    await run_agent(bench, handler, FetchMode.RESUME, confirmed(bench))
    assert bench.hardware().image_in("ota_1") == newer


async def test_partial_download_asks_for_the_size_first_and_then_for_pieces() -> None:
    bench = EspBench(OLD)
    big = app_image("2.0.0", size=65_400)  # one piece less than the slot, more than nothing
    requests = await run_agent(bench, files(big), FetchMode.PARTIAL, confirmed(bench))
    assert requests[0].method == "HEAD"
    assert requests[1].headers["range"] == f"bytes=0-{min(65_535, len(big))}"


async def test_without_head_the_size_comes_from_a_range_of_one_byte() -> None:
    bench = EspBench(OLD)

    def handler(request: Request) -> Answer:
        return Answer(405) if request.method == "HEAD" else file_answer(request, NEW, '"v2"')

    requests = await run_agent(bench, handler, FetchMode.PARTIAL, confirmed(bench))
    assert requests[1].headers["range"] == "bytes=0-0"


async def test_the_running_version_is_not_installed_again_and_then_answered_with_304() -> None:
    bench = EspBench(NEW)
    requests = await run_agent(bench, files(NEW), FetchMode.RESUME, lambda server: len(server.requests) >= 3)
    assert "if-none-match" not in requests[0].headers
    assert requests[1].headers["if-none-match"] == '"v2"'
    assert not bench.texts(EventKind.OFFER)


async def test_a_version_that_was_rolled_back_is_not_installed_again() -> None:
    bench = EspBench(OLD)
    crashing = app_image("3.0.0", behaviour="crash")
    await run_agent(
        bench,
        files(crashing),
        FetchMode.RESUME,
        lambda server: any("rolled back before" in text for text in bench.texts(EventKind.POLL)),
    )
    assert len(bench.texts(EventKind.PANIC)) == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x7fELF" + bytes(4000), "not an app image"),
        (app_image("2.0.0", chip="esp32-s3"), "another chip"),
        (NEW[:-1] + b"\0", "VALIDATE_FAILED"),
        (b"\xe9" + bytes(100), "too short"),
    ],
)
async def test_a_bad_file_is_refused_and_nothing_is_kept_of_it(data: bytes, reason: str) -> None:
    bench = EspBench(OLD)
    await run_agent(bench, files(data), FetchMode.RESUME, lambda server: bool(bench.texts(EventKind.UPDATE_FAILED)))
    assert reason in bench.texts(EventKind.UPDATE_FAILED)[0]
    assert bench.nvs.get(PROGRESS_KEY) is None
    assert not bench.texts(EventKind.RESTART)


async def test_a_plain_download_that_breaks_waits_for_the_next_period() -> None:
    bench = EspBench(OLD)
    cuts = iter([9_000, None])
    requests = await run_agent(
        bench,
        lambda request: file_answer(request, NEW, '"v2"', cut_after=next(cuts, None)),
        FetchMode.PLAIN,
        confirmed(bench),
    )
    assert all("range" not in request.headers for request in requests)
