"""Searches and arrays on real Ray: how soon a GPU goes on with the next trial, what early stopping saves, what a killed
controller costs, and ray.tune.Tuner beside it.

    python tests/benchmarks/tune.py [--tasks 200] [--gpus 16] [--seconds 5] [--trials 18] [--only array,killed]

Parts: array, killed, asha, same, two, tuner. Each kind of part starts a Ray of its own with pretend GPUs, and all print
one JSON object. `gap_s`: on one GPU, from the last moment of a user's code to the first moment of the next one, as both
write it down themselves. In `killed` the controller is killed (-9) in the middle; in `same` too, and the search is made
again without that: what differs is told. In `two` searches have room for one trial of two workers together.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[2] / "examples" / "14_search"
BIN = Path(sys.executable).parent
WITHIN_S = 1800.0  # what is waited for at most, each time


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # it takes its cluster down
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--gpus", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--trials", type=int, default=18)
    parser.add_argument("--only", default="array,killed,asha,same,two,tuner")
    asked = parser.parse_args()
    only, found = asked.only.split(","), {"tasks": asked.tasks, "gpus": asked.gpus, "seconds": asked.seconds}
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        Path(folder).chmod(0o755)  # where Ray runs as a user of its own, it is to get there
        os.environ |= {"LLMSCHED_HOME": f"{folder}/h", "TMPDIR": folder}
        if {"array", "killed", "asha", "same"} & {*only}:
            llmsched("up", "--nodes", f"1x{asked.gpus}:A100")
            try:
                found |= {"array": array(asked, "array")} if "array" in only else {}
                found |= {"killed": array(asked, "killed", kills=True)} if "killed" in only else {}
                found |= {"asha": asha(asked)} if "asha" in only else {}
                found |= {"same": same(asked)} if "same" in only else {}
            finally:
                llmsched("down")
        if "two" in only:
            os.environ["LLMSCHED_HOME"] = f"{folder}/two"
            llmsched("up", "--nodes", "1x2:A100")
            try:
                found |= {"two": two()}
            finally:
                llmsched("down")
        found |= {"tuner": tuner(asked)} if "tuner" in only else {}
    print(json.dumps(found, indent=1))


def llmsched(*words: str) -> None:
    subprocess.run([BIN / "llmsched", *words], check=True, stdout=sys.stderr, stderr=sys.stderr)


def client() -> Any:
    from llmsched.client import Client

    return Client()


def array(asked: argparse.Namespace, name: str, *, kills: bool = False) -> dict[str, Any]:
    stamps = Path(os.environ["TMPDIR"], name)
    stamps.mkdir()
    stamps.chmod(0o777)
    stamp = f"date +$CUDA_VISIBLE_DEVICES,%s.%N > {stamps}/$N"
    sleeps = f"{stamp}.begun; sleep {asked.seconds}; {stamp}.over"
    spec = {
        "name": name,
        "kind": "tune",
        "resources": {"accelerators": "A100:1", "cpus": 0.05},
        "tune": {
            "task": {"run": ["sh", "-c", sleeps]},
            "space": {"envs.N": {"grid": list(range(asked.tasks))}},
        },
    }
    began, applied = time.monotonic(), time.time()
    with client() as api:
        api.apply(spec)
        if kills:
            _until(lambda: sum(one.ended for one in api.trials(name).trials) >= asked.tasks // 3)
    away = _kill_and_start() if kills else 0.0
    with client() as api:
        _until(lambda: api.status(name).ended)
        took = time.monotonic() - began
        trials = api.trials(name).trials
    ran = [(*_stamp(one), _stamp(one.with_suffix(".over"))[1]) for one in stamps.glob("*.begun")]
    return {
        "succeeded": sum(one.phase == "succeeded" for one in trials),
        "asked_for": len(trials),
        "ran": len(ran),
        "seconds": round(took, 1),
        "at_best": round(asked.tasks / asked.gpus * asked.seconds, 1),
        "all_at_work_s": round(_first_of_all(ran) - applied, 1),
        "controller_away_s": round(away, 1),
        "gap_s": _gaps(ran),
    }


def _stamp(file: Path) -> tuple[str, float]:
    gpu, _, at = file.read_text().partition(",")
    return gpu, float(at)


def _first_of_all(ran: list[tuple[str, float, float]]) -> float:
    """When each GPU had begun once."""
    first: dict[str, float] = {}
    for gpu, begun, _ in ran:
        first[gpu] = min(begun, first.get(gpu, begun))
    return max(first.values())


def _kill_and_start() -> float:
    """Seconds without a controller."""
    pid = json.loads((Path(os.environ["LLMSCHED_HOME"]) / "controller.json").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    llmsched("up")
    return time.monotonic() - killed


def _gaps(ran: list[tuple[str, float, float]]) -> dict[str, Any]:
    """Of (GPU, begun, over)."""
    ordered = sorted(ran)
    both = zip(ordered, ordered[1:], strict=False)
    gaps = sorted(later[1] - earlier[2] for earlier, later in both if earlier[0] == later[0])
    return {"count": len(gaps), **{f"p{part}": _at(gaps, part / 100) for part in (50, 90, 95, 100)}}


def _at(values: list[float], part: float) -> float | None:
    return round(values[min(len(values) - 1, int(part * len(values)))], 2) if values else None


def asha(asked: argparse.Namespace) -> dict[str, Any]:
    """The same points to their ends, and with poor ones stopped."""
    found: dict[str, Any] = {}
    for kind in ("fifo", "asha"):
        with client() as api:
            began = time.monotonic()
            _search(api, kind, kind, asked.trials)
            _until(lambda kind=kind: api.status(kind).ended)  # type: ignore[misc]
            table = api.trials(kind)
            steps = sum(one.step or 0 for one in table.trials)
            best = next(one.value for one in table.trials if one.name == table.best)
            found[kind] = {"best": best, "steps": steps, "seconds": round(time.monotonic() - began, 1)}
    found["steps_of_grid"] = round(found["asha"]["steps"] / found["fifo"]["steps"], 3)
    found["best_beyond_grid"] = round(found["asha"]["best"] / found["fifo"]["best"] - 1, 4)
    return found


def _search(api: Any, name: str, kind: str, trials: int) -> None:
    rates = [round(0.001 * 10 ** (3 * n / (trials - 1)), 5) for n in range(trials)]
    rates = [rates[(7 * n) % len(rates)] for n in range(len(rates))]
    args = {"max_t": 81, "grace_period": 3, "reduction_factor": 3} if kind == "asha" else {}
    tune = {
        "task": {"run": ["python", "fit.py"]},
        "space": {"envs.LR": {"grid": rates}, "envs.WIDTH": {"choice": [8, 16, 32]}},
        "metric": "loss",
        "scheduler": kind,
        "scheduler_args": args,
    }
    work = {"resources": {"accelerators": "A100:1", "cpus": 0.1}, "envs": {"PAUSE": "0.2"}}
    os.chdir(EXAMPLE)
    api.apply({"name": name, "kind": "tune", "tune": tune, **work, "workdir": "."})


def same(asked: argparse.Namespace) -> dict[str, Any]:
    """Of each kind of search: whether a controller that is killed in the middle changes the trials or the result."""
    found: dict[str, Any] = {}
    for kind in ("fifo", "asha"):
        tables: dict[str, Any] = {}
        for way in ("alone", "killed"):
            name = f"{kind}-{way}"
            with client() as api:
                _search(api, name, kind, asked.trials)
                if way == "killed":
                    _until(lambda name=name: _steps(api, name) >= 0.4 * _steps(api, name.replace("killed", "alone")))
            away = _kill_and_start() if way == "killed" else 0.0
            with client() as api:
                _until(lambda name=name: api.status(name).ended)  # type: ignore[misc]
                tables[way] = api.trials(name)
                told = {one.name: one.values for one in tables[way].trials}
                runs = [api.status(one.id).restarts for one in tables[way].trials]
                tables[f"{way}_told"], tables[f"{way}_runs"] = told, runs
        alone, killed = tables["alone"], tables["killed"]
        found[kind] = {
            "controller_away_s": round(away, 1),
            "trials": len(alone.trials),
            "same_trials": tables["alone_told"] == tables["killed_told"],
            "begun_once": tables["killed_runs"] == [0] * len(alone.trials),
            "same_best": alone.best == killed.best and _best(alone) == _best(killed),
            "steps": [sum(one.step or 0 for one in each.trials) for each in (alone, killed)],
            "ended_elsewhere": sorted(name for name, step in _ends(alone).items() if _ends(killed).get(name) != step),
        }
    return found


def _steps(api: Any, name: str) -> float:
    return sum(one.step or 0 for one in api.trials(name).trials)


def _best(table: Any) -> float | None:
    return next((one.value for one in table.trials if one.name == table.best), None)


def _ends(table: Any) -> dict[str, float | None]:
    return {one.name: one.step for one in table.trials}


def two() -> dict[str, Any]:
    """Two searches whose trials are gangs of two workers, where two GPUs are all there are."""
    count, seconds = 4, 2
    task = {"run": ["sh", "-c", f"sleep {seconds}"]}
    began = time.monotonic()
    with client() as api:
        for name in ("one", "other"):
            tune = {"task": task, "space": {"envs.N": {"grid": list(range(count))}}}
            work = {"workers": 2, "resources": {"accelerators": "A100:1", "cpus": 0.1}}
            api.apply({"name": name, "kind": "tune", "tune": tune, **work})
        _until(lambda: all(api.status(name).ended for name in ("one", "other")))
        ends = {name: [one.phase for one in api.trials(name).trials] for name in ("one", "other")}
    return {
        "succeeded": {name: phases.count("succeeded") for name, phases in ends.items()},
        "asked_for": {name: len(phases) for name, phases in ends.items()},
        "seconds": round(time.monotonic() - began, 1),
        "at_best": 2 * count * seconds,
    }


def tuner(asked: argparse.Namespace) -> dict[str, Any]:
    """The same sleeps in plain Ray, each trial with a GPU."""
    import ray
    from ray import tune

    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    storage = tempfile.mkdtemp(prefix="r", dir="/tmp")
    seconds = asked.seconds

    def trial(config: dict[str, Any]) -> None:
        begun = time.time()
        time.sleep(seconds)
        tune.report({"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "begun": begun, "over": time.time()})

    ray.init(num_gpus=asked.gpus, num_cpus=asked.gpus, include_dashboard=False, log_to_driver=False)
    try:
        began = time.monotonic()
        results = tune.Tuner(
            tune.with_resources(trial, {"gpu": 1, "cpu": 1}),
            param_space={"n": tune.grid_search(list(range(asked.tasks)))},
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        ).fit()
        took = time.monotonic() - began
    finally:
        ray.shutdown()
        shutil.rmtree(storage, ignore_errors=True)
    ended = [one.metrics for one in results if one.metrics]
    return {
        "succeeded": len(ended),
        "seconds": round(took, 1),
        "at_best": round(asked.tasks / asked.gpus * seconds, 1),
        "gap_s": _gaps([(one["gpu"], one["begun"], one["over"]) for one in ended]),
    }


def _until(there: Any) -> None:
    end = time.monotonic() + WITHIN_S
    while not there():
        assert time.monotonic() < end, "nothing more ended"
        time.sleep(0.5)


if __name__ == "__main__":
    main()
