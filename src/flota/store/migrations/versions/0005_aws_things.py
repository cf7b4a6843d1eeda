"""Certificates of things, provisioning templates, signatures over a release's file, job ids of rollouts.

Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    op.add_column("device_types", sa.Column("code_certificates", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("releases", sa.Column("certfile", sa.Text(), nullable=True))
    op.add_column("releases", sa.Column("filepath", sa.Text(), nullable=True))
    op.create_table(
        "release_file_signatures",
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("signature", sa.Text(), nullable=False),
        sa.Column("certificate", sa.Text(), nullable=False),
        sa.Column("certificate_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.ForeignKeyConstraint(["release_id"], ["releases.id"], name=op.f("fk_release_file_signatures_release_id")),
        sa.PrimaryKeyConstraint("release_id", "name", name=op.f("pk_release_file_signatures")),
    )
    op.add_column("rollouts", sa.Column("job_id", sa.Text(), nullable=True))
    op.create_index("uq_rollouts_job_id", "rollouts", ["tenant_id", "job_id"], unique=True)
    op.create_table(
        "provisioning_templates",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("type_id", sa.Integer(), nullable=False),
        sa.Column("thing_name", sa.Text(), nullable=False),
        sa.Column("unknown_devices", sa.String(length=16), nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.Column("removed_at", time, nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_provisioning_templates_tenant_id")),
        sa.ForeignKeyConstraint(["type_id"], ["device_types.id"], name=op.f("fk_provisioning_templates_type_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_provisioning_templates")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "uq_provisioning_templates_live_name",
        "provisioning_templates",
        ["tenant_id", "name"],
        unique=True,
        sqlite_where=sa.text("removed_at IS NULL"),
        postgresql_where=sa.text("removed_at IS NULL"),
    )
    op.create_table(
        "thing_certificates",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=24), nullable=False),
        sa.Column("device_id", sa.Integer(), nullable=True),
        sa.Column("template_id", sa.Integer(), nullable=True),
        sa.Column("issued_here", sa.Boolean(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("pem", sa.Text(), nullable=False),
        sa.Column("not_before", time, nullable=False),
        sa.Column("not_after", time, nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.Column("changed_at", time, nullable=False),
        sa.Column("ends_at", time, nullable=True),
        sa.Column("ownership_token_sha256", sa.String(length=64), nullable=True),
        sa.Column("ownership_until", time, nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_thing_certificates_tenant_id")),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_thing_certificates_device_id")),
        sa.ForeignKeyConstraint(
            ["template_id"], ["provisioning_templates.id"], name=op.f("fk_thing_certificates_template_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_thing_certificates")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_thing_certificates_fingerprint")),
        sa.UniqueConstraint("ownership_token_sha256", name=op.f("uq_thing_certificates_ownership_token_sha256")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_thing_certificates_device_id"), "thing_certificates", ["device_id"])
