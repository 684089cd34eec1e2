"""Batch without Ray: parts and their answers, whose fault a failure is, and that no row is lost or doubled."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest
import tiny_models
import tiny_tasks
import torch

from llmsched.runtime import Context, enter
from llmsched.runtime.artifact import read_result
from llmsched.runtime.batch import Driver
from llmsched.runtime.environment import UserError
from llmsched.spec.load import load_json
from workloads.batch.answers import blaming
from workloads.batch.ledger import Ledger
from workloads.batch.output import Output
from workloads.batch.work import Run, Worker, _part_rows
from workloads.sources import BadInput

FUNCTIONS = """
def length(rows, unit="letters"):
    return [{"length": len(row["text"]), "unit": unit} for row in rows]

def picky(rows):
    for row in rows:
        if "bad" in row["text"]:
            raise ValueError(f"will not have {row['text']}")
    return [{"text": row["text"].upper()} for row in rows]

async def later(rows):
    return [{"n": 1} for row in rows]

class Counter:
    def __init__(self, start):
        self.n = start

    def __call__(self, rows):
        self.n += len(rows)
        return [{"seen": self.n} for _ in rows]

def fewer(rows):
    return rows[1:]

def nothing(rows):
    return [None for _ in rows]

def numbers(rows):
    return [1 for _ in rows]

def moved(rows):
    return [{"_row": "mine"} for _ in rows]

def drifting(rows):
    for row in rows:
        n = int(row["text"].split()[1])
        yield {"n": n if n < 9 else n + 0.5, "some": None if n < 9 else [n], "odd": n if n < 9 else "x",
               **({"late": {"n": n}} if n > 15 else {})}

def tensors(rows):
    import torch
    for row in rows:
        yield {"t": torch.ones(2), "nan": float("nan"), "deep": [{"inf": float("inf")}]}

def fails(rows):
    raise KeyError("it")

