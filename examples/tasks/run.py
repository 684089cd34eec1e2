"""Runs rows of this folder, each on a fresh cluster of pretended GPUs, and prints what came out.

    python run.py see find        these two; `all`: every row
    python run.py all --json      a list of {row, metric, number, at_least, baseline, baseline_is, minutes, passed}

A row is a folder. prepare.py writes its data; a cluster comes up in a home of its own; spec.yaml is applied and waited
for; measure.py asks what it made, and prints {"number", "baseline"}. Then all of it is taken down again.
Ctrl-C or a TERM takes the cluster down before it ends. expect.yaml says what counts as good:

    metric: accuracy on images that were held out     # what `number` is; more is better
    at_least: 0.93
    baseline: logistic regression on the pixels       # what `baseline` is, beside it
    minutes: 3                                        # from the first file to the last answer, on two cores
    up: --nodes 1x2:A100                              # what `llmsched up` is told, when it is not that

A row of several numbers has `parts: {NAME: {metric, at_least, baseline}}` in their place, and its measure.py prints a
line for each: {"part", "number", "baseline"}.

Exit code 1: a row came out below, took longer, or failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
LLMSCHED = Path(sys.executable).with_name("llmsched")
UP = "--nodes 1x2:A100"
LONGEST_S = 1800
_KEYS = {"metric", "at_least", "baseline"}


class Failed(Exception):
    """A step of a row ended badly: its last words."""


def names() -> list[str]:
    return sorted(file.parent.name for file in HERE.glob("*/expect.yaml"))


def run(name: str, say: Any) -> list[dict[str, Any]]:
    """A row from its data to its numbers. Raises Failed; nothing is left running either way."""
    folder, expect = HERE / name, expected(name)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="llmsched-task-") as place:  # a short path: sockets lie below it
        home = Path(place, "home")
        env = {**os.environ, "LLMSCHED_HOME": str(home), "HF_HUB_OFFLINE": "1"}

        def step(*command: str, must: bool = True) -> str:
            at = f"{time.monotonic() - began:5.0f} s"
            say(f"{at} {name}: {' '.join(Path(word).name if word.startswith('/') else word for word in command)}")
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=LONGEST_S)
            if done.returncode and must:
                raise Failed(f"{Path(command[1]).name}: {(done.stderr + done.stdout).strip()[-2000:]}")
            return done.stdout

        step(sys.executable, "prepare.py")
        try:
            step(str(LLMSCHED), "up", "--fresh", *shlex.split(expect["up"]))
            step(str(LLMSCHED), "apply", "-f", "spec.yaml", "--wait")
            printed = step(sys.executable, "measure.py").splitlines()
        except Failed:
            say(step(str(LLMSCHED), "status", must=False))
            raise
        finally:
            step(str(LLMSCHED), "down", "--purge", "--yes", must=False)
    minutes = round((time.monotonic() - began) / 60, 1)
    found = {one.get("part", ""): one for one in map(json.loads, (line for line in printed if line[:1] == "{"))}
    if missing := expect["parts"].keys() - found.keys():
        raise Failed(f"measure.py: it printed nothing of {', '.join(sorted(missing)) or name}")
    return [
        {
            "row": f"{name}/{part}" if part else name,
            "metric": wanted["metric"],
            "number": round(float(found[part]["number"]), 4),
            "at_least": wanted["at_least"],
            "baseline": round(float(found[part]["baseline"]), 4),
            "baseline_is": wanted["baseline"],
            "minutes": minutes,
            "passed": found[part]["number"] >= wanted["at_least"] and minutes <= expect["minutes"],
        }
        for part, wanted in expect["parts"].items()
    ]


def expected(name: str) -> dict[str, Any]:
    """{"minutes", "up", "parts": {part, "" where there is one: {"metric", "at_least", "baseline"}}}"""
    found: dict[str, Any] = yaml.safe_load((HERE / name / "expect.yaml").read_text())
    parts = found.get("parts") or {"": {key: found[key] for key in _KEYS & found.keys()}}
    if missing := {key for part in parts.values() for key in _KEYS - part.keys()} | {"minutes"} - found.keys():
        raise SystemExit(f"{name}/expect.yaml lacks {', '.join(sorted(missing))}")
    return {"up": found.get("up", UP), "minutes": found["minutes"], "parts": parts}


def table(rows: list[dict[str, Any]]) -> str:
    """row | metric | number | baseline | minutes"""
    lines = [["row", "metric", "number", "baseline", "minutes"]]
    for row in rows:
        if "failed" in row:
            lines.append([row["row"], "failed", "-", "-", "-"])
            continue
        number = f"{row['number']:g}" + ("" if row["passed"] else f" (expected {row['at_least']:g})")
        lines.append([
            row["row"], row["metric"], number, f"{row['baseline']:g}: {row['baseline_is']}", f"{row['minutes']:g}",
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(" | ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _end(*_: object) -> None:
    raise SystemExit(143)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run rows of examples/tasks and print what came out.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names())}, or all")
    parser.add_argument("--json", action="store_true", help="A list on stdout.")
    asked = parser.parse_args(arguments)
    if not asked.names:
        parser.print_usage()
        print("rows: " + ", ".join(names()))
        return 2
    chosen = names() if "all" in asked.names else asked.names
    if unknown := [name for name in chosen if name not in names()]:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(names())}")
    rows: list[dict[str, Any]] = []
    for name in chosen:
        try:
            rows.extend(run(name, lambda text: print(text, file=sys.stderr, flush=True)))
        except (Failed, subprocess.TimeoutExpired) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            rows.append({"row": name, "failed": str(error), "passed": False})
    print(json.dumps(rows, indent=2) if asked.json else table(rows))
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
