"""The workloads of a request are read one after another, and what is wrong with all of them is said at once."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from live import Live

from llmsched.api import specs
from llmsched.control import turns
from llmsched.errors import SpecError


def task(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "task", "task": {"run": ["true"]}} | more


def test_everybody_has_a_turn_between_two_workloads_of_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "HELD_S", 0.0)
    monkeypatch.setattr(turns, "_held_until", 0.0)  # whatever a test before held

    async def story() -> tuple[int, int]:
        turns_of_another = 0

        async def another() -> None:
            nonlocal turns_of_another
            while True:
                turns_of_another += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(another())
        read = await specs.read([task(f"t{n}") for n in range(50)])
        beside.cancel()
        return len(read), turns_of_another

    read, turns_of_another = asyncio.run(story())
    assert read == 50
    assert turns_of_another >= 50


def test_what_is_wrong_with_each_is_said_at_once_with_its_place() -> None:
    with pytest.raises(SpecError) as refused:
        asyncio.run(specs.read([task("a", num=1), task("b"), 5, task("c", queue=7)]))
    assert [problem.where.split(".")[0] for problem in refused.value.problems] == ["specs[0]", "specs[2]", "specs[3]"]


@pytest.mark.parametrize("route", ["plan", "apply"])
def test_both_routes_say_so_and_take_no_list_that_is_empty_or_too_long(controller: Live, route: str) -> None:
    def answer(given: object) -> dict[str, Any]:
        said = httpx.post(
            f"{controller.url}/api/v1/{route}",
            headers={"authorization": f"Bearer {controller.token}"},
            json={"specs": given},
        )
        assert said.status_code == 422, said.text
        found: dict[str, Any] = said.json()
        return found

    wrong = answer([task("a"), task("b", num_worker=1)])
    assert [problem["where"] for problem in wrong["problems"]] == ["specs[1].num_worker"]
    for none in ([], [task("a")] * 1001, {"a": 1}, None):
        assert "a list of 1 to 1000 workloads" in answer(none)["message"]
