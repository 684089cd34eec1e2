"""What people say, counted by key and window: a surge is found, chance is not, and no feed breaks or fills it."""

import asyncio
import json
import math
import random
import threading
from datetime import UTC, datetime

import pytest
from scipy.special import betainc
from starlette.exceptions import HTTPException
from waiting import PATIENCE_S, wait_until

from llmsched.data.rows import Changed, DataError
from llmsched.errors import ClusterError, RequestError
from workloads.apps import events, monitor, surge, windows
from workloads.apps.asking import in_words
from workloads.apps.monitor import Monitor
from workloads.apps.windows import Windows

DAY = 86400.0


def rows(counts, label="negative", first=0):
    """So many of each day."""
    return [
        {"label": label, "at": datetime.fromtimestamp((first + day) * DAY + each, UTC).isoformat()}
        for day, count in enumerate(counts)
        for each in range(count)
    ]


def ask(app, **body):
    return asyncio.run(app(body))


def following(place, **more):
    """One whose looks the test takes, not its thread."""
    app = Monitor(**more)
    app._place, app._growth = place, monitor.Growth(place, "feed", ())
    return app


def usual(days, mean, seed=7):
    """Poisson counts, by Knuth's way."""
    chance = random.Random(seed)

    def one():
        left, count = math.exp(-mean), -1
        product = 1.0
        while product > left:
            product, count = product * chance.random(), count + 1
        return count

    return [one() for _ in range(days)]


@pytest.mark.parametrize(
    ("x", "a", "b"), [(0.03, 5, 200), (0.5, 1, 1), (0.9, 3.7, 2.2), (0.07, 40, 12.5), (0.03, 1, 1)]
)
def test_the_tail_is_that_of_scipy(x, a, b):
    assert surge._beta(x, a, b) == pytest.approx(float(betainc(a, b, x)), rel=1e-9)


def test_counts_in_clumps_want_more_before_they_are_a_surge():
    even, clumps = [8] * 28, [2, 14] * 14
    assert surge.dispersion(even) == 1.0 and surge.dispersion(clumps) == pytest.approx(36 * 28 / 27 / 8)
    assert surge.chance(20, even) < 0.001 < surge.chance(20, clumps)
    assert surge.chance(0, even) == 1.0 and surge.chance(3, [0] * 28) < 1e-4


def test_three_times_as_many_are_found_in_their_first_window_and_chance_keeps_its_level():
    app = Monitor(keep=1500)
    counts = usual(1028, 8.0)
    ask(app, rows=rows(counts))
    false = ask(app, alerts=100)["alerts"]
    assert len(false) <= 8  # a thousand windows at a level of 0.005
    answer = ask(app, rows=rows([30], first=1028))
    assert answer == {"rows": 30, "set_aside": 0}
    newest = ask(app, alerts=1)["alerts"][0]
    assert newest["begins"] == datetime.fromtimestamp(1028 * DAY, UTC).isoformat() and newest["count"] == 30
    assert newest["chance"] < 0.005 and 6 < newest["usual"] < 10


def test_what_one_window_does_not_show_two_do():
    app = Monitor()
    quiet = usual(60, 8.0)
    ask(app, rows=rows([*quiet, 15]))
    assert not [one for one in ask(app, alerts=9)["alerts"] if one["count"] == 15]
    ask(app, rows=rows([15], first=61))
    (found,) = [one for one in ask(app, alerts=9)["alerts"] if one["count"] == 15]
    assert found["begins"] == datetime.fromtimestamp(61 * DAY, UTC).isoformat()


def test_all_keys_together_are_counted_too():
    app = Monitor(against=4)
    ask(app, rows=rows([4] * 6))
    assert ask(app)["keys"] == ["negative"]
    ask(app, rows=[*rows([4] * 6, "positive"), *rows([12], first=6), *rows([12], "positive", first=6)])
    assert ask(app)["keys"] == ["*", "negative", "positive"]
    assert [one["count"] for one in ask(app, trend="*")["trend"]] == [8] * 6 + [24]
    assert ask(app, alerts=1)["alerts"][0]["key"] in ("*", "negative", "positive")


