"""Durable files by key: a local folder or an S3 prefix behind the same few verbs.

A key is a relative path with forward slashes. What is written is either wholly there or not there: local files appear
by fsync and rename, S3 objects by one put. Conditional writes (`write_if_absent`, `compare_and_swap`) are what fences a
stale attempt. Knows nothing of checkpoints or receipts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, ClassVar
from urllib.parse import unquote, urlsplit

from llmsched.runtime.removing import remove

_CHUNK = 1 << 20
NOTE_BYTES = 1 << 20


class StorageError(RuntimeError):
    """The storage cannot be used as asked; the message says which and what to do."""


class Unreadable(ValueError):
    """What stands under a key is not what we write there: a link, no file, or far too long."""


def check_key(key: str) -> str:
    """`key` itself. Raises ValueError for one that could leave the root (absolute, "..", backslash, NUL)."""
    parts = key.split("/")
    if not key or "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"not a storage key: {key!r} (expected relative, like 'name/0/1/receipt.json')")
    return key


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe(folder: Path) -> dict[str, dict[str, Any]]:
    """{relative name: {"size", "sha256"}} of every file under `folder`, sorted by name."""
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Storage(ABC):
    """A root and the verbs on keys under it. `Storage.at(uri)` gives the right one."""

    append_is_cheap: ClassVar[bool] = True
    hands_out_originals: ClassVar[bool] = True  # fetch_folder copies nothing

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @staticmethod
    def at(uri: str | os.PathLike[str]) -> Storage:
        """The storage at an absolute folder, `file://` or `s3://bucket/prefix`. Raises StorageError for others."""
        text = os.fspath(uri)
        scheme = urlsplit(text).scheme if "://" in text else ""
        if scheme == "s3":
            return S3Storage(text)
        if scheme == "file":
            return LocalStorage(Path(unquote(urlsplit(text).path)))
        if scheme:
            raise StorageError(f"cannot store at {text}: expected a folder, file:// or s3://bucket/prefix")
        return LocalStorage(Path(text).expanduser().absolute())

    def uri_of(self, key: str) -> str:
        return f"{self.uri.rstrip('/')}/{check_key(key)}"

    # -- reading
    @abstractmethod
    def read(self, key: str) -> bytes:
        """The content. Raises FileNotFoundError."""

    @abstractmethod
    def read_from(self, key: str, offset: int, limit: int) -> bytes:
        """At most `limit` bytes that begin at `offset`; empty at the end. Raises FileNotFoundError."""

    @abstractmethod
    def read_versioned(self, key: str) -> tuple[bytes, str] | None:
        """(content, version) for a later compare_and_swap, or None when absent."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Bytes, or None when absent."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """Every key under the folder `prefix` ("" for all), sorted."""

    @abstractmethod
    def fetch_folder(self, key: str, cache: Path, starting: str = "") -> Path:
        """A local folder with what lies under `key` ("": all), of which names below it that begin with `starting` are
        needed: in place when local, else downloaded to `cache` once a version."""

    @abstractmethod
    def fetch_file(self, key: str, cache: Path) -> Path:
        """The same for one file. Raises FileNotFoundError."""

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def read_note(self, key: str, at_most: int = NOTE_BYTES) -> bytes:
        """The content of a small file that a workload may have put in the place of ours: of no length that fills a
        memory. Raises FileNotFoundError, Unreadable."""
        try:
            data = self.read_from(key, 0, at_most + 1)
        except PermissionError as error:
            raise Unreadable(f"{error.strerror} ({key})") from None
        if len(data) > at_most:
            raise Unreadable(f"it is over {at_most >> 20} MiB ({key})")
        return data

    # -- writing
    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Create or replace, all or nothing, durable on return."""

    @abstractmethod
    def write_file(self, key: str, source: BinaryIO) -> None:
        """The same with what an open file holds from where it stands, piece by piece."""

    @abstractmethod
    def append(self, key: str, data: bytes) -> None:
        """Add to the end. One writer at a time; S3 has no append and rewrites the object."""

    @abstractmethod
    def write_if_absent(self, key: str, data: bytes) -> bool:
        """Create; False (and nothing changed) when the key exists."""

    @abstractmethod
    def compare_and_swap(self, key: str, version: str | None, data: bytes) -> bool:
        """Replace only if the key still has `version` (None: is absent). False when somebody was quicker."""

    @abstractmethod
    def put_folder(self, key: str, write: Callable[[Path], None]) -> dict[str, dict[str, Any]]:
        """Let `write` fill an empty folder, store its files under `key`, return `describe` of them."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the key, or everything under it when it is a folder. Fine when absent."""


