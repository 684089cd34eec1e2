"""Formats of other tools: recognised by their columns, said, and turned into what a language model learns from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmsched.data import formats
from llmsched.data.rows import BadRows, DataError, OnBadRow, Place, Row, Rows


def learnt(
    *rows: Row, given: str = "auto", columns: dict[str, str] | None = None, on_bad_row: OnBadRow = "refuse"
) -> Rows:
    bad = BadRows("data", on_bad_row)
    found = Rows(rows, [Place("a.jsonl", number) for number in range(1, len(rows) + 1)])
    made = formats.converted(found, given, columns or {}, "data", bad)
    made.notes += bad.settle(len(made))
    return made


USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
TOLD = {"role": "tool", "content": "4"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


@pytest.mark.parametrize(
    ("row", "name", "messages"),
    [
        ({"messages": [USER, ANSWER]}, "chat", [USER, ANSWER]),
        ({"messages": json.dumps([USER, ANSWER])}, "chat", [USER, ANSWER]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, "i"]}, ANSWER]},
            "chat",
            [USER, ANSWER],
        ),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}], "system": "be kind"},
            "sharegpt",
            [{"role": "system", "content": "be kind"}, USER, ANSWER],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "hi"},
                    {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
                    {"from": "observation", "value": "4"},
                    {"from": "gpt", "value": "yes"},
                ]
            },
            "sharegpt",
            [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, TOLD, ANSWER],
        ),
        ({"instruction": "hi", "input": "", "output": "yes"}, "alpaca", [USER, ANSWER]),
        (
            {"instruction": "hi", "output": "yes", "history": [["a", "b"]], "system": "s"},
            "alpaca",
            [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                USER,
                ANSWER,
            ],
        ),
        (
            {"prompt": [{"role": "user", "content": "a"}, ANSWER, USER], "completion": [ANSWER]},
            "prompt",
            [{"role": "user", "content": "a"}, {**ANSWER, "learn": False}, USER, ANSWER],
        ),
        (
            {"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1, "name": None}]},
            "chat",
            [USER, {**ANSWER, "learn": False}, USER, ANSWER],
        ),
    ],
)  # fmt: skip
def test_conversations_of_other_tools_become_messages(row: Row, name: str, messages: list[Any]) -> None:
    made = learnt(row)
    assert made[0]["messages"] == messages
    assert any(note.startswith(f"data: {name}: 1 rows") for note in made.notes)


def test_tool_calls_keep_their_tools_and_arguments_as_an_object() -> None:
    given = {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    turn = {"role": "assistant", "content": None, "tool_calls": [given]}
    made = learnt({"messages": [USER, turn], "tools": '[{"name": "f", "parameters": {}}]'})
    assert made[0]["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "x"}]}
    assert made[0]["tools"] == [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def test_what_was_recognised_is_said_with_what_is_lacking_and_what_is_not_used() -> None:
    rows = [{"instruction": "hi", "input": "x" * (n % 2), "output": "yes" * (n != 3), "": n} for n in range(6)]
    made = learnt(*rows, on_bad_row="skip")
    assert "data: alpaca: 6 rows, 1 without output, 3 without input; not used: one without a name" in made.notes
    assert any("1 of 6 rows left out: row 4 of a.jsonl has no 'output'" in note for note in made.notes)
    with pytest.raises(DataError, match="row 4 of a.jsonl has no 'output'"):
        learnt(*rows)


def test_a_column_of_any_row_counts_and_the_row_that_lacks_it_is_named() -> None:
    with pytest.raises(DataError, match="row 1 of a.jsonl has no 'target'"):
        learnt({"text": "a"}, {"text": "b", "target": "c"})
    with pytest.raises(DataError, match="row 3 of a.jsonl has no 'completion' .the target"):
        learnt({"prompt": "a", "completion": "x"}, {"prompt": "a", "completion": "x"}, {"prompt": "b"})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}, "rejected": {}},
        {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER]},
    ],
)
def test_preference_pairs_never_train_as_prompts(row: Row) -> None:
    with pytest.raises(DataError, match="preference pairs .*format: preference"):
        learnt(row)


def test_answers_that_were_liked_or_not_are_not_called_pairs_which_dpo_would_refuse() -> None:
    with pytest.raises(DataError, match="liked or not .* as KTO learns from them, which no objective here does"):
        learnt({"prompt": "a", "completion": "b", "label": True})


def test_of_preference_pairs_the_chosen_answer_is_learnt_where_it_is_asked_for() -> None:
    made = learnt({"prompt": "a", "chosen": "b", "rejected": "c"}, given="preference")
    assert made[0] == {"text": "a", "target": "b"} and "the chosen answers are learnt" in made.notes[-1]
    chosen = [USER, ANSWER, USER, ANSWER]
    made = learnt({"prompt": "hi", "chosen": chosen, "rejected": chosen}, given="preference")
    assert made[0]["messages"] == [USER, {**ANSWER, "learn": False}, USER, ANSWER]


def test_prompts_without_answers_do_not_train_unless_that_is_said() -> None:
    with pytest.raises(DataError, match="a column 'prompt' and no answers"):
        learnt({"prompt": "a"})
    assert learnt({"prompt": "a"}, given="text") == [{"text": "a"}]
    assert learnt({"prompt": "a"}, columns={"text": "prompt"}) == [{"text": "a"}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": [USER, ANSWER]}, "row 1 of a.jsonl has a list as 'text'"),
        ({"text": "[{'role': 'user', 'content': 'hi'}]"}, "Python's way of writing a list"),
        ({"text": "<app.Row object at 0x7f00>"}, "Python's way of writing a object"),
        ({"text": "a", "target": "{'answer': 1}"}, "Python's way of writing a dict as 'target'"),
        ({"messages": "[{'role': 'user', 'content': 'hi'}]"}, "it is Python's way of writing one"),
        ({"text": "nan"}, "row 1 of a.jsonl has no 'text'"),
        ({"text": " \n"}, "row 1 of a.jsonl has no 'text'"),
        ({"text": float("nan")}, "row 1 of a.jsonl has no 'text'"),
        ({"messages": [USER]}, "no message of the role assistant"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "turn 2 in which the assistant says nothing"),
        ({"messages": [{"role": "user"}, ANSWER]}, "turn 1 has no content"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "turn 1 from 'narrator'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "type 'image_url'"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "not JSON"),
        ({"review": "x", "stars": 3}, "no column 'text' for the role 'text'; found: review, stars"),
        ({"question": "q", "answer": "a"}, "columns: {text: ...}, and what is to be learnt of it with {target: ...}"),
    ],
)  # fmt: skip
def test_what_would_be_learnt_as_nobody_meant_it_is_refused(row: Row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        learnt(row)


def test_a_role_that_a_format_does_not_read_is_refused() -> None:
    with pytest.raises(DataError, match="the role 'target' is not read here; expected messages"):
        learnt({"messages": [USER, ANSWER], "answer": "x"}, columns={"target": "answer"})


def test_one_and_one_point_nought_are_one_label() -> None:
    def labels(*values: Any) -> list[Any]:
        rows = Rows([{"text": "x", "label": value} for value in values], [Place("a", 1)] * len(values))
        return [row["label"] for row in formats.roles(rows, ("text", "label"), (), {}, "data", BadRows("data"))]

    assert labels("1.0", "0.0", "1") == ["1", "0", "1"]
    assert labels(1.0, 0, 1) == [1, 0, 1]
    assert labels("1.0", "good") == ["1.0", "good"]
