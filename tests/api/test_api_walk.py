"""One apply, counted: see tests/benchmarks/walk.py."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "walk.py"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("LLMSCHED_ADDRESS", "")  # the walk sets them
    monkeypatch.setenv("LLMSCHED_TOKEN", "")
    found = spec_from_file_location("walk", FILE)
    assert found is not None and found.loader is not None
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_a_spec_is_parsed_once_on_either_side_compiled_once_and_written_once_on_either_side(
    benchmark: ModuleType,
) -> None:
    walk = benchmark.walk()
    assert benchmark.spec_steps(walk) == {"parsed": 2, "compiled": 1, "dumped": 2}
    assert {"cli/work.py", "client/core.py", "api/routes.py", "core/scheduler.py", "executors/fake.py"} <= {*walk.files}
