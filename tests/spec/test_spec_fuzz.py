"""Whatever is thrown at it, `load` answers with specs or a SpecError that has places."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llmsched.errors import SpecError
from llmsched.spec import cluster, init
from llmsched.spec.load import KINDS, load, load_json
from llmsched.spec.validation import keys_of, sections_in

FEW = settings(max_examples=150, deadline=None)


def survives(text: str | bytes) -> None:
    for read in (load, cluster.load):
        try:
            read(text, "f.yaml")
        except SpecError as error:
            assert error.problems
            assert all(problem.where.startswith("f.yaml:") and problem.message for problem in error.problems)
            assert "[A-Za-z" not in str(error), "a pattern is not for people"


def all_keys(model: Any, seen: set[Any]) -> set[str]:
    keys = set(keys_of(model))
    for annotation in keys_of(model).values():
        for section in sections_in(annotation):
            if section not in seen:
                seen.add(section)
                keys |= all_keys(section, seen)
    return keys


KEYS = sorted(set().union(*(all_keys(model, set()) for model in [*KINDS.values(), cluster.ClusterSpec])))
WORDS = [
    "",
    "a",
    "2..8",
    "10m",
    "8GB",
    "A100:1",
    "run://a",
    "auto",
    "lora",
    "full",
    "a:b",
    "sha256:x",
    "*",
    "🙂",
    "\x7f",
    "null",
]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10**6), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(WORDS), st.text(max_size=8),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@FEW
@given(st.text(alphabet=st.sampled_from("abk:-[]{},&*!|>#%@\"'\\ \n\t0.9~?<é\x00"), max_size=80))
def test_any_text_is_read_or_refused(text):
    survives(text)


@FEW
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    survives(data)


@FEW
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_a_starter_with_a_piece_changed_is_read_or_refused(kind, data):
    text = init.starter(kind)
    at = data.draw(st.integers(0, len(text)))
    until = data.draw(st.integers(at, min(len(text), at + 20)))
    survives(text[:at] + data.draw(st.text(max_size=10)) + text[until:])


@FEW
@given(st.sampled_from(sorted(KINDS)), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5), VALUES)
def test_any_json_is_read_or_refused_and_yaml_says_the_same(kind, more, section):
    data = {"name": "a", "kind": kind, kind: section, **more}
    try:
        from_json: object = load_json(data)
    except SpecError as error:
        assert "[A-Za-z" not in str(error) and "[a-z" not in str(error), "a pattern is not for people"
        from_json = sorted(problem.message for problem in error.problems)
    try:
        from_yaml: object = load(json.dumps(data))[0]
    except SpecError as error:
        from_yaml = sorted(problem.message for problem in error.problems)
    assert from_json == from_yaml or _only_yaml_minds(from_yaml)


def _only_yaml_minds(messages: object) -> bool:
    """YAML text cannot hold some characters, and a number in it may be too large, or a key `<<`."""
    minds = ("not valid YAML", "too large", "merge keys", "a key must be text", "longer than")
    return isinstance(messages, list) and any(mind in message for mind in minds for message in messages)


@FEW
@given(VALUES)
def test_any_value_is_a_configuration_or_refused(value):
    try:
        assert isinstance(cluster.load_json(value), cluster.ClusterSpec)
    except SpecError as error:
        assert error.problems
