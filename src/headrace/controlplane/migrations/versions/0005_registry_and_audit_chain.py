"""The audit's hash chain; states, aliases, lineage and search of versions; approval by tenant"""

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0005registry"
down_revision = "0004"
branch_labels = None
depends_on = None

COLUMNS = ("id", "at", "actor", "action", "tenant", "entity", "before", "after", "reason", "undo")


def upgrade() -> None:
    chain_changes()
    # Not in a batch: SQLite's copies the table, and others refer to it.
    approval = sa.Column("approval", sa.String(length=16), nullable=False, server_default="optional")
    op.add_column("tenants", approval)
    with op.batch_alter_table("keys") as batch_op:
        batch_op.add_column(sa.Column("account", sa.String(length=100), nullable=True))
        batch_op.add_column(sa.Column("expires_at", sa.String(length=32), nullable=True))
    op.execute("UPDATE keys SET account = id")
    with op.batch_alter_table("keys") as batch_op:
        batch_op.alter_column("account", existing_type=sa.String(length=100), nullable=False)
    create_tables()
    # What an older release stored has loaded and run, and had no tests.
    op.execute(
        "INSERT INTO lifecycles SELECT model, version, 'validated', created_at, created_by, NULL, NULL FROM versions"
    )
    index_texts()


def create_tables() -> None:
    def model(table: str) -> tuple[sa.Column[int], sa.ForeignKeyConstraint]:
        name = op.f(f"fk_{table}_model_models")
        return sa.Column("model", sa.Integer(), nullable=False), sa.ForeignKeyConstraint(
            ["model"], ["models.id"], name=name
        )

    op.create_table(
        "lifecycles",
        model("lifecycles")[0],
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("changed_at", sa.String(length=32), nullable=False),
        sa.Column("changed_by", sa.String(length=64), nullable=False),
        sa.Column("golden", sa.Text(), nullable=True),
        sa.Column("tests", sa.Text(), nullable=True),
        model("lifecycles")[1],
        sa.PrimaryKeyConstraint("model", "version", name=op.f("pk_lifecycles")),
    )
    op.create_table(
        "aliases",
        model("aliases")[0],
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        model("aliases")[1],
        sa.PrimaryKeyConstraint("model", "name", name=op.f("pk_aliases")),
    )
    op.create_table(
        "lineages",
        model("lineages")[0],
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("training_set", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("parent_model", sa.Integer(), nullable=True),
        sa.Column("parent_version", sa.Integer(), nullable=True),
        sa.Column("features", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        model("lineages")[1],
        sa.ForeignKeyConstraint(["parent_model"], ["models.id"], name=op.f("fk_lineages_parent_model_models")),
        sa.PrimaryKeyConstraint("model", "version", name=op.f("pk_lineages")),
    )
    op.create_index("ix_lineages_parent", "lineages", ["parent_model", "parent_version"])
    op.create_table(
        "search_texts",
        model("search_texts")[0],
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        model("search_texts")[1],
        sa.PrimaryKeyConstraint("model", "version", name=op.f("pk_search_texts")),
    )


def index_texts() -> None:
    """Roughly as the release writes it: what has been said of models and versions, in lower case."""
    connection = op.get_bind()
    texts = sa.table("search_texts", sa.column("model"), sa.column("version"), sa.column("text"))
    found = []
    for id_, name, description, tags in connection.execute(sa.text("SELECT id, name, description, tags FROM models")):
        found.append((id_, 0, [name, description, *pairs(tags)]))
    query = "SELECT model, version, engine, file_name, description, tags, digest FROM versions"
    for model, version, engine, file_name, description, tags, digest in connection.execute(sa.text(query)):
        found.append((model, version, [engine, file_name, description, *pairs(tags), digest]))
    rows = [{"model": m, "version": v, "text": " ".join(" ".join(said).casefold().split())} for m, v, said in found]
    if rows:
        op.bulk_insert(texts, rows)


def pairs(tags: str) -> list[str]:
    return [f"{name}={value}" for name, value in json.loads(tags).items()]


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
    for table in ("search_texts", "lineages", "aliases", "lifecycles"):
        op.drop_table(table)
    op.drop_column("tenants", "approval")
    with op.batch_alter_table("keys") as batch_op:
        batch_op.drop_column("account")
        batch_op.drop_column("expires_at")
    op.execute("DELETE FROM counters WHERE name = 'change'")
    with op.batch_alter_table("changes") as batch_op:
        batch_op.drop_column("hash")
