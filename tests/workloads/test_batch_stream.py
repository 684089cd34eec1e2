"""A batch that follows its input, without Ray: what is added is answered once, and how far behind it is, is told."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from llmsched.errors import SpecError
from llmsched.spec.load import load_json
from workloads.batch.stream import Stream
from workloads.batch.work import Worker
from workloads.sources import BadInput

MEMBER = {"cpus": 1.0, "gpus": 0.0}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "streamfuns.py").write_text(
        "def upper(rows):\n"
        "    if any('bad' in row['text'] for row in rows):\n"
        "        raise ValueError('will not have it')\n"
        "    return [{'upper': row['text'].upper()} for row in rows]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "in").mkdir()
    return order_of(tmp_path)


def order_of(tmp_path: Path, **more: Any) -> dict[str, Any]:
    batch = {"input": {"path": str(tmp_path / "in")}, "batch_size": 3, "follow": "10s", "format": "jsonl"}
    batch |= {"map": "streamfuns:upper", "output": str(tmp_path / "out"), **more}
    spec = load_json({"name": "s", "kind": "batch", "workers": 2, "batch": batch}).dump()
    return {"gang": "s/0", "attempt": 1, "epoch": 1, "storage": str(tmp_path / "s"), "inputs": {}, "spec": spec}


def add(tmp_path: Path, *rows: Any, name: str = "log.jsonl") -> None:
    with (tmp_path / "in" / name).open("a") as file:
        file.writelines(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


def answers(tmp_path: Path) -> list[dict[str, Any]]:
    files = sorted((tmp_path / "out").glob("part-*"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_what_is_added_is_answered_and_how_long_it_waited_is_told(order: Any, tmp_path: Path) -> None:
    clock = Clock()
    stream, worker = Stream(order, clock), Worker(order, MEMBER)
    assert stream.look() == [] and stream.numbers().items() >= {"step": 0, "lag_s": 0.0, "backlog": 0}.items()
    add(tmp_path, *({"text": f"t{n}"} for n in range(4)))
    clock.now += 5
    parts = stream.look()
    assert [part.rows for part in parts] == [3, 1] and stream.numbers()["backlog"] == 4
    clock.now += 2
    for part in parts:
        stream.answered(part, worker.do(part))
    said = stream.numbers()
    assert (said["step"], said["lag_s"], said["backlog"]) == (4, 7.0, 0), "since the look before, at the most"
    add(tmp_path, {"text": "t4"}, "no JSON", {"text": "a bad one"})
    clock.now += 5
    (part,) = stream.look()
    stream.answered(part, worker.do(part))
    assert [row["_row"] for row in answers(tmp_path)] == [f"log.jsonl#{n}" for n in (1, 2, 3, 4, 5)]
    bad = [json.loads(line) for line in (tmp_path / "out" / "_bad_rows-000002.jsonl").read_text().splitlines()]
    assert [(one["row"], one["why"][:11]) for one in bad] == [(6, "is not JSON"), (7, "cannot be a")]
    assert stream.numbers()["bad_rows"] == 2 and "total_steps" not in stream.numbers()


def test_a_file_that_cannot_be_read_is_set_aside_or_ends_it(order: Any, tmp_path: Path) -> None:
    (tmp_path / "in" / "a.parquet").write_bytes(b"PAR1")
    stream = Stream(order, Clock())
    assert stream.look() == [] == stream.look()
    assert "a.parquet cannot be read" in (tmp_path / "out" / "_bad_rows-file-000000.jsonl").read_text()
    assert stream.numbers()["bad_rows"] == 1 == Stream(order, Clock()).numbers()["bad_rows"]
    refusing = order_of(tmp_path, output=str(tmp_path / "two")) | {"gang": "t/0"}
    refusing["spec"]["batch"]["input"]["on_bad_row"] = "refuse"
    stream = Stream(refusing, Clock())
    stream.look()
    with pytest.raises(BadInput, match=r"a.parquet cannot be read.*on_bad_row: skip sets it aside"):
        stream.look()


def test_a_model_learns_which_columns_it_reads_from_the_first_rows_that_come(tmp_path: Path) -> None:
    import tiny_models

    (tmp_path / "in").mkdir()
    bert = str(tiny_models.bert(tmp_path / "bert"))
    asked = order_of(tmp_path, map=None, model=bert, task="feature-extraction")
    stream, worker = Stream(asked, Clock()), Worker(asked, MEMBER)
    stream.look()
    add(tmp_path, {"text": "hello", "n": 1})
    (part,) = stream.look()
    stream.answered(part, worker.do(part))
    assert len(answers(tmp_path)[0]["embedding"]) > 4
    other = order_of(tmp_path, map=None, model=bert, task="feature-extraction", output=str(tmp_path / "two"))
    other["spec"]["batch"]["input"]["columns"] = {"text": "txt"}
    with pytest.raises(BadInput, match=r"no column 'txt' for the role 'text'; found: text, n"):
        Stream(other | {"gang": "t/0"}, Clock()).look()


@pytest.mark.parametrize("seed", range(6))
def test_no_row_is_lost_or_doubled_however_often_driver_and_workers_die(order: Any, tmp_path: Path, seed: int) -> None:
    rng, clock, written = random.Random(seed), Clock(), 0
    stream, worker = Stream(order, clock), Worker(order, MEMBER)
    waiting = list(stream.todo)
    for _ in range(60):
        clock.now += 1
        what = rng.random()
        if what < 0.4:
            count = rng.randrange(8)
            add(
                tmp_path,
                *({"text": f"t{n}"} for n in range(written, written + count)),
                name=rng.choice("ab") + ".jsonl",
            )
            written += count
        elif what < 0.6:
            waiting += stream.look()
        elif what < 0.9 and waiting:
            part = waiting.pop(rng.randrange(len(waiting)))
            done = worker.do(part)
            if rng.random() < 0.7:  # else the driver dies before it hears of it
                stream.answered(part, done)
            else:
                stream = Stream(order, clock)
                waiting = list(stream.todo)
        else:
            stream, worker = Stream(order, clock), Worker(order, MEMBER)
            waiting = list(stream.todo)
    waiting += stream.look()
    for part in waiting:
        stream.answered(part, worker.do(part))
    assert sorted(row["text"] for row in answers(tmp_path)) == sorted(f"t{n}" for n in range(written))
    assert stream.numbers()["step"] == written and stream.numbers()["backlog"] == 0


@pytest.mark.parametrize(
    ("batch", "more", "words"),
    [
        ({"input": {"path": "texts"}}, {}, "needs an absolute input.path, on a disk that all machines share"),
        ({"input": {"path": "s3://bucket/texts"}}, {}, "needs an absolute input.path"),
        ({"output": None}, {}, "needs an output: a batch that follows its input does not end"),
        ({"follow": "10ms"}, {}, "greater than or equal to 1|at least 1"),
        ({}, {"schedule": {"cron": "0 3 * * *"}}, '"schedule": goes with work that ends'),
        ({}, {"deadline": "2030-01-01T00:00Z"}, '"deadline": goes with work that ends'),
        ({}, {"estimated_runtime": "1h"}, '"estimated_runtime": goes with work that ends'),
    ],
)
def test_what_cannot_be_followed_is_refused(batch: Any, more: Any, words: str) -> None:
    section = {"input": {"path": "/in"}, "output": "/out", "map": "mod:fun", "follow": "10s", **batch}
    section = {name: value for name, value in section.items() if value is not None}
    with pytest.raises(SpecError, match=words):
        load_json({"name": "s", "kind": "batch", "batch": section, **more})
