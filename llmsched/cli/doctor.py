"""doctor: what on this machine would get in the way, each with what to do. Changes nothing."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import click

from llmsched import versions
from llmsched.cli import show

# Below `least` nothing is started (known holes), below `better` it works and is not what we test with.
PACKAGES = {
    "ray": ((2, 56), (2, 60)),
    "torch": (None, (2, 10)),
    "transformers": (None, (5, 0)),
    "vllm": (None, (0, 18)),
}
OPTIONAL = ("vllm", "peft")
DISK_LEAST_GB = 2.0
DISK_BETTER_GB = 10.0


class Check(NamedTuple):
    name: str
    result: str  # ok | warn | fail
    detail: str
    hint: str = ""


@click.command()
@show.json_option
def doctor() -> None:
    """Check this machine: versions, folders, tokens, users, controller, disk."""
    from llmsched.client.transport import default_home

    home = default_home()
    checks = [*_versions(), _sqlite(), *_folder(home), *_users(home), _disk(home), _controller(home)]
    show.checks(checks)
    if any(check.result == "fail" for check in checks):
        click.get_current_context().exit(4)


def _versions() -> Iterator[Check]:
    python = ".".join(map(str, sys.version_info[:3]))
    fine = sys.version_info >= (3, 11)
    yield Check("python", "ok" if fine else "fail", python, "" if fine else "llmsched needs Python 3.11 or newer.")
    yield Check("llmsched", "ok", versions.own())
    for name, (least, better) in PACKAGES.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            if name not in OPTIONAL:
                yield Check(name, "fail", "not installed", f"Install it: pip install {name}.")
            continue
        numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdigit())
        if least and numbers < least:
            yield Check(name, "fail", found, f"Versions before {'.'.join(map(str, least))} have known security holes.")
        elif numbers < better:
            yield Check(name, "warn", found, f"Tested with {'.'.join(map(str, better))} and newer.")
        else:
            yield Check(name, "ok", found)


def _sqlite() -> Check:
    found = sqlite3.sqlite_version_info
    fixed = found >= (3, 51, 3) or (found[:2] == (3, 50) and found >= (3, 50, 7)) or (3, 44, 6) <= found < (3, 45)
    if fixed or found < (3, 7, 0):
        return Check("sqlite", "ok", sqlite3.sqlite_version)
    detail = f"{sqlite3.sqlite_version} (its WAL can lose commits when two connections write)"
    return Check(
        "sqlite", "warn", detail, "llmsched works around it with one writer; do not open state.sqlite yourself."
    )


def _folder(home: Path) -> Iterator[Check]:
    if not home.exists():
        yield Check("home", "ok", f"{home} (will be made by llmsched up)")
        return
    for name, path, allowed in (("home", home, 0o700), ("token", home / "token", 0o600)):
        if not path.exists():
            yield Check(name, "warn", f"{path} is not there", "llmsched up makes it.")
            continue
        mode = path.stat().st_mode & 0o777
        if mode & ~allowed:
            yield Check(name, "fail", f"{path} is open to others ({mode:o})", f"chmod {allowed:o} {path}")
        else:
            yield Check(name, "ok", f"{path} ({mode:o})")


def _users(home: Path) -> Iterator[Check]:
    """Whom Ray runs as, and whether that keeps work from the home."""
    from llmsched.api import home as homes
    from llmsched.errors import LlmschedError
    from llmsched.executors import local_ray, ray_user

    known = homes.isolation(home)
    running = local_ray.read(home)
    if known is None:
        choice = ray_user.choose(None, make=False)
        missing = choice.user is None and ray_user.find(ray_user.DEFAULT) is None and os.geteuid() == 0
        if missing:
            yield Check("users", "ok", f"llmsched up makes {ray_user.DEFAULT}, whom Ray will run as")
        elif choice.user is None:
            yield Check("users", "warn", "single-user mode: tokens will be labels", choice.why)
        else:
            yield Check("users", "ok", f"Ray will run as {choice.user.name}")
        return
    if known.mode == "single-user":
        yield Check("users", "warn", "single-user mode: tokens are labels, work may read the home", known.why)
    if known.mode != "two-users":
        return
    if running is not None and running.user != known.ray_user:
        said = f"Ray runs as {running.user or 'the user of the controller'}, and not as {known.ray_user}"
        yield Check("users", "fail", said, "llmsched down, then llmsched up.")
        return
    try:
        user = ray_user.choose(known.ray_user, make=False).user
    except LlmschedError as error:
        yield Check("users", "fail", error.message, error.hint)
        return
    if user is None or _may_read(user, home):
        yield Check("users", "fail", f"{known.ray_user} may read {home}", f"chown root {home}; chmod 700 {home}")
    else:
        yield Check("users", "ok", f"Ray runs as {user.name}, who can read nothing in {home}")


def _may_read(user: Any, home: Path) -> bool:
    from llmsched.executors import ray_user

    try:
        with ray_user.acting_as(user):
            next(home.iterdir(), None)
            return True
    except PermissionError:
        return False


def _disk(home: Path) -> Check:
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(place).free / 1e9
    result = "fail" if free < DISK_LEAST_GB else "warn" if free < DISK_BETTER_GB else "ok"
    hint = "" if result == "ok" else "Models, checkpoints and logs need room; see --storage of llmsched up."
    return Check("disk", result, f"{free:.0f} GB free at {place}", hint)


def _controller(home: Path) -> Check:
    from llmsched.client import Client
    from llmsched.errors import LlmschedError

    try:
        with Client(home=home) as client:
            health = client.health()
    except LlmschedError as error:
        stopped = error.code == "no_controller"
        return Check("controller", "warn" if stopped else "fail", error.message, error.hint)
    detail = f"{client.url}, {health.status}" + (f": {health.message}" if health.message else "")
    return Check("controller", "ok" if health.status == "ready" else "warn", detail)
