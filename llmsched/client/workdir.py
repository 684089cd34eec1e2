"""A workdir as one zip, named by its content: the same files give the same name on any machine, on any day.

Version control, environments, caches and files that usually hold secrets stay at home, and what `.llmschedignore` says
(`ignore.py`). Too large is refused with a list of what is large, because data belongs into storage.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from llmsched import sanitize
from llmsched.client import ignore
from llmsched.errors import SpecError
from llmsched.spec.http_models import WORKDIR_FILES_AT_MOST

EXCLUDED = (
    *(".git", ".hg", ".svn", ".venv", "venv", "__pycache__", "node_modules", ".tox", ".nox", ".ipynb_checkpoints"),
    *(".mypy_cache", ".ruff_cache", ".pytest_cache", "*.pyc", "*.egg-info", ".DS_Store", ".idea", ".vscode"),
    *(".env", ".env.*", ".ssh", ".aws", ".netrc", "*.pem", "id_rsa*", "id_ed25519*"),
)
LIMIT_BYTES = 100 << 20
LARGEST_SHOWN = 8
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of the zip format: times do not count


class Packed(NamedTuple):
    """`files` of so many `bytes` before packing. `left_out`: path below the folder -> the pattern that says so."""

    sha256: str
    content: bytes
    files: int
    bytes: int
    left_out: dict[str, str]

    def note(self) -> str:
        """For people: how much travels, and what does not."""
        said = f"ships {self.files:,} file{'s' * (self.files != 1)} of its workdir, {_size(self.bytes)}"
        by = Counter(self.left_out.values())
        most = sorted(by.items(), key=lambda item: (-item[1], item[0]))[:LARGEST_SHOWN]
        shown = [f"{each} ({count:,})" if count > 1 else each for each, count in most]
        more = [f"{len(by) - LARGEST_SHOWN} more patterns"] if len(by) > LARGEST_SHOWN else []
        return f"{said}; leaves out {', '.join([*shown, *more])}" if by else said

    def leaves_out(self, path: str) -> str:
        """The pattern that leaves out `path`, a file or folder by its path below the workdir; ""."""
        above = [path, *(str(each) for each in PurePosixPath(path).parents)]
        return next((self.left_out[each] for each in above if each in self.left_out), "")


def pack(folder: Path, spec: Path | None = None, *, limit_bytes: int = LIMIT_BYTES) -> Packed:
    """`spec`: the file that is applied, which stays at home: a change of it alone is none of the work's code. Raises
    SpecError when the folder is not there, is too large, or has links that lead out of it."""
    if not folder.is_dir():
        raise SpecError(f"the workdir {folder} is not a folder.", code="workdir")
    left_out: dict[str, str] = {}
    files = sorted(_files(folder, left_out), key=lambda file: file.relative_to(folder).as_posix())
    for itself in [file for file in files if spec is not None and file.name == spec.name and file.samefile(spec)]:
        files.remove(itself)
        name = itself.relative_to(folder).as_posix()
        left_out[name] = name
    size = _check_size(folder, files, limit_bytes)
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
    return Packed(hashlib.sha256(content).hexdigest(), content, len(files), size, left_out)


def _files(folder: Path, left_out: dict[str, str]) -> Iterator[Path]:
    """Those that travel; the others are noted in `left_out`."""
    root, patterns = folder.resolve(), ignore.patterns_of(folder)
    for parent, folders, names in os.walk(folder):

        def stays(name: str, *, is_folder: bool, parent: str = parent) -> bool:
            path = Path(parent, name).relative_to(folder).as_posix()
            said = _is_excluded(name) or ignore.left_out_by(patterns, path, is_folder=is_folder)
            if said:
                left_out[path] = said
            return bool(said)

        folders[:] = [name for name in folders if not stays(name, is_folder=not Path(parent, name).is_symlink())]
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in [*links, *(name for name in names if not stays(name, is_folder=False))]:
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


def _is_excluded(name: str) -> str:
    return next((pattern for pattern in EXCLUDED if fnmatch(name, pattern)), "")


def _check_size(folder: Path, files: list[Path], limit_bytes: int) -> int:
    """All bytes. Raises SpecError."""
    sizes = {file: file.stat().st_size for file in files}
    total = sum(sizes.values())
    if total <= limit_bytes and len(files) <= WORKDIR_FILES_AT_MOST:
        return total
    below: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for file, size in sizes.items():
        first, *more = file.relative_to(folder).parts
        below[f"{first}/" if more else first] += size
        counts[f"{first}/" if more else first] += 1
    chosen = below if total > limit_bytes else counts
    rows = "".join(
        f"\n  {below[name] / 1e6:8.1f} MB {counts[name]:7,} file{'s' if counts[name] != 1 else ' '}  {name}"
        for name, _ in chosen.most_common(LARGEST_SHOWN)
    )
    one = max(sizes.items(), key=lambda item: item[1])
    raise SpecError(
        f"the workdir {folder} holds {total / 1e6:.1f} MB in {len(files):,} files; at most "
        f"{limit_bytes / 1e6:.0f} MB and {WORKDIR_FILES_AT_MOST:,} files are shipped. The most is in:{rows}\n"
        f"The largest file is {one[0].relative_to(folder)}, {one[1] / 1e6:.1f} MB.\n",
        code="workdir",
        hint=f"Write what stays at home into {ignore.FILES[0]}, in the words of .gitignore; keep data in storage and "
        "name it by uri; or set workdir to a smaller folder.",
    )


def _size(count: int) -> str:
    for unit, size in (("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
