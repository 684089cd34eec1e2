"""What left the state is found at every moment, also while the store is still writing it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from llmsched.control.archive import StoreArchive
from llmsched.core.records import WorkloadState
from llmsched.spec.compile import compile_workload
from llmsched.spec.load import load_json
from llmsched.store.journal import Batch
from llmsched.store.memory import MemoryStore
from llmsched.store.tables import ArchiveQuery

QUERIES = [
    ArchiveQuery(9),
    ArchiveQuery(2),
    ArchiveQuery(9, user="eve", queues=("red",)),
    ArchiveQuery(9, after_age=(3.0, "w3")),
    ArchiveQuery(9, name="w2"),
]


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    made = MemoryStore()
    made.open()
    made.take_over("test", made.lease())
    yield made
    made.close()


def ended(n: int) -> WorkloadState:
    spec = {"name": f"w{n}", "kind": "task", "task": {"run": ["true"]}, "resources": {"cpus": 1}}
    workload = replace(
        compile_workload(load_json(spec)), user="eve" if n % 2 else "ann", queue="red" if n > 3 else "blue"
    )
    record = WorkloadState(workload, float(n), [], {})
    record.outcome, record.finished_at = "succeeded", n + 1.0
    return record


def ids(archive: StoreArchive, query: ArchiveQuery) -> list[str]:
    return [record.workload.id for record in archive.select(query)]


@pytest.mark.parametrize("query", QUERIES)
def test_what_is_being_written_is_listed_before_while_and_after(store: MemoryStore, query: ArchiveQuery) -> None:
    archive = StoreArchive(store)
    for n in range(6):
        archive.put(ended(n))
    before = ids(archive, query)
    assert before
    rows = archive.unwritten()
    assert ids(archive, query) == before  # taken, and not written yet
    store.commit(Batch(9.0, (), rows)).result()
    assert ids(archive, query) == before  # written, and not said so yet: none is there twice
    archive.written(rows)
    assert (archive.unwritten(), ids(archive, query)) == ([], before)
