"""Follow-up questions: those that are asked, of the corpus, and those that are learnt, which are made."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from workloads.apps.desk import follow_up

LANGUAGES = ("Python", "JavaScript", "TypeScript", "Java", "Rust", "Go", "Ruby", "Kotlin", "Perl", "Scala")
OTHER_LANGUAGE = ("And in {}?", "What about {}?", "and {}?", "The same in {}, please.", "How about in {}?")
OTHER_THING = ("And {}?", "What about {}?", "and {}?", "How about {}?")
LEARNT = 480


def asked(twice: dict[str, list[str]]) -> Iterable[dict[str, str]]:
    """Of each thing that has an answer in two languages: the other one, and another such thing in the same one."""
    for place, (thing, there) in enumerate(sorted(twice.items())):
        for before, now in (there[:2], there[1::-1]):
            whole, first = (f"can you write {thing} in {each}?" for each in (now, before))
            yield {"first": first, "then": OTHER_LANGUAGE[place % 5].format(now), "whole": whole}
            other = sorted(twice)[place - 1]
            if before in twice[other]:
                whole = f"can you write {other} in {before}?"
                yield {"first": first, "then": OTHER_THING[place % 4].format(other), "whole": whole}


def made(things: list[str], chance: random.Random) -> Iterable[dict[str, Any]]:
    """Of things that have an answer in one language, so of none that is asked."""
    for number in range(LEARNT):
        (thing, other), (language, new) = chance.sample(things, 2), chance.sample(LANGUAGES, 2)
        first, whole = f"can you write {thing} in {language}?", f"can you write {other} in {language}?"
        now = chance.choice(OTHER_THING).format(other)
        if number % 2:
            now, whole = chance.choice(OTHER_LANGUAGE).format(new), f"can you write {thing} in {new}?"
        elif number % 8 == 0:  # a whole question stays as it is
            now = whole = f"can you write {other} in {new}?"
        yield {"messages": [*follow_up(first, now), {"role": "assistant", "content": whole}]}