class LocalStorage(Storage):
    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.root = root

    def path(self, key: str) -> Path:
        return self.root / check_key(key)

    def read(self, key: str) -> bytes:
        with self._opened(key) as stream:
            return stream.read()

    def read_from(self, key: str, offset: int, limit: int) -> bytes:
        with self._opened(key) as stream:
            stream.seek(offset)
            return stream.read(limit)

    def _opened(self, key: str) -> BinaryIO:
        """A file below the root. Raises PermissionError for a link on the way, which may lead anywhere, and for what is
        no file: whoever reads a pipe that work has put there would wait for ever."""
        folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        *parts, name = check_key(key).split("/")
        try:
            for part in parts:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = inner
            found = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise PermissionError(error.errno, "a link on the way is not followed", self.uri_of(key)) from None
            raise
        finally:
            os.close(folder)
        if not stat.S_ISREG(os.fstat(found).st_mode):
            os.close(found)
            raise PermissionError(errno.EPERM, "this is no file", self.uri_of(key))
        return os.fdopen(found, "rb")

    def read_versioned(self, key: str) -> tuple[bytes, str] | None:
        try:
            data = self.read(key)
        except FileNotFoundError:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def size(self, key: str) -> int | None:
        path = self.path(key)
        return path.stat().st_size if _is_file(path) else None

    def list(self, prefix: str = "") -> list[str]:
        start = self.path(prefix) if prefix else self.root
        hidden = {_STAGING, _LOCK}
        return sorted(
            path.relative_to(self.root).as_posix()
            for path in start.rglob("*")
            if _is_file(path) and hidden.isdisjoint(path.relative_to(self.root).parts)
        )

    def fetch_folder(self, key: str, cache: Path, starting: str = "") -> Path:
        return self.path(key) if key else self.root

    def fetch_file(self, key: str, cache: Path) -> Path:
        if not self.path(key).is_file():
            raise FileNotFoundError(self.uri_of(key))
        return self.path(key)

    def write(self, key: str, data: bytes) -> None:
        staged = self._stage(key, data)
        staged.replace(self.path(key))
        _sync(self.path(key).parent)

    def write_file(self, key: str, source: BinaryIO) -> None:
        staged = self._stage(key, source)
        staged.replace(self.path(key))
        _sync(self.path(key).parent)

    def append(self, key: str, data: bytes) -> None:
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            stream.write(data)

    def write_if_absent(self, key: str, data: bytes) -> bool:
        staged = self._stage(key, data)
        try:
            os.link(staged, self.path(key))  # unlike rename, fails when the name is taken
        except FileExistsError:
            return False
        finally:
            staged.unlink()
        _sync(self.path(key).parent)
        return True

    def compare_and_swap(self, key: str, version: str | None, data: bytes) -> bool:
        with self._locked(key):
            found = self.read_versioned(key)
            if (found[1] if found else None) != version:
                return False
            self.write(key, data)
            return True

    def put_folder(self, key: str, write: Callable[[Path], None]) -> dict[str, dict[str, Any]]:
        target = self.path(key)
        staged = self.root / _STAGING / uuid.uuid4().hex
        staged.mkdir(parents=True)
        try:
            write(staged)
            for path in staged.rglob("*"):
                if path.is_file():
                    _sync(path)
            files = describe(staged)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.delete(key)  # leftovers of a try that never became whole
            staged.rename(target)
            _sync(target.parent)
            return files
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def delete(self, key: str) -> None:
        path = self.path(key)
        if path.is_dir() and not path.is_symlink():
            remove(path)
        else:
            path.unlink(missing_ok=True)

    def _stage(self, key: str, data: bytes | BinaryIO) -> Path:
        """`data` in a synced file beside its final place, under a name nobody lists."""
        self.path(key).parent.mkdir(parents=True, exist_ok=True)
        folder = self.root / _STAGING
        folder.mkdir(exist_ok=True)
        staged = folder / uuid.uuid4().hex
        with staged.open("wb") as stream:
            shutil.copyfileobj(BytesIO(data) if isinstance(data, bytes) else data, stream, 1 << 20)
            stream.flush()
            os.fsync(stream.fileno())
        return staged

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        folder = self.path(key).parent
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _LOCK).open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


