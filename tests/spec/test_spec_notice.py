"""`notify`: an address, or a section with more."""

from __future__ import annotations

import pytest

from llmsched.errors import SpecError
from llmsched.spec.load import load

TASK = "name: a\nkind: task\ntask: {run: [x]}\n"


def test_an_address_alone_is_told_of_ends_and_a_section_says_more():
    text = TASK + "notify: [https://a.example/x, {url_from: HOOK, on: [waiting], after: 30m, when: 'loss < 1'}]\n"
    first, second = load(text)[0].notify
    assert (first.url, first.on) == ("https://a.example/x", ["failed", "succeeded", "cancelled"])
    assert (second.url_from, second.on, second.after, second.when) == ("HOOK", ["waiting"], 1800.0, "loss < 1")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{on: [failed]}", "wants one address: url, or url_from"),
        ("{url: 'https://a.example', url_from: HOOK}", "wants one address"),
        ("{url: 'https://a.example', on: []}", "nothing would ever be told"),
        ("{url: 'https://a.example', on: [ended]}", 'got "ended"'),
        ("{url: 'https://a.example', on: [failed], after: 20m}", 'counts for "waiting" alone'),
        ("{url: 'https://a.example', on: [failed, failed]}", '"failed" stands there twice'),
        ("{url: 'https://a.example', when: 'a < 1e999'}", "a number that is too large"),
        ("{url: 'https://a.example', wen: 'a < 1'}", 'Did you mean "when"?'),
    ],
)
def test_an_entry_of_notify_that_would_tell_nothing_is_refused(entry, words):
    with pytest.raises(SpecError) as refused:
        load(TASK + f"notify: [{entry}]\n")
    assert words in str(refused.value)


def test_the_same_entry_twice_is_refused_and_one_address_for_two_things_is_not():
    once = TASK + "notify: [https://a.example/x, {url: 'https://a.example/x', on: [waiting]}]\n"
    assert len(load(once)[0].notify) == 2
    with pytest.raises(SpecError, match="stands there twice"):
        load(once.replace("]}]", "]}, https://a.example/x]"))


def test_an_endpoint_that_is_called_stands_there_once():
    with pytest.raises(SpecError, match='"b" stands there twice'):
        load(TASK + "calls: [b, c, b]\n")
