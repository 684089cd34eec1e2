"""The search: asks for trials as places become free, hears what they report, ends those that are not worth it, and
names the best. Start reading at `Search.run`.

The journal knows the trials; beside it, what they reported is noted in the storage, for the comparison after a restart:
a search that begins again finds its trials by their names and goes on with what is left.
"""

from __future__ import annotations

import difflib
import json
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from llmsched.errors import RequestError
from llmsched.runtime import artifact, ask, elastic, progress
from workloads.search import notes, schedulers, space
from workloads.search.halving import Halving
from workloads.search.trials import Trial, best, name_of

LOOK_EVERY_S = 0.5  # at the trials: nobody calls back when one has come further
WATCHED_AT_ONCE = 64
FAILED_AT_MOST = 5  # trials, before any has succeeded
TOLD_AFTER_S = 60.0  # of numbers without the metric
_LATER = ("too_many", "queue_full", "busy")  # there is no room for more work of this owner just now


class SearchFailed(Exception):
    """Another try would come to the same; says why."""


class Door(Protocol):
    """`llmsched.runtime.ask`, or what a test has in its place."""

    def submit(self, *specs: dict[str, Any]) -> list[ask.Child]: ...

    def watch(self, *names: str) -> dict[str, ask.Child]: ...

    def end(self, *names: str) -> None: ...


