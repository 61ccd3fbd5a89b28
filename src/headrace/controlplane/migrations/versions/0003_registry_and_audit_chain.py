"""The audit's hash chain"""

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0003registry"
down_revision = "0002"
branch_labels = None
depends_on = None

COLUMNS = ("id", "at", "actor", "action", "tenant", "entity", "before", "after", "reason", "undo")


def upgrade() -> None:
    chain_changes()


def chain_changes() -> None:
    with op.batch_alter_table("changes") as batch_op:
        batch_op.add_column(sa.Column("hash", sa.String(length=64), nullable=True))
    connection = op.get_bind()
    changes = sa.table("changes", *(sa.column(name) for name in (*COLUMNS, "hash")))
    rows = connection.execute(sa.select(*(changes.c[name] for name in COLUMNS)).order_by(changes.c.id)).all()
    previous = "0" * 64
    for row in rows:
        content = hashlib.sha256(previous.encode())
        for value in row:
            text = b"" if value is None else str(value).encode()
            content.update(b"~," if value is None else b"%d:%b," % (len(text), text))
        previous = content.hexdigest()
        connection.execute(sa.update(changes).where(changes.c.id == row[0]).values(hash=previous))
    with op.batch_alter_table("changes") as batch_op:
        batch_op.alter_column("hash", existing_type=sa.String(length=64), nullable=False)
    counters = sa.table("counters", sa.column("name"), sa.column("value"))
    op.bulk_insert(counters, [{"name": "change", "value": rows[-1][0] + 1 if rows else 1}])


def downgrade() -> None:
    op.execute("DELETE FROM counters WHERE name = 'change'")
    with op.batch_alter_table("changes") as batch_op:
        batch_op.drop_column("hash")
