"""What helps people write specs: schema, starters, diff, public names, and that none of it is slow to import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from waiting import PATIENCE_S

import llmsched
from llmsched.errors import SpecError
from llmsched.spec import init
from llmsched.spec.diff import diff, diff_parcels
from llmsched.spec.load import KINDS, load
from llmsched.spec.parcel import parcel_of
from llmsched.spec.schema import schema

HERE = Path(__file__).parent


@pytest.mark.parametrize("kind", KINDS)
def test_a_starter_loads_as_it_stands(kind):
    (spec,) = load(init.starter(kind))
    assert spec.kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_commented_out_in_a_starter_is_right_too(kind):
    lines = init.starter(kind).split("\n")
    optional = [
        line for line in lines if line.lstrip().startswith("# ") and line.split("# ")[1].split(":")[0].isidentifier()
    ]
    optional = [line for line in optional if not line.lstrip().startswith(("# NOT", "# Code", "# serve"))]
    text = "\n".join(line.replace("# ", "", 1) if line in optional else line for line in lines)
    load(text)


@pytest.mark.parametrize("kind", [*KINDS, "cluster", None])
def test_the_schema_is_a_schema_and_refuses_unknown_keys(kind):
    made = schema(kind)
    jsonschema.Draft202012Validator.check_schema(made)
    wrong = {"name": "a", "kind": kind or "task", "nonsense": 1}
    assert list(jsonschema.Draft202012Validator(made).iter_errors(wrong))


def test_the_schema_accepts_what_load_accepts():
    documents = [
        *yaml_documents("promised.yaml"),
        *(document for kind in KINDS for document in parse(init.starter(kind))),
    ]
    assert len(documents) == 15
    for document in documents:
        for made in (schema(document["kind"]), schema()):
            jsonschema.validate(document, made)
    jsonschema.validate(parse((HERE / "promised_cluster.yaml").read_text())[0], schema("cluster"))


def yaml_documents(file: str) -> list[dict]:
    return parse((HERE / file).read_text())


def parse(text: str) -> list[dict]:
    from llmsched.spec import document

    found, problems = document.parse(text, "x")
    assert not problems
    return [each.data for each in found]


def test_the_schema_is_plain_data():
    assert yaml.safe_load(yaml.safe_dump(schema("train"))) == schema("train")


def test_a_diff_is_in_the_words_people_write():
    old = init.starter("train")
    new = old.replace("1..4", "2..8").replace("r: 16", "r: 8").replace("10m", "20s").replace("8GB", "16GB")
    new = new.replace("max_runtime: 6h", "") + "envs: {A: b}\n"
    assert diff(load(old)[0], load(new)[0]) == [
        "resources.memory: 8GB -> 16GB",
        "envs.A: nothing -> b",
        "workers: 1..4 -> 2..8",
        "max_runtime: 6h -> nothing",
        "checkpoint.every: 10m -> 20s",
        "train.lora.r: 16 -> 8",
    ]
    assert diff(load(old)[0], load(old)[0]) == []


def test_parcels_differ_in_the_same_words_and_one_of_an_older_version_in_plain_values():
    old, new = (
        load("name: a\nkind: task\ntask: {run: [x]}")[0],
        load("name: a\nkind: task\nworkers: 2..4\ntask: {run: [x]}")[0],
    )
    assert diff_parcels(parcel_of(old), parcel_of(new)) == diff(old, new) == ["workers: 1 -> 2..4"]
    older = json.loads(parcel_of(old)) | {"gone": 5}
    assert "gone: 5 -> nothing" in diff_parcels(json.dumps(older), parcel_of(new))
    assert diff_parcels("{}", "{}") == []


def test_every_public_name_is_there():
    for name in set(llmsched.__all__) - {"Client"}:
        assert getattr(llmsched, name).__name__ == name
    assert set(llmsched.__all__) <= set(dir(llmsched))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        llmsched.nonsense  # noqa: B018


def test_reading_a_spec_loads_no_heavy_library():
    code = """
import sys, llmsched
assert not any(name.startswith("llmsched.") for name in sys.modules), "llmsched itself is lazy"
import llmsched.spec.load, llmsched.spec.compile, llmsched.spec.cluster
llmsched.spec.load.load("name: a\\nkind: task\\ntask: {run: [x]}")
heavy = {"ray", "torch", "transformers", "peft", "numpy", "fastapi", "httpx"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("data", "place", "words"),
    [
        (
            "name: t\nlabels: {a: \xe4}\n".encode("latin-1"),
            "2:13",
            "the byte 0xe4 is no UTF-8. Save the file as UTF-8.",
        ),
        ("name: t\nkind:\u00a0task\ntask: {run: [a]}\n", "2:6", "There is an invisible U+00A0: write a plain space."),
        ("name: t\nkind: task\ntask:\n\trun: [a]\n", "4:1", "There is a tab: indent with spaces."),
    ],
)
def test_what_an_editor_does_not_show_is_told_where_it_stands(data, place, words):
    """Before, a parser's words stood at another place, or at the first line."""
    with pytest.raises(SpecError) as refused:
        load(data)
    assert str(refused.value).startswith(f"spec.yaml:{place}: not valid YAML: ") and words in str(refused.value)
