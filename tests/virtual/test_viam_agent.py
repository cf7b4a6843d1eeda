"""The micro-RDK agent against a real HTTP/2 server: what it takes, what it refuses, what it leaves behind."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import ssl
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from h2.settings import SettingCodes

from flota.images.esp_otadata import OtaState, active_entry
from flota.protocols.viam import parse_download_url
from flota.transports.http import tls_context
from flota.trust.certificates import Issuer, make_root, make_server_certificate, new_key, pack_certificates, pack_key
from flota.virtual.agents import viam_link
from flota.virtual.esp_ota import OtaData
from flota.virtual.events import EventKind
from flota.virtual.flash import FlashOperationKind
from tests.virtual.images import app_image
from tests.virtual.small_http2 import End, H2Answer, H2Request, SmallHttp2, small_http2
from tests.virtual.small_server import Answer, small_server
from tests.virtual.viam_bench import NEW, OLD, SLOT_SIZE, ViamBench, service

WITH_BOOT = EventKind.BOOT


@pytest.fixture
def bench(tmp_path: Path) -> ViamBench:
    return ViamBench(tmp_path / "machine.json")


def whole_image(request: H2Request) -> H2Answer:
    return H2Answer(body=NEW)


async def test_a_new_version_is_fetched_selected_remembered_and_started(bench: ViamBench) -> None:
    async with small_http2(whole_image) as server:
        bench.configure(service(f"{server.url}/fw.bin?token=t"))
        await bench.live_until(bench.happened(EventKind.POLL))
    assert bench.running == ("ota_1", "2.0.0")
    assert bench.stored_version == "2.0.0"
    assert len(server.requests) == 1
    assert hashlib.sha256(bench.hardware().image_in("ota_1")).digest() == hashlib.sha256(NEW).digest()


async def test_the_request_is_bare_and_its_authority_has_the_port(bench: ViamBench) -> None:
    async with small_http2(whole_image) as server:
        bench.configure(service(f"{server.url}/a/b.bin?token=t%20x"))
        await bench.live_until(bench.happened(EventKind.INSTALLED))
    assert server.requests[0].headers == {
        ":method": "GET",
        ":scheme": "http",
        ":authority": f"127.0.0.1:{server.port}",
        ":path": "/a/b.bin?token=t%20x",
    }


async def test_the_settings_are_those_of_the_device(tmp_path: Path) -> None:
    bench = ViamBench(tmp_path / "machine.json")
    seen: dict[int, int] = {}

    def handle(request: H2Request) -> H2Answer:
        seen.update(request.settings)
        return H2Answer(body=NEW)

    async with small_http2(handle) as server:
        bench.configure(service(f"{server.url}/fw.bin"))
        await bench.live_until(bench.happened(EventKind.INSTALLED))
    assert seen[SettingCodes.MAX_FRAME_SIZE] == 16_384
    assert seen[SettingCodes.INITIAL_WINDOW_SIZE] == 2 * 1024 * 1024
    assert seen[SettingCodes.ENABLE_PUSH] == 0
    assert seen[SettingCodes.MAX_HEADER_LIST_SIZE] == 16 * 1024


async def test_the_whole_slot_is_erased_before_a_byte_of_the_body_is_read(bench: ViamBench) -> None:
    kinds: list[tuple[FlashOperationKind, int]] = []
    bench.flash.plan = lambda operation: kinds.append((operation.kind, operation.address))  # type: ignore[func-returns-value]
    async with small_http2(whole_image) as server:
        bench.configure(service(f"{server.url}/fw.bin"))
        await bench.live_until(bench.happened(EventKind.INSTALLED))
    slot = bench.hardware().table().find("ota_1")
    assert slot is not None
    in_slot = [kind for kind, address in kinds if slot.offset <= address < slot.offset + slot.size]
    sectors = slot.size // 4096
    assert in_slot[:sectors] == [FlashOperationKind.ERASE] * sectors
    assert set(in_slot[sectors:]) == {FlashOperationKind.PROGRAM}


async def test_a_new_entry_is_undefined_and_nothing_confirms_it(bench: ViamBench) -> None:
    async with small_http2(whole_image) as server:
        bench.configure(service(f"{server.url}/fw.bin"))
        await bench.live_until(bench.happened(EventKind.POLL))
    address = bench.hardware().layout().otadata_address
    assert address is not None
    entries = OtaData(bench.flash, address).read()
    active = active_entry(*entries)
    assert active == 1
    assert entries[1].state == OtaState.UNDEFINED
    assert not bench.texts(EventKind.SELF_TEST)


async def test_the_same_version_asks_nothing_and_another_one_downloads_again_older_or_not(bench: ViamBench) -> None:
    bench.store_version("2.0.0")
    async with small_http2(whole_image) as server:
        bench.configure(service(f"{server.url}/fw.bin", "2.0.0"))
        await bench.live_until(bench.happened(EventKind.POLL, 3))
        assert server.requests == []
        bench.configure(service(f"{server.url}/fw.bin", "1.0.0"), revision="r2")
        await bench.live_until(bench.happened(EventKind.INSTALLED))
        assert len(server.requests) == 1
    assert bench.stored_version == "1.0.0"


async def test_an_empty_version_never_updates_a_device_that_stores_nothing(bench: ViamBench) -> None:
    async with small_http2(whole_image) as server:
        bench.configure(service(f"{server.url}/fw.bin", ""))
        await bench.live_until(bench.happened(EventKind.POLL, 3))
    assert server.connections == 0


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"attributes": {"url": "http://10.0.0.1:1/x"}}, "`version` is missing"),
        ({"attributes": {"version": "2"}}, "`url` is missing"),
        ({"attributes": {"url": 5, "version": "2"}}, "`url` is no text"),
        ({"attributes": {"url": "http://10.0.0.1:1/x", "version": 2}}, "`version` is no text"),
        ({"attributes": {"url": "http://10.0.0.1:1/x", "version": "é" * 64 + "x"}}, "found 129 bytes"),
        ({"attributes": None}, "no attributes"),
    ],
)
async def test_a_wrong_configuration_is_an_error_that_touches_nothing(
    bench: ViamBench, broken: dict[str, object], words: str
) -> None:
    before = bench.running
    content = bench.flash_content()
    bench.configure({**service("http://10.0.0.1:1/x"), **broken})
    await bench.live_until(bench.happened(EventKind.UPDATE_FAILED))
    assert words in bench.texts(EventKind.UPDATE_FAILED)[0]
    assert bench.flash_content() == content
    assert bench.running == before


async def test_only_the_first_update_service_counts_whatever_its_name(bench: ViamBench) -> None:
    async with small_http2(whole_image) as server:
        other = {"name": "OTA", "model": "rdk:builtin:something_else", "attributes": {}}
        first = {**service(f"{server.url}/first.bin"), "name": "firmware", "model": "rdk:builtin:ota_service"}
        bench.configure(other, first, service(f"{server.url}/second.bin", "9"))
        await bench.live_until(bench.happened(EventKind.INSTALLED))
    assert [request.path for request in server.requests] == ["/first.bin"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"services": {}}'])
async def test_a_configuration_that_is_none_is_told_and_looked_at_again(bench: ViamBench, content: bytes) -> None:
    bench.config_path.write_bytes(content)
    failures = (EventKind.BREAK, EventKind.UPDATE_FAILED)
    await bench.live_until(lambda: sum(len(bench.texts(kind)) for kind in failures) >= 2)
    bench.configure(service("http://127.0.0.1:1/x", ""))
    bench.events.clear()
    await bench.live_until(bench.happened(EventKind.POLL))


async def test_a_changed_revision_restarts_the_device_once_even_without_an_update(bench: ViamBench) -> None:
    bench.store_version("1")
    bench.configure(service("http://127.0.0.1:1/x", "1"))

    def change_it_once() -> bool:
        if bench.happened(EventKind.POLL)():
            bench.configure(service("http://127.0.0.1:1/x", "1"), revision="r2")
        return len(bench.texts(EventKind.BOOT)) == 2 and len(bench.texts(EventKind.POLL)) > 6

    await bench.live_until(change_it_once)
    assert bench.texts(EventKind.RESTART) == ["restart: the machine's configuration has changed"]


# --- answers that the device does not take ----------------------------------------------------------------------------


async def run_until_two_failures(bench: ViamBench, answer: H2Answer, *, chunk_limit_s: float = 5.0) -> SmallHttp2:
    async with small_http2(lambda request: answer) as server:
        bench.configure(service(f"{server.url}/fw.bin"))
        await bench.live_until(bench.happened(EventKind.UPDATE_FAILED, 2), chunk_limit_s=chunk_limit_s)
    return server


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (H2Answer(404), "neither 2xx nor 3xx"),
        (H2Answer(304), "redirect without a location"),
        (H2Answer(302, headers={"location": "/elsewhere"}), "without a host"),
        (H2Answer(302, headers={"location": "//host:80/x"}), "without a host"),
        (H2Answer(body=NEW, length=None), "no content-length"),
        (H2Answer(body=NEW, length=SLOT_SIZE + 1), "larger than the target partition"),
        (H2Answer(body=NEW[:287]), "smaller than the minimum"),
    ],
    ids=["404", "304", "relative", "no scheme", "no length", "too large", "too small"],
)
async def test_a_head_that_is_not_taken_costs_no_flash_and_is_asked_for_again_for_ever(
    bench: ViamBench, answer: H2Answer, words: str
) -> None:
    bench.hardware().boot()
    content = bench.flash_content()
    server = await run_until_two_failures(bench, answer)
    assert words in bench.texts(EventKind.UPDATE_FAILED)[0]
    assert len(server.requests) >= 2
    assert bench.flash_content() == content


DAMAGED = NEW[:9000] + bytes([NEW[9000] ^ 1]) + NEW[9001:]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (H2Answer(body=NEW, stop_after=20_000), "before its announced length"),
        (H2Answer(body=NEW, stop_after=20_000, end=End.RESET), "stream reset"),
        (H2Answer(body=NEW, stop_after=20_000, end=End.CLOSE), "before its announced length"),
        (H2Answer(body=NEW, stop_after=20_000, end=End.SILENCE), "within 30 s"),
        (H2Answer(body=NEW, length=len(NEW) - 16), "longer than announced"),
        (H2Answer(body=NEW, length=len(NEW) + 16), "before its announced length"),
        (H2Answer(body=DAMAGED), "OTA_VALIDATE_FAILED"),
        (H2Answer(body=b"\xff" * 20_000), "first byte is 0xff"),
        (H2Answer(body=app_image("2.0.0", chip="esp32-c3")), "another chip"),
        (H2Answer(body=NEW, frames=(200, 200)), "no header of 288 bytes"),
    ],
    ids=["early end", "reset", "close", "silence", "longer", "shorter", "damaged", "no image", "chip", "tiny frames"],
)
async def test_a_body_that_fails_leaves_the_old_app_and_the_old_tag_and_starts_from_zero_again(
    bench: ViamBench, answer: H2Answer, words: str
) -> None:
    server = await run_until_two_failures(bench, answer, chunk_limit_s=0.1)
    assert words in bench.texts(EventKind.UPDATE_FAILED)[0]
    assert len(server.requests) >= 2
    assert all("range" not in request.headers for request in server.requests)
    assert bench.running == ("ota_0", "1.0.0")
    assert bench.stored_version is None


async def test_a_link_that_drops_is_followed_by_a_whole_download(bench: ViamBench) -> None:
    answers = [H2Answer(body=NEW, stop_after=30_000, end=End.CLOSE), H2Answer(body=NEW)]
    async with small_http2(lambda request: answers.pop(0)) as server:
        bench.configure(service(f"{server.url}/fw.bin"))
        await bench.live_until(bench.happened(EventKind.INSTALLED))
    assert len(server.requests) == 2
    assert bench.running == ("ota_1", "2.0.0")


async def test_a_small_first_frame_is_written_all_the_same(bench: ViamBench) -> None:
    async with small_http2(lambda request: H2Answer(body=NEW, frames=(100, 3, 1001))) as server:
        bench.configure(service(f"{server.url}/fw.bin"))
        await bench.live_until(bench.happened(EventKind.INSTALLED))
    assert bench.running == ("ota_1", "2.0.0")


async def test_absolute_redirects_are_followed_up_to_four_times(bench: ViamBench) -> None:
    def handle(request: H2Request) -> H2Answer:
        number = int(request.path.removeprefix("/"))
        if number == 4:
            return H2Answer(body=NEW)
        return H2Answer(302 if number % 2 else 308, headers={"location": f"{server.url}/{number + 1}"})

    async with small_http2(handle) as server:
        bench.configure(service(f"{server.url}/0"))
        await bench.live_until(bench.happened(EventKind.INSTALLED))
        assert [request.path for request in server.requests] == ["/0", "/1", "/2", "/3", "/4"]
        assert server.connections == 5
        bench.configure(service(f"{server.url}/-1", "3"), revision="r2")
        await bench.live_until(bench.happened(EventKind.UPDATE_FAILED))
    assert "more than four redirects" in bench.texts(EventKind.UPDATE_FAILED)[0]


async def test_nobody_there_is_tried_five_times_in_one_run(bench: ViamBench) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        bench.configure(service(f"http://127.0.0.1:{unused.getsockname()[1]}/fw.bin"))
        await bench.live_until(bench.happened(EventKind.UPDATE_FAILED))
    kinds = [event.kind for event in bench.events]
    assert kinds[: kinds.index(EventKind.UPDATE_FAILED)].count(EventKind.BREAK) == 5
    assert "after five attempts" in bench.texts(EventKind.UPDATE_FAILED)[0]


async def test_a_server_without_http2_is_an_error_of_the_run(bench: ViamBench) -> None:
    async with small_server(lambda request: Answer(200, NEW)) as server:
        bench.configure(service(f"{server.url}/fw.bin"))
        await bench.live_until(bench.happened(EventKind.UPDATE_FAILED))
    assert "could not be sent, or was not answered" in bench.texts(EventKind.UPDATE_FAILED)[0]


async def test_a_merged_image_by_mistake_is_refused_at_its_first_byte(bench: ViamBench) -> None:
    merged = b"\xff" * 0x1000 + NEW[:0x7000] + b"\xaa\x50" + b"\xff" * 0xFFE
    server = await run_until_two_failures(bench, H2Answer(body=merged))
    assert "first byte is 0xff" in bench.texts(EventKind.UPDATE_FAILED)[0]
    assert len(server.requests) >= 2
    assert bench.running == ("ota_0", "1.0.0")


async def test_a_merged_image_padded_to_the_flash_is_too_large_to_begin(bench: ViamBench) -> None:
    await run_until_two_failures(bench, H2Answer(body=b"\xff" * bench.flash.size))
    assert "larger than the target partition" in bench.texts(EventKind.UPDATE_FAILED)[0]


# --- the tag ----------------------------------------------------------------------------------------------------------


async def test_a_tag_that_nvs_cannot_hold_leaves_the_new_app_selected_without_a_restart(bench: ViamBench) -> None:
    async with small_http2(whole_image) as server:
        bench.configure(service(f"{server.url}/fw.bin", "2.0\0.0"))
        await bench.live_until(bench.happened(EventKind.UPDATE_FAILED, 2))
    assert len(bench.texts(EventKind.BOOT)) == 1
    assert len(server.requests) >= 2
    assert bench.running == ("ota_1", "2.0.0")
    assert bench.stored_version is None


async def test_a_tag_lost_after_the_boot_choice_costs_a_second_download_into_the_other_slot(bench: ViamBench) -> None:
    async with small_http2(whole_image) as server:
        bench.configure(service(f"{server.url}/fw.bin"))
        await bench.live_until(bench.happened(EventKind.POLL))
        nvs = bench.hardware().table().find("nvs")
        assert nvs is not None
        bench.flash.erase(nvs.offset, nvs.size)
        bench.events.clear()
        await bench.live_until(bench.happened(EventKind.POLL))
    assert len(server.requests) == 2
    assert bench.running == ("ota_0", "2.0.0")


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def private_ca(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A CA that no device knows, and a server's certificate with its key: the paths of both files."""
    directory = tmp_path_factory.mktemp("ca")
    now, rng = datetime.now(UTC), random.Random(5)
    root_key, key = new_key(), new_key()
    root = make_root(root_key, serial=rng.getrandbits(64) | 1, now=now)
    certificate = make_server_certificate(
        Issuer(root, root_key), key, ["127.0.0.1"], serial=rng.getrandbits(64) | 1, now=now
    )
    (directory / "ca.pem").write_bytes(pack_certificates(root))
    (directory / "server.pem").write_bytes(pack_certificates(certificate) + pack_key(key))
    return directory / "ca.pem", directory / "server.pem"


