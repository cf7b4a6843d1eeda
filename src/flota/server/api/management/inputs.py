"""What callers may send: every field named, bounded, and nothing else accepted."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from flota.boards.model import VersionFrom
from flota.fleet.devices import DeviceState, UnknownDevices
from flota.fleet.releases import ReleaseState
from flota.fleet.scope import Role
from flota.fleet.update_rules import Urgency

INT32_MAX: Final = 2**31 - 1
KEY_PEM_MAX_LEN: Final = 4096
NAMES_MAX: Final = 50_000
DAY_S: Final = 86_400


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters or line breaks are not allowed")
    return text


def _no_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("NUL is not allowed")
    return text


Line = Annotated[str, StringConstraints(max_length=200), AfterValidator(_printable)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_printable)]
Note = Annotated[str, StringConstraints(max_length=10_000), AfterValidator(_no_nul)]
Pem = Annotated[str, StringConstraints(min_length=1, max_length=KEY_PEM_MAX_LEN), AfterValidator(_no_nul)]
CertificatePem = Annotated[str, StringConstraints(min_length=1, max_length=65_536), AfterValidator(_no_nul)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", to_lower=True)]


Maintenance = Annotated[str, StringConstraints(min_length=1, max_length=120), AfterValidator(_printable)]


class Input(BaseModel):
    """Common ground: unknown fields are refused, and text is not turned into numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TypeInput(Input):
    """Declares a device type."""

    name: Name
    board: Name
    partition_csv: Annotated[str, StringConstraints(max_length=65_536), AfterValidator(_no_nul)] | None = None
    hardware_revision: Name | None = None
    version_from: VersionFrom = VersionFrom.RELEASE
    unknown_devices: UnknownDevices = UnknownDevices.HOLD
    signers: list[Pem] = Field(default=[], max_length=16)
    signature_threshold: int = Field(default=1, ge=1, le=16)
    poll_interval_s: int = Field(default=300, ge=1, le=DAY_S)
    description: Line = ""
    confirm: bool = False
    maintenance: Maintenance | None = None
    download_ahead: bool = False
    bootloader_idf_version: Name | None = None
    secure_boot_keys: list[Sha256] = Field(default=[], max_length=16)


class BootFactsInput(Input):
    """Changes what a type's devices boot with; a field that is left out stays as it is, null and [] clear one."""

    bootloader_idf_version: Name | None = None
    secure_boot_keys: list[Sha256] = Field(default=[], max_length=16)


class TrustInput(Input):
    """Adds public keys to a type's signers."""

    public_keys: list[Pem] = Field(default=[], max_length=16)
    threshold: int | None = Field(default=None, ge=1, le=16)


class UnknownDevicesInput(Input):
    """What happens to devices that nobody registered."""

    unknown_devices: UnknownDevices


class SbomInput(Input):
    """An SBOM: the SHA-256 of its stored bytes, and what its file is called."""

    artifact: Sha256
    filename: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = None


class UpdateRulesInput(Input):
    """How a type's devices take updates: asked first, in maintenance windows (`none`: any time), downloading ahead.

    `poll_interval_s`: how often they shall ask, in seconds.
    """

    confirm: bool | None = None
    maintenance: Maintenance | None = None
    download_ahead: bool | None = None
    poll_interval_s: int | None = Field(default=None, ge=1, le=DAY_S)


class ReleaseInput(Input):
    """A draft for stored bytes; `artifact` is their SHA-256, `filename` what devices are told the file is called."""

    type: Name
    version: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    artifact: Sha256
    notes: Note = ""
    expires_at: AwareDatetime | None = None
    filename: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = None
    sbom: SbomInput | None = None
    certfile: Line | None = None
    filepath: Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_printable)] | None = None


class SignatureInput(Input):
    """A signature (base64) over the manifest's exact bytes."""

    key_id: Name
    algorithm: Name
    signature: Annotated[str, StringConstraints(min_length=1, max_length=2048)]


class FileSignatureInput(Input):
    """A signature (base64) over the whole file; `certificate` (PEM) None: whichever of the type's it was made with."""

    signature: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    certificate: CertificatePem | None = None


