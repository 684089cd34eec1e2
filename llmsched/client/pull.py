"""A result that was sent as a tar becomes a folder: whole and as it was written, or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from llmsched.errors import ClusterError, SpecError


def free(folder: Path) -> Path:
    """`folder`, which is not there or is empty. Raises SpecError."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"{folder} is there already.", code="folder", hint="Name a folder that is not there yet.")
    return folder


async def unpack(chunks: AsyncIterator[bytes], folder: Path) -> list[Path]:
    """The files, in `folder`. Raises ClusterError for what came broken."""
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".pull-", dir=folder.absolute().parent))
    try:
        with (staged / "tar").open("wb") as sink:
            async for chunk in chunks:
                sink.write(chunk)
        made = staged / "files"
        try:
            with tarfile.open(staged / "tar") as archive:
                archive.extractall(made, filter="data")  # no name leads out of it, no link, no device
        except tarfile.TarError as error:
            raise ClusterError(f"what came is no whole result: {error}.", code="result", hint="Try again.") from error
        _check(made)
        _lead_to_its_base(made, folder.absolute())
        folder.rmdir() if folder.is_dir() else None
        made.rename(folder.absolute())
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _lead_to_its_base(made: Path, folder: Path) -> None:
    """An adapter whose base came along names it by where it lies: that will be in `folder`."""
    file = made / "adapter_config.json"
    if (made / "base" / "config.json").is_file() and file.is_file():
        about = {**json.loads(file.read_text()), "base_model_name_or_path": str(folder / "base")}
        file.write_text(json.dumps(about, indent=2))


def _check(folder: Path) -> None:
    """Against the checksums that were written with the result."""
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        wanted = {name: about["sha256"] for name, about in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # of a loop of one's own that stored a folder without one
    for name, sha256 in wanted.items():
        file = folder / name
        if ".." in Path(name).parts or not file.is_file() or _sha256(file) != sha256:
            raise ClusterError(f"{name} is not as it was written.", code="result", hint="Try again, or train it again.")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
