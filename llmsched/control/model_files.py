"""What a model's files say of its size, without loading it: config.json and the headers of its weights.

Reads headers only, of plain files, bounded; never unpickles, imports or fetches anything. So a model that is on no disk
of this machine is unknown here, and says so.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import stat
import struct
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple
from urllib.parse import unquote, urlsplit

HEADER_LIMIT = 32 << 20
CONFIG_LIMIT = 4 << 20
FILES_LIMIT = 1000
STRINGS_LIMIT = 4_000_000  # of a GGUF's vocabulary
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}  # by safetensors' names; others: 1

_BROKEN = (OSError, ValueError, TypeError, KeyError, AttributeError, struct.error, OverflowError, RecursionError)


class UnknownModel(Exception):
    """Why nothing is known of a model, as the end of a sentence."""


class Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """`base` is what an adapter adapts (a source), else None. `config` is config.json, {} of a GGUF."""

    tensors: tuple[Tensor, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None

    @property
    def numbers(self) -> int:
        return sum(tensor.numbers for tensor in self.tensors)

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)


_in_whose_place: Callable[[], AbstractContextManager[None]] = nullcontext


def read_as(in_whose_place: Callable[[], AbstractContextManager[None]]) -> None:
    """Read paths that users name within this context, from now on: as the user that their work runs as. What that user
    cannot read, nobody learns by asking for it here."""
    global _in_whose_place
    _in_whose_place = in_whose_place


def is_there(place: Path) -> bool:
    """Whether a file, a folder or something that fits the pattern is on this machine, for that user."""
    with _in_whose_place():
        return place.exists() or any(letter in str(place) for letter in "*?[") and place.parent.exists()


def is_in_the_way(place: Path) -> bool:
    """Whether something lies where a folder is to be written, or a file where its path leads through, for that user."""
    with _in_whose_place():
        return place.exists() or any(each.is_file() for each in place.parents)


def read(source: str) -> ModelFiles:
    """Raises UnknownModel."""
    try:
        if source.partition(":")[0] in ("package", "hf"):  # what is installed or was downloaded here
            return _read(_locate(source))
        with _in_whose_place():
            return _read(_locate(source))
    except _BROKEN as error:
        raise UnknownModel(f"its files cannot be read ({error})") from None


def base_of(source: str) -> str | None:
    """The base model of an adapter, as a source. None: it names none, or is no adapter. Raises UnknownModel."""
    try:
        if source.partition(":")[0] in ("package", "hf"):
            return _base_of(_locate(source))
        with _in_whose_place():
            return _base_of(_locate(source))
    except _BROKEN as error:
        raise UnknownModel(f"its files cannot be read ({error})") from None


def _locate(source: str) -> Path:
    scheme, _, rest = source.partition(":") if ":" in source else ("", "", source)
    if scheme == "package":
        name, _, inner = rest.strip("/").partition("/")
        found = importlib.util.find_spec(name) if name.isidentifier() else None  # finds, does not import
        roots = (found.submodule_search_locations if found else None) or ()
        path = next((Path(root, inner) for root in roots if Path(root, inner).exists()), None)
        if path is None or ".." in PurePosixPath(inner).parts:
            raise UnknownModel("the package is not on the controller's machine")
        return path
    if scheme == "hf":
        return _in_hub_cache(rest.removeprefix("//"))
    if scheme not in ("", "file"):
        raise UnknownModel(f"the workers fetch {scheme}://, the controller does not")
    path = Path(unquote(urlsplit(source).path)) if scheme else Path(source).expanduser()
    if not path.is_absolute() or not path.exists():
        raise UnknownModel("it is not on the controller's machine")
    return path


def _in_hub_cache(rest: str) -> Path:
    """The newest snapshot that was downloaded here before, if any."""
    name, _, revision = rest.partition("@")
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    folder = hub / f"models--{name.replace('/', '--')}"
    try:
        commit = (folder / "refs" / (revision or "main")).read_text().strip()
    except (OSError, ValueError):
        commit = revision
    if not commit or "/" in commit or ".." in commit or not (folder / "snapshots" / commit).is_dir():
        raise UnknownModel("it has not been downloaded to the controller's machine")
    return folder / "snapshots" / commit


def _read(path: Path) -> ModelFiles:
    if path.is_dir():
        weights = sorted(path.glob("*.safetensors"))[:FILES_LIMIT]
        if weights:
            tensors = tuple(tensor for file in weights for tensor in _safetensors(file))
            return ModelFiles(tensors, _json_of(path / "config.json"), _base_of(path))
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            raise UnknownModel("its folder has neither *.safetensors nor one .gguf")
        path = files[0]
    if path.suffix != ".gguf":
        raise UnknownModel("it is a file, and no .gguf")
    about = path.stat()
    return _gguf(path, about.st_size, about.st_mtime_ns)


def _open(file: Path) -> IO[bytes]:
    """A plain file, and nothing that might block or never end. Raises OSError, ValueError."""
    stream = os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise ValueError(f"{file.name} is no plain file")
    return stream


def _json_of(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    with _open(file) as stream:
        found = json.loads(stream.read(CONFIG_LIMIT))
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} is no object")
    return found


def _base_of(folder: Path) -> str | None:
    """The base of an adapter as a source: from our note beside it (`workloads/adapters.py`), else as PEFT names it."""
    about = _json_of(folder / "adapter_config.json")
    base = _json_of(folder / "llmsched.json").get("base_model") or about.get("base_model_name_or_path")
    if base == "base":
        return str(folder / base)  # it came from a workdir, and lies beside it
    if not isinstance(base, str) or "/" not in base or base.startswith("/") or ":" in base:
        return base if isinstance(base, str) else None
    revision = about.get("revision")
    return f"hf://{base}" + (f"@{revision}" if isinstance(revision, str) else "")


def _safetensors(file: Path) -> list[Tensor]:
    """From the header: eight bytes of its length, then JSON."""
    with _open(file) as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > HEADER_LIMIT:
            raise ValueError(f"the header of {file.name} is too long")
        header = json.loads(stream.read(length))
    tensors = []
    for name, about in header.items():
        if name != "__metadata__":
            shape = tuple(int(part) for part in about["shape"])
            if min(shape, default=1) < 0:
                raise ValueError(f"{file.name} has a tensor of negative size")
            tensors.append(Tensor(name, shape, math.prod(shape) * _BYTES.get(about["dtype"], 1)))
    return tensors


# GGUF: magic, version, counts, then key-value pairs, then what each tensor is.
_GGUF_FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_INTEGERS = {4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
_GGUF_STRING, _GGUF_ARRAY = 8, 9
_GGUF_KEYS = {  # of its architecture, by config.json's names
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "vocab_size": "vocab_size",
}


@lru_cache(maxsize=64)
def _gguf(file: Path, size: int, changed_ns: int) -> ModelFiles:
    """llmsched converts a GGUF to float32, so that is the size its numbers have. A vocabulary takes a while to pass."""
    with _open(file) as stream:
        magic, version, tensors, pairs = struct.unpack("<4sIQQ", stream.read(24))
        if magic != b"GGUF" or version < 2 or tensors > 1_000_000 or pairs > 100_000:
            raise ValueError(f"{file.name} is no GGUF")
        config: dict[str, Any] = {}
        for _ in range(pairs):
            key = _gguf_string(stream).decode()
            value = _gguf_value(stream, _number(stream, "<I"))
            name = _GGUF_KEYS.get(key.partition(".")[2])
            if name and isinstance(value, int):
                config[name] = value
        found = []
        for _ in range(tensors):
            title = _gguf_string(stream).decode()
            shape = tuple(_number(stream, "<Q") for _ in range(min(8, _number(stream, "<I"))))
            stream.read(12)  # kind and offset
            found.append(Tensor(title, shape, 4 * math.prod(shape)))
        return ModelFiles(tuple(found), config)


def _gguf_string(stream: IO[bytes]) -> bytes:
    length = _number(stream, "<Q")
    if length > HEADER_LIMIT:
        raise ValueError("a string is too long")
    return stream.read(length)


def _gguf_value(stream: IO[bytes], kind: int) -> int | None:
    """Its value when it is a whole number; else it is passed over."""
    if kind == _GGUF_STRING:
        _gguf_string(stream)
    elif kind == _GGUF_ARRAY:
        inner, count = _number(stream, "<I"), _number(stream, "<Q")
        if count > STRINGS_LIMIT:
            raise ValueError("an array is too long")
        if inner in _GGUF_FIXED:
            stream.seek(count * _GGUF_FIXED[inner], os.SEEK_CUR)
        else:
            for _ in range(count):
                _gguf_value(stream, inner)
    elif kind in _GGUF_INTEGERS:
        return _number(stream, _GGUF_INTEGERS[kind])
    elif kind in _GGUF_FIXED:
        stream.read(_GGUF_FIXED[kind])
    else:
        raise ValueError(f"there is no kind {kind}")
    return None


def _number(stream: IO[bytes], form: str) -> int:
    return int(struct.unpack(form, stream.read(struct.calcsize(form)))[0])