class CodeCertificatesInput(Input):
    """Adds certificates (PEM) to those that a type's devices check files with; `allow_expired`: whatever their time."""

    certificates: list[CertificatePem] = Field(min_length=1, max_length=8)
    allow_expired: bool = False


class ReasonInput(Input):
    """Why, in one line, for the audit trail."""

    reason: Line = ""


class EmptyInput(Input):
    """Nothing but `{}`, or no body at all."""


class DeviceInput(Input):
    """Registers a device; `token` is drawn when it is not given."""

    name: Name
    type: Name
    mac: Annotated[str, StringConstraints(max_length=40)] | None = None
    labels: dict[str, str] = Field(default={}, max_length=64)
    token: Annotated[str, StringConstraints(max_length=200)] | None = None


class TokenOfDeviceInput(Input):
    """Replaces a device's token; for `overlap_s` seconds the old one works too, or until the new one is used."""

    token: Annotated[str, StringConstraints(max_length=200)] | None = None
    overlap_s: int = Field(default=0, ge=0, le=365 * DAY_S)


class LabelsInput(Input):
    """Replaces a device's labels."""

    labels: dict[str, str] = Field(max_length=64)


class RedirectInput(Input):
    """Sends a connected device to another MQTT endpoint."""

    to: Annotated[str, StringConstraints(min_length=1, max_length=300)]


class RolloutInput(Input):
    """Offers a release to named devices, or to those that `select` picks now."""

    release: Annotated[str, StringConstraints(min_length=1, max_length=300)]
    devices: list[Name] | None = Field(default=None, max_length=NAMES_MAX)
    select: Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_printable)] | None = None
    name: Name | None = None
    waves: Annotated[str, StringConstraints(min_length=1, max_length=500)] = "100%"
    abort_after_failures: int = Field(default=1, ge=1, le=INT32_MAX)
    silence_limit_s: int | None = Field(default=None, ge=1, le=365 * DAY_S)
    attempts: int | None = Field(default=None, ge=1, le=100)
    count_inferred: bool | None = None
    continuous: bool = False
    urgency: Urgency = Urgency.FORCED
    forced_at: AwareDatetime | None = None
    confirm: bool | None = None
    maintenance: Maintenance | None = None


class ViamLinksInput(Input):
    """Which service configurations are wanted; `base_url` is the address that devices shall use."""

    release: Annotated[str, StringConstraints(min_length=1, max_length=300)] | None = None
    device: Name | None = None
    rollout: Name | None = None
    base_url: Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_printable)] | None = None


class EvidenceInput(Input):
    """When another system (`source`, e.g. `viam`) last heard of an execution's device."""

    last_online_at: AwareDatetime
    source: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")]


TokenName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class TokenInput(Input):
    """Makes a management token, useless from `expires_at` on."""

    name: TokenName
    role: Role
    expires_at: AwareDatetime | None = None


class GatewayTokenInput(Input):
    """Makes a gateway's token for named devices, for those that `select` picks at any moment, or for all of them.

    `type` is what devices become that nobody has registered, by that type's policy; without one they are turned away.
    """

    name: TokenName
    devices: list[Name] | None = Field(default=None, min_length=1, max_length=NAMES_MAX)
    select: Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_printable)] | None = None
    all_devices: bool = False
    type: Name | None = None
    expires_at: AwareDatetime | None = None


class ReleaseQuery(Input):
    """Which releases to list."""

    type: Name | None = None
    state: ReleaseState | None = None


class DeviceQuery(Input):
    """Which devices to list: all conditions must hold. `after` is the `next` of the page before."""

    type: Name | None = None
    state: DeviceState | None = None
    select: Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_printable)] | None = None
    text: Name | None = None
    after: int = Field(default=0, ge=0, le=INT32_MAX)
    limit: int = Field(default=100, ge=1, le=1000)


class RolloutQuery(Input):
    """Which rollouts to list."""

    open: bool = False


class AuditQuery(Input):
    """Which stretch of the audit trail."""

    after: int = Field(default=0, ge=0, le=2**62)
    limit: int = Field(default=100, ge=1, le=1000)
