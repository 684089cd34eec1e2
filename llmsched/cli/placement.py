"""As which user Ray is to run beside the controller of a home, and where results lie so that both can reach them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

from llmsched.api import home, storage_claim
from llmsched.errors import ClusterError, RequestError
from llmsched.executors import local_ray, ray_environment, ray_user
from llmsched.executors.ray_user import Choice, RayUser


class Placement(NamedTuple):
    """`user` is whom Ray runs as; None: the controller's own, for the reason `why`. `storage` is where results lie, and
    `aside` where those lie now that a home left there which is gone."""

    user: RayUser | None
    why: str
    storage: str
    aside: str = ""


def choose(folder: Path, asked: str | None, *, address: str | None, storage: str | None) -> Placement:
    """Two users where they can be had. Raises RequestError when `asked` by name cannot be had, or is not who the Ray
    runs as that is joined, or when results would lie in the home."""
    found = _chosen(folder, asked, address)
    known = home.isolation(folder)
    is_new = not home.store_file(folder).exists()
    place = storage or (known.storage if known and known.mode else "")  # pretended work left nothing to go on from
    if place:
        home.refuse_in_home(folder, place)
    if found.user is None:
        if place:
            return Placement(None, found.why, place)
        aside = _set_aside(Path(home.default_storage(folder))) if is_new else ""
        return Placement(None, found.why, _made(home.default_storage(folder)), aside)
    aside = ""
    if not place:
        place = str(ray_user.folder_of(found.user, folder) / "storage")
        if is_new:
            with ray_user.acting_as(found.user):
                aside = _set_aside(Path(place))
    trouble = _trouble_with(found.user, place)
    if not trouble:
        return Placement(found.user, "", place, aside)
    if asked is not None or local_ray.read(folder) is not None:
        raise RequestError(
            f"{trouble}.",
            code="ray_user",
            hint=f"Give it a folder of its own with --storage, or let one user run both: --ray-user {ray_user.own()}.",
        )
    return Placement(None, f"{trouble}. Give --storage a folder that {found.user.name} may write to", place, aside)


def _set_aside(storage: Path) -> str:
    """Move away what a home of this name has left that is gone: its results would be taken for those of new work of the
    same name. Where to; "" where there is nothing."""
    if not (storage / storage_claim.NOTE).exists():
        return ""
    aside = next(place for number in count(1) if not (place := Path(f"{storage}-before-{number}")).exists())
    storage.rename(aside)
    return str(aside)


def _made(storage: str) -> str:
    try:
        Path(storage).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ClusterError(
            f"results would lie in {storage}, which cannot be made: {error.strerror}.",
            code="storage",
            hint="Give --storage a folder to write to.",
        ) from None
    return storage


def _chosen(folder: Path, asked: str | None, address: str | None) -> Choice:
    running = local_ray.read(folder) if address is None else None
    if address is None and (running is None or not running.is_alive()):
        return ray_user.choose(asked)
    if os.geteuid() != 0:
        return ray_user.choose(asked)  # nobody else can be had
    there = (running.user or ray_user.own()) if running else ray_user.owner_of(address or "")
    if there is None and asked is None:
        return Choice(None, f"it is not known whom the Ray at {address} runs as. Say it with --ray-user")
    if there is not None and asked is not None and there != asked:
        raise RequestError(
            f"that Ray runs as {there}, not as {asked}.", code="ray_user", hint="End it first, or leave --ray-user out."
        )
    return ray_user.choose(asked or there)


def _trouble_with(user: RayUser, storage: str) -> str:
    """Why `user` cannot write there; "" if it can, or if that is no folder of this machine. It is made if need be."""
    if "://" in storage and not storage.startswith("file://"):
        return ""
    path = Path(storage.removeprefix("file://")).absolute()
    if ray_user.hidden(user, path):
        return f"{user.name} cannot reach {path}"
    try:
        with ray_user.acting_as(user):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
    except OSError as error:
        return f"{user.name} cannot write to {path}: {error.strerror}"
    return ""


def give_up(folder: Path, place: Placement) -> None:
    """Nothing was started: folders that were made for results and are empty go again."""
    ours = place.user is not None and ray_user.folder_of(place.user, folder)
    with ray_user.acting_as(place.user), suppress(OSError):  # of what is not empty
        Path(place.storage.removeprefix("file://")).rmdir()
        if ours and Path(place.storage).parent == ours:
            ours.rmdir()


def forget(folder: Path) -> None:
    """Remove a home, and what the user that Ray ran as has kept for it. Nothing may run there any more."""
    known = home.isolation(folder)
    user = ray_user.find(known.ray_user) if known and known.ray_user else None
    if user is not None:
        with ray_user.acting_as(user):
            shutil.rmtree(ray_user.folder_of(user, folder), ignore_errors=True)
    shutil.rmtree(home.default_storage(folder), ignore_errors=True)
    shutil.rmtree(folder)


def notes(folder: Path, place: Placement, env: Sequence[str]) -> Iterator[str]:
    """What an operator should know before anything starts. Raises SpecError for `env` that cannot be handed on."""
    left_out = ray_environment.build(os.environ, place.user, env).left_out
    if place.aside:
        yield f"This home is new. What one of its name left before lies in {place.aside} now."
    if place.user is None:
        yield f"Single-user mode: {place.why.rstrip('.')}."
        others = sorted({one.user for one in home.made_records(folder)} - {home.user_name()})
        if others:
            yield f"Tokens are labels in it, also those of {', '.join(others)}: whoever may submit can read them all."
        return
    name = place.user.name
    for closed, paths in ray_user.closed(place.user, ray_user.code()).items():
        shown = ", ".join(map(str, paths))
        yield f"Ray runs as {name}, who may not enter {closed}: of it, it sees {shown}, and cannot write there."
    for variable in left_out:
        yield f"{variable} names what {name} cannot reach; Ray does without it."