def test_a_surge_is_no_measure_for_the_next_window_until_it_is_the_usual():
    app = Monitor(against=4, keep=100)
    ask(app, rows=rows([8] * 8 + [40] * 12))
    surged = [one["begins"] for one in ask(app, alerts=100)["alerts"]]
    day = [datetime.fromtimestamp((8 + at) * DAY, UTC).isoformat() for at in range(12)]
    assert surged[:4] == day[:4] and surged[-1] < day[-1]


def test_the_trend_of_a_key_tells_every_window_also_empty_ones():
    app = Monitor()
    ask(app, rows=[*rows([2, 0, 3]), *rows([1, 1, 1], "positive")])
    assert [one["count"] for one in ask(app, trend="negative")["trend"]] == [2, 0, 3]
    assert [one["count"] for one in ask(app, trend="negative", windows=2)["trend"]] == [0, 3]
    with pytest.raises(HTTPException) as refused:
        ask(app, trend="neutral")
    assert refused.value.status_code == 404 and "the keys are *, negative, positive" in refused.value.detail


def test_rows_that_come_late_count_where_they_belong():
    early, late = Monitor(against=4), Monitor(against=4)
    all_rows = rows([8, 8, 8, 8, 8, 8, 40, 8, 8])
    ask(early, rows=all_rows)
    shuffled = random.Random(3).sample(all_rows, len(all_rows))
    for begin in range(0, len(shuffled), 20):
        ask(late, rows=shuffled[begin : begin + 20])
    assert ask(early, alerts=9) == ask(late, alerts=9) and len(ask(early, alerts=9)["alerts"]) == 1


def test_what_happened_before_1970_is_counted_as_well():
    app = Monitor()
    told = ask(app, rows=rows([*usual(40, 8), 30], first=-44_000))
    assert told["set_aside"] == 0
    (alert, *_) = ask(app, alerts=5)["alerts"]
    assert alert["begins"].startswith("1849-") and alert["count"] == 30


def test_a_row_whose_time_has_no_date_is_set_aside_and_named_and_the_rest_is_shown():
    app = Monitor()
    assert ask(app, rows=[{"label": "negative", "at": -9.9e10}]) == {"rows": 0, "set_aside": 1}
    assert "begins before the year 1" in ask(app)["named"][0]
    ask(app, rows=[{"label": "negative", "at": windows.EARLIEST}, *rows([2])])
    assert ask(app, trend="negative", windows=1)["trend"][0]["begins"].startswith("1970-01-01")
    early = Monitor()
    ask(early, rows=[{"label": "negative", "at": windows.EARLIEST}])
    assert ask(early, trend="negative")["trend"][0]["begins"].startswith("0001-01-01")


def test_broken_rows_of_a_feed_are_set_aside_counted_and_named(tmp_path):
    feed = tmp_path / "part-0.jsonl"
    good = [json.dumps(row) for row in rows([3])]
    bad = [
        '{"label": "negative"',
        '{"label": "negative", "at": "soon"}',
        '{"at": 5}',
        "[1]",
        '{"label": "x", "at": 9e99}',
    ]
    feed.write_text("\n".join([*good, *bad]) + "\n")
    app = following(tmp_path)
    app._look()
    told = ask(app)
    assert (told["rows"], told["set_aside"], told["keys"]) == (3, 5, ["negative"])
    assert "is not JSON" in told["named"][0] and "row 5 of part-0.jsonl has no 'at' that is a time" in told["named"][1]
    assert "has no 'label'" in told["named"][2] and "not an object" in told["named"][3]
    with feed.open("a") as out:
        out.write(json.dumps(rows([1])[0]) + "\n" + good[0][:10])
    app._look()
    assert ask(app)["rows"] == 4


