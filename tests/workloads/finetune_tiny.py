"""Tiny random models, data and gangs of forked workers for the fine-tuning tests (not a test itself).

Workers are forked from a fork server that has torch and transformers loaded, so a gang of three starts at once and the
test process itself needs no torch.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import tempfile
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WORDS = [
    "good",
    "bad",
    "film",
    "plot",
    "dull",
    "bright",
    "fine",
    "awful",
    "nice",
    "grim",
    "the",
    "a",
    "is",
    "was",
    "and",
    "very",
    "how",
    "do",
    "i",
    "you",
    "reset",
    "open",
]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|im_start|>", "<|im_end|>", "user", "assistant"]
_TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)

_workers = multiprocessing.get_context("forkserver")
_workers.set_forkserver_preload(["torch", "transformers", "peft", "workloads.finetune.loop"])


def in_worker(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work(*arguments)` returns (JSON data), from a worker process; its exception's text as AssertionError."""
    return gang(1, work, *arguments)[0]


def gang(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The results of `size` workers with torch.distributed (gloo, loopback) up, in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        return _gang(size, str(Path(folder, "meeting")), work, arguments)


def _gang(size: int, meeting: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Any]:
    pipes = [_workers.Pipe(duplex=False) for _ in range(size)]
    started = [
        _workers.Process(target=_member, args=(pipes[rank][1], rank, size, meeting, work, arguments))
        for rank in range(size)
    ]
    for process in started:
        process.start()
    for _, end in pipes:
        end.close()
    answers = [end.recv() for end, _ in pipes]
    for process in started:
        process.join()
    for kind, answer in answers:
        assert kind == "fine", answer
    return [answer for _, answer in answers]


def _member(end: Any, rank: int, size: int, meeting: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        if size > 1:
            torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        answer = ("fine", work(rank, size, *arguments))
    except BaseException:
        answer = ("failed", traceback.format_exc())
    end.send(answer)
    end.close()
    if size > 1 and answer[0] == "fine":
        torch.distributed.destroy_process_group()
    os._exit(0)


def finetune(rank: int, size: int, folder: str, spec: dict[str, Any], attempt: int = 1, stop_after: int = 0) -> str:
    """Run the loop; "done", "stopped at N" or "refused: ...". With `stop_after` the scheduler asks it to leave."""
    from llmsched.runtime import Context, elastic, enter
    from workloads.finetune import loop
    from workloads.sources import BadInput

    watcher = _watch(stop_after) if stop_after else None
    with enter(Context.alone(folder, spec, rank=rank, world_size=size, attempt=attempt, supervisor=watcher)):
        try:
            loop.run()
        except elastic.Stopped as stopped:
            return f"stopped at {stopped.step}"
        except BadInput as error:
            return f"refused: {error}"
    return "done"


def finetune_logged(rank: int, size: int, folder: str, spec: dict[str, Any]) -> str:
    """As `finetune`, with what it prints in folder/log."""
    from llmsched.runtime import environment

    with environment.output_to(environment.LogFile(folder, "log")):
        return finetune(rank, size, folder, spec)


def _watch(stop_after: int) -> Any:
    """Stands where the link to the supervisor is."""
    from llmsched.runtime import elastic

    elastic._EVERY_S = 0.0
    asked = iter(range(1, 10**9))
    return types.SimpleNamespace(
        report=lambda values: None,
        checkpointed=lambda step, fraction: None,
        should_stop=lambda: next(asked) >= stop_after,
    )


def make(rank: int, size: int, folder: str) -> None:
    """folder/bert and folder/llama (two layers, no dropout), folder/{train,test,chat}.jsonl."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(_SPECIAL + _WORDS)}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for name in ("bert", "llama"):
        torch.manual_seed(1)
        if name == "bert":
            plain.post_processor = processors.TemplateProcessing(
                single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
            )
            model: Any = BertModel(
                BertConfig(
                    vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                    intermediate_size=32, max_position_embeddings=64, hidden_dropout_prob=0.0,
                    attention_probs_dropout_prob=0.0,
                )
            )  # fmt: skip
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]")
        else:
            plain.post_processor = None
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=1, intermediate_size=32, max_position_embeddings=64,
                )
            )  # fmt: skip
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|im_end|>", unk_token="[UNK]")
            tokenizer.chat_template = _TEMPLATE
        model.save_pretrained(Path(folder, name))
        tokenizer.save_pretrained(Path(folder, name))
    chance = random.Random(3)

    def sentence(*first: str) -> str:
        return " ".join([*first, *chance.choices(_WORDS[10:], k=chance.randrange(2, 9))])

    for name, count in (("train", 22), ("test", 9)):
        rows = [
            {"text": sentence(*[("bad", "good")[number % 2]] * 4), "label": ("neg", "pos")[number % 2]}
            for number in range(count)
        ]
        Path(folder, f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chats = [
        {
            "messages": [
                {"role": "user", "content": sentence("how")},
                {"role": "assistant", "content": sentence("reset")},
            ]
        }
        for _ in range(14)
    ]
    Path(folder, "chat.jsonl").write_text("\n".join(map(json.dumps, chats)))


def weights(rank: int, size: int, folder: str) -> dict[str, Any]:
    """Every number of the safetensors in `folder`, rounded to 1e-7, by tensor name."""
    from safetensors.torch import load_file

    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            found[f"{file.name}:{name}"] = [round(number, 7) for number in tensor.flatten().tolist()]
    return found
