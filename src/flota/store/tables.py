"""The tables, declared once for SQLite and PostgreSQL. `migrations/` makes them so; a test compares.

Every row that belongs to an organisation carries `tenant_id`, or hangs on a row that does.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

EXECUTION_ID_MAX: Final = 2**31 - 1
"""Execution ids are the action ids of hawkBit clients, some of which read them into a signed 32-bit integer."""

DIGEST_HEX_LEN: Final = 64
"""Characters of a SHA-256 in hex."""

APPEND_ONLY_TABLES: Final = ("audit", "execution_events")
"""Triggers of the first migration refuse UPDATE, DELETE and (PostgreSQL) TRUNCATE on these."""


class UtcTime(sa.types.TypeDecorator[datetime]):
    """An aware UTC datetime, microseconds kept; SQLite stores text without an offset, PostgreSQL timestamptz."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.engine.Dialect) -> datetime | None:
        """Refuse naive times: nobody could say which hour was meant."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime cannot be stored; give an aware one")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def result_processor(self, dialect: sa.engine.Dialect, coltype: object) -> Callable[[Any], datetime | None]:
        """Give back aware UTC datetimes: in one step, for these are several in each row that is read."""
        return _utc_of_text if dialect.name == "sqlite" else _utc_of_moment


def _utc_of_text(stored: str | None) -> datetime | None:
    return None if stored is None else datetime.fromisoformat(stored).replace(tzinfo=UTC)


def _utc_of_moment(value: datetime | None) -> datetime | None:
    return None if value is None else value.astimezone(UTC)


metadata: Final = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.Integer, primary_key=True)


def _tenant() -> sa.Column[int]:
    return sa.Column("tenant_id", sa.ForeignKey("tenants.id"), nullable=False)


tenants: Final = sa.Table(
    "tenants",
    metadata,
    _id(),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", UtcTime, nullable=False),
    # The end of the tenant's audit chain: updating this row is what makes its sequence contiguous.
    sa.Column("audit_sequence", sa.BigInteger, nullable=False),
    sa.Column("audit_digest", sa.String(DIGEST_HEX_LEN), nullable=False),
    sqlite_autoincrement=True,
)

access_tokens: Final = sa.Table(
    "access_tokens",
    metadata,
    _id(),
    _tenant(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("secret_sha256", sa.String(DIGEST_HEX_LEN), nullable=False, unique=True),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("revoked_at", UtcTime),
    sa.Column("expires_at", UtcTime),
    sqlite_autoincrement=True,
)
sa.Index(
    "uq_access_tokens_live_name",
    access_tokens.c.tenant_id,
    access_tokens.c.name,
    unique=True,
    sqlite_where=access_tokens.c.revoked_at.is_(None),
    postgresql_where=access_tokens.c.revoked_at.is_(None),
)

device_types: Final = sa.Table(
    "device_types",
    metadata,
    _id(),
    _tenant(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("board", sa.Text, nullable=False),
    sa.Column("hardware_revision", sa.Text),
    sa.Column("partition_table", sa.LargeBinary),
    sa.Column("partition_csv", sa.Text),
    sa.Column("version_from", sa.String(16), nullable=False),
    sa.Column("unknown_devices", sa.String(16), nullable=False),
    sa.Column("signers", sa.JSON, nullable=False),
    sa.Column("signature_threshold", sa.Integer, nullable=False),
    sa.Column("poll_interval_s", sa.Integer, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("confirm", sa.Boolean, nullable=False, default=False),
    sa.Column("maintenance", sa.Text),
    sa.Column("download_ahead", sa.Boolean, nullable=False, default=False),
    sa.Column("bootloader_idf_version", sa.Text),
    sa.Column("secure_boot_keys", sa.JSON, nullable=False, default=list),
    sa.Column("code_certificates", sa.JSON, nullable=False, default=list),
    sa.UniqueConstraint("tenant_id", "name"),
    sqlite_autoincrement=True,
)

devices: Final = sa.Table(
    "devices",
    metadata,
    _id(),
    _tenant(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("type_id", sa.ForeignKey("device_types.id"), nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("token_sha256", sa.String(DIGEST_HEX_LEN)),
    sa.Column("mac", sa.Text),
    sa.Column("running_version", sa.Text),
    sa.Column("running_hash", sa.Text),
    sa.Column("running_md5", sa.Text),
    sa.Column("attributes", sa.JSON, nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("attributes_requested", sa.Boolean, nullable=False),
    sa.Column("last_seen_at", UtcTime),
    sa.Column("last_route", sa.Text),
    sa.Column("address", sa.Text),
    sa.Column("created_at", UtcTime, nullable=False),
    # A removed device keeps its row, because its executions are history; its name and MAC are free again.
    sa.Column("removed_at", UtcTime),
    # While a token is rotated the one before works too, until then or until the new one is used.
    sa.Column("previous_token_sha256", sa.String(DIGEST_HEX_LEN)),
    sa.Column("previous_token_until", UtcTime),
    sa.Column("auto_confirm", sa.JSON(none_as_null=True)),
    sa.Column("identity_conflict", sa.JSON(none_as_null=True)),
    sqlite_autoincrement=True,
)
for _column in (devices.c.name, devices.c.mac):
    sa.Index(
        f"uq_devices_live_{_column.name}",
        devices.c.tenant_id,
        _column,
        unique=True,
        sqlite_where=devices.c.removed_at.is_(None),
        postgresql_where=devices.c.removed_at.is_(None),
    )

for _column in (devices.c.token_sha256, devices.c.previous_token_sha256):
    # A Blynk device says nothing but its token.
    sa.Index(
        f"ix_devices_{_column.name}",
        _column,
        sqlite_where=_column.is_not(None),
        postgresql_where=_column.is_not(None),
    )

gateway_tokens: Final = sa.Table(
    "gateway_tokens",
    metadata,
    _id(),
    _tenant(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("secret_sha256", sa.String(DIGEST_HEX_LEN), nullable=False, unique=True),
    # The type that devices nobody registered become; without one they are turned away.
    sa.Column("type_id", sa.ForeignKey("device_types.id")),
    sa.Column("all_devices", sa.Boolean, nullable=False),
    sa.Column("selector", sa.Text),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("expires_at", UtcTime),
    sa.Column("revoked_at", UtcTime),
    sqlite_autoincrement=True,
)
sa.Index(
    "uq_gateway_tokens_live_name",
    gateway_tokens.c.tenant_id,
    gateway_tokens.c.name,
    unique=True,
    sqlite_where=gateway_tokens.c.revoked_at.is_(None),
    postgresql_where=gateway_tokens.c.revoked_at.is_(None),
)

gateway_token_devices: Final = sa.Table(
    "gateway_token_devices",
    metadata,
    sa.Column("token_id", sa.ForeignKey("gateway_tokens.id"), primary_key=True),
    # A name, not a row: a gateway may bring a device that nobody has registered yet.
    sa.Column("device_name", sa.Text, primary_key=True),
)

provisioning_templates: Final = sa.Table(
    "provisioning_templates",
    metadata,
    _id(),
    _tenant(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("type_id", sa.ForeignKey("device_types.id"), nullable=False),
    sa.Column("thing_name", sa.Text, nullable=False),
    sa.Column("unknown_devices", sa.String(16), nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("removed_at", UtcTime),
    sqlite_autoincrement=True,
)
sa.Index(
    "uq_provisioning_templates_live_name",
    provisioning_templates.c.tenant_id,
    provisioning_templates.c.name,
    unique=True,
    sqlite_where=provisioning_templates.c.removed_at.is_(None),
    postgresql_where=provisioning_templates.c.removed_at.is_(None),
)

thing_certificates: Final = sa.Table(
    "thing_certificates",
    metadata,
    _id(),
    _tenant(),
    # Of one tenant only: a connection says by its certificate whose it is.
    sa.Column("fingerprint", sa.String(DIGEST_HEX_LEN), nullable=False, unique=True),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("status", sa.String(24), nullable=False),
    # None for claim certificates, and until a certificate that a claim asked for is provisioned.
    sa.Column("device_id", sa.ForeignKey("devices.id"), index=True),
    sa.Column("template_id", sa.ForeignKey("provisioning_templates.id")),
    sa.Column("issued_here", sa.Boolean, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("pem", sa.Text, nullable=False),
    sa.Column("not_before", UtcTime, nullable=False),
    sa.Column("not_after", UtcTime, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("changed_at", UtcTime, nullable=False),
    # While a certificate is rotated the one before works too, until then or until the new one is used.
    sa.Column("ends_at", UtcTime),
    sa.Column("ownership_token_sha256", sa.String(DIGEST_HEX_LEN), unique=True),
    sa.Column("ownership_until", UtcTime),
    sqlite_autoincrement=True,
)

artifacts: Final = sa.Table(
    "artifacts",
    metadata,
    _id(),
    _tenant(),
    sa.Column("sha256", sa.String(DIGEST_HEX_LEN), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("sha1", sa.String(40), nullable=False),
    sa.Column("md5", sa.String(32), nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("format", sa.Text, nullable=False),
    sa.Column("image_version", sa.Text),
    sa.Column("validation_hash", sa.Text),
    sa.Column("inspection", sa.JSON, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("last_uploaded_at", UtcTime, nullable=False),
    sa.UniqueConstraint("tenant_id", "sha256"),
    sqlite_autoincrement=True,
)

releases: Final = sa.Table(
    "releases",
    metadata,
    _id(),
    _tenant(),
    sa.Column("type_id", sa.ForeignKey("device_types.id"), nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("artifact_id", sa.ForeignKey("artifacts.id"), nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("manifest", sa.LargeBinary, nullable=False),
    sa.Column("expires_at", UtcTime),
    sa.Column("notes", sa.Text, nullable=False),
    sa.Column("warnings", sa.JSON, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("changed_at", UtcTime, nullable=False),
    sa.Column("certfile", sa.Text),
    sa.Column("filepath", sa.Text),
    sa.UniqueConstraint("type_id", "sequence"),
    sqlite_autoincrement=True,
)
sa.Index(
    "uq_releases_live_version",
    releases.c.type_id,
    releases.c.version,
    unique=True,
    sqlite_where=releases.c.state != "withdrawn",
    postgresql_where=releases.c.state != "withdrawn",
)

release_signatures: Final = sa.Table(
    "release_signatures",
    metadata,
    sa.Column("release_id", sa.ForeignKey("releases.id"), primary_key=True),
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("algorithm", sa.Text, nullable=False),
    sa.Column("signature", sa.Text, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
)

release_file_signatures: Final = sa.Table(
    "release_file_signatures",
    metadata,
    sa.Column("release_id", sa.ForeignKey("releases.id"), primary_key=True),
    # As devices know it: sig-sha256-ecdsa.
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("signature", sa.Text, nullable=False),
    sa.Column("certificate", sa.Text, nullable=False),
    sa.Column("certificate_sha256", sa.String(DIGEST_HEX_LEN), nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
)

release_sboms: Final = sa.Table(
    "release_sboms",
    metadata,
    sa.Column("release_id", sa.ForeignKey("releases.id"), primary_key=True),
    sa.Column("artifact_id", sa.ForeignKey("artifacts.id"), nullable=False, index=True),
    sa.Column("format", sa.String(16), nullable=False),
    sa.Column("spec_version", sa.Text, nullable=False),
    sa.Column("component_count", sa.Integer, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
)

rollouts: Final = sa.Table(
    "rollouts",
    metadata,
    _id(),
    _tenant(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("release_id", sa.ForeignKey("releases.id"), nullable=False, index=True),
    sa.Column("state", sa.String(32), nullable=False),
    sa.Column("abort_after_failures", sa.Integer, nullable=False),
    sa.Column("silence_limit_s", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("count_inferred", sa.Boolean, nullable=False),
    sa.Column("selector", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("changed_at", UtcTime, nullable=False),
    sa.Column("urgency", sa.String(16), nullable=False, default="forced"),
    sa.Column("forced_at", UtcTime),
    sa.Column("confirm", sa.Boolean),
    sa.Column("maintenance", sa.Text),
    sa.Column("job_id", sa.Text),
    sa.Column("continuous", sa.Boolean, nullable=False, default=False, server_default=sa.false()),
    sa.UniqueConstraint("tenant_id", "name"),
    sqlite_autoincrement=True,
)
sa.Index("uq_rollouts_job_id", rollouts.c.tenant_id, rollouts.c.job_id, unique=True)
sa.Index("ix_rollouts_tenant_id_state", rollouts.c.tenant_id, rollouts.c.state)

rollout_waves: Final = sa.Table(
    "rollout_waves",
    metadata,
    sa.Column("rollout_id", sa.ForeignKey("rollouts.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
)

rollout_devices: Final = sa.Table(
    "rollout_devices",
    metadata,
    sa.Column("rollout_id", sa.ForeignKey("rollouts.id"), primary_key=True),
    sa.Column("device_id", sa.ForeignKey("devices.id"), primary_key=True),
    sa.Column("wave", sa.Integer, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
)

shipments: Final = sa.Table(
    "shipments",
    metadata,
    # A rollout that was made as a shipment of Blynk's console: what it has besides.
    sa.Column("rollout_id", sa.ForeignKey("rollouts.id"), primary_key=True),
    sa.Column("compare_field", sa.String(32), nullable=False),
    sa.Column("skip_type_check", sa.Boolean, nullable=False),
    sa.Column("attempts", sa.Integer),
    sa.Column("attempt_period_s", sa.Integer),
    sa.Column("started_by", sa.Text, nullable=False),
    sa.Column("file_name", sa.Text, nullable=False),
    # Deleted there; the rollout stays, as history.
    sa.Column("deleted_at", UtcTime),
)

executions: Final = sa.Table(
    "executions",
    metadata,
    _id(),
    _tenant(),
    sa.Column("rollout_id", sa.ForeignKey("rollouts.id"), nullable=False),
    sa.Column("device_id", sa.ForeignKey("devices.id"), nullable=False),
    sa.Column("release_id", sa.ForeignKey("releases.id"), nullable=False),
    sa.Column("wave", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("basis", sa.String(16)),
    sa.Column("details", sa.JSON, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("changed_at", UtcTime, nullable=False),
    sa.Column("started_at", UtcTime),
    sa.Column("finished_at", UtcTime),
    sa.Column("cancel_requested_at", UtcTime),
    # When the time is over that a device gave itself for its present step (AWS IoT Jobs).
    sa.Column("step_expires_at", UtcTime),
    sa.UniqueConstraint("rollout_id", "device_id"),
    sa.CheckConstraint(f"id BETWEEN 1 AND {EXECUTION_ID_MAX}", name="id_is_int32"),
    sqlite_autoincrement=True,
)
ONE_IN_PROGRESS: Final = "uq_executions_one_in_progress"
sa.Index(
    ONE_IN_PROGRESS,
    executions.c.device_id,
    unique=True,
    sqlite_where=executions.c.state == "IN_PROGRESS",
    postgresql_where=executions.c.state == "IN_PROGRESS",
)
sa.Index("ix_executions_device_id_state", executions.c.device_id, executions.c.state)
sa.Index("ix_executions_rollout_id_wave_state", executions.c.rollout_id, executions.c.wave, executions.c.state)
sa.Index("ix_executions_tenant_id_state", executions.c.tenant_id, executions.c.state)

execution_events: Final = sa.Table(
    "execution_events",
    metadata,
    sa.Column("execution_id", sa.ForeignKey("executions.id"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
)

audit: Final = sa.Table(
    "audit",
    metadata,
    sa.Column("tenant_id", sa.ForeignKey("tenants.id"), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    # The exact canonical JSON that was hashed: reading it back through a JSON type could change it.
    sa.Column("details", sa.Text, nullable=False),
    sa.Column("digest", sa.String(DIGEST_HEX_LEN), nullable=False),
)
