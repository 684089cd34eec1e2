"""Runs folders of examples, each on a fresh cluster of pretended GPUs, and prints what came out.

A folder has prepare.py, spec.yaml, measure.py and expect.yaml. prepare.py writes its data; a cluster comes up in a home
of its own; spec.yaml is applied and waited for; measure.py asks what it made, and prints {"number", "baseline"}. Then
all of it is taken down again. Ctrl-C or a TERM takes the cluster down before it ends. expect.yaml says what is good:

    metric: accuracy on images that were held out     # what `number` is; more is better
    at_least: 0.93                                    # or at_most, where less is better
    baseline: logistic regression on the pixels       # what `baseline` is, beside it; `-` where there is none
    minutes: 3                                        # from the first file to the last answer, on two cores
    up: --nodes 1x2:A100                              # what `llmsched up` is told, when it is not that
    env: {SSL_CERT_FILE: /tmp/hook/ca.pem}            # variables of all that is run, the controller too
    holds: /tmp/hook                                  # a folder outside that it writes to: nobody else's meanwhile, and
                                                      # gone at its end, however that comes
    needs: {espeak-ng: apt install espeak-ng}         # modules, programs and files that packaged.py reads, which must
                                                      # be there: how to get them; empty: as packaged.py says
    seen: [scheduled, {shrank: tone}]                 # what the scheduler must have been seen to do: see seen.py

`short` of expect.yaml is less of it, for `--short`: see shortened.py. Rows of it say that they are.

A folder of several numbers has `parts: {NAME: {metric, at_least, baseline}}` in their place, and its measure.py prints
a line for each: {"part", "number", "baseline"}.
"""

from __future__ import annotations

import argparse
import difflib
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import packaged
import picture
import seen
import shortened
import yaml

LLMSCHED = Path(sys.executable).with_name("llmsched")
UP = "--nodes 1x2:A100"
LONGEST_S = 1800
_OF_A_PART = {"metric", "at_least", "at_most", "baseline"}
_OF_ALL = {"minutes", "up", "env", "holds", "needs", "seen", "short"}


class Failed(Exception):
    """A step of a folder ended badly: its last words."""


