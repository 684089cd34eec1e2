"""One pool against the best static split, on a published day: `python compare.py [--at-least POINTS] [--only quota]`.

Replays the day of the endpoint beside the fine-tunes: on one pool, with and without a forecast from the days before,
then on pools that are split between them at several places. The best split is the one that is used most among those
with no more late requests than `LATE_PCT`.

`--only quota`: both in one queue, at one priority. How many windows of five minutes miss the endpoint's target, and
what the fine-tunes have of it, where the scheduler weighs its replicas against them, and where it has all that it
asks for.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GPUS, NODES = 64, "16x4:T4"
SPLITS = (49, 50, 51)  # GPUs of the endpoint
LATE_PCT = 0.05
HANDOVER_S = 60.0
WEIGHTS = (0, 3)  # of a replica; 0: it has whatever it asks for
QUOTA_UNTIL_S = 21_600


ONE_POOL, REACTS = "one pool", "no forecast"


def replay(endpoint: Path, cluster: Path, service: str = "10s", until_s: int = 86_400) -> dict[str, Any]:
    traffic = f"{HERE / 'day.csv'},past={HERE / 'before.csv'},service={service},start=30s,patience=10s"
    line = [
        sys.executable, "-m", "llmsched.cli.main", "sim", "run", str(HERE / "fine_tunes.csv"), "--nodes", NODES,
        "--config", str(cluster), "--endpoint", f"{endpoint}={traffic}",
        "--restart-cost", "30", "--leave", "3", "--until", str(until_s), "--json",
    ]  # fmt: skip
    found = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)
    return {**found, **found["endpoints"]["chat"]}


def unforeseen(folder: Path) -> dict[str, Any]:
    """One pool whose endpoint follows its load alone."""
    endpoint = folder / "unforeseen.yaml"
    endpoint.write_text((HERE / "chat.yaml").read_text().replace("autoscaling: {", "autoscaling: {forecast: off, "))
    return replay(endpoint, HERE / "cluster.yaml")


def split(gpus: int, folder: Path) -> dict[str, Any]:
    """The endpoint has so many replicas and GPUs all day, the fine-tunes the others."""
    lines = (HERE / "chat.yaml").read_text().splitlines()
    lines = [f"replicas: {gpus}" if line.startswith("replicas") else line for line in lines]
    endpoint, cluster = folder / f"chat{gpus}.yaml", folder / f"split{gpus}.yaml"
    endpoint.write_text("\n".join(line for line in lines if not line.startswith("autoscaling")) + "\n")
    queues = {"serving": gpus, "train": GPUS - gpus}
    rows = [f"  - {{name: {name}, quota: {{T4: {{nominal: {count}}}}}}}" for name, count in queues.items()]
    cluster.write_text("queues:\n" + "\n".join(rows) + "\n")
    return replay(endpoint, cluster)


def weighed(weight: int, folder: Path) -> dict[str, Any]:
    """Both in one queue, where a replica counts so many times."""
    cluster = folder / f"weight{weight}.yaml"
    text = (HERE / "one_quota" / "cluster.yaml").read_text()
    cluster.write_text(text.replace("replica_weight: 3", f"replica_weight: {weight}"))
    return replay(HERE / "one_quota" / "chat.yaml", cluster, "6s..10s", QUOTA_UNTIL_S)


def quota() -> int:
    """Prints what each weight comes to. 1: weighed, more windows are missed, or fewer GPUs are of use."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        rows = dict(zip(WEIGHTS, pool.map(lambda weight: weighed(weight, Path(folder)), WEIGHTS), strict=True))
    print("weight    used     missed windows   replicas' GPU hours   fine-tunes   mean time")
    for weight, one in rows.items():
        print(
            f"{weight:6} {100 * one['used']:6.1f}% {one['missed_windows_pct']:15.2f}% {one['gpu_hours']:19.1f} "
            f"{one['finished']:14,} {one['avg_jct_s']:9,.0f} s"
        )
    before, after = (rows[weight] for weight in WEIGHTS)
    points = 100 * (after["used"] - before["used"])
    is_right = after["missed_windows_pct"] <= before["missed_windows_pct"] and points >= 0
    print(
        f"{'right' if is_right else 'wrong'}: weighed, {points:.1f} points more are of use, and "
        f"{after['missed_windows_pct']:.1f} % of the windows miss the target instead of "
        f"{before['missed_windows_pct']:.1f} %"
    )
    return 0 if is_right else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("day", "quota"), default="day", help="the day, or both in one quota")
    parser.add_argument("--at-least", type=float, default=20.0, help="points of use more than the best split")
    given = parser.parse_args()
    if given.only == "quota":
        return quota()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        shared = pool.submit(replay, HERE / "chat.yaml", HERE / "cluster.yaml")
        reacts = pool.submit(unforeseen, Path(folder))
        splits = dict(zip(SPLITS, pool.map(lambda gpus: split(gpus, Path(folder)), SPLITS), strict=True))
        rows = {
            ONE_POOL: shared.result(),
            REACTS: reacts.result(),
            **{f"{n} / {GPUS - n}": found for n, found in splits.items()},
        }
    print("GPUs            used     late   p99 wait   hand-over p95   fine-tunes   mean time")
    for name, one in rows.items():
        print(
            f"{name:13} {100 * one['used']:5.1f}% {one['late_pct']:7.3f}% {one['wait_p99_s']:8.1f} s "
            f"{one['handover_p95_s']:13.1f} s {one['finished']:12,} {one['avg_jct_s']:9,.0f} s"
        )
    fair = {n: one for n, one in splits.items() if one["late_pct"] <= LATE_PCT}
    best = max(fair, key=lambda n: fair[n]["used"])
    one = rows[ONE_POOL]
    points = 100 * (one["used"] - fair[best]["used"])
    is_right = points >= given.at_least and all(
        each["late_pct"] <= LATE_PCT and each["handover_p95_s"] <= HANDOVER_S for each in (one, rows[REACTS])
    )
    print(
        f"{'right' if is_right else 'wrong'}: one pool is used by {points:.1f} points more than the best split "
        f"({best} GPUs for the endpoint); {one['late_pct']} % of {one['requests']:,} requests late; a GPU changes "
        f"hands within {one['handover_p95_s']:.0f} s (p95 of {one['new_replicas']:,})"
    )
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
