"""History by pages: what left the state is listed, found, told and counted as before, to whoever may see it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from waiting import PATIENCE_S

from llmsched.api import lists
from llmsched.api.app import ROUTERS
from llmsched.control import housekeeping
from llmsched.control.authorization import Permissions, Person
from llmsched.control.controller import Controller
from llmsched.control.roles import AUDITOR
from llmsched.core import archive
from llmsched.errors import RequestError
from llmsched.executors.fake import FakeExecutor, NodeKind, Script
from llmsched.spec.load import load_json
from llmsched.store.sqlite import SqliteStore

LIMITS = {"active": 10, "waiting": 10, "ended": 4}


def task(name: str, **more: Any) -> Any:
    return load_json({"name": name, "kind": "task", "task": {"run": ["true"]}, "resources": {"cpus": 1}} | more)


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


def everything(controller: Controller, user: str, role: str = "submitter") -> list[str]:
    """Ids of all pages, in the order in which they come."""
    permissions = Permissions(Person(user, role), controller.state.configuration)
    page = lists.workloads(controller, permissions, LIMITS, None)
    found = [view.id for view in page.workloads]
    while page.next:
        page = lists.workloads(controller, permissions, LIMITS, page.next[0])
        found += [view.id for view in page.workloads]
    return found


def test_ended_work_is_listed_and_known_after_it_left_the_state_and_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "ENDED_KEPT", 3)
    monkeypatch.setattr(archive, "AT_ONCE", 2)
    monkeypatch.setattr(housekeeping, "SNAPSHOT_EVERY", 10)
    path = tmp_path / "state.sqlite"
    mine, hers = [f"m{n}" for n in range(9)], [f"h{n}" for n in range(4)]

    async def life(check: bool) -> None:
        executor = FakeExecutor([NodeKind(1, "A100")])
        executor.cluster.script = lambda order: Script(runs_for_s=0.0)
        controller = Controller(SqliteStore(path), executor, storage=str(tmp_path))
        running = asyncio.create_task(controller.run())
        await controller.started.wait()
        if not check:
            for name in (*mine, *hers):
                await controller.submit([task(name)], user="ann" if name in mine else "eve")
                await until(lambda name=name: controller.state.find(name).outcome)
            await until(lambda: controller.state.archived.total() >= 8)
        assert everything(controller, "ann") == mine[::-1]
        assert everything(controller, "eve") == hers[::-1]
        assert everything(controller, "zoe") == []
        assert everything(controller, "zoe", AUDITOR) == [*hers[::-1], *mine[::-1]]
        old = controller.state.newest("m0")
        assert old is not None and old.phase == "succeeded" and "m0" not in controller.state.workloads
        assert [type(item.entry).__name__ for item in controller.entries(0, "m0")][:2] == ["Submitted", "Launch"]
        (again,) = await controller.submit([task("m0")], user="ann")
        assert again.outcome == "unchanged"
        with pytest.raises(RequestError, match="not free"):
            await controller.submit([task("m0")], user="eve")
        (planned,) = await controller.plan([task("next", after=["m0"])], user="ann")
        assert (planned.outcome, planned.starts_now) == ("created", True)
        await controller.stop()
        await running

    asyncio.run(life(check=False))
    asyncio.run(life(check=True))


def test_who_changes_the_group_between_two_pages_of_every_one_is_on_the_second(tmp_path: Path) -> None:
    """A count of 3,000 submissions once missed 128 that had ended while their list was read."""

    async def life() -> None:
        controller = Controller(SqliteStore(tmp_path / "state.sqlite"), FakeExecutor([NodeKind(1, "A100")]), storage="")
        running = asyncio.create_task(controller.run())
        await controller.started.wait()
        for name in ("a", "b", "c", "d"):
            await controller.submit([task(name, resources={"cpus": 64})], user="ann")
        permissions = Permissions(Person("ann", "submitter"), controller.state.configuration)
        first = lists.workloads(controller, permissions, {"every": 2}, None)
        await controller.cancel("b", "ann")
        second = lists.workloads(controller, permissions, {"every": 2}, first.next[0])
        assert [view.id for view in (*first.workloads, *second.workloads)] == ["d", "c", "b", "a"]
        assert (second.workloads[0].phase, second.next) == ("cancelled", [])
        await controller.stop()
        await running

    asyncio.run(life())


@pytest.mark.parametrize("cursor", ["", "ended", "ended~x~y", "elsewhere~1.0~a"])
def test_a_cursor_that_is_none_is_refused(cursor: str) -> None:
    with pytest.raises(RequestError, match="is no cursor"):
        lists.Cursor.read(cursor)


def test_every_whole_number_of_a_query_has_an_upper_bound() -> None:
    """Beyond it the store would be asked for what no column holds."""
    app = FastAPI()
    for router in ROUTERS:
        app.include_router(router)
    numbers = 0
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            for given in operation.get("parameters", ()):
                for schema in given["schema"].get("anyOf", [given["schema"]]):
                    if schema.get("type") == "integer":
                        numbers += 1
                        assert "maximum" in schema, f"{method} {path}: {given['name']}"
    assert numbers >= 8
