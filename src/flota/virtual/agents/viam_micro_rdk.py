"""The agent that mirrors Viam's micro-RDK: a configuration every ten seconds, and its over-the-air update service.

Nothing is reported to the file server, nothing is resumed, nothing is confirmed: an update that failed is asked for
again ten seconds later, for ever, the slot erased each time. Only what was written and selected is remembered, as a
text in NVS.
Source: docs/reference/viam.md; viamrobotics/micro-rdk:micro-rdk/src/common/{ota.rs,config_monitor.rs}.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

from flota.errors import FlotaError
from flota.images.esp_desc import APP_DESC_FILE_OFFSET, has_app_desc, parse_app_desc
from flota.images.esp_nvs_format import NvsError
from flota.protocols.peer_text import clean_text
from flota.protocols.viam import (
    CHUNK_TIMEOUT_S,
    NVS_NAMESPACE,
    NVS_VERSION_KEY,
    POLL_PERIOD_S,
    DownloadAddress,
    Failure,
    Refusal,
    ServiceConfig,
    find_service_config,
    update_needed,
)
from flota.virtual.agents.viam_config import ConfigSource, MachineConfig
from flota.virtual.agents.viam_link import DeviceHttp2, DownloadLink, ExchangeFailed, NoConnection, OpenLink
from flota.virtual.agents.viam_run import Connect, FrameUse, UpdateRun
from flota.virtual.device import AppContext
from flota.virtual.esp_slots import EspFrameWriter, EspSlots
from flota.virtual.events import EventKind
from flota.virtual.hardware import ImageNote, ImageNotes
from flota.virtual.slots import ResetReason, Restart

AGENT_NAME: Final = "micro-RDK"


class MicroRdkAgent:
    """Asks `config` every `period_s` of device time; `tls` holds the certificates that the firmware was built with.

    `chunk_limit_s` is wall clock: how long it waits for the next piece of a body. `open_link` makes its connections.
    """

    def __init__(
        self,
        config: ConfigSource,
        *,
        tls: ssl.SSLContext,
        period_s: float = POLL_PERIOD_S,
        chunk_limit_s: float = CHUNK_TIMEOUT_S,
        open_link: OpenLink = DeviceHttp2.open,
    ) -> None:
        self._config = config
        self._tls = tls
        self._open_link = open_link
        self._period_s = period_s
        self._chunk_limit_s = chunk_limit_s

    async def run(self, context: AppContext) -> None:
        """Look at the configuration for ever; ends by `Restart` after an update or when the revision changes."""
        revision: str | None = None
        while True:
            config = await self._read_config(context)
            if config is not None:
                revision = config.revision if revision is None else revision
                await self.look_at(context, config, revision_at_boot=revision)
            await context.pace.spend(self._period_s)

    async def look_at(self, context: AppContext, config: MachineConfig, *, revision_at_boot: str) -> None:
        """Do what the configuration asks for, in the device's order: update first, then compare revisions."""
        updated = await self._update_if_needed(context, config)
        if config.revision != revision_at_boot:
            raise Restart(ResetReason.SOFTWARE, "the machine's configuration has changed")
        if updated:
            raise Restart(ResetReason.SOFTWARE, "to start the update")

    async def _read_config(self, context: AppContext) -> MachineConfig | None:
        try:
            return await self._config.read()
        except FlotaError as error:
            context.tell(EventKind.BREAK, str(error))
            return None

    async def _update_if_needed(self, context: AppContext, config: MachineConfig) -> bool:
        """Return whether a new image was installed; every failure is told and forgotten."""
        slots = context.slots
        if not isinstance(slots, EspSlots):
            raise TypeError(f"{AGENT_NAME} runs on ESP boards")
        try:
            service = find_service_config(config.services)
            if service is None:
                return False
            if not update_needed(_stored_version(slots), service.version):
                context.tell(EventKind.POLL, f"version {_shown(service.version)} is the one in NVS")
                return False
            await _Update(context, slots, service, self._connect, self._chunk_limit_s).run()
        except FlotaError as error:
            context.tell(EventKind.UPDATE_FAILED, str(error))
            return False
        return True

    async def _connect(self, address: DownloadAddress) -> DownloadLink:
        return await self._open_link(address, self._tls)