class Search:
    """Of a `tune` section, inside its context. `run` returns when every trial has ended."""

    def __init__(self, tune: Mapping[str, Any], door: Door = ask) -> None:
        self._tune, self._door = tune, door
        self._metric, self._mode = tune["metric"], tune["mode"]
        self._time = tune["scheduler_args"]["time_attr"]
        self._total, self._at_once = _total(tune), _at_once(tune)
        try:
            self._suggester = space.suggester(tune)
        except space.MissingPackage as error:
            raise SearchFailed(str(error)) from None
        self._scheduler = schedulers.scheduler(tune)
        self._halving = self._scheduler if isinstance(self._scheduler, Halving) else None
        self._asked: dict[str, Trial] = {}
        self._wanted: list[Trial] = []  # suggested, and not asked for yet
        self._notes: list[tuple[int, float, float]] = []
        self._numbers_since: float | None = None

    def run(self) -> None:
        """Raises SearchFailed; ends the program where the search is asked to leave."""
        self._recall()
        while True:
            self._ask_for_more()
            self._report()
            if not self._open() and not self._wanted and len(self._asked) >= self._total:
                break
            if elastic.should_stop():
                elastic.leave()
            time.sleep(LOOK_EVERY_S)
            self._look()
        self._finish()
        elastic.finished()

    def _recall(self) -> None:
        """What an earlier attempt of this search asked for, and what came of it."""
        noted = notes.read()
        self._recall_trials(noted)
        for number in noted.heirs:
            if name_of(number) not in self._asked:  # it was to be, and nobody asked for it
                notes.disown(number)

    def _recall_trials(self, noted: notes.Noted) -> None:
        while True:
            begin = len(self._asked) + 1
            names = [name_of(number) for number in range(begin, begin + WATCHED_AT_ONCE)]
            found = self._door.watch(*names)
            for number, name in enumerate(names, begin):
                if name not in found:
                    return
                trial = self._asked[name] = Trial(number, found[name].values)
                if (heir := noted.heirs.get(number)) is not None:
                    trial.donor, trial.furthest = heir
                    self._total += 1
                else:
                    self._suggester.adopt(trial)
                self._scheduler.add(trial)
                for step, value in noted.histories.get(number, ()):
                    trial.history.append((step, value))
                    self._scheduler.reported(trial, step, value)
                if (news := trial.see(found[name], self._metric, self._time)) is not None:
                    self._notes.append((number, *news))
                    self._scheduler.reported(trial, *news)  # who waits at a rung says nothing further
                if self._halving is not None and not trial.has_ended:
                    self._halving.recall(trial, notes.passed(number))
                if trial.has_ended:
                    self._over(trial)

    def _ask_for_more(self) -> None:
        room = self._at_once - len(self._open()) - len(self._wanted)
        for _ in range(min(room, self._total - len(self._asked) - len(self._wanted))):
            number = len(self._asked) + len(self._wanted) + 1
            values = self._suggester.suggest(number)
            if values is None:
                break
            self._wanted.append(Trial(number, values))
        if not self._wanted:
            return
        if self._halving is not None:
            for trial in self._wanted:
                notes.hold(trial.number, self._halving.rungs)
        try:
            self._door.submit(*(one.asked for one in self._wanted))
        except RequestError as error:
            if error.code not in _LATER:
                raise
            print(f"{error} It is asked for again.", file=sys.stderr, flush=True)
            return
        for trial in self._wanted:
            self._asked[trial.name] = trial
            self._scheduler.add(trial)
        self._wanted = []

    def _look(self) -> None:
        watched = [self._asked[name] for name in self._open()]
        verdicts: list[tuple[Trial, schedulers.Verdict]] = []
        for name, child in self._door.watch(*(one.name for one in watched)).items() if watched else ():
            trial = self._asked[name]
            reported = trial.see(child, self._metric, self._time)
            if reported is not None:
                self._notes.append((trial.number, *reported))
                if (verdict := self._scheduler.reported(trial, *reported)) is not None:
                    verdicts.append((trial, verdict))
        verdicts += self._scheduler.decided([one for one in watched if not one.has_ended])
        ending = [trial.name for trial, verdict in verdicts if self._is_ended_by(trial, verdict)]
        for trial in watched:
            if trial.has_ended:
                self._over(trial)
        self._ask_for_more()  # who follows is there before whoever it follows has gone
        if ending:
            self._door.end(*ending)
        notes.write(self._notes if self._tune["scheduler"] != "fifo" else [])
        self._notes = []
        self._check()

    def _is_ended_by(self, trial: Trial, verdict: schedulers.Verdict) -> bool:
        if verdict.passes is not None:
            assert self._halving is not None
            notes.let_pass(trial.number, self._halving.rungs, verdict.passes)
            return False
        if trial.has_ended or trial.is_stopped or trial.is_at_its_end:
            return False
        trial.is_stopped = verdict.donor is None or self._follow(verdict.donor, verdict.values or {})
        return trial.is_stopped

    def _follow(self, donor: Trial, values: dict[str, Any]) -> bool:
        """Another trial is to go on from the donor's newest checkpoint; False: it has none yet."""
        number = len(self._asked) + len(self._wanted) + 1
        step = notes.give(donor.number, number)
        if step is None:
            return False
        self._wanted.append(Trial(number, values, furthest=float(step), donor=donor.number))
        self._total += 1
        return True

    def _over(self, trial: Trial) -> None:
        reached = "" if trial.value is None else f", {self._metric} {trial.value:.6g}"
        print(f"{trial.name} {trial.phase}{reached}: {json.dumps(trial.values)}", flush=True)
        self._scheduler.over(trial)
        self._suggester.over(trial)

    def _open(self) -> list[str]:
        return [name for name, trial in self._asked.items() if not trial.has_ended]

    # --- what is told -----------------------------------------------------------------------------------------------

    def _report(self) -> None:
        trials = self._asked.values()
        told: dict[str, Any] = {"unit": "trials"}
        if self._metric is not None and (one := self._best_so_far()) is not None and one.value is not None:
            told |= {"best": one.value, "best_trial": one.name}
        told["running"] = sum(one.phase in ("running", "resizing") for one in trials)
        told["failed"] = sum(one.phase == "failed" for one in trials)
        if (note := self._without_metric()) and self._numbers_since is not None:
            told["note"] = note if time.monotonic() - self._numbers_since > TOLD_AFTER_S else ""
        progress.report(step=sum(one.has_ended for one in trials), total_steps=self._total, **told)

    def _best_so_far(self) -> Trial | None:
        """Also of those that still run, or were stopped."""
        if (ended := best(self._asked.values(), self._mode)) is not None:
            return ended
        known = [one for one in self._asked.values() if one.value is not None]
        sign = 1 if self._mode == "min" else -1
        return min(known, key=lambda one: (sign * (one.value or 0.0), one.number), default=None)

    def _check(self) -> None:
        """Raises SearchFailed where more trials would come to nothing."""
        trials = self._asked.values()
        if self._metric is None:
            return
        missing = self._without_metric()
        if missing and self._numbers_since is None:
            self._numbers_since = time.monotonic()
        if missing and (any(one.phase == "succeeded" for one in trials) or self._should_have_come()):
            raise SearchFailed(missing)
        failed = [one for one in trials if one.phase == "failed"]
        if len(failed) >= min(FAILED_AT_MOST, self._total) and not any(one.phase == "succeeded" for one in trials):
            raise SearchFailed(f"its first {len(failed)} trials failed; {failed[0].name}: {failed[0].message}")

    def _without_metric(self) -> str:
        """Why nothing can be compared, as far as it can be told; "" where some trial has said its value."""
        trials = [one for one in self._asked.values() if one.reports or one.phase == "succeeded"]
        if self._metric is None or not trials or any(one.value is not None for one in self._asked.values()):
            return ""
        names = sorted({name for one in trials for name in one.reports})
        near = difflib.get_close_matches(self._metric, names, 1)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        return f'no trial reports "{self._metric}"; they report: {", ".join(names[:20]) or "nothing"}.{hint}'

    def _should_have_come(self) -> bool:
        """Whoever is compared on the way reports it on the way: not one has, and one is half through."""
        max_t = self._tune["scheduler_args"]["max_t"]
        if self._tune["scheduler"] == "fifo" or not max_t:
            return False
        return any(one.furthest >= max_t / 2 for one in self._asked.values())

    def _finish(self) -> None:
        trials = [*self._asked.values()]
        failed = [one for one in trials if one.phase == "failed"]
        if self._metric is None:
            if failed:
                first = f"{failed[0].name}: {failed[0].message}"
                raise SearchFailed(f"{len(failed)} of {len(trials)} trials failed; the first, {first}")
            return
        found = best(trials, self._mode)
        if found is None:
            why = f"; {failed[0].name}: {failed[0].message}" if failed else ""
            raise SearchFailed(f'none of its {len(trials)} trials came to its end with a "{self._metric}"{why}')
        if found.artifact is not None:
            artifact.write_result(artifact=found.artifact)
        artifact.metrics(**{self._metric: found.value})


def _total(tune: Mapping[str, Any]) -> int:
    total = int(tune["samples"])
    for one in tune["space"].values():
        total *= len(one.get("grid") or (0,))
    return total


def _at_once(tune: Mapping[str, Any]) -> int:
    usual = {"random": WATCHED_AT_ONCE, "optuna": 8}[tune["searcher"]]
    return int(tune["concurrent"] or usual)
