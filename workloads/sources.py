"""Where a model comes from: one function that turns what the spec names into a local folder.

    package:NAME/PATH   a file or folder inside an installed Python package
    /path, file://      this machine (or a volume every node mounts)
    hf://ORG/NAME@REV   the Hugging Face hub or its local cache; with HF_HUB_OFFLINE=1 the cache only
    s3://bucket/prefix  downloaded once a node
    run://, model://    the result of another workload: looked up in `inputs`

Weights are safetensors, also in 8 bits, or GGUF: what is not plain is converted once into the cache. Pickled weights
are refused: loading them runs code. Fetching happens here, inside Ray, never in the controller.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from llmsched.runtime import context
from llmsched.runtime.environment import UserError
from llmsched.runtime.storage import LocalStorage, Storage, StorageError
from workloads.int8 import is_int8, unpack

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class BadInput(UserError, ValueError):
    """The model, the data or a setting the user named cannot be used. The message is for the user."""


def resolve_model(uri: str, inputs: Mapping[str, str] | None = None) -> Path:
    """A local folder with config.json (or adapter_config.json) and safetensors. Raises BadInput."""
    path = resolve_path(uri, inputs)
    gguf = _gguf_of(path)
    if gguf is not None:
        return _converted(gguf, uri)
    if not path.is_dir():
        raise BadInput(
            f"model {uri}: {path} is a file; expected a folder with config.json and *.safetensors, or a .gguf"
        )
    if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        raise BadInput(f"model {uri}: no config.json in {path} (found: {_listing(path)})")
    if not any(path.glob("*.safetensors")):
        if any(next(path.glob(pattern), None) for pattern in _PICKLED):
            raise BadInput(f"model {uri}: {path} has pickled weights only, which can run code; convert to safetensors")
        raise BadInput(f"model {uri}: no *.safetensors in {path} (found: {_listing(path)})")
    return _made_whole(path, uri) if is_int8(path) else path


def resolve_path(uri: str, inputs: Mapping[str, str] | None = None) -> Path:
    """A local file or folder for `uri`, which exists. Raises BadInput."""
    scheme, _, rest = uri.partition(":") if ":" in uri else ("", "", uri)
    if scheme in ("run", "model"):
        if not inputs or uri not in inputs:
            known = ", ".join(sorted(inputs or ())) or "none"
            raise BadInput(f"{uri} has no result yet that this workload was given (given: {known})")
        return resolve_path(inputs[uri])
    if scheme == "package":
        return _in_package(uri, rest)
    if scheme == "hf":
        return _from_hub(uri, rest.removeprefix("//"))
    if scheme == "s3":
        return from_s3(uri)
    if scheme == "file":
        path = Path(unquote(urlsplit(uri).path))
    elif "://" in uri:
        raise BadInput(f"{uri}: cannot fetch {scheme}://; expected a path, file://, package:, hf://, s3:// or run://")
    else:
        path = Path(uri).expanduser()
    if not path.exists():
        raise BadInput(f"{uri}: no such file or folder (looked for {path.absolute()})")
    return path.absolute()


def cache_folder() -> Path:
    """$LLMSCHED_CACHE, else `cache` in a local cluster storage, else one in the temporary folder. Exists."""
    where = context.inside()
    store = Storage.at(where.storage) if where else None
    if given := os.environ.get("LLMSCHED_CACHE"):
        folder = Path(given).expanduser()
    elif isinstance(store, LocalStorage):
        folder = store.root / "cache"
    else:
        folder = Path(tempfile.gettempdir()) / f"llmsched-cache-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _in_package(uri: str, rest: str) -> Path:
    name, _, inner = rest.strip("/").partition("/")
    if not name.isidentifier() or ".." in PurePosixPath(inner).parts:
        raise BadInput(f"{uri}: expected package:NAME/PATH, NAME as it is imported")
    found = importlib.util.find_spec(name)  # finds, does not import
    for root in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(root, inner)).exists():
            return path
    if found is None:
        raise BadInput(f"{uri}: the Python package {name!r} is not installed here; install it on every node")
    raise BadInput(f"{uri}: the package {name!r} has no {inner!r}")


def _from_hub(uri: str, rest: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = rest.partition("@")
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    try:
        folder = snapshot_download(
            name,
            revision=revision or None,
            local_files_only=offline,
            allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.gguf"],
        )
    except Exception as error:  # the hub's errors have many bases: all of them mean "not to be had"
        why = "HF_HUB_OFFLINE is set and the local cache does not have it" if offline else str(error).splitlines()[0]
        raise BadInput(f"{uri}: {why}") from error
    return Path(folder)


def from_s3(uri: str, starting: str | None = None) -> Path:
    """A file or a folder; `starting`: the folder, of which only names that begin so are needed. Raises BadInput."""
    bucket, _, key = uri.removeprefix("s3://").strip("/").partition("/")
    above, _, name = key.rpartition("/")
    try:
        store = Storage.at(f"s3://{bucket}/{above}".rstrip("/"))
        if name and starting is None and store.exists(name):
            return store.fetch_file(name, cache_folder())
        path = store.fetch_folder(name, cache_folder(), starting or "")
    except (StorageError, ValueError) as error:  # also a name of an object that can be none of a file
        raise BadInput(f"{uri}: {error}") from error
    if not any(path.iterdir()):
        raise BadInput(f"{uri}: nothing there{f' whose name begins with {starting!r}' if starting else ''}")
    return path


def _gguf_of(path: Path) -> Path | None:
    """The GGUF file meant by `path`: itself, or the only one in a folder without safetensors."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    files = sorted(path.glob("*.gguf"))
    return files[0] if len(files) == 1 and not any(path.glob("*.safetensors")) else None


