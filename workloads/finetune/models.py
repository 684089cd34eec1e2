"""Load what is trained, from the base model or from a checkpoint; write it as others can read it.

Full: a Hugging Face folder. LoRA: a PEFT adapter folder; of the base nothing is written, unless it lies in the workdir,
which goes. Only safetensors.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llmsched.runtime import artifact
from workloads import adapters
from workloads.finetune import shrink
from workloads.sources import BadInput, resolve_path
from workloads.tasks.table import model_class
from workloads.tasks.task import Task
from workloads.tasks.together import Together


def trains_adapter(train: Mapping[str, Any]) -> bool:
    return train.get("method") in ("lora", "qlora")


def check_method(train: Mapping[str, Any]) -> None:
    """Raises BadInput for a method that this node lacks the package of."""
    if train.get("method") == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput(
            "method qlora: bitsandbytes is not installed on this node: pip install 'llmsched[qlora]' on every node, or "
            "ask for it in environment.pip"
        )


def config_of(uri: str, inputs: Mapping[str, str]) -> Path:
    """A folder with a config and what reads the input; weights need not be there. Raises BadInput."""
    folder = resolve_path(uri, inputs)
    if not (folder / "config.json").is_file():
        raise BadInput(f"model {uri}: no config.json in {folder}")
    return folder


def load_config(folder: Path, uri: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:
        raise BadInput(f"model {uri}: config.json in {folder} cannot be used: {first_line(error)}") from error


def load_model(task: Task, train: Mapping[str, Any], base: Path, resumed: Path | None, dtype: torch.dtype) -> Any:
    """The model to train: base (plus a fresh adapter), or as it was in the checkpoint folder `resumed`."""
    method, uri = train.get("method") or "full", train["base_model"]
    if method == "full":
        if resumed:
            return _load(task, resumed, uri, dtype)
        return _random(task, base, uri, dtype) if train.get("init") == "random" else _new(task, base, uri, dtype)
    import peft

    model = _new(task, base, uri, dtype, **(_in_4_bits(dtype) if method == "qlora" else {}))
    for module in model.modules():  # on a CPU an evaluation would turn 4 bits into another form, of bfloat16, for good
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if resumed:
        return peft.PeftModel.from_pretrained(model, str(resumed), is_trainable=True)
    lora = dict(train.get("lora") or {})
    try:
        about = {"task_type": task.kind.lora} if task.kind.lora else _about_heads(task, model)
        return peft.get_peft_model(model, peft.LoraConfig(**about, **lora))
    except ValueError as error:  # such as target_modules that do not exist
        raise BadInput(f"lora: {first_line(error)}") from error


def load_others(together: Together, train: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """A model for each task beside the main one, by its name. Raises BadInput."""
    return {each.name: load_model(each, train, base, None, torch.float32) for each in together.tasks[1:]}


def body_of(model: Any) -> Any:
    """What is below the last layer."""
    return getattr(model, model.base_model_prefix)


def _about_heads(task: Task, model: Any) -> dict[str, Any]:
    """Of tasks that PEFT has no word for, what it knows of others: last layers get no adapter, and are trained whole
    where they are of these labels. Raises BadInput."""
    heads = [
        name for name, part in model.named_children() if name != model.base_model_prefix and list(part.parameters())
    ]
    ours = task.kind.auto.removeprefix("AutoModel")
    if task.kind.target is None and not any(each.endswith(ours) for each in model.config.architectures or ()):
        raise BadInput(f"lora: this base model has no last layer for {task.name}; use method full")
    return {
        "exclude_modules": rf"({'|'.join(heads)})(\..*)?",
        "modules_to_save": heads if task.kind.target == "label" else None,
    }


def write_model(
    model: Any,
    train: Mapping[str, Any],
    folder: Path,
    base: Path | None = None,
    inputs: Mapping[str, str] | None = None,
) -> None:
    """`folder` becomes a Hugging Face model, or a PEFT adapter that names its base as other libraries look it up;
    `base` is where that lies here. Weights stay as they are trained: a checkpoint needs every digit."""
    if not trains_adapter(train):
        model.save_pretrained(folder)
        return
    uri, config = train["base_model"], model.peft_config["default"]
    config.base_model_name_or_path, config.revision = adapters.name_of_base(uri, base)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    source = (inputs or {}).get(uri, uri if ":" in uri else str(Path(uri).absolute()))
    has_labels = config.task_type in ("SEQ_CLS", "TOKEN_CLS") or config.task_type is None and config.modules_to_save
    labels = model.config.id2label if has_labels else None
    adapters.write_note(folder, source, labels, None if config.task_type else train["task"])


def write_result(
    model: Any, train: Mapping[str, Any], folder: Path, base: Path, inputs: Mapping[str, str], dtype: torch.dtype
) -> None:
    """The same for those who use it: a whole model is in the precision of its base (`dtype`), whatever it was trained
    in. Beside an adapter lies its base, where that would be gone with the workdir. `model` is what `finished` made, and
    of no further use."""
    if train.get("quantize"):
        shrink.save_coarse(model, folder, dtype)
    elif trains_adapter(train) and not train.get("merge"):
        write_model(model, train, folder, base, inputs)
        if adapters.goes_with_the_workdir(train["base_model"]):
            shutil.copytree(base, folder / adapters.BASE)
            adapters.lead_to(folder, f"{artifact.place()}/{adapters.BASE}")
    else:
        model.to(dtype).save_pretrained(folder)


def finished(model: Any, task: Task, train: Mapping[str, Any], base: Path) -> Any:
    """What is evaluated last and saved: with `merge` the adapter is part of the model, of one in 4 bits of its base as
    that is; with `quantize` its weights are those that 8 bits can say."""
    if train.get("merge") and train.get("method") == "qlora":
        import peft

        with tempfile.TemporaryDirectory(prefix="llmsched-adapter-") as folder:
            model.save_pretrained(folder, save_embedding_layers=False)
            plain = _new(task, base, train["base_model"], torch.float32)
            model = peft.PeftModel.from_pretrained(plain, folder).to(model.device)
    whole = model.merge_and_unload() if train.get("merge") else model
    if train.get("quantize"):
        shrink.make_coarse(whole)
    return whole


def is_another(train: Mapping[str, Any]) -> bool:
    """Whether what `finished` makes says something else than what was trained."""
    return bool(train.get("quantize") or train.get("method") == "qlora" and train.get("merge"))


def _in_4_bits(dtype: torch.dtype) -> dict[str, Any]:
    """QLoRA (Dettmers et al. 2023): NF4 with scales that are in 8 bits themselves, computed with in `dtype`."""
    from transformers import BitsAndBytesConfig

    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **four)}


def _new(task: Task, base: Path, uri: str, dtype: torch.dtype, **settings: Any) -> Any:
    """From the base; its last layer is made anew where it has another meaning."""
    model = _load(task, base, uri, dtype, **settings)
    if not task.new_head:
        return model
    config = copy.deepcopy(model.config)
    config.num_labels += 1
    with torch.device("meta"):
        other = {name: each.shape for name, each in model_class(task.name).from_config(config).named_parameters()}
    for name, param in model.named_parameters():
        if param.shape != other[name]:  # it grows with the number of labels: it is the last layer
            std = getattr(config, "initializer_range", 0.02)
            torch.nn.init.normal_(param.data, std=std) if param.ndim > 1 else torch.nn.init.zeros_(param.data)
    return model


def _random(task: Task, base: Path, uri: str, dtype: torch.dtype) -> Any:
    """With the config of the base and weights of chance, which the caller has seeded."""
    config = load_config(base, uri)
    for name, value in task.settings().items():
        setattr(config, name, value)
    model = model_class(task.name).from_config(config, dtype=dtype)
    for name, param in model.named_parameters():
        if "position_embedding" in name and not param.any():  # some begin at 0, and would all move alike
            torch.nn.init.normal_(param.data, std=getattr(config, "initializer_range", None) or 0.02)
    return model


def _load(task: Task, folder: Path, uri: str, dtype: torch.dtype, **settings: Any) -> Any:
    try:
        model, info = model_class(task.name).from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=task.head_is_new,
            output_loading_info=True,
            **task.settings(),
            **settings,
        )
    except Exception as error:
        raise BadInput(f"model {uri}: the weights in {folder} cannot be loaded: {first_line(error)}") from error
    missing, total = len(info["missing_keys"]), sum(1 for _ in model.parameters())
    if missing and (not task.head_is_new or missing > total // 2):
        raise BadInput(
            f"model {uri}: {missing} of {total} weights are missing in {folder} (such as {min(info['missing_keys'])})"
        )
    return model


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
