"""What llmsched costs on real Ray, against Ray alone on the same cluster in the same run.

    python tests/benchmarks/live.py [--runs 5] > live.json

Prints one JSON object; seconds, medians. Starts a local Ray of its own with pretend GPUs and ends everything it starts.
`launch`: from the stamp of a launch in the journal, which is taken before it is committed, until Ray is asked; the
    controller's own figure (/api/v1/metrics), one launch at a time.
`task`: from submitting to the first line of a process, against Ray's own job submission.
`train`: from submitting to the end of a loop on two workers, against the same loop in a plain TorchTrainer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

STEPS, STEP_S = 20, 0.25
LOOP = f"""
import time

def loop(config):
    import torch.distributed as dist
    for step in range({STEPS}):
        time.sleep({STEP_S})  # stands for work; the cost of everything around it is what is measured
        dist.barrier()
"""
PLAIN = """
import sys
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from bench_loop import loop

ray.init(address=sys.argv[1], runtime_env={"working_dir": "."}, log_to_driver=False)
TorchTrainer(
    loop, train_loop_config={}, torch_config=TorchConfig(backend="gloo"),
    scaling_config=ScalingConfig(num_workers=2, use_gpu=True),
    run_config=RunConfig(name="plain", storage_path=sys.argv[2]),
).fit()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(prefix="llms") as folder:
        home, work = Path(folder) / "home", Path(folder) / "work"
        work.mkdir()
        os.environ["LLMSCHED_HOME"] = str(home)
        from llmsched.executors import local_ray

        os.environ.update(local_ray.environment(home))  # before ray is imported: it caches the mode
        command("up", "--nodes", "1x2:A100")
        try:
            found = local_ray.read(home)
            assert found is not None
            launches: list[float] = []
            task = tasks(work, found.dashboard_url, runs, launches)
            train = trains(work, found.address, runs, launches)
            slowest = round(max(launches), 4)
            launch = {"p50_s": round(statistics.median(launches), 4), "slowest_s": slowest, "launches": len(launches)}
            result = {"launch": launch, "task": task, "train": train}
        finally:
            command("down")
    print(json.dumps(result, indent=2))


def command(*words: str) -> None:
    line = [sys.executable, "-m", "llmsched.cli.main", *words]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def compare(ours: Callable[[int], float], theirs: Callable[[int], float], runs: int) -> dict[str, Any]:
    """Both in turn, after one of each that does not count."""
    pairs = [(ours(i), theirs(i)) for i in range(runs + 1)][1:]
    our, their = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {"llmsched_s": round(our, 3), "ray_s": round(their, 3), "ratio": round(our / their, 3), "runs": runs}


def launched(home: Path) -> tuple[float, int]:
    """Seconds from commit to asking Ray, summed over all launches so far, and how many they were."""
    url = json.loads((home / "controller.json").read_text())["url"]
    said = httpx.get(
        f"{url}/api/v1/metrics", headers={"authorization": f"Bearer {(home / 'token').read_text().strip()}"}
    ).text
    name = "llmsched_launch_seconds"
    found = dict(line.split() for line in said.splitlines() if line.startswith((f"{name}_sum", f"{name}_count")))
    return float(found[f"{name}_sum"]), int(found[f"{name}_count"])


def one_launch(act: Callable[[], float], into: list[float]) -> float:
    """Do `act`, which launches one attempt, and add what that launch took."""
    home = Path(os.environ["LLMSCHED_HOME"])
    (sum_before, before), taken, (sum_after, after) = launched(home), act(), launched(home)
    assert after == before + 1, f"{after - before} launches instead of one"
    into.append(sum_after - sum_before)
    return taken


def tasks(work: Path, dashboard: str, runs: int, launches: list[float]) -> dict[str, Any]:
    from ray.job_submission import JobSubmissionClient

    from llmsched.client import Client

    client, jobs = Client(), JobSubmissionClient(dashboard)

    def argv(file: Path) -> list[str]:
        return [sys.executable, "-c", f"import time; open({str(file)!r}, 'w').write(repr(time.time()))"]

    def until_first_line(file: Path, submit: Callable[[], Any]) -> float:
        began = time.time()
        submit()
        deadline = time.monotonic() + 60
        while not (file.exists() and file.read_text()):
            assert time.monotonic() < deadline, f"{file.name} never began"
            time.sleep(0.005)
        return float(file.read_text()) - began

    def ours(i: int) -> float:
        file = work / f"ours-{i}"
        spec = {"name": f"task-{i}", "kind": "task", "task": {"run": argv(file)}}
        taken = until_first_line(file, lambda: client.apply([spec]))
        client.wait(f"task-{i}", timeout_s=60)
        return taken

    def theirs(i: int) -> float:
        import shlex

        file = work / f"theirs-{i}"
        return until_first_line(file, lambda: jobs.submit_job(entrypoint=shlex.join(argv(file))))

    return compare(lambda i: one_launch(lambda: ours(i), launches), theirs, runs)


def trains(work: Path, address: str, runs: int, launches: list[float]) -> dict[str, Any]:
    from llmsched.client import Client

    folder = work / "loop"
    folder.mkdir()
    (folder / "bench_loop.py").write_text(LOOP)
    (folder / "plain.py").write_text(PLAIN)
    spec = folder / "spec.yaml"
    client = Client()

    def ours(i: int) -> float:
        spec.write_text(
            f'name: train-{i}\nkind: train\nresources: {{accelerators: "A100:1"}}\nworkers: 2\nworkdir: .\n'
            'train: {loop: "bench_loop:loop"}\n'
        )
        began = time.monotonic()
        view = client.apply(spec).wait(300, check=False).views[0]
        assert view.phase == "succeeded", view.message
        return time.monotonic() - began

    def theirs(i: int) -> float:
        began = time.monotonic()
        line = [sys.executable, "plain.py", address, str(work / f"plain-{i}")]
        subprocess.run(line, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.monotonic() - began

    compared = compare(lambda i: one_launch(lambda: ours(i), launches), theirs, max(1, runs // 2))
    bound_s = round(compared["ray_s"] * 1.05 + 2, 2)
    return {**compared, "bound_s": bound_s, "work_s": STEPS * STEP_S}


if __name__ == "__main__":
    main()
