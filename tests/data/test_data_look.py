"""What is wrong with the data of a training is said before a GPU is taken: by the client, by `plan` and `apply`."""

from __future__ import annotations

import asyncio
import json
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from live import Live
from PIL import Image

from llmsched.cli.main import cli
from llmsched.client import sources
from llmsched.control import data_files
from llmsched.control.gpu_memory import Verdict
from llmsched.data import media
from llmsched.data.look import look
from llmsched.data.look_batch import look_at_batch
from llmsched.errors import SpecError
from llmsched.spec.compile import compile_workload
from llmsched.spec.load import load_json


def spec(**train: Any) -> dict[str, Any]:
    workdir = train.pop("workdir", None)
    section = {"base_model": "package:models/tiny", "datasets": [{"path": "a.jsonl"}], **train}
    return {"name": "sft", "kind": "train", "train": section, **({"workdir": workdir} if workdir else {})}


CHOSEN = {"path": "a.jsonl", "format": "preference"}


def wrong(folder: Path, **train: Any) -> str:
    return "; ".join(look(spec(**train)["train"], folder, is_complete=True)["errors"])


def test_the_first_rows_show_a_missing_file_a_wrong_column_and_a_format_that_is_none(tmp_path: Path) -> None:
    assert "no such file or folder: a.jsonl" in wrong(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"review": "x"}\n')
    assert "no column 'text' for the role 'text'; found: review" in wrong(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "chosen": "a", "rejected": "b"}\n')
    assert "preference pairs" in wrong(tmp_path)
    assert wrong(tmp_path, objective="dpo") == "" and wrong(tmp_path, datasets=[CHOSEN]) == ""
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "chosen": "a"}\n')
    assert "no column 'rejected' for the role 'rejected'; found: prompt, chosen" in wrong(tmp_path, objective="dpo")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    assert wrong(tmp_path, task="sequence-classification", objective="distill") == ""  # the teacher says it
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": "a"}\n')
    assert wrong(tmp_path) == "" and wrong(tmp_path, task="sequence-classification") == ""
    assert "of the hub it is hf://tatsu-lab/alpaca" in wrong(tmp_path, datasets=[{"path": "tatsu-lab/alpaca"}])
    assert wrong(tmp_path, datasets=[{"path": "hf://tatsu-lab/alpaca"}, {"path": "s3://bucket/x.jsonl"}]) == ""


def test_an_image_that_is_not_there_is_said_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"image": "cat.png", "label": "cat"}\n')
    images = {"task": "image-classification"}
    assert f"row 1 of a.jsonl has as image the file 'cat.png', which is not in {tmp_path}" in wrong(tmp_path, **images)
    (tmp_path / "cat.png").write_bytes(b"pixels")
    assert "row 1 of a.jsonl has an image that cannot be read (cat.png)" in wrong(tmp_path, **images)
    Image.new("RGB", (2, 2)).save(tmp_path / "cat.png")
    assert wrong(tmp_path, **images) == ""
    (tmp_path / "a.jsonl").write_text('{"image": "aGVsbG8=", "label": "cat"}\n')
    assert "row 1 of a.jsonl has an image that cannot be read" in wrong(tmp_path, **images)
    assert "no column 'audio' for the role 'audio'" in wrong(tmp_path, task="automatic-speech-recognition")


