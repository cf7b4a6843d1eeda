"""Gateway tokens, tokens that expire or rotate, maintenance windows, confirmation, action types.

Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    op.add_column("access_tokens", sa.Column("expires_at", time, nullable=True))
    op.add_column("device_types", sa.Column("confirm", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("device_types", sa.Column("maintenance", sa.Text(), nullable=True))
    op.add_column("device_types", sa.Column("download_ahead", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("rollouts", sa.Column("urgency", sa.String(length=16), nullable=False, server_default="forced"))
    op.add_column("rollouts", sa.Column("forced_at", time, nullable=True))
    op.add_column("rollouts", sa.Column("confirm", sa.Boolean(), nullable=True))
    op.add_column("rollouts", sa.Column("maintenance", sa.Text(), nullable=True))
    op.add_column("devices", sa.Column("previous_token_sha256", sa.String(length=64), nullable=True))
    op.add_column("devices", sa.Column("previous_token_until", time, nullable=True))
    op.add_column("devices", sa.Column("auto_confirm", sa.JSON(), nullable=True))
    op.add_column("devices", sa.Column("identity_conflict", sa.JSON(), nullable=True))
    op.create_table(
        "gateway_tokens",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.String(length=64), nullable=False),
        sa.Column("type_id", sa.Integer(), nullable=True),
        sa.Column("all_devices", sa.Boolean(), nullable=False),
        sa.Column("selector", sa.Text(), nullable=True),
        sa.Column("created_at", time, nullable=False),
        sa.Column("expires_at", time, nullable=True),
        sa.Column("revoked_at", time, nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_gateway_tokens_tenant_id")),
        sa.ForeignKeyConstraint(["type_id"], ["device_types.id"], name=op.f("fk_gateway_tokens_type_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gateway_tokens")),
        sa.UniqueConstraint("secret_sha256", name=op.f("uq_gateway_tokens_secret_sha256")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "uq_gateway_tokens_live_name",
        "gateway_tokens",
        ["tenant_id", "name"],
        unique=True,
        sqlite_where=sa.text("revoked_at IS NULL"),
        postgresql_where=sa.text("revoked_at IS NULL"),
    )
    op.create_table(
        "gateway_token_devices",
        sa.Column("token_id", sa.Integer(), nullable=False),
        sa.Column("device_name", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["token_id"], ["gateway_tokens.id"], name=op.f("fk_gateway_token_devices_token_id")
        ),
        sa.PrimaryKeyConstraint("token_id", "device_name", name=op.f("pk_gateway_token_devices")),
    )
