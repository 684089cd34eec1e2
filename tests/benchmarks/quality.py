"""How well llmsched schedules: published workloads replayed, our figures beside the published ones.

    python tests/benchmarks/quality.py [--only shockwave] [--out quality.json]

Prints one table and writes one JSON object. Every row holds the exact command, what the scheduler was told and what it
paid, and the same of the published figures. Needs the traces of ../shared/traces beside the checkout (or --traces).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import max_min

from llmsched.core import facts
from llmsched.core.configuration import PolicyNames
from llmsched.core.decisions import Launch
from llmsched.core.nodes import Node
from llmsched.core.resources import MILLI, Resources
from llmsched.core.scheduler import turn
from llmsched.core.state import State
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies import registry

TRACES = Path(__file__).parents[2] / ".." / "shared" / "traces" / "train"
PHILLY = "philly_2017-09-04_2017-10-22.csv.gz"
PHILLY_GPUS = 480
AT_ONCE = ("--leave", "0")  # as in the published runs: a restart costs what it says, and leaving is a part of that
GAVEL = "gavel_msr_seed0.csv.gz"
GAVEL_SPEEDS = "gavel_isolated_throughput.csv"
GAVEL_NODES = "9x4:V100,9x4:P100,9x4:K80"
SHOCKWAVE_PAID = (
    "run times known to those that use them (OSSP, AlloX, Shockwave); nothing paid to preempt; 120 s rounds"
)
PACKERS = ("spread", "pack", "least_fragmentation")
PACKING_SEEDS = (42, 43, 44)
# Of FGD's own results for this variant, means over their seeds; best fit from nine of its ten.
FGD_PUBLISHED = {"FGD": 4.47, "best fit": 6.22}
FGD_PUBLISHED_FRAGMENTED = {"FGD": 4.39}
POLLUX_PAID = "Pollux and Tiresias know no run times, Optimus is an oracle; 30 s at every start or change of size"


@dataclass
class Row:
    """One workload under one setting. `commands` are runs whose figures are averaged (all but `worst`: the largest)."""

    name: str
    commands: list[list[str]]
    published: dict[str, Any]
    published_paid: str
    must: dict[str, float] = field(default_factory=dict)  # figure -> at most
    below: tuple[str, ...] = ()  # or: figures that must be below those of these rows
    compared: tuple[str, ...] = ("avg_wait_s", "p99_wait_s")  # those figures
    peers: dict[str, list[str]] = field(default_factory=dict)  # replayed here: options of max_min.py
    figures: tuple[str, ...] = ("makespan_s", "avg_jct_s", "worst_ftf", "unfair_pct")


def rows(traces: Path, philly: Path, gavel: Path) -> list[Row]:
    def shockwave(number: int, nodes: str, *more: str) -> list[str]:
        trace = str(traces / f"shockwave_{number}.csv")
        return [trace, "--nodes", nodes, "--duration-column", "true_duration_s", "--quantum", "120", *AT_ONCE, *more]

    ours = ("--ordering", "finish_time_fair")
    blind = ("--estimates", "none", "--restart-cost", "30")
    on_120 = {
        "FIFO": [33308, 10816, 5.77, 34],
        "Gavel max-min": [33208, 11274, 2.95, 25],
        "max-sum-throughput": [31909, 9655, 4.98, 25],
        "AlloX": [32489, 9926, 4.96, 28],
        "Themis": [31929, 11302, 3.44, 22.5],
        "Gandiva-Fair": [32367, 12574, 1.85, 52],
        "OSSP": [24205, 19807, 7.74, 74],
        "Shockwave": [24197, 9958, 1.78, 5],
    }
    on_460 = {
        "Gavel max-sum": [33792, 9237, 6.01, 27],
        "max-min": [34153, 10479, 4.50, 28],
        "OSSP": [25881, 22377, 12.5, 81],
    }
    elastic = [
        [str(traces / f"pollux_elastic_{n}.csv"), "--nodes", "16x4:T4", *ours, "--elasticity", "goodput"]
        + ["--restart-cost", "30", "--quantum", "0", *AT_ONCE]
        for n in (1, 3, 6, 7)
    ]
    found = [
        Row(
            "shockwave_120, run times known",
            [shockwave(120, "8x4:V100", *ours)],
            on_120,
            SHOCKWAVE_PAID,
            {"makespan_s": 21100, "avg_jct_s": 7700, "worst_ftf": 0.96, "unfair_pct": 0},
        ),
        Row(
            "shockwave_120, every run time wrong by 0.5..1.5 (seeds 0 to 9)",
            [shockwave(120, "8x4:V100", *ours, "--estimates", "error:0.5", "--seed", str(seed)) for seed in range(10)],
            on_120,
            SHOCKWAVE_PAID,
            {"makespan_s": 24200, "avg_jct_s": 7600, "worst_ftf": 1.05},
        ),
        Row(
            "shockwave_120, every run time wrong by 0.5..1.5, no numbers of steps (seeds 0 to 9)",
            [
                shockwave(120, "8x4:V100", *ours, "--estimates", "error:0.5", "--no-steps", "--seed", str(seed))
                for seed in range(10)
            ],
            on_120,
            SHOCKWAVE_PAID,
            {"makespan_s": 24200, "avg_jct_s": 7600, "worst_ftf": 1.05},
        ),
        Row(
            "shockwave_120, no run times, 30 s a restart",
            [shockwave(120, "8x4:V100", *ours, *blind)],
            {name: on_120[name] for name in ("FIFO", "Gavel max-min", "Themis", "Gandiva-Fair")},
            "no run times; nothing paid to preempt",
            {"avg_jct_s": 11274, "worst_ftf": 2.95},
        ),
        Row(
            "shockwave_460, run times known",
            [shockwave(460, "32x4:V100", *ours)],
            on_460,
            SHOCKWAVE_PAID,
            {"makespan_s": 22700, "avg_jct_s": 7400, "worst_ftf": 0.96, "unfair_pct": 0},
        ),
        Row(
            "shockwave_460, no run times, 30 s a restart",
            [shockwave(460, "32x4:V100", *ours, *blind)],
            {"max-min": on_460["max-min"]},
            "no run times; nothing paid to preempt",
        ),
        Row(
            "pollux_elastic 1, 3, 6, 7 (mean), fixed batch",
            elastic,
            {"Tiresias": 3825, "Optimus with an oracle": 4656, "Pollux, which also tunes the batch": 2584},
            POLLUX_PAID,
            {"avg_jct_s": 2850},
            figures=("avg_jct_s", "makespan_s", "preemptions", "resizes"),
        ),
    ]
    for told in ("none", "exact"):
        base = [str(traces / PHILLY), "--nodes", "60x8", "--config", str(philly), "--estimates", told]
        base += ["--restart-cost", "30", *AT_ONCE]
        names = {
            f"Philly, FIFO + EASY, estimates {told}": ["--ordering", "fifo", "--backfill", "easy", "--preempt", "off"],
            f"Philly, least attained, estimates {told}": ["--ordering", "least_attained"],
            f"Philly, ours, estimates {told}": ["--ordering", "finish_time_fair"],
        }
        for name, chosen in names.items():
            mine = "ours" in name
            found.append(
                Row(
                    name,
                    [[*base, *chosen]],
                    {},
                    "our own engine, the same rules, quotas and costs",
                    {"quota_violations": 0},
                    tuple(other for other in names if other != name) if mine else (),
                    figures=("avg_wait_s", "p99_wait_s", "quota_violations", "preemptions"),
                )
            )
    return found + on_unlike_gpus(gavel)


def on_unlike_gpus(trace: Path) -> list[Row]:
    """The same jobs with and without knowing how fast each is on which GPU; beside max-min, which knows it."""
    base = [str(trace), "--nodes", GAVEL_NODES, "--quantum", "3600", "--restart-cost", "30"]
    peer = {"max-min": [str(trace), "--nodes", GAVEL_NODES]}
    peers = {**peer, "max-min that takes all GPUs for equal": [*peer["max-min"], "--blind"]}
    found = []
    for told, ordering in (("none", "least_attained"), ("exact", "shortest_remaining")):
        blind = f"Gavel, {ordering}, estimates {told}, told nothing of flavors"
        chosen = [*base, "--ordering", ordering, "--estimates", told]
        figures = ("avg_jct_s", "p50_jct_s", "p99_jct_s", "makespan_s", "preemptions")
        found.append(Row(blind, [[*chosen, "--no-flavors"]], {}, "our own engine, the same costs", figures=figures))
        found.append(
            Row(
                f"Gavel, {ordering}, estimates {told}",
                [chosen],
                {"known from the paper: mean JCT that flavors unknown / known": "1.5 to 3.5"},
                "max-min, written after Gavel's paper: speeds known, no run times, nothing paid; 360 s rounds",
                below=(blind,),
                compared=("avg_jct_s",),
                peers=peers if told == "none" else {},
                figures=figures,
            )
        )
    return found


def gavel_trace(traces: Path, out: Path) -> None:
    """The jobs of all four VCs with their run times on each flavor."""
    speeds = traces.parent / "profiles" / GAVEL_SPEEDS
    words = ["sim", "import", "gavel", str(traces / GAVEL), "--profiles", str(speeds), "-o", str(out)]
    subprocess.run([sys.executable, "-m", "llmsched.cli.main", *words], check=True, stdout=subprocess.DEVNULL)


def philly_configuration(trace: Path, gpus: int = PHILLY_GPUS) -> str:
    """12 VCs as queues of one cohort; nominal quota in proportion to the GPU time each asked for, rounded to sum up."""
    demand: dict[str, float] = {}
    with gzip.open(trace, "rt") as file:
        for row in csv.DictReader(file):
            demand[row["vc"]] = demand.get(row["vc"], 0.0) + int(row["num_gpus"]) * float(row["duration_s"])
    exact = {name: gpus * amount / sum(demand.values()) for name, amount in sorted(demand.items())}
    nominal = {name: int(share) for name, share in exact.items()}
    short = gpus - sum(nominal.values())
    for name in sorted(exact, key=lambda each: (nominal[each] - exact[each], each))[:short]:
        nominal[name] += 1
    queues = "".join(
        f'  - {{name: "{name}", cohort: philly, quota: {{"*": {{nominal: {count}}}}}}}\n'
        for name, count in nominal.items()
    )
    rules = "scheduling: {order: best_effort, quantum: 300s, preemption: {within_queue: by_rank, reclaim: any}}\n"
    return f"cohorts: [{{name: philly}}]\nqueues:\n{queues}{rules}"


def packing(traces: Path, policy: str, seed: int) -> dict[str, float]:
    """openb: pods of the 20 % multi-GPU variant, drawn with a seed, arrive one by one on its 1,213 nodes until as many
    GPUs were asked for as there are (130 % of them: the end). Nothing leaves; who does not fit is turned away."""
    with (traces.parent / "cluster" / "openb_gpu_nodes.csv").open() as file:
        nodes = [
            Node(row["sn"], Resources(int(row["gpu"]) * MILLI, int(row["cpu_milli"]), int(row["memory_mib"]) << 20))
            for row in csv.DictReader(file)
        ]
    with gzip.open(traces / "openb_pods_multigpu20.csv.gz", "rt") as file:
        pods = [
            Resources(int(row["num_gpu"]) * int(row["gpu_milli"]), int(row["cpu_milli"]), int(row["memory_mib"]) << 20)
            for row in csv.DictReader(file)
        ]
    there = sum(node.total.gpus_milli for node in nodes)
    state, policies = State(), registry.load(PolicyNames(placement=policy, ordering="fifo", elasticity="even"))
    turn(state, [facts.NodeJoined(0.0, node) for node in nodes], policies)
    draw, asked, number = random.Random(seed), 0, 0
    found: dict[str, float] = {}
    while "unallocated_pct_at_130" not in found:
        need = draw.choice(pods)
        number += 1
        asked += need.gpus_milli
        name = f"p{number}"
        work = Workload(name, name, "task", (Group("pod", 1, (Option(None, need),)),), grace_s=0.0)
        plan = turn(state, [facts.Submitted(float(number), work)], policies)
        if not any(isinstance(decision, Launch) for decision in plan.decisions):
            turn(state, [facts.Cancelled(float(number), name)], policies)
        for pct in (100, 130):
            if asked >= there * pct / 100 and f"unallocated_pct_at_{pct}" not in found:
                free = there - sum(node.gpus for node in state.nodes.values())
                lost = fragmented(state, pods)
                found[f"unallocated_pct_at_{pct}"] = 100 * free / there
                found[f"fragmented_pct_at_{pct}"] = 100 * lost / there
                found[f"fragmented_pct_of_free_at_{pct}"] = 100 * lost / free
    return found


def fragmented(state: State, pods: list[Resources]) -> float:
    """FGD's measure: thousandths of free GPUs that a pod drawn from the trace is expected to be unable to use. Looks at
    GPUs and CPUs; a pod without GPUs can use none."""
    kinds = Counter(Resources(pod.gpus_milli, pod.cpus_milli) for pod in pods)
    lost = 0
    for node in state.nodes.values():
        slack = [MILLI - taken for taken in node.shares.values()]
        free = node.free_whole * MILLI + sum(slack)
        for need, count in kinds.items():
            if not need.gpus_milli or not node.room(need, 1):
                lost += count * free
            else:
                lost += count * sum(left for left in slack if left < need.gpus_milli)
    return lost / len(pods)


def all_packings(traces: Path) -> dict[str, Any]:
    """Every policy with every seed, the means; two runs at a time."""
    runs = [(policy, seed) for policy in PACKERS for seed in PACKING_SEEDS]
    with ProcessPoolExecutor(2) as pool:
        done = list(pool.map(packing, [traces] * len(runs), *zip(*runs, strict=True)))
    result: dict[str, Any] = {}
    for policy in PACKERS:
        mine = [figures for (who, _), figures in zip(runs, done, strict=True) if who == policy]
        result[policy] = {key: round(sum(each[key] for each in mine) / len(mine), 2) for key in mine[0]}
    ours = result["least_fragmentation"]["unallocated_pct_at_100"]
    for other in PACKERS[:-1]:
        theirs = result[other]["unallocated_pct_at_100"]
        result[f"fewer unallocated than {other}, pct"] = round(100 * (1 - ours / theirs), 1)
    result["seeds"] = list(PACKING_SEEDS)
    result["published, unallocated_pct_at_100"] = FGD_PUBLISHED
    result["published, fragmented_pct_at_100"] = FGD_PUBLISHED_FRAGMENTED
    lost = result["least_fragmentation"]["fragmented_pct_at_100"]
    pairs = {"unallocated": (ours, FGD_PUBLISHED["FGD"]), "fragmented": (lost, FGD_PUBLISHED_FRAGMENTED["FGD"])}
    result["missed"] = {name: {"got": got, "most": most} for name, (got, most) in pairs.items() if got > most}
    return result


def run(command: list[str]) -> dict[str, Any]:
    words = [sys.executable, "-m", "llmsched.cli.main", "sim", "run", *command, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(words)} failed: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(row: Row, say: Callable[[str], None]) -> dict[str, Any]:
    runs = []
    for command in row.commands:
        runs.append(run(command))
        say(".")
    keys = sorted({*row.figures, *row.must, "turn_p50_ms", "turn_p95_ms", "turn_p99_ms", "wall_s", "utilisation"})
    mean = {key: round(sum(each[key] for each in runs) / len(runs), 4) for key in keys}
    return {
        "row": row.name,
        "ours": mean,
        "each": [{key: each[key] for key in keys} for each in runs] if len(runs) > 1 else [],
        "told": runs[0]["told"],
        "paid": runs[0]["paid"],
        "published": row.published | {name: max_min.measure(words) for name, words in row.peers.items()},
        "published_told_and_paid": row.published_paid,
        "must_be_at_most": row.must,
        "missed": {
            key: {"by_pct": round(100 * (mean[key] / most - 1), 1) if most else None, "got": mean[key], "most": most}
            for key, most in row.must.items()
            if mean[key] > most
        },
        "commands": ["llmsched sim run " + shlex.join(command) for command in row.commands],
        "digests": [each["digest"] for each in runs],
    }


def compare(found: list[dict[str, Any]], wanted: list[Row]) -> None:
    """Rows that must be below others, in the figures that they name."""
    by_name = {each["row"]: each for each in found}
    for row in wanted:
        for other in row.below:
            if row.name in by_name and other in by_name:
                mine, theirs = by_name[row.name], by_name[other]
                for key in row.compared:
                    if mine["ours"][key] >= theirs["ours"][key]:
                        missed = {"got": mine["ours"][key], "most": theirs["ours"][key]}
                        mine["missed"][f"{key} below {other}"] = missed


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="", help="rows whose name contains this")
    options.add_argument("--traces", type=Path, default=TRACES)
    options.add_argument("--out", type=Path, default=Path("quality.json"))
    given = options.parse_args()
    if not given.traces.exists():
        raise SystemExit(f"no traces at {given.traces}: pass --traces")
    with tempfile.TemporaryDirectory() as folder:
        philly = Path(folder) / "philly.yaml"
        philly.write_text(philly_configuration(given.traces / PHILLY))
        gavel = Path(folder) / "gavel.csv"
        wanted = [row for row in rows(given.traces, philly, gavel) if given.only.lower() in row.name.lower()]
        if any(row.name.startswith("Gavel") for row in wanted):
            gavel_trace(given.traces, gavel)
        found = []
        for row in wanted:
            print(row.name, end=" ", flush=True)
            found.append(measure(row, lambda text: print(text, end="", flush=True)))
            print()
        compare(found, wanted)
        result = {"rows": found, "philly.yaml": philly.read_text()}
        if given.only.lower() in "openb packing":
            print("openb packing")
            result["openb"] = all_packings(given.traces)
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    for each in found:
        figures = ", ".join(f"{key} {value:,}" for key, value in each["ours"].items() if key != "utilisation")
        print(f"\n{each['row']}\n  ours: {figures}\n  told {each['told']}; paid {each['paid']}")
        for name, values in each["published"].items():
            print(f"  {name}: {values}")
        for key, miss in each["missed"].items():
            print(f"  MISSED {key}: {miss}")
    for name, figures in result.get("openb", {}).items():
        print(f"openb, {name}: {figures}")
    print(f"\nEverything is in {given.out}.")


if __name__ == "__main__":
    main()
