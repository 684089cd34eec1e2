"""What a spec reads of other runs, and where it writes: what could not come to anything is refused before it begins."""

from __future__ import annotations

import asyncio

import pytest
from control_harness import ANN, Script, controlling, fake_cluster, phase, serve, train, until

from llmsched.errors import RequestError
from llmsched.spec.load import load_json

MODEL = "package:models/tiny"


def batch(name, output=None, **more):
    section = {"input": {"path": "/data/rows.jsonl"}, "map": "mine:f", "output": output} | more
    return load_json({"name": name, "kind": "batch", "resources": {"cpus": 1}, "batch": section})


def trains(name, task="sequence-classification", **more):
    rows = [{"path": "/data/rows.jsonl"}]
    return train(name, train={"loop": None, "base_model": MODEL, "task": task, "datasets": rows, **more})


def search(name, task="sequence-classification", **space):
    section = {"base_model": MODEL, "task": task, "datasets": [{"path": "/data/rows.jsonl"}]}
    tune = {"train": section, "space": {"learning_rate": {"grid": [0.1, 0.2]}, **space}}
    return load_json({"name": name, "kind": "tune", "resources": {"accelerators": ["A100:1"]}, "tune": tune})


def asks(name, source, task):
    body = {"name": name, "kind": "serve", "resources": {"accelerators": ["A100:1"]}}
    return load_json(body | {"serve": {"model": {"source": source}, "task": task}})


def refused(*specs, before=()):
    """(code, sentence) of `apply`, which `plan` says too; None where nothing is wrong."""

    async def story():
        async with controlling(fake_cluster()) as controller:
            if before:
                await controller.submit([*before], user=ANN)
                await until(lambda: all(controller.state.find(each.name) for each in before))
            planned = await controller.plan([*specs], ANN)
            told = [each.reason.message for each in planned if each.outcome == "refused" and each.reason]
            try:
                await controller.submit([*specs], user=ANN)
            except RequestError as error:
                assert error.message in told
                return error.code, error.message
            assert told == []
            return None

    return asyncio.run(story())


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("/out/a", "/out/a"),
        ("/out/a/", "file:///out/a"),
        ("/out/a/b", "/out/a"),
        ("/out", "/out/a"),
        ("s3://bucket/a/", "s3://bucket/a"),
    ],
)
def test_a_folder_of_answers_is_of_one_batch(mine, theirs):
    for specs, before in (
        ((batch("one", theirs), batch("two", mine)), ()),
        ((batch("two", mine),), (batch("one", theirs),)),
    ):
        found = refused(*specs, before=before)
        assert found is not None and found[0] == "output_taken" and "one writes" in found[1], (specs, found)


def test_folders_side_by_side_and_one_of_a_run_that_has_ended_are_free():
    assert refused(batch("one", "/out/a"), batch("two", "/out/ab"), batch("three"), batch("four")) is None

    async def story():
        async with controlling(fake_cluster(one=Script(runs_for_s=0.0))) as controller:
            await controller.submit([batch("one", "/out/a")], user=ANN)
            await until(lambda: phase(controller, "one") == "succeeded")
            await controller.submit([batch("two", "/out/a")], user=ANN)
            with pytest.raises(RequestError, match="two writes there"):  # again, beside the one that writes there now
                await controller.submit([batch("one", "/out/a")], user=ANN, again=True)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("path", "output", "is_refused"),
    [
        ("/data", "/data/out", True),
        ("/data/", "/data", True),
        ("/data/*.jsonl", "/data", True),
        ("/data/**/*.jsonl", "/data/a/out", True),
        ("/data/*.jsonl", "/data/out", False),
        ("/data", "/data/_out", False),
        ("/data", "/database", False),
    ],
)
def test_a_batch_that_follows_its_input_does_not_write_into_it(path, output, is_refused):
    found = refused(batch("stream", output, input={"path": path}, follow="5s", format="jsonl"))
    assert (found is not None and "for ever" in found[1]) is is_refused, found


def test_rows_are_not_written_over_the_file_they_come_from():
    found = refused(batch("b", "/data/rows.jsonl"))
    assert found is not None and found[1].startswith("batch.output /data/rows.jsonl is among what is read")


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ((trains("t"), asks("s", "run://t", "causal-lm")), "t trains sequence-classification, and s would ask"),
        ((search("q"), asks("s", "run://q/best", "token-classification")), "q trains sequence-classification"),
        ((batch("b"), asks("s", "run://b", "causal-lm")), "run://b is the answers of a batch, b, and no model"),
        ((batch("b"), trains("t", base_model="run://b")), "train.base_model: run://b is the answers of a batch"),
        ((serve("e"), trains("t", base_model="run://e")), "e is an endpoint, which has no result"),
        ((serve("e"), asks("s", "run://e", "causal-lm")), "s would wait for run://e for ever"),
        ((trains("t"), batch("b", input={"path": "run://t"})), "is the model that t trains, and no rows"),
        ((trains("t"), asks("s", "run://t/best", "sequence-classification")), "t is no search"),
        (
            (batch("f", "/out", follow="5s"), batch("b", input={"path": "run://f"})),
            "f is a batch that follows its input, which has no result",
        ),
    ],
)
def test_a_result_that_cannot_be_what_it_is_taken_for_is_refused_before_anything_runs(specs, words):
    maker, reader = specs
    for found in (refused(maker, reader), refused(reader, before=(maker,))):
        assert found is not None and words in found[1], found


def test_what_a_run_has_learnt_is_served_for_that_and_its_body_makes_vectors():
    assert (
        refused(
            trains("t"), asks("s", "run://t", "sequence-classification"), asks("v", "run://t", "feature-extraction")
        )
        is None
    )
    assert refused(search("q"), asks("s", "run://q/best", "sequence-classification")) is None
    assert refused(train("own"), asks("s", "run://own", "causal-lm")) is None  # a loop of one's own: nobody can say
