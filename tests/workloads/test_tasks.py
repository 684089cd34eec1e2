"""Every task of the table trains on two workers as on one, goes on after a stop on another number, measures, serves."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import wave
from pathlib import Path
from typing import Any, get_args

import finetune_tiny as tiny
import pytest
import tiny_tasks
from PIL import Image
from test_finetune import STEADY, assert_close, losses, result_of

from llmsched.data.tasks import KINDS, MEASURES, metrics_of
from llmsched.spec import train as spec_train

TRAINED = list(tiny_tasks.MAKERS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    tiny.in_worker(tiny_tasks.make, str(folder))
    return folder


def spec_of(made: Path, name: str, **changes: Any) -> dict[str, Any]:
    task = "sequence-classification" if name == "regress" else name
    objective = "regress" if name == "regress" else next(iter(KINDS[task].learns))
    train = {
        "base_model": str(made / name / "model"),
        "task": task,
        "objective": objective,
        "method": "full",
        "datasets": [{"path": str(made / name / f"{split}.jsonl"), "split": split} for split in ("train", "test")],
        "global_batch_size": 5,
        "training_args": {**STEADY, "learning_rate": 0.01, "max_steps": 5, "logging_steps": 1},
        "evaluation": {"on": "test", "metrics": list(metrics_of(task, objective))},
    }
    return {"train": {**train, **changes}, "checkpoint": {"every": 600.0, "keep": 3}}


@pytest.mark.parametrize("name", TRAINED)
def test_two_workers_and_a_resize_train_every_task_as_one_worker_does(name: str, made: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert tiny.in_worker(tiny.finetune, str(one), spec_of(made, name)) == "done"
    stopped = tiny.gang(2, tiny.finetune, str(two), spec_of(made, name, micro_batch_size=1), 1, 4)
    assert [each.partition(" at ")[0] for each in stopped] == ["stopped"] * 2
    assert tiny.in_worker(tiny.finetune, str(two), spec_of(made, name), 2) == "done"
    assert losses(two, 2)[5] == pytest.approx(losses(one)[5], abs=2e-5)
    left = result_of(one)
    assert_close(left, result_of(two, attempt=2))
    task, objective = spec_of(made, name)["train"]["task"], spec_of(made, name)["train"]["objective"]
    assert {f"eval.{metric}" for metric in metrics_of(task, objective)} < set(left["metrics"])


def test_the_spec_names_the_tasks_and_metrics_of_the_table() -> None:
    assert set(KINDS) <= set(get_args(spec_train.Task))
    assert set(sum(MEASURES.values(), ())) <= set(get_args(spec_train.Metric))
    assert {objective for kind in KINDS.values() for objective in kind.learns} <= set(get_args(spec_train.Objective))


def asked(rank: int, size: int, folder: str, task: str, inputs: list[Any]) -> Any:
    import asyncio

    from workloads.inference.replica import server_for

    os.environ["LLMSCHED_CACHE"] = str(Path(folder).parent / "cache")
    server = server_for({"model": {"source": folder}, "task": task}, Path(folder), 1, 0)
    return json.loads(json.dumps(asyncio.run(server.call(server.routes[0], {"model": "x", "input": inputs}, None))))


def learnt(made: Path, name: str, folder: Path, steps: int, **changes: Any) -> Path:
    args = {"learning_rate": 0.02, "max_steps": steps, "lr_scheduler_type": "constant"}
    spec = spec_of(made, name, training_args=args, global_batch_size=14, **changes)
    assert tiny.in_worker(tiny.finetune, str(folder), spec) == "done"
    return Path(result_of(folder)["artifact"])


def test_entities_come_with_their_characters_and_only_entities_do(made: Path, tmp_path: Path) -> None:
    model = learnt(made, "token-classification", tmp_path, 40)
    answer = tiny.in_worker(asked, str(model), "token-classification", ["the good film was bad", "the plot is dull"])
    first = [each for each in answer["data"] if each["index"] == 0]
    assert [(each["label"], each["text"]) for each in first] == [("GOOD", "good film"), ("BAD", "bad")]
    assert first[0]["at"] == {"start": 4, "end": 13} and 0 < first[0]["score"] <= 1
    assert [each["index"] for each in answer["data"]] == [0, 0]


@pytest.mark.parametrize("name", ["token-classification", "question-answering", "regress"])
def test_an_adapter_of_any_of_them_is_served_as_its_base_with_it(name: str, made: Path, tmp_path: Path) -> None:
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}
    model = learnt(made, name, tmp_path, 2, method="lora", lora=lora, evaluation=None)
    inputs = [["how is", "a film"]] if name == "question-answering" else ["a film"]
    task = "sequence-classification" if name == "regress" else name
    answer = tiny.in_worker(asked, str(model), task, inputs)
    assert all(set(each) >= {"label", "score", "index"} for each in answer["data"])
    if name == "regress":
        assert answer["data"][0]["label"] == "value"


@pytest.mark.parametrize(
    "name", ["image-classification", "audio-classification", "automatic-speech-recognition", "image-segmentation"]
)
def test_an_adapter_of_images_and_audio_is_served_as_its_base_with_it(name: str, made: Path, tmp_path: Path) -> None:
    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    spec = spec_of(made, name, method="lora", lora=lora, global_batch_size=14)
    assert tiny.in_worker(tiny.finetune, str(tmp_path), spec) == "done"
    left = result_of(tmp_path)
    assert any(".lora_A." in weight for weight in left["weights"])
    heads = [weight for weight in left["weights"] if ".lora_" not in weight]
    assert bool(heads) is (name != "automatic-speech-recognition")  # a last layer is of these labels, letters stay
    rows = [json.loads(line) for line in (made / name / "test.jsonl").read_text().splitlines()]
    role = KINDS[name].roles[0]
    inputs = [{role: base64.b64encode((made / name / row[role]).read_bytes()).decode()} for row in rows]
    found = tiny.in_worker(asked, left["artifact"], name, inputs)["data"]
    if KINDS[name].learns.keys() >= {"regress"}:  # of a label each, what was measured is what is served
        right = sum(each["label"] == row["label"] for each, row in zip(found, rows, strict=True))
        assert right / len(rows) == pytest.approx(left["metrics"]["eval.accuracy"], abs=1e-5)
    elif name == "automatic-speech-recognition":
        assert len(found) == len(rows)


def test_what_a_model_does_not_hear_is_chance_of_the_row_and_not_of_the_batch(made: Path, tmp_path: Path) -> None:
    masks = {"mask_time_prob": 0.3, "mask_time_length": 3, "mask_feature_prob": 0.2, "mask_feature_length": 2}
    spec = spec_of(made, "audio-classification", spec_augment=masks)
    assert tiny.in_worker(tiny.finetune, str(tmp_path / "one"), spec) == "done"
    assert tiny.gang(2, tiny.finetune, str(tmp_path / "two"), spec) == ["done"] * 2
    assert_close(result_of(tmp_path / "one"), result_of(tmp_path / "two"))
    plain = spec_of(made, "audio-classification")
    assert tiny.in_worker(tiny.finetune, str(tmp_path / "plain"), plain) == "done"
    assert losses(tmp_path / "plain")[1] != pytest.approx(losses(tmp_path / "one")[1], abs=1e-4)
    deaf = spec_of(made, "image-classification", spec_augment=masks)
    assert "this base model has no feature_projection" in tiny.in_worker(tiny.finetune, str(tmp_path / "deaf"), deaf)


def test_an_adapter_hides_tokens_of_a_base_that_can_and_no_other(made: Path, tmp_path: Path) -> None:
    spec = spec_of(made, "masked-lm", method="lora", lora={"r": 4, "target_modules": "all-linear"}, evaluation=None)
    assert "has no last layer for masked-lm" in tiny.in_worker(tiny.finetune, str(tmp_path / "none"), spec)
    model = learnt(made, "masked-lm", tmp_path / "whole", 2, evaluation=None)
    spec["train"]["base_model"] = str(model)
    assert tiny.in_worker(tiny.finetune, str(tmp_path / "lora"), spec) == "done"
    assert all(".lora_" in weight for weight in result_of(tmp_path / "lora")["weights"])


def test_an_answer_to_a_question_is_a_part_of_its_passage(made: Path, tmp_path: Path) -> None:
    model = learnt(made, "question-answering", tmp_path, 40)
    pair = ["how is", "the film was very dull"]
    (found,) = tiny.in_worker(asked, str(model), "question-answering", [pair])["data"]
    assert pair[1][found["at"]["start"] : found["at"]["end"]] == found["text"] == found["label"]
    assert found["text"] in "film was very"


def test_a_number_is_answered_as_a_score(made: Path, tmp_path: Path) -> None:
    model = learnt(made, "regress", tmp_path, 40)
    texts = ["good good good good film", "bad bad bad bad film"]
    good, bad = tiny.in_worker(asked, str(model), "sequence-classification", texts)["data"]
    assert good["label"] == "value" and good["score"] > bad["score"] + 1


def bytes_of(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def test_an_image_is_asked_for_as_base64_or_a_data_url(made: Path, tmp_path: Path) -> None:
    model = learnt(made, "image-classification", tmp_path, 30)
    data = bytes_of(made / "image-classification" / "19.png")
    inputs = [{"image": data}, {"image": f"data:image/png;base64,{data}"}]
    answers = tiny.in_worker(asked, str(model), "image-classification", inputs)["data"]
    assert [each["label"] for each in answers] == ["right", "right"]
    assert sum(answers[0]["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_regions_come_as_boxes_in_pixels_of_the_image(made: Path, tmp_path: Path) -> None:
    model = learnt(made, "image-segmentation", tmp_path, 25)
    rows = [json.loads(line) for line in (made / "image-segmentation" / "test.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["objects"])
    image = {"image": bytes_of(made / "image-segmentation" / row["image"])}
    answers = tiny.in_worker(asked, str(model), "image-segmentation", [image])["data"]
    best = max(answers, key=lambda each: each["at"]["box"][2] - each["at"]["box"][0])
    assert best["label"] == "lamp" and best["at"]["box"] == pytest.approx(row["objects"][0]["box"], abs=4)


def test_a_question_about_an_image_is_answered_by_a_label(made: Path, tmp_path: Path) -> None:
    model = learnt(made, "visual-question-answering", tmp_path, 30)
    image = bytes_of(made / "visual-question-answering" / "19.png")
    inputs = [{"text": "how is the film", "image": image}]
    (answer,) = tiny.in_worker(asked, str(model), "visual-question-answering", inputs)["data"]
    assert set(answer["scores"]) == {"left", "right"} and answer["label"] in answer["scores"]


def test_objects_come_with_their_boxes(made: Path, tmp_path: Path) -> None:
    model = learnt(made, "object-detection", tmp_path, 2)
    image = {"image": bytes_of(made / "object-detection" / "19.png")}
    answers = tiny.in_worker(asked, str(model), "object-detection", [image])["data"]
    assert all(each["label"] == "lamp" and len(each["at"]["box"]) == 4 for each in answers)


def test_speech_is_written(made: Path, tmp_path: Path) -> None:
    model = learnt(made, "automatic-speech-recognition", tmp_path, 5)
    audio = {"audio": bytes_of(made / "automatic-speech-recognition" / "19.wav")}
    (answer,) = tiny.in_worker(asked, str(model), "automatic-speech-recognition", [audio])["data"]
    assert set(answer["text"]) <= {"A", "B"} and answer["text"] == answer["label"]


def _audio_of(samples: int) -> str:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((1, 2, 1600, 0, "NONE", ""))
        file.writeframes(bytes(2 * samples))
    return base64.b64encode(data.getvalue()).decode()


def _image() -> str:
    data = io.BytesIO()
    Image.new("RGB", (2, 2)).save(data, "png")
    return base64.b64encode(data.getvalue()).decode()


SHORT, PIXEL = _audio_of(1), _image()
CUT = base64.b64encode(base64.b64decode(_audio_of(800))[:-2]).decode()
DEEP = base64.b64encode(bytearray(base64.b64decode(_audio_of(800))).replace(b"\x10\0data", b"\x40\0data")).decode()
UNREAD = [
    ("image-classification", [{"image": "https://example.org/a.png"}], "nothing is fetched"),
    ("image-classification", [{"image": "aGVsbG8="}], "is no image"),
    ("image-classification", [{"image": PIXEL}, {"image": "aGVsbG8="}], "input[1]: The input is no image"),
    ("image-classification", ["good film"], 'An input of this model is {"image"'),
    ("image-classification", [{"image": "/etc/hostname"}], "is not base64"),
    ("audio-classification", [{"audio": "aGVsbG8="}], "is no audio"),
    ("audio-classification", [{"audio": CUT}], "cut off: its head tells of 800 samples, and 799 are whole"),
    ("audio-classification", [{"audio": DEEP}], "is audio of 64 bits a sample"),
    ("audio-classification", [{"audio": SHORT}], "The input is audio of 1 samples; this model hears nothing below"),
    ("question-answering", ["good film"], "a question and the passage"),
    ("visual-question-answering", [{"image": "aGVsbG8="}], 'is {"text", "image": base64'),
    ("sequence-classification", [{"text": "a film", "pair": "b"}], 'has "pair"'),
    ("token-classification", [{"image": "aGVsbG8="}], "reads texts"),
]


def test_an_input_that_a_model_does_not_read_is_refused(made: Path) -> None:
    said = tiny.in_worker(refusals, [[str(made / task / "model"), task, inputs] for task, inputs, _ in UNREAD])
    for answer, (_, _, message) in zip(said, UNREAD, strict=True):
        assert message in answer


def refusals(rank: int, size: int, cases: list[Any]) -> list[str]:
    from llmsched.data.parameters import RequestError

    said = []
    for folder, task, inputs in cases:
        try:
            said.append(f"answered: {asked(rank, size, with_head(folder, task), task, inputs)}")
        except RequestError as error:
            said.append(str(error))
    return said


def with_head(folder: str, task: str) -> str:
    """A base is served by nobody: beside it, the same with a head of chance."""
    from workloads.tasks.table import model_class

    target = Path(folder).parent / "with-head"
    shutil.copytree(folder, target, dirs_exist_ok=True)
    model_class(task).from_pretrained(folder).save_pretrained(target)
    return str(target)


LONG = "ABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABAB"
BOX = {"label": "lamp", "box": [3, 3, 1, 9]}
AWAY = {"label": "lamp", "box": [0, 0, 500, 500]}
BEYOND = {"start": 2, "end": 9, "label": "X"}


UNLEARNT = [
    ("image-classification", {"image": "none.png", "label": "left"}, "row 1 of .* as image the file 'none.png'"),
    ("image-classification", {"image": "aGVsbG8=", "label": "left"}, "row 1 of .* is no image that can be read"),
    ("audio-classification", {"audio": "99.wav", "label": "low"}, "row 1 .* 800 .*99.wav.* hears 1,600"),
    ("automatic-speech-recognition", {"audio": "1.wav", "text": LONG}, "too long"),
    ("automatic-speech-recognition", {"audio": "1.wav", "text": "ab"}, "row 1 .* writes 0 of 2 letters; it writes A"),
    ("audio-classification", {"audio": SHORT, "label": "low"}, "row 1 .* is audio of 1 samples; this model hears"),
    ("image-segmentation", {"image": "1.png", "objects": [BOX]}, "the region .*box"),
    ("image-segmentation", {"image": "1.png", "objects": [AWAY]}, "row 1 .* leaves its image of"),
    ("object-detection", {"image": "1.png", "objects": [AWAY]}, "row 1 .* leaves its image of"),
    ("token-classification", {"tokens": ["a", "film"], "ner_tags": ["O"]}, "words and tags"),
    ("token-classification", {"text": "a film", "entities": [BEYOND]}, "has the entity"),
    ("question-answering", {"question": "how", "context": "a film", "answers": "plot"}, "does not stand in the"),
    ("regress", {"text": "a film", "score": "much"}, "has the label 'much'; expected a number"),
    ("seq2seq-lm", {"source": "a film", "goal": "b"}, "no column 'target'"),
]


def test_a_row_that_cannot_be_learnt_is_named(made: Path, tmp_path: Path) -> None:
    tiny_tasks._sound(made / "audio-classification", 99, [100] * 4, rate=800)
    specs = []
    for number, (name, row, _) in enumerate(UNLEARNT):
        file = made / name / f"bad{number}.jsonl"
        file.write_text(json.dumps(row))
        specs.append(spec_of(made, name, datasets=[{"path": str(file)}], evaluation=None))
    text_model = str(made / "masked-lm" / "model")
    specs.append(spec_of(made, "image-classification", base_model=text_model))
    said = tiny.in_worker(learnings, str(tmp_path), specs)
    assert "no usable processor of image in" in said.pop()
    for answer, (_, _, message) in zip(said, UNLEARNT, strict=True):
        assert re.match(f"refused: .*{message}", answer), answer


def learnings(rank: int, size: int, folder: str, specs: list[dict[str, Any]]) -> list[str]:
    return [tiny.finetune(rank, size, f"{folder}/{number}", spec) for number, spec in enumerate(specs)]


def test_batch_norms_of_a_model_of_chance_have_the_averages_of_its_first_rows(made: Path, tmp_path: Path) -> None:
    """Those it is made with are of nothing, and what is deep then learns nothing."""
    spec = spec_of(made, "image-segmentation", init="random", evaluation=None)
    assert tiny.in_worker(tiny.finetune, str(tmp_path / "one"), spec) == "done"
    assert tiny.gang(2, tiny.finetune, str(tmp_path / "two"), spec) == ["done"] * 2
    one, two = result_of(tmp_path / "one"), result_of(tmp_path / "two")
    assert_close(one, two)
    spread = one["weights"]["model.safetensors:decode_head.batch_norm.running_var"]
    assert min(abs(each - 1.0) for each in spread) > 0.01


def test_an_encoder_decoder_says_the_target_over_chat_and_completions(made: Path, tmp_path: Path) -> None:
    model = learnt(made, "seq2seq-lm", tmp_path, 80)
    said, refused = tiny.in_worker(said_by, str(model))
    (choice,) = said["choices"]
    assert choice["finish_reason"] == "stop", choice
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "nice film" and said["usage"]["completion_tokens"] == 3
    assert refused.startswith('"logprobs" is not supported')


def test_a_model_that_sees_says_of_each_image_what_it_learnt(made: Path, tmp_path: Path) -> None:
    model = learnt(made, "image-text-to-text", tmp_path, 40, evaluation=None)
    files = [made / "image-text-to-text" / f"{number}.png" for number in (18, 19)]
    assert tiny.in_worker(seen_by, str(model), [file.read_bytes() for file in files]) == ["good film", "bad plot"]


def seen_by(rank: int, size: int, folder: str, images: list[bytes]) -> list[str]:
    from workloads.batch.answers import answers_of

    batch = {"model": folder, "task": "image-text-to-text", "engine_kwargs": {}, "args": {"max_tokens": 6}}
    columns = {"text": "question", "image": "image"}
    answers = answers_of(batch, columns, {"cpus": 1}, {})
    asked = [{"question": "how is", "image": image} for image in images]
    return [str(one["answer"]) for one in answers(asked, Path(folder))]


def said_by(rank: int, size: int, folder: str) -> Any:
    import asyncio

    from llmsched.data.parameters import RequestError
    from workloads.inference.replica import server_for

    server = server_for({"model": {"source": folder}, "task": "seq2seq-lm"}, Path(folder), 1, 0)
    body = {"model": "x", "messages": [{"role": "user", "content": "good good good plot"}], "max_tokens": 8}
    said = json.loads(json.dumps(asyncio.run(server.call("chat/completions", body, None))))
    try:
        asyncio.run(server.call("chat/completions", {**body, "logprobs": True}, None))
    except RequestError as error:
        return said, str(error)
    return said, "answered"
