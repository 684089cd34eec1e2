"""What a loop or an app starts through Ray imports the same code. Ray runs it in processes of its own, which have
neither the packed workdir nor the packages of a workload.

A rank or a replica lays both out in a folder that is named after its owner. Ray calls `enter` first of all in each
process that is made from there, as a variable of Ray's runtime environment says (`containment.envs_of`). An actor on a
node without a member of the gang finds none. Commands need it not: Ray hands on where its drivers import from.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from llmsched.runtime import environment
from llmsched.runtime.containment import OWNER
from llmsched.runtime.packages import Packages

_CODE, _PACKAGES = "workdir", "packages"
_MADE = re.compile(r"[a-z0-9_]{8}")  # what `tempfile.mkdtemp` puts behind a name


@cache
def _folder() -> Path:
    """Of this process, in which others of its owner look."""
    return environment.scratch(_name(os.environ.get(OWNER, "nobody")))


def _name(owner: str) -> str:
    return f"code-{owner}".replace("/", "-")


def place_for_code() -> Path:
    """Where the workdir is to be unpacked, to be found by what this process starts through Ray."""
    return _folder() / _CODE


def offer(packages: Packages) -> None:
    """The same of packages that this process has entered."""
    (_folder() / _PACKAGES).symlink_to(packages.folder)


def drop() -> None:
    environment.drop(_folder())
    _folder.cache_clear()


def enter() -> None:
    """Let this process import what its owner does. Nobody is ended because it fails."""
    with suppress(Exception):
        begin = f"{environment.OURS}{_name(os.environ[OWNER])}-"
        for folder in Path(tempfile.gettempdir()).glob(f"{begin}*/"):
            if _MADE.fullmatch(folder.name.removeprefix(begin)) and folder.lstat().st_uid == os.geteuid():
                if (there := folder / _PACKAGES).exists():
                    Packages(there.resolve()).enter()
                sys.path.insert(0, str(folder / _CODE))
                return
