"""How much GPU memory a worker or replica will need, and whether the accelerators it asks for have it.

An estimate from the model's files and from what our loop and engine do with them: the loop keeps weights, gradients
and both moments of AdamW in float32 on ONE GPU a worker (nothing is sharded), the engine keeps the weights as they were
saved and a key-value cache that grows with what it is asked. Warns when it probably does not fit; refuses only what
cannot fit for sure, counting weights, gradients and moments alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmsched.control.model_files import ModelFiles, Tensor, UnknownModel, read
from llmsched.core.resources import MILLI
from llmsched.core.workload import Option, Workload
from llmsched.errors import RequestError

GB = 10**9
# By Ray's names: the smallest and the largest memory an accelerator of that name is sold with, in GB.
ACCELERATORS: dict[str, tuple[int, int]] = {
    "P4": (8, 8),
    "K80": (12, 12),
    "P100": (12, 16),
    "T4": (16, 16),
    "V100": (16, 32),
    "A10G": (24, 24),
    "L4": (24, 24),
    "A100": (40, 80),
    "A100-40G": (40, 40),
    "L40S": (48, 48),
    "A100-80G": (80, 80),
    "H100": (80, 94),
    "H20": (96, 141),
    "H200": (141, 141),
    "B200": (180, 192),
    "MI300X": (192, 192),
}
USABLE = 0.92  # of the memory: the rest goes to the driver, kernels and gaps
FLOAT32, HALF = 4, 2
IN_4_BITS = 0.52  # bytes, with the scales of each 64
TOKENS_AT_ONCE = 4096  # the longest sample to count with where nothing is said: rows are mostly shorter
ACTIVATIONS = (
    34  # bytes a token, layer and hidden unit at 2 bytes a number (Korthikanti et al. 2022, eq. 2, fused attention)
)
CHECKPOINTED = 4  # the same with gradient checkpointing: the inputs of the layers, and one layer at a time
LONGEST_BY_DEFAULT = 1024
SEQUENCES_BY_DEFAULT = 32
FITS_NAMED = 3


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes on one GPU. `certain` is needed whatever the data; `most` is what it may come to."""

    certain: int
    most: int
    parts: str  # for people: what it consists of


@dataclass(frozen=True, slots=True)
class Verdict:
    """`needed` is None where nothing is known. With a `refusal` it can never fit."""

    needed: int | None = None
    warnings: tuple[str, ...] = ()
    refusal: RequestError | None = None
    notes: tuple[str, ...] = ()  # what it reads, as far as it is known

    def of_trials(self, why: str) -> Verdict:
        """Of the trials of a search that have these values ("": of any)."""
        if not why:
            return self
        where = f" (a trial with {why})"
        no = self.refusal
        refusal = no and RequestError(no.message + where, code=no.code, http_status=no.http_status, hint=no.hint)
        return replace(self, warnings=tuple(each + where for each in self.warnings), refusal=refusal)

    @classmethod
    def of_all(cls, verdicts: Sequence[Verdict]) -> Verdict:
        """The most that any needs, the first refusal, and what is said of them once."""
        return cls(
            needed=max((each.needed for each in verdicts if each.needed is not None), default=None),
            warnings=tuple(dict.fromkeys(line for each in verdicts for line in each.warnings)),
            refusal=next((each.refusal for each in verdicts if each.refusal is not None), None),
            notes=tuple(dict.fromkeys(line for each in verdicts for line in each.notes)),
        )


def source_of(spec: Mapping[str, Any]) -> str | None:
    """The model that a worker or replica loads, as the spec names it."""
    if spec["kind"] == "train":
        return (spec.get("train") or {}).get("base_model")
    if spec["kind"] == "serve":
        return ((spec.get("serve") or {}).get("model") or {}).get("source")
    if spec["kind"] == "batch":
        return (spec.get("batch") or {}).get("model")
    return None


