"""Which versions a pipeline runs"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "version_parts",
        sa.Column("model", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("reference", sa.String(length=255), nullable=False),
        sa.Column("part_model", sa.Integer(), nullable=False),
        sa.Column("part_version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "version"],
            ["versions.model", "versions.version"],
            name=op.f("fk_version_parts_model_versions"),
        ),
        sa.ForeignKeyConstraint(
            ["part_model", "part_version"],
            ["versions.model", "versions.version"],
            name=op.f("fk_version_parts_part_model_versions"),
        ),
        sa.PrimaryKeyConstraint("model", "version", "reference", name=op.f("pk_version_parts")),
    )
    op.create_index(op.f("ix_version_parts_part_model"), "version_parts", ["part_model"])


def downgrade() -> None:
    op.drop_index(op.f("ix_version_parts_part_model"), table_name="version_parts")
    op.drop_table("version_parts")
