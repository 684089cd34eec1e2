"""What a loop or an app starts through Ray imports what it does: in processes that Ray begins with `nested.enter`."""

import os
import subprocess
import sys

import pytest

from llmsched.runtime import environment, nested
from llmsched.runtime.containment import OWNER
from llmsched.runtime.packages import Packages

LOOKS = f"import sys; before = list(sys.path); import {nested.__name__} as it; it.enter()\n"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv(OWNER, "llms/a/0/1@cluster")
    nested._folder.cache_clear()
    yield
    nested.drop()


def of(owner, code):
    envs = {**os.environ, OWNER: owner}
    return subprocess.run(
        [sys.executable, "-c", LOOKS + code], env=envs, capture_output=True, text=True, check=False, cwd="/"
    )


def test_a_process_of_the_same_owner_imports_its_workdir_and_its_packages(tmp_path):
    nested.place_for_code().mkdir()
    (nested.place_for_code() / "mine.py").write_text("x = 1")
    packages = Packages(tmp_path / "packages")
    packages.site.mkdir(parents=True)
    (packages.site / "theirs.py").write_text("y = 2")
    nested.offer(packages)
    found = of("llms/a/0/1@cluster", "import mine, theirs; print(mine.x, theirs.y)")
    assert found.stdout == "1 2\n", found.stderr


@pytest.mark.parametrize(
    "owner", ["llms/a/0/11@cluster", "llms/a/0/1@another", "llms/a/0@cluster", "", "llms/a/0/1@cluster-aaaaaaaa", "*"]
)
def test_a_process_of_another_owner_finds_nothing_and_goes_on(owner):
    nested.place_for_code().mkdir()
    assert of(owner, "print(sys.path == before)").stdout == "True\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_what_somebody_else_has_laid_there_is_not_imported(tmp_path):
    """Anybody may make folders beside ours, of any name."""
    theirs = tmp_path / "llmsched-code-llms-b-0-1@cluster-00000000"
    (theirs / "workdir").mkdir(parents=True)
    os.chown(theirs, 12345, 12345)
    assert of("llms/b/0/1@cluster", "print(sys.path == before)").stdout == "True\n"


def test_what_was_laid_out_goes_with_its_process(tmp_path):
    nested.place_for_code().mkdir()
    nested.drop()
    assert not list(tmp_path.glob(f"{environment.OURS}*"))
