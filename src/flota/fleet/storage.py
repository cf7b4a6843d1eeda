"""The ports: what the fleet needs remembered. `flota.store.database` implements them for SQLite and PostgreSQL.

Times are aware UTC datetimes given by the caller. A missing row, or one of another tenant, raises `NotFound`.
All changes of one `transaction()` become durable together or not at all; each writes its own audit entry in the same
transaction, so callers never have to remember it.
What each method returns and raises stands with its implementation in `flota.store.queries`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

from flota.boards.model import VersionFrom
from flota.fleet.audit import AuditEntry
from flota.fleet.changes import Changes
from flota.fleet.devices import (
    AutoConfirmation,
    Device,
    DeviceState,
    DeviceType,
    IdentityConflict,
    TrustedSigner,
    UnknownDevices,
)
from flota.fleet.executions import Execution, ExecutionChange, ExecutionState
from flota.fleet.job_executions import JobExecution
from flota.fleet.releases import Artifact, FileSignature, Release, ReleaseSbom, ReleaseSignature, ReleaseState
from flota.fleet.rollouts import Rollout, RolloutPolicy, RolloutState, WaveState
from flota.fleet.scope import Role, Scope, Tenant
from flota.fleet.shipments import ShipmentRecord
from flota.fleet.things import (
    CertificateHolder,
    CertificatePurpose,
    CertificateStatus,
    NewCertificate,
    ProvisioningTemplate,
    ThingCertificate,
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class NewDeviceType:
    """Fields as in `DeviceType`."""

    name: str
    board: str
    hardware_revision: str | None = None
    partition_table: bytes | None = None
    partition_csv: str | None = None
    version_from: VersionFrom = VersionFrom.RELEASE
    unknown_devices: UnknownDevices = UnknownDevices.HOLD
    signers: tuple[TrustedSigner, ...] = ()
    signature_threshold: int = 1
    poll_interval_s: int = 300
    description: str = ""
    confirm: bool = False
    maintenance: str | None = None
    download_ahead: bool = False
    bootloader_idf_version: str | None = None
    secure_boot_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NewDevice:
    """`token_sha256` is the hex SHA-256 of the device's token; the token itself is never stored."""

    name: str
    type_name: str
    state: DeviceState
    token_sha256: str | None = None
    mac: str | None = None
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class DeviceCredentials:
    """The hex SHA-256 of a device's token, and of the one before, which counts too until `previous_until`."""

    token_sha256: str | None
    previous_sha256: str | None = None
    previous_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A device, and what it may show to be let in."""

    device: Device
    credentials: DeviceCredentials


@dataclass(frozen=True, slots=True)
class TokenHolder:
    """A device that was found by its token alone, and whose it is."""

    tenant_id: int
    known: KnownDevice


@dataclass(frozen=True, slots=True)
class NewGatewayToken:
    """A token that stands for several devices: those named, or those that `selector` picks at the moment, or all.

    `type_name` is what devices become that nobody has registered, by that type's policy; None turns them away.
    """

    name: str
    secret_sha256: str
    device_names: tuple[str, ...] | None = None
    selector: str | None = None
    all_devices: bool = False
    type_name: str | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class GatewayToken:
    """A gateway's token; the secret itself is shown once and never stored. `device_count` counts the names it lists."""

    id: int
    tenant_id: int
    name: str
    created_at: datetime
    device_count: int = 0
    selector: str | None = None
    all_devices: bool = False
    type_name: str | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeviceSighting:
    """What one request of a device tells; None leaves the stored value. Text is cleaned by the API that heard it."""

    device_id: int
    at: datetime
    route: str
    address: str | None = None
    running_version: str | None = None
    running_hash: str | None = None
    running_md5: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceFilter:
    """All given conditions must hold. `labels` compares exactly; `names` is a closed list."""

    type_name: str | None = None
    state: DeviceState | None = None
    names: tuple[str, ...] | None = None
    labels: Mapping[str, str] | None = None
    text: str | None = None
    """Part of the name, case-insensitive, no wildcards."""
    outside_rollout: int | None = None
    """Those that are no part of this rollout's snapshot."""
    open_in_rollout: int | None = None
    """Those with an open execution in this rollout."""


@dataclass(frozen=True, slots=True)
class NewRelease:
    """The sequence number is given (from `next_sequence` in the same transaction) because the manifest contains it.

    `filename` is what devices are told; None takes the artifact's. The bytes of `sbom` are an artifact too.
    """

    type_name: str
    version: str
    sequence: int
    artifact_sha256: str
    manifest: bytes
    expires_at: datetime | None
    notes: str = ""
    warnings: tuple[str, ...] = ()
    filename: str | None = None
    sbom: ReleaseSbom | None = None
    certfile: str | None = None
    filepath: str | None = None


