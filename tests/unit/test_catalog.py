"""What a pack serves, as its node keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec

from headrace.core.errors import Unprocessable
from headrace.core.schema import Signature
from headrace.core.specs import (
    CatalogChange,
    CatalogItem,
    CatalogOrder,
    EngineOptions,
    EntryEvent,
    ServedVersion,
)
from headrace.deploy.catalog import Catalog, Numbers


def item(name: str, revision: int = 1, artifact: str = "/here") -> CatalogItem:
    served = ServedVersion(0, f"t/{name}", 1, "onnx", artifact, "digest", Signature((), ()), EngineOptions())
    return CatalogItem(served, revision)


class Said(list[CatalogChange]):
    """A catalog whose pack keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.catalog = Catalog(self.append, self.near, lambda: None)

    async def near(self, served: ServedVersion, held: list[int]) -> ServedVersion:
        if served.model == "t/lost":
            raise Unprocessable("the artifact is damaged", field="digest")
        return msgspec.structs.replace(served, artifact="/pulled")

    def states(self) -> dict[str, tuple[int, str]]:
        return {entry.model: (entry.slot, entry.state) for entry in self.catalog.entries()}

    async def bring(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_a_number_is_used_again_only_when_all_others_were() -> None:
    numbers = Numbers(3)
    assert [numbers.take(), numbers.take()] == [0, 1]
    numbers.give_back(0)
    assert [numbers.take(), numbers.take(), numbers.take()] == [2, 0, None]


def test_orders_are_told_once_and_what_leaves_takes_its_slot_along() -> None:
    async def test() -> None:
        said = Said()
        said.catalog.open()
        said.catalog.order(CatalogOrder((item("a"), item("b"))))
        said.catalog.order(CatalogOrder((item("a"), item("b"))))
        assert [[i.served.slot for i in change.add] for change in said] == [[0, 1]]
        said.catalog.said(EntryEvent(1, "ready", "", 5000))
        assert said.states() == {"t/a": (0, "waiting"), "t/b": (1, "ready")}
        said.catalog.order(CatalogOrder((item("c"),), (("t/a", 1, 1), ("t/nobody", 1, 1))))
        assert (said[-1].remove, said[-1].add[0].served.slot) == ((0,), 2)
        assert list(said.states()) == ["t/b", "t/c"]

    run(test())


def test_what_is_ordered_before_the_pack_reads_waits_for_it() -> None:
    async def test() -> None:
        said = Said()
        said.catalog.order(CatalogOrder((item("a"),)))
        await said.bring()
        assert said == [] and said.states() == {"t/a": (-1, "pulling")}
        said.catalog.open()
        await said.bring()
        assert said.states() == {"t/a": (0, "waiting")} and len(said) == 1

    run(test())


def test_an_artifact_that_cannot_be_had_fails_its_version_and_may_be_withdrawn() -> None:
    async def test() -> None:
        said = Said()
        said.catalog.open()
        said.catalog.order(CatalogOrder((item("lost", artifact=""), item("far", artifact=""))))
        await said.bring()
        assert said.states() == {"t/lost": (-1, "failed"), "t/far": (0, "waiting")}
        assert said[-1].add[0].served.artifact == "/pulled"
        said.catalog.order(CatalogOrder((), (("t/lost", 1, 1),)))
        assert list(said.states()) == ["t/far"] and len(said) == 1, "the pack never had it"

    run(test())


def test_the_version_that_is_on_trial_is_known_when_the_process_ends() -> None:
    async def test() -> None:
        said = Said()
        said.catalog.open()
        said.catalog.order(CatalogOrder((item("a"), item("b"))))
        assert said.catalog.on_trial() == ""
        said.catalog.said(EntryEvent(1, "loading"))
        assert said.catalog.on_trial() == "t/b@1"
        said.catalog.close()
        assert said.catalog.entries() == ()

    run(test())
