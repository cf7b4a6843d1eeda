"""What a job document says of a release, and its HTTP data path: ranges, conditions, addresses that are over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from flota.protocols.aws_ota import URL_MAX_LEN, DataProtocol
from flota.server.api.aws_iot.files import AwsIotFiles
from flota.server.app import wrap
from tests.server.aws_iot_bench import Bench, Thing, a_bench, a_bench_over

BASE = "https://updates.example.net:8443"
LIFETIME_S = 1800


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with a_bench(tmp_path) as made:
        yield made


def _settings(bench: Bench, **changes: object) -> None:
    for name, value in changes.items():
        object.__setattr__(bench.fleet.context.settings, name, value)


async def _ota(thing: Thing) -> dict[str, Any]:
    ota: dict[str, Any] = (await thing.accepted("$next/get"))["execution"]["jobDocument"]["afr_ota"]
    return ota


async def _http_url(bench: Bench) -> tuple[Thing, str]:
    _settings(bench, public_url=BASE, aws_iot_data=(DataProtocol.HTTP,))
    pump = await bench.fleet.add_device("pump-1")
    await bench.roll_out(pump)
    thing = await bench.connect()
    return thing, (await _ota(thing))["files"][0]["update_data_url"]


@pytest.fixture
async def http(bench: Bench) -> AsyncIterator[httpx.AsyncClient]:
    app = wrap(AwsIotFiles(bench.fleet.context), bench.fleet.context)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as client:
        yield client


async def test_mqtt_alone_is_offered_unless_told_otherwise(bench: Bench) -> None:
    _settings(bench, public_url=BASE)
    pump = await bench.fleet.add_device("pump-1")
    release, _ = await bench.roll_out(pump)
    ota = await _ota(await bench.connect())
    assert ota["protocols"] == ["MQTT"]
    assert len(ota["streamname"]) == 44
    assert ota["files"] == [
        {
            "filepath": release.filename,
            "filesize": release.artifact.digests.size,
            "fileid": 0,
            "certfile": "Code_Verify_Key",
            "fileType": 0,
        }
    ]


async def test_both_ways_are_offered_with_an_address_that_fits_into_an_agent(bench: Bench) -> None:
    _settings(bench, public_url=BASE, aws_iot_data=(DataProtocol.MQTT, DataProtocol.HTTP))
    pump = await bench.fleet.add_device("pump-1")
    await bench.roll_out(pump)
    ota = await _ota(await bench.connect())
    assert ota["protocols"] == ["MQTT", "HTTP"]
    file = ota["files"][0]
    assert file["auth_scheme"] == "aws.s3.presigned"
    assert file["update_data_url"].startswith(f"{BASE}/aws-iot/files/")
    assert len(file["update_data_url"]) < URL_MAX_LEN
    assert ota["streamname"].startswith("AFR_OTA-")


async def test_without_an_address_to_give_http_is_not_offered(bench: Bench) -> None:
    _settings(bench, aws_iot_data=(DataProtocol.HTTP,))
    pump = await bench.fleet.add_device("pump-1")
    await bench.roll_out(pump)
    ota = await _ota(await bench.connect())
    assert ota["protocols"] == ["MQTT"]
    assert "update_data_url" not in ota["files"][0]


async def test_an_agent_fetches_range_after_range(bench: Bench, http: httpx.AsyncClient) -> None:
    _, url = await _http_url(bench)
    size, got = 5000, b""
    while len(got) < size:
        last = min(len(got) + 2047, size - 1)
        answer = await http.get(url, headers={"range": f"bytes={len(got)}-{last}"})
        assert answer.status_code == 206
        assert answer.headers["content-range"] == f"bytes {len(got)}-{last}/{size}"
        assert answer.headers["etag"]
        got += answer.content
    whole = await http.get(url)
    assert (whole.status_code, whole.content, whole.headers["content-length"]) == (200, got, str(size))
    assert (await http.get(url, headers={"if-none-match": whole.headers["etag"]})).status_code == 304
    assert (await http.get(url, headers={"range": "bytes=5000-5001"})).status_code == 416
    assert (await http.head(url)).headers["content-length"] == str(size)
    assert (await http.post(url)).status_code == 405


async def test_an_address_that_is_over_is_forbidden_and_the_job_has_a_fresh_one(
    bench: Bench, http: httpx.AsyncClient
) -> None:
    thing, url = await _http_url(bench)
    bench.fleet.clock.advance(LIFETIME_S - 1)
    assert (await http.get(url)).status_code == 200
    bench.fleet.clock.advance(1)
    assert (await http.get(url)).status_code == 403
    fresh = (await _ota(thing))["files"][0]["update_data_url"]
    assert fresh != url
    assert (await http.get(fresh)).status_code == 200


async def test_every_change_of_an_address_is_refused(bench: Bench, http: httpx.AsyncClient) -> None:
    _, url = await _http_url(bench)
    token = urlsplit(url).query.removeprefix("token=")
    expires, execution, mac = token.split(".")
    path = urlsplit(url).path
    other = "ab" * 32
    for bad in (
        path,
        f"{path}?token=",
        f"{path}?token={token}x",
        f"{path}?token={int(expires) + 1}.{execution}.{mac}",
        f"{path}?token={expires}.{int(execution) + 1}.{mac}",
        f"{path}?token={expires}.{execution}.{'A' * len(mac)}",
        f"{path}?token={expires}.{execution}",
        f"{path}?token={'9' * 200}",
        f"{path}?token=%D9%A1.1.x",
        f"{path}?{'a=1&' * 40}token={token}",
        f"/aws-iot/files/{other}?token={token}",
        f"/aws-iot/files/{path.rpartition('/')[2].upper()}?token={token}",
        f"/aws-iot/files/../files/x?token={token}",
        "/aws-iot/files/",
    ):
        assert (await http.get(bad)).status_code == 403, bad
    assert (await http.get(f"{path}?other=1&token={token}")).status_code == 200


async def test_an_address_of_the_download_api_is_no_address_here(bench: Bench, http: httpx.AsyncClient) -> None:
    _, url = await _http_url(bench)
    sha256 = urlsplit(url).path.rpartition("/")[2]
    token = bench.fleet.context.download_tokens.issue(sha256, device_id=1, now=bench.fleet.clock())
    assert (await http.get(f"/aws-iot/files/{sha256}?token={token}")).status_code == 403


async def test_a_file_that_is_gone_is_not_found(bench: Bench, http: httpx.AsyncClient) -> None:
    _, url = await _http_url(bench)
    bench.fleet.context.artifacts.path(urlsplit(url).path.rpartition("/")[2]).unlink()
    assert (await http.get(url)).status_code == 404


async def test_an_address_outlives_a_restart(bench: Bench, http: httpx.AsyncClient) -> None:
    _, url = await _http_url(bench)
    async with a_bench_over(bench.fleet.restarted()) as after:
        app = wrap(AwsIotFiles(after.fleet.context), after.fleet.context)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as client:
            assert (await client.get(url)).status_code == 200
