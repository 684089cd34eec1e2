from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Ray starts one by itself for whoever calls it unconnected, and ends that process with its own: a test's thread that
# outlives its test once ended the tests so. Ray reads this when it is imported; what tests start must not see it.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
import pytest  # noqa: E402
import ray  # noqa: E402, F401
from hypothesis import HealthCheck, settings  # noqa: E402
from xdist.scheduler import LoadFileScheduling  # noqa: E402

del os.environ["RAY_ENABLE_AUTO_CONNECT"]

# The suite tries the same examples each time, on a busy machine too; EXAMPLES=2000 tries that many new ones.
settings.register_profile(
    "suite", derandomize="EXAMPLES" not in os.environ, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

# Files of tests on real Ray, in two lines of about the same length: of each line, one test after the other.
ON_REAL_RAY = {
    "test_demo.py": 1,
    "test_mishaps.py": 1,
    "test_played_by_the_simulator.py": 1,  # with the next three on one cluster
    "test_preempt_and_resume.py": 1,
    "test_secrets_and_models.py": 1,
    "test_two_users.py": 1,
    "test_applications.py": 2,
    "test_attempts_on_ray.py": 2,
    "test_bridge_on_ray.py": 2,
    "test_gateway_ray.py": 2,
    "test_ray_up.py": 2,
}
ALONE = ("test_worlds.py", "test_sim_published.py")  # their tests are long and share nothing


class Lines(LoadFileScheduling):
    """`-n 3 --dist loadfile --no-loadscope-reorder`: two Rays are up at a time at most, and who comes to the end of a
    line helps with the rest. Of that, the tests of a file stay together, as they share what their fixtures start."""

    def _split_scope(self, nodeid: str) -> str:
        name = Path(nodeid.partition("::")[0]).name
        if name in ON_REAL_RAY:
            return f"real Ray {ON_REAL_RAY[name]}"
        return nodeid if name in ALONE else str(super()._split_scope(nodeid))


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
        items.sort(key=lambda item: ON_REAL_RAY.get(item.path.name, 3))


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
