"""Devices and device types."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from flota.boards.model import VersionFrom


class DeviceState(enum.StrEnum):
    """Whether a device takes part: only accepted devices are ever offered an update of their own."""

    PENDING = "pending"
    ACCEPTED = "accepted"
    REFUSED = "refused"


class UnknownDevices(enum.StrEnum):
    """What happens to a device that nobody registered when it asks for the first time."""

    ACCEPT = "accept"
    HOLD = "hold"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class TrustedSigner:
    """A public key whose signatures count for a device type's releases. `public_key` is PEM (SubjectPublicKeyInfo)."""

    key_id: str
    public_key: str


@dataclass(frozen=True, slots=True)
class DeviceType:
    """A product: names its board, its partition table and its signers."""

    id: int
    name: str
    board: str
    hardware_revision: str | None = None
    partition_table: bytes | None = None
    partition_csv: str | None = None
    version_from: VersionFrom = VersionFrom.RELEASE
    unknown_devices: UnknownDevices = UnknownDevices.HOLD
    signers: tuple[TrustedSigner, ...] = ()
    signature_threshold: int = 1
    """How many different signers a release needs before it can be published."""
    poll_interval_s: int = 300
    description: str = ""
    confirm: bool = False
    """Whether a device is asked before it is told to update (DDI; docs/reference/hawkbit-ddi.md)."""
    maintenance: str | None = None
    """When devices may install, as `flota.fleet.maintenance_windows` reads it; None: at any time."""
    download_ahead: bool = False
    """Whether a device may download while its maintenance window is closed."""
    bootloader_idf_version: str | None = None
    """ESP-IDF version of the boot loader that its devices have; None: not known."""
    secure_boot_keys: tuple[str, ...] = ()
    """Digests (hex) of the Secure Boot v2 keys in its devices' efuses; none: they start unsigned images."""
    code_certificates: tuple[str, ...] = ()
    """Certificates (PEM) with which its devices check files themselves (docs/reference/code-signing.md)."""


@dataclass(frozen=True, slots=True)
class AutoConfirmation:
    """A device agrees to every update by itself since `activated_at`; who said so and why, in its own cleaned words."""

    activated_at: datetime
    initiator: str = ""
    remark: str = ""


@dataclass(frozen=True, slots=True)
class IdentityConflict:
    """Two devices seem to use one identity: `trait` was seen to go back and forth between the values `seen`."""

    trait: str
    seen: tuple[str, ...]
    at: datetime


@dataclass(frozen=True, slots=True)
class Device:
    """One unit. Digests are lower-case hex; text that the device sent is cleaned and capped before it gets here.

    `running_hash` is what the device itself says it runs: for an ESP app the appended hash, for other devices the
    file's SHA-256. `attributes` is what it reports about itself (DDI configData, HTTPUpdate headers).
    `labels` are the operator's own, for selectors.
    """

    id: int
    name: str
    type_name: str
    state: DeviceState
    mac: str | None = None
    running_version: str | None = None
    running_hash: str | None = None
    running_md5: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    last_seen_at: datetime | None = None
    last_route: str | None = None
    address: str | None = None
    created_at: datetime | None = None
    attributes_requested: bool = True
    """DDI: whether the `configData` link is shown."""
    auto_confirm: AutoConfirmation | None = None
    identity_conflict: IdentityConflict | None = None

    @property
    def confirms_itself(self) -> bool:
        """Whether it has agreed beforehand to whatever comes."""
        return self.auto_confirm is not None
