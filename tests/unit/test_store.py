from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from headrace.controlplane import accounts, changes
from headrace.controlplane.store import open_store
from headrace.core.database import metadata, transaction
from headrace.core.errors import Conflict, InvalidInput, TooLarge
from headrace.core.resources import Quota
from headrace.registry.artifacts import Artifacts


def test_the_migrations_make_exactly_the_tables_that_the_code_has(tmp_path: Path) -> None:
    engine = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_only_a_keys_digest_is_stored(tmp_path: Path) -> None:
    engine = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    with transaction(engine) as c:
        accounts.create_tenant(c, "default", Quota())
        row, text = accounts.create_key(c, 0, "admin", "")
        assert accounts.key_by_text(c, text) == row
        assert accounts.key_by_text(c, text + "x") is None
        accounts.revoke_key(c, row.id)
        assert accounts.key_by_text(c, text) is None
    engine.dispose()
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert row.id.encode() in stored
    assert text.rpartition("_")[2].encode() not in stored


def test_bootstrap_makes_one_admin_key_and_keeps_it(tmp_path: Path) -> None:
    engine = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    credentials = tmp_path / "credentials.toml"
    for _ in range(3):
        with transaction(engine) as c:
            accounts.bootstrap(c, credentials, {"url": "http://x"})
            assert len(accounts.list_keys(c)) == 1
    assert credentials.stat().st_mode & 0o777 == 0o600
    engine.dispose()


def test_epochs_are_never_given_twice(tmp_path: Path) -> None:
    engine = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    with transaction(engine) as c:
        assert [changes.reserve_epochs(c, 10) for _ in range(3)] == [1, 11, 21]
    engine.dispose()


def test_an_idempotency_key_is_good_for_one_request(tmp_path: Path) -> None:
    engine = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    record = changes.Record("traffic.set", "default", "m")
    with transaction(engine) as c:
        change = changes.append(c, "hr_1", record, None)
        changes.remember(c, "hr_1", "k", record, change)
        assert changes.replayed(c, "hr_1", "k", "traffic.set", "m") == change
        assert changes.replayed(c, "hr_2", "k", "traffic.set", "m") is None
        with pytest.raises(Conflict, match="was used for"):
            changes.replayed(c, "hr_1", "k", "traffic.set", "other")
    engine.dispose()


def test_an_artifact_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path, 1000)
    digest = hashlib.sha256(b"abc").hexdigest()
    with artifacts.put(digest) as upload:
        upload.write(b"ab")
    assert artifacts.size(digest) is None
    with artifacts.put(digest) as upload, pytest.raises(InvalidInput, match="digest"):
        upload.write(b"abd")
        upload.commit()
    assert artifacts.size(digest) is None
    with artifacts.put(digest) as upload, pytest.raises(TooLarge):
        upload.write(bytes(1001))
    with artifacts.put(digest) as upload:
        upload.write(b"abc")
        upload.commit()
    assert artifacts.size(digest) == 3
    assert list((tmp_path / "incoming").iterdir()) == []
    with pytest.raises(InvalidInput, match="64 lower-case hex"):
        artifacts.path("../../etc/passwd")