class _Update:
    """One update: connection, body, verification, boot choice, tag."""

    def __init__(
        self,
        context: AppContext,
        slots: EspSlots,
        service: ServiceConfig,
        connect: Callable[[DownloadAddress], Awaitable[DownloadLink]],
        chunk_limit_s: float,
    ) -> None:
        self._context = context
        self._slots = slots
        self._service = service
        self._connect = connect
        self._chunk_limit_s = chunk_limit_s
        self._slot = slots.next_slot()
        self._run = UpdateRun(service.url, slot_size=slots.capacity(self._slot))
        self._digest = hashlib.sha256()

    async def run(self) -> None:
        """Install the image. Raises `FlotaError`; the slot is then erased, or holds what came, and the tag is old."""
        link = await self._answered()
        try:
            self._context.tell(
                EventKind.OFFER,
                f"{self._run.content_length} bytes offered for {self._slot}, version {_shown(self._service.version)}",
                size=self._run.content_length,
            )
            writer = await self._slots.begin_erased(self._slot)
            try:
                await self._take_body(link, writer)
            except BaseException:
                writer.abandon()
                raise
        finally:
            await link.close()
        await writer.finish()
        await self._select()

    async def _answered(self) -> DownloadLink:
        """Return the connection on which the body comes next, after retries and redirects."""
        step: object = self._run.first_connection()
        while isinstance(step, Connect):
            if step.pause_s:
                await self._context.pace.wait_for_peer(step.pause_s)
            try:
                link = await self._connect(step.address)
            except NoConnection as failure:
                self._context.tell(EventKind.BREAK, f"attempt {step.attempt}: {failure}")
                step = self._run.connection_failed(str(failure))
                continue
            try:
                head = await link.get()
                step = self._run.answered(head.status, head.headers)
            except BaseException:
                await link.close()
                raise
            if not isinstance(step, Connect | Refusal):
                return link
            await link.close()
        assert isinstance(step, Refusal)
        raise ExchangeFailed(step.failure, step.found)

    async def _take_body(self, link: DownloadLink, writer: EspFrameWriter) -> None:
        while True:
            data = await link.next_frame(self._chunk_limit_s)
            if data is None:
                break
            before = self._run.received
            use = self._run.frame(len(data))
            if isinstance(use, Refusal):
                raise ExchangeFailed(use.failure, use.found)
            if use is FrameUse.READ_HEADER_AND_WRITE:
                self._tell_header(data)
            await writer.write(data)
            self._digest.update(data)
            self._tell_quarters(before)
        refusal = self._run.ended()
        if refusal is not None:
            raise ExchangeFailed(refusal.failure, refusal.found)

    async def _select(self) -> None:
        """Choose the slot, then store the tag and read it back; a cut in between costs a second download."""
        ImageNotes(self._context.nvs).add(ImageNote("", self._run.received, self._digest.hexdigest()))
        self._slots.set_boot(self._slot)
        await self._context.pace.pay()
        nvs = self._slots.nvs
        if nvs is None:
            raise ExchangeFailed(Failure.TAG, "the partition table has no nvs partition")
        nvs.set_string(NVS_NAMESPACE, NVS_VERSION_KEY, self._service.version)
        stored = nvs.get_string(NVS_NAMESPACE, NVS_VERSION_KEY)
        if update_needed(stored, self._service.version):
            raise ExchangeFailed(Failure.TAG, _shown(stored or ""))
        await self._context.pace.pay()
        self._context.tell(
            EventKind.INSTALLED,
            f"{self._run.received} bytes in {self._slot}, chosen for the next boot;"
            f" version {_shown(self._service.version)} in NVS",
            slot=self._slot,
        )

    def _tell_header(self, frame: bytes) -> None:
        """Tell what the frame says of the image, as the device logs it; whether it is true is not looked at."""
        raw = frame[APP_DESC_FILE_OFFSET:]
        if has_app_desc(raw):
            description = parse_app_desc(raw)
            text = clean_text(f"the image says that it is {description.project} {description.version}")
            self._context.tell(EventKind.PROGRESS, text, done=0, of=self._run.content_length)

    def _tell_quarters(self, before: int) -> None:
        size, done = self._run.content_length, self._run.received
        if size and before * 4 // size != done * 4 // size and done < size:
            self._context.tell(EventKind.PROGRESS, f"{done * 100 // size} %", done=done, of=size)


def _stored_version(slots: EspSlots) -> str | None:
    """Return the version in NVS; what cannot be read counts as nothing stored, as on the device."""
    if slots.nvs is None:
        return None
    try:
        return slots.nvs.get_string(NVS_NAMESPACE, NVS_VERSION_KEY)
    except NvsError:
        return None


def _shown(version: str) -> str:
    return repr(clean_text(version, max_len=64))
