"""What is reported often is merged on its way, and no crossing of a comparison is lost by that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmsched import crossings
from llmsched.crossings import Crossing, counted, joined
from llmsched.runtime import Context, enter, progress


class Hears:
    """A supervisor, as far as reports go."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def report(self, values: dict[str, Any]) -> None:
        self.told.append(json.loads(json.dumps(values)))

    def checkpointed(self, step: int, fraction: float | None) -> None: ...

    def should_stop(self) -> bool:
        return False

    def ask(self, id: str, body: str) -> str | None:
        return None

    def all_crossings(self) -> dict[str, Crossing]:
        found: dict[str, Crossing] = {}
        for told in self.told:
            found = joined(found, crossings.of(told.get(crossings.NAME)))
        return found


WANTS = {"notify": [{"when": "eval.loss > 4"}, {"when": None}, {"when": "step >= 3"}]}


def test_every_crossing_is_counted_where_it_is_reported_however_few_messages_there_are(tmp_path: Path) -> None:
    hears = Hears()
    with enter(Context.alone(tmp_path, WANTS, supervisor=hears)):
        for step, loss in enumerate((5, 6, 3, 4.5, 2, 9, 1)):
            progress.report(step, **{"eval.loss": loss})
    assert len(hears.told) < 7, "merged"
    assert hears.told[-1]["eval.loss"] == 1
    assert hears.all_crossings() == {
        "eval.loss > 4": (3, 9, True, False),
        "step >= 3": (1, 3, False, True),
    }
    assert all(crossings.NAME not in line for line in (tmp_path / "by-hand/0/1/progress.jsonl").read_text().split())


def test_who_compares_nothing_sends_nothing_more(tmp_path: Path) -> None:
    hears = Hears()
    with enter(Context.alone(tmp_path, supervisor=hears)):
        progress.report(1)
    assert hears.told == [{"step": 1}]


def test_an_endpoints_app_has_all_of_its_crossings_told_whenever_it_is_asked() -> None:
    kept = progress.of_endpoint(WANTS)
    for loss in (5, 3, 6, 2):
        progress.report(**{"eval.loss": loss})
    assert kept.newest() == {"eval.loss": 2, crossings.NAME: {"eval.loss > 4": (2, 6, True, False)}}


def test_however_reports_are_cut_into_messages_the_count_is_the_same() -> None:
    values = (5, 6, 3, 4.5, 2, 9, "nan", "inf", 1)
    one_by_one = [counted(["loss > 4"], {"loss": value}) for value in values]
    for cut in range(len(values)):
        first: dict[str, Crossing] = {}
        second: dict[str, Crossing] = {}
        for each in one_by_one[:cut]:
            first = joined(first, each)
        for each in one_by_one[cut:]:
            second = joined(second, each)
        assert joined(first, second) == {"loss > 4": (3, 9, True, False)}


def test_what_is_no_crossing_is_left_out() -> None:
    assert crossings.of({"a > 1": [1, 2.0, True, False], "b > 1": [1, 2], "c > 1": "x", "d > 1": [True, 1, 1, 1]}) == {
        "a > 1": (1, 2.0, True, False)
    }
    assert crossings.of("nothing") == {}