def test_a_model_without_what_reads_images_is_said_before_anything_runs(tmp_path: Path) -> None:
    rows = [{"image": "cat.png", "label": label} for label in ("cat", "dog")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("RGB", (2, 2)).save(tmp_path / "cat.png")
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text("{}")
    images = {"task": "image-classification", "base_model": "vit"}
    said = wrong(tmp_path, **images)
    assert said.startswith("train.base_model: vit has no preprocessor_config.json, which says how its image becomes")
    (tmp_path / "vit" / "preprocessor_config.json").write_text("{}")
    assert wrong(tmp_path, **images) == ""


def test_a_model_without_what_reads_text_and_a_teacher_of_another_task_are_said_before_anything_runs(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": "a"}\n{"text": "y", "label": "b"}\n')
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    of_texts = {"task": "sequence-classification", "base_model": "vit"}
    assert "vit has no tokenizer.json, which says how text becomes numbers" in wrong(tmp_path, **of_texts)
    (tmp_path / "vit" / "vocab.txt").write_text("")
    assert wrong(tmp_path, **of_texts) == ""
    taught = {**of_texts, "objective": "distill", "teacher": "vit"}
    assert "train.teacher: vit is a ViTForImageClassification, which says nothing of" in wrong(tmp_path, **taught)
    (tmp_path / "vit" / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    assert wrong(tmp_path, **taught) == ""


def refused_in(folder: Path, given: dict[str, Any]) -> str:
    """By the client, of a workdir."""
    with pytest.raises(SpecError) as caught:
        sources.check(load_json(given), folder)
    return str(caught.value)


def test_what_the_trials_of_a_search_read_is_looked_at_as_that_of_a_training(tmp_path: Path) -> None:
    """Before, only the first trial found that its data or its model was not there."""

    def search(space: dict[str, Any], **train: Any) -> dict[str, Any]:
        return {"name": "s", "kind": "tune", "tune": {"train": spec(**train)["train"], "space": space}}

    seeds = {"seed": {"grid": [1, 2]}}
    assert "tune.train.datasets.0.path: no such file or folder: a.jsonl" in refused_in(tmp_path, search(seeds))
    (tmp_path / "a.jsonl").write_text('{"review": "x"}\n')
    assert "found: review" in refused_in(tmp_path, search(seeds))
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    assert sources.check(load_json(search(seeds)), tmp_path) == ["a.jsonl: text: 1 rows"]
    bases = {"base_model": {"grid": ["package:models/tiny", "m/nowhere"]}}
    said = refused_in(tmp_path, search(bases))
    assert "no such file or folder: m/nowhere" in said and '(a trial with train.base_model "m/nowhere")' in said
    taught = {"task": "sequence-classification", "objective": "distill", "teacher": "m/nowhere"}
    assert "train.teacher: no such file or folder: m/nowhere" in refused_in(tmp_path, spec(**taught))


def test_an_endpoints_or_a_batchs_model_that_lacks_a_part_is_refused_where_it_lies(tmp_path: Path) -> None:
    model = tmp_path / "bert"
    model.mkdir()
    (model / "config.json").write_text("{}")
    serve = {"name": "e", "kind": "serve", "serve": {"model": {"id": "m", "source": str(model)}}}
    serve["serve"]["task"] = "image-classification"
    loaded = load_json(serve)
    refusal = asyncio.run(data_files.look(Verdict(), compile_workload(loaded), loaded.dump(), begins=True)).refusal
    assert refusal is not None and "serve.model.source: " in refusal.message
    assert "has no preprocessor_config.json" in refusal.message
    serve["serve"]["model"]["source"] = "bert"
    assert "serve.model.source: bert has no preprocessor_config.json" in refused_in(tmp_path, serve)
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (model / "config.json").write_text('{"architectures": ["BertModel"]}')
    serve["serve"]["task"] = "token-classification"
    assert "bert is a BertModel: a base, which has not learnt token-classification" in refused_in(tmp_path, serve)
    asked = batch(".", model="bert", task="sequence-classification")
    assert "batch.model: bert has no tokenizer.json" in refused_in(tmp_path, asked)


def test_a_model_of_a_package_is_looked_at_as_one_in_a_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept_models" / "bert").mkdir(parents=True)
    (tmp_path / "kept_models" / "bert" / "config.json").write_text('{"architectures": ["BertModel"]}')
    monkeypatch.syspath_prepend(str(tmp_path))
    serve = {"model": {"source": "package:kept_models/bert"}, "task": "token-classification"}
    said = refused_in(tmp_path, {"name": "e", "kind": "serve", "serve": serve})
    assert "package:kept_models/bert is a BertModel: a base" in said and "has no tokenizer.json" in said


def test_audio_of_a_rate_that_the_model_does_not_hear_is_said_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"audio": "hum.wav", "label": "hum"}\n')
    with wave.open(str(tmp_path / "hum.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(800))
    hears = {"task": "audio-classification", "base_model": "model"}
    assert wrong(tmp_path, **hears) == ""  # nobody here knows what it hears
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"sampling_rate": 16000}')
    said = "row 1 of a.jsonl has audio of 8,000 samples a second (hum.wav); this model hears 16,000"
    assert said in wrong(tmp_path, **hears)
    (tmp_path / "hum.wav").write_bytes(b"ID3 of another format")
    assert wrong(tmp_path, **hears) == ""


def flac(rate: int, samples: int) -> bytes:
    """The head of a file of FLAC, of one channel and 16 bits (RFC 9639)."""
    numbers = rate << 44 | 15 << 36 | samples
    return b"fLaC" + bytes([0x80, 0, 0, 34]) + bytes(10) + numbers.to_bytes(8, "big") + bytes(16)


def test_flac_of_a_wrong_rate_is_told_by_its_head_also_where_nobody_can_play_it(tmp_path: Path) -> None:
    """Before, it was found when a worker read the row."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"sampling_rate": 16000}')
    (tmp_path / "a.jsonl").write_text('{"audio": "hum.flac", "label": "a"}\n{"audio": "ham.flac", "label": "b"}\n')
    (tmp_path / "hum.flac").write_bytes(flac(16000, 800))
    (tmp_path / "ham.flac").write_bytes(flac(44100, 800))
    hears = {"task": "audio-classification", "base_model": "model"}
    said = wrong(tmp_path, **hears)
    assert "row 2 of a.jsonl has audio of 44,100 samples a second (ham.flac); this model hears 16,000" in said
    (tmp_path / "ham.flac").write_bytes(flac(16000, 0))  # of a stream, which did not know how long it would be
    assert wrong(tmp_path, **hears) == ""


def test_rows_of_two_splits_that_are_the_same_rows_are_refused(tmp_path: Path) -> None:
    """Before, a model was evaluated on what it had learnt: the split of a file, or of a folder without any, said
    nothing."""
    (tmp_path / "d").mkdir()
    for place in ("a.jsonl", "d/one.jsonl"):
        (tmp_path / place).write_text('{"text": "x"}\n')
    for path in ("a.jsonl", "d", "d/*.jsonl"):
        said = wrong(tmp_path, datasets=[{"path": path}, {"path": path, "split": "test"}], evaluation={"on": "test"})
        assert f'train.datasets.1.split: "test" and "train" are the same rows: {path} has no splits' in said
    (tmp_path / "d" / "one.jsonl").rename(tmp_path / "d" / "train.jsonl")
    both = [{"path": "d"}, {"path": "d", "split": "test"}]
    assert "files of the splits train, and none of 'test'" in wrong(tmp_path, datasets=both, evaluation={"on": "test"})
    (tmp_path / "d" / "test.jsonl").write_text('{"text": "y"}\n')
    assert wrong(tmp_path, datasets=both, evaluation={"on": "test"}) == ""
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "out.jsonl").write_text('{"text": "x"}\n')
    assert wrong(tmp_path, datasets=[{"path": "d"}, {"path": "held", "split": "test"}], evaluation={"on": "test"}) == ""
    said = look_at_batch(batch(input={"path": "held", "split": "test"})["batch"], tmp_path, is_complete=True)["errors"]
    assert "names say of which split they are, such as test.jsonl, and none here does; leave it out" in said[0]


def test_plan_shows_what_a_training_notes_of_its_data(
    controller: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, only a batch and a search told theirs."""
    monkeypatch.chdir(tmp_path)
    rows = [{"text": "x", "label": label} for label in ("bad", "good", "Good", "good")]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    told = ("1 of 5 rows left out: row 5 of a.jsonl is not JSON", "labels that differ in capitals only count as",
            "3 labels: good 2, bad 1, Good 1")  # fmt: skip
    env = {"LLMSCHED_ADDRESS": controller.url, "LLMSCHED_TOKEN": controller.token}
    for path, workdir in (("a.jsonl", {"workdir": "."}), (str(tmp_path / "a.jsonl"), {})):
        given = spec(task="sequence-classification", datasets=[{"path": path, "on_bad_row": "skip"}], **workdir)
        Path("spec.yaml").write_text(json.dumps(given))
        said = CliRunner().invoke(cli, ["plan", "-f", "spec.yaml"], env=env)
        assert said.exit_code == 0 and all(words in said.output for words in told), said.output


def judged(tmp_path: Path, **train: Any) -> Verdict:
    loaded = load_json(spec(**train))
    return asyncio.run(data_files.look(Verdict(), compile_workload(loaded), loaded.dump(), begins=True))


def test_the_controller_looks_at_what_its_machine_reaches_in_a_process_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"messages": "[{\'role\': 1}]"}\n')
    refusal = judged(tmp_path, datasets=[{"path": str(file)}]).refusal
    assert refusal is not None and refusal.code == "unusable_data" and "Python's way of writing one" in refusal.message
    elsewhere = judged(tmp_path, datasets=[{"path": "/nowhere/a.jsonl"}])
    assert elsewhere.refusal is None and "/nowhere/a.jsonl is not on the controller's machine" in elsewhere.warnings[-1]
    base = judged(tmp_path, base_model="/nowhere/base", datasets=[{"path": "/nowhere/a.jsonl"}])
    assert base.refusal is None and "/nowhere/base is not on the controller's machine" in base.warnings[0]
    named = judged(tmp_path, base_model="Qwen/Qwen3-0.6B", datasets=[{"path": str(file)}]).refusal
    assert named is not None and named.code == "no_such_source" and "hf://Qwen/Qwen3-0.6B" in named.hint
    file.write_text(json.dumps({"text": "x"}))
    whole = judged(tmp_path, datasets=[{"path": str(file)}])
    assert whole.warnings == ("package:models/tiny is not on the controller's machine; the workers need it on theirs",)
    assert replace(whole, warnings=()) == Verdict(notes=(f"{file}: text: 1 rows",))


def test_a_command_says_what_is_wrong_in_a_workdir_before_it_travels(
    controller: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"LLMSCHED_ADDRESS": controller.url, "LLMSCHED_TOKEN": controller.token}
    Path("spec.yaml").write_text(json.dumps(spec(workdir=".", base_model="org/name")))
    said = CliRunner().invoke(cli, ["plan", "-f", "spec.yaml"], env=env)
    assert said.exit_code == 2 and "of the hub it is hf://org/name" in said.output
    assert "train.datasets.0.path: no such file or folder: a.jsonl" in said.output
    Path("spec.yaml").write_text(json.dumps(spec(workdir=".")))
    Path("a.jsonl").write_text('{"text": "x"}\n{"text": \n')
    said = CliRunner().invoke(cli, ["apply", "-f", "spec.yaml"], env=env)
    assert said.exit_code == 2 and "row 2 of a.jsonl is not JSON" in said.output
    Path("a.jsonl").write_text('{"text": "x"}\n')
    assert CliRunner().invoke(cli, ["plan", "-f", "spec.yaml"], env=env).exit_code == 0


def batch(workdir: str | None = None, **section: Any) -> dict[str, Any]:
    given = {"input": {"path": "a.jsonl", **section.pop("input", {})}, "model": "package:models/tiny", **section}
    return {"name": "b", "kind": "batch", "batch": given, **({"workdir": workdir} if workdir else {})}


def test_the_input_of_a_batch_is_counted_and_what_its_model_cannot_read_is_said(
    controller: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"body": "x"}\n{"body": ""}\n{"body": \n')
    here = {"path": str(file), "columns": {"text": "body"}}
    loaded = load_json(batch(input=here))
    verdict = asyncio.run(data_files.look(Verdict(), compile_workload(loaded), loaded.dump(), begins=True))
    assert verdict.refusal is None and verdict.notes[0] == "reads 1 file, 3 rows, 37 B"
    assert verdict.notes[1].endswith(
        "1 of 3 rows left out: row 3 of a.jsonl is not JSON (Expecting value: line 1 column 10 (char 9))"
    )
    assert verdict.notes[2].endswith("a.jsonl: 1 of 2 rows left out: row 2 of a.jsonl has no 'body' (the text)")
    loaded = load_json(batch(input=here, output=str(tmp_path)))
    verdict = asyncio.run(data_files.look(Verdict(), compile_workload(loaded), loaded.dump(), begins=True))
    wrong_output = f"batch.output {tmp_path} is not empty: it has a.jsonl. Name a folder of its own for each run"
    assert verdict.refusal is not None and wrong_output in verdict.refusal.message and not verdict.refusal.hint
    verdict = asyncio.run(data_files.look(Verdict(), compile_workload(loaded), loaded.dump(), begins=False))
    assert verdict.refusal is None, "a run that goes on has written there itself"
    elsewhere = load_json(batch(".", output=str(tmp_path)))
    verdict = asyncio.run(data_files.look(Verdict(), compile_workload(elsewhere), elsewhere.dump(), begins=True))
    assert verdict.refusal is not None and wrong_output in verdict.refusal.message, "the input is in the workdir"
    loaded = load_json(batch(input=here, keep=["bodi"]))
    verdict = asyncio.run(data_files.look(Verdict(), compile_workload(loaded), loaded.dump(), begins=True))
    assert verdict.refusal is not None and "keep: no column 'bodi'; found: body. Did you mean 'body'?" in str(
        verdict.refusal
    )
    for wrong, words in (
        ({"path": str(file)}, "no column 'text' for the role 'text'; found: body"),
        ({**here, "on_bad_row": "refuse"}, "row 3 of a.jsonl is not JSON"),
        ({"path": str(tmp_path / "*.csv")}, "no file matches"),
        ({**here, "split": "test"}, "split 'test' is of a folder of several"),
    ):
        loaded = load_json(batch(input=wrong))
        refusal = asyncio.run(data_files.look(Verdict(), compile_workload(loaded), loaded.dump(), begins=True)).refusal
        assert refusal is not None and words in refusal.message

    monkeypatch.chdir(tmp_path)
    env = {"LLMSCHED_ADDRESS": controller.url, "LLMSCHED_TOKEN": controller.token}
    Path("spec.yaml").write_text(json.dumps(batch(".", input={"columns": {"text": "body"}})))
    said = CliRunner().invoke(cli, ["plan", "-f", "spec.yaml"], env=env)
    assert said.exit_code == 0 and "b: reads 1 file, 3 rows, 37 B" in said.output
    Path("spec.yaml").write_text(json.dumps(batch(".", input={"path": "b.jsonl"})))
    said = CliRunner().invoke(cli, ["plan", "-f", "spec.yaml"], env=env)
    assert said.exit_code == 2 and "batch.input.path: no such file or folder: b.jsonl" in said.output


def test_a_batch_says_which_images_and_sounds_nobody_could_see_or_hear_as_a_training_does(tmp_path: Path) -> None:
    """Beside their data file, wherever in the folder that lies."""
    below = tmp_path / "data" / "sub"
    below.mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(below / "good.png")
    (below / "none.png").write_bytes(b"pixels")
    images = ["good.png", "none.png", "away.png", "https://example.com/a.png"]
    (below / "a.jsonl").write_text("".join(json.dumps({"image": name}) + "\n" for name in images))
    section = {"input": {"path": "data"}, "model": "vit", "task": "image-classification"}
    (note,) = [each for each in look_at_batch(section, tmp_path, is_complete=True)["notes"] if "left out" in each]
    assert "3 of 4 rows left out: row 2 of sub/a.jsonl has an image that cannot be read (none.png)" in note
    assert f"row 3 of sub/a.jsonl has as image the file 'away.png', which is not in {below}" in note
    assert "row 4 of sub/a.jsonl has an address, and nothing is fetched" in note
    section["input"] = {"path": "data", "on_bad_row": "refuse"}
    (error,) = look_at_batch(section, tmp_path, is_complete=True)["errors"]
    assert error.startswith("batch.input: data set data: row 2 of sub/a.jsonl has an image that cannot be read")

    (tmp_path / "ear").mkdir()
    (tmp_path / "ear" / "preprocessor_config.json").write_text('{"sampling_rate": 16000}')
    with wave.open(str(tmp_path / "hum.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(800))
    (tmp_path / "b.jsonl").write_text('{"audio": "hum.wav"}\n')
    section = {"input": {"path": "b.jsonl"}, "model": "ear", "task": "audio-classification"}
    assert "8,000 samples a second (hum.wav); this model hears 16,000" in str(
        look_at_batch(section, tmp_path, is_complete=True)
    )


def said_of(folder: Path, rows: list[dict[str, Any]], task: str, **train: Any) -> str:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return wrong(folder, task=task, **train)


def base_in(folder: Path, **files: Any) -> str:
    (folder / "base").mkdir(exist_ok=True)
    for name, value in {"config": {}, "preprocessor_config": {}, "tokenizer": {}, **files}.items():
        (folder / "base" / f"{name}.json").write_text(json.dumps(value))
    return "base"


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("token-classification", {"tokens": ["a", "b"], "ner_tags": ["O"]}, "two lists of one length"),
        ("token-classification", {"text": "Ada", "entities": [{"begin": 0, "end": 3, "label": "P"}]}, "expected start"),
        ("token-classification", {"text": "Ada", "entities": [[0, 3, "P"]]}, "entities that are no list of"),
        ("token-classification", {"text": "Ada", "entities": [{"start": 0, "end": 9, "label": "P"}]}, "expected start"),
        ("question-answering", {"question": "who", "context": "Ada", "answers": "Bob"}, "does not stand in the"),
        ("sequence-classification", {"text": "x", "label": ["a"]}, "expected a name or a whole number"),
        ("image-segmentation", {"objects": [{"label": "a", "box": [1, 2, 3]}]}, "expected a label and a box"),
        ("object-detection", {"objects": {"label": ["a"], "bbox": [[1, 2, 3, 4]]}}, "regions that are no list of"),
        ("object-detection", {"objects": [{"label": "a", "bbox": [1, 2, 3, 4]}]}, "[x, y, x + width, y + height]"),
        ("image-segmentation", {"objects": [{"label": "a", "box": [0, 0, 500, 500]}]}, "leaves its image of 20 x 20"),
        ("object-detection", {"objects": [{"label": "a", "box": [0, 0, 0.5, 0.5]}]}, "less than a pixel"),
    ],
)  # fmt: skip
def test_what_a_row_holds_is_looked_at_before_anything_runs_as_the_run_looks_at_it(
    tmp_path: Path, task: str, row: dict[str, Any], words: str
) -> None:
    if "objects" in row:
        Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
        row = {"image": "a.png", **row}
    said = said_of(tmp_path, [row], task, base_model=base_in(tmp_path))
    assert said.startswith("train.datasets.0: data set a.jsonl: row 1 of a.jsonl has") and words in said


def test_labels_are_looked_at_in_all_rows_where_these_are_few(tmp_path: Path) -> None:
    base, kind = base_in(tmp_path), "sequence-classification"
    same = [{"text": "x", "label": "a"}] * 300
    assert "every label is 'a'; expected at least two" in said_of(tmp_path, same, kind, base_model=base)
    assert said_of(tmp_path, same, kind) == "", "a base that is elsewhere may know this label among its own"
    rows = [*same, {"text": "x", "label": "b"}]
    assert said_of(tmp_path, rows, kind, base_model=base) == ""
    (tmp_path / "test.jsonl").write_text('{"text": "x", "label": "c"}\n')
    both: dict[str, Any] = {"datasets": [{"path": "a.jsonl"}, {"path": "test.jsonl", "split": "test"}]}
    said = said_of(tmp_path, rows, kind, **both)
    assert "label 'c' of row 1 of test.jsonl does not occur in the training data (there: a, b)" in said
    both["datasets"].append({"path": "/elsewhere/more.jsonl"})
    assert look(spec(task=kind, **both)["train"], tmp_path, is_complete=True, of=[0, 1])["errors"] == []
    assert "has the label 'abc'; expected a number" in said_of(
        tmp_path, [{"text": "x", "label": "abc"}], kind, objective="regress"
    )


def test_audio_that_is_none_or_holds_no_sample_is_said_before_anything_runs(tmp_path: Path) -> None:
    for none in (b"no audio at all, just words", b"RIFFnope"):
        (tmp_path / "x.wav").write_bytes(none)
        assert "row 1 of a.jsonl has audio that cannot be read (x.wav)" in said_of(
            tmp_path, [{"audio": "x.wav", "label": "a"}], "audio-classification"
        )
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(800))
    whole = (tmp_path / "x.wav").read_bytes()
    for cut in (2, 1, 800):
        (tmp_path / "x.wav").write_bytes(whole[:-cut])
        assert "row 1 of a.jsonl has audio (x.wav) that is a WAV file that is cut off" in said_of(
            tmp_path, [{"audio": "x.wav", "label": "a"}], "audio-classification"
        )
    (tmp_path / "x.wav").write_bytes(whole[:40] + b"\xff\xff\xff\xff" + whole[44:])  # as written into a pipe
    assert said_of(tmp_path, [{"audio": "x.wav", "label": label} for label in "ab"], "audio-classification") == ""
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
    assert "row 1 of a.jsonl has audio without a sample (x.wav)" in said_of(
        tmp_path, [{"audio": "x.wav", "label": "a"}], "audio-classification"
    )


def test_audio_below_the_first_filter_of_the_model_is_said_before_anything_runs(tmp_path: Path) -> None:
    """Before, it broke the first step, in the words of the library and without a row."""
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 23))
    rows = [{"audio": "x.wav", "label": label} for label in "ab"]
    for filters, words in (
        (([8, 4], [4, 4]), ""),
        (([8, 5], [4, 4]), "23 samples (x.wav); this model hears nothing below 24"),
    ):
        base = base_in(tmp_path, config={"conv_kernel": filters[0], "conv_stride": filters[1]})
        said = said_of(tmp_path, rows, "audio-classification", base_model=base)
        assert words in said and bool(words) == bool(said)


