"""Where deployments may run, and how much of a device a replica takes"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("deployments") as table:
        table.add_column(sa.Column("tiers", sa.String(length=400), nullable=False, server_default=""))
        table.add_column(sa.Column("spot", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("compute", sa.Float(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("deployments") as table:
        table.drop_column("compute")
        table.drop_column("spot")
        table.drop_column("tiers")