_STAGING = ".staging"
_LOCK = ".lock"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class S3Storage(Storage):
    """Credentials, region and endpoint as boto3 finds them (environment, instance role, AWS_ENDPOINT_URL)."""

    append_is_cheap = False
    hands_out_originals = False

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")  # "?" and "#" are letters of names there
        if not self.bucket:
            raise StorageError(f"cannot store at {uri}: expected s3://bucket/prefix")
        self.prefix = prefix.strip("/")

    @property
    def _client(self) -> Any:
        return _s3_client()

    def _where(self, key: str) -> dict[str, str]:
        check_key(key)
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}" if self.prefix else key}

    def read(self, key: str) -> bytes:
        found = self.read_versioned(key)
        if found is None:
            raise FileNotFoundError(self.uri_of(key))
        return found[0]

    def read_versioned(self, key: str) -> tuple[bytes, str] | None:
        with _s3_errors(self.uri, absent_is_fine=True):
            answer = self._client.get_object(**self._where(key))
            return answer["Body"].read(), answer["ETag"]
        return None

    def read_from(self, key: str, offset: int, limit: int) -> bytes:
        size = self.size(key)
        if size is None:
            raise FileNotFoundError(self.uri_of(key))
        if size <= offset:  # a range that begins at the end is an error to S3
            return b""
        with _s3_errors(self.uri, absent_is_fine=True):
            part = f"bytes={offset}-{offset + limit - 1}"
            data: bytes = self._client.get_object(**self._where(key), Range=part)["Body"].read()
            return data
        raise FileNotFoundError(self.uri_of(key))

    def size(self, key: str) -> int | None:
        with _s3_errors(self.uri, absent_is_fine=True):
            return int(self._client.head_object(**self._where(key))["ContentLength"])
        return None

    def list(self, prefix: str = "") -> list[str]:
        return [name for name, _ in self._objects(prefix)]

    def fetch_folder(self, key: str, cache: Path, starting: str = "") -> Path:
        above = f"{key}/" if key else ""
        found = [one for one in self._objects(key) if one[0].startswith(above + starting)]
        # An object whose name ends in "/" is what consoles call a folder.
        names = {name: name.removeprefix(above) for name, _ in found if not name.endswith("/")}
        return self._download(names, cache, mark=f"{self.uri_of(key) if key else self.uri} {found}")

    def fetch_file(self, key: str, cache: Path) -> Path:
        with _s3_errors(self.uri, absent_is_fine=True):
            version = self._client.head_object(**self._where(key))["ETag"]
            name = key.rpartition("/")[2]
            return self._download({key: name}, cache, mark=f"{self.uri_of(key)} {version}") / name
        raise FileNotFoundError(self.uri_of(key))

    def _objects(self, prefix: str) -> Sequence[tuple[str, str]]:
        """(key, version) of all under the folder `prefix`, sorted."""
        root = f"{self.prefix}/" if self.prefix else ""
        under = f"{root}{check_key(prefix)}/" if prefix else root
        with _s3_errors(self.uri):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=under)
            return sorted(
                (item["Key"][len(root) :], item["ETag"]) for page in pages for item in page.get("Contents", ())
            )

    def _download(self, names: dict[str, str], cache: Path, mark: str) -> Path:
        """A folder in `cache` with the objects {key: file name}; made once for one `mark` (place and versions)."""
        target = cache / hashlib.sha256(mark.encode()).hexdigest()[:24]
        if target.is_dir():
            return target
        cache.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=cache))
        try:
            for key, name in names.items():
                path = staged / check_key(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                with _s3_errors(self.uri):
                    self._client.download_file(Filename=str(path), **self._where(key))
            with contextlib.suppress(OSError):  # another worker of this node was quicker
                staged.rename(target)
            return target
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def write(self, key: str, data: bytes) -> None:
        with _s3_errors(self.uri):
            self._client.put_object(Body=data, **self._where(key))

    def write_file(self, key: str, source: BinaryIO) -> None:
        with _s3_errors(self.uri):
            self._client.upload_fileobj(Fileobj=source, **self._where(key))

    def append(self, key: str, data: bytes) -> None:
        found = self.read_versioned(key)
        self.write(key, (found[0] if found else b"") + data)

    def write_if_absent(self, key: str, data: bytes) -> bool:
        return self.compare_and_swap(key, None, data)

    def compare_and_swap(self, key: str, version: str | None, data: bytes) -> bool:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        from botocore.exceptions import ClientError

        with _s3_errors(self.uri):
            try:
                self._client.put_object(Body=data, **self._where(key), **condition)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in _LOST_RACE:
                    return False
                raise
        return True

    def put_folder(self, key: str, write: Callable[[Path], None]) -> dict[str, dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            files = describe(Path(folder))
            self.delete(key)
            for name in files:
                with _s3_errors(self.uri):
                    self._client.upload_file(Filename=str(Path(folder, name)), **self._where(f"{key}/{name}"))
        return files

    def delete(self, key: str) -> None:
        with _s3_errors(self.uri):
            for name in [key, *self.list(key)]:
                self._client.delete_object(**self._where(name))


def _is_file(path: Path) -> bool:
    """A link to what this process may not see is none."""
    try:
        return path.is_file()
    except PermissionError:
        return False


_LOST_RACE = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409", "NoSuchKey", "404"}


@lru_cache(maxsize=1)
def _s3_client() -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(retries={"max_attempts": 5, "mode": "standard"}))


@contextlib.contextmanager
def _s3_errors(uri: str, *, absent_is_fine: bool = False) -> Iterator[None]:
    """boto's errors as ours, with the place and the next thing to try; swallows "no such key" when asked to."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if absent_is_fine and code in ("NoSuchKey", "404"):
            return
        raise StorageError(f"{uri}: {error}. Check that the bucket exists and that this role may use it.") from error
    except (BotoCoreError, Boto3Error) as error:
        raise StorageError(f"{uri}: {error}. Check the region, the credentials and the endpoint.") from error
