"""SBOMs of releases; what the devices of a type boot with: their boot loader's ESP-IDF and their Secure Boot keys.

Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("device_types", sa.Column("bootloader_idf_version", sa.Text(), nullable=True))
    op.add_column("device_types", sa.Column("secure_boot_keys", sa.JSON(), nullable=False, server_default="[]"))
    op.create_table(
        "release_sboms",
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("artifact_id", sa.Integer(), nullable=False),
        sa.Column("format", sa.String(length=16), nullable=False),
        sa.Column("spec_version", sa.Text(), nullable=False),
        sa.Column("component_count", sa.Integer(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["artifact_id"], ["artifacts.id"], name=op.f("fk_release_sboms_artifact_id")),
        sa.ForeignKeyConstraint(["release_id"], ["releases.id"], name=op.f("fk_release_sboms_release_id")),
        sa.PrimaryKeyConstraint("release_id", name=op.f("pk_release_sboms")),
    )
    op.create_index(op.f("ix_release_sboms_artifact_id"), "release_sboms", ["artifact_id"])
