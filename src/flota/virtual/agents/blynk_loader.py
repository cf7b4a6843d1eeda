"""The boot loader of an MCU with one bank: fetches from the NCP what its record names, for ever; or takes an offer.

Source: docs/reference/blynk.md, "Virtual boards".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from flota.protocols.blynk.catalogue import NcpState, PrefetchStatus
from flota.protocols.blynk.mcu import LinkUp, McuEvent, McuSettings, NcpStateTold
from flota.protocols.blynk.mcu_states import (
    ChunkArrived,
    Discarded,
    McuPolicy,
    McuState,
    Offer,
    OfferMade,
    PrefetchEnded,
    ReceivingBegan,
    VerifyImage,
)
from flota.protocols.blynk.ncp_job import FirmwareInfo
from flota.virtual.agents.blynk_firmware import McuBuild, McuFirmware, Tell, why_wrong
from flota.virtual.boot.ncp_assisted import BootWay, FetchState, WantedImage, fits_the_record
from flota.virtual.dual_mcu_flash import StreamWriter, crc32_of, sha256_of
from flota.virtual.events import EventKind
from flota.virtual.one_bank_board import APP_SLOT, OneBankSlots
from flota.virtual.slots import ResetReason

BACK_OFF_FIRST_S: Final = 1.0
BACK_OFF_MAX_S: Final = 30.0
PENDING_LIMIT_S: Final = 120.0
"""Without a stream for so long, a boot loader whose app is still there goes back to it."""
LISTEN_S: Final = 120.0
"""So long it waits for an offer before it tries an app again that did not live."""


class NcpLoader(McuFirmware):
    """One stay in the boot loader; ends by a restart, into the new app when it is complete."""

    def __init__(self, slots: OneBankSlots, build: McuBuild, *, tell: Tell, now: float) -> None:
        record = slots.hardware.record
        # What is careful stays careful here: a boot loader that gave up would leave a device without an app.
        policy = replace(McuPolicy(chunk=build.chunk), repeats_are_taken=not build.is_strict, asks_digests_early=True)
        settings = McuSettings(
            FirmwareInfo(record.fw_type),
            raises_to=record.baud or build.raises_to,
            bauds=build.bauds,
            is_boot_loader=True,
            policy=policy,
            like_the_driver=build.is_strict,
        )
        super().__init__(settings, build, slots.hardware.time, tell, now=now)
        self._slots = slots
        self._writer: StreamWriter | None = None
        self._offer: Offer | None = None
        self._back_off_s = BACK_OFF_FIRST_S
        if slots.way is BootWay.LISTEN and record.app is not None:
            self._after(LISTEN_S, now, self._try_app_again)
        elif record.state is FetchState.PENDING:
            self._after(PENDING_LIMIT_S, now, self._pending_too_long)

    # --- what the machine says ----------------------------------------------------------------------------------------

    def _happened(self, event: McuEvent, now: float) -> Sequence[McuEvent]:
        if isinstance(event, LinkUp):
            self._tell(EventKind.SERIAL, f"boot loader: the NCP answers at {event.baud} baud", baud=event.baud)
            return self._ask(now)
        if isinstance(event, NcpStateTold):
            self._ncp_told(event.state)
            return ()
        if isinstance(event, OfferMade):
            return self._offered(event.offer, now)
        if isinstance(event, PrefetchEnded):
            return self._prefetched(event, now)
        if isinstance(event, ReceivingBegan):
            self._begin(event.size)
        elif isinstance(event, ChunkArrived):
            return self._chunk(event, now)
        elif isinstance(event, VerifyImage):
            return self._verify(event, now)
        elif isinstance(event, Discarded):
            self._writer = None
            self._tell(EventKind.SERIAL, f"boot loader: {event.reason}; again in {self._back_off_s:g} s")
            self._ask_later(now)
        return ()

    def _ncp_told(self, state: int) -> None:
        """Begin anew if the NCP has restarted in the middle of the stream: it is not going to send the rest."""
        if state == NcpState.NOT_INITIALIZED and self._writer is not None and self._writer.received:
            self._end(ResetReason.SOFTWARE, "the NCP has restarted; the boot loader begins anew")

    def _ask(self, now: float) -> Sequence[McuEvent]:
        """Ask for the stream that the record names, unless something is under way."""
        wanted = self._slots.hardware.record.wanted
        if wanted is None or self.mcu.update.state is not McuState.IDLE:
            return ()
        return self.mcu.resume(wanted.size, now=now)

    def _ask_later(self, now: float) -> None:
        self._after(self._back_off_s, now, lambda later: self._take(self._ask(later), later))
        self._back_off_s = min(2 * self._back_off_s, BACK_OFF_MAX_S)

    # --- an offer, when the record names nothing that can be had ------------------------------------------------------

    def why_not(self, offer: Offer) -> str | None:
        """Return why an offer is declined, None if it is taken."""
        room, own = self._slots.capacity(APP_SLOT), self._slots.hardware.record.fw_type
        if not 0 < offer.size <= room:
            return f"{offer.size} bytes do not fit: there is room for {room}"
        if offer.fw_type and own and offer.fw_type != own:
            return f"it is of type {offer.fw_type}, this device is {own}"
        if not (fits_the_record(offer.fw_type) and fits_the_record(offer.version)):
            return "its type or version does not fit the boot record"
        return None

    def _offered(self, offer: Offer, now: float) -> Sequence[McuEvent]:
        why = self.why_not(offer)
        if why is not None:
            self._tell(EventKind.OFFER, f"boot loader: declined: {why}", version=offer.version)
            return self.mcu.decline(now=now)
        self._tell(EventKind.OFFER, f"boot loader: version {offer.version}, {offer.size} bytes", version=offer.version)
        self._offer, self._writer = offer, None
        events = list(self.mcu.accept(now=now))
        if self.mcu.update.state is McuState.PREPARE:
            events += self.mcu.prefetch(now=now)
        return events

    def _prefetched(self, event: PrefetchEnded, now: float) -> Sequence[McuEvent]:
        offer, digests = self._offer, event.digests
        known = event.status is PrefetchStatus.DONE and digests.sha256 is not None and digests.crc32 is not None
        if not known or offer is None or self.mcu.update.state is not McuState.PREPARE:
            self._tell(EventKind.SERIAL, "boot loader: the NCP does not have the file; it will offer it again")
            return ()
        assert digests.sha256 is not None
        assert digests.crc32 is not None
        wanted = WantedImage(offer.size, digests.crc32, digests.sha256)
        record = self._slots.hardware.record
        if record.wanted != wanted:
            self._slots.hardware.write_record(
                record.pending(wanted, baud=self.mcu.baud, fw_type=offer.fw_type, version=offer.version)
            )
        return self.mcu.begin(now=now)

    # --- the stream ---------------------------------------------------------------------------------------------------

    def _begin(self, size: int) -> None:
        record = self._slots.hardware.record
        if record.state is not FetchState.WRITING:
            self._slots.hardware.write_record(record.writing())  # before the first erase
        self._writer = self._slots.open_stream(size)
        self._told_percent = 0
        self._tell(EventKind.PROGRESS, "boot loader: the stream begins", done=0, of=size)

    def _chunk(self, event: ChunkArrived, now: float) -> Sequence[McuEvent]:
        writer = self._writer
        if writer is None or event.offset != writer.received:
            return self.mcu.chunk_stored(False, now=now)
        writer.write(event.data)
        self._back_off_s = BACK_OFF_FIRST_S
        self._tell_progress(writer.received, writer.size)
        return self._store(True, now)

    def _verify(self, event: VerifyImage, now: float) -> Sequence[McuEvent]:
        record, writer = self._slots.hardware.record, self._writer
        data = b"" if writer is None or writer.received != event.size else writer.content()
        wanted = record.wanted
        wrong = why_wrong(data, event.digests)
        if wanted is None or sha256_of(data) != wanted.sha256.hex() or crc32_of(data) != wanted.crc32:
            wrong = wrong or "digest"
        if wrong is not None:
            self._tell(EventKind.UPDATE_FAILED, f"boot loader: the image is wrong: its {wrong} is not the right one")
            return self.mcu.verified(False, now=now)
        self._slots.hardware.write_record(record.done())
        self._slots.hardware.crashes = 0
        self._writer = None
        self._tell(EventKind.INSTALLED, f"boot loader: {event.size} bytes verified")
        return self.mcu.verified(True, now=now)

    # --- giving up, where there is something to go back to ------------------------------------------------------------

    def _pending_too_long(self, now: float) -> None:
        record = self._slots.hardware.record
        if record.state is FetchState.PENDING and not self._is_receiving:
            self._slots.hardware.write_record(record.abandoned())
            self._end(ResetReason.SOFTWARE, "the NCP does not send the image; back to the app, which is untouched")

    def _try_app_again(self, now: float) -> None:
        if self.mcu.update.state is McuState.IDLE:
            self._slots.hardware.crashes = 0
            self._end(ResetReason.SOFTWARE, "no offer came; the app is tried again")
        else:
            self._after(LISTEN_S, now, self._try_app_again)
