"""Checkpoints that are either whole or not there, and a pointer that only the current attempt may move.

    <gang>/checkpoints/<attempt>-<epoch>/step-<n>/...     the files (safetensors and JSON), then
                                         .../manifest.json  last: what there is, how large, which SHA-256
    <gang>/latest.json                                    the pointer: its owner and the published ones, newest first

Saving: files, manifest, pointer. The pointer moves by compare-and-swap and names its owner (attempt, epoch); an attempt
that finds a newer owner is stale and gets `Stale`. Resuming claims the pointer first, so whoever ran before can publish
no more, then takes the newest checkpoint whose every byte is as its manifest says, and says so when it had to go back.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsched.runtime import context, elastic, progress
from llmsched.runtime.storage import Storage, StorageError, sha256_of

MANIFEST = "manifest.json"
_DEFAULT_KEEP = 3
_RACES = 20


class Stale(RuntimeError):
    """A newer attempt of this gang owns the pointer; nothing this process does counts any more. End it."""


@dataclass(frozen=True)
class Checkpoint:
    """A published, verified state: `step` steps are done. `fraction` of the work (0..1) if the loop said so."""

    uri: str
    key: str
    step: int
    fraction: float | None
    attempt: int
    epoch: int
    world_size: int  # of the gang that wrote it; any other may read it


def save(step: int, write: Callable[[Path], None], fraction: float | None = None) -> str:
    """Store what `write(folder)` puts into an empty folder as the state after `step` steps; returns its uri.

    Rank 0 writes, the others return at once (they may go on). Saving the same step again changes nothing. Raises Stale
    when a newer attempt has taken over, StorageError when the storage fails.
    """
    where = context.current()
    store = store_of(where)
    key = key_of(where, step)
    if where.rank != 0:
        return store.uri_of(key)
    _read_pointer(store, where)  # raises Stale before the work
    if not store.exists(f"{key}/{MANIFEST}"):
        files = store.put_folder(key, write)
        manifest = {
            "step": step,
            "fraction": fraction,
            "files": files,
            "attempt": where.attempt,
            "epoch": where.epoch,
            "world_size": where.world_size,
            "at": round(time.time(), 3),
        }
        store.write_if_absent(f"{key}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
    _publish(store, where, key, step)
    if where.supervisor is not None:
        where.supervisor.checkpointed(step, fraction)
    return store.uri_of(key)


def latest(*, together: bool = True) -> Checkpoint | None:
    """The newest good checkpoint of this gang, the same on every rank; None: begin at the beginning.

    `together`: all ranks call it, and take rank 0's answer; else each looks by itself. Call it once, before the first
    step: it also takes the pointer over from earlier attempts. A damaged checkpoint is passed over for the one before
    it, with a line on stderr and a `note` in the progress.
    """
    where = context.current()
    if _settings(where).get("resume") in ("never", "none", False):
        return None
    found: dict[str, Any] | None = None
    if where.rank == 0:
        found = _newest_good(where)
    elif not together or not elastic.distributed():
        found = _newest_good(where, claim=False)
    found = elastic.agree(found) if together else found
    return Checkpoint(**found) if found else None


def fetch(checkpoint: Checkpoint) -> Path:
    """A local folder with the checkpoint's files. Read-only: local storage hands out the original.

    Raises StorageError when what arrived is not what was written.
    """
    where = context.current()
    store = store_of(where)
    folder = store.fetch_folder(checkpoint.key, where.local_dir / "checkpoints")
    fresh_copy = where.rank != 0 and not store.hands_out_originals  # rank 0 looked in `latest`
    if fresh_copy and (trouble := _damage(folder, _manifest(store, checkpoint.key))):
        raise StorageError(f"checkpoint {checkpoint.uri}: {trouble}")
    return folder


def inherit(gang: str, donor: str) -> int | None:
    """Let gang `gang`, which has not begun, go on from a copy of the newest checkpoint of `donor`; its step, or None
    where that has none yet. For whoever asked for both."""
    where = context.current()
    store = store_of(where)
    try:
        newest = json.loads(store.read(f"{donor}/latest.json"))["published"][0]
        manifest = _manifest(store, str(newest["key"]))
        folder = store.fetch_folder(str(newest["key"]), where.local_dir / "checkpoints")
    except (FileNotFoundError, IndexError, ValueError, KeyError):
        return None
    if _damage(folder, manifest):  # the donor has published another one meanwhile
        return None
    step = int(manifest["step"])
    key = f"{gang}/checkpoints/0-0/step-{step}"
    store.put_folder(key, lambda copy: _copy(folder, copy, manifest["files"]))
    store.write(f"{key}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
    pointer = {"attempt": 0, "epoch": 0, "published": [{"key": key, "step": step}]}
    store.write(f"{gang}/latest.json", json.dumps(pointer, indent=1).encode())
    return step


def disinherit(gang: str) -> None:
    """It begins at the beginning after all."""
    store_of(context.current()).delete(f"{gang}/latest.json")


def _copy(folder: Path, copy: Path, names: Iterable[str]) -> None:
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, copy / name)


def _newest_good(where: context.Context, *, claim: bool = True) -> dict[str, Any] | None:
    store = store_of(where)
    pointer = _claim(store, where) if claim else (_read_pointer(store, where)[0])
    for entry in pointer["published"]:
        key = str(entry["key"])
        try:
            manifest = _manifest(store, key)
            trouble = _damage(store.fetch_folder(key, where.local_dir / "checkpoints"), manifest)
        except (FileNotFoundError, ValueError, KeyError) as error:
            manifest, trouble = {}, f"its manifest is gone or broken ({error})"
        if not trouble:
            return {
                "uri": store.uri_of(key),
                "key": key,
                **{name: manifest[name] for name in ("step", "fraction", "attempt", "epoch", "world_size")},
            }
        note = f"checkpoint of step {entry['step']} cannot be used: {trouble}; trying the one before it"
        print(f"{store.uri_of(key)}: {note}", file=sys.stderr, flush=True)
        progress.report(note=note)
    return None


def _manifest(store: Storage, key: str) -> dict[str, Any]:
    manifest = json.loads(store.read(f"{key}/{MANIFEST}"))
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError("not a manifest")
    return manifest


def _damage(folder: Path, manifest: dict[str, Any]) -> str:
    """What is wrong with the files in `folder`; empty when they are exactly as written."""
    for name, wanted in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != wanted["size"]:
            return f"{name} has {path.stat().st_size} bytes, expected {wanted['size']}"
        if sha256_of(path) != wanted["sha256"]:
            return f"{name} was changed (SHA-256 differs)"
    return ""


# -- the pointer ---------------------------------------------------------------------------------------------------


def _read_pointer(store: Storage, where: context.Context) -> tuple[dict[str, Any], str | None]:
    """(pointer, version). Raises Stale when a newer (attempt, epoch) owns it."""
    found = store.read_versioned(f"{where.gang}/latest.json")
    if found is None:
        return {"attempt": 0, "epoch": 0, "published": []}, None
    pointer = json.loads(found[0])
    if (pointer["attempt"], pointer["epoch"]) > (where.attempt, where.epoch):
        raise Stale(
            f"{where.gang} attempt {where.attempt} (epoch {where.epoch}) is stale: "
            f"attempt {pointer['attempt']} (epoch {pointer['epoch']}) has taken over"
        )
    return pointer, found[1]


def _swap(
    store: Storage, where: context.Context, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
) -> dict[str, Any]:
    """Make this attempt the owner and `change` the published list; tries again when somebody came between."""
    for _ in range(_RACES):
        pointer, version = _read_pointer(store, where)
        new = {"attempt": where.attempt, "epoch": where.epoch, "published": change(pointer["published"])}
        if new == pointer:
            return new
        if store.compare_and_swap(f"{where.gang}/latest.json", version, json.dumps(new, indent=1).encode()):
            return new
    raise Stale(f"{where.gang}: the checkpoint pointer changed {_RACES} times under us; another process is writing")


def _claim(store: Storage, where: context.Context) -> dict[str, Any]:
    pointer = _swap(store, where, lambda published: published)
    _sweep(store, where, {entry["key"] for entry in pointer["published"]})
    return pointer


def _publish(store: Storage, where: context.Context, key: str, step: int) -> None:
    keep = keeps(where)
    dropped: list[str] = []

    def change(published: list[dict[str, Any]]) -> list[dict[str, Any]]:
        new = [{"key": key, "step": step}, *(entry for entry in published if entry["key"] != key)]
        dropped[:] = [str(entry["key"]) for entry in new[keep:]]
        return new[:keep]

    _swap(store, where, change)
    for old in dropped:
        store.delete(old)


def _sweep(store: Storage, where: context.Context, published: set[str]) -> None:
    """Delete what earlier attempts began and never published."""
    root = f"{where.gang}/checkpoints"
    folders = {"/".join(name.split("/")[: root.count("/") + 3]) for name in store.list(root)}
    for folder in sorted(folders - published):
        attempt, _, epoch = folder.split("/")[-2].partition("-")
        if attempt.isdigit() and epoch.isdigit() and (int(attempt), int(epoch)) < (where.attempt, where.epoch):
            store.delete(folder)


def _settings(where: context.Context) -> dict[str, Any]:
    return where.spec.get("checkpoint") or {}


def keeps(where: context.Context) -> int:
    """How many checkpoints stay."""
    return max(1, int(_settings(where).get("keep") or _DEFAULT_KEEP))


def key_of(where: context.Context, step: int) -> str:
    """Where this attempt's checkpoint of a step lies in the storage."""
    return f"{where.gang}/checkpoints/{where.attempt}-{where.epoch}/step-{step}"


def store_of(where: context.Context) -> Storage:
    """The spec's `checkpoint.uri` if given, else the cluster's storage."""
    return Storage.at(_settings(where).get("uri") or where.storage)
