"""What an app sees of an M487: one place to run from. Staging, backup and flags are its PAL's business."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flota.images.nuvoton.flash_map import APP_SIZE
from flota.virtual.slots import BadImage, RunningApp, SlotState, SlotWriter

if TYPE_CHECKING:
    from flota.virtual.nuvoton_board import M487Hardware


class M487Slots:
    """The slots of an M487; updates go through `NvtblPal` only."""

    def __init__(self, hardware: M487Hardware, app: RunningApp) -> None:
        self.hardware = hardware
        self._app = app

    @property
    def running(self) -> RunningApp:
        """The app that runs."""
        return self._app

    @property
    def rolls_back(self) -> bool:
        """Whether the boot programs restore a backup."""
        return self.hardware.profile is not None and self.hardware.profile.value == "rollback"

    def next_slot(self) -> str:
        """Return where a new image is staged."""
        return "staging"

    def capacity(self, slot: str) -> int:
        """Return how large an app may be (bytes)."""
        return APP_SIZE

    async def begin(self, slot: str, size: int) -> SlotWriter:
        """Raise: an M487 is updated by its PAL."""
        raise BadImage("an M487 is written by its OTA platform layer only", found=slot)

    async def resume(self, slot: str, size: int, written: int) -> SlotWriter:
        """Raise: nothing is resumed after a reset."""
        raise BadImage("an M487's download is not resumed", found=slot)

    def read(self, slot: str, length: int) -> bytes:
        """Return the first `length` bytes of a place."""
        return self.hardware.slot_content(slot)[:length]

    def chosen(self) -> str | None:
        """Return the only place that anything runs from."""
        return self._app.slot

    def set_boot(self, slot: str) -> None:
        """Raise: the descriptor decides."""
        raise BadImage("an M487 has no boot record but its OTA descriptor", found=slot)

    def confirm(self) -> None:
        """Nothing: the agent commits through its PAL."""

    def reject(self) -> None:
        """Raise: the agent rejects through its PAL."""
        raise BadImage("an M487's image is rejected by its OTA platform layer only", found=self._app.slot)

    def state_of(self, slot: str) -> SlotState | None:
        """Return nothing: the descriptor speaks of one image, `NvtblPal.image_state` reads it."""
        return None
