"""How `tests/conftest.py` spreads the tests over processes: two of them on real Ray, and nothing is left waiting."""

from __future__ import annotations

import heapq
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

LASTS_S = {"test_bridge_on_ray.py": 30.0, "test_demo.py": 170.0, "test_applications.py": 130.0}


class Worker:
    """Of xdist: it begins a test when it has the next one, or hears that there is none."""

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.queue: list[int] = []
        self.shutting_down = False

    def send_runtest_some(self, indices: list[int]) -> None:
        self.queue += indices

    def shutdown(self) -> None:
        self.shutting_down = True


class Config:
    class option:
        loadscopereorder = False

    def getvalue(self, name: str) -> Any:
        return {"tx": ["3*popen"]}[name]


@pytest.mark.parametrize("of_the_rest_s", [0.1, 1.0, 3.0], ids=["short", "as long", "long"])
def test_two_workers_are_on_real_ray_until_all_of_that_is_done_and_everything_runs_once(
    pytestconfig: pytest.Config, of_the_rest_s: float
) -> None:
    house = pytestconfig.pluginmanager.get_plugin(str(Path(__file__).parents[1] / "conftest.py"))
    files = [*house.ON_REAL_RAY, *(f"test_{number}.py" for number in range(40))]
    tests = [f"tests/{file}::test_{number}" for file in files for number in range(20 if "_on_ray" in file else 3)]
    lines, workers = house.Lines(Config()), [Worker(name) for name in "abc"]
    for worker in workers:
        lines.add_node(worker)
        lines.add_node_collection(worker, tests)
    lines.schedule()

    ran: list[str] = []
    now, ends, busy = 0.0, list[tuple[float, int, int]](), dict[int, str]()
    while True:
        for at, worker in enumerate(workers):
            if at not in busy and len(worker.queue) > (not worker.shutting_down):
                index = worker.queue.pop(0)
                file = tests[index].partition("::")[0].removeprefix("tests/")
                lasts = LASTS_S.get(file, 20.0) if file in house.ON_REAL_RAY else of_the_rest_s
                busy[at] = file
                heapq.heappush(ends, (now + lasts, at, index))
        on_ray = [file for file in busy.values() if file in house.ON_REAL_RAY]
        assert len(on_ray) <= house.RAYS
        assert ran or len(on_ray) == house.RAYS, "they begin first"
        if not ends:
            break
        now, at, index = heapq.heappop(ends)
        del busy[at]
        ran.append(tests[index])
        lines.mark_test_complete(workers[at], index)
    assert sorted(ran) == sorted(tests)
