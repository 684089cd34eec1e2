"""Folders that work filled go, whatever it did to them."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from llmsched.runtime import environment
from llmsched.runtime.storage import LocalStorage

NOBODY = 65534  # root may write where nobody else may


@pytest.fixture
def place():
    folder = Path(tempfile.mkdtemp(prefix="removing-"))
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        shutil.rmtree(folder)


def locked(folder: Path) -> Path:
    """As Go leaves its cache of modules: folders that nobody may write in, one that nobody may even read, and a link
    to something outside."""
    (folder / "pkg" / "mod").mkdir(parents=True)
    (folder / "pkg" / "mod" / "a.go").write_text("package a")
    (folder / "secret").mkdir()
    (folder / "secret" / "b").write_text("")
    outside = folder.parent / "outside"
    outside.mkdir(mode=0o500)
    (folder / "link").symlink_to(outside)
    for each, mode in (
        (folder / "secret", 0),
        (folder / "pkg" / "mod", 0o500),
        (folder / "pkg", 0o500),
        (folder, 0o500),
    ):
        each.chmod(mode)
    return folder


def test_a_working_folder_that_its_task_made_read_only_goes_with_the_task(place):
    """Before, it stayed on the node for ever."""
    folder = place / "llmsched-task"
    folder.mkdir()
    environment.keep(folder)
    environment.drop(locked(folder))
    assert [each.name for each in place.iterdir()] == ["outside"]
    assert (place / "outside").stat().st_mode & 0o777 == 0o500, "what a link leads to stays as it is"


def test_a_checkpoint_with_read_only_folders_is_deleted_when_newer_ones_are_kept(place):
    storage = LocalStorage(place / "storage")
    locked(place / "storage" / "run" / "0")
    storage.delete("run/0")
    assert not (place / "storage" / "run" / "0").exists()


def test_a_folder_that_is_gone_is_removed_already(place):
    environment.drop(place / "never-made")
