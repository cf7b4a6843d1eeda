"""Devices that are known by nothing but their token; shipments.

Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("token_sha256", "previous_token_sha256"):
        present = sa.text(f"{name} IS NOT NULL")
        op.create_index(f"ix_devices_{name}", "devices", [name], sqlite_where=present, postgresql_where=present)
    op.create_table(
        "shipments",
        sa.Column("rollout_id", sa.Integer(), nullable=False),
        sa.Column("compare_field", sa.String(length=32), nullable=False),
        sa.Column("skip_type_check", sa.Boolean(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=True),
        sa.Column("started_by", sa.Text(), nullable=False),
        sa.Column("file_name", sa.Text(), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollouts.id"], name=op.f("fk_shipments_rollout_id")),
        sa.PrimaryKeyConstraint("rollout_id", name=op.f("pk_shipments")),
    )
