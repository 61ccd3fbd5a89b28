"""Revisions of tenants, keys and models; the answers that idempotency keys give again"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "revisions",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "id", name=op.f("pk_revisions")),
        sa.UniqueConstraint("revision", name=op.f("uq_revisions_revision")),
    )
    connection = op.get_bind()
    stored: list[tuple[str, str]] = []
    for kind, column, table in (("tenant", "index", "tenants"), ("key", "id", "keys"), ("model", "id", "models")):
        query: sa.Select[tuple[object]] = sa.select(sa.column(column)).select_from(sa.table(table))
        stored += [(kind, str(row[0])) for row in connection.execute(query)]
    revisions = sa.table("revisions", sa.column("kind"), sa.column("id"), sa.column("revision"))
    rows = [{"kind": kind, "id": id_, "revision": number} for number, (kind, id_) in enumerate(stored, 1)]
    if rows:
        op.bulk_insert(revisions, rows)
    counters = sa.table("counters", sa.column("name"), sa.column("value"))
    op.bulk_insert(counters, [{"name": "revision", "value": len(rows) + 1}])
    with op.batch_alter_table("idempotency", schema=None) as batch_op:
        batch_op.add_column(sa.Column("answer", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("idempotency", schema=None) as batch_op:
        batch_op.drop_column("answer")
    op.execute("DELETE FROM counters WHERE name = 'revision'")
    op.drop_table("revisions")