def test_whatever_comes_fills_no_memory(monkeypatch):
    monkeypatch.setattr(windows, "KEYS_AT_MOST", 3)
    app = Monitor(against=2, keep=10)
    answer = ask(app, rows=[{"label": f"key {number}", "at": 1000.0} for number in range(5)])
    assert answer == {"rows": 3, "set_aside": 2} and "another key than the 3" in ask(app)["named"][0]
    ask(app, rows=[{"label": "key 1", "at": day * DAY} for day in range(500)])
    assert "before the 10 windows" not in ask(app)["named"][0]
    ask(app, rows=[{"label": "key 1", "at": 1.0}])
    assert "before the 10 windows" in ask(app)["named"][-1]
    assert len(app._windows._counts["key 1"]) <= 10
    future = ask(app, rows=[{"label": "key 1", "at": 9e10}])
    assert future["set_aside"] == 1 and app._windows.latest == 499
    ask(app, rows=[{"label": "x" * 5000, "at": 499 * DAY}])
    assert len(ask(app)["named"]) <= monitor.NAMED and all(len(one) < 400 for one in ask(app)["named"])


@pytest.mark.parametrize(
    "body", [{"row": []}, {"rows": {}}, {"trend": "x", "windows": 0}, {"alerts": True}, {"rows": [], "alerts": 3}, "x"]
)
def test_a_question_that_is_none_is_refused_with_what_one_is(body):
    with pytest.raises(HTTPException) as refused:
        asyncio.run(Monitor()(body))
    assert refused.value.status_code == 422 and '"trend": KEY' in refused.value.detail


