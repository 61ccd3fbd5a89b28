"""The lease of whoever leads; 64 bits for what is counted without end (SQLite's integers have them)"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

COUNTED = (("counters", "value"), ("revisions", "revision"), ("changes", "id"), ("idempotency", "change"))


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("holder", sa.String(length=200), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    _resize(sa.BigInteger())


def downgrade() -> None:
    _resize(sa.Integer())
    op.drop_table("leases")


def _resize(type_: sa.types.TypeEngine[int]) -> None:
    if op.get_context().dialect.name == "sqlite":
        return
    for table, column in COUNTED:
        op.alter_column(table, column, type_=type_, existing_nullable=False)
