"""The wheel alone is llmsched: whoever installs it needs no checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = "examples/01_fine_tune_and_serve"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("llmsched", "workloads", EXAMPLE):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, str(out)], cwd=source, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    with zipfile.ZipFile(next(out.glob("*.whl"))) as packed:
        return packed.namelist()


def test_every_file_of_the_packages_is_in_the_wheel(wheel: list[str]) -> None:
    ours = {
        file.relative_to(ROOT).as_posix()
        for package in ("llmsched", "workloads")
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert ours - set(wheel) == set()


def test_the_demo_has_its_example(wheel: list[str]) -> None:
    found = {Path(name).name for name in wheel if "/share/llmsched/demo/" in name}
    assert found == {"spec.yaml", "prepare.py", "packages.txt", "sources.txt"}