def judge(workload: Workload, spec: Mapping[str, Any], where: str | None) -> Verdict:
    """`where` the model of the spec lies; None: nowhere yet."""
    source = source_of(spec)
    options = [option for group in workload.groups for option in group.options if option.resources.gpus_milli]
    if source is None or not options:
        return Verdict()
    try:
        if where is None:
            raise UnknownModel("its run has no result yet")
        files = _files(where)
        need = _need(spec, files)
    except UnknownModel as error:
        return Verdict(warnings=(f"how much GPU memory {source} needs is unknown: {error}",))
    if all(_can_never_fit(need, option) for option in options):
        message = f"{workload.id}: {_holder(spec)} needs at least {_gb(need.certain)} of GPU memory ({need.parts}), "
        message += f"more than any {_names(options)} has."
        return Verdict(
            need.most, (), RequestError(message, code="impossible", hint=f"Try {_advice(spec, files, options)}.")
        )
    said = dict.fromkeys(filter(None, (_doubt(need, option) for option in options)))
    return Verdict(need.most, tuple(f"{doubt} ({need.parts}); try {_advice(spec, files, options)}" for doubt in said))


def estimate(spec: Mapping[str, Any], where: str) -> Need:
    """Of one worker or replica. Raises UnknownModel."""
    return _need(spec, _files(where))


def _files(where: str) -> ModelFiles:
    """An adapter counts with its base. What was saved in 8 bits counts as it is loaded: made whole."""
    files = read(where)
    kept = files.config.get("quantization_config")
    if isinstance(kept, Mapping) and kept.get("format") == "int-quantized":
        number = HALF if files.config.get("dtype") in ("bfloat16", "float16") else FLOAT32
        plain = [each for each in files.tensors if not each.name.endswith(".weight_scale")]
        whole = tuple(each._replace(size_bytes=each.numbers * number) for each in plain)
        files = ModelFiles(whole, {name: files.config[name] for name in files.config if name != "quantization_config"})
    if files.base is None:
        return files
    base = read(files.base)
    return ModelFiles((*base.tensors, *files.tensors), base.config)


def _need(spec: Mapping[str, Any], files: ModelFiles) -> Need:
    return _training(spec["train"], files) if spec["kind"] == "train" else _serving(spec[spec["kind"]], files)


# --- how much -----------------------------------------------------------------------------------------------------


def _training(train: Mapping[str, Any], files: ModelFiles) -> Need:
    arguments = train.get("training_args") or {}
    half = bool(arguments.get("bf16") or arguments.get("fp16"))
    if train.get("method") in ("lora", "qlora"):
        number = HALF if arguments.get("bf16") else FLOAT32
        weights = files.numbers * number
        if train.get("method") == "qlora":
            coarse = sum(tensor.numbers for tensor in files.tensors if _is_linear(tensor))
            weights -= int(coarse * (number - IN_4_BITS))
        trained = _adapter_numbers(train.get("lora") or {}, files.tensors)
        names = "weights + adapter"
    else:
        weights, trained = files.numbers * FLOAT32, files.numbers
        names = "weights, gradients and AdamW's two moments"
    if "quantization_config" in files.config:
        weights = files.size_bytes
    certain = weights + trained * 3 * FLOAT32
    if train.get("objective") == "dpo" and trained == files.numbers:
        certain, names = certain + weights, f"{names}, the reference"
    if train.get("teacher"):
        names += ", without the teacher's own"
    working = _activations(train, files.config, half, bool(arguments.get("gradient_checkpointing")))
    return Need(certain, certain + working, f"{names} {_gb(certain)}, about {_gb(working)} to compute with")


def _adapter_numbers(lora: Mapping[str, Any], tensors: Sequence[Tensor]) -> int:
    targets = lora.get("target_modules", "all-linear")
    total = 0
    for tensor in tensors:
        module, _, kind = tensor.name.rpartition(".")
        last = module.rpartition(".")[2]
        if kind != "weight" or len(tensor.shape) != 2:
            continue
        if isinstance(targets, list):
            is_target = any(last == target or module.endswith(f".{target}") for target in targets)
        else:
            is_target = _is_linear(tensor)
        total += sum(tensor.shape) * int(lora.get("r", 8)) if is_target else 0
    return total


