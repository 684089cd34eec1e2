"""A workdir as one zip, named by its content: the same files give the same name on any machine, on any day.

Version control, environments, caches and files that usually hold secrets stay at home. Too large is refused with a
list of what is large, because data belongs into storage.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from llmsched import sanitize
from llmsched.errors import SpecError

EXCLUDED = (
    *(".git", ".hg", ".svn", ".venv", "venv", "__pycache__", "node_modules", ".tox", ".nox", ".ipynb_checkpoints"),
    *(".mypy_cache", ".ruff_cache", ".pytest_cache", "*.pyc", "*.egg-info", ".DS_Store", ".idea", ".vscode"),
    *(".env", ".env.*", ".ssh", ".aws", ".netrc", "*.pem", "id_rsa*", "id_ed25519*"),
)
LIMIT_BYTES = 100 << 20
LARGEST_SHOWN = 8
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of the zip format: times do not count


class Packed(NamedTuple):
    sha256: str
    content: bytes


def pack(folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> Packed:
    """Raises SpecError when the folder is not there, is too large, or has links that lead out of it."""
    if not folder.is_dir():
        raise SpecError(f"the workdir {folder} is not a folder.", code="workdir")
    files = sorted(_files(folder), key=lambda file: file.relative_to(folder).as_posix())
    _check_size(folder, files, limit_bytes)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), _EPOCH)
            runnable = os.access(file, os.X_OK)
            entry.external_attr = (0o100755 if runnable else 0o100644) << 16
            entry.create_system = 3  # Unix, wherever it was packed
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes(), compresslevel=6)
    content = packed.getvalue()
    return Packed(hashlib.sha256(content).hexdigest(), content)


def _files(folder: Path) -> Iterator[Path]:
    root = folder.resolve()
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_excluded(name)]
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in [*links, *(name for name in names if not _is_excluded(name))]:
            file = Path(parent, name)
            name = str(file.relative_to(folder))
            if wrong := sanitize.flaw(name):
                raise SpecError(
                    f"a file of the workdir has a name that is no text: {sanitize.line(name)} ({wrong}).",
                    code="workdir",
                    hint="Rename it, or leave it out of the folder.",
                )
            if file.is_symlink() and not (file.is_file() and file.resolve().is_relative_to(root)):
                raise SpecError(
                    f"the workdir has a link that leads out of it or to a folder: {file.relative_to(folder)}.",
                    code="workdir",
                    hint="Remove it, or name what it points to by path.",
                )
            if file.is_file():
                yield file


def _is_excluded(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in EXCLUDED)


def _check_size(folder: Path, files: list[Path], limit_bytes: int) -> None:
    sizes = {file: file.stat().st_size for file in files}
    total = sum(sizes.values())
    if total <= limit_bytes:
        return
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:LARGEST_SHOWN]
    rows = "".join(f"\n  {size / 1e6:8.1f} MB  {file.relative_to(folder)}" for file, size in largest)
    raise SpecError(
        f"the workdir {folder} holds {total / 1e6:.1f} MB in {len(files)} files; "
        f"at most {limit_bytes / 1e6:.0f} MB are shipped. The largest:{rows}\n",
        code="workdir",
        hint="Keep data in storage and name it by uri, or set workdir to a smaller folder.",
    )
