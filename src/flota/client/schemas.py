"""What the management API answers, as typed values. Field names are those of the JSON (docs/reference/api.md)."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec

FINAL_ROLLOUT_STATES: Final = frozenset({"succeeded", "finished-with-failures", "aborted", "canceled"})
"""States in which a rollout stays for ever."""

SBOM_FORMATS: Final = {"cyclonedx": "CycloneDX", "spdx": "SPDX"}
OPEN_EXECUTION_STATES: Final = frozenset({"QUEUED", "IN_PROGRESS"})


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Common ground: immutable, and fields that a newer server adds are ignored."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, as the server sent it, for `--json`."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


class WhoAmI(Answer, frozen=True, kw_only=True):
    """Whose token this is. `role` is `viewer`, `operator` or `admin`."""

    tenant: str
    actor: str
    role: str
    server_version: str


class Signer(Answer, frozen=True, kw_only=True):
    """A public key (PEM) whose signatures count for a device type."""

    key_id: str
    public_key: str


class CodeCertificate(Answer, frozen=True, kw_only=True):
    """A certificate (PEM) with which a type's devices check files; its signatures go under `name` of a job document."""

    fingerprint: str
    name: str
    subject: str
    not_after: datetime
    certificate: str


class Slot(Answer, frozen=True, kw_only=True):
    """Where an image of the type goes; offset and size in bytes."""

    name: str
    offset: int | None
    size: int


class DeviceType(Answer, frozen=True, kw_only=True):
    """A product. `builtin` types carry the name of their board."""

    id: int | None
    """None for a built-in type that nobody has used yet."""
    name: str
    board: str
    hardware_revision: str | None
    version_from: str
    unknown_devices: str
    signers: list[Signer]
    signature_threshold: int
    poll_interval_s: int
    description: str
    partition_csv: str | None
    slots: list[Slot]
    builtin: bool
    confirm: bool = False
    maintenance: str | None = None
    download_ahead: bool = False
    bootloader_idf_version: str | None = None
    """ESP-IDF version of the boot loader that its devices have; None: not known."""
    secure_boot_keys: list[str] = []
    """Digests (hex) of the Secure Boot v2 keys that its devices trust."""
    code_certificates: list[CodeCertificate] = []
    code_signatures: list[str] = []
    """Names of the signatures over a file that its devices can check; a release needs one of them."""


class Artifact(Answer, frozen=True, kw_only=True):
    """Stored bytes and what was read out of them. `already_stored`: this upload brought nothing new."""

    sha256: str
    sha1: str
    md5: str
    size: int
    filename: str
    format: str
    image_version: str | None
    validation_hash: str | None
    created_at: datetime
    already_stored: bool = False
    inspection: dict[str, Any] = {}


class Signature(Answer, frozen=True, kw_only=True):
    """One signature over the manifest's exact bytes; `signature` is base64."""

    key_id: str
    algorithm: str
    signature: str


class FileSignature(Answer, frozen=True, kw_only=True):
    """A signature (base64) over the whole file, which devices find under `name`; and the signer's certificate (PEM)."""

    name: str
    signature: str
    certificate_sha256: str
    certificate: str


class Sbom(Answer, frozen=True, kw_only=True):
    """A release's software bill of materials. `format` is `cyclonedx` or `spdx`; the SHA-256 is of the file itself."""

    format: str
    spec_version: str
    component_count: int
    sha256: str
    size: int
    filename: str

    @property
    def summary(self) -> str:
        """Format, version and number of components as people write them."""
        plural = "" if self.component_count == 1 else "s"
        name = SBOM_FORMATS.get(self.format, self.format)
        return f"{name} {self.spec_version}, {self.component_count} component{plural}"


class Release(Answer, frozen=True, kw_only=True):
    """A release. `state` is `draft`, `signed`, `published` or `withdrawn`; `filename` is what devices are told."""

    id: int
    type: str
    version: str
    sequence: int
    state: str
    artifact: Artifact
    filename: str
    manifest_sha256: str
    signatures: list[Signature]
    signatures_needed: int
    created_at: datetime
    expires_at: datetime | None
    notes: str
    warnings: list[str]
    sbom: Sbom | None = None
    certfile: str | None = None
    """What devices call the certificate that they check the file with."""
    filepath: str | None = None
    """Where devices keep the file."""
    file_signatures: list[FileSignature] = []
    file_signature_needed: list[str] = []
    """Names of which one must be among them before the release can be published; none: no need."""


class Ping(Answer, frozen=True, kw_only=True):
    """Whether a connected device gave a sign of life, and after how many milliseconds."""

    device: str
    answered: bool
    after_ms: int | None


class IdentityConflict(Answer, frozen=True, kw_only=True):
    """Two devices seem to use one identity: `trait` went back and forth between the values `seen`."""

    trait: str
    seen: list[str]
    at: datetime


class Device(Answer, frozen=True, kw_only=True):
    """One unit. `state` is `pending`, `accepted` or `refused`."""

    id: int
    name: str
    type: str
    state: str
    mac: str | None
    running_version: str | None
    running_hash: str | None
    running_md5: str | None
    attributes: dict[str, str]
    labels: dict[str, str]
    last_seen_at: datetime | None
    last_route: str | None
    address: str | None
    created_at: datetime | None
    token: str | None = None
    """Only in the answer that created it: it is not stored and cannot be shown again."""
    auto_confirm: bool = False
    identity_conflict: IdentityConflict | None = None
    flags: list[str] = []
    """What an operator should look at, e.g. that it asks for its update again and again; only when it is asked for
    alone."""


class ImportedDevice(Answer, frozen=True, kw_only=True):
    """One device of an import, with its token if the server drew one."""

    name: str
    token: str | None = None


