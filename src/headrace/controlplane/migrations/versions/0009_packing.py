"""Deployments that share processes: how, where they are now, and why"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("deployments", schema=None) as batch_op:
        batch_op.add_column(sa.Column("mode", sa.String(length=16), nullable=False, server_default="dedicated"))
        batch_op.add_column(sa.Column("placed", sa.String(length=16), nullable=False, server_default="dedicated"))
        batch_op.add_column(sa.Column("placed_why", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    with op.batch_alter_table("deployments", schema=None) as batch_op:
        for column in ("placed_why", "placed", "mode"):
            batch_op.drop_column(column)