def test_speech_in_letters_that_the_model_does_not_write_is_said_with_its_alphabet(tmp_path: Path) -> None:
    """The usual trap: a model of capitals, and texts without; before, all was learnt as unknown."""
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(3200))
    base = base_in(tmp_path, vocab={"<pad>": 0, "<unk>": 1, "|": 2, "A": 3, "B": 4})
    speech = {"task": "automatic-speech-recognition", "base_model": base}
    said = said_of(tmp_path, [{"audio": "x.wav", "text": "ab ba"}], **speech)
    assert "row 1 of a.jsonl has a target of which the model writes 0 of 4 letters; it writes AB|. Write the" in said
    assert said_of(tmp_path, [{"audio": "x.wav", "text": "AB BA"}], **speech) == ""


def test_samples_of_any_encoding_that_end_before_the_head_says_are_cut_off() -> None:
    of_floats = b"RIFF" + bytes(4) + b"WAVEfmt \x10\0\0\0\x03" + bytes(15) + b"data\x08\0\0\0" + bytes(8)
    aiff = b"FORM" + bytes(4) + b"AIFFodd \0\0\0\x03" + bytes(4) + b"SSND\0\0\0\x08" + bytes(8)
    for whole in (of_floats, aiff):
        assert [media.is_cut(each) for each in (whole, whole[:-1], whole + b"more", whole[:20])] == [
            False,
            True,
            False,
            False,
        ]
    assert not media.is_cut(of_floats.replace(b"data\x08\0\0\0", b"data\xff\xff\xff\xff")), "written into a pipe"
    assert not media.is_cut(b"") and not media.is_cut(b"ID3 of another kind")


def test_what_is_said_of_a_whole_set_is_not_said_of_its_first_rows(tmp_path: Path) -> None:
    """That the rejected answers are left out was told of the first rows, as it has the words of a note that counts."""
    row = {"prompt": "x" * 3000, "chosen": "yes", "rejected": "no"}
    (tmp_path / "pairs.jsonl").write_text((json.dumps(row) + "\n") * 2000)
    train = {"task": "causal-lm", "base_model": "m", "datasets": [{"path": "pairs.jsonl", "format": "preference"}]}
    said = look(train, tmp_path, is_complete=True)
    assert said["errors"] == []
    assert [note.partition(":")[0] for note in said["notes"]] == ["in the first rows of pairs.jsonl", "pairs.jsonl"]
