from __future__ import annotations

from collections.abc import Iterator

import pytest
from waiting import has_ended

from llmsched.executors import local_ray


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """One Ray for the modules that use it, one after the other, and gone before others. See lab.py."""
    from lab import Lab

    home = tmp_path_factory.mktemp("lab")
    try:
        lab = Lab(home)
        yield lab
        assert lab.bridge.close(stop_everything=True) == 0
    finally:
        local_ray.stop(home)
    assert all(has_ended(process.pid) for process in lab.cluster.processes)