@dataclass(frozen=True, slots=True)
class NewRollout:
    """`waves`: device ids by wave, in order. The release must be published."""

    name: str
    release_id: int
    policy: RolloutPolicy
    waves: tuple[tuple[int, ...], ...]
    selector: str


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A management token; the secret itself is shown once and never stored."""

    id: int
    tenant_id: int
    name: str
    role: Role
    created_at: datetime
    revoked_at: datetime | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ExecutionEvent:
    """One change of an execution, as kept for ever: `version` is the one that the change produced."""

    version: int
    at: datetime
    state: ExecutionState
    message: str
    details: Mapping[str, str]
    actor: str


class Transaction(Protocol):
    """Everything that can be asked of the store inside one transaction. Lists are in a stable order."""

    # tenants and tokens
    async def tenant_by_name(self, name: str) -> Tenant: ...
    async def add_tenant(self, name: str, *, now: datetime) -> Tenant: ...
    async def add_access_token(
        self,
        scope: Scope,
        name: str,
        role: Role,
        secret_sha256: str,
        *,
        now: datetime,
        expires_at: datetime | None = None,
    ) -> AccessToken: ...
    async def access_token_by_digest(self, secret_sha256: str) -> AccessToken | None: ...
    async def list_access_tokens(self, scope: Scope) -> Sequence[AccessToken]: ...
    async def revoke_access_token(self, scope: Scope, token_id: int, *, now: datetime) -> None: ...

    # gateway tokens
    async def add_gateway_token(self, scope: Scope, new: NewGatewayToken, *, now: datetime) -> GatewayToken: ...
    async def gateway_token_by_digest(self, scope: Scope, secret_sha256: str) -> GatewayToken | None: ...
    async def gateway_token_lists(self, scope: Scope, token_id: int, device_name: str) -> bool: ...
    async def gateway_token_devices(self, scope: Scope, token_id: int) -> Sequence[str]: ...
    async def list_gateway_tokens(self, scope: Scope) -> Sequence[GatewayToken]: ...
    async def revoke_gateway_token(self, scope: Scope, token_id: int, *, now: datetime) -> None: ...

    # device types
    async def add_device_type(self, scope: Scope, new: NewDeviceType, *, now: datetime) -> DeviceType: ...
    async def device_type(self, scope: Scope, name: str) -> DeviceType: ...
    async def list_device_types(self, scope: Scope) -> Sequence[DeviceType]: ...
    async def set_signers(
        self, scope: Scope, type_name: str, signers: Sequence[TrustedSigner], threshold: int, *, now: datetime
    ) -> DeviceType: ...
    async def set_unknown_devices(
        self, scope: Scope, type_name: str, policy: UnknownDevices, *, now: datetime
    ) -> DeviceType: ...
    async def set_update_rules(
        self,
        scope: Scope,
        type_name: str,
        *,
        confirm: bool | None = None,
        maintenance: str | None = None,
        download_ahead: bool | None = None,
        poll_interval_s: int | None = None,
        now: datetime,
    ) -> DeviceType: ...
    async def set_boot_facts(
        self,
        scope: Scope,
        type_name: str,
        *,
        bootloader_idf_version: str | None,
        secure_boot_keys: tuple[str, ...],
        now: datetime,
    ) -> DeviceType: ...

    async def set_code_certificates(
        self, scope: Scope, type_name: str, certificates: Mapping[str, str], *, now: datetime
    ) -> DeviceType: ...

    # devices
    async def add_device(self, scope: Scope, new: NewDevice, *, now: datetime) -> Device: ...
    async def add_devices(self, scope: Scope, new: Sequence[NewDevice], *, now: datetime) -> None: ...
    async def device(self, scope: Scope, name: str) -> Device: ...
    async def find_device(self, scope: Scope, name: str) -> Device | None: ...
    async def device_by_id(self, scope: Scope, device_id: int) -> Device: ...
    async def find_device_by_mac(self, scope: Scope, mac: str) -> Device | None: ...
    async def device_token_sha256(self, scope: Scope, name: str) -> str | None: ...
    async def known_devices(self, scope: Scope, names: Sequence[str]) -> Mapping[str, KnownDevice]: ...
    async def device_credentials(self, scope: Scope, name: str) -> DeviceCredentials: ...
    async def token_holders(self, token_sha256: str) -> Sequence[TokenHolder]: ...
    async def list_devices(
        self, scope: Scope, condition: DeviceFilter, *, after_id: int = 0, limit: int = 1000
    ) -> Sequence[Device]: ...
    async def device_ids(self, scope: Scope, condition: DeviceFilter, *, limit: int) -> Sequence[int]: ...
    async def count_devices(self, scope: Scope, condition: DeviceFilter) -> int: ...
    async def set_device_state(self, scope: Scope, name: str, state: DeviceState, *, now: datetime) -> Device: ...
    async def set_device_token(
        self, scope: Scope, name: str, token_sha256: str, *, now: datetime, previous_until: datetime | None = None
    ) -> None: ...
    async def forget_previous_token(self, scope: Scope, name: str, *, now: datetime) -> None: ...
    async def set_auto_confirm(
        self, scope: Scope, device_id: int, activation: AutoConfirmation | None, *, now: datetime
    ) -> None: ...
    async def note_identity_conflict(self, scope: Scope, device_id: int, conflict: IdentityConflict) -> None: ...
    async def set_device_labels(
        self, scope: Scope, name: str, labels: Mapping[str, str], *, now: datetime
    ) -> Device: ...
    async def remove_device(self, scope: Scope, name: str, *, now: datetime) -> None: ...
    async def record_sightings(self, scope: Scope, sightings: Sequence[DeviceSighting]) -> None: ...
    async def record_seen(self, scope: Scope, device_ids: Sequence[int], route: str, *, at: datetime) -> None: ...
    async def set_device_attributes(
        self, scope: Scope, device_id: int, attributes: Mapping[str, str], *, requested: bool, now: datetime
    ) -> None: ...
    async def last_seen(self, scope: Scope, device_ids: Sequence[int]) -> Mapping[int, datetime]: ...

    # certificates of things, and how new things get theirs
    async def add_certificate(
        self, scope: Scope, new: NewCertificate, *, now: datetime, others_until: datetime | None = None
    ) -> ThingCertificate: ...
    async def certificate(self, scope: Scope, reference: str) -> ThingCertificate: ...
    async def list_certificates(
        self,
        scope: Scope,
        *,
        device_name: str | None = None,
        purpose: CertificatePurpose | None = None,
        limit: int = 100_000,
    ) -> Sequence[ThingCertificate]: ...
    async def set_certificate_status(
        self, scope: Scope, fingerprint: str, status: CertificateStatus, *, now: datetime, reason: str = ""
    ) -> ThingCertificate: ...
    async def certificate_holders(self, fingerprints: Sequence[str]) -> Mapping[str, CertificateHolder]: ...
    async def revoke_replaced_certificates(self, scope: Scope, device_id: int, *, now: datetime) -> None: ...
    async def certificate_waiting(self, scope: Scope, ownership_token_sha256: str) -> ThingCertificate | None: ...
    async def give_certificate(
        self, scope: Scope, fingerprint: str, device_name: str, *, now: datetime
    ) -> ThingCertificate: ...
    async def remove_waiting_certificates(self, scope: Scope, *, before: datetime, limit: int = 1000) -> int: ...
    async def count_waiting_certificates(self, scope: Scope) -> int: ...
    async def foreign_certificates(self) -> Sequence[str]: ...
    async def add_template(
        self,
        scope: Scope,
        name: str,
        type_name: str,
        *,
        thing_name: str,
        unknown_devices: UnknownDevices,
        now: datetime,
    ) -> ProvisioningTemplate: ...
    async def template(self, scope: Scope, name: str) -> ProvisioningTemplate: ...
    async def list_templates(self, scope: Scope) -> Sequence[ProvisioningTemplate]: ...
    async def remove_template(self, scope: Scope, name: str, *, now: datetime) -> None: ...

    # artifacts and releases
    async def add_artifact(self, scope: Scope, artifact: Artifact) -> tuple[Artifact, bool]: ...
    async def artifact(self, scope: Scope, sha256: str) -> Artifact: ...
    async def unused_artifacts(self, scope: Scope, *, before: datetime, limit: int) -> Sequence[str]: ...
    async def remove_unused_artifacts(
        self, scope: Scope, sha256s: Sequence[str], *, before: datetime, now: datetime
    ) -> Sequence[str]: ...
    async def is_artifact_recorded(self, sha256: str) -> bool: ...
    async def next_sequence(self, scope: Scope, type_name: str) -> int: ...
    async def add_release(self, scope: Scope, new: NewRelease, *, now: datetime) -> Release: ...
    async def release(self, scope: Scope, release_id: int) -> Release: ...
    async def find_release(self, scope: Scope, type_name: str, version: str) -> Release | None: ...
    async def list_releases(
        self, scope: Scope, *, type_name: str | None = None, state: ReleaseState | None = None
    ) -> Sequence[Release]: ...
    async def current_release(self, scope: Scope, type_name: str) -> Release | None: ...
    async def add_signature(
        self, scope: Scope, release_id: int, signature: ReleaseSignature, *, now: datetime
    ) -> Release: ...
    async def add_file_signature(
        self, scope: Scope, release_id: int, signature: FileSignature, *, now: datetime
    ) -> Release: ...
    async def set_release_sbom(self, scope: Scope, release_id: int, sbom: ReleaseSbom, *, now: datetime) -> Release: ...
    async def set_release_state(
        self, scope: Scope, release_id: int, state: ReleaseState, *, now: datetime, reason: str = ""
    ) -> Release: ...

    # rollouts and executions
    async def add_rollout(self, scope: Scope, new: NewRollout, *, now: datetime) -> Rollout: ...
    async def rollout(self, scope: Scope, rollout_id: int) -> Rollout: ...
    async def rollout_policy(self, scope: Scope, rollout_id: int) -> RolloutPolicy: ...
    async def find_rollout(self, scope: Scope, name: str) -> Rollout | None: ...
    async def list_rollouts(self, scope: Scope, *, open_only: bool = False) -> Sequence[Rollout]: ...
    async def rollout_devices(self, scope: Scope, rollout_id: int) -> Sequence[tuple[int, str, int]]: ...
    async def set_rollout_state(
        self, scope: Scope, rollout_id: int, state: RolloutState, *, now: datetime, reason: str = ""
    ) -> Rollout: ...
    async def set_wave_state(
        self, scope: Scope, rollout_id: int, number: int, state: WaveState, *, now: datetime
    ) -> None: ...
    async def join_rollout(
        self, scope: Scope, rollout_id: int, device_ids: Sequence[int], *, now: datetime
    ) -> Sequence[int]: ...
    async def open_wave(self, scope: Scope, rollout_id: int, number: int, *, now: datetime) -> Sequence[int]: ...
    async def execution(self, scope: Scope, execution_id: int) -> Execution: ...
    async def list_executions(
        self,
        scope: Scope,
        *,
        rollout_id: int | None = None,
        device_id: int | None = None,
        states: frozenset[ExecutionState] | None = None,
        limit: int = 10_000,
    ) -> Sequence[Execution]: ...
    async def next_execution(self, scope: Scope, device_id: int) -> Execution | None: ...
    async def next_executions(self, scope: Scope, device_ids: Sequence[int]) -> Mapping[int, Execution]: ...
    async def latest_executions(
        self, scope: Scope, device_ids: Sequence[int], state: ExecutionState, *, without_detail: str
    ) -> Mapping[int, Execution]: ...
    async def change_execution(
        self, scope: Scope, execution_id: int, expected_version: int, change: ExecutionChange, *, now: datetime
    ) -> Execution: ...
    async def amend_execution(self, scope: Scope, after: Execution, message: str) -> Execution: ...
    async def open_jobs(self, scope: Scope, device_ids: Sequence[int]) -> Mapping[int, Sequence[JobExecution]]: ...
    async def job_of_device(self, scope: Scope, device_id: int, job_id: str) -> JobExecution | None: ...
    async def set_step_timer(
        self, scope: Scope, execution_id: int, expected_version: int, expires_at: datetime | None
    ) -> None: ...
    async def execution_events(self, scope: Scope, execution_id: int) -> Sequence[ExecutionEvent]: ...

    # shipments
    async def add_shipment(self, scope: Scope, new: ShipmentRecord) -> None: ...
    async def shipment_records(self, scope: Scope, rollout_ids: Sequence[int]) -> Mapping[int, ShipmentRecord]: ...
    async def delete_shipment(self, scope: Scope, rollout_id: int, *, now: datetime) -> None: ...

    # audit
    async def append_audit(
        self, scope: Scope, action: str, subject: str, details: Mapping[str, object], *, now: datetime
    ) -> AuditEntry: ...
    async def list_audit(self, scope: Scope, *, after: int = 0, limit: int = 1000) -> Sequence[AuditEntry]: ...
    async def last_audit_sequence(self, scope: Scope) -> int: ...


class Storage(Protocol):
    """Where transactions come from."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Read and write; commits when the block ends without an error."""
        ...

    def reading(self) -> AbstractAsyncContextManager[Transaction]:
        """Read only; never waits for a writer."""
        ...

    async def read_at_once(self, work: Callable[[Transaction], Awaitable[_T]]) -> _T:
        """Return what `work` returns, run as in `reading`; it waits for nothing but its transaction."""
        ...

    async def write_at_once(self, work: Callable[[Transaction], Awaitable[_T]]) -> _T:
        """Return what `work` returns, committed as by `transaction`; it waits for nothing but its transaction."""
        ...

    def on_change(self, callback: Callable[[Changes], None]) -> None:
        """Call `callback` with whom it concerns after each commit of this process, before its writer goes on."""
        ...

    async def list_tenants(self) -> Sequence[Tenant]: ...