def test_a_model_labels_what_has_no_key_and_one_that_is_away_loses_no_row(tmp_path, monkeypatch):
    sizes, is_there = [], False

    def classify(model, texts, **_):
        if not is_there:
            raise ClusterError(f"{model} answered HTTP 503: no replica")
        sizes.append(len(texts))
        return [{"index": at, "label": "bad" if "loss" in text else "good"} for at, text in enumerate(texts)]

    monkeypatch.setattr(events.calls, "classify", classify)
    written = [{"text": "a loss" if number % 3 else "a gain", "at": float(number)} for number in range(90)]
    (tmp_path / "feed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    app = following(tmp_path, model="opinion")
    with pytest.raises(ClusterError, match="opinion answered HTTP 503"):
        app._look()
    assert ask(app)["rows"] == 0
    is_there = True
    app._look()
    told = ask(app)
    assert (told["rows"], told["keys"], sizes) == (90, ["*", "bad", "good"], [64, 26])


def test_one_that_follows_says_what_keeps_it_and_asks_for_another_replica_only_where_a_file_has_changed(
    monkeypatch, tmp_path
):
    app, told = Monitor(), []
    monkeypatch.setattr(monitor.progress, "report", lambda **numbers: told.append(numbers))
    app._closing.set()
    for error, is_sick in (
        (ClusterError("opinion answered HTTP 503"), False),
        (Changed("a.jsonl has changed"), True),
        (DataError("a.jsonl is not UTF-8"), False),
    ):
        monkeypatch.setattr(app, "_look", Raising(error))
        app._follow(0.0)
        assert str(error) in told[-1]["trouble"] and ask(app)["trouble"] == told[-1]["trouble"]
        if is_sick:
            with pytest.raises(RuntimeError, match="has changed"):
                app.check_health()
        else:
            app.check_health()


class Raising:
    def __init__(self, error):
        self.error = error

    def __call__(self):
        raise self.error


def test_what_surges_now_is_reported_and_is_over_two_windows_later(monkeypatch):
    told = []
    monkeypatch.setattr(monitor.progress, "report", lambda **numbers: told.append(numbers))
    app = Monitor(against=4)
    for first, counts in ((0, [8] * 6), (6, [40]), (7, [8]), (8, [8])):
        ask(app, rows=rows(counts, first=first))
    assert [one["alerts"] for one in told] == [0, 1, 1, 0]
    assert told[1]["surge"] == "negative: 40 where 8.0 are usual"


def test_windows_that_cannot_be_are_refused():
    for wrong in ({"window_s": 0}, {"against": 1}, {"level": 1}, {"keep": 5}):
        with pytest.raises(ValueError, match="level between 0 and 1"):
            Windows(**{"window_s": 60.0, "against": 4, "level": 0.001, "keep": 100, **wrong})


def test_one_that_is_given_a_folder_follows_it_by_itself(monkeypatch, tmp_path):
    counted = threading.Event()
    monkeypatch.setattr(monitor.progress, "report", lambda **numbers: numbers.get("rows") == 2 and counted.set())
    app = Monitor(rows=str(tmp_path), follow=0.01)
    (tmp_path / "feed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows([2])))
    assert counted.wait(PATIENCE_S)
    app._closing.set()


def test_a_text_that_the_model_refuses_is_set_aside_and_no_other_row(tmp_path, monkeypatch):
    def classify(model, texts, **_):
        if "half a \ud800" in texts:
            raise RequestError(f"{model} answered HTTP 400: not UTF-8", http_status=400)
        return [{"index": at, "label": "good"} for at in range(len(texts))]

    monkeypatch.setattr(events.calls, "classify", classify)
    written = [{"text": "half a \ud800" if number in (3, 60) else "a gain", "at": 1.0} for number in range(90)]
    (tmp_path / "feed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    app = following(tmp_path, model="opinion")
    app._look()
    told = ask(app)
    assert (told["rows"], told["set_aside"]) == (88, 2)
    assert told["named"][0].startswith("row 4 of feed.jsonl has a text that is refused: opinion answered HTTP 400")


def test_a_file_of_another_kind_and_numbers_beyond_all_floats_are_rows_that_are_broken(tmp_path):
    (tmp_path / "app.log").write_text("started")
    long = '{"label": "a", "at": 1' + "0" * 400 + "}\n"
    (tmp_path / "feed.jsonl").write_text(long + '{"label": "a", "at": 1}\n')
    app = following(tmp_path / "*")
    app._look()
    app._look()
    told = ask(app)
    assert (told["rows"], told["set_aside"], told["trouble"]) == (1, 2, "")
    assert "row 1 of feed.jsonl has no 'at' that is a time" in told["named"][0]
    assert "row 1 of app.log app.log: cannot read '.log'" in told["named"][1]


def test_what_keeps_it_is_told_without_the_folders_of_the_machine(tmp_path):
    (tmp_path / "feed.jsonl").write_text('{"label": "a", "at": 1}\n')
    app = Monitor(rows=str(tmp_path), follow=3600.0)
    wait_until(lambda: ask(app)["rows"] == 1)
    (tmp_path / "feed.jsonl").write_text("")
    app._closing.set()
    app._follow(0.0)
    assert "feed.jsonl has changed" in ask(app)["trouble"] and str(tmp_path) not in ask(app)["trouble"].replace(
        f"data set {tmp_path.name}", ""
    )
    assert in_words(PermissionError(13, "Permission denied", str(tmp_path / "x.jsonl"))) == "x.jsonl: Permission denied"


def test_a_broken_byte_breaks_its_row_alone_and_no_replica(tmp_path):
    good = [json.dumps({"label": "caf\u00e9", "at": 1000 + each}, ensure_ascii=False).encode() for each in range(3)]
    feed = tmp_path / "feed.jsonl"
    feed.write_bytes(b"\n".join([*good[:2], b'{"label": "caf\xc3', b"\x9d\x81", good[2], b""]))
    app = following(tmp_path)
    app._look()
    told = ask(app)
    assert (told["rows"], told["set_aside"], told["keys"]) == (3, 2, ["caf\u00e9"])
    assert "row 3 of feed.jsonl is not utf-8" in told["named"][0]


def test_a_feed_that_cannot_be_told_is_named_and_the_replica_lives(tmp_path):
    (tmp_path / "feed.jsonl").write_bytes(b'{"label": "\xd7\xe7", "at": 1000}\n' * 9)
    app = following(tmp_path)
    app._closing.set()  # one look
    app._follow(0)
    assert "is not UTF-8" in ask(app)["trouble"]
    app.check_health()