def _converted(gguf: Path, uri: str) -> Path:
    """A Hugging Face folder (float32) made from a GGUF, once a cache."""
    stat = gguf.stat()
    mark = _mark(f"{gguf.name}/{stat.st_size}/{stat.st_mtime_ns}")

    def convert(folder: Path) -> None:
        try:
            _convert(gguf, folder)
        except ImportError as error:
            raise BadInput(f"model {uri}: reading GGUF needs `pip install 'llmsched[models]'` ({error})") from error
        except Exception as error:  # a broken file breaks in many ways
            raise BadInput(f"model {uri}: {gguf} cannot be read as a GGUF causal language model: {error}") from error

    return _once(cache_folder() / f"{gguf.stem}-{mark}", f"converting {gguf.name}", convert)


def _made_whole(folder: Path, uri: str) -> Path:
    """The same model with plain weights, once a cache."""
    marks = [f"{file}/{file.stat().st_size}/{file.stat().st_mtime_ns}" for file in sorted(folder.glob("*.safetensors"))]

    def make(whole: Path) -> None:
        try:
            unpack(folder, whole)
        except Exception as error:  # a broken file breaks in many ways
            raise BadInput(f"model {uri}: the 8-bit weights in {folder} cannot be read: {error}") from error

    return _once(cache_folder() / f"whole-{_mark('|'.join(marks))}", f"unpacking the 8 bits of {uri}", make)


def _mark(of: str) -> str:
    return hashlib.sha256(of.encode()).hexdigest()[:16]


def _once(target: Path, doing: str, make: Callable[[Path], None]) -> Path:
    """The folder `target`, which `make` fills where it is not there yet: there whole or not at all. Others wait for the
    one who makes it."""
    with locked(target):
        if not target.is_dir():
            print(f"{doing} once into {target.parent}", file=sys.stderr, flush=True)
            staged = Path(tempfile.mkdtemp(dir=target.parent))
            try:
                make(staged)
                staged.rename(target)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with gguf.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)  # the weights are whole again; with it, saving is refused
    plain = AutoModelForCausalLM.from_config(type(model.config).from_dict(settings))
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.with_name(f".{path.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
