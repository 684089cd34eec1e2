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

del os.environ["RAY_ENABLE_AUTO_CONNECT"]

# The suite tries the same examples each time, on a busy machine too; EXAMPLES=2000 tries that many new ones.
settings.register_profile(
    "suite", derandomize="EXAMPLES" not in os.environ, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


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
