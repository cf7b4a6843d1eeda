"""What a gateway remembers of its devices over its own death: one small file a device, replaced atomically.

A record is on the disk before the step that it announces begins. Source: docs/reference/gateway.md, "Journal".
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from flota.durable_files import PRIVATE_FILE_MODE, remove_partial_files, write_durably
from flota.errors import Conflict, FlotaError
from flota.gateway.update_states import Happening, Stage, next_stage

SCHEMA: Final = 1
ENTRY_MAX_BYTES: Final = 64 * 1024
LOCK_NAME: Final = "gateway.lock"
DEVICES_DIRECTORY: Final = "devices"


class DamagedJournal(FlotaError):
    """A device's file cannot be read. The device is not pushed to until a person has looked."""

    code = "damaged-journal"


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """One action of the server for one device. Sizes in bytes; times are ISO 8601 in UTC; `basis` of the verdict."""

    action_id: int
    stage: Stage
    version: str
    size: int
    sha256: str
    offered_at: str
    sequence: int = 0
    manifest_sha256: str | None = None
    attempts: int = 0
    sent_at: str | None = None
    success: bool = False
    basis: str = ""
    reason: str = ""

    def after(self, happening: Happening) -> UpdateRecord:
        """Return the record at its next stage. Raises `WrongHappening`."""
        return replace(self, stage=next_stage(self.stage, happening))


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """What is remembered of a device: its update, and the release that it was last seen to run.

    `accepted_sequence` is 0 until a release succeeded; an older one is refused from then on.
    """

    device: str
    update: UpdateRecord | None = None
    accepted_version: str | None = None
    accepted_sequence: int = 0
    accepted_manifest_sha256: str | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    entry: DeviceEntry


_DECODER: Final = msgspec.json.Decoder(_File)


class Journal:
    """The entries of all devices, below `directory`. `clean`: remove what an interrupted writer left there."""

    def __init__(self, directory: Path, *, clean: bool = True) -> None:
        self._directory = directory / DEVICES_DIRECTORY
        if clean:
            self._directory.mkdir(parents=True, exist_ok=True)
            remove_partial_files(self._directory)

    def load(self, device: str) -> DeviceEntry:
        """Return what is remembered of a device, an empty entry if nothing is. Raises `DamagedJournal`."""
        path = self.path(device)
        entry = self._read(path) or DeviceEntry(device)
        if entry.device != device:
            raise DamagedJournal(f"{path} is of another device", expected=repr(device), found=repr(entry.device)[:160])
        return entry

    def _read(self, path: Path) -> DeviceEntry | None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedJournal(f"cannot read {path}", found=error.strerror or str(error)) from error
        try:
            found = _DECODER.decode(data[: ENTRY_MAX_BYTES + 1])
        except (msgspec.MsgspecError, ValueError) as error:
            raise DamagedJournal(
                f"{path} is no journal of a device",
                found=str(error)[:200],
                hint="Look at it; remove it only if you know what the device runs.",
            ) from error
        if found.schema != SCHEMA:
            raise DamagedJournal(f"{path} is of another version of Flota", expected=SCHEMA, found=found.schema)
        return found.entry

    def all(self) -> list[DeviceEntry]:
        """Return every device's entry, by name. Raises `DamagedJournal` for the first that cannot be read."""
        found = [self._read(path) for path in self._directory.glob("*.json")]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.device)

    async def save(self, entry: DeviceEntry) -> None:
        """Put an entry on the disk; when this returns it survives a power cut. Raises `StorageFull`."""
        packed = msgspec.json.format(msgspec.json.encode(_File(SCHEMA, entry)), indent=1)
        await asyncio.to_thread(write_durably, self.path(entry.device), packed + b"\n", mode=PRIVATE_FILE_MODE)

    def path(self, device: str) -> Path:
        """Return a device's file; its name is a digest, since names may be longer than file names."""
        return self._directory / f"{hashlib.sha256(device.encode()).hexdigest()[:32]}.json"


@contextlib.contextmanager
def one_gateway(directory: Path) -> Iterator[None]:
    """Hold the state directory inside the block. Raises `Conflict` if another gateway uses it."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE_MODE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict(
                f"another gateway uses {directory}", hint="Stop it first, or give this one a directory of its own."
            ) from error
        yield
    finally:
        os.close(descriptor)
