"""Other people's programs: whole on one worker, whole on two, and preempted. Prints a table.

    python tests/benchmarks/bring_anything.py [PROGRAM ...] [--json]

Those around Ray, and a loop of one's own, run on real Ray: `bring_to_ray.py`. The programs of
`examples/11_bring_anything` that say two lines to llmsched are preempted twice, with a resize at each: one worker, then
two, then one. Each attempt is torchrun or plain python beside a desk as the worker of a task has it, without Ray; the
last loss is compared with that of one worker. Two workers from the beginning may have another global batch, and so
another loss. `sft` wants trl and datasets, `lit` wants lightning.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmsched.runtime import elastic, progress
from llmsched.runtime.command_link import NAME, Answers, Desk

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "11_bring_anything"
LINES = {"sft": 2, "classify": 2, "accelerated": 2, "lit": 2}  # of the program that are llmsched's, imports aside
TOLERANCE = 0.02  # of the last loss, relative: sums over two ranks are rounded otherwise than over one


class Worker:
    """Asks its program to leave once `leave_at` steps are reported; 0: never."""

    def __init__(self, storage: Path, attempt: int, leave_at: int) -> None:
        self._who = {
            "name": "a", "workload": "a", "gang": "a/0", "attempt": attempt, "epoch": 1, "rank": 0, "world_size": 1,
            "storage": str(storage), "inputs": {}, "spec": {"checkpoint": {}},
        }  # fmt: skip
        self._leave_at = leave_at
        self.step = 0

    def answers(self) -> Answers:
        return Answers(lambda: self._who, self._hear, lambda *saved: None, self._is_leaving, lambda *asked: None)

    def _hear(self, values: dict[str, Any]) -> None:
        self.step = max(self.step, int(values.get("step", 0)))

    def _is_leaving(self) -> bool:
        return 0 < self._leave_at <= self.step


def attempt(program: list[str], storage: Path, number: int, workers: int, leave_at: int = 0) -> int:
    """Run it to its end or until it has left; the step that it came to."""
    worker = Worker(storage, number, leave_at)
    desk = Desk(worker.answers())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    with_eyes_open = [str(Path(__file__)), "--one-attempt", *program]
    command = [*torchrun, *with_eyes_open] if workers > 1 else [sys.executable, *with_eyes_open]
    envs = {
        **os.environ,
        NAME: desk.path,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=envs, capture_output=True, text=True, check=False)
    desk.close()
    if not done.returncode and leave_at and worker.step > leave_at + 1:  # the Trainer says a step after it has asked
        raise SystemExit(f"{' '.join(program)}: went on to step {worker.step}, asked to leave at {leave_at}")
    if done.returncode:
        raise SystemExit(f"{' '.join(program)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return worker.step


def losses(storage: Path, attempts: int) -> dict[int, float]:
    found: dict[int, float] = {}
    for number in range(1, attempts + 1):
        lines = (storage / f"a/0/{number}/progress.jsonl").read_text().splitlines()
        found |= {one["step"]: one["loss"] for one in map(json.loads, lines) if {"step", "loss"} <= set(one)}
    return found


def row(name: str, program: list[str], folder: Path, leave_at: tuple[int, int]) -> dict[str, Any]:
    ways: dict[str, float] = {}
    for label, workers in (("whole on 1", 1), ("whole on 2", 2)):
        attempt(program, folder / label, 1, workers)
        known = losses(folder / label, 1)
        ways[label] = known[max(known)]
    first = attempt(program, folder / "cut", 1, 1, leave_at[0])
    second = attempt(program, folder / "cut", 2, 2, leave_at[1])
    attempt(program, folder / "cut", 3, 1)
    known = losses(folder / "cut", 3)
    ways["preempted"] = known[max(known)]
    away = abs(ways["preempted"] - ways["whole on 1"]) / ways["whole on 1"]
    verdict = (
        "the same" if away < 1e-6 else f"{away:.1%} away" + (f", at most {TOLERANCE:.0%}" if away <= TOLERANCE else "")
    )
    return {"program": name, "lines": LINES[name], **ways, "left at": [first, second], "away": away, "verdict": verdict}


WORDS = ["[PAD]", "[UNK]", "<s>", "</s>", "user", "assistant", ":", *"abcdefghijklmnopqrstuvwxyz"]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny(name: str, folder: Path) -> list[str]:
    """What the program is called with: a model of two layers and some rows for those that want one, which are made."""
    if name not in ("sft", "classify"):
        return []
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    plain = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, **special)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} : {{ m.content }} </s> {% endfor %}"
    tokenizer.save_pretrained(folder / "model")
    asked = [" ".join("abcdefgh"[(number * place + number) % 8] for place in range(1, 5)) for number in range(64)]
    if name == "sft":
        config = LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, bos_token_id=2, eos_token_id=3, **SIZES)
        LlamaForCausalLM(config).save_pretrained(folder / "model")
        chats = [[("user", text), ("assistant", " ".join(reversed(text.split())))] for text in asked]
        rows = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in chats]
        data = folder / "chats.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # two ranks draw other numbers
        config = BertConfig(vocab_size=len(WORDS), **SIZES, **dropout)
        BertForSequenceClassification(config).save_pretrained(folder / "model")
        data = folder / "sentences.csv"
        lines = [f"{text},{'early' if text[0] < 'e' else 'late'}\n" for text in asked]
        data.write_text("sentence,label\n" + "".join(lines))
    return [str(folder / "model"), str(data)]


def run(program: list[str]) -> None:
    """In a process of its own: the program as it is, but it says every step, and asks at each if it is to leave."""
    elastic._EVERY_S = progress._EVERY_S = 0.0
    sys.argv = program
    runpy.run_path(program[0], run_name="__main__")


AT = {"sft": (8, 18), "classify": (6, 14)}  # steps done when it is asked to leave


def with_two_lines(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as made:
        words = tiny(name, Path(made))
        return row(name, [str(EXAMPLE / f"{name}.py"), *words], Path(made) / "runs", AT.get(name, (15, 35)))


COLUMNS = ["program", "lines", "whole on 1", "whole on 2", "preempted", "verdict"]


def main() -> None:
    import bring_to_ray

    known = [*LINES, *bring_to_ray.PROGRAMS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", default=known, metavar="PROGRAM", help=f"of {', '.join(known)}")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON array instead")
    given = parser.parse_args()
    if unknown := set(given.programs) - set(known):
        parser.error(f"no program {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    if not given.json:
        print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    rows = []
    for found in rows_of(given.programs):
        rows.append(found)
        shown = [f"{value:.4f}" if isinstance(value := found[name], float) else str(value) for name in COLUMNS]
        if not given.json:
            print("| " + " | ".join(shown) + " |", flush=True)
    if given.json:
        print(json.dumps(rows, indent=1))


def rows_of(programs: list[str]) -> Iterator[dict[str, Any]]:
    import bring_to_ray  # beside this file, when it is run

    yield from (with_two_lines(name) for name in programs if name in LINES)
    on_ray = [name for name in programs if name in bring_to_ray.PROGRAMS]
    if on_ray:
        with bring_to_ray.house() as client:
            yield from (bring_to_ray.row(client, name) for name in on_ray)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one-attempt"]:
        run(sys.argv[2:])
    else:
        main()