NAME = "no function"
"""


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A LaunchOrder of a spec with this section, as JSON data; the spec is one that is taken."""
    (tmp_path / "answerfuns.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(20)))

    def make(*, workers: str = "1..2", **section: Any) -> dict[str, Any]:
        batch = {"input": {"path": str(tmp_path / "texts.jsonl")}, "batch_size": 3, **section}
        spec = load_json({"name": "b", "kind": "batch", "workers": workers, "batch": batch}).dump()
        return {"gang": "b/0", "attempt": 1, "epoch": 1, "storage": str(tmp_path / "s"), "inputs": {}, "spec": spec}

    return make


MEMBER = {"cpus": 1.0, "gpus": 0.0}


def answered(order: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that one attempt of one worker leaves, in their order."""
    run = Run(order)
    worker = Worker(order, MEMBER)
    for part in run.todo:
        run.took(worker.do(part))
    with enter(Context.alone(order["storage"], gang=order["gang"])):
        run.end()
    return rows_of(order)


def rows_of(order: dict[str, Any]) -> list[dict[str, Any]]:
    folder = Path(order["spec"]["batch"]["output"] or Path(order["storage"], order["gang"], "artifact", "rows"))
    if order["spec"]["batch"]["format"] == "jsonl":
        return [json.loads(line) for file in sorted(folder.glob("part-*")) for line in file.read_text().splitlines()]
    found: list[dict[str, Any]] = (
        pyarrow.dataset.dataset(sorted(map(str, folder.glob("part-*")))).to_table().to_pylist()
    )
    return found


def test_a_function_gets_rows_and_arguments_and_its_answers_stand_beside_the_rows(order: Any, tmp_path: Path) -> None:
    asked = order(map="answerfuns:length", args={"unit": "chars"})
    rows = answered(asked)
    assert rows[3] == {"_row": "texts.jsonl#4", "text": "text 3", "length": 6, "unit": "chars"} and len(rows) == 20
    result = read_result(str(tmp_path / "s"), "b/0", 1, 1)
    assert result["artifact"].endswith("b/0/artifact/rows"), "without an output the rows are the result"
    assert result["metrics"].items() >= {"rows": 20, "bad_rows": 0}.items()


def test_the_output_may_be_json_lines_with_fewer_columns_and_a_column_of_the_input_makes_room(
    order: Any, tmp_path: Path
) -> None:
    rows = answered(order(map="answerfuns:picky", format="jsonl", output=str(tmp_path / "out")))
    assert rows[0] == {"_row": "texts.jsonl#1", "input_text": "text 0", "text": "TEXT 0"}
    rows = answered(
        order(map="answerfuns:picky", format="jsonl", output=str(tmp_path / "two"), keep=[]) | {"gang": "c/0"}
    )
    assert rows[0] == {"_row": "texts.jsonl#1", "text": "TEXT 0"}


def test_values_of_several_types_in_one_column_are_kept_as_json(order: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a", "x": 1}\n{"text": "b", "x": "one"}\n{"text": "c", "y": {}}\n')
    rows = answered(order(map="answerfuns:length"))
    assert [(row["x"], row["y"]) for row in rows] == [("1", None), ("one", None), (None, "{}")]


def test_tensors_are_lists_in_either_form_and_json_has_null_for_what_is_no_number(order: Any) -> None:
    assert answered(order(map="answerfuns:tensors", keep=[]))[0]["t"] == [1.0, 1.0]
    row = answered(order(map="answerfuns:tensors", keep=[], format="jsonl") | {"gang": "c/0"})[0]
    assert row == {"_row": "texts.jsonl#1", "t": [1.0, 1.0], "nan": None, "deep": [{"inf": None}]}


def test_parts_whose_columns_differ_are_one_table_at_the_end(order: Any, tmp_path: Path) -> None:
    asked = order(map="answerfuns:drifting", keep=[])
    rows = answered(asked)
    schemas = {str(pyarrow.parquet.read_schema(part)) for part in (tmp_path / "s").rglob("part-*.parquet")}
    assert len(schemas) == 1 and "n: double" in str(schemas)
    assert [row["n"] for row in rows] == [*map(float, range(9)), *[n + 0.5 for n in range(9, 20)]]
    assert [row["some"] for row in rows] == [None] * 9 + [[n] for n in range(9, 20)]
    assert [row["odd"] for row in rows] == [*map(str, range(9)), *["x"] * 11]
    assert [row["late"] for row in rows] == [None] * 16 + [{"n": n} for n in range(16, 20)]
    with enter(Context.alone(asked["storage"], gang=asked["gang"])):
        Run(asked).end()  # killed after the last part was noted, it ends again
    assert rows_of(asked) == rows


def test_a_column_to_keep_that_no_file_has_is_refused_with_the_nearest(order: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "a"}\n' * 300)
    (tmp_path / "in" / "b.jsonl").write_text('{"text": "b", "when": 1}\n')
    section = {"map": "answerfuns:length", "input": {"path": str(tmp_path / "in")}}
    with pytest.raises(BadInput, match=r"keep: no column 'wen'; found: text, when\. Did you mean 'when'\?"):
        answered(order(**section, keep=["text", "wen"]))
    assert answered(order(**section, keep=["when"]) | {"gang": "c/0"})[-1]["when"] == 1


def test_classes_and_coroutines_are_called_too(order: Any) -> None:
    assert [row["seen"] for row in answered(order(map="answerfuns:Counter", args={"start": 100}, batch_size=20))] == [
        120
    ] * 20
    assert answered(order(map="answerfuns:later") | {"gang": "c/0"})[0]["n"] == 1


def test_a_broken_row_is_set_aside_and_named_and_the_others_are_answered(order: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text(
        '{"text": "one"}\nnot JSON\n{"text": "a bad one"}\n[1]\n' + '{"text": "two"}\n' * 5
    )
    rows = answered(order(map="answerfuns:picky", output=str(tmp_path / "out")))
    assert [row["_row"].partition("#")[2] for row in rows] == ["1", "5", "6", "7", "8", "9"]
    bad = [json.loads(line) for line in (tmp_path / "out" / "_bad_rows.jsonl").read_text().splitlines()]
    assert [(one["file"], one["row"]) for one in bad] == [("texts.jsonl", 2), ("texts.jsonl", 3), ("texts.jsonl", 4)]
    assert bad[1]["why"] == "cannot be answered: ValueError: will not have a bad one"
    asked = order(map="answerfuns:picky", input={"path": str(tmp_path / "texts.jsonl"), "on_bad_row": "refuse"})
    with pytest.raises(
        BadInput, match=r"row 2 of texts.jsonl is not JSON .* \(on_bad_row: skip sets such rows aside\)"
    ):
        answered(asked | {"gang": "c/0"})


def test_no_row_is_blamed_for_what_befalls_one_that_was_answered_before() -> None:
    is_away = False

    def answers(rows: Any, folder: Path) -> list[Any]:
        if is_away or any(row["n"] == 3 for row in rows):
            raise ConnectionError("nobody answers")
        return [{} for _ in rows]

    ask = blaming(answers)
    found = ask([{"n": n} for n in range(6)], Path())
    assert [type(one).__name__ for one in found] == ["dict"] * 3 + ["Bad"] + ["dict"] * 2
    is_away = True
    with pytest.raises(ConnectionError):
        ask([{"n": 7}, {"n": 8}], Path())


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"map": "answerfuns:fewer"}, "expected a list of 3 answers, one for each row, and got a list of 2"),
        ({"map": "answerfuns:numbers"}, r"expected an object \(a dict\) for each row, and got a int"),
        ({"map": "answerfuns:moved"}, "an answer may not be called _row, which says where its row stands"),
        ({"map": "answerfuns:lenght"}, "has nothing called 'lenght'. Did you mean 'length'?"),
        ({"map": "answerfuns:length", "args": {"units": "x"}}, "got an unexpected keyword argument 'units'"),
        ({"map": "answerfuns:Counter"}, "missing a required argument: 'start'"),
        ({"map": "answerfuns:NAME"}, "expected a function or a class, got str"),
        ({"map": "answerfuns:nothing"}, "not one of 20 rows has an answer: row 1 of texts.jsonl got None"),
        ({"map": "answerfuns:fails"}, "not one of 20 rows has an answer: row 1 .* cannot be answered: KeyError: 'it'"),
    ],
)
def test_a_function_that_cannot_work_ends_the_run_with_what_is_wrong(order: Any, section: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        answered(order(**section))


def test_a_run_in_which_nothing_is_answered_ends_early(order: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "x"}\n' * 5000)
    asked = order(map="answerfuns:fails", batch_size=100)
    run, worker = Run(asked), Worker(asked, MEMBER)
    assert len(run.todo) > 10
    with pytest.raises(BadInput, match="not one of 313 rows has an answer"):
        run.took(worker.do(run.todo[0]))


@pytest.mark.parametrize(
    ("rows", "batch_size", "workers", "size"),
    [(20, 3, 2, 3), (20_000, 64, 4, 625), (10**6, 64, 4, 1000), (10**6, 1, 4, 50), (100, 5000, 1, 5000)],
)
def test_a_part_is_small_enough_to_do_again_and_there_are_not_too_many(
    rows: int, batch_size: int, workers: int, size: int
) -> None:
    assert _part_rows(rows, batch_size, workers) == size


def test_an_output_that_is_not_empty_and_an_input_that_has_changed_are_refused(order: Any, tmp_path: Path) -> None:
    asked = order(map="answerfuns:length", output=str(tmp_path / "out"))
    run = Run(asked)
    Worker(asked, MEMBER).do(run.todo[0])
    assert len(Run(asked).todo) == len(run.todo) - 1, "the same run goes on"
    with pytest.raises(BadInput, match=r"out is not empty: it has part-000000.parquet. Name a folder of its own"):
        Run(asked | {"gang": "b@2/0"})
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"file/out cannot be written by whom work runs as: Not a directory"):
        Run(order(map="answerfuns:length", output=str(tmp_path / "file" / "out")) | {"gang": "b@3/0"})
    with (tmp_path / "texts.jsonl").open("a") as file:
        file.write('{"text": "late"}\n')
    with pytest.raises(
        BadInput, match=r"texts.jsonl has changed since this run began \(it had 390 bytes, and has 407\)"
    ):
        Run(asked)


def test_an_input_of_the_same_size_but_other_rows_is_refused_too(order: Any, tmp_path: Path) -> None:
    asked = order(map="answerfuns:length")
    Run(asked)
    file = tmp_path / "texts.jsonl"
    file.write_text(file.read_text().replace("text 3", "text x"))
    with pytest.raises(BadInput, match=r"texts.jsonl has changed since this run began \(its 390 bytes are not those"):
        Run(asked)


class Killed(BaseException):
    """As kill -9: nothing after it is done."""


@pytest.mark.parametrize("seed", range(8))
def test_however_often_and_wherever_it_is_killed_and_at_whatever_size_it_goes_on_each_row_is_answered_once(
    order: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    asked = order(map="answerfuns:length", workers="1..4")
    lives = 0
    while run := Run(asked):
        workers = [Worker(asked, MEMBER) for _ in range(chance.randint(1, 4))]
        written = 0
        kill_at = chance.randint(1, 12)

        def killed(write: Any) -> Any:
            def act(self: Any, *arguments: Any) -> Any:
                nonlocal written
                written += 1
                if written == kill_at:  # noqa: B023
                    if chance.random() < 0.5:
                        write(self, *arguments)
                    raise Killed
                return write(self, *arguments)

            return act

        with monkeypatch.context() as patch:
            patch.setattr(Output, "write", killed(Output.write))
            patch.setattr(Ledger, "note", killed(Ledger.note))
            try:
                for part in run.todo:
                    chance.choice(workers).do(part)
            except Killed:
                lives += 1
                continue
        break
    assert lives > 0
    assert [row["_row"] for row in rows_of(asked)] == [f"texts.jsonl#{n + 1}" for n in range(20)]
    assert sum(one.rows for one in Run(asked)._ledger.done().values()) == 20


# --- models -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_model_embeds_labels_and_answers_as_its_endpoint_does(order: Any, tmp_path: Path) -> None:
    columns = {"path": str(tmp_path / "pairs.csv"), "columns": {"text": "body"}}
    (tmp_path / "pairs.csv").write_text("body,more\nhello,x\n,y\nworld,z\n")
    bert = str(tiny_models.bert(tmp_path / "bert"))
    rows = answered(order(model=bert, task="feature-extraction", input=columns))
    assert [row["_row"] for row in rows] == ["pairs.csv#1", "pairs.csv#3"]
    assert abs(sum(value**2 for value in rows[0]["embedding"]) - 1) < 1e-5

    labels = str(tiny_models.bert(tmp_path / "labels", labels=["no", "yes"]))
    pairs = {"path": columns["path"], "columns": {"text": "body", "text_pair": "more"}}
    rows = answered(order(model=labels, task="sequence-classification", input=pairs) | {"gang": "c/0"})
    assert {row["label"] for row in rows} <= {"no", "yes"}
    assert rows[0]["score"] == max(rows[0]["scores"].values())

    llama = str(tiny_models.llama(tmp_path / "llama"))
    asked = order(model=llama, input=columns, args={"max_tokens": 4, "temperature": 0}, format="jsonl")
    rows = answered(asked | {"gang": "d/0"})
    assert [row["finish_reason"] for row in rows] == ["length", "length"] and rows[0]["body"] == "hello"
    asked["spec"]["batch"]["args"] = {"temperature": 9}  # which a spec is refused for: of an older client
    with pytest.raises(BadInput, match=r'batch.args: "temperature" must be a number from 0 to 2'):
        answered(asked | {"gang": "e/0"})
    with pytest.raises(BadInput, match=r"no column 'txt' for the role 'text'; found: body, more"):
        answered(order(model=llama, input={**columns, "columns": {"text": "txt"}}) | {"gang": "f/0"})


def test_a_question_that_is_too_long_for_the_model_is_set_aside(order: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "x" * 400}) + '\n{"text": "short"}\n')
    llama = str(tiny_models.llama(tmp_path / "llama"))
    assert len(answered(order(model=llama, args={"max_tokens": 2}, output=str(tmp_path / "out")))) == 1
    assert "this model reads 256" in (tmp_path / "out" / "_bad_rows.jsonl").read_text()


def test_an_image_beside_its_data_file_is_looked_at_and_one_that_is_none_is_set_aside(
    order: Any, tmp_path: Path
) -> None:
    import transformers
    from PIL import Image

    model = str(tmp_path / "vit")
    config = transformers.ViTConfig(image_size=16, patch_size=8, num_labels=3, **tiny_tasks.SMALL)
    transformers.ViTForImageClassification(config).save_pretrained(model)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(model)
    (tmp_path / "pictures" / "of_a_day").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "pictures" / "of_a_day" / "red.png")
    rows = [{"image": "red.png"}, {"image": "blue.png"}, {"image": "aGVsbG8="}]
    (tmp_path / "pictures" / "of_a_day" / "all.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given = {"input": {"path": str(tmp_path / "pictures")}, "output": str(tmp_path / "out")}
    (said,) = answered(order(model=model, task="image-classification", **given))
    assert said["_row"] == "of_a_day/all.jsonl#1" and said["score"] == max(said["scores"].values())
    bad = [json.loads(line)["why"] for line in (tmp_path / "out" / "_bad_rows.jsonl").read_text().splitlines()]
    assert "the file 'blue.png', which is not in" in bad[0] and "is no image" in bad[1]


def test_what_a_model_finds_in_a_row_is_a_list_which_may_be_empty(order: Any, tmp_path: Path) -> None:
    import transformers

    folder = tmp_path / "tags"
    words = tiny_tasks._tokenizer(folder)
    names = {0: "O", 1: "B-GOOD"}
    config = transformers.BertConfig(vocab_size=words, max_position_embeddings=32, id2label=names, **tiny_tasks.SMALL)
    transformers.BertForTokenClassification(config).save_pretrained(folder)
    rows = answered(order(model=str(folder), task="token-classification", format="jsonl"))
    assert len(rows) == 20
    for one in (each for row in rows for each in row["found"]):
        assert one["label"] == "GOOD" and one["at"].keys() == {"start", "end"}


class _Asked(Driver):
    """A driver whose only member does one part and is then asked to leave; without Ray."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = {**order, "members": [MEMBER]}

    def _said(self, todo: list[Any]) -> Iterator[dict[str, Any]]:
        yield {"rank": 0, "done": Worker(self._order, MEMBER).do(todo[0]).dump(), "message": "", "event": ""}
        yield {"rank": 0, "done": "", "message": "", "event": ""}


class _Hears:
    """A supervisor, as an actor's handle: of it, what a driver says of checkpoints."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.checkpointed = self

    def remote(self, step: int, fraction: float) -> None:
        self.steps.append(step)


def test_a_run_that_leaves_says_how_far_it_is_as_its_progress_does(
    order: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were set aside are behind it, too."""
    (tmp_path / "texts.jsonl").write_text('{"text": \n' + "".join(f'{{"text": "text {n}"}}\n' for n in range(20)))
    hears = _Hears()
    monkeypatch.setattr("llmsched.runtime.batch._supervisor", lambda order: hears)
    over = _Asked(order(map="answerfuns:length"))._run()
    assert (over.left, [over.step]) == (True, hears.steps) and over.step == 3
