"""One cluster for the tests that ask what work may see and what becomes of models: `up` costs two cores 20 s."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray_home import Home, SharedHome

from llmsched.cli import placement
from llmsched.executors import endpoint_proxy


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedHome]:
    folder = tmp_path_factory.mktemp("shared")
    try:
        yield SharedHome(folder)
    finally:
        Home(folder / "home").llmsched("down")
        assert endpoint_proxy.running(folder / "home") is None
        placement.forget(folder / "home")
