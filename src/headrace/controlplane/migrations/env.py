"""Runs the migrations on the engine that `controlplane.store` hands over."""

from alembic import context

with context.config.attributes["engine"].begin() as connection:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # a large table takes its time
    context.configure(
        connection=connection,
        target_metadata=context.config.attributes["metadata"],
        render_as_batch=True,  # SQLite alters a table by copying it
        transaction_per_migration=False,
    )
    context.run_migrations()
