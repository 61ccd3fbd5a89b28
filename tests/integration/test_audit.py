"""The audit's hash chain: whoever alters the store's file is found out, and the row is named."""

from __future__ import annotations

import logging
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.controlplane.changes import Record, append
from tests.integration.control import Control, control

HASH = "0" * 64


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Control]:
    """A control plane with ten changes in its audit."""
    with control(tmp_path) as one:
        while one.do("GET", "/audit/head")["change"] < 10:
            one.do("POST", "/keys", {"role": "viewer", "label": "Anlaß: 5:hello,"})
        yield one


def alter(served: Control, *statements: str) -> None:
    """What somebody with access to the file does."""
    with sqlite3.connect(served.folder / "headrace.db") as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def broken(served: Control, query: str = "") -> tuple[int, str]:
    found = served.do("GET", f"/audit/verify{query}")
    assert not found["ok"]
    return found["broken"]["change"], found["broken"]["reason"]


def test_what_is_as_it_was_written_is_so_said(served: Control) -> None:
    head = served.do("GET", "/audit/head")
    found = served.do("GET", f"/audit/verify?anchor={head['change']}:{head['hash']}")
    assert found == {"ok": True, "checked": 10, "head": head, "broken": None}
    last = served.do("GET", "/changes?limit=1")["items"][0]
    assert (last["id"], last["hash"]) == (head["change"], head["hash"])
    part = served.do("GET", f"/audit/verify?since={head['at']}")
    assert part["ok"] and 1 <= part["checked"] <= 10
    assert served.do("GET", "/audit/verify?since=2999-01-01T00:00:00Z")["checked"] == 0


@pytest.mark.parametrize("column", ["at", "actor", "action", "tenant", "entity", "before", "after", "reason", "undo"])
def test_a_changed_row_is_named(served: Control, column: str) -> None:
    alter(served, f"UPDATE changes SET \"{column}\" = 'another' WHERE id = 4")
    assert broken(served) == (4, "its content is not what was written, or the row before it is not")
    assert served.do("GET", "/audit/verify")["checked"] == 3


def test_null_and_empty_are_not_the_same(served: Control) -> None:
    alter(served, "UPDATE changes SET reason = '' WHERE id = 4 AND reason IS NULL")
    assert broken(served)[0] == 4


def test_a_row_taken_out_is_found(served: Control) -> None:
    alter(served, "DELETE FROM changes WHERE id = 4")
    assert broken(served) == (5, "change 4 is missing before it")


def test_a_row_taken_out_and_the_others_moved_up_is_found(served: Control) -> None:
    alter(served, "DELETE FROM changes WHERE id = 4", "UPDATE changes SET id = id - 1 WHERE id > 4")
    assert broken(served)[0] == 4


def test_rows_that_changed_places_are_found(served: Control) -> None:
    swap = ["UPDATE changes SET id = -1 WHERE id = 4", "UPDATE changes SET id = 4 WHERE id = 5"]
    alter(served, *swap, "UPDATE changes SET id = 5 WHERE id = -1")
    assert broken(served)[0] == 4


def test_a_row_put_in_is_found(served: Control) -> None:
    alter(
        served,
        "INSERT INTO changes SELECT 11, at, actor, action, tenant, entity, before, after, reason, undo, hash "
        "FROM changes WHERE id = 10",
    )
    assert broken(served)[0] == 11


def test_rows_cut_from_the_end_are_found_by_the_counter(served: Control) -> None:
    alter(served, "DELETE FROM changes WHERE id > 7")
    assert broken(served) == (8, "changes 8 to 10 are missing from the end")


def test_a_cut_that_sets_the_counter_back_too_is_found_by_the_anchor_only(served: Control) -> None:
    head = served.do("GET", "/audit/head")
    alter(served, "DELETE FROM changes WHERE id > 7", "UPDATE counters SET value = 8 WHERE name = 'change'")
    assert served.do("GET", "/audit/verify")["ok"]  # what the chain alone cannot tell
    assert broken(served, f"?anchor={head['change']}:{head['hash']}") == (10, "it is not there any more")
    served.do("POST", "/keys", {"role": "viewer"})  # and when it has grown again
    served.do("POST", "/keys", {"role": "viewer"})
    served.do("POST", "/keys", {"role": "viewer"})
    assert broken(served, f"?anchor={head['change']}:{head['hash']}") == (10, "its hash is not the anchor's")


def test_any_one_byte_of_any_row_counts(served: Control) -> None:
    with sqlite3.connect(served.folder / "headrace.db") as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(changes)")]
        rows = connection.execute("SELECT * FROM changes ORDER BY id").fetchall()
        chosen = random.Random(3).sample([(r, c) for r in range(10) for c in range(1, len(names)) if rows[r][c]], 12)
        for row, column in chosen:
            text = rows[row][column]
            where = (rows[row][0],)
            connection.execute(f'UPDATE changes SET "{names[column]}" = ? WHERE id = ?', (text[:-1] + "\x7f", *where))
            connection.commit()
            assert broken(served)[0] == rows[row][0], names[column]
            connection.execute(f'UPDATE changes SET "{names[column]}" = ? WHERE id = ?', (text, *where))
            connection.commit()
    connection.close()
    assert served.do("GET", "/audit/verify")["ok"]


def test_a_change_that_fails_leaves_no_gap_and_what_is_committed_is_in_the_log(
    served: Control, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(c: Any) -> None:
        append(c, "hr_a", Record("model.update", "default", "churn"), None)
        raise RuntimeError

    with caplog.at_level(logging.INFO, "headrace.controlplane.store"):
        with pytest.raises(RuntimeError):
            served.run(served.store.run(fails))
        assert caplog.records == []
        served.do("POST", "/keys", {"role": "viewer"})
    head = served.do("GET", "/audit/head")
    assert head["change"] == 11 and served.do("GET", "/audit/verify")["ok"]
    assert [(r.change, r.hash) for r in caplog.records] == [(11, head["hash"])]  # type: ignore[attr-defined]


def test_who_may_not_and_what_is_no_anchor(served: Control) -> None:
    operator = served.key_of("operator")
    for path in ("/audit/head", "/audit/verify"):
        assert served.refused("GET", path, key=operator).status == 403
    for anchor in ("", "5", f"0:{HASH}", f"5:{HASH[:-1]}", f"5:{HASH.replace('0', 'G')}"):
        assert served.refused("GET", f"/audit/verify?anchor={anchor}").field == "anchor"
    assert served.refused("GET", "/audit/verify?since=yesterday").field == "since"
