"""`"explain": true`: what each word adds to an answer, sought behind the answers that others wait for."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import finetune_tiny as tiny
import pytest
import tiny_tasks
from test_tasks import learnt

TEXT = "good good good good film"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("why")
    refused = sorted({task for task, _, _ in REFUSED})
    tiny.in_worker(tiny_tasks.make, str(folder), sorted({"regress", *refused}))
    tiny.in_worker(heads, [(str(folder / task / "model"), task) for task in refused])
    return folder


def heads(rank: int, size: int, models: list[tuple[str, str]]) -> None:
    """They are served as what was fine-tuned from a base, so they have a head, though it has learnt nothing."""
    from workloads.tasks.table import model_class

    for folder, task in models:
        model_class(task).from_pretrained(folder).save_pretrained(folder)


@pytest.fixture(scope="module")
def model(made: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Says a number that "good" makes larger."""
    return str(learnt(made, "regress", tmp_path_factory.mktemp("good"), 40))


def server(folder: str, task: str = "sequence-classification", **serve: Any) -> Any:
    from workloads.inference.replica import server_for

    os.environ["LLMSCHED_CACHE"] = str(Path(folder).parent / "cache")
    return server_for({"model": {"source": folder}, "task": task, **serve}, Path(folder), 1, 0)


def explained(rank: int, size: int, folder: str, inputs: Any) -> Any:
    body = {"model": "x", "input": inputs, "explain": True}
    return asyncio.run(server(folder).call("classify", body, None))["data"]


def test_the_words_add_up_to_what_the_text_changes_against_one_that_says_nothing(model: str) -> None:
    nothing = " ".join(["[MASK]"] * len(TEXT.split()))
    (found, pair), (empty,) = tiny.in_worker(of_both, model, [[TEXT, ["good film", "is bad"]], [nothing]])
    assert [word["text"] for word in found["why"]] == TEXT.split()
    assert [TEXT[word["at"]["start"] : word["at"]["end"]] for word in found["why"]] == TEXT.split()
    change = found["score"] - empty["score"]
    assert sum(word["weight"] for word in found["why"]) == pytest.approx(change, rel=0.05)
    assert min(word["weight"] for word in found["why"][:4]) > 0 and "role" not in found["why"][0]
    assert [(word["role"], word["text"]) for word in pair["why"]] == [
        ("text", "good"), ("text", "film"), ("text_pair", "is"), ("text_pair", "bad"),
    ]  # fmt: skip


def of_both(rank: int, size: int, folder: str, asked: list[Any]) -> Any:
    from workloads.inference import why

    why.STEPS = 1024  # so tiny a model is nowhere flat
    return [explained(0, 1, folder, inputs) for inputs in asked]


def test_words_are_put_together_from_tokens_and_apostrophes() -> None:
    from workloads.inference.why import words

    text = "don't unbelievable"
    places = [(0, 0), (0, 3), (3, 4), (4, 5), (5, 8), (8, 18), (0, 0)]  # a space goes with what follows, or does not
    row = {
        "texts": [text], "places": places, "words": [None, 0, 1, 2, 3, 3, None], "sides": [None, 0, 0, 0, 0, 0, None],
    }  # fmt: skip
    assert words(row, [9, 1, 2, 3, 4, 5, 9]) == [
        {"text": "don't", "weight": 6, "at": {"start": 0, "end": 5}},
        {"text": "unbelievable", "weight": 9, "at": {"start": 6, "end": 18}},
    ]


def test_whoever_asks_for_an_answer_alone_does_not_wait_for_reasons(model: str) -> None:
    order, again = tiny.in_worker(mixed, model)
    assert order == ["plain", "explained"] and again == "answered"


def mixed(rank: int, size: int, folder: str) -> Any:
    """An answer asked for between two parts of an explanation, and one after an explanation that nobody waits for."""
    from workloads.inference import why

    its, order = server(folder), []
    first, weights = True, why.weights

    async def ask(word: str, **more: Any) -> None:
        await its.call("classify", {"model": "x", "input": TEXT, **more}, None)
        order.append(word)

    def slowly(*given: Any) -> Any:
        nonlocal first
        for part in (made := Kept(weights(*given))):
            if first:
                first = False
                asyncio.run_coroutine_threadsafe(ask("plain"), loop)
                while not its._model._jobs:
                    pass
            yield part
        return made.value

    why.weights = slowly

    async def main() -> None:
        global loop
        loop = asyncio.get_running_loop()
        await ask("explained", explain=True)
        left = asyncio.create_task(ask("left", explain=True))
        await asyncio.sleep(0)
        left.cancel()
        await ask("answered")

    asyncio.run(main())
    return order[:2], order[-1]


class Kept:
    """A generator whose value is kept."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def __iter__(self) -> Any:
        self.value = yield from self._generator


REFUSED = [
    ("token-classification", {"input": "a film", "explain": True}, "cannot be explained word by word, only those of"),
    ("image-classification", {"input": {"image": "aGVsbG8="}, "explain": True}, "cannot be explained"),
    ("sequence-classification", {"input": "a film", "explain": "yes"}, '"explain" is true or false'),
    ("sequence-classification", {"input": "a film", "explian": True}, 'Did you mean "explain"?'),
    ("sequence-classification", {"input": ["a film"] * 65, "explain": True}, "at most 64 inputs"),
]


def test_what_cannot_be_explained_is_refused_by_name(made: Path) -> None:
    cases = [[str(made / task / "model"), task, body] for task, body, _ in REFUSED]
    for said, (_, _, message) in zip(tiny.in_worker(refusals, cases), REFUSED, strict=True):
        assert message in said


def refusals(rank: int, size: int, cases: list[Any]) -> list[str]:
    from llmsched.data.parameters import RequestError

    said = []
    for folder, task, body in cases:
        try:
            said.append(str(asyncio.run(server(folder, task).call("classify", {"model": "x", **body}, None))))
        except RequestError as error:
            said.append(str(error))
    return said