def _is_linear(tensor: Tensor) -> bool:
    """Of a layer of the body, not an embedding or the last layer."""
    module, _, kind = tensor.name.rpartition(".")
    last = module.rpartition(".")[2]
    ends = ("lm_head", "output", "classifier", "score", "wte", "wpe")
    return kind == "weight" and len(tensor.shape) == 2 and "emb" not in module and last not in ends


def _activations(train: Mapping[str, Any], config: Mapping[str, Any], half: bool, checkpointing: bool) -> int:
    """Of one micro-batch, with the logits, their gradient and the loss's copy of a language model."""
    context = _get(config, "max_position_embeddings") or LONGEST_BY_DEFAULT
    longest = min(int(train.get("max_length") or min(TOKENS_AT_ONCE, context)), context)
    micro = train.get("micro_batch_size", "auto")
    tokens = longest * (1 if micro == "auto" else int(micro))  # the loop chooses what fits, of whole samples
    number = HALF if half else FLOAT32
    per_layer = (CHECKPOINTED if checkpointing else ACTIVATIONS) * number // HALF
    inside = tokens * _get(config, "num_hidden_layers") * _get(config, "hidden_size") * per_layer
    logits = 3 * FLOAT32 * tokens * _get(config, "vocab_size") if train.get("task", "causal-lm") == "causal-lm" else 0
    return inside + logits


