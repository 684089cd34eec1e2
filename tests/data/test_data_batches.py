"""What is wrong with a batch beside its rows is said before it begins: its model, its schema, its output."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from llmsched.control import data_files
from llmsched.control.gpu_memory import Verdict
from llmsched.data.look import headless
from llmsched.data.look_batch import look_at_batch
from llmsched.spec.compile import compile_workload
from llmsched.spec.load import load_json


def batch(**section: Any) -> Any:
    given = {"input": {"path": "a.jsonl"}, "model": "hf://a/b", **section}
    return load_json({"name": "b", "kind": "batch", "workdir": ".", "batch": given})


def refusal_of(spec: Any) -> str:
    """Of the controller; ""."""
    verdict = asyncio.run(data_files.look(Verdict(), compile_workload(spec), spec.dump(), begins=True))
    return verdict.refusal.message if verdict.refusal is not None else ""


@pytest.mark.parametrize(
    ("head", "task", "is_refused"),
    [
        ("BertForSequenceClassification", "token-classification", True),
        ("BertForSequenceClassification", "causal-lm", True),
        ("BertForSequenceClassification", "feature-extraction", False),
        ("BertForSequenceClassification", "sequence-classification", False),
        ("Wav2Vec2ForSequenceClassification", "audio-classification", False),
        ("ViltForQuestionAnswering", "visual-question-answering", False),
        ("Gemma3ForConditionalGeneration", "causal-lm", False),
    ],
)
def test_a_model_that_has_learnt_another_task_is_refused_before_it_is_loaded(
    head: str, task: str, is_refused: bool, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({"architectures": [head]}))
    assert ("which has learnt" in " ".join(headless("m", task, tmp_path))) is is_refused


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "objet"}, "batch.args.response_format: The schema cannot be used: Invalid type: objet"),
        ({"type": "string", "pattern": "(?=a)b"}, "(?=a)b: look-around, including look-ahead and look-behind, is not"),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, ""),
    ],
)
def test_a_schema_that_no_answer_can_keep_to_is_refused_before_a_batch_begins(
    schema: dict[str, Any], words: str, tmp_path: Path
) -> None:
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    given = batch(args={"response_format": form})
    said = "; ".join(look_at_batch(given.dump()["batch"], tmp_path, is_complete=True)["errors"])
    for each in (said, refusal_of(given)):  # of the client, and of the controller, which does not see the input
        assert words in each if words else not each


def test_an_output_that_is_a_file_or_below_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    for output, words in (("a.jsonl", "is a file: name a folder"), ("a.jsonl/x", "which is a file: name a folder")):
        assert words in refusal_of(batch(output=str(tmp_path / output)))
