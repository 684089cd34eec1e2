"""Other people's trainers: whole on one worker, whole on two, and preempted twice with a resize between.

    python tests/benchmarks/bring_anything.py [sft accelerated lit] --out table.json

Each attempt is torchrun (or plain python) beside a desk as the worker of a task has it; no Ray. The last losses of the
three ways are compared. `sft` wants trl and datasets, `lit` wants lightning.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from llmsched.runtime import elastic
from llmsched.runtime.command_link import NAME, Answers, Desk

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "11_bring_anything"
LINES = {"sft": 2, "accelerated": 2, "lit": 2}  # of the program that are llmsched's, imports aside
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
        return Answers(lambda: self._who, self._hear, lambda step, fraction: None, self._is_leaving)

    def _hear(self, values: dict[str, Any]) -> None:
        self.step = max(self.step, int(values.get("step", 0)))

    def _is_leaving(self) -> bool:
        return 0 < self._leave_at <= self.step


def attempt(program: list[str], storage: Path, number: int, workers: int, leave_at: int = 0) -> int:
    """Run it to its end or until it has left; the step that it came to."""
    worker = Worker(storage, number, leave_at)
    desk = Desk(worker.answers())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    with_eyes_open = [str(Path(__file__)), "--run", *program]
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
    if not done.returncode and leave_at and worker.step > leave_at:
        raise SystemExit(f"{' '.join(program)}: went on to step {worker.step}, asked to leave at {leave_at}")
    if done.returncode:
        raise SystemExit(f"{' '.join(program)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return worker.step


def losses(storage: Path, attempts: int) -> dict[int, float]:
    found: dict[int, float] = {}
    for number in range(1, attempts + 1):
        lines = (storage / f"a/0/{number}/progress.jsonl").read_text().splitlines()
        found |= {one["step"]: one["loss"] for one in map(json.loads, lines) if "loss" in one}
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
    verdict = "the same" if away <= TOLERANCE else f"{away:.1%} away"
    return {"program": name, "lines": LINES[name], **ways, "left at": [first, second], "away": away, "verdict": verdict}


def tiny(folder: Path) -> list[str]:
    """A model of two layers and some chats, for TRL."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "<s>", "</s>", "user", "assistant", ":", *"abcdefghijklmnopqrstuvwxyz"]
    plain = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} : {{ m.content }} </s> {% endfor %}"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(words), pad_token_id=0, bos_token_id=2, eos_token_id=3, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    with (folder / "chats.jsonl").open("w") as file:
        for number in range(64):
            asked = " ".join("abcdefgh"[(number + place) % 8] for place in range(4))
            turns = [("user", asked), ("assistant", " ".join(reversed(asked.split())))]
            file.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")
    return [str(folder / "model"), str(folder / "chats.jsonl")]


def run(program: list[str]) -> None:
    """In a process of its own: the program as it is, but asking at every step whether it is to leave."""
    elastic._EVERY_S = 0.0
    sys.argv = program
    runpy.run_path(program[0], run_name="__main__")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", default=list(LINES))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    for name in given.programs:
        with tempfile.TemporaryDirectory() as made:
            words = tiny(Path(made)) if name == "sft" else []
            at = (8, 18) if name == "sft" else (15, 35)
            rows.append(row(name, [str(EXAMPLE / f"{name}.py"), *words], Path(made) / "runs", at))
        shown = {key: round(value, 5) if isinstance(value, float) else value for key, value in rows[-1].items()}
        print("  ".join(f"{key}: {value}" for key, value in shown.items()), flush=True)
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2:])
    else:
        main()
