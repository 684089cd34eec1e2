"""Adapter folders as others read them, and the whole model that an adapter makes of its base.

`adapter_config.json` names the base as PEFT, transformers and vLLM look it up: "ORG/NAME" with its revision, or a
folder. What only llmsched knows stands beside it in `llmsched.json`: the base as a source, which leads there from any
node, and the names of labels, which PEFT keeps nowhere.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmsched.data.media import ROLES
from llmsched.data.tasks import KINDS
from workloads.sources import BadInput, cache_folder, locked, resolve_model

NOTE = "llmsched.json"
BASE = "base"  # the folder in an adapter's where its base lies, where that would be gone with the workdir
WITH_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")  # PEFT keeps the last layer in the adapter
_HEADS = (".score.weight", ".classifier.weight", ".classifier.out_proj.weight")


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def whole_model(uri: str, inputs: Mapping[str, str] | None = None) -> Path:
    """As sources.resolve_model; of an adapter, the folder of its base with the adapter merged in. Raises BadInput."""
    return merged(resolve_model(uri, inputs), uri)


def merged(folder: Path, uri: str) -> Path:
    """`folder` itself, or what an adapter makes of its base: made once a cache, others wait for the one who does."""
    if not is_adapter(folder):
        return folder
    base = whole_model(_base_of(folder, uri))
    marks = [f"{file}/{file.stat().st_size}/{file.stat().st_mtime_ns}" for file in _weights(folder) + _weights(base)]
    target = cache_folder() / f"merged-{hashlib.sha256('|'.join(marks).encode()).hexdigest()[:16]}"
    with locked(target):
        if not target.is_dir():
            print(f"merging the adapter {uri} into its base once into {target.parent}", flush=True)
            staged = Path(tempfile.mkdtemp(dir=target.parent))
            try:
                _merge(folder, base, staged)
                staged.rename(target)
            except ImportError as error:
                raise BadInput(f"model {uri}: an adapter needs `pip install 'llmsched[models]'` ({error})") from error
            except Exception as error:  # files that do not fit together make the libraries fail in many ways
                why = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
                raise BadInput(f"model {uri}: the adapter in {folder} does not fit its base {base}: {why}") from error
            finally:
                shutil.rmtree(staged, ignore_errors=True)
    return target


def name_of_base(uri: str, folder: Path | None) -> tuple[str, str | None]:
    """(name, revision) of a base model as other libraries look it up; `folder`: where it lies here."""
    if uri.startswith("hf://"):
        name, _, revision = uri.removeprefix("hf://").partition("@")
        return name, revision or None
    return str(folder if folder is not None else Path(uri.removeprefix("file://")).absolute()), None


def goes_with_the_workdir(uri: str) -> bool:
    """A path of the workdir, which nobody finds when the run has ended."""
    return ":" not in uri and not Path(uri).expanduser().is_absolute()


def write_note(
    folder: Path, base_model: str, id2label: Mapping[int, str] | None = None, task: str | None = None
) -> None:
    """`base_model` is a source that any node can resolve: a path, hf://, package:, s3://, where a run's result lies; or
    BASE. `task`: one that PEFT has no word for."""
    note: dict[str, Any] = {"base_model": base_model} | ({} if task is None else {"task": task})
    if id2label is not None:
        note["id2label"] = {str(number): name for number, name in sorted(id2label.items())}
    (folder / NOTE).write_text(json.dumps(note, indent=1))


def lead_to(folder: Path, base: str) -> None:
    """Its base is in BASE of the adapter's `folder`, which others will find at `base`."""
    for file, name, place in ((NOTE, "base_model", BASE), ("adapter_config.json", "base_model_name_or_path", base)):
        (folder / file).write_text(json.dumps({**json_in(folder / file), name: place}, indent=2))


def _base_of(folder: Path, uri: str) -> str:
    """The base as a source: from our own note, else as PEFT names it."""
    if base := json_in(folder / NOTE).get("base_model"):
        return str(folder / BASE if base == BASE else base)
    config = json_in(folder / "adapter_config.json")
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str) or not name:
        raise BadInput(f"model {uri}: adapter_config.json in {folder} names no base model")
    if Path(name).exists() or name.startswith("/") or ":" in name:
        return name
    return f"hf://{name}" + (f"@{revision}" if revision else "")


def _merge(folder: Path, base: Path, target: Path) -> None:
    import peft
    import torch
    import transformers

    kind, task = json_in(folder / "adapter_config.json").get("task_type"), json_in(folder / NOTE).get("task")
    auto = next((row.auto for name, row in KINDS.items() if (name == task if task else row.lora == kind)), "AutoModel")
    loader: Any = getattr(transformers, auto)
    settings: dict[str, Any] = {}
    if kind in WITH_HEAD or task and KINDS[task].target == "label":
        settings = {**(_labels(folder) if kind != "QUESTION_ANS" else {}), "ignore_mismatched_sizes": True}
    dtype = transformers.AutoConfig.from_pretrained(base).dtype or torch.float32
    model = loader.from_pretrained(base, dtype=torch.float32, use_safetensors=True, **settings)
    whole = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    whole.to(dtype).save_pretrained(target)
    if task and KINDS[task].roles[0] in ROLES:
        _copy_processor(folder, base, target)
        return
    named = folder if (folder / "tokenizer_config.json").is_file() else base
    transformers.AutoTokenizer.from_pretrained(named).save_pretrained(target)


def _copy_processor(folder: Path, base: Path, target: Path) -> None:
    """What reads images and audio, and what writes: all that is neither weights nor about the model."""
    for place in (base, folder):
        for file in place.glob("*.json"):
            if file.name not in (NOTE, "adapter_config.json", "config.json") and "safetensors" not in file.name:
                shutil.copy(file, target / file.name)


def _labels(folder: Path) -> dict[str, Any]:
    """The names of labels from our note; else as many as the adapter's last layer has."""
    if names := json_in(folder / NOTE).get("id2label"):
        id2label = {int(number): str(name) for number, name in names.items()}
        return {"num_labels": len(id2label), "id2label": id2label, "label2id": {v: k for k, v in id2label.items()}}
    from safetensors import safe_open

    for file in _weights(folder):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  not a dict
                if f".{key}".replace(".modules_to_save.default", "").endswith(_HEADS):
                    return {"num_labels": int(tensors.get_slice(key).get_shape()[0])}
    return {}


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def json_in(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