def _serving(serve: Mapping[str, Any], files: ModelFiles) -> Need:
    kwargs = serve.get("engine_kwargs") or {}
    asked = {"float32": FLOAT32, "bfloat16": HALF, "float16": HALF}.get(kwargs.get("dtype") or "auto")
    plain = asked is not None and "quantization_config" not in files.config
    weights = files.numbers * asked if asked is not None and plain else files.size_bytes
    if serve.get("task", "causal-lm") != "causal-lm":
        return Need(weights, weights, f"weights {_gb(weights)}")
    config = files.config
    heads = _get(config, "num_attention_heads")
    width = _get(config, "head_dim") or (_get(config, "hidden_size") // heads if heads else 0)
    per_number = asked or max(1, round(weights / max(1, files.numbers)))
    per_token = (
        2 * _get(config, "num_hidden_layers") * (_get(config, "num_key_value_heads") or heads) * width * per_number
    )
    length = int(kwargs.get("max_model_len") or _get(config, "max_position_embeddings"))
    sequences = int(kwargs.get("max_num_seqs") or SEQUENCES_BY_DEFAULT)
    cache = per_token * length * sequences
    parts = f"weights {_gb(weights)}, key-value cache up to {_gb(cache)} for {sequences} sequences of {length} tokens"
    over = math.prod((serve.get("parallelism") or {}).values())
    if over > 1:
        parts += f", on each of {over} GPUs its part"
    return Need(-(-weights // over), -(-(weights + cache) // over), parts)


_OTHER_NAMES = {
    "num_hidden_layers": ("n_layer", "num_layers"),
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_attention_heads": ("n_head", "num_heads", "n_heads"),
    "max_position_embeddings": ("n_positions", "n_ctx"),
}


def _get(config: Mapping[str, Any], name: str) -> int:
    """A whole number of the model's config, by any of the names in use, 0 when it does not say."""
    inner = config.get("text_config")
    for where in (config, inner if isinstance(inner, dict) else {}):
        for key in (name, *_OTHER_NAMES.get(name, ())):
            value = where.get(key)
            if isinstance(value, int) and 0 < value < 1 << 40:
                return value
    return 0


# --- whether it fits ----------------------------------------------------------------------------------------------


def _memory(option: Option) -> tuple[int, int] | None:
    """Smallest and largest, in bytes, of the one GPU that is used, or of the part that is asked of it."""
    known = ACCELERATORS.get(option.flavor or "")
    share = min(1.0, option.resources.gpus_milli / MILLI)
    return (int(known[0] * GB * share), known[1] * GB) if known else None


def _can_never_fit(need: Need, option: Option) -> bool:
    memory = _memory(option)
    return memory is not None and need.certain > memory[1]


def _doubt(need: Need, option: Option) -> str:
    """What to warn of; "" when it fits, or nothing is known of the accelerator."""
    memory = _memory(option)
    if memory is None or need.most <= memory[0] * USABLE:
        return ""
    gpus = option.resources.gpus_milli / MILLI
    where = f"{min(gpus, 1):g} {option.flavor} ({_gb(memory[0])})"
    where += f", the one of its {gpus:g} GPUs that is used" if gpus > 1 else ""
    if need.certain > memory[0] * USABLE:
        return f"needs about {_gb(need.most)} of GPU memory and will not fit in {where}"
    return f"may need up to {_gb(need.most)} of GPU memory, which is too much for {where}"


def _advice(spec: Mapping[str, Any], files: ModelFiles, options: Sequence[Option]) -> str:
    """What makes it fit in what it asks for, tried on the same estimate; then GPUs in which it fits as it is."""
    room = max((memory[0] * USABLE for option in options if (memory := _memory(option))), default=0.0)
    ways = [_changes(spec, files, room) if spec["kind"] == "train" else _fewer_sequences(spec, files, room)]
    need = _need(spec, files)
    fitting = [name for name, (least, _) in ACCELERATORS.items() if need.most <= least * GB * USABLE][:FITS_NAMED]
    if fitting:
        ways.append(f"a GPU that has as much ({', '.join(fitting)})")
    return ", or ".join(filter(None, ways)) or "a smaller model"


def _changes(spec: Mapping[str, Any], files: ModelFiles, room: float) -> str:
    """The first few of the known changes that together fit in `room` bytes; "" when all of them do not."""
    train = {**spec["train"], "training_args": dict(spec["train"].get("training_args") or {})}
    said = []
    for name, place, value in (
        ("method", train, "lora"),
        ("bf16", train["training_args"], True),
        ("gradient_checkpointing", train["training_args"], True),
        ("micro_batch_size", train, 1),
    ):
        if place.get(name) in (value, "qlora", "auto"):
            continue
        place[name] = value
        word = "train" if place is train else "training_args"
        said.append(f"{word}.{name}: {str(value).lower()}")
        if (need := _training(train, files)).most <= room:
            return f"{' and '.join(said)} (about {_gb(need.most)})"
    return ""


def _fewer_sequences(spec: Mapping[str, Any], files: ModelFiles, room: float) -> str:
    """As many sequences at once as their key-value cache has room for; "" when the weights alone have none."""
    serve = spec[spec["kind"]]
    kwargs = serve.get("engine_kwargs") or {}
    one = _serving({**serve, "engine_kwargs": {**kwargs, "max_num_seqs": 1}}, files)
    if one.most == one.certain or one.most > room:
        return ""
    sequences = int((room - one.certain) // (one.most - one.certain))
    need = one.certain + sequences * (one.most - one.certain)
    return f"engine_kwargs.max_num_seqs: {sequences} (about {_gb(need)}) or a smaller max_model_len"


def _holder(spec: Mapping[str, Any]) -> str:
    return "each replica" if spec["kind"] == "serve" else "each worker"


def _names(options: Sequence[Option]) -> str:
    each = {option.flavor: f"{option.flavor} ({ACCELERATORS[option.flavor or ''][1]} GB)" for option in options}
    return " or ".join(each.values())


def _gb(size: int) -> str:
    return f"{size / GB:.3g} GB" if size < 100 * GB else f"{size / GB:.0f} GB"