class Runner:
    """The folders of `place`, each called a `noun`: run.py of examples/tasks and examples/apps."""

    def __init__(self, place: Path, noun: str) -> None:
        self.place, self.noun = place, noun

    def names(self) -> list[str]:
        return sorted(file.parent.name for file in self.place.glob("*/expect.yaml"))

    def main(self, arguments: list[str] | None = None) -> int:
        """0, or 1 where one came out worse than expected, took longer or failed. Raises SystemExit for bad input,
        before anything starts."""
        parser = argparse.ArgumentParser(description=f"Run {self.noun}s and print what came out.")
        parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(self.names())}, or all")
        parser.add_argument("--json", action="store_true", help="A list on stdout.")
        parser.add_argument("--pictures", action="store_true", help="Draw each run: NAME/run.svg.")
        parser.add_argument("--short", action="store_true", help="Less of it, as its expect.yaml says under `short`.")
        asked = parser.parse_args(arguments)
        if asked.short and asked.pictures:
            parser.error("--pictures draws whole runs")
        if not asked.names:
            parser.print_usage()
            print(f"{self.noun}s: " + ", ".join(self.names()))
            return 2
        chosen = self.names() if "all" in asked.names else asked.names
        if unknown := [name for name in chosen if name not in self.names()]:
            parser.error(f"no {self.noun} {unknown[0]!r}; there are {', '.join(self.names())}")
        needs = {name: self.expected(name, asked.short)["needs"] for name in chosen}
        if missing := [each for name in chosen for each in lacking(name, needs[name])]:
            raise SystemExit("\n".join(missing))
        rows: list[dict[str, Any]] = []
        for name in chosen:
            try:
                found, journal = self.run(name, _tell, asked.short)
                _tell(self.table(found))  # as it comes: the others may take an hour
                rows.extend(found)
                if asked.pictures:
                    (self.place / name / "run.svg").write_text(picture.draw(name, found, journal))
            except (Failed, subprocess.TimeoutExpired) as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                rows.append({self.noun: name, "failed": str(error), "passed": False})
        print(json.dumps(rows, indent=2) if asked.json else self.table(rows))
        return 0 if all(row["passed"] for row in rows) else 1

    def expected(self, name: str, short: bool = False) -> dict[str, Any]:
        """{"minutes", "up", "env", "needs", "seen", "short", "parts": {part, "" where there is one: {"metric",
        "at_least" or "at_most", "baseline"}}}. Raises SystemExit for what is missing or unknown."""
        where = f"{name}/expect.yaml"
        found: dict[str, Any] = yaml.safe_load((self.place / name / "expect.yaml").read_text()) or {}
        _know(found, _OF_ALL | ({"parts"} if "parts" in found else _OF_A_PART), where)
        parts = found.get("parts") or {"": {key: found[key] for key in _OF_A_PART & found.keys()}}
        for part, about in parts.items():
            if not isinstance(part, str):
                raise SystemExit(f"{where}: a part is called by a text, and YAML reads {part!r}; put quotes around it")
            _know(about, _OF_A_PART, f"{where}: {part}" if part else where)
            if len({"at_least", "at_most"} & about.keys()) != 1:
                raise SystemExit(f"{where}: {part or name} wants one of at_least and at_most")
        lacks = {key for part in parts.values() for key in {"metric", "baseline"} - part.keys()}
        if missing := lacks | {"minutes"} - found.keys():
            raise SystemExit(f"{where} lacks {', '.join(sorted(missing))}")
        if short:
            found = shortened.expected(found | {"parts": parts}, where)
            parts = found["parts"]
        return {
            "short": found["short"] if short else None,
            "up": found.get("up", UP),
            "minutes": found["minutes"],
            "holds": found.get("holds"),
            "env": {key: str(value) for key, value in found.get("env", {}).items()},
            "needs": found.get("needs", {}),
            "seen": seen.wanted(found.get("seen", []), where),
            "parts": parts,
        }

    def run(
        self, name: str, say: Callable[[str], None], short: bool = False
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """One folder from its data to its numbers, and its journal. Raises Failed; nothing is left running either
        way."""
        folder, expect = self.place / name, self.expected(name, short)
        began = time.monotonic()
        with alone(expect["holds"]), tempfile.TemporaryDirectory(prefix="llmsched-run-") as place:  # short: for sockets
            if short:
                folder = shortened.copy(folder, Path(place), expect["short"], f"{name}/expect.yaml")
            env = {**os.environ, "LLMSCHED_HOME": str(Path(place, "home")), "HF_HUB_OFFLINE": "1", **expect["env"]}

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
                arguments = expect["short"].get("arguments", []) if short else []
                printed = step(sys.executable, "measure.py", *arguments).splitlines()
                journal = _lines(step(str(LLMSCHED), "events", "--json").splitlines())
            except Failed:
                say(step(str(LLMSCHED), "status", must=False))
                raise
            finally:
                step(str(LLMSCHED), "down", "--purge", "--yes", must=False)
        minutes = round((time.monotonic() - began) / 60, 1)
        rows = self.rows(name, expect, _lines(printed), minutes)
        if expect["seen"]:
            there, missing = seen.check(expect["seen"], seen.sights(journal))
            for row in rows:
                row["seen"] = {word: [each._asdict() for each in some] for word, some in there.items()}
                row["not_seen"] = missing
                row["passed"] = row["passed"] and not missing
        return rows, journal

    def rows(
        self, name: str, expect: dict[str, Any], said: list[dict[str, Any]], minutes: float
    ) -> list[dict[str, Any]]:
        """What measure.py `said`, beside what was expected. Raises Failed where it left something out."""
        found = {one.get("part", ""): one for one in said}
        if missing := expect["parts"].keys() - found.keys():
            raise Failed(f"measure.py: it printed nothing of {', '.join(sorted(missing)) or name}")
        made = []
        for part, about in expect["parts"].items():
            number, beside = float(found[part]["number"]), found[part].get("baseline")
            bounds = {key: about[key] for key in ("at_least", "at_most") if key in about}
            row = {
                self.noun: f"{name}/{part}" if part else name,
                "metric": about["metric"],
                "number": round(number, 4),
                **bounds,
                "baseline": None if beside is None else round(float(beside), 4),
                "baseline_is": about["baseline"],
                "minutes": minutes,
                "minutes_at_most": expect["minutes"],
                "short": expect["short"] is not None,
            }
            made.append({**row, "passed": _is_good(row) and not _is_late(row)})
        return made

    def table(self, rows: list[dict[str, Any]]) -> str:
        """noun | metric | number | baseline | minutes | what the scheduler was seen to do, where that was asked for"""
        lines = [[self.noun, "metric", "number", "baseline", "minutes", "what the scheduler was seen to do"]]
        for row in rows:
            if "failed" in row:
                lines.append([row[self.noun], "failed", "-", "-", "-", ""])
                continue
            bound = f"at least {row['at_least']:g}" if "at_least" in row else f"at most {row['at_most']:g}"
            number = (
                f"{row['number']:g}"
                + (" (short)" if row.get("short") else "")
                + ("" if _is_good(row) else f" (expected {bound})")
            )
            minutes = f"{row['minutes']:g}" + (f" (expected {row['minutes_at_most']:g})" if _is_late(row) else "")
            beside = "-" if row["baseline"] is None else f"{row['baseline']:g}: {row['baseline_is']}"
            lines.append([row[self.noun], row["metric"], number, beside, minutes, _in_words(row)])
        if not any(line[-1] for line in lines[1:]):
            lines = [line[:-1] for line in lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(" | ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


@contextmanager
def alone(folder: str | None) -> Iterator[None]:
    """Nobody else's run has `folder` meanwhile, and it is gone afterwards. Raises Failed where one has."""
    if folder is None:
        yield
        return
    beside = Path(f"{folder}.lock")
    try:
        lock = _locked(beside)
    except OSError as error:
        words = f"{folder} is in use by another run on this machine ({error.strerror}); run it when that has ended"
        raise Failed(words) from None
    with lock:
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            beside.unlink(missing_ok=True)


def _locked(file: Path) -> IO[str]:
    """The file itself: who had it before may have removed it between our opening and its lock. Raises OSError."""
    while True:
        lock = file.open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if file.exists() and os.path.samestat(os.fstat(lock.fileno()), file.stat()):
            return lock
        lock.close()


def lacking(name: str, needs: dict[str, str]) -> list[str]:
    """Which modules and programs are not there, each with how to get it."""
    return [
        f"{name} needs {thing}, which is not here: {how or packaged.how(thing)}"
        for thing, how in needs.items()
        if not shutil.which(thing)
        and not (thing.isidentifier() and find_spec(thing))
        and not (packaged.SHARE / thing).is_file()
    ]


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _know(found: dict[str, Any], known: set[str], where: str) -> None:
    for key in found.keys() - known:
        near = difflib.get_close_matches(str(key), known, 1)
        hint = f'Did you mean "{near[0]}"?' if near else f"Known: {', '.join(sorted(known))}."
        raise SystemExit(f'{where}: unknown key "{key}". {hint}')


def _lines(printed: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed if line[:1] == "{"]


def _is_good(row: dict[str, Any]) -> bool:
    number: float = row["number"]
    return bool(row.get("at_least", number) <= number <= row.get("at_most", number))


def _is_late(row: dict[str, Any]) -> bool:
    return bool(row["minutes"] > row["minutes_at_most"])


def _in_words(row: dict[str, Any]) -> str:
    """`shrank tone at 31 s, saved 4 times from 20 s on; not seen: scheduled`"""
    words = []
    for word, some in row.get("seen", {}).items():
        times = f"{len(some)} times from {some[0]['at']:g} s on" if len(some) > 1 else f"at {some[0]['at']:g} s"
        words.append(f"{word} {times}")
    told = ", ".join(words)
    missing = row.get("not_seen")
    return "; ".join(part for part in (told, f"not seen: {', '.join(missing)}" if missing else "") if part)


def _end(*_: object) -> None:
    raise SystemExit(143)


def begin(runner: Runner) -> None:
    """As a program: Ctrl-C and TERM take down what runs."""
    signal.signal(signal.SIGTERM, _end)
    try:
        sys.exit(runner.main())
    except KeyboardInterrupt:
        sys.exit("Stopped; what ran is taken down.")
