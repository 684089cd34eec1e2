from __future__ import annotations

import os
from collections.abc import Iterator
from inspect import unwrap
from pathlib import Path

# Ray starts one by itself for whoever calls it unconnected, and ends that process with its own: a test's thread that
# outlives its test once ended the tests so. Ray reads this when it is imported; what tests start must not see it.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
import httpx  # noqa: E402
import pytest  # noqa: E402
import ray  # noqa: E402, F401
from hypothesis import HealthCheck, settings  # noqa: E402
from xdist.scheduler import LoadFileScheduling  # noqa: E402
from xdist.workermanage import WorkerController  # noqa: E402

del os.environ["RAY_ENABLE_AUTO_CONNECT"]

# The suite tries the same examples each time, on a busy machine too; EXAMPLES=2000 tries that many new ones.
settings.register_profile(
    "suite", derandomize="EXAMPLES" not in os.environ, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

# httpx gives up after five seconds where nothing else is said. A busy machine answers later, and hardly a test is about
# that: one that read ten pages failed once in some hundred runs.
PLAIN = (httpx.request, httpx.stream, httpx.get, httpx.post, httpx.put)
for asks in (httpx.Client.__init__, httpx.AsyncClient.__init__, *PLAIN):
    unwrap(asks).__kwdefaults__["timeout"] = httpx.Timeout(60)

# Files of tests on real Ray, in the order in which they begin: long ones first, so that short ones even out the end.
# Those of one name share a cluster, and run one after the other in this order, as each finds what the one before left.
ON_REAL_RAY = {
    "test_attempts_on_ray.py": "a cluster of two nodes",
    "test_bridge_on_ray.py": "a cluster of two nodes",
    "test_mishaps.py": "mishaps",
    "test_applications.py": "",  # each on a cluster of its own
    "test_played_by_the_simulator.py": "a cluster of one node",
    "test_preempt_and_resume.py": "a cluster of one node",
    "test_secrets_and_models.py": "a cluster of one node",
    "test_two_users.py": "a cluster of one node",
    "test_demo.py": "demo",
    "test_gateway_ray.py": "gateway",
    "test_ray_up.py": "ray up",
}
FIRST = {name: place for place, name in enumerate(ON_REAL_RAY)}
RAYS = 2  # at a time: they wait and compute by turns, so two and one line of other tests keep two cores busy
ALONE = ("test_worlds.py", "test_sim_published.py")  # their tests are long and share nothing


class Lines(LoadFileScheduling):
    """`-n 3 --dist loadfile --no-loadscope-reorder`: RAYS workers do what is on real Ray, and then help the others with
    the rest. Of that, the tests of a file stay together, as they share what their fixtures start."""

    def _split_scope(self, nodeid: str) -> str:
        name = Path(nodeid.partition("::")[0]).name
        if name in ON_REAL_RAY:
            return f"real Ray: {ON_REAL_RAY[name] or nodeid}"
        return nodeid if name in ALONE else str(super()._split_scope(nodeid))

    def _reschedule(self, node: WorkerController) -> None:
        # A worker begins a test when it knows the next one. More in hand would be taken from who is done earlier.
        if self.workqueue and self._pending_of(self.assigned_work[node]) > 1:
            return
        if self.workqueue and self._next_for(node) is None and not node.shutting_down:
            node.shutdown()
        super()._reschedule(node)

    def _assign_work_unit(self, node: WorkerController) -> None:
        if (scope := self._next_for(node)) is not None:
            self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)

    def _next_for(self, node: WorkerController) -> str | None:
        """None: what is left is on real Ray, and RAYS workers are."""
        others = (units for other, units in self.assigned_work.items() if other is not node)
        rays = sum(
            any(self._is_on_ray(scope) and not all(units[scope].values()) for scope in units) for units in others
        )
        rest = next((scope for scope in self.workqueue if not self._is_on_ray(scope)), None)
        return rest if rays >= RAYS else next(filter(self._is_on_ray, self.workqueue), rest)

    @staticmethod
    def _is_on_ray(scope: str) -> bool:
        return scope.startswith("real Ray")


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    return Lines(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real Ray first: it takes longest, and its tests have ten minutes each."""
    for item in items:
        if item.get_closest_marker("ray"):
            if item.path.name not in ON_REAL_RAY:
                raise pytest.UsageError(f"{item.path.name} has tests on real Ray: it needs a line in ON_REAL_RAY")
            item.add_marker(pytest.mark.timeout(600))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: FIRST.get(item.path.name, len(FIRST)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name a failure when it happens: whoever watches the suite need not wait for its end to look."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.outcome}: {report.nodeid}", flush=True)


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A controller with two nodes of four pretend A100, shared by the tests of a module. See live.py."""
    from live import live

    with live(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[object]:
    """The same for one test, with nothing on it."""
    from live import live

    with live(tmp_path) as running:
        yield running