class RolloutPolicy(Answer, frozen=True, kw_only=True):
    """Limits; see docs/reference/api.md."""

    abort_after_failures: int
    silence_limit_s: int
    attempts: int
    count_inferred: bool
    continuous: bool = False
    urgency: str = "forced"
    forced_at: datetime | None = None
    confirm: bool | None = None
    maintenance: str | None = None


class Wave(Answer, frozen=True, kw_only=True):
    """An ordered part of a rollout; `counts` has its executions by state."""

    number: int
    state: str
    size: int
    counts: dict[str, int]


class Rollout(Answer, frozen=True, kw_only=True):
    """A release offered to a snapshot of devices. `reason` says why it was aborted, paused or canceled."""

    id: int
    name: str
    release: int
    type: str
    version: str
    state: str
    policy: RolloutPolicy
    waves: list[Wave]
    selector: str
    created_at: datetime
    changed_at: datetime
    reason: str
    job_id: str | None = None
    """What things know it as."""

    @property
    def is_final(self) -> bool:
        """Whether the rollout has ended."""
        return self.state in FINAL_ROLLOUT_STATES

    @property
    def devices(self) -> int:
        """How many devices the rollout names, over all waves."""
        return sum(wave.size for wave in self.waves)

    def count(self, *states: str) -> int:
        """How many executions are in one of `states`, over all waves."""
        return sum(wave.counts.get(state, 0) for wave in self.waves for state in states)


class Execution(Answer, frozen=True, kw_only=True):
    """One device's part in one rollout. `basis` is `reported`, `inferred` or `operator` once it has an outcome."""

    id: int
    rollout: int
    device: str
    release: int
    wave: int
    state: str
    version: int
    basis: str | None
    details: dict[str, str]
    created_at: datetime
    changed_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None

    @property
    def is_open(self) -> bool:
        """Whether the execution can still change."""
        return self.state in OPEN_EXECUTION_STATES


class ExecutionEvent(Answer, frozen=True, kw_only=True):
    """One change of an execution; `version` is the one that the change produced."""

    version: int
    at: datetime
    state: str
    message: str
    details: dict[str, str]
    actor: str


class AuditEntry(Answer, frozen=True, kw_only=True):
    """Who did what to which subject, when; see docs/reference/api.md for the chain of digests."""

    sequence: int
    at: datetime
    actor: str
    action: str
    subject: str
    details: dict[str, Any]
    digest: str


class ViamLink(Answer, frozen=True, kw_only=True):
    """A service configuration of micro-RDK. `device` is None for a shared one: no device's progress can be told."""

    device: str | None
    labels: dict[str, str]
    execution: int | None
    rollout: str | None
    url: str
    version: str
    per_device_status: bool
    service: dict[str, Any]


class ViamLinks(Answer, frozen=True, kw_only=True):
    """Service configurations, and what to know about them."""

    items: list[ViamLink]
    warnings: list[str]


class AccessToken(Answer, frozen=True, kw_only=True):
    """A management token. `secret` is only in the answer that created it."""

    id: int
    name: str
    role: str
    created_at: datetime
    revoked_at: datetime | None
    expires_at: datetime | None = None
    secret: str | None = None


class GatewayToken(Answer, frozen=True, kw_only=True):
    """A gateway's token: for `device_count` named devices, a selector's, or all. `secret` only where it was made."""

    id: int
    name: str
    device_count: int
    selector: str | None
    all_devices: bool
    type: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    secret: str | None = None


class ReleasePage(Answer, frozen=True, kw_only=True):
    """A listing of releases."""

    items: list[Release]


class DeviceTypePage(Answer, frozen=True, kw_only=True):
    """A listing of device types."""

    items: list[DeviceType]


class DevicePage(Answer, frozen=True, kw_only=True):
    """A listing of devices. `next` is the `after` of the next page, None at the end; `total` counts all pages."""

    items: list[Device]
    next: int | None
    total: int


class ImportAnswer(Answer, frozen=True, kw_only=True):
    """What an import did: all of its devices, or none."""

    items: list[ImportedDevice]


class RolloutPage(Answer, frozen=True, kw_only=True):
    """A listing of rollouts."""

    items: list[Rollout]


class ExecutionPage(Answer, frozen=True, kw_only=True):
    """A listing of executions."""

    items: list[Execution]


class ShippedDevice(Answer, frozen=True, kw_only=True):
    """A device of a shipment; `execution` is null until its wave is open."""

    device: str
    status: str
    execution: int | None
    changed_at: datetime | None
    reason: str = ""


class Shipment(Answer, frozen=True, kw_only=True):
    """A rollout as Blynk's console shows it (docs/reference/blynk.md). `status` is RUN, PAUSE, FINISH or CANCEL."""

    id: int
    title: str
    type: str
    version: str
    status: str
    compare_field: str
    skip_type_check: bool
    attempts_limit: int
    attempt_period_s: int | None
    """After how many seconds attempts are counted anew; null: never."""
    maintenance: str | None
    """The rollout's own maintenance window; null: as the type says."""
    started_by: str
    started_at: datetime
    finished_at: datetime | None
    progress: dict[str, int]
    devices: list[ShippedDevice]


class ExecutionEventPage(Answer, frozen=True, kw_only=True):
    """The history of an execution, oldest first."""

    items: list[ExecutionEvent]


class AuditPage(Answer, frozen=True, kw_only=True):
    """A stretch of the audit trail. `last` is the sequence number of the newest entry there is."""

    items: list[AuditEntry]
    last: int


class AccessTokenPage(Answer, frozen=True, kw_only=True):
    """A listing of tokens."""

    items: list[AccessToken]


class GatewayTokenPage(Answer, frozen=True, kw_only=True):
    """A listing of gateway tokens."""

    items: list[GatewayToken]
