"""What the border makes of what is said: always text that can be written and numbers that can be counted."""

import json
import math
from dataclasses import dataclass, field

import pytest
from hostile import ALL, TEXTS, Mute

from llmsched import sanitize


def is_valid(value):
    """JSON takes it and gives it back, it is short enough, and no character of it commands a terminal."""
    written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    written.encode()
    assert json.loads(written) == value
    assert sanitize.shown(written) == written
    return len(written) < 50_000


@pytest.mark.parametrize("value", ALL, ids=lambda value: type(value).__name__)
def test_any_value_becomes_valid_data_and_text(value):
    assert is_valid(sanitize.data(value)) and is_valid(sanitize.data({"key": [value], "other": {"a": value}}))
    assert is_valid(sanitize.text(value)) and is_valid(sanitize.line(value))
    assert math.isfinite(sanitize.finite(value)) and abs(sanitize.whole(value)) <= sanitize.LARGEST
    assert is_valid(sanitize.numbers(value)) and is_valid(sanitize.numbers({"a": value}))


def test_what_is_no_character_is_spelled_out_so_that_two_names_stay_two():
    assert sanitize.text("caf\udce9.txt") == "caf\\udce9.txt"
    assert sanitize.text("\x1b[2J\x9b") == "\\x1b[2J\\x9b"
    assert (
        sanitize.text("\x1b[36m(RayTrainWorker pid=7)\x1b[0m loss \x1b[1;31m2\x1b[m") == "(RayTrainWorker pid=7) loss 2"
    )
    assert sanitize.text("\x1b[\x1b[0m2J") == "\\x1b[2J"  # what is left of it once a colour has gone
    assert len({sanitize.text(f"caf{one}") for one in ("\udce9", "\udcea", "\x1b")}) == 3
    assert sanitize.text("two\r\nlines\tand a tab, ünïcode, 日本, 👍🏽") == "two\nlines\tand a tab, ünïcode, 日本, 👍🏽"
    assert sanitize.line("two\nlines") == "two lines"
    assert sanitize.unicode("\x1b[31m\udce9") == "\x1b[31m\\udce9"


def test_a_number_that_is_too_large_is_told_in_words():
    told = [sanitize.number(one) for one in (10**400, -3 * 10**400, math.nan, 5, 0.5)]
    assert told == [
        "1e400",
        "-3e400",
        "nan",
        5,
        0.5,
    ]
    assert sanitize.numbers({"a": 10**400, "b": math.inf, "c": 1, "d": "x", "e": True}) == {"c": 1.0}


def test_an_exception_that_cannot_say_itself_is_told_by_its_type():
    assert sanitize.first_line(Mute()) == "Mute (it cannot be put into words: RuntimeError)"
    assert sanitize.first_line(ValueError()) == "ValueError"
    assert sanitize.first_line(ValueError("a\nb")) == "a"


@dataclass(frozen=True)
class Inner:
    name: str


@dataclass(frozen=True)
class Outer:
    name: str
    amount: float
    count: int
    perhaps: float | None
    is_so: bool
    inner: Inner
    many: tuple[Inner, ...]
    labels: dict[str, str] = field(default_factory=dict)
    raw: sanitize.Output = ""


def test_a_record_is_made_valid_field_by_field_and_an_innocent_one_stays_as_it_is():
    fine = Outer("a", 0.5, 3, None, True, Inner("b"), (Inner("c"),), {"k": "v"}, "\x1b[31m")
    assert sanitize.record(fine) == fine
    bad = Outer("\ud800", math.nan, 10**400, math.inf, "yes", Inner(object), (Inner(None),), {1: "\x00"}, "\ud800\x1b")
    made = sanitize.record(bad)
    assert (made.name, made.amount, made.count) == ("\\ud800", 0.0, sanitize.LARGEST)
    assert (made.perhaps, made.is_so) == (None, False)
    assert made.labels == {"1": "\\x00"} and made.raw == "\\ud800\x1b"


@pytest.mark.parametrize("said", [one for one in TEXTS if sanitize.flaw(one)])
def test_what_people_ask_is_refused_with_its_place(said):
    place, wrong = sanitize.first_flaw({"a": [{"b": "fine"}, {"c": said}]})
    assert place == "$.a[1].c" and "at place" in wrong
    place, _ = sanitize.first_flaw({"a": {said: 1}})
    assert place == "a key in $.a"


def test_what_people_ask_is_not_refused_for_being_their_language():
    assert (
        sanitize.first_flaw(
            {"größe": ["日本語", "👩‍👩‍👧", "‏עברית", "tab\tand\r\nlines"], "n": [1, 0.5, None, 2**64 - 1]}
        )
        is None
    )
    assert sanitize.first_flaw([math.nan]) == ("$[0]", "nan is not a finite number")
    assert sanitize.first_flaw([2**64]) == ("$[0]", "the number is too large")
