"""`flota viam` against a real server: configurations, what the operator is told, and the way through Viam's cloud."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from flota.lab.sample_firmware import sample_app
from flota.protocols.viam import check_offered_url, parse_service_config
from tests.cli.conftest import Flota, Server

pytestmark = pytest.mark.scenario

KEY_ID = "6f1c1f5e-3a54-4f4e-9a3e-0d6c1b1d2a11"


@pytest.fixture
def rolled_out(flota: Flota, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Return the version of a new release that is rolled out to two new devices, VERSION-a and VERSION-b."""
    version = request.node.name.split("[")[0].removeprefix("test_")[:20].rstrip("_")
    image = tmp_path / "app.bin"
    image.write_bytes(sample_app(version, chip="esp32"))
    assert flota("key", "create", "-o", tmp_path / "k.pem").status == 0
    for letter in "ab":
        assert flota("device", "add", f"{version}-{letter}", "--type", "esp32").status == 0
    shipped = flota(
        "ship", image, "--type", "esp32", "--version", version, "--to", f"{version}-a,{version}-b",
        "--key", tmp_path / "k.pem", "--trust-key", "--name", version, "--no-wait", "--json",
    )  # fmt: skip
    assert shipped.status == 0, shipped.err
    return version


def test_config_of_one(flota: Flota, rolled_out: str, server: Server) -> None:
    printed = flota("viam", "config", f"esp32@{rolled_out}", "--device", f"{rolled_out}-a")
    assert printed.status == 0, printed.err
    assert "this machine only" in printed.err
    config = parse_service_config(printed.json())
    assert config.version == rolled_out
    assert check_offered_url(config.url).uses_tls is False
    assert (
        flota("viam", "config", f"esp32@{rolled_out}", "--device", f"{rolled_out}-a", "--json").json() == printed.json()
    )
    taken = httpx.get(config.url, trust_env=False)
    assert taken.content == sample_app(rolled_out, chip="esp32")
    shown = flota("device", "show", f"{rolled_out}-a", "--json").json()
    assert shown["executions"][0]["details"]["gets"] == "1"
    for _ in range(3):
        httpx.get(config.url, trust_env=False)
    assert "asks again and again" in flota("device", "show", f"{rolled_out}-a").out


def test_config_of_all(flota: Flota, rolled_out: str) -> None:
    printed = flota("viam", "config", "--rollout", rolled_out, "--json")
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["device"] for line in lines] == [f"{rolled_out}-a", f"{rolled_out}-b"]
    assert len({parse_service_config(line["service"]).url for line in lines}) == 2


def test_config_shared(flota: Flota, rolled_out: str) -> None:
    printed = flota("viam", "config", f"esp32@{rolled_out}", "--url", "http://192.168.1.5:8080")
    assert "no per-device status" in printed.err
    assert parse_service_config(printed.json()).url.startswith("http://192.168.1.5:8080/viam/image.bin?token=s.")


def test_wrong_use(flota: Flota, rolled_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIAM_API_KEY", "VIAM_API_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    release = f"esp32@{rolled_out}"
    nobody = flota("viam", "config", release, "--device", "nobody")
    assert (nobody.status, nobody.out) == (1, "")
    assert flota("viam", "config").status == 2
    assert flota("viam", "apply", release).status == 2
    assert flota("viam", "apply", "--rollout", rolled_out, "--part-id", "p").status == 2
    without = flota("viam", "apply", release, "--device", f"{rolled_out}-a", "--part-id", "p1")
    assert without.status == 2
    assert "VIAM_API_KEY_ID and VIAM_API_KEY not set" in without.err
    assert flota("viam", "evidence", "--rollout", rolled_out).status == 2


def test_merged_image(flota: Flota, tmp_path: Path) -> None:
    """The release is refused, so no configuration of it can exist."""
    table = bytes.fromhex("aa50") + bytes(30)
    merged = b"\xff" * 0x1000 + sample_app("1", chip="esp32")[:0x7000].ljust(0x7000, b"\xff") + table
    (tmp_path / "merged.bin").write_bytes(merged.ljust(0x20000, b"\xff"))
    refused = flota("release", "create", tmp_path / "merged.bin", "--type", "esp32", "--version", "9")
    assert refused.status == 1
    assert "merged" in refused.err
    assert flota("viam", "config", "esp32@9").status == 1


@contextmanager
def cloud(parts: dict[str, Any]) -> Iterator[str]:
    """Serve a stand-in for Viam's cloud from a thread of its own."""
    from tests.transports.viam_cloud import a_cloud

    started, stop, found = threading.Event(), asyncio.Event(), [""]
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with a_cloud(parts) as url:
            found[0] = url
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(10)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.mark.skipif(
    importlib.util.find_spec("viam") is None and os.environ.get("FLOTA_TEST_ALL") != "1",
    reason="viam-sdk is not installed: pip install 'flota[viam]'",
)
def test_through_cloud(flota: Flota, rolled_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.transports.viam_cloud import KEY, Part

    first, second = Part({"components": [{"name": "led"}]}), Part({})
    monkeypatch.setenv("VIAM_API_KEY_ID", KEY_ID)
    monkeypatch.setenv("VIAM_API_KEY", KEY)
    assert flota("device", "label", f"{rolled_out}-a", "viam-part=p1").status == 0
    with cloud({"p1": first, "p2": second}) as url:
        monkeypatch.setenv("VIAM_CLOUD", url)
        applied = flota("viam", "apply", "--rollout", rolled_out, "--json")
        assert applied.status == 1  # the second device has no part yet
        assert [row["result"] for row in applied.json()] == [
            "set",
            "no part known: give --part-id or the label viam-part",
        ]
        by_hand = flota("viam", "apply", "--rollout", rolled_out, "--device", f"{rolled_out}-b", "--part-id", "p2")
        assert by_hand.status == 0, by_hand.err
        assert "set" in by_hand.out
        again = flota("viam", "apply", "--rollout", rolled_out, "--device", f"{rolled_out}-a", "--json")
        assert [row["result"] for row in again.json()] == ["was set already"]
        assert "no outcome of this rollout waits" in flota("viam", "evidence", "--rollout", rolled_out).out
    assert first.config["components"] == [{"name": "led"}]
    configured = [parse_service_config(part.config["services"][0]) for part in (first, second)]
    assert [one.version for one in configured] == [rolled_out] * 2
    assert configured[0].url != configured[1].url
