"""An MCU of this process on one end of a pseudo-terminal: it runs what it is given, and says so."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tty
import zlib
from collections.abc import Callable

from flota.images.blynk_tag import find_tags, pack_tag, written_pairs
from flota.protocols.blynk.mcu import Mcu, McuSettings
from flota.protocols.blynk.mcu_states import (
    ApplyNow,
    ChunkArrived,
    OfferMade,
    PrefetchEnded,
    ReceivingBegan,
    VerifyImage,
)
from flota.protocols.blynk.ncp_job import FirmwareInfo
from flota.transports.uart import MachineOnLine

FW_TYPE = "TMPLabcd1234"
BUILD = "Nov 16 2023 20:35:55"
REBOOT_S = 0.1


def firmware(version: str, size: int = 20_000, *, fw_type: str = FW_TYPE) -> bytes:
    """An image with a tag in its middle."""
    tag = pack_tag(written_pairs(mcu=version, fw_type=fw_type, build=BUILD, library="0.7.0"))
    body = hashlib.shake_128(version.encode()).digest(size - len(tag))
    return body[: size // 2] + tag + body[size // 2 :]


def info_of(image: bytes) -> FirmwareInfo:
    tag = find_tags(image)[0].tag
    return FirmwareInfo(tag.fw_type or "", tag.version or "", tag.build or "", tag.library or "")


class PtyLine:
    """The near end of a pseudo-terminal; `path` is the far one. Its rate is whatever both ends like."""

    def __init__(self, on_data: Callable[[bytes], None]) -> None:
        self._near, self._far = os.openpty()  # the far end stays open here too: nobody hangs up when its user dies
        tty.setraw(self._near)
        tty.setraw(self._far)
        os.set_blocking(self._near, False)
        self.path = os.ttyname(self._far)
        self._on_data = on_data
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._near, self._readable)

    def _readable(self) -> None:
        self._on_data(os.read(self._near, 65_536))

    def write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._near, data) :]
            except BlockingIOError:
                return  # nobody reads: a UART would lose it too

    async def set_baud(self, baud: int) -> None:
        """A pseudo-terminal has no rate."""

    async def close(self) -> None:
        self._loop.remove_reader(self._near)
        os.close(self._near)
        os.close(self._far)


class SmallMcu:
    """Runs `image`; a new one that is applied is believed at once. Without an app its boot loader listens."""

    def __init__(self, image: bytes, *, has_app: bool = True) -> None:
        self.image = image
        self.has_app = has_app
        self.flash = bytearray()
        self.offers: list[str] = []
        self.line = PtyLine(self._received)
        self._start()

    @property
    def path(self) -> str:
        return self.line.path

    def _received(self, data: bytes) -> None:
        if self._machine is not None:
            self._machine.received(data)

    def _start(self) -> None:
        settings = McuSettings(info_of(self.image), template_id=FW_TYPE, is_boot_loader=not self.has_app)
        self.mcu = Mcu(settings, now=asyncio.get_running_loop().time())
        self._machine: MachineOnLine | None = MachineOnLine(self.mcu, self._happened)
        self._machine.attach(self.line)

    async def _apply(self) -> None:
        await asyncio.sleep(0.05)
        self.image, self.has_app = bytes(self.flash), True
        machine, self._machine = self._machine, None
        assert machine is not None
        await machine.stop()
        await asyncio.sleep(REBOOT_S)
        self._start()

    async def close(self) -> None:
        if self._machine is not None:
            await self._machine.stop()
        await self.line.close()

    def _happened(self, event: object) -> None:
        machine, mcu = self._machine, self.mcu
        assert machine is not None
        now = machine.now
        if isinstance(event, OfferMade):
            self.offers.append(event.offer.version)
            machine.tell(mcu.accept(now=now))
            machine.tell(mcu.prefetch(now=now))
        elif isinstance(event, PrefetchEnded):
            machine.tell(mcu.begin(now=now))
        elif isinstance(event, ReceivingBegan):
            self.flash = bytearray()
        elif isinstance(event, ChunkArrived):
            assert event.offset == len(self.flash)
            self.flash += event.data
            machine.tell(mcu.chunk_stored(True, now=now))
        elif isinstance(event, VerifyImage):
            known = event.digests
            right = known.crc32 == zlib.crc32(self.flash) and known.sha256 == hashlib.sha256(self.flash).digest()
            machine.tell(mcu.verified(right, now=now))
        elif isinstance(event, ApplyNow):
            self._task = asyncio.ensure_future(self._apply())