def server_tls(pem: Path, *protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.set_alpn_protocols(list(protocols))
    return context


async def test_over_tls_alpn_gives_h2_when_the_firmware_knows_the_ca(
    bench: ViamBench, private_ca: tuple[Path, Path]
) -> None:
    async with small_http2(whole_image, tls=server_tls(private_ca[1], "h2", "http/1.1")) as server:
        bench.configure(service(f"{server.url}/fw.bin"))
        await bench.live_until(bench.happened(EventKind.INSTALLED), cacert=private_ca[0])
    assert server.requests[0].headers[":scheme"] == "https"
    assert bench.running == ("ota_1", "2.0.0")


async def test_a_private_ca_that_the_firmware_does_not_know_is_refused(
    bench: ViamBench, private_ca: tuple[Path, Path]
) -> None:
    async with small_http2(whole_image, tls=server_tls(private_ca[1], "h2")) as server:
        bench.configure(service(f"{server.url}/fw.bin"))
        await bench.live_until(bench.happened(EventKind.UPDATE_FAILED))
    assert server.requests == []
    assert "certificate" in bench.texts(EventKind.BREAK)[0].lower()


async def test_tls_without_h2_is_no_connection(bench: ViamBench, private_ca: tuple[Path, Path]) -> None:
    async with small_http2(whole_image, tls=server_tls(private_ca[1], "http/1.1")) as server:
        bench.configure(service(f"{server.url}/fw.bin"))
        await bench.live_until(bench.happened(EventKind.UPDATE_FAILED), cacert=private_ca[0])
    assert server.requests == []
    assert "does not speak HTTP/2" in bench.texts(EventKind.BREAK)[0]


async def test_a_server_that_does_not_say_goodbye_keeps_no_connection_open(
    private_ca: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viam_link, "CLOSE_LIMIT_S", 0.05)
    closed = threading.Event()

    def serve_without_reading(listening: socket.socket) -> None:
        peer, _ = listening.accept()
        with server_tls(private_ca[1], "h2").wrap_socket(peer, server_side=True):
            closed.wait(60)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(asyncio.to_thread(serve_without_reading, listening))
        address = parse_download_url(f"https://127.0.0.1:{listening.getsockname()[1]}/fw.bin")
        link = await viam_link.DeviceHttp2.open(address, viam_link.device_tls(tls_context(private_ca[0])))
        used = link._writer.get_extra_info("socket")
        await link.close()
        await asyncio.sleep(0)
        assert used.fileno() == -1
        closed.set()
        await serving


def test_the_bench_is_the_board_of_the_guide_but_for_the_size(bench: ViamBench) -> None:
    assert replace(bench.board, flash_size=8 << 20).rolls_back is False
    assert OLD != NEW
