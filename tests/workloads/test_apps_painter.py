"""Pictures by OpenAI's route: what is named is drawn, the same for the same seed; what cannot be is told by name."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from llmsched.data.parameters import RequestError
from llmsched.runtime import Context, artifact, enter
from workloads.apps.painter import Painter, png
from workloads.loops import drawing
from workloads.sources import BadInput

NAMES = ("left", "right")  # half of the picture that is bright


def rows(folder, many=160):
    chance, made = np.random.default_rng(1), []
    for number in range(many):
        picture = chance.integers(0, 60, (6, 6)).astype("uint8")
        picture[:, 3 * (number % 2) :][:, :3] += 180
        made.append({"image": png(picture, 6), "label": NAMES[number % 2]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(folder / "rows.jsonl")


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("painter")
    with enter(Context.alone(place / "out")):
        drawing.loop({"data": rows(place), "size": 6, "hidden": 64, "blocks": 1, "steps": 250})
    left = artifact.read_result(str(place / "out"), "by-hand/0", 1, 1)
    yield Painter(model=left["artifact"].removeprefix("file://"))
    torch.set_num_threads(threads)


def pixels(answer):
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each["b64_json"])))) for each in answer["data"]]


@pytest.mark.parametrize("name", NAMES)
def test_what_the_prompt_names_is_drawn_of_the_size_that_is_asked_for(painter, name):
    drawn = pixels(
        painter({"model": "m", "prompt": f"Draw the {name.upper()} one.", "n": 12, "size": "12x12", "seed": 3})
    )
    assert len(drawn) == 12 and {each.shape for each in drawn} == {(12, 12)}
    bright = [each[:, :6].mean() > each[:, 6:].mean() for each in drawn]
    assert sum(bright) >= 11 if name == "left" else sum(bright) <= 1
    assert len({each.tobytes() for each in drawn}) == 12


def test_a_seed_draws_the_same_again_and_none_draws_another(painter):
    one, same, other = (pixels(painter({"prompt": "left", **more}))[0] for more in ({"seed": 1}, {"seed": 1}, {}))
    assert (one == same).all() and not (one == other).all()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, '"prompt" is missing'),
        ({"prompt": "a cat"}, "names none of what was learnt: left, right"),
        ({"prompt": "left or right"}, "names several of"),
        ({"prompt": "left", "n": 0}, '"n" is a whole number of 1 to 64'),
        ({"prompt": "left", "n": True}, '"n" is a whole number'),
        ({"prompt": "left", "size": "6x12"}, '"size" is a square of 6 to 1024 pixels'),
        ({"prompt": "left", "response_format": "url"}, "Nothing is kept to be fetched"),
        ({"prompt": "left", "sede": 1}, 'no parameter "sede" here. Did you mean "seed"?'),
        ("left", "must be a JSON object"),
    ],
)
def test_what_cannot_be_drawn_is_told(painter, body, told):
    with pytest.raises(RequestError) as raised:
        painter(body)
    assert told in raised.value.message


def test_a_picture_that_is_none_is_named_by_its_row_and_another_result_is_no_painter(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"image": "AAAA", "label": "a"}\n{"image": "AAAA", "label": "b"}\n')
    with (
        pytest.raises(BadInput, match=r"row 1 of rows.jsonl has an image that cannot be read$"),
        enter(Context.alone(tmp_path / "out")),
    ):
        drawing.loop({"data": str(tmp_path / "rows.jsonl")})
    with pytest.raises(ValueError, match="no drawing.json"):
        Painter(model=str(tmp_path))
