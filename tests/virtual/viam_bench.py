"""A small ESP32 with micro-RDK, its configuration in a file, and a real HTTP/2 server to fetch from."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flota.boards.catalogue import board
from flota.protocols.viam import CHUNK_TIMEOUT_S, NVS_NAMESPACE, NVS_VERSION_KEY
from flota.transports.http import tls_context
from flota.virtual.agents.viam_config import ConfigFile
from flota.virtual.agents.viam_link import device_tls
from flota.virtual.agents.viam_micro_rdk import MicroRdkAgent
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.events import EventKind
from tests.virtual.benches import SMALL_TABLE, EspBench, until
from tests.virtual.images import app_image

OLD, NEW = app_image("1.0.0", chip="esp32"), app_image("2.0.0", chip="esp32", size=40_000)
SLOT_SIZE = 0x10000


def service(url: str, version: object = "2.0.0") -> dict[str, object]:
    """Return an update service as the guide writes it."""
    attributes = {"url": url, "version": version}
    return {"name": "OTA", "namespace": "rdk", "type": "generic", "model": "ota_service", "attributes": attributes}


class ViamBench(EspBench):
    def __init__(self, config_path: Path, image: bytes = OLD, *, table: str = SMALL_TABLE) -> None:
        super().__init__(
            image, build=BootBuild.PLAIN, table=table, chip_board=replace(board("esp32"), flash_size=0x40000)
        )
        self.config_path = config_path

    def configure(self, *services: object, revision: str = "r1") -> None:
        """Put a machine configuration where the device looks."""
        partial = self.config_path.with_suffix(".new")
        partial.write_text(json.dumps({"services": list(services), "revision": revision}))
        partial.replace(self.config_path)

    def agent(self, *, cacert: Path | None = None, chunk_limit_s: float = CHUNK_TIMEOUT_S) -> MicroRdkAgent:
        tls: ssl.SSLContext = device_tls(tls_context(cacert))
        return MicroRdkAgent(ConfigFile(self.config_path), tls=tls, chunk_limit_s=chunk_limit_s)

    async def live_until(
        self, condition: Callable[[], bool], *, cacert: Path | None = None, chunk_limit_s: float = CHUNK_TIMEOUT_S
    ) -> None:
        """Run the device until `condition()` is true; then it is stopped at once."""
        stop = asyncio.Event()
        life = asyncio.ensure_future(self.device(self.agent(cacert=cacert, chunk_limit_s=chunk_limit_s)).run(stop))
        try:
            await until(lambda: life.done() or condition(), told=self.events)
        finally:
            stop.set()
            await life

    def happened(self, kind: EventKind, times: int = 1) -> Callable[[], bool]:
        return lambda: len(self.texts(kind)) >= times

    @property
    def stored_version(self) -> str | None:
        nvs = self.hardware().esp_nvs()
        assert nvs is not None
        return nvs.get_string(NVS_NAMESPACE, NVS_VERSION_KEY)

    def store_version(self, version: str) -> None:
        nvs = self.hardware().esp_nvs()
        assert nvs is not None
        nvs.set_string(NVS_NAMESPACE, NVS_VERSION_KEY, version)

    @property
    def running(self) -> tuple[str, str] | None:
        """Slot and version that a boot starts now."""
        report = self.hardware().boot()
        return None if report.app is None else (report.app.slot, report.app.version)
