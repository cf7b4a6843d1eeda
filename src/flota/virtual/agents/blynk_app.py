"""The app of a primary MCU: finds its NCP, tests and confirms itself, decides about offers, and takes updates.

With two banks the stream goes into the other bank and on trial; with one, a record is written for the boot loader,
which fetches the image. Source: docs/reference/blynk.md, "What the MCU does" and "Virtual boards".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from flota.errors import FlotaError
from flota.protocols.blynk.catalogue import PrefetchStatus
from flota.protocols.blynk.mcu import LinkUp, McuEvent, McuSettings
from flota.protocols.blynk.mcu_states import (
    ChunkArrived,
    Discarded,
    McuState,
    Offer,
    OfferMade,
    PrefetchEnded,
    ReceivingBegan,
    VerifyImage,
)
from flota.protocols.blynk.ncp import LinkCommand
from flota.versions import version_order
from flota.virtual.agents.blynk_firmware import (
    APPLY_AFTER_S,
    Conditions,
    McuBuild,
    McuFirmware,
    Tell,
    why_wrong,
)
from flota.virtual.boot.dual_bank import REFERENCE_TRIAL_BOOTS
from flota.virtual.boot.ncp_assisted import WantedImage, fits_the_record
from flota.virtual.device import Behaviour, behaviour_of
from flota.virtual.dual_bank_board import DualBankSlots
from flota.virtual.dual_mcu_flash import StreamWriter, firmware_info_of
from flota.virtual.events import EventKind
from flota.virtual.one_bank_board import OneBankSlots
from flota.virtual.slots import ResetReason

LOOK_EVERY_S: Final = 1.0
"""Between looks at battery and moment while an update waits for them."""
SUSPEND_S: Final = 300
PREFETCH_AGAIN_S: Final = 60.0
DEFAULT_TEMPLATE: Final = "TMPL00000000"

Slots = DualBankSlots | OneBankSlots


class McuApp(McuFirmware):
    """One life of the app in `slots.running`. `on_confirmed` is called when it is sure of itself."""

    def __init__(
        self,
        slots: Slots,
        build: McuBuild,
        conditions: Conditions,
        *,
        tell: Tell,
        now: float,
        on_confirmed: Callable[[], None] = lambda: None,
    ) -> None:
        app = slots.running
        self.info = firmware_info_of(slots.read(app.slot, app.size), app.version)
        one_bank = isinstance(slots, OneBankSlots)
        settings = McuSettings(
            self.info,
            template_id=self.info.fw_type or DEFAULT_TEMPLATE,
            template_name=build.template_name,
            raises_to=build.raises_to,
            bauds=build.bauds,
            asks_prefetch=build.prefetches,
            policy=build.policy(asks_digests_early=one_bank),
            like_the_driver=build.is_strict,
        )
        super().__init__(settings, build, slots.hardware.time, tell, now=now)
        if build.is_strict and isinstance(slots, DualBankSlots):
            slots.hardware.trial_boots = REFERENCE_TRIAL_BOOTS
        self._slots = slots
        self._conditions = conditions
        self._on_confirmed = on_confirmed
        self._behaviour = behaviour_of(app)
        self._on_trial = app.awaits_confirmation
        self._writer: StreamWriter | None = None
        self._offer: Offer | None = None
        self._wanted: WantedImage | None = None
        self._suspended = False
        self._begin_trial(now)

    def link_commands(self) -> list[LinkCommand]:
        """Return what is to be done with the line; an app that loses the network says nothing."""
        commands = super().link_commands()
        return [] if self._behaviour is Behaviour.LOSE_NETWORK else commands

    # --- trial --------------------------------------------------------------------------------------------------------

    def _begin_trial(self, now: float) -> None:
        if not self._on_trial:
            if isinstance(self._slots, DualBankSlots):
                self._on_confirmed()
            return
        self._tell(EventKind.SELF_TEST, f"self-test of version {self.info.version}", version=self.info.version)
        if self._build.is_strict and self._behaviour is not Behaviour.NEVER_CONFIRM:
            self._confirm()  # as the vendor's reference does it at the start of main(), before anything is known
        elif self._behaviour is Behaviour.FAIL_SELF_TEST:
            self._reject("failed its self-test", now)
        else:
            self._after(self._build.confirm_window_s, now, self._window_over)

    def _window_over(self, now: float) -> None:
        if not self._on_trial:
            return
        text = f"version {self.info.version} did not confirm itself within {self._build.confirm_window_s:g} s"
        self._tell(EventKind.TROUBLE, text)
        self._end(ResetReason.WATCHDOG, text)

    def _confirm(self) -> None:
        if self._on_trial:
            self._slots.confirm()
            self._on_trial = False
            text = f"version {self.info.version} confirmed itself"
            self._tell(EventKind.CONFIRMED, text, version=self.info.version, slot=self._slots.running.slot)
        self._slots.confirm()
        self._on_confirmed()

    def _reject(self, why: str, now: float) -> None:
        text = f"version {self.info.version} {why}"
        try:
            self._slots.reject()
        except FlotaError as error:
            self._tell(EventKind.TROUBLE, f"cannot roll back: {error}")
            return
        self._tell(EventKind.REJECTED, f"version {self.info.version} rejected itself", version=self.info.version)
        self._restart_at(now, ResetReason.SOFTWARE, text)

    # --- what the machine says ----------------------------------------------------------------------------------------

    def _happened(self, event: McuEvent, now: float) -> Sequence[McuEvent]:
        if isinstance(event, LinkUp):
            self._tell(EventKind.POLL, f"the NCP answers at {event.baud} baud", baud=event.baud)
            if self._behaviour is not Behaviour.NEVER_CONFIRM or not self._on_trial:
                self._confirm()
        elif isinstance(event, OfferMade):
            return self._offered(event.offer, now)
        elif isinstance(event, PrefetchEnded):
            self._prefetched(event, now)
        elif isinstance(event, ReceivingBegan):
            self._tell(EventKind.PROGRESS, "the stream begins", done=0, of=event.size)
            self._open(event.size, now)
        elif isinstance(event, ChunkArrived):
            return self._chunk(event, now)
        elif isinstance(event, VerifyImage):
            return self._verify(event, now)
        elif isinstance(event, Discarded):
            self._writer, self._suspended = None, False
            self._tell(EventKind.UPDATE_FAILED, f"update discarded: {event.reason}")
        return ()

    # --- the offer ----------------------------------------------------------------------------------------------------

    def why_not(self, offer: Offer) -> str | None:
        """Return why an offer is declined, None if it is taken. The vendor's reference looks at the size alone."""
        room = self._slots.capacity(self._slots.next_slot())
        if self._conditions.room_bytes is not None:
            room = min(room, self._conditions.room_bytes)
        if not 0 < offer.size <= room:
            return f"{offer.size} bytes do not fit: there is room for {room}"
        if self._build.is_strict:
            return None
        if offer.fw_type and self.info.fw_type and offer.fw_type != self.info.fw_type:
            return f"it is of type {offer.fw_type}, this device runs {self.info.fw_type}"
        if offer.version and offer.version == self.info.version:
            return f"version {offer.version} runs already"
        both_known = bool(offer.version and self.info.version)
        if both_known and not self._build.takes_downgrades:
            older = version_order(offer.version) < version_order(self.info.version)
            if older:
                return f"version {offer.version} is older than {self.info.version}"
        if self._on_trial:
            return f"version {self.info.version} has not confirmed itself yet"
        if isinstance(self._slots, OneBankSlots) and not (
            fits_the_record(offer.fw_type) and fits_the_record(offer.version)
        ):
            return "its type or version does not fit the boot record"
        return None

    def _offered(self, offer: Offer, now: float) -> Sequence[McuEvent]:
        why = self.why_not(offer)
        if why is not None:
            self._tell(EventKind.OFFER, f"declined: {why}", version=offer.version)
            return self.mcu.decline(now=now)
        self._tell(EventKind.OFFER, f"version {offer.version}, {offer.size} bytes", version=offer.version)
        self._offer, self._wanted, self._writer = offer, None, None
        if self._build.is_strict and isinstance(self._slots, DualBankSlots):
            return self._accept_and_erase(offer, now)
        events = list(self.mcu.accept(now=now))
        return [*events, *self._fetch(now)]

    def _accept_and_erase(self, offer: Offer, now: float) -> Sequence[McuEvent]:
        """Erase the bank inside the call, as the vendor's reference for Zephyr does; a large one takes too long."""
        self._open(offer.size, now)
        assert self._writer is not None
        self._writer.erase_all()

        def accept(later: float) -> None:
            if self._offer is offer and self.mcu.update.state is McuState.ASKED:
                self._take([*self.mcu.accept(now=later), *self._fetch(later)], later)

        self._after(self._flash_s(), now, accept)
        return ()

    def _fetch(self, now: float) -> Sequence[McuEvent]:
        if self.mcu.update.state is not McuState.PREPARE:
            return ()
        if self._build.prefetches and self.mcu.ncp_prefetches:
            return self.mcu.prefetch(now=now)
        if isinstance(self._slots, OneBankSlots):
            self._tell(EventKind.TROUBLE, "this NCP cannot prefetch: a boot loader cannot rely on it")
            return ()
        return self._begin_when_right(now)

    def _prefetched(self, event: PrefetchEnded, now: float) -> None:
        if isinstance(self._slots, DualBankSlots):
            self._take(self._begin_when_right(now), now)
            return
        digests, offer = event.digests, self._offer
        if event.status is not PrefetchStatus.DONE or digests.sha256 is None or digests.crc32 is None or offer is None:
            self._tell(EventKind.TROUBLE, f"the NCP could not prefetch: {event.status.name.lower()}; the app runs on")
            self._after(PREFETCH_AGAIN_S, now, lambda later: self._take(self._fetch(later), later))
            return
        self._wanted = WantedImage(offer.size, digests.crc32, digests.sha256)
        self._take(self._begin_when_right(now), now)

    # --- the moment ---------------------------------------------------------------------------------------------------

    def why_wait(self) -> str | None:
        """Return why now is not the moment to begin, None if it is. The vendor's reference never waits."""
        if self._build.is_strict:
            return None
        if self._conditions.battery_percent < self._build.battery_floor_percent:
            return f"the battery is at {self._conditions.battery_percent} %"
        return "the device is busy" if self._conditions.is_busy else None

    def _begin_when_right(self, now: float) -> Sequence[McuEvent]:
        if self.mcu.update.state is not McuState.PREPARE:
            return ()
        why = self.why_wait()
        if why is None:
            events: list[McuEvent] = []
            if self._suspended:
                self._suspended = False
                events += self.mcu.suspend(0, now=now)
            if isinstance(self._slots, OneBankSlots):
                self._hand_over(self._slots, now)
                return events
            return [*events, *self.mcu.begin(now=now)]
        self._after(LOOK_EVERY_S, now, lambda later: self._take(self._begin_when_right(later), later))
        if not self._suspended:
            self._tell(EventKind.OFFER, f"the update waits: {why}")
            if self._build.suspends:
                self._suspended = True
                self._after(SUSPEND_S - LOOK_EVERY_S, now, self._suspend_again)
                return self.mcu.suspend(SUSPEND_S, now=now)
        return ()

    def _suspend_again(self, now: float) -> None:
        self._suspended = False

    def _hand_over(self, slots: OneBankSlots, now: float) -> None:
        """Leave word for the boot loader, and restart into it."""
        assert self._wanted is not None
        assert self._offer is not None
        record = slots.hardware.record.pending(
            self._wanted, baud=self.mcu.baud, fw_type=self.info.fw_type, version=self._offer.version
        )
        slots.hardware.write_record(record)
        self._tell(EventKind.INSTALLED, f"the boot loader is to fetch version {self._offer.version}")
        self._restart_at(now + APPLY_AFTER_S, ResetReason.SOFTWARE, "into the boot loader")

    # --- the stream ---------------------------------------------------------------------------------------------------

    def _open(self, size: int, now: float) -> None:
        if self._build.is_strict and self._writer is not None and not self._writer.received:
            return
        self._writer = None
        self._told_percent = 0
        if isinstance(self._slots, DualBankSlots):
            self._writer = self._slots.open_stream(size)
            if not self._build.is_strict:
                self._after(LOOK_EVERY_S, now, self._watch_moment)

    def _watch_moment(self, now: float) -> None:
        """Suspend a stream while the moment is wrong, and let it go on when it is right again."""
        if self._writer is None or not self._is_receiving:
            return
        self._after(LOOK_EVERY_S, now, self._watch_moment)
        if self._conditions.is_busy and not self._suspended:
            self._suspended = True
            self._after(SUSPEND_S - 2 * LOOK_EVERY_S, now, self._suspend_again)
            self._tell(EventKind.OFFER, "the stream waits: the device is busy")
            self._take(self.mcu.suspend(SUSPEND_S, now=now), now)
        elif self._suspended and not self._conditions.is_busy:
            self._suspended = False
            self._take(self.mcu.suspend(0, now=now), now)

    def _chunk(self, event: ChunkArrived, now: float) -> Sequence[McuEvent]:
        writer = self._writer
        if writer is None or event.offset != writer.received:
            return self.mcu.chunk_stored(False, now=now)
        writer.write(event.data)
        self._tell_progress(writer.received, writer.size)
        return self._store(True, now)

    def _verify(self, event: VerifyImage, now: float) -> Sequence[McuEvent]:
        writer = self._writer
        assert isinstance(self._slots, DualBankSlots)
        if writer is None or writer.received != event.size:
            return self.mcu.verified(False, now=now)
        wrong = why_wrong(writer.content(), event.digests)
        if wrong is not None:
            self._tell(EventKind.UPDATE_FAILED, f"the image is wrong: its {wrong} is not the NCP's")
            return self.mcu.verified(False, now=now)
        self._slots.try_image(writer)
        self._writer = None
        self._tell(EventKind.INSTALLED, f"{event.size} bytes in bank {self._slots.next_slot()}, on trial")
        return self.mcu.verified(True, now=now)
