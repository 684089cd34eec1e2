"""What a parcel says is remembered, but never more of it than a bound allows: specs may be long, and many."""

from __future__ import annotations

import tracemalloc

import pytest

from llmsched.spec import parcel
from llmsched.spec.load import load_json


def text(name: str, words: int = 1) -> str:
    task = {"name": name, "kind": "task", "task": {"run": ["true"] * words}}
    return parcel.parcel_of(load_json(task))


def test_a_reading_is_kept_as_data_and_typed_anew_when_somebody_asks() -> None:
    written = text("a")
    found = parcel.read(written)
    assert parcel.read(written) is found and found.text == written
    assert found.spec == load_json(found.data) and found.spec is not found.spec


@pytest.mark.parametrize("words", [1, 900], ids=["many", "long"])
def test_readings_are_bounded_by_number_and_by_length(words: int) -> None:
    for number in range(parcel.MOST_KEPT // (1 if words == 1 else 3) + 100):
        text(f"b{number}", words)
    kept = parcel._readings
    assert len(kept._kept) <= parcel.MOST_KEPT
    assert sum(map(len, kept._kept)) == kept._characters <= parcel.KEPT_CHARACTERS
    assert kept.get(text("b0", words)) is not None, "who was put out comes in again"
    assert sum(map(len, kept._kept)) == kept._characters


def test_a_reading_takes_little_more_than_its_data() -> None:
    text("warm")
    tracemalloc.start()
    for number in range(100):
        text(f"c{number}")
    weight = tracemalloc.get_traced_memory()[0] / 100
    tracemalloc.stop()
    assert weight < 12 * len(text("c0")), "a typed spec would weigh as much again"


def test_a_kind_that_nobody_reads_has_no_typed_spec_and_says_why() -> None:
    found = parcel.read('{"kind":"other"}')
    assert (found.spec, found.model, found.problem) == (None, None, 'there is no kind "other"')
    refused = parcel.read('{"kind":"task","name":"x"}')
    assert refused.spec is None and refused.problem
