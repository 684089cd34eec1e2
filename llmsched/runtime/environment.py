"""What surrounds user code on a worker: its packed folder, its output, its share of the CPUs.

Knows files and processes; knows neither ray nor torch nor what the code does.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import faulthandler
import fcntl
import importlib
import os
import socket
import stat
import sys
import tempfile
import threading
import traceback
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from llmsched import sanitize, versions
from llmsched.runtime import redaction
from llmsched.runtime.removing import remove
from llmsched.runtime.storage import LocalStorage, Storage

_MAX_FILES = 20_000
_MAX_BYTES = 2 * 1024**3
_UPLOAD_EVERY_S = 10.0
OURS = "llmsched-"
SHORT = "/tmp"  # for folders whose paths must be short, wherever the others are
_kept: dict[Path, int] = {}  # by mark, descriptors whose locks end with this process


class UserError(Exception):
    """What the user gave cannot run; the message is for them."""


def unpack(uri: str, folder: Path) -> Path:
    """Extract the packed workdir at `uri` into `folder`. Raises UserError for an archive that is broken, too large, or
    whose names lead elsewhere."""
    root, _, name = uri.rpartition("/")
    try:
        data = Storage.at(root).read(name)
    except FileNotFoundError:
        raise UserError(f"the packed workdir {name} is not in the storage any more; apply the file again.") from None
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) > _MAX_FILES or sum(one.file_size for one in entries) > _MAX_BYTES:
                raise UserError(f"workdir {name} is over {_MAX_FILES} files or {_MAX_BYTES >> 30} GiB unpacked.")
            for one in entries:
                path = PurePosixPath(one.filename)
                is_link = stat.S_ISLNK(one.external_attr >> 16)
                if path.is_absolute() or ".." in path.parts or "\\" in one.filename or is_link:
                    raise UserError(f"workdir {name} holds {one.filename!r}, which leads out of it.")
                archive.extract(one, folder)
                mode = (one.external_attr >> 16) & 0o777
                if mode and not one.is_dir():
                    (folder / path).chmod(mode | 0o600)
    except zipfile.BadZipFile as error:
        raise UserError(f"workdir {name} is damaged: {error}; apply the file again.") from None
    return folder


def check_version(order: dict[str, Any]) -> None:
    """Raises UserError on a node whose llmsched does not go with that of the controller who wrote the order."""
    asked = order.get("version") or versions.own()
    if not versions.go_together(asked, versions.own()):
        raise UserError(
            f"node {socket.gethostname()} has llmsched {versions.own()} and the controller {asked}. Install the "
            f"controller's on every node (pip install llmsched=={asked}), then apply again."
        )


def load_entry(entry: str, what: str, or_one: Callable[[Any], bool] = callable) -> Any:
    """`module:function` -> the function, or `or_one` of another kind. Raises UserError for a mistake of the user's."""
    found = find_entry(entry, what)
    if not callable(found) and not or_one(found):
        raise UserError(f"{what} {entry}: expected a function or a class, got {type(found).__name__}.")
    return found


def find_entry(entry: str, what: str) -> Any:
    """`module:name` -> whatever it is. Raises UserError with the cause, when it is the user's."""
    module_name, _, name = entry.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise UserError(f"{what} {entry}: no module {error.name!r} in the workdir or installed.") from None
        raise
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, [one for one in vars(module) if not one.startswith("_")], 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{what} {entry}: module {module_name!r} has nothing called {name!r}.{hint}")
    return getattr(module, name)


def scratch(name: str) -> Path:
    """A fresh private folder on this node, for this process. It goes with the process, if not before; if that is
    killed, the next process that asks removes it."""
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{OURS}{name.replace('/', '-')}-"))
    keep(folder)
    atexit.register(drop, folder)
    return folder


def keep(folder: Path) -> None:
    """Mark `folder` as in use while this process lives: by a lock on a file beside it, which no crash leaves behind."""
    handle, draft = tempfile.mkstemp(prefix=f".{OURS}", dir=folder.parent)
    fcntl.flock(handle, fcntl.LOCK_EX)
    Path(draft).rename(_mark(folder))  # locked before anybody can find it
    _kept[_mark(folder)] = handle


def drop(folder: Path) -> None:
    """Remove a folder that was kept."""
    with contextlib.suppress(OSError):
        remove(folder)
    _mark(folder).unlink(missing_ok=True)
    if (handle := _kept.pop(_mark(folder), None)) is not None:
        os.close(handle)


