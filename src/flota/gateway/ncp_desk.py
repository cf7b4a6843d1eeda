"""What the two sides of an NCP share: what it was told, what it remembers, the machine on its line, the log.

Source: docs/reference/blynk.md, "flota ncp run".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from flota.errors import StorageFull
from flota.gateway.ncp_journal import NcpJournal, NcpRecord
from flota.gateway.ncp_settings import NcpRunSettings
from flota.gateway.ncp_update_desk import with_verdict
from flota.protocols.blynk.ncp import Ncp, NcpSettings
from flota.protocols.blynk.ncp_job import JobEnded, Outcome
from flota.protocols.peer_text import clean_text
from flota.transports.uart import MachineOnLine

TEXT_MAX_LEN: Final = 400

_log = structlog.get_logger(__name__)


class NcpDesk:
    """One NCP's common ground; `handle` takes the events of its machine. Raises `DamagedJournal`."""

    def __init__(self, settings: NcpRunSettings, journal: NcpJournal, handle: Callable[[object], None]) -> None:
        self.settings = settings
        self.device = settings.adopted()
        self.record = journal.load(settings.device)
        self.image = b""
        """The file of the job in hand."""
        self.progress = 0
        """Bytes of it that the MCU has."""
        self.wake = asyncio.Event()
        """Set when there is something to tell the server, or to ask it."""
        self.ncp = Ncp(
            NcpSettings(
                initial_baud=settings.baud,
                bauds=settings.bauds(),
                announces_start=False,
                boot_loader_after_s=settings.boot_loader_after_s,
                update=settings.update_settings(),
            ),
            now=asyncio.get_running_loop().time(),
        )
        self.line = MachineOnLine(self.ncp, handle, on_trouble=lambda text: self.say("line-trouble", text))
        self._journal = journal
        self._said: str | None = None

    def change(self, record: NcpRecord) -> None:
        """Remember, on the disk when this returns; a full disk is told and changes nothing else."""
        self.record = record
        try:
            self._journal.save(record)
        except StorageFull as error:
            self.say_once("storage-full", str(error))

    def job_ended(self, event: JobEnded) -> None:
        """Remember the verdict about the job in hand; the server is told next."""
        succeeded = event.outcome is Outcome.SUCCEEDED
        if self.record.job is not None:
            self.change(
                with_verdict(self.record, outcome=event.outcome.value, reason=event.reason, succeeded=succeeded)
            )
        self.say("verdict", event.reason, outcome=event.outcome.value)
        self.wake.set()

    def say(self, what: str, text: str, **facts: object) -> None:
        """Log something that happened."""
        self._said = None
        _log.info(f"ncp.{what}", device=self.settings.device, text=clean_text(text, max_len=TEXT_MAX_LEN), **facts)

    def say_once(self, what: str, text: str) -> None:
        """Log something that may go on for hours only when it begins."""
        if self._said != what:
            self._said = what
            _log.info(f"ncp.{what}", device=self.settings.device, text=clean_text(text, max_len=TEXT_MAX_LEN))
