"""The control plane's store: migrations, keys, idempotency."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from headrace.controlplane import accounts, changes
from headrace.controlplane.changes import Answered, Record
from headrace.controlplane.copying import copy_store
from headrace.controlplane.routing_state import read
from headrace.controlplane.store import migration_config, open_store
from headrace.core.database import connect, metadata, now, transaction
from headrace.core.errors import Conflict
from headrace.core.resources import Quota
from headrace.core.signature import Signature, TensorSpec
from headrace.core.specs import EngineOptions
from headrace.registry import lifecycle, lineage, search
from headrace.registry import store as registry
from headrace.registry.store import VersionRow


def test_the_migrated_schema_is_the_one_the_code_expects(url: str) -> None:
    engine = open_store(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_what_an_older_release_stored_is_all_read_at_the_first_look(url: str) -> None:
    engine = connect(url)
    command.upgrade(migration_config(engine), "0001")
    with transaction(engine) as connection:
        connection.execute(
            text(
                "INSERT INTO tenants VALUES (0, 'default', 'active', 1, 1, 1, :at), (1, 'risk', 'active', 1, 1, 1, :at)"
            ),
            {"at": now()},
        )
        connection.execute(
            text("INSERT INTO models VALUES (1, 1, 'churn', '', '{}', TRUE, 30, 1, :salt, :at)"),
            {"salt": b"s", "at": now()},
        )
        connection.execute(
            text("INSERT INTO keys VALUES ('hr_a', :digest, 1, 'viewer', '', 'active', :at)"),
            {"digest": b"d", "at": now()},
        )
    engine.dispose()
    engine = open_store(url)
    with transaction(engine) as connection:
        state = read(connection)
        assert {tenant.name for tenant in state.tenants.values()} == {"default", "risk"}
        assert [model.id for model in state.models.values()] == ["risk/churn"] and list(state.keys) == ["hr_a"]
        assert read(connection, state) is state
        accounts.create_tenant(connection, "third", Quota())
        assert read(connection, state).changed_since(state.revision) == {"tenant": ["2"], "key": [], "model": []}
    command.downgrade(migration_config(engine), "0001")
    engine.dispose()


def test_every_commit_is_synced_and_foreign_keys_hold(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'a.db'}")
    with engine.connect() as connection:
        found = {name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "foreign_keys")}
        assert found == {"journal_mode": "wal", "foreign_keys": 1}
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
    engine.dispose()


def test_a_failed_transaction_leaves_nothing(url: str) -> None:
    engine = open_store(url)
    with pytest.raises(RuntimeError), transaction(engine) as connection:
        accounts.create_tenant(connection, "a", Quota())
        raise RuntimeError
    with transaction(engine) as connection:
        assert accounts.list_tenants(connection) == []
    engine.dispose()


def test_a_key_is_stored_as_its_digest_only(tmp_path: Path) -> None:
    engine = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    with transaction(engine) as connection:
        tenant = accounts.create_tenant(connection, "a", Quota())
        row, key = accounts.create_key(connection, tenant.index, "viewer", "")
        assert accounts.key_by_text(connection, key) == row
        assert row.digest == hashlib.sha256(key.encode()).digest()
        for wrong in (key[:-1], key + "x", row.id, "", "hr__"):
            assert accounts.key_by_text(connection, wrong) is None
        accounts.revoke_key(connection, row.id)
        assert accounts.key_by_text(connection, key) is None
    engine.dispose()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert row.id.encode() in stored and key.encode() not in stored


def test_the_first_admin_key_is_not_lost_and_not_doubled(tmp_path: Path, url: str) -> None:
    engine, file = open_store(url), tmp_path / "credentials.toml"

    class Killed(Exception):
        pass

    with pytest.raises(Killed), transaction(engine) as connection:
        accounts.bootstrap(connection, file, {"url": "http://a"})
        raise Killed  # after the file was written, before the commit
    first = file.read_text()
    with transaction(engine) as connection:
        accounts.bootstrap(connection, file, {"url": "http://b"})
    second = file.read_text()
    assert second != first and 'url = "http://b"' in second and file.stat().st_mode & 0o777 == 0o600
    with transaction(engine) as connection:
        accounts.bootstrap(connection, file, {"url": "http://b"})
        assert file.read_text() == second
        key = accounts.key_by_text(connection, second.split('api_key = "')[1].split('"')[0])
        assert key is not None and key.role == "admin" and len(accounts.list_keys(connection)) == 1
    engine.dispose()


def test_a_lost_credentials_file_is_made_again_even_by_a_start_that_follows_a_killed_one(
    tmp_path: Path, url: str
) -> None:
    class Killed(BaseException):
        pass

    engine = open_store(url)
    file = tmp_path / "credentials.toml"

    def start() -> str:
        with transaction(engine) as connection:
            accounts.bootstrap(connection, file, {"url": "http://a"})
        return str(tomllib.loads(file.read_text())["api_key"])

    start()
    file.unlink()
    with pytest.raises(Killed), transaction(engine) as connection:
        accounts.bootstrap(connection, file, {"url": "http://a"})
        raise Killed  # after the file was written, before its key was committed; the first start's key is another admin
    text = start()
    with transaction(engine) as connection:
        found = accounts.key_by_text(connection, text)
        assert found is not None and found.role == "admin"
        accounts.revoke_key(connection, found.id)
    assert start() == text  # revoked on purpose, and another admin is left: not made again
    engine.dispose()


def test_many_versions_are_found_at_once(url: str) -> None:
    engine = open_store(url)
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1,)),))
    with transaction(engine) as connection:
        accounts.create_tenant(connection, "default", Quota())
        model = registry.ensure_model(connection, 0, "churn").id
        rows = [
            VersionRow(
                model, n, "onnx", "0" * 64, 1, "m.onnx", signature, EngineOptions(), {"auc": 0.5}, {}, "", now(), "hr_a"
            )
            for n in range(1, registry.KEYS_MAX + 2)
        ]
        for row in rows:
            registry.add_version(connection, row)
        found = registry.find_versions(connection, [(model, row.version) for row in rows] + [(model, 9999)])
        assert found == {(model, row.version): row for row in rows}
        assert registry.find_versions(connection, ()) == {}
    engine.dispose()


def test_an_idempotency_key_is_bound_to_its_request_and_forgotten_after_a_day(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_store(url)
    with transaction(engine) as connection:
        change = changes.append(connection, "hr_a", Record("x", "default", "e"), None)
        changes.remember(connection, "hr_a", "k", b"one", change, b"{}")
        assert changes.replayed(connection, "hr_a", "k", b"one") == Answered(change, b"{}")
        assert changes.replayed(connection, "hr_b", "k", b"two") is None
        with pytest.raises(Conflict):
            changes.replayed(connection, "hr_a", "k", b"two")
        connection.execute(changes.idempotency.update().values(at=now(-changes.IDEMPOTENCY_S - 1)))
        changes.remember(connection, "hr_a", "other", b"three", change, None)
        assert changes.replayed(connection, "hr_a", "k", b"two") is None
    engine.dispose()


def test_snapshot_epochs_are_never_given_twice(url: str) -> None:
    engine = open_store(url)
    taken: list[int] = []
    for _ in range(3):
        with transaction(engine) as connection:
            first = changes.reserve_epochs(connection, 10)
            taken += range(first, first + 10)
    assert taken == list(range(1, 31))
    engine.dispose()


def test_a_store_is_copied_whole_and_goes_on_with_its_numbers(tmp_path: Path, new_database: Callable[[], str]) -> None:
    source, target = f"sqlite:///{tmp_path / 'a.db'}", new_database()
    engine = open_store(source)
    with transaction(engine) as connection:
        accounts.create_tenant(connection, "default", Quota())
        key, text_ = accounts.create_key(connection, 0, "admin", "")
        model = registry.ensure_model(connection, 0, "churn").id
        lifecycle.begin(connection, model, 1, "hr_a", None, ())
        lifecycle.set_alias(connection, model, "champion", 1)
        lineage.add(connection, model, 1, lineage.Origin("s3://data/churn", parent=(model, 1)))
        search.put(connection, model, 1, search.normalise("Café"))
        lives = lifecycle.list_of(connection, [model]), lifecycle.list_aliases(connection)
        change = changes.append(connection, "hr_a", Record("x", "default", "e", None, {"a": 1}), "why")
        changes.remember(connection, "hr_a", "k", b"one", change, b"{}")
        state = read(connection)
    engine.dispose()
    told: dict[str, int] = {}
    assert copy_store(source, target, told.__setitem__) == sum(told.values())
    assert told["tenants"] == told["keys"] == told["changes"] == 1 and told["revisions"] == 3
    engine = open_store(target)
    with transaction(engine) as connection:
        copied = read(connection)
        assert (copied.tenants, copied.keys, copied.models) == (state.tenants, state.keys, state.models)
        assert accounts.key_by_text(connection, text_) == key
        assert changes.replayed(connection, "hr_a", "k", b"one") == Answered(change, b"{}")
        assert (lifecycle.list_of(connection, [model]), lifecycle.list_aliases(connection)) == lives
        assert lineage.children(connection, model, 1) == [(model, 1)] and search.find(connection, "cafe") == {model}
        assert registry.ensure_model(connection, 0, "next").id == model + 1
        assert changes.append(connection, "hr_a", Record("y", "default", "e"), None) == change + 1
        assert read(connection, copied).revision == copied.revision + 1
    engine.dispose()
    with pytest.raises(Conflict, match="has rows already"):
        copy_store(source, target, told.__setitem__)
