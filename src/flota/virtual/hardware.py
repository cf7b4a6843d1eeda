"""What the device shell needs of a board's hardware, and the notes that agents leave about installed images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from flota.virtual.nvs import NonVolatileStore, Value
from flota.virtual.slots import DeviceSlots, RunningApp

NOTES_KEY: Final = "images"
NOTES_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class BootReport:
    """How one boot went: the app that started (None: nothing boots), its slots, and the images that were refused."""

    app: RunningApp | None
    slots: DeviceSlots | None
    refused: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    """What the boot loader wrote, as text."""
    console: tuple[str, ...] = ()
    """The lines that the boot loader printed."""


class Hardware(Protocol):
    """A board under power."""

    def power_on(self) -> None:
        """Give power back after a cut."""

    def power_off(self) -> None:
        """Take the power away; what touches flash next does not come back."""

    def boot(self) -> BootReport:
        """Run the boot loader once."""

    def close(self) -> None:
        """Let go of the files."""


@dataclass(frozen=True, slots=True)
class ImageNote:
    """What an installer knew of a file: version, size in bytes, lower-case hex SHA-256."""

    version: str
    size: int
    sha256: str


class ImageNotes:
    """The last few images installed, by SHA-256: formats without a version of their own get theirs from here."""

    def __init__(self, nvs: NonVolatileStore) -> None:
        self._nvs = nvs

    def add(self, note: ImageNote) -> None:
        """Remember an image; the oldest of more than four is forgotten."""
        notes = [old for old in self.all() if old.sha256 != note.sha256][-(NOTES_MAX - 1) :]
        values: list[Value] = [
            {"version": each.version, "size": each.size, "sha256": each.sha256} for each in (*notes, note)
        ]
        self._nvs.set(NOTES_KEY, values)

    def all(self) -> tuple[ImageNote, ...]:
        """Return the notes, oldest first."""
        values = self._nvs.get(NOTES_KEY)
        if not isinstance(values, list):
            return ()
        return tuple(
            ImageNote(str(value["version"]), int(str(value["size"])), str(value["sha256"]))
            for value in values
            if isinstance(value, dict)
        )

    def version_of(self, sha256: str) -> str | None:
        """Return the version under which that file was installed."""
        return next((note.version for note in self.all() if note.sha256 == sha256), None)
