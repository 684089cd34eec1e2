"""A home's memory in a folder or a tar file, and back. The controller may run while a backup is made, not while one is
put back.

    state.sqlite  state.key  state.head   the store, the key that its checksums are under, and how much it holds
    tokens.json                           digests of tokens that were made; put back only where there is no such file
    secret-key                            only when asked for: with it, whoever has the backup has every secret

All of it is for its owner alone (0600): it holds specs and stories of everybody's work. Results and checkpoints lie in
the storage and are not in it. What is replaced is moved aside, never removed.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from llmsched.api import fsck
from llmsched.api import home as homes
from llmsched.errors import RequestError, StoreError
from llmsched.store import salvage
from llmsched.store.reading import Places
from llmsched.store.salvage import Salvaged
from llmsched.store.seal import HeadFile

STORE = ("state.sqlite", "state.key", "state.head")
KEPT_APART = ("tokens.json", "secret-key")
SIDE = ("state.sqlite-wal", "state.sqlite-shm")
WHOLE = ("pages", "schema", "head", "journal", "state", "tables")  # what fsck must find in a backup


class Backup(NamedTuple):
    path: str
    files: list[str]
    seq: int
    bytes: int


class Restored(NamedTuple):
    """`lost`: entries that were written here after the backup. `moved_to`: where what was here lies now."""

    seq: int
    epoch: int
    lost: int
    moved_to: str | None
    seconds_old: float | None


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What a disk refuses, as an error of ours."""
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        message = f"{what}: {error.strerror or error}{where}."
        raise StoreError(
            message, code="backup", hint="Free space there or choose another place, then try again."
        ) from None


def make(home: Path, target: Path, *, with_secret_key: bool = False) -> Backup:
    """A new folder, or a tar file where the name says so. Raises RequestError, StoreError."""
    with _told(f"cannot write the backup {target}"):
        return _made(home, target, with_secret_key=with_secret_key)


def _made(home: Path, target: Path, *, with_secret_key: bool) -> Backup:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RequestError(f"{target} is there already.", code="exists", hint="Choose another name.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".llmsched-backup-", dir=target.parent) as made:
        folder = Path(made)
        salvage.copy(home / "state.sqlite", folder / "state.sqlite")
        names = ["state.key", "tokens.json", *(["secret-key"] if with_secret_key else [])]
        for name in names:
            source = homes.secret_key_file(home) if name == "secret-key" else home / name
            if source.exists():
                shutil.copyfile(source, folder / name)
                (folder / name).chmod(0o600)
        note = salvage.note_of(folder / "state.sqlite")
        head_file = HeadFile(folder / "state.head")
        head_file.write(note, sync=True)
        head_file.close()
        files = sorted(file.name for file in folder.iterdir())
        size = sum((folder / name).stat().st_size for name in files)
        if _is_tar(target):
            draft = folder.with_suffix(".tar")
            with tarfile.open(draft, "w:gz" if target.suffix == ".gz" else "w") as tar:
                draft.chmod(0o600)
                for name in files:
                    tar.add(folder / name, name)
            draft.replace(target)
        else:
            target.mkdir(mode=0o700, exist_ok=True)
            for name in files:
                shutil.move(folder / name, target / name)
    return Backup(str(target), files, note.seq, size)


def restore(home: Path, source: Path) -> Restored:
    """Put a backup in the place of what is there. Raises RequestError, StoreError when it is not whole."""
    _refuse_running(home)
    with _told(f"cannot put {source} back"):
        return _put_back(home, source)


def _put_back(home: Path, source: Path) -> Restored:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".llmsched-restore-", dir=home) as made:
        folder = Path(made)
        _unpack(source, folder)
        folder.chmod(0o700)
        for check in fsck.examine(folder):
            if check.name in (*WHOLE, "store") and check.result != "ok":
                raise StoreError(
                    f"the backup {source} is not whole: {check.name}: {check.detail}", code="backup",
                    hint="Take another one.",
                )  # fmt: skip
        before = HeadFile(Places.of(home / "state.sqlite").head).read()
        moved = _move_aside(home)
        for name in STORE:
            shutil.move(folder / name, home / name)
        for name in KEPT_APART:
            place = homes.secret_key_file(home) if name == "secret-key" else home / name
            if (folder / name).exists() and not place.exists():
                shutil.move(folder / name, place)
    age = time.time() - _last_stamp(home)
    return _answer(salvage.go_on_from(home / "state.sqlite", before), moved, age)


def accept_loss(home: Path) -> Restored:
    """Go on from what is there, and with an empty cluster where there is nothing. Raises RequestError, StoreError."""
    _refuse_running(home)
    places = Places.of(home / "state.sqlite")
    try:
        before = HeadFile(places.head).read()
    except StoreError:
        before = None
    if not places.store.exists() or not places.store.stat().st_size:
        moved = _move_aside(home)
        salvage.begin(places.store)
        return _answer(salvage.go_on_from(places.store, before), moved, None)
    return _answer(salvage.go_on_from(places.store, before), None, None)


def _answer(found: Salvaged, moved: str | None, age: float | None) -> Restored:
    return Restored(found.seq, found.epoch, found.lost, moved, age)


def _refuse_running(home: Path) -> None:
    if homes.is_running(home):
        raise RequestError(
            f"a controller runs on {home}.",
            code="already_running",
            hint="Stop it first: llmsched down.",
        )


def _is_tar(path: Path) -> bool:
    return path.name.endswith((".tar", ".tar.gz", ".tgz"))


def _unpack(source: Path, folder: Path) -> None:
    names = (*STORE, *KEPT_APART)
    if source.is_dir():
        for name in names:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    else:
        try:
            with tarfile.open(source) as tar:
                for member in tar.getmembers():
                    if member.name in names and member.isfile():
                        tar.extract(member, folder, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise RequestError(f"{source} is no backup: {error}.", code="no_backup") from None
    for file in folder.iterdir():
        file.chmod(0o600)
    missing = [name for name in STORE if not (folder / name).exists()]
    if missing:
        raise RequestError(f"{source} is no backup: it has no {', '.join(missing)}.", code="no_backup")


def _move_aside(home: Path) -> str | None:
    there = [home / name for name in (*STORE, *SIDE) if (home / name).exists()]
    if not there:
        return None
    aside = Path(tempfile.mkdtemp(prefix=time.strftime("replaced-%Y%m%d-%H%M%S-"), dir=home))
    for file in there:
        file.replace(aside / file.name)
    return str(aside)


def _last_stamp(home: Path) -> float:
    from llmsched.store.reading import moment_of

    with moment_of(home / "state.sqlite") as moment:
        last = moment.read(after=max(moment.head().seq - 1, moment.floor()))
        return last[-1].at if last else time.time()