def sweep() -> None:
    """Remove the folders of processes that ended without doing it."""
    for mark in [each for root in {tempfile.gettempdir(), SHORT} for each in Path(root).glob(f"{OURS}*.kept")]:
        with contextlib.suppress(OSError), mark.open("r+") as handle:  # OSError: in use, or not ours
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            drop(mark.with_suffix(""))


def _mark(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.kept")


def cpu_share(workers_here: int, cpus: int = 0) -> int:
    """Threads for one of `workers_here` processes: at least 1, together no more than `cpus`, or this machine's."""
    cpus = cpus or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // max(1, workers_here))


def has_accelerator() -> bool:
    """Whether this machine has any, by the devices that drivers make. Pretend GPUs are none."""
    return any(next(Path("/dev").glob(one), None) for one in ("nvidia[0-9]*", "kfd", "davinci*", "accel*", "hl[0-9]*"))


def thread_envs(threads: int) -> dict[str, str]:
    """For a process that has not loaded its libraries yet. Threads that wait for each other sleep: where two programs
    share CPUs, those that spin keep the very thread away that they wait for, and each was eight times slower."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    tokenizers = "false" if threads == 1 else "true"
    return {**dict.fromkeys(names, str(threads)), "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": tokenizers}


class LogFile:
    """One growing log in the storage. Local storage: the file itself. S3: a local file, put up every ten seconds."""

    def __init__(self, storage: str, key: str) -> None:
        self._store, self._key = Storage.at(storage), key
        self._is_local = isinstance(self._store, LocalStorage)
        if isinstance(self._store, LocalStorage):
            self.path = self._store.path(key)
            self.path.parent.mkdir(parents=True, exist_ok=True)
        else:
            handle, name = tempfile.mkstemp(prefix="llmsched-log-")
            os.close(handle)
            self.path = Path(name)
        self._done = threading.Event()
        self._uploader = threading.Thread(target=self._upload, daemon=True)
        if not self._is_local:
            self._uploader.start()

    def close(self) -> None:
        """Everything written so far is in the storage on return."""
        if not self._is_local and not self._done.is_set():
            self._done.set()
            self._uploader.join()
            self.path.unlink(missing_ok=True)
        self._done.set()

    def _upload(self) -> None:
        sent = 0
        while True:
            is_last = self._done.wait(_UPLOAD_EVERY_S)
            if self.path.stat().st_size != sent:
                data = self.path.read_bytes()
                try:
                    self._store.write(self._key, data)
                    sent = len(data)
                except Exception as error:  # a log is not worth the run
                    print(f"the log could not be stored: {error}", file=sys.__stderr__)
            if is_last:
                return


_RAYS_OWN = (":actor_name:", ":task_name:")  # what Ray writes for whoever reads its streams


class _Tee:
    """Writes lines to a log and passes everything on to the stream it stands for, both without secret values."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        if text.startswith(_RAYS_OWN):
            return self._stream.write(text)
        text = sanitize.unicode(redaction.clean(text))  # a stream that cannot write a character must not end the work
        self._log.write(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._log.flush()
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def output_to(log: LogFile) -> Iterator[None]:
    """Within, what this process prints goes to `log` too, line by line."""
    with log.path.open("a", buffering=1, encoding="utf-8", errors="replace") as stream:
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = _Tee(before[0], stream), _Tee(before[1], stream)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
    log.close()


@contextlib.contextmanager
def crashes_to(log: LogFile) -> Iterator[None]:
    """Within, what Python says when a signal ends this process (a segmentation fault) goes to `log`."""
    with log.path.open("ab") as stream:
        faulthandler.enable(stream)
        try:
            yield
        finally:
            faulthandler.enable(2)


def leaf(error: BaseException) -> BaseException:
    """The first exception of a group of them, however deep; one that is no group itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def explain(error: BaseException, folder: Path | None) -> str:
    """A user's exception in one line of valid text: type, message, and the last frame that is theirs (under `folder`,
    if any is)."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [one for one in frames if folder is not None and Path(one.filename).is_relative_to(folder)]
    text = sanitize.words(error).strip() or "no message"
    if isinstance(error, BaseExceptionGroup):  # it says how many, not what
        one = leaf(error)
        text = f"{text.splitlines()[0]}, the first: {type(one).__name__}: {sanitize.first_line(one)}"
    first = sanitize.line(text.splitlines()[0], 500) if not isinstance(error, UserError) else sanitize.text(text, 1000)
    named = first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"
    where = (theirs or frames)[-1:]
    if isinstance(error, UserError) or not where:
        return named
    file = Path(where[0].filename)
    place = file.relative_to(folder) if theirs and folder else file.name
    return sanitize.line(f"{named} ({place}:{where[0].lineno}, in {where[0].name})")
