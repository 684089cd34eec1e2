"""The next curve as the loop has learnt it, with a band, over a history that grows and has holes."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from starlette.exceptions import HTTPException

from llmsched.data.growth import Growth
from llmsched.runtime import Context, artifact, enter
from workloads.apps import forecaster
from workloads.apps.forecaster import Forecaster
from workloads.loops import forecast, times_ahead

SEASON, AHEAD = 24, 6


def day(time, heat):
    return 10 + 3 * math.sin(2 * math.pi * time / SEASON) + 2 * heat


def series(many, seed=3):
    """What is needed goes with the time of day and the heat, which changes from hour to hour."""
    chance = random.Random(seed)
    heats = [chance.uniform(-1, 1) for _ in range(many)]
    return [{"x": day(time, heat) + chance.gauss(0, 0.05), "heat": heat} for time, heat in enumerate(heats)]


def learnt(folder, rows, **more):
    """(its result, its metrics)"""
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"data": str(folder / "rows.jsonl"), "column": "x", "season": SEASON, "horizon": AHEAD, "steps": 300,
              "learning_rate": 0.01, "hidden": [], **more}  # fmt: skip
    with enter(Context.alone(folder / "out")):
        forecast.loop(config)
    left = artifact.read_result(str(folder / "out"), "by-hand/0", 1, 1)
    return Path(left["artifact"].removeprefix("file://")), left["metrics"]


@pytest.fixture(scope="module")
def weather(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows, place = series(700), tmp_path_factory.mktemp("forecast")
    yield learnt(place / "known", rows[:600], known=["heat"]), learnt(place / "blind", rows[:600]), rows
    torch.set_num_threads(threads)


def app_of(monkeypatch, tmp_path, model, rows, **more):
    """One whose looks the test takes, not its thread, with all of `rows` behind it."""
    monkeypatch.setattr(Forecaster, "_follow", lambda *_: None)
    history = tmp_path / "history.jsonl"
    app = Forecaster(model=str(model), history=str(history), **more)
    append(app, history, rows)
    return app, history


def append(app, history, rows):
    with history.open("a") as out:
        out.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    for file in app._growth.look(0.0):
        app._take(file)


def test_what_is_known_ahead_makes_the_forecast_better(weather):
    (_, known), (_, blind), _ = weather
    assert known["eval.mae"] < 0.2 < 0.8 < blind["eval.mae"] and known["eval.mae_season"] == blind["eval.mae_season"]


def test_the_next_curve_is_near_what_came_and_most_of_it_lies_in_the_band(weather, monkeypatch, tmp_path):
    (model, _), _, rows = weather
    app, history = app_of(monkeypatch, tmp_path, model, rows[:600])
    inside, off = 0, []
    for now in range(600, 690, AHEAD):
        said = app({"forecast": [{"heat": row["heat"]} for row in rows[now : now + AHEAD]]})
        assert (said["first"], len(said["curve"]), said["band"]) == (now, AHEAD, 0.9)
        for at, row in enumerate(rows[now : now + AHEAD]):
            inside += said["low"][at] <= row["x"] <= said["high"][at]
            off.append(abs(row["x"] - said["curve"][at]))
        append(app, history, rows[now : now + AHEAD])
    assert sum(off) / len(off) < 0.2 and 0.75 <= inside / len(off) <= 1.0
    assert app({})["rows"] == 690 and app({})["odd"] == []


def test_one_that_begins_anew_says_the_same_whatever_it_keeps(weather, monkeypatch, tmp_path):
    (model, _), _, rows = weather
    asked = {"forecast": [{"heat": row["heat"]} for row in rows[607 : 607 + AHEAD]]}
    app, _ = app_of(monkeypatch, tmp_path, model, rows[:607])
    assert len(app._rows) < 607
    known = torch.tensor([[row["heat"]] for row in rows[607 : 607 + AHEAD]])
    whole = torch.tensor([[row["x"], row["heat"]] for row in rows[:607]])
    curve = forecast.Learnt(model).curve(whole, 0, known, (0.05, 0.95))
    assert app(asked)["curve"] == pytest.approx(curve.middle.tolist(), abs=1e-3)


def test_one_network_for_all_times_of_a_cycle_reads_nothing_that_is_to_come_and_says_the_same_whatever_is_kept(
    weather, tmp_path
):
    _, _, rows = weather
    more = {"known": ["heat"], "cycle": 8, "hidden": [16], "global_batch_size": 16}
    model, metrics = learnt(tmp_path / "cycle", rows[:600], **more)
    assert metrics["eval.mae"] < 0.3 * metrics["eval.mae_season"]
    one, known = forecast.Learnt(model), torch.tensor([[row["heat"]] for row in rows[607 : 607 + AHEAD]])
    past = torch.tensor([[row["x"], row["heat"]] for row in rows[:607]])
    curve, latest = (one.curve(past[first:], first, known, (0.05, 0.95)) for first in (0, 607 - one.needed))
    assert curve.middle.tolist() == pytest.approx(latest.middle.tolist(), abs=1e-3)
    true = torch.tensor([row["x"] for row in rows[607 : 607 + AHEAD]])
    assert float((curve.middle - true).abs().mean()) < 0.5
    series, start = past[:100, 0], torch.tensor([60])
    read = times_ahead.inputs(series, past[:100, 1:], start, SEASON, 8, AHEAD)
    to_come = torch.where(torch.arange(100) < 60, series, 1e6)
    assert torch.equal(read, times_ahead.inputs(to_come, past[:100, 1:], start, SEASON, 8, AHEAD))


def test_what_lies_far_outside_of_the_band_is_odd_and_reported(weather, monkeypatch, tmp_path):
    (model, _), _, rows = weather
    app, history = app_of(monkeypatch, tmp_path, model, rows[:600])
    told = []
    monkeypatch.setattr(forecaster.progress, "report", lambda **numbers: told.append(numbers))
    app({"forecast": [{"heat": row["heat"]} for row in rows[600 : 600 + AHEAD]]})
    append(app, history, [rows[600], {**rows[601], "x": 30.0}])
    (odd,) = app({})["odd"]
    assert (odd["time"], odd["value"]) == (601, 30.0) and told[-1]["odd"] == 1
    app({"forecast": [{"heat": row["heat"]} for row in rows[602 : 602 + AHEAD]]})
    append(app, history, [rows[602]])
    assert told[-1]["odd"] == 0 and len(app({})["odd"]) == 1


def test_holes_of_a_history_are_set_aside_and_their_time_passes(weather, monkeypatch, tmp_path):
    (model, _), _, rows = weather
    app, history = app_of(monkeypatch, tmp_path, model, rows[:600])
    append(app, history, ['{"x": 1', {"x": "much", "heat": 1}, {"x": 1e999, "heat": 1}, "[1]"])
    append(app, history, [{"x": 10**400, "heat": 1}, {"x": 1e300, "heat": 1}])
    told = app({})
    assert (told["rows"], told["set_aside"]) == (606, 6)
    assert "is not JSON" in told["named"][0] and "row 602 of history.jsonl has no number 'x'" in told["named"][1]
    said = app({"forecast": [{"heat": row["heat"]} for row in rows[606 : 606 + AHEAD]]})
    assert said["first"] == 606 and all(math.isfinite(value) for value in said["curve"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"forecast": 6}, "6 objects with heat"),
        ({"forecast": [{"heat": 1.0}]}, "6 objects with heat"),
        ({"forecast": [{"heat": 1.0}] * 5 + [{"cold": 1.0}]}, "row 6 has no number 'heat'"),
        ({"curve": 1}, "expected"),
        ([], "expected"),
    ],
)
def test_a_question_that_is_none_is_refused_with_what_one_is(weather, monkeypatch, tmp_path, body, words):
    (model, _), _, rows = weather
    app, _ = app_of(monkeypatch, tmp_path, model, rows[:600])
    with pytest.raises(HTTPException) as refused:
        app(body)
    assert refused.value.status_code == 422 and words in refused.value.detail


def test_a_history_that_is_too_short_is_told_with_how_long_it_has_to_be(weather, monkeypatch, tmp_path):
    (model, _), (blind, _), rows = weather
    app, _ = app_of(monkeypatch, tmp_path, blind, rows[:30])
    with pytest.raises(HTTPException, match="30 rows came, and it takes 36"):
        app({"forecast": AHEAD})
    with pytest.raises(ValueError, match=r"0\.5, 0\.8, 0\.9"):
        Forecaster(model=str(model), history=str(tmp_path), band=0.99)


def test_one_follows_its_history_by_itself_and_a_shorter_one_is_for_another_replica(weather, monkeypatch, tmp_path):
    (model, _), _, rows = weather
    app, history = app_of(monkeypatch, tmp_path, model, rows[:5])
    monkeypatch.undo()
    app._closing.set()
    history.write_text('{"x": 1}\n')
    app._follow(0.0)
    with pytest.raises(RuntimeError, match=r"history\.jsonl has changed"):
        app.check_health()
    app._growth = Growth(history, "history", ())
    app._follow(0.0)
    app.check_health()
    assert app({})["rows"] == 6


def test_an_error_of_any_kind_is_told_and_passes_and_no_other_replica_is_wanted(weather, monkeypatch, tmp_path):
    (model, _), _, rows = weather
    app, history = app_of(monkeypatch, tmp_path, model, rows[:5])
    monkeypatch.undo()
    app._closing.set()
    with monkeypatch.context() as broken:
        broken.setattr(app._growth, "look", raising)
        app._follow(0.0)
    assert "the disk is away" in app({})["trouble"]
    app.check_health()
    with history.open("a") as out:
        out.write(json.dumps(rows[5]) + "\n")
    app._follow(0.0)
    assert (app({})["rows"], app({})["trouble"]) == (6, "")


def raising(*_):
    raise OSError("the disk is away")


def test_a_file_of_a_history_that_cannot_be_read_is_set_aside_and_named(weather, monkeypatch, tmp_path):
    (model, _), _, rows = weather
    app, _ = app_of(monkeypatch, tmp_path, model, rows[:5])
    app._take(forecaster.File("broken.parquet", 0, 9, why="it is no parquet"))
    app.check_health()
    told = app({})
    assert (told["rows"], told["set_aside"], told["named"]) == (5, 1, ["broken.parquet: it is no parquet"])


@pytest.mark.parametrize("value", [1e308, 1e39, 10**400])
def test_a_number_that_no_curve_can_be_made_of_is_set_aside_and_the_history_goes_on(
    value, weather, monkeypatch, tmp_path
):
    (model, _), _, rows = weather
    app, history = app_of(monkeypatch, tmp_path, model, rows[:200])
    append(app, history, [rows[200] | {"x": value}, *rows[201:203]])
    assert (app({})["rows"], app({})["set_aside"]) == (203, 1)
    ahead = [{"heat": row["heat"]} for row in rows[203 : 203 + AHEAD]]
    assert all(map(math.isfinite, app({"forecast": ahead})["curve"]))
    with pytest.raises(HTTPException, match="row 1 has no number 'heat'"):
        app({"forecast": [{"heat": value}, *ahead[1:]]})
