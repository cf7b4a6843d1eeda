"""What an NCP remembers over its own death: its one job, how far it was, and the release that was last seen to run.

Source: docs/reference/blynk.md, "What is kept".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from flota.durable_files import PRIVATE_FILE_MODE, remove_partial_files, write_durably
from flota.gateway.journal import DamagedJournal
from flota.gateway.ncp_fetches import FailedFetches
from flota.protocols.blynk.ncp_states import UpdateState

SCHEMA: Final = 1
RECORD_MAX_BYTES: Final = 64 * 1024
FILE_NAME: Final = "ncp.json"


@dataclass(frozen=True, slots=True)
class NcpJob:
    """One action of the server. `size` in bytes; `outcome` is empty until the verdict is given, then `told` follows.

    `was_accepted`: the MCU took the offer once, so its boot loader may come back for the file.
    """

    action_id: int
    state: UpdateState
    filename: str
    size: int
    sha256: str
    fw_type: str
    version: str
    build: str
    sequence: int = 0
    manifest_sha256: str | None = None
    was_accepted: bool = False
    outcome: str = ""
    reason: str = ""
    told: bool = False


@dataclass(frozen=True, slots=True)
class NcpRecord:
    """Everything that is kept. `accepted_sequence` is 0 until a release succeeded; an older one is refused then."""

    device: str
    job: NcpJob | None = None
    runs_version: str | None = None
    runs_type: str | None = None
    accepted_version: str | None = None
    accepted_sequence: int = 0
    accepted_manifest_sha256: str | None = None
    failed_fetches: FailedFetches | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    record: NcpRecord


_DECODER: Final = msgspec.json.Decoder(_File)


class NcpJournal:
    """One small file in the state directory, replaced atomically. `clean`: remove what an interrupted writer left."""

    def __init__(self, directory: Path, *, clean: bool = True) -> None:
        self._path = directory / FILE_NAME
        if clean:
            directory.mkdir(parents=True, exist_ok=True)
            remove_partial_files(directory)

    def load(self, device: str) -> NcpRecord:
        """Return what is kept of the device, an empty record if nothing is. Raises `DamagedJournal`."""
        found = self.read()
        if found is None:
            return NcpRecord(device)
        if found.device != device:
            raise DamagedJournal(
                f"{self._path} is of another device",
                expected=repr(device),
                found=repr(found.device)[:160],
                hint="Give each NCP a state directory of its own.",
            )
        return found

    def read(self) -> NcpRecord | None:
        """Return what is kept, None if nothing is. Raises `DamagedJournal`."""
        try:
            with self._path.open("rb") as file:
                data = file.read(RECORD_MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedJournal(f"cannot read {self._path}", found=error.strerror or str(error)) from error
        try:
            found = _DECODER.decode(data)
        except (msgspec.MsgspecError, ValueError) as error:
            raise DamagedJournal(
                f"{self._path} is no journal of an NCP",
                found=str(error)[:200],
                hint="Look at it; remove it only if you know what the device runs.",
            ) from error
        if found.schema != SCHEMA:
            raise DamagedJournal(f"{self._path} is of another version of Flota", expected=SCHEMA, found=found.schema)
        return found.record

    def save(self, record: NcpRecord) -> None:
        """Put the record on the disk; when this returns it survives a power cut. Raises `StorageFull`.

        It blocks for the time of an fsync: what it announces must not happen before.
        """
        packed = msgspec.json.format(msgspec.json.encode(_File(SCHEMA, record)), indent=1)
        write_durably(self._path, packed + b"\n", mode=PRIVATE_FILE_MODE)
